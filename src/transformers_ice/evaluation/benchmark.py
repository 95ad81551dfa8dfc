# SPDX-License-Identifier: Apache-2.0
"""Base class of the benchmarks: a batch of explained examples in, one row per example out, rows into scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np

from .inputs import ExplainedBatch
from .metrics import RowMetric
from .protocol import Protocol
from .scoring import Observation, Rows, make_rows, score_rows


__all__ = ["Benchmark"]


class Benchmark(ABC):
    """Benchmark that turns explained examples into rows, and rows into scores.

    Rows are all that is kept of an example. They are small, depend on nothing but the example, and can be stored,
    merged from several processes and resampled; a score is a function of all rows.

    Args:
        protocol: How explanations are scored.

    Attributes:
        name: Its name on the command line.
        needs: What an example must hold: "label", "mask", "segmentation" or "boxes".
        of_model_only: Whether it scores the classifier and no explanation.
        metrics: Metrics by name; a name that ends with an underscore is the prefix of the metric's scores.
    """

    name: str
    needs: frozenset[str]
    of_model_only = False

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol
        self.metrics: dict[str, RowMetric] = self._make_metrics()

    @abstractmethod
    def _make_metrics(self) -> dict[str, RowMetric]:
        """Return the metrics by name."""

    @abstractmethod
    def observe(self, batch: ExplainedBatch) -> dict[str, Observation]:
        """Return predictions and references of every metric, under its name."""

    def rows(self, batch: ExplainedBatch) -> Rows:
        """Return the rows of a batch: arrays whose first axis runs over the examples, by "metric/column"."""
        return make_rows(self.observe(batch), self.metrics)

    def scores(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Return the scores of all examples whose rows are given."""
        return score_rows(rows, self.metrics)
