# SPDX-License-Identifier: Apache-2.0
"""Preprocessing of images, and conversion of relevance on the patch grid to score maps and masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from ..explainers import EXPLAINERS
from ..ice_deit.configuration_ice_deit import as_pair
from ..ice_deit.image_conversion import convert_to_rgb
from ..ice_deit.patch_maps import ImageGeometry, grid_size, nearest_to_image


__all__ = [
    "CEILING",
    "CENTER_SIDE",
    "CONTROLS",
    "binary_maps",
    "control_map",
    "explains_classes",
    "get_patch_size",
    "is_hard",
    "majority_grid",
    "model_grid_size",
    "preprocess",
    "preprocess_padded",
    "resize_labels",
    "score_maps",
    "to_unit_range",
    "varies",
]

CEILING = "ceiling"
"""The true mask on the patch grid: the best that any map on it can score."""

CONTROLS = ("whole_image", "center_ellipse", "random")
"""Maps that know nothing of image and model; a method that does not beat them has shown nothing."""

CENTER_SIDE = 0.8  # axes of the ellipse, as a fraction of the sides of the image


def is_hard(method: str) -> bool:
    """Return whether the maps of a method are masks: no threshold, and resized by the nearest patch."""
    return method in (CEILING, "whole_image", "center_ellipse") or (
        method in EXPLAINERS and EXPLAINERS[method].is_hard
    )


def control_map(method: str, size: tuple[int, int], grid_size: tuple[int, int], seed: Sequence[int]) -> Tensor:
    """Return the map of a control: `size` in pixels, 0 or 1; the random one `grid_size`, uniform in [0, 1)."""
    if method == "whole_image":
        return torch.ones(size)
    if method == "random":
        return torch.from_numpy(np.random.default_rng(seed).random(grid_size, dtype=np.float32))
    # centres of the pixels, from -1 to 1 across the image
    y, x = ((torch.arange(side) + 0.5) * 2 / side - 1 for side in size)
    return (y[:, None] ** 2 + x[None, :] ** 2 <= CENTER_SIDE**2).float()


def explains_classes(method: str, with_ice: bool = False) -> bool:
    """Return whether a method takes a target class: ICE's own maps show the whole foreground by default."""
    if method not in EXPLAINERS:
        return False
    return EXPLAINERS[method].takes_target and (with_ice or EXPLAINERS[method].model == "any")


def preprocess(model: PreTrainedModel, image_processor: Any, images: Sequence[Any]) -> Tensor:
    """Return the pixel values of a batch of images, on the model's device."""
    rgb_images = [convert_to_rgb(image) for image in images]
    return image_processor(rgb_images, return_tensors="pt")["pixel_values"].to(model.device)


def preprocess_padded(model: PreTrainedModel, image_processor: Any, image: Any) -> Tensor:
    """Return one image `(1, num_channels, height, width)` at its own size, padded right and below to whole patches.

    Rescaling and normalisation are those of the processor; the padding is zero after them, as in `valeoai/LOST`.
    """
    pixels = image_processor([convert_to_rgb(image)], do_resize=False, do_center_crop=False, return_tensors="pt")
    values = pixels["pixel_values"].to(model.device)
    # pixels up to the next whole patch
    below, right = (-side % cell for side, cell in zip(values.shape[2:], get_patch_size(model), strict=True))
    return torch.nn.functional.pad(values, (0, right, 0, below))  # torch's order: left, right, top, bottom


def get_patch_size(model: PreTrainedModel) -> tuple[int, int]:
    """Return height and width of a patch in pixels."""
    return as_pair(model.config.patch_size)


def model_grid_size(model: PreTrainedModel, input_size: tuple[int, int]) -> tuple[int, int]:
    """Return the rows and columns of patches for an input of `(height, width)`."""
    return grid_size(input_size, get_patch_size(model))


