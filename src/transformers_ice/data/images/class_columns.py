# SPDX-License-Identifier: Apache-2.0
"""Which columns hold images and classes, and what the classes are called."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Features, Image, Value


__all__ = ["declare_classes", "find_columns", "label_index", "read_class_names"]


def find_columns(features: Features, image_column: str, label_column: str) -> tuple[str, str]:
    """Return the columns of images and of classes, where the names that stand there by default are not there.

    A name that is a column, or was changed from its default, is returned as it is. Else the one column of images is
    taken, and for classes `cls` (WebDataset), or the one column with declared classes.

    Args:
        features: What the columns hold.
        image_column: `--image_column_name`.
        label_column: `--label_column_name`.
    """
    images = [name for name, feature in features.items() if isinstance(feature, Image) and "mask" not in name]
    classes = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    if image_column == "image" and image_column not in features and len(images) == 1:
        image_column = images[0]
    if label_column == "label" and label_column not in features:
        if "cls" in features:
            label_column = "cls"
        elif len(classes) == 1:
            label_column = classes[0]
    return image_column, label_column


def read_class_names(file: str) -> list[str]:
    """Return the lines of a text file: the name of class 0, of class 1, ...

    Raises:
        ValueError: If the file cannot be read, is empty, or has a name twice.
    """
    try:
        names = [line.strip() for line in Path(file).expanduser().read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"`--class_names_file {file}` cannot be read: {error}") from error
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if not names or "" in names or twice:
        raise ValueError(
            f"`--class_names_file {file}` must hold one name a line, each once and none empty, got {len(names)} lines"
            f"{', twice: ' + ', '.join(twice[:5]) if twice else ''}."
        )
    return names


def label_index(label: Any, numbers: dict[str, int], counts_from_zero: bool) -> int:
    """Return the number of a class.

    Args:
        label: Cell of the column of classes.
        numbers: Number of each class by its name.
        counts_from_zero: Whether ints in the column are numbers of classes already, and no names.

    Raises:
        ValueError: If there is no such class.
    """
    if counts_from_zero and isinstance(label, int):
        if 0 <= label < len(numbers):
            return label
    elif str(label) in numbers and label is not None:
        return numbers[str(label)]
    raise ValueError(f"the class {label!r} is none of the {len(numbers)} classes")


def declare_classes(table: Dataset, column: str, names: Sequence[str]) -> Dataset:
    """Return a table whose column of classes has the given names.

    Args:
        table: With ints, which count the names from 0, or with names.
        column: The column of classes.
        names: Name of each class.

    Raises:
        ValueError: If the column holds a class that is not there.
    """
    feature = table.features[column]
    numbers = {name: number for number, name in enumerate(names)}
    values = feature.names if isinstance(feature, ClassLabel) else table.unique(column)
    is_number = all(isinstance(value, int) for value in values)
    try:
        if isinstance(feature, ClassLabel):
            if len(values) != len(names):
                raise ValueError(f"the column declares {len(values)} classes, there are {len(names)} names")
        else:
            for value in values:
                label_index(value, numbers, is_number)
    except ValueError as error:
        raise ValueError(f"`--class_names_file` does not fit the column {column!r}: {error}.") from error
    if not isinstance(feature, ClassLabel) and is_number:
        table = table.cast_column(column, Value("int64"))
    return table.cast_column(column, ClassLabel(names=list(names)))
