# SPDX-License-Identifier: Apache-2.0
"""Figures of the page, each with a caption."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..visualization import (
    class_colors,
    cut_out,
    draw_box,
    kept_patches,
    object_colors,
    objects_of,
    outline_mask,
    overlay_class_map,
    overlay_heatmap,
    overlay_objects,
)
from .analysis import Explanation, LoadedModel, PreparedImage
from .methods import MethodMap
from .pruning import PruningResult


__all__ = [
    "VIEWS",
    "Picture",
    "View",
    "draw_class_map",
    "draw_cut_out",
    "draw_heatmap",
    "draw_kept_patches",
    "draw_mask",
    "draw_method",
]

Array = np.ndarray


@dataclass(frozen=True)
class Picture:
    """Figure with its caption."""

    pixels: Array  # (height, width, 3), uint8
    caption: str  # the result in a sentence or two; also the alt text
    legend: Mapping[str, str] | None = None  # colour by label

    def encode(self, longest_side: int | None = None) -> bytes:
        """Return a PNG file, reduced where a side is longer."""
        image = Image.fromarray(self.pixels)
        if longest_side is not None:
            image.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, format="PNG", compress_level=1)  # a fifth of the default's time, a fifth more bytes
        return buffer.getvalue()


def draw_heatmap(loaded: LoadedModel, image: PreparedImage, explanation: Explanation) -> Picture:
    """Draw the probability of the target over the image.

    The mask compares background with the best class, the heat map with all of them together, so that they differ.
    """
    heatmap, target = explanation.shown.heatmap, explanation.target
    name = "the foreground" if target is None else f"“{loaded.class_names[target]}”"
    caption = (
        f"Heat map: probability of {name}, {_percent(heatmap.mean())} on average over the picture; the highest is "
        f"{heatmap.max():.2f}."
    )
    if heatmap.max() >= 0.5:
        caption += f" It is strongest {_describe_position(heatmap)}."
    return Picture(overlay_heatmap(image.shown, heatmap), caption)


def draw_class_map(loaded: LoadedModel, image: PreparedImage, explanation: Explanation) -> Picture:
    """Draw the predicted class of each patch."""
    classes, background = explanation.shown.class_map, loaded.background_index
    colors = class_colors([classes], loaded.class_names)
    shares = _percents({index: float((classes == index).mean()) for index in (*colors, background)})
    found = ", ".join(f"“{loaded.class_names[index]}” {shares[index]}" for index in colors)
    caption = f"Class map: {found + ', ' if found else ''}background {shares[background]} of the picture."
    legend = {f"{loaded.class_names[index]} · {shares[index]}": color for index, color in colors.items()}
    legend[f"background · {shares[background]}"] = "#5a5a5a"
    return Picture(overlay_class_map(image.shown, classes, colors), caption, legend)


def draw_mask(loaded: LoadedModel, image: PreparedImage, explanation: Explanation) -> Picture:
    """Draw the outline of the foreground, and the box around its largest part."""
    mask = explanation.shown.mask
    if explanation.shown.objects is not None:
        return _draw_objects(loaded, image, explanation)
    pixels = outline_mask(image.shown, mask)
    if explanation.shown.box is None or explanation.box is None:
        return Picture(pixels, "Mask: no foreground, every patch is background.")
    left, top, right, bottom = explanation.box
    caption = (
        f"Mask and box: the mask covers {_percent(mask.mean())} of the picture. The box is from column "
        f"{left} to {right} and from row {top} to {bottom} of {image.size[1]} x {image.size[0]} pixels."
    )
    return Picture(draw_box(pixels, explanation.shown.box), caption)


def _draw_objects(loaded: LoadedModel, image: PreparedImage, explanation: Explanation) -> Picture:
    """Draw mask, box, label and score of every object of a multi-label model."""
    objects = objects_of(explanation.shown.to_dict()) or []
    colors = object_colors(objects, loaded.class_names, [explanation.shown.class_map])
    pixels = overlay_objects(image.shown, objects, colors)
    if not objects:
        return Picture(pixels, "Mask and box: nothing found, no class reaches its threshold.")
    parts = [
        f"“{found.label}” {_percent(found.mask.mean())}, columns {left} to {right}, rows {top} to {bottom}"
        for found, (left, top, right, bottom) in zip(objects, explanation.object_boxes, strict=True)
    ]
    caption = (
        f"Masks and boxes of {len(objects)} of the classes, each with its part of the picture and its box in the "
        f"{image.size[1]} x {image.size[0]} pixels: {'; '.join(parts)}."
    )
    return Picture(pixels, caption, {f"{found.label} · {found.score:.2f}": colors[found.label] for found in objects})


def draw_cut_out(loaded: LoadedModel, image: PreparedImage, explanation: Explanation) -> Picture:
    """Draw the foreground alone; the rest is dim."""
    mask, classes = explanation.shown.mask, np.unique(explanation.shown.class_map[explanation.shown.mask])
    names = f"“{loaded.class_names[int(classes[0])]}”" if len(classes) == 1 else f"{len(classes)} classes"
    caption = f"Cut-out: {_percent(mask.mean())} of the picture is kept in colour, as {names}; the rest is dimmed."
    if not mask.any():
        is_several = explanation.shown.objects is not None
        reason = "no class reaches its threshold" if is_several else "every patch is background"
        caption = f"Cut-out: nothing is kept in colour, {reason}."
    return Picture(cut_out(image.shown, explanation.shown.mask), caption)


@dataclass(frozen=True)
class View:
    """Kind of map that the page shows of an explanation."""

    name: str  # id of its element on the page
    title: str  # label above it
    alt_text: str  # description for screen readers, until there is a caption
    draw: Callable[[LoadedModel, PreparedImage, Explanation], Picture]
    shows_scale: bool = False  # whether the scale of heat maps is shown below it

    @property
    def caption_name(self) -> str:
        """Id of the caption's element on the page."""
        return f"{self.name}-caption"


