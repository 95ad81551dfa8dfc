# SPDX-License-Identifier: Apache-2.0
"""The layers of ICE-DeiT: embeddings, encoder layer with stochastic depth, patch head."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.deit.modeling_deit import DeiTEmbeddings, DeiTLayer, DeiTPatchEmbeddings

from .configuration_ice_deit import IceDeiTConfig, as_pair


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
        """Embed `(batch_size, num_channels, height, width)` as `(batch_size, prefix + num_patches, hidden_size)`."""
        patches = self.patch_embeddings(pixel_values)
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

    def forward(self, branch: Tensor) -> Tensor:
        """Return the branch, or zeros for a random share of the images."""
        if self.drop_probability == 0.0 or not self.training:
            return branch
        keep_probability = 1.0 - self.drop_probability
        keep = torch.rand(branch.shape[0], 1, 1, device=branch.device) < keep_probability
        return branch * keep / keep_probability

    def extra_repr(self) -> str:
        """Show the probability when the model is printed."""
        return f"drop_probability={self.drop_probability:g}"


class IceDeiTLayer(DeiTLayer):
    """Transform tokens by attention and MLP; differs from `DeiTLayer` by stochastic depth on both branches."""

    def __init__(self, config: IceDeiTConfig, drop_probability: float) -> None:
        super().__init__(config)
        self.drop_path = IceDeiTDropPath(drop_probability)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Map `(batch_size, num_tokens, hidden_size)` to the same shape."""
        attended, _ = self.attention(self.layernorm_before(hidden_states), attention_mask, **kwargs)
        hidden_states = hidden_states + self.drop_path(self.dropout(attended))
        transformed = self.mlp(self.layernorm_after(hidden_states))
        return hidden_states + self.drop_path(self.dropout(transformed))


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


__all__ = ["IceDeiTDropPath", "IceDeiTEmbeddings", "IceDeiTLayer", "IceDeiTPatchMLP", "build_patch_head"]
