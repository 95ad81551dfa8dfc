# SPDX-License-Identifier: Apache-2.0
"""The objective of ICE-DeiT: its parts by name in one table, `LOSS_PARTS`, and their weighted sum.

Pure functions of what the model returned; their formulas are in `adversarial_normalization`, `local_windows` and
`token_pruning`. Nothing here imports the configuration, so the configuration may read the names of the table.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from operator import add

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedConfig

from .adversarial_normalization import (
    CLASSIFICATION_LOSSES,
    PooledPatches,
    adversary_gate,
    background_cross_entropy,
    background_weight,
    batch_mean,
    candidate_label_loss,
    evidence_of_parts,
    foreground_map,
    foreground_mask,
    log_normalizer,
    pool_patches,
    pool_softly,
    position_loss,
)
from .encoder_interface import IceEncoder
from .local_windows import every_nth, grouping_weights, local_distillation_loss, patch_appearance
from .several_labels import candidate_labels_loss, per_class_loss, pool_class_logits
from .token_pruning import gate_loss


@dataclass(frozen=True)
class ObjectiveInputs:
    """Outputs of a model and their targets: what every part of the loss is computed from.

    `patch_logits` are on the full grid, `pooled` is `pool_patches` of them. `targets` `(batch_size, num_labels)` are
    soft: of one label they sum to 1, of several each is in [0, 1]. While the model trains, the foreground ratio is a
    mean over all processes. The local windows run through `encoder`. `pruning_logits` are `None` unless the heads are
    trained; `last_patch_logits` are of the last head, also of pruned patches.
    """

    config: PreTrainedConfig
    patch_logits: Tensor
    pooled: PooledPatches
    targets: Tensor
    is_training: bool = False
    cls_logits: Tensor | None = None
    pixel_values: Tensor | None = None
    encoder: IceEncoder | None = None
    last_hidden_state: Tensor | None = None
    pruning_logits: tuple[Tensor, ...] | None = None
    last_patch_logits: Tensor | None = None
    patch_exit_layer: Tensor | None = None

    @cached_property
    def normalizer(self) -> Tensor:
        """`log_normalizer` of the patch logits, which several parts need."""
        return log_normalizer(self.patch_logits)

    @cached_property
    def maps(self) -> Tensor:
        """`foreground_map` of the patch logits, which several parts need."""
        return foreground_map(self.patch_logits, self.normalizer)

    @property
    def image_logits(self) -> Tensor:
        """Patch logits of each image as the classification loss pools them, `(batch_size, num_labels + 1)`."""
        is_soft = self.config.foreground_pooling == "soft"
        return pool_softly(self.patch_logits, self.maps) if is_soft else self.pooled.foreground_logits

    @property
    def gate(self) -> Tensor | float:
        """What the parts that pull patches to background count, in [0, 1]: `adversary_gate` of the batch."""
        # no cached property where nothing waits: torch.compile cannot trace those of python 3.11
        return self._gate if self.config.min_evidence_lead and not self.config.is_multi_label else 1.0

    @cached_property
    def _gate(self) -> Tensor:
        foreground, background = evidence_of_parts(self.patch_logits, self.targets, self.maps, self.normalizer)
        lead = batch_mean(foreground - background, across_ranks=self.is_training)
        return adversary_gate(lead, self.config.min_evidence_lead)

    def of_head(self, patch_logits: Tensor, targets: Tensor | None = None) -> "ObjectiveInputs":
        """Return the inputs with the patch logits of another head or of windows, and their targets."""
        pooled = pool_patches(patch_logits, self.config.background_logit_scale)
        return replace(
            self, patch_logits=patch_logits, pooled=pooled, targets=self.targets if targets is None else targets
        )


@dataclass(frozen=True)
class LossPart:
    """Part of the loss.

    Args:
        weight_field: Field of the configuration that weighs the part.
        compute: Returns the unweighted part, 0-dim, or `None` where it does not apply.
        weigh: Returns the weight where it depends on the batch; without it the weight is the field's value.
    """

    weight_field: str
    compute: Callable[[ObjectiveInputs], Tensor | None]
    weigh: Callable[[ObjectiveInputs], Tensor | float] | None = None


def compute_losses(inputs: ObjectiveInputs) -> dict[str, Tensor]:
    """Return the loss, "loss", and its unweighted parts by their names in `LOSS_PARTS`, each 0-dim."""
    return _weighted_sum(inputs, LOSS_PARTS)


def ice_losses(inputs: ObjectiveInputs) -> dict[str, Tensor]:
    """Return the ICE loss of patch logits, "loss", and its unweighted parts, each 0-dim, from whichever head.

    It is the objective without what belongs to the whole model: [CLS], local windows, pruning heads.
    """
    return _weighted_sum(inputs, _ICE_PARTS)


def _weighted_sum(inputs: ObjectiveInputs, names: Iterable[str]) -> dict[str, Tensor]:
    weighted, parts = [], {}
    for name in names:
        part = LOSS_PARTS[name]
        value = part.compute(inputs)
        if value is None:
            continue
        parts[name] = value
        # a part of weight 0 is added too: every parameter then has a gradient, which DDP asks for
        weight = part.weigh(inputs) if part.weigh else getattr(inputs.config, part.weight_field)
        weighted.append(weight * value)
    return {"loss": reduce(add, weighted), **parts}


def _classification_loss(inputs: ObjectiveInputs) -> Tensor:
    """Compare the pooled foreground logits with the image's label; the target of background is 0.

    Of several labels each is compared with the logit of its own class, pooled from the patches that name it.
    """
    if inputs.config.is_multi_label:
        return per_class_loss(pool_class_logits(inputs.patch_logits), inputs.targets)
    compare = CLASSIFICATION_LOSSES[inputs.config.classification_loss_type]
    return compare(inputs.image_logits, F.pad(inputs.targets, (0, 1)))


def _background_loss(inputs: ObjectiveInputs) -> Tensor:
    """Compare the pooled background logits with the background class: the adversary."""
    return background_cross_entropy(inputs.pooled.background_logits)


def _background_weight(inputs: ObjectiveInputs) -> Tensor:
    config = inputs.config
    ratio = batch_mean(inputs.pooled.foreground_ratio, across_ranks=inputs.is_training)
    return inputs.gate * background_weight(
        ratio, config.background_loss_weight, config.min_foreground_ratio, config.max_foreground_ratio
    )


def _candidate_label_loss(inputs: ObjectiveInputs) -> Tensor | None:
    """Let each patch be only the image's class, or one of its classes, or background."""
    if not inputs.config.candidate_label_loss_weight:
        return None
    if inputs.config.is_multi_label:
        return candidate_labels_loss(inputs.patch_logits, inputs.targets)
    return candidate_label_loss(inputs.patch_logits, inputs.targets, inputs.normalizer)


