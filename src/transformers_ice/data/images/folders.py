# SPDX-License-Identifier: Apache-2.0
"""Images with classes from folders or from the Hub, as `datasets` tables."""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.csv
import pyarrow.json
from datasets import Dataset, Image, load_dataset

from ..files import FileList, list_files
from .cells import shorten
from .labels import Labels


__all__ = ["load_hub_images", "load_image_folder"]

_METADATA = ("metadata.csv", "metadata.jsonl")
_TRAIN_NAMES = {"train", "training"}
_OTHER_NAMES = {"val", "valid", "validation", "test", "testing", "eval", "evaluation", "dev"}


def load_image_folder(
    directory: str | os.PathLike, notes: list[str] | None = None, text_column: str | None = None
) -> Dataset:
    """Return the images below a folder, one subfolder per class, as a table.

    It has `image` and `label` (the sorted names of the outermost subfolders), and the columns of a `metadata.csv` or
    `metadata.jsonl` whose `file_name` is a path below the folder; a `label` there counts before the subfolders, and
    may be a list.

    Args:
        directory: The folder. Links are followed, and each folder is read once.
        notes: Gets a line for each kind of what was passed over.
        text_column: Column of a `metadata.csv` that is read as texts, even where it looks like numbers.

    Raises:
        ValueError: If there are no images, they are not in subfolders, or the subfolders are parts and not classes.
    """
    path = Path(directory).expanduser().resolve()
    if not path.is_dir():
        raise ValueError(
            f"The image folder {str(directory)!r} does not exist. Give a folder with one subfolder per class."
        )
    listed = list_files(path)
    columns, files = _read_metadata(path, listed, text_column)
    lines = [*listed.notes(), *_empty_folders(listed)]
    if not files:
        raise ValueError(" ".join([f"The folder {path} holds no image files that can be listed.", *lines]))
    (notes if notes is not None else []).extend(lines)
    stray = [name for name in files if "/" not in name]
    if stray and not columns:
        raise ValueError(
            f"Images must be in one subfolder per class, but {len(stray)} are in {path} itself, e.g. "
            f"{path / stray[0]}."
        )
    table = Dataset.from_dict({"image": [str(path / name) for name in files]}).cast_column("image", Image())
    if not stray and "label" not in columns:
        _check_layout(path, files)
        folders = [name.split("/")[0] for name in files]
        labels = Labels.from_folders(folders)
        table = table.add_column("label", [labels.encode(name) for name in folders], feature=labels.feature)
    for name, column in columns.items():
        table = table.add_column(name, column)
        if name.endswith("_file_name"):
            table = table.rename_column(name, name.removesuffix("_file_name"))
            table = table.cast_column(name.removesuffix("_file_name"), Image())
    return table


def _empty_folders(listed: FileList) -> list[str]:
    """Return a line about the folders that would be classes but hold no image."""
    filled = {name.split("/")[0] for name in listed.files}
    empty = [name for name in listed.folders if name not in filled]
    return [f"{len(empty)} folders hold no image and are no class: {shorten(empty)}."] if empty else []


def _check_layout(path: Path, files: Collection[str]) -> None:
    """Raise if the outermost folders are parts of a data set (train, val; images, masks) rather than its classes."""
    inner: dict[str, set[str]] = {}  # of each outermost folder, the folders in it, "" for images directly in it
    for name in files:
        first, *rest = name.split("/")
        inner.setdefault(first, set()).add(rest[0] if len(rest) > 1 else "")
    train = next((name for name in inner if name.lower() in _TRAIN_NAMES and "" not in inner[name]), None)
    other = next((name for name in inner if name.lower() in _OTHER_NAMES), None)
    only_parts = all(name.lower() in _TRAIN_NAMES | _OTHER_NAMES for name in inner)
    if train and other and (only_parts or inner[train] & inner[other]):
        raise ValueError(
            f"{path} holds {train}/ and {other}/, which would be taken for classes. Did you mean `--train_dir "
            f"{path / train} --validation_dir {path / other}`?"
        )
    first = next(iter(inner))
    if {name.lower() for name in inner} == {"images", "masks"} or (
        len(inner) == 1 and len(inner[first]) > 1 and "" not in inner[first]
    ):
        raise ValueError(
            f"The classes would be {shorten(inner)}, by the names of the folders in {path}. Did you mean "
            f"{path / first}, which holds {shorten(sorted(inner[first] - {''})) if any(inner[first]) else 'images'}?"
        )


