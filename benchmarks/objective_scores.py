# SPDX-License-Identifier: Apache-2.0
"""Comparison of objectives: scores over seeds, next to the initial classifier and the ceiling of the patch grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pruning_scores import PruningRows, summarize_over_seeds

from transformers_ice.console.tables import format_markdown_table


__all__ = ["objective_table", "summarize_objectives"]


def summarize_objectives(
    runs: Mapping[str, Sequence[PruningRows]],
    seconds: Mapping[str, Sequence[float]],
    start_cls_top_1: float,
    ceiling: float,
    reference: str,
) -> list[dict[str, Any]]:
    """Summarize each objective in one line of scores.

    Args:
        runs: By name, the rows of its models, one for each seed, in the same order of seeds.
        seconds: By name, the time of each training.
        start_cls_top_1: [CLS] accuracy of the initial classifier of all runs, on the same images, in [0, 1].
        ceiling: Mean IoU of the best map on the patch grid, in (0, 1].
        reference: The run whose mean IoU is subtracted, seed by seed.

    Returns:
        Dicts of `name`, and by `summarize_over_seeds`: `top_1` (patches), `cls_top_1`,
        `cls_gain` over the start, in percentage points, `mean_iou`, `iou_gain` over the reference, `ceiling_share`,
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
        lines.append({"name": name, **{key: summarize_over_seeds(numbers) for key, numbers in values.items()}})
    return lines


_COLUMNS = {
    "name": "objective",
    "top_1": "top-1",
    "cls_top_1": "top-1 ([CLS])",
    "cls_gain": "pp over the start",
    "mean_iou": "mean IoU",
    "iou_gain": "over the reference",
    "ceiling_share": "of the ceiling",
    "foreground_ratio": "foreground",
    "seconds": "seconds",
}
_DIGITS = {"cls_gain": 2, "mean_iou": 3, "iou_gain": 3, "ceiling_share": 2, "foreground_ratio": 2, "seconds": 0}


def objective_table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Format the lines of `summarize_objectives` as a Markdown table."""
    return format_markdown_table(lines, _COLUMNS, _DIGITS)
