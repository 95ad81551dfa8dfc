# SPDX-License-Identifier: Apache-2.0
"""Say it before training where a run is too short to teach a new head anything."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging


__all__ = ["StepCountCallback"]

logger = logging.get_logger(__name__)

_FEW_STEPS = 100


class StepCountCallback(TrainerCallback):
    """Warn where a run has fewer than a hundred steps, with what makes them more."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Warn in the main process, once."""
        if state.max_steps < _FEW_STEPS and state.is_world_process_zero:
            batch_size = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
            logger.warning(
                f"This run has {state.max_steps} steps of {batch_size} images; a head of random weights needs some "
                "hundred. More images, more `--num_train_epochs` or a smaller `--per_device_train_batch_size` help."
            )
