# SPDX-License-Identifier: Apache-2.0
"""Imagenette and Imagewoof: ten classes of ImageNet each, as fast.ai packs them, with boxes where these are listed."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
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
    read_rgb,
    require_directory,
    require_file,
    split_fields,
)
from .examples import Example, LabelledFiles


__all__ = ["Imagenette"]

# by wnid, the number of WordNet that ImageNet calls a class by
_CLASSES: dict[str, dict[str, str]] = {
    "imagenette": {
        "n01440764": "tench",
        "n02102040": "English springer",
        "n02979186": "cassette player",
        "n03000684": "chain saw",
        "n03028079": "church",
        "n03394916": "French horn",
        "n03417042": "garbage truck",
        "n03425413": "gas pump",
        "n03445777": "golf ball",
        "n03888257": "parachute",
    },
    "imagewoof": {
        "n02086240": "Shih-Tzu",
        "n02087394": "Rhodesian ridgeback",
        "n02088364": "beagle",
        "n02089973": "English foxhound",
        "n02093754": "Border terrier",
        "n02096294": "Australian terrier",
        "n02099601": "golden retriever",
        "n02105641": "Old English sheepdog",
        "n02111889": "Samoyed",
        "n02115641": "dingo",
    },
}
_PARTS = ("train", "val")
_PUBLISHED_SIZES = {
    "imagenette": {"train": 9469, "val": 3925},
    "imagewoof": {"train": 9025, "val": 3929},
}
_COLUMNS = ("file", "wnid", "width", "height", "xmin", "ymin", "xmax", "ymax")


class Imagenette(LabelledFiles):
    """Photographs of ten classes of ImageNet; provides `label`, and `boxes` with a list of boxes.

    Args:
        root: Folder such as `imagenette2-320` with `train/<class>/` and `val/<class>/`, or the folder of the class
            folders itself. These are named by wnid (n01440764) or by class (tench).
        variant: "imagenette" or "imagewoof".
        split: "train" or "val"; `None` is "val", or all images where `root` holds the class folders itself.
        boxes_file: CSV with the columns `file,wnid,width,height,xmin,ymin,xmax,ymax`, a line per box. The set then
            holds the files that it names only, found by name in the split, or without one in both.

    Source: Imagenette 2 and Imagewoof 2 of fastai/imagenette; boxes of ILSVRC, in pixels of the original image of
    width x height, which count from 0 and include their last pixel: xmax and ymax gain 1 here. The boxes are scaled to
    the stored file, which may be a resized or squashed copy, but not a crop.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        variant: str = "imagenette",
        split: str | None = None,
        boxes_file: str | os.PathLike | None = None,
    ) -> None:
        if variant not in _CLASSES or split not in (None, *_PARTS):
            name, value, known = ("split", split, _PARTS) if variant in _CLASSES else ("variant", variant, _CLASSES)
            raise ValueError(f"`{name}` must be one of {', '.join(known)}, got {value!r}.")
        provides = {"label"} if boxes_file is None else {"label", "boxes"}
        super().__init__(variant, provides, list(_CLASSES[variant].values()))
        self._wnids = list(_CLASSES[variant])
        self.root = require_directory(root, f"{variant}2 as fast.ai packs it, or the folder of its class folders")
        parts = [part for part in _PARTS if (self.root / part).is_dir()]
        if boxes_file is None or split is not None:
            # without any part the folder holds the classes itself, and then has no split
            parts = [split or "val"] if split or parts else []
            self.published_size = _PUBLISHED_SIZES[variant].get("".join(parts)) if boxes_file is None else None
        content = f"a part of {variant}2, with one folder per class"
        places = [require_directory(self.root / part, content) for part in parts] or [self.root]
        found = [file for place in places for file in self._list(place)]
        if not found:
            raise ValueError(f"{', '.join(map(str, places))} holds no images of {variant} in class folders.")
        self._boxed: list[_Boxed] | None = None
        if boxes_file is not None:
            found, self._boxed = self._choose(found, require_file(boxes_file, f"boxes, as {','.join(_COLUMNS)}"))
        self.labels = [label for label, _ in found]
        self.files = [path for _, path in found]
        # by wnid, whatever the folders are called
        self._ids = [f"{self._wnids[label]}/{path.name}" for label, path in found]
        check_unique((f"{path},", name) for path, name in zip(self.files, self._ids, strict=True))

    def _list(self, place: Path) -> list[tuple[int, Path]]:
        """Return class and path of the images in the class folders of a place, in the order of the classes."""
        folders = [*enumerate(self._wnids), *enumerate(map(_plain, self.class_names or ()))]
        labels = {name: label for label, name in folders}
        names = list_files(place).files
        for name in names:
            if "/" not in name or _plain(name.split("/")[0]) not in labels:
                raise ValueError(
                    f"The folders in {place} must be called {self._wnids[0]} or {(self.class_names or [''])[0]!r} and "
                    f"so on, like the classes of {self.name}, and hold all images; got {name}."
                )
        return sorted((labels[_plain(name.split("/")[0])], place / name) for name in names)

    def _choose(self, found: list[tuple[int, Path]], path: Path) -> tuple[list[tuple[int, Path]], list[_Boxed]]:
        """Return the images that a list of boxes names, in its order, and their boxes."""
        boxed = _read_boxes(path, self._wnids)
        check_present(boxed, [file.name for _, file in found], self.root, "images with boxes")
        listed = [(label, file) for label, file in found if file.name in boxed]
        check_unique((f"{file},", file.name) for _, file in listed)
        for label, file in listed:
            if label != boxed[file.name].label:
                raise ValueError(
                    f"{path} gives {file.name} the class {self._wnids[boxed[file.name].label]}, but it is {file}."
                )
        by_name = {file.name: (label, file) for label, file in listed}
        return [by_name[name] for name in boxed], list(boxed.values())

    def _identity(self) -> Iterable[object]:
        return self._ids, self._boxed

    def _read(self, index: int) -> Example:
        image, boxes = read_rgb(self.files[index]), None
        if self._boxed is not None:
            item = self._boxed[index]
            # first times the size of the file, so that a box of the whole image ends exactly with it
            boxes = as_boxes(item.boxes, self._ids[index]) * np.tile(image.size, 2) / np.tile(item.size, 2)
        return Example(self._ids[index], image, label=self.labels[index], boxes=boxes)


