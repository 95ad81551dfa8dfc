# SPDX-License-Identifier: Apache-2.0
"""The classes of a run, and the class index of a table cell or a folder name.

Nothing else turns a stored label into a number: tables, streams, checks and evaluation sets read labels through
`Labels`. Several labels an image would start here: `encode` gives a multi-hot list, and `feature` is one of classes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, Value


__all__ = ["Cells", "Labels", "count_cells", "read_column", "shorten"]

Cells = dict[Any, tuple[int, int]]
"""The distinct cells of a column, each with the number of the first row that holds it, and of all rows that do."""

_MAX_LISTED = 50
_READ_AT_ONCE = 10_000


@dataclass(frozen=True)
class Labels:
    """Names of the classes of a run, and the class index of each cell of one column.

    Args:
        names: Name of class 0, of class 1, ...
        numbers: Class index by cell.
        cell_type: Type of these cells.
        counts_names: Whether integers and booleans count the names from 0, as with `class_names_file`, rather than
            being names themselves.
    """

    names: list[str]
    numbers: Mapping[Hashable, int]
    cell_type: type = int
    counts_names: bool = False

    @classmethod
    def from_names(cls, names: Sequence[str], counts_names: bool = False) -> Labels:
        """Return classes whose cells are their numbers."""
        return cls(list(names), {number: number for number in range(len(names))}, int, counts_names)

    @classmethod
    def from_folders(cls, folders: Iterable[str]) -> Labels:
        """Return the classes that the folders of images are named after, sorted."""
        names = sorted(set(folders))
        return cls(names, {name: number for number, name in enumerate(names)}, str)

    @classmethod
    def from_column(
        cls, column: str, feature: Any, cells: Callable[[], Cells], class_names_file: str | None = None
    ) -> Labels:
        """Return the classes of a column of the training images.

        Their names are the lines of the file, else those that the column declares, else the sorted values of its
        cells; a column of booleans has the classes False and True.

        Args:
            column: Name of the column, for errors.
            feature: What the column holds, as `datasets` declares it.
            cells: Read the cells, where their values are the names.
            class_names_file: Text file with one name a line.

        Raises:
            ValueError: If the column holds neither names nor numbers, or does not fit the file.
        """
        if class_names_file is not None:
            named = cls.from_names(cls.names_in_file(class_names_file), counts_names=True)
            return named.as_written_in(column, feature)
        if isinstance(feature, ClassLabel):
            return cls.from_names(feature.names)
        cell_type = _cell_type(column, feature)
        if cell_type is bool:
            return cls.from_names(["False", "True"]).as_written_in(column, feature)
        # empty cells and negative numbers, as of hidden labels, name no class
        values = {cell for cell in cells() if _is_name(cell, cell_type)}
        return cls.from_names([str(value) for value in sorted(values)]).as_written_in(column, feature)

    def as_written_in(self, column: str, feature: Any) -> Labels:
        """Return the same classes for the cells of another column, such as that of the evaluation images.

        Args:
            column: Name of the column, for errors.
            feature: What it holds. Declared names may have another order.

        Raises:
            ValueError: If the column declares other classes, or holds neither names nor numbers.
        """
        if isinstance(feature, ClassLabel):
            return Labels(self.names, self._numbers_of_declared(column, feature.names), int, self.counts_names)
        cell_type = _cell_type(column, feature)
        numbers: dict[Hashable, int]
        if self.counts_names and cell_type is not str:
            # the lines of the file are in the order of the numbers; False is 0 and True is 1
            cells = (False, True) if cell_type is bool else range(len(self.names))
            numbers = {cell: number for number, cell in enumerate(cells[: len(self.names)])}
        else:
            named = ((_cell_of_name(name, cell_type), number) for number, name in enumerate(self.names))
            numbers = {cell: number for cell, number in named if cell is not None}
        return Labels(self.names, numbers, cell_type, self.counts_names)

    def _numbers_of_declared(self, column: str, others: Sequence[str]) -> dict[Hashable, int]:
        """Return the class number of each number that counts the names which a column declares."""
        if self.counts_names:
            if len(others) != len(self.names):
                raise ValueError(
                    f"`--class_names_file` does not fit the column {column!r}: the column declares {len(others)} "
                    f"classes, there are {len(self.names)} names. Write one line for each class."
                )
            return {number: number for number in range(len(others))}
        if set(others) - set(self.names):
            raise ValueError(
                "Training and evaluation images must have the same classes. "
                f"Only in training: {shorten(sorted(set(self.names) - set(others)))}; "
                f"only in evaluation: {shorten(sorted(set(others) - set(self.names)))}."
            )
        # the same names in another order: map the numbers of this column to those of the training images
        order = {name: number for number, name in enumerate(self.names)}
        return {number: order[name] for number, name in enumerate(others)}

    @property
    def feature(self) -> ClassLabel:
        """The type of a column that holds class numbers."""
        return ClassLabel(names=self.names)

    def encode(self, cell: Any) -> int:
        """Return the number of the class of an image.

        Args:
            cell: Its cell in the column of classes, or the name of its folder.

        Raises:
            ValueError: If the cell names no class.
        """
        cell = cell.item() if isinstance(cell, np.generic) else cell
        # a mapping, not a cast: "3" and 3.0 are no class 3
        # by type first: for Python True is 1 and 1.0 is 1
        if type(cell) is self.cell_type and cell in self.numbers:
            return self.numbers[cell]
        if self.cell_type is int and set(self.numbers) == set(range(len(self.names))):
            expected = f"an integer from 0 to {len(self.names) - 1}"
        else:
            expected = f"one of {shorten(self.numbers or self.names)}"
        raise ValueError(f"the class {cell!r} is none of the {len(self.names)} classes, expected {expected}")

    def classes_of(self, cell: Any) -> list[int]:
        """Return the numbers of all classes of an image; raises as `encode` does."""
        return [self.encode(cell)]

    @staticmethod
    def title(target: Any, names: Mapping[int, str]) -> str:
        """Return the text that names the class of an image in figures, from what `encode` returned."""
        return names[target]

    def check(self, cells: Cells, column: str, split: str, place_of: Callable[[int], str]) -> None:
        """Raise if a cell of a column names no class.

        Args:
            cells: The distinct cells of the column.
            column: Its name.
            split: Whose it is: "training" or "evaluation".
            place_of: Return file and row of a row number.

        Raises:
            ValueError: Naming the first row of each such cell.
        """
        faults = []
        for cell, (row, count) in cells.items():
            try:
                self.encode(cell)
            except ValueError as error:
                more = f" (the first of {count} such rows)" if count > 1 else ""
                faults.append(f"  {place_of(row)}{more}: {error}")
        if faults:
            listing = "\n".join(faults[:_MAX_LISTED])
            raise ValueError(
                f"The column {column!r} of the {split} images holds cells that are no class:\n{listing}\n"
                "Correct or remove these rows, or name another column (`--label_column_name`), the classes "
                "(`--class_names_file`) or other files. Hidden labels, as in many test splits, cannot be used."
            )

    def declare(self, table: Dataset, column: str) -> Dataset:
        """Return a table whose column holds class numbers and declares the names of the classes.

        Only this column is copied. Raises `ValueError` if a cell names no class.
        """
        if table.features[column] == self.feature:
            return table
        numbers = [self.encode(cell) for cell in read_column(table, column)]
        return table.remove_columns(column).add_column(column, numbers, feature=self.feature)

    @staticmethod
    def find_column(features: Features, wanted: str) -> str:
        """Return the column of classes: the given one, or else `cls` or the only one that declares classes.

        Args:
            features: Types of the columns.
            wanted: `--label_column_name`. Another name than the default is returned as it is.
        """
        declared = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
        if wanted != "label" or wanted in features:
            return wanted
        # the ending that WebDataset gives to files with a class
        if "cls" in features:
            return "cls"
        return declared[0] if len(declared) == 1 else wanted

    @staticmethod
    def names_in_file(file: str) -> list[str]:
        """Return the lines of a text file: the name of class 0, of class 1, ...

        Args:
            file: UTF-8, with or without byte order mark; empty lines at its end do not count.

        Raises:
            ValueError: If the file cannot be read, is empty, or has a name twice.
        """
        path = Path(file).expanduser()
        try:
            if path.exists() and not path.is_file():
                raise OSError("it is no file, but a folder, a pipe or a device")
            text = path.read_text(encoding="utf-8-sig").rstrip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"`--class_names_file {file}` cannot be read: {error}") from error
        names = [line.strip() for line in text.splitlines()]
        twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
        if not names or "" in names or twice:
            raise ValueError(
                f"`--class_names_file {file}` must hold one name a line, each once and none empty, got {len(names)} "
                f"lines{', twice: ' + ', '.join(twice[:5]) if twice else ''}."
            )
        return names


def read_column(table: Dataset, column: str) -> Iterable[Any]:
    """Yield the cells of one column of a table."""
    # in batches: a row at a time costs far more than its cell
    for batch in table.select_columns([column]).iter(_READ_AT_ONCE):
        yield from batch[column]


def count_cells(cells: Iterable[Any]) -> Cells:
    """Return the distinct cells of a column with the first row and the number of rows of each."""
    counted: Cells = {}
    for row, cell in enumerate(cells):
        first, count = counted.get(cell, (row, 0))
        counted[cell] = first, count + 1
    return counted


def shorten(values: Iterable[Any]) -> str:
    """Return values for an error message, at most fifty of them."""
    listed = [str(value) for value in values]
    rest = f", and {len(listed) - _MAX_LISTED} more" if len(listed) > _MAX_LISTED else ""
    return (", ".join(listed[:_MAX_LISTED]) or "none") + rest


def _cell_type(column: str, feature: Any) -> type:
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
        "integers or texts (numbers with a decimal point often come from empty cells), pass `--label_column_name`, or "
        "in a WebDataset write the class as `cls`."
    )


def _is_name(cell: Any, cell_type: type) -> bool:
    """Return whether an undeclared cell may give a class its name."""
    return cell is not None and (cell >= 0 if cell_type is int else bool(cell.strip()))


def _cell_of_name(name: str, cell_type: type) -> Hashable:
    """Return the cell whose text is a name, None if there is none."""
    if cell_type is bool:
        return {"False": False, "True": True}.get(name)
    if cell_type is int:
        # "01" and "1" are different names, but the same number: only one of them is the text of a cell
        return int(name) if name.isdecimal() and len(name) < 20 and str(int(name)) == name else None
    return name
