# SPDX-License-Identifier: Apache-2.0
"""From images to relevance maps on the images: any method for any model, with the model's own preprocessing."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from ..ice_deit.image_processing_ice_deit import IceDeiTImageProcessor
from ..ice_deit.patch_maps import ImageGeometry, bilinear_to_image, nearest_to_image
from .class_scores import class_probabilities, explained_logits
from .families import backbone_of
from .inspection import evaluation_mode, exclusive_use, grid_size
from .registry import EXPLAINERS, explain


__all__ = ["MapExplainer", "geometry_of_grid"]

_SETTINGS = ("size", "crop_size", "resample", "image_mean", "image_std", "rescale_factor")
_STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")


class MapExplainer:
    """Explain images by a method of `EXPLAINERS`, and carry its maps back to the pixels of the images.

    For ICE's own patch head, which also gives masks and boxes, there is `pipeline("patch-explanation")`.

    Args:
        model: An ICE model, or one of `FAMILIES`; without a classifier for the methods that know no class.
        image_processor: Any image processor of transformers that resizes, crops, rescales and normalises; its steps
            are repeated on images in 8-bit RGB. What a crop cuts off has no relevance.
        method: A name in `EXPLAINERS`.

    Raises:
        ValueError: If the model is of another family, or the method is unknown.

    Example:
        >>> folder = "outputs/dinov2-with-registers"
        >>> model = AutoModelForImageClassification.from_pretrained(folder)
        >>> explainer = MapExplainer(model, AutoImageProcessor.from_pretrained(folder), method="legrad")
        >>> (result,) = explainer([Image.open("photo.jpg")])
        >>> result["label"], result["heatmap"].shape
    """

    def __init__(self, model: PreTrainedModel, image_processor: Any, method: str) -> None:
        backbone_of(model)  # refuses other families
        if method not in EXPLAINERS:
            raise ValueError(f"`method` must be one of {', '.join(sorted(EXPLAINERS))}, got {method!r}.")
        self.model: Any = model
        self.method = method
        settings = image_processor.to_dict()  # complete: the defaults of its own class too
        steps = {name: bool(settings.get(name)) for name in _STEPS}
        kept = {name: settings[name] for name in _SETTINGS if settings.get(name) is not None}
        self.image_processor = IceDeiTImageProcessor(**steps, **kept)

    @property
    def has_classifier(self) -> bool:
        """Whether the model predicts a class, as an encoder alone does not."""
        return self.model is not self.model.base_model

    def class_index(self, target: str | int | None) -> int | None:
        """Return the index of a class given by name or index; a `ValueError` if the method cannot explain it."""
        if target is None:
            return None
        if not EXPLAINERS[self.method].takes_target:
            raise ValueError(f"`target` must be left out for {self.method!r}, which knows no class. Use 'legrad'.")
        config = self.model.config
        names = [str(config.id2label[index]) for index in range(config.num_labels)]
        if isinstance(target, str) and target in names:
            return names.index(target)
        if isinstance(target, str):
            close = difflib.get_close_matches(target, names, n=3) or names[:10]
            raise ValueError(f"`target` must be a class of the model, got {target!r}. Classes like it: {close}.")
        if not 0 <= target < len(names):
            raise ValueError(f"`target` must be a class name or an index in [0, {len(names) - 1}], got {target}.")
        return target

    def __call__(
        self, images: Iterable[Image.Image], target: str | int | None = None, batch_size: int = 8
    ) -> Iterator[dict[str, Any]]:
        """Explain images one after the other.

        Args:
            images: Upright images in 8-bit RGB, as `image_processor.read_image` returns them.
            target: Class (name or index) to explain; `None`: the predicted one.
            batch_size: Images that go through the model at once. Does not change the results.

        Yields:
            Per image a dict:
            label, score: The predicted class and its softmax probability; `None` for an encoder without a classifier.
                Of a multi-label model the class of the largest logit, and its sigmoid.
            relevance: The map as `explain` returns it, `(rows, columns)`, float32, of the range of the method.
            heatmap: `(height, width)` of the image, float32: the map stretched to [0, 1] from its least to its largest
                value, bilinear (nearest for masks); 0 outside a crop, and everywhere for a constant map.
            method: Name of the method.
            box: `None`: a relevance map has no objects.
        """
        index, waiting = self.class_index(target), iter(images)
        while batch := list(islice(waiting, batch_size)):
            sizes = [(image.height, image.width) for image in batch]
            pixels = [self.image_processor(image, return_tensors="pt")["pixel_values"] for image in batch]
            del batch  # before the maps, which have the size of the images
            for size, found in zip(sizes, self._explain(pixels, index), strict=True):
                yield self._result(size, *found)

    def _explain(self, pixels: list[Tensor], target: int | None) -> Iterator[tuple[Tensor, Tensor | None, Any]]:
        """Yield map, class scores and pixels of each image; images of one size share a pass."""
        same_size = len({values.shape for values in pixels}) == 1
        for values in [torch.cat(pixels)] if same_size else pixels:
            if min(grid_size(self.model, values)) < 1:
                raise ValueError(
                    f"The image processor must make images of at least one patch, got {tuple(values.shape[2:])} "
                    f"pixels for patches of {self.model.config.patch_size}."
                )
            values = values.to(self.model.device)
            maps = explain(self.model, values, self.method, target=target).cpu()
            scores = self._scores(values) if self.has_classifier else None
            for number, relevance in enumerate(maps):
                yield relevance, None if scores is None else scores[number], values[number]

    @torch.no_grad()
    def _scores(self, pixels: Tensor) -> Tensor:
        """Return the probabilities of the classes `(batch_size, num_labels)` by the logits that are explained."""
        with exclusive_use(self.model), evaluation_mode(self.model):
            return class_probabilities(self.model, explained_logits(self.model, pixels)).cpu()

    def _result(
        self, image_size: tuple[int, int], relevance: Tensor, scores: Tensor | None, pixels: Tensor
    ) -> dict[str, Any]:
        if not relevance.isfinite().all():
            raise ValueError(f"The maps of {self.method} must be finite, got NaN. Are the weights damaged?")
        low, high = relevance.min(), relevance.max()
        stretched = (relevance - low) / (high - low) if high > low else torch.zeros_like(relevance)
        geometry = geometry_of_grid(self.image_processor, image_size, self._covered(pixels))
        is_hard = EXPLAINERS[self.method].is_hard
        heatmap = nearest_to_image(stretched, geometry, 0.0) if is_hard else bilinear_to_image(stretched, geometry)
        best = None if scores is None else int(scores.argmax())
        return {
            "label": None if best is None else self.model.config.id2label[best],
            "score": None if scores is None or best is None else float(scores[best]),
            "relevance": relevance.numpy(),
            "heatmap": heatmap.clamp(0, 1).numpy(),
            "method": self.method,
            "box": None,
        }

    def _covered(self, pixels: Tensor) -> tuple[int, int]:
        """Return height and width of the pixels that the map covers: those of whole patches, or all."""
        if EXPLAINERS[self.method].resolution == "pixel":
            return pixels.shape[1], pixels.shape[2]
        sides = self.model.config.patch_size
        patch = (sides, sides) if isinstance(sides, int) else tuple(sides)
        return pixels.shape[1] // patch[0] * patch[0], pixels.shape[2] // patch[1] * patch[1]


def geometry_of_grid(
    image_processor: IceDeiTImageProcessor, image_size: tuple[int, int], covered: tuple[int, int]
) -> ImageGeometry:
    """Return where an image of `(height, width)` lies under a map that covers the first `covered` pixels of the input.

    Patches are whole: rows and columns of pixels that do not fill one, right and below, are in no map.
    """
    whole = image_processor.image_geometry(image_size)
    return ImageGeometry(whole.image_size, whole.resized_size, whole.crop_offset, covered)
