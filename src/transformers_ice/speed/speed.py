# SPDX-License-Identifier: Apache-2.0
"""Images per second of several models, and the speed-up that their MACs would allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..ice_deit.configuration_ice_deit import as_pair
from .keep_counts import prescribed_counts
from .macs import TokenCounts, count_macs, count_tokens, ideal_macs
from .peak import peak_flops, peak_measure
from .timing import Spread, interleave, summarize_spread, time_call
from .variants import REFERENCE, Variant


__all__ = ["SpeedRow", "TimingPlan", "Workload", "count_variant_tokens", "measure_speed"]

_COUNTING_BATCH = 32  # images; not timed
_INT8 = "int8"  # torch has no fast product of int8 matrices to measure a peak with


@dataclass(frozen=True)
class Workload:
    """Images that all variants run on.

    Attributes:
        pixel_values: `(num_images, num_channels, height, width)`, on the models' device.
        keep_counts: By name, `(num_images, num_pruning_layers)`, int: the patches that each image keeps in the
            variants that are decided by that name; `None` where the model decides.
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
        if self.keep_counts is None or variant.decided_by is None:
            return nullcontext()
        return prescribed_counts(variant.model, self.keep_counts[variant.decided_by], variant.config.pruning_layers)


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
        speedup: Time of the unpruned model divided by its own, both of the same repeat.
        tokens_per_layer: Tokens that enter each layer, mean over the images, prefix tokens included.
        gmacs: Billions of MACs per image without wasted computation, mean over the images.
        counted_gmacs: The same as counted while the first batch ran; `None` for an optimized model.
        ideal_speedup: MACs of the unpruned model divided by its own.
        ideal_reached: Median speed-up divided by the ideal one.
        precision: Number type of its matrix products.
        peak_gflops: Billions of operations a second of one large matrix product in that type, over the repeats, where
            a MAC is two operations; `None` for int8.
        is_published: Whether it runs the published code of another method.
        of_peak: Its own operations a second, by `gmacs`, divided by the peak of the same repeat; median.
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
    precision: str
    peak_gflops: Spread | None
    of_peak: float | None
    is_published: bool
    seconds: list[float]


@torch.inference_mode()
def count_variant_tokens(variant: Variant, workload: Workload) -> TokenCounts:
    """Count the tokens in each part of a variant; it is run where the images decide."""
    if variant.counts is not None:
        return variant.counts
    if variant.decided_by is None:
        # the counts are fixed: `count_tokens` uses only the shape of the exit layers
        shape = (len(workload.pixel_values), _num_patches(variant, workload))
        return count_tokens(variant.config, np.full(shape, variant.config.num_hidden_layers))
    exits, model = [], variant.model if variant.eager is None else variant.eager
    for start in range(0, len(workload.pixel_values), _COUNTING_BATCH):
        batch = workload.batch(start, min(_COUNTING_BATCH, len(workload.pixel_values) - start))
        with batch.decide(variant):
            # (batch_size, num_patches)
            exits.append(model(batch.pixel_values.to(variant.dtype)).patch_exit_layer.cpu())
    return count_tokens(variant.config, torch.cat(exits).numpy())


def _num_patches(variant: Variant, workload: Workload) -> int:
    height, width = as_pair(variant.config.patch_size)
    # pixels of a channel / pixels of a patch
    return workload.pixel_values[0, 0].numel() // (height * width)


