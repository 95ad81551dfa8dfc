# SPDX-License-Identifier: Apache-2.0
"""Numbers as figures: scores with their intervals, accuracy over speed."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np

from .colors import PALETTE, matplotlib_module
from .text import add_legend, plain_text


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["score_bars", "speed_plot"]

Array = np.ndarray


def score_bars(scores: Mapping[str, Mapping[str, tuple[float, float, float]]], headings: Mapping[str, str]) -> Figure:
    """Draw scores as bars with their intervals: a plot per score, a bar per method.

    Args:
        scores: By score, by method: (value, low, high). A NaN interval is not drawn.
        headings: Title of each plot by score; the order is that of the plots.

    Returns:
        A matplotlib figure.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there is no score.
    """
    if not headings:
        raise ValueError("`headings` must name at least one score, got none.")
    matplotlib_module()
    from matplotlib.figure import Figure

    num_bars = max(len(bars) for bars in scores.values())
    columns = min(3, len(headings))
    rows = -(-len(headings) // columns)
    figure = Figure(figsize=(4.2 * columns, rows * (0.9 + 0.19 * num_bars)), dpi=130, layout="constrained")
    # a list: `flat` is an iterator, which would continue after the last axis of the first loop
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, (name, heading) in zip(axes[: len(headings)], headings.items(), strict=True):
        _draw_bars(axis, scores[name], heading)
    for axis in axes[len(headings) :]:
        axis.set_visible(False)
    return figure


def speed_plot(points: Mapping[str, Mapping[str, tuple[float, float]]]) -> Figure:
    """Draw accuracy over images per second: a plot for each setting, such as a batch size, a point for each model.

    Args:
        points: By setting, by model: images per second, and accuracy in [0, 1].

    Returns:
        A matplotlib figure.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there is no point.
    """
    if not points or not all(points.values()):
        raise ValueError(f"`points` must hold at least one model in every plot, got {points}.")
    matplotlib_module()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(points), 4.2), dpi=130, layout="constrained")
    for axis, (heading, models) in zip(figure.subplots(1, len(points), squeeze=False)[0], points.items(), strict=True):
        entries = []
        for (name, (speed, accuracy)), color in zip(models.items(), cycle(PALETTE)):
            entries.append((name, axis.scatter(speed, 100 * accuracy, color=color)))
        axis.set(title=plain_text(heading), xlabel="images per second", ylabel="top-1 accuracy (%)")
        add_legend(axis, entries, fontsize=7)
    return figure


def _draw_bars(axis: Axes, bars: Mapping[str, tuple[float, float, float]], heading: str) -> None:
    names, values = list(bars), np.array(list(bars.values()))
    # (bars, 2) -> (2, bars): distances of low and high from the value; a missing interval (NaN) has length 0
    errors = np.nan_to_num(np.abs(values[:, 1:] - values[:, :1])).T
    # the own method in another colour than the baselines
    colors = [PALETTE[5] if "ice" in name.split(": ")[-1] else PALETTE[4] for name in names]
    axis.barh(range(len(names)), values[:, 0], xerr=errors, color=colors, height=0.72, error_kw={"lw": 0.8})
    axis.set_yticks(range(len(names)), [plain_text(name) for name in names], fontsize=6.5)
    axis.invert_yaxis()
    axis.tick_params(axis="x", labelsize=6.5)
    axis.set_title(plain_text(heading), fontsize=8.5)
    axis.spines[["top", "right"]].set_visible(False)