def _read_metadata(
    path: Path, listed: FileList, text_column: str | None = None
) -> tuple[dict[str, list[Any]], list[str]]:
    """Return the columns of the metadata of a folder, if it has any, and the names of its images in their order."""
    file = next((path / name for name in _METADATA if (path / name).is_file()), None)
    if file is None:
        return {}, listed.files
    listed.endings -= Counter([file.suffix])
    try:
        if file.suffix == ".csv":
            options = pyarrow.csv.ParseOptions(newlines_in_values=True)
            types = {} if text_column is None else {text_column: pyarrow.string()}
            conversion = pyarrow.csv.ConvertOptions(column_types=types)
            table = pyarrow.csv.read_csv(file, parse_options=options, convert_options=conversion)
        else:
            table = pyarrow.json.read_json(file)
    except (OSError, ValueError) as error:  # pyarrow's are ValueErrors
        raise ValueError(f"{file} cannot be read as a table with a column `file_name`: {error}") from error
    columns = table.to_pydict()
    if "file_name" not in columns:
        raise ValueError(f"{file} must have a column `file_name`, got {', '.join(columns)}. Or rename the file.")
    known = set(listed.files)
    for name in [name for name in columns if name == "file_name" or name.endswith("_file_name")]:
        paths = [posixpath.normpath(str(cell)) for cell in columns[name]]
        unknown = next((row for row, cell in enumerate(paths) if cell not in known), None)
        if unknown is not None:
            raise ValueError(
                f"{file}, row {unknown}: `{name}` must be the path of an image below {path}, got "
                f"{columns[name][unknown]!r}."
            )
        columns[name] = paths if name == "file_name" else [str(path / cell) for cell in paths]
    files = columns.pop("file_name")
    others = {cell for name in columns if name.endswith("_file_name") for cell in columns[name]}
    unlisted = [name for name in sorted(known - set(files)) if str(path / name) not in others]
    if len(set(files)) < len(files) or unlisted:
        raise ValueError(
            f"{file} must have one line for each image in {path}, got {len(files)} lines for {len(set(files))} "
            f"images, and none for {shorten(unlisted)}."
        )
    return columns, files


def load_hub_images(
    name: str, config_name: str | None = None, token: str | None = None, cache_dir: str | None = None
) -> tuple[Dataset, Dataset | None]:
    """Return the splits "train" and "validation" (else "valid", "val", "test", None) of a data set of the Hub.

    `name` may be a folder that `load_dataset` reads. `ValueError` if it cannot be reached or has no "train" split.
    """
    try:
        splits = load_dataset(name, config_name, token=token, cache_dir=cache_dir)
    except (OSError, ValueError, RuntimeError) as error:
        # offline, a misspelt id, a missing configuration, or (RuntimeError) a set that is a script, which is not run:
        # only the message of `datasets` tells them apart
        raise ValueError(
            f"The data set {name!r} could not be loaded: {error} Give the id of a data set of the Hub (which needs a "
            "network or a filled cache), `scenes`, the folder of a set as `data_dir`, or image folders as `train_dir`."
        ) from error
    if "train" not in splits:
        raise ValueError(f"The data set {name!r} has no split `train`, only {sorted(splits)}.")
    if os.path.isdir(name) and splits["train"].builder_name == "imagefolder":
        raise ValueError(
            f"{name!r} holds images in folders, and is no data set of Parquet files. Give the folders whose "
            f"subfolders are the classes: `--train_dir {os.path.join(name, 'train')}`, and `--validation_dir`."
        )
    evaluation = next((splits[split] for split in ("validation", "valid", "val", "test") if split in splits), None)
    return splits["train"], evaluation
