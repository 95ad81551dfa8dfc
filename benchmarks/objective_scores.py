# SPDX-License-Identifier: Apache-2.0
"""Objectives side by side: scores over seeds, beside the classifier they start from and what the grid allows."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pruning_scores import PruningRows


__all__ = ["ceiling_rows", "objective_table", "summarize_objectives"]


def ceiling_rows(object_areas: np.ndarray, cell: int) -> PruningRows:
    """Return the rows of a map that calls a patch foreground where the object covers at least half of it.

    Args:
        object_areas: `(num_images, num_patches)`, from `cell_areas`.
        cell: Pixels of a patch.
    """
    predicted = 2 * object_areas >= cell
    of_side = np.stack([~predicted, predicted], axis=1)  # (images, predicted side, patches)
    of_truth = np.stack([cell - object_areas, object_areas], axis=1)  # (images, true side, patches)
    areas = np.einsum("itn,ipn->itp", of_truth, of_side)
    unknown = np.zeros(len(object_areas), dtype=bool)
    return PruningRows(unknown, unknown, areas, np.empty((len(object_areas), 0)))


def summarize_objectives(
    runs: Mapping[str, Sequence[PruningRows]],
    seconds: Mapping[str, Sequence[float]],
    start_cls_top_1: float,
    ceiling: float,
    reference: str,
) -> list[dict[str, Any]]:
    """Return one line of scores for each way to train.

    Args:
        runs: By name, the rows of its models, one for each seed, in the same order of seeds.
        seconds: By name, the time of each training.
        start_cls_top_1: [CLS] accuracy of the classifier that all start from, on the same images, in [0, 1].
        ceiling: Mean IoU of the best map on the patch grid, in (0, 1].
        reference: The run whose mean IoU is subtracted, seed by seed.

    Returns:
        Dicts of `name`, and pairs of mean and standard deviation over the seeds: `top_1` (patches), `cls_top_1`,
        `cls_gain` over the start, in points, `mean_iou`, `iou_gain` over the reference, `ceiling_share`,
        `foreground_ratio`, `seconds`.
    """
    base = [rows.mean_iou for rows in runs[reference]]
    lines = []
    for name, seeds in runs.items():
        cls = [float(rows.is_cls_correct.mean()) for rows in seeds]
        iou = [rows.mean_iou for rows in seeds]
        values = {
            "top_1": [rows.top_1 for rows in seeds],
            "cls_top_1": cls,
            "cls_gain": [100 * (value - start_cls_top_1) for value in cls],
            "mean_iou": iou,
            "iou_gain": [own - other for own, other in zip(iou, base, strict=True)],
            "ceiling_share": [value / ceiling for value in iou],
            "foreground_ratio": [float(rows.areas[:, :, 1].sum() / rows.areas.sum()) for rows in seeds],
            "seconds": list(seconds[name]),
        }
        lines.append({"name": name, **{key: _spread(numbers) for key, numbers in values.items()}})
    return lines


def _spread(values: Sequence[float]) -> tuple[float, float]:
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else float("nan")


_COLUMNS = {
    "top-1": ("top_1", 4),
    "top-1 ([CLS])": ("cls_top_1", 4),
    "points over the start": ("cls_gain", 2),
    "mean IoU": ("mean_iou", 3),
    "over the reference": ("iou_gain", 3),
    "of the ceiling": ("ceiling_share", 2),
    "foreground": ("foreground_ratio", 2),
    "seconds": ("seconds", 0),
}


def objective_table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Lay the lines of `summarize_objectives` out as a Markdown table."""
    table = ["| objective | " + " | ".join(_COLUMNS) + " |", "| --- " * (len(_COLUMNS) + 1) + "|"]
    for line in lines:
        pairs = [(line[key], digits) for key, digits in _COLUMNS.values()]
        cells = [f"{mean:.{digits}f} ± {deviation:.{digits}f}" for (mean, deviation), digits in pairs]
        table.append("| " + " | ".join([line["name"], *cells]) + " |")
    return "\n".join(table) + "\n"
