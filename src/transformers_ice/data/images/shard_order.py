# SPDX-License-Identifier: Apache-2.0
"""Who reads which row of a streamed data set, and when: arithmetic with numbers alone, no file is opened.

One epoch is one line of rows: the shards in an order drawn from seed and epoch, each with its rows as they are stored.
Processes, and within each the workers that load images, take neighbouring pieces of the line. Each row so has exactly
one reader, whether there are more shards than readers or fewer.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


__all__ = ["ShardSpan", "buffer_order", "piece_of_reader", "rows_of_process", "shard_order", "spans_of"]


@dataclass(frozen=True)
class ShardSpan:
    """Neighbouring rows of one shard, `[start, stop)`."""

    shard: int
    start: int
    stop: int


def shard_order(num_shards: int, seed: int, epoch: int, shuffle: bool = True) -> list[int]:
    """Return the shards in the order of an epoch, a function of seed and epoch alone."""
    order = list(range(num_shards))
    if shuffle:
        random.Random(f"shards/{seed}/{epoch}").shuffle(order)
    return order


def rows_of_process(num_rows: int, process: int, num_processes: int) -> tuple[int, int]:
    """Return the positions `[start, stop)` of one process: sizes differ by one at most."""
    return process * num_rows // num_processes, (process + 1) * num_rows // num_processes


def piece_of_reader(size: int, batch_size: int, worker: int, num_workers: int) -> tuple[int, int]:
    """Return the positions of one worker within the `size` rows of its process.

    Workers give whole batches in turn: worker w has the batches w, w + num_workers, ... and the rows of these lie side
    by side.

    Args:
        size: Rows of the process.
        batch_size: Rows of a batch.
        worker: Number of the worker.
        num_workers: Number of workers.
    """
    sizes = [0] * num_workers
    for batch in range(-(-size // batch_size)):
        sizes[batch % num_workers] += min(batch_size, size - batch * batch_size)
    start = sum(sizes[:worker])
    return start, start + sizes[worker]


def spans_of(counts: Sequence[int], order: Sequence[int], start: int, stop: int) -> Iterator[ShardSpan]:
    """Yield the rows at the positions `[start, stop)` of the line.

    Args:
        counts: Rows of each shard.
        order: The shards in the order of the epoch.
        start: First position.
        stop: Position behind the last one.
    """
    first = 0
    for shard in order:
        begin, end = max(start - first, 0), min(stop - first, counts[shard])
        if begin < end:
            yield ShardSpan(shard, begin, end)
        first += counts[shard]


def buffer_order(size: int, buffer_size: int, seed: str) -> list[int]:
    """Return 0 ... size - 1 in the order in which a shuffle buffer gives them out.

    The buffer is filled, then gives out one of its rows at random and takes the next one.

    Args:
        size: Number of rows.
        buffer_size: Rows in the buffer; 1 keeps the order.
        seed: Of the draws.
    """
    generator = random.Random(seed)
    buffer, given = list(range(min(size, buffer_size))), []
    for position in range(len(buffer), size):
        slot = generator.randrange(len(buffer))
        given.append(buffer[slot])
        buffer[slot] = position
    if buffer_size > 1:
        generator.shuffle(buffer)
    return given + buffer
