# SPDX-License-Identifier: Apache-2.0
"""PASCAL VOC from its devkit: class maps for segmentation, boxes for object discovery, classes of images."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import numpy as np

from ..files import list_files
from .annotation_files import (
    as_boxes,
    check_present,
    check_unique,
    enumerate_lines,
    parse_numbers,
    read_mask_image,
    read_rgb,
    require_directory,
    require_file,
)
from .examples import EvaluationSet, Example, ImageClasses


__all__ = ["VOC_CLASSES", "VocDetection", "VocSegmentation", "read_voc_classes"]

_NAMES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow "
    "diningtable dog horse motorbike person pottedplant sheep sofa train tvmonitor"
)
VOC_CLASSES: tuple[str, ...] = tuple(_NAMES.split())

_VOID = 255  # border pixels and objects that are too hard to label
_DISCOVERY_SIZES = {"2007": 5011}  # `trainval`, the split that object discovery is scored on


class VocSegmentation(EvaluationSet):
    """Images of a list in `ImageSets/Segmentation` with their class maps; provides `segmentation` and `mask` (any).

    `root` is the folder `VOC<year>`, or one that holds it or `VOCdevkit/VOC<year>`. Source: the devkit's palette
    images, where 0 is background, 1 to 20 are the classes and 255 is void (-1 here).
    """

    def __init__(self, root: str | os.PathLike, year: str | int = "2012", split: str = "val") -> None:
        super().__init__(f"voc{year}-segmentation", {"mask", "segmentation"}, VOC_CLASSES)
        self.root = _find_devkit(root, str(year))
        self._ids = _read_split(self.root, "Segmentation", split)
        _check_files(self.root, "JPEGImages", ".jpg", self._ids, "images")
        _check_files(self.root, "SegmentationClass", ".png", self._ids, "class maps")

    def __len__(self) -> int:
        return len(self._ids)

    def _identity(self) -> Iterable[object]:
        return self._ids

    def _read(self, index: int) -> Example:
        name = self._ids[index]
        image = read_rgb(self.root / "JPEGImages" / f"{name}.jpg")
        # (height, width), int16: 0 background, 1 to 20 classes, -1 void
        segmentation = _read_class_map(self.root / "SegmentationClass" / f"{name}.png")
        # any class is foreground; void (-1) is ignored in both maps
        return Example(name, image, mask=np.minimum(segmentation, 1).astype(np.int8), segmentation=segmentation)


class VocDetection(EvaluationSet):
    """Images of a list in `ImageSets/Main` with the boxes of their objects, of whatever class; provides `boxes`.

    `root` is the folder `VOC<year>`, or one that holds it or `VOCdevkit/VOC<year>`. `keep_hard=False` drops objects
    that are difficult or truncated, and then the images without any object; all annotations are read for that.

    Source: `datasets.py` of valeoai/LOST, whose `--no_hard` is `keep_hard=False`; boxes become half-open and 0-based.
    """

    def __init__(
        self, root: str | os.PathLike, year: str | int = "2007", split: str = "trainval", keep_hard: bool = True
    ) -> None:
        if not isinstance(keep_hard, bool):  # the text "False" of a command line would count as true
            raise ValueError(f"`keep_hard` must be True or False, got {keep_hard!r}.")
        published = _DISCOVERY_SIZES.get(str(year)) if keep_hard and split == "trainval" else None
        super().__init__(f"voc{year}-detection", {"boxes"}, VOC_CLASSES, published)
        self.root, self._keep_hard = _find_devkit(root, str(year)), keep_hard
        self._ids = _read_split(self.root, "Main", split)
        _check_files(self.root, "JPEGImages", ".jpg", self._ids, "images")
        _check_files(self.root, "Annotations", ".xml", self._ids, "annotations")
        if not keep_hard:
            self._ids = [name for name in self._ids if self._objects(name)]

    def __len__(self) -> int:
        return len(self._ids)

    def _identity(self) -> Iterable[object]:
        return self._keep_hard, self._ids

    def _objects(self, name: str) -> list[VocObject]:
        """Return the objects of an image that count."""
        objects = read_voc_objects(self.root / "Annotations" / f"{name}.xml")
        return [item for item in objects if self._keep_hard or not (item.difficult or item.truncated)]

    def _read(self, index: int) -> Example:
        name = self._ids[index]
        boxes = as_boxes([item.box for item in self._objects(name)], name)
        return Example(name, read_rgb(self.root / "JPEGImages" / f"{name}.jpg"), boxes=boxes)


def read_voc_classes(root: str | os.PathLike, split: str = "train", year: str | int = "2012") -> ImageClasses:
    """Return the images of a list in `ImageSets/Main` with the classes of their objects; all annotations are read.

    Objects marked as difficult do not count, as in the lists of single classes (`cat_train.txt`), which have 0 there.
    An image may have no class.

    Args:
        root: The folder `VOC<year>`, or one that holds it or `VOCdevkit/VOC<year>`.
        split: Name of the list.
        year: Year of the devkit.

    Raises:
        ValueError: If files are missing or damaged, or an object is of another class.
    """
    folder = _find_devkit(root, str(year))
    names = _read_split(folder, "Main", split)
    _check_files(folder, "JPEGImages", ".jpg", names, "images")
    _check_files(folder, "Annotations", ".xml", names, "annotations")
    labels = []
    for name in names:
        path = folder / "Annotations" / f"{name}.xml"
        found = {item.name for item in read_voc_objects(path) if not item.difficult}
        unknown = sorted(found - set(VOC_CLASSES))
        if unknown:
            raise ValueError(f"{path}: {unknown[0]!r} must be one of the classes {', '.join(VOC_CLASSES)}.")
        labels.append(sorted(map(VOC_CLASSES.index, found)))
    return ImageClasses([folder / "JPEGImages" / f"{name}.jpg" for name in names], labels, VOC_CLASSES)


def _find_devkit(root: str | os.PathLike, year: str) -> Path:
    """Return the folder of a year, or raise."""
    if not re.fullmatch(r"\d{4}", year):
        raise ValueError(f"`year` must be a year such as 2007 or 2012, got {year!r}.")
    content = "the devkit of PASCAL VOC holds JPEGImages, ImageSets, Annotations and SegmentationClass of each year"
    folder = require_directory(root, content)
    candidates = [folder / "VOCdevkit" / f"VOC{year}", folder / f"VOC{year}"]
    # the folder itself, unless its name is that of another year
    if not re.fullmatch(r"VOC\d{4}", folder.resolve().name) or folder.resolve().name == f"VOC{year}":
        candidates.append(folder)
    found = next((path for path in candidates if (path / "JPEGImages").is_dir()), None)
    return found or require_directory(folder / "VOCdevkit" / f"VOC{year}" / "JPEGImages", f"images; {content}").parent


def _read_split(root: Path, task: str, split: str) -> list[str]:
    """Return the image names of a list of the devkit."""
    folder = require_directory(root / "ImageSets" / task, "the devkit keeps its lists of images here")
    path = folder / f"{split}.txt"
    if not path.is_file():
        # lists of single classes, e.g. cat_val.txt, have a second column and are no splits
        splits = sorted(file.stem for file in folder.glob("*.txt") if "_" not in file.stem)
        raise ValueError(f"`split` must be one of {', '.join(splits) or 'no list at all'} in {folder}, got {split!r}.")
    lines = list(enumerate_lines(path))
    check_unique(lines)
    names = [line for _, line in lines]
    unusual = [name for name in names if not re.fullmatch(r"\w+", name)]
    if unusual:
        raise ValueError(f"{path} must hold one image name a line, got {unusual[0]!r}.")
    return names


def _check_files(root: Path, folder: str, suffix: str, names: Sequence[str], content: str) -> None:
    path = require_directory(root / folder, f"the devkit keeps its {content} here")
    check_present([name + suffix for name in names], list_files(path, {suffix}).files, path, content)


def _read_class_map(path: Path) -> np.ndarray:
    """Return the classes of a palette image, `(height, width)`, int16, void as -1."""
    values = np.asarray(read_mask_image(path))
    if values.ndim != 2 or values.dtype != np.uint8:
        raise ValueError(
            f"{path} must be a palette or grey image of class indices, got {values.dtype} {values.shape}."
        )
    classes = np.where(values == _VOID, -1, values.astype(np.int16))
    if classes.max(initial=0) > len(VOC_CLASSES):
        raise ValueError(f"{path} must hold 0 to {len(VOC_CLASSES)} and {_VOID}, got {classes.max()}.")
    return classes.astype(np.int16)


@dataclass(frozen=True)
class VocObject:
    """An object of a class, its box xyxy in half-open pixels that count from 0, and its marks in the file."""

    name: str
    box: tuple[float, float, float, float]
    difficult: bool
    truncated: bool


def read_voc_objects(path: Path) -> list[VocObject]:
    """Return the objects of an annotation file in their order; parts (head, hands) are none.

    The file's boxes count from 1 and include their last pixel: xmin and ymin lose 1. Marks may be missing.
    """
    root = _parse_xml(require_file(path, "an annotation of PASCAL VOC"))
    if root.tag != "annotation":
        raise ValueError(f"{path} must hold an `annotation`, got `{root.tag}`: it is no annotation of PASCAL VOC.")
    return [_read_object(element, path) for element in root.findall("object")]


def _parse_xml(path: Path) -> Element:
    """Return the root of an XML file; entities, which can grow without bound, need a document type: it is refused."""

    def refuse(*declaration: object) -> None:
        raise ValueError(
            f"{path} declares a document type, which may define entities that grow without bound. Annotations of "
            "PASCAL VOC have none: download the file again from a source you trust."
        )

    builder = TreeBuilder()
    parser = expat.ParserCreate()
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(path.read_bytes(), True)
    except (expat.ExpatError, LookupError, ValueError) as error:
        if str(path) in str(error):
            raise  # a document type
        # ValueError: an encoding of several bytes a letter, which expat does not read
        raise ValueError(f"{path} is no well-formed XML: {error}. Download it again.") from error
    return builder.close()


def _read_object(element: Element, path: Path) -> VocObject:
    """Return one object, its box half-open and from 0."""
    name, bounds = element.findtext("name", "").strip(), element.find("bndbox")
    if not name or bounds is None:
        raise ValueError(f"{path}: an object has no `name` or no `bndbox`. Download the file again.")
    # some files of 2011 and later give coordinates with a fraction
    corners = [bounds.findtext(corner, "") for corner in ("xmin", "ymin", "xmax", "ymax")]
    x0, y0, x1, y1 = parse_numbers(corners, 4, f"{path}: the `bndbox` of {name!r}")
    if x1 < x0 or y1 < y0:
        raise ValueError(f"{path}: the box of {name!r} ends before it begins: {corners}.")
    difficult, truncated = (_read_flag(element, flag, path) for flag in ("difficult", "truncated"))
    return VocObject(name, (x0 - 1, y0 - 1, x1, y1), difficult, truncated)


def _read_flag(element: Element, flag: str, path: Path) -> bool:
    text = element.findtext(flag, "0").strip() or "0"
    if text not in ("0", "1"):
        raise ValueError(f"{path}: `{flag}` must be 0 or 1, got {text!r}.")
    return text == "1"
