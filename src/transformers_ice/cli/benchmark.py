# SPDX-License-Identifier: Apache-2.0
r"""Time pruned models against the unpruned one, and against the speed-up that their MACs would allow.

DeiT-S/16 of random weights, where the keep rate of each image is drawn from a beta distribution:

    transformers-ice benchmark --keep_beta 0.5 0.2 --batch_sizes 1 32 --output_dir outputs/benchmark

A trained checkpoint, which decides how many patches of each image it keeps:

    transformers-ice benchmark --model_name_or_path my-pruned-model --data_dir my-photos

The keep rates of another model, on a larger one (for every image a list with one rate for each pruning layer, as
`benchmarks/run_pruning_study.py` writes them), several files:

    transformers-ice benchmark --keep_counts outputs/pruning-study/counts/patch-unmasked*.json

Optimized models and the published code of EViT and ToMe, from your clones of their repositories, by turns with these:

    transformers-ice benchmark --keep_beta 0.5 0.2 --optimized torch onnxruntime onnxruntime:int8 \
        --external evit=../evit tome=../ToMe

Prints a table for each batch size: images per second, the speed-up over the unpruned model with its quartiles (all
variants alternate in every repeat, on the same images), mean tokens in a layer, billions of MACs per image, the
speed-up that the MACs would allow and the part of it that was reached, and the fraction of the machine's peak: one
large matrix product, timed in the same repeats. OUTPUT_DIR/results.json has these and every single time, with settings
and machine; with `--accuracies`, OUTPUT_DIR/speed.png plots accuracy over images a second. An unpruned ViT-S/16 of
1000 classes has 4.5989 GMACs, the ICE model with its patch head and gates a little more.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from ..console.exits import command
from ..console.output_files import check_outputs, make_folder
from ..ice_deit.modeling_ice_deit import IceDeiTForImageClassification
from ..inference import optimize_for_inference
from ..speed import (
    BenchmarkArguments,
    SpeedRow,
    TimingPlan,
    Variant,
    Workload,
    build_variants,
    check_dtypes,
    comparison_table,
    describe_machine,
    external_variants,
    keep_freed_memory,
    load_model,
    load_workload,
    measure_speed,
    optimize_variants,
    parse_benchmark_arguments,
    read_accuracies,
    speed_table,
    unusable_strategies,
    write_results,
)
from ..visualization import save_figure, speed_plot


__all__ = ["benchmark", "main"]

_CALIBRATION_IMAGES = 32
_LEGEND = """
ideal: speed-up that the MACs would allow; reached: speed-up over the unpruned model, of the ideal one
of peak: operations a second, two for each MAC, of those of one large matrix product in the same number type; a dash
for int8, for which PyTorch has no fast product to compare with"""


def choose_device(name: str) -> torch.device:
    """Return a device by its name; "auto" is a GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"--device must be a device of this machine, e.g. auto or cpu, got {name!r}: {error}"
        ) from error
    return torch.device(name)


def collect_variants(
    arguments: BenchmarkArguments, model: IceDeiTForImageClassification, workload: Workload
) -> list[Variant]:
    """Return all variants that are timed: in every number type, optimized, and of published code."""
    variants: list[Variant] = []
    for place, dtype in enumerate(arguments.dtype):
        suffix = f", {dtype}" if place else ""
        own = model if dtype == "float32" else copy.deepcopy(model).to(getattr(torch, dtype))
        variants += build_variants(own, arguments.keep_rates, arguments.decided_names, suffix)
    if arguments.optimized:
        # prescribed numbers are a hook of the eager model
        plain = [v for v in variants if v.precision == "float32" and not (arguments.is_prescribed and v.decided_by)]

        def optimize(model: Any, backend: str, precision: str) -> Any:
            is_static = (backend, precision) == ("openvino", "int8")
            images = workload.pixel_values[:_CALIBRATION_IMAGES] if is_static else None
            return optimize_for_inference(
                model, backend, precision, num_threads=torch.get_num_threads(), calibration_images=images
            )

        variants += optimize_variants(plain, arguments.optimized, optimize)
    if arguments.external:
        folders = dict(entry.split("=", 1) for entry in arguments.external)
        published = external_variants(model, folders, arguments.keep_rates, workload.pixel_values[:2])
        for place, dtype in enumerate(arguments.dtype):
            variants += [variant.to(dtype, f", {dtype}" if place else "") for variant in published]
    return variants


