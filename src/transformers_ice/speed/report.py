# SPDX-License-Identifier: Apache-2.0
"""Measurements of a benchmark as a table and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..console.json_files import read_json
from ..console.output_files import write_json
from ..console.tables import format_table
from .speed import SpeedRow
from .timing import summarize_spread


__all__ = ["comparison_table", "read_accuracies", "speed_table", "write_results"]

_COLUMNS = {
    "variant": ("variant", 0),
    "images": ("images/s", 1),
    "milliseconds": ("ms/image", 2),
    "speedup": ("speed-up", 3),
    "quartiles": ("quartiles", 3),
    "tokens": ("tokens", 1),
    "gmacs": ("GMACs", 4),
    "ideal": ("ideal", 3),
    "reached": ("reached", 1),
    "peak": ("of peak", 1),
}


def speed_table(rows: Sequence[SpeedRow]) -> str:
    """Format the measurements of one batch size as plain text; "tokens" are the mean over all layers."""
    headers = {name: heading for name, (heading, _) in _COLUMNS.items()}
    return format_table(
        [_cells(row) for row in rows], headers, {name: digits for name, (_, digits) in _COLUMNS.items()}
    )


def comparison_table(rows: Sequence[SpeedRow]) -> str:
    """Format how many times as fast as published code the other rows of one batch size are; empty without such code.

    A cell is the median of the ratios of the same repeat, and their quartiles.
    """
    published = [row for row in rows if row.is_published]
    headers = {"variant": "times as fast as", **{row.variant: row.variant for row in published}}
    cells = [
        {"variant": row.variant, **{other.variant: _format_ratio(other.seconds, row.seconds) for other in published}}
        for row in rows
        if not row.is_published
    ]
    return format_table(cells, headers) if published else ""


def _format_ratio(seconds: Sequence[float], own: Sequence[float]) -> str:
    ratio = summarize_spread([base / taken for base, taken in zip(seconds, own, strict=True)])
    return f"{ratio.median:.3f} ({ratio.low:.3f}-{ratio.high:.3f})"


def _cells(row: SpeedRow) -> dict[str, Any]:
    return {
        "variant": row.variant,
        "images": row.images_per_second.median,
        "milliseconds": row.milliseconds_per_image.median,
        "speedup": row.speedup.median,
        "quartiles": f"{row.speedup.low:.3f}-{row.speedup.high:.3f}",
        "tokens": sum(row.tokens_per_layer) / len(row.tokens_per_layer),
        "gmacs": row.gmacs,
        "ideal": row.ideal_speedup,
        "reached": f"{row.ideal_reached:.1%}",
        "peak": None if row.of_peak is None else f"{row.of_peak:.0%}",
    }


def write_results(file: Path, rows: Iterable[SpeedRow], **settings: Any) -> None:
    """Write every number and every setting as JSON."""
    write_json(file, {**settings, "rows": [asdict(row) for row in rows]})


def read_accuracies(file: str | Path, names: Sequence[str]) -> dict[str, float]:
    """Read the top-1 accuracy, in [0, 1], of some or all variants from a JSON file.

    Raises:
        ValueError: If the file cannot be read, names other variants or holds no accuracies.
    """
    try:
        accuracies = read_json(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} must hold a JSON object, variant name to top-1: {error}") from error
    if not isinstance(accuracies, dict) or not accuracies or not set(accuracies) <= set(names):
        raise ValueError(f"{file} must map some of the variants {', '.join(names)} to top-1, got {accuracies}.")
    for name, value in accuracies.items():
        if not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ValueError(f"The accuracy of {name!r} in {file} must be in [0, 1], got {value!r}.")
    return accuracies
