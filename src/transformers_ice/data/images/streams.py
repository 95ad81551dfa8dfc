# SPDX-License-Identifier: Apache-2.0
"""Rows of Parquet or WebDataset shards, read from front to back, through `datasets`; images stay undecoded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

from datasets import ClassLabel, Features, IterableDataset, load_dataset
from datasets import Image as ImageFeature

from .shard_order import ShardSpan
from .shards import count_rows, kind_of


__all__ = ["ShardedRows", "label_names", "open_shards"]

_READ_AT_ONCE = 16


class ShardedRows:
    """Shards whose sizes are known; each is read from front to back, from any row on.

    Args:
        source: A streamed data set with one shard for each file.
        files: The files, for errors.
        counts: Rows of each.
    """

    def __init__(self, source: IterableDataset, files: Sequence[str], counts: Sequence[int]) -> None:
        self.source, self.files, self.counts = source, list(files), list(counts)
        # number of the first row of each shard, where rows are counted in the order of the files
        self.offsets = [sum(self.counts[:shard]) for shard in range(len(self.counts))]

    def __len__(self) -> int:
        return sum(self.counts)

    @property
    def features(self) -> Features:
        """What the columns hold."""
        return cast(Features, self.source.features)

    @property
    def column_names(self) -> list[str]:
        """The columns."""
        return list(self.features)

    def select_columns(self, columns: Sequence[str]) -> ShardedRows:
        """Return the same rows with some of the columns."""
        return ShardedRows(self.source.select_columns(list(columns)), self.files, self.counts)

    def rename_column(self, old: str, new: str) -> ShardedRows:
        """Return the same rows, one column with another name."""
        return ShardedRows(self.source.rename_column(old, new), self.files, self.counts)

    def values_of(self, column: str) -> Iterator[Any]:
        """Yield the cells of one column, read once."""
        for batch in self.source.select_columns([column]).iter(1000):
            yield from batch[column]

    def place_of(self, index: int) -> str:
        """Return file and row of a number among all rows, in the order of the files."""
        shard = max(number for number, offset in enumerate(self.offsets) if offset <= index and self.counts[number])
        return f"row {index - self.offsets[shard]} of {self.files[shard]}"

    def read(self, spans: Sequence[ShardSpan]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the rows of spans in their order, each with its number among all rows.

        Raises:
            ValueError: If a shard ends too early, or cannot be read; names it.
        """
        for span in spans:
            found = span.start
            try:
                for row in self._rows_of(span):
                    yield self.offsets[span.shard] + found, row
                    found += 1
            except (OSError, EOFError) as error:
                raise ValueError(f"{self.files[span.shard]}, row {found}: {error}") from error
            if found < span.stop:
                raise ValueError(
                    f"{self.files[span.shard]} ends after {found} rows, {self.counts[span.shard]} were counted."
                )

    def _rows_of(self, span: ShardSpan) -> Iterator[dict[str, Any]]:
        shard = self.source.shard(len(self.counts), span.shard).skip(span.start).take(span.stop - span.start)
        # plain iteration would divide the rows among the workers of a DataLoader once more; `iter` does not
        for batch in shard.iter(_READ_AT_ONCE):
            columns = list(batch)
            for cells in zip(*batch.values(), strict=True):
                yield dict(zip(columns, cells, strict=True))


def open_shards(files: Sequence[str]) -> ShardedRows:
    """Return the rows of Parquet files or WebDataset tars, counted but not read.

    Raises:
        ValueError: If a file cannot be read, or they hold no rows.
    """
    files, counts = list(files), count_rows(files)
    if not sum(counts):
        raise ValueError(f"The {len(files)} files hold no rows, e.g. {files[0]}.")
    source = load_dataset(kind_of(files), data_files={"train": files}, split="train", streaming=True)
    if source.num_shards != len(files):
        raise ValueError(f"`datasets` reads {source.num_shards} shards in {len(files)} files, one for each is needed.")
    for column, feature in cast(Features, source.features).items():
        if isinstance(feature, ImageFeature):
            # first of all: to rename or select columns `datasets` would decode the images, and encode them again
            source = source.cast_column(column, ImageFeature(decode=False))
    return ShardedRows(source, files, counts)


def label_names(rows: ShardedRows, column: str) -> list[str] | None:
    """Return the names that a column of classes declares, None if it holds bare names or numbers."""
    feature = rows.features[column]
    return list(feature.names) if isinstance(feature, ClassLabel) else None
