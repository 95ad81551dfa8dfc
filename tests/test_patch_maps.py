# SPDX-License-Identifier: Apache-2.0
"""Maps, masks and boxes on the patch grid, and their way back to the image."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage

from transformers_ice.ice_deit.patch_maps import (
    ImageGeometry,
    bilinear_to_image,
    box_to_image,
    class_map,
    class_probability,
    component_box,
    foreground_probability,
    grid_size,
    largest_component,
    nearest_to_image,
    to_grid,
    visible_cells,
)


SIZES = [(8, 8), (7, 13), (1, 1), (1, 50), (50, 1), (3, 2), (33, 200), (224, 224), (375, 500)]
GRIDS = [(4, 4), (2, 5), (1, 1), (14, 14)]
# (resized size, crop size): larger, smaller and odd, cropped, padded, and one of each
CROPS = [((256, 256), (224, 224)), ((64, 301), (96, 128)), ((5, 6), (8, 9)), ((9, 9), (4, 7))]


def geometries() -> list[ImageGeometry]:
    squashed = [ImageGeometry.from_resize(size, (32, 96)) for size in SIZES]
    return squashed + [ImageGeometry.from_center_crop(size, *crop) for size in SIZES for crop in CROPS]


def position(pixel: int, axis: int, geometry: ImageGeometry, num_cells: int) -> Fraction:
    """Follow the centre of a pixel through resize and crop into the grid, exactly."""
    resized = (pixel + Fraction(1, 2)) * geometry.resized_size[axis] / geometry.image_size[axis]
    return (resized - geometry.crop_offset[axis]) * num_cells / geometry.crop_size[axis]


def samples(length: int) -> range:
    """About eight positions from the first on."""
    return range(0, length, 1 + length // 8)


# Patches


def test_last_class_is_background_and_the_first_of_equal_scores_wins():
    logits = torch.tensor([[1.0, 3.0, 2.0], [1.0, 1.0, 5.0], [4.0, 0.0, 4.0], [0.0, 0.0, 0.0]])
    assert class_map(logits).tolist() == [1, 2, 0, 0]


def test_foreground_probability_is_one_minus_that_of_background():
    logits = torch.randn(2, 5, 4)
    expected = 1 - logits.double().softmax(-1)[..., -1]
    # float32 rounding of a sum of three terms
    torch.testing.assert_close(foreground_probability(logits).double(), expected, rtol=0, atol=3e-7)


def test_foreground_probability_keeps_the_digits_of_tiny_values_and_stays_in_range():
    tiny = foreground_probability(torch.tensor([0.0, 0.0, 30.0]))
    torch.testing.assert_close(tiny.item(), 2 * float(np.exp(-30.0)), rtol=1e-5, atol=0)
    assert foreground_probability(torch.randn(1000, 300) * 20).max() <= 1


def test_half_precision_logits_give_float32_probabilities():
    assert foreground_probability(torch.randn(3, 4, dtype=torch.bfloat16)).dtype == torch.float32


def test_class_probability_counts_background_among_the_competitors():
    logits = torch.log(torch.tensor([[1.0, 2.0, 5.0]]))
    # softmax of log-weights; float32
    torch.testing.assert_close(class_probability(logits, 1), torch.tensor([0.25]), rtol=1e-6, atol=0)
    total = class_probability(logits, 0) + class_probability(logits, 1)
    torch.testing.assert_close(total, foreground_probability(logits), rtol=1e-6, atol=0)


@pytest.mark.parametrize("target", [-1, 2, 3])
def test_background_and_unknown_indices_are_no_targets(target):
    with pytest.raises(ValueError, match=r"`target` must be a class index in \[0, 1\], got"):
        class_probability(torch.zeros(4, 3), target)


def test_patches_are_laid_out_row_by_row():
    assert to_grid(torch.arange(6), (2, 3)).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert to_grid(torch.zeros(2, 6), (3, 2)).shape == (2, 3, 2)


def test_a_grid_has_rows_and_columns_of_whole_patches():
    assert grid_size((224, 224), (16, 16)) == (14, 14)
    assert grid_size((64, 96), (8, 16)) == (8, 6)
    assert grid_size((70, 31), (16, 16)) == (4, 1), "a patch that is cut off is none"


def test_a_grid_of_another_number_of_patches_is_refused():
    with pytest.raises(ValueError, match=r"`grid_size` must have as many cells as there are patches, got 2 x 2 for 6"):
        to_grid(torch.arange(6), (2, 2))


# Nearest


def test_nearest_repeats_patches_by_hand():
    grid = torch.tensor([[1, 2], [3, 4]])
    image = nearest_to_image(grid, ImageGeometry.from_resize((4, 4), (32, 32)), fill=9)
    assert image.tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]


def test_nearest_fills_what_a_crop_cut_off_by_hand():
    grid = torch.tensor([[1, 2], [3, 4]])
    # 4x8 pixels, the middle 4x4 of them are the crop
    image = nearest_to_image(grid, ImageGeometry.from_center_crop((4, 8), (4, 8), (4, 4)), fill=9)
    assert image.tolist() == [[9, 9, 1, 1, 2, 2, 9, 9]] * 2 + [[9, 9, 3, 3, 4, 4, 9, 9]] * 2


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("grid_size", GRIDS)
def test_nearest_agrees_with_pil_and_torch_for_every_size(size, grid_size):
    geometry = ImageGeometry.from_resize(size, (64, 96))
    grid = torch.randperm(grid_size[0] * grid_size[1]).reshape(grid_size)
    ours = nearest_to_image(grid, geometry, fill=0).numpy()
    pil = Image.fromarray(grid.numpy().astype(np.int32)).resize(size[::-1], Image.Resampling.NEAREST)
    theirs = F.interpolate(grid[None, None].double(), size=size, mode="nearest-exact")[0, 0].numpy()
    # where a centre falls on the edge of two patches, the rounding errors of the others decide for them
    rows, columns = (
        [i for i in range(size[axis]) if position(i, axis, geometry, grid_size[axis]).denominator > 1]
        for axis in (0, 1)
    )
    for other in (np.asarray(pil), theirs):
        assert np.array_equal(ours[rows][:, columns], other[rows][:, columns])


@pytest.mark.parametrize("geometry", geometries(), ids=str)
def test_nearest_follows_the_definition(geometry):
    rows, columns = 3, 4
    grid = torch.arange(rows * columns).reshape(rows, columns)
    ours = nearest_to_image(grid, geometry, fill=-1)
    assert ours.shape == geometry.image_size
    row_cells = [floor(position(y, 0, geometry, rows)) for y in range(geometry.image_size[0])]
    column_cells = [floor(position(x, 1, geometry, columns)) for x in range(geometry.image_size[1])]
    for y in samples(len(row_cells)):
        for x in samples(len(column_cells)):
            inside = 0 <= row_cells[y] < rows and 0 <= column_cells[x] < columns
            assert ours[y, x] == (grid[row_cells[y], column_cells[x]] if inside else -1)


def test_nearest_keeps_the_type_of_the_grid():
    geometry = ImageGeometry.from_center_crop((4, 8), (4, 8), (4, 4))
    mask = nearest_to_image(torch.ones(2, 2, dtype=torch.bool), geometry, fill=False)
    assert mask.dtype == torch.bool
    assert mask.sum() == 16


# Bilinear


def test_bilinear_by_hand():
    image = bilinear_to_image(torch.tensor([[0.0, 1.0]]), ImageGeometry.from_resize((1, 8), (16, 32)))
    # centres of the two patches at 2 and 6 pixels; constant outside of them
    assert image.tolist() == [[0.0, 0.0, 0.125, 0.375, 0.625, 0.875, 1.0, 1.0]]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("grid_size", GRIDS)
def test_bilinear_agrees_with_torch_for_every_size(size, grid_size):
    grid = torch.rand(grid_size, dtype=torch.float64)
    ours = bilinear_to_image(grid, ImageGeometry.from_resize(size, (64, 96)))
    theirs = F.interpolate(grid[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)  # float64 rounding


@pytest.mark.parametrize("geometry", geometries(), ids=str)
def test_bilinear_follows_the_definition_and_is_zero_outside_the_crop(geometry):
    rows, columns = 3, 4
    grid = torch.rand(rows, columns) + 0.5
    ours = bilinear_to_image(grid, geometry)
    height, width = geometry.image_size
    for y in samples(height):
        for x in samples(width):
            row, column = position(y, 0, geometry, rows), position(x, 1, geometry, columns)
            if not (0 <= row < rows and 0 <= column < columns):
                assert ours[y, x] == 0
                continue
            expected = sum(
                max(0.0, 1 - abs(float(min(max(row - Fraction(1, 2), 0), rows - 1)) - i))
                * max(0.0, 1 - abs(float(min(max(column - Fraction(1, 2), 0), columns - 1)) - j))
                * grid[i, j].item()
                for i in range(rows)
                for j in range(columns)
            )
            assert ours[y, x].item() == pytest.approx(expected, abs=1e-6)  # float32 weights


def test_bilinear_never_leaves_the_range_of_the_grid():
    for size in SIZES:
        image = bilinear_to_image(torch.ones(14, 14), ImageGeometry.from_resize(size, (224, 224)))
        assert image.min() == image.max() == 1


def test_a_bilinear_map_passes_gradients_and_has_the_same_values_with_them():
    geometry, grid = ImageGeometry.from_resize((33, 50), (28, 28)), torch.rand(4, 7, requires_grad=True)
    image = bilinear_to_image(grid, geometry)
    assert torch.equal(image, bilinear_to_image(grid.detach(), geometry))
    image.sum().backward()
    assert grid.grad.sum().item() == pytest.approx(image.numel(), rel=1e-5)  # the weights of a pixel sum to 1


def test_the_grid_itself_comes_back_at_its_own_size():
    grid, geometry = torch.rand(5, 3), ImageGeometry.from_resize((5, 3), (5, 3))
    assert torch.equal(bilinear_to_image(grid, geometry), grid)
    assert torch.equal(nearest_to_image(grid, geometry, fill=0), grid)


# Components and boxes


def test_largest_component_is_four_connected_by_hand():
    mask = np.array([[1, 0, 0, 1], [0, 1, 0, 1], [0, 1, 1, 0], [0, 0, 0, 1]], dtype=bool)
    expected = np.array([[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]], dtype=bool)
    assert np.array_equal(largest_component(mask), expected)


def test_of_equal_components_the_first_in_row_major_order_is_kept():
    mask = np.array([[0, 0, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0]], dtype=bool)
    assert np.argwhere(largest_component(mask)).tolist() == [[0, 2], [0, 3]]


def test_an_empty_mask_has_no_component():
    assert not largest_component(np.zeros((3, 4), dtype=bool)).any()


def test_largest_component_agrees_with_scipy():
    rng = np.random.default_rng(0)
    for trial in range(300):
        shape = tuple(rng.integers(1, 20, size=2))
        mask = rng.random(shape) < (trial % 10) / 10
        labels, count = ndimage.label(mask)
        sizes = ndimage.sum_labels(mask, labels, range(1, count + 1))
        # scipy numbers components in row-major order of their first cells, argmax takes the first
        expected = labels == 1 + int(np.argmax(sizes)) if count else mask
        assert np.array_equal(largest_component(mask), expected)


def test_a_long_spiral_is_one_component():
    spiral = np.zeros((41, 41), dtype=bool)
    for ring in range(0, 20, 2):  # concentric rings, joined by one cell each
        spiral[ring, ring : 41 - ring] = spiral[40 - ring, ring : 41 - ring] = True
        spiral[ring : 41 - ring, ring] = spiral[ring : 41 - ring, 40 - ring] = True
        spiral[ring + 1, ring + 2 + (ring * 7) % (37 - 2 * ring)] = True
    assert ndimage.label(spiral)[1] == 1
    assert np.array_equal(largest_component(spiral), spiral)


def test_component_box_is_half_open_xyxy():
    mask = np.array([[0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]], dtype=bool)
    assert component_box(mask) == (1, 1, 3, 3)


def test_an_empty_mask_has_no_box():
    with pytest.raises(ValueError, match="`mask` must have at least one True cell"):
        component_box(np.zeros((2, 2), dtype=bool))


def test_box_to_image_by_hand():
    geometry = ImageGeometry.from_resize((40, 80), (64, 64))
    assert box_to_image((1, 0, 3, 2), (4, 4), geometry) == (20, 0, 60, 20)
    cropped = ImageGeometry.from_center_crop((100, 200), (100, 200), (80, 80))
    assert box_to_image((0, 0, 1, 4), (4, 4), cropped) == (60, 10, 80, 90)


@pytest.mark.parametrize("geometry", geometries(), ids=str)
def test_a_box_bounds_exactly_the_pixels_that_nearest_draws(geometry):
    grid_size, (height, width) = (4, 5), geometry.image_size
    shown = visible_cells(grid_size, geometry)
    for x0, y0, x1, y1 in [(0, 0, 1, 1), (1, 1, 3, 4), (0, 0, 5, 4), (4, 3, 5, 4), (2, 0, 3, 4), (0, 2, 5, 3)]:
        cells = torch.zeros(grid_size, dtype=torch.bool)
        cells[y0:y1, x0:x1] = True
        if not (cells.numpy() & shown).any():
            continue
        left, top, right, bottom = box_to_image((x0, y0, x1, y1), grid_size, geometry)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        drawn = nearest_to_image(cells, geometry, fill=False).numpy()
        if drawn.any():
            assert component_box(drawn) == (left, top, right, bottom)
        else:  # a sliver between two pixel centres
            assert right - left <= 2 or bottom - top <= 2


def test_an_image_smaller_than_the_grid_still_has_a_box():
    geometry = ImageGeometry.from_resize((1, 1), (224, 224))
    assert box_to_image((0, 0, 1, 1), (14, 14), geometry) == (0, 0, 1, 1)
    line = ImageGeometry.from_resize((28, 1), (224, 224))
    assert box_to_image((0, 3, 2, 5), (14, 14), line) == (0, 6, 1, 10)


def test_padding_of_a_large_crop_is_not_visible():
    geometry = ImageGeometry.from_center_crop((4, 8), (4, 8), (8, 8))  # two rows of padding above and below
    assert geometry.crop_offset == (-2, 0)
    assert visible_cells((4, 4), geometry).tolist() == [[False] * 4, [True] * 4, [True] * 4, [False] * 4]
    assert visible_cells((2, 2), geometry).all()
    assert visible_cells((4, 4), ImageGeometry.from_resize((3, 5), (8, 8))).all()
