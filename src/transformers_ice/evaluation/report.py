# SPDX-License-Identifier: Apache-2.0
"""Results as rows of one table: a line per checkpoint and method, a column per score, and notes below it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ..console.tables import format_cell, format_markdown_table, format_table
from .bootstrap import Interval
from .cost import Cost
from .maps import CEILING, CENTER_SIDE, CONTROLS
from .region_benchmarks import ATTENTION_HEADS
from .runner import Result


__all__ = ["SCORES", "markdown_table", "result_notes", "results_as_json", "text_table"]

# Heading, and whether larger is better; `None` for what is no merit. The order is that of the table.
SCORES: dict[str, tuple[str, bool | None]] = {
    "pixel_accuracy": ("pixel acc.", True),
    "mean_average_precision": ("mAP", True),
    "mean_iou": ("mIoU", True),
    "mean_f1": ("mF1", True),
    "jaccard": ("Jaccard", True),
    "class_iou": ("class mIoU", True),
    "max_class_iou": ("max class mIoU", True),
    "max_class_iou_threshold": ("at threshold", None),
    "background_iou": ("background IoU", True),
    "class_corloc": ("class CorLoc", True),
    "max_class_corloc": ("max class CorLoc", True),
    "max_class_corloc_threshold": ("at threshold", None),
    "label_map": ("label mAP", True),
    "label_f1": ("label F1", True),
    "false_objects": ("false objects", False),
    "max_box_acc": ("MaxBoxAcc", True),
    "max_box_acc_threshold": ("at threshold", None),
    "max_box_acc_v2": ("MaxBoxAccV2", True),
    "gt_known_loc": ("GT-known", True),
    "top_1_loc": ("Top-1 Loc", True),
    "top_5_loc": ("Top-5 Loc", True),
    "pointing_game": ("pointing", True),
    "grid_pointing": ("grid pointing", True),
    "corloc": ("CorLoc", True),
    "confident_corloc": ("CorLoc (confident)", True),
    "empty_masks": ("empty", None),
    "no_foreground": ("no foreground", None),
    "undefined": ("undefined", None),
    "positive_perturbation_auc": ("positive", False),
    "negative_perturbation_auc": ("negative", True),
    "insertion_auc": ("insertion", True),
    "deletion_auc": ("deletion", False),
    "top_1": ("top-1", True),
    "top_5": ("top-5", True),
}
_COST = {"forward_passes": "time (passes)", "memory_ratio": "memory (passes)"}
_MODEL_ROW = "(the classifier)"
_NOT_COMPETING = (CEILING, ATTENTION_HEADS, "", *CONTROLS)

Key = tuple[str, str]  # checkpoint and method
Costs = Mapping[Key, Cost]
Lines = dict[Key, dict[str, Any]]


def _lines(results: Sequence[Result], costs: Costs | None = None) -> Lines:
    """Return the cells of every line; of a score that several benchmarks give (`empty_masks`) the largest one."""
    lines: Lines = {}
    for result in results:
        cells = lines.setdefault((result.checkpoint, result.method), {})
        for name, interval in result.scores.items():
            if name not in cells or math.isnan(cells[name].value) or interval.value > cells[name].value:
                cells[name] = interval
    for key, cost in (costs or {}).items():
        spread = (cost.forward_passes, cost.forward_passes_spread)
        lines.setdefault(key, {}).update({"forward_passes": spread, "memory_ratio": cost.memory_ratio})
    return lines


def _headers(lines: Lines) -> dict[str, str]:
    present = {name for cells in lines.values() for name in cells}
    if not any(cells["undefined"].value for cells in lines.values() if "undefined" in cells):
        present.discard("undefined")
    scores = {name: heading for name, (heading, _) in SCORES.items() if name in present}
    costs = {name: heading for name, heading in _COST.items() if name in present}
    return {"checkpoint": "checkpoint", "method": "method", **scores, **costs}


def _method_titles(results: Sequence[Result]) -> dict[Key, str]:
    failed = {(result.checkpoint, result.method) for result in results if result.error}
    titles = {}
    for key in [(result.checkpoint, result.method) for result in results]:
        marks = [mark for mark, holds in (("control", key[1] in CONTROLS), ("error", key in failed)) if holds]
        titles[key] = (key[1] or _MODEL_ROW) + (f" ({', '.join(marks)})" if marks else "")
    return titles


def text_table(results: Sequence[Result], costs: Costs | None = None, notes: Sequence[str] = ()) -> str:
    """Format all scores as plain text, without their intervals, and the notes of `result_notes`.

    Args:
        results: What `run_benchmarks` returned.
        costs: Cost by (checkpoint, method).
        notes: Further notes.
    """
    lines, titles = _lines(results, costs), _method_titles(results)
    rows = []
    for key, cells in lines.items():
        values = {name: _value(cell) for name, cell in cells.items()}
        rows.append({"checkpoint": key[0], "method": titles.get(key, key[1]), **values})
    remarks = "".join(f"\n- {note}" for note in (*result_notes(results), *notes))
    return format_table(rows, _headers(lines)) + (f"\n{remarks}" if remarks else "")


def markdown_table(
    results: Sequence[Result], costs: Costs | None = None, notes: Sequence[str] = (), header: str = ""
) -> str:
    """Format all scores as a Markdown table, `value (low to high)`, and the notes of `result_notes`.

    Bold are the best score of a column and all that the paired interval of the difference does not tell from it;
    ceiling, oracle and controls do not compete.

    Args:
        results: What `run_benchmarks` returned.
        costs: Cost by (checkpoint, method).
        notes: Further notes.
        header: Text above the table.
    """
    lines, titles = _lines(results, costs), _method_titles(results)
    headers = _headers(lines)
    differences = {name: _differences(name, lines) for name in headers}
    rows = []
    for key, cells in lines.items():
        row = {name: _cell(cells.get(name)) for name in headers}
        best = [name for name, others in differences.items() if key in others and others[key].holds_zero]
        row |= {name: f"**{row[name]}**" for name in best}
        title = titles.get(key, key[1])
        method = title if not key[1] else title.replace(key[1], f"`{key[1]}`", 1)
        rows.append({**row, "checkpoint": key[0], "method": method})
    remarks = "".join(f"- {note}\n" for note in (*result_notes(results), *notes))
    parts = (header and f"{header}\n", format_markdown_table(rows, headers), remarks)
    return "\n".join(part for part in parts if part)


def _differences(name: str, lines: Lines) -> dict[Key, Interval]:
    """Return the paired difference of every competing line to the best one; none of what is no merit."""
    larger_is_better = SCORES.get(name, ("", None))[1]
    if larger_is_better is None:
        return {}
    cells = {key: own[name] for key, own in lines.items() if key[1] not in _NOT_COMPETING and name in own}
    best = _best(cells, larger_is_better)
    return {} if best is None else {key: interval.minus(cells[best]) for key, interval in cells.items()}


def _best(cells: Mapping[Key, Interval], larger_is_better: bool) -> Key | None:
    known = {key: cell.value for key, cell in cells.items() if not math.isnan(cell.value)}
    choose = max if larger_is_better else min
    return choose(known, key=known.__getitem__) if known else None


def _value(cell: Any) -> Any:
    """Return a cell without its interval; `None` for NaN."""
    value = cell.value if isinstance(cell, Interval) else cell
    return None if isinstance(value, float) and math.isnan(value) else value


def _cell(value: Any) -> str:
    if _value(value) is None:
        return "–"
    if not isinstance(value, Interval):
        return format_cell(value, 2)
    digits = 1 if abs(value.value) > 1.5 else 3  # above 1: percent, such as the perturbation AUC
    middle, low, high = (format_cell(number, digits) for number in (value.value, value.low, value.high))
    return middle if math.isnan(value.low) else f"{middle} ({low} to {high})"


def result_notes(results: Sequence[Result]) -> list[str]:
    """Return the sentences that belong below a table of results.

    They explain controls and mosaics, and name what does not beat a control by the paired interval of the difference,
    what finds nothing in most images, and what is undefined.
    """
    lines, notes = _lines(results), []
    if any(key[1] in CONTROLS for key in lines):
        notes.append(
            f"Controls know neither image nor model: `whole_image`; `center_ellipse`, whose axes are {CENTER_SIDE} of "
            "the sides (its box is the centred box of that size); `random`, uniform per patch. They do not compete."
        )
    mosaics = {result.checkpoint: result.num_examples for result in results if "grid_pointing" in result.scores}
    notes += [
        f"{SCORES['grid_pointing'][0]}, {checkpoint}: {number} mosaics of images that this checkpoint classifies "
        "rightly, the most certain ones of each class. A map that knows no class scores as `whole_image`."
        for checkpoint, number in mosaics.items()
    ]
    for name, (heading, larger_is_better) in SCORES.items():
        for checkpoint in dict.fromkeys(key[0] for key in lines) if larger_is_better is not None else ():
            own = {key: cells[name] for key, cells in lines.items() if key[0] == checkpoint and name in cells}
            control = _best({key: cell for key, cell in own.items() if key[1] in CONTROLS}, bool(larger_is_better))
            if control is not None:
                beaten = _not_beating(own, control, bool(larger_is_better))
                notes += [f"{heading}, {checkpoint}: {beaten}"] if beaten else []
    for (checkpoint, method), cells in lines.items():
        title = f"{checkpoint}, `{method}`" if method else checkpoint
        if "no_foreground" in cells and cells["no_foreground"].value > 0.5:
            share = f"{cells['no_foreground'].value:.0%}"
            notes.append(
                f"Warning: {title} finds no foreground in {share} of the images; soft maps are stretched there."
            )
        if "undefined" in cells and cells["undefined"].value:
            share = f"{cells['undefined'].value:.1%}"
            notes.append(
                f"Warning: {title} is NaN or infinite for {share} of the images; its scores are of the others."
            )
    for result in results:
        if result.error:
            title = f"{result.checkpoint}, `{result.method}`" if result.method else result.checkpoint
            notes.append(f"Error: {title} has no scores under {result.benchmark}: {result.error}")
    return notes


def _not_beating(cells: Mapping[Key, Interval], control: Key, larger_is_better: bool) -> str:
    """Return which methods of a checkpoint are not better than a control; empty where all are."""
    worse = []
    for key, cell in cells.items():
        difference = cell.minus(cells[control])
        sign = 1 if larger_is_better else -1
        is_better = sign * difference.value > 0 and not difference.holds_zero
        if key[1] not in _NOT_COMPETING and not is_better:
            worse.append(f"`{key[1]}` {_cell(difference)}")
    return f"not better than the best control, `{control[1]}`; the difference: {', '.join(worse)}." if worse else ""


def results_as_json(results: Sequence[Result], costs: Costs | None = None) -> list[dict[str, Any]]:
    """Return one JSON-ready dict per checkpoint and method; NaN becomes None.

    Args:
        results: What `run_benchmarks` returned.
        costs: Cost by (checkpoint, method).
    """
    cells, lines = _lines(results), dict[Key, dict[str, Any]]()
    differences = {name: _differences(name, cells) for name in SCORES}
    for result in results:
        key = (result.checkpoint, result.method)
        line = lines.setdefault(
            key, {"is_control": result.method in CONTROLS, "scores": {}, "errors": {}, "cost": None}
        )
        if result.error:
            line["errors"][result.benchmark] = result.error
        for name in result.scores:
            line["scores"][name] = {**_ends(cells[key][name]), "num_examples": result.num_examples}
            if key in differences.get(name, {}):
                line["scores"][name]["difference_to_best"] = _ends(differences[name][key])
    for key, cost in (costs or {}).items():
        lines.setdefault(key, {"scores": {}})["cost"] = asdict(cost)
    return [{"checkpoint": key[0], "method": key[1], **line} for key, line in lines.items()]


def _ends(interval: Interval) -> dict[str, float | None]:
    """Return an interval as numbers, `None` for NaN."""
    values = {"value": interval.value, "low": interval.low, "high": interval.high}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
