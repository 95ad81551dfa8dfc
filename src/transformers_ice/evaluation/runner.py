# SPDX-License-Identifier: Apache-2.0
"""Run benchmarks: every checkpoint, every method, chunk by chunk, in one process or several, with resuming.

Examples are split into chunks of one batch. A benchmark that chooses its examples does so by rows of the model, which
are made in the same way first. A chunk's rows depend on that chunk only, so it does not matter which process computes
it, or when: two processes, or a resumed run, give the numbers of a single one.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial

from tqdm.auto import tqdm

from ..data.benchmarks.examples import EvaluationSet, Example
from ..explainers import EXPLAINERS
from ..ice_deit.configuration_ice_deit import as_pair
from .bootstrap import Interval, bootstrap
from .checkpoints import Checkpoint, input_size, labels_by_name
from .inputs import ExplainedBatch, InputBatch
from .maps import CEILING, CONTROLS, explains_classes
from .model_benchmarks import Classification, Faithfulness
from .mosaic_benchmark import GridPointing
from .object_benchmark import Objects
from .protocol import MOSAIC_SETTINGS, Protocol
from .region_benchmarks import ATTENTION_HEADS, Discovery, Jaccard, Localization, Segmentation
from .row_store import RowKey, RowStore
from .scoring import Benchmark, Rows, iterate_chunks, split_chunks


__all__ = [
    "BENCHMARKS",
    "Processes",
    "Result",
    "check_choices",
    "left_out",
    "missing_annotations",
    "plan_tasks",
    "run_benchmarks",
]

_KINDS: tuple[type[Benchmark], ...] = (
    Segmentation,
    Jaccard,
    Objects,
    Localization,
    Discovery,
    GridPointing,
    Faithfulness,
    Classification,
)
# to be raised when the content of a row, or how a map is made, changes: rows of older versions are then ignored
_ROWS_VERSION = 2
BENCHMARKS: dict[str, type[Benchmark]] = {kind.name: kind for kind in _KINDS}


@dataclass(frozen=True)
class Processes:
    """This process among those that share the work.

    Attributes:
        index: Number of this process, from 0.
        count: Number of processes; all must see the same folder.
        wait: Returns when every process has called it.
    """

    index: int = 0
    count: int = 1
    wait: Callable[[], None] = field(default=lambda: None)


@dataclass(frozen=True)
class Result:
    """Scores of one method on one checkpoint under one benchmark.

    Attributes:
        checkpoint: Name of the checkpoint.
        method: Name of the explainer; empty for scores of the model itself.
        benchmark: Name of the benchmark.
        num_examples: Number of scored examples.
        scores: Every score with its interval; none where there is an error.
        error: Why there are no scores.
    """

    checkpoint: str
    method: str
    benchmark: str
    num_examples: int
    scores: dict[str, Interval]
    error: str | None = None


@dataclass(frozen=True)
class _Task:
    checkpoint: Checkpoint
    method: str
    benchmark: Benchmark
    key: RowKey
    examples: EvaluationSet
    error: str | None = None  # why it has no examples


def run_benchmarks(
    checkpoints: Sequence[Checkpoint],
    dataset: EvaluationSet,
    benchmarks: Sequence[str],
    methods: Sequence[str],
    store: RowStore,
    protocol: Protocol | None = None,
    batch_size: int = 32,
    num_workers: int = 0,
    num_resamples: int = 200,
    processes: Processes | None = None,
) -> list[Result]:
    """Score explanations and the controls; rows that are on disk already are not computed again.

    Args:
        checkpoints: The classifiers; their names must differ.
        dataset: The examples.
        benchmarks: Names in `BENCHMARKS`.
        methods: Names in `EXPLAINERS`, "ceiling" (needs true masks) and "attention_heads" (for "jaccard"). The
            `CONTROLS` always run.
        store: Where rows are kept.
        protocol: How explanations are scored.
        batch_size: Examples in a chunk, which go through the model at once.
        num_workers: Processes that read images.
        num_resamples: Bootstrap resamples of the intervals.
        processes: This process among others.

    Returns:
        In process 0 a result for every combination that makes sense (`left_out` names the others), controls last. In
        the other processes an empty list.

    Raises:
        ValueError: If a name is unknown, names of checkpoints repeat, the data lack what a benchmark needs, or an
            example cannot be read.
    """
    processes, protocol = processes or Processes(), protocol or Protocol()
    tasks = plan_tasks(checkpoints, dataset, benchmarks, methods, protocol, batch_size)
    compute = partial(_compute, store=store, batch_size=batch_size, num_workers=num_workers, processes=processes)
    tasks = _choose_examples(tasks, store, batch_size, compute)
    compute([task for task in tasks if task.error is None], description="evaluating")
    if processes.index:
        return []
    return [_summarize(task, store, batch_size, num_resamples) for task in tasks]


def _choose_examples(
    tasks: Sequence[_Task], store: RowStore, batch_size: int, compute: Callable[..., None]
) -> list[_Task]:
    """Return tasks with the examples that their benchmarks choose by rows of the model, or why there are none."""
    groups: dict[tuple[str, str], list[_Task]] = {}
    for task in tasks:
        groups.setdefault((task.key.checkpoint, task.key.benchmark), []).append(task)
    deciding: dict[tuple[str, str], _Task] = {}
    for name, (first, *_) in groups.items():
        if first.benchmark.chosen_by is not None:
            benchmark = first.benchmark.chosen_by(first.benchmark.protocol)
            digest = _digest(first.checkpoint, benchmark, first.examples, batch_size)
            key = RowKey(first.checkpoint.name, "", benchmark.name, digest)
            deciding[name] = _Task(first.checkpoint, "", benchmark, key, first.examples)
    if deciding:
        compute(list(deciding.values()), description="choosing images")
    for name, task in deciding.items():
        rows = _load_rows(task, store, batch_size)
        first, own = groups[name][0], groups[name]
        try:
            examples = first.benchmark.choose_examples(first.checkpoint, first.examples, rows)
        except ValueError as error:
            groups[name] = [replace(planned, error=str(error)) for planned in own]
        else:
            digest = _digest(first.checkpoint, first.benchmark, examples, batch_size)
            groups[name] = [
                replace(planned, examples=examples, key=replace(planned.key, digest=digest)) for planned in own
            ]
    return [task for group in groups.values() for task in group]


def _compute(
    tasks: Sequence[_Task],
    store: RowStore,
    batch_size: int,
    num_workers: int,
    processes: Processes,
    description: str,
) -> None:
    """Write the missing rows that are this process's part, and wait for the other processes."""
    groups: dict[int, list[_Task]] = {}
    for task in tasks:  # tasks of the same examples share their inputs and maps
        groups.setdefault(id(task.examples), []).append(task)
    work = [(group[0].examples, _pending(group, store, batch_size, processes)) for group in groups.values()]
    total = sum(len(missing) for _, pending in work for missing in pending.values())
    with tqdm(total=total, desc=description, unit="batch", disable=processes.index > 0) as bar:
        for examples, pending in work:
            chunks = split_chunks(len(examples), batch_size)
            batches = iterate_chunks(examples, [chunks[chunk] for chunk in pending], num_workers)
            for (chunk, missing), batch in zip(pending.items(), batches, strict=True):
                for task, explanation in _explained(missing, batch, examples.class_names):
                    store.save(task.key, chunk, task.benchmark.rows(explanation))
                    bar.update()
    processes.wait()  # all rows must be on disk before they are read


