# SPDX-License-Identifier: Apache-2.0
"""Caltech-UCSD Birds 200 (2011): 200 kinds of birds with one box, and with masks where those were downloaded."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..files import list_files
from .annotation_files import (
    as_boxes,
    check_present,
    check_unique,
    enumerate_lines,
    parse_numbers,
    quote,
    read_grey_mask,
    read_rgb,
    require_directory,
    require_file,
)
from .examples import EvaluationSet, Example


__all__ = ["Cub"]

_FOLDER = "CUB_200_2011"
_SPLITS = {"train": "1", "test": "0"}
_PUBLISHED_SIZES = {"train": 5994, "test": 5794}


class Cub(EvaluationSet):
    """Bird photographs; provides `label`, `boxes`, and `mask` with the segmentations.

    `root` is the folder `CUB_200_2011` with its text files and `images`, or holds it; `split` is "train" or "test".
    `segmentations` is the folder of the masks, an archive of its own, laid out as `<class>/<image>.png`; by default
    `segmentations` in `root` or next to the text files, where there is one.

    Source: the text files of the set. A box is `x y width height`; like the lists of clovaai/wsolevaluation this takes
    x + width and y + height as its end. Labels count from 0 here. The grey levels of a segmentation count the
    annotators that agree: pixels of at least half of them (128 of 255) are bird.
    """

    def __init__(
        self, root: str | os.PathLike, split: str = "test", segmentations: str | os.PathLike | None = None
    ) -> None:
        if split not in _SPLITS:
            raise ValueError(f"`split` must be one of {', '.join(_SPLITS)}, got {split!r}.")
        given = require_directory(root, f"the unpacked {_FOLDER}")
        self.root = given / _FOLDER if (given / _FOLDER).is_dir() else given
        self._masks = _find_segmentations(given, self.root, segmentations)
        provides = {"label", "boxes"} | ({"mask"} if self._masks else set())
        classes = _read_classes(self.root / "classes.txt")
        super().__init__("cub", provides, classes, _PUBLISHED_SIZES[split])
        self._read_lists(split)
        images = require_directory(self.root / "images", "the photographs, one folder per class")
        check_present(self._paths, list_files(images).files, images, "images")
        if self._masks is not None:
            names = [_mask_name(path) for path in self._paths]
            check_present(names, list_files(self._masks, {".png"}).files, self._masks, "segmentations")

    def _read_lists(self, split: str) -> None:
        """Read names, labels and boxes of a split."""
        paths = _read_table(self.root / "images.txt", "the image names", is_unique=True)
        splits = _read_table(self.root / "train_test_split.txt", "the splits", paths)
        labels = _read_table(self.root / "image_class_labels.txt", "the classes", paths)
        boxes = _read_table(self.root / "bounding_boxes.txt", "the boxes", paths)
        chosen = [key for key in paths if splits[key] == _SPLITS[split]]
        if not chosen:
            raise ValueError(f"{self.root / 'train_test_split.txt'} names no image of the {split} split.")
        self._paths = [paths[key] for key in chosen]
        self._labels = [self._parse_label(labels[key], key) for key in chosen]
        # one box an image, (1, 4) each
        self._boxes = np.concatenate([_parse_box(boxes[key], key, self.root) for key in chosen])

    def _parse_label(self, text: str, key: str) -> int:
        if not (text.isdecimal() and len(text) < 10) or not 1 <= int(text) <= len(self.class_names or ()):
            raise ValueError(
                f"{self.root / 'image_class_labels.txt'}: the class of image {key} must be one of classes.txt, "
                f"1 to {len(self.class_names or ())}, got {quote(text)}."
            )
        # the files count classes from 1
        return int(text) - 1

    def __len__(self) -> int:
        return len(self._paths)

    def _identity(self) -> Iterable[object]:
        return self._paths, self._labels, self._boxes.tolist()

    def _read(self, index: int) -> Example:
        path = self._paths[index]
        return Example(
            path,
            read_rgb(self.root / "images" / path),
            label=self._labels[index],
            mask=None if self._masks is None else read_grey_mask(self._masks / _mask_name(path)),
            boxes=self._boxes[index : index + 1].copy(),
        )


def _find_segmentations(given: Path, root: Path, folder: str | os.PathLike | None) -> Path | None:
    """Return the folder of the masks; the archive is often unpacked next to the images."""
    if folder is not None:
        return require_directory(folder, "the segmentations of CUB, which are an archive of their own")
    return next((path for path in (root / "segmentations", given / "segmentations") if path.is_dir()), None)


def _read_classes(path: Path) -> list[str]:
    """Return the names of the classes 1, 2, ..., in whatever order the lines are."""
    names = _read_table(path, "the class names", is_unique=True)
    numbers = [str(number) for number in range(1, len(names) + 1)]
    if set(names) != set(numbers):
        wrong = next(key for key in names if key not in numbers)
        raise ValueError(f"{path} must number its {len(names)} classes from 1 to {len(names)}, got {wrong!r}.")
    return [names[number] for number in numbers]


def _read_table(
    path: Path, content: str, keys: dict[str, str] | None = None, is_unique: bool = False
) -> dict[str, str]:
    """Return the lines `<id> <text>` of a file of the set, by id; `keys` are the ids there must be."""
    require_file(path, f"{content} of {_FOLDER}")
    table: dict[str, str] = {}
    lines = list(enumerate_lines(path))
    if is_unique:
        check_unique((where, line.partition(" ")[2].strip()) for where, line in lines)
    for where, line in lines:
        key, _, text = line.partition(" ")
        if not text or key in table:
            raise ValueError(f"{where} must be a new id and what belongs to it, got {quote(line)}.")
        table[key] = text.strip()
    missing = [key for key in keys or () if key not in table]
    if missing:
        raise ValueError(
            f"{path} has lines for {len(table)} images, but images.txt names {len(keys or ())}: the image "
            f"{missing[0]} is the first without one. Unpack {_FOLDER} again."
        )
    return table


def _parse_box(text: str, key: str, root: Path) -> np.ndarray:
    """Return `x y width height` as a box, `(1, 4)`."""
    where = f"{root / 'bounding_boxes.txt'}, image {key},"
    x, y, width, height = parse_numbers(text.split(), 4, where)
    return as_boxes([(x, y, x + width, y + height)], where)


def _mask_name(path: str) -> str:
    return path.rpartition(".")[0] + ".png"
