# SPDX-License-Identifier: Apache-2.0
"""Boxes by hand on small masks, contours as OpenCV draws them, and both against SciPy and counted pixels."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from transformers_ice.evaluation.metrics import (
    box_iou,
    contour_boxes,
    largest_component_box,
    normalize_score_map,
    resize_boxes,
)


def picture(*lines):
    """Return a mask from lines of # and ."""
    return np.array([[letter == "#" for letter in line] for line in lines])


def test_iou_by_hand_in_both_conventions():
    first, second = [[0, 0, 3, 3]], [[0, 0, 3, 1], [2, 2, 5, 5], [3, 3, 5, 5], [4, 4, 5, 5]]
    # inclusive: 16 pixels against 8, 16, 9 and 4, with 8, 4, 1 and 0 in common
    assert box_iou(first, second, inclusive=True).tolist() == [[8 / 16, 4 / 28, 1 / 24, 0]]
    # half-open: 9 against 3, 9, 4 and 1, with 3, 1, 0 and 0 in common
    assert box_iou(first, second, inclusive=False).tolist() == [[3 / 9, 1 / 17, 0, 0]]


def test_iou_agrees_with_pixels_counted_one_by_one():
    rng = np.random.default_rng(0)
    corners = np.sort(rng.integers(0, 9, size=(2, 12, 2, 2)), axis=2).reshape(2, 12, 4)
    for inclusive in (True, False):
        pixels = []
        for box in corners.reshape(-1, 4):
            grid = np.zeros((12, 12), bool)
            grid[box[1] : box[3] + inclusive, box[0] : box[2] + inclusive] = True
            pixels.append(grid)
        expected = [[(a & b).sum() / max((a | b).sum(), 1) for b in pixels[12:]] for a in pixels[:12]]
        np.testing.assert_array_equal(box_iou(*corners, inclusive=inclusive), expected)


def test_boxes_are_scaled_and_rounded_towards_zero():
    assert resize_boxes([[1, 2, 4, 3]], (20, 10), (10, 35)).tolist() == [[3, 1, 14, 1]]
    assert resize_boxes([[48, 0, 499, 374]], (375, 500), (224, 224)).tolist() == [[21, 0, 223, 223]]
    # in float64, 45 x 224 / 160 is 63, but 45 x (224 / 160) is just below it
    assert resize_boxes([[0, 0, 45, 85]], (160, 160), (224, 224)).tolist() == [[0, 0, 63, 119]]


def test_normalized_maps_span_0_to_1_and_constant_or_nan_maps_become_0():
    score_map = np.array([[-2.0, 0.0], [1.0, 2.0]], dtype=np.float32)
    stretched = normalize_score_map(score_map)
    assert stretched.tolist() == [[0.0, 0.5], [0.75, 1.0]]
    assert stretched.dtype == np.float32
    assert score_map.min() == -2
    for degenerate in ([[3, 3]], [[np.nan, 1.0]], [[np.inf, 1.0]]):
        assert normalize_score_map(np.array(degenerate)).tolist() == [[0.0, 0.0]]


# Contours as OpenCV draws them: what the published boxes are made of


def test_contours_of_nested_shapes_holes_included():
    mask = picture(
        "#######",
        "#.....#",
        "#.###.#",
        "#.#.#.#",
        "#.###.#",
        "#.....#",
        "#######",
    )
    boxes, largest = contour_boxes(mask)
    # the frame, its hole (through the pixels of the frame around it), the inner ring and its hole
    assert sorted(boxes.tolist()) == [[0, 0, 7, 7], [0, 0, 7, 7], [2, 2, 5, 5], [2, 2, 5, 5]]
    assert boxes[largest].tolist() == [0, 0, 7, 7]


def test_a_hole_has_a_box_of_its_own_one_pixel_wider_than_itself():
    mask = np.ones((8, 9), bool)
    mask[3, 4:6] = False
    assert sorted(contour_boxes(mask)[0].tolist()) == [[0, 0, 9, 8], [3, 2, 7, 5]]


def test_corners_connect_foreground_but_not_holes():
    diagonal = picture("##..", "##..", "..##", "..##")
    assert contour_boxes(diagonal)[0].tolist() == [[0, 0, 4, 4]]
    ring = picture(".#..", "#.#.", ".#.#", "..#.")  # a hole of two pixels that touch at a corner is two holes
    assert sorted(contour_boxes(ring)[0].tolist()) == [[0, 0, 3, 3], [0, 0, 4, 4], [1, 1, 4, 4]]


def test_area_is_that_of_the_polygon_through_pixel_centres():
    mask = picture("######", "......", "##....", "##....")
    boxes, largest = contour_boxes(mask)
    assert boxes[largest].tolist() == [0, 2, 2, 4]  # area 1; the longer line has none
    assert largest_component_box(mask).tolist() == [0, 0, 6, 1]  # 6 pixels against 4


def test_of_equal_contours_the_one_that_begins_lowest_is_taken():
    boxes, largest = contour_boxes(picture("##..", "##..", "....", ".##.", ".##."))
    assert boxes[largest].tolist() == [1, 3, 3, 5]
    beside, index = contour_boxes(picture("##.##", "##.##"))
    assert beside[index].tolist() == [3, 0, 5, 2]
    dots, index = contour_boxes(picture("#..", "...", "..#"))
    assert dots[index].tolist() == [2, 2, 3, 3]


def test_an_empty_mask_has_no_contour_and_no_component():
    boxes, largest = contour_boxes(np.zeros((3, 4), bool))
    assert boxes.shape == (0, 4)
    assert largest is None
    assert largest_component_box(np.zeros((3, 4), bool)) is None


def boxes_by_scipy(mask):
    """Return the boxes of 8-connected components, and of holes (4-connected) widened by the pixels around them."""
    found = [(rows, columns, 0) for rows, columns in ndimage.find_objects(ndimage.label(mask, np.ones((3, 3)))[0])]
    background = ndimage.label(~np.pad(mask, 1))[0]  # the border is one component, label 1
    holes = ndimage.find_objects(np.where(background > 1, background, 0))
    found += [(*(slice(s.start - 1, s.stop - 1) for s in hole), 1) for hole in holes if hole is not None]
    return sorted(
        [columns.start - wider, rows.start - wider, columns.stop + wider, rows.stop + wider]
        for rows, columns, wider in found
    )


def test_contour_boxes_agree_with_components_and_holes_of_scipy():
    rng = np.random.default_rng(0)
    for density in (0.1, 0.3, 0.5, 0.7, 0.9):
        for _ in range(20):
            mask = rng.random((13, 17)) < density
            assert sorted(contour_boxes(mask)[0].tolist()) == boxes_by_scipy(mask)


def test_largest_component_by_hand():
    mask = picture("#..#", ".#.#", "..#.", "#...")
    assert largest_component_box(mask).tolist() == [3, 0, 4, 2]
    assert largest_component_box(mask, connectivity=8).tolist() == [0, 0, 4, 3]
    assert largest_component_box(picture("..#", "#..")).tolist() == [2, 0, 3, 1]  # the first of equal ones
    with pytest.raises(ValueError, match="`connectivity` must be 4 or 8, got 6"):
        largest_component_box(mask, connectivity=6)