@torch.inference_mode()
def measure_speed(
    variants: Sequence[Variant], workload: Workload, batch_size: int, plan: TimingPlan = TimingPlan()
) -> list[SpeedRow]:
    """Measure all variants in one run, each once in every repeat, and the peak of the machine among them.

    Args:
        variants: Models to compare, the unpruned one among them.
        workload: Their images.
        batch_size: Images that go through a model at once.
        plan: Length and order of the measurement.
    """
    device = workload.pixel_values.device
    dtypes = sorted({variant.precision for variant in variants} - {_INT8})
    measures = {name: peak_measure(getattr(torch, name), device) for name in dtypes}
    measures |= {
        variant.name: partial(_seconds_per_image, variant, workload, batch_size, plan) for variant in variants
    }
    seconds = interleave(measures, plan.num_repeats, plan.num_warmups, plan.seed)
    peaks = {name: [peak_flops(taken, device) for taken in seconds[name]] for name in dtypes}
    works = {variant.name: _count_work(variant, workload, batch_size) for variant in variants}
    return [
        _build_row(
            variant,
            batch_size,
            (seconds[variant.name], seconds[REFERENCE]),
            (works[variant.name], works[REFERENCE]),
            peaks.get(variant.precision),
        )
        for variant in variants
    ]


def _seconds_per_image(variant: Variant, workload: Workload, batch_size: int, plan: TimingPlan, repeat: int) -> float:
    """Time one repeat: all variants run the same images in it, and other ones in the next."""
    num_batches = max(1, plan.images_per_repeat // batch_size)
    total = 0.0
    for number in range(num_batches):
        batch = workload.batch((repeat * num_batches + number) * batch_size, batch_size)
        pixel_values = batch.pixel_values.to(variant.dtype)
        with batch.decide(variant):
            # preparing the batch is not timed
            total += time_call(partial(variant.model, pixel_values), pixel_values.device)
    return total / (num_batches * batch_size)  # seconds per image


@dataclass(frozen=True)
class _Work:
    """Tokens in each layer and MACs of a variant, per image, mean over the images; MACs as counted, if they can be."""

    tokens_per_layer: list[float]
    macs: float
    counted_macs: float | None


def _count_work(variant: Variant, workload: Workload, batch_size: int) -> _Work:
    counts = count_variant_tokens(variant, workload)
    macs = ideal_macs(variant.config, **vars(counts), num_patches=_num_patches(variant, workload))
    counted = None
    if variant.eager is None:
        batch = workload.batch(0, batch_size)
        with batch.decide(variant):
            counted = count_macs(partial(variant.model, batch.pixel_values.to(variant.dtype))) / batch_size
    return _Work(counts.tokens_per_layer.mean(axis=0).tolist(), float(macs.mean()), counted)


def _build_row(
    variant: Variant,
    batch_size: int,
    seconds: tuple[list[float], list[float]],
    works: tuple[_Work, _Work],
    peaks: list[float] | None,
) -> SpeedRow:
    """Return a row; of the pairs, the second belongs to the unpruned model. `peaks` are operations a second."""
    own, unpruned = seconds
    work, whole = works
    time = summarize_spread(own)
    # ratios within a repeat: a slowdown of the machine affects both
    speedup = summarize_spread([base / taken for base, taken in zip(unpruned, own, strict=True)])
    ideal = whole.macs / work.macs
    of_peak, peak_gflops = None, None
    if peaks is not None:
        rates = [2 * work.macs / taken for taken in own]
        of_peak = summarize_spread([rate / peak for rate, peak in zip(rates, peaks, strict=True)]).median
        peak_gflops = summarize_spread([peak / 1e9 for peak in peaks])
    return SpeedRow(
        variant=variant.name,
        batch_size=batch_size,
        images_per_second=Spread(1 / time.median, 1 / time.high, 1 / time.low),  # the slowest time is the lowest rate
        milliseconds_per_image=Spread(1e3 * time.median, 1e3 * time.low, 1e3 * time.high),  # from seconds
        speedup=speedup,
        tokens_per_layer=work.tokens_per_layer,
        gmacs=work.macs / 1e9,
        counted_gmacs=None if work.counted_macs is None else work.counted_macs / 1e9,
        ideal_speedup=ideal,
        ideal_reached=speedup.median / ideal,
        precision=variant.precision,
        peak_gflops=peak_gflops,
        of_peak=of_peak,
        is_published=variant.counts is not None,
        seconds=own,
    )
