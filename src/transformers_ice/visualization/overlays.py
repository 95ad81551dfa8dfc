# SPDX-License-Identifier: Apache-2.0
"""Overlays on the pixels of an image, arrays of its size, and the outline of a mask as lines along pixel edges."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

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
_BLOCK = 2**18  # pixels that are painted at once

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
    # RGBA in [0, 1] -> RGB in [0, 255], (256, 3)
    colors = (255 * matplotlib_module().colormaps[HEAT_COLORS](np.arange(256))[:, :3]).astype(np.float32)

    def paint(pixels: Array, heat: Array) -> Array:
        places = np.minimum(heat * 256, 255).astype(np.uint8)
        # Grey below the colours: the image's own colours would read as heat.
        return to_uint8((1 - opacity) * to_grey(pixels) + opacity * colors[places])

    return _paint(paint, rgb, values)


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
    to_rgb = matplotlib_module().colors.to_rgb
    tints = {index: np.array(to_rgb(color), dtype=np.float32) * 255 for index, color in colors.items()}

    def paint(pixels: Array, indices: Array) -> Array:
        grey = to_grey(pixels)
        result = np.repeat(grey * 0.45, 3, axis=1)  # (num_pixels, 1) -> (num_pixels, 3)
        # one class at a time: there are few, and `class_map` may hold negative or missing indices
        for index, tint in tints.items():
            places = indices == index
            result[places] = (1 - opacity) * grey[places] + opacity * tint
        return to_uint8(result)

    return _paint(paint, rgb, classes)


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
    return _paint(_dim, rgb, kept)


def _dim(pixels: Array, kept: Array) -> Array:
    """Return pixels `(num_pixels, 3)`, the others than those that are kept `(num_pixels,)` dark and grey."""
    return np.where(kept[:, None], pixels, to_uint8(_DIMMED * to_grey(pixels)))


def _paint(paint: Callable[..., Array], image: Array, *maps: Array) -> Array:
    """Return an image of the colours that `paint` gives pixels `(num_pixels, 3)` and their values of the maps.

    Block by block: what it takes to paint does not grow with the image, which may be 12 megapixels large.
    """
    values = [array.reshape(-1) for array in maps]
    pixels = image.reshape(-1, 3)
    result = np.empty_like(pixels)
    for start in range(0, len(pixels), _BLOCK):
        block = slice(start, start + _BLOCK)
        result[block] = paint(pixels[block], *(array[block] for array in values))
    return result.reshape(image.shape)


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
    tint, result = to_uint8(hex_to_rgb(color)), rgb.copy()
    # dilation of the mask and of the rest: the lines are what they add. The edge of the image ends a mask too.
    result[_grow(inside, dark, beyond=False) & ~inside] = 0
    result[_grow(~inside, thickness, beyond=True) & inside] = tint
    return result


def _grow(mask: Array, radius: int, beyond: bool) -> Array:
    """Return where any pixel of the square of side `2 * radius + 1` is in a mask; `beyond` the image, or not."""
    for axis in (0, 1):
        # running maximum along an axis: windows of 1, 2, 4, ... up to 2 * radius + 1 pixels, each of two smaller ones
        border = [(radius, radius) if side == axis else (0, 0) for side in (0, 1)]
        lines = np.moveaxis(np.pad(mask, border, constant_values=beyond), axis, 0)
        size = 1
        while size < 2 * radius + 1:
            step = min(size, 2 * radius + 1 - size)
            lines = lines[step:] | lines[:-step]
            size += step
        mask = np.moveaxis(lines, 0, axis)
    return mask


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
    tint = 0.35 * hex_to_rgb(PRUNED_COLOR)

    def paint(pixels: Array, exits: Array) -> Array:
        # violet over grey, as dark as the legend shows it
        pruned = to_uint8(tint + 0.4 * to_grey(pixels))
        return np.where((exits == layer)[:, None], pruned, _dim(pixels, exits > layer))

    return _paint(paint, rgb, exits)


def draw_box(image: Array, box: Sequence[int]) -> Array:
    """Draw a box whose line is visible on any image: white between black.

    Args:
        image: `(height, width, 3)` or `(height, width)` grey, uint8.
        box: `(x_min, y_min, x_max, y_max)`, half-open, in pixels.

    Returns:
        `(height, width, 3)`, uint8, a copy.
    """
    return paint_box(as_rgb(image).copy(), box)


def paint_box(result: Array, box: Sequence[int], color: str = "#FFFFFF") -> Array:
    """Draw a box as `draw_box` does, into the pixels `(height, width, 3)` themselves, which are returned.

    `color`, `#rrggbb`, is that of the line between the black ones.
    """
    height, width = result.shape[:2]
    left, right = (min(max(int(edge), 0), width) for edge in (box[0], box[2]))
    top, bottom = (min(max(int(edge), 0), height) for edge in (box[1], box[3]))
    thickness = _line_width(result)
    for number, tint in enumerate((0, to_uint8(hex_to_rgb(color)), 0)):
        # the lines of a box within the box, each `thickness` further inside than the one before
        inset = number * thickness
        part = result[top + inset : max(bottom - inset, 0), left + inset : max(right - inset, 0)]
        for line in (part[:thickness], part[-thickness:], part[:, :thickness], part[:, -thickness:]):
            line[:] = tint
    return result


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
