# SPDX-License-Identifier: Apache-2.0
"""Images with classes from folders or from the Hub, as `datasets` tables."""

from __future__ import annotations

import glob
import os
from pathlib import Path

from datasets import Dataset, Image, load_dataset

from .labels import Labels


__all__ = ["load_hub_images", "load_image_folder"]


def load_image_folder(directory: str | os.PathLike) -> Dataset:
    """Return the images below a folder, one subfolder per class, as a table.

    It has `image` and `label` (the sorted names of the subfolders), and the columns of a `metadata.csv` or
    `metadata.jsonl` where there is one. `ValueError` if there are no images, or not in subfolders.
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
            f"Images must be in one subfolder per class, but {len(stray)} are in {path} itself, e.g. {stray[0]}."
        )
    labels = Labels.from_folders(part[0] for part in parts)
    return table.add_column("label", [labels.encode(part[0]) for part in parts], feature=labels.feature)


def load_hub_images(
    name: str, config_name: str | None = None, token: str | None = None, cache_dir: str | None = None
) -> tuple[Dataset, Dataset | None]:
    """Return the splits "train" and "validation" (else "valid", "val", "test", None) of a data set of the Hub.

    `name` may be a folder that `load_dataset` reads. `ValueError` if it cannot be reached or has no "train" split.
    """
    try:
        splits = load_dataset(name, config_name, token=token, cache_dir=cache_dir)
    except (OSError, ValueError) as error:
        # offline, a misspelt id, or a missing configuration: only the message of `datasets` tells them apart
        raise ValueError(
            f"The data set {name!r} could not be loaded: {error} Give the id of a data set of the Hub (which needs a "
            "network or a filled cache), `scenes`, or image folders with `train_dir`."
        ) from error
    if "train" not in splits:
        raise ValueError(f"The data set {name!r} has no split `train`, only {sorted(splits)}.")
    evaluation = next((splits[split] for split in ("validation", "valid", "val", "test") if split in splits), None)
    return splits["train"], evaluation
