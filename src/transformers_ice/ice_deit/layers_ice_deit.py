# SPDX-License-Identifier: Apache-2.0
"""The layers of ICE-DeiT: embeddings, attention, encoder layer, patch head, pruning gate."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.deit.modeling_deit import (
    DeiTAttention,
    DeiTEmbeddings,
    DeiTLayer,
    DeiTPatchEmbeddings,
    eager_attention_forward,
)

from .configuration_ice_deit import IceDeiTConfig, as_pair
from .packed_attention import attend_packed
from .token_pruning import Packing


class IceDeiTEmbeddings(DeiTEmbeddings):
    """Embed patches and add the prefix tokens and positions.

    Differences from `DeiTEmbeddings`: the distillation token is optional; positions are interpolated whenever the
    grid differs from the configured one, also to and from rectangles; there is no mask token.
    """

    def __init__(self, config: IceDeiTConfig) -> None:
        # not DeiT's own constructor: it always makes a distillation token and its position
        nn.Module.__init__(self)
        self.num_prefix_tokens = config.num_prefix_tokens
        self.patch_size: tuple[int, int] = as_pair(config.patch_size)
        self.image_size = as_pair(config.image_size)
        self.grid_size = (self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1])
        num_positions = self.num_prefix_tokens + self.grid_size[0] * self.grid_size[1]
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.distillation_token: nn.Parameter | None = None  # type: ignore[assignment]
        if config.use_distillation_token:
            self.distillation_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.position_embeddings = nn.Parameter(torch.zeros(1, num_positions, config.hidden_size))
        self.patch_embeddings = DeiTPatchEmbeddings(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def grid_size_of(self, pixel_values: Tensor) -> tuple[int, int]:
        """Return the rows and columns of patches that images `(..., height, width)` are cut into."""
        patch_height, patch_width = self.patch_size
        return pixel_values.shape[-2] // patch_height, pixel_values.shape[-1] // patch_width

    def interpolate_position_embeddings(self, grid_size: tuple[int, int]) -> Tensor:
        """Return the position embeddings for a patch grid.

        Args:
            grid_size: Rows and columns of the grid.

        Returns:
            `(1, num_prefix_tokens + rows * columns, hidden_size)`; bicubic between patch centres, prefix unchanged.
        """
        if grid_size == self.grid_size:
            return self.position_embeddings
        prefix, patches = self.position_embeddings.split(
            [self.num_prefix_tokens, self.position_embeddings.shape[1] - self.num_prefix_tokens], dim=1
        )
        patches = patches.unflatten(1, self.grid_size).permute(0, 3, 1, 2)  # -> (1, hidden_size, rows, columns)
        # half-precision bicubic is missing on some devices and coarse on all
        patches = nn.functional.interpolate(patches.float(), size=grid_size, mode="bicubic", align_corners=False)
        return torch.cat((prefix, patches.to(prefix.dtype).flatten(2).transpose(1, 2)), dim=1)

    def forward(self, pixel_values: Tensor) -> Tensor:  # type: ignore[override]
        """Embed `(batch_size, num_channels, height, width)` as `(batch_size, prefix + num_patches, hidden_size)`.

        Pixels of any floating type: they are cast to that of the weights.
        """
        patches = self.patch_embeddings(pixel_values.to(self.patch_embeddings.projection.weight.dtype))
        tokens = [self.cls_token] if self.distillation_token is None else [self.cls_token, self.distillation_token]
        prefix = [token.expand(patches.shape[0], -1, -1) for token in tokens]
        grid_size = self.grid_size_of(pixel_values)
        embeddings = torch.cat((*prefix, patches), dim=1) + self.interpolate_position_embeddings(grid_size)
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

    def extra_repr(self) -> str:
        """Show the probability when the model is printed."""
        return f"drop_probability={self.drop_probability:g}"


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
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Attend.

        Args:
            hidden_states: `(batch_size, num_tokens, hidden_size)`, or `(1, total_tokens, hidden_size)` if packed.
            attention_mask: Of the form that the attention implementation takes.
            packing: Which image each token of a packed batch belongs to.
            with_class_scores: Whether to return how [CLS] scores every token; not for a packed batch.
            **kwargs: Options of the attention implementation.

        Returns:
            The attended tokens, of the shape of `hidden_states`; the attention weights, if there are any;
            how [CLS] scores each token before softmax and mask, `(batch_size, num_heads, num_tokens)`, float32.
        """
        heads = (*hidden_states.shape[:-1], -1, self.head_dim)
        projections = (self.q_proj, self.k_proj, self.v_proj)
        query, key, value = (projection(hidden_states).view(heads).transpose(1, 2) for projection in projections)
        attend = partial(
            ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward),
            self,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        weights = None
        if packing is None:
            attended, weights = attend(query, key, value, attention_mask)
        else:
            attended = attend_packed(attend, query, key, value, packing, self.config)
        attended = self.o_proj(attended.reshape(*hidden_states.shape[:-1], -1))
        if not with_class_scores:
            return attended, weights, None
        return attended, weights, _class_scores(query, key, self.scaling)


