# SPDX-License-Identifier: Apache-2.0
"""Tables as plain text and as Markdown, with one rule for their numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


__all__ = ["format_cell", "format_markdown_table", "format_table"]

Digits = int | Mapping[Any, int]


def format_table(rows: Sequence[Mapping[Any, Any]], headers: Mapping[Any, str], digits: Digits = 4) -> str:
    """Format rows as plain text.

    Args:
        rows: Values by column; see `format_cell`.
        headers: Heading by column, in the order to print. The first column is aligned left, the others right.
        digits: Digits after the point, of all columns or by column; 4 where a column is not named.

    Returns:
        Heading, rule and one line per row, joined by newlines.
    """
    cells = _cells(rows, headers, digits)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def format_markdown_table(rows: Sequence[Mapping[Any, Any]], headers: Mapping[Any, str], digits: Digits = 4) -> str:
    """Format rows as a Markdown table that ends with a newline; the arguments are those of `format_table`."""
    heading, *lines = _cells(rows, headers, digits)
    return "".join(f"| {' | '.join(line)} |\n" for line in (heading, ["---"] * len(heading), *lines))


def format_cell(value: Any, digits: int = 4) -> str:
    """Return a value as text: a float with its digits, a pair as "mean ± deviation", `None` as a dash."""
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return " ± ".join(format_cell(number, digits) for number in value)
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def _cells(rows: Sequence[Mapping[Any, Any]], headers: Mapping[Any, str], digits: Digits) -> list[list[str]]:
    """Return the headings and then every row as text."""
    places = {key: digits if isinstance(digits, int) else digits.get(key, 4) for key in headers}
    return [list(headers.values()), *([format_cell(row.get(key), places[key]) for key in headers] for row in rows)]
