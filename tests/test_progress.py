# SPDX-License-Identifier: Apache-2.0
"""`ThroughputMeter`: images per second, with a clock that is set by hand."""

from __future__ import annotations

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
