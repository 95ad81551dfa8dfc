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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from .composition import CLASS_LOOKS, Composition, compose, compose_several
from .painting import paint


if TYPE_CHECKING:
    from datasets import Dataset

__all__ = [
    "SCENE_CLASSES",
    "SPLIT_SIZES",
    "Scene",
    "SeveralScene",
    "draw_scene",
    "draw_several_scene",
    "load_scenes",
]

SCENE_CLASSES: tuple[str, ...] = tuple(f"{color} {texture}" for color, texture in CLASS_LOOKS)
SPLIT_SIZES: dict[str, int] = {"train": 20000, "validation": 1000, "test": 2000}

# Part of the cache key: raise it with every change of the drawing, or an old cache would be served.
_DRAWING_VERSION = 4
_SEVERAL_VERSION = 1  # the same for scenes of several objects
_MIN_SIZE = 16  # pixels; in smaller scenes no texture is visible
_SHARD_SIZE = 250  # scenes that one process draws at a time

Array = np.ndarray
Box = tuple[int, int, int, int]


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
    box: Box


@dataclass(frozen=True)
class SeveralScene:
    """One drawn image with no object to three, of different classes, and its exact annotation.

    Attributes:
        image: `(height, width, 3)`, uint8 RGB.
        labels: Indices into `SCENE_CLASSES`, ascending.
        class_mask: `(height, width)`, uint8: 1 + the class of the object that is visible there, 0 elsewhere.
        boxes: Tight box of the visible part of each object, `(x0, y0, x1, y1)` in pixels, half-open, as `labels`.
    """

    image: Array
    labels: tuple[int, ...]
    class_mask: Array
    boxes: tuple[Box, ...]


def _box(mask: Array) -> Box:
    """Return the tight box of a mask `(height, width)`, bool, half-open."""
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1


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
    image, shown, (label,) = _draw(compose, index, split, image_size, seed)
    mask = shown > 0
    return Scene(image, label, mask, _box(mask))


def draw_several_scene(
    index: int, split: str = "train", image_size: int | tuple[int, int] = 96, seed: int = 0
) -> SeveralScene:
    """Draw one scene with no object to three, of different classes; it depends on the arguments only.

    Of each object at least 60 % of the area is visible and 80 % lies inside the image. Distractors have the same sizes
    and shapes, and looks that no class has.

    Args:
        index: Position in the split, from 0. Every 4 consecutive images from a multiple of 4 hold 0, 1, 2 and 3
            objects once, every 20 from a multiple of 20 each class three times.
        split: "train", "validation" or "test"; splits share no random state, nor do they with `draw_scene`.
        image_size: Side, or (height, width), in pixels, at least 16.
        seed: Non-negative seed of the whole data set.

    Returns:
        The image with its labels, class mask and tight boxes.

    Raises:
        ValueError: If the split is unknown, the size too small, or the index or seed negative.
    """
    image, shown, labels = _draw(compose_several, index, split, image_size, seed)
    # class mask value by the number of the object
    class_mask = np.array([0, *(label + 1 for label in labels)], dtype=np.uint8)[shown]
    ascending = tuple(sorted(labels))
    return SeveralScene(image, ascending, class_mask, tuple(_box(class_mask == label + 1) for label in ascending))


def _draw(
    compose_scene: Callable[..., tuple[Composition, np.random.Generator]],
    index: int,
    split: str,
    image_size: int | tuple[int, int],
    seed: int,
) -> tuple[Array, Array, tuple[int, ...]]:
    """Return image, number of the visible object of each pixel, and the labels of the objects."""
    _check_split(split)
    height, width = _as_size(image_size)
    if index < 0 or seed < 0:
        raise ValueError(f"`index` and `seed` must be at least 0, got {index} and {seed}.")
    unit = min(height, width)  # pixels in one shorter side, the unit of every length
    composition, rng = compose_scene(index, list(SPLIT_SIZES).index(split), (height / unit, width / unit), seed)
    return *paint(composition, height, width, rng), composition.labels


def _encode_png(array: Array) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG", compress_level=1)
    return {"bytes": buffer.getvalue(), "path": None}


