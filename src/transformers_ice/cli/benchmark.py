# SPDX-License-Identifier: Apache-2.0
r"""Time pruned models against the unpruned one, and against the speed-up that their MACs would allow.

DeiT-S/16 of random weights, where the keep rate of each image is drawn from a beta distribution:

    transformers-ice benchmark --keep_beta 0.5 0.2 --batch_sizes 1 32 --output_dir outputs/benchmark

A trained checkpoint, which decides how many patches of each image it keeps:

    transformers-ice benchmark --model_name_or_path my-pruned-model --data_dir my-photos

The keep rates of another model, on a larger one (for every image a list with one rate for each pruning layer, as
`benchmarks/run_pruning_study.py` writes them), several files:

    transformers-ice benchmark --keep_counts outputs/pruning-study/counts/patch-unmasked*.json

Prints a table for each batch size: images per second, the speed-up over the unpruned model with its quartiles (all
variants alternate in every repeat, on the same images), mean tokens in a layer, billions of MACs per image, the
speed-up that the MACs would allow and the part of it that was reached. OUTPUT_DIR/results.json has these and every
single time, with settings and machine; with `--accuracies`, OUTPUT_DIR/speed.png plots accuracy over images a second.
An unpruned ViT-S/16 of 1000 classes has 4.5989 GMACs, the ICE model with its patch head and gates a little more.
"""

from __future__ import annotations

import sys
from dataclasses import asdict

import torch

from ..console.exits import command
from ..console.output_files import check_outputs, make_folder
from ..speed import (
    BenchmarkArguments,
    SpeedRow,
    TimingPlan,
    build_variants,
    describe_machine,
    keep_freed_memory,
    load_model,
    load_workload,
    measure_speed,
    parse_benchmark_arguments,
    read_accuracies,
    speed_table,
    unusable_strategies,
    write_results,
)
from ..visualization import save_figure, speed_plot


__all__ = ["benchmark", "main"]


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


def benchmark(arguments: BenchmarkArguments) -> None:
    """Time everything, print the tables and write the files."""
    if arguments.num_threads is not None:
        torch.set_num_threads(arguments.num_threads)
    output_dir = make_folder(arguments.output_dir)
    inputs = [*(arguments.keep_counts or ()), *filter(None, [arguments.accuracies])]
    check_outputs([output_dir / name for name in ("results.json", "speed.png")], inputs)
    device = choose_device(arguments.device)
    model = load_model(arguments, device)
    variants = build_variants(model, arguments.keep_rates, arguments.compile, arguments.decided_names)
    accuracies = None
    if arguments.accuracies is not None:
        accuracies = read_accuracies(arguments.accuracies, [variant.name for variant in variants])
    workload = load_workload(arguments, model)
    is_kept = arguments.keep_freed_memory and keep_freed_memory()
    machine = {**describe_machine(device), "freed memory": "kept" if is_kept else "left to the allocator"}
    print(*(f"{name}: {value}" for name, value in {**machine, "dtype": arguments.dtype}.items()), sep="\n")
    left_out = unusable_strategies(model)
    if left_out:
        print(f"\nLeft out: {', '.join(left_out)}: the model has no trained pruning heads. See `--keep_beta`.")
    plan = TimingPlan(arguments.num_repeats, arguments.num_warmups, arguments.images_per_repeat, arguments.seed)
    rows: list[SpeedRow] = []
    for batch_size in arguments.batch_sizes:
        rows += measure_speed(variants, workload, batch_size, plan)
        print(f"\nBatch size {batch_size}\n\n{speed_table(rows[-len(variants) :])}", flush=True)
        # after every batch size, so that a stopped run keeps its results so far
        settings = {**asdict(arguments), "num_images": len(workload.pixel_values)}
        config = model.config.to_dict()
        write_results(output_dir / "results.json", rows, settings=settings, machine=machine, config=config)
    print("\nideal: speed-up that the MACs would allow; reached: speed-up over the unpruned model, of the ideal one")
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
