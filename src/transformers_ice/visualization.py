# SPDX-License-Identifier: Apache-2.0
"""Pictures of explanations, from arrays; no model runs here.

Colours: heat maps use a map whose lightness grows evenly with the value ("inferno"), so it reads the same in grey and
for colour-blind eyes; classes use the palette of Okabe and Ito, and their names are written beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "PanelRow",
    "cut_out",
    "draw_box",
    "explanation_panel",
    "method_panel",
    "overlay_class_map",
    "overlay_heatmap",
    "score_bars",
    "speed_plot",
]

# Okabe and Ito, "Color Universal Design", without black; where they run out, colours of Paul Tol's "muted" scheme
_PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
_FURTHER_COLORS = ("#882255", "#999933", "#332288", "#DDCC77", "#117733", "#88CCEE")
_HEAT_COLORS = "inferno"
_DIMMED = 0.22
_CELL_INCHES = 1.45

Array = np.ndarray


@dataclass(frozen=True)
class PanelRow:
    """Hold the arrays of one row of `explanation_panel`; all of one `(height, width)`.

    Attributes:
        image: `(height, width, 3)`, uint8, or `(height, width)` grey, uint8.
        class_map: Class index of every pixel, int.
        heatmap: Relevance of every pixel, float, in [0, 1].
        mask: Foreground that was found, bool.
        truth: True foreground, bool, if known.
        title: What was predicted, written beside the row.
    """

    image: Array
    class_map: Array
    heatmap: Array
    mask: Array
    truth: Array | None = None
    title: str = ""


def overlay_heatmap(image: Array, heatmap: Array, opacity: float = 0.65) -> Array:
    """Lay a heat map over an image.

    Args:
        image: `(height, width, 3)` or `(height, width)` grey, uint8.
        heatmap: `(height, width)`, in [0, 1]: dark is 0, bright is 1.
        opacity: Share of the heat map in the colours, in [0, 1].

    Returns:
        `(height, width, 3)`, uint8.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If sizes differ, or the image, the heat map or the opacity is out of range.

    Example:
        >>> Image.fromarray(overlay_heatmap(np.asarray(image), result["heatmap"])).save("overlay.png")
    """
    rgb, values = _as_rgb(image), np.asarray(heatmap, dtype=np.float32)
    _check_size("heatmap", values, rgb)
    if not (values.min() >= 0 and values.max() <= 1):  # so written that NaN is refused too
        raise ValueError(
            f"`heatmap` must lie in [0, 1], got values from {values.min():.3g} to {values.max():.3g}. "
            "Divide attention maps by their maximum first."
        )
    if not 0 <= opacity <= 1:
        raise ValueError(f"`opacity` must lie in [0, 1], got {opacity}.")
    colors = _matplotlib().colormaps[_HEAT_COLORS](values)[..., :3] * 255
    # Grey below the colours: the picture's own colours would read as heat.
    return _to_uint8((1 - opacity) * _to_grey(rgb) + opacity * colors)


def overlay_class_map(image: Array, class_map: Array, colors: Mapping[int, str], opacity: float = 0.7) -> Array:
    """Colour the pixels of an image by their class; classes without a colour (the background) stay dim and grey.

    Args:
        image: `(height, width, 3)` or `(height, width)` grey, uint8.
        class_map: `(height, width)`, int.
        colors: Colour by class index, as matplotlib writes colours.
        opacity: Share of the class colour, in [0, 1].

    Returns:
        `(height, width, 3)`, uint8.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If sizes differ.
    """
    rgb, classes = _as_rgb(image), np.asarray(class_map)
    _check_size("class_map", classes, rgb)
    grey = _to_grey(rgb)
    result = np.repeat(grey * 0.45, 3, axis=2)
    for index, color in colors.items():
        tint = 255 * np.array(_matplotlib().colors.to_rgb(color))
        painted = (1 - opacity) * grey + opacity * tint
        result = np.where((classes == index)[..., None], painted, result)
    return _to_uint8(result)


def cut_out(image: Array, mask: Array) -> Array:
    """Keep the pixels of a mask and dim the others.

    Args:
        image: `(height, width, 3)` or `(height, width)` grey, uint8.
        mask: `(height, width)`, bool, True stays.

    Returns:
        `(height, width, 3)`, uint8.

    Raises:
        ValueError: If sizes differ.
    """
    rgb, kept = _as_rgb(image), np.asarray(mask, dtype=bool)
    _check_size("mask", kept, rgb)
    return np.where(kept[..., None], rgb, _to_uint8(_DIMMED * _to_grey(rgb)))


def draw_box(image: Array, box: Sequence[int]) -> Array:
    """Draw a box whose line can be seen on any picture: white between black.

    Args:
        image: `(height, width, 3)` or `(height, width)` grey, uint8.
        box: `(x_min, y_min, x_max, y_max)`, half-open, in pixels.

    Returns:
        `(height, width, 3)`, uint8, a copy.
    """
    canvas = Image.fromarray(_as_rgb(image).copy())
    draw = ImageDraw.Draw(canvas)
    left, top, right, bottom = box[0], box[1], box[2] - 1, box[3] - 1
    thickness = max(1, min(canvas.size) // 150)
    for inset, color in ((0, "black"), (thickness, "white"), (2 * thickness, "black")):
        if right - left >= 2 * inset and bottom - top >= 2 * inset:
            corners = (left + inset, top + inset, right - inset, bottom - inset)
            draw.rectangle(corners, outline=color, width=thickness)
    return np.asarray(canvas)


def explanation_panel(rows: Sequence[PanelRow], class_names: Mapping[int, str] | Sequence[str]) -> Figure:
    """Draw one panel: a row per image, in columns image, class map, heat map, mask and, where known, truth.

    Args:
        rows: What to draw; the truth column is there if any row has a truth.
        class_names: Name by class index. A class without a name, such as the background, is drawn dim and grey. With
            more than 13 classes in the picture, colours repeat.

    Returns:
        A matplotlib figure; write it with `figure.savefig("explanations.png")`.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there are no rows, or sizes within a row differ.
    """
    if not rows:
        raise ValueError("`rows` must hold at least one image, got none.")
    _matplotlib()
    names = dict(class_names) if isinstance(class_names, Mapping) else dict(enumerate(class_names))
    colors = _class_colors(rows, names)
    headings = ["image", "class map", "heat map", "mask"]
    if any(row.truth is not None for row in rows):
        headings.append("truth")
    figure, axes = _grid_of_axes(len(rows), len(headings))
    for axis, heading in zip(axes[0], headings, strict=True):
        axis.set_title(heading, fontsize=10, pad=6)
    for row, line in zip(rows, axes, strict=True):
        for axis, picture in zip(line, _pictures(row, colors), strict=False):  # a row may lack its truth
            axis.imshow(picture, interpolation="nearest")
        line[0].set_ylabel(row.title, fontsize=8.5, rotation=0, ha="right", va="center", labelpad=8)
    _add_legends(figure, axes, {names[index]: color for index, color in colors.items()})
    return figure


def method_panel(
    images: Sequence[Array], maps: Mapping[str, Sequence[Array]], truths: Sequence[Array | None]
) -> Figure:
    """Draw what several methods say about the same images: a column per image, a row per method.

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
    _matplotlib()
    rows = {"image": [_as_rgb(image) for image in images]}
    if all(truth is not None for truth in truths):
        rows["truth"] = [cut_out(*pair) for pair in zip(images, truths, strict=True)]  # type: ignore[arg-type]
    for method, values in maps.items():
        pairs = zip(images, values, strict=True)
        rows[method] = [overlay_heatmap(image, _stretch(relevance), opacity=0.8) for image, relevance in pairs]
    figure, axes = _grid_of_axes(len(rows), len(images))
    for (name, pictures), line in zip(rows.items(), axes, strict=True):
        for axis, picture in zip(line, pictures, strict=True):
            axis.imshow(picture, interpolation="nearest")
        line[0].set_ylabel(name.replace("_", " "), fontsize=8.5, rotation=0, ha="right", va="center", labelpad=8)
    return figure


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
    _matplotlib()
    from matplotlib.figure import Figure

    num_bars = max(len(bars) for bars in scores.values())
    columns = min(3, len(headings))
    rows = -(-len(headings) // columns)
    figure = Figure(figsize=(4.2 * columns, rows * (0.9 + 0.19 * num_bars)), dpi=130, layout="constrained")
    # a list: `flat` is an iterator, which would go on where the loop has left it
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, (name, heading) in zip(axes, headings.items(), strict=False):
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
    _matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(points), 4.2), dpi=130, layout="constrained")
    for axis, (heading, models) in zip(figure.subplots(1, len(points), squeeze=False)[0], points.items(), strict=True):
        for (name, (speed, accuracy)), color in zip(models.items(), cycle(_PALETTE)):
            axis.scatter(speed, 100 * accuracy, color=color, label=name)
        axis.set(title=heading, xlabel="images per second", ylabel="top-1 accuracy (%)")
        axis.legend(fontsize=7)
    return figure


