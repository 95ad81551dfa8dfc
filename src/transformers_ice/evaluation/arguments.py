# SPDX-License-Identifier: Apache-2.0
"""Arguments of `scripts/run_evaluation.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

from ..console.command_line import parse_dataclasses
from .protocol import Protocol


__all__ = ["EvaluationArguments", "ProtocolArguments", "parse_evaluation_arguments"]


@dataclass
class EvaluationArguments:
    """Models, data and outputs of an evaluation.

    Args:
        models: Folders or Hub ids of classifiers, each as PATH or NAME=PATH.
        benchmark: Benchmarks to run.
        explainers: Methods to score, or "all".
        dataset_name: Which data set.
        data_dir: Its folder or file.
        split: Part of it.
        dataset_options: Options of its reader as name=value.
        limit: Number of examples to use, at equal distances through the set.
        output_dir: Folder of results, rows and figures; rows in it are not computed again.
        batch_size: Images that go through a model at once.
        num_workers: Processes that read images.
        num_resamples: Bootstrap resamples of the intervals.
        measure_cost: Whether to time the methods.
        check_sanity: Whether to compare the maps with those of randomised weights.
        num_pictures: Images in the figure of all methods.
        device: Device of the models.
    """

    models: list[str] = field(metadata={"help": "Classifiers (ViT, DeiT, ICE): PATH or NAME=PATH, several."})
    benchmark: list[str] = field(
        default_factory=lambda: ["segmentation"],
        metadata={"help": "segmentation, jaccard, localization, discovery, faithfulness, classification, or all."},
    )
    explainers: list[str] = field(
        default_factory=lambda: ["ice", "ice_hard", "raw_attention", "rollout", "ceiling"],
        metadata={"help": "Methods; 'all' is every registered one and the ceiling. attention_heads: for jaccard."},
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "scenes (default), imagenet-segmentation, voc, cub, ... or folder."}
    )
    data_dir: str | None = field(default=None, metadata={"help": "Folder or file of the data set."})
    split: str | None = field(default=None, metadata={"help": "Part of the data set; default: the published one."})
    dataset_options: list[str] = field(
        default_factory=list, metadata={"help": "Options of the reader as name=value, e.g. year=2007."}
    )
    limit: int | None = field(default=None, metadata={"help": "Number of examples to use, at equal distances."})
    output_dir: str = field(default="outputs/evaluation", metadata={"help": "Folder of results, rows and figures."})
    batch_size: int = field(default=32, metadata={"help": "Images that go through a model at once."})
    num_workers: int = field(default=0, metadata={"help": "Processes that read images."})
    num_resamples: int = field(default=200, metadata={"help": "Bootstrap resamples of the 95-percent intervals."})
    measure_cost: bool = field(default=True, metadata={"help": "Measure time and memory of every method."})
    check_sanity: bool = field(default=False, metadata={"help": "Compare maps with those of randomised weights."})
    num_pictures: int = field(default=6, metadata={"help": "Images in the figure of all methods; 0: no figure."})
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda, cuda:0, mps."})

    def __post_init__(self) -> None:
        for name in ("batch_size", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        for name in ("num_workers", "num_resamples", "num_pictures"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be at least 0, got {getattr(self, name)}.")


@dataclass
class ProtocolArguments:
    """Protocol by which explanations are scored; the fields are those of `Protocol`."""

    paper_compat: bool = field(default=False, metadata={"help": "Repeat the quirks of the published evaluation."})
    image_size: int | None = field(default=None, metadata={"help": "Side of the input; 512 is usual for jaccard."})
    localization_rule: Literal["wsolevaluation", "tscam", "sat"] = field(
        default="wsolevaluation", metadata={"help": "Rules of GT-known, Top-1 and Top-5 Loc."}
    )
    box_threshold: float | None = field(
        default=None, metadata={"help": "Threshold for GT-known and Top-k Loc; default: that of the rule."}
    )
    threshold_step: float = field(default=0.01, metadata={"help": "Step of the thresholds of MaxBoxAcc."})
    attention_mass: float = field(default=0.9, metadata={"help": "Part of a soft map's sum in the jaccard mask."})
    perturbation_target: Literal["predicted", "true"] = field(
        default="predicted", metadata={"help": "Class whose map ranks the pixels (faithfulness)."}
    )
    num_insertion_steps: int = field(default=10, metadata={"help": "Steps of insertion and deletion."})
    seed: int = field(default=0, metadata={"help": "Seed of ties."})

    def to_protocol(self) -> Protocol:
        """Return the checked protocol."""
        return Protocol(**vars(self))

    def __post_init__(self) -> None:
        self.to_protocol()


def parse_evaluation_arguments(
    argv: Sequence[str], description: str | None = None
) -> tuple[EvaluationArguments, ProtocolArguments]:
    """Parse a command line, or one YAML or JSON file followed by options that override it.

    Args:
        argv: The arguments after the script's name; see `parse_dataclasses` for how mistakes end the program.
        description: Text above the list of options in `--help`.
    """
    groups = parse_dataclasses((EvaluationArguments, ProtocolArguments), argv, description)
    return cast(tuple[EvaluationArguments, ProtocolArguments], groups)
