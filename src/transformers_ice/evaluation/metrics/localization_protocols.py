# SPDX-License-Identifier: Apache-2.0
"""GT-known, Top-1 and Top-5 localisation accuracy: the rules of three code bases, and the metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np

from .boxes import contour_boxes, largest_component_box
from .checks import checked_boxes, checked_score_map
from .classification import checked_top_k
from .localization import box_is_hit, clipped_to_last_pixel, grey_levels
from .rows import RowMetric


__all__ = ["LOCALIZATION_PROTOCOLS", "LocalizationAccuracy", "LocalizationProtocol"]


@dataclass(frozen=True)
class LocalizationProtocol:
    """Rules of one code base for drawing and judging a box.

    All count pixels at both ends in an IoU, accept any true box, and require an IoU of at least 0.5 for GT-known.

    Attributes:
        threshold: Its default threshold of the maps; `None` where it has none.
        grey_levels: Whether a map is thresholded at `int(threshold x largest level)` of its 256 grey levels; otherwise
            at the threshold itself. Foreground is above the threshold.
        region: "largest_contour" (by the area of the polygon) or "largest_component" (by pixels, touching at corners).
        ends_with_last_pixel: Whether boxes end with the last pixel of the map at most, not one after it.
        box_of_nothing: The box where nothing is foreground; `None` for the whole map.
        one_map_per_image: Whether one map serves all classes; otherwise each class may have its own.
        strict_top_k: Whether Top-k requires an IoU of more than 0.5, not of at least 0.5.
        source: File of the code base that has the rules.
    """

    threshold: float | None
    grey_levels: bool
    region: str
    ends_with_last_pixel: bool
    box_of_nothing: tuple[int, int, int, int] | None
    one_map_per_image: bool
    strict_top_k: bool
    source: str

    def box(self, score_map: Any, threshold: float | None = None) -> np.ndarray:
        """Return the box of a map, `(4,)`, int64, `(x_min, y_min, x_max, y_max)`.

        Args:
            score_map: `(height, width)`, in [0, 1].
            threshold: In [0, 1); `None` takes that of the protocol, where it has one.
        """
        threshold = self.threshold if threshold is None else threshold
        if threshold is None:
            raise ValueError(
                "`threshold` must be given for this protocol, got None: it has no default. Choose it on images "
                "that are not scored, or pass boxes."
            )
        if self.grey_levels:
            levels = grey_levels(score_map)
            mask = levels > int(threshold * levels.max())  # truncated, as in the published code
        else:
            mask = checked_score_map("predictions", score_map) > threshold
        if self.region == "largest_component":
            box = largest_component_box(mask, connectivity=8)
        else:
            boxes, largest = contour_boxes(mask)
            box = None if largest is None else boxes[largest]
        if box is None:
            height, width = mask.shape
            # a tuple of zeros counts as true: only `None` means the whole map
            box = np.array(self.box_of_nothing or (0, 0, width, height))
        return clipped_to_last_pixel(box, mask.shape) if self.ends_with_last_pixel else box


LOCALIZATION_PROTOCOLS: Mapping[str, LocalizationProtocol] = {
    "wsolevaluation": LocalizationProtocol(
        threshold=None,
        grey_levels=True,
        region="largest_contour",
        ends_with_last_pixel=True,
        box_of_nothing=(0, 0, 0, 0),  # the first pixel, since its boxes are inclusive
        one_map_per_image=False,
        strict_top_k=False,
        # Top-k is not defined there; GT-known at a fixed threshold is its MaxBoxAcc without the choice
        source="clovaai/wsolevaluation, evaluation.py",
    ),
    "tscam": LocalizationProtocol(
        threshold=0.1,  # of CUB-200-2011; 0.12 of ImageNet
        grey_levels=True,
        region="largest_contour",
        ends_with_last_pixel=False,
        box_of_nothing=(0, 0, 1, 1),
        one_map_per_image=False,
        strict_top_k=True,
        source="vasgaowei/TS-CAM, lib/cams_deit.py",
    ),
    "sat": LocalizationProtocol(
        threshold=0.4,  # of CUB-200-2011; 0.3 of ImageNet
        grey_levels=False,
        region="largest_component",
        ends_with_last_pixel=False,
        box_of_nothing=None,
        one_map_per_image=True,
        strict_top_k=False,
        source="wpy1999/SAT, evaluator.py",
    ),
}
"""The rules by name. They contain all differences of the metric between the code bases."""


class LocalizationAccuracy(RowMetric):
    """Fraction of images whose object is found at a fixed threshold, and classified, by rules of published code.

    - `gt_known_loc`: the box for the true class is right, whatever class is predicted;
    - `top_1_loc`, `top_5_loc`, ...: the true class is among the k best, and its box is right.

    All in [0, 1]. Published numbers often come from a checkpoint or threshold chosen on the images that are scored.

    Predictions:
        One mapping per image:

        - `labels`: class indices, best first, `(num_ranked,)`; at least the largest k of them, or all classes;
        - `score_map`: one map for all classes, `(height, width)`, in [0, 1]; or
          `score_maps`: a map per ranked class, `(num_ranked, height, width)`; or, instead of a map, a finished box as
          `box`, `(4,)`, or boxes as `boxes`, `(num_ranked, 4)`, `(x_min, y_min, x_max, y_max)`;
        - `true_class_score_map` or `true_class_box`: with a map or box per class, that of the true class. Needed only
          where the true class is not among `labels`.

    References:
        One mapping per image: `label`, the true class index, and `boxes`, `(num_boxes, 4)`, in pixels of the map.

    Args:
        protocol: "wsolevaluation", "tscam" or "sat": a name in `LOCALIZATION_PROTOCOLS`.
        threshold: Threshold of the maps, in [0, 1), relative to the largest value (to 1 under "sat"). `None` takes
            that of the protocol for CUB-200-2011; "wsolevaluation" has none, and maps need one there.
        top_k: The values of k.
        **kwargs: Options of `RowMetric`.

    Source: the table `LOCALIZATION_PROTOCOLS`.
    """

    def __init__(
        self,
        protocol: str = "wsolevaluation",
        threshold: float | None = None,
        top_k: Sequence[int] = (1, 5),
        **kwargs: Any,
    ) -> None:
        if protocol not in LOCALIZATION_PROTOCOLS:
            raise ValueError(f"`protocol` must be one of {', '.join(LOCALIZATION_PROTOCOLS)}, got {protocol!r}.")
        if threshold is not None and not 0 <= threshold < 1:
            raise ValueError(f"`threshold` must lie in [0, 1), got {threshold}.")
        self.protocol = LOCALIZATION_PROTOCOLS[protocol]
        self.threshold = threshold
        self.top_k = checked_top_k(top_k)
        self.row_features = dict.fromkeys(("gt_known", *(f"top_{k}" for k in self.top_k)), datasets.Value("uint8"))
        super().__init__(**kwargs)

    def _row(self, prediction: Any, reference: Any) -> Mapping[str, Any]:
        ranked = _ranked_labels(prediction)
        if not isinstance(reference, Mapping) or not {"label", "boxes"} <= set(reference):
            raise ValueError(f"Every entry of `references` must hold `label` and `boxes`, got {_keys(reference)}.")
        is_true = ranked == int(reference["label"])  # (num_ranked,), bool
        rank = int(is_true.argmax()) if is_true.any() else None  # 0 for the best class
        box = self._box_for_true_class(prediction, rank, len(ranked))
        box_is_right = box_is_hit(box, reference["boxes"], strict=self.protocol.strict_top_k)
        top_k = {f"top_{k}": rank is not None and rank < k and box_is_right for k in self.top_k}
        return {"gt_known": box_is_hit(box, reference["boxes"]), **top_k}

    def _box_for_true_class(self, prediction: Mapping[str, Any], rank: int | None, num_ranked: int) -> np.ndarray:
        """Return the box of the class at a rank, or of the true class where it is not ranked, `(4,)`."""
        for one, several in (("score_map", "score_maps"), ("box", "boxes")):
            if one in prediction:
                return self._as_box(one, prediction[one])
            if several in prediction:
                return self._as_box(one, self._entry(prediction, several, f"true_class_{one}", rank, num_ranked))
        raise ValueError(
            "Every entry of `predictions` must hold `score_map`, `score_maps`, `box` or `boxes`, "
            f"got {_keys(prediction)}."
        )

    def _entry(
        self, prediction: Mapping[str, Any], several: str, true_class: str, rank: int | None, num_ranked: int
    ) -> Any:
        """Return the entry of a prediction for the true class, where every class has its own."""
        if self.protocol.one_map_per_image:
            raise ValueError(
                "`predictions` must hold one `score_map` or `box` per image, not one per class, under the rules of "
                f"{self.protocol.source}; got `{several}`."
            )
        if len(prediction[several]) != num_ranked:
            raise ValueError(
                f"`{several}` must hold one entry for each of the {num_ranked} `labels`, "
                f"got {len(prediction[several])}."
            )
        if true_class in prediction:
            return prediction[true_class]
        if rank is None:
            raise ValueError(
                f"Where the true class is not among `labels`, `predictions` must hold `{true_class}`, "
                f"got {_keys(prediction)}."
            )
        return prediction[several][rank]

    def _as_box(self, kind: str, entry: Any) -> np.ndarray:
        if kind == "score_map":
            return self.protocol.box(entry, self.threshold)
        boxes = checked_boxes("predictions", entry)
        if len(boxes) != 1:
            raise ValueError(f"Every class must have one box of shape (4,), got {np.shape(entry)}.")
        return boxes[0]

    def _score(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        return {f"{name}_loc": float(column.mean()) for name, column in rows.items()}


def _ranked_labels(prediction: Any) -> np.ndarray:
    if not isinstance(prediction, Mapping) or "labels" not in prediction:
        raise ValueError(f"Every entry of `predictions` must hold `labels`, got {_keys(prediction)}.")
    ranked = np.asarray(prediction["labels"])
    if ranked.ndim != 1 or not np.issubdtype(ranked.dtype, np.integer):
        raise ValueError(f"`labels` must be class indices, best first, got {ranked.dtype} of shape {ranked.shape}.")
    return ranked


def _keys(entry: Any) -> Any:
    return sorted(entry) if isinstance(entry, Mapping) else type(entry).__name__
