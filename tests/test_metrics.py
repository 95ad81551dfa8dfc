# SPDX-License-Identifier: Apache-2.0
"""Scores of masks, soft maps and classes by hand on 4x4 images, and against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, jaccard_score, top_k_accuracy_score

from transformers_ice.evaluation.metrics import (
    ForegroundAveragePrecision,
    ForegroundF1,
    ForegroundSegmentation,
    ObjectJaccard,
    TopKAccuracy,
)


TRUTH = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
GUESS = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])


def segmentation(predictions, references):
    return ForegroundSegmentation().compute(predictions=predictions, references=references)


def test_4x4_mask_scores_as_counted_by_hand():
    # 3 hits, 1 false and 1 missed foreground pixel, 11 background hits.
    scores = segmentation([GUESS], [TRUTH])
    assert scores["pixel_accuracy"] == 14 / 16
    assert scores["mean_iou"] == pytest.approx((3 / 5 + 11 / 13) / 2, abs=1e-15)


def test_ignored_pixels_count_nowhere():
    truth = TRUTH.copy()
    truth[0, 2] = truth[1, 1] = -1  # exactly the two wrong pixels
    assert segmentation([GUESS], [truth]) == {"pixel_accuracy": 1.0, "mean_iou": 1.0}


def test_pixels_are_counted_over_the_whole_set_not_per_image():
    small_wrong, large_right = np.ones((1, 2), int), np.ones((4, 5), int)
    scores = segmentation([1 - small_wrong, large_right], [small_wrong, large_right])
    assert scores["pixel_accuracy"] == 20 / 22  # the mean over images would be 0.5
    assert scores["mean_iou"] == (0 / 2 + 20 / 22) / 2  # background is predicted, so its IoU of 0 counts


def test_class_absent_from_predictions_and_references_is_left_out():
    assert segmentation([np.zeros((2, 2), bool)], [np.zeros((2, 2), int)]) == {"pixel_accuracy": 1.0, "mean_iou": 1.0}


def test_scores_are_nan_where_every_pixel_is_ignored():
    scores = segmentation([GUESS], [np.full((4, 4), -1)])
    assert math.isnan(scores["pixel_accuracy"])
    assert math.isnan(scores["mean_iou"])


def test_agrees_with_scikit_learn_on_masks_of_different_sizes():
    rng = np.random.default_rng(0)
    sizes = [(5, 7), (16, 16), (3, 40), (1, 1), (31, 8)]
    references = [rng.choice([-1, 0, 1], size=size, p=[0.2, 0.5, 0.3]) for size in sizes]
    predictions = [rng.random(size) < 0.4 for size in sizes]
    truth = np.concatenate([mask.ravel() for mask in references])
    guess = np.concatenate([mask.ravel() for mask in predictions])[truth >= 0].astype(int)
    truth = truth[truth >= 0]
    metric = ForegroundSegmentation()
    metric.add_batch(predictions=predictions[:2], references=references[:2])
    metric.add_batch(predictions=[], references=[])
    metric.add(prediction=predictions[2], reference=references[2])
    scores = metric.compute(predictions=predictions[3:], references=references[3:])
    # Both divide the same integers; only the order of two float64 additions may differ.
    assert scores["pixel_accuracy"] == pytest.approx(accuracy_score(truth, guess), abs=1e-15)
    assert scores["mean_iou"] == pytest.approx(jaccard_score(truth, guess, average="macro"), abs=1e-15)


def test_masks_may_be_bool_lists_uint8_or_tensors():
    expected = segmentation([GUESS], [TRUTH])
    for kind in (lambda m: m.tolist(), lambda m: m.astype(bool), lambda m: m.astype(np.uint8), torch.as_tensor):
        assert segmentation([kind(GUESS)], [kind(TRUTH)]) == expected
    assert segmentation(torch.as_tensor(GUESS)[None], torch.as_tensor(TRUTH)[None]) == expected


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([GUESS], [TRUTH, TRUTH], "same length, got 1 and 2"),
        ([GUESS[:2]], [TRUTH], r"size of its reference, got \(2, 4\) and \(4, 4\)"),
        ([GUESS[None]], [TRUTH[None]], r"shape \(height, width\), got \(1, 4, 4\)"),
        ([GUESS * 255], [TRUTH], r"`predictions` must hold only \(0, 1\), got \[255\]"),
        ([GUESS], [TRUTH * 255], r"`references` must hold only \(0, 1, -1\), got \[255\]"),
        ([GUESS * 0.5], [TRUTH], r"got \[0.5\]"),
        ([GUESS - 1], [TRUTH], r"got \[-1\]"),
    ],
)
def test_unfit_masks_are_refused(predictions, references, message):
    with pytest.raises(ValueError, match=message):
        segmentation(predictions, references)


def average_precision(predictions, references):
    return ForegroundAveragePrecision().compute(predictions=predictions, references=references)[
        "mean_average_precision"
    ]


def test_average_precision_by_hand():
    soft, truth = np.array([[1.0, 0.75], [0.25, 0.0]]), np.array([[1, 1], [1, 0]])
    # scores fg 1, .75, .25, 0 (right, right, right, wrong), bg 0, .25, .75, 1 (wrong, wrong, wrong, right)
    # level 1: 2 of 2 right; level .75: 3 of 4; level .25: 4 of 6; level 0: 4 of 8
    expected = 2 / 2 * (2 / 4) + 3 / 4 * (1 / 4) + 4 / 6 * (1 / 4)
    assert average_precision([soft], [truth]) == pytest.approx(expected, abs=1e-15)


def test_average_precision_is_a_mean_over_images_not_over_pixels():
    small, large = np.array([[1.0, 0.0]]), np.tile([1.0, 0.0], (8, 1))
    truth = np.array([[1, 0]])
    wrong = average_precision([1 - small], [truth])
    assert average_precision([large, 1 - small], [np.tile(truth, (8, 1)), truth]) == (1.0 + wrong) / 2


def test_average_precision_agrees_with_the_definition_on_random_maps():
    rng = np.random.default_rng(0)
    maps = [np.round(rng.random(size), 1) for size in ((5, 7), (9, 4))]  # rounded: ties
    truths = [rng.choice([-1, 0, 1], size=soft.shape) for soft in maps]

    def by_definition(soft, truth):
        pairs = [(1 - s, t == 0) for s, t in zip(soft.flat, truth.flat, strict=True) if t != -1]
        pairs += [(s, t == 1) for s, t in zip(soft.flat, truth.flat, strict=True) if t != -1]
        total, area, recall = sum(right for _, right in pairs), 0.0, 0.0
        for level in sorted({score for score, _ in pairs}, reverse=True):
            chosen = [right for score, right in pairs if score >= level]
            area += sum(chosen) / len(chosen) * (sum(chosen) / total - recall)
            recall = sum(chosen) / total
        return area

    expected = np.mean([by_definition(*pair) for pair in zip(maps, truths, strict=True)])
    assert average_precision(maps, truths) == pytest.approx(expected, abs=1e-12)  # order of float additions


def test_ignored_pixels_do_not_change_average_precision_or_f1():
    rng = np.random.default_rng(1)
    soft, truth = rng.random((4, 4)), TRUTH.copy()
    truth[2] = -1
    kept = [0, 1, 3]
    assert average_precision([soft], [truth]) == average_precision([soft[kept]], [TRUTH[kept]])
    masks = [soft > 0.5], [soft[kept] > 0.5]
    ignoring = ForegroundF1().compute(predictions=masks[0], references=[truth])
    assert ignoring == ForegroundF1().compute(predictions=masks[1], references=[TRUTH[kept]])


@pytest.mark.parametrize(
    "soft", [np.ones((4, 4)), np.zeros((4, 4)), np.full((4, 4), np.nan), np.where(TRUTH == 1, np.nan, 0.5)]
)
def test_constant_and_nan_maps_have_the_average_precision_of_the_protocol(soft):
    # all scores of both channels are 0, and one channel of each pixel is right
    assert average_precision([soft], [TRUTH]) == 0.5
    assert average_precision_score(np.tile([0, 1], 16), np.zeros(32)) == 0.5


def test_images_without_a_counted_pixel_are_left_out():
    nothing = np.full((4, 4), -1)
    assert average_precision([TRUTH * 0.7, TRUTH], [TRUTH, nothing]) == 1.0
    assert math.isnan(average_precision([TRUTH], [nothing]))
    assert math.isnan(ForegroundF1().compute(predictions=[TRUTH], references=[nothing])["mean_f1"])
    with_one = ForegroundF1().compute(predictions=[GUESS, TRUTH], references=[TRUTH, nothing])
    assert with_one["mean_f1"] == 6 / 8


def test_f1_by_hand():
    # 3 hits, 1 false and 1 missed pixel: 6 / (6 + 1 + 1); an empty guess scores 0
    metric = ForegroundF1()
    assert metric.compute(predictions=[GUESS], references=[TRUTH]) == {"mean_f1": 6 / 8}
    assert metric.compute(predictions=[GUESS, TRUTH * 0], references=[TRUTH, TRUTH]) == {"mean_f1": 3 / 8}


def test_f1_leaves_out_images_without_foreground_on_either_side():
    empty = TRUTH * 0
    assert ForegroundF1().compute(predictions=[GUESS, empty], references=[TRUTH, empty]) == {"mean_f1": 6 / 8}


def test_f1_agrees_with_scikit_learn():
    rng = np.random.default_rng(2)
    guesses, truths = rng.random((6, 9, 5)) < 0.4, rng.random((6, 9, 5)) < 0.3
    expected = np.mean([f1_score(t.ravel(), g.ravel()) for g, t in zip(guesses, truths, strict=True)])
    score = ForegroundF1().compute(predictions=guesses, references=truths)["mean_f1"]
    assert score == pytest.approx(expected, abs=1e-15)


def jaccard(predictions, references, **options):
    return ObjectJaccard(**options).compute(predictions=predictions, references=references)["jaccard"]


CLASSES = np.array([[5, 5, 255, 0], [5, 5, 255, 0], [0, 255, 255, 0], [7, 0, 0, 0]])


def test_jaccard_by_hand():
    mask = CLASSES == 5
    mask[0, 3] = mask[0, 2] = True  # one background pixel and one void pixel too many
    # class 5: 4 / 5; class 7: 0
    assert jaccard([mask], [CLASSES]) == (4 / 5 + 0) / 2
    assert jaccard([mask], [CLASSES], void_in_union=True) == (4 / 6 + 0) / 2


def test_jaccard_takes_the_best_candidate_for_each_class():
    candidates = np.stack([CLASSES == 5, CLASSES == 7, np.ones((4, 4), bool)])
    assert jaccard([candidates], [CLASSES]) == 1.0
    assert jaccard([candidates[:1]], [CLASSES]) == 0.5
    assert jaccard([candidates[0]], [CLASSES]) == 0.5


def test_jaccard_of_the_whole_image_is_the_share_of_the_object():
    assert jaccard([np.ones((4, 4), bool)], [CLASSES]) == (4 / 12 + 1 / 12) / 2
    assert jaccard([np.ones((4, 4), bool)], [CLASSES], void_in_union=True) == (4 / 16 + 1 / 16) / 2


def test_jaccard_takes_both_values_for_void_and_leaves_out_images_without_objects():
    signed = np.where(CLASSES == 255, -1, CLASSES)
    mask = np.ones((4, 4), bool)
    assert jaccard([mask], [signed]) == jaccard([mask], [CLASSES.astype(np.uint8)]) == jaccard([mask], [CLASSES])
    empty = np.where(CLASSES == 255, 255, 0)
    assert jaccard([mask, mask], [CLASSES, empty]) == jaccard([mask], [CLASSES])
    assert math.isnan(jaccard([mask], [empty]))


@pytest.mark.parametrize("void_in_union", [False, True])
def test_jaccard_agrees_with_scikit_learn(void_in_union):
    rng = np.random.default_rng(3)
    references = [rng.choice([0, 3, 8, 255], size=(11, 6)) for _ in range(4)]
    predictions = [rng.random((3, 11, 6)) < 0.5 for _ in references]

    def expected(masks, classes):
        counts = np.ones(classes.shape, bool) if void_in_union else classes != 255
        scores = [max(jaccard_score((classes == k)[counts], m[counts]) for m in masks) for k in (3, 8)]
        return np.mean(scores)

    mean = np.mean([expected(*pair) for pair in zip(predictions, references, strict=True)])
    assert jaccard(predictions, references, void_in_union=void_in_union) == pytest.approx(mean, abs=1e-15)


@pytest.mark.parametrize(
    ("metric", "prediction", "reference", "message"),
    [
        (ForegroundAveragePrecision, GUESS * 2.0, TRUTH, r"in \[0, 1\], got values from 0 to 2"),
        (ForegroundAveragePrecision, GUESS[0], TRUTH, r"shape \(height, width\), got \(4,\)"),
        (ForegroundAveragePrecision, GUESS[:2], TRUTH, r"got \(2, 4\) and \(4, 4\)"),
        (ForegroundAveragePrecision, GUESS, TRUTH * 9, r"must hold only \(0, 1, -1\), got \[9\]"),
        (ForegroundF1, GUESS * 0.5, TRUTH, r"must hold only \(0, 1\), got \[0.5\]"),
        (ObjectJaccard, GUESS, CLASSES / 2, r"must hold integers of shape \(height, width\), got float64"),
        (ObjectJaccard, GUESS[0], CLASSES, r"or \(num_candidates, height, width\), got \(4,\)"),
        (ObjectJaccard, np.zeros((0, 4, 4)), CLASSES, r"got \(0, 4, 4\)"),
        (ObjectJaccard, GUESS[None, :2], CLASSES, r"got \(2, 4\) and \(4, 4\)"),
        (ObjectJaccard, GUESS * 2, CLASSES, r"must hold only \(0, 1\), got \[2\]"),
    ],
)
def test_unfit_maps_and_segmentations_are_refused(metric, prediction, reference, message):
    with pytest.raises(ValueError, match=message):
        metric().compute(predictions=[prediction], references=[reference])


def test_top_k_by_hand():
    scores = [[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5]]
    metric = TopKAccuracy(top_k=(1, 2, 3))
    assert metric.compute(predictions=scores, references=[2, 0, 0]) == {"top_1": 1 / 3, "top_2": 2 / 3, "top_3": 1.0}


def test_top_k_agrees_with_scikit_learn():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(200, 12)), rng.integers(12, size=200)
    result = TopKAccuracy().compute(predictions=scores, references=labels)
    assert result["top_1"] == top_k_accuracy_score(labels, scores, k=1)
    assert result["top_5"] == top_k_accuracy_score(labels, scores, k=5)


def test_indices_score_like_the_scores_they_come_from():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(50, 12)), rng.integers(12, size=50)
    indices = np.argsort(-scores, axis=1)[:, :5]
    by_scores = TopKAccuracy().compute(predictions=scores, references=labels)
    assert TopKAccuracy().compute(predictions=indices, references=labels) == by_scores


def test_tied_scores_follow_argmax():
    zeros = np.zeros((3, 4))
    assert TopKAccuracy(top_k=(1,)).compute(predictions=zeros, references=[0, 1, 3])["top_1"] == 1 / 3


def test_nan_never_counts_as_correct():
    scores = np.array([[np.nan, np.nan], [1.0, np.nan], [np.nan, 1.0]])
    assert TopKAccuracy(top_k=(1,)).compute(predictions=scores, references=[0, 0, 0])["top_1"] == 0.0


def test_top_5_of_fewer_classes_is_always_right():
    assert TopKAccuracy().compute(predictions=np.eye(3), references=[1, 2, 0]) == {"top_1": 0.0, "top_5": 1.0}


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([0.5, 0.5], [0, 1], r"got \(2,\) and \(2,\)"),
        (np.eye(3), [0, 1, 3], r"in \[0, 2\] for 3 scores, got values from 0 to 3"),
        (np.eye(3), [0, 1, -100], "got values from -100 to 1"),
        (np.ones((2, 3), int), [0, 1], "at least 5 class indices per example, got 3"),
    ],
)
def test_unfit_scores_are_refused(predictions, references, message):
    with pytest.raises(ValueError, match=message):
        TopKAccuracy().compute(predictions=predictions, references=references)


def test_top_k_must_be_positive():
    with pytest.raises(ValueError, match=r"must hold positive numbers, got \(0,\)"):
        TopKAccuracy(top_k=(0,))


def test_no_answer_is_never_right():
    metric = TopKAccuracy(top_k=(1,))
    metric.add_batch(predictions=np.array([[-1], [2]]), references=np.array([-1, 2]))
    assert metric.compute() == {"top_1": 0.5}
