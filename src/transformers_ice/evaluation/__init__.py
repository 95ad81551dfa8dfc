# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: data, models and explainers in, scores out."""

from ..console.tables import format_table
from .arguments import EvaluationArguments, parse_evaluation_arguments
from .bootstrap import Interval, bootstrap
from .checkpoints import Checkpoint, input_size, load_checkpoint
from .comparison import ComparisonRow, compare_with_baselines, score_checkpoint
from .cost import Cost, measure_costs
from .inputs import ExplainedBatch, InputBatch, UndefinedExamplesError
from .maps import CEILING, CONTROLS, majority_grid, score_maps
from .protocol import Protocol, ProtocolArguments
from .report import SCORES, markdown_table, result_notes, results_as_json, text_table
from .row_store import RowKey, RowStore
from .runner import BENCHMARKS, Processes, Result, check_choices, left_out, missing_annotations, run_benchmarks
from .sanity import randomization_similarity
from .scoring import Benchmark, observe_classes, observe_masks, score


__all__ = [
    "BENCHMARKS",
    "CEILING",
    "CONTROLS",
    "SCORES",
    "Benchmark",
    "Checkpoint",
    "ComparisonRow",
    "Cost",
    "EvaluationArguments",
    "ExplainedBatch",
    "InputBatch",
    "Interval",
    "Processes",
    "Protocol",
    "ProtocolArguments",
    "Result",
    "RowKey",
    "RowStore",
    "UndefinedExamplesError",
    "bootstrap",
    "check_choices",
    "compare_with_baselines",
    "format_table",
    "input_size",
    "left_out",
    "load_checkpoint",
    "majority_grid",
    "markdown_table",
    "measure_costs",
    "missing_annotations",
    "observe_classes",
    "observe_masks",
    "parse_evaluation_arguments",
    "randomization_similarity",
    "result_notes",
    "results_as_json",
    "run_benchmarks",
    "score",
    "score_checkpoint",
    "score_maps",
    "text_table",
]
