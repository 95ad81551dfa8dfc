# SPDX-License-Identifier: Apache-2.0
"""Explanations as annotations that labelling tools open: COCO, LabelMe and Pascal VOC."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np

from ..console.output_files import replaced, write_text
from ..visualization import outline_segments
from ..visualization.text import printable


__all__ = ["AnnotationFiles", "encode_rle", "trace_polygons"]

Array = np.ndarray
Point = tuple[int, int]


def encode_rle(mask: Array) -> dict[str, Any]:
    """Return a mask as the run lengths of COCO: column by column, the number of background pixels first.

    Args:
        mask: `(height, width)`, bool.

    Returns:
        `size`, [height, width], and `counts`, which `pycocotools.mask.frPyObjects` reads.
    """
    flat = np.asarray(mask, dtype=bool).ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff([0, *changes.tolist(), flat.size]).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[:1].any() else counts}


def trace_polygons(mask: Array) -> list[list[Point]]:
    """Return the outer outline of every part of a mask, clockwise, as `(x, y)` in pixel edges; holes are filled.

    Parts that touch at a corner only are parts of their own. `mask` is `(height, width)`, bool.
    """
    inside = np.asarray(mask, dtype=bool)
    lines: dict[Point, list[Point]] = {}
    for (x0, y0), (x1, y1) in outline_segments(inside):
        # directed so that the mask lies to the right: on top of it to the right, on its left side upwards
        is_forward = inside[y0, x0] if y0 == y1 and y0 < inside.shape[0] else False
        if x0 == x1:
            is_forward = not (x0 < inside.shape[1] and inside[y0, x0])
        start, stop = ((x0, y0), (x1, y1)) if is_forward else ((x1, y1), (x0, y0))
        lines.setdefault(start, []).append(stop)
    polygons = []
    while lines:
        polygon = [next(iter(lines))]
        while polygon[-1] in lines:
            polygon.append(_take_next(lines, polygon))
        area = sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairwise(polygon))
        if area > 0:  # around a hole the direction is the other one
            polygons.append(polygon[:-1])
    return polygons


def _take_next(lines: dict[Point, list[Point]], polygon: list[Point]) -> Point:
    """Remove and return the end of the line that goes on from the last point; to the right where two do."""
    x, y = polygon[-1]
    ends = lines[x, y]
    if len(ends) == 2 and len(polygon) > 1:
        came_x, came_y = x - polygon[-2][0], y - polygon[-2][1]
        ends.sort(key=lambda end: came_x * (end[1] - y) - came_y * (end[0] - x))  # left turns first
    stop = ends.pop()
    if not ends:
        del lines[x, y]
    return stop


class AnnotationFiles:
    """Writer of the masks and boxes of explained images; one annotation per image, none where nothing was found.

    Of a multi-label model one per object.

    Attributes:
        target: `OUTPUT_DIR/coco.json`, or a folder of one file per image, `OUTPUT_DIR/labelme` or `OUTPUT_DIR/voc`.

    Raises:
        ValueError: If there are annotations already, which may have been corrected by hand.
    """

    def __init__(self, kind: Literal["coco", "labelme", "voc"], output_dir: Path, class_names: Mapping[int, str]):
        self.kind = kind
        self.target = output_dir / ("coco.json" if kind == "coco" else kind)
        if self.target.is_file() or (self.target.is_dir() and any(self.target.iterdir())):
            raise ValueError(
                f"{self.target} must not exist yet: its annotations may have been corrected by hand. Choose another "
                "--output_dir, or remove it first."
            )
        self._categories = {name: index for index, name in reversed(sorted(class_names.items()))}
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def add(self, path: Path, name: str, result: Mapping[str, Any]) -> None:
        """Take the explanation of an image; LabelMe and VOC files are written at once.

        Args:
            path: The image file.
            name: Name of the file to write, without its ending.
            result: The result of the patch-explanation pipeline, with maps of the image's size.
        """
        # a [CLS] classifier predicts a class of an image without foreground, too
        objects = [
            found
            for found in result.get("objects", [result])
            if found["box"] is not None and found["label"] in self._categories
        ]
        size = result["mask"].shape
        if self.kind == "coco":
            self._add_to_coco(path, size, objects)
        elif objects and self.kind == "labelme":
            content = _labelme(path, self.target, size, objects)
            write_text(self.target / f"{name}.json", json.dumps(content, indent=1) + "\n")
        elif objects:
            with replaced(self.target / f"{name}.xml") as temporary:
                _voc(path, size, objects).write(temporary, encoding="utf-8", xml_declaration=True)

    def write(self) -> None:
        """Write what has to wait for all images: the file of COCO."""
        if self.kind != "coco":
            return
        categories = [{"id": index, "name": name, "supercategory": ""} for name, index in self._categories.items()]
        content = {
            "info": {"description": "Masks and boxes predicted by an ICE model (transformers-ice)"},
            "licenses": [],
            "images": self._images,
            "annotations": self._annotations,
            "categories": categories[::-1],
        }
        write_text(self.target, json.dumps(content) + "\n")

    def _add_to_coco(self, path: Path, size: tuple[int, int], objects: Sequence[Mapping[str, Any]]) -> None:
        number = len(self._images) + 1
        height, width = size
        self._images.append({"id": number, "file_name": str(path), "height": height, "width": width})
        for found in objects:
            if not found["mask"].any():  # an image so small that a patch lies between its pixels
                continue
            # around the whole mask, as COCO has it; the explanation's box is that of its largest part
            rows, columns = (found["mask"].any(axis=axis).nonzero()[0] for axis in (1, 0))
            left, top = int(columns[0]), int(rows[0])
            annotation = {
                "id": len(self._annotations) + 1,
                "image_id": number,
                "category_id": self._categories[found["label"]],
                "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
                "area": int(found["mask"].sum()),
                "iscrowd": 0,
                "segmentation": encode_rle(found["mask"]),
                "score": round(float(found["score"]), 6),
            }
            self._annotations.append(annotation)


def _labelme(path: Path, folder: Path, size: tuple[int, int], objects: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    height, width = size
    shapes = []
    for group, found in enumerate(objects, start=1):  # the parts of an object are one group
        shape = {"label": found["label"], "group_id": group, "description": "", "shape_type": "polygon", "flags": {}}
        shapes += [{**shape, "points": [list(point) for point in part]} for part in trace_polygons(found["mask"])]
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": os.path.relpath(path, folder),  # LabelMe looks for the image from its own file
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }


def _voc(path: Path, size: tuple[int, int], objects: Sequence[Mapping[str, Any]]) -> ElementTree.ElementTree:
    height, width = size
    things = []
    for found in objects:
        left, top, right, bottom = (int(found["box"][name]) for name in ("xmin", "ymin", "xmax", "ymax"))
        # pixels are counted from 1 in Pascal VOC, and the last one belongs to the box
        box = {"xmin": left + 1, "ymin": top + 1, "xmax": right, "ymax": bottom}
        thing = {"name": found["label"], "pose": "Unspecified", "truncated": 0, "difficult": 0, "bndbox": box}
        things.append(thing)
    content = {
        "folder": path.parent.name,
        "filename": path.name,
        "path": path,
        "size": {"width": width, "height": height, "depth": 3},
        "segmented": 0,
        "object": things,
    }
    root = ElementTree.Element("annotation")
    _add_elements(root, content)
    tree = ElementTree.ElementTree(root)
    ElementTree.indent(tree)
    return tree


def _add_elements(parent: ElementTree.Element, content: Mapping[str, Any]) -> None:
    for name, values in content.items():
        for value in values if isinstance(values, list) else [values]:
            element = ElementTree.SubElement(parent, name)
            if isinstance(value, Mapping):
                _add_elements(element, value)
            else:
                element.text = printable(value)
