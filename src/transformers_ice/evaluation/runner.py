# SPDX-License-Identifier: Apache-2.0
"""Run benchmarks: every checkpoint, every method, chunk by chunk, in one process or several, with resuming.

Examples are split into chunks of one batch. A chunk's rows depend on that chunk only, so it does not matter which
process computes it, or when: two processes, or a resumed run, give the numbers of a single one.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field

from tqdm.auto import tqdm

from ..data.benchmarks.examples import EvaluationSet, Example
from ..explainers import EXPLAINERS
from ..ice_deit.configuration_ice_deit import as_pair
from .bootstrap import Interval, bootstrap
from .checkpoints import Checkpoint, input_size, labels_by_name
from .inputs import ExplainedBatch, InputBatch
from .maps import CEILING, CONTROLS
from .model_benchmarks import Classification, Faithfulness
from .protocol import Protocol
from .region_benchmarks import ATTENTION_HEADS, Discovery, Jaccard, Localization, Segmentation
from .row_store import RowKey, RowStore
from .scoring import Benchmark, iterate_chunks, split_chunks


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

_KINDS: tuple[type[Benchmark], ...] = (Segmentation, Jaccard, Localization, Discovery, Faithfulness, Classification)
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
    chunks = split_chunks(len(dataset), batch_size)
    # round robin over the processes, without communication
    own = range(processes.index, len(chunks), processes.count)
    pending = {chunk: [task for task in tasks if not store.has(task.key, chunk)] for chunk in own}
    pending = {chunk: missing for chunk, missing in pending.items() if missing}
    batches = iterate_chunks(dataset, [chunks[chunk] for chunk in pending], num_workers)
    total = sum(map(len, pending.values()))
    with tqdm(total=total, desc="evaluating", unit="batch", disable=processes.index > 0) as bar:
        for (chunk, missing), examples in zip(pending.items(), batches, strict=True):
            for task, explanation in _explained(missing, examples, dataset.class_names, protocol):
                store.save(task.key, chunk, task.benchmark.rows(explanation))
                bar.update()
    processes.wait()  # all rows must be on disk before process 0 reads them
    if processes.index:
        return []
    return [_summarize(task, store, len(chunks), len(dataset), num_resamples) for task in tasks]


def _explained(
    tasks: Iterable[_Task], examples: Sequence[Example], class_names: Sequence[str] | None, protocol: Protocol
) -> Iterator[tuple[_Task, ExplainedBatch]]:
    """Yield every task with its explained batch; tasks share the inputs and the maps."""
    inputs: dict[str, InputBatch] = {}
    explained: dict[tuple[str, str], ExplainedBatch] = {}
    for task in tasks:
        name = task.checkpoint.name
        batch = inputs.setdefault(name, InputBatch(task.checkpoint, examples, protocol, class_names))
        yield task, explained.setdefault((name, task.method), ExplainedBatch(batch, task.method))


def _summarize(task: _Task, store: RowStore, num_chunks: int, num_examples: int, num_resamples: int) -> Result:
    key, rows = task.key, store.load(task.key, range(num_chunks))
    scores, error = bootstrap(task.benchmark.scores, rows, num_resamples), None
    if scores["undefined"].value == 1:
        scores = {}
        error = "inputs, predictions or maps of every image are NaN or infinite. Are the weights damaged?"
    return Result(key.checkpoint, key.method, key.benchmark, num_examples, scores, error)


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
        missing = missing_annotations(kind.name, dataset)
        if missing:
            raise ValueError(
                f"The benchmark {kind.name!r} needs {', '.join(missing)}, which {dataset.name!r} does not have: it "
                f"provides {', '.join(sorted(dataset.provides)) or 'images only'}."
            )
        benchmark = kind(protocol)
        for checkpoint in checkpoints:
            if "label" in kind.needs:
                labels_by_name(checkpoint.model, dataset.class_names)  # raises where the classes do not fit
            # the batch size too: rows are stored per chunk
            settings = [_ROWS_VERSION, checkpoint.digest, dataset.fingerprint, asdict(protocol), batch_size]
            digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
            for method in [""] if kind.of_model_only else chosen:
                if _obstacle(checkpoint, method, kind, checkpoints, dataset, protocol) is None:
                    key = RowKey(checkpoint.name, method, kind.name, digest)
                    tasks.append(_Task(checkpoint, method, benchmark, key))
    if all(task.method in CONTROLS for task in tasks) and not set(methods) <= set(CONTROLS):
        raise ValueError(
            f"No combination is possible of the methods {list(methods)}, the checkpoints {names} and the benchmarks "
            f"{list(benchmarks)}: ICE's own methods need an ICE checkpoint, the ceiling needs true masks."
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


def missing_annotations(benchmark: str, dataset: EvaluationSet) -> list[str]:
    """Return which annotations a benchmark needs that a data set does not have."""
    # a plain mask counts as one object class
    provides = {*dataset.provides, *(("segmentation",) if "mask" in dataset.provides else ())}
    return sorted(BENCHMARKS[benchmark].needs - provides)
