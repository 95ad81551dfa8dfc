# SPDX-License-Identifier: Apache-2.0
"""Composition of a scene: all its random numbers but the pixel noise, in units independent of the image size."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from .layers import (
    COLORS,
    SHAPES,
    TEXTURES,
    Ground,
    Layer,
    Outline,
    draw_class_colors,
    draw_colors,
    draw_ground,
    draw_neutral_colors,
    draw_outline,
    layer_distance,
)


__all__ = ["CLASS_LOOKS", "OTHER_LOOKS", "Composition", "compose", "compose_several"]

_COLOR_NAMES = tuple(COLORS)

# (colour, texture). Two of the three textures make a class of each colour; the third is a look that no class has, so
# that "coloured and textured" alone does not separate the object from its distractors.
CLASS_LOOKS, OTHER_LOOKS = (
    tuple(
        (color, texture)
        for row, color in enumerate(_COLOR_NAMES)
        for column, texture in enumerate(TEXTURES)
        if ((row - column) % len(TEXTURES) != 0) == is_class
    )
    for is_class in (True, False)
)
_NUM_CLASSES = len(CLASS_LOOKS)

Array = np.ndarray


@dataclass(frozen=True)
class Composition:
    """Everything of a scene that does not depend on the number of pixels, back to front.

    `labels` are the classes of the layers of role "object", in their order.
    """

    labels: tuple[int, ...]
    ground: Ground
    clutter: Array
    clutter_colors: Array
    layers: tuple[Layer, ...]
    noise_level: float

    @property
    def label(self) -> int:
        """The class of the only object."""
        (label,) = self.labels
        return label


def _sample_points(layer: Layer) -> tuple[Array, Array]:
    """Return the coordinates of a fixed grid of points inside a layer."""
    steps = np.linspace(-1, 1, 19, dtype=np.float32) * (layer.size * layer.outline.reach)
    y, x = (steps + layer.center[0])[:, None], (steps + layer.center[1])[None]
    rows, columns = np.nonzero(layer_distance(layer, y, x) <= 0)
    return y[rows, 0], x[0, columns]


def _place(rng: np.random.Generator, outline: Outline, area: float, **fields: Any) -> Layer:
    """Make a layer of an area (in squared shorter sides) with random angle and pattern."""
    period, turn, first, second, angle, *shading = rng.random(7).tolist()
    return Layer(
        outline=outline,
        size=math.sqrt(area / outline.area),
        angle=angle * 2 * math.pi,
        pattern=(1 / (7.5 + 3 * period), turn * 2 * math.pi, first, second),
        shading=(0.7 * (shading[0] - 0.5), 0.7 * (shading[1] - 0.5)),
        **fields,
    )


def _draw_thing(rng: np.random.Generator, look: tuple[str, str], area: float, **fields: Any) -> Layer:
    """Draw any shape in a colour and a texture, either of the two colours on top."""
    color, texture = look
    outline, colors = draw_outline(rng, _choose(rng, SHAPES)), draw_class_colors(rng, color)
    return _place(rng, outline, area, texture=texture, colors=colors if rng.random() < 0.5 else colors[::-1], **fields)


def _draw_object(rng: np.random.Generator, label: int, extent: tuple[float, float]) -> Layer:
    """Draw the object, at least 80 % of it inside the image: the class's texture and colour on any shape."""
    # 18 to 38 % of the squared shorter side: larger than every distractor
    layer = _draw_thing(rng, CLASS_LOOKS[label], rng.uniform(0.18, 0.38), role="object", center=(0.0, 0.0))
    return _move_inside(layer, rng.uniform(-0.3, 0.3, 2).tolist(), extent)


def _move_inside(layer: Layer, offset: list[float], extent: tuple[float, float]) -> Layer:
    """Place a layer at an offset from the middle, in heights and widths, or nearer until 80 % of it is inside."""
    y, x = _sample_points(replace(layer, center=(0.0, 0.0)))
    offset_y, offset_x = offset
    # in the middle enough of it always is
    while True:
        top, left = offset_y * extent[0], offset_x * extent[1]
        inside = (np.abs(y + top) < extent[0] / 2) & (np.abs(x + left) < extent[1] / 2)
        if np.count_nonzero(inside) >= 0.8 * len(y) or max(abs(offset_y), abs(offset_x)) < 0.01:
            return replace(layer, center=(extent[0] / 2 + top, extent[1] / 2 + left))
        offset_y, offset_x = offset_y * 0.8, offset_x * 0.8


def _draw_center(rng: np.random.Generator, layers: list[Layer], extent: tuple[float, float]) -> tuple[float, float]:
    """Return the one of eight random places that is farthest outside the layers drawn so far."""
    candidates = (rng.uniform(0.05, 0.95, (8, 2)) * extent).tolist()
    # radius of a disc of the same area: exact outlines would not place better
    radii = [layer.size * math.sqrt(layer.outline.area / math.pi) for layer in layers]

    def gap(candidate: list[float]) -> float:
        gaps = (math.dist(candidate, layer.center) - radius for layer, radius in zip(layers, radii, strict=True))
        return min(gaps, default=0.0)

    y, x = max(candidates, key=gap)
    return y, x


