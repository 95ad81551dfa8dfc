# SPDX-License-Identifier: Apache-2.0
"""Position embeddings of another patch grid, each as the code interpolates that a checkpoint comes from."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class PositionInterpolation:
    """Habit of a code base, by which the position embeddings of its checkpoints are brought to another patch grid.

    All are bicubic between patch centres and leave the prefix tokens unchanged.

    Args:
        description: What is done, and where it is done so.
        antialias: Whether a smaller grid is low-pass filtered.
        offset: Patches added to both sides of the new grid before the scale is computed. Facebook's DINO and DINOv2
            have 0.1, against a rounding error; it moves every position a little.
        float64: Whether positions in float64 are interpolated in float64. Others are in float32 in any case.
    """

    description: str
    antialias: bool = False
    offset: float = 0.0
    float64: bool = False

    def resize(
        self, positions: Tensor, num_prefix: int, source_grid: tuple[int, int], grid: tuple[int, int]
    ) -> Tensor:
        """Return the positions for a patch grid of these rows and columns.

        Args:
            positions: `(1, num_prefix + rows * columns of source_grid, hidden_size)`.
            num_prefix: Number of positions before the first patch.
            source_grid: Rows and columns that the positions are for.
            grid: Rows and columns that are wanted.

        Returns:
            `(1, num_prefix + rows * columns of grid, hidden_size)`; the positions themselves where the grids agree.
        """
        if grid == source_grid:
            return positions
        prefix, patches = positions.split([num_prefix, positions.shape[1] - num_prefix], dim=1)
        # half-precision bicubic is missing on some devices and coarse on all
        patches = patches if self.float64 and patches.dtype == torch.float64 else patches.float()
        patches = patches.unflatten(1, source_grid).permute(0, 3, 1, 2)  # -> (1, hidden_size, rows, columns)
        # under an offset the scale is given and the size follows from it, rounded down: the same rows and columns
        scale = tuple((new + self.offset) / old for new, old in zip(grid, source_grid, strict=True))
        target: dict[str, Any] = {"scale_factor": scale} if self.offset else {"size": grid}
        patches = nn.functional.interpolate(
            patches, mode="bicubic", align_corners=False, antialias=self.antialias, **target
        )
        patches = patches.to(prefix.dtype).flatten(2).transpose(1, 2)  # -> (1, rows * columns, hidden_size)
        return torch.cat((prefix, patches), dim=1)


POSITION_INTERPOLATIONS = {
    "bicubic": PositionInterpolation("bicubic, as transformers, DeiT and MAE"),
    "antialias": PositionInterpolation("bicubic with antialias, as timm and DINOv2 with registers", antialias=True),
    "offset": PositionInterpolation(
        "bicubic with an offset of 0.1 patches, as facebook's DINO and DINOv2", offset=0.1
    ),
}
"""Habits by the name that `transformers-ice convert --position_interpolation` takes."""


__all__ = ["POSITION_INTERPOLATIONS", "PositionInterpolation"]
