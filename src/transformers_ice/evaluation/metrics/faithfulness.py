# SPDX-License-Identifier: Apache-2.0
"""Areas under a model's score while pixels are removed or inserted in the order of their relevance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np

from .checks import checked_fractions
from .rows import RowMetric, exact_mean


__all__ = ["InsertionDeletionAuc", "PerturbationAuc"]

_TENTHS = tuple(tenth / 10 for tenth in range(10))  # 0 to 0.9 of the pixels
_TWENTIETHS = tuple(step / 20 for step in range(21))  # 0 to 1, in steps of 5 % of the pixels


class _CurveArea(RowMetric):
    """Area under the mean of curves, one per example, by the trapezoidal rule. The rows are the curves."""

    uses_references = False

    def __init__(self, fractions: Sequence[float], **kwargs: Any) -> None:
        self.fractions = checked_fractions(fractions)
        self.row_features = {"curve": datasets.List(datasets.Value("float64"), length=len(self.fractions))}
        super().__init__(**kwargs)

    def _rows(self, predictions: Sequence[Any], references: Sequence[Any]) -> Mapping[str, Any]:
        curves = np.asarray(predictions, dtype=np.float64)
        if curves.shape != (len(predictions), len(self.fractions)) or not np.isfinite(curves).all():
            raise ValueError(
                f"`predictions` must be finite numbers of shape (batch_size, {len(self.fractions)}), one for each of "
                f"the fractions, got shape {curves.shape}."
            )
        return {"curve": curves}

    def _area(self, curves: np.ndarray) -> float:
        # (num_examples, num_fractions) -> (num_fractions,)
        mean = np.array([exact_mean(column) for column in curves.T])
        return float(np.sum(np.diff(self.fractions) * (mean[1:] + mean[:-1]) / 2))  # trapezoidal rule


class PerturbationAuc(_CurveArea):
    """Area under the accuracy while pixels turn black in an order of relevance, as `perturbation_auc`.

    In percent times the fraction of pixels: a model that is always right scores 90 over the fractions from 0 to 0.9.
    With the most relevant pixels first ("positive") smaller is better, with the least relevant ("negative") larger.

    Predictions:
        Per example one number at each of the fractions, the clean image first: 1 where the model is right and 0 where
        not, or any other score. References are not needed.

    Args:
        fractions: The fractions of pixels that are removed, rising within [0, 1].
        **kwargs: Options of `RowMetric`.

    Example:
        >>> metric = PerturbationAuc(fractions=(0.0, 0.5, 1.0))
        >>> metric.compute(predictions=[[1, 1, 0], [1, 0, 0]])
        {'perturbation_auc': 50.0}

    Source: `hila-chefer/Transformer-Explainability` (`baselines/ViT/pertubation_eval_from_hdf5.py`) for the
    curve; the area, with the clean image as its first point, is what its author advises users to compute.
    """

    def __init__(self, fractions: Sequence[float] = _TENTHS, **kwargs: Any) -> None:
        super().__init__(fractions, **kwargs)

    def _score(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        return {"perturbation_auc": 100 * self._area(rows["curve"])}  # in percent


class InsertionDeletionAuc(_CurveArea):
    """Area under the probability of a class while its pixels appear or vanish, most relevant first, in [0, 1].

    `insertion_auc` (large is good) or `deletion_auc` (small is good).

    Predictions:
        Per example one probability at each of the fractions. References are not needed.

    Args:
        kind: "insertion" or "deletion": the name of the score.
        fractions: The fractions of pixels that are inserted or deleted, rising from 0 to 1.
        **kwargs: Options of `RowMetric`.

    Example:
        >>> metric = InsertionDeletionAuc("deletion", fractions=(0.0, 0.5, 1.0))
        >>> metric.compute(predictions=[[1.0, 0.5, 0.0]])
        {'deletion_auc': 0.5}

    Source: Petsiuk et al., "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC 2018.
    """

    def __init__(self, kind: str = "insertion", fractions: Sequence[float] = _TWENTIETHS, **kwargs: Any) -> None:
        if kind not in ("insertion", "deletion"):
            raise ValueError(f"`kind` must be 'insertion' or 'deletion', got {kind!r}.")
        if len(fractions) < 2 or fractions[0] != 0 or fractions[-1] != 1:
            raise ValueError(f"`fractions` must rise from 0 to 1, got {list(fractions)}.")
        self.kind = kind
        super().__init__(fractions, **kwargs)

    def _rows(self, predictions: Sequence[Any], references: Sequence[Any]) -> Mapping[str, Any]:
        rows = super()._rows(predictions, references)
        curves = rows["curve"]
        if (curves < 0).any() or (curves > 1).any():
            raise ValueError(
                f"`predictions` must be probabilities in [0, 1], got values from {curves.min():g} to "
                f"{curves.max():g}. Apply the softmax first."
            )
        return rows

    def _score(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        return {f"{self.kind}_auc": self._area(rows["curve"])}
