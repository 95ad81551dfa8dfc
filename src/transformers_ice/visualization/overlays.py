# SPDX-License-Identifier: Apache-2.0
"""Overlays on the pixels of an image, arrays of its size, and the outline of a mask as lines along pixel edges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .colors import (
    HEAT_COLORS,
    OUTLINE_COLOR,
    PRUNED_COLOR,
    as_rgb,
    check_size,
    hex_to_rgb,
    matplotlib_module,
    to_grey,
    to_uint8,
)


__all__ = [
    "cut_out",
    "draw_box",
    "kept_patches",
    "outline_mask",
    "outline_segments",
    "overlay_class_map",
    "overlay_heatmap",
]

_DIMMED = 0.22  # brightness of what is dimmed, over the original

Array = np.ndarray
Segment = tuple[tuple[int, int], tuple[int, int]]


def overlay_heatmap(image: Array, heatmap: Array, opacity: float = 0.65) -> Array:
    """Blend a heat map with a grey version of an image.

    Args:
        image: `(height, width, 3)` or `(height, width)` grey, uint8.
        heatmap: `(height, width)`, in [0, 1]: dark is 0, bright is 1.
        opacity: Weight of the heat map in the blend, in [0, 1].

    Returns:
        `(height, width, 3)`, uint8.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If sizes differ, or the image, the heat map or the opacity is out of range.

    Example:
        >>> Image.fromarray(overlay_heatmap(np.asarray(image), result["heatmap"])).save("overlay.png")
    """
    rgb, values = as_rgb(image), np.asarray(heatmap, dtype=np.float32)
    check_size("heatmap", values, rgb)
    if not (values.min() >= 0 and values.max() <= 1):  # so written that NaN is refused too
        raise ValueError(
            f"`heatmap` must lie in [0, 1], got values from {values.min():.3g} to {values.max():.3g}. "
            "Divide attention maps by their maximum first."
        )
    if not 0 <= opacity <= 1:
        raise ValueError(f"`opacity` must lie in [0, 1], got {opacity}.")
    colors = matplotlib_module().colormaps[HEAT_COLORS](values)[..., :3] * 255  # RGBA in [0, 1] -> RGB in [0, 255]
    # Grey below the colours: the image's own colours would read as heat.
    return to_uint8((1 - opacity) * to_grey(rgb) + opacity * colors)


def overlay_class_map(image: Array, class_map: Array, colors: Mapping[int, str], opacity: float = 0.7) -> Array:
    """Colour the pixels of an image by their class; classes without a colour (the background) are dim and grey.

    Args:
        image: `(height, width, 3)` or `(height, width)` grey, uint8.
        class_map: `(height, width)`, int.
        colors: Colour by class index, as matplotlib writes colours; `class_colors` chooses them.
        opacity: Weight of the class colour in the blend, in [0, 1].

    Returns:
        `(height, width, 3)`, uint8.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If sizes differ.
    """
    rgb, classes = as_rgb(image), np.asarray(class_map)
    check_size("class_map", classes, rgb)
    grey = to_grey(rgb)
    result = np.repeat(grey * 0.45, 3, axis=2)  # (height, width, 1) -> (height, width, 3)
    # one class at a time: there are few, and `class_map` may hold negative or missing indices
    for index, color in colors.items():
        tint = 255 * np.array(matplotlib_module().colors.to_rgb(color))
        painted = (1 - opacity) * grey + opacity * tint
        result = np.where((classes == index)[..., None], painted, result)
    return to_uint8(result)


def cut_out(image: Array, mask: Array) -> Array:
    """Keep the pixels of a mask and dim the others.

    Args:
        image: `(height, width, 3)` or `(height, width)` grey, uint8.
        mask: `(height, width)`, bool, True is kept.

    Returns:
        `(height, width, 3)`, uint8.

    Raises:
        ValueError: If sizes differ.
    """
    rgb, kept = as_rgb(image), np.asarray(mask, dtype=bool)
    check_size("mask", kept, rgb)
    return np.where(kept[..., None], rgb, to_uint8(_DIMMED * to_grey(rgb)))


def outline_mask(image: Array, mask: Array, color: str = OUTLINE_COLOR, thickness: int | None = None) -> Array:
    """Draw the line around a mask: coloured inside the mask, black just outside, so it is visible on any image.

    Args:
        image: `(height, width, 3)` or `(height, width)` grey, uint8.
        mask: `(height, width)`, bool. No pixel of its inside further from the edge than `thickness` changes.
        color: `#rrggbb`.
        thickness: Width of the coloured line in pixels, at least 1; by default it grows with the image.

    Returns:
        `(height, width, 3)`, uint8.

    Raises:
        ValueError: If sizes differ, or the colour or the thickness cannot be drawn.
    """
    rgb, inside = as_rgb(image), np.asarray(mask, dtype=bool)
    check_size("mask", inside, rgb)
    thickness = _line_width(rgb) if thickness is None else thickness
    if thickness < 1:
        raise ValueError(f"`thickness` must be at least 1 pixel, got {thickness}.")
    dark = max(1, thickness // 2)  # pixels of the black line outside
    # the edge of the image ends a mask too: a border of False around it
    padded = Image.fromarray(np.pad(inside, thickness).astype(np.uint8))
    # erosion and dilation: the line is what they take away from the mask, or add to it
    core = _crop(padded.filter(ImageFilter.MinFilter(2 * thickness + 1)), thickness)
    grown = _crop(padded.filter(ImageFilter.MaxFilter(2 * dark + 1)), thickness)
    result = np.where((grown & ~inside)[..., None], np.uint8(0), rgb)
    return np.where((inside & ~core)[..., None], to_uint8(hex_to_rgb(color)), result)


def _crop(padded: Image.Image, border: int) -> Array:
    return np.asarray(padded)[border:-border, border:-border] > 0


def kept_patches(image: Array, exit_layers: Array, layer: int) -> Array:
    """Show the patches kept at a layer; those pruned right before it are violet, those pruned earlier dim.

    Args:
        image: `(height, width, 3)` or `(height, width)` grey, uint8.
        exit_layers: `(height, width)`, int: the layer before which each pixel's patch was pruned, as
            `post_process_exit_layers` and the patch-explanation pipeline give it.
        layer: Index of the layer, 0-based: patches with a larger exit layer are processed by it.

    Returns:
        `(height, width, 3)`, uint8.

    Raises:
        ValueError: If sizes differ.
    """
    rgb, exits = as_rgb(image), np.asarray(exit_layers)
    check_size("exit_layers", exits, rgb)
    result = cut_out(rgb, exits > layer)
    # violet over grey, as dark as the legend shows it
    pruned = 0.35 * hex_to_rgb(PRUNED_COLOR) + 0.4 * to_grey(rgb)
    return np.where((exits == layer)[..., None], to_uint8(pruned), result)


def draw_box(image: Array, box: Sequence[int]) -> Array:
    """Draw a box whose line is visible on any image: white between black.

    Args:
        image: `(height, width, 3)` or `(height, width)` grey, uint8.
        box: `(x_min, y_min, x_max, y_max)`, half-open, in pixels.

    Returns:
        `(height, width, 3)`, uint8, a copy.
    """
    canvas = Image.fromarray(as_rgb(image).copy())
    draw = ImageDraw.Draw(canvas)
    left, top, right, bottom = box[0], box[1], box[2] - 1, box[3] - 1  # PIL draws to the last pixel: inclusive
    thickness = _line_width(np.asarray(canvas))
    for inset, color in ((0, "black"), (thickness, "white"), (2 * thickness, "black")):
        if right - left >= 2 * inset and bottom - top >= 2 * inset:
            corners = (left + inset, top + inset, right - inset, bottom - inset)
            draw.rectangle(corners, outline=color, width=thickness)
    return np.asarray(canvas)


def _line_width(image: Array) -> int:
    """Return a width that is seen as equally thin at every resolution."""
    return max(1, min(image.shape[:2]) // 150)


def outline_segments(mask: Array) -> list[Segment]:
    """Return the straight lines between the pixels of a mask and the rest, where the edge of the image counts as rest.

    Args:
        mask: `(height, width)`, bool, True is inside.

    Returns:
        `((x0, y0), (x1, y1))` of each line, in pixel edges: x in [0, width], y in [0, height]; pixel (0, 0) is
        between the edges 0 and 1. Horizontal lines first; empty for an empty mask.

    Raises:
        ValueError: If the mask is not 2-D.
    """
    inside = np.asarray(mask, dtype=bool)
    if inside.ndim != 2:
        raise ValueError(f"`mask` must have shape (height, width), got {inside.shape}.")
    horizontal = [((x0, y), (x1, y)) for y, x0, x1 in _runs(inside)]
    # the same on the transposed mask, with x and y exchanged
    vertical = [((x, y0), (x, y1)) for x, y0, y1 in _runs(inside.T)]
    return horizontal + vertical


def _runs(inside: Array) -> list[tuple[int, int, int]]:
    """Return (line, start, stop) of every stretch along an edge between two rows of which one is inside.

    A stretch ends where the inside changes sides, so that lines never cross a corner where two masks touch.
    """
    step = np.diff(np.pad(inside, ((1, 1), (1, 1))).astype(np.int8), axis=0)  # (rows + 1, columns + 2): +1, 0 or -1
    runs: list[tuple[int, int, int]] = []
    for sign in (1, -1):
        # +1 where a stretch of this direction starts, -1 one after its end
        bounds = np.diff((step == sign).astype(np.int8), axis=1)
        (lines, starts), (_, stops) = np.nonzero(bounds == 1), np.nonzero(bounds == -1)
        runs += zip(lines.tolist(), starts.tolist(), stops.tolist(), strict=True)
    return sorted(runs)
