# SPDX-License-Identifier: Apache-2.0
"""Inputs of a checkpoint for a batch of examples, and the explanation of the batch by one method.

Everything is computed on first use and cached: the benchmarks of one run share inputs, predictions and maps.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.benchmarks.examples import Example
from ..explainers import EXPLAINERS, evaluation_mode, explain
from ..explainers.class_scores import explained_logits
from ..ice_deit.patch_maps import ImageGeometry
from .checkpoints import Checkpoint, class_logits, has_answer, labels_by_name, whole_image_processor
from .maps import (
    CEILING,
    CONTROLS,
    control_map,
    explains_classes,
    get_patch_size,
    majority_grid,
    model_grid_size,
    preprocess,
    preprocess_padded,
    resize_labels,
)
from .protocol import Protocol


__all__ = ["ExplainedBatch", "InputBatch", "UndefinedExamplesError"]

# an image of 16 megapixels in patches of 16 pixels; attention grows with the square of this number
_MAX_PATCHES = 1 << 16


class UndefinedExamplesError(ValueError):
    """Error of a batch in which some inputs, predictions or maps are NaN or infinite; `examples` are theirs."""

    def __init__(self, examples: Sequence[Example], of: str) -> None:
        self.examples = examples
        super().__init__(
            f"{of} must be finite, got NaN or infinity for {len(examples)} images, such as {examples[0].image_id!r}. "
            "Are the weights damaged, or is a deviation of the image processor 0?"
        )


def _check_finite(values: Tensor, examples: Sequence[Example], of: str) -> Tensor:
    """Return values `(batch_size, ...)`; raise `UndefinedExamplesError` where they are not finite."""
    undefined = ~values.isfinite().flatten(1).all(dim=1)  # (batch_size,)
    if undefined.any():
        raise UndefinedExamplesError([examples[index] for index in undefined.nonzero()[:, 0].tolist()], of)
    return values


class InputBatch:
    """Batch of examples, preprocessed for a checkpoint.

    Args:
        checkpoint: The classifier.
        examples: The images with their annotations.
        protocol: How they are scored.
        class_names: Names of the classes of the examples' labels; `None` if the indices are those of the model.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        examples: Sequence[Example],
        protocol: Protocol,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.examples = examples
        self.protocol = protocol
        self.class_names = class_names

    def _square(self, images: Sequence[Any], published: bool = False) -> Tensor:
        processor = whole_image_processor(self.checkpoint, self.protocol, published)
        return preprocess(self.checkpoint.model, processor, images)

    @cached_property
    def pixel_values(self) -> Tensor:
        """The square inputs, `(batch_size, num_channels, height, width)`."""
        return self._square([example.image for example in self.examples])

    @property
    def finite_pixel_values(self) -> Tensor:
        """The inputs without those that hold NaN or infinity."""
        return self.pixel_values[self.pixel_values.isfinite().flatten(1).all(dim=1)]

    @cached_property
    def published_pixel_values(self) -> Tensor:
        """The square inputs with the preprocessing of the published evaluation."""
        return self._square([example.image for example in self.examples], published=True)

    @cached_property
    def padded_pixel_values(self) -> list[Tensor]:
        """Every image separately, at its own size, `(1, num_channels, height, width)`, padded to whole patches."""
        patch_height, patch_width = get_patch_size(self.checkpoint.model)
        for example in self.examples:
            if example.image.width * example.image.height > _MAX_PATCHES * patch_height * patch_width:
                raise ValueError(
                    f"Image {example.image_id!r} of {example.image.width} x {example.image.height} pixels must have "
                    f"at most {_MAX_PATCHES} patches: this benchmark resizes nothing. Make the image smaller first."
                )
        checkpoint = self.checkpoint
        return [preprocess_padded(checkpoint.model, checkpoint.image_processor, ex.image) for ex in self.examples]

    @cached_property
    def black(self) -> Tensor:
        """Value of a black pixel after normalisation, `(num_channels, 1, 1)`."""
        # (1, num_channels, height, width) -> (num_channels, 1, 1)
        return self._square([Image.new("RGB", self.input_size[::-1])])[0, :, :1, :1]

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the square inputs."""
        return self.pixel_values.shape[2], self.pixel_values.shape[3]

    @cached_property
    def logits(self) -> Tensor:
        """Logits of the classifier, `(batch_size, num_labels)`."""
        return self.predict(self.pixel_values)

    def predict(self, pixel_values: Tensor) -> Tensor:
        """Return the logits of the batch with changed pixels; they must be finite."""
        return _check_finite(class_logits(self.checkpoint.model, pixel_values), self.examples, "The logits")

    @cached_property
    def class_scores(self) -> Tensor:
        """Score of each class, in [0, 1], `(batch_size, num_labels)`.

        Of a model for several labels the sigmoid of each logit, of another the softmax.
        """
        return self.logits.sigmoid() if self.checkpoint.is_multi_label else self.logits.softmax(dim=1)

    @cached_property
    def found_classes(self) -> Tensor:
        """Which classes the model finds in each image, `(batch_size, num_labels)`, bool.

        Of a model for several labels every class whose score reaches its threshold, of another the best one; none
        where ICE finds no foreground.
        """
        if self.checkpoint.is_multi_label:
            return self.class_scores >= self.checkpoint.object_thresholds
        best = torch.zeros_like(self.logits, dtype=torch.bool).scatter(
            1, self.logits.argmax(dim=1, keepdim=True), True
        )
        return best & has_answer(self.logits)[:, None]

    @cached_property
    def explained_classes(self) -> Tensor:
        """Default class of a class-aware baseline, `(batch_size,)`."""
        model = self.checkpoint.model
        with torch.no_grad(), evaluation_mode(model):
            return explained_logits(model, self.pixel_values).argmax(dim=1).cpu()

    @cached_property
    def labels(self) -> Tensor:
        """True classes as indices of the model, `(batch_size,)`; classes of one name are one class."""
        renamed = labels_by_name(self.checkpoint.model, self.class_names)
        labels = [cast(int, example.label) for example in self.examples]
        labels = labels if renamed is None else [renamed[label] for label in labels]
        num_labels = self.logits.shape[1]
        if min(labels) < 0 or max(labels) >= num_labels:
            raise ValueError(
                f"Labels must lie in [0, {num_labels - 1}] for a model of {num_labels} classes, got values from "
                f"{min(labels)} to {max(labels)}. Was the model trained on the classes of this data set?"
            )
        return torch.tensor(labels)

    @property
    def true_masks(self) -> tuple[list[np.ndarray], list[ImageGeometry]]:
        """The true masks, and where the pixels of their images are in the square inputs."""
        masks = [np.asarray(example.mask) for example in self.examples]
        sizes = [(mask.shape[0], mask.shape[1]) for mask in masks]
        return masks, [ImageGeometry.from_resize(size, self.input_size) for size in sizes]


class ExplainedBatch:
    """Explanation of a batch by one method.

    Args:
        inputs: The batch.
        method: Name of an explainer or control, or "ceiling": the true mask on the patch grid, by majority.
    """

    def __init__(self, inputs: InputBatch, method: str) -> None:
        self.inputs = inputs
        self.method = method
        self._cache: dict[tuple[int, ...] | None, Tensor] = {}

    def relevance(self, target: Tensor | None = None) -> Tensor:
        """Return the maps of the square inputs, `(batch_size, rows, columns)`, float32, on the CPU.

        Args:
            target: `(batch_size,)` classes to explain; `None` takes the method's default.
        """
        # by its values: tensors are hashed by identity
        key = None if target is None else tuple(target.tolist())
        if key not in self._cache:
            self._cache[key] = self._explain_target(target)
        return self._cache[key]

    def _explain_target(self, target: Tensor | None) -> Tensor:
        """Return the maps of given classes; only images with another default class are explained again."""
        if target is None or not explains_classes(self.method):
            return self._explain(self.inputs.pixel_values, self.inputs.examples, target)
        maps = self.relevance().clone()
        others = (target != self.inputs.explained_classes).nonzero()[:, 0]
        if len(others):
            examples = [self.inputs.examples[index] for index in others.tolist()]
            maps[others] = self._explain(self.inputs.pixel_values[others], examples, target[others])
        return maps

    def published_relevance(self) -> Tensor:
        """Return the maps of the inputs with the published preprocessing."""
        return self._explain(self.inputs.published_pixel_values, self.inputs.examples, None)

    def padded_relevance(self) -> list[Tensor]:
        """Return the map of every padded image on its patch grid, `(rows, columns)`.

        Images of one size share a pass; those of the input's size are the inputs themselves.
        """
        if self.method in CONTROLS:  # at the size of the image, without the padding
            return [self._control(example, example.image.size[::-1]) for example in self.inputs.examples]
        pixels, examples = self.inputs.padded_pixel_values, self.inputs.examples
        if all(example.image.size[::-1] == self.inputs.input_size for example in examples):  # nothing to resize or pad
            return list(self._to_grid(self.relevance(), self.inputs.input_size))
        if len({value.shape for value in pixels}) == 1:
            # (1, channels, height, width) each -> (batch_size, channels, height, width)
            return list(self._padded_grids(torch.cat(pixels), examples))
        return [self._padded_grids(value, [example])[0] for value, example in zip(pixels, examples, strict=True)]

    def _padded_grids(self, pixel_values: Tensor, examples: Sequence[Example]) -> Tensor:
        maps = self._explain(pixel_values, examples, None, padded=True)
        return self._to_grid(maps, (pixel_values.shape[2], pixel_values.shape[3]))

    def _to_grid(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Return maps on the patch grid; a map of pixels is averaged over each patch."""
        return torch.nn.functional.adaptive_avg_pool2d(maps, model_grid_size(self.inputs.checkpoint.model, size))

    def _explain(
        self, pixel_values: Tensor, examples: Sequence[Example], target: Tensor | None, padded: bool = False
    ) -> Tensor:
        model = self.inputs.checkpoint.model
        if self.method == CEILING:
            return torch.stack([self._true_grid(example, pixel_values, padded) for example in examples]).float()
        if self.method in CONTROLS:
            size = (pixel_values.shape[2], pixel_values.shape[3])
            return torch.stack([self._control(example, size) for example in examples])
        _check_finite(pixel_values, examples, "The pixel values")
        _ = self.inputs.logits  # a map of a model without predictions explains nothing, even where it is finite
        options = {"seed": self.inputs.protocol.seed} if "seed" in EXPLAINERS[self.method].options else {}
        maps = explain(model, pixel_values, self.method, target=target, **options).detach().float().cpu()
        return _check_finite(maps, examples, f"The maps of {self.method}")

    def _control(self, example: Example, size: tuple[int, int]) -> Tensor:
        """Return the map of a control for an image of height and width `size`."""
        patch_height, patch_width = self.patch_size
        grid = (-(-size[0] // patch_height), -(-size[1] // patch_width))  # rounded up, as images are padded
        # the same in every batch; names of files may hold bytes that are no text
        seed = (self.inputs.protocol.seed, zlib.crc32(example.image_id.encode("utf-8", "surrogatepass")))
        return control_map(self.method, size, grid, seed)

    def _true_grid(self, example: Example, pixel_values: Tensor, padded: bool) -> Tensor:
        if example.mask is None:
            raise ValueError(f"The ceiling needs true masks, got none for image {example.image_id!r}.")
        size, mask = (pixel_values.shape[2], pixel_values.shape[3]), np.asarray(example.mask)
        if padded:
            shape = (mask.shape[0], mask.shape[1])
            geometry = ImageGeometry(shape, shape, (0, 0), size)
        else:  # masks are compared at the size of the input
            mask, geometry = resize_labels(mask, size), ImageGeometry.from_resize(size, size)
        return majority_grid(mask, geometry, model_grid_size(self.inputs.checkpoint.model, size))

    def select(self, kept: Sequence[int]) -> ExplainedBatch:
        """Return the batch of some of the examples."""
        inputs = self.inputs
        examples = [inputs.examples[index] for index in kept]
        return ExplainedBatch(
            InputBatch(inputs.checkpoint, examples, inputs.protocol, inputs.class_names), self.method
        )

    @property
    def patch_size(self) -> tuple[int, int]:
        """Height and width of a patch in pixels."""
        return get_patch_size(self.inputs.checkpoint.model)
