# SPDX-License-Identifier: Apache-2.0
"""Arguments of `scripts/run_benchmark.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from ..console.command_line import parse_dataclasses
from .external import EXTERNAL
from .variants import BACKGROUND


__all__ = ["BenchmarkArguments", "parse_benchmark_arguments"]

_DTYPES = ("float32", "bfloat16", "float16")


@dataclass
class BenchmarkArguments:
    """Model to time, its images, and the length of the measurement; `--help` explains each."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of an ICE, ViT or DeiT classifier; default: random weights."}
    )
    config_overrides: str | None = field(
        default=None, metadata={"help": "Fields of its configuration, name=value,name=value; default: DeiT-S/16."}
    )
    dataset_name: Literal["scenes"] | None = field(default=None, metadata={"help": "Drawn images: scenes."})
    data_dir: str | None = field(default=None, metadata={"help": "Folder of images, at any depth."})
    keep_beta: list[float] | None = field(
        default=None, metadata={"help": "Prescribe keep rates: mean and deviation of a beta distribution over images."}
    )
    keep_counts: list[str] | None = field(
        default=None,
        metadata={
            "help": "Prescribe keep rates: JSON, for each image a list of rates, one per pruning layer; several files "
            "are timed together."
        },
    )
    keep_rates: list[float] = field(
        default_factory=lambda: [0.7, 0.5], metadata={"help": "Rates of the strategies that keep fixed numbers."}
    )
    batch_sizes: list[int] = field(default_factory=lambda: [1, 32], metadata={"help": "Images at once, several."})
    num_images: int = field(default=256, metadata={"help": "Different images."})
    images_per_repeat: int = field(default=64, metadata={"help": "Images that a variant runs in one repeat."})
    num_repeats: int = field(default=10, metadata={"help": "Repeats that count."})
    num_warmups: int = field(default=2, metadata={"help": "Repeats before them that do not count."})
    dtype: list[str] = field(
        default_factory=lambda: ["float32"],
        metadata={"help": "Number types, one or several by turns: float32, bfloat16, float16."},
    )
    optimized: list[str] | None = field(
        default=None,
        metadata={
            "help": "Also time optimized models, pruned and not: backends of `optimize_for_inference`, e.g. auto, "
            "torch, onnxruntime:int8, openvino:int8."
        },
    )
    external: list[str] | None = field(
        default=None,
        metadata={"help": "Also time published code in folders of yours, which is run: evit=FOLDER, tome=FOLDER."},
    )
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda, cuda:0, mps."})
    num_threads: int | None = field(default=None, metadata={"help": "Threads on the CPU; default: as torch chooses."})
    keep_freed_memory: bool = field(
        default=True,
        metadata={"help": "Let the process keep freed memory, as under jemalloc; false: the C library's default."},
    )
    seed: int = field(default=0, metadata={"help": "Seed of weights, noise, draws and the order of the variants."})
    accuracies: str | None = field(
        default=None, metadata={"help": "JSON, variant name to top-1 in [0, 1]: draws accuracy over speed."}
    )
    output_dir: str = field(default="outputs/benchmark", metadata={"help": "Folder of results.json and speed.png."})

    def __post_init__(self) -> None:
        for name in ("num_images", "images_per_repeat", "num_repeats", "num_threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        if self.num_warmups < 0:
            raise ValueError(f"`num_warmups` must be at least 0, got {self.num_warmups}.")
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise ValueError(f"`batch_sizes` must be numbers of at least 1, got {self.batch_sizes}.")
        if len(set(self.keep_rates)) < len(self.keep_rates):
            raise ValueError(f"`keep_rates` must differ from each other, got {self.keep_rates}.")
        self._check_models()
        if self.keep_beta is not None and len(self.keep_beta) != 2:
            raise ValueError(f"`keep_beta` must be a mean and a standard deviation, got {self.keep_beta}.")
        if len(set(self.decided_names)) < len(self.decided_names):
            raise ValueError(f"`keep_counts` must be files of different names, got {self.keep_counts}.")
        for pair in (("keep_beta", "keep_counts"), ("dataset_name", "data_dir")):
            if all(getattr(self, name) is not None for name in pair):
                raise ValueError(f"`{pair[0]}` and `{pair[1]}` exclude each other: pass one of them.")

    def _check_models(self) -> None:
        """Check the fields that say which models are timed besides the pruned ones."""
        if not self.dtype or len(set(self.dtype)) < len(self.dtype) or not set(self.dtype) <= set(_DTYPES):
            raise ValueError(f"`dtype` must be some of {', '.join(_DTYPES)}, each once, got {self.dtype}.")
        optimized, external = self.optimized or [], self.external or []
        if len(set(optimized)) < len(optimized):
            raise ValueError(f"`optimized` must differ from each other, got {optimized}.")
        if optimized and "float32" not in self.dtype:
            raise ValueError("`optimized` starts from float32: add it, as in `--dtype float32 bfloat16`.")
        names = [entry.partition("=")[0] for entry in external]
        if len(set(names)) < len(names) or not set(names) <= set(EXTERNAL) or not all("=" in e for e in external):
            raise ValueError(
                f"`external` must be NAME=FOLDER with {' or '.join(EXTERNAL)}, each once, got {external}."
            )

    @property
    def is_prescribed(self) -> bool:
        """Whether the numbers of kept patches are prescribed instead of decided by the model."""
        return self.keep_beta is not None or self.keep_counts is not None

    @property
    def decided_names(self) -> list[str]:
        """Names of the variants whose images decide how many patches are kept; one for each of several files."""
        if self.keep_counts is None or len(self.keep_counts) == 1:
            return [BACKGROUND]
        return [Path(file).stem for file in self.keep_counts]


def parse_benchmark_arguments(argv: Sequence[str], description: str | None = None) -> BenchmarkArguments:
    """Parse a command line, or one YAML or JSON file followed by options that override it; see `parse_dataclasses`."""
    return cast(BenchmarkArguments, parse_dataclasses((BenchmarkArguments,), argv, description)[0])
