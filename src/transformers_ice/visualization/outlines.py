# SPDX-License-Identifier: Apache-2.0
"""Outline of a mask along the edges of its pixels, exact at any size."""

from __future__ import annotations

import numpy as np


__all__ = ["outline_segments"]

Array = np.ndarray
Segment = tuple[tuple[int, int], tuple[int, int]]


def outline_segments(mask: Array) -> list[Segment]:
    """Return the straight lines between the pixels of a mask and the rest, where the edge of the image counts as rest.

    Args:
        mask: `(height, width)`, bool, True is inside.

    Returns:
        `((x0, y0), (x1, y1))` of each line, in pixel edges: x in [0, width], y in [0, height]; pixel (0, 0) is
        between the edges 0 and 1. Horizontal lines first; empty for an empty mask.

    Raises:
        ValueError: If the mask is not 2-D.
    """
    inside = np.asarray(mask, dtype=bool)
    if inside.ndim != 2:
        raise ValueError(f"`mask` must have shape (height, width), got {inside.shape}.")
    horizontal = [((x0, y), (x1, y)) for y, x0, x1 in _runs(inside)]
    # the same on the transposed mask, with x and y exchanged
    vertical = [((x, y0), (x, y1)) for x, y0, y1 in _runs(inside.T)]
    return horizontal + vertical


def _runs(inside: Array) -> list[tuple[int, int, int]]:
    """Return (line, start, stop) of every stretch along an edge between two rows of which one is inside.

    A stretch ends where the inside changes sides, so that lines never cross a corner where two masks touch.
    """
    step = np.diff(np.pad(inside, ((1, 1), (1, 1))).astype(np.int8), axis=0)  # (rows + 1, columns + 2): +1, 0 or -1
    runs: list[tuple[int, int, int]] = []
    for sign in (1, -1):
        # +1 where a stretch of this direction starts, -1 one after its end
        bounds = np.diff((step == sign).astype(np.int8), axis=1)
        (lines, starts), (_, stops) = np.nonzero(bounds == 1), np.nonzero(bounds == -1)
        runs += zip(lines.tolist(), starts.tolist(), stops.tolist(), strict=True)
    return sorted(runs)
