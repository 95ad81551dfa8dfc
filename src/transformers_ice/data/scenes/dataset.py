# SPDX-License-Identifier: Apache-2.0
"""Draw the embedded data set "scenes": one object of a known class, mask and box among distractors.

A class is a texture in a colour ("red checked", "blue striped", ...), so that one cue alone never decides it. Each
colour makes a class with two of the three textures; with the third it makes a look that belongs to no class. Every
image also holds two or three *distractors*: smaller things with a colour and a texture whose combination belongs to no
class. Often there are a shape with one of the colours but no texture, and a blob with one of the textures but no
colour. All of them are drawn independently of the label, on a cluttered background, since a photograph too shows more
than its label names. The shape of a thing (disc, star, cross, triangle) is independent of its class. Labels,
masks and boxes are exact.

All random numbers of a scene come from `(seed, split, index)` and are drawn in relative units before anything is
rendered: lengths in shorter image sides, so the same scene at another size of the same aspect is the same composition.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from .composition import CLASS_LOOKS, Composition, compose
from .layers import Layer, clip, layer_distance, render_ground, texture_weights


if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["SCENE_CLASSES", "SPLIT_SIZES", "Scene", "draw_scene", "load_scenes"]

SCENE_CLASSES: tuple[str, ...] = tuple(f"{color} {texture}" for color, texture in CLASS_LOOKS)
SPLIT_SIZES: dict[str, int] = {"train": 20000, "validation": 1000, "test": 2000}

# Part of the cache key: raise it with every change of the drawing, or an old cache would be served.
_DRAWING_VERSION = 4
_MIN_SIZE = 16  # pixels; in smaller scenes no texture is visible
_SHARD_SIZE = 250  # scenes that one process draws at a time

Array = np.ndarray


@dataclass(frozen=True)
class Scene:
    """One drawn image with its exact annotation.

    Attributes:
        image: `(height, width, 3)`, uint8 RGB.
        label: Index into `SCENE_CLASSES`.
        mask: `(height, width)`, bool, True where the object is visible (not where it is occluded).
        box: Tight box of `mask`, `(x0, y0, x1, y1)` in pixels, half-open.
    """

    image: Array
    label: int
    mask: Array
    box: tuple[int, int, int, int]


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


def _render(composition: Composition, height: int, width: int, rng: np.random.Generator) -> Scene:
    """Paint a composition back to front and read the annotation off the visible object."""
    canvas = render_ground(composition.ground, height, width, slice(None), slice(None))
    _paint_clutter(canvas, composition.clutter, composition.clutter_colors)
    mask = np.zeros((height, width), dtype=bool)
    for layer in composition.layers:
        rows, columns, inside = _paint_layer(canvas, layer)
        # the mask is the visible part: what is painted later over the object is taken away again
        if layer.role == "object":
            mask[rows, columns] = inside
        elif layer.role == "occluder":
            mask[rows, columns] &= ~inside
    # the same noise in all channels: grey, as the luma noise of a camera
    canvas += (rng.random((height, width), dtype=np.float32) - 0.5) * composition.noise_level
    image = np.empty((height, width, 3), dtype=np.uint8)
    # (3, height, width) in [0, 1] -> (height, width, 3), uint8; + 0.5 rounds
    image[...] = (clip(canvas) * 255 + 0.5).transpose(1, 2, 0)
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = (int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1)
    return Scene(image, composition.label, mask, box)


def _check_split(split: str) -> None:
    if split not in SPLIT_SIZES:
        raise ValueError(f"`split` must be one of {', '.join(SPLIT_SIZES)}, got {split!r}.")


def _as_size(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Return (height, width), or raise if it is no usable size."""
    sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(sides) != 2 or min(sides) < _MIN_SIZE:
        raise ValueError(
            f"`image_size` must be an int or (height, width), each at least {_MIN_SIZE}, got {image_size!r}: "
            "smaller scenes show no texture."
        )
    return int(sides[0]), int(sides[1])


