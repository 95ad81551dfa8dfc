# SPDX-License-Identifier: Apache-2.0
"""Panels of overlays with lines, headings and legends, as matplotlib figures; written as PNG, SVG or PDF."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..console.output_files import PICTURE_MARK, replaced
from .colors import OUTLINE_COLOR, PRUNED_COLOR, as_rgb, class_colors, matplotlib_module, name_by_index
from .overlays import cut_out, kept_patches, outline_segments, overlay_class_map, overlay_heatmap
from .text import add_heat_scale, add_legend, plain_text


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "PanelRow",
    "SupportsToDict",
    "as_mapping",
    "box_of",
    "explanation_panel",
    "method_panel",
    "picture_figure",
    "save_figure",
]

_CELL_INCHES = 1.45
_LONGEST_SIDE = 2048  # pixels of an image in a figure of several
_FIGURE_FORMATS = ("png", "svg", "pdf")

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
    """

    image: Array
    class_map: Array
    heatmap: Array
    mask: Array
    truth: Array | None = None
    title: str = ""
    box: Sequence[int] | None = None
    exit_layers: Array | None = None

    @classmethod
    def from_result(
        cls,
        image: Array,
        result: Mapping[str, Any] | SupportsToDict,
        truth: Array | None = None,
        truth_label: str | None = None,
        details: bool = True,
    ) -> PanelRow:
        """Return the row of one explanation, with its label, score and, if it is another one, the true label as title.

        Args:
            image: The upright image, `(height, width, 3)`, uint8.
            result: A `PatchExplanation` of the image, or the result of `pipeline("patch-explanation")` for it.
            truth: True foreground, `(height, width)`, bool, if known.
            truth_label: Name of the true class, if known.
            details: Whether box and pruned patches are drawn, or the maps alone.
        """
        result = as_mapping(result)
        title = f"{result['label']}\n{result['score']:.2f}"
        if truth_label not in (None, result["label"]):
            title += f"\n(true: {truth_label})"
        row = cls(image, result["class_map"], result["heatmap"], result["mask"], truth=truth, title=title)
        if not details:
            return row
        return replace(row, box=box_of(result), exit_layers=result.get("exit_layers"))

    def shrunk(self) -> PanelRow:
        """Return the row with at most 2048 rows and columns of pixels."""
        names = ("image", "class_map", "heatmap", "mask", "truth", "exit_layers")
        arrays = shrink(*(getattr(self, name) for name in names))
        step = shrinking_step(self.image)
        box = self.box and [self.box[0] // step, self.box[1] // step, -(-self.box[2] // step), -(-self.box[3] // step)]
        return replace(self, **dict(zip(names, arrays, strict=True)), box=box)

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
    return [None if array is None else array[::step, ::step] for array in (image, *maps)]


def class_legend(colors: Mapping[int, str], names: Mapping[int, str]) -> list[tuple[str, Any]]:
    """Return names and artists of the classes of a class map, and of the background."""
    from matplotlib.patches import Patch

    entries = [(names[index], Patch(color=color)) for index, color in colors.items()]
    return [*entries, ("background", Patch(color="#5a5a5a"))]


def explanation_panel(rows: Sequence[PanelRow], class_names: Mapping[int, str] | Sequence[str]) -> Figure:
    """Draw one panel: a row per image, in columns image, class map, heat map, mask and, where known, truth.

    Where patches were pruned, a column follows for each pruning layer: patches pruned there are violet, those pruned
    earlier dark.

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
    colors = class_colors([row.class_map for row in rows], names)
    columns = _columns(rows, colors)
    figure, axes = _grid_of_axes(len(rows), len(columns), [row.image for row in rows])
    for (heading, draw), line in zip(columns.items(), axes.T, strict=True):
        line[0].set_title(heading, fontsize=10, pad=6)
        for row, axis in zip(rows, line, strict=True):
            draw(axis, row)
    for row, axis in zip(rows, axes[:, 0], strict=True):
        axis.set_ylabel(plain_text(row.title), fontsize=8.5, rotation=0, ha="right", va="center", labelpad=8)
    has_pruned = any(row.cut_layers for row in rows)
    _add_legends(figure, axes, colors, names, has_pruned)
    return figure


def _columns(rows: Sequence[PanelRow], colors: Mapping[int, str]) -> dict[str, Callable[[Axes, PanelRow], None]]:
    """Return the function that draws each column, by its heading."""
    columns: dict[str, Callable[[Axes, PanelRow], None]] = {
        "image": _draw_image,
        "class map": lambda axis, row: _show(axis, overlay_class_map(row.image, row.class_map, colors)),
        "heat map": lambda axis, row: _show(axis, overlay_heatmap(row.image, row.heatmap, opacity=0.8)),
        "mask": _draw_mask,
    }
    if any(row.truth is not None for row in rows):
        columns["truth"] = _draw_truth
    for layer in sorted({layer for row in rows for layer in row.cut_layers}):
        # `layer=layer` binds the value now; a closure would see the last one
        columns[f"layer {layer}"] = lambda axis, row, layer=layer: _draw_kept(axis, row, layer)  # type: ignore[misc]
    return columns


def _show(axis: Axes, picture: Array) -> None:
    axis.imshow(picture, interpolation="nearest")


def _draw_image(axis: Axes, row: PanelRow) -> None:
    _show(axis, as_rgb(row.image))
    if row.box is not None:
        add_box(axis, row.box)


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


def add_box(axis: Axes, box: Sequence[int], linewidth: float = 1.0) -> None:
    """Add a box as lines, white over black, on the edges of its outermost pixels."""
    from matplotlib.patches import Rectangle

    for width, color in ((2.6 * linewidth, "black"), (linewidth, "white")):
        corner, size = (box[0] - 0.5, box[1] - 0.5), (box[2] - box[0], box[3] - box[1])
        axis.add_patch(Rectangle(corner, *size, fill=False, edgecolor=color, linewidth=width, joinstyle="miter"))


def _add_outline(axis: Axes, mask: Array, linewidth: float = 1.0) -> None:
    """Add the line around a mask, along the edges of its pixels."""
    from matplotlib.collections import LineCollection

    # pixel 0 is drawn around x = 0: its edges are at -0.5 and 0.5
    lines = [[(x - 0.5, y - 0.5) for x, y in segment] for segment in outline_segments(mask)]
    for width, color in ((2.6 * linewidth, "black"), (linewidth, OUTLINE_COLOR)):
        axis.add_collection(LineCollection(lines, colors=color, linewidths=width, capstyle="projecting"))


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
    _show(axis, rgb)
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
    figure: Figure, axes: Array, colors: Mapping[int, str], names: Mapping[int, str], has_pruned: bool
) -> None:
    """Add the scale of the heat maps and the names of the colours below the panel."""
    from matplotlib.patches import Patch

    add_heat_scale(figure, "p(not background)", cax=axes[-1, 2].inset_axes((0.05, -0.16, 0.9, 0.06)))
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
