# SPDX-License-Identifier: Apache-2.0
"""Painting of a composition: layers over clutter over ground, and which object each pixel shows."""

from __future__ import annotations

import numpy as np

from .composition import Composition
from .layers import Layer, clip, layer_distance, render_ground, texture_weights


__all__ = ["paint"]

Array = np.ndarray


def paint(composition: Composition, height: int, width: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Paint a composition back to front.

    Args:
        composition: Content of the scene.
        height: Height in pixels.
        width: Width in pixels.
        rng: Generator of the pixel noise.

    Returns:
        The image `(height, width, 3)`, uint8 RGB, and which object is visible in each pixel, `(height, width)`, uint8:
        0 is none, k the object of `composition.labels[k - 1]`.
    """
    canvas = render_ground(composition.ground, height, width, slice(None), slice(None))
    _paint_clutter(canvas, composition.clutter, composition.clutter_colors)
    shown, number = np.zeros((height, width), dtype=np.uint8), 0
    for layer in composition.layers:
        rows, columns, inside = _paint_layer(canvas, layer)
        number += layer.role == "object"
        # only the visible part counts: what is painted later over an object is taken away again
        shown[rows, columns][inside] = number if layer.role == "object" else 0
    # the same noise in all channels: grey, as the luma noise of a camera
    canvas += (rng.random((height, width), dtype=np.float32) - 0.5) * composition.noise_level
    image = np.empty((height, width, 3), dtype=np.uint8)
    # (3, height, width) in [0, 1] -> (height, width, 3), uint8; + 0.5 rounds
    image[...] = (clip(canvas) * 255 + 0.5).transpose(1, 2, 0)
    return image, shown


def _paint_layer(canvas: Array, layer: Layer) -> tuple[slice, slice, Array]:
    """Blend a layer into the canvas `(3, height, width)`; return a window and the bool mask of the layer in it."""
    height, width = canvas.shape[1:]
    unit = min(height, width)
    reach = layer.size * layer.outline.reach
    rows, columns = (
        slice(max(int((center - reach) * unit) - 1, 0), max(min(int((center + reach) * unit) + 2, side), 0))
        for center, side in zip(layer.center, (height, width), strict=True)
    )
    y = ((np.arange(rows.start, rows.stop, dtype=np.float32) + 0.5) / unit)[:, None]
    x = ((np.arange(columns.start, columns.stop, dtype=np.float32) + 0.5) / unit)[None]
    distance = layer_distance(layer, y, x)
    if layer.ground is not None:
        color = render_ground(layer.ground, height, width, rows, columns)
    elif layer.texture == "plain":
        color = layer.colors[0][:, None, None]
    else:
        first, second = layer.colors[:, :, None, None]
        color = first + texture_weights(layer, y, x, unit) * (second - first)
    shade = 1 + layer.shading[0] * (y - layer.center[0]) + layer.shading[1] * (x - layer.center[1])
    patch = canvas[:, rows, columns]
    patch += clip(0.5 - distance * unit) * (color * shade - patch)
    return rows, columns, distance <= 0


def _paint_clutter(canvas: Array, strokes: Array, colors: Array) -> None:
    """Blend short lines and spots into the canvas, all distances at once on equal small windows."""
    height, width = canvas.shape[1:]
    unit = min(height, width)
    window = min(int(0.14 * unit) + 3, unit)
    # (num_strokes, 5) -> five arrays (num_strokes, 1, 1), to broadcast over the window
    center_y, center_x, angle, half_length, radius = strokes.T[:, :, None, None]
    corners = np.clip((strokes[:, :2] * unit - window / 2).astype(int), 0, (height - window, width - window))
    steps = np.arange(window) + 0.5
    y = ((corners[:, :1] + steps) / unit).astype(np.float32)[:, :, None] - center_y
    x = ((corners[:, 1:] + steps) / unit).astype(np.float32)[:, None, :] - center_x
    cosine, sine = np.cos(angle), np.sin(angle)
    along = np.maximum(np.abs(x * cosine + y * sine) - half_length, 0)
    across = y * cosine - x * sine
    # signed distance to a capsule: a line segment with round ends, or a spot where the length is 0
    distance = np.sqrt(along * along + across * across) - radius
    alpha = 0.85 * clip(0.5 - distance * unit)
    for (top, left), weight, color in zip(corners.tolist(), alpha, colors[:, :, None, None], strict=True):
        patch = canvas[:, top : top + window, left : left + window]
        patch += weight * (color - patch)
