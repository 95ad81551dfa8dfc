# SPDX-License-Identifier: Apache-2.0
"""Image files of the results of the patch-explanation pipeline: heat map, class map, mask, cutout or panel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..console.output_files import PICTURE_MARK, replaced
from .colors import as_rgb, class_colors, matplotlib_module, name_by_index
from .objects import (
    NOTHING_FOUND,
    DrawnObject,
    object_colors,
    objects_of,
    overlay_objects,
    paint_labels,
    text_size_of,
    tint_objects,
)
from .overlays import cut_out, outline_mask, overlay_class_map, overlay_heatmap, paint_box
from .panels import (
    PanelRow,
    SupportsToDict,
    add_box,
    add_objects,
    as_mapping,
    box_of,
    class_legend,
    explanation_panel,
    picture_figure,
    save_figure,
    shrink,
)
from .text import add_heat_scale, add_legend, plain_text


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["PICTURES", "class_map_figure", "heatmap_figure", "save_result"]

PICTURES = ("heatmap", "class_map", "mask", "cut_out", "panel")
_WIDTH = 5.0  # inches of a figure of one image

Array = np.ndarray


def save_result(
    image: Array,
    result: Mapping[str, Any] | SupportsToDict,
    class_names: Mapping[int, str] | Sequence[str],
    file: str | Path,
    picture: str = "heatmap",
    scale: float = 1.0,
    target: str | None = None,
) -> None:
    """Write an explanation of an image to an image file.

    Args:
        image: The upright image, `(height, width, 3)`, uint8.
        result: A `PatchExplanation` of it, the result of the patch-explanation pipeline, or one of `MapExplainer`, of
            which there is the heat map alone.
        class_names: Name by class index.
        file: Where to; png, svg or pdf. In SVG and PDF lines and text are sharp at any size.
        picture: "heatmap" (with the box), "class_map" (with a legend), "mask" (its outline, and the box), "cut_out"
            (the rest dimmed) or "panel" (all side by side, and the pruned patches). Of a multi-label model every
            object has a box, a label with its score and, as a mask, a tint and an outline in the colour of its class.
        scale: Resolution over that of the image. PNG overlays at scale 1 have the pixels of the image; a heat map at a
            larger scale, in SVG or PDF has its label above it and the scale of its colours below.
        target: Name of the class that the heat map shows; `None`: the foreground.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If `picture` is none of these, the ending is another one, or sizes differ.
    """
    if picture not in PICTURES:
        raise ValueError(f"`picture` must be one of {', '.join(PICTURES)}, got {picture!r}.")
    result = as_mapping(result)
    objects = objects_of(result)
    colors = {} if objects is None else object_colors(objects, name_by_index(class_names), [result["class_map"]])
    if picture == "panel":
        _save(explanation_panel([PanelRow.from_result(image, result, target=target)], class_names), file, scale)
    elif picture == "class_map":
        figure = class_map_figure(image, result["class_map"], class_names)
        if objects == []:
            figure.axes[0].set_title(NOTHING_FOUND, fontsize=10)
        _save(figure, file, scale)
    elif Path(file).suffix.lower() == ".png" and 0 < scale <= 1:  # painting pixels is ten times as fast as a figure
        if scale < 1:
            image, result, objects = _shrunk(image, result, objects, scale)
        metadata = PngInfo()
        metadata.add_text("Software", PICTURE_MARK)
        with replaced(file) as temporary:
            painted = _paint(image, result, picture, objects, colors)
            Image.fromarray(painted).save(temporary, format="PNG", pnginfo=metadata)
    elif picture == "heatmap":
        _save(heatmap_figure(image, result, target, colors), file, scale)
    else:
        _save(_draw(image, result, picture, objects, colors), file, scale)


def _save(figure: Figure, file: str | Path, scale: float) -> None:
    """Write a figure and take it apart: its parts hold each other, and their pixels would stay for a while."""
    try:
        save_figure(figure, file, scale)
    finally:
        figure.clear()


def _shrunk(
    image: Array, result: Mapping[str, Any], objects: Sequence[DrawnObject] | None, scale: float
) -> tuple[Array, dict[str, Any], list[DrawnObject] | None]:
    """Return an image, and what overlays show of its explanation, with fewer pixels."""
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))

    def resize(values: Array, resample: Image.Resampling) -> Array:
        return np.asarray(Image.fromarray(values).resize(size, resample))

    maps = {
        "heatmap": resize(np.asarray(result["heatmap"], np.float32), Image.Resampling.BOX).clip(0, 1),
        "box": result["box"] and {name: round(edge * scale) for name, edge in result["box"].items()},
    }
    if "mask" in result:
        maps["mask"] = resize(np.asarray(result["mask"], bool), Image.Resampling.NEAREST)
    small = resize(image, Image.Resampling.BOX)
    own = None if objects is None else [found.resized(small.shape[:2]) for found in objects]
    return small, {**result, **maps}, own


def _paint(
    image: Array,
    result: Mapping[str, Any],
    picture: str,
    objects: Sequence[DrawnObject] | None,
    colors: Mapping[str, str],
) -> Array:
    """Return an overlay with its lines, in the pixels of the image."""
    if picture == "cut_out":
        return cut_out(image, result["mask"])
    if objects is not None:
        if picture == "mask":
            return overlay_objects(image, objects, colors)
        return paint_labels(overlay_heatmap(image, result["heatmap"]), objects, colors)
    is_mask = picture == "mask"
    pixels = outline_mask(image, result["mask"]) if is_mask else overlay_heatmap(image, result["heatmap"])
    box = box_of(result)
    return pixels if box is None else paint_box(pixels, box)


def _draw(
    image: Array,
    result: Mapping[str, Any],
    picture: str,
    objects: Sequence[DrawnObject] | None,
    colors: Mapping[str, str],
) -> Figure:
    """Return an overlay whose lines are drawn, not painted."""
    if picture == "cut_out":
        return picture_figure(cut_out(image, result["mask"]))
    if objects is not None:
        figure = picture_figure(tint_objects(image, objects, colors, outlines=False))
        # 72 points an inch, 100 pixels an inch
        size = image.shape[0], image.shape[1]
        line_width = max(0.7, min(size) / 250)  # as in `picture_figure`
        add_objects(figure.axes[0], objects, colors, size, text_size_of(size), 0.72, line_width, outlines=True)
        return figure
    return picture_figure(image, box_of(result), result["mask"])


def class_map_figure(image: Array, class_map: Array, class_names: Mapping[int, str] | Sequence[str]) -> Figure:
    """Return the class map over an image, with a legend of the classes that are in it.

    Args:
        image: `(height, width, 3)` or `(height, width)` grey, uint8.
        class_map: `(height, width)`, int.
        class_names: Name by class index; a class without a name, such as the background, is dim and grey.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If sizes differ.
    """
    names = name_by_index(class_names)
    colors = class_colors([class_map], names)
    rgb, classes = shrink(as_rgb(image), np.asarray(class_map))
    figure, _ = _figure_of(overlay_class_map(rgb, classes, colors))
    entries = class_legend(colors, names)
    add_legend(figure, entries, loc="outside lower center", ncols=min(len(entries), 4), frameon=False)
    return figure


def heatmap_figure(
    image: Array,
    result: Mapping[str, Any] | SupportsToDict,
    target: str | None = None,
    colors: Mapping[str, str] | None = None,
) -> Figure:
    """Return the heat map over an image, with its box, label and score, and the scale of the colours.

    Of a multi-label model with box, label and score of every object, or "nothing found".

    Args:
        image: The upright image, `(height, width, 3)`, uint8.
        result: A `PatchExplanation` of it, the result of the patch-explanation pipeline, or one of `MapExplainer`.
        target: Name of the class that the heat map shows; `None`: the foreground.
        colors: Colour (`#rrggbb`) by label of the objects of a multi-label model; `None` chooses them.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If sizes differ.
    """
    result = as_mapping(result)
    nothing = np.broadcast_to(np.False_, image.shape[:2])  # class map and mask are not drawn, nor always there
    objects = objects_of(result)
    row = PanelRow(image, nothing, result["heatmap"], nothing, box=box_of(result), objects=objects).shrunk()
    figure, axis = _figure_of(overlay_heatmap(row.image, row.heatmap), margin=1.0 if objects is None else 0.7)
    if row.objects is not None:
        names = dict(enumerate(dict.fromkeys(found.label for found in row.objects)))
        points = 72 * _WIDTH / row.image.shape[1]
        size = row.image.shape[0], row.image.shape[1]
        add_objects(axis, row.objects, colors or object_colors(row.objects, names), size, 8 / points, points)
    elif row.box is not None:
        add_box(axis, row.box)
    if objects is None and result["label"] is not None:  # an encoder alone predicts none
        axis.set_title(f"{plain_text(result['label'])}, {result['score']:.2f}", fontsize=10, wrap=True)
    add_heat_scale(figure, _quantity_of(result, target), fontsize=8, ax=axis, shrink=0.6, aspect=30, pad=0.02)
    return figure


def _quantity_of(result: Mapping[str, Any], target: str | None) -> str:
    """Return what a heat map shows: a probability, or the relevance by a method."""
    if "method" in result:
        return f"{result['method']}{'' if target is None else f' of {target}'}, from least to most relevant"
    return f"p({'not background' if target is None else target})"


def _figure_of(picture: Array, margin: float = 0.5) -> tuple[Figure, Axes]:
    """Return a figure, and its axes, of one image with some inches for text above and below it."""
    matplotlib_module()
    from matplotlib.figure import Figure

    ratio = float(np.clip(picture.shape[0] / picture.shape[1], 0.2, 3.0))  # of a strip, the figure stays small
    figure = Figure(figsize=(_WIDTH, _WIDTH * ratio + margin), dpi=150, layout="constrained")
    axis = figure.add_subplot()
    axis.set_axis_off()
    axis.imshow(picture, interpolation="nearest")
    return figure, axis
