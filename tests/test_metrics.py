# SPDX-License-Identifier: Apache-2.0
"""Scores by hand on 4x4 masks, and against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, jaccard_score, top_k_accuracy_score

from transformers_ice.metrics import ForegroundSegmentation, TopKAccuracy


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


def test_counts_are_all_that_is_stored():
    metric = ForegroundSegmentation()
    metric.add_batch(predictions=[GUESS, GUESS], references=[TRUTH, TRUTH])
    assert set(metric.features) == set(metric.count_names)
    assert len(metric) == 2
    assert all(feature.dtype == "int64" for feature in metric.features.values())


def test_compute_starts_over():
    metric = ForegroundSegmentation()
    metric.compute(predictions=[1 - TRUTH], references=[TRUTH])
    assert metric.compute(predictions=[TRUTH], references=[TRUTH])["pixel_accuracy"] == 1.0


def test_counts_kept_in_a_file_give_the_same_scores(tmp_path):
    metric = ForegroundSegmentation(keep_in_memory=False, cache_dir=str(tmp_path))
    assert metric.compute(predictions=[GUESS], references=[TRUTH]) == segmentation([GUESS], [TRUTH])


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


@pytest.mark.parametrize("metric_class", [ForegroundSegmentation, TopKAccuracy])
def test_nothing_to_score_is_an_error_that_says_so(metric_class):
    with pytest.raises(ValueError, match="nothing to score"):
        metric_class().compute()
    with pytest.raises(ValueError, match="must be given together"):
        metric_class().compute(predictions=[[0]])


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
