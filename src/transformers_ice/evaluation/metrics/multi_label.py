# SPDX-License-Identifier: Apache-2.0
"""Scores of several labels an image, or none: average precision, F1, and the thresholds that make scores labels.

`scores` are `(num_images, num_labels)`, each class alone, larger where the class is more likely; `labels` have the
same shape, 1 for every class in the image and 0 for the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np

from .rows import RowMetric, exact_mean


__all__ = ["MultiLabelAveragePrecision", "MultiLabelF1", "average_precisions", "calibrate_thresholds", "f1_scores"]

_DEFAULT_THRESHOLD = 0.5
_F1_TOLERANCE = 0.01
_LEAST_POSITIVES = 5  # images with a class; a threshold from fewer would be chance


def average_precisions(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the average precision of each class, `(num_labels,)`, float64, in [0, 1]; NaN without a positive image.

    AP is the sum over thresholds of (recall gained) x precision. Images of equal score are one step, so their order
    has no part in it.

    Args:
        scores: `(num_images, num_labels)`.
        labels: `(num_images, num_labels)`, 0 or 1.

    Source: `average_precision_score` of scikit-learn.
    """
    scores, labels = _checked(scores, labels)
    return np.array([_average_precision(*columns) for columns in zip(scores.T, labels.T, strict=True)])


def _average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], labels[order].cumsum()  # hits among the first n
    if not len(hits) or not hits[-1]:
        return np.nan
    ends = np.flatnonzero(np.append(np.diff(scores) != 0, True))  # last image of each distinct score
    gained = np.diff(hits[ends], prepend=0) / hits[-1]
    return float((gained * hits[ends] / (ends + 1)).sum())


def f1_scores(found: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return F1 of each class, `(num_labels,)`, float64, in [0, 1]; NaN where no image has it and none is given it.

    F1 = 2 x true positives / (images given the class + images with it).

    Args:
        found: `(num_images, num_labels)`, bool: the classes that were found.
        labels: `(num_images, num_labels)`, 0 or 1.
    """
    found, labels = _checked(found, labels)
    doubled = 2.0 * ((found > 0) & (labels > 0)).sum(axis=0)
    whole = (found > 0).sum(axis=0) + labels.sum(axis=0)
    return np.divide(doubled, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def calibrate_thresholds(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the score from which each class counts as found: one of about the best F1 on these images.

    Candidates lie midway between neighbouring scores, and between 0 and the smallest one; of those whose F1 is within
    0.01 of the best the nearest to 0.5 is taken, since the best alone is chance, and low thresholds find things in
    images of nothing. A class with fewer than five positive images keeps 0.5.

    Args:
        scores: `(num_images, num_labels)`, in [0, 1], of validation images: of training images they would be too good.
        labels: `(num_images, num_labels)`, 0 or 1.

    Returns:
        `(num_labels,)`, float64, in [0, 1].

    Raises:
        ValueError: If shapes differ, a score is outside [0, 1] or NaN, or a label is neither 0 nor 1.

    Example:
        >>> scores, labels = np.linspace(0.05, 0.95, 10)[:, None], np.arange(10)[:, None] >= 4
        >>> calibrate_thresholds(scores, labels).round(3)
        array([0.4])
    """
    scores, labels = _checked(scores, labels)
    if not ((scores >= 0) & (scores <= 1)).all():
        raise ValueError("`scores` must lie in [0, 1], got others or NaN. Pass the sigmoid of the logits.")
    return np.array([_best_threshold(*columns) for columns in zip(scores.T, labels.T, strict=True)])


def _best_threshold(scores: np.ndarray, labels: np.ndarray) -> float:
    if labels.sum() < _LEAST_POSITIVES:
        return _DEFAULT_THRESHOLD
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], labels[order].cumsum()
    ends = np.flatnonzero(np.append(np.diff(scores) != 0, True))  # found is all up to here
    f1 = 2 * hits[ends] / (ends + 1 + hits[-1])
    candidates = (scores[ends] + np.append(scores[ends[1:]], 0.0)) / 2
    best = candidates[f1 >= f1.max() - _F1_TOLERANCE]
    return float(best[np.abs(best - _DEFAULT_THRESHOLD).argmin()])