def _draw_bars(axis: Axes, bars: Mapping[str, tuple[float, float, float]], heading: str) -> None:
    names, values = list(bars), np.array(list(bars.values()))
    errors = np.nan_to_num(np.abs(values[:, 1:] - values[:, :1])).T
    colors = [_PALETTE[5] if "ice" in name.split(": ")[-1] else _PALETTE[4] for name in names]
    axis.barh(range(len(names)), values[:, 0], xerr=errors, color=colors, height=0.72, error_kw={"lw": 0.8})
    axis.set_yticks(range(len(names)), names, fontsize=6.5)
    axis.invert_yaxis()
    axis.tick_params(axis="x", labelsize=6.5)
    axis.set_title(heading, fontsize=8.5)
    axis.spines[["top", "right"]].set_visible(False)


def _stretch(values: Array) -> Array:
    """Stretch a map to [0, 1]; a constant one becomes 0."""
    array = np.nan_to_num(np.asarray(values, dtype=np.float32))
    return (array - array.min()) / max(float(np.ptp(array)), 1e-12)


def _pictures(row: PanelRow, colors: Mapping[int, str]) -> list[Array]:
    pictures = [
        _as_rgb(row.image),
        overlay_class_map(row.image, row.class_map, colors),
        overlay_heatmap(row.image, row.heatmap, opacity=0.8),
        cut_out(row.image, row.mask),
    ]
    return pictures if row.truth is None else [*pictures, cut_out(row.image, row.truth)]


