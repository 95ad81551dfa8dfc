# SPDX-License-Identifier: Apache-2.0
"""Images of one's own with masks, boxes or classes, in a folder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from transformers.utils import logging

from ..files import list_files
from ..masks import binary_mask
from .annotation_files import (
    as_boxes,
    enumerate_lines,
    order_classes,
    parse_numbers,
    read_mask_image,
    read_rgb,
    require_directory,
    split_fields,
)
from .examples import EvaluationSet, Example


__all__ = ["AnnotatedFolder"]

logger = logging.get_logger(__name__)

_LAYOUT = (
    "Expected `images/` with the images, and at least one of `masks/` (a PNG of the same name for each), `boxes.csv` "
    "(image,xmin,ymin,xmax,ymax), `labels.csv` (image,label), or one folder per class inside `images/`."
)
_BOX_COLUMNS = ("xmin", "ymin", "xmax", "ymax")
_MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")  # without loss: JPEG would blur 0 and 1 into each other


class AnnotatedFolder(EvaluationSet):
    """A folder of images, all annotated in the same ways; provides those ways.

    ::

        my_data/
          images/a.jpg  images/b.png ...       or images/<class>/a.jpg; without `images`, my_data/<class>/a.jpg
          masks/a.png   masks/b.png ...        optional: 0 is background, anything else foreground
          boxes.csv                            optional: image,xmin,ymin,xmax,ymax[,label]; a line per box
          labels.csv                           optional: image,label

    - **Masks** have the size of their image and are at the same place below `masks`, or directly in it. Palette images
      count by index, coloured ones by "not black". PNG, BMP or TIFF, never JPEG.
    - **Boxes** are half-open pixels that count from 0: a box of the whole image is 0,0,width,height.
    - **Labels** are names, or numbers. They come from `labels.csv`; else from the `label` column of `boxes.csv`, if
      all boxes of each image agree; else from the folders. `class_names` is sorted: numbers by value.
    - `image` in the lists is the path below `images`, or the file name alone if it is unique.
    - `ignore_value` is the value in the masks of pixels that do not count, e.g. 255 or 128.
    """

    def __init__(self, path: str | os.PathLike, ignore_value: int | None = None) -> None:
        self.root = require_directory(path, "the folder of images and annotations")
        self.image_dir = self.root / "images" if (self.root / "images").is_dir() else self.root
        self._ignore_value = ignore_value
        # where images and masks are in the same folder, masks are no images
        in_root = self.image_dir == self.root
        listed = list_files(self.image_dir)
        self._names = [name for name in listed.files if not (in_root and name.startswith("masks/"))]
        if in_root:
            del listed.endings[".csv"]  # the lists
        for note in listed.notes():
            logger.warning(f"{self.image_dir}: {note}")
        if not self._names:
            raise ValueError(f"{self.image_dir} holds no images. {_LAYOUT}")
        self._masks = _match_masks(self._names, self.root / "masks") if (self.root / "masks").is_dir() else None
        self._boxes, box_labels = _read_boxes(self.root / "boxes.csv", self._names)
        labels = _read_labels(self.root / "labels.csv", self._names) or box_labels or self._label_by_folder()
        classes = order_classes(labels.values()) if labels else None
        positions = {name: index for index, name in enumerate(classes or ())}
        self._labels = {name: positions[label] for name, label in labels.items()} if labels else None
        found = {"mask": self._masks, "boxes": self._boxes, "label": self._labels}
        provides = [annotation for annotation, value in found.items() if value is not None]
        if not provides:
            raise ValueError(f"{self.root} holds {len(self._names)} images and no annotations of them. {_LAYOUT}")
        super().__init__(self.root.resolve().name, provides, classes)

    def _label_by_folder(self) -> dict[str, str] | None:
        """Return the first folder of each image, or None if the images are in none."""
        nested = {name: name.split("/")[0] for name in self._names if "/" in name}
        stray = [name for name in self._names if name not in nested]
        if nested and stray:
            raise ValueError(
                f"{len(nested)} images are in folders of {self.image_dir}, which would be their classes, but "
                f"{len(stray)} are not, e.g. {stray[0]}. Move them, or list all classes in {self.root / 'labels.csv'}."
            )
        return nested or None

    def __len__(self) -> int:
        return len(self._names)

    def _identity(self) -> Iterable[object]:
        files = [self.image_dir / name for name in self._names]
        files += [self.root / "masks" / name for name in (self._masks or {}).values()]
        boxes = {name: boxes.tolist() for name, boxes in (self._boxes or {}).items()}
        # size and time instead of the content: a fingerprint must not read every image
        stamps = [
            (file.relative_to(self.root).as_posix(), file.stat().st_size, file.stat().st_mtime_ns) for file in files
        ]
        return stamps, boxes, self._labels, self._ignore_value

    def _read(self, index: int) -> Example:
        name = self._names[index]
        image = read_rgb(self.image_dir / name)
        mask = None
        if self._masks is not None:
            path = self.root / "masks" / self._masks[name]
            mask = binary_mask(read_mask_image(path), str(path), self._ignore_value)
        boxes = None if self._boxes is None else self._boxes[name].copy()
        if boxes is not None and not ((boxes >= 0) & (boxes <= (*image.size, *image.size))).all():
            raise ValueError(
                f"The boxes of {name!r} in {self.root / 'boxes.csv'} must lie inside the image of {image.width} x "
                f"{image.height} pixels, got {boxes.tolist()}. Are they from a copy of another size?"
            )
        label = None if self._labels is None else self._labels[name]
        return Example(name, image, label=label, mask=mask, boxes=boxes)


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]


def _match_masks(names: list[str], folder: Path) -> dict[str, str]:
    """Return the mask file of each image, or raise."""
    masks: dict[str, str] = {}
    for file in list_files(folder, _MASK_SUFFIXES).files:
        if _stem(file) in masks:
            raise ValueError(f"{folder} holds two masks of one image: {masks[_stem(file)]} and {file}. Remove one.")
        masks[_stem(file)] = file
    owners: dict[str, str] = {}
    matched = {}
    for name in names:
        # first the same place below `masks`, then directly in it
        stem = _stem(name) if _stem(name) in masks else _stem(name).rpartition("/")[2]
        if stem not in masks:
            continue
        if stem in owners:
            raise ValueError(
                f"{owners[stem]} and {name} use the same mask {folder / masks[stem]}. Rename one of them."
            )
        owners[stem], matched[name] = name, masks[stem]
    if not matched and list_files(folder, (".jpg", ".jpeg")).files:
        raise ValueError(f"The masks in {folder} are JPEG, which does not keep their values. Save them as PNG.")
    missing = [name for name in names if name not in matched]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(names)} images have no mask in {folder}; for {missing[0]} it would be "
            f"{_stem(missing[0])}.png. Add the masks, or take these images out."
        )
    left = sorted(set(masks.values()) - set(matched.values()))
    if left:
        logger.warning(f"{folder}: {len(left)} masks belong to no image: {', '.join(left[:10])}.")
    return matched


def _read_csv(path: Path, columns: tuple[str, ...], names: list[str]) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yield (place for errors, image, fields by column) of the lines of a list."""
    lines = ((where, split_fields(line, where)) for where, line in enumerate_lines(path))
    _, header = next(lines)
    twice = [column for column in header if header.count(column) > 1]
    if twice:
        raise ValueError(f"{path} must have each column once, got {twice[0]!r} {header.count(twice[0])} times.")
    if not {"image", *columns} <= set(header):
        raise ValueError(f"{path} must begin with a line `{','.join(('image', *columns))}`, got `{','.join(header)}`.")
    bases = Counter(name.rpartition("/")[2] for name in names)
    # by file name where that occurs once; a full path wins over a file name of the same text
    known = {base: name for name in names if bases[base := name.rpartition("/")[2]] == 1} | {
        name: name for name in names
    }
    for where, fields in lines:
        if len(fields) != len(header):
            raise ValueError(f"{where} must hold {len(header)} fields like the first line, got {','.join(fields)!r}.")
        row = dict(zip(header, fields, strict=True))
        name = known.get(row["image"])
        if name is None:
            raise ValueError(
                f"{where} must name an image by its path below the image folder, or by a file name that occurs once "
                f"there, got {row['image']!r}."
            )
        yield where, name, row


