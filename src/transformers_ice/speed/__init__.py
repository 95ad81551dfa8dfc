# SPDX-License-Identifier: Apache-2.0
"""Speed of models: images per second and MACs, pruned and unpruned, against the speed-up that the MACs allow."""

from .arguments import BenchmarkArguments, parse_benchmark_arguments
from .external import EXTERNAL, external_variants
from .inputs import load_model, load_workload
from .keep_counts import counts_from_shares, draw_keep_shares, prescribed_counts, read_keep_shares
from .machine import describe_machine, keep_freed_memory
from .macs import TokenCounts, count_macs, count_tokens, ideal_macs
from .peak import check_dtypes, peak_flops, peak_measure
from .report import comparison_table, read_accuracies, speed_table, write_results
from .speed import SpeedRow, TimingPlan, Workload, count_variant_tokens, measure_speed
from .timing import Spread, interleave, summarize_spread, time_call
from .variants import (
    BACKGROUND,
    REFERENCE,
    Variant,
    build_variants,
    optimize_variants,
    share_as_vit,
    share_weights,
    unusable_strategies,
)


__all__ = [
    "BACKGROUND",
    "EXTERNAL",
    "REFERENCE",
    "BenchmarkArguments",
    "SpeedRow",
    "Spread",
    "TimingPlan",
    "TokenCounts",
    "Variant",
    "Workload",
    "build_variants",
    "check_dtypes",
    "comparison_table",
    "count_macs",
    "count_tokens",
    "count_variant_tokens",
    "counts_from_shares",
    "describe_machine",
    "draw_keep_shares",
    "external_variants",
    "ideal_macs",
    "interleave",
    "keep_freed_memory",
    "load_model",
    "load_workload",
    "measure_speed",
    "optimize_variants",
    "parse_benchmark_arguments",
    "peak_flops",
    "peak_measure",
    "prescribed_counts",
    "read_accuracies",
    "read_keep_shares",
    "share_as_vit",
    "share_weights",
    "speed_table",
    "summarize_spread",
    "time_call",
    "unusable_strategies",
    "write_results",
]
