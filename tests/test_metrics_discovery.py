# SPDX-License-Identifier: Apache-2.0
"""CorLoc and the pointing game by hand on small images, and against distances measured one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from transformers_ice.evaluation.metrics import CorLoc, PointingGame


def corloc(predictions, references):
    return CorLoc().compute(predictions=predictions, references=references)["corloc"]


def test_corloc_by_hand():
    true = [[[0, 0, 4, 2]], [[0, 0, 4, 1]], [[9, 9, 10, 10], [0, 0, 4, 4]], [[0, 0, 4, 4]]]
    # IoU 8 / 16 is a hit, 4 / 16 none; any true box will do; no box is a miss
    assert corloc([[0, 0, 4, 4]] * 3 + [[]], true) == 0.5
    # with a pixel more on each side, as the weakly supervised protocols count, the first would be 15 / 25
    assert corloc([[0, 0, 4, 4]], [[[0, 0, 4, 1]]]) == 0.0


def test_corloc_of_whole_images_and_perfect_boxes():
    boxes = [[[0, 0, 30, 20]], [[0, 0, 15, 20]], [[0, 0, 14, 20]], [[10, 5, 20, 15]]]
    assert corloc([[0, 0, 30, 20]] * 4, boxes) == 0.5  # 1, 300 / 600, 280 / 600 and 100 / 600
    assert corloc([box[0] for box in boxes], boxes) == 1.0


def test_corloc_takes_one_box_per_image():
    with pytest.raises(ValueError, match="must be one box or empty, got 2 boxes"):
        corloc([[[0, 0, 1, 1]] * 2], [[[0, 0, 1, 1]]])


def pointing(predictions, references, **options):
    return PointingGame(**options).compute(predictions=predictions, references=references)["pointing_game"]


OBJECT = np.array([[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]])


def at(*pixels):
    score_map = np.full((4, 4), -1.0)
    for pixel in pixels:
        score_map[pixel] = 2.5
    return score_map


def test_pointing_game_by_hand():
    assert pointing([at((1, 1)), at((0, 0)), at((2, 2)), at((3, 2))], [OBJECT] * 4) == 0.5


def test_equal_maxima_share_one_point():
    assert pointing([at((1, 1), (0, 0), (3, 3))], [OBJECT]) == 1 / 3
    assert pointing([np.ones((4, 4))], [OBJECT]) == 4 / 16


def test_tolerance_is_a_euclidean_distance():
    corner = [at((0, 0))]  # sqrt(2) from the object
    assert pointing(corner, [OBJECT], tolerance=1) == 0.0
    assert pointing(corner, [OBJECT], tolerance=1.41) == 0.0
    assert pointing(corner, [OBJECT], tolerance=math.sqrt(2)) == 1.0
    assert pointing([at((0, 1))], [OBJECT], tolerance=1) == 1.0


def test_tolerance_agrees_with_distances_measured_one_by_one():
    rng = np.random.default_rng(0)
    for tolerance in (1, 2.5, 4):
        mask = rng.random((12, 15)) < 0.03
        soft = rng.random((12, 15))
        point = np.unravel_index(soft.argmax(), soft.shape)
        nearest = min(math.dist(point, pixel) for pixel in np.argwhere(mask))
        assert pointing([soft], [mask], tolerance=tolerance) == float(nearest <= tolerance)


def test_ignored_pixels_are_no_candidates_and_nan_maps_miss():
    truth = OBJECT.copy()
    truth[0, 0] = -1
    best_is_ignored = at((1, 1))
    best_is_ignored[0, 0] = 9
    assert pointing([best_is_ignored], [truth]) == 1.0
    assert pointing([best_is_ignored], [OBJECT]) == 0.0
    assert pointing([at((1, 1), (0, 0))], [truth]) == 1.0
    assert pointing([np.where(OBJECT == 1, np.nan, 0.0)], [OBJECT]) == 0.0


def test_images_without_an_object_are_left_out_of_the_pointing_game():
    nothing = np.zeros((4, 4), int)
    assert pointing([at((1, 1)), at((1, 1))], [OBJECT, nothing]) == 1.0
    assert math.isnan(pointing([at((1, 1))], [nothing]))


def test_tolerance_must_not_be_negative():
    with pytest.raises(ValueError, match="`tolerance` must not be negative, got -1"):
        PointingGame(tolerance=-1)
