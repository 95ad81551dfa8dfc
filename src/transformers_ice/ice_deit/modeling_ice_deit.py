# SPDX-License-Identifier: Apache-2.0
"""ICE-DeiT: the DeiT encoder whose every patch token predicts a class or "background".

Wires `adversarial_normalization` into the DeiT classes of transformers. This file travels with a checkpoint as remote
code, so it imports its neighbours with a single dot.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.deit.modeling_deit import DeiTModel, DeiTPreTrainedModel
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .adversarial_normalization import (
    CLASSIFICATION_LOSSES,
    AdversarialNormalizationLoss,
    PooledPatches,
    adversarial_normalization_loss,
    batch_foreground_ratio,
    candidate_label_loss,
    foreground_mask,
    pool_background_logits,
    pool_foreground_logits,
    pool_softly,
    soft_targets,
)
from .configuration_ice_deit import IceDeiTConfig
from .input_checks import check_labels, check_pixel_values
from .layers_ice_deit import IceDeiTEmbeddings, IceDeiTLayer, build_patch_head, build_pruning_head
from .local_windows import every_nth, join_windows, local_distillation_loss, split_windows
from .outputs_ice_deit import IceDeiTImageClassifierOutput, IceDeiTModelOutput
from .patch_smoothing import patch_appearance, smoothing_weights
from .pretrained_ice_deit import IceDeiTPreTrainedModel
from .pruned_encoding import encode_pruned
from .token_pruning import gate_loss, keep_foreground


class IceDeiTModel(IceDeiTPreTrainedModel, DeiTModel):
    """Encode an image and let every patch predict a class or background.

    Differences from `DeiTModel`: optional distillation token, any image size, stochastic depth, the patch head (on
    the patch tokens before the final layer norm, as in the authors' `models_ICE.py`), no pooler.
    """

    _keys_to_ignore_on_load_unexpected = [r"^pooler\.", r"classifier\.", r"mask_token$", r"pruning_heads\."]

    def __init__(self, config: IceDeiTConfig) -> None:
        # not DeiT's own constructor: it would build and initialise modules only to have them replaced
        DeiTPreTrainedModel.__init__(self, config)
        config.check_values()
        self.embeddings: IceDeiTEmbeddings = IceDeiTEmbeddings(config)
        drop_probabilities = torch.linspace(0, config.drop_path_rate, config.num_hidden_layers, device="cpu").tolist()
        self.layers = nn.ModuleList(IceDeiTLayer(config, probability) for probability in drop_probabilities)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.patch_head = build_patch_head(config)
        layers = config.pruning_schedule if config.has_pruning_heads else ()
        self.pruning_heads = nn.ModuleDict({str(index): build_pruning_head(config) for index in layers})
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(  # type: ignore[override]
        self, pixel_values: Tensor | None = None, interpolate_pos_encoding: bool | None = None, **kwargs: Any
    ) -> IceDeiTModelOutput:
        """Encode images.

        Args:
            pixel_values: `(batch_size, num_channels, height, width)`, normalised as the image processor does; height
                and width are any multiples of the patch size.
            interpolate_pos_encoding: Accepted for compatibility; positions are interpolated whenever it is needed.
            **kwargs: Options of the attention implementation.

        Returns:
            `IceDeiTModelOutput`.

        Raises:
            ValueError: If `pixel_values` has a wrong shape or type.

        Example:
            >>> model = AutoModel.from_pretrained("checkpoints/ice-deit-scenes")
            >>> outputs = model(**image_processor(image, return_tensors="pt"))
            >>> outputs.patch_logits.argmax(-1)  # (1, num_patches): a class of each patch, `num_labels` is background
        """
        pixel_values = check_pixel_values(pixel_values, self.config)
        outputs = self.encode(self.embeddings(pixel_values), **kwargs)
        grid_size = torch.tensor(self.embeddings.grid_size_of(pixel_values), device=pixel_values.device)
        outputs.grid_size = grid_size.expand(pixel_values.shape[0], 2)
        return outputs

    def encode(self, hidden_states: Tensor, **kwargs: Any) -> IceDeiTModelOutput:
        """Run the layers, the patch head and the final layer norm, without or with pruning.

        Args:
            hidden_states: `(batch_size, num_prefix_tokens + num_patches, hidden_size)`.
            **kwargs: Options of the attention implementation.

        Returns:
            `IceDeiTModelOutput` without `grid_size`.

        Raises:
            ValueError: If the strategy of the configuration needs a pruning head that the model was not built with.
        """
        if self.config.pruning_strategy is not None:
            self.check_pruning_heads()
            return encode_pruned(self, hidden_states, **kwargs)
        for layer in self.layers:
            hidden_states = layer(hidden_states, None, **kwargs)
        patch_logits = self.patch_head(hidden_states[:, self.config.num_prefix_tokens :])
        patch_exit_layer = torch.full(
            patch_logits.shape[:2], len(self.layers), dtype=torch.long, device=patch_logits.device
        )
        return IceDeiTModelOutput(
            last_hidden_state=self.layernorm(hidden_states),
            patch_logits=patch_logits,
            patch_exit_layer=patch_exit_layer,
        )

    def encode_windows(self, pixel_values: Tensor) -> Tensor:
        """Return what patches say that see nothing but their own window, without pruning.

        Args:
            pixel_values: `(batch_size, num_channels, height, width)`.

        Returns:
            `(batch_size, num_patches, num_labels + 1)`. Each of `config.num_local_windows`**2 windows has the prefix
            tokens to itself, and its patches have the positions that they have in the image.

        Raises:
            ValueError: If the patch grid does not divide into the windows.
        """
        num_windows, num_prefix = self.config.num_local_windows, self.config.num_prefix_tokens
        grid_size = self.embeddings.grid_size_of(pixel_values)
        hidden_states = self.embeddings(pixel_values)
        windows = split_windows(hidden_states[:, num_prefix:], grid_size, num_windows)
        prefix = hidden_states[:, :num_prefix].repeat_interleave(num_windows**2, dim=0)
        tokens = torch.cat((prefix, windows), dim=1)
        for layer in self.layers:
            tokens = layer(tokens, None)
        return join_windows(self.patch_head(tokens[:, num_prefix:]), grid_size, num_windows)

    def check_pruning_heads(self) -> None:
        """Raise unless there is a head for every decision that the configuration asks for.

        The configuration of a living model may be changed; its modules stay.

        Raises:
            ValueError: If there is not.
        """
        if not self.config.has_pruning_heads:
            return
        missing = [index for index in self.config.pruning_schedule if str(index) not in self.pruning_heads]
        if missing:
            raise ValueError(
                f'`pruning_strategy="{self.config.pruning_strategy}"` needs a pruning head at the layers '
                f"{self.config.pruning_layers}, and this model has none at {missing}. Load a checkpoint trained with "
                f'it (`from_pretrained(..., pruning_strategy="{self.config.pruning_strategy}")`), or use '
                '`pruning_strategy="attentiveness"`, which needs no heads.'
            )

    def foreground_patches(self, layer_index: int, margin: Tensor, present: Tensor) -> Tensor:
        """Decide which patches stay at a pruning layer under the strategy "background".

        Args:
            layer_index: The pruning layer.
            margin: `(batch_size, num_patches)`, by how much background wins; any value where no patch is present.
            present: `(batch_size, num_patches)`, bool, the patches that have not left before.

        Returns:
            `(batch_size, num_patches)`, bool, at least one of each image.
        """
        return keep_foreground(margin, present, self.config.background_margin)


class IceDeiTForImageClassification(IceDeiTPreTrainedModel):
    """Classify images by their foreground patches, and say which those are."""

    _keys_to_ignore_on_load_unexpected = [r"pooler\.", r"mask_token$", r"pruning_heads\."]

    def __init__(self, config: IceDeiTConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.deit = IceDeiTModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        if config.has_distillation_head:
            self.distillation_classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        **kwargs: Any,
    ) -> IceDeiTImageClassifierOutput:
        """Classify images; with labels, also return the ICE loss and its parts.

        Args:
            pixel_values: `(batch_size, num_channels, height, width)`, normalised as the image processor does; height
                and width are any multiples of the patch size.
            labels: `(batch_size,)` class indices in [0, num_labels), or `(batch_size, num_labels)` soft targets.
            interpolate_pos_encoding: Accepted for compatibility; positions are interpolated whenever it is needed.
            **kwargs: Options of the attention implementation.

        Returns:
            `IceDeiTImageClassifierOutput`. An image without a foreground patch has all-zero foreground logits.

        Raises:
            ValueError: If `pixel_values` or `labels` has a wrong shape, type or, in eager mode, range.

        Example:
            >>> model = AutoModelForImageClassification.from_pretrained("checkpoints/ice-deit-scenes")
            >>> outputs = model(**image_processor(image, return_tensors="pt"))
            >>> model.config.id2label[outputs.logits.argmax(-1).item()], outputs.foreground_ratio
        """
        pixel_values = check_pixel_values(pixel_values, self.config)
        if labels is not None:
            check_labels(labels, pixel_values.shape[0], self.config.num_labels)
        encoded = self.deit(pixel_values, **kwargs)
        cls_logits = self.classify_prefix(encoded.last_hidden_state)
        pooled = self.pool(encoded.patch_logits)
        losses = {} if labels is None else self.compute_losses(pixel_values, encoded, pooled, cls_logits, labels)
        from_patches = self.config.logits_source == "patch"
        return IceDeiTImageClassifierOutput(
            logits=pooled.foreground_logits[:, : self.config.num_labels] if from_patches else cls_logits,
            cls_logits=cls_logits,
            patch_logits=encoded.patch_logits,
            foreground_logits=pooled.foreground_logits,
            background_logits=pooled.background_logits,
            foreground_ratio=pooled.foreground_ratio,
            patch_exit_layer=encoded.patch_exit_layer,
            grid_size=encoded.grid_size,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
            **losses,
        )

    def classify_prefix(self, last_hidden_state: Tensor) -> Tensor:
        """Return the logits of the prefix tokens' classifiers, `(batch_size, num_labels)`: their mean if two."""
        cls_logits = self.classifier(last_hidden_state[:, 0])
        if not self.config.has_distillation_head:
            return cls_logits
        return (cls_logits + self.distillation_classifier(last_hidden_state[:, 1])) / 2

    def pool(self, patch_logits: Tensor) -> PooledPatches:
        """Pool patch logits `(batch_size, num_patches, num_labels + 1)` over the images, as published."""
        mask = foreground_mask(patch_logits)
        return PooledPatches(
            foreground_logits=pool_foreground_logits(patch_logits, mask),
            background_logits=pool_background_logits(patch_logits, self.config.background_logit_scale),
            foreground_ratio=mask.float().mean(dim=-1),
        )

    def compute_losses(
        self, pixel_values: Tensor, encoded: Any, pooled: PooledPatches, cls_logits: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        """Return `loss` and its unweighted parts, each 0-dim, by their names in the output.

        Args:
            pixel_values: The images.
            encoded: Their `IceDeiTModelOutput`.
            pooled: Of its patch logits.
            cls_logits: `(batch_size, num_labels)`.
            labels: As given to `forward`.
        """
        targets = soft_targets(labels, self.config.num_labels)
        ice_loss = self.ice_loss(encoded.patch_logits, pooled, targets)
        cls_loss = CLASSIFICATION_LOSSES[self.config.classification_loss_type](cls_logits, targets)
        # the [CLS] part is added even at weight 0: every parameter then has a gradient, which DDP asks for
        total = ice_loss.total + self.config.cls_loss_weight * cls_loss
        losses = {
            "classification_loss": ice_loss.classification,
            "background_loss": ice_loss.background,
            "cls_loss": cls_loss,
        }
        if ice_loss.candidate_label is not None:
            losses["candidate_label_loss"] = ice_loss.candidate_label
        if self.training and self.config.num_local_windows and self.config.local_loss_weight:
            losses["local_loss"] = self.compute_local_loss(pixel_values, encoded, targets)
            total = total + self.config.local_loss_weight * losses["local_loss"]
        if encoded.pruning_logits is not None:
            losses["pruning_loss"] = self.compute_pruning_loss(encoded, targets)
            total = total + self.config.pruning_loss_weight * losses["pruning_loss"]
        return {"loss": total, **losses}

    def ice_loss(self, patch_logits: Tensor, pooled: PooledPatches, targets: Tensor) -> AdversarialNormalizationLoss:
        """Return the loss of patch logits, from whichever head, by the objective of the configuration.

        Args:
            patch_logits: `(batch_size, num_patches, num_labels + 1)`.
            pooled: `pool(patch_logits)`.
            targets: `(batch_size, num_labels)`.
        """
        config = self.config
        is_soft = config.foreground_pooling == "soft"
        loss = adversarial_normalization_loss(
            pool_softly(patch_logits) if is_soft else pooled.foreground_logits,
            pooled.background_logits,
            targets,
            batch_foreground_ratio(pooled.foreground_ratio, across_ranks=self.training),
            config.background_loss_weight,
            config.min_foreground_ratio,
            config.classification_loss_weight,
            config.max_foreground_ratio,
            config.classification_loss_type,
        )
        if not config.candidate_label_loss_weight:
            return loss
        candidate_label = candidate_label_loss(patch_logits, targets)
        total = loss.total + config.candidate_label_loss_weight * candidate_label
        return replace(loss, total=total, candidate_label=candidate_label)

    def compute_local_loss(self, pixel_values: Tensor, encoded: Any, targets: Tensor) -> Tensor:
        """Return the loss of the local windows, 0-dim: the ICE loss in them, and of saying elsewhere what they say."""
        config = self.config
        images, targets = (every_nth(rows, config.local_image_share) for rows in (pixel_values, targets))
        local_logits = self.deit.encode_windows(images)
        local_loss = self.ice_loss(local_logits, self.pool(local_logits), targets)
        if not config.local_distillation_weight:
            return local_loss.total
        embeddings = self.deit.embeddings
        smoothing = smoothing_weights(
            patch_appearance(images, embeddings.patch_size),
            embeddings.grid_size_of(images),
            config.local_appearance_weight,
            config.local_smoothing_steps,
        )
        # a patch that left in training is no learner: what counts is what the last head says of it
        whole = encoded.patch_logits if encoded.last_patch_logits is None else encoded.last_patch_logits
        learners = every_nth(whole, config.local_image_share)
        distillation = local_distillation_loss(learners, local_logits, smoothing)
        return local_loss.total + config.local_distillation_weight * distillation

    def compute_pruning_loss(self, encoded: Any, targets: Tensor) -> Tensor:
        """Return the loss of the pruning heads, 0-dim, its mean over the pruning layers, of an `IceDeiTModelOutput`.

        A gate learns what the last head will say of each patch that reaches it; a patch head learns as the last one
        does, by the ICE loss on its own logits of all patches.
        """
        losses = []
        for index, logits in zip(self.config.pruning_schedule, encoded.pruning_logits, strict=True):
            if logits.shape[-1] == 1:
                is_background = ~foreground_mask(encoded.last_patch_logits)
                losses.append(gate_loss(logits, encoded.patch_exit_layer >= index, is_background))
            else:
                losses.append(self.ice_loss(logits, self.pool(logits), targets).total)
        return torch.stack(losses).mean()


class IceDeiTForSemanticSegmentation(IceDeiTForImageClassification):
    """Give the patch logits as a map, for `pipeline("image-segmentation")`.

    Same weights as `IceDeiTForImageClassification`, which is also the class to train. Its `config.id2label` names
    background too, at `num_labels`.
    """

    def __init__(self, config: IceDeiTConfig) -> None:
        super().__init__(config.with_background_label())

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        **kwargs: Any,
    ) -> IceDeiTImageClassifierOutput:
        """Classify every patch of the images.

        Args:
            pixel_values: As for `IceDeiTForImageClassification`.
            labels: Refused: there is no pixel loss. Train `IceDeiTForImageClassification` on image labels.
            interpolate_pos_encoding: Accepted for compatibility; positions are interpolated whenever it is needed.
            **kwargs: Options of the attention implementation.

        Returns:
            As `IceDeiTForImageClassification`, but `logits` is `(batch_size, num_labels + 1, rows, columns)`.

        Raises:
            ValueError: If `labels` are given, or `pixel_values` has a wrong shape or type.

        Example:
            >>> model = AutoModelForSemanticSegmentation.from_pretrained("checkpoints/ice-deit-scenes")
            >>> outputs = model(**image_processor(image, return_tensors="pt"))
            >>> image_processor.post_process_semantic_segmentation(outputs, target_sizes=[(480, 640)])
        """
        if labels is not None:
            raise ValueError(
                "IceDeiTForSemanticSegmentation takes no `labels`: ICE learns from image labels alone. Train with "
                "IceDeiTForImageClassification and load the result with this class."
            )
        # `return_dict` was handled by the decorator of this method, so the parent's returns its dataclass
        pixel_values = check_pixel_values(pixel_values, self.config)
        outputs = super().forward(pixel_values, **kwargs)
        grid_size = self.deit.embeddings.grid_size_of(pixel_values)
        outputs.logits = outputs.patch_logits.transpose(1, 2).unflatten(2, grid_size)
        return outputs


__all__ = [
    "IceDeiTForImageClassification",
    "IceDeiTForSemanticSegmentation",
    "IceDeiTImageClassifierOutput",
    "IceDeiTModel",
    "IceDeiTModelOutput",
    "IceDeiTPreTrainedModel",
]
