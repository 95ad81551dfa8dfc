# SPDX-License-Identifier: Apache-2.0
"""Figure of a card: the model's maps of drawn scenes, which need no licence of an image, or of images given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

from ..console.output_files import replaced
from ..data.scenes import SCENE_CLASSES, Scene, draw_scene
from ..explainers import explain
from ..ice_deit.configuration_ice_deit import as_pair
from ..ice_deit.patch_maps import ImageGeometry, bilinear_to_image
from ..visualization import PanelRow, explanation_panel, method_panel


__all__ = ["draw_explanations", "write_example_image"]

# the best of those that explain a classifier at the cost of one backward pass
_CLASSIFIER_METHOD = "generic_attention"
_DPI = 70


def write_example_image(file: Path, index: int = 0, image_size: int = 192, inside: Path | None = None) -> None:
    """Draw one held-out scene, for the snippets of a card; `file` must not lead out of `inside` through a link."""
    with replaced(file, inside) as temporary:
        Image.fromarray(draw_scene(index, "test", image_size).image).save(temporary, optimize=True)


def draw_explanations(folder: Path, file: Path, num_scenes: int = 3, images: Sequence[Path] = ()) -> None:
    """Draw a model's maps of held-out scenes, some 100 kB, into its folder, whose own code never runs.

    With `images`, which only an ICE model takes, of these instead: photographs that nobody has outlined.
    """
    model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=False).eval()
    if images:
        figure = explanation_panel(_image_rows(folder, images), model.config.id2label)
    else:
        scenes = [draw_scene(index, "test", as_pair(model.config.image_size)) for index in range(num_scenes)]
        if hasattr(model.base_model, "patch_head"):
            figure = explanation_panel(_explained_rows(folder, scenes), model.config.id2label)
        else:
            figure = _method_figure(model, AutoImageProcessor.from_pretrained(folder), scenes)
    with replaced(file, inside=folder) as temporary:
        # no version of matplotlib in the file: the same figure is the same file
        figure.savefig(temporary, dpi=_DPI, metadata={"Software": None})


def _explained_rows(folder: Path, scenes: list[Scene]) -> list[PanelRow]:
    explainer: Any = pipeline("patch-explanation", model=str(folder), trust_remote_code=False)  # type: ignore[call-overload]
    rows = []
    for scene in scenes:
        found, truth_label = explainer(Image.fromarray(scene.image)), SCENE_CLASSES[scene.label]
        rows.append(PanelRow.from_result(scene.image, found, scene.mask, truth_label, details=False))
    return rows


def _image_rows(folder: Path, images: Sequence[Path]) -> list[PanelRow]:
    explainer: Any = pipeline("patch-explanation", model=str(folder), trust_remote_code=False)  # type: ignore[call-overload]
    pixels = [np.asarray(Image.open(image).convert("RGB")) for image in images]
    return [PanelRow.from_result(own, explainer(Image.fromarray(own)), details=False) for own in pixels]


def _method_figure(model: Any, image_processor: Any, scenes: list[Scene]) -> Any:
    images = [Image.fromarray(scene.image) for scene in scenes]
    pixel_values = image_processor(images, return_tensors="pt")["pixel_values"]
    height, width = as_pair(model.config.image_size)
    geometry = ImageGeometry.from_resize((height, width), (height, width))
    maps = [
        np.asarray(bilinear_to_image(grid.detach() / grid.max().clamp(min=1e-12), geometry)).clip(0, 1)
        for grid in explain(model, pixel_values, method=_CLASSIFIER_METHOD)
    ]
    return method_panel(
        [scene.image for scene in scenes], {_CLASSIFIER_METHOD: maps}, [scene.mask for scene in scenes]
    )
