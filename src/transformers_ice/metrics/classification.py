# SPDX-License-Identifier: Apache-2.0
"""Top-k accuracy from scores or from ranked class indices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .counting import CountingMetric


__all__ = ["TopKAccuracy"]


class TopKAccuracy(CountingMetric):
    """Share of examples whose true class is among the k best, as `top_1`, `top_5`, ...

    Equal scores are ranked by class index, as `argmax` does; a NaN score is never in favour of the true class.

    Args:
        top_k: The values of k.
        **kwargs: Options of `CountingMetric`.

    Example:
        >>> metric = TopKAccuracy(top_k=(1, 2))
        >>> metric.add_batch(predictions=[[0.1, 0.7, 0.2], [0.5, 0.3, 0.2]], references=[2, 0])
        >>> metric.compute()
        {'top_1': 0.5, 'top_2': 1.0}
    """

    count_names = ("rank",)

    def __init__(self, top_k: Sequence[int] = (1, 5), **kwargs: Any) -> None:
        if not top_k or any(k < 1 for k in top_k):
            raise ValueError(f"`top_k` must hold positive numbers, got {tuple(top_k)}.")
        self.top_k = tuple(top_k)
        super().__init__(**kwargs)

    def add_batch(self, *, predictions: Sequence[Any], references: Sequence[Any]) -> None:
        """Rank the true class of every example of one batch.

        Args:
            predictions: `(batch_size, num_labels)` scores (any floating type), or `(batch_size, k)` integer class
                indices, best first, with k at least the largest of `top_k`.
            references: `(batch_size,)` true class indices.

        Raises:
            ValueError: If lengths or shapes do not fit, a label is not a class, or there are too few indices.
        """
        super().add_batch(predictions=predictions, references=references)

    def _count(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, list[int]]:
        scores, labels = np.asarray(predictions), np.asarray(references)
        if scores.ndim != 2 or labels.ndim != 1:
            raise ValueError(
                "`predictions` must have shape (batch_size, num_labels or k) and `references` (batch_size,), "
                f"got {scores.shape} and {labels.shape}."
            )
        ranks = _rank_by_score if np.issubdtype(scores.dtype, np.floating) else self._rank_by_index
        return {"rank": ranks(scores, labels).tolist()}

    def _rank_by_index(self, indices: np.ndarray, labels: np.ndarray) -> np.ndarray:
        if indices.shape[1] < max(self.top_k):
            raise ValueError(
                f"Integer `predictions` must hold at least {max(self.top_k)} class indices per example, got "
                f"{indices.shape[1]}. Pass more of them, floating scores, or a smaller `top_k`."
            )
        hits = indices == labels[:, None]
        return np.where(hits.any(axis=1), hits.argmax(axis=1), indices.shape[1])

    def _compute(self, rank: Sequence[int]) -> dict[str, float]:
        ranks = np.asarray(rank)
        return {f"top_{k}": float(np.mean(ranks < k)) for k in self.top_k}


def _rank_by_score(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return how many classes stand before the true one, `(batch_size,)`."""
    num_labels = scores.shape[1]
    if labels.min() < 0 or labels.max() >= num_labels:
        raise ValueError(
            f"`references` must lie in [0, {num_labels - 1}] for {num_labels} scores, "
            f"got values from {labels.min()} to {labels.max()}."
        )
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    before = np.arange(num_labels) < labels[:, None]
    # "not (score <= own)" instead of "score > own": a NaN on either side counts against the true class.
    return (~(scores <= own) | ((scores == own) & before)).sum(axis=1)
