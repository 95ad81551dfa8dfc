# SPDX-License-Identifier: Apache-2.0
"""Accuracy, masks and MACs of pruned models on images with true masks: one row per image, scores from the rows."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transformers_ice.console.tables import format_markdown_table
from transformers_ice.evaluation.maps import binary_maps, control_map
from transformers_ice.evaluation.metrics import ForegroundSegmentation, MeanOf, TopKAccuracy
from transformers_ice.evaluation.scoring import (
    Observation,
    Rows,
    collect_rows,
    make_rows,
    observe_classes,
    observe_masks,
)
from transformers_ice.explainers import evaluation_mode
from transformers_ice.ice_deit.adversarial_normalization import foreground_mask
from transformers_ice.ice_deit.patch_maps import ImageGeometry, to_grid
from transformers_ice.speed import count_tokens, ideal_macs


__all__ = [
    "PruningRows",
    "ceiling_rows",
    "control_rows",
    "mask_rows",
    "pruning_rows",
    "pruning_table",
    "summarize_over_seeds",
    "summarize_pruning",
]


@dataclass(frozen=True)
class PruningRows:
    """Numbers of each image, from which the scores are computed.

    Attributes:
        is_correct: `(num_images,)`, bool: the model's label is the true one.
        is_cls_correct: The same of the [CLS] classifier.
        areas: `(num_images, 2, 2)`, pixels by true (0 background, 1 foreground) and predicted class.
        kept: `(num_images, num_pruning_layers)`, patches kept after each pruning layer.
    """

    is_correct: np.ndarray
    is_cls_correct: np.ndarray
    areas: np.ndarray
    kept: np.ndarray

    @property
    def top_1(self) -> float:
        """Fraction of right labels, in [0, 1]."""
        return float(self.is_correct.mean())

    @property
    def mean_iou(self) -> float:
        """Mean over the two classes of intersection / union, pixels of all images together, in [0, 1]."""
        (true_background, false_foreground), (false_background, true_foreground) = np.moveaxis(self.areas, 0, -1)
        return ForegroundSegmentation().score(
            {
                "true_foreground": true_foreground,
                "false_foreground": false_foreground,
                "false_background": false_background,
                "true_background": true_background,
            }
        )["mean_iou"]


def pruning_rows(
    model: Any, pixel_values: Tensor, labels: np.ndarray, masks: np.ndarray, batch_size: int = 250
) -> PruningRows:
    """Classify and segment images with a model that may prune patches.

    Args:
        model: `IceDeiTForImageClassification`. Restored afterwards.
        pixel_values: `(num_images, num_channels, height, width)`, the input of the model.
        labels: `(num_images,)`, int.
        masks: `(num_images, height, width)`, bool: the object, at the resolution of `pixel_values`.
        batch_size: Images that go through the model at once.
    """
    config = model.config
    layers = list(config.pruning_layers) if config.pruning_strategy is not None else []

    @torch.inference_mode()
    def predict(indices: list[int]) -> dict[str, Observation]:
        outputs = model(pixel_values[indices])
        grids = to_grid(foreground_mask(outputs.patch_logits), tuple(outputs.grid_size[0].tolist()))
        kept = {f"kept {layer}": (outputs.patch_exit_layer > layer).sum(1).numpy() for layer in layers}
        return {
            "label": observe_classes(outputs.logits, labels[indices]),
            "cls": observe_classes(outputs.cls_logits, labels[indices]),
            "masks": _observe_scenes(grids, masks[indices]),
            **{name: (counts, counts) for name, counts in kept.items()},
        }

    kept = {f"kept {layer}": MeanOf(f"kept {layer}") for layer in layers}
    metrics = {"label": TopKAccuracy((1,)), "cls": TopKAccuracy((1,)), "masks": ForegroundSegmentation(), **kept}
    with evaluation_mode(model):
        rows = collect_rows(predict, range(len(pixel_values)), metrics, batch_size, "pruning")
    counts = [rows[f"{name}/value"].astype(np.int64) for name in kept]
    # (num_images,) per layer -> (num_images, num_pruning_layers)
    kept_rows = np.stack(counts, axis=1) if counts else np.empty((len(labels), 0), dtype=np.int64)
    return PruningRows(rows["label/rank"] == 0, rows["cls/rank"] == 0, _areas(rows), kept_rows)


def ceiling_rows(masks: np.ndarray, patch_size: int) -> PruningRows:
    """Return the rows of the map in which a patch is foreground if the object covers at least half of it.

    Args:
        masks: `(num_images, height, width)`, bool; sides are multiples of the patch size.
        patch_size: Side of a patch in pixels.
    """
    # (num_images, height, width) -> (num_images, rows, columns)
    grids = torch.nn.functional.avg_pool2d(torch.from_numpy(masks).float(), patch_size) >= 0.5
    return mask_rows(grids, masks)


def control_rows(masks: np.ndarray, patch_size: int, control: str) -> PruningRows:
    """Return the rows of a control of the evaluation, which knows neither image nor model.

    Args:
        masks: `(num_images, height, width)`, bool; sides are multiples of the patch size.
        patch_size: Side of a patch in pixels.
        control: A name in `CONTROLS`.
    """
    size = (masks.shape[1], masks.shape[2])
    grid = (size[0] // patch_size, size[1] // patch_size)
    maps = torch.stack([control_map(control, size, grid, (0, index)) for index in range(len(masks))])
    return mask_rows(binary_maps(maps, control, size), masks)


def mask_rows(predicted: Tensor, masks: np.ndarray) -> PruningRows:
    """Return the rows of masks on the patch grid, `(num_images, rows, columns)`, bool, of which no class is known.

    `masks` are the true ones, `(num_images, height, width)`: 1 or True on the object, -1 where a pixel is ignored.
    """
    rows = make_rows({"masks": _observe_scenes(predicted, masks)}, {"masks": ForegroundSegmentation()})
    unknown = np.zeros(len(masks), dtype=bool)
    return PruningRows(unknown, unknown, _areas(rows), np.empty((len(masks), 0)))


def _observe_scenes(grids: Tensor, masks: np.ndarray) -> Observation:
    """Return predicted and true masks of scenes that are drawn at the size of the input."""
    size = (masks.shape[1], masks.shape[2])
    return observe_masks(grids, masks, [ImageGeometry.from_resize(size, size)] * len(masks))


def _areas(rows: Rows) -> np.ndarray:
    """Return pixels by true and predicted class, `(num_images, 2, 2)`."""
    areas = [["true_background", "false_foreground"], ["false_background", "true_foreground"]]
    return np.stack([np.stack([rows[f"masks/{name}"] for name in row], axis=1) for row in areas], axis=1)


def summarize_pruning(
    runs: Mapping[str, tuple[Any, Sequence[PruningRows]]], reference: str, num_patches: int
) -> list[dict[str, Any]]:
    """Summarize each way to run a model in one line of scores.

    Args:
        runs: By name, the configuration of a run, and its rows for every seed, in the same order of seeds.
        reference: The run that the others are compared with, seed by seed on the same images.
        num_patches: Cells of the patch grid.

    Returns:
        Dicts of `name`; `top_1`, `difference` (of top-1, in percentage points), `mean_iou` (`None` without a trained
        patch head), each by `summarize_over_seeds`; `kept`, the mean number of patches
        after each pruning layer; `megamacs` of an image; `ideal_speed_up` over the reference.
    """
    reference_rows = runs[reference][1]
    lines: list[dict[str, Any]] = []
    for name, (config, seeds) in runs.items():
        pairs = zip(seeds, reference_rows, strict=True)
        lines.append(
            {
                "name": name,
                "top_1": summarize_over_seeds([rows.top_1 for rows in seeds]),
                "difference": summarize_over_seeds([100 * (rows.top_1 - other.top_1) for rows, other in pairs]),
                "mean_iou": None
                if config.logits_source == "cls"
                else summarize_over_seeds([rows.mean_iou for rows in seeds]),
                "kept": np.mean([rows.kept.mean(axis=0) for rows in seeds], axis=0).round(1).tolist(),
                "megamacs": statistics.mean(_macs(config, rows, num_patches) for rows in seeds) / 1e6,
            }
        )
    base = next(line["megamacs"] for line in lines if line["name"] == reference)
    return [{**line, "ideal_speed_up": base / line["megamacs"]} for line in lines]


def summarize_over_seeds(values: Sequence[float]) -> tuple[float, float] | float:
    """Return mean and standard deviation; of one value that value, which has no deviation."""
    return (statistics.mean(values), statistics.stdev(values)) if len(values) > 1 else float(values[0])


def _macs(config: Any, rows: PruningRows, num_patches: int) -> float:
    """Return the mean MACs of an image, from its number of patches after each pruning layer."""
    exits = np.full((len(rows.kept), num_patches), config.num_hidden_layers)
    ranks = np.arange(num_patches)
    # from the last layer to the first: an earlier exit overwrites a later one
    for column, layer in reversed(list(enumerate(config.pruning_schedule))):
        # MACs depend on the number of pruned cells only: take the last ones
        exits[ranks >= rows.kept[:, column : column + 1]] = layer  # (num_images, num_patches)
    counts = count_tokens(config, exits)
    return float(ideal_macs(config, **vars(counts), num_patches=num_patches).mean())


def pruning_table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Format the lines of `summarize_pruning` as a Markdown table."""
    headers = {
        "name": "model, run",
        "top_1": "top-1",
        "difference": "pp",
        "mean_iou": "mean IoU",
        "kept": "patches after each pruning layer",
        "megamacs": "MMACs",
        "ideal_speed_up": "ideal speed-up",
    }
    digits = {"difference": 2, "mean_iou": 3, "megamacs": 1, "ideal_speed_up": 2}
    rows = [{**line, "kept": ", ".join(f"{count:g}" for count in line["kept"]) or None} for line in lines]
    return format_markdown_table(rows, headers, digits)