def _choose(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def _draw_other_things(rng: np.random.Generator, target: Layer, extent: tuple[float, float]) -> list[Layer]:
    """Draw distractors (a look that no class has), shapes without texture and blobs without colour."""
    roles = (
        ["distractor"] * int(rng.integers(2, 4))  # two or three
        + ["shape"] * int(rng.integers(2))  # none or one
        + ["texture"] * int(rng.integers(2))
    )
    layers = [target]
    for role in roles:
        center = _draw_center(rng, layers, extent)
        layers.append(_OTHER_THINGS[role](rng, role=role, center=center))
    return layers[1:]


def _draw_distractor(rng: np.random.Generator, **fields: Any) -> Layer:
    look = OTHER_LOOKS[int(rng.integers(len(OTHER_LOOKS)))]
    return _draw_thing(rng, look, rng.uniform(0.08, 0.16), **fields)


def _draw_plain_shape(rng: np.random.Generator, **fields: Any) -> Layer:
    outline, texture = draw_outline(rng, _choose(rng, SHAPES)), _choose(rng, ("plain", "blotchy"))
    colors = draw_class_colors(rng, _choose(rng, _COLOR_NAMES))
    layer = _place(rng, outline, rng.uniform(0.05, 0.1), texture=texture, colors=colors, **fields)
    return replace(layer, ground=draw_ground(rng, colors[0])) if texture == "blotchy" else layer


def _draw_grey_blob(rng: np.random.Generator, **fields: Any) -> Layer:
    outline, texture = draw_outline(rng, "blob"), _choose(rng, TEXTURES)
    return _place(rng, outline, rng.uniform(0.05, 0.1), texture=texture, colors=draw_neutral_colors(rng), **fields)


_OTHER_THINGS = {"distractor": _draw_distractor, "shape": _draw_plain_shape, "texture": _draw_grey_blob}


def _draw_occluder(rng: np.random.Generator, target: Layer, ground: Ground, extent: tuple[float, float]) -> Layer:
    """Draw a bar or blob of ground material over at most 28 % of the visible object."""
    if rng.random() < 0.5:
        length = rng.uniform(4, 9)
        outline, area = Outline("bar", (length,), 4 * length, math.hypot(1, length)), length * 0.0075
    else:
        outline, area = draw_outline(rng, "blob"), rng.uniform(0.05, 0.1)
    base = np.clip(ground.base + rng.uniform(-0.15, 0.15, 3), 0.1, 0.9).astype(np.float32)
    fields = {"role": "occluder", "texture": "ground", "colors": base[None], "ground": draw_ground(rng, base)}
    layer = _place(rng, outline, area, center=(0.0, 0.0), **fields)
    y, x = _sample_points(target)
    # only points inside the image count as visible
    shown = (y > 0) & (y < extent[0]) & (x > 0) & (x < extent[1])
    y, x = y[shown], x[shown]
    direction = layer.angle if outline.family == "bar" else rng.uniform(0, 2 * math.pi)
    distance = 0.3 * target.size
    # push the occluder outwards until it covers little enough; far outside it covers nothing
    while True:
        center = (target.center[0] + distance * math.sin(direction), target.center[1] + distance * math.cos(direction))
        if np.count_nonzero(layer_distance(layer, y - center[0], x - center[1]) <= 0) <= 0.28 * len(y):
            return replace(layer, center=center)
        distance *= 1.1


def _draw_background(rng: np.random.Generator, extent: tuple[float, float]) -> tuple[Ground, Array, Array]:
    """Draw the ground, and the strokes on it with their colours."""
    ground = draw_ground(rng, draw_colors(rng, [rng.uniform(0.2, 0.8)], saturation=(0.1, 0.4))[0])
    num_clutter = int(rng.integers(8, 17))
    # Centre, angle, half length, radius; half of the strokes are spots.
    low, high = (0, 0, 0, 0.02, 0.006), (extent[0], extent[1], math.pi, 0.05, 0.016)
    clutter = rng.uniform(low, high, (num_clutter, 5)).astype(np.float32)
    clutter[: num_clutter // 2, 3] = 0
    clutter_colors = rng.uniform(0.05, 0.95, (num_clutter, 3)).astype(np.float32)
    return ground, clutter, clutter_colors


@lru_cache(maxsize=16)
def _block_labels(seed: int, split_index: int, block: int) -> tuple[int, ...]:
    """Return the labels of as many consecutive scenes as there are classes: every class once, in random order."""
    # The key is one longer than that of a scene, so no scene shares this state.
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(split_index, block, 0)))
    return tuple(rng.permutation(_NUM_CLASSES).tolist())