def draw_scene(index: int, split: str = "train", image_size: int | tuple[int, int] = 96, seed: int = 0) -> Scene:
    """Draw one scene; it depends on the arguments only.

    Args:
        index: Position in the split, from 0. Every 10 consecutive images from a multiple of 10 hold every class once.
        split: "train", "validation" or "test"; splits share no random state.
        image_size: Side, or (height, width), in pixels, at least 16.
        seed: Non-negative seed of the whole data set.

    Returns:
        The image with its label, visible mask and tight box.

    Raises:
        ValueError: If the split is unknown, the size too small, or the index or seed negative.
    """
    _check_split(split)
    height, width = _as_size(image_size)
    if index < 0 or seed < 0:
        raise ValueError(f"`index` and `seed` must be at least 0, got {index} and {seed}.")
    unit = min(height, width)  # pixels in one shorter side, the unit of every length
    composition, rng = compose(index, list(SPLIT_SIZES).index(split), (height / unit, width / unit), seed)
    return _render(composition, height, width, rng)


def _encode_png(array: Array) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG", compress_level=1)
    return {"bytes": buffer.getvalue(), "path": None}


def _generate(
    starts: list[int], num_images: int, split: str, image_size: tuple[int, int], seed: int
) -> Iterator[dict[str, Any]]:
    """Yield the rows of the shards that begin at `starts`."""
    for start in starts:
        for index in range(start, min(start + _SHARD_SIZE, num_images)):
            scene = draw_scene(index, split, image_size, seed)
            yield {
                "image": _encode_png(scene.image),
                "label": scene.label,
                "mask": _encode_png(scene.mask.astype(np.uint8) * 255),
                "box": list(scene.box),
            }


def load_scenes(
    split: str,
    num_images: int | None = None,
    image_size: int | tuple[int, int] = 96,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    num_proc: int | None = None,
) -> Dataset:
    """Return a split of the scenes as a `datasets.Dataset`, drawn once and then served from the cache.

    Args:
        split: "train", "validation" or "test".
        num_images: Number of images; `None` takes `SPLIT_SIZES`. A smaller set is a prefix of a larger one.
        image_size: Side, or (height, width), in pixels, at least 16.
        seed: Non-negative seed of the whole data set.
        cache_dir: Cache folder; `None` takes that of `datasets`.
        num_proc: Number of processes that draw. The images do not depend on it.

    Returns:
        A data set with columns `image` (RGB), `label` (class label with `SCENE_CLASSES`), `mask` (mode L, 255 on the
        visible object) and `box` (x0, y0, x1, y1 in pixels, half-open).

    Raises:
        ImportError: If `datasets` is not installed.
        ValueError: If the split is unknown, a size too small or `num_images` not positive.
    """
    try:
        from datasets import ClassLabel, Dataset, Features, Image, List, Value
    except ImportError as error:
        raise ImportError("`load_scenes` needs `datasets`: pip install transformers-ice[train]") from error
    _check_split(split)
    size = _as_size(image_size)
    count = SPLIT_SIZES[split] if num_images is None else num_images
    if count < 1 or seed < 0:
        raise ValueError(f"`num_images` must be at least 1 and `seed` at least 0, got {count} and {seed}.")
    starts = list(range(0, count, _SHARD_SIZE))
    key = repr(("scenes", _DRAWING_VERSION, split, count, size, seed))
    features = {
        "image": Image(),
        "label": ClassLabel(names=list(SCENE_CLASSES)),
        "mask": Image(),
        "box": List(Value("int32"), length=4),
    }
    return Dataset.from_generator(
        _generate,
        features=Features(features),
        cache_dir=None if cache_dir is None else str(cache_dir),
        gen_kwargs={"starts": starts, "num_images": count, "split": split, "image_size": size, "seed": seed},
        num_proc=None if num_proc is None else max(1, min(num_proc, len(starts))),
        fingerprint=hashlib.sha256(key.encode()).hexdigest()[:16],
    )
