# SPDX-License-Identifier: Apache-2.0
"""Metrics of several labels an image and of class maps: by hand, by definition, and against scikit-learn."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, jaccard_score

from transformers_ice.evaluation.metrics import (
    ClassCorLoc,
    ClassIou,
    MultiLabelAveragePrecision,
    MultiLabelF1,
    average_precisions,
    calibrate_thresholds,
    f1_scores,
)


def columns(*values):
    return np.array(values, dtype=float).T


# --- average precision and F1 --------------------------------------------------------------------------------------


def test_average_precision_by_hand():
    # ranks of the positives: 1 and 3 -> (1/1 + 2/3) / 2; 2 and 3 -> (1/2 + 2/3) / 2
    scores = columns([0.9, 0.5, 0.4, 0.1], [0.9, 0.5, 0.4, 0.1])
    labels = columns([1, 0, 1, 0], [0, 1, 1, 0])
    assert average_precisions(scores, labels).tolist() == pytest.approx([5 / 6, 7 / 12])


def test_equal_scores_are_one_step_in_any_order():
    # the step from rank 1 to 3 gains one of two positives at a precision of 2/3
    expected = 0.5 * 1 + 0.5 * 2 / 3
    for ties in ([1, 0], [0, 1]):
        assert average_precisions(columns([0.9, 0.5, 0.5]), columns([1, *ties]))[0] == pytest.approx(expected)


def test_class_without_a_positive_image_is_left_out_of_map():
    scores, labels = columns([0.9, 0.1], [0.2, 0.8]), columns([0, 1], [0, 0])
    assert average_precisions(scores, labels)[0] == 0.5
    assert math.isnan(average_precisions(scores, labels)[1])
    assert MultiLabelAveragePrecision(2).compute(predictions=scores, references=labels) == {"map": 0.5}
    none = MultiLabelAveragePrecision(2).compute(predictions=scores, references=np.zeros((2, 2)))
    assert math.isnan(none["map"])


def test_average_precision_and_f1_equal_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 8, (60, 5)) / 8, rng.random((60, 5)) < 0.3  # many ties
    expected = average_precision_score(labels, scores, average=None)
    assert average_precisions(scores, labels) == pytest.approx(expected, abs=1e-12)
    expected = f1_score(labels, scores >= 0.5, average=None)
    assert f1_scores(scores >= 0.5, labels) == pytest.approx(expected, abs=1e-12)
    assert MultiLabelF1(5).compute(predictions=scores, references=labels)["f1"] == pytest.approx(expected.mean())


def test_f1_by_hand():
    scores = columns([0.9, 0.6, 0.2], [0.1, 0.7, 0.1], [0.1, 0.1, 0.1], [0.2, 0.1, 0.3])
    labels = columns([1, 0, 1], [0, 0, 0], [0, 0, 0], [0, 1, 0])
    # 1 of 2 found, 1 of 2 there; found without being there; neither; there and not found
    found = f1_scores(scores >= 0.5, labels)
    assert found[[0, 1, 3]].tolist() == [0.5, 0.0, 0.0]
    assert math.isnan(found[2])
    assert MultiLabelF1(4).compute(predictions=scores, references=labels) == {"f1": pytest.approx(0.5 / 3)}
    # a threshold of its own for each class; a score at the threshold is found
    own = MultiLabelF1(4, thresholds=[0.2, 0.8, 0.5, 0.1]).compute(predictions=scores, references=labels)
    assert own["f1"] == pytest.approx((2 * 2 / 5 + 2 * 1 / 4) / 2)


def test_rows_of_batches_score_as_the_whole_set_in_any_order():
    rng = np.random.default_rng(1)
    scores, labels = rng.random((20, 3)), rng.integers(0, 2, (20, 3))
    metric = MultiLabelAveragePrecision(3)
    for part in (slice(15, 20), slice(0, 7), slice(7, 15)):
        metric.add_batch(predictions=scores[part], references=labels[part])
    assert metric.compute()["map"] == pytest.approx(average_precisions(scores, labels).mean())


def test_image_whose_scores_are_nan_has_no_part():
    scores, labels = columns([0.9, np.nan, 0.1]), columns([0, 1, 1])
    assert MultiLabelAveragePrecision(1).compute(predictions=scores, references=labels) == {"map": 0.5}
    alone = MultiLabelF1(1).compute(predictions=columns([np.nan]), references=columns([1]))
    assert math.isnan(alone["f1"])


def test_wrong_shapes_and_labels_are_refused():
    with pytest.raises(ValueError, match=r"one shape \(num_images, num_labels\), got \(2, 3\) and \(2,\). Labels are"):
        average_precisions(np.zeros((2, 3)), np.array([0, 1]))
    with pytest.raises(ValueError, match=r"Labels must be 0 or 1, got \[2\]"):
        f1_scores(np.zeros((1, 2)), np.array([[0, 2]]))
    with pytest.raises(ValueError, match=r"`scores` must lie in \[0, 1\].*sigmoid of the logits"):
        calibrate_thresholds(np.array([[3.0]]), np.array([[1]]))


# --- thresholds ----------------------------------------------------------------------------------------------------


def test_threshold_lies_midway_between_the_scores_that_it_separates():
    scores = columns([0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    labels = columns([0, 0, 0, 1, 1, 1, 1, 1])
    assert calibrate_thresholds(scores, labels) == pytest.approx([0.25])
    # all are positive: from half of the smallest score on
    assert calibrate_thresholds(scores, np.ones_like(labels)) == pytest.approx([0.025])


def test_threshold_is_one_of_about_the_best_f1():
    rng = np.random.default_rng(2)
    labels = rng.random((80, 4)) < 0.3
    scores = np.clip(rng.random((80, 4)) * 0.7 + 0.3 * labels, 0, 1)
    for threshold, own, true in zip(calibrate_thresholds(scores, labels), scores.T, labels.T, strict=True):
        # thresholds between two scores find the same images, so one for each score is all there are
        best = max(f1_score(true, own >= score) for score in own)
        assert f1_score(true, own >= threshold) >= best - 0.01


def test_of_equally_good_thresholds_the_nearest_to_a_half_is_taken():
    # F1 of the first four is 2 * 4 / (4 + 6), that of the first nine 2 * 6 / (9 + 6)
    scores = columns([0.95, 0.94, 0.93, 0.92, 0.7, 0.6, 0.5, 0.45, 0.44, 0.42])
    labels = columns([1, 1, 1, 1, 0, 0, 0, 1, 1, 0])
    assert calibrate_thresholds(scores, labels) == pytest.approx([0.43])  # not 0.81


def test_class_of_fewer_than_five_positives_keeps_a_half():
    scores = columns([0.05, 0.1, 0.2, 0.3, 0.4, 0.45], [0.05, 0.1, 0.2, 0.3, 0.4, 0.45])
    labels = columns([0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0])
    assert calibrate_thresholds(scores, labels).tolist() == [0.5, 0.5]


def test_of_nearly_the_best_thresholds_the_nearest_to_a_half_is_taken():
    # F1 is 1 at 0.075; two of four hundred images fewer at the candidate above 0.6 cost less than 0.01
    scores = columns([0.1, *np.linspace(0.6, 0.9, 199), *np.linspace(0.0, 0.05, 200)])
    labels = columns([1] * 200 + [0] * 200)
    (threshold,) = calibrate_thresholds(scores, labels)
    assert threshold == pytest.approx(np.linspace(0.6, 0.9, 199)[:2].mean())


# --- class maps ----------------------------------------------------------------------------------------------------


def test_class_iou_by_hand():
    prediction, truth = [[1, 1], [0, 2]], [[1, 0], [0, 2]]
    metric = ClassIou(3)
    assert metric.compute(predictions=[prediction], references=[truth]) == {"class_iou": 0.75, "background_iou": 0.5}
    rows = metric.rows([prediction], [truth])
    assert rows["intersection"].tolist() == [[1, 1, 1, 0]]
    assert rows["union"].tolist() == [[2, 2, 1, 0]]
    (ious,) = metric.per_class(rows)
    assert ious[:3].tolist() == [0.5, 0.5, 1.0]
    assert math.isnan(ious[3])  # in neither map: left out of the mean


def test_class_iou_counts_over_the_whole_set_and_no_void_pixel():
    predictions = [[[1, 1, 1]], [[1, 2, 0]]]
    references = [[[1, 255, 0]], [[0, 2, -1]]]
    # class 1: 1 of 3 counted pixels (one is void); class 2: 1 of 1; background: none of 2
    assert ClassIou(2).compute(predictions=predictions, references=references) == {
        "class_iou": pytest.approx((1 / 3 + 1) / 2),
        "background_iou": 0.0,
    }


def test_class_iou_equals_that_of_scikit_learn():
    rng = np.random.default_rng(3)
    predictions, references = rng.integers(0, 5, (2, 6, 9, 7))
    score = ClassIou(4).compute(predictions=list(predictions), references=list(references))
    expected = jaccard_score(references.ravel(), predictions.ravel(), average=None)
    assert score["class_iou"] == pytest.approx(expected[1:].mean(), abs=1e-12)
    assert score["background_iou"] == pytest.approx(expected[0], abs=1e-12)


def test_best_threshold_is_one_for_the_whole_set():
    # at the thresholds 0.25, 0.5 and 0.75
    first, second = [[[1, 1]], [[1, 0]], [[0, 0]]], [[[1, 1]], [[1, 1]], [[1, 0]]]
    metric = ClassIou(1, thresholds=(0.25, 0.5, 0.75))
    score = metric.compute(predictions=[first, second], references=[[[1, 0]], [[1, 0]]])
    # 2 of 4, 2 of 3, 1 of 2
    assert score == {
        "class_iou": pytest.approx(2 / 3),
        "max_class_iou": pytest.approx(2 / 3),
        "max_class_iou_threshold": 0.5,
        "background_iou": pytest.approx(1 / 2),
    }


def grid(*rows):
    return np.array([[int(cell) for cell in row] for row in rows])


def test_class_corloc_by_hand():
    truth = grid("1100", "1100", "0022", "0022")
    metric = ClassCorLoc(3)
    # class 1: box of the largest component, 2 x 2, hits, whatever its single pixel. Class 2: 1 of 4 pixels
    rows = metric.rows([grid("1100", "1100", "0002", "1000")], [truth])
    assert rows["hit"].tolist() == [[1, 0, 0]]
    assert rows["present"].tolist() == [[1, 1, 0]]
    assert metric.score(rows) == {"class_corloc": 0.5}
    # a class in the wrong place, and one that is not there
    assert metric.rows([grid("2200", "2200", "0011", "3311")], [truth])["hit"].tolist() == [[0, 0, 0]]
    # over images: class 1 in one of two, class 2 in one of one
    nothing, first_only = np.zeros((4, 4), dtype=int), grid("1100", "1100", "0000", "0000")
    score = metric.compute(predictions=[truth, nothing], references=[truth, first_only])
    assert score == {"class_corloc": 0.75}


def test_split_object_is_found_by_the_box_of_all_of_it_or_of_a_part():
    truth = grid("11011", "11011")
    for prediction in ("11111", "11111"), ("11000", "11000"), ("00011", "00011"):
        assert ClassCorLoc(1).compute(predictions=[grid(*prediction)], references=[truth]) == {"class_corloc": 1.0}
    # 3 of 10 pixels of the whole, and 1 of 6 with each part
    assert ClassCorLoc(1).compute(predictions=[grid("01110", "00000")], references=[truth])["class_corloc"] == 0.0


def test_image_without_any_object_has_no_part_in_corloc():
    empty = grid("00", "00")
    score = ClassCorLoc(1).compute(predictions=[grid("11", "11"), empty], references=[empty, empty])
    assert math.isnan(score["class_corloc"])


def test_class_maps_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"`predictions` must hold 0 to 2, got 0 to 3"):
        ClassIou(2).rows([grid("03")], [grid("00")])
    with pytest.raises(ValueError, match=r"`references` must hold -1 to 2, got 0 to 7"):
        ClassIou(2).rows([grid("00")], [grid("07")])
    with pytest.raises(ValueError, match="must hold integers of shape"):
        ClassIou(2).rows([np.zeros((2, 2))], [grid("00", "00")])
    with pytest.raises(ValueError, match="must have the size of its reference"):
        ClassIou(2).rows([grid("000")], [grid("00")])
    with pytest.raises(ValueError, match="a class map for each of 1, got 2"):
        ClassIou(2).rows([np.stack([grid("00")] * 2)], [grid("00")])
    with pytest.raises(ValueError, match=r"must hold `fixed_threshold`, got 0\.5"):
        ClassIou(2, thresholds=(0.1, 0.2))


def test_empty_means_raise_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ClassIou(2).compute(predictions=[grid("00")], references=[grid("00")])
        ClassIou(1, thresholds=(0.4, 0.5)).compute(predictions=[np.stack([grid("0")] * 2)], references=[grid("0")])
