# SPDX-License-Identifier: Apache-2.0
"""Colours of heat maps, classes and outlines, and conversions between arrays and colours.

Heat maps use a map whose lightness grows evenly with the value ("inferno"), so it reads the same in grey and for
colour-blind eyes; classes use the palette of Okabe and Ito, and their names are written next to them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


__all__ = ["HEAT_COLORS", "OUTLINE_COLOR", "PALETTE", "PRUNED_COLOR", "class_colors"]

# Okabe and Ito, "Color Universal Design", without black; where they run out, colours of Paul Tol's "muted" scheme
PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
_FURTHER_COLORS = ("#882255", "#999933", "#332288", "#DDCC77", "#117733", "#88CCEE")
_COLOR_WORDS = {
    "red": "#D62728",
    "orange": "#E69F00",
    "yellow": "#F0E442",
    "green": "#009E73",
    "blue": "#0072B2",
    "purple": "#8E44AD",
    "violet": "#8E44AD",
    "pink": "#F48FB1",
    "brown": "#8C564B",
    "cyan": "#17BECF",
    "turquoise": "#17BECF",
    "black": "#222222",
    "white": "#F5F5F5",
}
HEAT_COLORS = "inferno"
OUTLINE_COLOR = "#00E5FF"  # not on the way from dark violet to pale yellow that a heat map takes
PRUNED_COLOR = "#B39DDB"  # of patches that are pruned at a layer; none of the classes' colours

Array = np.ndarray


def class_colors(class_maps: Sequence[Array], names: Mapping[int, str]) -> dict[int, str]:
    """Return a colour for every class that occurs in the maps and has a name, the largest areas first.

    A class has the same colour in every figure, unless a class with a larger area in this figure has it already. A
    class whose name holds a colour word ("green striped") has that colour, several of them shades of it.

    Args:
        class_maps: Class index of every pixel, int, of any shapes.
        names: Name by class index; a class without a name, such as the background, gets no colour.

    Returns:
        Colour (`#rrggbb`) by class index, in the order of the areas. There are 13 colours for names without a colour
        word; then they repeat.
    """
    areas: Counter[int] = Counter()
    for class_map in class_maps:
        values = np.ravel(class_map)
        for start in range(0, len(values), 2**20):  # sorting all pixels at once would take their memory several times
            indices, counts = np.unique(values[start : start + 2**20], return_counts=True)
            areas.update(dict(zip(indices.tolist(), counts.tolist(), strict=True)))
    # the largest first, of equal ones the first index
    order = [index for index in sorted(areas, key=lambda index: (-areas[index], index)) if index in names]
    palette = (*PALETTE, *_FURTHER_COLORS)
    named = {index: _named_color(names[index]) for index in sorted(names)}
    colors: dict[int, str] = {}
    for index in order:
        # shades of the colour in its name, then the colour of its index and the following ones
        shades = _shades(named[index], [other for other in named if named[other] == named[index]].index(index))
        turned = [*shades, *(palette[(index + step) % len(palette)] for step in range(len(palette)))]
        colors[index] = next((color for color in turned if color not in colors.values()), turned[0])
    return colors


def _named_color(name: object) -> str | None:
    """Return the first colour that a class's name has as a word."""
    return next(
        (_COLOR_WORDS[word] for word in re.findall(r"[a-z]+", str(name).lower()) if word in _COLOR_WORDS), None
    )


def _shades(color: str | None, first: int) -> list[str]:
    """Return a colour, a lighter and a darker shade of it, beginning with the one of number `first` modulo 3."""
    if color is None:
        return []
    base = hex_to_rgb(color)
    shades = [base, base + 0.5 * (255 - base), 0.6 * base]
    texts = ["#" + bytes(to_uint8(shade).tolist()).hex().upper() for shade in shades]
    return texts[first % 3 :] + texts[: first % 3]


def name_by_index(class_names: Mapping[int, str] | Sequence[str]) -> dict[int, str]:
    """Return class names as a dict."""
    return dict(class_names) if isinstance(class_names, Mapping) else dict(enumerate(class_names))


def matplotlib_module() -> Any:
    """Return matplotlib, or raise with the extra that installs it."""
    try:
        import matplotlib
        import matplotlib.colors
    except ImportError as error:
        raise ImportError("Figures need matplotlib: pip install transformers-ice[viz]") from error
    return matplotlib


def as_rgb(image: Array) -> Array:
    """Return an image as `(height, width, 3)`, uint8."""
    array = np.asarray(image)
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise ValueError(
            "`image` must be uint8 of shape (height, width, 3) or (height, width), got "
            f"{array.dtype} of shape {array.shape}. Use `np.asarray(image.convert('RGB'))`."
        )
    # (height, width) -> (height, width, 3)
    return array if array.ndim == 3 else np.repeat(array[..., None], 3, axis=2)


def check_size(name: str, array: Array, image: Array) -> None:
    """Raise if a map does not have the size of its image."""
    if array.shape != image.shape[:2]:
        raise ValueError(f"`{name}` must have the size {image.shape[:2]} of the image, got {array.shape}.")


def to_grey(rgb: Array) -> Array:
    """Return the luma of an image as `(height, width, 1)`, float32, in [0, 255] (ITU-R BT.601, as PIL)."""
    # (height, width, 3) @ (3,) -> (height, width, 1)
    return (rgb.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32))[..., None]


def to_uint8(values: Array) -> Array:
    """Round colours to 8 bits."""
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def hex_to_rgb(color: str) -> Array:
    """Return `#rrggbb` as three numbers in [0, 255]."""
    digits = color.removeprefix("#")
    try:
        if len(digits) != 6:
            raise ValueError
        return np.array([int(digits[start : start + 2], 16) for start in (0, 2, 4)], dtype=np.float32)
    except ValueError:
        raise ValueError(f"`color` must be written like '{OUTLINE_COLOR}', got {color!r}.") from None
