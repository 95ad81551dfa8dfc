# SPDX-License-Identifier: Apache-2.0
"""ICE beside what attention explains of the model it came from: the short comparison that a demo prints.

A data set, a model and its image processor in, `(name, value)` pairs out. Images go through in batches and only counts
are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..explainers import EXPLAINERS, evaluation_mode, explain
from ..ice_deit.patch_maps import nearest_to_image
from .maps import CEILING, binary_maps, image_geometry, majority_grid, model_grid_size, preprocess
from .metrics import ForegroundSegmentation, TopKAccuracy


if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["ComparisonRow", "compare_with_baselines", "evaluate_classification", "evaluate_segmentation"]

_TOP_K = (1, 5)


@torch.inference_mode()
def evaluate_classification(
    model: PreTrainedModel, image_processor: Any, dataset: Dataset, batch_size: int = 64
) -> Iterator[tuple[str, float]]:
    """Score how often the model names the true class.

    Args:
        model: An image classifier. Comes back as it was.
        image_processor: The one that belongs to the model.
        dataset: Columns `image` and `label`.
        batch_size: Images that go through the model at once.

    Yields:
        `top_1`, and `top_5` from five classes on, of `outputs.logits`, in [0, 1]; of ICE models also `cls_top_1` and
        `cls_top_5` of `outputs.cls_logits`.

    Raises:
        ValueError: If a column is missing.
    """
    _check_columns(dataset, "image", "label")
    metrics: dict[str, TopKAccuracy] = {}
    with evaluation_mode(model):
        for batch in _batches(dataset, batch_size, "classification"):
            outputs = model(preprocess(model, image_processor, batch["image"]))
            for prefix, name in (("", "logits"), ("cls_", "cls_logits")):
                if name in outputs:
                    top_k = tuple(k for k in _TOP_K if k <= outputs[name].shape[-1])
                    metric = metrics.setdefault(prefix, TopKAccuracy(top_k=top_k))
                    metric.add_batch(predictions=outputs[name].float().cpu().numpy(), references=batch["label"])
    for prefix, metric in metrics.items():
        for name, value in (metric.compute() or {}).items():
            yield prefix + name, value


def evaluate_segmentation(
    model: PreTrainedModel,
    image_processor: Any,
    dataset: Dataset,
    methods: Sequence[str] = ("ice_hard", CEILING),
    batch_size: int = 64,
) -> Iterator[tuple[str, float]]:
    """Score explanations as masks of the foreground, against true masks, pixel by pixel over the whole set.

    A soft map is interpolated bilinearly to the model's input and cut at its mean, per image. A hard map, and the
    ceiling, go to the pixels by the nearest patch. The comparison takes place in the resolution of the true masks.

    Args:
        model: A ViT, DeiT or ICE model. Comes back as it was.
        image_processor: The one that belongs to the model.
        dataset: Columns `image` and `mask`. A mask is an image (0 is background, anything else foreground) or an array
            of 1, 0 and -1, which is ignored; of the size of its image.
        methods: Names in `EXPLAINERS`, or "ceiling": the best that any 0/1 map on the patch grid can do, where each
            patch has the class of most of its true pixels.
        batch_size: Images that go through the model at once.

    Yields:
        `<method>/pixel_accuracy` and `<method>/mean_iou`, in [0, 1], as `ForegroundSegmentation` defines them.

    Raises:
        ValueError: If a column is missing, a method is unknown or does not fit the model, or images are cropped by a
            processor that cannot say where.

    Source: ImageNet-Segmentation protocol of `hila-chefer/Transformer-Explainability`; there images and masks are
    resized to the model's input first.
    """
    _check_columns(dataset, "image", "mask")
    _check_methods(methods)
    metrics = {method: ForegroundSegmentation() for method in methods}
    for batch in _batches(dataset, batch_size, "segmentation"):
        references = [_reference_mask(mask) for mask in batch["mask"]]
        pixel_values = preprocess(model, image_processor, batch["image"])
        input_size = (pixel_values.shape[2], pixel_values.shape[3])
        geometries = [image_geometry(image_processor, mask.shape, input_size) for mask in references]
        for method, metric in metrics.items():
            if method == CEILING:
                grid_size = model_grid_size(model, input_size)
                grids = [majority_grid(*pair, grid_size) for pair in zip(references, geometries, strict=True)]
            else:
                grids = list(binary_maps(explain(model, pixel_values, method=method), method, input_size))
            pairs = zip(grids, geometries, strict=True)
            predictions = [nearest_to_image(grid, geometry, fill=False).numpy() for grid, geometry in pairs]
            metric.add_batch(predictions=predictions, references=references)
    for method, metric in metrics.items():
        for name, value in (metric.compute() or {}).items():
            yield f"{method}/{name}", value


@dataclass(frozen=True)
class ComparisonRow:
    """Hold one line of the comparison of ICE with its starting point; all scores in [0, 1], `None` where undefined.

    Attributes:
        method: What explains.
        patch_top_1: Accuracy of the class that the foreground patches name.
        cls_top_1: Accuracy of the [CLS] classifier.
        pixel_accuracy: Share of pixels that are rightly foreground or background.
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
    """Compare an ICE model with what attention explains of the model it was trained from.

    Args:
        ice_model: The ICE classifier.
        ice_processor: Its image processor.
        start_model: The ViT or DeiT classifier before ICE training.
        start_processor: Its image processor.
        dataset: Columns `image`, `label` and `mask`.
        batch_size: Images that go through a model at once.

    Returns:
        Four rows: ICE (hard mask), raw attention and rollout on the starting model, the ceiling of the patch grid.
    """
    data = (dataset, batch_size)
    ice_accuracy = dict(evaluate_classification(ice_model, ice_processor, *data))
    start_accuracy = dict(evaluate_classification(start_model, start_processor, *data))
    scores = dict(evaluate_segmentation(ice_model, ice_processor, dataset, ("ice_hard", CEILING), batch_size))
    scores |= evaluate_segmentation(start_model, start_processor, dataset, ("raw_attention", "rollout"), batch_size)
    patch_top_1 = ice_accuracy["top_1"] if ice_model.config.logits_source == "patch" else None
    best = scores[f"{CEILING}/mean_iou"]

    def row(method: str, key: str, patch_top_1: float | None, cls_top_1: float | None) -> ComparisonRow:
        pixel_accuracy, mean_iou = scores[f"{key}/pixel_accuracy"], scores[f"{key}/mean_iou"]
        return ComparisonRow(method, patch_top_1, cls_top_1, pixel_accuracy, mean_iou, mean_iou / best)

    return [
        row("ICE (hard mask)", "ice_hard", patch_top_1, ice_accuracy["cls_top_1"]),
        row("raw attention, starting DeiT", "raw_attention", None, start_accuracy["top_1"]),
        row("rollout, starting DeiT", "rollout", None, start_accuracy["top_1"]),
        row("ceiling of the patch grid", CEILING, None, None),
    ]


def _check_columns(dataset: Dataset, *names: str) -> None:
    missing = [name for name in names if name not in dataset.column_names]
    if missing:
        raise ValueError(
            f"`dataset` must have the columns {list(names)}, got {dataset.column_names}. "
            f"Rename what holds {missing[0]!r} with `dataset.rename_column`."
        )


def _check_methods(methods: Sequence[str]) -> None:
    known = {*EXPLAINERS, CEILING}
    unknown = [method for method in methods if method not in known]
    if unknown or isinstance(methods, str):
        raise ValueError(f"`methods` must be a list of {', '.join(sorted(known))}, got {methods!r}.")


def _batches(dataset: Dataset, batch_size: int, task: str) -> Iterator[dict[str, list[Any]]]:
    with tqdm(total=len(dataset), desc=f"evaluating {task}", unit="image") as progress:
        for batch in dataset.iter(batch_size):
            yield batch
            progress.update(len(batch["image"]))


def _reference_mask(mask: Any) -> np.ndarray:
    """Return a true mask as `(height, width)`, int8: 1 foreground, 0 background, -1 ignored."""
    array = np.asarray(mask)
    return (array > 0).astype(np.int8) if isinstance(mask, Image.Image) else array.astype(np.int8)
