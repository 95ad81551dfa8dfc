# SPDX-License-Identifier: Apache-2.0
"""Bootstrap intervals of scores, from examples resampled with replacement."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np


__all__ = ["Interval", "bootstrap"]


@dataclass(frozen=True)
class Interval:
    """Score of all examples with the ends of its interval, and its value in every resample."""

    value: float
    low: float
    high: float
    draws: np.ndarray | None = field(default=None, compare=False, repr=False)

    def minus(self, other: Interval) -> Interval:
        """Return the difference to a score of the same examples; its interval is that of the paired differences."""
        if self.draws is None or other.draws is None or len(self.draws) != len(other.draws):
            return Interval(self.value - other.value, math.nan, math.nan)
        return _interval(self.value - other.value, self.draws - other.draws)

    @property
    def holds_zero(self) -> bool:
        """Whether zero is inside; without resamples, whether the value is zero."""
        return self.value == 0 if math.isnan(self.low) else self.low <= 0 <= self.high


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
    return {
        # NaN: a resample without any example that has this score
        name: _interval(value, np.array([draw.get(name, math.nan) for draw in draws]), level)
        for name, value in values.items()
    }


def _interval(value: float, draws: np.ndarray, level: float = 0.95) -> Interval:
    tails = ((1 - level) / 2, (1 + level) / 2)  # 2.5 % and 97.5 % by default
    known = draws[~np.isnan(draws)]
    low, high = np.quantile(known, tails).tolist() if len(known) else (math.nan, math.nan)
    return Interval(float(value), low, high, draws)