def compose(
    index: int, split_index: int, extent: tuple[float, float], seed: int
) -> tuple[Composition, np.random.Generator]:
    """Draw a scene: the composition, and the generator from which its pixel noise is to be drawn.

    `split_index` separates the random states of the splits; `extent` is (height, width) in shorter sides.
    """
    # every block of consecutive scenes holds each class once
    block, position = divmod(index, _NUM_CLASSES)
    label = _block_labels(seed, split_index, block)[position]
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(split_index, index)))
    background = _draw_background(rng, extent)
    target = _draw_object(rng, label, extent)
    layers = [*_draw_other_things(rng, target, extent), target]
    # one scene in three is occluded
    if rng.random() < 1 / 3:
        layers.append(_draw_occluder(rng, target, background[0], extent))
    noise_level = rng.uniform(0.03, 0.1)
    return Composition((label,), *background, tuple(layers), noise_level), rng


MAX_OBJECTS = 3
_SEVERAL_BLOCK = 20  # scenes: five with each number of objects, 30 objects, three of each class
_SEVERAL_AREA = (0.1, 0.17)  # of the squared shorter side: three objects and a distractor have room
_LEAST_VISIBLE = 0.65  # of an object's area; pixels may make it a little less


@lru_cache(maxsize=16)
def _block_label_lists(seed: int, split_index: int, block: int) -> tuple[tuple[int, ...], ...]:
    """Return the classes of each of 20 consecutive scenes: each class thrice, each number of objects in every four."""
    # as above: the last number makes the key that of no other state
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(split_index, block, 2)))
    counts = [rng.permutation(MAX_OBJECTS + 1) for _ in range(_SEVERAL_BLOCK // (MAX_OBJECTS + 1))]
    ends = np.cumsum(np.concatenate(counts))
    labels = np.repeat(np.arange(_NUM_CLASSES), ends[-1] // _NUM_CLASSES)
    # about one order in five has no class twice in a scene
    while True:
        parts = [part.tolist() for part in np.split(rng.permutation(labels), ends[:-1])]
        if all(len(set(part)) == len(part) for part in parts):
            return tuple(tuple(part) for part in parts)


def compose_several(
    index: int, split_index: int, extent: tuple[float, float], seed: int
) -> tuple[Composition, np.random.Generator]:
    """Draw a scene of no object to three, of different classes; arguments and results are those of `compose`.

    Objects and distractors are drawn alike, so that only the look of a thing makes it an object: sizes, places and
    order from back to front are of one distribution, and there are three or four of them, however many are objects.
    """
    block, position = divmod(index, _SEVERAL_BLOCK)
    labels = _block_label_lists(seed, split_index, block)[position]
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(split_index, index, 1)))
    background = _draw_background(rng, extent)
    num_distractors = int(rng.integers(3, 5)) - len(labels)
    looks = [("object", CLASS_LOOKS[label]) for label in labels]
    looks += [("distractor", OTHER_LOOKS[int(rng.integers(len(OTHER_LOOKS)))]) for _ in range(num_distractors)]
    looks = [looks[place] for place in rng.permutation(len(looks))]
    things = [
        _draw_thing(rng, look, rng.uniform(*_SEVERAL_AREA), role=role, center=(0.0, 0.0)) for role, look in looks
    ]
    layers = _arrange(rng, things, background[0], extent)
    roles = ["shape"] * int(rng.integers(2)) + ["texture"] * int(rng.integers(2))
    lowest: list[Layer] = []
    for role in roles:
        center = _draw_center(rng, [*layers, *lowest], extent)
        lowest.append(_OTHER_THINGS[role](rng, role=role, center=center))
    labels = tuple(CLASS_LOOKS.index(look) for role, look in looks if role == "object")
    return Composition(labels, *background, (*lowest, *layers), rng.uniform(0.03, 0.1)), rng


def _arrange(
    rng: np.random.Generator, things: list[Layer], ground: Ground, extent: tuple[float, float]
) -> list[Layer]:
    """Place things apart, every third time with an occluder over one of them, until all objects are visible."""
    is_occluded, target = rng.random() < 1 / 3, int(rng.integers(len(things)))
    while True:
        layers: list[Layer] = []
        for thing in things:
            center = _draw_center(rng, layers, extent)
            offset = [place / side - 0.5 for place, side in zip(center, extent, strict=True)]
            layers.append(_move_inside(thing, offset, extent))
        if is_occluded:
            layers.append(_draw_occluder(rng, layers[target], ground, extent))
        if all(
            _visible_ratio(layer, layers[place + 1 :], extent) >= _LEAST_VISIBLE
            for place, layer in enumerate(layers)
            if layer.role == "object"
        ):
            return layers


def _visible_ratio(layer: Layer, above: list[Layer], extent: tuple[float, float]) -> float:
    """Return the fraction of a layer's area that is inside the image and not covered by layers above it."""
    y, x = _sample_points(layer)
    visible = (y > 0) & (y < extent[0]) & (x > 0) & (x < extent[1])
    for other in above:
        visible &= layer_distance(other, y, x) > 0
    return np.count_nonzero(visible) / len(y)
