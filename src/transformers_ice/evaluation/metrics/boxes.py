# SPDX-License-Identifier: Apache-2.0
"""Boxes as the published protocols draw and compare them: pure functions of masks and arrays.

Half-open boxes end one pixel after their last one; inclusive boxes end with it: a width is `x_max - x_min + 1`. The
weakly supervised protocols draw half-open boxes and compare them as if inclusive.
"""

from __future__ import annotations

import numpy as np

from .checks import checked_boxes


__all__ = ["box_iou", "contour_boxes", "largest_component_box", "normalize_score_map", "resize_boxes"]


def box_iou(boxes: np.ndarray, others: np.ndarray, *, inclusive: bool) -> np.ndarray:
    """Return the intersection over union of every box with every other one.

    Args:
        boxes: `(num_boxes, 4)`, `(x_min, y_min, x_max, y_max)`; a `ValueError` if a box ends before it begins.
        others: `(num_others, 4)`.
        inclusive: Whether a box holds the pixels of its `x_max` and `y_max`.

    Returns:
        `(num_boxes, num_others)`, float64, in [0, 1]; 0 where both boxes are empty.
    """
    first = checked_boxes("boxes", boxes).astype(np.float64)[:, None]  # (num_boxes, 1, 4)
    second = checked_boxes("others", others).astype(np.float64)[None]  # (1, num_others, 4)
    border = 1.0 if inclusive else 0.0

    def area(corners: np.ndarray) -> np.ndarray:
        # (..., 2), width and height; 0 where boxes do not meet
        sides = np.maximum(corners[..., 2:] - corners[..., :2] + border, 0)
        return sides[..., 0] * sides[..., 1]

    # (num_boxes, num_others, 4): from the larger of the upper left to the smaller of the lower right corners
    common = np.concatenate(
        [np.maximum(first[..., :2], second[..., :2]), np.minimum(first[..., 2:], second[..., 2:])], axis=-1
    )
    intersection = area(common)
    union = area(first) + area(second) - intersection
    # two empty boxes: 0, not NaN
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def contour_boxes(mask: np.ndarray) -> tuple[np.ndarray, int | None]:
    """Return the box around every contour, in the order of OpenCV, and which of them is that of the largest one.

    A hole has a contour of its own. The area of a contour is that of the polygon through the centres of its pixels
    (`cv2.contourArea`), 0 for a line; of equal contours the first one is the largest.

    Args:
        mask: `(height, width)`, bool. Foreground pixels touch along edges and at corners.

    Returns:
        Boxes `(num_contours, 4)`, int64, half-open, and an index into them; no boxes and `None` for an empty mask.

    Source: `clovaai/wsolevaluation` (`evaluation.py`).
    """
    try:
        import cv2
    except ImportError as error:
        raise ImportError("Contours need OpenCV: pip install transformers-ice[eval]") from error
    # the last but one result in every version: OpenCV 3 returned the image first
    pixels = np.asarray(mask, dtype=bool).view(np.uint8)
    contours = cv2.findContours(pixels, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[-2]
    if not contours:
        return np.zeros((0, 4), dtype=np.int64), None
    boxes = np.array([cv2.boundingRect(contour) for contour in contours], dtype=np.int64)
    boxes[:, 2:] += boxes[:, :2]  # (x, y, width, height) -> (x_min, y_min, x_max, y_max)
    areas = [cv2.contourArea(contour) for contour in contours] if len(contours) > 1 else [0.0]
    return boxes, areas.index(max(areas))


def largest_component_box(mask: np.ndarray, connectivity: int = 4) -> np.ndarray | None:
    """Return the half-open box around the component with the most pixels, `(4,)`, int64; `None` for an empty mask.

    Args:
        mask: `(height, width)`, bool. Of equal components the one with the first pixel, row by row, counts.
        connectivity: 4 (pixels touch along edges, the default of SciPy) or 8 (also at corners, that of scikit-image).
    """
    if connectivity not in (4, 8):
        raise ValueError(f"`connectivity` must be 4 or 8, got {connectivity}.")
    try:
        from scipy import ndimage
    except ImportError as error:
        raise ImportError("Components need SciPy: pip install transformers-ice[eval]") from error
    labels, number = ndimage.label(mask, ndimage.generate_binary_structure(2, 1 if connectivity == 4 else 2))
    if number == 0:
        return None
    largest = 1 + int(np.bincount(labels.ravel())[1:].argmax())  # label 0 is background
    rows, columns = ndimage.find_objects(labels, max_label=largest)[largest - 1]
    return np.array([columns.start, rows.start, columns.stop, rows.stop])  # slices are half-open, as boxes here


def normalize_score_map(score_map: np.ndarray) -> np.ndarray:
    """Stretch a map `(height, width)` to [0, 1] by its own extremes; all 0 where it is constant or not finite.

    Source: `normalize_scoremap` of `clovaai/wsolevaluation` (`inference.py`), there for NaN only.
    """
    array = np.asarray(score_map)
    array = array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)
    if not np.isfinite(array).all() or array.min() == array.max():
        return np.zeros_like(array)
    shifted = array - array.min()
    return shifted / shifted.max()


def resize_boxes(boxes: np.ndarray, old_size: tuple[int, int], new_size: tuple[int, int]) -> np.ndarray:
    """Scale boxes from the pixels of an image to those of its resized copy, rounded towards 0.

    Args:
        boxes: `(num_boxes, 4)`, `(x_min, y_min, x_max, y_max)`; the result is int64.
        old_size: Height and width of the image.
        new_size: Height and width of the copy.

    Source: `resize_bbox` of `clovaai/wsolevaluation` (`evaluation.py`).
    """
    (old_height, old_width), (new_height, new_width) = old_size, new_size
    corners = checked_boxes("boxes", boxes).astype(np.float64)
    old, new = np.array([old_width, old_height] * 2), np.array([new_width, new_height] * 2)
    # multiplied first, as there: times the quotient of the sizes, a whole pixel could come out just below itself
    return (corners * new / old).astype(np.int64)
