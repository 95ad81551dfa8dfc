# SPDX-License-Identifier: Apache-2.0
"""The classes of a run, and the class index of a table cell or a folder name.

Nothing else turns a stored label into a number: tables, streams, checks and evaluation sets read labels through
`Labels`. An image has one class, or where the column holds lists any number of them: `is_multi_label`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, LargeList, List
from torch import Tensor

from .cells import (
    MAX_LISTED,
    Cells,
    cell_of_name,
    cell_type_of,
    is_name,
    parts_of,
    read_column,
    shorten,
    split_feature,
)


__all__ = ["Labels"]


@dataclass(frozen=True)
class Labels:
    """Names of the classes of a run, and the class index of each cell of one column.

    Args:
        names: Name of class 0, of class 1, ...
        numbers: Class index by cell.
        cell_type: Type of these cells.
        counts_names: Whether integers and booleans count the names from 0, as with `class_names_file`, rather than
            being names themselves.
        is_multi_label: Whether an image has any number of classes, also none; `numbers` are then those of the entries
            of a cell.
        separator: What stands between the names, where the cells of several classes are texts; None for lists.
    """

    names: list[str]
    numbers: Mapping[Hashable, int]
    cell_type: type = int
    counts_names: bool = False
    is_multi_label: bool = False
    separator: str | None = None

    @classmethod
    def from_names(cls, names: Sequence[str], counts_names: bool = False, is_multi_label: bool = False) -> Labels:
        """Return classes whose cells are their numbers, or lists of them."""
        return cls(list(names), {number: number for number in range(len(names))}, int, counts_names, is_multi_label)

    @classmethod
    def from_feature(cls, feature: Any) -> Labels | None:
        """Return the classes that a column declares, one an image or lists of them; None if it declares none."""
        element = feature.feature if isinstance(feature, List | LargeList) else feature
        is_declared = isinstance(element, ClassLabel)
        return cls.from_names(element.names, is_multi_label=element is not feature) if is_declared else None

    @classmethod
    def from_folders(cls, folders: Iterable[str]) -> Labels:
        """Return the classes that the folders of images are named after, sorted."""
        names = sorted(set(folders))
        return cls(names, {name: number for number, name in enumerate(names)}, str)

    @classmethod
    def from_column(
        cls,
        column: str,
        feature: Any,
        cells: Callable[[], Cells],
        class_names_file: str | None = None,
        separator: str | None = None,
    ) -> Labels:
        """Return the classes of a column of the training images.

        Their names are the lines of the file, else those that the column declares, else the sorted values of its
        cells; a column of booleans has the classes False and True. A column of lists has several classes an image.

        Args:
            column: Name of the column, for errors.
            feature: What the column holds, as `datasets` declares it.
            cells: Read the cells, where their values are the names.
            class_names_file: Text file with one name a line.
            separator: What stands between the names of the classes of an image, where the column holds texts of
                several. Without it a text is one name.

        Raises:
            ValueError: If the column holds neither names nor numbers, names no class, or does not fit the file.
        """
        element, is_multi_label = split_feature(column, feature, separator)
        if class_names_file is not None:
            names = cls.names_in_file(class_names_file)
        elif isinstance(element, ClassLabel):
            return cls.from_names(element.names, is_multi_label=is_multi_label)
        elif (cell_type := cell_type_of(column, element)) is bool:
            names = ["False", "True"]
        else:
            parts: Iterable[Any] = cells()
            if is_multi_label:
                between = None if isinstance(feature, List | LargeList) else separator
                parts = [part for cell in parts if cell is not None for part in parts_of(cell, between)]
            # empty cells and negative numbers, as of hidden labels, name no class
            names = [str(value) for value in sorted({part for part in parts if is_name(part, cell_type)})]
            if is_multi_label and not names:
                raise ValueError(
                    f"The column {column!r} names no class in any row, so there is nothing to learn. Write the names "
                    "of the classes of each image, or pass `--label_column_name` or `--class_names_file`."
                )
        named = cls.from_names(names, class_names_file is not None, is_multi_label)
        return named.as_written_in(column, feature, separator)

    def as_written_in(self, column: str, feature: Any, separator: str | None = None) -> Labels:
        """Return the same classes for the cells of another column, such as that of the evaluation images.

        Args:
            column: Name of the column, for errors.
            feature: What it holds. Declared names may have another order, and lists may be texts with a separator.
            separator: As in `from_column`.

        Raises:
            ValueError: If the column declares other classes, holds neither names nor numbers, or has several classes
                an image where the training images have one, or the reverse.
        """
        element, is_multi_label = split_feature(column, feature, separator)
        if is_multi_label != self.is_multi_label:
            several, one = "training", "evaluation"
            if is_multi_label:
                several, one = one, several
            raise ValueError(
                f"The {several} images have several classes an image (a list, or a text with `--label_separator`), "
                f"the {one} images one in the column {column!r}. Write lists in both; a list may hold one class."
            )
        is_list = isinstance(feature, List | LargeList)
        same = replace(self, separator=separator if is_multi_label and not is_list else None)
        if isinstance(element, ClassLabel):
            return replace(same, numbers=self._numbers_of_declared(column, element.names), cell_type=int)
        cell_type = cell_type_of(column, element)
        numbers: dict[Hashable, int]
        if self.counts_names and cell_type is not str:
            # the lines of the file are in the order of the numbers; False is 0 and True is 1
            cells = (False, True) if cell_type is bool else range(len(self.names))
            numbers = {cell: number for number, cell in enumerate(cells[: len(self.names)])}
        else:
            named = ((cell_of_name(name, cell_type), number) for number, name in enumerate(self.names))
            numbers = {cell: number for cell, number in named if cell is not None}
        return replace(same, numbers=numbers, cell_type=cell_type)

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
    def feature(self) -> ClassLabel | List:
        """The type of a column that holds class numbers, or lists of them."""
        declared = ClassLabel(names=self.names)
        return List(declared) if self.is_multi_label else declared

    def encode(self, cell: Any) -> Any:
        """Return the number of the class of an image; of several classes their sorted numbers, each once, in a list.

        Args:
            cell: Its cell in the column of classes, or the name of its folder.

        Raises:
            ValueError: If the cell names no class, or is no list (a text, with a separator) of classes.
        """
        if not self.is_multi_label:
            return self._encode_one(cell)
        return sorted({self._encode_one(part) for part in parts_of(cell, self.separator)})

    def target_of(self, cell: Any) -> int | Tensor:
        """Return what a model learns of an image: its class number, or `(num_labels,)`, float32, 1 for each class."""
        if not self.is_multi_label:
            return self._encode_one(cell)
        target = torch.zeros(len(self.names))
        target[self.encode(cell)] = 1.0
        return target

    def _encode_one(self, cell: Any) -> int:
        """Return the number of one class."""
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
        encoded = self.encode(cell)
        return encoded if self.is_multi_label else [encoded]

    @staticmethod
    def title(target: Any, names: Mapping[int, str]) -> str:
        """Return the text that names the classes of an image in figures, from what `encode` returned."""
        if isinstance(target, list):
            return ", ".join(names[number] for number in target) or "background"
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
            listing = "\n".join(faults[:MAX_LISTED])
            raise ValueError(
                f"The column {column!r} of the {split} images holds cells that are no class:\n{listing}\n"
                "Correct or remove these rows, or name another column (`--label_column_name`), the classes "
                "(`--class_names_file`) or other files. Hidden labels, as in many test splits, cannot be used."
            )

    def declare(self, table: Dataset, column: str) -> Dataset:
        """Return a table whose column holds class numbers, or lists of them, and declares the names of the classes.

        Only this column is copied. Raises `ValueError` if a cell names no class.
        """
        is_declared = table.features[column] == self.feature
        if is_declared and not self.is_multi_label:
            return table
        numbers = [self.encode(cell) for cell in read_column(table, column)]
        # declared lists may be unsorted, or name a class twice
        if is_declared and numbers == list(read_column(table, column)):
            return table
        return table.remove_columns(column).add_column(column, numbers, feature=self.feature)

    @staticmethod
    def find_column(features: Features, wanted: str) -> str:
        """Return the column of classes: the given one, or else `cls` or the only one that declares classes.

        Args:
            features: Types of the columns.
            wanted: `--label_column_name`. Another name than the default is returned as it is.
        """
        declared = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
        # a column of lists is taken where no column has one class an image
        declared = declared or [name for name, feature in features.items() if Labels.from_feature(feature) is not None]
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
