# SPDX-License-Identifier: Apache-2.0
"""Position embeddings of a checkpoint file: which tokens have one, of which grid, and how the source resizes them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..ice_deit.position_interpolation import PositionInterpolation


__all__ = ["GridChange", "choose_interpolation", "complete_positions", "resize_positions"]

_CLASS, _REGISTERS = "deit.embeddings.cls_token", "deit.embeddings.register_tokens"
_DISTILLATION, _POSITIONS = "deit.embeddings.distillation_token", "deit.embeddings.position_embeddings"
_LAYER_SCALE = ("ls1.gamma", "gamma_1")


@dataclass(frozen=True)
class GridChange:
    """What became of the positions of patches.

    Args:
        source_grid: Rows and columns of patches in the checkpoint.
        grid: Rows and columns of patches in the result.
        interpolation: Habit by which the first became the second, and would become others.
    """

    source_grid: tuple[int, int]
    grid: tuple[int, int]
    interpolation: PositionInterpolation

    def describe(self) -> str:
        """Return it in words."""
        old, new = (f"{rows} x {columns}" for rows, columns in (self.source_grid, self.grid))
        change = f"{old} patches, unchanged" if old == new else f"from {old} to {new} patches"
        return f"{change}; at other sizes the source is {self.interpolation.description}"


def choose_interpolation(names: Collection[str], is_timm: bool) -> str:
    """Return the key of `POSITION_INTERPOLATIONS` for a file with weights of these names.

    What decides are the parts by which the code bases differ. Files of facebook's DINO and DeiT and plain ViT of timm
    have the same names: DINO is known only by its projection head, timm only by its configuration or LayerScale.

    Args:
        names: Names of the weights in the file.
        is_timm: Whether timm wrote a configuration beside them.
    """

    def has(*parts: str) -> bool:
        return any(part in name for name in names for part in parts)

    if is_timm or has("reg_token", "register_tokens"):
        return "antialias"
    if has("decoder_blocks."):
        return "bicubic"
    if has("mask_token", "dino_head.", "ibot_head.", "head.mlp.", "head.last_layer.", "backbone."):
        return "offset"
    return "antialias" if has("ls1.gamma") else "bicubic"


def complete_positions(
    weights: Mapping[str, Tensor], names: Collection[str], grid: tuple[int, int] | None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Give [CLS] a position and registers none, as ICE-DeiT has them, without a change of the tokens.

    DeiT III and timm's `no_embed_class` have positions for patches only: a row of zeros is put before them. Where timm
    has positions for registers too, they are added to the registers.

    Args:
        weights: Weights under the names of ICE-DeiT.
        names: Names in the file: only files with registers or LayerScale may leave [CLS] without a position.
        grid: Rows and columns of patches that the checkpoint may have where they are no square.

    Returns:
        The weights, and what was done to the tensors that changed, by their name in ICE-DeiT.
    """
    positions, registers = weights[_POSITIONS], weights.get(_REGISTERS)
    num_tokens = 1 + (_DISTILLATION in weights)
    num_registers = 0 if registers is None or registers.ndim != 3 else registers.shape[1]
    may_lack = num_registers > 0 or any(part in name for name in names for part in _LAYER_SCALE)
    if not may_lack or positions.ndim != 3 or positions.shape[-1] != weights[_CLASS].shape[-1]:
        return dict(weights), {}  # what has a wrong shape is refused later, by its name
    # tokens before the patches that have positions: [CLS] alone, none, or registers too
    options = dict.fromkeys((num_tokens, 0, num_tokens + num_registers))
    counts = {option: positions.shape[1] - option for option in options if positions.shape[1] > option}
    squares = [option for option, count in counts.items() if math.isqrt(count) ** 2 == count]
    others = [option for option, count in counts.items() if grid is not None and count == math.prod(grid)]
    num_positioned = next(iter([*squares, *others]), num_tokens)
    if num_positioned == num_tokens:
        return dict(weights), {}
    if num_positioned == 0:
        rows = positions.new_zeros(1, num_tokens, positions.shape[-1])
        changed = {_POSITIONS: torch.cat((rows, positions), dim=1)}
        return {**weights, **changed}, {_POSITIONS: "only patches have positions: zeros put before them"}
    prefix, of_registers, patches = positions.split([num_tokens, num_registers, counts[num_positioned]], dim=1)
    changed = {_REGISTERS: weights[_REGISTERS] + of_registers, _POSITIONS: torch.cat((prefix, patches), dim=1)}
    return {**weights, **changed}, {_REGISTERS: "their positions added to the register tokens"}


def resize_positions(
    weights: Mapping[str, Tensor], source_grid: tuple[int, int], grid: tuple[int, int], habit: PositionInterpolation
) -> dict[str, Tensor]:
    """Return the weights with the position embeddings for another grid of patches."""
    num_prefix = weights[_POSITIONS].shape[1] - math.prod(source_grid)
    return {**weights, _POSITIONS: habit.resize(weights[_POSITIONS], num_prefix, source_grid, grid)}