def _pending(tasks: Sequence[_Task], store: RowStore, batch_size: int, processes: Processes) -> dict[int, list[_Task]]:
    """Return by chunk the tasks of the same examples whose rows this process has to compute."""
    num_chunks = len(split_chunks(len(tasks[0].examples), batch_size))
    # round robin over the processes, without communication
    own = range(processes.index, num_chunks, processes.count)
    pending = {chunk: [task for task in tasks if not store.has(task.key, chunk)] for chunk in own}
    return {chunk: missing for chunk, missing in pending.items() if missing}


def _explained(
    tasks: Iterable[_Task], examples: Sequence[Example], class_names: Sequence[str] | None
) -> Iterator[tuple[_Task, ExplainedBatch]]:
    """Yield every task with its explained batch; tasks share the inputs and the maps."""
    inputs: dict[str, InputBatch] = {}
    explained: dict[tuple[str, str], ExplainedBatch] = {}
    for task in tasks:
        name = task.checkpoint.name
        if name not in inputs:
            inputs[name] = task.benchmark.make_inputs(task.checkpoint, examples, class_names)
        yield task, explained.setdefault((name, task.method), ExplainedBatch(inputs[name], task.method))


def _load_rows(task: _Task, store: RowStore, batch_size: int) -> Rows:
    return store.load(task.key, range(len(split_chunks(len(task.examples), batch_size))))


