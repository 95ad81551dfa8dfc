# SPDX-License-Identifier: Apache-2.0
"""Results as rows of one table: a line per checkpoint and method, a column per score."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ..console.tables import format_cell, format_markdown_table, format_table
from .bootstrap import Interval
from .cost import Cost
from .maps import CEILING
from .region_benchmarks import ATTENTION_HEADS
from .runner import Result


__all__ = ["SCORES", "markdown_table", "results_as_json", "text_table"]

# Heading, and whether larger is better. The order is that of the table.
SCORES: dict[str, tuple[str, bool]] = {
    "pixel_accuracy": ("pixel acc.", True),
    "mean_average_precision": ("mAP", True),
    "mean_iou": ("mIoU", True),
    "mean_f1": ("mF1", True),
    "jaccard": ("Jaccard", True),
    "max_box_acc": ("MaxBoxAcc", True),
    "max_box_acc_v2": ("MaxBoxAccV2", True),
    "gt_known_loc": ("GT-known", True),
    "top_1_loc": ("Top-1 Loc", True),
    "top_5_loc": ("Top-5 Loc", True),
    "pointing_game": ("pointing", True),
    "corloc": ("CorLoc", True),
    "confident_corloc": ("CorLoc (confident)", True),
    "empty_masks": ("empty", False),
    "positive_perturbation_auc": ("positive", False),
    "negative_perturbation_auc": ("negative", True),
    "insertion_auc": ("insertion", True),
    "deletion_auc": ("deletion", False),
    "top_1": ("top-1", True),
    "top_5": ("top-5", True),
}
_COST = {"forward_passes": "time (passes)", "memory_ratio": "memory (passes)"}
_MODEL_ROW = "(the classifier)"

Costs = Mapping[tuple[str, str], Cost]


def _lines(results: Sequence[Result], costs: Costs) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the cells of every line, by (checkpoint, method); intervals where there is one."""
    lines: dict[tuple[str, str], dict[str, Any]] = {}
    for result in results:
        lines.setdefault((result.checkpoint, result.method), {}).update(result.scores)
    for key, cost in costs.items():
        lines.setdefault(key, {}).update({name: getattr(cost, name) for name in _COST})
    return lines


def _headers(lines: Mapping[Any, Mapping[str, Any]]) -> dict[str, str]:
    present = {name for cells in lines.values() for name in cells}
    scores = {name: heading for name, (heading, _) in SCORES.items() if name in present}
    return {
        "checkpoint": "checkpoint",
        "method": "method",
        **scores,
        **{n: h for n, h in _COST.items() if n in present},
    }


def text_table(results: Sequence[Result], costs: Costs | None = None) -> str:
    """Format all scores as plain text, without their intervals.

    Args:
        results: What `run_benchmarks` returned.
        costs: Cost by (checkpoint, method).
    """
    lines = _lines(results, costs or {})
    rows = [
        {"checkpoint": checkpoint, "method": method or _MODEL_ROW}
        | {name: cell.value if isinstance(cell, Interval) else cell for name, cell in cells.items()}
        for (checkpoint, method), cells in lines.items()
    ]
    return format_table(rows, _headers(lines))


def markdown_table(results: Sequence[Result], costs: Costs | None = None) -> str:
    """Format all scores as a Markdown table, `value (low to high)`; the best of a column is bold.

    Args:
        results: What `run_benchmarks` returned.
        costs: Cost by (checkpoint, method).
    """
    lines = _lines(results, costs or {})
    headers = _headers(lines)
    best = {name: _best(name, lines) for name in headers if name in SCORES}
    rows = []
    for (checkpoint, method), cells in lines.items():
        row = {name: _cell(cells.get(name)) for name in headers}
        row |= {name: f"**{row[name]}**" for name, winner in best.items() if winner == (checkpoint, method)}
        rows.append({**row, "checkpoint": checkpoint, "method": f"`{method}`" if method else _MODEL_ROW})
    return format_markdown_table(rows, headers)


def _best(name: str, lines: Mapping[tuple[str, str], Mapping[str, Any]]) -> tuple[str, str] | None:
    """Return the line with the best score of an explanation; the ceiling and the oracle over heads do not compete."""
    candidates = {
        key: cells[name].value
        for key, cells in lines.items()
        if key[1] not in (CEILING, ATTENTION_HEADS, "") and name in cells and not math.isnan(cells[name].value)
    }
    if not candidates:
        return None
    choose = max if SCORES[name][1] else min
    return choose(candidates, key=candidates.__getitem__)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if not isinstance(value, Interval):
        return format_cell(value, 2)
    digits = 1 if abs(value.value) > 1.5 else 3  # above 1: percent, such as the perturbation AUC
    middle, low, high = (format_cell(number, digits) for number in (value.value, value.low, value.high))
    return middle if math.isnan(value.low) else f"{middle} ({low} to {high})"


def results_as_json(results: Sequence[Result], costs: Costs | None = None) -> list[dict[str, Any]]:
    """Return one JSON-ready dict per checkpoint and method; NaN becomes None.

    Args:
        results: What `run_benchmarks` returned.
        costs: Cost by (checkpoint, method).
    """
    lines: dict[tuple[str, str], dict[str, Any]] = {}
    for result in results:
        line = lines.setdefault((result.checkpoint, result.method), {"scores": {}, "cost": None})
        for name, interval in result.scores.items():
            line["scores"][name] = {key: _finite(value) for key, value in asdict(interval).items()}
            line["scores"][name]["num_examples"] = result.num_examples
    for key, cost in (costs or {}).items():
        lines.setdefault(key, {"scores": {}})["cost"] = asdict(cost)
    return [{"checkpoint": key[0], "method": key[1], **line} for key, line in lines.items()]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
