# SPDX-License-Identifier: Apache-2.0
"""Panels of overlays with lines, headings and legends, as matplotlib figures; written as PNG, SVG or PDF."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..console.output_files import PICTURE_MARK, replaced
from .colors import OUTLINE_COLOR, PRUNED_COLOR, as_rgb, class_colors, matplotlib_module, name_by_index
from .objects import DrawnObject, object_colors, place_labels, text_color
from .overlays import cut_out, kept_patches, outline_segments, overlay_class_map, overlay_heatmap
from .panel_rows import PanelRow, SupportsToDict, as_mapping, box_of, shrink
from .text import add_heat_scale, add_legend, plain_text


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "PanelRow",
    "SupportsToDict",
    "add_objects",
    "as_mapping",
    "box_of",
    "explanation_panel",
    "method_panel",
    "picture_figure",
    "save_figure",
]

_CELL_INCHES = 1.45
_FIGURE_FORMATS = ("png", "svg", "pdf")

Array = np.ndarray


def class_legend(colors: Mapping[int, str], names: Mapping[int, str]) -> list[tuple[str, Any]]:
    """Return names and artists of the classes of a class map, and of the background."""
    from matplotlib.patches import Patch

    entries = [(names[index], Patch(color=color)) for index, color in colors.items()]
    return [*entries, ("background", Patch(color="#5a5a5a"))]


def explanation_panel(rows: Sequence[PanelRow], class_names: Mapping[int, str] | Sequence[str]) -> Figure:
    """Draw one panel: a row per image, in columns image, class map, heat map, mask and, where known, truth.

    Where patches were pruned, a column follows for each pruning layer: patches pruned there are violet, those pruned
    earlier dark. Of a multi-label model, heat maps of the two best objects take the place of heat map and mask.

    Args:
        rows: What to draw; the truth column is there if any row has a truth.
        class_names: Name by class index. A class without a name, such as the background, is drawn dim and grey. With
            more than 13 classes in the panel, colours repeat.

    Returns:
        A matplotlib figure; write it with `save_figure(figure, "explanations.png")`.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there are no rows, or sizes within a row differ.
    """
    if not rows:
        raise ValueError("`rows` must hold at least one image, got none.")
    matplotlib_module()
    names = name_by_index(class_names)
    rows = [row.shrunk() for row in rows]
    maps = [row.class_map for row in rows]
    colors = class_colors(maps, names)
    own_colors = object_colors([found for row in rows for found in row.objects or ()], names, maps)
    columns = _columns(rows, colors, own_colors)
    figure, axes = _grid_of_axes(len(rows), len(columns), [row.image for row in rows])
    for (heading, draw), line in zip(columns.items(), axes.T, strict=True):
        line[0].set_title(heading, fontsize=10, pad=6)
        for row, axis in zip(rows, line, strict=True):
            draw(axis, row)
    for row, axis in zip(rows, axes[:, 0], strict=True):
        axis.set_ylabel(plain_text(row.title), fontsize=8.5, rotation=0, ha="right", va="center", labelpad=8)
    has_pruned = any(row.cut_layers for row in rows)
    is_several = any(row.objects is not None for row in rows)
    _add_legends(figure, axes, colors, names, has_pruned, "probability" if is_several else "p(not background)")
    return figure


def _columns(
    rows: Sequence[PanelRow], colors: Mapping[int, str], own_colors: Mapping[str, str]
) -> dict[str, Callable[[Axes, PanelRow], None]]:
    """Return the function that draws each column, by its heading."""
    columns: dict[str, Callable[[Axes, PanelRow], None]] = {
        "image": lambda axis, row: _draw_image(axis, row, own_colors),
        "class map": lambda axis, row: _show(axis, overlay_class_map(row.image, row.class_map, colors)),
        "heat map": lambda axis, row: _show(axis, overlay_heatmap(row.image, row.heatmap, opacity=0.8)),
        "mask": _draw_mask,
    }
    if any(row.objects is not None for row in rows):
        del columns["mask"]
        columns["heat map"] = lambda axis, row: _draw_own_heatmap(axis, row, 0)
        if any(len(row.heatmaps) > 1 for row in rows):
            columns["next heat map"] = lambda axis, row: _draw_own_heatmap(axis, row, 1)
    if any(row.truth is not None for row in rows):
        columns["truth"] = _draw_truth
    for layer in sorted({layer for row in rows for layer in row.cut_layers}):
        # `layer=layer` binds the value now; a closure would see the last one
        columns[f"layer {layer}"] = lambda axis, row, layer=layer: _draw_kept(axis, row, layer)  # type: ignore[misc]
    return columns


def _show(axis: Axes, picture: Array) -> None:
    axis.imshow(picture, interpolation="nearest")


def _draw_image(axis: Axes, row: PanelRow, own_colors: Mapping[str, str]) -> None:
    _show(axis, as_rgb(row.image))
    if row.box is not None and row.objects is None:
        add_box(axis, row.box)
    for found in reversed((row.box is not None and row.objects) or ()):
        add_box(axis, found.box, color=own_colors[found.label])


def _draw_own_heatmap(axis: Axes, row: PanelRow, number: int) -> None:
    """Draw a heat map of a multi-label model, with what it shows below it."""
    if number < len(row.heatmaps):
        quantity, heatmap = row.heatmaps[number]
        _show(axis, overlay_heatmap(row.image, heatmap, opacity=0.8))
        axis.set_xlabel(plain_text(quantity), fontsize=7, labelpad=2)


def _draw_mask(axis: Axes, row: PanelRow) -> None:
    _show(axis, cut_out(row.image, row.mask))
    _add_outline(axis, row.mask, linewidth=0.8)


def _draw_truth(axis: Axes, row: PanelRow) -> None:
    if row.truth is not None:
        _show(axis, cut_out(row.image, row.truth))


def _draw_kept(axis: Axes, row: PanelRow, layer: int) -> None:
    if row.exit_layers is not None:
        _show(axis, kept_patches(row.image, row.exit_layers, layer))
        axis.set_xlabel(f"{(row.exit_layers > layer).mean():.0%} kept", fontsize=7, labelpad=2)


def add_box(axis: Axes, box: Sequence[int], linewidth: float = 1.0, color: str = "white") -> None:
    """Add a box as lines, coloured over black, on the edges of its outermost pixels."""
    from matplotlib.patches import Rectangle

    for width, edge in ((2.6 * linewidth, "black"), (linewidth, color)):
        corner, size = (box[0] - 0.5, box[1] - 0.5), (box[2] - box[0], box[3] - box[1])
        axis.add_patch(Rectangle(corner, *size, fill=False, edgecolor=edge, linewidth=width, joinstyle="miter"))


def add_objects(
    axis: Axes,
    objects: Sequence[DrawnObject],
    colors: Mapping[str, str],
    image_size: tuple[int, int],
    text_size: float,
    points: float,
    linewidth: float = 1.0,
    outlines: bool = False,
) -> None:
    """Add box and label of every object, or "nothing found", and on demand the outlines of the masks.

    Args:
        axis: Axes that show an image.
        objects: What was found.
        colors: Colour by label.
        image_size: `(height, width)` of the image.
        text_size: Height of a line of text, in pixels of the image.
        points: Size of a pixel of the image in the figure, in points.
        linewidth: Width of the coloured lines, in points.
        outlines: Whether the masks are outlined.
    """
    from matplotlib.patches import Rectangle

    for found in reversed(objects):  # the best one on top
        if outlines:
            _add_outline(axis, found.mask, linewidth, colors[found.label])
        add_box(axis, found.box, linewidth, colors[found.label])
    for text, color, (left, top), (right, bottom) in place_labels(objects, colors, image_size, text_size):
        corner, size = (left - 0.5, top - 0.5), (right - left, bottom - top)
        axis.add_patch(Rectangle(corner, *size, facecolor=color, edgecolor="black", linewidth=0.5, zorder=3))
        middle = ((left + right - 1) / 2, (top + bottom - 1) / 2)
        style: dict[str, Any] = {"ha": "center", "va": "center_baseline", "family": "DejaVu Sans", "zorder": 4}
        axis.text(*middle, plain_text(text), fontsize=text_size * points, color=text_color(color), **style)


def _add_outline(axis: Axes, mask: Array, linewidth: float = 1.0, color: str = OUTLINE_COLOR) -> None:
    """Add the line around a mask, along the edges of its pixels."""
    from matplotlib.collections import LineCollection

    # pixel 0 is drawn around x = 0: its edges are at -0.5 and 0.5
    lines = [[(x - 0.5, y - 0.5) for x, y in segment] for segment in outline_segments(mask)]
    for width, line_color in ((2.6 * linewidth, "black"), (linewidth, color)):
        axis.add_collection(LineCollection(lines, colors=line_color, linewidths=width, capstyle="projecting"))


def picture_figure(picture: Array, box: Sequence[int] | None = None, mask: Array | None = None) -> Figure:
    """Return a figure of one image without a margin, with a box and the outline of a mask as lines.

    Args:
        picture: `(height, width, 3)`, uint8, for instance from `overlay_heatmap`.
        box: `(x_min, y_min, x_max, y_max)`, half-open, in pixels.
        mask: `(height, width)`, bool.

    Returns:
        A matplotlib figure of one dot per pixel; `save_figure(figure, file, scale=4)` draws the lines four times as
        fine, SVG and PDF at any size.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If `picture` is not an image.
    """
    matplotlib_module()
    from matplotlib.figure import Figure

    rgb = as_rgb(picture)
    height, width = rgb.shape[:2]
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    axis.imshow(rgb, interpolation="none")  # SVG and PDF hold the pixels as they are; a canvas shows the nearest
    line_width = max(0.7, min(height, width) / 250)
    if mask is not None:
        _add_outline(axis, mask, line_width)
    if box is not None:
        add_box(axis, box, line_width)
    axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), aspect="auto")
    return figure


def method_panel(
    images: Sequence[Array], maps: Mapping[str, Sequence[Array]], truths: Sequence[Array | None]
) -> Figure:
    """Draw the maps of several methods for the same images: a column per image, a row per method.

    Args:
        images: `(height, width, 3)` or grey, uint8, one per column.
        maps: By method, one map per image of the image's size, any range; each is stretched to [0, 1] by itself.
        truths: True foreground of every image, bool, or None where it is not known.

    Returns:
        A matplotlib figure.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there are no images, or numbers or sizes differ.
    """
    if not images:
        raise ValueError("`images` must hold at least one image, got none.")
    matplotlib_module()
    # the maps of an image are shrunk like it
    shrunk = [shrink(*group) for group in zip(images, truths, *maps.values(), strict=True)]
    images, truths = [group[0] for group in shrunk], [group[1] for group in shrunk]
    maps = {name: [group[2 + index] for group in shrunk] for index, name in enumerate(maps)}
    rows = {"image": [as_rgb(image) for image in images]}
    if all(truth is not None for truth in truths):
        rows["truth"] = [cut_out(*pair) for pair in zip(images, truths, strict=True)]  # type: ignore[arg-type]
    stretched = {method: [_stretch(relevance) for relevance in values] for method, values in maps.items()}
    for method, values in stretched.items():
        pairs = zip(images, values, strict=True)
        rows[method] = [overlay_heatmap(image, relevance, opacity=0.8) for image, relevance in pairs]
    figure, axes = _grid_of_axes(len(rows), len(images), images)
    for (name, pictures), line in zip(rows.items(), axes, strict=True):
        for axis, picture in zip(line, pictures, strict=True):
            _show(axis, picture)
        line[0].set_ylabel(
            plain_text(name.replace("_", " ")), fontsize=8.5, rotation=0, ha="right", va="center", labelpad=8
        )
        if name in stretched:  # the rows of images and of true masks have no map
            for axis, relevance in zip(line, stretched[name], strict=True):
                if not relevance.any():
                    axis.set_xlabel("empty", fontsize=7, labelpad=1)
    figure.supxlabel("each map from its own least value (dark) to its largest (bright)", fontsize=7)
    return figure


def save_figure(figure: Figure, file: str | Path, scale: float = 1.0) -> None:
    """Write a figure as PNG, SVG or PDF, completely or not at all; the same figure gives the same bytes.

    Args:
        figure: Any figure of this package.
        file: Where to; its ending names the format.
        scale: Resolution over that of the figure, for PNG and for the bitmaps in SVG and PDF.

    Raises:
        ValueError: If the ending is another one, or `scale` is not positive.
    """
    suffix = Path(file).suffix.lower().removeprefix(".")
    if suffix not in _FIGURE_FORMATS:
        raise ValueError(f"`file` must end in {', '.join(_FIGURE_FORMATS)}, got {str(file)!r}.")
    if not scale > 0:
        raise ValueError(f"`scale` must be positive, got {scale}.")
    metadata: dict[str, dict[str, Any]] = {
        "png": {"Software": PICTURE_MARK},
        "svg": {"Creator": PICTURE_MARK, "Date": None},
        "pdf": {"Creator": PICTURE_MARK, "CreationDate": None},
    }
    # text is kept as text in an SVG, so it can be searched and read aloud; the salt makes its ids repeatable
    settings = {"svg.fonttype": "none", "svg.hashsalt": "transformers-ice"}
    with replaced(file) as temporary, matplotlib_module().rc_context(settings):
        figure.savefig(temporary, format=suffix, dpi=figure.dpi * scale, metadata=metadata[suffix])


def _stretch(values: Array) -> Array:
    """Stretch a map to [0, 1]; a mask of zeros and ones is unchanged, another constant map becomes 0."""
    array = np.nan_to_num(np.asarray(values, dtype=np.float32))
    if np.isin(array, (0, 1)).all():
        return array
    return (array - array.min()) / max(float(np.ptp(array)), 1e-12)


def _grid_of_axes(num_rows: int, num_columns: int, images: Sequence[Array]) -> tuple[Figure, Array]:
    """Return a figure and its axes; the cells have the shape of most images."""
    from matplotlib.figure import Figure

    ratio = float(np.clip(np.median([image.shape[0] / image.shape[1] for image in images]), 0.4, 2.5))

    # not through pyplot: no window, no backend, and no figure that is kept in memory
    figure = Figure(figsize=(_CELL_INCHES * num_columns + 1.3, _CELL_INCHES * ratio * num_rows + 1.1), dpi=150)
    figure.set_layout_engine("constrained", w_pad=0.03, h_pad=0.03, wspace=0.02, hspace=0.02)
    axes = figure.subplots(num_rows, num_columns, squeeze=False)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
    return figure, axes


def _add_legends(
    figure: Figure, axes: Array, colors: Mapping[int, str], names: Mapping[int, str], has_pruned: bool, quantity: str
) -> None:
    """Add the scale of the heat maps and the names of the colours below the panel."""
    from matplotlib.patches import Patch

    bottom = -0.22 if axes[-1, 2].get_xlabel() else -0.16
    add_heat_scale(figure, quantity, cax=axes[-1, 2].inset_axes((0.05, bottom, 0.9, 0.06)))
    entries = class_legend(colors, names)
    if has_pruned:
        entries.append(("pruned here", Patch(facecolor=PRUNED_COLOR, alpha=0.6)))
    add_legend(
        figure,
        entries,
        loc="outside lower center",
        ncols=min(len(entries), 5),
        fontsize=8,
        frameon=False,
        handlelength=1,
        handleheight=1,
        columnspacing=1.4,
    )