def _generate(
    starts: list[int], num_images: int, split: str, image_size: tuple[int, int], seed: int, config_name: str | None
) -> Iterator[dict[str, Any]]:
    """Yield the rows of the shards that begin at `starts`."""
    row = _single_row if config_name is None else _several_row
    for start in starts:
        for index in range(start, min(start + _SHARD_SIZE, num_images)):
            yield row(index, split, image_size, seed)


def _single_row(*arguments: Any) -> dict[str, Any]:
    scene = draw_scene(*arguments)
    return {
        "image": _encode_png(scene.image),
        "label": scene.label,
        "mask": _encode_png(scene.mask.astype(np.uint8) * 255),
        "box": list(scene.box),
    }


def _several_row(*arguments: Any) -> dict[str, Any]:
    scene = draw_several_scene(*arguments)
    return {
        "image": _encode_png(scene.image),
        "label": list(scene.labels),
        "mask": _encode_png((scene.class_mask > 0).astype(np.uint8) * 255),
        "class_mask": _encode_png(scene.class_mask),
        "boxes": [list(box) for box in scene.boxes],
    }


def load_scenes(
    split: str,
    num_images: int | None = None,
    image_size: int | tuple[int, int] = 96,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    num_proc: int | None = None,
    config_name: str | None = None,
) -> Dataset:
    """Return a split of the scenes as a `datasets.Dataset`, drawn once and then served from the cache.

    Args:
        split: "train", "validation" or "test".
        num_images: Number of images; `None` takes `SPLIT_SIZES`. A smaller set is a prefix of a larger one.
        image_size: Side, or (height, width), in pixels, at least 16.
        seed: Non-negative seed of the whole data set.
        cache_dir: Cache folder; `None` takes that of `datasets`.
        num_proc: Number of processes that draw. The images do not depend on it.
        config_name: `None` for one object an image (`draw_scene`), "several" for none to three (`draw_several_scene`).

    Returns:
        A data set with columns `image` (RGB), `label` (class label with `SCENE_CLASSES`), `mask` (mode L, 255 on the
        visible object) and `box` (x0, y0, x1, y1 in pixels, half-open). Of "several" `label` is a list of classes,
        ascending, `mask` is 255 on any object, `class_mask` (mode L) 1 + the class on each object and 0 elsewhere, and
        `boxes` the list of the objects' boxes, in the order of `label`.

    Raises:
        ImportError: If `datasets` is not installed.
        ValueError: If the split or configuration is unknown, a size too small or `num_images` not positive.
    """
    try:
        from datasets import ClassLabel, Dataset, Features, Image, List, Value
    except ImportError as error:
        raise ImportError("`load_scenes` needs `datasets`: pip install transformers-ice[train]") from error
    _check_split(split)
    if config_name not in (None, "several"):
        raise ValueError(f"`config_name` must be None (one object an image) or 'several', got {config_name!r}.")
    size = _as_size(image_size)
    count = SPLIT_SIZES[split] if num_images is None else num_images
    if count < 1 or seed < 0:
        raise ValueError(f"`num_images` must be at least 1 and `seed` at least 0, got {count} and {seed}.")
    starts = list(range(0, count, _SHARD_SIZE))
    names, box = ClassLabel(names=list(SCENE_CLASSES)), List(Value("int32"), length=4)
    features = {"image": Image(), "label": names, "mask": Image(), "box": box}
    content: tuple[Any, ...] = ("scenes", _DRAWING_VERSION)
    if config_name is not None:
        features = {"image": Image(), "label": List(names), "mask": Image(), "class_mask": Image(), "boxes": List(box)}
        content = ("several scenes", _DRAWING_VERSION, _SEVERAL_VERSION)
    key = repr((*content, split, count, size, seed))
    arguments = {"num_images": count, "split": split, "image_size": size, "seed": seed, "config_name": config_name}
    return Dataset.from_generator(
        _generate,
        features=Features(features),
        cache_dir=None if cache_dir is None else str(cache_dir),
        gen_kwargs={"starts": starts, **arguments},
        num_proc=None if num_proc is None else max(1, min(num_proc, len(starts))),
        fingerprint=hashlib.sha256(key.encode()).hexdigest()[:16],
    )
