# SPDX-License-Identifier: Apache-2.0
"""Scores of a checkpoint and its masks, and ICE against attention maps of the model it was trained from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from ..data.benchmarks.examples import EvaluationSet, Example
from ..data.benchmarks.table_evaluation import TableEvaluation
from ..explainers import EXPLAINERS
from .checkpoints import Checkpoint
from .inputs import ExplainedBatch, InputBatch
from .maps import CEILING, CONTROLS
from .metrics import ForegroundSegmentation, TopKAccuracy
from .protocol import Protocol
from .region_benchmarks import Segmentation
from .scoring import Observation, observe_classes, score


if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["ComparisonRow", "compare_with_baselines", "score_checkpoint"]


def score_checkpoint(
    checkpoint: Checkpoint, examples: EvaluationSet, methods: Sequence[str], batch_size: int = 64
) -> dict[str, float]:
    """Score a classifier and its explanations as masks, in one pass over the images.

    Args:
        checkpoint: A classifier of `FAMILIES`.
        examples: Images with labels and masks.
        methods: Names in `EXPLAINERS` or `CONTROLS`, or "ceiling": the best 0/1 map on the patch grid.
        batch_size: Images that go through the model at once.

    Returns:
        `top_1` of `outputs.logits`, `cls_top_1` of the [CLS] classifier, `<method>_pixel_accuracy` and
        `<method>_mean_iou`, in [0, 1], as `run_benchmarks` gives them under "classification" and "segmentation".

    Raises:
        ValueError: If a method is unknown.
    """
    known = {*EXPLAINERS, CEILING}
    if not (known | {*CONTROLS}).issuperset(methods):
        raise ValueError(f"`methods` must be some of {', '.join(sorted(known))}, got {methods!r}.")
    segmentation = Segmentation(Protocol())

    def predict(batch: list[Example]) -> dict[str, Observation]:
        inputs = InputBatch(checkpoint, batch, segmentation.protocol, examples.class_names)
        return {
            "classes": observe_classes(inputs.logits, inputs.labels),
            # as ranked class indices with k = 1: (batch_size,) -> (batch_size, 1)
            "cls_": (inputs.explained_classes[:, None].numpy(), inputs.labels.numpy()),
            **{f"{method}_": segmentation.observe(ExplainedBatch(inputs, method))["masks"] for method in methods},
        }

    metrics = {"classes": TopKAccuracy(top_k=(1,)), "cls_": TopKAccuracy(top_k=(1,))}
    masks = {f"{method}_": ForegroundSegmentation() for method in methods}
    return score(predict, examples, {**metrics, **masks}, batch_size, f"evaluating {checkpoint.name}")


@dataclass(frozen=True)
class ComparisonRow:
    """Line of the comparison of ICE with its starting point; all scores in [0, 1], `None` where undefined.

    Attributes:
        method: Name of the explainer.
        patch_top_1: Accuracy of the class that the foreground patches predict.
        cls_top_1: Accuracy of the [CLS] classifier.
        pixel_accuracy: Fraction of pixels that are rightly foreground or background.
        mean_iou: Mean over background and foreground of intersection / union, over the whole set.
        ceiling_share: `mean_iou` divided by that of the ceiling.
    """

    method: str
    patch_top_1: float | None
    cls_top_1: float | None
    pixel_accuracy: float
    mean_iou: float
    ceiling_share: float


def compare_with_baselines(
    ice_model: PreTrainedModel,
    ice_processor: Any,
    start_model: PreTrainedModel,
    start_processor: Any,
    dataset: Dataset,
    batch_size: int = 64,
) -> list[ComparisonRow]:
    """Compare an ICE model with attention maps of the ViT or DeiT that it was trained from.

    Args:
        ice_model: The ICE classifier.
        ice_processor: Its image processor.
        start_model: The classifier before ICE training.
        start_processor: Its image processor.
        dataset: Columns `image`, `label` and `mask`; a `ValueError` names one that is missing.
        batch_size: Images that go through the model at once.

    Returns:
        Five rows: ICE (hard mask), raw attention and rollout on the starting model, the ceiling of the patch grid, and
        the control `center_ellipse`.
    """
    missing = {"image", "label", "mask"} - set(dataset.column_names)
    if missing:
        raise ValueError(
            f"`dataset` must have the columns image, label and mask, got {dataset.column_names}. "
            f"Rename the column of the {min(missing)} with `dataset.rename_column`."
        )
    examples = TableEvaluation(dataset)
    checkpoint = Checkpoint("ICE", ice_model, ice_processor, "")
    ice = score_checkpoint(checkpoint, examples, ["ice_hard", CEILING, "center_ellipse"], batch_size)
    checkpoint = Checkpoint("starting point", start_model, start_processor, "")
    start = score_checkpoint(checkpoint, examples, ["raw_attention", "rollout"], batch_size)
    patch_top_1 = ice["top_1"] if ice_model.config.logits_source == "patch" else None
    lines = (
        ("ICE (hard mask)", ice, "ice_hard", patch_top_1, ice["cls_top_1"]),
        ("raw attention, starting DeiT", start, "raw_attention", None, start["top_1"]),
        ("rollout, starting DeiT", start, "rollout", None, start["top_1"]),
        ("ceiling of the patch grid", ice, CEILING, None, None),
        ("control: centred ellipse", ice, "center_ellipse", None, None),
    )
    rows = []
    for title, scores, method, own_top_1, cls_top_1 in lines:
        pixel_accuracy, mean_iou = scores[f"{method}_pixel_accuracy"], scores[f"{method}_mean_iou"]
        share = mean_iou / ice[f"{CEILING}_mean_iou"]
        rows.append(ComparisonRow(title, own_top_1, cls_top_1, pixel_accuracy, mean_iou, share))
    return rows
