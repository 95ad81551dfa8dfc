# SPDX-License-Identifier: Apache-2.0
"""Images with the lists of boxes and classes that weakly supervised localisation is scored with."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..files import list_files
from .annotation_files import (
    as_boxes,
    check_present,
    check_unique,
    enumerate_lines,
    parse_numbers,
    quote,
    read_rgb,
    require_directory,
    require_file,
)
from .examples import EvaluationSet, Example


__all__ = ["ImageNetBoxes"]


class ImageNetBoxes(EvaluationSet):
    """ImageNet's validation images, or others that come with such lists; provides `boxes`, and `label` if listed.

    Args:
        image_dir: Folder of the images, flat or with a folder per class. A file is found by its listed path, or by
            its name alone where that is unique.
        localization_file: Lines `path,x0,y0,x1,y1`, several for an image with several boxes (`localization.txt` of
            wsolevaluation); or lines `path label x1 y1 x2 y2 ...` (`val_folder_new.txt` of TS-CAM), which bring the
            labels along.
        class_labels_file: Lines `path,label`, labels from 0 (`class_labels.txt`). Lines of other images are ignored.
        image_sizes_file: Lines `path,width,height` of the originals (`image_sizes.txt`). Boxes are pixels of the
            originals, so an image of another size, as in resized copies of ImageNet, is then an error.
        class_names: Names of the classes, if known.
        name: Name of the set: the lists of CUB, CUBV2 and ImageNetV2 have the same form.
    Source: metadata of clovaai/wsolevaluation. The numbers of a box are taken as they are, because the published
    scores were computed from them; the lists do not specify whether the last pixel is included.
    """

    def __init__(
        self,
        image_dir: str | os.PathLike,
        localization_file: str | os.PathLike,
        class_labels_file: str | os.PathLike | None = None,
        image_sizes_file: str | os.PathLike | None = None,
        class_names: Sequence[str] | None = None,
        name: str = "imagenet-boxes",
    ) -> None:
        self.image_dir = require_directory(image_dir, "the images that the list of boxes names")
        path = require_file(localization_file, "the boxes, `localization.txt` of the metadata of wsolevaluation")
        self._list, (self._boxes, listed) = path, _read_boxes(path)
        self._ids = list(self._boxes)
        labels = listed if class_labels_file is None else _read_labels(class_labels_file)
        sizes = None if image_sizes_file is None else _read_sizes(image_sizes_file)
        for table, file in ((labels, class_labels_file), (sizes, image_sizes_file)):
            if table:
                check_present(self._ids, table, Path(file or path), "lines for images with boxes")
        self._labels, self._sizes = labels, sizes
        super().__init__(name, {"boxes", "label"} if labels else {"boxes"}, class_names)
        self._paths = self._locate()

    def _locate(self) -> dict[str, str]:
        """Return the path of each image, relative to the folder."""
        files = list_files(self.image_dir).files
        # the lists write "val/ILSVRC2012_val_00000001.JPEG", but many copies have a folder per class
        by_name: dict[str, str | None] = {}  # None: several files of this name
        for file in files:
            name = file.rpartition("/")[2]
            by_name[name] = None if name in by_name else file
        exact = set(files)
        located = {key: key if key in exact else by_name.get(key.rpartition("/")[2]) for key in self._ids}
        found = {key: file for key, file in located.items() if file is not None}
        check_present(self._ids, found, self.image_dir, "images")
        check_unique((f"{self._list}, {key},", file) for key, file in found.items())
        return found

    def __len__(self) -> int:
        return len(self._ids)

    def _identity(self) -> Iterable[object]:
        return self._labels, [(name, boxes.tolist()) for name, boxes in self._boxes.items()]

    def _read(self, index: int) -> Example:
        image_id = self._ids[index]
        path = self.image_dir / self._paths[image_id]
        image = read_rgb(path)
        if self._sizes is not None and image.size != self._sizes[image_id]:
            raise ValueError(
                f"{path} must have its original size, {self._sizes[image_id]} as (width, height), got {image.size}. "
                "Boxes are pixels of the original: use images that were not resized."
            )
        label = self._labels[image_id] if self._labels else None
        return Example(image_id, image, label=label, boxes=self._boxes[image_id].copy())


def _read_boxes(path: Path) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Return the boxes of the images in the order of the list, and the labels if it holds them."""
    boxes: dict[str, list[list[float]]] = {}
    labels: dict[str, int] = {}
    for where, line in enumerate_lines(path):
        # a line with commas is of wsolevaluation, one with spaces of TS-CAM
        if "," in line:
            key, *corners = line.split(",")
            boxes.setdefault(key, []).append(parse_numbers(corners, 4, where))
        else:
            fields = line.split()
            key, label, corners = fields[0], "".join(fields[1:2]), fields[2:]
            if key in labels:
                raise ValueError(f"{where} names {key} for the second time.")
            labels[key] = _parse_label(label, where)
            # at least four numbers, and a multiple of four: a line with none, or with a part of a box, is refused
            numbers = parse_numbers(corners, max(len(corners) // 4, 1) * 4, where)
            boxes[key] = [numbers[start : start + 4] for start in range(0, len(numbers), 4)]
    if labels and len(labels) != len(boxes):
        raise ValueError(f"{path} mixes lines with commas and lines with spaces; it must be one of the two lists.")
    return {key: as_boxes(value, f"{path}, image {key},") for key, value in boxes.items()}, labels


def _parse_label(text: str, where: str) -> int:
    if not (text.isdecimal() and len(text) < 10):
        raise ValueError(f"{where} must hold a class index after the path, got {quote(text)}.")
    return int(text)


def _read_labels(path: str | os.PathLike) -> dict[str, int]:
    file = require_file(path, "the class of each image, `class_labels.txt` of the metadata of wsolevaluation")
    return _read_values(file, _parse_label)


def _read_sizes(path: str | os.PathLike) -> dict[str, tuple[int, int]]:
    """Return (width, height) by path."""
    file = require_file(path, "the original sizes, `image_sizes.txt` of the metadata of wsolevaluation")
    sizes = _read_values(file, lambda text, where: parse_numbers(text.split(","), 2, where))
    return {key: (int(width), int(height)) for key, (width, height) in sizes.items()}


def _read_values(file: Path, parse: Callable[[str, str], Any]) -> dict[str, Any]:
    """Return what follows the path in each line of a list, by path; a path has one value."""
    values: dict[str, Any] = {}
    for where, line in enumerate_lines(file):
        key, _, text = line.partition(",")
        value = parse(text, where)
        if values.setdefault(key, value) != value:
            raise ValueError(f"{where} must agree with an earlier line about {key}, got {text} after {values[key]}.")
    return values
