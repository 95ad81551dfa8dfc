# SPDX-License-Identifier: Apache-2.0
"""Where each class of an image is: class maps against true class maps, by IoU of pixels and by boxes.

A class map is `(height, width)`, integers: 0 background, k the class k - 1. Of a true one 255 and -1 are void. A
method whose map depends on a threshold gives one class map for each threshold, `(num_thresholds, height, width)`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np

from .boxes import box_iou, largest_component_box
from .checks import IGNORED, check_same_size
from .rows import RowMetric


__all__ = ["ClassCorLoc", "ClassIou"]


class _SweptMetric(RowMetric):
    """Counts per threshold and class, `num_thresholds * num_classes` of them in a row, summed over the images."""

    columns: tuple[str, str]  # names of the counts: score = first / second
    counts_background = False

    def __init__(
        self,
        num_labels: int,
        thresholds: Sequence[float] = (0.5,),
        fixed_threshold: float = 0.5,
        **kwargs: Any,
    ) -> None:
        if fixed_threshold not in thresholds:
            raise ValueError(
                f"`thresholds` must hold `fixed_threshold`, got {fixed_threshold} and {list(thresholds)}."
            )
        self.num_labels, self.thresholds = num_labels, tuple(thresholds)
        self.fixed_index = self.thresholds.index(fixed_threshold)
        length = len(self.thresholds) * (num_labels + self.counts_background)
        self.row_features = dict.fromkeys(self.columns, datasets.List(datasets.Value("int64"), length=length))
        super().__init__(**kwargs)

    def per_class(self, rows: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the score of each class at each threshold, `(num_thresholds, num_classes)`; NaN where it has none."""
        # (num_images, num_thresholds * num_classes) -> (num_thresholds, num_classes), exact in int64
        hits, whole = (rows[name].sum(axis=0).reshape(len(self.thresholds), -1) for name in self.columns)
        return np.divide(hits, whole, out=np.full(hits.shape, np.nan), where=whole > 0)

    def _best(self, name: str, by_threshold: np.ndarray) -> dict[str, float]:
        """Return the mean over classes at the fixed and at the best threshold, and the latter, of equals the fixed."""
        means = [_mean(values) for values in by_threshold]
        scores = {name: means[self.fixed_index]}
        if len(means) > 1:
            first = 0 if np.isnan(means).any() else int(np.argmax(means))
            best = first if means[first] > means[self.fixed_index] else self.fixed_index
            scores |= {f"max_{name}": means[best], f"max_{name}_threshold": float(self.thresholds[best])}
        return scores


