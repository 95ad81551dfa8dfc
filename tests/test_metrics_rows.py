# SPDX-License-Identifier: Apache-2.0
"""What all metrics share: rows and scores, batches and processes, empty input, nothing kept but rows."""

from __future__ import annotations

import doctest
import importlib
import math
import pkgutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import transformers_ice.evaluation.metrics as metrics_room
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
from transformers_ice.evaluation.metrics.rows import exact_mean


NUM_EXAMPLES = 11
SIDE = 12


def masks(rng):
    return list(rng.random((NUM_EXAMPLES, SIDE, SIDE)) < 0.4)


def soft_maps(rng):
    return [normalize_score_map(rng.random((SIDE, SIDE))) for _ in range(NUM_EXAMPLES)]


def boxes(rng, low=1, high=4):
    def several(number):
        corners = np.sort(rng.integers(0, SIDE, size=(number, 2, 2)), axis=1)
        return corners.reshape(number, 4)

    return [several(int(rng.integers(low, high))) for _ in range(NUM_EXAMPLES)]


def truths(rng):
    return [rng.choice([-1, 0, 1], size=(SIDE, SIDE)) for _ in range(NUM_EXAMPLES)]


def ranked_maps(rng):
    maps = soft_maps(rng)
    return [{"labels": rng.permutation(6)[:5], "score_map": soft} for soft in maps]


def labelled_boxes(rng):
    return [{"label": int(rng.integers(6)), "boxes": own} for own in boxes(rng)]


# name: (how to make the metric, how to make predictions, how to make references)
METRICS = {
    "segmentation": (ForegroundSegmentation, masks, truths),
    "average precision": (ForegroundAveragePrecision, soft_maps, truths),
    "f1": (ForegroundF1, masks, truths),
    "jaccard": (ObjectJaccard, masks, lambda rng: list(rng.choice([0, 1, 2, 255], (NUM_EXAMPLES, SIDE, SIDE)))),
    "max box": (lambda **options: MaxBoxAccuracy(step=0.1, **options), soft_maps, boxes),
    "localization": (lambda **options: LocalizationAccuracy("tscam", **options), ranked_maps, labelled_boxes),
    "corloc": (CorLoc, lambda rng: boxes(rng, 1, 2), boxes),
    "pointing": (PointingGame, lambda rng: [soft.round(1) for soft in soft_maps(rng)], truths),
    "perturbation": (PerturbationAuc, lambda rng: rng.random((NUM_EXAMPLES, 10)), None),
    "insertion": (InsertionDeletionAuc, lambda rng: rng.random((NUM_EXAMPLES, 21)), None),
    "accuracy": (TopKAccuracy, lambda rng: rng.random((NUM_EXAMPLES, 8)), lambda rng: rng.integers(8, size=11)),
    "mean": (lambda **options: MeanOf("share", **options), lambda rng: rng.random(NUM_EXAMPLES), None),
}


def example_data(name):
    rng = np.random.default_rng(0)
    make, make_predictions, make_references = METRICS[name]
    return make, make_predictions(rng), make_references(rng) if make_references else None


def part(data, chosen):
    return None if data is None else [data[index] for index in chosen]


@pytest.mark.parametrize("name", METRICS)
def test_compute_is_score_of_rows_however_the_examples_are_batched(name):
    make, predictions, references = example_data(name)
    metric = make()
    rows = metric.rows(predictions, references)
    expected = metric.score(rows)
    assert all(isinstance(value, float) and not math.isnan(value) for value in expected.values())
    for chosen in ([0], [1, 2, 3], list(range(4, 10))):
        metric.add_batch(predictions=part(predictions, chosen), references=part(references, chosen))
    assert len(metric) == 10
    assert metric.compute(predictions=part(predictions, [10]), references=part(references, [10])) == expected


@pytest.mark.parametrize("name", METRICS)
def test_order_of_the_rows_changes_no_digit(name):
    make, predictions, references = example_data(name)
    metric = make()
    rows = metric.rows(predictions, references)
    expected = metric.score(rows)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(NUM_EXAMPLES)
        assert metric.score({column: values[order] for column, values in rows.items()}) == expected


@pytest.mark.parametrize("name", METRICS)
def test_rows_are_small_and_typed_and_nothing_is_stored_by_making_them(name):
    make, predictions, references = example_data(name)
    metric = make()
    rows = metric.rows(predictions, references)
    assert list(rows) == list(metric.row_features) == list(metric.features)
    assert all(len(values) == NUM_EXAMPLES and values.dtype != object for values in rows.values())
    assert metric.writer is None
    one = metric.rows(part(predictions, [0]), part(references, [0]))
    assert all(np.array_equal(one[column][0], rows[column][0], equal_nan=True) for column in rows)
    none = metric.rows([], [])
    assert all(
        none[column].dtype == values.dtype and none[column].shape == (0, *values.shape[1:])
        for column, values in rows.items()
    )


@pytest.mark.parametrize("name", METRICS)
def test_compute_starts_over(name):
    make, predictions, references = example_data(name)
    metric = make()
    metric.compute(predictions=part(predictions, [0, 1]), references=part(references, [0, 1]))
    again = metric.compute(predictions=predictions, references=references)
    assert again == make().compute(predictions=predictions, references=references)


@pytest.mark.parametrize("name", METRICS)
def test_nothing_to_score_is_an_error_that_says_so(name):
    metric = METRICS[name][0]()
    with pytest.raises(ValueError, match="nothing to score"):
        metric.compute()
    with pytest.raises(ValueError, match="nothing to score"):
        metric.compute(predictions=[], references=[])
    with pytest.raises(ValueError, match="nothing to score"):
        metric.score(metric.rows([], []))
    with pytest.raises(ValueError, match="must be given together"):
        metric.compute(references=[[0]])


