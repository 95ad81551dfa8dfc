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

import datetime
import inspect
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate import PartialState
from tqdm.auto import tqdm

from .. import __version__
from ..console.exits import command
from ..console.output_files import check_outputs, make_folder, write_json, write_text
from ..data.benchmarks import EVALUATION_SETS, load_evaluation_set
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
    UndefinedExamplesError,
    check_choices,
    input_size,
    left_out,
    load_checkpoint,
    markdown_table,
    measure_costs,
    missing_annotations,
    parse_evaluation_arguments,
    randomization_similarity,
    result_notes,
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
    if arguments.dataset_config_name is not None:
        options["config_name"] = arguments.dataset_config_name
    name = arguments.dataset_name or (None if arguments.data_dir else "scenes")  # neither is empty
    if name == "scenes":
        height, width = input_size(checkpoints[0], Protocol())
        options.setdefault("image_size", height if height == width else (height, width))
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
    """Checkpoints, data and methods of a run, for what is measured and drawn on a few images."""

    checkpoints: Sequence[Checkpoint]
    dataset: EvaluationSet
    methods: Sequence[str]
    protocol: Protocol

    def batches(self, count: int, description: str = "") -> Iterator[tuple[Checkpoint, InputBatch, list[str]]]:
        """Yield every checkpoint with its inputs for a few examples and the explainers that work on it."""
        examples = list(self.dataset.spread(count))  # at equal distances: many sets are sorted by class
        for checkpoint in tqdm(self.checkpoints, description, unit="checkpoint", disable=not description):
            fitting = [
                method
                for method in self.methods
                if method in EXPLAINERS and (checkpoint.is_ice or EXPLAINERS[method].model == "any")
            ]
            yield checkpoint, InputBatch(checkpoint, examples, self.protocol), fitting

    def measure(self, count: int) -> dict[tuple[str, str], Cost]:
        """Time every method on every checkpoint that it fits."""
        costs: dict[tuple[str, str], Cost] = {}
        for checkpoint, batch, methods in self.batches(count, "measuring costs"):
            pixels = batch.finite_pixel_values
            found = measure_costs(checkpoint.model, pixels, methods) if len(pixels) else {}
            costs |= {(checkpoint.name, method): cost for method, cost in found.items()}
        return costs

    def check_sanity(self, count: int) -> dict[str, dict[str, dict[str, float | None]]]:
        """Measure how similar the maps remain under random weights, by checkpoint, method and stage."""
        similarity = {}
        for checkpoint, batch, methods in self.batches(count, "checking sanity"):
            pixels = batch.finite_pixel_values
            found = randomization_similarity(checkpoint.model, pixels, methods) if len(pixels) else {}
            similarity[checkpoint.name] = {
                method: {stage: value if math.isfinite(value) else None for stage, value in stages.items()}
                for method, stages in found.items()
            }
        return similarity

    def draw_methods(self, count: int, file: Path) -> None:
        """Draw the maps of all methods; those that are undefined have none."""
        maps: dict[str, list[np.ndarray]] = {}
        for checkpoint, batch, methods in self.batches(count):
            for method in methods:
                try:
                    relevance = ExplainedBatch(batch, method).relevance()
                except UndefinedExamplesError:
                    continue
                pixels = score_maps(relevance, method, batch.input_size)
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
            if result.method and SCORES.get(name, ("", None))[1] is not None and not math.isnan(interval.value):
                bars = scores.setdefault(name, {})
                bars[f"{result.checkpoint}: {result.method}"] = (interval.value, interval.low, interval.high)
    if scores:
        better = {name: "larger" if SCORES[name][1] else "smaller" for name in scores}
        headings = {name: f"{SCORES[name][0]} ({better[name]} is better)" for name in SCORES if name in scores}
        save_figure(score_bars(scores, headings), file)


def describe_run(arguments: EvaluationArguments, dataset: EvaluationSet, protocol: Protocol) -> str:
    """Return data, split, number of images, settings, versions and date: the header of the table."""
    name = arguments.dataset_name or ("folder" if arguments.data_dir else "scenes")
    parameter = inspect.signature(EVALUATION_SETS[name].build).parameters.get("split")
    split = arguments.split or (parameter.default if parameter else None) or "published"
    split = ", ".join(["" if name == "folder" else f"split {split}", *arguments.dataset_options]).strip(", ")
    order = "the first ones" if name == "scenes" else "at equal distances"
    sample = "all" if arguments.limit is None else f"limit {arguments.limit}, {order}"
    standard = {field.name: field.default for field in fields(Protocol)}
    changed = [f"{key} {value}" for key, value in asdict(protocol).items() if value != standard[key]]
    details = "; ".join(part for part in (f"set {name}", split, sample) if part)
    return (
        f"{len(dataset)} images of {dataset.name} ({details}). Intervals: 95 %, {arguments.num_resamples} bootstrap "
        f"resamples. Protocol: {', '.join(changed) or 'default'}. transformers-ice {__version__}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}, python {sys.version.split()[0]}, "
        f"{datetime.datetime.now(datetime.timezone.utc).date()}."
    )


