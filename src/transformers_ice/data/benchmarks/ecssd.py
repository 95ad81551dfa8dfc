# SPDX-License-Identifier: Apache-2.0
"""ECSSD: 1,000 photographs with masks of what stands out in them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ..files import list_files
from .annotation_files import check_present, read_grey_mask, read_rgb, require_directory
from .examples import EvaluationSet, Example


__all__ = ["Ecssd"]

_PUBLISHED_SIZE = 1000


class Ecssd(EvaluationSet):
    """Photographs with the mask of the salient object; provides `mask`.

    `root` holds `images/<name>.jpg` and `ground_truth_mask/<name>.png`, the two archives of the set; either may be in
    a folder of the same name once more. Grey levels of at least 128 are foreground.

    Source: Shi, Yan, Xu and Jia, "Hierarchical Image Saliency Detection on Extended CSSD", TPAMI 2016.
    """

    def __init__(self, root: str | os.PathLike) -> None:
        super().__init__("ecssd", {"mask"}, published_size=_PUBLISHED_SIZE)
        self.root = require_directory(root, "the unpacked archives `images` and `ground_truth_mask` of ECSSD")
        self._images = _find_folder(self.root, "images", "photographs")
        self._masks = _find_folder(self.root, "ground_truth_mask", "masks")
        self._names = [name.removesuffix(".jpg") for name in list_files(self._images, {".jpg"}).files]
        if not self._names:
            raise ValueError(f"{self._images} holds no .jpg file. Unpack the archive `images` of ECSSD there.")
        masks = [name.removesuffix(".png") for name in list_files(self._masks, {".png"}).files]
        check_present(self._names, masks, self._masks, "masks")

    def __len__(self) -> int:
        return len(self._names)

    def _identity(self) -> Iterable[object]:
        return self._names

    def _read(self, index: int) -> Example:
        name = self._names[index]
        mask = read_grey_mask(self._masks / f"{name}.png")
        return Example(name, read_rgb(self._images / f"{name}.jpg"), mask=mask)


def _find_folder(root: Path, name: str, content: str) -> Path:
    """Return a folder of the set, or the one of the same name in it: programs unpack an archive in a folder."""
    folder = require_directory(root / name, f"the {content} of ECSSD, an archive of their own")
    return folder / name if (folder / name).is_dir() else folder
