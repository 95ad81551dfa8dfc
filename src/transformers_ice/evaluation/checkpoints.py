# SPDX-License-Identifier: Apache-2.0
"""Checkpoints under test: a complete classifier with a digest and an image processor that does not crop."""

from __future__ import annotations

import copy
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoImageProcessor, PreTrainedModel
from transformers.utils import logging

from ..explainers import evaluation_mode
from ..explainers.families import load_classifier
from ..explainers.inspection import forward_options
from ..ice_deit.configuration_ice_deit import as_pair
from ..model_names import resolve_model_name
from .protocol import Protocol


__all__ = [
    "Checkpoint",
    "class_logits",
    "has_answer",
    "input_size",
    "labels_by_name",
    "load_checkpoint",
    "whole_image_processor",
]

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """Classifier with its name in the tables, its image processor, and a fingerprint of weights and settings."""

    name: str
    model: PreTrainedModel
    image_processor: Any
    digest: str

    @property
    def is_ice(self) -> bool:
        """Whether the model has a trained patch head: a converted DeiT classifies by [CLS] until it is trained."""
        return hasattr(self.model.base_model, "patch_head") and self.model.config.logits_source == "patch"

    @property
    def is_multi_label(self) -> bool:
        """Whether an image may have several classes, or none: then each has a score of its own."""
        return self.model.config.problem_type == "multi_label_classification"

    @property
    def object_thresholds(self) -> Tensor:
        """Score from which each class counts as found, `(num_labels,)`: those of the configuration, by default 0.5."""
        thresholds = getattr(self.model.config, "object_thresholds", None)
        return torch.tensor(thresholds or [0.5] * cast(int, self.model.config.num_labels))


def load_checkpoint(path: str, name: str | None = None, device: str | torch.device = "cpu") -> Checkpoint:
    """Load a classifier and its image processor.

    Args:
        path: Folder or Hub id of a classifier of `FAMILIES`.
        name: Its name in the tables; `None` takes the last part of the path.
        device: Device of the model.

    Raises:
        OSError: If the Hub has no such checkpoint, or cannot be reached.
        ValueError: If there is no such folder, or it cannot be read, is of another family, or lacks weights.
    """
    path = resolve_model_name(path)
    model, missing = load_classifier(path)
    if missing:
        raise ValueError(
            f"{path!r} must hold all weights of a classifier, got none for {missing[:3]}: they would be random. "
            "Fine-tune it first."
        )
    try:
        model = cast(Any, model).to(device).eval()
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"The device {str(device)!r} cannot be used: {error}.") from error
    image_processor = AutoImageProcessor.from_pretrained(path)
    digest = _fingerprint(model, image_processor)
    checkpoint = Checkpoint(name or path.rstrip("/").rsplit("/", 1)[-1], model, image_processor, digest)
    if hasattr(model.base_model, "patch_head") and not checkpoint.is_ice:
        logger.warning(
            f"{checkpoint.name} classifies by [CLS] (`logits_source`), so its patch head counts as untrained: ICE's "
            "own methods are skipped for it."
        )
    return checkpoint


def _fingerprint(model: PreTrainedModel, image_processor: Any) -> str:
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        # as bytes: numpy has no bfloat16
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    # the path of a model does not affect its outputs
    settings = {name: value for name, value in model.config.to_dict().items() if name != "_name_or_path"}
    digest.update(json.dumps([settings, image_processor.to_dict()], sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


def has_answer(logits: Tensor) -> Tensor:
    """Return which rows of `(batch_size, num_labels)` predict a class: without foreground all ICE logits are equal."""
    if logits.shape[1] == 1:  # a single class: a logit of zero is no prediction
        return logits[:, 0] != 0
    return logits.amax(dim=1) > logits.amin(dim=1)


@torch.no_grad()
def class_logits(model: PreTrainedModel, pixel_values: Tensor) -> Tensor:
    """Return the classifier's `(batch_size, num_labels)` scores, float32 on the CPU; positions are interpolated."""
    with evaluation_mode(model):
        return model(pixel_values, return_dict=True, **forward_options(model, pixel_values)).logits.float().cpu()


def whole_image_processor(checkpoint: Checkpoint, protocol: Protocol, published: bool = False) -> Any:
    """Return the checkpoint's processor, changed to resize the whole image without cropping.

    One that crops gets the size of the crop, one that keeps the aspect that of the model's configuration; `image_size`
    of the protocol overrides both. `published`: mean and deviation 0.5 and bilinear resizing, as the published
    evaluation does.
    """
    processor = checkpoint.image_processor
    settings = copy.deepcopy(processor.to_dict())
    height, width = input_size(checkpoint, protocol)
    settings |= {"size": {"height": height, "width": width}, "do_center_crop": False, "do_resize": True}
    if published:
        settings |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}  # 2: bilinear
    return type(processor).from_dict(settings)


def input_size(checkpoint: Checkpoint, protocol: Protocol) -> tuple[int, int]:
    """Return height and width of the square inputs, which must be whole patches."""
    settings = checkpoint.image_processor.to_dict()
    size = settings.get("size") or {}
    height, width = as_pair(checkpoint.model.config.image_size)
    patch_height, patch_width = as_pair(checkpoint.model.config.patch_size)
    crop = (settings.get("crop_size") or {}) if settings.get("do_center_crop") else {}
    if protocol.image_size is not None:
        height = width = protocol.image_size
    elif crop.get("height") and not crop["height"] % patch_height and not crop["width"] % patch_width:
        # not always the size of the configuration: DINOv2's is 518, and its processor cuts 224
        height, width = crop["height"], crop["width"]
    elif not settings.get("do_center_crop") and "height" in size:
        height, width = size["height"], size["width"]
    if height % patch_height or width % patch_width or not height or not width:
        raise ValueError(
            f"`image_size` must be a multiple of the patch size {(patch_height, patch_width)} of {checkpoint.name!r}, "
            f"got {(height, width)}."
        )
    return height, width


def labels_by_name(model: PreTrainedModel, class_names: Sequence[str] | None) -> dict[int, int] | None:
    """Return the model's class index by that of a data set, or `None` where the two use the same indices.

    Classes of one name are one class. Names that are numbers, where the model has no such names, are the model's
    indices. Where no name is shared otherwise, index i of the data counts as index i of the model. A `ValueError` if
    the model has some of the names and not others, or one of them twice.
    """
    id2label = cast(dict[int, str], model.config.id2label)
    names, known = list(class_names or ()), {name: index for index, name in id2label.items()}
    shared = [name for name in names if name in known]
    if names and not shared and all(name.isdecimal() for name in names):
        return {index: int(name) for index, name in enumerate(names)}
    if not shared:
        if names:
            logger.warning_once(f"The model has none of the classes {names[:3]}: class 0 counts as its class 0.")
        return None
    if names == [id2label.get(index) for index in range(len(names))]:
        return None
    missing, counts = [name for name in names if name not in known], Counter(id2label.values())
    twice = [name for name in names if counts[name] > 1]
    if missing or twice:
        problem = f"does not know {missing[:3]}" if missing else f"has several classes named {twice[0]!r}"
        raise ValueError(
            f"The classes of the data set and of the model must have the same names, but the model {problem}: its "
            "scores would be meaningless. Rename the classes, or skip the benchmarks that need labels."
        )
    return {index: known[name] for index, name in enumerate(names)}
