# SPDX-License-Identifier: Apache-2.0
"""Explanation of one image by one model, as arrays and numbers; nothing is drawn here."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor

from ..data.scenes import SCENE_CLASSES
from ..explainers.class_scores import class_probabilities
from ..ice_deit.explanation_ice_deit import ImagePatches, PatchExplanation, read_patch_logits
from ..ice_deit.modeling_ice_deit import IceDeiTForImageClassification
from ..inference import optimize_for_inference, processed_size
from ..model_names import resolve_ice_model_name


__all__ = ["Explanation", "LoadedModel", "PreparedImage", "explain_image", "load_model", "prepare_image"]

NUM_SCORES = 5
_SHOWN_SIDES = (640, 1280)  # images are shown with a longer side in this range

Array = np.ndarray


@dataclass(frozen=True)
class LoadedModel:
    """Model that is ready to explain, with the folder or Hub id that it came from."""

    name: str
    model: IceDeiTForImageClassification  # in evaluation mode
    processor: Any
    fast_model: Any = None  # the same model optimized, which explains pictures

    @property
    def answering(self) -> Any:
        """The model that explains pictures."""
        return self.model if self.fast_model is None else self.fast_model

    @property
    def class_names(self) -> dict[int, str]:
        """Names by class index, without background."""
        config = self.model.config
        names: Any = config.id2label
        return {index: str(names[index]) for index in range(config.num_labels)}

    @property
    def title(self) -> str:
        """Name for visitors: a Hub id, or the last part of a folder, whose path is nobody's business."""
        return Path(self.name).resolve().name if os.path.isdir(self.name) else self.name

    @property
    def knows_scenes(self) -> bool:
        """Whether the classes are those of the scenes that this package draws."""
        return set(self.class_names.values()) == set(SCENE_CLASSES)

    @property
    def background_index(self) -> int:
        """Index of the background class in class maps."""
        return self.model.config.num_labels


@dataclass(frozen=True)
class PreparedImage:
    """Image as the input of the model, and at the size in which the page shows it."""

    size: tuple[int, int]  # (height, width) of the image itself
    shown: Array  # (shown height, shown width, 3), uint8
    pixel_values: Tensor  # (1, num_channels, height, width)

    @property
    def shown_size(self) -> tuple[int, int]:
        """`(height, width)` of the shown image."""
        return self.shown.shape[0], self.shown.shape[1]


@dataclass(frozen=True)
class Explanation:
    """Explanation of an image, with further values that the page shows."""

    shown: PatchExplanation  # its maps and its box have the size in which the image is shown
    box: tuple[int, int, int, int] | None  # (x_min, y_min, x_max, y_max), half-open, in pixels of the image itself
    scores: dict[str, float]  # probability by class name, the largest first
    target: int | None  # class index that the heat map shows; None for everything but the background
    milliseconds: float  # one run of the model
    # of a multi-label model: by class name, the score from which it counts as found, for the same classes as `scores`
    thresholds: dict[str, float] | None = None
    object_boxes: tuple[tuple[int, int, int, int], ...] = ()  # of `shown.objects`, as `box`


def load_model(name: str, is_fast: bool = False) -> LoadedModel:
    """Load an ICE checkpoint, optimized too if `is_fast`; the installed code runs, never that of the folder."""
    folder = resolve_ice_model_name(name)
    model = IceDeiTForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    fast_model = optimize_for_inference(model, image_size=processed_size(processor)) if is_fast else None
    return LoadedModel(name, model, processor, fast_model)


def prepare_image(loaded: LoadedModel, image: Image.Image) -> PreparedImage:
    """Preprocess an image for the model and for the page."""
    rgb = loaded.processor.read_image(image)
    inputs = loaded.processor(rgb, return_tensors="pt")
    shown = rgb.resize(_shown_size(rgb.size), Image.Resampling.LANCZOS)  # PIL sizes are (width, height)
    pixel_values = inputs["pixel_values"].to(loaded.model.device, loaded.model.dtype)
    return PreparedImage((rgb.height, rgb.width), np.asarray(shown), pixel_values)


def _shown_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return a size of the same aspect whose longer side fits the page."""
    smallest, largest = _SHOWN_SIDES
    # small images are enlarged, large ones reduced, others shown at their own size
    factor = min(max(1.0, smallest / max(size)), largest / max(size))
    width, height = (max(1, round(side * factor)) for side in size)
    return width, height


@torch.inference_mode()
def explain_image(loaded: LoadedModel, image: PreparedImage, target: int | None = None) -> Explanation:
    """Explain an image in one run of the model; `target` is the class index of the heat map, `None` the foreground."""
    start = time.perf_counter()
    outputs = loaded.answering(pixel_values=image.pixel_values, return_dict=True)
    milliseconds = 1e3 * (time.perf_counter() - start)
    processor, names = loaded.processor, loaded.class_names
    (shown,) = processor.post_process_explanation(outputs, [image.shown_size], target, names)
    # only the box at the image's own size: maps of 40 million pixels would not be used
    (found,) = processor.post_process_object_localization(outputs, [image.size])
    probabilities = class_probabilities(loaded.model, outputs.logits)[0]
    scores, classes = probabilities.topk(min(NUM_SCORES, len(names)))
    explanation = Explanation(
        shown=shown,
        # of a single-label model the whole image where nothing was found
        box=_as_box(found["boxes"][0]) if shown.found else None,
        scores={names[index]: score for index, score in zip(classes.tolist(), scores.tolist(), strict=True)},
        target=target,
        milliseconds=milliseconds,
    )
    return explanation if shown.objects is None else _with_objects(explanation, loaded, image, outputs, probabilities)


def _with_objects(
    explanation: Explanation, loaded: LoadedModel, image: PreparedImage, outputs: Any, probabilities: Tensor
) -> Explanation:
    """Return the explanation by a multi-label model with the scores of all objects, thresholds, and boxes."""
    names, objects = loaded.class_names, explanation.shown.objects or ()
    thresholds = outputs.object_thresholds[0].tolist()
    best = probabilities.argsort(descending=True, stable=True).tolist()
    listed = {*best[:NUM_SCORES], *(own.class_index for own in objects)}
    order = [index for index in best if index in listed]
    patch_logits, grid_sizes = read_patch_logits(outputs)
    patches = ImagePatches(patch_logits[0], grid_sizes[0], loaded.processor.image_geometry(image.size))

    def box_of(classes: list[int]) -> tuple[int, int, int, int] | None:
        return replace(patches, classes=torch.tensor(classes, dtype=torch.long)).box()

    boxes = [box_of([own.class_index]) or own.box for own in objects]
    return replace(
        explanation,
        box=box_of([own.class_index for own in objects]),
        scores={names[index]: probabilities[index].item() for index in order},
        thresholds={names[index]: thresholds[index] for index in order},
        object_boxes=tuple(boxes),
    )


def _as_box(values: Tensor) -> tuple[int, int, int, int]:
    left, top, right, bottom = values.tolist()
    return left, top, right, bottom
