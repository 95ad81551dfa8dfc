# SPDX-License-Identifier: Apache-2.0
"""Boxes and points from soft maps against true boxes and masks: MaxBoxAcc, CorLoc, the pointing game."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np

from ...data.benchmarks.mosaics import cell_masks
from .boxes import box_iou, contour_boxes
from .checks import IGNORED, check_same_size, checked_boxes, checked_mask, checked_score_map
from .rows import RowMetric, exact_mean


__all__ = [
    "CorLoc",
    "GridPointingGame",
    "MaxBoxAccuracy",
    "PointingGame",
    "box_is_hit",
    "clipped_to_last_pixel",
    "grey_levels",
]

_IOU_PERCENTS = (30, 50, 70)  # of MaxBoxAccV2


class MaxBoxAccuracy(RowMetric):
    """Fraction of images whose object is found by thresholding a map, at the best threshold of the whole set.

    The map becomes grey levels, `uint8(255 x map)`. At a threshold t, the pixels above `int(t x largest level)` are
    foreground, and boxes are drawn around its contours; without a contour the box is the first pixel. Boxes end with
    the last pixel of the map at most, IoUs count pixels at both ends, any true box will do. All scores are in [0, 1]:

    - `max_box_acc`: box of the largest contour, IoU at least 0.5, at `max_box_acc_threshold` (the first best one);
    - `max_box_acc_v2_30`, `_50`, `_70`: the best of the boxes of all contours, IoU at least 0.3, 0.5 and 0.7, each at
      its own best threshold;
    - `max_box_acc_v2`: their mean.

    The threshold is chosen on the images that are scored, so they are upper bounds.

    Predictions:
        One map per image, `(height, width)`, in [0, 1], as `normalize_score_map` returns it.

    References:
        The boxes of one image, `(num_boxes, 4)`, `(x_min, y_min, x_max, y_max)` in pixels of the map, as
        `resize_boxes` returns them.

    Args:
        step: Distance of the thresholds, `np.arange(0, 1, step)`. The published tools use 0.01 and 0.001.
        **kwargs: Options of `RowMetric`.

    Source: `clovaai/wsolevaluation` (`evaluation.py`); Choe et al., "Evaluating Weakly Supervised Object Localization
    Methods Right", CVPR 2020 (V1), and its journal version (V2).
    """

    def __init__(self, step: float = 0.01, **kwargs: Any) -> None:
        if not 0 < step < 1:
            raise ValueError(f"`step` must lie in (0, 1), got {step}.")
        self.thresholds = np.arange(0, 1, step)
        # 0 or 1 at every threshold
        hits = datasets.List(datasets.Value("uint8"), length=len(self.thresholds))
        self.row_features = {"largest_50": hits, **{f"any_{percent}": hits for percent in _IOU_PERCENTS}}
        super().__init__(**kwargs)

    def _row(self, prediction: Any, reference: Any) -> Mapping[str, Any]:
        levels = grey_levels(prediction)
        truth = _true_boxes(reference)
        # (num_thresholds,), truncated as in the published code
        bounds = (self.thresholds * levels.max()).astype(np.int64)
        # bounds with the same grey levels of the map below them make the same mask
        num_below = (np.bincount(levels.ravel(), minlength=256) > 0).cumsum()[bounds]
        # `first`: one threshold of every different mask; `inverse`: the mask of every threshold
        _, first, inverse = np.unique(num_below, return_index=True, return_inverse=True)
        largest, best = _contour_ious([levels > bound for bound in bounds[first]], truth)
        row = {f"any_{percent}": best[inverse] >= percent / 100 for percent in _IOU_PERCENTS}
        return {"largest_50": largest[inverse] >= 0.5, **row}

    def _score(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        # (num_images, num_thresholds) -> (num_thresholds,): the threshold is chosen for the whole set
        hits = {name: column.sum(axis=0, dtype=np.int64) for name, column in rows.items()}
        accuracies = {name: int(column.max()) / len(rows[name]) for name, column in hits.items()}
        parts = [accuracies[f"any_{percent}"] for percent in _IOU_PERCENTS]
        return {
            "max_box_acc": accuracies["largest_50"],
            "max_box_acc_threshold": float(self.thresholds[hits["largest_50"].argmax()]),  # the first of equal ones
            "max_box_acc_v2": sum(parts) / len(parts),
            **{f"max_box_acc_v2_{percent}": part for percent, part in zip(_IOU_PERCENTS, parts, strict=True)},
        }


class CorLoc(RowMetric):
    """Fraction of images whose one predicted box has an IoU of at least 0.5 with any true box, as `corloc` in [0, 1].

    Predictions:
        One box per image, `(4,)`, `(x_min, y_min, x_max, y_max)`, half-open, in pixels; an empty list is a miss.

    References:
        The boxes of one image, `(num_boxes, 4)`, half-open (of PASCAL VOC: 1 less at `xmin` and `ymin` only).

    Example:
        >>> CorLoc().compute(predictions=[[0, 0, 4, 4], [0, 0, 2, 2]], references=[[[0, 0, 4, 2]], [[0, 0, 4, 4]]])
        {'corloc': 0.5}

    Source: `valeoai/LOST` (`main_lost.py`, `bbox_iou` of `datasets.py`). Its 1e-7 in the union is lost in float32.
    """

    row_features = {"hit": datasets.Value("uint8")}

    def _row(self, prediction: Any, reference: Any) -> Mapping[str, Any]:
        box, truth = checked_boxes("predictions", prediction), _true_boxes(reference)
        if len(box) > 1:
            raise ValueError(f"Every entry of `predictions` must be one box or empty, got {len(box)} boxes.")
        return {"hit": len(box) == 1 and bool((box_iou(box, truth, inclusive=False) >= 0.5).any())}

    def _score(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        return {"corloc": float(rows["hit"].mean())}


class PointingGame(RowMetric):
    """Fraction of images whose map is largest on the object, as `pointing_game` in [0, 1].

    Where several pixels share the maximum, the fraction of them that hit counts, as a random choice of one would: a
    constant map gets the object's fraction of the image. (Common implementations take the first one.) A map with NaN
    is a miss. Ignored pixels are no candidates for the maximum. An image without an object pixel is excluded from the
    mean; where that holds for all, the score is NaN.

    Predictions:
        One map per image, `(height, width)`, any real numbers, larger on what is relevant.

    References:
        One mask per image, of the size of its map: 1 object, 0 elsewhere, -1 ignored, or bool.

    Args:
        tolerance: How far, in pixels, a maximum may lie from the nearest pixel of the object (Euclidean distance of
            centres). The published game allows 15 on images of their own size.
        **kwargs: Options of `RowMetric`.

    Example:
        >>> PointingGame().compute(predictions=[[[0.1, 0.9], [0.2, 0.9]]], references=[[[0, 1], [0, 0]]])
        {'pointing_game': 0.5}

    Source: Zhang et al., "Top-down Neural Attention by Excitation Backprop", ECCV 2016.
    """

    row_features = {"hit": datasets.Value("float64")}

    def __init__(self, tolerance: float = 0, **kwargs: Any) -> None:
        if not tolerance >= 0:
            raise ValueError(f"`tolerance` must not be negative, got {tolerance}.")
        self.tolerance = tolerance
        super().__init__(**kwargs)

    def _row(self, prediction: Any, reference: Any) -> Mapping[str, Any]:
        score_map = checked_score_map("predictions", prediction, bounded=False)
        truth = checked_mask("references", reference, allowed=(0, 1, IGNORED))
        check_same_size(score_map, truth)
        return {"hit": _hit_ratio(score_map, truth == 1, truth != IGNORED, self.tolerance)}

    def _score(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        return {"pointing_game": exact_mean(rows["hit"])}


class GridPointingGame(RowMetric):
    """Fraction of the positive relevance for a class that lies on the image of that class in a mosaic.

    Negative relevance counts as 0. Both scores are in [0, 1]:

    - `grid_pointing`: sum of the positive relevance inside the cell of the class / that over the whole mosaic; a map
      without positive relevance scores 0. The mean over the cells of a mosaic, then over the mosaics. Maps that are
      the same for all classes have 1 / the number of cells, whatever they show.
    - `empty_masks`: fraction of the maps without positive relevance.

    Predictions:
        The maps of one mosaic, `(num_cells, height, width)`, finite: map k explains the class in cell k. Cells are
        counted row by row, have one size and fill a square. References are not needed.

    Example:
        >>> maps = [[[3, -9], [0, 1]], [[0, 0], [0, 0]], [[1, 1], [1, 1]], [[0, 0], [0, 2]]]  # of 2 x 2 cells
        >>> GridPointingGame().compute(predictions=[maps])  # (3/4 + 0 + 1/4 + 1) / 4
        {'grid_pointing': 0.5, 'empty_masks': 0.25}

    Source: Boehle, Fritz and Schiele, "Convolutional Dynamic Alignment Networks for Interpretable Classifications",
    CVPR 2021, the localisation metric; "GridPG" in Rao, Boehle and Schiele, "Towards Better Understanding Attribution
    Methods", CVPR 2022.
    """

    row_features = {"fraction": datasets.Value("float64"), "empty": datasets.Value("float64")}
    uses_references = False

    def _row(self, prediction: Any, reference: Any) -> Mapping[str, Any]:
        maps = np.asarray(prediction, dtype=np.float64)
        side = math.isqrt(len(maps))
        if maps.ndim != 3 or side * side != len(maps) or not maps.size or any(size % side for size in maps.shape[1:]):
            raise ValueError(
                "The maps of a mosaic in `predictions` must have shape (num_cells, height, width), a square number of "
                f"cells of one size, got {maps.shape}."
            )
        if not np.isfinite(maps).all():
            raise ValueError("The maps of a mosaic in `predictions` must be finite, got NaN or infinity.")
        masks = cell_masks(side, (maps.shape[1] // side, maps.shape[2] // side))
        positive = maps.clip(min=0)
        total = positive.sum(axis=(1, 2))  # (num_cells,)
        inside = (positive * masks).sum(axis=(1, 2))
        fractions = np.divide(inside, total, out=np.zeros_like(total), where=total > 0)
        return {"fraction": exact_mean(fractions), "empty": float((total == 0).mean())}

    def _score(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        return {"grid_pointing": exact_mean(rows["fraction"]), "empty_masks": exact_mean(rows["empty"])}


def grey_levels(score_map: Any) -> np.ndarray:
    """Return a map in [0, 1], without NaN, as `uint8(255 x map)`, rounded down."""
    array = checked_score_map("predictions", score_map)
    if np.isnan(array).any():
        raise ValueError("Maps in `predictions` must not hold NaN. `normalize_score_map` makes such maps 0.")
    return (array * 255).astype(np.uint8)  # truncates


def clipped_to_last_pixel(boxes: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Return boxes that end with the last pixel of a map of height and width `size` at most."""
    height, width = size
    # starts lie inside already: only the ends change
    return np.minimum(boxes, [width, height, width - 1, height - 1])


