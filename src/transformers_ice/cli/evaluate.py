# SPDX-License-Identifier: Apache-2.0
r"""Score explanations: benchmarks x data x methods x checkpoints, one table.

On the scenes that this package draws (no download), ICE and the classifier that it was trained from:

    transformers-ice evaluate --models checkpoints/ice-deit-scenes checkpoints/deit-scenes \
        --benchmark segmentation localization discovery --limit 1000 --output_dir outputs/evaluation

On images of your own: a folder with `images/` and `masks/` or `boxes.csv`:

    transformers-ice evaluate --models my-model --data_dir my-photos --benchmark segmentation

Several processes share the work and give the same numbers: put `torchrun --nproc_per_node 2` in place of `python`, or
`accelerate launch` where there are GPUs. A stopped run resumes: rows in OUTPUT_DIR/rows are not
computed again. OUTPUT_DIR then holds `results.json` (every score with its 95 % bootstrap interval, the cost of
every method, settings and machine), `table.md`, `scores.png` and `methods.png`. Options may also be in a YAML file.

The first command takes about two minutes on two cores (AMD EPYC, Turin).
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from ..console.exits import command
from ..console.output_files import check_outputs, make_folder, write_json, write_text
from ..data.benchmarks import load_evaluation_set
from ..data.benchmarks.examples import EvaluationSet
from ..evaluation import (
    BENCHMARKS,
    CEILING,
    SCORES,
    Checkpoint,
    Cost,
    ExplainedBatch,
    InputBatch,
    Processes,
    Protocol,
    Result,
    RowStore,
    load_checkpoint,
    markdown_table,
    measure_costs,
    parse_evaluation_arguments,
    randomization_similarity,
    results_as_json,
    run_benchmarks,
    score_maps,
    text_table,
)
from ..evaluation.arguments import EvaluationArguments
from ..explainers import EXPLAINERS
from ..ice_deit.patch_maps import ImageGeometry, bilinear_to_image, nearest_to_image
from ..speed import describe_machine
from ..visualization import method_panel, save_figure, score_bars


__all__ = ["evaluate", "main"]


COST_BATCH = 16  # images on which the time and the memory of the methods are measured
OUTPUTS = ("results.json", "table.md", "scores.png", "methods.png")


def load_models(models: Sequence[str], device: torch.device) -> list[Checkpoint]:
    """Load every checkpoint, given as FOLDER or NAME=FOLDER."""
    checkpoints = []
    for model in models:
        name, separator, path = model.partition("=")
        # a folder may have an equals sign in its own name
        has_name = separator and not Path(model).is_dir()
        checkpoints.append(load_checkpoint(*((path, name or None) if has_name else (model, None)), device))
    return checkpoints


def load_data(
    arguments: EvaluationArguments, checkpoints: Sequence[Checkpoint], benchmarks: Sequence[str]
) -> EvaluationSet:
    """Open the data set; scenes are drawn at the size of the first model's input."""
    options: dict[str, Any] = {}
    for option in arguments.dataset_options:
        key, _, value = option.partition("=")
        if not value:
            raise ValueError(f"--dataset_options must be name=value, got {option!r}.")
        is_plain = value in ("true", "false") or value.removeprefix("-").isdecimal()
        options[key] = json.loads(value) if is_plain else value
    name = arguments.dataset_name or (None if arguments.data_dir else "scenes")
    if name == "scenes":
        size = checkpoints[0].model.config.image_size
        options.setdefault("image_size", size if isinstance(size, int) else tuple(size))
    # PASCAL VOC has its boxes in another part than its masks
    needs = ["boxes"] if any("boxes" in BENCHMARKS[name].needs for name in benchmarks if name in BENCHMARKS) else []
    return load_evaluation_set(name, arguments.data_dir, arguments.split, arguments.limit, needs, **options)


def parse_device(name: str) -> torch.device:
    """Return a device by its name."""
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device must be auto, cpu, cuda, cuda:0 or mps, got {name!r}.") from error


@dataclass(frozen=True)
class Evaluation:
    """Checkpoints, data and methods of a run, for what is measured and drawn on the first images."""

    checkpoints: Sequence[Checkpoint]
    dataset: EvaluationSet
    methods: Sequence[str]
    protocol: Protocol

    def first_batches(self, count: int) -> Iterator[tuple[Checkpoint, InputBatch, list[str]]]:
        """Yield every checkpoint with its inputs for the first examples and the explainers that work on it."""
        examples = [self.dataset[index] for index in range(min(count, len(self.dataset)))]
        for checkpoint in self.checkpoints:
            fitting = [
                method
                for method in self.methods
                if method in EXPLAINERS and (checkpoint.is_ice or EXPLAINERS[method].model == "any")
            ]
            yield checkpoint, InputBatch(checkpoint, examples, self.protocol), fitting

    def measure(self, count: int) -> dict[tuple[str, str], Cost]:
        """Time every method on every checkpoint that it fits."""
        costs = {}
        for checkpoint, batch, methods in self.first_batches(count):
            for method, cost in measure_costs(checkpoint.model, batch.pixel_values, methods).items():
                costs[(checkpoint.name, method)] = cost
        return costs

    def check_sanity(self, count: int) -> dict[str, dict[str, dict[str, float | None]]]:
        """Measure how similar the maps remain under random weights, by checkpoint, method and stage."""
        similarity = {}
        for checkpoint, batch, methods in self.first_batches(count):
            similarity[checkpoint.name] = {
                method: {stage: value if math.isfinite(value) else None for stage, value in stages.items()}
                for method, stages in randomization_similarity(checkpoint.model, batch.pixel_values, methods).items()
            }
        return similarity

    def draw_methods(self, count: int, file: Path) -> None:
        """Draw the maps of all methods on the first images."""
        maps: dict[str, list[np.ndarray]] = {}
        for checkpoint, batch, methods in self.first_batches(count):
            for method in methods:
                pixels = score_maps(ExplainedBatch(batch, method).relevance(), method, batch.input_size)
                maps[f"{checkpoint.name}: {method}"] = [
                    _on_image(grid, example.image.size, is_hard=EXPLAINERS[method].is_hard)
                    for grid, example in zip(pixels, batch.examples, strict=True)
                ]
        truths = [None if example.mask is None else example.mask == 1 for example in batch.examples]
        save_figure(method_panel([np.asarray(example.image) for example in batch.examples], maps, truths), file)


