# SPDX-License-Identifier: Apache-2.0
"""Log of a run besides the loss: its parts, images per second, and a warning if there are few steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import reduce
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging


__all__ = ["LossParts", "StepCountCallback", "ThroughputMeter"]

logger = logging.get_logger(__name__)

_FEW_STEPS = 100  # a head from random weights needs some hundred steps


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


class StepCountCallback(TrainerCallback):
    """Warning before training if a run is too short to train a new head, with the options that make it longer."""

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Warn in the main process, once, of fewer than a hundred steps."""
        if state.max_steps < _FEW_STEPS and state.is_world_process_zero:
            batch_size = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
            logger.warning(
                f"This run has {state.max_steps} steps of {batch_size} images; a head of random weights needs some "
                "hundred. More images, more `--num_train_epochs` or a smaller `--per_device_train_batch_size` help."
            )
