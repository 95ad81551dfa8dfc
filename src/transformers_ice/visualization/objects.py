# SPDX-License-Identifier: Apache-2.0
"""Objects that a multi-label model found in an image: each in the colour of its class, with its label and score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .colors import OUTLINE_COLOR, as_rgb, check_size, class_colors, hex_to_rgb, matplotlib_module, to_uint8
from .overlays import outline_mask, paint_box
from .text import printable


__all__ = [
    "NOTHING_FOUND",
    "DrawnObject",
    "object_colors",
    "objects_of",
    "overlay_objects",
    "paint_labels",
    "place_labels",
    "shrunk_box",
    "text_color",
    "text_size_of",
    "tint_objects",
]

NOTHING_FOUND = "nothing found"
"""What figures, captions and tables say of an image in which no object was found."""

_NEUTRAL = "#3C3C3C"  # behind "nothing found"
_SMALLEST_SIDE = 64  # pixels; smaller images have no room for text
_LINES = 22  # lines of text that fill the shorter side of an image
_SMALLEST_TEXT = 10  # pixels

Array = np.ndarray
Box = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)  # arrays have no truth value
class DrawnObject:
    """An object to draw: an entry of "objects" of the patch-explanation pipeline.

    Attributes:
        label: Name of its class.
        score: Probability that the class is in the image, in [0, 1].
        box: `(x_min, y_min, x_max, y_max)`, half-open, in pixels.
        mask: `(height, width)`, bool.
        heatmap: `(height, width)`, float, in [0, 1], p(class).
    """

    label: str
    score: float
    box: Box
    mask: Array
    heatmap: Array

    @property
    def text(self) -> str:
        """Label and score, as figures show them."""
        return f"{self.label} {self.score:.2f}"

    def shrunk(self, step: int) -> DrawnObject:
        """Return the object in an image of which every `step`-th row and column of pixels is left."""
        mask, heatmap = (np.ascontiguousarray(values[::step, ::step]) for values in (self.mask, self.heatmap))
        return replace(self, box=shrunk_box(self.box, step), mask=mask, heatmap=heatmap)

    def resized(self, image_size: tuple[int, int]) -> DrawnObject:
        """Return the object in its image at another size, `(height, width)`."""
        (height, width), size = image_size, (image_size[1], image_size[0])
        scales = (width / self.mask.shape[1], height / self.mask.shape[0]) * 2
        x_min, y_min, x_max, y_max = (round(edge * scale) for edge, scale in zip(self.box, scales, strict=True))
        heatmap = Image.fromarray(np.asarray(self.heatmap, np.float32)).resize(size, Image.Resampling.BOX)
        return replace(
            self,
            box=(x_min, y_min, x_max, y_max),
            mask=np.asarray(Image.fromarray(self.mask).resize(size, Image.Resampling.NEAREST)),
            heatmap=np.asarray(heatmap).clip(0, 1),
        )


def shrunk_box(box: Sequence[int], step: int) -> Box:
    """Return a box in an image of which every `step`-th row and column of pixels is left."""
    return box[0] // step, box[1] // step, -(-box[2] // step), -(-box[3] // step)


def objects_of(result: Mapping[str, Any]) -> list[DrawnObject] | None:
    """Return the objects in a result of the patch-explanation pipeline; `None` of a single-label model."""
    entries = result.get("objects")
    if entries is None:
        return None
    return [
        DrawnObject(
            label=entry["label"],
            score=entry["score"],
            box=tuple(entry["box"][name] for name in ("xmin", "ymin", "xmax", "ymax")),
            mask=np.asarray(entry["mask"], dtype=bool),
            heatmap=entry["heatmap"],
        )
        for entry in entries
    ]


def object_colors(
    objects: Sequence[DrawnObject], names: Mapping[int, str], class_maps: Sequence[Array] = ()
) -> dict[str, str]:
    """Return the colour of every object's class by its name, the same as those of the class maps of a figure.

    Args:
        objects: All objects of the figure.
        names: Name by class index.
        class_maps: The class maps of the figure, which hold the same classes.
    """
    # also classes that no pixel of a class map has: of an image so small that a patch lies between its pixels
    indices = {name: index for index, name in reversed(sorted(names.items()))}
    present = np.array([indices[found.label] for found in objects if found.label in indices], dtype=np.int64)
    maps = class_maps or [np.where(found.mask, indices.get(found.label, -1), -1) for found in objects]
    colors = {names[index]: color for index, color in class_colors([*maps, present], names).items()}
    return {found.label: OUTLINE_COLOR for found in objects} | colors


def overlay_objects(
    image: Array, objects: Sequence[DrawnObject], colors: Mapping[str, str], tint: float = 0.3
) -> Array:
    """Draw the mask of every object, tinted and outlined in its colour, its box, and its label with the score.

    Args:
        image: `(height, width, 3)` or `(height, width)` grey, uint8.
        objects: What was found; of none the image says "nothing found".
        colors: Colour (`#rrggbb`) by label, as `object_colors` chooses them.
        tint: Weight of the colour within a mask, in [0, 1].

    Returns:
        `(height, width, 3)`, uint8. Images of less than 64 pixels have no room for text.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If sizes differ.
    """
    return paint_labels(tint_objects(image, objects, colors, tint), objects, colors)


def tint_objects(
    image: Array, objects: Sequence[DrawnObject], colors: Mapping[str, str], tint: float = 0.3, outlines: bool = True
) -> Array:
    """Return an image in which every mask is tinted and, unless lines are drawn over it later, outlined."""
    pixels = as_rgb(image).copy()
    for found in objects:
        check_size("mask", found.mask, pixels)
        pixels[found.mask] = to_uint8((1 - tint) * pixels[found.mask] + tint * hex_to_rgb(colors[found.label]))
    for found in reversed(objects if outlines else ()):  # lines of the best one on top
        pixels = outline_mask(pixels, found.mask, colors[found.label])
    return pixels


def paint_labels(image: Array, objects: Sequence[DrawnObject], colors: Mapping[str, str]) -> Array:
    """Return an image with the box and the label of every object, or with "nothing found"."""
    pixels = as_rgb(image).copy()
    for found in reversed(objects):
        paint_box(pixels, found.box, colors[found.label])
    height, width = pixels.shape[:2]
    if min(height, width) < _SMALLEST_SIDE:
        return pixels
    size = text_size_of((height, width))
    canvas = Image.fromarray(pixels)
    draw = ImageDraw.Draw(canvas)
    for text, color, (left, top), (right, bottom) in place_labels(objects, colors, (height, width), size):
        draw.rectangle((left, top, right - 1, bottom - 1), fill=color, outline="black")
        draw.text(((left + right) / 2, (top + bottom) / 2), text, text_color(color), _font(size), anchor="mm")
    return np.asarray(canvas)


def text_size_of(image_size: tuple[int, int]) -> int:
    """Return the height of a line of text on an image of `(height, width)`, in pixels."""
    return max(_SMALLEST_TEXT, min(image_size) // _LINES)


def place_labels(
    objects: Sequence[DrawnObject], colors: Mapping[str, str], image_size: tuple[int, int], text_size: float
) -> list[tuple[str, str, tuple[int, int], tuple[int, int]]]:
    """Return text, colour, upper left and lower right corner `(x, y)` of the label of every object.

    A label is above its box, or where the image ends or another label is, at the nearest free place above or below
    it. Where there is no object, the one label is "nothing found". A label wider than the image is cut.

    Args:
        objects: What was found.
        colors: Colour by label.
        image_size: `(height, width)`.
        text_size: Height of a line of text, in pixels.
    """
    height, width = image_size
    font, margin = _font(text_size), max(2, round(text_size / 4))
    line = round(1.2 * text_size) + margin
    labels = [(found.label, f" {found.score:.2f}", colors[found.label], found.box) for found in objects]
    placed: list[tuple[str, str, tuple[int, int], tuple[int, int]]] = []
    for name, score, color, box in labels or [(NOTHING_FOUND, "", _NEUTRAL, (0, 0, 0, 0))]:
        text = _fitting(name, score, font, width - 2 * margin)
        length = min(round(font.getlength(text)) + 2 * margin, width)
        left = min(max(box[0], 0), width - length)
        wanted = box[1] - line
        tops = sorted({wanted, box[1], box[3], *range(0, height, line)}, key=lambda top: abs(top - wanted))
        inside = [top for top in tops if 0 <= top <= height - line] or [0]
        beside = [(y0, y1) for *_, (x0, y0), (x1, y1) in placed if x0 < left + length and left < x1]
        free = [top for top in inside if not any(y0 < top + line and top < y1 for y0, y1 in beside)]
        top = (free or inside)[0]
        placed.append((text, color, (left, top), (left + length, top + line)))
    return placed


def _fitting(name: str, score: str, font: Any, width: float) -> str:
    """Return a label of one line, its name cut where the whole is too wide."""
    name = " ".join(printable(name).split())
    if font.getlength(f"{name}{score}") <= width:
        return f"{name}{score}"
    while name and font.getlength(f"{name}…{score}") > width:
        name = name[:-1]
    return f"{name}…{score}"


def text_color(background: str) -> str:
    """Return the one of black and white that is read more easily on a colour."""
    return "black" if hex_to_rgb(background) @ [0.299, 0.587, 0.114] > 128 else "white"  # luma, as PIL


@cache
def _font(size: float) -> Any:
    """Return the font of all figures: the one that comes with matplotlib."""
    matplotlib_module()
    from matplotlib.font_manager import findfont

    return ImageFont.truetype(findfont("DejaVu Sans"), size)
