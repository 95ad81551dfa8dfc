# SPDX-License-Identifier: Apache-2.0
r"""Time training: a step of ICE over one of plain DeiT, augmentation on one core, and the wait for data.

    python benchmarks/run_training_benchmark.py --output_dir outputs/training-benchmark

Prints a table of medians and quartiles: milliseconds of a step (forward, backward, AdamW) of DeiT-S of transformers
and ICE-DeiT-S alternately (`--hidden_size 192`: of DeiT-Ti), images a second from JPEG files of 500 x 375 pixels to a
normalised batch on one core under three `--augmentation`s (decoding included), and the part of a step of the Trainer
in which it waits for its batch while `--dataloader_num_workers` processes make batches of `--augmentation deit`, and
the memory of a step; with `--torch_compile true` also compiled steps.
OUTPUT_DIR/results.json holds every single number, with settings and machine. Some minutes on two cores;
`docs/results/training-speed.md` shows what it printed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

import torch
from training_speed import (
    TrainingBenchmarkArguments,
    build_step_models,
    draw_photographs,
    measure_augmentation,
    measure_first_steps,
    measure_memory,
    measure_steps,
    measure_waiting,
    parse_training_benchmark_arguments,
    training_table,
)

from transformers_ice.console.output_files import make_folder, write_text
from transformers_ice.speed import describe_machine


def benchmark(arguments: TrainingBenchmarkArguments) -> None:
    """Measure everything, print the table and write the file."""
    if arguments.num_threads is not None:
        torch.set_num_threads(arguments.num_threads)
    file = make_folder(arguments.output_dir) / "results.json"
    device = torch.device("cuda" if torch.cuda.is_available() and not arguments.use_cpu else "cpu")
    machine = describe_machine(device)
    print(*(f"{name}: {value}" for name, value in machine.items()), sep="\n", flush=True)
    height, width = arguments.photograph_size
    table = draw_photographs(arguments.num_images, (height, width), arguments.seed)
    models = build_step_models(arguments, device)
    first_steps = measure_first_steps(models, arguments, device)
    measurements = {
        "seconds_of_a_step": lambda: measure_steps(models, arguments, device),
        "images_per_second": lambda: measure_augmentation(table, arguments),
        "waiting": lambda: measure_waiting(table, arguments, models["ICE"]),
        "mebibytes_an_image": lambda: measure_memory(models, arguments, device),
        "seconds_of_the_first_step": lambda: first_steps,
    }
    results: dict[str, dict[str, list[float]]] = {}
    for name, measure in measurements.items():
        results[name] = measure()
        # after each, so that a stopped run keeps its results so far
        content = {"settings": asdict(arguments), "machine": machine, **results}
        write_text(file, json.dumps(content, indent=1) + "\n")
    print(f"\n{training_table(*results.values())}\n\nEvery number is in {file}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark of the command line; return the exit code."""
    arguments = parse_training_benchmark_arguments(sys.argv[1:] if argv is None else argv, __doc__)
    try:
        benchmark(arguments)
    except (OSError, ValueError, torch.OutOfMemoryError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
