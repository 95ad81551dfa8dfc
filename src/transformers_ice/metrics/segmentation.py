# SPDX-License-Identifier: Apache-2.0
"""Pixel accuracy and mean IoU of foreground masks, over the pixels of a whole set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .counting import CountingMetric


__all__ = ["ForegroundSegmentation"]


_IGNORED = -1


class ForegroundSegmentation(CountingMetric):
    """Pixel accuracy and mean IoU of the two classes background and foreground.

    Pixels are counted over the whole set, not per image, so a large image weighs more than a small one:

    - `pixel_accuracy`: pixels with the right class / pixels that count, in [0, 1];
    - `mean_iou`: mean over the two classes of (summed intersection / summed union), in [0, 1].

    A pixel whose reference is -1 counts nowhere. A class that neither predictions nor references hold is left out of
    the mean (the reference code scores it 0). Where no pixel counts at all, both scores are NaN.

    Example:
        >>> metric = ForegroundSegmentation()
        >>> metric.add_batch(predictions=[[[1, 1], [0, 0]]], references=[[[1, 0], [0, -1]]])
        >>> metric.compute()
        {'pixel_accuracy': 0.6666666666666666, 'mean_iou': 0.5}

    Source: ImageNet-Segmentation protocol of `hila-chefer/Transformer-Explainability` (`utils/metrices.py`).
    """

    count_names = ("true_foreground", "false_foreground", "false_background", "true_background")

    def add_batch(self, *, predictions: Sequence[Any], references: Sequence[Any]) -> None:
        """Count the pixels of one batch of masks.

        Args:
            predictions: One `(height, width)` mask per image, bool or 0/1. Sizes may differ between images.
            references: One mask per image, of the size of its prediction: 1 foreground, 0 background, -1
                ignored, or bool.

        Raises:
            ValueError: If lengths or sizes differ, or a mask holds another value.
        """
        super().add_batch(predictions=predictions, references=references)

    def _count(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, list[int]]:
        rows = [_pixel_counts(*pair) for pair in zip(predictions, references, strict=True)]
        return {name: list(column) for name, column in zip(self.count_names, zip(*rows, strict=True), strict=True)}

    def _compute(self, **counts: Sequence[int]) -> dict[str, float]:
        # Python integers: a set of a billion pixels neither overflows nor rounds.
        true_fg, false_fg, false_bg, true_bg = (sum(map(int, counts[name])) for name in self.count_names)
        ious = [_ratio(hits, hits + false_fg + false_bg) for hits in (true_bg, true_fg)]
        present = [iou for iou in ious if not math.isnan(iou)]
        return {
            "pixel_accuracy": _ratio(true_fg + true_bg, true_fg + true_bg + false_fg + false_bg),
            "mean_iou": sum(present) / len(present) if present else math.nan,
        }


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _pixel_counts(prediction: Any, reference: Any) -> tuple[int, int, int, int]:
    """Count (true foreground, false foreground, false background, true background) in one image."""
    predicted = _checked_mask("predictions", prediction, allowed=(0, 1)) == 1
    truth = _checked_mask("references", reference, allowed=(0, 1, _IGNORED))
    if predicted.shape != truth.shape:
        raise ValueError(
            f"A prediction must have the size of its reference, got {predicted.shape} and {truth.shape}. "
            "Bring the prediction to the image grid first."
        )
    foreground, background = truth == 1, truth == 0
    true_foreground = int(np.count_nonzero(predicted & foreground))
    false_foreground = int(np.count_nonzero(predicted & background))
    return (
        true_foreground,
        false_foreground,
        int(np.count_nonzero(foreground)) - true_foreground,
        int(np.count_nonzero(background)) - false_foreground,
    )


def _checked_mask(name: str, mask: Any, allowed: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(mask)
    if array.ndim != 2:
        raise ValueError(f"Every mask in `{name}` must have shape (height, width), got {array.shape}.")
    if array.dtype != bool and not np.isin(array, allowed).all():
        found = np.setdiff1d(array, allowed)[:5].tolist()
        raise ValueError(f"Masks in `{name}` must hold only {allowed}, got {found}. A 0/255 mask becomes `mask > 0`.")
    return array
