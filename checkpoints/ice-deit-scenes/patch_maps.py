# SPDX-License-Identifier: Apache-2.0
"""From patch logits to maps, masks and boxes, and from the patch grid back to the pixels of the image.

Pure functions: tensors (or plain numbers) in, tensors out. The last class of the last axis is the background.

The way back to the image is computed on each axis by itself, with the centre of every pixel as its position: a pixel
of the original image is followed through the resize and the crop into the patch grid. Positions are ratios of
integers, so nearest maps and boxes are exact for every image size, also where the image is smaller than the grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


__all__ = [
    "ImageGeometry",
    "bilinear_to_image",
    "box_to_image",
    "class_map",
    "class_probability",
    "component_box",
    "foreground_probability",
    "grid_size",
    "largest_component",
    "nearest_to_image",
    "to_grid",
    "visible_cells",
]


def class_map(patch_logits: Tensor) -> Tensor:
    """Return the best class of every patch, int64, in [0, num_labels]; `num_labels` is background."""
    return patch_logits.argmax(dim=-1)


def foreground_probability(patch_logits: Tensor) -> Tensor:
    """Return one minus the softmax probability of the background, `(...)`, float32, in [0, 1]."""
    # The sum over the classes, not 1 - p: a tiny foreground probability keeps its digits.
    return patch_logits.float().softmax(dim=-1)[..., :-1].sum(dim=-1).clamp(max=1.0)


def class_probability(patch_logits: Tensor, target: int) -> Tensor:
    """Return the softmax probability of one class among all classes and background, `(...)`, float32, in [0, 1]."""
    num_labels = patch_logits.shape[-1] - 1
    if not 0 <= target < num_labels:
        raise ValueError(
            f"`target` must be a class index in [0, {num_labels - 1}], got {target}. "
            "For everything but the background leave `target` out."
        )
    return patch_logits.float().softmax(dim=-1)[..., target]


def grid_size(image_size: tuple[int, int], patch_size: tuple[int, int]) -> tuple[int, int]:
    """Return the rows and columns of whole patches in an image; sizes are (height, width) in pixels."""
    return image_size[0] // patch_size[0], image_size[1] // patch_size[1]


def to_grid(values: Tensor, grid_size: tuple[int, int]) -> Tensor:
    """Lay one value per patch, `(..., num_patches)`, out as the patch grid, `(..., rows, columns)`."""
    rows, columns = grid_size
    if rows * columns != values.shape[-1]:
        raise ValueError(
            f"`grid_size` must have as many cells as there are patches, got {rows} x {columns} for "
            f"{values.shape[-1]} patches. Pass `outputs.grid_size`."
        )
    return values.unflatten(-1, (rows, columns))


@dataclass(frozen=True)
class ImageGeometry:
    """What the preprocessing did to the pixels of one image: first a resize, then a crop. Sizes are (height, width).

    `crop_offset` is the position of the crop's first row and column in the resized image, negative where the crop is
    larger than the resized image and was padded. The patch grid covers the crop, edge to edge.
    """

    image_size: tuple[int, int]
    resized_size: tuple[int, int]
    crop_offset: tuple[int, int]
    crop_size: tuple[int, int]

    @classmethod
    def from_resize(cls, image_size: tuple[int, int], resized_size: tuple[int, int]) -> ImageGeometry:
        """Return the geometry of a resize without a crop."""
        return cls(image_size, resized_size, (0, 0), resized_size)

    @classmethod
    def from_center_crop(
        cls, image_size: tuple[int, int], resized_size: tuple[int, int], crop_size: tuple[int, int]
    ) -> ImageGeometry:
        """Return the geometry of a resize followed by the centre crop of transformers, which pads small images."""
        # Rounded down also below zero: transformers pads the larger half before the image.
        top, left = ((resized - crop) // 2 for resized, crop in zip(resized_size, crop_size, strict=True))
        return cls(image_size, resized_size, (top, left), crop_size)

    @property
    def rows(self) -> _Axis:
        """The vertical half of the geometry."""
        return _Axis(self.image_size[0], self.resized_size[0], self.crop_offset[0], self.crop_size[0])

    @property
    def columns(self) -> _Axis:
        """The horizontal half of the geometry."""
        return _Axis(self.image_size[1], self.resized_size[1], self.crop_offset[1], self.crop_size[1])


@dataclass(frozen=True)
class _Axis:
    """One axis of an `ImageGeometry`: lengths in pixels."""

    image: int
    resized: int
    offset: int
    crop: int

    def cell_positions(self, num_cells: int) -> tuple[Tensor, int]:
        """Return for every pixel centre its place on an axis of `num_cells` cells: numerators and the denominator."""
        centers = 2 * torch.arange(self.image) + 1  # in half pixels
        in_crop = centers * self.resized - 2 * self.image * self.offset
        return in_crop * num_cells, 2 * self.image * self.crop

    @property
    def is_inside(self) -> bool:
        """Whether the centres of the first and the last pixel, and so of all, lie in the crop."""
        start, stop = 2 * self.image * self.offset, 2 * self.image * (self.offset + self.crop)
        return start <= self.resized and (2 * self.image - 1) * self.resized < stop

    def span(self, start: int, stop: int, num_cells: int) -> tuple[int, int]:
        """Return the half-open range of pixels whose centres lie in the cells `start` to `stop` (exclusive).

        Where no centre does (an image smaller than the grid), the pixels that the cells touch.
        """
        denominator = num_cells * self.resized
        first, last = ((self.offset * num_cells + cell * self.crop) * self.image for cell in (start, stop))
        # A centre y + 1/2 reaches the edge e from y = ceil(e - 1/2) on.
        low, high = (-((denominator - 2 * edge) // (2 * denominator)) for edge in (first, last))
        low, high = max(low, 0), min(high, self.image)
        if low >= high:
            low, high = max(first // denominator, 0), min(-(-last // denominator), self.image)
        return low, high

    def visible(self, num_cells: int) -> tuple[int, int]:
        """Return the half-open range of cells that the image reaches; the rest of the crop is padding."""
        start, stop = max(0, -self.offset), min(self.crop, self.resized - self.offset)
        return start * num_cells // self.crop, -(-stop * num_cells // self.crop)


def nearest_to_image(grid: Tensor, geometry: ImageGeometry, fill: int | float | bool) -> Tensor:
    """Give every pixel of the original image the value of the patch that its centre lies in.

    `(rows, columns)`, any dtype, becomes `(height, width)`, with `fill` outside the crop.
    """
    rows, _ = _nearest_cells(geometry.rows, grid.shape[0])
    columns, _ = _nearest_cells(geometry.columns, grid.shape[1])
    # columns first: then whole rows are copied, several times as fast as single pixels
    pixels = grid.index_select(1, columns.to(grid.device)).index_select(0, rows.to(grid.device))
    return _fill_outside(pixels, geometry, fill)


def _nearest_cells(axis: _Axis, num_cells: int) -> tuple[Tensor, Tensor]:
    """Return the cell of every pixel (clamped to the grid) and whether the pixel lies in the crop."""
    numerator, denominator = axis.cell_positions(num_cells)
    cells = numerator.div(denominator, rounding_mode="floor")
    return cells.clamp(0, num_cells - 1), (cells >= 0) & (cells < num_cells)


def bilinear_to_image(grid: Tensor, geometry: ImageGeometry, fill: float = 0.0) -> Tensor:
    """Interpolate linearly between the centres of the patches, at the centre of every pixel of the original image.

    `(rows, columns)`, floating point, becomes `(height, width)`, with `fill` outside the crop. Beyond the centres of
    the outermost patches their values are kept, as `interpolate(..., align_corners=False)` does.
    """
    rows, columns = grid.shape
    lower, weight = (part.to(grid.device) for part in _cells_below(geometry.columns, columns))
    left, right = grid.index_select(1, lower), grid.index_select(1, (lower + 1).clamp(max=columns - 1))
    grid = torch.lerp(left, right, weight.to(grid))  # -> (rows, width)
    lower, weight = _cells_below(geometry.rows, rows)
    bands = weight.to(grid).unsqueeze(1).split(lower.bincount(minlength=rows).tolist())
    neighbours = zip(grid, (*grid[1:], grid[-1]), bands, strict=True)
    if grid.requires_grad:
        pixels = torch.cat([torch.lerp(*rows_and_weights) for rows_and_weights in neighbours])
    else:  # a map of a large image is hundreds of megabytes, which are written once
        pixels = grid.new_empty(len(lower), grid.shape[1])
        for band, rows_and_weights in zip(pixels.split([len(band) for band in bands]), neighbours, strict=True):
            torch.lerp(*rows_and_weights, out=band)
    return _fill_outside(pixels, geometry, fill)


def _cells_below(axis: _Axis, num_cells: int) -> tuple[Tensor, Tensor]:
    """Return the cell whose centre comes before that of every pixel, and the weight of the cell after it, float64."""
    numerator, denominator = axis.cell_positions(num_cells)
    position = (numerator.double() / denominator - 0.5).clamp(0, num_cells - 1)
    lower = position.floor()
    return lower.long(), position - lower


def _fill_outside(values: Tensor, geometry: ImageGeometry, fill: int | float | bool) -> Tensor:
    """Overwrite the pixels outside the crop with `fill`, in place."""
    for dim, axis in enumerate((geometry.rows, geometry.columns)):
        if axis.is_inside:
            continue
        outside = (~_nearest_cells(axis, 1)[1]).nonzero().squeeze(1)
        if len(outside):
            values.index_fill_(dim, outside.to(values.device), fill)
    return values


def visible_cells(grid_size: tuple[int, int], geometry: ImageGeometry) -> np.ndarray:
    """Return which cells of the grid show any of the image, `(rows, columns)`, bool; the others show only padding."""
    mask = np.zeros(grid_size, dtype=bool)
    (top, bottom), (left, right) = geometry.rows.visible(grid_size[0]), geometry.columns.visible(grid_size[1])
    mask[top:bottom, left:right] = True
    return mask


def largest_component(mask: np.ndarray) -> np.ndarray:
    """Keep only the largest 4-connected component of a mask `(rows, columns)`, bool.

    All False where `mask` is. Among components of equal size, the one whose first cell comes first in row-major order.
    """
    labels = _component_labels(mask)
    found, sizes = np.unique(labels[mask], return_counts=True)
    return labels == found[sizes.argmax()] if found.size else np.zeros_like(mask)


def _component_labels(mask: np.ndarray) -> np.ndarray:
    """Label every cell of a component with the row-major index of the component's first cell, the rest with -1."""
    outside = mask.size
    labels = np.where(mask, np.arange(mask.size).reshape(mask.shape), outside)
    padded = np.full((mask.shape[0] + 2, mask.shape[1] + 2), outside)
    while True:
        padded[1:-1, 1:-1] = labels
        neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
        smallest = np.where(mask, np.minimum.reduce((labels, *neighbours)), outside)
        # A label is the index of a cell of the same component: taking that cell's label halves the way to go.
        smallest = np.append(smallest, outside)[smallest]
        if np.array_equal(smallest, labels):
            return np.where(mask, labels, -1)
        labels = smallest


def component_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return the tightest box `(x_min, y_min, x_max, y_max)` around a mask that is not empty, half-open, in cells."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        raise ValueError(
            f"`mask` must have at least one True cell, got none in shape {mask.shape}. Check `mask.any()` first."
        )
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def box_to_image(
    box: tuple[int, int, int, int], grid_size: tuple[int, int], geometry: ImageGeometry
) -> tuple[int, int, int, int]:
    """Carry a box of grid cells back to the pixels of the original image; it must touch `visible_cells`.

    Boxes are half-open `(x_min, y_min, x_max, y_max)`. The pixels are those that `nearest_to_image` draws from those
    cells; at least one, also where the image is smaller than the grid.
    """
    left, right = geometry.columns.span(box[0], box[2], grid_size[1])
    top, bottom = geometry.rows.span(box[1], box[3], grid_size[0])
    return left, top, right, bottom
