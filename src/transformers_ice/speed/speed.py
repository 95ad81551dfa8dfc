# SPDX-License-Identifier: Apache-2.0
"""Images per second of several models, and the speed-up that their MACs would allow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..ice_deit.configuration_ice_deit import as_pair
from .keep_counts import prescribed_counts
from .macs import TokenCounts, count_macs, count_tokens, ideal_macs
from .timing import Spread, interleave, summarize_spread, time_call
from .variants import REFERENCE, Variant


__all__ = ["SpeedRow", "TimingPlan", "Workload", "count_variant_tokens", "measure_speed"]

_COUNTING_BATCH = 32  # images; not timed


@dataclass(frozen=True)
class Workload:
    """Images that all variants run on.

    Attributes:
        pixel_values: `(num_images, num_channels, height, width)`, on the models' device and in their precision.
        keep_counts: By name of a variant whose images decide, `(num_images, num_pruning_layers)`, int: the patches
            that each image keeps in place of that decision; `None` where the model decides.
    """

    pixel_values: Tensor
    keep_counts: Mapping[str, Tensor] | None = None

    def batch(self, start: int, batch_size: int) -> Workload:
        """Return `batch_size` images from a start index on; wraps around after the last one."""
        # (batch_size,), int64
        places = torch.arange(start, start + batch_size, device=self.pixel_values.device) % len(self.pixel_values)
        if self.keep_counts is None:
            return Workload(self.pixel_values[places])
        counts = {name: counts[places] for name, counts in self.keep_counts.items()}
        return Workload(self.pixel_values[places], counts)

    def decide(self, variant: Variant) -> AbstractContextManager[None]:
        """Return the block in which a variant keeps the prescribed numbers of patches of these images."""
        if self.keep_counts is None or not variant.is_decided:
            return nullcontext()
        return prescribed_counts(variant.model, self.keep_counts[variant.name], variant.model.config.pruning_layers)


@dataclass(frozen=True)
class TimingPlan:
    """Length and order of a measurement.

    Attributes:
        num_repeats: Repeats that count.
        num_warmups: Repeats before them that do not.
        images_per_repeat: Images that each repeat runs, in as many batches as needed, at least one.
        seed: Seed of the order of the variants.
    """

    num_repeats: int = 10
    num_warmups: int = 2
    images_per_repeat: int = 64
    seed: int = 0


@dataclass(frozen=True)
class SpeedRow:
    """Measurement of one variant at one batch size.

    Attributes:
        variant: Its name.
        batch_size: Images that go through the model at once.
        images_per_second: Over the repeats.
        milliseconds_per_image: Over the repeats.
        speedup: Time of the unpruned model, not compiled, divided by its own, both of the same repeat.
        tokens_per_layer: Tokens that enter each layer, mean over the images, prefix tokens included.
        gmacs: Billions of MACs per image without wasted computation, mean over the images.
        counted_gmacs: The same as counted while the first batch ran; `None` for a compiled model.
        ideal_speedup: MACs of the unpruned model divided by its own.
        ideal_reached: Median speed-up divided by the ideal one.
        seconds: Time of each repeat, per image.
    """

    variant: str
    batch_size: int
    images_per_second: Spread
    milliseconds_per_image: Spread
    speedup: Spread
    tokens_per_layer: list[float]
    gmacs: float
    counted_gmacs: float | None
    ideal_speedup: float
    ideal_reached: float
    seconds: list[float]


@torch.inference_mode()
def count_variant_tokens(variant: Variant, workload: Workload) -> TokenCounts:
    """Count the tokens in each part of a variant; it is run where the images decide."""
    config = variant.model.config
    if not variant.is_decided:
        # the counts are fixed: `count_tokens` uses only the shape of the exit layers
        shape = (len(workload.pixel_values), _num_patches(variant, workload))
        return count_tokens(config, np.full(shape, config.num_hidden_layers))
    exits = []
    for start in range(0, len(workload.pixel_values), _COUNTING_BATCH):
        batch = workload.batch(start, min(_COUNTING_BATCH, len(workload.pixel_values) - start))
        with batch.decide(variant):
            exits.append(variant.model(batch.pixel_values).patch_exit_layer.cpu())  # (batch_size, num_patches)
    return count_tokens(config, torch.cat(exits).numpy())


def _num_patches(variant: Variant, workload: Workload) -> int:
    height, width = as_pair(variant.model.config.patch_size)
    # pixels of a channel / pixels of a patch
    return workload.pixel_values[0, 0].numel() // (height * width)


@torch.inference_mode()
def measure_speed(
    variants: Sequence[Variant],
    workload: Workload,
    batch_size: int,
    plan: TimingPlan = TimingPlan(),
    compiler: Callable[[Any], Any] | None = None,
) -> list[SpeedRow]:
    """Measure all variants in one run, each once in every repeat.

    Args:
        variants: Models to compare, the unpruned one among them.
        workload: Their images.
        batch_size: Images that go through a model at once.
        plan: Length and order of the measurement.
        compiler: Compiles a model; `None` takes `torch.compile` for fixed shapes.
    """
    torch.compiler.reset()  # one graph for each batch size would run into its limit of graphs
    compiler = compiler or partial(torch.compile, dynamic=False)
    models = {variant.name: compiler(variant.model) if variant.is_compiled else variant.model for variant in variants}
    measures = {
        variant.name: partial(_seconds_per_image, variant, models[variant.name], workload, batch_size, plan)
        for variant in variants
    }
    seconds = interleave(measures, plan.num_repeats, plan.num_warmups, plan.seed)
    macs, tokens = {}, {}
    for variant in variants:
        counts = count_variant_tokens(variant, workload)
        num_patches = _num_patches(variant, workload)
        macs[variant.name] = float(ideal_macs(variant.model.config, **vars(counts), num_patches=num_patches).mean())
        tokens[variant.name] = counts.tokens_per_layer.mean(axis=0).tolist()
    first = workload.batch(0, batch_size)
    return [
        _build_row(
            variant.name,
            batch_size,
            (seconds[variant.name], seconds[REFERENCE]),
            tokens[variant.name],
            (macs[variant.name], macs[REFERENCE]),
            _count_batch(variant, first),
        )
        for variant in variants
    ]


def _seconds_per_image(
    variant: Variant, model: Any, workload: Workload, batch_size: int, plan: TimingPlan, repeat: int
) -> float:
    """Time one repeat: all variants run the same images in it, and other ones in the next."""
    num_batches = max(1, plan.images_per_repeat // batch_size)
    total = 0.0
    for number in range(num_batches):
        batch = workload.batch((repeat * num_batches + number) * batch_size, batch_size)
        with batch.decide(variant):
            # preparing the batch is not timed
            total += time_call(partial(model, batch.pixel_values), batch.pixel_values.device)
    return total / (num_batches * batch_size)  # seconds per image


def _count_batch(variant: Variant, batch: Workload) -> float | None:
    """Return the counted MACs per image in billions."""
    if variant.is_compiled:
        return None
    with batch.decide(variant):
        return count_macs(partial(variant.model, batch.pixel_values)) / len(batch.pixel_values) / 1e9


def _build_row(
    name: str,
    batch_size: int,
    seconds: tuple[list[float], list[float]],
    tokens: list[float],
    macs: tuple[float, float],
    counted: float | None,
) -> SpeedRow:
    """Return a row; of the pairs, the second belongs to the unpruned model."""
    own, unpruned = seconds
    time = summarize_spread(own)
    # ratios within a repeat: a slowdown of the machine affects both
    speedup = summarize_spread([base / taken for base, taken in zip(unpruned, own, strict=True)])
    ideal = macs[1] / macs[0]
    return SpeedRow(
        variant=name,
        batch_size=batch_size,
        images_per_second=Spread(1 / time.median, 1 / time.high, 1 / time.low),  # the slowest time is the lowest rate
        milliseconds_per_image=Spread(1e3 * time.median, 1e3 * time.low, 1e3 * time.high),  # from seconds
        speedup=speedup,
        tokens_per_layer=tokens,
        gmacs=macs[0] / 1e9,
        counted_gmacs=counted,
        ideal_speedup=ideal,
        ideal_reached=speedup.median / ideal,
        seconds=own,
    )
