# SPDX-License-Identifier: Apache-2.0
"""What one row of a panel shows: the arrays of an explanation, with at most 2048 rows and columns of pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from .objects import NOTHING_FOUND, DrawnObject, objects_of, shrunk_box


__all__ = ["PanelRow", "SupportsToDict", "as_mapping", "box_of", "shrink"]

_LONGEST_SIDE = 2048  # pixels of an image in a figure of several
_MOST_HEATMAPS = 2  # in a row, of the best objects

Array = np.ndarray


class SupportsToDict(Protocol):
    """Explanation with the method `to_dict`, such as a `PatchExplanation`."""

    def to_dict(self) -> dict[str, Any]:
        """Return the explanation in the form of the pipeline's result."""


def as_mapping(result: Mapping[str, Any] | SupportsToDict) -> Mapping[str, Any]:
    """Return an explanation in the form of the result of the patch-explanation pipeline."""
    return result if isinstance(result, Mapping) else result.to_dict()


def box_of(result: Mapping[str, Any]) -> list[int] | None:
    """Return the box of an explanation, half-open `xyxy` in pixels, or `None` where nothing was found."""
    return result["box"] and [result["box"][name] for name in ("xmin", "ymin", "xmax", "ymax")]


@dataclass(frozen=True)
class PanelRow:
    """Arrays of one row of `explanation_panel`, all of the same `(height, width)`.

    Attributes:
        image: `(height, width, 3)`, uint8, or `(height, width)` grey, uint8.
        class_map: Class index of every pixel, int.
        heatmap: Relevance of every pixel, float, in [0, 1].
        mask: Foreground that was found, bool.
        truth: True foreground, bool, if known.
        title: The prediction, written left of the row.
        box: `(x_min, y_min, x_max, y_max)`, half-open, in pixels, drawn on the image.
        exit_layers: The layer before which each pixel's patch was pruned, int; the number of layers if it was kept.
        objects: What a multi-label model found; `None` of a single-label model. Their boxes take the place of `box`.
        target: Name of the class that `heatmap` shows, of a multi-label model; `None`: the foreground.
    """

    image: Array
    class_map: Array
    heatmap: Array
    mask: Array
    truth: Array | None = None
    title: str = ""
    box: Sequence[int] | None = None
    exit_layers: Array | None = None
    objects: Sequence[DrawnObject] | None = None
    target: str | None = None

    @classmethod
    def from_result(
        cls,
        image: Array,
        result: Mapping[str, Any] | SupportsToDict,
        truth: Array | None = None,
        truth_label: str | None = None,
        details: bool = True,
        target: str | None = None,
    ) -> PanelRow:
        """Return the row of one explanation, with its label, score and, if it is another one, the true label as title.

        Of a multi-label model the title has a line for each object, or says that nothing was found.

        Args:
            image: The upright image, `(height, width, 3)`, uint8.
            result: A `PatchExplanation` of the image, or the result of `pipeline("patch-explanation")` for it.
            truth: True foreground, `(height, width)`, bool, if known.
            truth_label: Name of the true class, if known; of several, joined by ", ".
            details: Whether box and pruned patches are drawn, or the maps alone.
            target: As the attribute.
        """
        result = as_mapping(result)
        objects = objects_of(result)
        if objects is None:
            title, label = f"{result['label']}\n{result['score']:.2f}", result["label"]
        else:
            title = "\n".join(found.text for found in objects) or NOTHING_FOUND
            label = ", ".join(found.label for found in objects) or "background"
        # several true classes are in the order of their indices, objects in that of their scores
        if truth_label is not None and sorted(truth_label.split(", ")) != sorted(label.split(", ")):
            title += f"\n(true: {truth_label})"
        row = cls(image, result["class_map"], result["heatmap"], result["mask"], truth=truth, title=title)
        if objects is not None:
            row = replace(row, objects=objects, target=target)
        if not details:
            return row
        return replace(row, box=box_of(result), exit_layers=result.get("exit_layers"))

    def shrunk(self) -> PanelRow:
        """Return the row with at most 2048 rows and columns of pixels."""
        names = ("image", "class_map", "heatmap", "mask", "truth", "exit_layers")
        arrays = shrink(*(getattr(self, name) for name in names))
        step = shrinking_step(self.image)
        box = self.box and shrunk_box(self.box, step)
        return replace(
            self,
            **dict(zip(names, arrays, strict=True)),
            box=box,
            objects=self.objects and [found.shrunk(step) for found in self.objects],
        )

    @property
    def heatmaps(self) -> list[tuple[str, Array]]:
        """What each heat map of a multi-label model shows, and the map: p(class) of the two best objects.

        Of the target where there is one; of the foreground where nothing was found.
        """
        if self.target is None and self.objects:
            return [(f"p({found.label})", found.heatmap) for found in self.objects[:_MOST_HEATMAPS]]
        return [(f"p({self.target or 'not background'})", self.heatmap)]

    @property
    def cut_layers(self) -> list[int]:
        """The layers before which patches of this image were pruned; empty if all were kept."""
        if self.exit_layers is None:
            return []
        # the largest number is that of the kept patches, of which there is at least one; 0 is outside a crop
        return [int(layer) for layer in np.unique(self.exit_layers)[:-1] if layer > 0]


def shrinking_step(image: Array) -> int:
    return -(-max(image.shape[:2]) // _LONGEST_SIDE)


def shrink(image: Array, *maps: Array | None) -> list[Any]:
    """Return every n-th row and column of an image and its maps, at most 2048 of each: more than a cell can show."""
    step = shrinking_step(image)
    # copies: a view would keep the large array
    return [None if array is None else np.ascontiguousarray(array[::step, ::step]) for array in (image, *maps)]
