# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: a data set, a model and its image processor in, `(name, value)` pairs out.

Images go through in batches and only counts are kept, so a benchmark needs the memory of one batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from .configuration_ice_deit import as_pair
from .explainers import EXPLAINERS, HARD_EXPLAINERS, evaluation_mode, explain
from .image_conversion import convert_to_rgb
from .metrics import ForegroundSegmentation, TopKAccuracy
from .patch_maps import ImageGeometry, nearest_to_image


if TYPE_CHECKING:
    from datasets import Dataset

__all__ = [
    "CEILING",
    "ComparisonRow",
    "compare_with_baselines",
    "evaluate_classification",
    "evaluate_segmentation",
    "format_table",
    "majority_grid",
]

CEILING = "ceiling"
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
            outputs = model(_pixel_values(model, image_processor, batch["image"]))
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
        pixel_values = _pixel_values(model, image_processor, batch["image"])
        input_size = (pixel_values.shape[2], pixel_values.shape[3])
        geometries = [_image_geometry(image_processor, mask.shape, input_size) for mask in references]
        for method, metric in metrics.items():
            if method == CEILING:
                grid_size = _grid_size(model, input_size)
                grids = [majority_grid(*pair, grid_size) for pair in zip(references, geometries, strict=True)]
            else:
                grids = list(_binary_maps(explain(model, pixel_values, method=method), method, input_size))
            pairs = zip(grids, geometries, strict=True)
            predictions = [nearest_to_image(grid, geometry, fill=False).numpy() for grid, geometry in pairs]
            metric.add_batch(predictions=predictions, references=references)
    for method, metric in metrics.items():
        for name, value in (metric.compute() or {}).items():
            yield f"{method}/{name}", value


def majority_grid(mask: np.ndarray, geometry: ImageGeometry, grid_size: tuple[int, int]) -> Tensor:
    """Return which patches are mostly foreground: the most accurate 0/1 map that the patch grid allows.

    Args:
        mask: `(height, width)`: 1 foreground, 0 background, -1 ignored; or bool.
        geometry: What the preprocessing did to the image.
        grid_size: Rows and columns of the patch grid.

    Returns:
        `grid_size`, bool, on the CPU. True where more than half of the counted pixels of the patch are foreground.
    """
    num_patches = grid_size[0] * grid_size[1]
    patch_index = torch.arange(num_patches).view(grid_size)
    owner = nearest_to_image(patch_index, geometry, fill=num_patches).flatten()  # pixels outside a crop: an extra one
    truth = torch.from_numpy(np.ascontiguousarray(mask)).flatten()
    foreground = torch.bincount(owner[truth == 1], minlength=num_patches)[:num_patches]
    background = torch.bincount(owner[truth == 0], minlength=num_patches)[:num_patches]
    return (foreground > background).view(grid_size)


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


def format_table(rows: Sequence[Mapping[str, Any]], headers: Mapping[str, str]) -> str:
    """Lay rows out as plain text.

    Args:
        rows: Values by column; a float is printed with four digits, `None` as a dash.
        headers: Heading by column, in the order to print. The first column is aligned left, the others right.

    Returns:
        Heading, rule and one line per row, joined by newlines.
    """
    cells = [list(headers.values()), *([_format_cell(row.get(key)) for key in headers] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _format_cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


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


def _pixel_values(model: PreTrainedModel, image_processor: Any, images: Sequence[Any]) -> Tensor:
    """Return what the model takes for a batch of images, on its device."""
    rgb_images = [convert_to_rgb(image) for image in images]
    return image_processor(rgb_images, return_tensors="pt")["pixel_values"].to(model.device)


def _reference_mask(mask: Any) -> np.ndarray:
    """Return a true mask as `(height, width)`, int8: 1 foreground, 0 background, -1 ignored."""
    array = np.asarray(mask)
    return (array > 0).astype(np.int8) if isinstance(mask, Image.Image) else array.astype(np.int8)


def _image_geometry(image_processor: Any, image_size: tuple[int, ...], input_size: tuple[int, int]) -> ImageGeometry:
    """Return where the pixels of an image `(height, width)` end up in the model's input."""
    height, width = image_size
    if hasattr(image_processor, "image_geometry"):
        return image_processor.image_geometry((height, width))
    if getattr(image_processor, "do_center_crop", False):
        raise ValueError(
            f"`image_processor` must not crop, got {type(image_processor).__name__} with do_center_crop=True: the "
            "maps would not cover the image. Set `image_processor.do_center_crop = False`."
        )
    return ImageGeometry.from_resize((height, width), input_size)


def _grid_size(model: PreTrainedModel, input_size: tuple[int, int]) -> tuple[int, int]:
    patch_height, patch_width = as_pair(model.config.patch_size)
    return input_size[0] // patch_height, input_size[1] // patch_width


def _binary_maps(relevance: Tensor, method: str, input_size: tuple[int, int]) -> Tensor:
    """Return maps `(batch_size, rows, columns)` as bool masks on the CPU; those of soft maps have the input's size."""
    relevance = relevance.cpu()
    if method in HARD_EXPLAINERS:
        return relevance > 0
    maps = torch.nn.functional.interpolate(relevance[:, None], size=input_size, mode="bilinear")[:, 0]
    # A constant map has no foreground, as in the protocol; interpolated, it is constant up to rounding only.
    varies = relevance.amax(dim=(1, 2), keepdim=True) > relevance.amin(dim=(1, 2), keepdim=True)
    return (maps > maps.mean(dim=(1, 2), keepdim=True)) & varies