def _on_image(grid: torch.Tensor, size: tuple[int, int], is_hard: bool) -> np.ndarray:
    """Resize a map from the input's resolution to the image (width, height)."""
    geometry = ImageGeometry.from_resize((size[1], size[0]), (grid.shape[0], grid.shape[1]))
    return (nearest_to_image(grid, geometry, 0.0) if is_hard else bilinear_to_image(grid, geometry)).numpy()


def draw_scores(results: Sequence[Result], file: Path) -> None:
    """Draw every score of every method with its interval."""
    scores: dict[str, dict[str, tuple[float, float, float]]] = {}
    for result in results:
        for name, interval in result.scores.items():
            if result.method and name in SCORES:
                bars = scores.setdefault(name, {})
                bars[f"{result.checkpoint}: {result.method}"] = (interval.value, interval.low, interval.high)
    if scores:
        better = {True: "larger is better", False: "smaller is better"}
        headings = {name: f"{SCORES[name][0]} ({better[SCORES[name][1]]})" for name in SCORES if name in scores}
        save_figure(score_bars(scores, headings), file)


def write_report(arguments: EvaluationArguments, evaluation: Evaluation, results: Sequence[Result]) -> str:
    """Measure costs, write everything into the output folder and return the table."""
    output_dir, costs = Path(arguments.output_dir), dict[tuple[str, str], Cost]()
    report = {
        "dataset": {"name": evaluation.dataset.name, "num_examples": len(evaluation.dataset)},
        "checkpoints": {checkpoint.name: checkpoint.digest for checkpoint in evaluation.checkpoints},
        "settings": asdict(arguments),
        "protocol": asdict(evaluation.protocol),
        "machine": describe_machine(evaluation.checkpoints[0].model.device),
    }

    def write() -> None:
        write_json(output_dir / "results.json", {**report, "results": results_as_json(results, costs)})
        write_text(output_dir / "table.md", markdown_table(results, costs))

    write()  # first: the steps below need more memory and may fail
    count = min(COST_BATCH, arguments.batch_size)
    if arguments.measure_cost:
        costs = evaluation.measure(count)
    if arguments.check_sanity:
        report["sanity"] = evaluation.check_sanity(count)
    write()
    if arguments.num_pictures:
        draw_scores(results, output_dir / "scores.png")
        evaluation.draw_methods(arguments.num_pictures, output_dir / "methods.png")
    return text_table(results, costs)


def evaluate(arguments: EvaluationArguments, protocol: Protocol) -> str | None:
    """Run the benchmarks and write everything; return the text to print, in the first process."""
    state = PartialState(cpu=arguments.device == "cpu" or not torch.cuda.is_available())
    processes = Processes(state.process_index, state.num_processes, state.wait_for_everyone)
    device = state.device if arguments.device == "auto" else parse_device(arguments.device)
    every = [*EXPLAINERS, CEILING]
    methods = [method for name in arguments.explainers for method in (every if name == "all" else [name])]
    methods = list(dict.fromkeys(methods))
    benchmarks = list(BENCHMARKS) if arguments.benchmark == ["all"] else arguments.benchmark
    outputs = [make_folder(arguments.output_dir) / name for name in OUTPUTS]
    is_file = arguments.data_dir is not None and Path(arguments.data_dir).is_file()
    check_outputs(outputs, [str(arguments.data_dir)] if is_file else [])
    checkpoints = load_models(arguments.models, device)
    dataset = load_data(arguments, checkpoints, benchmarks)
    store = RowStore(Path(arguments.output_dir) / "rows")
    sizes = (arguments.batch_size, arguments.num_workers, arguments.num_resamples)
    results = run_benchmarks(checkpoints, dataset, benchmarks, methods, store, protocol, *sizes, processes=processes)
    if not state.is_main_process:
        return None
    table = write_report(arguments, Evaluation(checkpoints, dataset, methods, protocol), results)
    return f"\n{len(dataset)} images of {dataset.name}\n\n{table}\n\nEverything is in {arguments.output_dir}"


@command(stopped="Stopped. The rows so far are kept; the same command resumes.")
def main(argv: list[str]) -> int:
    """Run the evaluation of the command line; return the exit code."""
    arguments, protocol = parse_evaluation_arguments(argv, __doc__)
    table = evaluate(arguments, protocol)
    if table is not None:
        print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
