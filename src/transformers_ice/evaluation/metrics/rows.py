# SPDX-License-Identifier: Apache-2.0
"""Metrics that reduce each example to a small row of numbers as soon as they see it.

`evaluate.Metric` keeps every prediction until `compute()`, and masks are large. Here only the rows are stored, in
`evaluate`'s own table, so gathering over processes still works. A score is a function of the rows alone: they can be
kept on disk, joined and resampled, and their order does not change a digit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from .checks import to_numpy


__all__ = ["MeanOf", "RowMetric", "exact_mean"]


def exact_mean(values: np.ndarray) -> float:
    """Return the mean of the values `(num_values,)` that are not NaN, the same for any order; NaN if there is none."""
    counted = values[~np.isnan(values)]
    # `fsum` rounds once, at the end: processes may deliver their rows in any order
    return math.fsum(counted.tolist()) / len(counted) if len(counted) else math.nan


class RowMetric(evaluate.Metric):
    """Base class of an `evaluate.Metric` that stores one row of numbers per example, and scores rows.

    A subclass names the columns in `row_features`, makes one row in `_row` (or those of a batch in `_rows`) and turns
    stacked rows into scores in `_score`. The docstring of each metric defines predictions and references.

    Args:
        keep_in_memory: Keep the rows in memory, not in a file; by default where there is one process.
        **kwargs: Further options of `evaluate.Metric` (`num_process`, `process_id`, `experiment_id`, `timeout`, ...).
            With several processes, two metrics of one class that exist together need different `experiment_id`s.

    Attributes:
        row_features: Type of each column: `datasets.Value`, or `datasets.List` of fixed length.
        uses_references: Whether references are needed; where not, they may be omitted and are ignored.
    """

    row_features: Mapping[str, Any] = {}
    uses_references = True

    def __init__(self, keep_in_memory: bool | None = None, **kwargs: Any) -> None:
        if keep_in_memory is None:
            keep_in_memory = kwargs.get("num_process", 1) == 1  # several processes gather through files
        super().__init__(keep_in_memory=keep_in_memory, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        description = (type(self).__doc__ or "").strip()
        features = datasets.Features(dict(self.row_features))
        return evaluate.MetricInfo(description=description, citation="", inputs_description="", features=features)

    def rows(self, predictions: Sequence[Any], references: Sequence[Any] | None = None) -> dict[str, np.ndarray]:
        """Reduce a batch to rows; nothing is stored.

        Args:
            predictions: One entry per example; a `ValueError` names a wrong shape or value.
            references: One entry per example, in the same order; optional where the metric needs none.

        Returns:
            The columns of `row_features`, each `(batch_size,)` or `(batch_size, length)`.
        """
        predictions, references = to_numpy(predictions), to_numpy(references)
        if references is None:
            if self.uses_references:
                raise ValueError(f"{type(self).__name__} needs `references`, one per prediction, got None.")
            references = [None] * len(predictions)
        if len(predictions) != len(references):
            raise ValueError(
                "`predictions` and `references` must have the same length, "
                f"got {len(predictions)} and {len(references)}."
            )
        return self._stacked(self._rows(predictions, references) if len(predictions) else {})

    def score(self, rows: Mapping[str, Any]) -> dict[str, float]:
        """Score the columns that `rows()` returns, of at least one example; the order of the rows does not matter."""
        if set(rows) != set(self.row_features):
            raise ValueError(f"`rows` must hold the columns {sorted(self.row_features)}, got {sorted(rows)}.")
        columns = {name: np.asarray(values) for name, values in rows.items()}
        lengths = {name: len(values) for name, values in columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"The columns of `rows` must have one length, got {lengths}.")
        if not all(lengths.values()):
            raise ValueError("There is nothing to score, expected at least one example. Call `add_batch` first.")
        return self._score(columns)

    def add_batch(self, *, predictions: Sequence[Any], references: Sequence[Any] | None = None) -> None:
        """Store the rows of one batch; see `rows`."""
        rows = self.rows(predictions, references)
        if len(predictions):  # `evaluate` cannot store an empty batch
            super().add_batch(**rows)

    def add(self, *, prediction: Any, reference: Any = None) -> None:
        """Store the row of one example; see `rows`."""
        self.add_batch(predictions=[prediction], references=None if reference is None else [reference])

    def compute(
        self, *, predictions: Sequence[Any] | None = None, references: Sequence[Any] | None = None
    ) -> dict[str, float] | None:
        """Return the scores of everything stored since the last call, then start over.

        Args:
            predictions: A last batch to store first.
            references: The references of that batch.

        Returns:
            The scores by name; `None` in processes other than the first.
        """
        if (predictions is None and references is not None) or (
            predictions is not None and references is None and self.uses_references
        ):
            only = "references" if predictions is None else "predictions"
            raise ValueError(f"`predictions` and `references` must be given together, got only `{only}`.")
        if predictions is not None:
            self.add_batch(predictions=predictions, references=references)
        if self.writer is None and self.num_process == 1:
            raise ValueError("There is nothing to score, expected at least one example. Call `add_batch` first.")
        if self.writer is None:  # a process without examples must still join the others, with an empty table
            super().add_batch(**self._stacked({}))
        return super().compute()

    def _compute(self, **columns: Any) -> dict[str, float]:
        return self.score(self._stacked(columns))

    def _rows(self, predictions: Sequence[Any], references: Sequence[Any]) -> Mapping[str, Any]:
        """Return the columns of a batch of at least one example."""
        rows = [self._row(*pair) for pair in zip(predictions, references, strict=True)]
        return {name: [row[name] for row in rows] for name in self.row_features}

    def _row(self, prediction: Any, reference: Any) -> Mapping[str, Any]:
        """Return the row of one example, a value by the name of its column."""
        raise NotImplementedError

    def _score(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Return the scores of at least one row."""
        raise NotImplementedError

    def _stacked(self, columns: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Return columns as arrays of their types; empty ones where there are none."""
        return {name: _column(columns.get(name, ()), feature) for name, feature in self.row_features.items()}


class MeanOf(RowMetric):
    """Mean of one number per example.

    Predictions:
        A number per example, or NaN where there is none. References are not needed.

    Example:
        >>> MeanOf("empty_masks").compute(predictions=[0, 1, 1, 0])
        {'empty_masks': 0.5}
    """

    row_features = {"value": datasets.Value("float64")}
    uses_references = False

    def __init__(self, score_name: str, **kwargs: Any) -> None:
        self.score_name = score_name
        super().__init__(**kwargs)

    def _row(self, prediction: Any, reference: Any) -> Mapping[str, Any]:
        return {"value": float(prediction)}

    def _score(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        return {self.score_name: exact_mean(rows["value"])}


def _column(values: Any, feature: Any) -> np.ndarray:
    """Return values as `(num_examples,)` or `(num_examples, length)`, also where there are no examples."""
    if isinstance(feature, datasets.List):
        return np.asarray(values, dtype=feature.feature.dtype).reshape(-1, feature.length)
    return np.asarray(values, dtype=feature.dtype)
