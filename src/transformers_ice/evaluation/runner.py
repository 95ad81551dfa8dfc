# SPDX-License-Identifier: Apache-2.0
"""Run benchmarks: every checkpoint, every method, chunk by chunk, in one process or several, with resuming.

Examples are split into chunks of one batch. A chunk's rows depend on that chunk only, so it does not matter which
process computes it, or when: two processes, or a resumed run, give the numbers of a single one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..data.benchmarks.examples import EvaluationSet, Example
from ..explainers import EXPLAINERS
from .bootstrap import Interval, bootstrap
from .checkpoints import Checkpoint
from .inputs import ExplainedBatch, InputBatch
from .maps import CEILING
from .model_benchmarks import Classification, Faithfulness
from .protocol import Protocol
from .region_benchmarks import ATTENTION_HEADS, Discovery, Jaccard, Localization, Segmentation
from .row_store import RowKey, RowStore
from .scoring import Benchmark, iterate_chunks, split_chunks


__all__ = ["BENCHMARKS", "Processes", "Result", "plan_tasks", "run_benchmarks"]

_KINDS: tuple[type[Benchmark], ...] = (Segmentation, Jaccard, Localization, Discovery, Faithfulness, Classification)
# to be raised when the content of a row, or how a map is made, changes: rows of older versions are then ignored
_ROWS_VERSION = 1
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
        scores: Every score with its interval.
    """

    checkpoint: str
    method: str
    benchmark: str
    num_examples: int
    scores: dict[str, Interval]


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
    """Score explanations; rows that are on disk already are not computed again.

    Args:
        checkpoints: The classifiers; their names must differ.
        dataset: The examples.
        benchmarks: Names in `BENCHMARKS`.
        methods: Names in `EXPLAINERS`, "ceiling" (needs true masks) and "attention_heads" (for "jaccard").
        store: Where rows are kept.
        protocol: How explanations are scored.
        batch_size: Examples in a chunk, which go through the model at once.
        num_workers: Processes that read images.
        num_resamples: Bootstrap resamples of the intervals.
        processes: This process among others.

    Returns:
        In process 0 a result for every combination that makes sense: ICE's own methods only on ICE checkpoints, the
        ceiling on the first checkpoint. In the other processes an empty list.

    Raises:
        ValueError: If a name is unknown, names of checkpoints repeat, the data lack what a benchmark needs, or an
            example cannot be read.
    """
    processes, protocol = processes or Processes(), protocol or Protocol()
    tasks = plan_tasks(checkpoints, dataset, benchmarks, methods, protocol, batch_size)
    chunks = split_chunks(len(dataset), batch_size)
    # round robin over the processes, without communication
    own = [chunk for chunk in range(len(chunks)) if chunk % processes.count == processes.index]
    pending = [chunk for chunk in own if any(not store.has(task.key, chunk) for task in tasks)]
    description = None if processes.index else "evaluating"
    batches = iterate_chunks(dataset, [chunks[chunk] for chunk in pending], num_workers, description)
    for chunk, examples in zip(pending, batches, strict=True):
        missing = [task for task in tasks if not store.has(task.key, chunk)]
        _run_chunk(missing, examples, dataset.class_names, protocol, store, chunk)
    processes.wait()  # all rows must be on disk before process 0 reads them
    if processes.index:
        return []
    return [_summarize(task, store, len(chunks), len(dataset), num_resamples) for task in tasks]


def _run_chunk(
    tasks: Iterable[_Task],
    examples: Sequence[Example],
    class_names: Sequence[str] | None,
    protocol: Protocol,
    store: RowStore,
    chunk: int,
) -> None:
    """Compute and store the rows of one chunk; tasks share the inputs and the maps."""
    inputs: dict[str, InputBatch] = {}
    explained: dict[tuple[str, str], ExplainedBatch] = {}
    for task in tasks:
        name = task.checkpoint.name
        batch = inputs.setdefault(name, InputBatch(task.checkpoint, examples, protocol, class_names))
        explanation = explained.setdefault((name, task.method), ExplainedBatch(batch, task.method))
        store.save(task.key, chunk, task.benchmark.rows(explanation))


def _summarize(task: _Task, store: RowStore, num_chunks: int, num_examples: int, num_resamples: int) -> Result:
    rows = store.load(task.key, range(num_chunks))
    scores = bootstrap(task.benchmark.scores, rows, num_resamples)
    return Result(task.checkpoint.name, task.method, task.benchmark.name, num_examples, scores)


def plan_tasks(
    checkpoints: Sequence[Checkpoint],
    dataset: EvaluationSet,
    benchmarks: Sequence[str],
    methods: Sequence[str],
    protocol: Protocol,
    batch_size: int,
) -> list[_Task]:
    """Check the arguments of `run_benchmarks` and return the tasks."""
    _check_names("benchmarks", benchmarks, BENCHMARKS)
    _check_names("methods", methods, {**EXPLAINERS, CEILING: None, ATTENTION_HEADS: None})
    names = [checkpoint.name for checkpoint in checkpoints]
    if len(set(names)) < len(names) or not names:
        raise ValueError(f"`checkpoints` must have different names, got {names}. Name them with NAME=PATH.")
    if not len(dataset):
        raise ValueError(f"The data set {dataset.name!r} must hold at least one example, got none.")
    tasks = []
    for kind in (BENCHMARKS[name] for name in benchmarks):
        benchmark = kind(protocol)
        _check_data(benchmark, dataset)
        for checkpoint in checkpoints:
            # the batch size too: rows are stored per chunk
            digest = _digest([_ROWS_VERSION, checkpoint.digest, dataset.fingerprint, asdict(protocol), batch_size])
            for method in [""] if kind.of_model_only else methods:
                if _fits(checkpoint, method, kind, is_first=checkpoint is checkpoints[0], dataset=dataset):
                    key = RowKey(checkpoint.name, method, kind.name, digest)
                    tasks.append(_Task(checkpoint, method, benchmark, key))
    if not tasks:
        raise ValueError(
            f"No combination is possible of the methods {list(methods)}, the checkpoints {names} and the benchmarks "
            f"{list(benchmarks)}: ICE's own methods need an ICE checkpoint, the ceiling needs true masks."
        )
    return tasks


def _digest(settings: Any) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def _fits(checkpoint: Checkpoint, method: str, kind: type[Benchmark], is_first: bool, dataset: EvaluationSet) -> bool:
    if method == CEILING:
        return is_first and "mask" in dataset.provides and kind is not Faithfulness
    if method == ATTENTION_HEADS:
        return kind is Jaccard
    return kind.of_model_only or checkpoint.is_ice or EXPLAINERS[method].model == "any"


def _check_names(argument: str, names: Sequence[str], known: Any) -> None:
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ValueError(f"`{argument}` must be some of {', '.join(sorted(known))}, got {list(names)}.")


def _check_data(benchmark: Benchmark, dataset: EvaluationSet) -> None:
    provides = set(dataset.provides)
    if "mask" in provides:
        provides.add("segmentation")  # a plain mask counts as one object class
    missing = sorted(benchmark.needs - provides)
    if missing:
        raise ValueError(
            f"The benchmark {benchmark.name!r} needs {', '.join(missing)}, which {dataset.name!r} does not have: it "
            f"provides {', '.join(sorted(dataset.provides)) or 'images only'}."
        )
