# SPDX-License-Identifier: Apache-2.0
"""Benchmarks that compare an explanation with annotated regions: masks, object classes and boxes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..data.benchmarks.examples import Example
from ..explainers.inspection import attention_maps, num_prefix_tokens
from ..ice_deit.patch_maps import component_box, largest_component
from .inputs import ExplainedBatch
from .maps import (
    CEILING,
    CONTROLS,
    binary_maps,
    explains_classes,
    is_hard,
    model_grid_size,
    resize_labels,
    score_maps,
    to_unit_range,
    varies,
)
from .metrics import (
    CorLoc,
    ForegroundAveragePrecision,
    ForegroundF1,
    ForegroundSegmentation,
    LocalizationAccuracy,
    MaxBoxAccuracy,
    MeanOf,
    ObjectJaccard,
    PointingGame,
    RowMetric,
    normalize_score_map,
    resize_boxes,
)
from .scoring import Benchmark, Observation, has_answer, observe_masks


__all__ = ["ATTENTION_HEADS", "Discovery", "Jaccard", "Localization", "Segmentation"]

ATTENTION_HEADS = "attention_heads"


class Segmentation(Benchmark):
    """Masks of the foreground: pixel accuracy and mean IoU over the set, mean average precision and mean F1.

    Masks are resized to the model's input by the nearest pixel, soft maps to the same size bilinearly; a soft map is
    stretched to [0, 1] and thresholded at its mean. The method explains the class that the model predicts.

    Source: ImageNet-Segmentation protocol of `hila-chefer/Transformer-Explainability`
    (`baselines/ViT/imagenet_seg_eval.py`, `utils/metrices.py`).
    """

    name = "segmentation"
    needs = frozenset({"mask"})

    def _make_metrics(self) -> dict[str, RowMetric]:
        scores = {"masks": ForegroundSegmentation(), "maps": ForegroundAveragePrecision(), "f1": ForegroundF1()}
        return {**scores, "empty": MeanOf("empty_masks")}

    def observe(self, batch: ExplainedBatch) -> dict[str, Observation]:
        """Return masks, soft maps and masks again, each with the true masks, and which masks are empty."""
        published = self.protocol.paper_compat
        relevance = batch.published_relevance() if published else batch.relevance()
        size = batch.inputs.input_size
        maps = score_maps(relevance, batch.method, size)
        masks = binary_maps(relevance, batch.method, size)
        if not is_hard(batch.method):
            maps = to_unit_range(maps)
        elif published and batch.method not in CONTROLS:
            # there, min-max makes NaN of a constant map, and NaN is background
            masks = masks & varies(relevance)
        predictions, truths = observe_masks(masks, *batch.inputs.true_masks)
        scores = {"masks": (predictions, truths), "maps": (list(maps.numpy()), truths), "f1": (predictions, truths)}
        return {**scores, "empty": _observe_empty(masks)}


class Jaccard(Benchmark):
    """Overlap with each object class of an image, the mean over its classes, then over the images.

    A hard map is the mask; of a soft map, the largest values that hold 0.9 of its sum. "attention_heads" means
    the heads of the last layer, of which the best one is taken for each class: an oracle, as published for DeiT.

    Source: `Muzammal-Naseer/Intriguing-Properties-of-Vision-Transformers` (`evaluate_segmentation.py`).
    """

    name = "jaccard"
    needs = frozenset({"segmentation"})

    def _make_metrics(self) -> dict[str, RowMetric]:
        return {
            "jaccard": ObjectJaccard(void_in_union=self.protocol.paper_compat),
            "empty": MeanOf("empty_masks"),
        }

    def observe(self, batch: ExplainedBatch) -> dict[str, Observation]:
        """Return one or several masks per image with the true classes of its pixels."""
        size = batch.inputs.input_size
        if batch.method == ATTENTION_HEADS:
            grids = _head_maps(batch)  # (batch_size, num_heads, rows, columns)
            # (batch_size, num_heads, ...) -> (batch_size * num_heads, ...) and back
            kept = _largest_mass(grids.flatten(0, 1), self.protocol.attention_mass).unflatten(0, grids.shape[:2])
            # (batch_size, num_heads, height, width)
            masks = torch.stack([score_maps(heads, CEILING, size) > 0.5 for heads in kept.float()])
        else:
            relevance = batch.relevance()
            is_mask, mass = is_hard(batch.method), self.protocol.attention_mass
            # of a constant map any part would hold its share of the sum
            grids = relevance > 0 if is_mask else _largest_mass(relevance, mass) & varies(relevance)
            masks = score_maps(grids.float(), CEILING, size) > 0.5  # the protocol enlarges by the nearest patch
        # a plain mask is one class
        classes = [ex.mask if ex.segmentation is None else ex.segmentation for ex in batch.inputs.examples]
        truths = [resize_labels(np.asarray(own), size) for own in classes]
        return {"jaccard": (list(masks.numpy()), truths), "empty": _observe_empty(masks)}


def _observe_empty(masks: Tensor) -> Observation:
    """Return which of `(batch_size, ...)` masks hold no foreground, 0 or 1."""
    empty = (~masks.flatten(1).any(dim=1)).float().tolist()
    return empty, empty


def _head_maps(batch: ExplainedBatch) -> Tensor:
    """Return how much the [CLS] token attends to each patch, per head of the last layer."""
    model, pixels = batch.inputs.checkpoint.model, batch.inputs.pixel_values
    _ = batch.inputs.logits  # they must be finite, as for every other method
    with torch.no_grad():
        # last layer, [CLS] as query, patches as keys: (batch_size, num_heads, num_patches)
        weights = attention_maps(model, pixels)[-1][:, :, 0, num_prefix_tokens(model) :]
    # (batch_size, num_heads, num_patches) -> (batch_size, num_heads, rows, columns)
    return weights.float().cpu().unflatten(-1, model_grid_size(model, batch.inputs.input_size))


def _largest_mass(maps: Tensor, mass: float) -> Tensor:
    """Return which cells of `(num_maps, rows, columns)` are the largest ones that together hold a part of the sum.

    The smallest cells are dropped as long as together they hold no more than the rest of the sum; negative relevance
    counts as 0, and the mask of a map without relevance is empty.
    """
    flat = maps.clamp(min=0).flatten(1).double()  # (num_maps, num_cells)
    total = flat.sum(dim=1, keepdim=True)
    ascending, order = flat.sort(dim=1, stable=True)
    # from the smallest cell up: drop while the dropped part is at most 1 - mass
    kept = (ascending.cumsum(dim=1) > (1 - mass) * total) & (total > 0)
    # from the sorted order back to the cells
    return torch.zeros_like(kept).scatter(1, order, kept).view_as(maps)


class Localization(Benchmark):
    """Boxes from score maps: MaxBoxAcc, MaxBoxAccV2, GT-known, Top-1 and Top-5 Loc, and the pointing game.

    Maps explain the true class where the method takes one; those of ICE show the whole foreground, and the class
    under the rule "tscam" only. They are enlarged bicubically and stretched to [0, 1]. True boxes are scaled to the
    input and rounded down.

    Source: `clovaai/wsolevaluation` (`evaluation.py`, `inference.py`).
    """

    name = "localization"
    needs = frozenset({"boxes", "label"})

    def _make_metrics(self) -> dict[str, RowMetric]:
        rule, threshold = self.protocol.localization_rule, self.protocol.effective_box_threshold
        return {
            "swept": MaxBoxAccuracy(step=self.protocol.threshold_step),
            "fixed": LocalizationAccuracy(protocol=rule, threshold=threshold),
            "pointing": PointingGame(),
            "empty": MeanOf("empty_masks"),
        }

    def observe(self, batch: ExplainedBatch) -> dict[str, Observation]:
        """Return score maps with the true boxes, at the resolution of the model's input."""
        inputs, size = batch.inputs, batch.inputs.input_size
        # ICE shows its whole foreground, but TS-CAM's rule requires the map of the class
        of_class = explains_classes(batch.method, with_ice=self.protocol.localization_rule == "tscam")
        relevance = batch.relevance(inputs.labels if of_class else None)
        enlarged = score_maps(relevance, batch.method, size, "bicubic")
        if is_hard(batch.method):  # a mask of the whole image remains one
            filled, maps = relevance > 0, list((enlarged > 0).float().numpy())
        else:
            filled, maps = varies(relevance), [normalize_score_map(grid) for grid in enlarged.numpy()]
        empty = _observe_empty(filled)
        boxes = [resize_boxes(_some_boxes(example), example.image.size[::-1], size) for example in inputs.examples]
        classes = inputs.logits.topk(min(5, inputs.logits.shape[1]), dim=1).indices
        # where ICE finds no foreground, it predicts no class
        ranked = classes.masked_fill(~has_answer(inputs.logits)[:, None], -1).numpy()
        # an empty map is a miss also under "sat", whose code takes the whole image there
        misses = [is_empty and not self.protocol.paper_compat for is_empty in empty[0]]
        predictions = [
            {"labels": labels, **({"box": np.zeros(4)} if is_miss else {"score_map": grid})}
            for grid, labels, is_miss in zip(maps, ranked, misses, strict=True)
        ]
        truths = [{"boxes": own, "label": label} for own, label in zip(boxes, inputs.labels.tolist(), strict=True)]
        inside = [_inside_boxes(own, size) for own in boxes]
        return {
            "swept": (maps, boxes),
            "fixed": (predictions, truths),
            "pointing": (maps, inside),
            "empty": empty,
        }


