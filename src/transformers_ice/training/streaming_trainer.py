# SPDX-License-Identifier: Apache-2.0
"""A `Trainer` that streams: each process reads its own rows, and a resumed epoch does not read what it has seen."""

from __future__ import annotations

from functools import partial
from typing import Any

from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader
from transformers import Trainer

from ..data.images.streamed_images import StreamedImages, leave_out_skipped


__all__ = ["StreamingTrainer"]


class StreamingTrainer(Trainer):
    """Train on `StreamedImages` as on a table.

    Differences from `Trainer` there: no process reads for the others, or reads rows of others and drops them; and a
    resumed epoch begins where it was left, instead of running through all batches before. Tables are left to
    `Trainer`.
    """

    def _get_dataloader(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the `DataLoader` of this process."""
        if not isinstance(dataset, StreamedImages):
            return super()._get_dataloader(dataset, *args, **kwargs)
        batch_size = self._train_batch_size
        dataset.divide(
            self.args.process_index, self.args.world_size, batch_size, drop_last=self.args.dataloader_drop_last
        )
        loader = DataLoader(
            dataset,
            batch_size=batch_size,
            collate_fn=partial(leave_out_skipped, self.data_collator),
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )
        # "one process": the rows are divided already; accelerate brings them to the device, and knows the last batch
        options = {"num_processes": 1, "process_index": 0, "put_on_device": True, "dispatch_batches": False}
        return prepare_data_loader(loader, self.accelerator.device, **options)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> Any:
        """Train one epoch; of one that is resumed, the images of the batches before are not read."""
        epoch, skipped = kwargs["epoch"], kwargs["steps_trained_in_current_epoch"]
        is_resumed = kwargs["resume_from_checkpoint"] is not None and epoch == kwargs["epochs_trained"]
        if isinstance(self.train_dataset, StreamedImages) and is_resumed and not self.args.ignore_data_skip:
            self.train_dataset.skip_batches(epoch, skipped)
        return super()._run_epoch(*args, **kwargs)

    def num_examples(self, dataloader: DataLoader) -> int:
        """Return the number of images, those of all processes together."""
        dataset: Any = dataloader.dataset
        return dataset.num_rows if isinstance(dataset, StreamedImages) else super().num_examples(dataloader)
