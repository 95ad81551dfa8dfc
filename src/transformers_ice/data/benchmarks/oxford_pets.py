# SPDX-License-Identifier: Apache-2.0
"""Oxford-IIIT Pet: cats and dogs of 37 breeds, each image with a trimap of object, border and background."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..files import list_files
from .annotation_files import (
    check_present,
    check_unique,
    enumerate_lines,
    quote,
    read_mask_image,
    read_rgb,
    require_directory,
    require_file,
)
from .examples import Example, LabelledFiles


__all__ = ["OxfordPets"]

_CONTENT = "the archives `images` and `annotations` of Oxford-IIIT Pet, unpacked in one folder"
_SPLITS = ("test", "trainval", "all")
_PUBLISHED_SIZES = {"trainval": 3680, "test": 3669, "all": 7349}
_MASK_OF_TRIMAP = np.array([0, 1, 0, -1], dtype=np.int8)  # of 1 object, 2 background, 3 border; 0 does not occur


class OxfordPets(LabelledFiles):
    """Photographs of cats and dogs; provides `label` (the breed) and `mask`, whose border is ignored.

    Args:
        root: Folder of `images/<name>.jpg`, `annotations/trimaps/<name>.png`, and the lists `annotations/list.txt`,
            `trainval.txt` and `test.txt` where there are any.
        split: "test", "trainval", or "all": what `list.txt` names, without it every image with a trimap. `None` is
            "test" where there is such a list and no `image_list`, else "all".
        image_list: Text file of image names, one a line, with or without `.jpg`: the set holds these images only.

    Source: the README of the annotations. A name is `<breed>_<number>`; the lists hold lines `<name> <class> <species>
    <breed>`. The classes here are in the order of the class numbers there, without lists in that of the alphabet.
    """

    def __init__(
        self, root: str | os.PathLike, split: str | None = None, image_list: str | os.PathLike | None = None
    ) -> None:
        self.root = require_directory(root, _CONTENT)
        self._annotations = require_directory(self.root / "annotations", _CONTENT)
        self._trimaps = require_directory(self._annotations / "trimaps", f"the masks; {_CONTENT}")
        images = require_directory(self.root / "images", _CONTENT)
        if split not in (None, *_SPLITS):
            raise ValueError(f"`split` must be one of {', '.join(_SPLITS)}, got {split!r}.")
        found = [name.removesuffix(".jpg") for name in list_files(images, {".jpg"}).files]
        masks = [name.removesuffix(".png") for name in list_files(self._trimaps, {".png"}).files]
        if split is None:
            has_list = (self._annotations / "test.txt").is_file()
            split = "test" if has_list and image_list is None else "all"
        paired = set(found)
        self._names = self._read_split(split) or [name for name in masks if name in paired]
        if not self._names:
            raise ValueError(f"{images} and {self._trimaps} hold no image with a trimap of the same name: {_CONTENT}.")
        if image_list is not None:
            self._names = _select(self._names, require_file(image_list, "the names of the images to read"), split)
        check_present(self._names, found, images, "images")
        check_present(self._names, masks, self._trimaps, "trimaps")
        breeds = [_breed_of(name, images) for name in self._names]
        classes = self._order_breeds(set(breeds))
        published = None if image_list is not None else _PUBLISHED_SIZES[split]
        super().__init__("oxford-pets", {"label", "mask"}, classes, published)
        positions = {breed: index for index, breed in enumerate(classes)}
        self.labels = [positions[breed] for breed in breeds]
        self.files = [images / f"{name}.jpg" for name in self._names]

    def _read_split(self, split: str) -> list[str]:
        """Return the image names of a split in the order of its list, none where all that have a trimap are meant."""
        path = self._annotations / ("list.txt" if split == "all" else f"{split}.txt")
        if path.is_file():
            return list(_read_list(path))
        if split != "all":
            raise ValueError(
                f"The split {split!r} is listed in {path}, which is missing. Take the split 'all', or unpack the "
                "annotations of Oxford-IIIT Pet again."
            )
        return []

    def _order_breeds(self, breeds: set[str]) -> list[str]:
        """Return the breeds in the order of the class numbers of all lists, or alphabetically where these name fewer.

        All lists count: training and test images have the same classes, even where one holds no image of a breed.
        """
        numbers: dict[str, int] = {}
        for path in (self._annotations / name for name in ("list.txt", "trainval.txt", "test.txt")):
            for name, number in _read_list(path).items() if path.is_file() else ():
                breed = _breed_of(name, path)
                if numbers.setdefault(breed, number) != number:
                    raise ValueError(f"{path} gives {breed!r} the class {number}, after {numbers[breed]} before.")
        if len(set(numbers.values())) < len(numbers):
            raise ValueError(
                f"The lists in {self._annotations} give several breeds the same class. Unpack them again."
            )
        if breeds <= set(numbers):
            return sorted(numbers, key=lambda breed: numbers[breed])
        # "american_bulldog" before "Bengal", as the lists have it
        return sorted(breeds, key=lambda breed: (breed.lower(), breed))

    def _identity(self) -> Iterable[object]:
        return self._names, self.labels

    def _read(self, index: int) -> Example:
        name = self._names[index]
        mask = _read_trimap(self._trimaps / f"{name}.png")
        return Example(name, read_rgb(self.files[index]), label=self.labels[index], mask=mask)


def _read_list(path: Path) -> dict[str, int]:
    """Return the class number of each image that a list names."""
    classes: dict[str, int] = {}
    for where, line in enumerate_lines(path):
        if line.startswith("#"):
            continue
        name, *numbers = line.split()
        if len(numbers) != 3 or not all(number.isdecimal() and len(number) < 10 for number in numbers):
            raise ValueError(f"{where} must be an image name and its class, species and breed, got {quote(line)}.")
        if name in classes:
            raise ValueError(f"{where} names {name} for the second time. Unpack the annotations again.")
        classes[name] = int(numbers[0])
    if not classes:
        raise ValueError(f"The list {path} names no image. Unpack the annotations again.")
    return classes


def _select(names: list[str], path: Path, split: str) -> list[str]:
    """Return the images that a list of one's own names, in its order."""
    lines = [(where, line.removesuffix(".jpg")) for where, line in enumerate_lines(path)]
    check_unique(lines)
    known = set(names)
    for where, name in lines:
        if name not in known:
            raise ValueError(
                f"{where} must name one of the {len(names)} images of the split {split!r}, e.g. {names[0]}, got "
                f"{quote(name)}."
            )
    return [name for _, name in lines]


def _breed_of(name: str, where: Path) -> str:
    breed, _, number = name.rpartition("_")
    if not breed or not number:
        raise ValueError(f"{where} must name images <breed>_<number>, as Oxford-IIIT Pet does, got {quote(name)}.")
    return breed


def _read_trimap(path: Path) -> np.ndarray:
    """Return the mask of a trimap, `(height, width)`, int8: 1 object, 0 background, -1 border."""
    values = np.asarray(read_mask_image(path))
    if values.ndim != 2 or values.dtype != np.uint8 or not ((values >= 1) & (values <= 3)).all():
        raise ValueError(
            f"{path} must be a trimap of 1 (object), 2 (background) and 3 (border), got {values.dtype} of shape "
            f"{values.shape} from {values.min()} to {values.max()}."
        )
    return _MASK_OF_TRIMAP[values]
