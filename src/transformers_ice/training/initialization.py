# SPDX-License-Identifier: Apache-2.0
"""Initial weights for transformers that train on few images: attention that starts local instead of random.

From random weights and thousands instead of millions of images, the patch tokens of a classifier soon hold the class
of the whole image at any position, because every token attends to the object. If a patch first attends to itself and
its neighbours, more of the patch tokens keep describing their own position, which is what the patch head reads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..ice_deit.configuration_ice_deit import as_pair
from ..ice_deit.patch_maps import grid_size


__all__ = ["initialize_mimetically", "sinusoidal_positions"]

_FAMILIES = ("vit", "deit", "ice_deit")

# alpha and beta of the paper's section 3: weights of the noise and of the identity
_QUERY_KEY = (0.7, 0.7)
_VALUE_OUTPUT = (0.4, -0.4)


def sinusoidal_positions(grid_size: tuple[int, int], hidden_size: int) -> Tensor:
    """Return fixed position embeddings `(rows * columns, hidden_size)` in [-1, 1], in which nearby patches are alike.

    Source: Vaswani et al., "Attention Is All You Need", section 3.5, for each axis of the grid.
    """
    if hidden_size % 4:
        raise ValueError(f"`hidden_size` must be a multiple of 4 for sinusoidal positions, got {hidden_size}.")
    quarter = hidden_size // 4
    frequencies = 10000.0 ** -(torch.arange(quarter) / quarter)  # (hidden_size / 4,), from 1 down towards 1e-4
    rows, columns = torch.meshgrid(*(torch.arange(float(side)) for side in grid_size), indexing="ij")
    # (rows, columns) -> (rows * columns, hidden_size / 4), for each axis
    angles = [place.flatten()[:, None] * frequencies for place in (rows, columns)]
    # four blocks of columns: sine and cosine of the row, then of the column
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)


@torch.no_grad()
def initialize_mimetically(model: PreTrainedModel) -> None:
    """Initialize the attention of a ViT, DeiT or ICE classifier to resemble a pre-trained transformer's.

    Query and key weights of a head multiply to about 0.7 times the identity, so a token attends to tokens like itself;
    value and output weights to about -0.4 times the identity; positions are sinusoidal, zero for prefix tokens.
    All other weights are unchanged. The noise comes from torch's global generator.

    Args:
        model: Changed in place. A classifier or its encoder.

    Raises:
        ValueError: If the model is none of these, or its hidden size is no multiple of 4.

    Source: Trockman and Kolter, "Mimetic Initialization of Self-Attention Layers", ICML 2023, section 3.
    """
    encoder: Any = model.base_model
    config = encoder.config
    if config.model_type not in _FAMILIES:
        raise ValueError(
            f"`mimetic` initialization supports models of type {', '.join(_FAMILIES)}, got {config.model_type!r}. "
            "Keep the default of `initialization` for another architecture."
        )
    positions = encoder.embeddings.position_embeddings
    rows_and_columns = grid_size(as_pair(config.image_size), as_pair(config.patch_size))
    grid = sinusoidal_positions(rows_and_columns, config.hidden_size)
    positions.zero_()
    # prefix tokens come first and have no position in the grid
    positions[0, positions.shape[1] - len(grid) :] = grid.to(positions)
    for layer in encoder.layers:
        _initialize_attention(layer.attention, config.num_attention_heads)


def _initialize_attention(attention: Any, num_heads: int) -> None:
    """Factor noisy multiples of the identity into the four projections of a layer."""
    query, key, value, output = (getattr(attention, f"{name}_proj").weight for name in "qkvo")
    head_size = query.shape[0] // num_heads
    # per head, since a product of rank `head_size` is all that a head can represent
    for start in range(0, query.shape[0], head_size):
        left, right = _factor(_noisy_identity(query.shape[1], *_QUERY_KEY), head_size)
        query[start : start + head_size] = left.T.to(query)  # (head_size, hidden_size)
        key[start : start + head_size] = right.T.to(key)
    # over all heads together, as in the paper: their outputs are summed
    left, right = _factor(_noisy_identity(value.shape[1], *_VALUE_OUTPUT), value.shape[0])
    value.copy_(left.T)
    output.copy_(right)


def _noisy_identity(size: int, noise: float, identity: float) -> Tensor:
    # noise of variance 1 / size before its weight, as in the paper
    return noise * torch.randn(size, size) / size**0.5 + identity * torch.eye(size)


def _factor(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return `left`, `right`, each `(size, rank)`, whose product `left @ right.T` is the best of that rank."""
    # truncated SVD: optimal in the Frobenius norm (Eckart-Young)
    left, scale, right = torch.linalg.svd(matrix)
    root = scale[:rank].sqrt()
    return left[:, :rank] * root, right.T[:, :rank] * root