def majority_grid(mask: np.ndarray, geometry: ImageGeometry, grid_size: tuple[int, int]) -> Tensor:
    """Return which patches are mostly foreground: the most accurate 0/1 map that the patch grid allows.

    Args:
        mask: `(height, width)`: 1 foreground, 0 background, -1 ignored; or bool.
        geometry: Resizing and cropping of the image in the preprocessing.
        grid_size: Rows and columns of the patch grid.

    Returns:
        `grid_size`, bool, on the CPU. True where more than half of the counted pixels of the patch are foreground.
    """
    num_patches = grid_size[0] * grid_size[1]
    patch_index = torch.arange(num_patches).view(grid_size)
    owner = nearest_to_image(patch_index, geometry, fill=num_patches).flatten()  # pixels outside a crop: an extra one
    truth = torch.from_numpy(np.ascontiguousarray(mask)).flatten()  # (height * width,), as `owner`
    foreground = torch.bincount(owner[truth == 1], minlength=num_patches)[:num_patches]
    background = torch.bincount(owner[truth == 0], minlength=num_patches)[:num_patches]
    return (foreground > background).view(grid_size)  # (num_patches,) -> (rows, columns)


def binary_maps(relevance: Tensor, method: str, input_size: tuple[int, int]) -> Tensor:
    """Threshold relevance `(batch_size, rows, columns)` to masks: a soft map at its mean, a hard map at 0.

    Bool, on the CPU: `(batch_size, *input_size)` of soft maps, interpolated bilinearly before the threshold;
    `(batch_size, rows, columns)` of hard ones. A constant soft map has no foreground.
    """
    relevance = relevance.cpu()
    if is_hard(method):
        return relevance > 0
    maps = score_maps(relevance, method, input_size)
    # a constant map has no foreground, as in the protocol; interpolated, it is constant up to rounding only
    return (maps > maps.mean(dim=(1, 2), keepdim=True)) & varies(relevance)


def score_maps(relevance: Tensor, method: str, input_size: tuple[int, int], mode: str = "bilinear") -> Tensor:
    """Bring relevance to the resolution of the model's input, `(batch_size, *input_size)`, on the CPU.

    Args:
        relevance: `(batch_size, rows, columns)`, on the patch grid or finer.
        method: Name of the explainer, or "ceiling"; a hard map is enlarged by the nearest patch.
        input_size: Height and width of the model's input.
        mode: Interpolation of soft maps, "bilinear" or "bicubic".
    """
    mode = "nearest-exact" if is_hard(method) else mode
    relevance = relevance.float().cpu()
    # (batch_size, rows, columns) -> (batch_size, 1, rows, columns) -> (batch_size, height, width)
    maps = torch.nn.functional.interpolate(relevance[:, None], size=input_size, mode=mode)[:, 0]
    # a constant map must remain exactly constant: rounding errors would be stretched to relevance
    return torch.where(varies(relevance), maps, relevance[:, :1, :1])


def to_unit_range(maps: Tensor) -> Tensor:
    """Stretch each map of `(batch_size, height, width)` to [0, 1]; a constant or undefined map becomes NaN."""
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)  # (batch_size, 1, 1)
    return (maps - low) / (high - low)  # 0 / 0 is NaN


def varies(relevance: Tensor) -> Tensor:
    """Return which maps of `(batch_size, rows, columns)` are not constant, `(batch_size, 1, 1)`, bool."""
    return relevance.amax(dim=(1, 2), keepdim=True) > relevance.amin(dim=(1, 2), keepdim=True)


def resize_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a map of integers `(height, width)`, of 16 bits at most, by the nearest pixel, as PIL does it."""
    if labels.shape == tuple(size):
        return labels
    picture = Image.fromarray(labels.astype(np.int32))  # 32-bit integers, which PIL does not round
    resized = picture.resize((size[1], size[0]), Image.Resampling.NEAREST)  # PIL takes (width, height)
    return np.asarray(resized).astype(labels.dtype)
