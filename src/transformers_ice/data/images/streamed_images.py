# SPDX-License-Identifier: Apache-2.0
"""Streamed training images as a `torch` data set: every row once an epoch, in one process and one worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from ..augmentation.batch_augmentation import AUGMENTATION_SEED
from ..augmentation.image_augmentation import TrainingAugmentation
from .labels import Labels
from .pixels import PixelReader
from .streams import ShardedRows, buffer_order, piece_of_reader, rows_of_process, shard_order, spans_of


__all__ = ["StreamedImages", "leave_out_skipped"]


class StreamedImages(IterableDataset):
    """Shards of images as a data set of uint8 pixels and labels, for any number of processes and workers.

    The order of the rows depends on seed, epoch, processes, workers and batch size alone; the random numbers of its
    augmentation on seed, epoch and row, as in `LabelledImages` of the same rows. All processes have the same number of
    rows: where the rows do not divide, some processes show one of theirs twice.

    Args:
        rows: The shards, with the columns of images and classes.
        labels: The classes, and the class of each cell of `label_column`.
        image_processor: Source of the input size.
        augmentation: Augmentation of the images.
        image_column: Column of images.
        label_column: Column of classes, or of lists of them, whose `labels` are multi-hot as in `LabelledImages`.
        seed: Seed of order and augmentation.
        shuffle_buffer_size: Undecoded rows that each worker shuffles; 1 reads all in the order of the files.
    """

    def __init__(
        self,
        rows: ShardedRows,
        labels: Labels,
        image_processor: Any,
        augmentation: TrainingAugmentation | None = None,
        image_column: str = "image",
        label_column: str = "label",
        seed: int = 0,
        shuffle_buffer_size: int = 1000,
    ) -> None:
        self.rows = rows.select_columns([image_column, label_column])
        self.image_column, self.label_column = image_column, label_column
        self.seed, self.shuffle_buffer_size = seed, shuffle_buffer_size
        self._read_pixels = PixelReader(image_processor, augmentation)
        self.labels = labels
        self.process, self.num_processes, self.batch_size, self.drop_last = 0, 1, 1, False
        # shared memory: persistent workers see new numbers too
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._skipped = torch.tensor([-1, 0]).share_memory_()  # epoch, and batches skipped at its beginning

    def set_epoch(self, epoch: int) -> None:
        """Draw another order, other crops and flips from the next iteration on."""
        self._epoch.fill_(epoch)

    @property
    def epoch(self) -> int:
        """The epoch whose order, crops and flips are drawn."""
        return int(self._epoch)

    def divide(self, process: int, num_processes: int, batch_size: int, drop_last: bool = False) -> None:
        """Set the part of the rows that this process reads, in batches of `batch_size`.

        Raises `ValueError` if a process would have no batch, where an incomplete last one is dropped or not.
        """
        if len(self.rows) < num_processes * (batch_size if drop_last else 1):
            batches = f" in whole batches of {batch_size}" if drop_last else ""
            raise ValueError(
                f"{len(self.rows)} training images cannot be divided among {num_processes} processes{batches}."
            )
        self.process, self.num_processes = process, num_processes
        self.batch_size, self.drop_last = batch_size, drop_last

    def skip_batches(self, epoch: int, num_batches: int) -> None:
        """Yield empty rows for the first batches of an epoch, and read nothing for them."""
        self._skipped.copy_(torch.tensor([epoch, num_batches]))

    @property
    def num_rows(self) -> int:
        """Rows of all processes together."""
        return len(self.rows)

    def __len__(self) -> int:
        """Return the rows of this process, the same number in all."""
        if self.drop_last:
            return self.num_rows // self.num_processes // self.batch_size * self.batch_size
        # rounded up: processes with one row less repeat their first one
        return -(-self.num_rows // self.num_processes)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        worker, num_workers = (0, 1) if info is None else (info.id, info.num_workers)
        epoch = self.epoch
        start, stop = piece_of_reader(len(self), self.batch_size, worker, num_workers)
        # a seed per worker: otherwise all workers would shuffle in the same way
        order = buffer_order(stop - start, self.shuffle_buffer_size, f"{self.seed}/{epoch}/{self.process}/{worker}")
        of_epoch, num_batches = self._skipped.tolist()
        batches = len(range(worker, num_batches, num_workers)) if of_epoch == epoch else 0
        num_skipped = min(batches * self.batch_size, len(order))
        yield from ({} for _ in range(num_skipped))
        for index, row in self._in_order(order[num_skipped:], start, epoch):
            yield self._example(index, row, epoch)

    def _in_order(self, order: Sequence[int], start: int, epoch: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the rows at some positions of a worker's part; memory holds at most the shuffle buffer.

        Reading begins at the first wanted position, so a resumed epoch reads few of the rows that it has already used.
        """
        if not order:
            return
        first, wanted = min(order), set(order)
        stream = enumerate(self._read(start + first, start + max(order) + 1, epoch), first)
        held: dict[int, tuple[int, dict[str, Any]]] = {}
        for position in order:
            while position not in held:
                # read ahead: rows that come later in the order wait in `held`
                found, row = next(stream)
                if found in wanted:
                    held[found] = row
            yield held.pop(position)

    def _read(self, start: int, stop: int, epoch: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the rows at the positions [start, stop) of this process; positions after its last row wrap around."""
        begin, end = rows_of_process(self.num_rows, self.process, self.num_processes)
        order = shard_order(len(self.rows.counts), self.seed, epoch, shuffle=self.shuffle_buffer_size > 1)
        # two spans: up to the last row of the process, and after it from its first row again
        for first, last in ((begin + start, min(begin + stop, end)), (begin, begin + max(stop - (end - begin), 0))):
            yield from self.rows.read(list(spans_of(self.rows.counts, order, first, last)))

    def _example(self, index: int, row: dict[str, Any], epoch: int) -> dict[str, Any]:
        seed = f"{self.seed}/{epoch}/{index}"  # as in `LabelledImages`
        try:
            if row[self.image_column] is None:
                raise ValueError("there is no image.")
            label = self.labels.target_of(row[self.label_column])
            pixels = self._read_pixels(row[self.image_column], seed)
            return {"pixel_values": pixels, "labels": label, AUGMENTATION_SEED: seed}
        except ValueError as error:
            raise ValueError(f"The {self.rows.place_of(index)}: {error}") from error


def leave_out_skipped(collate: Callable, rows: Sequence[dict[str, Any]]) -> Any:
    """Collate a batch of rows; of skipped rows a placeholder, from which accelerate reads the batch size."""
    return collate(rows) if rows[0] else {"skipped": torch.zeros(len(rows), dtype=torch.uint8)}
