# SPDX-License-Identifier: Apache-2.0
"""Checks of the numbers of an image processor: pixels from impossible ones would be NaN, or fill the memory."""

import math
from collections.abc import Mapping
from typing import Any

from transformers.image_utils import PILImageResampling

from .image_conversion import MAX_PIXELS


_MOST_SIDE = 16_384  # of the input of a model
_LARGEST = 1e6  # mean, deviation or factor; the smallest scale is its inverse. Beyond, pixels would overflow


def check_size_kinds(settings: Mapping[str, Any]) -> None:
    """Raise a `ValueError` for a size of a kind that transformers cannot read."""
    for name in ("size", "crop_size"):
        size = settings.get(name)
        is_pair = isinstance(size, list | tuple) and len(size) == 2
        if isinstance(size, str | float | list | tuple) and not is_pair:
            raise ValueError(f"`{name}` must be a number of pixels, or height and width, got {size!r}.")


def check_preprocessing(settings: Mapping[str, Any]) -> None:
    """Raise a `ValueError` that names the setting which no image can be prepared with; `None` is a default."""
    for name, is_scale in (("image_mean", False), ("image_std", True)):
        values = settings.get(name)
        if values is not None:
            channels = list(values) if isinstance(values, list | tuple) else [values] * 3
            if len(channels) != 3 or not all(_is_number(value, is_scale) for value in channels):
                kind = "positive numbers" if is_scale else "numbers"
                raise ValueError(f"`{name}` must be three {kind}, one for each channel of RGB, got {values!r}.")
    factor, resample = settings.get("rescale_factor"), settings.get("resample")
    if settings.get("do_rescale") and not _is_number(factor, True):
        raise ValueError(f"`rescale_factor` must be a positive number, such as 1/255, got {factor!r}.")
    if resample is not None and resample not in list(PILImageResampling):
        names = ", ".join(f"{filter_.value} ({filter_.name.lower()})" for filter_ in PILImageResampling)
        raise ValueError(f"`resample` must be one of {names}, got {resample!r}.")
    for name in ("size", "crop_size"):
        size = settings.get(name)
        sides = {key: value for key, value in dict(size or {}).items() if value is not None}
        area = sides.get("height", 1) * sides.get("width", 1) if all(map(_is_side, sides.values())) else math.inf
        if (size is not None and not sides) or area > MAX_PIXELS:
            raise ValueError(
                f"`{name}` must be whole numbers of pixels from 1 to {_MOST_SIDE:,}, together at most {MAX_PIXELS:,}, "
                f"got {dict(size or {})}."
            )


def _is_number(value: Any, positive: bool) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST
    return is_number and (value >= 1 / _LARGEST or not positive)


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MOST_SIDE


__all__ = ["check_preprocessing", "check_size_kinds"]