class ClassIou(_SweptMetric):
    """IoU of each class, pixels counted over the whole set, then the mean over object classes, as `class_iou`.

    - `class_iou`: mean over the object classes, background not among them, at the fixed threshold;
    - `background_iou`: that of background, at the fixed threshold;
    - with several thresholds, `max_class_iou` and `max_class_iou_threshold`: the best threshold for the whole set. It
      is chosen on the images that are scored, so the score is an upper bound.

    All are in [0, 1]. Void pixels count nowhere. A class that neither predictions nor references contain is left out;
    where that holds for all, the score is NaN.

    Predictions:
        One class map per image, `(height, width)`, or one for each threshold, `(num_thresholds, height, width)`.

    References:
        One class map per image, `(height, width)`, 255 and -1 void.

    Args:
        num_labels: Number of object classes.
        thresholds: The thresholds that the maps of an image are of; one where they have none.
        fixed_threshold: That of `class_iou`.
        **kwargs: Options of `RowMetric`.

    Example:
        >>> ClassIou(2).compute(predictions=[[[1, 1], [0, 2]]], references=[[[1, 0], [0, 2]]])
        {'class_iou': 0.75, 'background_iou': 0.5}

    Source: mean IoU of PASCAL VOC, which has background among the classes it averages over.
    """

    columns = ("intersection", "union")
    counts_background = True

    def _row(self, prediction: Any, reference: Any) -> Mapping[str, Any]:
        maps, truth = _checked_maps(prediction, reference, self)
        number, counts = self.num_labels + 1, truth != IGNORED
        rows = []
        for own in maps[:, counts]:  # (num_counted,)
            # (num_classes, num_classes): pixels by true and by predicted class
            pairs = np.bincount(truth[counts] * number + own, minlength=number**2).reshape(number, number)
            rows.append((pairs.diagonal(), pairs.sum(axis=0) + pairs.sum(axis=1) - pairs.diagonal()))
        intersections, unions = zip(*rows, strict=True)
        return {"intersection": np.concatenate(intersections), "union": np.concatenate(unions)}

    def _score(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        ious = self.per_class(rows)  # (num_thresholds, 1 + num_labels), background first
        return self._best("class_iou", ious[:, 1:]) | {"background_iou": float(ious[self.fixed_index, 0])}


class ClassCorLoc(_SweptMetric):
    """CorLoc of each class, then the mean over classes, as `class_corloc` in [0, 1].

    CorLoc of class k is the fraction of the images with k whose box of k has an IoU of at least 0.5 with a true one.
    The box of a class is that around its largest 4-connected component. True boxes are the one around all its pixels
    and those around its components, since an occluder may split an object and one map may hold several objects of a
    class. A class that no image has is left out. With several thresholds there are also `max_class_corloc` and
    `max_class_corloc_threshold`, as in `ClassIou`.

    Predictions, references and arguments are those of `ClassIou`.

    Example:
        >>> ClassCorLoc(2).compute(predictions=[[[1, 1], [0, 2]]], references=[[[1, 0], [2, 2]]])
        {'class_corloc': 1.0}
    """

    columns = ("hit", "present")

    def _row(self, prediction: Any, reference: Any) -> Mapping[str, Any]:
        maps, truth = _checked_maps(prediction, reference, self)
        hits, present = np.zeros((2, len(maps), self.num_labels), dtype=np.int64)
        for label in (np.unique(truth[truth > 0]) - 1).tolist():
            present[:, label] = 1
            boxes = _true_boxes(truth == label + 1)
            for index, own in enumerate(maps):
                box = largest_component_box(own == label + 1)
                hits[index, label] = box is not None and (box_iou(box[None], boxes, inclusive=False) >= 0.5).any()
        return {"hit": hits.ravel(), "present": present.ravel()}

    def _score(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        return self._best("class_corloc", self.per_class(rows))


def _true_boxes(mask: np.ndarray) -> np.ndarray:
    """Return the box around all pixels of a mask and those around its 4-connected components, half-open."""
    from scipy import ndimage

    labels, number = ndimage.label(mask)
    slices = [*ndimage.find_objects(labels, number), *ndimage.find_objects(mask.astype(np.uint8), 1)]
    return np.array([[columns.start, rows.start, columns.stop, rows.stop] for rows, columns in slices])


def _checked_maps(prediction: Any, reference: Any, metric: _SweptMetric) -> tuple[np.ndarray, np.ndarray]:
    """Return class maps `(num_thresholds, height, width)` and the true one `(height, width)`, int64, void as -1."""
    maps, truth = np.asarray(prediction), np.asarray(reference)
    maps = maps[None] if maps.ndim == 2 else maps
    if maps.ndim != 3 or truth.ndim != 2 or not all(np.issubdtype(part.dtype, np.integer) for part in (maps, truth)):
        raise ValueError(
            "Class maps must hold integers of shape (height, width) or (num_thresholds, height, width), got "
            f"{maps.dtype} {np.shape(prediction)} and {truth.dtype} {truth.shape}."
        )
    if len(maps) != len(metric.thresholds):
        raise ValueError(f"`predictions` must hold a class map for each of {len(metric.thresholds)}, got {len(maps)}.")
    check_same_size(maps, truth)
    maps, truth = maps.astype(np.int64), truth.astype(np.int64)
    if metric.num_labels < 255:
        truth[truth == 255] = IGNORED
    for name, part, least in (("predictions", maps, 0), ("references", truth, IGNORED)):
        if part.min(initial=0) < least or part.max(initial=0) > metric.num_labels:
            raise ValueError(
                f"Class maps in `{name}` must hold {least} to {metric.num_labels}, got {part.min()} to {part.max()}."
            )
    return maps, truth


def _mean(values: np.ndarray) -> float:
    """Return the mean of the values that are not NaN; NaN if there is none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan
