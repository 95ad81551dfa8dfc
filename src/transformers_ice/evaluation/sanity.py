# SPDX-License-Identifier: Apache-2.0
"""Sanity check of explanations: similarity of the maps before and after the weights are randomised."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..explainers import explain
from ..explainers.families import backbone_of


__all__ = ["randomization_similarity", "randomized_models", "rank_correlation"]


def randomization_similarity(
    model: PreTrainedModel, pixel_values: Tensor, methods: Sequence[str], target: Tensor | None = None, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Measure how similar the maps remain while the weights are randomised from the head down.

    Args:
        model: A classifier of `FAMILIES`; not changed.
        pixel_values: `(batch_size, num_channels, height, width)`, on the model's device.
        methods: Names in `EXPLAINERS`.
        target: `(batch_size,)` classes to explain in all stages; `None` takes the method's default.
        seed: Seed of the random weights.

    Returns:
        By method, by stage ("heads", "layer 5", ..., "embeddings"): mean over the images of the rank correlation of
        the map with that of the trained model, in [-1, 1]. Stages add up: "layer 4" has random heads and layers 4 and
        up. NaN where every map is constant.

    Source: Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018 (cascading randomisation).
    """
    maps = {method: _maps(model, pixel_values, method, target) for method in methods}
    similarity: dict[str, dict[str, float]] = {method: {} for method in methods}
    for stage, randomized in randomized_models(model, seed):
        for method, before in maps.items():
            after = _maps(randomized, pixel_values, method, target)
            values = [rank_correlation(*pair) for pair in zip(before, after, strict=True)]
            known = [value for value in values if not np.isnan(value)]
            similarity[method][stage] = float(np.mean(known)) if known else float("nan")
    return similarity


def randomized_models(model: PreTrainedModel, seed: int = 0) -> Iterator[tuple[str, PreTrainedModel]]:
    """Yield one copy of a model, with ever more weights drawn as for a new model, from heads to embeddings."""
    randomized = copy.deepcopy(model)
    encoder: Any = randomized.base_model
    heads = [module for name, module in randomized.named_children() if module is not encoder]
    # what comes after the last layer is part of the first stage
    heads += [module for name, module in encoder.named_children() if name in ("patch_head", "layernorm", "pooler")]
    layers = backbone_of(randomized).layers
    stages: list[tuple[str, Sequence[nn.Module]]] = [("heads", heads)]
    stages += [(f"layer {index}", [layers[index]]) for index in reversed(range(len(layers)))]
    stages.append(("embeddings", [encoder.embeddings]))
    with torch.random.fork_rng(devices=[]):  # the caller's random state is unchanged
        torch.manual_seed(seed)
        for stage, modules in stages:
            for part in modules:
                _randomize(randomized, part)
            yield stage, randomized


@torch.no_grad()
def _randomize(model: PreTrainedModel, part: nn.Module) -> None:
    """Re-initialize a part of the model, as its class does for a model without a checkpoint."""
    for module in part.modules():
        marked: Any
        for marked in (module, *module.parameters(recurse=False)):
            marked._is_hf_initialized = False  # transformers does not initialize what it has marked as loaded
        model._init_weights(module)


def _maps(model: PreTrainedModel, pixel_values: Tensor, method: str, target: Tensor | None) -> np.ndarray:
    # (batch_size, rows, columns) -> (batch_size, rows * columns)
    return explain(model, pixel_values, method, target=target).detach().float().cpu().flatten(1).numpy()


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Return Spearman's correlation of two flat maps, NaN if either is constant."""
    try:
        from scipy.stats import rankdata
    except ImportError as error:
        raise ImportError("Rank correlations need SciPy: pip install transformers-ice[eval]") from error
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    # Spearman's correlation is Pearson's of the ranks (ties get their mean rank), off the diagonal of (2, 2)
    return float(np.corrcoef(rankdata(first), rankdata(second))[0, 1])
