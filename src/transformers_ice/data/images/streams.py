# SPDX-License-Identifier: Apache-2.0
"""Sequential reading of Parquet or WebDataset shards, and the division of rows among processes and workers.

One epoch is one sequence of rows: the shards in an order drawn from seed and epoch, each with its rows as they are
stored. Processes, and within each the workers that load images, take neighbouring parts of it. So each row has exactly
one reader, whether there are more shards than readers or fewer. `datasets` opens and decodes the files; order and
split are drawn here, since its `IterableDataset` refills a shuffle buffer on resume with later rows, gives workers and
processes whole shards or one row in n, and does not make their numbers of rows equal.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from datasets import Dataset, Features, IterableDataset, load_dataset
from datasets import Image as ImageFeature

from .cells import Cells, read_column
from .shards import check_origin, count_rows, find_json_labels, kind_of, place_in_shards, read_cells


__all__ = [
    "ShardSpan",
    "ShardedRows",
    "buffer_order",
    "load_shards",
    "open_shards",
    "piece_of_reader",
    "rows_of_process",
    "shard_order",
    "spans_of",
]

_READ_AT_ONCE = 16


@dataclass(frozen=True)
class ShardSpan:
    """Neighbouring rows of one shard, `[start, stop)`."""

    shard: int
    start: int
    stop: int


def shard_order(num_shards: int, seed: int, epoch: int, shuffle: bool = True) -> list[int]:
    """Return the order of the shards in an epoch; it depends on seed and epoch alone."""
    order = list(range(num_shards))
    if shuffle:
        random.Random(f"shards/{seed}/{epoch}").shuffle(order)
    return order


def rows_of_process(num_rows: int, process: int, num_processes: int) -> tuple[int, int]:
    """Return the positions `[start, stop)` of one process; sizes differ by one at most."""
    # integer arithmetic: neighbouring processes share no row and skip none
    return process * num_rows // num_processes, (process + 1) * num_rows // num_processes


def piece_of_reader(size: int, batch_size: int, worker: int, num_workers: int) -> tuple[int, int]:
    """Return the positions `[start, stop)` of one worker within the `size` rows of its process.

    A `DataLoader` takes whole batches from its workers in turn: worker w makes the batches w, w + num_workers, ...;
    the rows of these are neighbours.
    """
    sizes = [0] * num_workers
    # -(-a // b) rounds up; the last batch may be smaller
    for batch in range(-(-size // batch_size)):
        sizes[batch % num_workers] += min(batch_size, size - batch * batch_size)
    start = sum(sizes[:worker])
    return start, start + sizes[worker]


def spans_of(counts: Sequence[int], order: Sequence[int], start: int, stop: int) -> Iterator[ShardSpan]:
    """Yield the spans of shards of `counts` rows, in the `order` of an epoch, that hold positions [start, stop)."""
    first = 0  # position of the first row of the shard
    for shard in order:
        begin, end = max(start - first, 0), min(stop - first, counts[shard])
        if begin < end:
            yield ShardSpan(shard, begin, end)
        first += counts[shard]


def buffer_order(size: int, buffer_size: int, seed: str) -> list[int]:
    """Return 0 ... size - 1 in the order of a shuffle buffer; one of 1 keeps the order.

    The buffer is filled, then returns one of its rows at random and takes the next one in its place.
    """
    generator = random.Random(seed)
    buffer, given = list(range(min(size, buffer_size))), []
    for position in range(len(buffer), size):
        slot = generator.randrange(len(buffer))
        given.append(buffer[slot])
        buffer[slot] = position
    # the rest of the buffer, after the last row was read
    if buffer_size > 1:
        generator.shuffle(buffer)
    return given + buffer


class ShardedRows:
    """Shards whose sizes are known; each is read sequentially, from any row on.

    Args:
        source: A streamed data set with one shard for each file.
        files: The files.
        counts: Rows of each.
        stored_names: Name in the files by new name, of renamed columns.
    """

    def __init__(
        self,
        source: IterableDataset,
        files: Sequence[str],
        counts: Sequence[int],
        stored_names: dict[str, str] | None = None,
    ) -> None:
        self.source, self.files, self.counts = source, list(files), list(counts)
        self.stored_names = stored_names or {}
        self.features = cast(Features, source.features)
        self.column_names = list(self.features)
        # number of the first row of each shard, where rows are counted in the order of the files
        self.offsets = [sum(self.counts[:shard]) for shard in range(len(self.counts))]

    def __len__(self) -> int:
        return sum(self.counts)

    def select_columns(self, columns: Sequence[str]) -> ShardedRows:
        """Return the same rows with some of the columns."""
        return self._with_source(self.source.select_columns(list(columns)))

    def rename_column(self, old: str, new: str) -> ShardedRows:
        """Return the same rows, one column with another name."""
        names = self.stored_names | {new: self.stored_names.get(old, old)}
        return ShardedRows(self.source.rename_column(old, new), self.files, self.counts, names)

    def cast_column(self, column: str, feature: Any) -> ShardedRows:
        """Return the same rows, one column with another type."""
        return self._with_source(self.source.cast_column(column, feature))

    def take_from_json(self, key: str) -> ShardedRows:
        """Return the same rows, with what the column `json` holds under a key as a column in its place."""
        features = {name: feature for name, feature in self.features.items() if name != "json"}
        features[key] = self.features["json"][key]
        source = self.source.map(partial(_take, key=key), remove_columns=["json"], features=Features(features))
        return ShardedRows(source, self.files, self.counts, self.stored_names | {key: f"json/{key}"})

    def _with_source(self, source: IterableDataset) -> ShardedRows:
        return ShardedRows(source, self.files, self.counts, self.stored_names)

    def cells_of(self, column: str, extremes_suffice: bool = False) -> Cells:
        """Return the different cells of a column of labels, see `read_cells`; the images are not read."""
        return read_cells(self.files, self.stored_names.get(column, column), extremes_suffice)

    def place_of(self, index: int) -> str:
        """Return file and row of a number among all rows, in the order of the files."""
        return place_in_shards(self.files, self.counts, index)

    def read(self, spans: Sequence[ShardSpan]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the rows of spans in their order, each with its number among all rows.

        Raises `ValueError` that names a shard which ends too early, or cannot be read.
        """
        for span in spans:
            found = span.start
            # after an error the rest is read row by row, to find the row
            for at_once in (_READ_AT_ONCE, 1):
                try:
                    for row in self._rows_of(ShardSpan(span.shard, found, span.stop), at_once):
                        check_origin(row, [self.files[span.shard]])
                        yield self.offsets[span.shard] + found, row
                        found += 1
                    break
                except Exception as error:  # a damaged row can fail anywhere inside a decoder
                    if at_once == 1:
                        cause = error.__cause__ or error
                        raise ValueError(f"{self.files[span.shard]}, row {found}: {cause}") from error
            if found < span.stop:
                raise ValueError(
                    f"{self.files[span.shard]} ends after {found} rows, {self.counts[span.shard]} were counted."
                )

    def _rows_of(self, span: ShardSpan, at_once: int) -> Iterator[dict[str, Any]]:
        shard = self.source.shard(len(self.counts), span.shard).skip(span.start).take(span.stop - span.start)
        # plain iteration would divide the rows among the workers of a DataLoader once more; `iter` does not
        for batch in shard.iter(at_once):
            for cells in zip(*batch.values(), strict=True):
                yield dict(zip(batch, cells, strict=True))


