# SPDX-License-Identifier: Apache-2.0
"""Names in figures, drawn as they are: no formulas, no control characters; legends, and the scale of heat maps."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .colors import HEAT_COLORS


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["add_heat_scale", "add_legend", "plain_text", "printable"]

_NO_TEXT = {"Cc", "Cs", "Cn"}  # control characters, surrogates, non-characters: XML has no way to write them


def printable(text: object) -> str:
    r"""Return a text without what cannot be drawn or written in XML: a tab becomes `\t`; lines stay lines."""
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) in _NO_TEXT and char != "\n" else char
        for char in str(text)
    )


def plain_text(text: object) -> str:
    """Return a text that matplotlib draws letter by letter: `$` is no formula."""
    return printable(text).replace("$", r"\$")


def add_legend(place: Figure | Axes, entries: Sequence[tuple[str, Any]], **options: Any) -> None:
    """Add a legend of names and artists to a figure or to axes."""
    # matplotlib leaves out names that begin with "_", so the names are written into a legend of numbers
    numbers = [str(number) for number in range(len(entries))]
    legend = place.legend([artist for _, artist in entries], numbers, **options)
    for text, (name, _) in zip(legend.get_texts(), entries, strict=True):
        text.set_text(plain_text(name).replace("\n", r"\n"))


def add_heat_scale(figure: Figure, quantity: str, fontsize: float = 7, **place: Any) -> None:
    """Draw the colours of heat maps from 0 to 1, with the name of the quantity; `place` as for `Figure.colorbar`."""
    from matplotlib.cm import ScalarMappable

    bar = figure.colorbar(ScalarMappable(cmap=HEAT_COLORS), orientation="horizontal", ticks=[0, 1], **place)
    bar.ax.tick_params(labelsize=fontsize, length=2, pad=1)
    bar.set_label(plain_text(quantity), fontsize=fontsize, labelpad=1)
    bar.outline.set_visible(False)  # type: ignore[operator]