def _some_boxes(example: Example) -> np.ndarray:
    """Return the true boxes; raise if an image has none."""
    boxes = np.asarray(example.boxes, dtype=np.float64)
    if not len(boxes):
        raise ValueError(f"Image {example.image_id!r} must have at least one box, got none. Remove it from the set.")
    return boxes


def _inside_boxes(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return which pixels lie in any of the half-open boxes, `(height, width)`, bool."""
    inside = np.zeros(size, dtype=bool)
    for left, top, right, bottom in boxes.tolist():
        inside[top:bottom, left:right] = True
    return inside


class Discovery(Benchmark):
    """Object discovery without annotations: CorLoc of the box around one component of the mask.

    Images keep their size and are padded to whole patches. A soft map is thresholded at its mean on the patch grid.
    Components touch along edges. `corloc` takes the largest one, `confident_corloc` the one with the most relevant
    patch; an image without foreground has no box and is a miss, and `empty_masks` is the fraction of such images.

    Source: `valeoai/LOST` (`main_lost.py`, `object_discovery.py`).
    """

    name = "discovery"
    needs = frozenset({"boxes"})

    def _make_metrics(self) -> dict[str, RowMetric]:
        return {"largest": CorLoc(), "confident_": CorLoc(), "empty": MeanOf("empty_masks")}

    def observe(self, batch: ExplainedBatch) -> dict[str, Observation]:
        """Return one box per image by either rule, and whether its mask is empty, with the true boxes."""
        # masks of the controls are of pixels
        cell = (1, 1) if batch.method in CONTROLS and is_hard(batch.method) else batch.patch_size
        largest, confident, empty = [], [], []
        for relevance, example in zip(batch.padded_relevance(), batch.inputs.examples, strict=True):
            grid = np.asarray(relevance)
            mask = grid > 0 if is_hard(batch.method) else (grid > grid.mean()) & (grid.max() > grid.min())
            empty.append(float(not mask.any()))
            # (row, column) of the most relevant patch of the mask
            seed = np.unravel_index(np.where(mask, grid, -np.inf).argmax(), mask.shape) if mask.any() else None
            size = (example.image.height, example.image.width)
            largest.append(_component_in_pixels(largest_component(mask), cell, size))
            chosen = mask if seed is None else _find_component(mask, (int(seed[0]), int(seed[1])))
            confident.append(_component_in_pixels(chosen, cell, size))
        boxes = [_some_boxes(example) for example in batch.inputs.examples]
        return {"largest": (largest, boxes), "confident_": (confident, boxes), "empty": (empty, empty)}


def _find_component(mask: np.ndarray, cell: tuple[int, int]) -> np.ndarray:
    """Return the 4-connected component of a bool mask that holds a cell."""
    try:
        from scipy import ndimage
    except ImportError as error:
        raise ImportError("Components need SciPy: pip install transformers-ice[eval]") from error
    labels, _ = ndimage.label(mask)  # SciPy's default: touching along edges
    return labels == labels[cell]


def _component_in_pixels(
    component: np.ndarray, patch_size: tuple[int, int], image_size: tuple[int, int]
) -> Sequence[float]:
    """Return the box around a component of patches, `xyxy` half-open, clipped to the image; no box if it is empty."""
    height, width = image_size
    if not component.any():
        return ()
    left, top, right, bottom = component_box(component)
    patch_height, patch_width = patch_size
    return (
        left * patch_width,
        top * patch_height,
        min(right * patch_width, width),
        min(bottom * patch_height, height),
    )