# In the order of the page; the first is next to the prediction. A new view is one entry here.
VIEWS = (
    View("heat", "Heat map", "Heat map: where the target is likely", draw_heatmap, shows_scale=True),
    View("classes", "Class map", "Class map: which class each patch predicts", draw_class_map),
    View("mask", "Mask and box", "Mask and box: outline of the foreground, box of its largest part", draw_mask),
    View("cutout", "Cut-out", "Cut-out: the foreground alone", draw_cut_out),
)


def draw_method(image: PreparedImage, result: MethodMap, foreground: Array) -> Picture:
    """Draw the map of another method, with the fraction of its weight on the foreground mask of ICE."""
    if result.heatmap is None:
        grey = overlay_heatmap(image.shown, np.zeros(image.shown_size, dtype=np.float32))
        return Picture(grey, f"{result.name}: no map. {result.problem}.")
    inside = float(result.heatmap[foreground].sum() / max(float(result.heatmap.sum()), 1e-12))
    caption = f"{result.name} · {result.milliseconds:.0f} ms · {_percent(inside)} of its weight on the mask of ICE"
    caption += f" (which is {_percent(foreground.mean())} of the picture)"
    if not result.knows_target:
        caption += " · independent of the class"
    return Picture(overlay_heatmap(image.shown, result.heatmap), caption)


def draw_kept_patches(image: PreparedImage, result: PruningResult) -> list[Picture]:
    """Draw the patches kept after each pruning step; those pruned at it turn violet, earlier ones are dim."""
    exits = result.exit_layers
    pictures = []
    for layer in result.pruning_steps or [result.num_layers - 1]:
        num_kept = int((exits > layer).sum())
        caption = f"Pruning at layer {layer} · {num_kept} of {exits.size} patches are kept"
        pictures.append(Picture(kept_patches(image.shown, result.shown_exit_layers, layer), caption))
    return pictures


def _percent(share: Any) -> str:
    return f"{100 * float(share):.0f} %"


def _percents(shares: Mapping[int, float]) -> dict[int, str]:
    """Return shares of one whole as percentages that add up to 100: the largest remainders are rounded up."""
    whole = {key: int(100 * share + 1e-9) for key, share in shares.items()}
    by_remainder = sorted(shares, key=lambda key: whole[key] - 100 * shares[key])
    for key in by_remainder[: 100 - sum(whole.values())]:
        whole[key] += 1
    return {key: f"{number} %" for key, number in whole.items()}


def _describe_position(heatmap: Array) -> str:
    """Describe the position of a map's maximum."""
    row, column = np.unravel_index(int(heatmap.argmax()), heatmap.shape)
    vertical = ("at the top", "in the middle", "at the bottom")[3 * int(row) // heatmap.shape[0]]
    horizontal = ("left", "centre", "right")[3 * int(column) // heatmap.shape[1]]
    if horizontal == "centre":
        return "in the centre" if vertical == "in the middle" else vertical
    return f"{vertical}, {horizontal}"
