# SPDX-License-Identifier: Apache-2.0
"""Metrics of an evaluation during training: of labels, foreground ratio, and masks where the data have them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import EvalPrediction

from ..data.images.tables import LabelledImages
from ..evaluation.metrics import (
    ForegroundSegmentation,
    MeanOf,
    MultiLabelAveragePrecision,
    MultiLabelF1,
    RowMetric,
    TopKAccuracy,
    calibrate_thresholds,
)
from ..evaluation.scoring import Observation, has_answer, observe_masks, score
from ..ice_deit.patch_maps import class_map, grid_size


__all__ = ["KEPT_OUTPUTS", "EvaluationMetrics", "summarize_outputs"]

KEPT_OUTPUTS = ("logits", "cls_logits", "patch_logits")
"""Outputs of the model that the numbers need, in the order in which the model returns them."""

_TOP_K = 5  # as published for ImageNet
_BATCH_SIZE = 256


def summarize_outputs(outputs: Tensor | tuple[Tensor, ...], labels: Tensor | None = None) -> tuple[Tensor, ...]:
    """Reduce the outputs of a batch to the few integers the numbers need (`preprocess_logits_for_metrics`).

    An evaluation keeps them for all its images: 50,000 of them with full patch logits would be 40 GB. They are the
    best classes `(batch_size, k)`, best first, -1 where the model finds no foreground; for ICE models also the best
    class of [CLS] `(batch_size, 1)` and which patches are foreground `(batch_size, num_patches)`, uint8.

    With several labels an image, `labels` being `(batch_size, num_labels)`, the logits and those of [CLS] are kept
    instead of the best classes, `(batch_size, num_labels)`, float32.
    """
    logits, *explanation = outputs if isinstance(outputs, tuple) else (outputs,)
    if labels is not None and labels.dim() == 2:
        return (*(part.float() for part in (logits, *explanation[:1])), *map(_foreground, explanation[1:]))
    top_classes = logits.topk(min(_TOP_K, logits.shape[-1]), dim=-1).indices
    top_classes = top_classes.masked_fill(~has_answer(logits)[:, None], -1)  # (batch_size, k)
    if not explanation:
        return (top_classes,)
    cls_logits, patch_logits = explanation
    best = cls_logits.argmax(dim=-1, keepdim=True).masked_fill(~has_answer(cls_logits)[:, None], -1)
    return top_classes, best, _foreground(patch_logits)


def _foreground(patch_logits: Tensor) -> Tensor:
    """Return which patches are foreground, `(batch_size, num_patches)`, uint8."""
    # background is the last class
    foreground = class_map(patch_logits) != patch_logits.shape[-1] - 1
    return foreground.to(torch.uint8)  # not bool: some backends cannot gather it


class EvaluationMetrics:
    """Metrics of a data set from the summaries of its batches (`compute_metrics` of the Trainer).

    `top_1` and, from five classes on, `top_5` of `outputs.logits`; of ICE models also `cls_top_1` and the mean
    `foreground_ratio`; where the data have masks `pixel_accuracy` and `mean_iou` (background and foreground, counts
    over the whole set), as `evaluation.observe_masks` compares them. All in [0, 1]. `patch_size` is in pixels.

    With several labels an image, `(num_images, num_labels)`: `map` (mean over classes of average precision), `f1`
    (macro, of scores from 0.5 on, which are the sigmoids of the logits) and, of ICE models, `cls_map` in place of the
    accuracies. `thresholds` then are those of `calibrate_thresholds` on the images of the last evaluation,
    `(num_labels,)`; `None` where a logit was not finite.
    """

    thresholds: np.ndarray | None = None

    def __init__(self, patch_size: tuple[int, int], dataset: Any = None) -> None:
        self.patch_size = patch_size
        self.dataset = dataset

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """Return the numbers by name."""
        # the Trainer hands a single array over as itself, several as a tuple
        summaries: Any = prediction.predictions
        classes, *explanation = summaries if isinstance(summaries, tuple) else (summaries,)
        labels: Any = np.asarray(prediction.label_ids)
        has_masks = bool(explanation) and isinstance(self.dataset, LabelledImages) and self.dataset.has_masks
        metrics: dict[str, RowMetric]
        if labels.ndim == 2:
            num_labels = labels.shape[1]
            scores = torch.from_numpy(classes).double().sigmoid().numpy()
            self.thresholds = calibrate_thresholds(scores, labels) if np.isfinite(scores).all() else None
            # a logit of 0 is a score of 0.5
            metrics = {"classes": MultiLabelAveragePrecision(num_labels), "f1": MultiLabelF1(num_labels, 0.0)}
            metrics |= {"cls_": MultiLabelAveragePrecision(num_labels)} if explanation else {}
        else:
            top_k = (1, _TOP_K) if classes.shape[1] >= _TOP_K else (1,)
            metrics = {"classes": TopKAccuracy(top_k=top_k)}
            metrics |= {"cls_": TopKAccuracy(top_k=(1,))} if explanation else {}
        if explanation:
            metrics["foreground"] = MeanOf("foreground_ratio")
        if has_masks:
            metrics["masks"] = ForegroundSegmentation()

        def look_up(indices: list[int]) -> dict[str, Observation]:
            observations: dict[str, Observation] = {"classes": (classes[indices], labels[indices])}
            if "f1" in metrics:
                observations["f1"] = observations["classes"]
            if explanation:
                cls_classes, foreground = (summary[indices] for summary in explanation)
                observations["cls_"] = cls_classes, labels[indices]
                # (batch_size, num_patches) -> (batch_size,)
                observations["foreground"] = foreground.mean(axis=1), labels[indices]
                if has_masks:
                    observations["masks"] = self._observe_masks(foreground, indices)
            return observations

        # the scoring loop gets indices in place of examples: the predictions are already there
        return score(look_up, range(len(labels)), metrics, batch_size=_BATCH_SIZE)

    def _observe_masks(self, foreground: np.ndarray, indices: list[int]) -> Observation:
        """Return the foreground patches `(batch_size, num_patches)` next to the true masks."""
        masks = [self.dataset.foreground_mask(index) for index in indices]
        geometries = [self.dataset.geometry(mask.shape) for mask in masks]
        rows_and_columns = grid_size(geometries[0].crop_size, self.patch_size)
        # (batch_size, num_patches) -> (batch_size, rows, columns)
        return observe_masks(torch.from_numpy(foreground).unflatten(1, rows_and_columns), masks, geometries)
