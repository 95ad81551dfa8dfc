# SPDX-License-Identifier: Apache-2.0
"""Time several calls against each other on a machine that may slow down at any moment."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch


__all__ = ["Spread", "interleave", "summarize_spread", "time_call"]


@dataclass(frozen=True)
class Spread:
    """Median of repeated measurements, and their quartiles."""

    median: float
    low: float
    high: float


def summarize_spread(values: Sequence[float]) -> Spread:
    """Return median and quartiles; of one value, that value."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    # quartiles among the values themselves, as NumPy's default
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def time_call(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that a call takes, including its asynchronous work on a device."""
    _wait_for(device)  # earlier work in the queue must not be counted
    start = time.perf_counter()
    call()
    _wait_for(device)
    return time.perf_counter() - start


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def interleave(
    measures: Mapping[str, Callable[[int], float]], num_repeats: int, num_warmups: int, seed: int = 0
) -> dict[str, list[float]]:
    """Take every measurement once in each repeat, in an order that is shuffled for each.

    A temporary slowdown of the machine then affects all of them, so values of one repeat may be compared.

    Args:
        measures: By name, each a function of the number of the repeat.
        num_repeats: Repeats that count.
        num_warmups: Repeats before them that do not. They too are numbered from 0.
        seed: Seed of the order.

    Returns:
        By name, one value for each repeat that counts.
    """
    rng = random.Random(seed)
    values: dict[str, list[float]] = {name: [] for name in measures}
    for repeat in range(-num_warmups, num_repeats):
        names = list(measures)
        rng.shuffle(names)  # no measurement always follows the same other one
        for name in names:
            # warm-up repeats are negative here; the measurement gets numbers from 0 on for both
            value = measures[name](repeat if repeat >= 0 else repeat + num_warmups)
            if repeat >= 0:
                values[name].append(value)
    return values