def _summarize(task: _Task, store: RowStore, batch_size: int, num_resamples: int) -> Result:
    key, scores, error = task.key, dict[str, Interval](), task.error
    if error is None:
        scores = bootstrap(task.benchmark.scores, _load_rows(task, store, batch_size), num_resamples)
        if scores["undefined"].value == 1:
            scores = {}
            error = "inputs, predictions or maps of every image are NaN or infinite. Are the weights damaged?"
    return Result(key.checkpoint, key.method, key.benchmark, len(task.examples), scores, error)


def _digest(checkpoint: Checkpoint, benchmark: Benchmark, examples: EvaluationSet, batch_size: int) -> str:
    """Return a fingerprint of all that rows depend on beside their names."""
    protocol = asdict(benchmark.protocol)
    if not isinstance(benchmark, GridPointing):
        protocol = {name: value for name, value in protocol.items() if name not in MOSAIC_SETTINGS}
    # the batch size too: rows are stored per chunk
    settings = [_ROWS_VERSION, checkpoint.digest, examples.fingerprint, protocol, batch_size]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def plan_tasks(
    checkpoints: Sequence[Checkpoint],
    dataset: EvaluationSet,
    benchmarks: Sequence[str],
    methods: Sequence[str],
    protocol: Protocol,
    batch_size: int,
) -> list[_Task]:
    """Check the arguments of `run_benchmarks` and return the tasks."""
    check_choices(benchmarks, methods)
    names = [checkpoint.name for checkpoint in checkpoints]
    if len(set(names)) < len(names) or not names:
        raise ValueError(f"`checkpoints` must have different names, got {names}. Name them with NAME=PATH.")
    if not len(dataset):
        raise ValueError(f"The data set {dataset.name!r} must hold at least one example, got none.")
    tasks: list[_Task] = []
    chosen = [*dict.fromkeys(method for method in methods if method not in CONTROLS), *CONTROLS]
    for kind in (BENCHMARKS[name] for name in benchmarks):
        missing = missing_annotations(kind.name, dataset, protocol)
        if missing:
            raise ValueError(
                f"The benchmark {kind.name!r} needs {', '.join(missing)}, which {dataset.name!r} does not have: it "
                f"provides {', '.join(sorted(dataset.provides)) or 'images only'}."
            )
        benchmark = kind(protocol, dataset.class_names)
        for checkpoint in checkpoints:
            if "label" in kind.needs or kind is Objects:
                labels_by_name(checkpoint.model, dataset.class_names)  # raises where the classes do not fit
            digest = _digest(checkpoint, benchmark, dataset, batch_size)
            for method in [""] if kind.of_model_only else chosen:
                if _obstacle(checkpoint, method, kind, checkpoints, dataset, protocol) is None:
                    key = RowKey(checkpoint.name, method, kind.name, digest)
                    tasks.append(_Task(checkpoint, method, benchmark, key, dataset))
    if all(task.method in CONTROLS for task in tasks) and not set(methods) <= set(CONTROLS):
        raise ValueError(
            f"No combination is possible of the methods {list(methods)}, the checkpoints {names} and the benchmarks "
            f"{list(benchmarks)}: ICE's own methods need an ICE checkpoint, the ceiling needs true masks, and "
            "grid_pointing a method that knows classes."
        )
    return tasks


