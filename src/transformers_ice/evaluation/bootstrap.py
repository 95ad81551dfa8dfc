# SPDX-License-Identifier: Apache-2.0
"""Bootstrap intervals of scores, from examples resampled with replacement."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np


__all__ = ["Interval", "bootstrap"]


@dataclass(frozen=True)
class Interval:
    """Score of all examples with the ends of its interval."""

    value: float
    low: float
    high: float


def bootstrap(
    score: Callable[[Mapping[str, np.ndarray]], dict[str, float]],
    rows: Mapping[str, np.ndarray],
    num_resamples: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Return every score with its percentile interval over resampled examples.

    The examples of a resample depend on the seed and their number only: two methods scored on the same images are
    resampled alike.

    Args:
        score: From rows to scores.
        rows: Arrays whose first axis runs over the examples.
        num_resamples: 0 gives intervals of NaN.
        level: Fraction of the resamples inside the interval, in (0, 1).
        seed: Seed of the resampling.

    Source: Efron, "Bootstrap Methods: Another Look at the Jackknife", Annals of Statistics 1979.
    """
    values = score(rows)
    number = len(next(iter(rows.values())))
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(num_resamples):
        chosen = rng.integers(0, number, number)  # (num_examples,) indices, with replacement
        draws.append(score({name: column[chosen] for name, column in rows.items()}))
    tails = ((1 - level) / 2, (1 + level) / 2)  # 2.5 % and 97.5 % by default
    intervals = {}
    for name, value in values.items():
        # NaN: a resample without any example that has this score
        low, high = np.nanquantile([draw[name] for draw in draws], tails) if draws else (math.nan, math.nan)
        intervals[name] = Interval(float(value), float(low), float(high))
    return intervals
