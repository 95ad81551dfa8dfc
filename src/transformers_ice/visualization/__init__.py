# SPDX-License-Identifier: Apache-2.0
"""Figures and overlays of explanations, from arrays; no model runs here.

`overlays` paints on the pixels of an image and returns an array of the same size, `objects` does so with the objects
of multi-label models; `panels` arranges overlays, lines
and legends in a matplotlib figure, `charts` draws numbers; `colors` defines the colours; `results` writes one result
of `pipeline("patch-explanation")` to an image file.
"""

from .charts import score_bars, speed_plot
from .colors import class_colors
from .objects import DrawnObject, object_colors, objects_of, overlay_objects
from .overlays import (
    cut_out,
    draw_box,
    kept_patches,
    outline_mask,
    outline_segments,
    overlay_class_map,
    overlay_heatmap,
)
from .panels import PanelRow, explanation_panel, method_panel, picture_figure, save_figure
from .results import PICTURES, class_map_figure, heatmap_figure, save_result


__all__ = [
    "PICTURES",
    "DrawnObject",
    "PanelRow",
    "class_colors",
    "class_map_figure",
    "cut_out",
    "draw_box",
    "explanation_panel",
    "heatmap_figure",
    "kept_patches",
    "method_panel",
    "object_colors",
    "objects_of",
    "outline_mask",
    "outline_segments",
    "overlay_class_map",
    "overlay_heatmap",
    "overlay_objects",
    "picture_figure",
    "save_figure",
    "save_result",
    "score_bars",
    "speed_plot",
]