def _read_boxes(path: Path, names: list[str]) -> tuple[dict[str, np.ndarray] | None, dict[str, str] | None]:
    """Return the boxes by image, and the labels where the boxes of each image agree on one; None where there are none.

    An image without a box is an error: forgotten lines are likelier than images of nothing.
    """
    if not path.exists():
        return None, None
    boxes: dict[str, list[list[float]]] = {}
    labels: dict[str, set[str]] = {}
    for where, image, row in _read_csv(path, _BOX_COLUMNS, names):
        corners = parse_numbers([row[column] for column in _BOX_COLUMNS], 4, where)
        boxes.setdefault(image, []).extend(as_boxes([corners], where).tolist())
        labels.setdefault(image, set()).add(row.get("label", ""))
    _check_complete(path, boxes, names)
    # an image has one class: labels that differ between its boxes are classes of objects, not of the image
    agreed = all(len(values) == 1 and "" not in values for values in labels.values())
    return (
        {name: as_boxes(value, str(path)) for name, value in boxes.items()},
        {name: next(iter(values)) for name, values in labels.items()} if agreed else None,
    )


def _read_labels(path: Path, names: list[str]) -> dict[str, str] | None:
    """Return the class name by image, or None without a list."""
    if not path.exists():
        return None
    labels: dict[str, str] = {}
    for where, image, row in _read_csv(path, ("label",), names):
        if not row["label"] or labels.get(image, row["label"]) != row["label"]:
            raise ValueError(f"{where} must hold the one class of {image}, got {row['label']!r}.")
        labels[image] = row["label"]
    _check_complete(path, labels, names)
    return labels


def _check_complete(path: Path, listed: dict, names: list[str]) -> None:
    """Raise if a list has no line for some image."""
    missing = [name for name in names if name not in listed]
    if missing:
        raise ValueError(
            f"{path} has no line for {len(missing)} of {len(names)} images, e.g. {missing[0]}. Add them, or take "
            "these images out."
        )