def _candidate_label_weight(inputs: ObjectiveInputs) -> Tensor | float:
    return inputs.gate * inputs.config.candidate_label_loss_weight


def _position_loss(inputs: ObjectiveInputs) -> Tensor | None:
    """Keep maps from going by the place of a patch alone. Only in training: it depends on the batch."""
    if not (inputs.is_training and inputs.config.position_loss_weight):
        return None
    return position_loss(inputs.patch_logits, inputs.config.max_common_map_share, inputs.maps)


def _cls_loss(inputs: ObjectiveInputs) -> Tensor | None:
    """Compare the logits of the prefix tokens' classifier with the image's label, or each with its own."""
    if inputs.cls_logits is None:
        return None
    if inputs.config.is_multi_label:
        return per_class_loss(inputs.cls_logits, inputs.targets)
    return CLASSIFICATION_LOSSES[inputs.config.classification_loss_type](inputs.cls_logits, inputs.targets)


def _local_loss(inputs: ObjectiveInputs) -> Tensor | None:
    """Return the ICE loss in local windows, plus the distillation from windows to the full image."""
    config, pixel_values, encoder = inputs.config, inputs.pixel_values, inputs.encoder
    is_used = inputs.is_training and config.num_local_windows and config.local_loss_weight
    if not is_used or pixel_values is None or encoder is None or inputs.last_hidden_state is None:
        return None
    images, targets = (every_nth(rows, config.local_image_share) for rows in (pixel_values, inputs.targets))
    window_logits = encoder.encode_windows(images)  # -> (num_images, num_patches, num_labels + 1)
    of_windows = inputs.of_head(window_logits, targets)
    loss = ice_losses(of_windows)["loss"]
    if not config.local_distillation_weight:
        return loss
    prefix = encoder.embeddings.num_prefix_tokens
    grouping = grouping_weights(
        every_nth(inputs.last_hidden_state[:, prefix:], config.local_image_share),
        patch_appearance(images, encoder.embeddings.patch_size),
        encoder.embeddings.grid_size_of(images),
        config.local_feature_weight,
        config.local_appearance_weight,
    )
    # the student is the last head: a pruned patch's own logits come from a pruning head, which has its own loss
    logits = inputs.patch_logits if inputs.last_patch_logits is None else inputs.last_patch_logits
    distillation = local_distillation_loss(every_nth(logits, config.local_image_share), window_logits, grouping)
    return loss + of_windows.gate * config.local_distillation_weight * distillation


def _pruning_loss(inputs: ObjectiveInputs) -> Tensor | None:
    """Return the mean loss of the pruning heads.

    A gate learns what the last head predicts of each patch that reaches it; a patch head learns as the last one does,
    by the ICE loss of its own logits of all patches.
    """
    last_patch_logits, exit_layer = inputs.last_patch_logits, inputs.patch_exit_layer
    if inputs.pruning_logits is None or last_patch_logits is None or exit_layer is None:
        return None
    losses = []
    for layer_index, logits in zip(inputs.config.pruning_schedule, inputs.pruning_logits, strict=True):
        if logits.shape[-1] == 1:
            losses.append(gate_loss(logits, exit_layer >= layer_index, ~foreground_mask(last_patch_logits)))
        else:
            losses.append(ice_losses(inputs.of_head(logits))["loss"])
    return torch.stack(losses).mean()


LOSS_PARTS = {
    "classification_loss": LossPart("classification_loss_weight", _classification_loss),
    "background_loss": LossPart("background_loss_weight", _background_loss, _background_weight),
    "candidate_label_loss": LossPart("candidate_label_loss_weight", _candidate_label_loss, _candidate_label_weight),
    "position_loss": LossPart("position_loss_weight", _position_loss),
    "cls_loss": LossPart("cls_loss_weight", _cls_loss),
    "local_loss": LossPart("local_loss_weight", _local_loss),
    "pruning_loss": LossPart("pruning_loss_weight", _pruning_loss),
}
"""Parts of the loss by their names in the model's output, in the order in which they are added."""

_ICE_PARTS = ("classification_loss", "background_loss", "candidate_label_loss", "position_loss")

__all__ = ["LOSS_PARTS", "LossPart", "ObjectiveInputs", "compute_losses", "ice_losses"]
