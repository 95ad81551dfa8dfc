# SPDX-License-Identifier: Apache-2.0
"""Masks and soft maps of the foreground against true masks: pixel accuracy, IoU, average precision, F1, Jaccard."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np

from .checks import IGNORED, check_same_size, checked_mask, checked_score_map
from .rows import RowMetric, exact_mean


__all__ = ["ForegroundAveragePrecision", "ForegroundF1", "ForegroundSegmentation", "ObjectJaccard"]

_VOID = (255, IGNORED)  # PASCAL VOC writes 255


class ForegroundSegmentation(RowMetric):
    """Pixel accuracy and mean IoU of the two classes background and foreground.

    Pixels are counted over the whole set, not per image, so a large image weighs more than a small one:

    - `pixel_accuracy`: pixels with the right class / pixels that count, in [0, 1];
    - `mean_iou`: mean over the two classes of (summed intersection / summed union), in [0, 1].

    A pixel whose reference is -1 is ignored. A class that neither predictions nor references contain is excluded from
    the mean (the reference code scores it 0). Where no pixel counts at all, both scores are NaN.

    Predictions:
        One `(height, width)` mask per image, bool or 0/1. Sizes may differ between images.

    References:
        One mask per image, of the size of its prediction: 1 foreground, 0 background, -1 ignored, or bool.

    Example:
        >>> metric = ForegroundSegmentation()
        >>> metric.add_batch(predictions=[[[1, 1], [0, 0]]], references=[[[1, 0], [0, -1]]])
        >>> metric.compute()
        {'pixel_accuracy': 0.6666666666666666, 'mean_iou': 0.5}

    Source: ImageNet-Segmentation protocol of `hila-chefer/Transformer-Explainability` (`utils/metrices.py`).
    """

    row_features = dict.fromkeys(
        ("true_foreground", "false_foreground", "false_background", "true_background"), datasets.Value("int64")
    )

    def _row(self, prediction: Any, reference: Any) -> Mapping[str, Any]:
        return _pixel_counts(prediction, reference)

    def _score(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        # Python integers from here on: quotients of them are rounded once
        true_fg, false_fg, false_bg, true_bg = (int(rows[name].sum(dtype=np.int64)) for name in self.row_features)
        wrong = false_fg + false_bg
        if not true_fg + true_bg + wrong:
            return {"pixel_accuracy": math.nan, "mean_iou": math.nan}
        # of background and foreground, where either is present
        ious = [hits / (hits + wrong) for hits in (true_bg, true_fg) if hits + wrong]
        return {
            "pixel_accuracy": (true_fg + true_bg) / (true_fg + true_bg + wrong),
            "mean_iou": sum(ious) / len(ious),
        }


class ForegroundF1(RowMetric):
    """F1 of the foreground of each image, then the mean over images, as `mean_f1` in [0, 1].

    F1 = 2 x true foreground / (2 x true foreground + false foreground + false background), in pixels that count. An
    image where neither mask has any foreground has no F1 and is excluded from the mean (scikit-learn gives it 0);
    where that holds for all images, the score is NaN.

    Predictions and references are those of `ForegroundSegmentation`.

    Source: ImageNet-Segmentation protocol of `hila-chefer/Transformer-Explainability` (`utils/metrices.py`). There the
    script calls `get_f1_scores` on an image without a batch axis, which makes every row of pixels an image of its own.
    """

    row_features = dict.fromkeys(("true_foreground", "false_foreground", "false_background"), datasets.Value("int64"))

    def _row(self, prediction: Any, reference: Any) -> Mapping[str, Any]:
        return _pixel_counts(prediction, reference)

    def _score(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        doubled = 2 * rows["true_foreground"]  # (num_images,)
        whole = doubled + rows["false_foreground"] + rows["false_background"]
        return {"mean_f1": exact_mean(doubled[whole > 0] / whole[whole > 0])}


class ForegroundAveragePrecision(RowMetric):
    """Average precision of soft maps, per image, then the mean over images, as `mean_average_precision` in [0, 1].

    Background and foreground are two channels with the scores 1 - R and R, and all pixels of both are ranked together
    ("micro"). Where a map is constant or holds NaN, all scores are 0 in both channels, which makes 0.5: the reference
    code stretches each map to [0, 1] and puts 0 where that yields NaN. An image without a pixel that counts is
    excluded from the mean; where that holds for all images, the score is NaN.

    Predictions:
        One `(height, width)` map R per image, in [0, 1], or bool. Sizes may differ between images.

    References:
        One mask per image, of the size of its map: 1 foreground, 0 background, -1 ignored, or bool.

    Example:
        >>> metric = ForegroundAveragePrecision()
        >>> metric.compute(predictions=[[[1.0, 0.75], [0.25, 0.0]]], references=[[[1, 1], [0, 0]]])
        {'mean_average_precision': 1.0}

    Source: ImageNet-Segmentation protocol of `hila-chefer/Transformer-Explainability`
    (`baselines/ViT/imagenet_seg_eval.py`, `get_ap_scores` of `utils/metrices.py`).
    """

    row_features = {"average_precision": datasets.Value("float64")}

    def _row(self, prediction: Any, reference: Any) -> Mapping[str, Any]:
        score_map = checked_score_map("predictions", prediction)
        truth = checked_mask("references", reference, allowed=(0, 1, IGNORED))
        check_same_size(score_map, truth)
        return {"average_precision": _average_precision(score_map, truth)}

    def _score(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        return {"mean_average_precision": exact_mean(rows["average_precision"])}


class ObjectJaccard(RowMetric):
    """Overlap of a mask with each object class of an image, mean over its classes, then over images, as `jaccard`.

    Of several candidate masks the best one counts, separately for each class: an oracle. Void pixels are ignored. An
    image without any object class is excluded from the mean; where that holds for all images, the score is NaN.

    Predictions:
        One mask per image, `(height, width)`, or several, `(num_candidates, height, width)`; bool or 0/1.

    References:
        One segmentation per image, `(height, width)`, integers: 0 background, 255 or -1 void, k > 0 an object class.

    Args:
        void_in_union: Let void pixels that a mask covers count in its union, to compare with published numbers: the
            code that made them compares a bool mask with 255 where it means to find void pixels.
        **kwargs: Options of `RowMetric`.

    Example:
        >>> metric = ObjectJaccard()
        >>> metric.compute(predictions=[[[1, 1], [0, 0]]], references=[[[3, 255], [3, 0]]])
        {'jaccard': 0.5}

    Source: `get_per_sample_jaccard` of `Muzammal-Naseer/Intriguing-Properties-of-Vision-Transformers`
    (`evaluate_segmentation.py`), on PASCAL VOC 2012.
    """

    row_features = {"jaccard": datasets.Value("float64")}

    def __init__(self, void_in_union: bool = False, **kwargs: Any) -> None:
        self.void_in_union = void_in_union
        super().__init__(**kwargs)

    def _row(self, prediction: Any, reference: Any) -> Mapping[str, Any]:
        classes = np.asarray(reference)
        if classes.ndim != 2 or not np.issubdtype(classes.dtype, np.integer):
            raise ValueError(
                "Every segmentation in `references` must hold integers of shape (height, width), "
                f"got {classes.dtype} of shape {classes.shape}."
            )
        candidates = _candidate_masks(prediction)
        check_same_size(candidates, classes)
        return {"jaccard": _mean_over_classes(candidates, classes, self.void_in_union)}

    def _score(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        return {"jaccard": exact_mean(rows["jaccard"])}


def _pixel_counts(prediction: Any, reference: Any) -> dict[str, int]:
    """Count rightly and wrongly predicted pixels of one image, by class; ignored ones do not count."""
    predicted = checked_mask("predictions", prediction) == 1
    truth = checked_mask("references", reference, allowed=(0, 1, IGNORED))
    check_same_size(predicted, truth)
    foreground, background = truth == 1, truth == 0
    true_foreground = int(np.count_nonzero(predicted & foreground))
    false_foreground = int(np.count_nonzero(predicted & background))
    return {
        "true_foreground": true_foreground,
        "false_foreground": false_foreground,
        # predicted as background, foreground in truth
        "false_background": int(np.count_nonzero(foreground)) - true_foreground,
        "true_background": int(np.count_nonzero(background)) - false_foreground,
    }


def _average_precision(score_map: np.ndarray, truth: np.ndarray) -> float:
    """Return the average precision over both channels; NaN where no pixel counts."""
    try:  # not at the top: training imports this module without the libraries of the evaluation
        from sklearn.metrics import average_precision_score
    except ImportError as error:
        raise ImportError("Average precision needs scikit-learn: pip install transformers-ice[eval]") from error
    counts = truth != IGNORED
    if not counts.any():
        return math.nan
    foreground_scores, is_foreground = score_map[counts], truth[counts] == 1
    # (num_pixels,) -> (2 * num_pixels,): background channel, then foreground channel
    scores = np.concatenate([1 - foreground_scores, foreground_scores])
    if not score_map.max() > score_map.min():  # constant, or NaN somewhere
        scores = np.zeros_like(scores)
    return float(average_precision_score(np.concatenate([~is_foreground, is_foreground]), scores))


def _candidate_masks(prediction: Any) -> np.ndarray:
    """Return the masks of one image as `(num_candidates, height, width)`, bool."""
    masks = np.asarray(prediction)
    masks = masks[None] if masks.ndim == 2 else masks  # (height, width) -> (1, height, width)
    if masks.ndim != 3 or len(masks) == 0:
        raise ValueError(
            "Every entry of `predictions` must have shape (height, width) or (num_candidates, height, width), "
            f"got {np.shape(prediction)}."
        )
    return np.stack([checked_mask("predictions", mask) == 1 for mask in masks])


def _mean_over_classes(candidates: np.ndarray, classes: np.ndarray, void_in_union: bool) -> float:
    """Return the mean IoU of the best candidate of each object class; NaN where there is none."""
    objects = [index for index in np.unique(classes).tolist() if index not in (0, *_VOID)]
    # (num_candidates, height, width): what of each mask counts in a union
    covered = candidates if void_in_union else candidates & ~np.isin(classes, _VOID)
    best = []
    for index in objects:
        own = classes == index
        intersections = np.count_nonzero(candidates & own, axis=(1, 2))  # (num_candidates,)
        unions = np.count_nonzero(covered | own, axis=(1, 2))
        best.append(float((intersections / unions).max()))  # no union is empty: the class has a pixel
    return sum(best) / len(best) if best else math.nan
