# SPDX-License-Identifier: Apache-2.0
"""ImageNet-Segmentation: images with a mask of their object, all in one MATLAB 7.3 file."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...ice_deit.image_conversion import convert_to_rgb
from .annotation_files import require_file
from .examples import EvaluationSet, Example


__all__ = ["ImageNetSegmentation"]

_FILE_NAME = "gtsegs_ijcv.mat"
_NUM_IMAGES = 4276
_MAX_NUMBERS = 3 * 178_956_970  # three channels of the largest image that Pillow opens


class ImageNetSegmentation(EvaluationSet):
    """The images and object masks of Guillaumin et al. (2014) that explanations of ViTs are scored on.

    Provides `mask`; the file `gtsegs_ijcv.mat` (`path`, or a folder that holds it) has no class labels. It is opened
    in each process when its first example is read.

    Source: `imagenet_segmentation/data/Imagenet.py` of hila-chefer/Transformer-Explainability. `/value/img` and
    `/value/gt` hold references to arrays with their axes in MATLAB's order; a mask is one reference deeper.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        super().__init__("imagenet-segmentation", {"mask"}, published_size=_NUM_IMAGES)
        given = Path(path).expanduser()
        content = "ImageNet-Segmentation is one file of images and masks, as Transformer-Explainability names it"
        self.path = require_file(given / _FILE_NAME if given.is_dir() else given, content)
        self._file: Any = None
        self._process = -1
        with _open(self.path) as file:
            self._length = _count_images(file, self.path)

    def __len__(self) -> int:
        return self._length

    def _identity(self) -> Iterable[object]:
        return self._length, self.path.stat().st_size

    def __getstate__(self) -> dict[str, Any]:
        # an open file cannot be pickled for another process
        return {**self.__dict__, "_file": None, "_process": -1}

    def _open_here(self) -> Any:
        """Return the file as opened by this process."""
        if self._process != os.getpid():
            if self._file is not None:
                # Inherited by a fork: as long as it is open, HDF5 would keep using it together with the parent.
                self._file.close()
            self._file, self._process = _open(self.path), os.getpid()
        return self._file

    def _read(self, index: int) -> Example:
        file = self._open_here()
        try:
            pixels = _read_array(file[file["value/img"][index, 0]])
            mask = _read_array(file[file[file["value/gt"][index, 0]][0, 0]])
            image_id = _read_id(file, index)
        except (OSError, RuntimeError, LookupError, TypeError, ValueError, AttributeError, MemoryError) as error:
            raise ValueError(
                f"{self.path}: image {index} cannot be read: {error}. Download the file again."
            ) from error
        # (channels, width, height) -> (height, width, channels), and (width, height) -> (height, width)
        pixels, mask = pixels.T, mask.T
        is_image = pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[-1] in (1, 3) and pixels.size
        if not is_image or mask.ndim != 2 or not np.isin(mask, (0, 1)).all():
            raise ValueError(
                f"{self.path}: image {index} must be uint8 with three axes, the last of 1 or 3 channels, and its mask "
                f"hold 0 and 1 on two, got {pixels.dtype} {pixels.shape} and {mask.dtype} {mask.shape} up to "
                f"{mask.max(initial=0)}."
            )
        pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
        image = convert_to_rgb(Image.fromarray(np.ascontiguousarray(pixels)))
        return Example(image_id, image, mask=np.ascontiguousarray(mask, dtype=np.int8))


def _open(path: Path) -> Any:
    """Open the file for reading."""
    try:
        import h5py
    except ImportError as error:
        raise ImportError("`ImageNetSegmentation` needs `h5py`: pip install transformers-ice[eval]") from error
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) is no complete HDF5 file: {error}. Expected MATLAB 7.3; download "
            "it again if that was interrupted."
        ) from error


def _count_images(file: Any, path: Path) -> int:
    """Return the number of images, or raise if the file has another layout."""
    names = ("value/img", "value/gt")
    missing = [name for name in names if name not in file]
    if missing:
        raise ValueError(f"{path} holds no `/{missing[0]}`, only {sorted(file)}: it is not {_FILE_NAME}.")
    try:
        shapes = [tuple(file[name].shape) for name in names]
    except (OSError, RuntimeError, LookupError, TypeError, AttributeError) as error:  # a link, or a group
        raise ValueError(f"{path}: `/value/img` or `/value/gt` is no table: {error}. Download it again.") from error
    if shapes[0] != shapes[1] or len(shapes[0]) != 2 or shapes[0][1] != 1 or not shapes[0][0]:
        raise ValueError(
            f"{path} must hold as many images as masks, in columns of references, got {shapes[0]} and {shapes[1]}."
        )
    return shapes[0][0]


def _read_array(stored: Any) -> np.ndarray:
    """Return an array of the file, unless it would take the memory of an image that Pillow refuses."""
    if math.prod(stored.shape) > _MAX_NUMBERS:
        raise ValueError(f"an array of shape {stored.shape} is too large")
    return np.asarray(stored[()])


def _read_id(file: Any, index: int) -> str:
    """Return the name of an image, kept as MATLAB text (one number a letter); its index where it has none."""
    if "value/id" not in file:
        return str(index)
    letters = np.ravel(file[file["value/id"][index, 0]][()])
    if letters.dtype != np.uint16:
        return "_".join(str(value) for value in letters.tolist()) or str(index)
    return "".join(map(chr, letters)) or str(index)
