# SPDX-License-Identifier: Apache-2.0
"""Rows of a benchmark as a table and as JSON, with the machine that they hold for."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers

from ..output_files import write_json
from .speed import SpeedRow
from .timing import Spread


__all__ = ["describe_machine", "read_accuracies", "rows_from_json", "speed_table", "write_results"]

_HEADINGS = ("variant", "images/s", "ms/image", "speed-up", "quartiles", "tokens", "GMACs", "ideal", "reached")


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return what times depend on besides the model: processor, threads, versions."""
    is_cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if is_cuda else str(device),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "allow_tf32": torch.backends.cuda.matmul.allow_tf32 if is_cuda else None,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def speed_table(rows: Sequence[SpeedRow]) -> str:
    """Lay rows of one batch size out as plain text; "tokens" are the mean over all layers."""
    lines = [_HEADINGS, *(_cells(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    laid_out = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join([laid_out[0], rule, *laid_out[1:]])


def _cells(row: SpeedRow) -> tuple[str, ...]:
    return (
        row.variant,
        f"{row.images_per_second.median:.1f}",
        f"{row.milliseconds_per_image.median:.2f}",
        f"{row.speedup.median:.3f}",
        f"{row.speedup.low:.3f}-{row.speedup.high:.3f}",
        f"{sum(row.tokens_per_layer) / len(row.tokens_per_layer):.1f}",
        f"{row.gmacs:.4f}",
        f"{row.ideal_speedup:.3f}",
        f"{row.ideal_reached:.1%}",
    )


def write_results(file: Path, rows: Iterable[SpeedRow], **settings: Any) -> None:
    """Write every number and every setting as JSON."""
    content = {**settings, "rows": [asdict(row) for row in rows]}
    write_json(file, content)


def rows_from_json(file: Path) -> list[SpeedRow]:
    """Return the rows that `write_results` wrote."""
    rows = []
    for entry in json.loads(file.read_text(encoding="utf-8"))["rows"]:
        spreads = {name: Spread(**value) for name, value in entry.items() if isinstance(value, dict)}
        rows.append(SpeedRow(**{**entry, **spreads}))
    return rows


def read_accuracies(file: str | Path, names: Sequence[str]) -> dict[str, float]:
    """Read the accuracy of variants.

    Args:
        file: JSON, top-1 accuracy in [0, 1] by the name of a variant; not every variant must have one.
        names: Of the variants.

    Raises:
        ValueError: If the file cannot be read, names other variants or holds no accuracies.
    """
    try:
        accuracies = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} must hold a JSON object, variant name to top-1: {error}") from error
    if not isinstance(accuracies, dict) or not accuracies or not set(accuracies) <= set(names):
        raise ValueError(f"{file} must map some of the variants {', '.join(names)} to top-1, got {accuracies}.")
    for name, value in accuracies.items():
        if not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ValueError(f"The accuracy of {name!r} in {file} must be in [0, 1], got {value!r}.")
    return accuracies
