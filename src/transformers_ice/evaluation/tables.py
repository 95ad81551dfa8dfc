# SPDX-License-Identifier: Apache-2.0
"""Tables as plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


__all__ = ["format_table"]


def format_table(rows: Sequence[Mapping[str, Any]], headers: Mapping[str, str]) -> str:
    """Lay rows out as plain text.

    Args:
        rows: Values by column; a float is printed with four digits, `None` as a dash.
        headers: Heading by column, in the order to print. The first column is aligned left, the others right.

    Returns:
        Heading, rule and one line per row, joined by newlines.
    """
    cells = [list(headers.values()), *([_format_cell(row.get(key)) for key in headers] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _format_cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
