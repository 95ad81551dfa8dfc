# SPDX-License-Identifier: Apache-2.0
"""What pruning costs and saves on images with true masks: one row of numbers an image, scores from the rows."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from transformers_ice.evaluation.metrics import ForegroundSegmentation
from transformers_ice.explainers import evaluation_mode
from transformers_ice.ice_deit.adversarial_normalization import foreground_mask
from transformers_ice.speed import count_tokens, ideal_macs


__all__ = ["PruningRows", "cell_areas", "pruning_rows", "pruning_table", "summarize_pruning"]


@dataclass(frozen=True)
class PruningRows:
    """Hold one number or more for each image.

    Attributes:
        is_correct: `(num_images,)`, bool: the model's label is the true one.
        is_cls_correct: The same of the [CLS] classifier.
        areas: `(num_images, 2, 2)`, pixels by true (0 background, 1 foreground) and predicted side.
        kept: `(num_images, num_pruning_layers)`, patches left after each pruning layer.
    """

    is_correct: np.ndarray
    is_cls_correct: np.ndarray
    areas: np.ndarray
    kept: np.ndarray

    @property
    def top_1(self) -> float:
        """Share of right labels, in [0, 1]."""
        return float(self.is_correct.mean())

    @property
    def mean_iou(self) -> float:
        """Mean over the two sides of intersection / union, pixels of all images together, in [0, 1]."""
        (true_background, false_foreground), (false_background, true_foreground) = np.moveaxis(self.areas, 0, -1)
        return ForegroundSegmentation().score(
            {
                "true_foreground": true_foreground,
                "false_foreground": false_foreground,
                "false_background": false_background,
                "true_background": true_background,
            }
        )["mean_iou"]


def cell_areas(masks: np.ndarray, patch_size: int) -> np.ndarray:
    """Count the pixels of each cell of the patch grid that lie on the object.

    Args:
        masks: `(num_images, height, width)`, bool; sides are multiples of the patch size.
        patch_size: Side of a patch in pixels.

    Returns:
        `(num_images, num_patches)`, int.
    """
    num_images, height, width = masks.shape
    cells = masks.reshape(num_images, height // patch_size, patch_size, width // patch_size, patch_size)
    return cells.sum(axis=(2, 4)).reshape(num_images, -1)


@torch.inference_mode()
def pruning_rows(
    model: Any, pixel_values: Tensor, labels: np.ndarray, object_areas: np.ndarray, batch_size: int = 250
) -> PruningRows:
    """Classify and outline images with a model whose patches may leave.

    Args:
        model: `IceDeiTForImageClassification`. Comes back as it was.
        pixel_values: `(num_images, num_channels, height, width)`, as the model takes them.
        labels: `(num_images,)`, int.
        object_areas: `(num_images, num_patches)`, from `cell_areas` at the resolution of `pixel_values`.
        batch_size: Images that go through the model at once.
    """
    config = model.config
    layers = list(config.pruning_layers) if config.pruning_strategy is not None else []
    cell = pixel_values.shape[2] * pixel_values.shape[3] // object_areas.shape[1]
    correct, cls_correct, areas, kept = [], [], [], []
    with evaluation_mode(model):
        for start in tqdm(range(0, len(pixel_values), batch_size), desc="pruning", unit="batch"):
            outputs = model(pixel_values[start : start + batch_size])
            truth = labels[start : start + batch_size]
            correct.append(outputs.logits.argmax(-1).numpy() == truth)
            cls_correct.append(outputs.cls_logits.argmax(-1).numpy() == truth)
            predicted = foreground_mask(outputs.patch_logits).numpy()
            areas.append(_areas(predicted, object_areas[start : start + batch_size], cell))
            exits = outputs.patch_exit_layer.numpy()
            kept.append(np.stack([(exits > layer).sum(1) for layer in layers], 1) if layers else exits[:, :0])
    return PruningRows(*(np.concatenate(parts) for parts in (correct, cls_correct, areas, kept)))


def _areas(predicted: np.ndarray, object_areas: np.ndarray, cell: int) -> np.ndarray:
    """Return pixels by true and predicted side, `(num_images, 2, 2)`."""
    sides = [[((cell - object_areas) * side).sum(1), (object_areas * side).sum(1)] for side in (~predicted, predicted)]
    return np.stack([np.stack([sides[guess][true] for guess in (0, 1)], 1) for true in (0, 1)], 1)


def summarize_pruning(
    runs: Mapping[str, tuple[Any, Sequence[PruningRows]]], reference: str, num_patches: int
) -> list[dict[str, Any]]:
    """Return one line of scores for each way to run a model.

    Args:
        runs: By name, the configuration of a run, and its rows for every seed, in the same order of seeds.
        reference: The run that the others are compared with, seed by seed on the same images.
        num_patches: Cells of the patch grid.

    Returns:
        Dicts of `name`; `top_1`, `difference` (of top-1, in points), `mean_iou` (`None` where the patch head is not
        trained), each a pair of mean and standard deviation over the seeds; `kept`, the mean number of patches after
        each cut; `megamacs` of an image; `ideal_speed_up` over the reference.
    """
    against = runs[reference][1]
    lines: list[dict[str, Any]] = []
    for name, (config, seeds) in runs.items():
        pairs = zip(seeds, against, strict=True)
        lines.append(
            {
                "name": name,
                "top_1": _spread([rows.top_1 for rows in seeds]),
                "difference": _spread([100 * (rows.top_1 - other.top_1) for rows, other in pairs]),
                "mean_iou": None if config.logits_source == "cls" else _spread([rows.mean_iou for rows in seeds]),
                "kept": np.mean([rows.kept.mean(axis=0) for rows in seeds], axis=0).round(1).tolist(),
                "megamacs": statistics.mean(_macs(config, rows, num_patches) for rows in seeds) / 1e6,
            }
        )
    base = next(line["megamacs"] for line in lines if line["name"] == reference)
    return [{**line, "ideal_speed_up": base / line["megamacs"]} for line in lines]


def _spread(values: Sequence[float]) -> tuple[float, float]:
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else float("nan")


def _macs(config: Any, rows: PruningRows, num_patches: int) -> float:
    """Return the mean MACs of an image, from how many patches it had after each cut."""
    exits = np.full((len(rows.kept), num_patches), config.num_hidden_layers)
    ranks = np.arange(num_patches)
    for column, layer in reversed(list(enumerate(config.pruning_schedule))):
        # which cells left does not matter here: the last ones
        exits[ranks >= rows.kept[:, column : column + 1]] = layer
    counts = count_tokens(config, exits)
    return float(ideal_macs(config, **vars(counts), num_patches=num_patches).mean())


def pruning_table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Lay the lines of `summarize_pruning` out as a Markdown table."""
    heads = ["model, run", "top-1", "points", "mean IoU", "patches after each cut", "MMACs", "ideal speed-up"]
    table = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for line in lines:
        cells = [line["name"], _pair(line["top_1"], 4), _pair(line["difference"], 2), _pair(line["mean_iou"], 3)]
        cells += [", ".join(f"{count:g}" for count in line["kept"]) or "-", f"{line['megamacs']:.1f}"]
        table.append("| " + " | ".join([*cells, f"{line['ideal_speed_up']:.2f}"]) + " |")
    return "\n".join(table) + "\n"


def _pair(pair: tuple[float, float] | None, digits: int) -> str:
    return "-" if pair is None else f"{pair[0]:.{digits}f} ± {pair[1]:.{digits}f}"