def _checked(scores: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return scores as float64 and labels as int64, both `(num_images, num_labels)`."""
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if scores.ndim != 2 or scores.shape != labels.shape:
        raise ValueError(
            "Scores and labels must have one shape (num_images, num_labels), "
            f"got {scores.shape} and {labels.shape}. Labels are multi-hot: 1 for each class in the image."
        )
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(f"Labels must be 0 or 1, got {np.setdiff1d(labels, (0, 1))[:5].tolist()}.")
    return scores, labels.astype(np.int64)


class _MultiLabelMetric(RowMetric):
    """Scores and labels of every image as its row. An image whose scores are NaN has no part in the score."""

    def __init__(self, num_labels: int, **kwargs: Any) -> None:
        self.row_features = {
            "scores": datasets.List(datasets.Value("float64"), length=num_labels),
            "labels": datasets.List(datasets.Value("uint8"), length=num_labels),
        }
        super().__init__(**kwargs)

    def _rows(self, predictions: Sequence[Any], references: Sequence[Any]) -> Mapping[str, Any]:
        scores, labels = _checked(predictions, references)
        return {"scores": scores, "labels": labels}

    def per_class(self, rows: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the score of each class, `(num_labels,)`, float64, NaN where it has none."""
        known = ~np.isnan(rows["scores"]).any(axis=1)
        return self._per_class(rows["scores"][known], rows["labels"][known])

    def _per_class(self, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
        raise NotImplementedError


class MultiLabelAveragePrecision(_MultiLabelMetric):
    """Average precision of each class over the images, then the mean over classes, as `map` in [0, 1].

    A class that no image has is left out; where that holds for all classes, the score is NaN.

    Predictions:
        `(batch_size, num_labels)` scores, each class alone: larger is more likely. Any monotonic function of them,
        such as the sigmoid, gives the same result.

    References:
        `(batch_size, num_labels)`, 1 for every class in the image, 0 for the others.

    Args:
        num_labels: Number of classes.
        **kwargs: Options of `RowMetric`.

    Example:
        >>> metric = MultiLabelAveragePrecision(2)
        >>> metric.compute(predictions=[[0.9, 0.2], [0.8, 0.6], [0.1, 0.7]], references=[[0, 0], [1, 1], [0, 0]])
        {'map': 0.5}
    """

    def _per_class(self, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return average_precisions(scores, labels)

    def _score(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        return {"map": exact_mean(self.per_class(rows))}


class MultiLabelF1(_MultiLabelMetric):
    """F1 of each class over the images, then the mean over classes (macro), as `f1` in [0, 1].

    A class that no image has and none is given is left out (scikit-learn gives it 0); where that holds for all
    classes, the score is NaN.

    Predictions:
        `(batch_size, num_labels)` scores; a class counts as found from its threshold on.

    References:
        `(batch_size, num_labels)`, 1 for every class in the image, 0 for the others.

    Args:
        num_labels: Number of classes.
        thresholds: One for all classes, or one per class.
        **kwargs: Options of `RowMetric`.

    Example:
        >>> metric = MultiLabelF1(2)
        >>> metric.compute(predictions=[[0.9, 0.2], [0.8, 0.6]], references=[[0, 0], [1, 1]])
        {'f1': 0.8333333333333333}
    """

    def __init__(
        self, num_labels: int, thresholds: float | Sequence[float] = _DEFAULT_THRESHOLD, **kwargs: Any
    ) -> None:
        self.thresholds = np.broadcast_to(np.asarray(thresholds, dtype=np.float64), (num_labels,))
        super().__init__(num_labels, **kwargs)

    def _per_class(self, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return f1_scores(scores >= self.thresholds, labels)

    def _score(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        return {"f1": exact_mean(self.per_class(rows))}
