# SPDX-License-Identifier: Apache-2.0
"""`ThroughputMeter`: images per second, with a clock that is set by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from transformers import TrainerControl, TrainerState

from transformers_ice.training import IceTrainingArguments, progress
from transformers_ice.training.progress import ThroughputMeter


class Clock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_rate_leaves_out_what_is_paused():
    clock = Clock()
    meter = ThroughputMeter(clock)
    assert meter.read() == 0
    clock.seconds = 200.0
    meter.read()
    meter.count(30)
    clock.seconds = 202.0
    with meter.paused():
        clock.seconds = 250.0
    meter.count(30)
    clock.seconds = 251.0
    assert meter.read() == 60 / 3


def test_pause_begins_at_the_reading_inside_it():
    clock = Clock()
    meter = ThroughputMeter(clock)
    meter.count(10)
    clock.seconds += 1
    with meter.paused():
        clock.seconds += 1  # waiting for the device belongs to the step before
        assert meter.read() == 5
        clock.seconds += 50
    meter.count(10)
    clock.seconds += 2
    assert meter.read() == 5


def test_first_images_start_the_clock():
    clock = Clock()
    meter = ThroughputMeter(clock)
    clock.seconds += 1000
    meter.count(8)
    clock.seconds += 4
    assert meter.read() == 2


def test_a_pause_before_the_first_images_does_not_count():
    clock = Clock()
    meter = ThroughputMeter(clock)
    with meter.paused():
        clock.seconds += 100  # e.g. `eval_on_start`
    meter.count(8)
    clock.seconds += 4
    assert meter.read() == 2


def test_a_run_says_its_length_before_and_its_time_after_a_few_steps(tmp_path, monkeypatch):
    said, clock = [], Clock()
    monkeypatch.setattr(progress.logger, "warning", said.append)
    args = IceTrainingArguments(str(tmp_path), per_device_train_batch_size=8, use_cpu=True)
    callback, state, control = progress.StepCountCallback(clock), TrainerState(max_steps=1204), TrainerControl()
    callback.on_train_begin(args, state, control, train_dataloader=range(12))
    assert said == ["1204 steps of 8 images, 12 steps an epoch."]
    for state.global_step in range(1, 7):
        clock.seconds += 50 if state.global_step == 1 else 3  # the first step warms up
        callback.on_step_end(args, state, control)
    assert said[1:] == ["About 1 h 0 min to go at this speed, without evaluations."]


@pytest.mark.parametrize(
    ("loads_best", "best", "expected"),
    [
        (True, "out/checkpoint-24", "Kept step 24 of 40: the highest top_1 of its evaluations, 0.8330"),
        (True, None, None),
        (False, "out/checkpoint-24", None),
    ],
)
def test_which_step_is_kept_is_said(loads_best, best, expected):
    state = SimpleNamespace(best_model_checkpoint=best, best_metric=0.833, global_step=40)
    args = SimpleNamespace(load_best_model_at_end=loads_best, metric_for_best_model="top_1", greater_is_better=True)
    assert progress.describe_kept(SimpleNamespace(state=state, args=args)) == expected


@pytest.mark.parametrize(
    ("evaluation", "is_said"),
    [
        ({"eval_top_1": 0.77, "eval_cls_top_1": 0.92}, True),
        ({"eval_top_1": 0.90, "eval_cls_top_1": 0.92}, False),
        ({"eval_top_1": 0.92, "eval_cls_top_1": 0.77}, False),
        ({"eval_top_1": 0.77}, False),  # a plain classifier
        ({"eval_map": 0.5, "eval_cls_map": 0.9}, False),  # several labels
    ],
)
def test_patches_far_below_cls_are_said(evaluation, is_said):
    gap = progress.describe_gap(evaluation)
    assert (gap is not None) == is_said
    if gap is not None:
        assert all(word in gap for word in ("77.0%", "92.0%", "--seed"))


def test_an_evaluation_during_training_has_no_bar_of_its_own():
    callback, state = progress.SingleBarCallback(), TrainerState(max_steps=3, is_world_process_zero=True)
    callback.on_train_begin(None, state, None)
    callback.on_prediction_step(None, state, None, eval_dataloader=[1, 2])
    assert callback.prediction_bar is None
    callback.on_train_end(None, state, None)
    callback.on_prediction_step(None, state, None, eval_dataloader=[1, 2])
    assert callback.prediction_bar is not None
    callback.on_evaluate(None, state, None)
