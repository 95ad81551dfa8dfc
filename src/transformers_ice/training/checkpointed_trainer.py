# SPDX-License-Identifier: Apache-2.0
"""A `Trainer` that never loses work: complete checkpoints, finite weights, stops between two steps."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .checkpoints import is_complete, list_checkpoints, mark_complete, remove_checkpoint, surplus_checkpoints
from .stopping import NOT_FINITE_EXIT_CODE, StopRequest, TrainingStoppedError, start_worker, writing_to


__all__ = ["CheckpointedTrainer"]


class CheckpointedTrainer(Trainer):
    """Save checkpoints that are complete or do not count, and end in order.

    Differences from `Trainer`: a checkpoint gets a marker once the files of all processes and callbacks are on the
    disk, and only then are older ones removed; training ends where the loss or a weight is not finite, and after the
    step in which `stop_request` got a signal.

    Attributes:
        stop_request: Asked after every step. None: training cannot be asked to stop.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stop_request: StopRequest | None = None
        self._being_written: Path | None = None
        self._last_completed: Path | None = None
        self._last_asked_at = -1
        self._save_total_limit = self.args.save_total_limit

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """Return the `DataLoader` of `Trainer`, whose workers live through a request to stop."""
        loader: Any = super()._get_dataloader(*args, **kwargs)
        started_by = getattr(loader, "base_dataloader", loader)  # accelerate wraps the one that starts them
        started_by.worker_init_fn = partial(start_worker, started_by.worker_init_fn)
        return loader

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, and end training if the loss of the lines since the last one is not finite."""
        super().log(logs, start_time)
        # the mean over all processes: they stop together
        loss = logs.get("loss", logs.get("train_loss", 0.0))
        if not math.isfinite(loss):
            self._stop_for(f"the loss is {loss}")

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, as `Trainer.save_model`, if all its weights are finite."""
        if not _internal_call:
            self._check_weights()
        super().save_model(output_dir, _internal_call)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Do what is due after a step or an epoch; then complete the checkpoint, and stop if asked to."""
        signal_number = self._signal_to_obey()
        self.control.should_save |= bool(signal_number)
        if self.control.should_evaluate:
            self._check_weights()  # rather than report, and draw, what they make of images
        with writing_to(self.args.output_dir):
            super()._maybe_log_save_evaluate(*args, **kwargs)
            # the callbacks have stored what they store by now
            if self._being_written is not None:
                self._complete_checkpoint(self._being_written)
        if signal_number:
            name = signal.Signals(signal_number).name
            reason = f"Training stopped after step {self.state.global_step}, as {name} asked."
            raise TrainingStoppedError(reason, self.args.output_dir, 128 + signal_number)

    def _signal_to_obey(self) -> int:
        """Return the signal to stop for, the same in all processes; 0 to go on."""
        if self.stop_request is None:
            return 0
        signal_number = self.stop_request.agreed_signal()
        # After the last step of an epoch comes what is due at its end, which a resumed run would leave out.
        ends_epoch = float(self.state.epoch or 0).is_integer()
        asked_before, self._last_asked_at = self._last_asked_at == self.state.global_step, self.state.global_step
        return signal_number if asked_before or not ends_epoch else 0

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint that does not count yet, and leave the others alone."""
        self._check_weights()
        folder = Path(self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        self._being_written = folder
        if folder == self._last_completed:
            return  # the same weights: never take a complete checkpoint apart to write it again
        if self.args.should_save:
            # what an interrupted run has left there must not pass for a part of this one
            remove_checkpoint(folder)
        self.accelerator.wait_for_everyone()
        with _limited_to(self.args, None):
            super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Save model and arguments, these with the limit that holds."""
        with _limited_to(self.args, self._save_total_limit):
            super()._save(output_dir, state_dict)

    def _complete_checkpoint(self, folder: Path) -> None:
        """Mark a checkpoint of which all processes have written their files, then remove what is too much."""
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            mark_complete(folder)
            complete = list(filter(is_complete, list_checkpoints(folder.parent)))
            kept = {folder, folder.with_name(Path(self.state.best_model_checkpoint or folder).name)}
            for surplus in surplus_checkpoints(complete, kept, self._save_total_limit):
                remove_checkpoint(surplus)
        self.accelerator.wait_for_everyone()
        self._being_written, self._last_completed = None, folder

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        """End training as `Trainer` does, but leave the last checkpoint, also where `save_total_limit` is 1.

        A run that is killed after it would train again from the best one, and so would one that is started again.
        """
        with _limited_to(self.args, None):
            return super()._finalize_training(*args, **kwargs)

    def _check_weights(self) -> None:
        """End training if a weight is NaN or infinite, in any process; waits for the accelerator once."""
        num_bad = torch.zeros((), dtype=torch.int64, device=self.args.device)
        model: Any = self.model
        for tensor in chain(model.parameters(), model.buffers()):
            # of a sharded tensor, what this process holds
            local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
            num_bad += (~local.isfinite()).sum().to(num_bad.device)
        if int(self.accelerator.reduce(num_bad, reduction="sum")):
            self._stop_for("weights of the model are NaN or infinite")

    def _stop_for(self, fault: str) -> None:
        reason = (
            f"Training stopped at step {self.state.global_step}: {fault}. Nothing of it was saved. Going on with the "
            "same arguments would end alike: lower `--learning_rate`, or raise `--warmup_steps`."
        )
        raise TrainingStoppedError(reason, self.args.output_dir, NOT_FINITE_EXIT_CODE)


@contextmanager
def _limited_to(args: TrainingArguments, limit: int | None) -> Iterator[None]:
    """Let `Trainer` see another limit: with None it removes no checkpoint itself, before the new one is complete."""
    before, args.save_total_limit = args.save_total_limit, limit
    try:
        yield
    finally:
        args.save_total_limit = before
