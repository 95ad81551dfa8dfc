# SPDX-License-Identifier: Apache-2.0
"""The model and the image processor that a run starts from."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from transformers.utils import logging

from ..console.command_line import parse_config_overrides
from ..ice_deit.configuration_ice_deit import IceDeiTConfig, as_pair
from ..ice_deit.image_processing_ice_deit import IceDeiTImageProcessor
from ..ice_deit.local_windows import check_num_windows
from ..ice_deit.patch_maps import grid_size
from .arguments import ICE_OPTIONS, ModelArguments
from .initialization import initialize_mimetically
from .objective_presets import OBJECTIVES
from .starting_weights import load_weights


__all__ = ["build_config", "build_image_processor", "build_model", "check_windows", "choose_attention"]

logger = logging.get_logger(__name__)

_EAGER_UP_TO = {"bfloat16": 300, "float32": 100}
"""Patches up to which matrix products are the faster attention of a training step on a processor."""


def build_config(model_args: ModelArguments, image_size: int | None = None) -> PreTrainedConfig:
    """Return the configuration of the model to train, without the classes of the data yet.

    Args:
        model_args: Which model, and what to change in its configuration.
        image_size: Side of the input in pixels; the position embeddings of a checkpoint are interpolated to it.

    Raises:
        ValueError: If a field is unknown, an ICE field is given for another architecture, or two sizes are given.
    """
    fields = parse_config_overrides(model_args.config_overrides)
    fields |= _given_fields(model_args)
    size = _wanted_size(model_args, image_size)
    if size is not None:
        fields["image_size"] = size
    if model_args.model_name_or_path is not None:
        path, hub = model_args.model_name_or_path, model_args.hub_options
        if os.path.isdir(path) and not os.path.isfile(os.path.join(path, "config.json")):
            raise ValueError(f"The folder {path} holds no config.json, so it is no checkpoint of transformers.")
        # before the fields are set: `from_pretrained` would store unknown ones
        _refuse_unknown(IceDeiTConfig.from_pretrained(path, **hub), fields)
        is_ice = PreTrainedConfig.get_config_dict(path, **hub)[0].get("model_type") == IceDeiTConfig.model_type
        # once trained, the patch logits are accurate enough to predict the class
        fields = {"logits_source": "patch", **_objective(model_args, is_ice), **fields}
        return IceDeiTConfig.from_pretrained(path, **hub, **fields)
    model_type = str(model_args.model_type)
    try:
        default = AutoConfig.for_model(model_type)
    except ValueError as error:
        raise ValueError(f"`model_type` {model_type!r} is unknown, try vit or ice_deit.") from error
    _refuse_unknown(default, fields)
    if isinstance(default, IceDeiTConfig):
        fields = {**_objective(model_args, is_ice=False), **fields}
    return AutoConfig.for_model(model_type, **fields)


def _wanted_size(model_args: ModelArguments, image_size: int | None) -> Any:
    """Return the input size that `--image_size` or `--config_overrides` gives: a side, or `[height, width]`."""
    override = parse_config_overrides(model_args.config_overrides).get("image_size")
    if override is None or image_size is None:
        return image_size if override is None else override
    if as_pair(override, "image_size") != as_pair(image_size):
        raise ValueError(
            f"`--image_size {image_size}` and `image_size={override}` in `--config_overrides` must be the same. "
            "Remove one of the two."
        )
    return override


def _given_fields(model_args: ModelArguments) -> dict[str, Any]:
    """Return the fields of `IceDeiTConfig` that options set."""
    values = {field: getattr(model_args, option) for option, field in ICE_OPTIONS.items()}
    if model_args.model_type not in (None, IceDeiTConfig.model_type):  # a plain configuration has no such field
        del values["classification_loss_type"]
    return {name: value for name, value in values.items() if value is not None}


def _objective(model_args: ModelArguments, is_ice: bool) -> dict[str, Any]:
    """Return the configuration fields of the chosen objective."""
    return dict(OBJECTIVES.get(model_args.objective or ("kept" if is_ice else "balanced"), {}))


def _refuse_unknown(config: PreTrainedConfig, names: Iterable[str]) -> None:
    """Raise for names that are no field of `config`, which would store them silently."""
    known = {*config.to_dict(), *config.attribute_map}
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3)
            raise ValueError(
                f"A {config.model_type} model has no configuration field `{name}`."
                + (f" Did you mean {' or '.join(f'`{field}`' for field in close)}?" if close else "")
            )


def check_windows(config: PreTrainedConfig, image_size: tuple[int, int]) -> None:
    """Raise, before the first step, if patches do not divide the image, or local windows the grid of patches."""
    if isinstance(config, IceDeiTConfig):
        config.check_values()
        check_num_windows(grid_size(image_size, as_pair(config.patch_size)), config.num_local_windows)


def build_model(
    model_args: ModelArguments, config: PreTrainedConfig, class_names: Sequence[str], is_multi_label: bool = False
) -> PreTrainedModel:
    """Return the classifier to train, in float32: from random weights, or an ICE model from a checkpoint.

    Args:
        model_args: Which model.
        config: Its configuration; the classes are written into it.
        class_names: Names of the classes, in the order of the labels; heads of a checkpoint are matched by name.
        is_multi_label: Whether the data have several classes an image, or none; `problem_type` follows them.

    Raises:
        ValueError: If weights of the checkpoint do not fit; see `load_weights`.
    """
    config.id2label = dict(enumerate(class_names))
    config.label2id = {name: index for index, name in enumerate(class_names)}
    _set_problem_type(config, is_multi_label)
    if isinstance(config, IceDeiTConfig):
        config.object_thresholds = None  # they belong to the weights and classes of the checkpoint
    if model_args.model_name_or_path is not None:
        source, replaces_heads = model_args.model_name_or_path, model_args.ignore_mismatched_sizes
        return load_weights(source, cast(IceDeiTConfig, config), replaces_heads, **model_args.hub_options)
    config.problem_type = config.problem_type or "single_label_classification"
    # transformers chooses the first of a family's several classes (DeiT), but stumbles over a `None` here
    config.architectures = config.architectures or []
    model = AutoModelForImageClassification.from_config(config, dtype=torch.float32)
    if model_args.initialization == "mimetic":
        initialize_mimetically(model)
    return model


def _set_problem_type(config: PreTrainedConfig, is_multi_label: bool) -> None:
    """Let the problem type follow the data, and say so where the configuration names another one."""
    wanted: Any = "multi_label_classification" if is_multi_label else "single_label_classification"
    if config.problem_type not in (None, wanted):
        logger.warning(
            f"The data have {'several classes, or none,' if is_multi_label else 'one class'} an image, so "
            f"`problem_type` becomes {wanted!r}, {config.problem_type!r} before."
        )
    if is_multi_label or config.problem_type is not None:
        config.problem_type = wanted


def choose_attention(model: PreTrainedModel, device: torch.device, bf16: bool) -> None:
    """On a processor and for few patches, train with attention of plain matrix products ("eager").

    The backward pass of torch's fused attention ("sdpa") is slow there: forward and backward of 32 images of 66 tokens
    take 34 ms in bfloat16 and 16 in float32, with matrix products 8 and 9 (torch 2.13, two cores of an AMD EPYC 9004).
    At 578 tokens, in float32 at 198, fused attention is faster. The weights and what is saved are the same.
    """
    if device.type != "cpu" or model.config._attn_implementation != "sdpa" or not hasattr(model.config, "patch_size"):
        return
    rows, columns = grid_size(as_pair(model.config.image_size), as_pair(model.config.patch_size))
    if rows * columns <= _EAGER_UP_TO["bfloat16" if bf16 else "float32"]:
        model.set_attn_implementation("eager")


def build_image_processor(model_args: ModelArguments, config: PreTrainedConfig, image_size: int | None = None) -> Any:
    """Return the image processor that is saved with the model.

    That of `image_processor_name` or of the checkpoint. From scratch, one that converts to RGB, resizes to the model's
    input without cropping, and normalises with the mean and deviation of ImageNet.

    Args:
        model_args: Which model.
        config: Its configuration.
        image_size: Side of the input in pixels, if not that of the loaded processor or of `--config_overrides`.

    Raises:
        ValueError: If the checkpoint has no image processor.
    """
    wanted = _wanted_size(model_args, image_size)
    height, width = as_pair(config.image_size if wanted is None else wanted)
    size = {"height": height, "width": width}
    is_ice = isinstance(config, IceDeiTConfig)
    name = model_args.image_processor_name or model_args.model_name_or_path
    if name is None and is_ice:
        return IceDeiTImageProcessor(size=size)
    if name is None:
        mean, std = list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD)
        return DeiTImageProcessorPil(
            size=size, do_center_crop=False, do_convert_rgb=True, image_mean=mean, image_std=std
        )
    options = model_args.hub_options | ({} if wanted is None else {"size": size, "crop_size": size})
    processor_class: Any = IceDeiTImageProcessor if is_ice else AutoImageProcessor
    if not is_ice:
        options["trust_remote_code"] = model_args.trust_remote_code
    try:
        return processor_class.from_pretrained(name, do_convert_rgb=True, **options)
    except OSError as error:
        raise ValueError(
            f"{name} holds no image processor (preprocessor_config.json): {error} The pixels must be normalised as in "
            "its training; name a fitting processor with `--image_processor_name`."
        ) from error