def _class_colors(rows: Sequence[PanelRow], names: Mapping[int, str]) -> dict[int, str]:
    """Return a colour for every class in the maps, those of the largest areas first."""
    found, areas = np.unique(np.concatenate([np.ravel(row.class_map) for row in rows]), return_counts=True)
    order = [int(index) for index in found[np.argsort(-areas, kind="stable")] if int(index) in names]
    return dict(zip(order, cycle((*_PALETTE, *_FURTHER_COLORS)), strict=False))


def _grid_of_axes(num_rows: int, num_columns: int) -> tuple[Figure, Array]:
    from matplotlib.figure import Figure

    # not through pyplot: no window, no backend, and no figure that stays in memory
    figure = Figure(figsize=(_CELL_INCHES * num_columns + 1.3, _CELL_INCHES * num_rows + 1.1), dpi=150)
    figure.set_layout_engine("constrained", w_pad=0.03, h_pad=0.03, wspace=0.02, hspace=0.02)
    axes = figure.subplots(num_rows, num_columns, squeeze=False)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
    return figure, axes


def _add_legends(figure: Figure, axes: Array, colors: Mapping[str, str]) -> None:
    """Add the scale of the heat maps and the names of the class colours below the panel."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.patches import Patch

    scale: Axes = axes[-1, 2].inset_axes((0.05, -0.16, 0.9, 0.06))
    bar = figure.colorbar(ScalarMappable(cmap=_HEAT_COLORS), cax=scale, orientation="horizontal", ticks=[0, 1])
    bar.ax.tick_params(labelsize=7, length=2, pad=1)
    bar.set_label("p(not background)", fontsize=7, labelpad=1)
    bar.outline.set_visible(False)  # type: ignore[operator]
    handles = [Patch(color=color, label=name) for name, color in colors.items()]
    handles.append(Patch(color="#5a5a5a", label="background"))
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(len(handles), 5),
        fontsize=8,
        frameon=False,
        handlelength=1,
        handleheight=1,
        columnspacing=1.4,
    )


def _matplotlib() -> Any:
    try:
        import matplotlib
        import matplotlib.colors
    except ImportError as error:
        raise ImportError("Pictures need matplotlib: pip install transformers-ice[viz]") from error
    return matplotlib


def _as_rgb(image: Array) -> Array:
    array = np.asarray(image)
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise ValueError(
            "`image` must be uint8 of shape (height, width, 3) or (height, width), got "
            f"{array.dtype} of shape {array.shape}. Use `np.asarray(image.convert('RGB'))`."
        )
    return array if array.ndim == 3 else np.repeat(array[..., None], 3, axis=2)


def _check_size(name: str, array: Array, image: Array) -> None:
    if array.shape != image.shape[:2]:
        raise ValueError(f"`{name}` must have the size {image.shape[:2]} of the image, got {array.shape}.")


def _to_grey(rgb: Array) -> Array:
    """Return the luma of an image as `(height, width, 1)`, float32, in [0, 255] (ITU-R BT.601, as PIL)."""
    return (rgb.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32))[..., None]


def _to_uint8(values: Array) -> Array:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)