def box_is_hit(box: np.ndarray, boxes: Any, strict: bool = False) -> bool:
    """Return whether a box has an inclusive IoU of at least, or where `strict` of more than, 0.5 with any true box."""
    ious = box_iou(box, _true_boxes(boxes), inclusive=True)
    return bool((ious > 0.5).any() if strict else (ious >= 0.5).any())


def _true_boxes(boxes: Any) -> np.ndarray:
    array = checked_boxes("references", boxes)
    if len(array) == 0:
        raise ValueError("Every image must have a true box in `references`, got none. Remove such images.")
    return array


def _contour_ious(masks: Sequence[np.ndarray], truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return per mask the best IoU with a true box: of its largest contour's box, and of any contour's box."""
    drawn = [contour_boxes(mask) for mask in masks]
    boxes = [np.zeros((1, 4), dtype=np.int64) if index is None else own for own, index in drawn]
    starts = np.cumsum([0, *map(len, boxes[:-1])])  # index of each mask's first box in the concatenation
    largest = starts + [index or 0 for _, index in drawn]
    clipped = clipped_to_last_pixel(np.concatenate(boxes), masks[0].shape)
    ious = box_iou(clipped, truth, inclusive=True).max(axis=1)  # of all masks in one call: most have few contours
    return ious[largest], np.maximum.reduceat(ious, starts)  # (num_masks,) each


def _hit_ratio(score_map: np.ndarray, is_object: np.ndarray, counts: np.ndarray, tolerance: float) -> float:
    """Return the fraction of the largest pixels that are on the object; NaN where there is none."""
    if not is_object.any():
        return math.nan
    if np.isnan(score_map[counts]).any():
        return 0.0
    largest = (score_map == score_map[counts].max()) & counts
    hits = largest & (_within(is_object, tolerance) if tolerance else is_object)
    return np.count_nonzero(hits) / np.count_nonzero(largest)


def _within(mask: np.ndarray, distance: float) -> np.ndarray:
    """Return which pixels lie no farther than `distance` from the foreground of a mask."""
    try:
        from scipy.ndimage import distance_transform_edt
    except ImportError as error:
        raise ImportError("A tolerance needs SciPy: pip install transformers-ice[eval]") from error
    # in pixels, from each pixel to the nearest one of the foreground
    return distance_transform_edt(~mask) <= distance
