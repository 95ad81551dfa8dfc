# SPDX-License-Identifier: Apache-2.0
"""Common parts of the readers of published sets: required files, lines, numbers, boxes and masks.

Every error names the file, and the line where there is one, so that an incomplete download can be completed.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ...ice_deit.image_conversion import convert_to_rgb, load_image


__all__ = [
    "as_boxes",
    "check_present",
    "check_unique",
    "enumerate_lines",
    "order_classes",
    "parse_numbers",
    "quote",
    "read_grey_mask",
    "read_lines",
    "read_mask_image",
    "read_rgb",
    "require_directory",
    "require_file",
    "split_fields",
]

_MAX_LISTED = 10
_MAX_QUOTED = 100


def require_file(path: str | os.PathLike, content: str) -> Path:
    """Return the path of a file, or raise `ValueError` with its content and origin, and the files found instead."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"The file {file} is missing: {content}. {_describe_nearest(file)}")
    return file


def require_directory(path: str | os.PathLike, content: str) -> Path:
    """Return the path of a folder, or raise as `require_file` does."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ValueError(f"The folder {folder} is missing: {content}. {_describe_nearest(folder)}")
    return folder


def _describe_nearest(path: Path) -> str:
    """Return the content of the nearest existing folder above a missing path, for errors."""
    folder = next((parent for parent in path.absolute().parents if parent.is_dir()), Path(path.anchor))
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    rest = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return f"{folder} holds {', '.join(names[:_MAX_LISTED]) or 'nothing'}{rest}."


def check_present(wanted: Collection[str], found: Iterable[str], folder: Path, content: str) -> None:
    """Raise if files of a kind (`content`, in the plural) are missing among those found in a folder."""
    existing = set(found)
    missing = [name for name in wanted if name not in existing]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(wanted)} {content} are missing in {folder}, which holds {len(existing)} of such "
            f"files. The first missing one is {missing[0]}. Download or unpack the set again, or correct the folder."
        )


def check_unique(named: Iterable[tuple[str, str]]) -> None:
    """Raise if a name, given with its place, occurs twice: an image would be scored, or a class be counted, twice."""
    seen: dict[str, str] = {}
    for where, name in named:
        if name in seen:
            raise ValueError(f"{where} names {name} for the second time, after {seen[name]} Remove one of them.")
        seen[name] = where


def enumerate_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (place for errors, stripped line) of the lines of a text file, without empty ones."""
    if not path.is_file():
        raise ValueError(f"{path} is no file, but a folder, a pipe or a device.")
    try:
        # with the mark that spreadsheet programs put in front of UTF-8, or without
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"Cannot read {path} as UTF-8 text: {error}. Download it again.") from error
    if not any(map(str.strip, lines)):
        raise ValueError(f"The file {path} is empty. Download it again.")
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield f"{path}, line {number},", line.strip()


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file, stripped, without empty ones; raises like `enumerate_lines`."""
    return [line for _, line in enumerate_lines(path)]


def split_fields(line: str, where: str) -> list[str]:
    """Return the fields of one line: they may hold quoted commas, but no line break."""
    try:
        return [field.strip() for field in next(csv.reader([line]))]
    except csv.Error as error:  # a field of more than 131,072 characters
        raise ValueError(f"{where} cannot be read as fields with commas: {error}.") from error


def quote(text: object) -> str:
    """Return text of a file as an error quotes it: a file that is none may be one line of any length."""
    shown = repr(text)
    return shown if len(shown) <= _MAX_QUOTED else f"{shown[:_MAX_QUOTED]}... ({len(shown):,} characters)"


def parse_numbers(fields: Sequence[str], count: int, where: str) -> list[float]:
    """Return `count` fields of a text file, at `where`, as finite numbers."""
    try:
        numbers = [float(field) for field in fields]
    except ValueError:
        numbers = []
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise ValueError(
            f"{where} must hold {count} {'number' if count == 1 else 'numbers'} here, got {quote(fields)}."
        )
    return numbers


def as_boxes(boxes: Sequence[Sequence[float]], where: str) -> np.ndarray:
    """Return boxes as `(num_boxes, 4)`, float64, xyxy, or raise if one is no box or ends before it begins."""
    try:
        array = np.asarray(boxes, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} must hold boxes of four numbers, got {boxes!r}.") from error
    if array.size and array.shape[-1] != 4:
        raise ValueError(f"{where} must hold boxes of four numbers, got {array.tolist()}.")
    array = array.reshape(-1, 4)  # also of one box, and of no boxes: (0, 4)
    for box in array:
        # an empty box is allowed
        if not (np.isfinite(box).all() and box[2] >= box[0] and box[3] >= box[1]):
            raise ValueError(f"{where} holds a box that ends before it begins: {box.tolist()} as xyxy.")
    return array


def order_classes(values: Iterable[str]) -> list[str]:
    """Return class names without repetition: numbers in their own order (10 after 9), other names alphabetically."""
    names = set(values)
    numeric = all(name.isdecimal() and len(name) < 20 for name in names)
    return sorted(names, key=lambda name: (int(name), name) if numeric else (0, name))


def read_rgb(path: Path) -> Image.Image:
    """Return an image file as upright RGB, or raise with its path."""
    try:
        return convert_to_rgb(load_image(path))
    except ValueError as error:
        raise error if str(path) in str(error) else ValueError(f"{path}: {error}") from error


def read_mask_image(path: Path) -> Image.Image:
    """Return a mask file upright and otherwise as it is: palette indices are not converted to colours."""
    return load_image(path)


def read_grey_mask(path: Path) -> np.ndarray:
    """Return a mask file of grey levels as `(height, width)`, int8: 1 from 128 on, else 0."""
    # a few files have several channels, with the same grey in each, or an alpha channel
    return (np.asarray(read_mask_image(path).convert("L")) >= 128).astype(np.int8)
