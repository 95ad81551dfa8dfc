# SPDX-License-Identifier: Apache-2.0
r"""Train an ICE model from a ViT, DeiT or ICE checkpoint, or a classifier from random weights.

On the scenes that this package draws (no download), the classifier first and ICE from it:

    transformers-ice train recipes/deit-scenes.yaml
    transformers-ice train recipes/ice-deit-scenes.yaml

10 minutes on two cores (AMD EPYC, Turin), top-1 0.974; then 6 on one (Intel Xeon), top-1 0.990, mean IoU 0.747.

On images of your own, one subfolder per class, from a checkpoint of the Hub:

    transformers-ice train recipes/finetune-folder.yaml --train_dir photos/train --validation_dir photos/val \
        --output_dir outputs/photos

Options after a recipe override it; `--help` lists them all, those of `TrainingArguments` among them. The folder
`output_dir` then holds the model with everything it needs, its card (`README.md`), the log (`trainer_state.json`),
the numbers (`all_results.json`), which are also printed, and a panel for each evaluation (`panels/`).
`--push_to_hub true --hub_model_id OWNER/NAME` uploads it at the end: docs/publishing.md.

Parquet files, WebDataset tars, streams, and `--check_only true`, which checks the data and trains nothing: see
docs/training/data.md.

A killed run resumes with `--resume_from_checkpoint auto`; docs/training/resume.md lists what is guaranteed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ..console.exits import command, how_called
from ..console.redaction import known_secrets, redact_text
from ..data.images.pixels import input_size
from ..model_names import sample_folder
from ..training import (
    DataArguments,
    IceTrainingArguments,
    ModelArguments,
    TrainingStoppedError,
    build_config,
    check_data,
    parse_arguments,
    resume_command,
    run_training,
)
from ..training.cached_features import check_cached_features
from ..training.models import build_image_processor, check_windows
from ..training.panels import PanelCallback
from ..training.parameter_groups import check_frozen_layers
from ..training.run_card import RunCard
from ..training.run_length import describe_length


__all__ = ["main", "train"]


def print_check(model_args: ModelArguments, data_args: DataArguments, training_args: IceTrainingArguments) -> int:
    """Check data and model; print the result and the length of the run, and return the exit code."""
    secrets = known_secrets(model_args, training_args)
    try:
        report = check_data(data_args, seed=training_args.seed, cache_dir=model_args.cache_dir, token=model_args.token)
    except ValueError as error:
        print(redact_text(str(error), secrets), file=sys.stderr)
        return 1
    print(redact_text(str(report), secrets))
    try:
        config = build_config(model_args, data_args.image_size)
        size = input_size(build_image_processor(model_args, config, data_args.image_size))
        config.image_size, config.num_labels = list(size), len(report.class_names)
        check_windows(config, size)
        check_frozen_layers(training_args.freeze_layers, config)
        check_cached_features(training_args, config, data_args)
    except (OSError, ValueError) as error:
        print(redact_text(f"The model cannot be had: {error}", secrets), file=sys.stderr)
        return 1
    if not report.exit_code:
        print(describe_length(config, size, report.num_images["train"], training_args))
    return report.exit_code


def train(
    argv: Sequence[str], model_args: ModelArguments, data_args: DataArguments, training_args: IceTrainingArguments
) -> dict[str, float]:
    """Train by the arguments, which were parsed from `argv`; print and return the metrics."""
    callbacks = [PanelCallback(training_args.num_panel_images)]
    numbers = run_training(model_args, data_args, training_args, callbacks, RunCard(argv, model_args, data_args))
    if training_args.process_index == 0:
        width = max(map(len, numbers))
        for name, value in sorted(numbers.items()):
            print(f"{name:<{width}} {value:14.{'4f' if abs(value) < 1e8 else '4g'}}")
        print(f"Model, log and numbers are in {training_args.output_dir}.")
    return numbers


def _find_recipe(argv: list[str]) -> list[str]:
    """Return the arguments with `recipes/NAME.yaml` as the path of a recipe of this project, from any folder."""
    if argv and argv[0].startswith("recipes/") and not Path(argv[0]).exists():
        with suppress(ValueError):
            return [str(sample_folder("recipes", argv[0].removeprefix("recipes/"))), *argv[1:]]
    return argv


@command()
def main(argv: list[str]) -> int:
    """Train, or only check the data; return the exit code."""
    argv = _find_recipe(argv)
    model_args, data_args, training_args = parse_arguments(argv, __doc__)
    if data_args.check_only:
        return print_check(model_args, data_args, training_args)
    try:
        train(argv, model_args, data_args, training_args)
    except TrainingStoppedError as stopped:
        advice = resume_command(how_called("train"), argv)
        reason = redact_text(str(stopped), known_secrets(model_args, training_args))
        print(f"{reason}\nTo resume: {advice}", file=sys.stderr, flush=True)
        return stopped.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
