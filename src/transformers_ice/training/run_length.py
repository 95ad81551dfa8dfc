# SPDX-License-Identifier: Apache-2.0
"""Length of a run before it begins: its steps, and about how long they take."""

from __future__ import annotations

import math
import time

import torch
from transformers import AutoModelForImageClassification, PreTrainedConfig, TrainingArguments

from ..ice_deit.configuration_ice_deit import IceDeiTConfig
from ..ice_deit.modeling_ice_deit import IceDeiTForImageClassification
from .parameter_groups import freeze_layers
from .progress import describe_time


__all__ = ["count_steps", "describe_length", "time_image"]

_TIMED_IMAGES = 4  # on the CPU, where a whole batch may take a minute


def count_steps(num_images: int, args: TrainingArguments) -> tuple[int, int]:
    """Return the steps of an epoch and of the run, as `Trainer` counts them."""
    batch_size = args.train_batch_size * args.world_size
    batches = num_images // batch_size if args.dataloader_drop_last else math.ceil(num_images / batch_size)
    steps = max(1, math.ceil(batches / args.gradient_accumulation_steps))
    return steps, args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps)


def time_image(config: PreTrainedConfig, input_size: tuple[int, int], args: TrainingArguments) -> float:
    """Return the seconds for loss and gradients of an image on the device of the run, by the second batch of two.

    The weights and the pixels are random.
    """
    config.architectures = config.architectures or []
    if isinstance(config, IceDeiTConfig):
        model: torch.nn.Module = IceDeiTForImageClassification(config)
    else:
        model = AutoModelForImageClassification.from_config(config)
    model.to(args.device).train()
    for module in freeze_layers(model, getattr(args, "freeze_layers", None)):
        module.eval()
    number = args.train_batch_size if args.device.type != "cpu" else min(args.train_batch_size, _TIMED_IMAGES)
    pixel_values = torch.randn(number, config.num_channels, *input_size, device=args.device)
    labels = torch.arange(number, device=args.device) % int(config.num_labels or 1)
    seconds = 0.0
    for _ in range(2):  # the first warms up
        start = time.perf_counter()
        precision = torch.bfloat16 if args.bf16 else torch.float16
        with torch.autocast(args.device.type, precision, enabled=args.bf16 or args.fp16):
            loss = model(pixel_values=pixel_values, labels=labels, return_dict=True).loss
        loss.backward()
        loss.item()  # waits for the device
        seconds = time.perf_counter() - start
    return seconds / number


def describe_length(
    config: PreTrainedConfig, input_size: tuple[int, int], num_images: int, args: TrainingArguments
) -> str:
    """Return how many steps a run has and about how long they take."""
    per_epoch, steps = count_steps(num_images, args)
    batch_size = args.train_batch_size * args.gradient_accumulation_steps
    is_cached = getattr(args, "cache_features", False)
    timed_steps = min(steps, per_epoch) if is_cached else steps
    seconds = timed_steps * batch_size * time_image(config, input_size, args)
    return (
        f"{steps} steps of {batch_size * args.world_size} images, {per_epoch} steps an epoch; about "
        f"{describe_time(seconds)} on this machine, without reading images, evaluations and a teacher"
        f"{', for the first epoch: later ones take frozen layers from the cache.' if is_cached else '.'}"
    )
