# SPDX-License-Identifier: Apache-2.0
"""COCO: the 19,817 images of train2014 on which single-object discovery is scored, and the classes of images."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..files import list_files
from .annotation_files import (
    as_boxes,
    check_present,
    check_unique,
    read_lines,
    read_rgb,
    require_directory,
    require_file,
)
from .examples import EvaluationSet, Example, ImageClasses


__all__ = ["Coco20k", "read_coco_classes"]

_NUM_IMAGES = 19817


class Coco20k(EvaluationSet):
    """Images of COCO with the boxes of all their objects but crowds; provides `boxes`.

    `root` is the folder of the images, or holds it as `train2014` or `images/train2014`. Outlines are dropped while
    `annotation_file` (instances_train2014.json) is parsed, so memory peaks at about its size. `image_list` has one
    name a line; folders in front of the name are ignored (coco_20k_filenames.txt of LOST).

    Source: `datasets.py` of valeoai/LOST: objects with `iscrowd` are dropped; a box `x, y, width, height` becomes xyxy
    and is then rounded. An image may have no box.
    """

    def __init__(
        self, root: str | os.PathLike, annotation_file: str | os.PathLike, image_list: str | os.PathLike
    ) -> None:
        super().__init__("coco20k", {"boxes"}, published_size=_NUM_IMAGES)
        given = require_directory(root, "the images of COCO train2014")
        folders = [given / "train2014", given / "images" / "train2014", given]
        self.image_dir = next(folder for folder in folders if folder.is_dir())
        # some copies of the list repeat names; `dict.fromkeys` keeps the first of each, in order
        names_file = require_file(image_list, "the names of the images of COCO20k, which LOST comes with")
        self._names = list(dict.fromkeys(line.rpartition("/")[2] for line in read_lines(names_file)))
        # an image of the list without an entry in the annotations is an error, one without objects is not
        boxes_file = require_file(annotation_file, "the instances of COCO train2014")
        boxes = _read_boxes(boxes_file, set(self._names))
        check_present(self._names, boxes, boxes_file, "images of the list")
        self._boxes = [boxes[name] for name in self._names]
        check_present(self._names, list_files(self.image_dir).files, self.image_dir, "images")

    def __len__(self) -> int:
        return len(self._names)

    def _identity(self) -> Iterable[object]:
        return self._names, [boxes.tolist() for boxes in self._boxes]

    def _read(self, index: int) -> Example:
        name = self._names[index]
        return Example(name, read_rgb(self.image_dir / name), boxes=self._boxes[index].copy())


def _drop_outlines(record: dict[str, Any]) -> Any:
    """Keep of a JSON object what boxes and classes need; called on each one as soon as it is parsed."""
    if "bbox" in record:
        return {key: record.get(key) for key in ("image_id", "iscrowd", "bbox", "category_id")}
    if "file_name" in record:
        return {key: record.get(key) for key in ("id", "file_name")}
    return {} if "counts" in record else record


def read_coco_classes(root: str | os.PathLike, split: str = "train", year: str | int = "2017") -> ImageClasses:
    """Return the images of `annotations/instances_<split><year>.json` with the classes of their objects, crowds too.

    Classes are in the order of their ids. Images without an object have no class.

    Args:
        root: The folder of `annotations/`, which holds the images as `<split><year>` or `images/<split><year>`.
        split: "train" or "val".
        year: "2017" or "2014".

    Raises:
        ValueError: If files are missing or damaged.
    """
    folder = require_directory(root, "the folder of COCO, with its annotations and images")
    path = require_file(folder / "annotations" / f"instances_{split}{year}.json", f"the instances of {split}{year}")
    images, annotations, categories = _read_instances(path)
    names = {category["id"]: str(category["name"]) for category in categories}
    check_unique((f"{path}, category {key!r},", name) for key, name in names.items())
    numbers = {key: number for number, key in enumerate(sorted(names))}
    found: dict[Any, set[int]] = {key: set() for key in images}
    for item in annotations:
        if item["category_id"] not in numbers:
            raise ValueError(
                f"{path}, an object of image {item['image_id']!r}, must have the id of a category, got "
                f"{item['category_id']!r}."
            )
        found[item["image_id"]].add(numbers[item["category_id"]])
    directories = [folder / f"{split}{year}", folder / "images" / f"{split}{year}"]
    image_dir = next((item for item in directories if item.is_dir()), directories[0])
    require_directory(image_dir, f"the images of {split}{year}")
    check_present(list(images.values()), list_files(image_dir).files, image_dir, "images")
    labels = [sorted(found[key]) for key in images]
    return ImageClasses([image_dir / name for name in images.values()], labels, [names[key] for key in sorted(names)])


def _read_instances(path: Path) -> tuple[dict[Any, str], list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the names of the images by id, the objects, and the categories, all of valid form."""
    try:
        with path.open(encoding="utf-8") as file:
            # the hook drops the outlines object by object: the whole file as Python objects would need gigabytes
            content = json.load(file, object_hook=_drop_outlines)
        images = {image["id"]: image["file_name"].rpartition("/")[2] for image in content["images"]}
        num_images, annotations = len(content["images"]), content["annotations"]
        crowds = {item["iscrowd"] for item in annotations}
        unknown = [item["image_id"] for item in annotations if item["image_id"] not in images]
        categories = [{"id": item["id"], "name": item["name"]} for item in content.get("categories", [])]
        sorted(item["id"] for item in categories)  # ids of one type
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is no annotation file of COCO with `images` and `annotations`: {error!r}. Download it again."
        ) from error
    if len(images) < num_images or unknown:
        wrong = f"an object of image {unknown[0]!r}, which is none of them" if unknown else f"{len(images)} ids"
        raise ValueError(f"{path} must give each of its {num_images} images an id of its own, got {wrong}.")
    check_unique((f"{path}, image {key!r},", name) for key, name in images.items())
    if not all(crowd is None or (isinstance(crowd, int) and crowd in (0, 1)) for crowd in crowds):
        raise ValueError(f"{path}: `iscrowd` must be 0 or 1, got {', '.join(sorted(map(repr, crowds)))}.")
    return images, annotations, categories


def _read_boxes(path: Path, names: set[str]) -> dict[str, np.ndarray]:
    """Return the rounded boxes of some images by name."""
    images, annotations, _ = _read_instances(path)
    boxes: dict[str, list[Sequence[float]]] = {name: [] for name in images.values() if name in names}
    for item in annotations:
        if images[item["image_id"]] in names and not item["iscrowd"]:
            where = f"{path}, an object of image {item['image_id']!r},"
            boxes[images[item["image_id"]]].append(_round_box(item["bbox"], where))
    return {name: as_boxes(value, f"{path}, image {name},") for name, value in boxes.items()}


def _round_box(box: Any, where: str) -> list[float]:
    """Return x, y, width, height as rounded xyxy; the sum is rounded, not its parts."""
    if not (isinstance(box, list) and len(box) == 4 and all(type(value) in (int, float) for value in box)):
        raise ValueError(f"{where} must have a `bbox` of x, y, width and height, got {box!r}.")
    x, y, width, height = box
    return np.round([x, y, x + width, y + height]).tolist()
