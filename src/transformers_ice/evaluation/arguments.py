# SPDX-License-Identifier: Apache-2.0
"""Arguments of `scripts/run_evaluation.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from ..console.command_line import check_number, parse_dataclasses
from .protocol import Protocol


__all__ = ["EvaluationArguments", "parse_evaluation_arguments"]


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class EvaluationArguments:
    """Models, data and outputs of an evaluation; the help of each field describes it.

    Raises:
        ValueError: If a number is too small.
    """

    models: list[str] = field(metadata={"help": "Classifiers (ViT, DeiT, DINOv2, ICE): PATH or NAME=PATH, several."})
    benchmark: list[str] = field(
        default_factory=lambda: ["segmentation"],
        metadata={
            "help": "segmentation, jaccard, objects, localization, discovery, grid_pointing, faithfulness, "
            "classification; all."
        },
    )
    explainers: list[str] = field(
        default_factory=lambda: ["ice", "ice_hard", "raw_attention", "rollout", "ceiling"],
        metadata={"help": "Methods; 'all' is every registered one and the ceiling. attention_heads: for jaccard."},
    )
    dataset_name: str | None = _option(
        None, "scenes (default), imagenet-segmentation, voc, cub, oxford-pets, ... or folder."
    )
    dataset_config_name: str | None = _option(None, "Configuration of the data set; of scenes: several.")
    data_dir: str | None = _option(None, "Folder or file of the data set.")
    split: str | None = _option(None, "Part of the data set; default: the published one.")
    dataset_options: list[str] = field(
        default_factory=list, metadata={"help": "Options of the reader as name=value, e.g. year=2007."}
    )
    limit: int | None = _option(None, "Number of examples to use, at equal distances.")
    output_dir: str = _option("outputs/evaluation", "Folder of results, rows (which are not computed again), figures.")
    batch_size: int = _option(32, "Images that go through a model at once.")
    num_workers: int = _option(0, "Processes that read images.")
    num_resamples: int = _option(200, "Bootstrap resamples of the 95-percent intervals.")
    measure_cost: bool = _option(True, "Measure time and memory of every method.")
    check_sanity: bool = _option(False, "Compare maps with those of randomised weights.")
    num_pictures: int = _option(6, "Images in the figure of all methods; 0: no figure.")
    device: str = _option("auto", "auto, cpu, cuda, cuda:0, mps.")

    def __post_init__(self) -> None:
        lowest = {"batch_size": 1, "limit": 1, "num_workers": 0, "num_resamples": 0, "num_pictures": 0}
        for name, number in lowest.items():
            value = getattr(self, name)
            check_number(name, value, f"at least {number}", value is None or value >= number)
        if "" in (self.dataset_name, self.data_dir):  # as of an unset variable of a shell
            raise ValueError("`dataset_name` and `data_dir` must not be empty. Leave the option out for its default.")


def parse_evaluation_arguments(
    argv: Sequence[str], description: str | None = None
) -> tuple[EvaluationArguments, Protocol]:
    """Parse a command line, or one YAML or JSON file followed by options that override it.

    Args:
        argv: The arguments after the script's name; see `parse_dataclasses` for how mistakes end the program.
        description: Text above the list of options in `--help`.
    """
    groups = parse_dataclasses((EvaluationArguments, Protocol), argv, description)
    return cast(tuple[EvaluationArguments, Protocol], groups)