def _print_head(arguments: BenchmarkArguments, machine: Mapping[str, Any], variants: Sequence[Variant]) -> None:
    """Print the machine, and how the optimized models were built."""
    head = {**machine, "dtype": ", ".join(arguments.dtype)}
    for variant in variants:
        if variant.eager is not None:
            made = variant.model.optimization
            head[variant.name] = f"{made.backend}, {made.precision}: {made.reason}"
    print(*(f"{name}: {value}" for name, value in head.items()), sep="\n")


def _print_rows(batch_size: int, rows: Sequence[SpeedRow]) -> None:
    """Print the tables of a batch size."""
    peaks = {row.precision: row.peak_gflops for row in rows if row.peak_gflops is not None}
    found = ", ".join(f"{name} {peak.median:.0f} ({peak.low:.0f}-{peak.high:.0f})" for name, peak in peaks.items())
    print(f"\nBatch size {batch_size}; peak in GFLOP/s: {found}\n\n{speed_table(rows)}", flush=True)
    compared = comparison_table(rows)
    if compared:
        print(f"\n{compared}", flush=True)


def benchmark(arguments: BenchmarkArguments) -> None:
    """Time everything, print the tables and write the files."""
    if arguments.num_threads is not None:
        torch.set_num_threads(arguments.num_threads)
    output_dir = make_folder(arguments.output_dir)
    inputs = [*(arguments.keep_counts or ()), *filter(None, [arguments.accuracies])]
    check_outputs([output_dir / name for name in ("results.json", "speed.png")], inputs)
    device = choose_device(arguments.device)
    check_dtypes(arguments.dtype, device)
    model = load_model(arguments, device)
    workload = load_workload(arguments, model)
    variants = collect_variants(arguments, model, workload)
    accuracies = None
    if arguments.accuracies is not None:
        accuracies = read_accuracies(arguments.accuracies, [variant.name for variant in variants])
    is_kept = arguments.keep_freed_memory and keep_freed_memory()
    machine = {**describe_machine(device), "freed memory": "kept" if is_kept else "left to the allocator"}
    _print_head(arguments, machine, variants)
    left_out = unusable_strategies(model)
    if left_out:
        print(f"\nLeft out: {', '.join(left_out)}: the model has no trained pruning heads. See `--keep_beta`.")
    if arguments.optimized and arguments.is_prescribed:
        print("\nNot optimized: background, since only PyTorch's own model can follow prescribed numbers.")
    plan = TimingPlan(arguments.num_repeats, arguments.num_warmups, arguments.images_per_repeat, arguments.seed)
    rows: list[SpeedRow] = []
    for batch_size in arguments.batch_sizes:
        rows += measure_speed(variants, workload, batch_size, plan)
        _print_rows(batch_size, rows[-len(variants) :])
        # after every batch size, so that a stopped run keeps its results so far
        settings = {**asdict(arguments), "num_images": len(workload.pixel_values)}
        config = model.config.to_dict()
        write_results(output_dir / "results.json", rows, settings=settings, machine=machine, config=config)
    print(_LEGEND)
    if accuracies is not None:
        points = {  # x and y of the figure, by batch size and variant
            f"batch size {size}": {
                row.variant: (row.images_per_second.median, accuracies[row.variant])
                for row in rows
                if row.batch_size == size and row.variant in accuracies
            }
            for size in arguments.batch_sizes
        }
        save_figure(speed_plot(points), output_dir / "speed.png")
    print(f"\nEverything is in {output_dir}")


@command(stopped="Stopped. results.json holds the batch sizes that were finished.")
def main(argv: list[str]) -> int:
    """Run the benchmark of the command line; return the exit code."""
    benchmark(parse_benchmark_arguments(argv, __doc__))
    return 0


if __name__ == "__main__":
    sys.exit(main())
