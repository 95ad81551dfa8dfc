# SPDX-License-Identifier: Apache-2.0
"""Maps lie where the pixels are that the patches saw, for every size, aspect ratio, crop and padding.

The way into the model is that of the real preprocessing, pixel by pixel; the way back is that of the maps. Two kinds
of pictures tell where a patch really came from: checkerboards, whose squares are one patch each, and ramps, whose
brightness says how far to the right or down a pixel stood.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from transformers_ice.ice_deit.image_processing_ice_deit import IceDeiTImageProcessor
from transformers_ice.visualization import overlay_class_map, overlay_heatmap


PATCH = 16
RAW = {"do_rescale": False, "do_normalize": False}  # 8-bit values in, 8-bit values out
PREPROCESSING = {
    "squashed": {"size": {"height": 224, "width": 224}},
    "squashed to a rectangle": {"size": {"height": 160, "width": 288}},
    "shortest edge": {"size": {"shortest_edge": 224}},
    "deit": {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}},
    "wide crop": {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 112, "width": 240}},
    "padded": {"size": {"shortest_edge": 160}, "do_center_crop": True, "crop_size": {"height": 320, "width": 320}},
}
# (height, width): smaller and larger than the model's size, even and odd, square to one to four
SIZES = [(224, 224), (97, 97), (480, 640), (641, 479), (333, 1000), (1200, 300), (181, 262), (720, 1280)]


def gives_whole_patches(settings: dict, size: tuple[int, int]) -> bool:
    """Whether the model takes what the preprocessing makes of an image: multiples of its patch size."""
    if settings.get("do_center_crop") or "height" in settings["size"]:
        return True
    return all(int(settings["size"]["shortest_edge"] * side / min(size)) % PATCH == 0 for side in size)


CASES = [
    pytest.param(settings, size, id=f"{name}-{size[0]}x{size[1]}")
    for name, settings in PREPROCESSING.items()
    for size in [*SIZES, (448, 512), (300, 150)]
    if gives_whole_patches(settings, size)
]


def enters(processor: IceDeiTImageProcessor, image: np.ndarray) -> np.ndarray:
    """One channel of what reaches the model, cut down to whole patches, `(height, width)`."""
    values = processor(Image.fromarray(image).convert("RGB"), return_tensors="np")["pixel_values"][0, 0]
    return values.astype(np.float64)


def grid_of(values: np.ndarray) -> tuple[int, int]:
    return values.shape[0] // PATCH, values.shape[1] // PATCH


def outputs_of(classes: np.ndarray) -> SimpleNamespace:
    """What a model returns that sees class 0, or background (1), in each cell of the grid."""
    logits = torch.nn.functional.one_hot(torch.tensor(classes.ravel()), 2).float() * 20
    grid = torch.tensor([classes.shape])
    return SimpleNamespace(logits=logits.mean(0, keepdim=True)[:, :1], patch_logits=logits[None], grid_size=grid)


def ramp(size: tuple[int, int], axis: int, start: float, length: float) -> np.ndarray:
    """Brightness along one axis: 0 up to `start`, then rising to 255 over `length` pixels."""
    centers = (np.arange(size[axis]) + 0.5 - start) / length
    values = np.round(np.clip(centers, 0, 1) * 255).astype(np.uint8)
    return np.repeat(values[:, None], size[1], 1) if axis == 0 else np.repeat(values[None], size[0], 0)


def brightness_at(values: np.ndarray, axis: int, edge: int) -> float:
    """Brightness on the line between two pixels, in the middle of the picture."""
    line = values[:, values.shape[1] // 2] if axis == 0 else values[values.shape[0] // 2]
    return (line[edge - 1] + line[edge]) / 2


def seen_position(processor: IceDeiTImageProcessor, size: tuple[int, int], axis: int, edge: int) -> float | None:
    """Where the line between two pixels in front of the model stood in the image, or None near and in padding.

    A ramp over the whole image says it roughly; a steeper one around that place says it to a part of a pixel.
    """
    rough = brightness_at(enters(processor, ramp(size, axis, 0, size[axis])), axis, edge) / 255 * size[axis]
    start = rough - 32
    for _ in range(2):
        brightness = brightness_at(enters(processor, ramp(size, axis, start, 64)), axis, edge)
        start += brightness / 4 - 32
    is_ramp = 100 < brightness < 155 and 8 < rough < size[axis] - 8
    return start + 32 if is_ramp else None


def shape_in_front(processor: IceDeiTImageProcessor, size: tuple[int, int]) -> tuple[int, int]:
    return enters(processor, np.zeros(size, np.uint8)).shape


@pytest.mark.parametrize(("settings", "size"), CASES)
def test_the_edges_of_a_map_are_where_the_pixels_were_within_one_pixel(settings, size):
    settings = {**settings, "size": dict(settings["size"])}
    processor = IceDeiTImageProcessor(**settings, **RAW)
    shape = shape_in_front(processor, size)
    rows, columns = shape[0] // PATCH, shape[1] // PATCH
    for axis, cells in ((0, rows), (1, columns)):
        for cell in {1, cells // 2, cells - 1}:
            seen = seen_position(processor, size, axis, cell * PATCH)
            if seen is None:  # padding
                continue
            classes = np.ones((rows, columns), np.int64)
            (classes[:cell] if axis == 0 else classes[:, :cell])[...] = 0
            outputs = outputs_of(classes)
            (mask,) = processor.post_process_foreground(outputs, [size])
            along = mask.numpy().any(axis=1 - axis)
            edge = np.flatnonzero(along)[-1] + 1
            assert abs(edge - seen) <= 1, (axis, cell, edge, seen)
            (found,) = processor.post_process_object_localization(outputs, [size])
            assert found["boxes"][0, 3 if axis == 0 else 2] == edge
            heat = processor.post_process_heatmap(outputs, [size])[0].numpy().max(axis=1 - axis)
            crossing = np.flatnonzero(heat > 0.5)[-1] + 1  # half way between the two cells' centres: their edge
            assert abs(crossing - seen) <= 1


def squares_of(processor: IceDeiTImageProcessor, length: int, resized: int, cells: int) -> np.ndarray:
    """In which square, from 1, the centre of each pixel lies along an axis; 0 or `cells + 1` outside of all."""
    front = cells * PATCH
    offset = np.floor((resized - front) / 2) if processor.do_center_crop else 0.0
    edges = (offset + np.arange(cells + 1) * PATCH) / resized * length
    return np.searchsorted(edges, np.arange(length) + 0.5)


@pytest.mark.parametrize(("settings", "size"), CASES)
def test_a_checkerboard_comes_back_as_it_was_within_one_pixel(settings, size):
    processor = IceDeiTImageProcessor(**settings, **RAW)
    shape = shape_in_front(processor, size)
    cells = (shape[0] // PATCH, shape[1] // PATCH)
    resized = shape
    if edge := settings["size"].get("shortest_edge"):
        resized = tuple(int(edge * length / min(size)) for length in size)
    squares = [squares_of(processor, size[axis], resized[axis], cells[axis]) for axis in (0, 1)]
    inside = [(index > 0) & (index <= count) for index, count in zip(squares, cells, strict=True)]
    board = ((squares[0][:, None] + squares[1][None]) % 2 == 0) & inside[0][:, None] & inside[1][None]
    values = enters(processor, np.where(board, 255, 0).astype(np.uint8))
    shown = enters(
        processor, np.full(size, 255, np.uint8)
    )  # a patch on the border may be padding but for a few pixels
    white, visible = (
        (front > 127).reshape(cells[0], PATCH, cells[1], PATCH).sum(axis=(1, 3)) for front in (values, shown)
    )
    (mask,) = processor.post_process_foreground(outputs_of(np.where(2 * white > visible, 0, 1)), [size])
    assert mask.any()
    # a wrong pixel must touch the true edge: nothing of it survives where the neighbourhood is all of one colour
    wrong = mask.numpy() != board
    padded = np.pad(board, 1, mode="edge")
    around = np.stack([padded[y : y + size[0], x : x + size[1]] for y in (0, 1, 2) for x in (0, 1, 2)])
    assert not np.any(wrong & (around.all(0) | ~around.any(0)))


@pytest.mark.parametrize("size", [*SIZES, (1, 1), (1, 300), (300, 1), (7, 5)], ids=str)
def test_overlays_have_the_pixels_of_the_image(size):
    processor = IceDeiTImageProcessor(**RAW)
    classes = np.ones((14, 14), np.int64)
    classes[3:9, 4:10] = 0
    outputs, image = outputs_of(classes), np.full((*size, 3), 100, np.uint8)
    (class_map,) = processor.post_process_semantic_segmentation(outputs, [size])
    (heatmap,) = processor.post_process_heatmap(outputs, [size])
    assert overlay_class_map(image, class_map.numpy(), {0: "#ff0000"}).shape == image.shape
    painted = overlay_class_map(image, class_map.numpy(), {0: "#ff0000"})[..., 0] > 150
    assert np.array_equal(painted, class_map.numpy() == 0)
    assert overlay_heatmap(image, heatmap.numpy()).shape == image.shape