def test_missing_references_are_an_error_only_where_they_are_needed():
    with pytest.raises(ValueError, match="must be given together"):
        ForegroundSegmentation().compute(predictions=[[[1]]])
    with pytest.raises(ValueError, match=r"ForegroundSegmentation needs `references`, one per prediction, got None"):
        ForegroundSegmentation().add_batch(predictions=[[[1]]])
    metric = MeanOf("share")
    metric.add(prediction=1)
    metric.add_batch(predictions=[0], references=[None])
    assert metric.compute() == {"share": 0.5}


def test_rows_that_do_not_belong_to_the_metric_are_refused():
    metric = ForegroundF1()
    rows = metric.rows([[[1]]], [[[1]]])
    with pytest.raises(ValueError, match=r"must hold the columns \['false_background', .*\], got \['hit'\]"):
        metric.score({"hit": np.ones(1)})
    with pytest.raises(ValueError, match=r"must have one length, got \{.*'true_foreground': 2"):
        metric.score(rows | {"true_foreground": np.ones(2, int)})


def test_a_million_images_of_a_million_pixels_do_not_overflow():
    counts = np.full(1_000_000, 4_000_000, dtype=np.int32)
    zeros = np.zeros_like(counts)
    rows = {"true_foreground": counts, "false_foreground": counts, "false_background": zeros, "true_background": zeros}
    assert ForegroundSegmentation().score(rows) == {"pixel_accuracy": 0.5, "mean_iou": 0.25}


def test_scoring_many_rows_is_fast_enough_for_a_bootstrap():
    rng = np.random.default_rng(0)
    metric = MaxBoxAccuracy()
    rows = {column: rng.integers(0, 2, (20_000, 100), dtype=np.uint8) for column in metric.row_features}
    start = time.perf_counter()
    metric.score(rows)
    ForegroundAveragePrecision().score({"average_precision": rng.random(50_000)})
    assert time.perf_counter() - start < 1  # about 0.02 s on an idle core


def test_exact_mean_does_not_depend_on_the_order_where_a_plain_sum_does():
    values = np.array([1e16, 1.0, -1e16, 1.0])
    assert exact_mean(values) == exact_mean(np.sort(values)) == 0.5
    assert exact_mean(np.array([0.25, np.nan, 0.75])) == 0.5
    assert math.isnan(exact_mean(np.array([np.nan])))


def test_rows_kept_in_a_file_give_the_same_scores(tmp_path):
    for name in ("max box", "average precision", "perturbation"):
        make, predictions, references = example_data(name)
        data = {"predictions": predictions, "references": references}
        in_file = make(keep_in_memory=False, cache_dir=str(tmp_path))
        assert in_file.compute(**data) == make().compute(**data)


def scores_of_threads(make, shares, cache_dir):
    """Return what each of several "processes", here threads, computes from its share of the examples."""
    scores = [None] * len(shares)

    def work(number, predictions, references):
        options = {"num_process": len(shares), "process_id": number, "cache_dir": str(cache_dir), "timeout": 20}
        metric = make(**options)
        if predictions:
            metric.add_batch(predictions=predictions, references=references)
        scores[number] = metric.compute()

    threads = [threading.Thread(target=work, args=(number, *share)) for number, share in enumerate(shares)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return scores


@pytest.mark.parametrize("name", METRICS)
def test_two_processes_score_like_one(name, tmp_path):
    make, predictions, references = example_data(name)
    shares = [(part(predictions, chosen), part(references, chosen)) for chosen in (range(0, 11, 2), range(1, 11, 2))]
    expected = make().compute(predictions=predictions, references=references)
    assert scores_of_threads(make, shares, tmp_path) == [expected, None]


def test_a_process_without_examples_does_not_stop_the_others(tmp_path):
    make, predictions, references = example_data("max box")
    expected = make().compute(predictions=predictions, references=references)
    full, empty = (predictions, references), ([], [])
    assert scores_of_threads(make, [full, empty], tmp_path / "last") == [expected, None]
    assert scores_of_threads(make, [empty, full], tmp_path / "first") == [expected, None]


ONE_OF_TWO_PROCESSES = """
import sys
import numpy as np
from transformers_ice.evaluation.metrics import MaxBoxAccuracy, normalize_score_map

number, cache_dir = int(sys.argv[1]), sys.argv[2]
rng = np.random.default_rng(0)
maps = [normalize_score_map(rng.random((12, 12))) for _ in range(7)]
boxes = [[[1, 1, 8, 9]]] * 7
metric = MaxBoxAccuracy(num_process=2, process_id=number, cache_dir=cache_dir)
for index in range(number, 7, 2):
    metric.add(prediction=maps[index], reference=boxes[index])
print(metric.compute())
"""


@pytest.mark.slow
def test_two_real_processes_score_like_one(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ONE_OF_TWO_PROCESSES, str(number), str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    printed = [process.communicate(timeout=120)[0].strip() for process in processes]
    rng = np.random.default_rng(0)
    maps = [normalize_score_map(rng.random((12, 12))) for _ in range(7)]
    expected = MaxBoxAccuracy().compute(predictions=maps, references=[[[1, 1, 8, 9]]] * 7)
    assert printed == [str(expected), "None"]


@pytest.mark.parametrize("module", [found.name for found in pkgutil.iter_modules(metrics_room.__path__)])
def test_examples_of_the_docstrings_print_what_they_say(module):
    assert doctest.testmod(importlib.import_module(f"{metrics_room.__name__}.{module}")).failed == 0
