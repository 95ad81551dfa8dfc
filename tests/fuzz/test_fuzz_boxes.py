# SPDX-License-Identifier: Apache-2.0
"""Boxes of any kind: overlap against pixel counting, degenerate and outside ones, from masks and back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy import ndimage

from transformers_ice.data.benchmarks.annotation_files import as_boxes
from transformers_ice.evaluation.metrics import box_iou, contour_boxes, resize_boxes
from transformers_ice.evaluation.metrics import largest_component_box as component_box_of_scipy
from transformers_ice.evaluation.metrics.checks import checked_boxes
from transformers_ice.ice_deit.patch_maps import (
    ImageGeometry,
    box_to_image,
    component_box,
    largest_component,
    nearest_to_image,
    visible_cells,
)
from transformers_ice.visualization import draw_box, outline_mask, outline_segments


MASKS = npst.arrays(bool, npst.array_shapes(min_dims=2, max_dims=2, max_side=9))
SIDES = st.integers(1, 30)


@st.composite
def boxes(draw, size=9):
    x0, x1 = sorted(draw(st.tuples(st.integers(-size, size), st.integers(-size, size))))
    y0, y1 = sorted(draw(st.tuples(st.integers(-size, size), st.integers(-size, size))))
    return [x0, y0, x1, y1]


BOX_LISTS = st.lists(boxes(), min_size=1, max_size=4)


def pixels_of(box, inclusive):
    x0, y0, x1, y1 = box
    return {(x, y) for x in range(x0, x1 + inclusive) for y in range(y0, y1 + inclusive)}


@given(BOX_LISTS, BOX_LISTS, st.booleans())
@example([[0, 0, 0, 0]], [[0, 0, 0, 0]], False)
def test_overlap_is_that_of_the_pixels(first, second, inclusive):
    ious = box_iou(np.array(first), np.array(second), inclusive=inclusive)
    assert ious.shape == (len(first), len(second))
    for i, box in enumerate(first):
        for j, other in enumerate(second):
            own, others = pixels_of(box, inclusive), pixels_of(other, inclusive)
            expected = len(own & others) / len(own | others) if own | others else 0.0
            assert ious[i, j] == pytest.approx(expected, abs=1e-12)
    np.testing.assert_array_equal(ious.T, box_iou(np.array(second), np.array(first), inclusive=inclusive))
    assert box_iou(np.zeros((0, 4)), np.array(second), inclusive=inclusive).shape == (0, len(second))


@given(st.lists(st.lists(st.one_of(st.floats(), st.integers(-3, 3)), max_size=5), max_size=3))
def test_lists_of_numbers_are_boxes_or_refused(values):
    is_array = len({len(box) for box in values}) < 2
    for read in (as_boxes, lambda boxes, name: checked_boxes(name, boxes)) if is_array else (as_boxes,):
        try:
            result = read(values, "here")
        except ValueError as error:
            assert "here" in str(error)
            continue
        assert result.shape[1] == 4
        assert np.isfinite(result).all()
        assert (result[:, :2] <= result[:, 2:]).all()


@given(BOX_LISTS, SIDES, SIDES, SIDES, SIDES)
def test_resized_boxes_keep_their_order_and_stay_in_the_image(values, height, width, new_height, new_width):
    inside = np.clip(np.array(values), 0, [width, height, width, height])
    resized = resize_boxes(inside, (height, width), (new_height, new_width))
    assert (resized >= 0).all()
    assert (resized <= [new_width, new_height] * 2).all()
    assert (resized[:, :2] <= resized[:, 2:]).all()
    np.testing.assert_array_equal(resize_boxes(inside, (height, width), (height, width)), inside)


@given(MASKS)
def test_component_and_its_box_are_those_of_scipy(mask):
    largest = largest_component(mask)
    if not mask.any():
        assert not largest.any()
        assert component_box_of_scipy(mask) is None
        assert contour_boxes(mask)[1] is None
        with pytest.raises(ValueError, match="at least one True cell"):
            component_box(mask)
        return
    labels, number = ndimage.label(mask)
    sizes = ndimage.sum_labels(mask, labels, range(1, number + 1))
    np.testing.assert_array_equal(largest, labels == 1 + int(np.argmax(sizes)))
    box = component_box(largest)
    assert box == tuple(component_box_of_scipy(mask))
    # back: the box holds all of it, and no smaller one does
    left, top, right, bottom = box
    part = largest[top:bottom, left:right]
    assert part.sum() == largest.sum()
    assert part[0].any()
    assert part[-1].any()
    assert part[:, 0].any()
    assert part[:, -1].any()
    contours, _ = contour_boxes(mask)
    outer = component_box(mask)
    assert (contours[:, :2] >= outer[:2]).all()
    assert (contours[:, 2:] <= outer[2:]).all()
    whole = ndimage.label(mask, np.ones((3, 3)))[1]
    assert len(contours) >= whole


@given(MASKS, SIDES, SIDES, SIDES, SIDES, st.integers(1, 30), st.booleans())
def test_box_of_cells_is_the_box_of_their_pixels(mask, height, width, crop_height, crop_width, scale, crops):
    image_size, resized = (height, width), (scale, scale + 3)
    geometry = ImageGeometry.from_resize(image_size, resized)
    if crops:
        geometry = ImageGeometry.from_center_crop(image_size, resized, (crop_height, crop_width))
    seen = mask & visible_cells(mask.shape, geometry)
    if not seen.any():
        return
    left, top, right, bottom = box_to_image(component_box(seen), mask.shape, geometry)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    drawn = nearest_to_image(torch.from_numpy(seen), geometry, fill=False).numpy()
    rows, columns = drawn.any(axis=1), drawn.any(axis=0)
    if drawn.any():
        assert top <= np.flatnonzero(rows)[0]
        assert np.flatnonzero(rows)[-1] < bottom
        assert left <= np.flatnonzero(columns)[0]
        assert np.flatnonzero(columns)[-1] < right


@given(MASKS, st.lists(st.one_of(st.integers(-20, 20), st.floats(-20, 20)), min_size=4, max_size=4), st.integers(1, 9))
def test_any_box_and_mask_is_drawn_on_a_copy(mask, box, thickness):
    image = np.full((*mask.shape, 3), 100, np.uint8)
    before = image.copy()
    drawn = draw_box(image, box)
    assert (drawn.shape, drawn.dtype) == (image.shape, np.uint8)
    outlined = outline_mask(image, mask, thickness=thickness)
    assert (outlined.shape, outlined.dtype) == (image.shape, np.uint8)
    np.testing.assert_array_equal(image, before)
    if not mask.any():
        np.testing.assert_array_equal(outlined, image)


@given(MASKS)
def test_lines_around_a_mask_enclose_it(mask):
    crossings = np.zeros((mask.shape[0], mask.shape[1] + 1), int)
    for (x0, y0), (x1, y1) in outline_segments(mask):
        assert (x0 == x1) != (y0 == y1)
        if x0 == x1:
            crossings[min(y0, y1) : max(y0, y1), x0] += 1
    # inside is where an odd number of lines was crossed on the way from the left edge
    np.testing.assert_array_equal(crossings.cumsum(axis=1)[:, :-1] % 2 == 1, mask)


@given(st.lists(st.sampled_from([0.0, 1.0, math.nan, math.inf, -1.0]), min_size=4, max_size=4))
def test_boxes_that_are_not_finite_or_end_early_are_refused(box):
    is_box = np.isfinite(box).all() and box[0] <= box[2] and box[1] <= box[3]
    if is_box:
        assert checked_boxes("a", box).tolist() == [box]
    else:
        with pytest.raises(ValueError, match="Boxes in `a` must be"):
            checked_boxes("a", box)
