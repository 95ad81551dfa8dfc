# SPDX-License-Identifier: Apache-2.0
"""Token pruning of one image, and its effect on the prediction, the MACs and the time."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from ..ice_deit.token_pruning import STRATEGIES
from ..speed import Spread, count_tokens, ideal_macs, interleave, share_weights, summarize_spread, time_call
from .analysis import LoadedModel, PreparedImage
from .limits import Deadline, RequestError


__all__ = ["STRATEGY_NAMES", "PruningResult", "PruningSetting", "RunSummary", "measure_pruning", "missing_heads"]

STRATEGY_NAMES = {name: strategy.title for name, strategy in STRATEGIES.items()}
_NUM_REPEATS, _NUM_WARMUPS = 9, 2


@dataclass(frozen=True)
class PruningSetting:
    """Strategy of token pruning, with its margin or keep rate."""

    strategy: str  # a key of STRATEGY_NAMES
    margin: float = 0.0  # by how much background has to win, in logits, where images keep different numbers of patches
    keep_rate: float = 0.7  # ratio of the patches kept at each pruning layer, in (0, 1], where the numbers are fixed


@dataclass(frozen=True)
class RunSummary:
    """Prediction and cost of one run of the model."""

    label: str
    score: float  # probability of the label, in [0, 1]
    tokens_per_layer: list[int]  # tokens that enter each layer, those of [CLS] included
    mmacs: float  # millions of multiply-accumulate operations
    milliseconds: Spread  # of one run, over the repeats


@dataclass(frozen=True)
class PruningResult:
    """Results of a pruned and of an unpruned run."""

    unpruned: RunSummary
    pruned: RunSummary
    exit_layers: np.ndarray = field(repr=False)  # (rows, columns), int: the number of layers where a patch was kept
    shown_exit_layers: np.ndarray = field(repr=False)  # (height, width), int: the same for each shown pixel
    num_layers: int
    num_repeats: int  # alternating runs of each; the milliseconds are their median

    @property
    def pruning_steps(self) -> list[int]:
        """Layers before which patches were pruned, in ascending order."""
        return [int(layer) for layer in np.unique(self.exit_layers) if layer < self.num_layers]

    @property
    def speedup(self) -> float:
        """Median time unpruned divided by that pruned."""
        return self.unpruned.milliseconds.median / self.pruned.milliseconds.median


def missing_heads(loaded: LoadedModel, strategy: str) -> str:
    """Return the reason why a strategy cannot be used with a model; empty where it can."""
    if not STRATEGIES[strategy].needs_heads or _head_layers(loaded):
        return ""
    without = " or ".join(f"“{other.title.split(':')[0]}”" for other in STRATEGIES.values() if not other.needs_heads)
    return (
        f"“{STRATEGY_NAMES[strategy].split(':')[0]}” needs trained pruning heads, which predict background, and "
        f"this checkpoint has none. {without} needs no heads. Or start the app on a checkpoint that has them, "
        "such as checkpoints/ice-deit-scenes-pruned."
    )


def measure_pruning(
    loaded: LoadedModel, image: PreparedImage, setting: PruningSetting, deadline: Deadline
) -> PruningResult:
    """Run a model, which is not changed, pruned and unpruned by turns; the deadline is checked before every run."""
    problem = missing_heads(loaded, setting.strategy)
    if problem:
        raise RequestError(problem)
    plain: dict[str, Any] = {"pruning_strategy": None, "fuse_pruned_tokens": False}
    unpruned, pruned = share_weights(loaded.model, **plain), share_weights(loaded.model, **_fields(loaded, setting))
    measures = {
        name: partial(_milliseconds, model, image, deadline)
        for name, model in (("unpruned", unpruned), ("pruned", pruned))
    }
    times = interleave(measures, _NUM_REPEATS, _NUM_WARMUPS)
    base, _ = _summarize(loaded, unpruned, image, summarize_spread(times["unpruned"]))
    own, exits = _summarize(loaded, pruned, image, summarize_spread(times["pruned"]))
    return PruningResult(base, own, *exits, num_layers=len(pruned.deit.layers), num_repeats=_NUM_REPEATS)


@torch.inference_mode()
def _milliseconds(model: PreTrainedModel, image: PreparedImage, deadline: Deadline, _: int) -> float:
    deadline.check()
    return 1e3 * time_call(partial(model, image.pixel_values), image.pixel_values.device)


@torch.inference_mode()
def _summarize(
    loaded: LoadedModel, model: Any, image: PreparedImage, milliseconds: Spread
) -> tuple[RunSummary, tuple[np.ndarray, np.ndarray]]:
    """Return the summary of one run of the model, and the exit layer of each patch."""
    outputs = model(image.pixel_values)
    exit_layer = outputs.patch_exit_layer.cpu().numpy()
    counts = count_tokens(model.config, exit_layer)
    macs = ideal_macs(model.config, **vars(counts), num_patches=exit_layer.shape[1])
    (shown,) = loaded.processor.post_process_explanation(outputs, [image.shown_size], id2label=loaded.class_names)
    rows, columns = outputs.grid_size[0].tolist()
    summary = RunSummary(
        label=shown.label,
        score=shown.score,
        tokens_per_layer=[int(tokens) for tokens in counts.tokens_per_layer[0]],
        mmacs=float(macs[0]) / 1e6,
        milliseconds=milliseconds,
    )
    return summary, (exit_layer[0].reshape(rows, columns), shown.exit_layers)  # (num_patches,) -> (rows, columns)


def _head_layers(loaded: LoadedModel) -> list[int]:
    """Return the layers that have a pruning head."""
    return sorted(int(layer) for layer in getattr(loaded.model.deit, "pruning_heads", {}))


def _fields(loaded: LoadedModel, setting: PruningSetting) -> dict[str, Any]:
    """Return the configuration fields of a setting."""
    num_layers = loaded.model.config.num_hidden_layers
    # without heads, the layers of the published schedule (3, 6 and 9 of 12), scaled to this depth
    layers = _head_layers(loaded) or sorted({num_layers * quarter // 4 for quarter in (1, 2, 3)})
    return {
        "pruning_strategy": setting.strategy,
        "pruning_layers": layers,
        "keep_rates": [setting.keep_rate] * len(layers),
        "background_margin": setting.margin,
        "fuse_pruned_tokens": STRATEGIES[setting.strategy].can_fuse,
    }
