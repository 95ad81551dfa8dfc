# SPDX-License-Identifier: Apache-2.0
r"""Time of `pipeline("patch-explanation")` beside the forward pass, from a photo file to label, mask, box and maps.

    python benchmarks/explanation_overhead.py --image photo.jpg --num_repeats 120

A DeiT-S/16 of random weights with 1,000 classes, or the model of `--model_name_or_path`; one image a call. Prints the
milliseconds of a call outside the model (reading, resizing, normalizing, maps), those of the forward pass of the same
call, and their ratio: median, 95th percentile and minimum.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence

import torch
from run_pruning_study import positive

from transformers_ice import IceDeiTConfig, IceDeiTForImageClassification, IceDeiTImageProcessor
from transformers_ice.ice_deit.pipeline_patch_explanation import PatchExplanationPipeline


_DEIT_S = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536, "num_labels": 1000}
_NUM_WARMUPS = 5


def load_pipeline(model_name_or_path: str | None) -> PatchExplanationPipeline:
    """Return the pipeline of a checkpoint, or of a DeiT-S of random weights."""
    torch.manual_seed(0)
    if model_name_or_path is None:
        model, processor = IceDeiTForImageClassification(IceDeiTConfig(**_DEIT_S)), IceDeiTImageProcessor()
    else:
        model = IceDeiTForImageClassification.from_pretrained(model_name_or_path)
        processor = IceDeiTImageProcessor.from_pretrained(model_name_or_path)
    return PatchExplanationPipeline(model=model.eval(), image_processor=processor)


def time_calls(explain: PatchExplanationPipeline, image: str, num_repeats: int) -> tuple[list[float], list[float]]:
    """Return the milliseconds of each call outside the model, and inside."""
    marks: list[float] = []
    model = explain.model
    hooks = [
        model.register_forward_pre_hook(lambda *_: marks.append(time.perf_counter())),
        model.register_forward_hook(lambda *_: marks.append(time.perf_counter())),
    ]
    outside, inside = [], []
    for repeat in range(-_NUM_WARMUPS, num_repeats):
        marks.clear()
        start = time.perf_counter()
        explain(image)
        total, forward = time.perf_counter() - start, marks[1] - marks[0]
        if repeat >= 0:
            outside.append(1000 * (total - forward))
            inside.append(1000 * forward)
    for hook in hooks:
        hook.remove()
    return outside, inside


def describe(name: str, values: Sequence[float], digits: int) -> str:
    """Return the line of one column."""
    high = statistics.quantiles(values, n=20)[-1] if len(values) > 1 else values[0]
    numbers = (statistics.median(values), high, min(values))
    return "{:16s} median {}, 95 % {}, minimum {}".format(name, *(f"{number:.{digits}f}" for number in numbers))


def main(argv: Sequence[str] | None = None) -> None:
    """Print the three lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", required=True, help="photo file")
    parser.add_argument("--model_name_or_path", help="default: a DeiT-S of random weights")
    parser.add_argument("--num_repeats", type=positive, default=120)
    parser.add_argument("--num_threads", type=positive, default=2)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.num_threads)
    outside, inside = time_calls(load_pipeline(options.model_name_or_path), options.image, options.num_repeats)
    print(describe("outside, ms", outside, 2))
    print(describe("forward, ms", inside, 1))
    ratios = [first / second for first, second in zip(outside, inside, strict=True)]
    print(describe("outside/forward", ratios, 3))


if __name__ == "__main__":
    sys.exit(main())