def left_out(
    checkpoints: Sequence[Checkpoint],
    dataset: EvaluationSet,
    benchmarks: Sequence[str],
    methods: Sequence[str],
    protocol: Protocol | None = None,
) -> list[str]:
    """Return a sentence, with the reason, for every chosen method that `run_benchmarks` leaves out somewhere."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for kind in (BENCHMARKS[name] for name in benchmarks):
        for checkpoint in checkpoints:
            for method in [] if kind.of_model_only else methods:
                reason = _obstacle(checkpoint, method, kind, checkpoints, dataset, protocol or Protocol())
                if reason is not None:
                    found.setdefault((method, checkpoint.name, reason), []).append(kind.name)
    return [
        f"`{method}` is left out for {name} ({', '.join(kinds)}): {reason}."
        for (method, name, reason), kinds in found.items()
    ]


def _obstacle(
    checkpoint: Checkpoint,
    method: str,
    kind: type[Benchmark],
    checkpoints: Sequence[Checkpoint],
    dataset: EvaluationSet,
    protocol: Protocol,
) -> str | None:
    """Return why a method is not scored on a checkpoint under a benchmark, `None` where it is."""
    if kind is GridPointing and method == CEILING:
        return "its score is 1, by definition"
    if kind is GridPointing and method != "whole_image" and not explains_classes(method, with_ice=True):
        return "it knows no class, so that its score is that of whole_image, by definition"
    if method == CEILING and kind is Faithfulness:
        return "faithfulness has no true answer"
    if method == CEILING and "mask" not in dataset.provides:
        return f"it needs true masks, which {dataset.name} does not have"
    if method == CEILING:  # one for every patch grid
        grids = {own.name: (input_size(own, protocol), as_pair(own.model.config.patch_size)) for own in checkpoints}
        same = next(name for name, grid in grids.items() if grid == grids[checkpoint.name])
        return None if same == checkpoint.name else f"that of {same} is the same, by the same patch grid"
    if method == ATTENTION_HEADS:
        return None if kind is Jaccard else "it is defined for jaccard only"
    if method in CONTROLS:  # a constant map ranks no pixels
        return "it ranks no pixels" if method == "whole_image" and kind is Faithfulness else None
    if kind.of_model_only or checkpoint.is_ice or EXPLAINERS[method].model == "any":
        return None
    return "it needs an ICE checkpoint with a trained patch head"


def check_choices(benchmarks: Sequence[str], methods: Sequence[str]) -> None:
    """Raise a `ValueError` for unknown names of benchmarks and methods, with a suggestion."""
    known = {"benchmarks": [*BENCHMARKS], "methods": [*EXPLAINERS, CEILING, ATTENTION_HEADS, *CONTROLS]}
    for argument, names in (("benchmarks", benchmarks), ("methods", methods)):
        unknown = [name for name in names if name not in known[argument]]
        if unknown or not names:
            # `gradcam` is close to `grad_cam`
            close = [match for name in unknown for match in difflib.get_close_matches(name, known[argument], n=1)]
            hint = f" Did you mean {', '.join(map(repr, close))}?" if close else ""
            raise ValueError(
                f"`{argument}` must be some of {', '.join(sorted(known[argument]))}, got {list(names)}.{hint}"
            )


def missing_annotations(benchmark: str, dataset: EvaluationSet, protocol: Protocol | None = None) -> list[str]:
    """Return which annotations a benchmark needs that a data set does not have, or labels of how many classes."""
    kind = BENCHMARKS[benchmark]
    # a plain mask counts as one object class, of which only the overlap matters
    is_class = kind is Jaccard and "mask" in dataset.provides
    provides = {*dataset.provides, *(("segmentation",) if is_class else ())}
    number, names = kind.num_classes(protocol or Protocol()), dataset.class_names
    too_few = "label" in kind.needs & provides and names is not None and len(names) < number
    return [*sorted(kind.needs - provides), *([f"labels of at least {number} classes"] if too_few else [])]
