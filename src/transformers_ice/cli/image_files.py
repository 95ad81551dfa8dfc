# SPDX-License-Identifier: Apache-2.0
"""Image files that a command line names, and the names of the figures made of them."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from torch import Tensor

from ..console.output_files import is_own_picture
from ..ice_deit.image_conversion import IMAGE_ENDINGS, load_image


__all__ = ["calibration_pixels", "find_images", "is_address", "is_text", "name_outputs"]

_CALIBRATION_IMAGES = 128


def find_images(
    paths: Sequence[str], output_dir: Path | None = None, left_out: Counter[str] | None = None
) -> list[Path | str]:
    """Return the files that paths, folders and globs name, each once; missing paths and addresses are returned too.

    A file may have any name; folders and globs yield files with the extension of an image, without those in the output
    folder: a second run must not explain the figures of the first.
    `left_out` counts the other files of folders by their endings.
    """
    found: dict[str, Path | str] = {}
    others = Counter[str]() if left_out is None else left_out
    own = None if output_dir is None else output_dir.resolve()
    for path in paths:
        if is_address(path):
            found[path] = path
            continue
        for file in [Path(path)] if os.path.isfile(path) else _expand(path, own, others):
            found.setdefault(os.path.realpath(file), file)  # the first name of a file that is given twice
    return list(found.values())


def calibration_pixels(folder: str, image_processor: Any) -> Tensor:
    """Return pixel values `(num_images, num_channels, height, width)` of up to 128 images of a folder.

    They are taken evenly from all of its files, in the order of their paths.

    Raises:
        ValueError: If the folder holds no images, or one of those taken cannot be read.
    """
    if not os.path.isdir(folder):
        raise ValueError(f"--calibration_dir must be a folder of images, got {folder!r}.")
    files = find_images([folder])
    if not files:
        raise ValueError(f"No images found in --calibration_dir {folder}.")
    step = max(1, len(files) / _CALIBRATION_IMAGES)
    images = [load_image(str(files[int(place * step)])) for place in range(min(len(files), _CALIBRATION_IMAGES))]
    return image_processor(images, return_tensors="pt")["pixel_values"]


def is_address(path: Path | str) -> bool:
    """Return whether an image is to be downloaded."""
    return isinstance(path, str) and path.startswith(("http://", "https://"))


def _expand(path: str, output_dir: Path | None, left_out: Counter[str]) -> Iterator[Path]:
    if not os.path.isdir(path) and not glob.has_magic(path):
        yield Path(path)  # reading it will fail with the reason
        return
    matches = [path] if os.path.isdir(path) else sorted(glob.glob(path, recursive=True))
    for match in map(Path, matches):
        for file in sorted(_files_below(match)) if match.is_dir() else [match]:
            if file.name.startswith(".") or not file.is_file() or output_dir in file.resolve().parents:
                continue
            if file.suffix.lower() in IMAGE_ENDINGS:
                yield file
            elif match.is_dir():
                left_out[file.suffix.lower() or "without an ending"] += 1


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder; links to folders are followed, and each folder is read once."""
    seen: set[tuple[int, int]] = set()
    for directory, folders, files in os.walk(folder, followlinks=True):
        status = os.stat(directory)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        yield from (Path(directory, name) for name in files)


def name_outputs(paths: Sequence[Path | str], output_dir: Path, suffix: str = "png") -> list[Path]:
    """Return one figure name per image: its stem, which names no input and no file that this command did not write.

    Otherwise "-explained" follows the stem, and a number where another image has that name.
    """
    inputs = {_identity(Path(path)) for path in paths if os.path.exists(path)}
    taken: set[str] = set()
    outputs = []
    for path in paths:
        stem = Path(urlsplit(path).path if isinstance(path, str) else path).stem or "image"
        stem = stem if _is_free(output_dir / f"{stem}.{suffix}", inputs) else f"{stem}-explained"
        name, number = stem, 1
        # some file systems do not distinguish A.png from a.png
        while name.lower() in taken or not _is_free(output_dir / f"{name}.{suffix}", inputs):
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.lower())
        outputs.append(output_dir / f"{name}.{suffix}")
    return outputs


def _identity(path: Path) -> tuple[int, int]:
    """Return a key that is the same for all names of a file, links included."""
    status = path.stat()
    return status.st_dev, status.st_ino


def _is_free(output: Path, inputs: Collection[tuple[int, int]]) -> bool:
    """Return whether a figure may have this name: there is no such file, or a figure of an earlier run."""
    return not os.path.lexists(output) or (is_own_picture(output) and _identity(output) not in inputs)


def is_text(path: Path | str) -> bool:
    """Return whether a path can be written as UTF-8, as names on disks need not."""
    try:
        return bool(str(path).encode("utf-8"))
    except UnicodeEncodeError:
        return False
