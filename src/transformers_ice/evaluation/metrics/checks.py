# SPDX-License-Identifier: Apache-2.0
"""Checks of masks, score maps and boxes before they are compared. `name` is that of the argument, for errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor


__all__ = [
    "IGNORED",
    "check_same_size",
    "checked_boxes",
    "checked_fractions",
    "checked_mask",
    "checked_score_map",
    "to_numpy",
]

IGNORED = -1
"""Value of the ignored pixels of a true mask."""


def to_numpy(value: Any) -> Any:
    """Return tensors, also inside mappings and lists, as arrays; floating types that NumPy lacks become float32."""
    if isinstance(value, Tensor):
        has_type = not value.is_floating_point() or value.element_size() >= 4 or str(value.dtype) == "torch.float16"
        return (value.detach() if has_type else value.detach().float()).cpu().numpy()
    if isinstance(value, Mapping):
        return {key: to_numpy(item) for key, item in value.items()}
    if isinstance(value, list | tuple) and any(isinstance(item, Tensor | Mapping | list | tuple) for item in value):
        return [to_numpy(item) for item in value]
    return value


def checked_mask(name: str, mask: Any, allowed: tuple[int, ...] = (0, 1)) -> np.ndarray:
    """Return a mask of bool or of `allowed` numbers as an array `(height, width)`."""
    array = np.asarray(mask)
    if array.ndim != 2:
        raise ValueError(f"Every mask in `{name}` must have shape (height, width), got {array.shape}.")
    if array.dtype != bool and not np.isin(array, allowed).all():
        found = np.setdiff1d(array, allowed)[:5].tolist()
        raise ValueError(f"Masks in `{name}` must hold only {allowed}, got {found}. A 0/255 mask becomes `mask > 0`.")
    return array


def checked_score_map(name: str, score_map: Any, bounded: bool = True) -> np.ndarray:
    """Return a soft map, in [0, 1] where `bounded`, as `(height, width)`, float32 or float64. It may hold NaN."""
    array = np.asarray(score_map)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"Every map in `{name}` must have shape (height, width), got {array.shape}.")
    if array.dtype not in (np.float32, np.float64):
        # float32 holds every float16 exactly
        array = array.astype(np.float32 if array.dtype == np.float16 else np.float64)
    # comparisons with NaN are false, so NaN passes
    if bounded and ((array < 0) | (array > 1)).any():
        raise ValueError(
            f"Maps in `{name}` must lie in [0, 1], got values from {np.nanmin(array):g} to {np.nanmax(array):g}. "
            "Stretch them with `normalize_score_map` first."
        )
    return array


def checked_boxes(name: str, boxes: Any) -> np.ndarray:
    """Return boxes as `(num_boxes, 4)`, `(x_min, y_min, x_max, y_max)`; a single box `(4,)` becomes one row."""
    array = np.asarray(boxes)
    if array.size == 0:
        return np.zeros((0, 4))
    array = array[None] if array.ndim == 1 else array  # (4,) -> (1, 4)
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"Boxes in `{name}` must have shape (num_boxes, 4), got {np.shape(boxes)}.")
    if not np.isfinite(array).all() or (array[:, :2] > array[:, 2:]).any():
        raise ValueError(
            f"Boxes in `{name}` must be (x_min, y_min, x_max, y_max), got {array[:3].tolist()}. "
            "Add the corner to (x, y, width, height) first."
        )
    return array


def check_same_size(prediction: np.ndarray, reference: np.ndarray) -> None:
    """Raise a `ValueError` unless the last two axes of both, height and width, agree."""
    if prediction.shape[-2:] != reference.shape[-2:]:
        raise ValueError(
            "A prediction must have the size of its reference, "
            f"got {prediction.shape[-2:]} and {reference.shape[-2:]}. Bring the prediction to the image grid first."
        )


def checked_fractions(fractions: Any) -> np.ndarray:
    """Return the fractions at which a curve was measured, at least two rising numbers in [0, 1], float64."""
    array = np.asarray(fractions, dtype=np.float64)
    if array.ndim != 1 or len(array) < 2 or array[0] < 0 or array[-1] > 1 or not (np.diff(array) > 0).all():
        raise ValueError(
            f"`fractions` must be at least two rising numbers in [0, 1], got {np.asarray(fractions).tolist()}."
        )
    return array
