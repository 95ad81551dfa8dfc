# SPDX-License-Identifier: Apache-2.0
"""The parts of a scene: outlines, colours, grounds, layers and textures, before any of them is placed.

An outline lives in its own frame (size 1, centre 0) as a signed distance, negative inside; a layer puts it into the
image. Coordinates are (y, x) in shorter image sides, lengths too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


__all__ = [
    "COLORS",
    "SHAPES",
    "TEXTURES",
    "Ground",
    "Layer",
    "Outline",
    "clip",
    "draw_class_colors",
    "draw_colors",
    "draw_ground",
    "draw_neutral_colors",
    "draw_outline",
    "layer_distance",
    "render_ground",
    "texture_weights",
]

SHAPES = ("disc", "star", "cross", "triangle")
TEXTURES = ("striped", "checked", "dotted")
# Hue, and the range of luma in which the hue goes by that name (a dark yellow is brown).
COLORS = {
    "red": (0.0, (0.25, 0.5)),
    "yellow": (0.15, (0.5, 0.8)),
    "green": (0.36, (0.3, 0.65)),
    "blue": (0.6, (0.2, 0.45)),
    "purple": (0.8, (0.2, 0.5)),
}
_OCTAVES = ((4, 1.0), (6, 0.7), (10, 0.45), (20, 0.35))  # grid cells per side, amplitude
_NUM_CELLS = sum(cells for cells, _ in _OCTAVES)
_NEUTRAL = (0.0, 0.2)  # saturation

Array = np.ndarray


@dataclass(frozen=True)
class Ground:
    """Coloured multi-octave noise: a base colour `(3,)` and the random grids, block-diagonal, `(3, cells, cells)`."""

    base: Array
    grids: Array


@dataclass(frozen=True)
class Outline:
    """A shape in its own frame: size 1, centre 0; `reach` bounds it, `area` is its area."""

    family: str
    parameters: tuple[float, ...]
    area: float
    reach: float


@dataclass(frozen=True)
class Layer:
    """An outline placed in the image (y, x in shorter sides) and what fills it."""

    role: str
    outline: Outline
    center: tuple[float, float]
    size: float
    angle: float
    texture: str
    colors: Array
    pattern: tuple[float, float, float, float]
    shading: tuple[float, float]
    ground: Ground | None = None


def _disc_distance(x: Array, y: Array, parameters: tuple[float, ...]) -> Array:
    (aspect,) = parameters
    return (np.sqrt(x * x + y * y * (1 / aspect**2)) - 1) * aspect


def _star_distance(x: Array, y: Array, parameters: tuple[float, ...]) -> Array:
    """Fold the plane into half a point of the star, where the outline is one straight edge."""
    points, inner = parameters
    sector = 2 * math.pi / points
    angle = np.arctan2(y, x)
    angle = np.abs(angle - sector * np.round(angle * (1 / sector)))
    # The edge runs from the tip (1, 0) to the notch, at radius `inner` and half a sector away.
    run, rise = 1 - inner * math.cos(sector / 2), inner * math.sin(sector / 2)
    length = math.hypot(run, rise)
    tilt = math.atan2(run, rise)
    return np.sqrt(x * x + y * y) * np.cos(angle - tilt) - rise / length


def _cross_distance(x: Array, y: Array, parameters: tuple[float, ...]) -> Array:
    (arm,) = parameters
    x, y = np.abs(x), np.abs(y)
    return np.maximum(np.minimum(x, y) - arm, np.maximum(x, y) - 1)


def _triangle_distance(x: Array, y: Array, parameters: tuple[float, ...]) -> Array:
    """Take the farthest of three half-planes; the parameters are the angles of the corners on the unit circle."""
    distances = []
    for start, end in zip(parameters, (*parameters[1:], parameters[0] + 2 * math.pi), strict=True):
        middle = (start + end) / 2
        distances.append(x * math.cos(middle) + y * math.sin(middle) - math.cos((end - start) / 2))
    return np.maximum(np.maximum(distances[0], distances[1]), distances[2])


def _blob_distance(x: Array, y: Array, parameters: tuple[float, ...]) -> Array:
    """Compare the radius with 1 + sum of waves 2..5 around the centre (amplitude, phase of each)."""
    radius = np.sqrt(x * x + y * y) + 1e-6
    direction = (x + 1j * y) / radius
    power, limit = direction.copy(), np.ones_like(radius)
    for amplitude, phase in zip(parameters[::2], parameters[1::2], strict=True):
        power *= direction
        limit += amplitude * math.cos(phase) * power.real - amplitude * math.sin(phase) * power.imag
    return (radius - limit) * 0.8


def _bar_distance(x: Array, y: Array, parameters: tuple[float, ...]) -> Array:
    (length,) = parameters
    return np.maximum(np.abs(x) - 1, np.abs(y) - length)


_DISTANCES = {
    "disc": _disc_distance,
    "star": _star_distance,
    "cross": _cross_distance,
    "triangle": _triangle_distance,
    "blob": _blob_distance,
    "bar": _bar_distance,
}


def draw_outline(rng: np.random.Generator, family: str) -> Outline:
    """Draw the proportions of a shape; the ranges keep the families apart at 64 pixels."""
    if family == "disc":
        aspect = rng.uniform(0.72, 1.0)
        return Outline(family, (aspect,), math.pi * aspect, 1.0)
    if family == "star":
        points, inner = int(rng.integers(5, 8)), rng.uniform(0.42, 0.54)
        return Outline(family, (points, inner), points * inner * math.sin(math.pi / points), 1.0)
    if family == "cross":
        arm = rng.uniform(0.28, 0.38)
        return Outline(family, (arm,), 8 * arm - 4 * arm**2, math.hypot(1, arm))
    if family == "triangle":
        turns = rng.uniform(-0.22, 0.22, 3).tolist()
        first, second, third = (turn + corner * math.pi / 3 for turn, corner in zip(turns, (0, 2, 4), strict=True))
        area = (math.sin(second - first) + math.sin(third - second) + math.sin(first - third)) / 2
        return Outline(family, (first, second, third), area, 1.0)
    # Strong low waves: a blob must not pass for a disc.
    ranges = ((0.14, 0.28), (0.14, 0.24), (0.06, 0.14), (0.04, 0.09))
    shares, turns = rng.random((2, 4)).tolist()
    amplitudes = [low + (high - low) * share for (low, high), share in zip(ranges, shares, strict=True)]
    waves = [value for pair in zip(amplitudes, turns, strict=True) for value in (pair[0], pair[1] * 2 * math.pi)]
    area = math.pi * (1 + sum(amplitude**2 for amplitude in amplitudes) / 2)
    return Outline("blob", tuple(waves), area, 1 + sum(amplitudes))


def layer_distance(layer: Layer, y: Array, x: Array) -> Array:
    """Return the signed distance to the outline in shorter sides, for coordinates that broadcast."""
    # into the frame of the outline: translate, rotate, scale to size 1
    cosine, sine = math.cos(layer.angle) / layer.size, math.sin(layer.angle) / layer.size
    y, x = y - layer.center[0], x - layer.center[1]
    distance = _DISTANCES[layer.outline.family](x * cosine + y * sine, y * cosine - x * sine, layer.outline.parameters)
    return distance * layer.size


def _color(luma: float, hue: float, saturation: float) -> tuple[float, float, float]:
    """Return the RGB colour of a luma; hue and saturation are in [0, 1]."""
    pure = [min(max(abs((hue * 6 + shift) % 6 - 3) - 1, 0), 1) for shift in (0, 4, 2)]
    # ITU-R BT.601, as PIL converts to grey
    pure_luma = 0.299 * pure[0] + 0.587 * pure[1] + 0.114 * pure[2]
    # Darken towards black or lighten towards white, whichever leads to the wanted luma.
    if luma < pure_luma:
        colored = [channel * luma / pure_luma for channel in pure]
    else:
        colored = [1 - (1 - channel) * (1 - luma) / max(1 - pure_luma, 1e-6) for channel in pure]
    red, green, blue = (luma + (channel - luma) * saturation for channel in colored)
    return red, green, blue


def draw_colors(rng: np.random.Generator, lumas: list[float], saturation: tuple[float, float]) -> Array:
    """Draw one colour of random hue, and saturation in a range, for each luma in (0, 1), `(num_colors, 3)`."""
    chroma = rng.uniform((0, saturation[0]), (1, saturation[1]), (len(lumas), 2)).tolist()
    return np.array([_color(luma, *pair) for luma, pair in zip(lumas, chroma, strict=True)], dtype=np.float32)


def draw_neutral_colors(rng: np.random.Generator) -> Array:
    """Draw two greyish colours whose lumas differ by 0.4 to 0.6, in random order, `(2, 3)`."""
    contrast, darkness, order = rng.random(3).tolist()
    contrast = 0.4 + 0.2 * contrast
    dark = 0.06 + (0.88 - contrast) * darkness
    return draw_colors(rng, [dark, dark + contrast] if order < 0.5 else [dark + contrast, dark], _NEUTRAL)


def draw_class_colors(rng: np.random.Generator, name: str) -> Array:
    """Draw a saturated colour of `COLORS` and a greyish one whose luma differs by 0.4 to 0.55, `(2, 3)`."""
    hue, (low, high) = COLORS[name]
    turn, luma, saturation, contrast, side = rng.random(5).tolist()
    luma, contrast = low + (high - low) * luma, 0.4 + 0.15 * contrast
    colored = _color(luma, (hue + 0.06 * (turn - 0.5)) % 1, 0.75 + 0.25 * saturation)
    sides = [value for value in (luma - contrast, luma + contrast) if 0.04 < value < 0.96] or [luma + 0.4]
    (neutral,) = draw_colors(rng, [sides[int(side * len(sides))]], _NEUTRAL)
    return np.stack([np.array(colored, dtype=np.float32), neutral])


def draw_ground(rng: np.random.Generator, base: Array) -> Ground:
    """Draw the noise of a ground around a base colour `(3,)`."""
    contrast = rng.uniform(0.1, 0.2)
    values = rng.standard_normal((4, sum(cells**2 for cells, _ in _OCTAVES)), dtype=np.float32)
    # The channels have most of the field in common, so a ground varies in brightness more than in hue.
    values = (0.8 * contrast) * values[:1] + (0.5 * contrast) * values[1:]
    grids = np.zeros((3, _NUM_CELLS, _NUM_CELLS), dtype=np.float32)
    begin = used = 0
    for cells, amplitude in _OCTAVES:
        block = values[:, used : used + cells**2].reshape(3, cells, cells)
        grids[:, begin : begin + cells, begin : begin + cells] = amplitude * block
        begin, used = begin + cells, used + cells**2
    return Ground(base, grids)


@lru_cache(maxsize=16)
def _spline_matrix(size: int) -> Array:
    """Return the cubic B-spline weights that spread the control values of all octaves over `size` pixels."""
    blocks = []
    for cells, _ in _OCTAVES:
        position = (np.arange(size) + 0.5) / size * (cells - 3)
        offsets = np.abs(position[:, None] + 1 - np.arange(cells))
        # the two pieces of the cubic B-spline, for distances below 1 and from 1 to 2
        near = 2 / 3 - offsets**2 + offsets**3 / 2
        far = np.clip(2 - offsets, 0, None) ** 3 / 6
        blocks.append(np.where(offsets < 1, near, far))
    return np.concatenate(blocks, axis=1).astype(np.float32)


def render_ground(ground: Ground, height: int, width: int, rows: slice, columns: slice) -> Array:
    """Render a window of a ground, `(3, rows, columns)`."""
    # (3 * cells, cells) @ (cells, columns), then (rows, cells) @ (3, cells, columns) -> (3, rows, columns)
    across = ground.grids.reshape(-1, _NUM_CELLS) @ _spline_matrix(width)[columns].T
    field = _spline_matrix(height)[rows] @ across.reshape(3, _NUM_CELLS, -1)
    field += ground.base[:, None, None]
    return field


def clip(values: Array) -> Array:
    """Clip to [0, 1]; several times faster than `np.clip` on small arrays."""
    return np.minimum(np.maximum(values, 0), 1)


def texture_weights(layer: Layer, y: Array, x: Array, unit: int) -> Array:
    """Return the fraction of the second colour in each pixel, antialiased, in [0, 1]."""
    period, angle, *phase = layer.pattern
    # A check or dot lattice needs a longer period than stripes to be as legible.
    period = period * {"striped": 1.0, "checked": 1.25, "dotted": 1.1}[layer.texture]
    cosine, sine = math.cos(angle) / period, math.sin(angle) / period
    sharpness = period * unit
    across = x * cosine + y * sine + phase[0]
    if layer.texture == "striped":
        return clip((np.abs(across - np.floor(across) - 0.5) - 0.25) * sharpness + 0.5)
    along = y * cosine - x * sine + phase[1]
    if layer.texture == "checked":
        # Each factor runs from 0 to 1 across an edge; equal factors make one colour, unequal ones the other.
        first, second = (
            clip((np.abs(value - np.floor(value) - 0.5) - 0.25) * sharpness + 0.5) for value in (across, along)
        )
        return first + second - 2 * first * second
    # Hexagonal dots: two rectangular lattices, one shifted by half a cell.
    along = along * (1 / math.sqrt(3))
    squared = []
    for shift in (0, 0.5):
        first, second = across + shift, along + shift
        first, second = first - np.round(first), second - np.round(second)
        squared.append(first * first + 3 * (second * second))
    return clip((0.31 - np.sqrt(np.minimum(*squared))) * sharpness + 0.5)