def write_report(
    arguments: EvaluationArguments, evaluation: Evaluation, results: Sequence[Result], notes: Sequence[str]
) -> str:
    """Measure costs, write everything into the output folder and return the table."""
    output_dir, costs = Path(arguments.output_dir), dict[tuple[str, str], Cost]()
    header = describe_run(arguments, evaluation.dataset, evaluation.protocol)
    report = {
        "description": header,
        "notes": [*result_notes(results), *notes],
        "dataset": {"name": evaluation.dataset.name, "num_examples": len(evaluation.dataset)},
        "checkpoints": {checkpoint.name: checkpoint.digest for checkpoint in evaluation.checkpoints},
        "settings": asdict(arguments),
        "protocol": asdict(evaluation.protocol),
        "machine": describe_machine(evaluation.checkpoints[0].model.device),
    }

    def write() -> None:
        write_json(output_dir / "results.json", {**report, "results": results_as_json(results, costs)})
        write_text(output_dir / "table.md", markdown_table(results, costs, notes, header))

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
    return f"{header}\n\n{text_table(results, costs, notes)}"


def choose_benchmarks(
    arguments: EvaluationArguments, dataset: EvaluationSet, protocol: Protocol
) -> tuple[list[str], list[str]]:
    """Return the benchmarks to run, of "all" those that the data allow, and a note on each of the others."""
    if arguments.benchmark != ["all"]:
        return arguments.benchmark, []
    missing = {name: missing_annotations(name, dataset, protocol) for name in BENCHMARKS}
    possible = [name for name, lacking in missing.items() if not lacking]
    if not possible:
        raise ValueError(f"`benchmarks` need labels, masks or boxes, and {dataset.name!r} has none of them.")
    notes = [f"{name} is left out: {dataset.name} has no {', '.join(own)}." for name, own in missing.items() if own]
    return possible, notes


def evaluate(arguments: EvaluationArguments, protocol: Protocol) -> tuple[str, bool] | None:
    """Run the benchmarks and write everything; return the text to print and success, in the first process."""
    state = PartialState(cpu=arguments.device == "cpu" or not torch.cuda.is_available())
    processes = Processes(state.process_index, state.num_processes, state.wait_for_everyone)
    device = state.device if arguments.device == "auto" else parse_device(arguments.device)
    every = [*EXPLAINERS, CEILING]
    methods = [method for name in arguments.explainers for method in (every if name == "all" else [name])]
    methods = list(dict.fromkeys(methods))
    named = [] if arguments.benchmark == ["all"] else arguments.benchmark
    check_choices(named or list(BENCHMARKS), methods)  # before anything is loaded
    outputs = [make_folder(arguments.output_dir) / name for name in OUTPUTS]
    is_file = arguments.data_dir is not None and Path(arguments.data_dir).is_file()
    check_outputs(outputs, [str(arguments.data_dir)] if is_file else [])
    checkpoints = load_models(arguments.models, device)
    dataset = load_data(arguments, checkpoints, named)
    benchmarks, notes = choose_benchmarks(arguments, dataset, protocol)
    notes += left_out(checkpoints, dataset, benchmarks, methods, protocol)
    store = RowStore(Path(arguments.output_dir) / "rows")
    sizes = (arguments.batch_size, arguments.num_workers, arguments.num_resamples)
    results = run_benchmarks(checkpoints, dataset, benchmarks, methods, store, protocol, *sizes, processes=processes)
    if not state.is_main_process:
        return None
    # a method that failed everywhere has no cost, and no figure
    methods = [method for method in methods if any(result.method == method and not result.error for result in results)]
    table = write_report(arguments, Evaluation(checkpoints, dataset, methods, protocol), results, notes)
    return f"\n{table}\n\nEverything is in {arguments.output_dir}", not any(result.error for result in results)


@command(stopped="Stopped. The rows so far are kept; the same command resumes.")
def main(argv: list[str]) -> int:
    """Run the evaluation of the command line; return the exit code."""
    arguments, protocol = parse_evaluation_arguments(argv, __doc__)
    finished = evaluate(arguments, protocol)
    if finished is None:
        return 0
    table, is_complete = finished
    print(table)
    if not is_complete:
        print("Error: some rows have no scores; the notes below the table say why.", file=sys.stderr)
    return 0 if is_complete else 1


if __name__ == "__main__":
    sys.exit(main())
