# SPDX-License-Identifier: Apache-2.0
"""Top-k accuracy from scores or from ranked class indices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np

from .rows import RowMetric


__all__ = ["TopKAccuracy", "checked_top_k"]


def checked_top_k(top_k: Sequence[int]) -> tuple[int, ...]:
    """Return the values of k, at least one, all positive, as a tuple."""
    if not top_k or any(k < 1 for k in top_k):
        raise ValueError(f"`top_k` must hold positive numbers, got {tuple(top_k)}.")
    return tuple(top_k)


class TopKAccuracy(RowMetric):
    """Fraction of examples whose true class is among the k best, as `top_1`, `top_5`, ...

    Equal scores are ranked by class index, as `argmax` does; a NaN score never ranks the true class higher.

    Predictions:
        `(batch_size, num_labels)` scores (any floating type), or `(batch_size, k)` integer class indices, best first,
        with k at least the largest of `top_k`.

    References:
        `(batch_size,)` true class indices.

    Args:
        top_k: The values of k.
        **kwargs: Options of `RowMetric`.

    Example:
        >>> metric = TopKAccuracy(top_k=(1, 2))
        >>> metric.add_batch(predictions=[[0.1, 0.7, 0.2], [0.5, 0.3, 0.2]], references=[2, 0])
        >>> metric.compute()
        {'top_1': 0.5, 'top_2': 1.0}
    """

    row_features = {"rank": datasets.Value("int64")}

    def __init__(self, top_k: Sequence[int] = (1, 5), **kwargs: Any) -> None:
        self.top_k = checked_top_k(top_k)
        super().__init__(**kwargs)

    def _rows(self, predictions: Sequence[Any], references: Sequence[Any]) -> Mapping[str, Any]:
        scores, labels = np.asarray(predictions), np.asarray(references)
        if scores.ndim != 2 or labels.ndim != 1:
            raise ValueError(
                "`predictions` must have shape (batch_size, num_labels or k) and `references` (batch_size,), "
                f"got {scores.shape} and {labels.shape}."
            )
        ranks = _rank_by_score if np.issubdtype(scores.dtype, np.floating) else self._rank_by_index
        return {"rank": ranks(scores, labels)}

    def _rank_by_index(self, indices: np.ndarray, labels: np.ndarray) -> np.ndarray:
        if indices.shape[1] < max(self.top_k):
            raise ValueError(
                f"Integer `predictions` must hold at least {max(self.top_k)} class indices per example, got "
                f"{indices.shape[1]}. Pass more of them, floating scores, or a smaller `top_k`."
            )
        # (batch_size, k), at most one per row; -1 stands for no answer, which is never right
        hits = (indices == labels[:, None]) & (indices >= 0)
        # a class that is not listed ranks after the last one, outside every top k
        return np.where(hits.any(axis=1), hits.argmax(axis=1), indices.shape[1])

    def _score(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        return {f"top_{k}": float(np.mean(rows["rank"] < k)) for k in self.top_k}


def _rank_by_score(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return how many classes rank before the true one, `(batch_size,)`."""
    num_labels = scores.shape[1]
    if labels.min() < 0 or labels.max() >= num_labels:
        raise ValueError(
            f"`references` must lie in [0, {num_labels - 1}] for {num_labels} scores, "
            f"got values from {labels.min()} to {labels.max()}."
        )
    own = np.take_along_axis(scores, labels[:, None], axis=1)  # (batch_size, 1)
    before = np.arange(num_labels) < labels[:, None]  # (batch_size, num_labels): wins a tie, as in `argmax`
    # "not (score <= own)" instead of "score > own": a NaN on either side counts against the true class.
    return (~(scores <= own) | ((scores == own) & before)).sum(axis=1)