def _class_scores(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """Return row 0 of the attention before softmax and mask, `(batch_size, num_heads, num_tokens)`, float32 or 64."""
    scores = (query[:, :, :1] @ key.transpose(2, 3)).squeeze(2)
    return scores.to(torch.promote_types(scores.dtype, torch.float32)) * scaling


class IceDeiTLayer(DeiTLayer):
    """Transform tokens by attention and MLP.

    Differences from `DeiTLayer`: stochastic depth on both branches; packed batches; tokens may leave in between.
    """

    def __init__(self, config: IceDeiTConfig, drop_probability: float) -> None:
        super().__init__(config)
        self.attention = IceDeiTAttention(config)
        self.drop_path = IceDeiTDropPath(drop_probability)

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        packing: Packing | None = None,
        cut: Callable[[Tensor, Tensor], tuple[Tensor, ...]] | None = None,
        **kwargs: Any,
    ) -> Tensor | tuple[Tensor, ...]:
        """Transform.

        Args:
            hidden_states: `(batch_size, num_tokens, hidden_size)`, or `(1, total_tokens, hidden_size)` if packed.
            attention_mask: Of the form that the attention implementation takes.
            packing: Which image each token of a packed batch belongs to.
            cut: Maps the tokens after attention, and how [CLS] scored each, to the tokens that go on, and more.
            **kwargs: Options of the attention implementation.

        Returns:
            The transformed tokens; with a `cut`, what else it returned behind them.
        """
        normed = self.layernorm_before(hidden_states)
        attended, _, class_scores = self.attention(normed, attention_mask, packing, cut is not None, **kwargs)
        hidden_states = hidden_states + self.drop_path(self.dropout(attended), packing)
        extras: tuple[Tensor, ...] = ()
        if cut is not None:
            hidden_states, *rest = cut(hidden_states, class_scores)
            extras = tuple(rest)
        transformed = self.mlp(self.layernorm_after(hidden_states))
        hidden_states = hidden_states + self.drop_path(self.dropout(transformed), packing)
        return hidden_states if cut is None else (hidden_states, *extras)


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
    """Return a head that maps patch tokens to `num_labels + 1` logits: linear without bias, or an MLP."""
    if config.patch_head_hidden_size is None:
        return nn.Linear(config.hidden_size, config.num_labels + 1, bias=False)
    return IceDeiTPatchMLP(config.hidden_size, config.patch_head_hidden_size, config.num_labels + 1)


class IceDeiTGateScore(nn.Linear):
    """Map a patch to one logit; a class of its own because it starts at zero, unlike other linear layers."""


class IceDeiTPruningGate(nn.Module):
    """Tell by one logit whether a patch is background: the pruning head when `pruning_head="gate"`.

    It starts at 0 for every patch, which sends none away under the strategy "background".
    """

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size, eps=eps)
        self.score = IceDeiTGateScore(hidden_size, 1)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map `(..., hidden_size)` to `(..., 1)`, positive for background."""
        return self.score(self.norm(hidden_states))


def build_pruning_head(config: IceDeiTConfig) -> nn.Module:
    """Return the head that decides at one pruning layer: `config.pruning_head` says which kind."""
    if config.pruning_head == "gate":
        return IceDeiTPruningGate(config.hidden_size, config.layer_norm_eps)
    return build_patch_head(config)


__all__ = [
    "IceDeiTAttention",
    "IceDeiTDropPath",
    "IceDeiTEmbeddings",
    "IceDeiTGateScore",
    "IceDeiTLayer",
    "IceDeiTPatchMLP",
    "IceDeiTPruningGate",
    "build_patch_head",
    "build_pruning_head",
]
