# SPDX-License-Identifier: Apache-2.0
"""Metrics of any masks, maps, boxes and scores: range, right and empty answers, order, batching, other programs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy import ndimage
from scipy.integrate import trapezoid
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, jaccard_score, top_k_accuracy_score

from transformers_ice.evaluation.metrics import (
    CorLoc,
    ForegroundAveragePrecision,
    ForegroundF1,
    ForegroundSegmentation,
    InsertionDeletionAuc,
    LocalizationAccuracy,
    MaxBoxAccuracy,
    MeanOf,
    ObjectJaccard,
    PerturbationAuc,
    PointingGame,
    TopKAccuracy,
    normalize_score_map,
)


SHAPES = npst.array_shapes(min_dims=2, max_dims=2, max_side=7)
UNIT = st.floats(0, 1, width=32)
# the same few levels often: ties are where programs differ
LEVELS = st.sampled_from([0.0, 0.25, 0.5, 1.0])


@st.composite
def segmentations(draw, allowed=(0, 1, -1)):
    """A mask, a soft map and a true mask of one size."""
    shape = draw(SHAPES)
    mask = draw(npst.arrays(bool, shape))
    soft = draw(npst.arrays(np.float32, shape, elements=st.one_of(UNIT, LEVELS)))
    truth = draw(npst.arrays(np.int8, shape, elements=st.sampled_from(allowed)))
    return mask, soft, truth


@st.composite
def box_lists(draw, size=12, min_size=1, max_size=3):
    boxes = []
    for _ in range(draw(st.integers(min_size, max_size))):
        x0, x1 = sorted(draw(st.tuples(st.integers(0, size), st.integers(0, size))))
        y0, y1 = sorted(draw(st.tuples(st.integers(0, size), st.integers(0, size))))
        boxes.append([x0, y0, x1, y1])
    return boxes


@st.composite
def score_rows(draw):
    """Scores of a batch, and true classes."""
    num_images, num_labels = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    scores = draw(npst.arrays(np.float32, (num_images, num_labels), elements=st.one_of(UNIT, LEVELS)))
    labels = draw(npst.arrays(np.int64, num_images, elements=st.integers(0, num_labels - 1)))
    return list(zip(scores, labels, strict=True))


def curves_of(length):
    return st.lists(st.tuples(npst.arrays(np.float64, length, elements=st.floats(0, 1)), st.none()), min_size=1)


def with_mask(values):
    return [(mask, truth) for mask, _, truth in values]


def with_map(values):
    return [(soft, truth) for _, soft, truth in values]


SEGMENTED = st.lists(segmentations(), min_size=1, max_size=5)
BOXED = st.lists(st.tuples(npst.arrays(np.float32, (8, 12), elements=LEVELS), box_lists(8)), min_size=1, max_size=3)
CASES = {
    "segmentation": (ForegroundSegmentation, SEGMENTED.map(with_mask)),
    "f1": (ForegroundF1, SEGMENTED.map(with_mask)),
    "precision": (ForegroundAveragePrecision, SEGMENTED.map(with_map)),
    "pointing": (PointingGame, SEGMENTED.map(with_map)),
    "pointing_near": (lambda: PointingGame(tolerance=1.5), SEGMENTED.map(with_map)),
    "jaccard": (ObjectJaccard, st.lists(segmentations((0, 1, 2, -1)), min_size=1).map(with_mask)),
    "max_box": (lambda: MaxBoxAccuracy(step=0.1), BOXED),
    "corloc": (CorLoc, st.lists(st.tuples(box_lists(min_size=0, max_size=1), box_lists()), min_size=1)),
    "top_k": (lambda: TopKAccuracy(top_k=(1, 3)), score_rows()),
    "insertion": (lambda: InsertionDeletionAuc("insertion", (0.0, 0.25, 1.0)), curves_of(3)),
    "perturbation": (lambda: PerturbationAuc((0.1, 0.5, 0.6)), curves_of(3)),
    "mean": (lambda: MeanOf("x"), st.lists(st.tuples(st.one_of(UNIT, st.just(math.nan)), st.none()), min_size=1)),
}


def added(metric, pairs):
    predictions, references = ([*column] for column in zip(*pairs, strict=True))
    if metric.uses_references:
        metric.add_batch(predictions=predictions, references=references)
    else:
        metric.add_batch(predictions=predictions)
    return metric


def score(metric, pairs):
    return added(metric, pairs).compute()


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
def test_scores_are_in_range_and_do_not_depend_on_order_or_batches(name, data):
    make, strategy = CASES[name]
    pairs = data.draw(strategy)
    whole = score(make(), pairs)
    most = 100.0 if name == "perturbation" else 1.0
    assert all(math.isnan(value) or 0 <= value <= most for value in whole.values()), whole
    turned = data.draw(st.permutations(pairs))
    metric, start = make(), 0
    while start < len(turned):
        stop = data.draw(st.integers(start + 1, len(turned)))
        added(metric, turned[start:stop])
        start = stop
    np.testing.assert_equal(metric.compute(), whole)
    # rows that were kept and joined
    metric = make()
    parts = [metric.rows([prediction], [reference]) for prediction, reference in turned]
    joined = {column: np.concatenate([part[column] for part in parts]) for column in parts[0]}
    np.testing.assert_equal(metric.score(joined), whole)


@given(SEGMENTED)
def test_right_answers_score_one_and_empty_ones_miss(values):
    truths = [truth for *_, truth in values]
    perfect = [(truth == 1, truth) for truth in truths]
    counts = any((truth != -1).any() for truth in truths)
    has_object = any((truth == 1).any() for truth in truths)
    assert set(score(ForegroundSegmentation(), perfect).values()) == {1.0} or not counts
    for metric, name in ((ForegroundF1(), "mean_f1"), (PointingGame(), "pointing_game"), (ObjectJaccard(), "jaccard")):
        value = score(metric, perfect)[name]
        assert value == 1.0 if has_object else math.isnan(value)
    precision = [(mask, truth) for mask, truth in perfect if mask.any() and (truth == 0).any()]
    if precision:
        assert score(ForegroundAveragePrecision(), precision)["mean_average_precision"] == 1.0
    empty = [(np.zeros_like(mask), truth) for mask, truth in perfect]
    if has_object:
        assert score(ForegroundF1(), empty)["mean_f1"] == 0
        assert score(ObjectJaccard(), empty)["jaccard"] == 0
        # a constant map points anywhere
        expected = np.mean([(truth == 1).sum() / (truth != -1).sum() for truth in truths if (truth == 1).any()])
        assert score(PointingGame(), empty)["pointing_game"] == pytest.approx(expected, abs=1e-12)
        nan = [(np.full(truth.shape, np.nan), truth) for truth in truths]
        assert score(PointingGame(), nan)["pointing_game"] == 0


@given(SEGMENTED)
def test_segmentation_scores_are_those_of_scikit_learn(values):
    truth = np.concatenate([truth[truth != -1] for *_, truth in values])
    mask = np.concatenate([mask[truth != -1] for mask, _, truth in values])
    if len(truth):
        ours = score(ForegroundSegmentation(), with_mask(values))
        classes = sorted({*truth.tolist(), *mask.astype(int).tolist()})
        expected = [jaccard_score(truth == kind, mask == kind) for kind in classes]
        assert ours["pixel_accuracy"] == pytest.approx(accuracy_score(truth, mask), abs=1e-12)
        assert ours["mean_iou"] == pytest.approx(np.mean(expected), abs=1e-12)
    for mask, soft, truth in values:
        seen = truth != -1
        f1 = score(ForegroundF1(), [(mask, truth)])["mean_f1"]
        if (mask & seen).any() or (truth == 1).any():
            assert f1 == pytest.approx(f1_score(truth[seen] == 1, mask[seen]), abs=1e-12)
        else:
            assert math.isnan(f1)
        precision = score(ForegroundAveragePrecision(), [(soft, truth)])["mean_average_precision"]
        if not seen.any():
            assert math.isnan(precision)
            continue
        flat = np.zeros_like(soft) if soft.min() == soft.max() else soft
        channels = np.stack([1 - flat[seen] if flat is soft else flat[seen], flat[seen]], axis=1)
        labels = np.stack([truth[seen] == 0, truth[seen] == 1], axis=1)
        assert precision == pytest.approx(average_precision_score(labels, channels, average="micro"), abs=1e-12)


@given(segmentations(), st.floats(0, 4))
@example((np.ones((1, 2), bool), np.array([[0.5, 0.5]], np.float32), np.array([[1, 0]], np.int8)), 1.0)
def test_pointing_game_is_that_of_a_slow_loop(values, tolerance):
    _, soft, truth = values
    ours = score(PointingGame(tolerance=tolerance), [(soft, truth)])["pointing_game"]
    objects = np.argwhere(truth == 1)
    if not len(objects):
        assert math.isnan(ours)
        return
    largest = soft[truth != -1].max()
    points = [point for point in np.argwhere(truth != -1) if soft[tuple(point)] == largest]
    hits = [min(math.dist(point, place) for place in objects) <= tolerance for point in points]
    assert ours == pytest.approx(np.mean(hits), abs=1e-12)


@given(score_rows(), st.integers(1, 6))
def test_top_k_accuracy_is_that_of_scikit_learn_where_no_scores_are_equal(pairs, k):
    scores, labels = np.stack([row for row, _ in pairs]), np.array([label for _, label in pairs])
    num_labels = scores.shape[1]
    ours = score(TopKAccuracy(top_k=(k,)), pairs)[f"top_{k}"]
    if num_labels > 2 and k < num_labels and all(len(set(row)) == num_labels for row in scores.tolist()):
        expected = top_k_accuracy_score(labels, scores, k=k, labels=np.arange(num_labels))
        assert ours == pytest.approx(expected, abs=1e-12)
    by_hand = [label in sorted(range(num_labels), key=lambda i: (-row[i], i))[:k] for row, label in pairs]
    assert ours == pytest.approx(np.mean(by_hand), abs=1e-12)
    ranked = [np.argsort(-row, kind="stable") for row, _ in pairs]
    if k <= num_labels:
        by_index = [(indices, label) for indices, (_, label) in zip(ranked, pairs, strict=True)]
        assert score(TopKAccuracy(top_k=(k,)), by_index)[f"top_{k}"] == ours


@given(npst.arrays(np.float64, 5, elements=st.floats(0, 1)), st.sets(st.floats(0.01, 0.99), min_size=3, max_size=3))
def test_areas_are_those_of_the_trapezoidal_rule(curve, inner):
    fractions = (0.0, *sorted(inner), 1.0)
    ours = score(InsertionDeletionAuc("deletion", fractions), [(curve, None)])["deletion_auc"]
    assert ours == pytest.approx(trapezoid(curve, fractions), abs=1e-12)
    assert 0 <= ours <= 1
    for level in (0.0, 1.0):
        flat = score(InsertionDeletionAuc("deletion", fractions), [(curve * 0 + level, None)])
        assert flat["deletion_auc"] == pytest.approx(level, abs=1e-12)


@given(box_lists(11, max_size=1), st.floats(0.05, 1))
def test_map_of_a_box_finds_it_at_every_protocol_and_an_empty_one_does_not(boxes, level):
    x0, y0, x1, y1 = boxes[0]
    x1, y1 = x1 + 1, y1 + 1  # an object of at least one pixel
    soft = np.zeros((14, 14), np.float32)  # of which it does not touch the last: some rules take that one off a box
    soft[y0:y1, x0:x1] = level
    truth = [[x0, y0, x1, y1]]
    found = score(MaxBoxAccuracy(step=0.1), [(normalize_score_map(soft), truth)])
    assert found["max_box_acc"] == found["max_box_acc_v2"] == 1
    for protocol in ("tscam", "sat", "wsolevaluation"):
        prediction = {"labels": np.array([0]), "score_map": soft / level}
        metric = LocalizationAccuracy(protocol, threshold=0.3, top_k=(1,))
        assert score(metric, [(prediction, {"label": 0, "boxes": truth})]) == {"gt_known_loc": 1, "top_1_loc": 1}
    assert score(CorLoc(), [(truth[0], truth)])["corloc"] == 1
    assert score(CorLoc(), [([], truth)])["corloc"] == 0


@given(npst.arrays(np.float64, SHAPES, elements=st.one_of(st.floats(-1e6, 1e6), st.just(math.nan), st.just(math.inf))))
def test_stretched_maps_lie_in_the_unit_interval_and_keep_their_order(values):
    stretched = normalize_score_map(values)
    assert stretched.shape == values.shape
    assert ((stretched >= 0) & (stretched <= 1)).all()
    if np.isfinite(values).all() and values.min() < values.max():
        assert stretched.min() == 0
        assert stretched.max() == 1
        order = np.argsort(values, axis=None, kind="stable")
        assert (np.diff(stretched.ravel()[order]) >= 0).all()


@given(npst.arrays(np.float32, (8, 12), elements=LEVELS), box_lists(8))
def test_max_box_accuracy_is_that_of_a_loop_over_thresholds_and_components(soft, truth):
    """One contour box for each 8-connected component; those of holes lie inside and are compared as well."""
    ours = score(MaxBoxAccuracy(step=0.25), [(soft, truth)])
    levels, best = (soft * 255).astype(np.uint8), 0.0
    for threshold in np.arange(0, 1, 0.25):
        labels, _ = ndimage.label(levels > int(threshold * levels.max()), np.ones((3, 3)))
        slices = ndimage.find_objects(labels)
        boxes = [(part[1].start, part[0].start, part[1].stop, part[0].stop) for part in slices] or [(0, 0, 0, 0)]
        best = max(best, *(inclusive_iou(clip(box), other) for box in boxes for other in truth))
    for percent in (30, 50, 70):
        assert ours[f"max_box_acc_v2_{percent}"] >= (best >= percent / 100)


def clip(box):
    return (*box[:2], min(box[2], 11), min(box[3], 7))


def inclusive_iou(box, other):
    """Count the pixels of two boxes that hold their ends."""
    first, second = ({(x, y) for x in range(b[0], b[2] + 1) for y in range(b[1], b[3] + 1)} for b in (box, other))
    return len(first & second) / len(first | second)
