# SPDX-License-Identifier: Apache-2.0
"""MaxBoxAcc and localisation accuracy by hand, by their definition in slow loops, and of trivial boxes."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from scipy import ndimage

from transformers_ice.evaluation.metrics import (
    LOCALIZATION_PROTOCOLS,
    LocalizationAccuracy,
    MaxBoxAccuracy,
    box_iou,
    normalize_score_map,
)


def picture(*lines):
    """Return a mask from lines of # and ."""
    return np.array([[letter == "#" for letter in line] for line in lines])


def max_box(predictions, references, step=0.1):
    return MaxBoxAccuracy(step=step).compute(predictions=predictions, references=references)


# MaxBoxAcc


STEPS_MAP = np.array([[0.0, 0.0, 0.0, 0.0], [0.0, 0.4, 0.4, 0.0], [0.0, 0.4, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])


def test_max_box_accuracy_by_hand():
    # above 0.4 only one pixel is left, box (2, 2, 3, 3); below it the block of 2 x 2 pixels, box (1, 1, 3, 3):
    # boxes reach one pixel beyond, so they are compared as 4 and 9 pixels
    metric = MaxBoxAccuracy(step=0.1)
    rows = metric.rows([STEPS_MAP], [[[2, 2, 3, 3]]])
    # IoU 4 / 9 up to 0.3 (at 0.4 the cut, int(0.4 x 255) = 102, is the grey level of 0.4 itself), then 1
    assert rows["any_30"].tolist() == [[1] * 10]
    assert rows["any_50"].tolist() == rows["any_70"].tolist() == rows["largest_50"].tolist() == [[0] * 4 + [1] * 6]
    assert metric.score(rows) == {
        "max_box_acc": 1.0,
        "max_box_acc_threshold": pytest.approx(0.4),
        "max_box_acc_v2": 1.0,
        "max_box_acc_v2_30": 1.0,
        "max_box_acc_v2_50": 1.0,
        "max_box_acc_v2_70": 1.0,
    }


def test_one_threshold_serves_the_whole_set():
    # the first image needs a threshold of at least 0.4, the second one below: one of two is the best
    scores = max_box([STEPS_MAP, STEPS_MAP], [[[2, 2, 3, 3]], [[1, 1, 3, 3]]])
    assert scores["max_box_acc"] == scores["max_box_acc_v2_50"] == 0.5
    assert scores["max_box_acc_threshold"] == 0.0
    assert scores["max_box_acc_v2_30"] == 1.0
    assert scores["max_box_acc_v2"] == (1.0 + 0.5 + 0.5) / 3


def test_all_contours_count_in_the_second_version_only():
    small_and_large = picture("######..", "######..", "######..", "........", "......##", "......##").astype(float)
    small = [[6, 4, 7, 5]]
    scores = max_box([small_and_large], [small])
    assert (scores["max_box_acc"], scores["max_box_acc_v2_70"]) == (0.0, 1.0)
    assert max_box([small_and_large], [[*small, [0, 0, 5, 3]]])["max_box_acc"] == 1.0  # any true box will do


def test_a_map_of_zeros_is_the_box_of_the_first_pixel():
    zeros = np.zeros((4, 4))
    assert max_box([zeros], [[[0, 0, 3, 3]]])["max_box_acc_v2"] == 0.0
    assert max_box([zeros], [[[0, 0, 1, 0]]])["max_box_acc"] == 1.0  # 1 pixel of 2 is an IoU of 0.5


def by_definition(score_map, boxes, thresholds):
    """Return hits per threshold as the published evaluation states them, one threshold and one box after the other."""
    height, width = score_map.shape
    levels = (score_map * 255).astype(np.uint8)

    def iou(a, b):
        common = max(0, min(a[2], b[2]) - max(a[0], b[0]) + 1) * max(0, min(a[3], b[3]) - max(a[1], b[1]) + 1)
        area = [(c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)]
        return common / (sum(area) - common)

    hits = []
    for threshold in thresholds:
        _, binary = cv2.threshold(levels, int(threshold * levels.max()), 255, cv2.THRESH_BINARY)
        contours = cv2.findContours(binary, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
        ordered = sorted(contours, key=cv2.contourArea, reverse=True)  # stable: of equal ones the first
        drawn = [cv2.boundingRect(contour) for contour in ordered] or [(0, 0, 0, 0)]
        drawn = [(x, y, min(x + w, width - 1), min(y + h, height - 1)) for x, y, w, h in drawn]
        best = [max(iou(box, other) for other in boxes) for box in drawn]
        hits.append([best[0] >= 0.5, *(max(best) >= share for share in (0.3, 0.5, 0.7))])
    return np.array(hits).T


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_max_box_accuracy_agrees_with_its_definition(dtype):
    rng = np.random.default_rng(0)
    metric = MaxBoxAccuracy(step=0.02)
    for size in ((14, 14), (20, 33), (9, 30)):
        for smoothing in (0.5, 2.0):
            soft = normalize_score_map(ndimage.gaussian_filter(rng.random(size), smoothing).astype(dtype))
            corners = np.sort(rng.integers(0, min(size), size=(3, 2, 2)), axis=1).reshape(3, 4)
            rows = metric.rows([soft], [corners])
            hits = [rows[name][0] for name in ("largest_50", "any_30", "any_50", "any_70")]
            np.testing.assert_array_equal(hits, by_definition(soft, corners.tolist(), np.arange(0, 1, 0.02)))


# Trivial predictors on a list of boxes, in a map of 224 x 224 pixels


SIDE = 224
TRUE_BOXES = [[0, 0, 223, 223], [32, 48, 191, 207], [60, 60, 160, 160], [0, 112, 111, 223], [7, 9, 200, 120]]


def areas(boxes):
    sides = np.array(boxes)[:, 2:] - np.array(boxes)[:, :2] + 1
    return sides.prod(axis=1)


def box_map(box, grow=1):
    """Return a map that is 1 on a box; drawn boxes reach one pixel too far, so it may stop one pixel earlier."""
    left, top, right, bottom = box
    score_map = np.zeros((SIDE, SIDE), dtype=np.float32)
    score_map[top : bottom + grow, left : right + grow] = 1
    return score_map


def v2_parts(scores):
    return [scores[f"max_box_acc_v2_{percent}"] for percent in (30, 50, 70)]


def test_the_whole_image_finds_what_fills_a_share_of_it():
    scores = max_box([np.ones((SIDE, SIDE))] * 5, [[box] for box in TRUE_BOXES])
    shares = areas(TRUE_BOXES) / SIDE**2
    assert v2_parts(scores) == [np.mean(shares >= limit) for limit in (0.3, 0.5, 0.7)] == [0.6, 0.4, 0.2]
    assert scores["max_box_acc"] == 0.4


def test_a_centre_square_finds_what_a_person_computes():
    square = [[56, 56, 168, 168]]  # drawn from pixels 56 to 167, half of each side
    expected = box_iou(square, TRUE_BOXES, inclusive=True)[0]
    scores = max_box([box_map(square[0], grow=0)] * 5, [[box] for box in TRUE_BOXES])
    assert v2_parts(scores) == [np.mean(expected >= limit) for limit in (0.3, 0.5, 0.7)]
    # 113 x 113 pixels in 224 x 224 is 0.254; 101 x 101 in it is 0.799, the only one above 0.7
    assert expected[0] == pytest.approx(113**2 / 224**2)
    assert expected[2] == pytest.approx(101**2 / 113**2)
    assert v2_parts(scores) == [0.4, 0.2, 0.2]


def test_perfect_boxes_find_everything():
    maps = [box_map(box, grow=0 if max(box) < SIDE - 1 else 1) for box in TRUE_BOXES]
    assert v2_parts(max_box(maps, [[box] for box in TRUE_BOXES])) == [1.0, 1.0, 1.0]


def test_boxes_snapped_outward_to_the_patch_grid_lose_small_objects_at_high_iou_only():
    truth = [*TRUE_BOXES, [31, 31, 48, 48]]  # 18 x 18 pixels, on 3 x 3 patches: 48 x 48, drawn as 49 x 49
    snapped = [
        [left // 16 * 16, top // 16 * 16, right // 16 * 16 + 15, b // 16 * 16 + 15] for left, top, right, b in truth
    ]
    scores = max_box([box_map(box) for box in snapped], [[box] for box in truth])
    drawn = np.minimum(np.add(snapped, [0, 0, 1, 1]), SIDE - 1)
    ious = np.array([box_iou([a], [b], inclusive=True)[0, 0] for a, b in zip(drawn, truth, strict=True)])
    assert ious[-1] == 18**2 / 49**2
    assert v2_parts(scores) == [np.mean(ious >= limit) for limit in (0.3, 0.5, 0.7)]
    assert v2_parts(scores)[0] == 5 / 6


# GT-known, Top-1 and Top-5 Loc


HALF = [[0, 0, 3, 1]]  # 8 of the 16 pixels of the box of the whole map under "wsolevaluation": an IoU of exactly 0.5
WHOLE = np.ones((4, 4))


def localization(predictions, references, protocol="wsolevaluation", **options):
    return LocalizationAccuracy(protocol, **options).compute(predictions=predictions, references=references)


def test_named_and_found_are_counted_by_hand():
    box = [0, 0, 3, 3]
    predictions = [{"labels": [2, 0, 1], "box": box}] * 4
    references = [
        {"label": 2, "boxes": [box]},  # right at once
        {"label": 1, "boxes": [box]},  # only third
        {"label": 5, "boxes": [box]},  # not among the ranked
        {"label": 2, "boxes": [[0, 0, 0, 0]]},  # right, but elsewhere
    ]
    scores = localization(predictions, references, top_k=(1, 2, 3))
    assert scores == {"gt_known_loc": 0.75, "top_1_loc": 0.25, "top_2_loc": 0.25, "top_3_loc": 0.5}


@pytest.mark.parametrize(("protocol", "top_1"), [("wsolevaluation", 1.0), ("tscam", 0.0), ("sat", 1.0)])
def test_an_iou_of_exactly_a_half_is_a_hit_except_for_top_k_of_tscam(protocol, top_1):
    predictions = [{"labels": [1], "box": [0, 0, 3, 3]}]
    scores = localization(predictions, [{"label": 1, "boxes": HALF}], protocol)
    assert scores == {"gt_known_loc": 1.0, "top_1_loc": top_1, "top_5_loc": top_1}


def test_protocols_draw_different_boxes_around_the_same_map():
    line_and_block = picture("......", "######", "......", "....##", "....##") * 1.0
    wsol, tscam, sat = (LOCALIZATION_PROTOCOLS[name] for name in ("wsolevaluation", "tscam", "sat"))
    assert wsol.box(line_and_block, 0.5).tolist() == [4, 3, 5, 4]  # the block, up to the last pixel
    assert tscam.box(line_and_block).tolist() == [4, 3, 6, 5]  # one beyond it
    assert sat.box(line_and_block).tolist() == [0, 1, 6, 2]  # the line has more pixels
    empty = np.zeros((5, 6))
    assert wsol.box(empty, 0.5).tolist() == [0, 0, 0, 0]
    assert tscam.box(empty).tolist() == [0, 0, 1, 1]
    assert sat.box(empty).tolist() == [0, 0, 6, 5]


def test_thresholds_are_shares_of_the_maximum_except_under_sat():
    dim = np.array([[0.35, 0.0], [0.0, 0.0]])
    assert LOCALIZATION_PROTOCOLS["tscam"].box(dim).tolist() == [0, 0, 1, 1]
    assert LOCALIZATION_PROTOCOLS["sat"].box(dim, 0.3).tolist() == [0, 0, 1, 1]
    assert LOCALIZATION_PROTOCOLS["sat"].box(dim).tolist() == [0, 0, 2, 2]  # nothing above 0.4: the whole map
    # at 0.1 of the maximum, int(0.1 x 89) = 8 of 255
    assert LOCALIZATION_PROTOCOLS["tscam"].box(np.array([[0.35, 0.04], [0.0, 0.03]])).tolist() == [0, 0, 2, 1]


def test_components_of_sat_touch_at_corners():
    assert LOCALIZATION_PROTOCOLS["sat"].box(picture("#...", ".#..", "...#", "...#") * 1.0).tolist() == [0, 0, 2, 2]


def test_gt_known_at_a_fixed_threshold_is_max_box_accuracy_at_that_threshold():
    rng = np.random.default_rng(0)
    maps = [normalize_score_map(ndimage.gaussian_filter(rng.random((14, 14)), 1.5)) for _ in range(20)]
    boxes = [np.sort(rng.integers(0, 14, size=(1, 2, 2)), axis=1).reshape(1, 4) for _ in maps]
    hits = MaxBoxAccuracy(step=0.1).rows(maps, boxes)["largest_50"]
    for index, threshold in enumerate(np.arange(0, 1, 0.1)):
        metric = LocalizationAccuracy(threshold=threshold)
        predictions = [{"labels": [0], "score_map": score_map} for score_map in maps]
        rows = metric.rows(predictions, [{"label": 0, "boxes": box} for box in boxes])
        np.testing.assert_array_equal(rows["gt_known"], hits[:, index])
    assert hits.any()


def test_each_class_may_have_its_own_map():
    maps = np.stack([picture("##..", "##..", "....", "....") * 1.0, picture("....", "....", "..##", "..##") * 1.0])
    upper, lower = [[0, 0, 2, 2]], [[2, 2, 3, 3]]
    prediction = {"labels": [4, 7], "score_maps": maps}
    options = {"threshold": 0.5, "top_k": (1, 2)}
    right_first = localization([prediction], [{"label": 4, "boxes": upper}], **options)
    assert right_first == {"gt_known_loc": 1.0, "top_1_loc": 1.0, "top_2_loc": 1.0}
    second = localization([prediction], [{"label": 7, "boxes": lower}], **options)
    assert second == {"gt_known_loc": 1.0, "top_1_loc": 0.0, "top_2_loc": 1.0}
    wrong_place = localization([prediction], [{"label": 7, "boxes": upper}], **options)
    assert wrong_place == {"gt_known_loc": 0.0, "top_1_loc": 0.0, "top_2_loc": 0.0}
    not_ranked = localization(
        [prediction | {"true_class_score_map": maps[1]}], [{"label": 9, "boxes": lower}], **options
    )
    assert not_ranked == {"gt_known_loc": 1.0, "top_1_loc": 0.0, "top_2_loc": 0.0}
    boxes = {"labels": [4, 7], "boxes": [upper[0], lower[0]]}
    assert localization([boxes], [{"label": 7, "boxes": lower}], **options) == second


TRUE = {"label": 0, "boxes": HALF}


@pytest.mark.parametrize(
    ("options", "prediction", "reference", "message"),
    [
        ({}, {"labels": [0], "score_map": WHOLE}, TRUE, "`threshold` must be given for this protocol, got None"),
        ({}, {"score_map": WHOLE}, TRUE, r"must hold `labels`, got \['score_map'\]"),
        ({}, WHOLE, TRUE, "must hold `labels`, got ndarray"),
        ({}, {"labels": [0.5], "box": [0, 0, 1, 1]}, TRUE, "must be class indices, best first, got float64"),
        ({}, {"labels": [0]}, TRUE, r"`score_map`, `score_maps`, `box` or `boxes`, got \['labels'\]"),
        ({}, {"labels": [0], "box": [0, 0, 1, 1]}, {"label": 0}, r"must hold `label` and `boxes`, got \['label'\]"),
        ({}, {"labels": [0], "box": [0, 0, 1, 1]}, {"label": 0, "boxes": []}, "must have a true box"),
        ({}, {"labels": [0], "box": [[0, 0, 1, 1]] * 2}, TRUE, r"one box of shape \(4,\), got \(2, 4\)"),
        ({}, {"labels": [1, 2], "boxes": [[0, 0, 1, 1]]}, TRUE, "for each of the 2 `labels`, got 1"),
        ({}, {"labels": [1], "boxes": [[0, 0, 1, 1]]}, TRUE, r"must hold `true_class_box`, got \['boxes', 'labels'\]"),
        (
            {"protocol": "sat"},
            {"labels": [0], "score_maps": WHOLE[None]},
            TRUE,
            "not one per class, under the rules of",
        ),
    ],
)
def test_unfit_entries_are_refused(options, prediction, reference, message):
    with pytest.raises(ValueError, match=message):
        localization([prediction], [reference], **options)


def test_unknown_protocols_and_numbers_out_of_range_are_refused():
    with pytest.raises(ValueError, match="must be one of wsolevaluation, tscam, sat, got 'scm'"):
        LocalizationAccuracy("scm")
    with pytest.raises(ValueError, match=r"`threshold` must lie in \[0, 1\), got 1.0"):
        LocalizationAccuracy(threshold=1.0)
    with pytest.raises(ValueError, match=r"must hold positive numbers, got \(\)"):
        LocalizationAccuracy(top_k=())
    with pytest.raises(ValueError, match=r"`step` must lie in \(0, 1\), got 1"):
        MaxBoxAccuracy(step=1)


@pytest.mark.parametrize(
    ("prediction", "reference", "message"),
    [
        (np.full((2, 2), np.nan), HALF, "must not hold NaN"),
        (WHOLE * 2, HALF, r"must lie in \[0, 1\], got values from 2 to 2"),
        (WHOLE, [[3, 0, 1, 1]], r"\(x_min, y_min, x_max, y_max\), got \[\[3, 0, 1, 1\]\]"),
        (WHOLE, [[0, 0, 1]], r"shape \(num_boxes, 4\), got \(1, 3\)"),
        (WHOLE, np.zeros((0, 4)), "must have a true box in `references`, got none"),
    ],
)
def test_unfit_maps_and_boxes_are_refused(prediction, reference, message):
    with pytest.raises(ValueError, match=message):
        max_box([prediction], [reference])
