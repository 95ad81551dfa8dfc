# SPDX-License-Identifier: Apache-2.0
"""Cells of a column of classes: their type, the classes in one of them, and how often each cell occurs."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, LargeList, List, Value


__all__ = [
    "Cells",
    "cell_of_name",
    "cell_type_of",
    "count_cells",
    "freeze",
    "is_name",
    "parts_of",
    "read_column",
    "shorten",
    "split_feature",
]

Cells = dict[Any, tuple[int, int]]
"""The distinct cells of a column, each with the number of the first row that holds it, and of all rows that do."""

MAX_LISTED = 50
_READ_AT_ONCE = 10_000


def read_column(table: Dataset, column: str) -> Iterable[Any]:
    """Yield the cells of one column of a table."""
    # in batches: a row at a time costs far more than its cell
    for batch in table.select_columns([column]).iter(_READ_AT_ONCE):
        yield from batch[column]


def count_cells(cells: Iterable[Any]) -> Cells:
    """Return the distinct cells of a column with the first row and the number of rows of each; lists as tuples."""
    counted: Cells = {}
    for row, cell in enumerate(map(freeze, cells)):
        first, count = counted.get(cell, (row, 0))
        counted[cell] = first, count + 1
    return counted


def freeze(cell: Any) -> Hashable:
    """Return a cell as a key: lists as tuples, an object of JSON, which names no class, as its text."""
    if isinstance(cell, list | tuple | np.ndarray):
        return tuple(map(freeze, cell))
    return str(cell) if isinstance(cell, dict) else cell


def shorten(values: Iterable[Any]) -> str:
    """Return values for an error message, at most fifty of them."""
    listed = [str(value) for value in values]
    rest = f", and {len(listed) - MAX_LISTED} more" if len(listed) > MAX_LISTED else ""
    return (", ".join(listed[:MAX_LISTED]) or "none") + rest


def split_feature(column: str, feature: Any, separator: str | None = None) -> tuple[Any, bool]:
    """Return what a column holds each class as, and whether a cell has several classes, or none.

    Args:
        column: Name of the column, for errors.
        feature: What the column holds, as `datasets` declares it.
        separator: `--label_separator`, what stands between the names in a text.

    Raises:
        ValueError: If a column of single classes has a separator and no texts, or lists hold booleans.
    """
    if isinstance(feature, List | LargeList):
        element = feature.feature
        if element == Value("bool"):
            raise ValueError(
                f"The column {column!r} must hold lists of the classes of an image, got lists of booleans, as one for "
                "each class. Write the names or the numbers of the classes that are true."
            )
        # of a column of empty lists alone the type of the classes is unknown
        return (Value("string") if element == Value("null") else element), True
    if separator is None:
        return feature, False
    if not (isinstance(feature, Value) and "string" in feature.dtype):
        raise ValueError(
            f"`--label_separator {separator}` divides texts, but the column {column!r} holds "
            f"{'class numbers' if isinstance(feature, ClassLabel) else feature}, one class an image. Write texts or "
            "lists, pass `--label_column_name`, or remove the option."
        )
    return feature, True


def parts_of(cell: Any, separator: str | None = None) -> list[Any]:
    """Return the classes in a cell of several: of a list its entries, of a text what stands between separators.

    Spaces around a name and empty names do not count. Raises `ValueError` if the cell is empty, or something else.
    """
    if separator is None and isinstance(cell, list | tuple | np.ndarray):
        return list(cell)
    if separator is not None and isinstance(cell, str):
        return [name for part in cell.split(separator) if (name := part.strip())]
    kind, none = ("list", "[]") if separator is None else ("text", "an empty one")
    raise ValueError(f"a {kind} of classes was expected, got {cell!r}; write {none} where an image has none")


def cell_type_of(column: str, feature: Any) -> type:
    """Return the Python type of the cells of a column of names or numbers."""
    dtype = str(feature.dtype) if isinstance(feature, Value) else ""
    if dtype == "bool":
        return bool  # before integers: a bool is an int in Python, but no count
    if dtype.startswith(("int", "uint")):
        return int
    if "string" in dtype:
        return str
    raise ValueError(
        f"The column {column!r} must hold class names or numbers, one an image, got {dtype or feature}. Write "
        "integers or texts (numbers with a decimal point often come from empty cells), or lists of them for several "
        "classes an image, pass `--label_column_name`, or in a WebDataset write the class as `cls`."
    )


def is_name(cell: Any, cell_type: type) -> bool:
    """Return whether an undeclared cell may give a class its name."""
    return cell is not None and (cell >= 0 if cell_type is int else bool(cell.strip()))


def cell_of_name(name: str, cell_type: type) -> Hashable:
    """Return the cell whose text is a name, None if there is none."""
    if cell_type is bool:
        return {"False": False, "True": True}.get(name)
    if cell_type is int:
        # "01" and "1" are different names, but the same number: only one of them is the text of a cell
        return int(name) if name.isdecimal() and len(name) < 20 and str(int(name)) == name else None
    return name
