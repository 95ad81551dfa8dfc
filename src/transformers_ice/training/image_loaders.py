# SPDX-License-Identifier: Apache-2.0
"""Loaders of training images: streams, collators, the epoch number, and the batches a resumed run skips."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..data.images.streamed_images import StreamedImages, leave_out_skipped
from .stopping import start_worker


__all__ = ["EpochCallback", "ResumedStreamCallback", "load_stream", "shield_workers", "unwrap_loader"]


def load_stream(
    images: StreamedImages, collate: Callable, batch_size: int, args: TrainingArguments, device: torch.device
) -> Any:
    """Return the `DataLoader` of this process, which reads its own rows of the stream only."""
    images.divide(args.process_index, args.world_size, batch_size, drop_last=args.dataloader_drop_last)
    loader = DataLoader(
        images,
        batch_size=batch_size,
        collate_fn=partial(leave_out_skipped, collate),
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
        persistent_workers=args.dataloader_persistent_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
    )
    # "one process": the rows are divided already; accelerate brings them to the device, and knows the last batch
    return prepare_data_loader(
        loader, device, num_processes=1, process_index=0, put_on_device=True, dispatch_batches=False
    )


def shield_workers(loader: Any) -> None:
    """Keep the workers of a `DataLoader` alive through a stop signal, e.g. Ctrl-C."""
    starter = unwrap_loader(loader)
    starter.worker_init_fn = partial(start_worker, starter.worker_init_fn)


def unwrap_loader(loader: Any) -> Any:
    """Return the `DataLoader` that starts the workers: accelerate wraps it."""
    return getattr(loader, "base_dataloader", loader)


class EpochCallback(TrainerCallback):
    """Number of the epoch for the training images: accelerate does not pass it on in a run of several processes."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Pass the number of the epoch on; within an epoch that is resumed, `state.epoch` is a fraction."""
        self.dataset.set_epoch(int(state.epoch or 0))


class ResumedStreamCallback(TrainerCallback):
    """Position of a resumed run in a stream: the images of the batches before it are not read."""

    def __init__(self, images: StreamedImages) -> None:
        self.images = images

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Skip the epochs and batches that an earlier run has trained on, as `Trainer` counts them."""
        num_batches = args.gradient_accumulation_steps
        steps_per_epoch = -(-len(kwargs["train_dataloader"]) // num_batches)
        epoch, step = divmod(state.global_step, steps_per_epoch)
        self.images.skip_batches(epoch, 0 if args.ignore_data_skip else step * num_batches)
