# SPDX-License-Identifier: Apache-2.0
"""Names in figures, drawn as they are: no formulas, no control characters, no name left out of a legend."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["add_legend", "plain_text", "printable"]

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
