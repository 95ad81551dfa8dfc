# SPDX-License-Identifier: Apache-2.0
"""ICE-DeiT: the DeiT encoder whose every patch token predicts a class or "background".

From top to bottom: outputs, embeddings, attention, layer, patch and pruning heads, encoder, classifiers.
The loss is in `objective_ice_deit`. This file travels with a checkpoint as remote code, so it imports its neighbours
with a single dot.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DeiTConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.deit.modeling_deit import (
    DeiTAttention,
    DeiTEmbeddings,
    DeiTLayer,
    DeiTModel,
    DeiTPatchEmbeddings,
    DeiTPreTrainedModel,
    eager_attention_forward,
)
from transformers.utils import ModelOutput, logging
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .adversarial_normalization import PooledPatches, pool_patches, soft_targets
from .configuration_fields import check_grid
from .configuration_ice_deit import IceDeiTConfig, as_pair
from .input_checks import check_labels, check_pixel_values
from .local_windows import join_windows, split_windows
from .objective_ice_deit import ObjectiveInputs, compute_losses
from .packed_attention import Packing, attend_by_products, attend_packed, prefers_products
from .position_interpolation import POSITION_INTERPOLATIONS, PositionInterpolation
from .pretrained_ice_deit import IceDeiTPreTrainedModel
from .several_labels import pool_class_logits
from .source_families import unused_key_patterns
from .source_weights import SourceLayerScale
from .token_layouts import choose_layout
from .token_pruning import STRATEGIES, KeepPolicy, PruningStep, foreground_policy, num_kept


logger = logging.get_logger(__name__)


@dataclass
class IceDeiTModelOutput(ModelOutput):
    """Outputs of the encoder.

    Args:
        last_hidden_state: `(batch_size, num_prefix_tokens + num_patches, hidden_size)`, after the final layer norm;
            zero for pruned patches.
        patch_logits: `(batch_size, num_patches, num_labels + 1)`, background last, on the full grid.
        patch_exit_layer: `(batch_size, num_patches)`, int: the layer before which a patch was pruned, or for kept ones
            `num_hidden_layers`.
        grid_size: `(batch_size, 2)`, int: rows and columns of the patch grid.
        pruning_logits: Per pruning layer, the output of its head for every patch, `(batch_size, num_patches, 1)` of a
            gate or `(..., num_labels + 1)`; like the next, only while the model trains and has pruning heads.
        last_patch_logits: `(batch_size, num_patches, num_labels + 1)`, of the last head, for pruned patches too.
        hidden_states: Per layer, with `output_hidden_states=True`.
        attentions: Per layer, with `output_attentions=True` and the eager attention implementation.
    """

    last_hidden_state: Tensor | None = None
    patch_logits: Tensor | None = None
    patch_exit_layer: Tensor | None = None
    grid_size: Tensor | None = None
    pruning_logits: tuple[Tensor, ...] | None = None
    last_patch_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class IceDeiTImageClassifierOutput(ModelOutput):
    """Class logits and their explanation.

    Args:
        loss: 0-dim, only with labels, like the three parts below.
        logits: `(batch_size, num_labels)`, from the source that `config.logits_source` names.
        cls_logits: `(batch_size, num_labels)`, the [CLS] classifier, averaged with the distillation token's if it has
            one.
        patch_logits: `(batch_size, num_patches, num_labels + 1)`, background last, on the full grid.
        foreground_logits: `(batch_size, num_labels + 1)`, pooled over the foreground patches.
        background_logits: `(batch_size, num_labels + 1)`, pooled over all patches and scaled.
        foreground_ratio: `(batch_size,)`, ratio of foreground patches, in [0, 1].
        patch_exit_layer: `(batch_size, num_patches)`, int, as in `IceDeiTModelOutput`.
        grid_size: `(batch_size, 2)`, int: rows and columns of the patch grid.
        object_thresholds: `(batch_size, num_labels)`, float32: score, the sigmoid of `logits`, from which a class
            counts as found; only of a multi-label model, and what tells its outputs apart.
        classification_loss: 0-dim, unweighted cross-entropy of the foreground logits.
        background_loss: 0-dim, unweighted cross-entropy of the background logits with background.
        cls_loss: 0-dim, unweighted cross-entropy of the [CLS] logits.
        pruning_loss: 0-dim, unweighted loss of the pruning heads; only while the model trains and has some.
        candidate_label_loss: 0-dim, unweighted `candidate_label_loss`; only where it has a weight.
        position_loss: 0-dim, unweighted `position_loss`; only while the model trains and where it has a weight.
        local_loss: 0-dim, loss of the local windows, not weighted as a whole; only while the model trains with some.
        hidden_states: Per layer, with `output_hidden_states=True`.
        attentions: Per layer, with `output_attentions=True` and the eager attention implementation.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    cls_logits: Tensor | None = None
    patch_logits: Tensor | None = None
    foreground_logits: Tensor | None = None
    background_logits: Tensor | None = None
    foreground_ratio: Tensor | None = None
    patch_exit_layer: Tensor | None = None
    grid_size: Tensor | None = None
    object_thresholds: Tensor | None = None
    classification_loss: Tensor | None = None
    background_loss: Tensor | None = None
    cls_loss: Tensor | None = None
    pruning_loss: Tensor | None = None
    candidate_label_loss: Tensor | None = None
    position_loss: Tensor | None = None
    local_loss: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class IceDeiTEmbeddings(DeiTEmbeddings):
    """Embed patches and add the prefix tokens and positions.

    Differences from `DeiTEmbeddings`: the distillation token is optional; register tokens without a position may
    stand between it and the patches, as in `Dinov2WithRegistersEmbeddings`; positions are interpolated whenever the
    grid differs from the configured one, also to and from rectangles; there is no mask token.
    """

    def __init__(self, config: IceDeiTConfig) -> None:
        # not DeiT's own constructor: it always makes a distillation token and its position
        nn.Module.__init__(self)
        self.num_prefix_tokens = config.num_prefix_tokens
        self.num_prefix_positions = config.num_prefix_positions
        self.interpolate_antialias = config.interpolate_antialias
        self.patch_size: tuple[int, int] = as_pair(config.patch_size)
        self.image_size = as_pair(config.image_size)
        self.grid_size = (self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1])
        num_positions = self.num_prefix_positions + self.grid_size[0] * self.grid_size[1]
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.distillation_token: nn.Parameter | None = None  # type: ignore[assignment]
        if config.use_distillation_token:
            self.distillation_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.register_tokens: nn.Parameter | None = None
        if config.num_register_tokens:
            self.register_tokens = nn.Parameter(torch.zeros(1, config.num_register_tokens, config.hidden_size))
        self.position_embeddings = nn.Parameter(torch.zeros(1, num_positions, config.hidden_size))
        self.patch_embeddings = DeiTPatchEmbeddings(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def grid_size_of(self, pixel_values: Tensor) -> tuple[int, int]:
        """Return the rows and columns of patches that images `(..., height, width)` are cut into."""
        patch_height, patch_width = self.patch_size
        return pixel_values.shape[-2] // patch_height, pixel_values.shape[-1] // patch_width

    def interpolate_position_embeddings(self, grid_size: tuple[int, int]) -> Tensor:
        """Return the position embeddings for a patch grid of these rows and columns.

        Bicubic between patch centres, prefix unchanged: `(1, num_prefix_positions + num_patches, hidden_size)`.
        """
        interpolation = POSITION_INTERPOLATIONS["antialias" if self.interpolate_antialias else "bicubic"]
        return interpolation.resize(self.position_embeddings, self.num_prefix_positions, self.grid_size, grid_size)

    @torch.no_grad()
    def resize(self, image_size: int | list[int], interpolation: PositionInterpolation) -> None:
        """Bring the position embeddings to another image size for good."""
        grid_size = check_grid(image_size, self.patch_size)
        old = self.position_embeddings
        resized = interpolation.resize(old, self.num_prefix_positions, self.grid_size, grid_size)
        self.position_embeddings = nn.Parameter(resized, requires_grad=old.requires_grad)
        self.image_size, self.grid_size = as_pair(image_size), grid_size
        self.patch_embeddings.image_size, self.patch_embeddings.num_patches = self.image_size, math.prod(grid_size)

    def forward(self, pixel_values: Tensor) -> Tensor:  # type: ignore[override]
        """Embed `(batch_size, num_channels, height, width)` as `(batch_size, prefix + num_patches, hidden_size)`.

        The order is [CLS], distillation token, registers, patches. Pixels of any floating type: they are cast to that
        of the weights.
        """
        pixel_values = pixel_values.to(self.patch_embeddings.projection.weight.dtype)
        patches = self.patch_embeddings(pixel_values)  # (batch, channels, height, width) -> (batch, patches, dim)
        tokens = [self.cls_token] if self.distillation_token is None else [self.cls_token, self.distillation_token]
        prefix = [token.expand(patches.shape[0], -1, -1) for token in tokens]
        grid_size = self.grid_size_of(pixel_values)
        embeddings = torch.cat((*prefix, patches), dim=1) + self.interpolate_position_embeddings(grid_size)
        if self.register_tokens is not None:
            # after the positions, of which registers have none
            registers = self.register_tokens.expand(patches.shape[0], -1, -1)
            positioned, patches = embeddings.split([self.num_prefix_positions, patches.shape[1]], dim=1)
            embeddings = torch.cat((positioned, registers, patches), dim=1)
        return self.dropout(embeddings)


class IceDeiTDropPath(nn.Module):
    """Drop the residual branch of whole images in training and rescale the others (stochastic depth).

    Source: Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016, as DeiT's recipe uses it.
    """

    def __init__(self, drop_probability: float) -> None:
        super().__init__()
        self.drop_probability = drop_probability

    def forward(self, branch: Tensor, packing: Packing | None = None) -> Tensor:
        """Return the branch, or zeros for a random share of the images."""
        if self.drop_probability == 0.0 or not self.training:
            return branch
        keep_probability = 1.0 - self.drop_probability
        num_images = branch.shape[0] if packing is None else packing.present.shape[0]
        keep = torch.rand(num_images, 1, 1, device=branch.device) < keep_probability
        if packing is not None:
            keep = keep[packing.image_of_token].transpose(0, 1)  # -> (1, total_tokens, 1)
        return branch * keep / keep_probability


def attention_function(config: DeiTConfig) -> Callable[..., Any]:
    """Return the attention implementation of a configuration; its first argument is the attention module."""
    return ALL_ATTENTION_FUNCTIONS.get_interface(config._attn_implementation, eager_attention_forward)


class IceDeiTAttention(DeiTAttention):
    """Let tokens attend to each other.

    Differences from `DeiTAttention`: images of a batch may have different numbers of tokens (`packing`), and the
    scores of [CLS] can be had from any attention implementation.
    """

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        packing: Packing | None = None,
        with_class_scores: bool = False,
        attend: Callable[..., Any] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Attend, and with `with_class_scores` also return how [CLS] scores each token before softmax and mask.

        `hidden_states` is `(batch_size, num_tokens, hidden_size)`, or `(1, total_tokens, hidden_size)` if packed; the
        scores are `(batch_size, num_heads, num_tokens)`, float32, not for a packed batch. `attention_mask` has the
        form that the attention implementation takes, `kwargs` are its options. `attend` is that implementation, if the
        caller has looked it up.
        """
        heads = (*hidden_states.shape[:-1], -1, self.head_dim)
        # (batch, tokens, dim) -> (batch, heads, tokens, head_dim)
        query = self.q_proj(hidden_states).view(heads).transpose(1, 2)
        key = self.k_proj(hidden_states).view(heads).transpose(1, 2)
        value = self.v_proj(hidden_states).view(heads).transpose(1, 2)
        options = {**kwargs, "dropout": self.attention_dropout if self.training else 0.0, "scaling": self.scaling}
        if attend is None:
            attend = attention_function(self.config)
        weights = None
        if packing is not None:
            attended = attend_packed(partial(attend, self, **options), query, key, value, packing, self.config)
        elif attention_mask is None and prefers_products(query, self.config, options["dropout"]):
            attended = attend_by_products(query, key, value, self.scaling)
        else:
            attended, weights = attend(self, query, key, value, attention_mask, **options)
        # (batch, tokens, heads, head_dim) -> (batch, tokens, dim)
        attended = self.o_proj(attended.reshape(*hidden_states.shape[:-1], -1))
        if not with_class_scores:
            return attended, weights, None
        scores = (query[:, :, :1] @ key.transpose(2, 3)).squeeze(2)  # -> (batch, heads, tokens)
        return attended, weights, scores.to(torch.promote_types(scores.dtype, torch.float32)) * self.scaling


class IceDeiTLayer(DeiTLayer):
    """Transform tokens by attention and MLP.

    Differences from `DeiTLayer`: stochastic depth on both branches; packed batches; tokens may be pruned in between.
    """

    def __init__(self, config: IceDeiTConfig, drop_probability: float, load_layer_scale: bool = False) -> None:
        super().__init__(config)
        self.attention = IceDeiTAttention(config)
        self.drop_path = IceDeiTDropPath(drop_probability)
        if load_layer_scale:
            self.layer_scale1 = SourceLayerScale(config.hidden_size)
            self.layer_scale2 = SourceLayerScale(config.hidden_size)

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        packing: Packing | None = None,
        prune: Callable[[Tensor, Tensor], tuple[Tensor, ...]] | None = None,
        **kwargs: Any,
    ) -> Tensor | tuple[Tensor, ...]:
        """Transform tokens `(batch_size, num_tokens, hidden_size)`, or `(1, total_tokens, hidden_size)` if packed.

        `prune` maps the tokens after attention and the scores of [CLS] for each to the tokens kept, and more, which is
        returned after the transformed tokens.
        """
        normed = self.layernorm_before(hidden_states)
        attended, _, class_scores = self.attention(normed, attention_mask, packing, prune is not None, **kwargs)
        hidden_states = hidden_states + self._drop(attended, packing)
        extras: tuple[Tensor, ...] = ()
        if prune is not None:
            hidden_states, *rest = prune(hidden_states, class_scores)
            extras = tuple(rest)
        transformed = self.mlp(self.layernorm_after(hidden_states))
        hidden_states = hidden_states + self._drop(transformed, packing)
        return hidden_states if prune is None else (hidden_states, *extras)

    def _drop(self, branch: Tensor, packing: Packing | None) -> Tensor:
        # in evaluation neither does anything, and a call that does nothing costs as much as a small tensor operation
        if self.dropout.training or self.drop_path.training:
            return self.drop_path(self.dropout(branch), packing)
        return branch


class IceDeiTPatchMLP(nn.Module):
    """Classify patches through one hidden layer: the patch head when `patch_head_hidden_size` is set."""

    def __init__(self, input_size: int, hidden_size: int, output_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(input_size, hidden_size)
        self.activation_fn = nn.GELU()
        self.fc2 = nn.Linear(hidden_size, output_size, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map `(..., hidden_size)` to `(..., num_labels + 1)`."""
        return self.fc2(self.activation_fn(self.fc1(hidden_states)))


def build_patch_head(config: IceDeiTConfig) -> nn.Module:
    """Return a head that maps patch tokens to `num_labels + 1` logits: linear without bias, or an MLP.

    Where the loss pools softly, `_init_weights` starts it at zero: random logits would say what is background.
    """
    sizes, hidden_size = (config.hidden_size, config.num_labels + 1), config.patch_head_hidden_size
    head = nn.Linear(*sizes, bias=False) if hidden_size is None else IceDeiTPatchMLP(sizes[0], hidden_size, sizes[1])
    getattr(head, "fc2", head).starts_at_zero = config.foreground_pooling == "soft"
    return head


class IceDeiTGateScore(nn.Linear):
    """Linear map from a patch to one logit, which starts at zero, unlike other linear layers."""

    starts_at_zero = True  # read by `IceDeiTPreTrainedModel._init_weights`


class IceDeiTPruningGate(nn.Module):
    """One logit for background, the pruning head when `pruning_head="gate"`.

    It starts at 0 for every patch, so it prunes none under the strategy "background".
    """

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size, eps=eps)
        self.score = IceDeiTGateScore(hidden_size, 1)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map `(..., hidden_size)` to `(..., 1)`, positive for background."""
        return self.score(self.norm(hidden_states))


def build_pruning_head(config: IceDeiTConfig) -> nn.Module:
    """Return the head that decides at one pruning layer, of the kind `config.pruning_head`."""
    if config.pruning_head == "gate":
        return IceDeiTPruningGate(config.hidden_size, config.layer_norm_eps)
    return build_patch_head(config)


class IceDeiTModel(IceDeiTPreTrainedModel, DeiTModel):
    """Encode an image and let every patch predict a class or background.

    Differences from `DeiTModel`: optional distillation token and registers, any image size, stochastic depth, the
    patch head (on the patch tokens before the final layer norm, as in the authors' `models_ICE.py`), no pooler.
    """

    _keys_to_ignore_on_load_unexpected = [*unused_key_patterns(), r"classifier\.", r"pruning_heads\."]

    def __init__(self, config: IceDeiTConfig, load_layer_scale: bool = False) -> None:
        # not DeiT's own constructor: it would build and initialise modules only to have them replaced
        DeiTPreTrainedModel.__init__(self, config)
        config.check_values()
        self.embeddings: IceDeiTEmbeddings = IceDeiTEmbeddings(config)
        drop_probabilities = torch.linspace(0, config.drop_path_rate, config.num_hidden_layers, device="cpu").tolist()
        # `load_layer_scale` is for `from_pretrained`: room for the factors of DINOv2, which it folds and removes
        self.layers = nn.ModuleList(IceDeiTLayer(config, value, load_layer_scale) for value in drop_probabilities)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.patch_head = build_patch_head(config)
        layers = config.pruning_schedule if config.has_pruning_heads else ()
        self.pruning_heads = nn.ModuleDict({str(index): build_pruning_head(config) for index in layers})
        # set it to decide which patches "background" keeps in place of `config.background_margin`
        self.keep_policy: KeepPolicy | None = None
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
        if kwargs.pop("attention_mask", None) is not None:  # PEFT and others pass `None`
            raise ValueError("`attention_mask` must be None: images have no padding, every patch is attended to.")
        outputs = self.encode(self.embeddings(pixel_values), **kwargs)
        grid_size = torch.tensor(self.embeddings.grid_size_of(pixel_values), device=pixel_values.device)
        outputs.grid_size = grid_size.expand(pixel_values.shape[0], 2)
        return outputs

    def encode(self, hidden_states: Tensor, **kwargs: Any) -> IceDeiTModelOutput:
        """Run the layers, the patch head and the final layer norm, without or with pruning; returns no `grid_size`.

        `hidden_states` is `(batch_size, num_prefix_tokens + num_patches, hidden_size)`; a `ValueError` if the strategy
        of the configuration needs a pruning head that the model lacks.
        """
        # looked up once for all layers: reading a configuration takes as long as a small tensor operation
        kwargs.setdefault("attend", attention_function(self.config))
        if self.config.pruning_strategy is not None:
            return self._encode_pruned(hidden_states, **kwargs)
        for layer in self.layers:
            hidden_states = layer(hidden_states, None, **kwargs)
        # (batch, prefix + patches, dim) -> (batch, patches, num_labels + 1)
        patch_logits = self.patch_head(hidden_states[:, self.config.num_prefix_tokens :])
        patch_exit_layer = torch.full(
            patch_logits.shape[:2], len(self.layers), dtype=torch.long, device=patch_logits.device
        )
        return IceDeiTModelOutput(
            last_hidden_state=self.layernorm(hidden_states),
            patch_logits=patch_logits,
            patch_exit_layer=patch_exit_layer,
        )

    def _encode_pruned(self, hidden_states: Tensor, **kwargs: Any) -> IceDeiTModelOutput:
        """Run the layers and the patch head while patches are pruned; arguments and result are those of `encode`."""
        config, schedule = self.config, self.config.pruning_schedule
        strategy = STRATEGIES[config.pruning_strategy or ""]
        if strategy.needs_heads:
            self._check_heads_at(schedule)
        keep_policy = self.keep_policy or foreground_policy(config.background_margin)
        fuses = config.fuse_pruned_tokens
        prunes_by_heads = strategy.needs_heads and (config.prune_in_training or not self.training)
        records_states = any(
            kwargs.get(name, getattr(config, name, False)) for name in ("output_hidden_states", "output_attentions")
        )
        tokens: Any = choose_layout(config, self.training, records_states).start(hidden_states, config)
        num_present, pruning_logits = hidden_states.shape[1] - self.embeddings.num_prefix_tokens, []
        for index, layer in enumerate(self.layers):
            step = PruningStep(index, num_present, num_kept(schedule.get(index, 1.0), num_present), keep_policy)
            if index in schedule and strategy.needs_heads:
                head_output = tokens.apply_head(self.pruning_heads[str(index)])
                pruning_logits.append(head_output)
                if prunes_by_heads:
                    # the logits of a pruned patch are learnt from the pruning loss alone
                    tokens = strategy.decide(tokens, head_output.detach(), step)
            tokens = strategy.apply_layer(tokens, layer, self.patch_head, step, **kwargs)
            num_present = strategy.num_left(step, fuses)
        encoded = tokens.scatter_to_grid(self.layernorm, self.patch_head)
        trains_heads = self.training and strategy.needs_heads
        return IceDeiTModelOutput(
            last_hidden_state=encoded.last_hidden_state,
            patch_logits=encoded.patch_logits,
            patch_exit_layer=encoded.exit_layer,
            pruning_logits=tuple(pruning_logits) if trains_heads else None,
            last_patch_logits=encoded.last_patch_logits if trains_heads else None,
        )

    def encode_windows(self, pixel_values: Tensor) -> Tensor:
        """Return patch logits computed independently within local windows, without pruning.

        Each of `config.num_local_windows`**2 windows has the prefix tokens to itself, and its patches have the
        positions that they have in the image. `(batch_size, num_patches, num_labels + 1)`; a `ValueError` if the grid
        does not divide.
        """
        num_windows, num_prefix = self.config.num_local_windows, self.config.num_prefix_tokens
        grid_size = self.embeddings.grid_size_of(pixel_values)
        hidden_states = self.embeddings(pixel_values)
        # (batch, patches, dim) -> (batch * windows, patches of a window, dim)
        windows = split_windows(hidden_states[:, num_prefix:], grid_size, num_windows)
        prefix = hidden_states[:, :num_prefix].repeat_interleave(num_windows**2, dim=0)
        tokens = torch.cat((prefix, windows), dim=1)
        for layer in self.layers:
            tokens = layer(tokens, None)
        return join_windows(self.patch_head(tokens[:, num_prefix:]), grid_size, num_windows)

    def check_pruning_heads(self) -> None:
        """Raise a `ValueError` unless every pruning layer of the configuration, which may have changed, has a head."""
        if self.config.has_pruning_heads:
            self._check_heads_at(self.config.pruning_schedule)

    def _check_heads_at(self, layers: Iterable[int]) -> None:
        missing = [index for index in layers if str(index) not in self.pruning_heads]
        if missing:
            raise ValueError(
                f'`pruning_strategy="{self.config.pruning_strategy}"` needs a pruning head at the layers '
                f"{self.config.pruning_layers}, and this model has none at {missing}. Load a checkpoint trained with "
                f'it (`from_pretrained(..., pruning_strategy="{self.config.pruning_strategy}")`), or use '
                '`pruning_strategy="attentiveness"`, which needs no heads.'
            )


class IceDeiTForImageClassification(IceDeiTPreTrainedModel):
    """Classify images by their foreground patches, and give the logits of each patch."""

    _keys_to_ignore_on_load_unexpected = [*unused_key_patterns(), r"pruning_heads\."]

    def __init__(self, config: IceDeiTConfig, load_layer_scale: bool = False) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.deit = IceDeiTModel(config, load_layer_scale)
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
            labels: `(batch_size,)` class indices in [0, num_labels), or `(batch_size, num_labels)` soft targets, which
                sum to 1. Where `config.problem_type` is "multi_label_classification": `(batch_size, num_labels)`,
                floating point, 1 for each class in the picture, in [0, 1].
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
            check_labels(labels, pixel_values.shape[0], self.config.num_labels, self.config.is_multi_label)
            self._check_objective()
        encoded = self.deit(pixel_values, **kwargs)
        cls_logits = self.classify_prefix(encoded.last_hidden_state)
        pooled = pool_patches(encoded.patch_logits, self.config.background_logit_scale)
        losses = {}
        if labels is not None:
            losses = compute_losses(self._objective_inputs(pixel_values, encoded, pooled, cls_logits, labels))
        return IceDeiTImageClassifierOutput(
            logits=self._image_logits(encoded.patch_logits, pooled, cls_logits),
            cls_logits=cls_logits,
            patch_logits=encoded.patch_logits,
            foreground_logits=pooled.foreground_logits,
            background_logits=pooled.background_logits,
            foreground_ratio=pooled.foreground_ratio,
            patch_exit_layer=encoded.patch_exit_layer,
            grid_size=encoded.grid_size,
            object_thresholds=self._object_thresholds(cls_logits) if self.config.is_multi_label else None,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
            **losses,
        )

    def _image_logits(self, patch_logits: Tensor, pooled: PooledPatches, cls_logits: Tensor) -> Tensor:
        """Return the class logits of the images, `(batch_size, num_labels)`, from the source that is configured."""
        if self.config.logits_source == "cls":
            return cls_logits
        if self.config.is_multi_label:
            return pool_class_logits(patch_logits).to(cls_logits.dtype)
        return pooled.foreground_logits[:, : self.config.num_labels]

    def _object_thresholds(self, cls_logits: Tensor) -> Tensor:
        thresholds = self.config.object_thresholds or [0.5] * self.config.num_labels
        return torch.tensor(thresholds, dtype=torch.float32, device=cls_logits.device).expand(cls_logits.shape[0], -1)

    def _check_objective(self) -> None:
        """Refuse an objective that is not ICE's, and say where the loss does not train the logits."""
        config = self.config
        if config.problem_type == "regression":
            raise ValueError(
                '`problem_type` must be None, "single_label_classification" or "multi_label_classification", as ICE '
                f"learns classes, got {config.problem_type!r}."
            )
        if self.training and config.logits_source == "cls" and not config.cls_loss_weight:
            logger.warning_once(
                'The loss trains the patches, and `outputs.logits` are those of [CLS] (`logits_source="cls"`), which '
                'it does not train (`cls_loss_weight=0`). Set `model.config.logits_source = "patch"` to train and '
                "return the logits of the patches, or give `cls_loss_weight`."
            )

    def _objective_inputs(
        self, pixel_values: Tensor, encoded: Any, pooled: PooledPatches, cls_logits: Tensor, labels: Tensor
    ) -> ObjectiveInputs:
        return ObjectiveInputs(
            config=self.config,
            patch_logits=encoded.patch_logits,
            pooled=pooled,
            targets=soft_targets(labels, self.config.num_labels),
            is_training=self.training,
            cls_logits=cls_logits,
            pixel_values=pixel_values,
            encoder=self.deit,
            last_hidden_state=encoded.last_hidden_state,
            pruning_logits=encoded.pruning_logits,
            last_patch_logits=encoded.last_patch_logits,
            patch_exit_layer=encoded.patch_exit_layer,
        )

    def classify_prefix(self, last_hidden_state: Tensor) -> Tensor:
        """Return the logits of the prefix tokens' classifiers, `(batch_size, num_labels)`: their mean if two."""
        cls_logits = self.classifier(last_hidden_state[:, 0])
        if not self.config.has_distillation_head:
            return cls_logits
        return (cls_logits + self.distillation_classifier(last_hidden_state[:, 1])) / 2


class IceDeiTForSemanticSegmentation(IceDeiTForImageClassification):
    """ICE-DeiT whose `logits` are the map of patch logits, for `pipeline("image-segmentation")`.

    Same weights as `IceDeiTForImageClassification`, which is also the class to train. Its `config.id2label` names
    background too, at `num_labels`.
    """

    def __init__(self, config: IceDeiTConfig, load_layer_scale: bool = False) -> None:
        super().__init__(config.with_background_label(), load_layer_scale)

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
            pixel_values: As for `IceDeiTForImageClassification`, like the others.
            labels: Refused: there is no pixel loss. Train `IceDeiTForImageClassification` on image labels.
            interpolate_pos_encoding: Accepted for compatibility.
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
        # (batch, patches, num_labels + 1) -> (batch, num_labels + 1, rows, columns)
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
