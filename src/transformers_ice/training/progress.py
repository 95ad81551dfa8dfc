# SPDX-License-Identifier: Apache-2.0
"""Log of a run besides the loss: its parts, images per second, and a warning if there are few steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import reduce
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback
from transformers.utils import logging


__all__ = [
    "LossParts",
    "SingleBarCallback",
    "StepCountCallback",
    "ThroughputMeter",
    "describe_gap",
    "describe_kept",
    "describe_time",
    "no_bars",
]

logger = logging.get_logger(__name__)

_FEW_STEPS = 100  # a head from random weights needs some hundred steps
_TIMED_STEPS = 3
_WIDE_GAP = 0.1  # in top-1, from [CLS] down to the patches


class LossParts:
    """Means of the parts of the loss, the outputs in `names`, over the batches since the last reading."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self._sums: dict[str, Tensor] = {}
        self._num_batches = 0

    def add(self, outputs: Any) -> None:
        """Add the outputs for one batch."""
        self._num_batches += 1
        for name in self.names:
            part = outputs.get(name) if isinstance(outputs, dict) else None
            if part is not None:
                # a sum on the device: no step waits for the accelerator
                self._sums[name] = self._sums.get(name, 0) + part.detach().float().mean()

    def read(self) -> dict[str, float]:
        """Return the means over batches and processes, and start again; every process must call it."""
        if not self._sums:
            return {}
        # one reduction for all parts: each waits for the slowest process
        means: Any = reduce(torch.stack(list(self._sums.values())) / self._num_batches, reduction="mean")
        named = dict(zip(self._sums, means.tolist(), strict=True))
        self._sums, self._num_batches = {}, 0
        return named


class ThroughputMeter(TrainerCallback):
    """Images and the seconds they took, from one reading to the next, without the time of evaluating and saving."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._since: float | None = None
        self._pause: float | None = None
        self._paused_seconds = 0.0
        self._num_images = 0

    def count(self, num_images: int) -> None:
        """Add images that are about to be trained on; the first ones start the clock."""
        if self._since is None:
            self._since = self._clock()
        self._num_images += num_images

    def begin_pause(self) -> None:
        """Exclude the time from here to `end_pause`."""
        self._pause = self._clock()

    def end_pause(self) -> None:
        """End a pause, if there is one; after a reading inside it, only its time since that reading is excluded."""
        if self._pause is not None and self._since is not None:
            self._paused_seconds += self._clock() - max(self._pause, self._since)
        self._pause = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time of the block."""
        self.begin_pause()
        try:
            yield
        finally:
            self.end_pause()

    def read(self) -> float:
        """Return the images per second since the last reading, and start again."""
        now = self._clock()
        seconds = now - (now if self._since is None else self._since) - self._paused_seconds
        rate = self._num_images / seconds if seconds > 0 else 0.0
        self._since, self._paused_seconds, self._num_images = now, 0.0, 0
        return rate

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """End the pause that saving has begun."""
        self.end_pause()


def describe_kept(trainer: Any) -> str | None:
    """Return which step is the final model and why, where that may be another one than the last."""
    state, args = trainer.state, trainer.args
    if not args.load_best_model_at_end or state.best_model_checkpoint is None:
        return None
    name, step = str(args.metric_for_best_model).removeprefix("eval_"), state.best_model_checkpoint.rsplit("-", 1)[1]
    order = "highest" if args.greater_is_better else "lowest"
    return f"Kept step {step} of {state.global_step}: the {order} {name} of its evaluations, {state.best_metric:.4f}"


def describe_gap(evaluation: Mapping[str, float]) -> str | None:
    """Return what it may mean that [CLS] names far more labels than the patches; `None` where it does not.

    Args:
        evaluation: Numbers of an evaluation by name; `eval_top_1` is of the patches where `eval_cls_top_1` differs.
    """
    patches, cls_token = evaluation.get("eval_top_1"), evaluation.get("eval_cls_top_1")
    if patches is None or cls_token is None or cls_token - patches < _WIDE_GAP:
        return None
    return (
        f"Patches name the label of {patches:.1%} of the validation images, [CLS] of {cls_token:.1%}. Patches of the "
        "object can do as well as [CLS], so look at the masks: they may be the ground in place of the object, by "
        "chance, and another `--seed` helps; or the patch head needs more steps"
    )


@contextmanager
def no_bars() -> Iterator[None]:
    """Hide the progress bars of transformers inside the block."""
    is_enabled = logging.is_progress_bar_enabled()
    if is_enabled:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if is_enabled:
            logging.enable_progress_bar()


class SingleBarCallback(ProgressCallback):
    """One bar at a time: an evaluation during training has none of its own."""

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        """Move the bar of an evaluation outside training."""
        if self.training_bar is None:
            super().on_prediction_step(args, state, control, eval_dataloader, **kwargs)


class StepCountCallback(TrainerCallback):
    """Length of a run before it begins and its time after a few steps; a warning if it is too short for a new head."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._begin = (0, 0.0)  # first step that is timed, and its time

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Say how long the run is, and warn of fewer than a hundred steps."""
        self._begin = (state.global_step + 1, 0.0)
        if not state.is_world_process_zero:
            return
        batch_size = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
        loader = kwargs.get("train_dataloader")
        if loader is not None:
            steps = max(1, math.ceil(len(loader) / args.gradient_accumulation_steps))
            resumed = f", resumed after step {state.global_step}" if state.global_step else ""
            logger.warning(f"{state.max_steps} steps of {batch_size} images, {steps} steps an epoch{resumed}.")
        if state.max_steps < _FEW_STEPS:
            logger.warning(
                f"This run has {state.max_steps} steps of {batch_size} images; a head of random weights needs some "
                "hundred. More images, more `--num_train_epochs` or a smaller `--per_device_train_batch_size` help."
            )

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Estimate the time once: the first step, which warms up, does not count."""
        if getattr(args, "cache_features", False):
            return  # later epochs are faster than the first steps
        first, since = self._begin
        if state.global_step == first:
            self._begin = (first, self._clock())
        elif state.global_step == first + _TIMED_STEPS and state.is_world_process_zero:
            seconds = (self._clock() - since) / _TIMED_STEPS * (state.max_steps - state.global_step)
            if seconds >= 60:
                logger.warning(f"About {describe_time(seconds)} to go at this speed, without evaluations.")


def describe_time(seconds: float) -> str:
    """Return a time in words, to the minute."""
    if seconds < 60:
        return "less than a minute"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
