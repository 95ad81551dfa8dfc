# SPDX-License-Identifier: Apache-2.0
"""A checkpoint, a batch of examples as that checkpoint sees them, and one method's explanation of the batch.

Everything is computed when first asked for and kept for the batch: the benchmarks of one run share the preprocessed
images, the predictions and the relevance maps.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel

from ..configuration_ice_deit import as_pair
from ..data.examples import Example
from ..explainers import EXPLAINERS, evaluation_mode, explain
from ..explainers.class_scores import explained_logits
from ..patch_maps import ImageGeometry
from .maps import (
    CEILING,
    explains_classes,
    image_geometry,
    majority_grid,
    model_grid_size,
    patch_size_of,
    preprocess,
    preprocess_padded,
)
from .protocol import Protocol


__all__ = ["Checkpoint", "ExplainedBatch", "InputBatch", "class_logits", "load_checkpoint"]


@dataclass(frozen=True)
class Checkpoint:
    """Hold a classifier with its image processor.

    Attributes:
        name: How the tables call it.
        model: The classifier.
        image_processor: The one that belongs to it.
        digest: Fingerprint of weights, configuration and preprocessing.
    """

    name: str
    model: PreTrainedModel
    image_processor: Any
    digest: str

    @property
    def is_ice(self) -> bool:
        """Whether the model has a patch head."""
        return hasattr(self.model.base_model, "patch_head")


def load_checkpoint(path: str, name: str | None = None, device: str | torch.device = "cpu") -> Checkpoint:
    """Load a classifier and its image processor.

    Args:
        path: Folder or Hub id of a ViT, DeiT or ICE classifier.
        name: How the tables call it; `None` takes the last part of the path.
        device: Where the model goes.

    Raises:
        OSError: If there is no such checkpoint.
    """
    model = AutoModelForImageClassification.from_pretrained(path).to(device).eval()
    image_processor = AutoImageProcessor.from_pretrained(path)
    digest = _fingerprint(model, image_processor)
    return Checkpoint(name or path.rstrip("/").rsplit("/", 1)[-1], model, image_processor, digest)


def _fingerprint(model: PreTrainedModel, image_processor: Any) -> str:
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    # the path a model came from is no part of what it computes
    settings = {name: value for name, value in model.config.to_dict().items() if name != "_name_or_path"}
    digest.update(json.dumps([settings, image_processor.to_dict()], sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


@torch.no_grad()
def class_logits(model: PreTrainedModel, pixel_values: Tensor) -> Tensor:
    """Return the classifier's `(batch_size, num_labels)` scores, float32 on the CPU; positions are interpolated."""
    resized = tuple(pixel_values.shape[2:]) != as_pair(model.config.image_size)
    with evaluation_mode(model):
        return model(pixel_values, interpolate_pos_encoding=resized).logits.float().cpu()


def whole_image_processor(checkpoint: Checkpoint, protocol: Protocol, published: bool = False) -> Any:
    """Return the checkpoint's processor, changed so that it squashes the whole image and crops nothing.

    Args:
        checkpoint: The classifier. A processor that crops, or keeps the aspect, gets the size of the model's input.
        protocol: Its `image_size` goes before both.
        published: Whether to take mean and deviation 0.5 and bilinear resizing, as the published evaluation does.
    """
    processor = checkpoint.image_processor
    settings = copy.deepcopy(processor.to_dict())
    size = settings.get("size") or {}
    height, width = as_pair(checkpoint.model.config.image_size)
    if protocol.image_size is not None:
        height = width = protocol.image_size
    elif not settings.get("do_center_crop") and "height" in size:
        height, width = size["height"], size["width"]
    settings |= {"size": {"height": height, "width": width}, "do_center_crop": False, "do_resize": True}
    if published:
        settings |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}
    return type(processor).from_dict(settings)


def labels_by_name(model: PreTrainedModel, class_names: Sequence[str] | None) -> dict[int, int] | None:
    """Return the model's class index by that of a data set, or `None` where the two count alike or share no names.

    Args:
        model: The classifier.
        class_names: Names of the data set's classes, where it has any.

    Raises:
        ValueError: If the model knows some of the names and not others: the indices would mean different classes.
    """
    id2label = cast(dict[int, str], model.config.id2label)
    known = {name: index for index, name in id2label.items()}
    names = list(class_names or ())
    shared = [name for name in names if name in known]
    if not shared or names == [id2label.get(index) for index in range(len(names))]:
        return None
    if len(shared) < len(names):
        missing = [name for name in names if name not in known]
        raise ValueError(
            f"The model knows {len(shared)} of the {len(names)} classes of the data set, but not {missing[:3]}: its "
            "scores would mean nothing. Rename the classes, or leave out the benchmarks that need labels."
        )
    return {index: known[name] for index, name in enumerate(names)}