def _take(row: dict[str, Any], key: str) -> dict[str, Any]:
    return {key: (row["json"] or {}).get(key)}


def open_shards(files: Sequence[str], label_column: str = "label") -> ShardedRows:
    """Return the rows of Parquet files or WebDataset tars, counted but not read.

    Classes that tars hold under `label_column` in `json` members become a column of that name. Raises `ValueError` if
    a file cannot be read, or they hold no rows.
    """
    files, counts = list(files), count_rows(files)
    if not sum(counts):
        raise ValueError(f"The {len(files)} files hold no rows, e.g. {files[0]}.")
    features = find_json_labels(files, label_column)
    options: dict[str, Any] = {"data_files": {"train": files}, "split": "train", "features": features}
    try:
        source = load_dataset(kind_of(files), streaming=True, **options)
    except Exception as error:  # the first rows are decoded, to see which columns there are
        raise ValueError(f"{files[0]} cannot be read, or is not like the other files: {error}") from error
    if source.num_shards != len(files):
        raise ValueError(f"`datasets` reads {source.num_shards} shards in {len(files)} files, one for each is needed.")
    for column, feature in cast(Features, source.features).items():
        if isinstance(feature, ImageFeature):
            # first of all: to rename or select columns `datasets` would decode the images, and encode them again
            source = source.cast_column(column, ImageFeature(decode=False))
    rows = ShardedRows(source, files, counts)
    return rows if features is None else rows.take_from_json(label_column)


def load_shards(files: Sequence[str], argument: str, cache_dir: str | None, label_column: str = "label") -> Dataset:
    """Return Parquet files or WebDataset tars as a table, as `open_shards` does; in the cache of `datasets`."""
    kind = kind_of(files, argument)
    if not sum(count_rows(files)):
        raise ValueError(f"`--{argument}` names {len(files)} files that hold no rows, e.g. {files[0]}.")
    features = find_json_labels(files, label_column)
    options: dict[str, Any] = {"data_files": {"train": list(files)}, "split": "train", "features": features}
    try:
        table = load_dataset(kind, cache_dir=cache_dir, **options)
    except Exception as error:  # `datasets` names neither file nor row: read them one by one
        for file in files:
            rows = open_shards([file])
            for index, row in rows.read([ShardSpan(0, 0, len(rows))]):
                for column, cell in row.items():
                    if isinstance(cell, int) and not -(2**63) <= cell < 2**63:
                        raise ValueError(f"The {rows.place_of(index)}: `{column}` is too large a number.") from error
        raise ValueError(f"`--{argument}` cannot be read as a table: {error.__cause__ or error}") from error
    if features is None:
        return table
    cells = [(content or {}).get(label_column) for content in read_column(table, "json")]
    return table.remove_columns("json").add_column(label_column, cells, feature=features["json"][label_column])
