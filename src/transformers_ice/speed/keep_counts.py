# SPDX-License-Identifier: Apache-2.0
"""Numbers of patches that images keep under the strategy "background", prescribed instead of decided.

The speed of a pruned model depends on how many patches each image keeps, not on their content; with prescribed
numbers a model of random weights runs as fast as a trained one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..console.json_files import read_json
from ..ice_deit.encoder_interface import IceEncoder
from ..ice_deit.token_pruning import KeepPolicy


__all__ = ["counts_from_shares", "draw_keep_shares", "prescribed_counts", "read_keep_shares", "smallest_margins"]


def draw_keep_shares(
    mean: float, deviation: float, num_images: int, num_pruning_layers: int, seed: int = 0
) -> np.ndarray:
    """Draw the keep rate of each image from a beta distribution, `(num_images, num_pruning_layers)`, in [0, 1].

    All layers of an image get the same rate: patches are pruned at the first.

    Raises:
        ValueError: If no beta distribution has this mean and deviation.
    """
    if not (0 < mean < 1 and deviation > 0 and deviation**2 < mean * (1 - mean)):
        raise ValueError(
            "`keep_beta` must be a mean in (0, 1) and a standard deviation in (0, sqrt(mean * (1 - mean))), got "
            f"{mean} and {deviation}."
        )
    concentration = mean * (1 - mean) / deviation**2 - 1  # a + b of Beta(a, b)
    # (num_images,)
    rates = np.random.default_rng(seed).beta(mean * concentration, (1 - mean) * concentration, num_images)
    return np.repeat(rates[:, None], num_pruning_layers, axis=1)  # (num_images,) -> (num_images, num_pruning_layers)


def read_keep_shares(file: str | Path, num_pruning_layers: int) -> np.ndarray:
    """Read the keep rate of each image after each pruning layer, `(num_images, num_pruning_layers)`, in [0, 1].

    The file is JSON: a list of images, each a list with one rate for each pruning layer of the model.

    Raises:
        ValueError: If the file cannot be read or its rates cannot be replayed.
    """
    try:
        rates = np.asarray(read_json(file), dtype=np.float64)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{file} must hold a JSON list of images, each a list of keep rates: {error}") from error
    if rates.ndim != 2 or not rates.size:
        raise ValueError(f"{file} must hold a list of images, each a list of keep rates, got the shape {rates.shape}.")
    if rates.shape[1] != num_pruning_layers:
        raise ValueError(
            f"{file} has rates for {rates.shape[1]} pruning layers, and the model prunes at {num_pruning_layers}. "
            'Pass as many layers, e.g. `--config_overrides "pruning_layers=[3, 6, 9]"`.'
        )
    # a pruned patch never comes back; 1e-9 allows for the rounding of written numbers
    if not ((rates >= 0) & (rates <= 1)).all() or (np.diff(rates, axis=1) > 1e-9).any():
        raise ValueError(f"The keep rates in {file} must be in [0, 1] and must not grow from one layer to the next.")
    return rates


def counts_from_shares(shares: np.ndarray, num_patches: int) -> np.ndarray:
    """Convert keep rates to numbers of patches, rounded, at least 1 each."""
    return np.maximum(np.rint(np.asarray(shares) * num_patches), 1).astype(np.int64)  # halves to the even number


def smallest_margins(counts: Tensor, layers: Sequence[int]) -> KeepPolicy:
    """Return the keep policy that keeps prescribed numbers of patches, those of smallest background margin.

    `counts` is `(batch_size, num_pruning_layers)`, int, on the model's device; `layers` are in its order.
    """
    column = {index: position for position, index in enumerate(layers)}  # by layer index, the column of `counts`

    def keep_smallest(layer_index: int, margin: Tensor, present: Tensor) -> Tensor:
        # (batch_size, num_patches); pruned patches are sorted last
        order = margin.masked_fill(~present, torch.inf).argsort(dim=1)
        is_kept = torch.arange(margin.shape[1], device=margin.device) < counts[:, column[layer_index], None]
        # from rank order back to patch order; `present` again, where a count exceeds the patches that are there
        return present & torch.zeros_like(present).scatter(1, order, is_kept)

    return keep_smallest


@contextmanager
def prescribed_counts(model: Any, counts: Tensor, layers: Sequence[int]) -> Iterator[None]:
    """Let a model keep prescribed numbers of patches inside the block; its pruning heads still run.

    Args:
        model: An ICE classifier with the strategy "background".
        counts: `(batch_size, num_pruning_layers)`, int, on the model's device: patches to keep of the next images.
        layers: The pruning layers, in the order of `counts`.
    """
    encoder: IceEncoder = model.base_model
    before = encoder.keep_policy
    encoder.keep_policy = smallest_margins(counts, layers)
    try:
        yield
    finally:
        encoder.keep_policy = before
