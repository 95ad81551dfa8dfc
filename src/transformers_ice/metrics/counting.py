# SPDX-License-Identifier: Apache-2.0
"""Metrics that reduce each example to a few integers as soon as they see it.

`evaluate.Metric` keeps every prediction until `compute()`. A mask or a row of scores is large, and all that a score
over a whole set needs of it are some counts; so the counts are what is stored, in `evaluate`'s own table, and
gathering over processes (`num_process`, `process_id`) still works.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate


__all__ = ["CountingMetric"]


class CountingMetric(evaluate.Metric):
    """An `evaluate.Metric` whose stored features are integer counts, one row per example.

    A subclass names the counts in `count_names`, makes them in `_count` and turns their columns into scores in
    `_compute`.

    Args:
        keep_in_memory: Keep the counts in memory, not in a file. The default does so wherever `evaluate` allows
            it, which is in one process.
        **kwargs: Further options of `evaluate.Metric` (`num_process`, `process_id`, `experiment_id`, ...).
    """

    count_names: tuple[str, ...] = ()

    def __init__(self, keep_in_memory: bool | None = None, **kwargs: Any) -> None:
        if keep_in_memory is None:
            keep_in_memory = kwargs.get("num_process", 1) == 1
        super().__init__(keep_in_memory=keep_in_memory, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=(type(self).__doc__ or "").strip(),
            citation="",
            inputs_description="",
            features=datasets.Features({name: datasets.Value("int64") for name in self.count_names}),
        )

    def _count(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, list[int]]:
        raise NotImplementedError

    def add_batch(self, *, predictions: Sequence[Any], references: Sequence[Any]) -> None:
        """Count one batch of examples.

        Args:
            predictions: One entry per example.
            references: One entry per example, in the same order.

        Raises:
            ValueError: If the two differ in length, or an entry has the wrong shape or values.
        """
        if len(predictions) != len(references):
            raise ValueError(
                "`predictions` and `references` must have the same length, "
                f"got {len(predictions)} and {len(references)}."
            )
        if len(predictions):
            super().add_batch(**self._count(predictions, references))

    def add(self, *, prediction: Any, reference: Any) -> None:
        """Count one example; see `add_batch`."""
        self.add_batch(predictions=[prediction], references=[reference])

    def compute(
        self, *, predictions: Sequence[Any] | None = None, references: Sequence[Any] | None = None, **kwargs: Any
    ) -> dict[str, float] | None:
        """Return the scores of everything counted since the last call, then start over.

        Args:
            predictions: A last batch to count first.
            references: The references of that batch.
            **kwargs: Options of the metric.

        Returns:
            The scores by name; `None` in processes other than the first.

        Raises:
            ValueError: If only one of the two is given, or nothing was ever counted.
        """
        if (predictions is None) != (references is None):
            raise ValueError("`predictions` and `references` must be given together, got only one of them.")
        if predictions is not None and references is not None:
            self.add_batch(predictions=predictions, references=references)
        if self.writer is None:
            raise ValueError("There is nothing to score, expected at least one example. Call `add_batch` first.")
        return super().compute(**kwargs)
