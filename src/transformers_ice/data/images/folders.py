# SPDX-License-Identifier: Apache-2.0
"""Images with classes from folders or from the Hub, as `datasets` tables that are known to be readable.

Errors name files, columns and classes: a run that stops after hours because of one truncated file is a run lost.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from datasets import ClassLabel, Dataset, Features, Image, Value, load_dataset
from datasets.utils.logging import get_logger

from ...ice_deit.image_conversion import convert_to_rgb, load_image


__all__ = [
    "BadImage",
    "check_columns",
    "encode_classes",
    "find_bad_images",
    "load_hub_images",
    "load_image_folder",
    "read_error",
    "remove_bad_images",
]

logger = get_logger(__name__)

_MAX_LISTED = 50
_CHECK_BATCH = 1024


@dataclass(frozen=True)
class BadImage:
    """An image that cannot be read.

    Args:
        row: Its row in the table.
        path: Its file, or the name the table gives it.
        error: Why it cannot be read.
    """

    row: int
    path: str
    error: str


def load_image_folder(directory: str | os.PathLike) -> Dataset:
    """Return the images below a folder, one subfolder per class.

    Args:
        directory: Folder whose subfolders are the classes.

    Returns:
        A table with `image` and `label` (the sorted names of the subfolders), and the columns of a `metadata.csv` or
        `metadata.jsonl` where there is one, as `datasets` reads it.

    Raises:
        ValueError: If the folder does not exist, holds no images, or its images are not in subfolders.
    """
    path = Path(directory).expanduser().resolve()
    if not path.is_dir():
        raise ValueError(
            f"The image folder {str(directory)!r} does not exist. Give a folder with one subfolder per class."
        )
    try:
        table = load_dataset("imagefolder", data_files={"train": f"{glob.escape(str(path))}/**"}, split="train")
    except (FileNotFoundError, ValueError) as error:
        # an empty folder: "no data files found", or no example to infer the columns from
        raise ValueError(f"The folder {path} holds no image files that can be listed: {error}") from error
    if "label" not in table.column_names and "metadata" not in " ".join(os.listdir(path)):
        table = _label_by_folder(table, path)
    return table


def _label_by_folder(table: Dataset, path: Path) -> Dataset:
    """Add the label where `datasets` gives none: one class only, or images at several depths."""
    files = [record["path"] for record in table.cast_column("image", Image(decode=False))["image"]]
    parts = [Path(file).relative_to(path).parts for file in files]
    stray = [file for file, part in zip(files, parts, strict=True) if len(part) < 2]
    if stray:
        raise ValueError(
            f"Images must lie in one subfolder per class, but {len(stray)} lie in {path} itself, e.g. {stray[0]}."
        )
    names = sorted({part[0] for part in parts})
    labels = [names.index(part[0]) for part in parts]
    return table.add_column("label", labels).cast_column("label", ClassLabel(names=names))


def load_hub_images(
    name: str, config_name: str | None = None, token: str | None = None, cache_dir: str | None = None
) -> tuple[Dataset, Dataset | None]:
    """Return the training images of a data set of the Hub (or of a local folder of parquet files), and its others.

    Args:
        name: Data set id, or a folder that `load_dataset` understands.
        config_name: Configuration of the data set.
        token: Hub token.
        cache_dir: Folder that keeps downloads.

    Returns:
        The "train" split, and the "validation" (else "valid", "val", "test") split or None.

    Raises:
        ValueError: If the data set cannot be reached or has no "train" split.
    """
    try:
        splits = load_dataset(name, config_name, token=token, cache_dir=cache_dir)
    except (OSError, ValueError) as error:
        # offline, a misspelt id, or a missing configuration: `datasets` tells them apart in words only
        raise ValueError(
            f"The data set {name!r} could not be loaded: {error} Give the id of a data set of the Hub (which needs a "
            "network or a filled cache), `scenes`, or image folders with `train_dir`."
        ) from error
    if "train" not in splits:
        raise ValueError(f"The data set {name!r} has no split `train`, only {sorted(splits)}.")
    evaluation = next((splits[split] for split in ("validation", "valid", "val", "test") if split in splits), None)
    return splits["train"], evaluation


def check_columns(table: Dataset, **columns: str) -> None:
    """Raise if a table lacks a column, or one that should hold images holds something else.

    Args:
        table: A table.
        **columns: Column name by argument name, e.g. `image_column_name="image"`.

    Raises:
        ValueError: Naming the argument, the column and the columns there are.
    """
    for argument, column in columns.items():
        if column not in table.column_names:
            raise ValueError(
                f"`--{argument} {column}` is not a column of the data, which has {', '.join(table.column_names)}. "
                f"Pass `--{argument}` with one of these."
            )
        if argument.startswith("image") and not isinstance(table.features[column], Image):
            raise ValueError(f"The column {column!r} does not hold images, but {table.features[column]}.")


def encode_classes(
    train: Dataset, evaluation: Dataset | None, column: str
) -> tuple[Dataset, Dataset | None, list[str]]:
    """Make a column of classes hold 0, 1, ... with names, the same ones in both tables.

    Args:
        train: Training table.
        evaluation: Evaluation table, if there is one.
        column: Column of class labels, names or numbers.

    Returns:
        Both tables, and the names of the classes in the order of their numbers. A column without declared names gets
        the sorted values of the training table.

    Raises:
        ValueError: If the evaluation table knows other classes; names the differences.
    """
    train = _name_classes(train, column)
    names = train.features[column].names
    if evaluation is None:
        return train, None, names
    evaluation = _name_classes(evaluation, column, names)
    others = evaluation.features[column].names
    if set(others) != set(names):
        raise ValueError(
            "Training and evaluation images must have the same classes. "
            f"Only in training: {_shorten(sorted(set(names) - set(others)))}; "
            f"only in evaluation: {_shorten(sorted(set(others) - set(names)))}."
        )
    if others != names:
        order = [names.index(name) for name in others]
        evaluation = evaluation.map(
            lambda label: {column: order[label]},
            input_columns=column,
            features=Features({**evaluation.features, column: ClassLabel(names=names)}),
        )
    return train, evaluation, names


def _name_classes(table: Dataset, column: str, names: Sequence[str] | None = None) -> Dataset:
    """Return the table with a `ClassLabel` column; undeclared values are named by `names` or by themselves."""
    if isinstance(table.features[column], ClassLabel):
        return table
    values = table.unique(column)
    if any(not isinstance(value, str | int) for value in values):
        raise ValueError(f"The column {column!r} must hold class names or numbers, got {_shorten(values)}.")
    own = [str(value) for value in sorted(values)]
    # a small evaluation table need not hold every class
    names = list(names) if names is not None and set(own) <= set(names) else own
    return table.cast_column(column, Value("string")).cast_column(column, ClassLabel(names=names))


def find_bad_images(table: Dataset, column: str, num_threads: int | None = None) -> list[BadImage]:
    """Decode every image of a table once and return those that cannot be read.

    Args:
        table: A table.
        column: Column of images.
        num_threads: Threads that decode; by default one per core.

    Returns:
        The bad ones in the order of their rows: no image, empty, truncated, of an unknown format, missing.
    """
    records = table.select_columns([column]).cast_column(column, Image(decode=False))
    bad = []
    with ThreadPoolExecutor(num_threads or os.cpu_count()) as pool:
        for start in range(0, len(records), _CHECK_BATCH):
            batch = records[start : start + _CHECK_BATCH][column]
            for row, (record, error) in enumerate(zip(batch, pool.map(read_error, batch), strict=True), start):
                if error is not None:
                    bad.append(BadImage(row, str((record or {}).get("path") or f"row {row}"), error))
    return bad


def read_error(record: dict[str, Any] | None) -> str | None:
    """Return why an undecoded image cannot be read, or None if it can."""
    if record is None:
        return "there is no image"
    try:
        convert_to_rgb(load_image(record))
    except ValueError as error:
        # the cause alone: the path stands beside it anyway
        return str(error.__cause__ or error)
    return None


def remove_bad_images(
    table: Dataset, column: str, on_bad_image: Literal["stop", "skip"] = "stop", num_threads: int | None = None
) -> Dataset:
    """Return a table without unreadable images, or stop because of them.

    Args:
        table: A table.
        column: Column of images.
        on_bad_image: "stop" raises and lists them; "skip" removes them with a warning that lists them.
        num_threads: Threads that decode; by default one per core.

    Raises:
        ValueError: If there are bad images under "stop", or nothing is left under "skip"; lists their paths.
    """
    bad = find_bad_images(table, column, num_threads)
    if not bad:
        return table
    listing = "\n".join(f"  {image.path}: {image.error}" for image in bad)
    if on_bad_image == "stop" or len(bad) == len(table):
        raise ValueError(
            f"{len(bad)} of {len(table)} images cannot be read:\n{listing}\n"
            "Repair or remove them, or pass `--on_bad_image skip` to train without them."
        )
    logger.warning(f"Skipping {len(bad)} of {len(table)} images that cannot be read:\n{listing}")
    rows = {image.row for image in bad}
    return table.select([row for row in range(len(table)) if row not in rows])


def _shorten(values: Iterable[Any]) -> str:
    """Return values for an error message, at most fifty of them."""
    listed = [str(value) for value in values]
    rest = f", and {len(listed) - _MAX_LISTED} more" if len(listed) > _MAX_LISTED else ""
    return (", ".join(listed[:_MAX_LISTED]) or "none") + rest