class InputBatch:
    """Show a batch of examples to a checkpoint.

    Args:
        checkpoint: The classifier.
        examples: The images with what is known about them.
        protocol: How they are scored.
        class_names: Names of the classes that the examples' labels count; `None` if they count as the model does.
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

    @cached_property
    def image_processor(self) -> Any:
        """The processor that makes the square inputs."""
        return whole_image_processor(self.checkpoint, self.protocol)

    @cached_property
    def pixel_values(self) -> Tensor:
        """The square inputs, `(batch_size, num_channels, height, width)`."""
        return preprocess(self.checkpoint.model, self.image_processor, [example.image for example in self.examples])

    @cached_property
    def published_pixel_values(self) -> Tensor:
        """The square inputs with the preprocessing of the published evaluation."""
        processor = whole_image_processor(self.checkpoint, self.protocol, published=True)
        return preprocess(self.checkpoint.model, processor, [example.image for example in self.examples])

    @cached_property
    def padded_pixel_values(self) -> list[Tensor]:
        """Every image by itself at its own size, `(1, num_channels, height, width)`, padded to whole patches."""
        arguments = (self.checkpoint.model, self.checkpoint.image_processor)
        return [preprocess_padded(*arguments, example.image) for example in self.examples]

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the square inputs."""
        return self.pixel_values.shape[2], self.pixel_values.shape[3]

    @cached_property
    def logits(self) -> Tensor:
        """What the classifier says, `(batch_size, num_labels)`."""
        return class_logits(self.checkpoint.model, self.pixel_values)

    @cached_property
    def explained_classes(self) -> Tensor:
        """The class that a class-aware baseline explains by itself, `(batch_size,)`."""
        model = self.checkpoint.model
        with torch.no_grad(), evaluation_mode(model):
            return explained_logits(model, self.pixel_values).argmax(dim=1).cpu()

    @cached_property
    def labels(self) -> Tensor:
        """True classes as the model counts them, `(batch_size,)`; classes of one name are one class."""
        renamed = labels_by_name(self.checkpoint.model, self.class_names)
        labels = [cast(int, example.label) for example in self.examples]
        labels = labels if renamed is None else [renamed[label] for label in labels]
        num_labels = self.logits.shape[1]
        if min(labels) < 0 or max(labels) >= num_labels:
            raise ValueError(
                f"Labels must lie in [0, {num_labels - 1}] for a model of {num_labels} classes, got values from "
                f"{min(labels)} to {max(labels)}. Does the model know the classes of this data set?"
            )
        return torch.tensor(labels)


class ExplainedBatch:
    """Explain a batch by one method.

    Args:
        inputs: The batch.
        method: Name of an explainer, or "ceiling": the true mask on the patch grid, by the majority of pixels.
    """

    def __init__(self, inputs: InputBatch, method: str) -> None:
        self.inputs = inputs
        self.method = method
        self._kept: dict[tuple[int, ...] | None, Tensor] = {}

    def relevance(self, target: Tensor | None = None) -> Tensor:
        """Return the maps of the square inputs, `(batch_size, rows, columns)`, float32, on the CPU.

        Args:
            target: `(batch_size,)` classes to explain; `None` is what the method explains by itself.
        """
        key = None if target is None else tuple(target.tolist())
        if key not in self._kept:
            self._kept[key] = self._own_relevance() if target is None else self._relevance_of(target)
        return self._kept[key]

    def _own_relevance(self) -> Tensor:
        return self._explain(self.inputs.pixel_values, self.inputs.examples, None)

    def _relevance_of(self, target: Tensor) -> Tensor:
        """Return the maps of given classes; only the images whose own class is another one are explained anew."""
        if not explains_classes(self.method):
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
        pixels, examples = self.inputs.padded_pixel_values, self.inputs.examples
        if all(value.shape[2:] == self.inputs.input_size for value in pixels):  # nothing to resize, nothing to pad
            return list(self._to_grid(self.relevance(), self.inputs.input_size))
        if len({value.shape for value in pixels}) == 1:
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
        options = {"seed": self.inputs.protocol.seed} if "seed" in EXPLAINERS[self.method].options else {}
        return explain(model, pixel_values, self.method, target=target, **options).detach().float().cpu()

    def _true_grid(self, example: Example, pixel_values: Tensor, padded: bool) -> Tensor:
        if example.mask is None:
            raise ValueError(f"The ceiling needs true masks, got none for image {example.image_id!r}.")
        size = (pixel_values.shape[2], pixel_values.shape[3])
        shape = (example.mask.shape[0], example.mask.shape[1])
        if padded:
            geometry = ImageGeometry(shape, shape, (0, 0), size)
        else:
            geometry = image_geometry(self.inputs.image_processor, shape, size)
        return majority_grid(np.asarray(example.mask), geometry, model_grid_size(self.inputs.checkpoint.model, size))

    @property
    def patch_size(self) -> tuple[int, int]:
        """Height and width of a patch in pixels."""
        return patch_size_of(self.inputs.checkpoint.model)