@dataclass
class _Boxed:
    """Class, size of the original as (width, height), and half-open boxes in its pixels of one image."""

    label: int
    size: tuple[float, float]
    boxes: list[list[float]] = field(default_factory=list)


def _plain(name: str) -> str:
    """Return the name of a class folder without what programs change in it."""
    return name.lower().replace("_", " ")


def _read_boxes(path: Path, wnids: list[str]) -> dict[str, _Boxed]:
    """Return the boxes by file name in the order of the list."""
    lines = ((where, split_fields(line, where)) for where, line in enumerate_lines(path))
    where, header = next(lines)
    if header != list(_COLUMNS):
        raise ValueError(f"{path} must begin with a line `{','.join(_COLUMNS)}`, got {quote(','.join(header))}.")
    images: dict[str, _Boxed] = {}
    for where, (name, *fields) in lines:
        wnid, numbers = "".join(fields[:1]), parse_numbers(fields[1:], 6, where)
        if wnid not in wnids:
            raise ValueError(f"{where} must name one of the classes {', '.join(wnids)}, got {quote(wnid)}.")
        (width, height), (x0, y0, x1, y1) = numbers[:2], numbers[2:]
        if width < 1 or height < 1:
            raise ValueError(f"{where} must hold width and height of the original image, got {width:g} x {height:g}.")
        item = images.setdefault(name, _Boxed(wnids.index(wnid), (width, height)))
        if (item.label, item.size) != (wnids.index(wnid), (width, height)):
            raise ValueError(f"{where} must agree with the earlier lines about {name} in wnid, width and height.")
        # the last pixel is included in the file, and excluded here
        item.boxes += as_boxes([(x0, y0, x1 + 1, y1 + 1)], where).tolist()
    if not images:
        raise ValueError(f"{path} holds no boxes after its first line.")
    return images
