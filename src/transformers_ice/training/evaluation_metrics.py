# SPDX-License-Identifier: Apache-2.0
"""What an evaluation during training reports: accuracy, foreground, and masks where the data have them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import EvalPrediction

from ..data.images.tables import LabelledImages
from ..evaluation.metrics import ForegroundSegmentation, TopKAccuracy
from ..ice_deit.patch_maps import class_map, grid_size, nearest_to_image, to_grid


__all__ = ["KEPT_OUTPUTS", "EvaluationMetrics", "summarize_outputs"]

KEPT_OUTPUTS = ("logits", "cls_logits", "patch_logits")
"""Outputs of the model that the numbers need, in the order in which the model returns them."""

_TOP_K = 5
_MASK_BATCH = 256


def summarize_outputs(outputs: Tensor | tuple[Tensor, ...], labels: Tensor | None = None) -> tuple[Tensor, ...]:
    """Reduce the outputs of a batch to the few integers the numbers need (`preprocess_logits_for_metrics`).

    An evaluation keeps them for all its images: 50,000 of them with full patch logits would be 40 GB.

    Args:
        outputs: `logits` `(batch_size, num_labels)` of a plain classifier, or `KEPT_OUTPUTS` of an ICE model.
        labels: Not used; part of the Trainer's protocol.

    Returns:
        The best classes `(batch_size, k)`, best first; for ICE models also the best class of [CLS] `(batch_size, 1)`
        and which patches are foreground `(batch_size, num_patches)`, uint8.
    """
    logits, *explanation = outputs if isinstance(outputs, tuple) else (outputs,)
    top_classes = logits.topk(min(_TOP_K, logits.shape[-1]), dim=-1).indices
    if not explanation:
        return (top_classes,)
    cls_logits, patch_logits = explanation
    foreground = class_map(patch_logits) != patch_logits.shape[-1] - 1
    # not bool: some backends cannot gather it
    return top_classes, cls_logits.argmax(dim=-1, keepdim=True), foreground.to(torch.uint8)


class EvaluationMetrics:
    """Turn the summaries of a whole data set into numbers (`compute_metrics` of the Trainer).

    Reports `top_1` and, from five classes on, `top_5` of `outputs.logits`; of ICE models also `cls_top_1` and the mean
    `foreground_ratio`; where the data have masks `pixel_accuracy` and `mean_iou` (background and foreground, counts
    over the whole set), in the size of the masks. All in [0, 1].

    Args:
        patch_size: Height and width of a patch in pixels of the model's input.
        dataset: What is evaluated, for its masks.
    """

    def __init__(self, patch_size: tuple[int, int], dataset: Any = None) -> None:
        self.patch_size = patch_size
        self.dataset = dataset

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """Return the numbers by name."""
        # the Trainer hands a single array over as itself, several as a tuple
        summaries: Any = prediction.predictions
        top_classes, *explanation = summaries if isinstance(summaries, tuple) else (summaries,)
        labels = np.asarray(prediction.label_ids)
        numbers = _top_k_accuracy(top_classes, labels)
        if explanation:
            cls_classes, foreground = explanation
            numbers["cls_top_1"] = _top_k_accuracy(cls_classes, labels)["top_1"]
            numbers["foreground_ratio"] = float(foreground.mean())
            if isinstance(self.dataset, LabelledImages) and self.dataset.has_masks:
                numbers |= self._segmentation(foreground.astype(bool), self.dataset)
        return numbers

    def _segmentation(self, foreground: np.ndarray, dataset: LabelledImages) -> dict[str, float]:
        """Compare the foreground patches `(num_images, num_patches)` with the masks."""
        metric = ForegroundSegmentation()
        rows_and_columns = grid_size(dataset.input_size, self.patch_size)
        for start in range(0, len(foreground), _MASK_BATCH):
            patches = foreground[start : start + _MASK_BATCH]
            masks = [dataset.foreground_mask(start + offset) for offset in range(len(patches))]
            predictions = [
                nearest_to_image(
                    to_grid(torch.from_numpy(row), rows_and_columns), dataset.geometry(mask.shape), fill=0
                ).numpy()
                for row, mask in zip(patches, masks, strict=True)
            ]
            metric.add_batch(predictions=predictions, references=masks)
        return metric.compute() or {}


def _top_k_accuracy(top_classes: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return `top_1` and, where enough classes are given, `top_5`."""
    top_k = (1, _TOP_K) if top_classes.shape[1] >= _TOP_K else (1,)
    metric = TopKAccuracy(top_k=top_k)
    metric.add_batch(predictions=list(top_classes), references=list(labels))
    return metric.compute() or {}
