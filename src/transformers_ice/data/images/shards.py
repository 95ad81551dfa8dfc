# SPDX-License-Identifier: Apache-2.0
"""Parquet and WebDataset shards: which files, of which kind, how many rows, which labels; no image is read."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

import datasets
import fsspec
import pyarrow
import pyarrow.parquet
from datasets import Features, Image, Value, load_dataset_builder
from datasets.features.features import generate_from_arrow_type
from datasets.packaged_modules.webdataset.webdataset import WebDataset

from ...console.output_files import write_json
from .cells import Cells, count_cells, freeze


__all__ = [
    "check_origin",
    "count_rows",
    "find_json_labels",
    "find_shards",
    "hub_shards",
    "kind_of",
    "place_in_shards",
    "read_cells",
]

_KINDS: dict[str, Literal["parquet", "webdataset"]] = {".parquet": "parquet", ".tar": "webdataset"}
# a sample of a WebDataset is all files of one name up to the first dot after the last slash; the rest is its column
_SAMPLE_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")


def find_shards(pattern: str, argument: str = "train_files") -> list[str]:
    """Return the files that a pattern with `*` and `**` names, sorted; `ValueError` if none, or of both kinds."""
    path = Path(pattern).expanduser()
    # `glob` takes relative patterns only: split an absolute path at its root
    root = Path(path.anchor or ".")
    files = sorted(str(file) for file in root.glob(str(path.relative_to(path.anchor))) if file.is_file())
    if not files:
        raise ValueError(
            f"`--{argument} {pattern}` names no file in {Path.cwd()}. Quote the pattern, so that the shell does not "
            'expand it: "shards/*.parquet".'
        )
    kind_of(files, argument)
    return files


def kind_of(files: Sequence[str], argument: str = "train_files") -> Literal["parquet", "webdataset"]:
    """Return the kind of shards by the endings of their files; `ValueError` if unknown, or of both kinds."""
    endings = {Path(file).suffix for file in files}
    kinds = {_KINDS[ending] for ending in endings if ending in _KINDS}
    if len(kinds) != 1 or endings - set(_KINDS):
        raise ValueError(
            f"`--{argument}` must name files that all end in .parquet, or all in .tar (WebDataset), got the endings "
            f"{', '.join(sorted(endings)) or 'none'}."
        )
    return kinds.pop()


def hub_shards(
    name: str, config_name: str | None = None, token: str | None = None, cache_dir: str | None = None
) -> dict[str, list[str]]:
    """Return the Parquet files of each split of a data set of the Hub, or of a local folder that `datasets` reads.

    Raises `ValueError` if the data set cannot be reached, or is not made of Parquet files.
    """
    try:
        builder = load_dataset_builder(name, config_name, token=token, cache_dir=cache_dir)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"The data set {name!r} could not be opened: {error} Give the id of a data set of the Hub (which needs a "
            "network), or files with `--train_files`."
        ) from error
    files = {str(split): list(paths) for split, paths in (builder.config.data_files or {}).items()}
    if {Path(path).suffix for paths in files.values() for path in paths} != {".parquet"}:
        raise ValueError(
            f"The data set {name!r} is not made of Parquet files, so its rows cannot be counted before they are read. "
            "Download its files (`hf download --repo-type dataset`) and pass `--train_files`, or run without "
            "`--streaming`."
        )
    return files


def count_rows(files: Sequence[str]) -> list[int]:
    """Return the number of rows of each shard; they are counted once and kept in the cache of `datasets`.

    Of Parquet files the footers are read, of tars the headers. Raises `ValueError` that names a file it cannot read.
    """
    count = _count_parquet if kind_of(files) == "parquet" else _count_tar
    return list(_cached(files, "", lambda: [count(file) for file in files]))


def place_in_shards(files: Sequence[str], counts: Sequence[int], index: int) -> str:
    """Return file and row of a number among all rows, in the order of the files."""
    row = index
    for file, count in zip(files, counts, strict=True):
        if row < count:
            return f"row {row} of {file}"
        row -= count
    raise IndexError(f"Row {index} after the last one, of {len(files)} files with {sum(counts)} rows.")


def check_origin(row: dict[str, Any], places: Iterable[str | os.PathLike]) -> None:
    """Raise if an image of a row has no bytes, and its path is an address or outside the folders of some places.

    A row of a stranger must neither send requests nor open other files of this machine.
    """
    paths = [cell.get("path") for cell in row.values() if isinstance(cell, dict) and cell.get("bytes") is None]
    for path in filter(None, paths):
        folders = [os.path.abspath(place if os.path.isdir(place) else os.path.dirname(place)) for place in places]
        if "://" in path or not any(Path(os.path.abspath(path)).is_relative_to(folder) for folder in folders):
            raise ValueError(
                f"The row holds no bytes of an image, and its path {path!r} is no file below {', '.join(folders)}. "
                "Write the bytes of the images into the rows."
            )


def read_cells(files: Sequence[str], column: str, extremes_suffice: bool = False) -> Cells:
    """Return the distinct cells of a column of labels; of local files they are cached like the numbers of rows.

    Args:
        files: As for `count_rows`.
        column: Name of the column, in a tar the ending of the files; `json/KEY` is what stands there under a key.
        extremes_suffice: Whether of remote Parquet files the smallest and the largest number of each row group, and
            whether there are empty cells, are enough: their footers hold these, and no row is read over the network.
    """
    is_tar = kind_of(files) == "webdataset"
    if extremes_suffice and not is_tar and any("://" in file for file in files):
        return _parquet_extremes(files, column)

    def read() -> list[Any]:
        # a list, since keys of JSON are texts and cells need not be
        cells = count_cells(_tar_cells(files, column) if is_tar else _parquet_cells(files, column))
        return [(cell, first, count) for cell, (first, count) in cells.items()]

    # JSON has lists alone, where cells are tuples
    return {freeze(cell): (first, count) for cell, first, count in _cached(files, column, read)}


def find_json_labels(files: Sequence[str], column: str) -> Features | None:
    """Return the columns of tars whose `json` members hold the classes under the key `column`.

    None where they are elsewhere: in members of their own (`column`, or `cls`), or in no tars. `datasets` would take
    the types from the first rows, which may all have no class. Raises `ValueError` if the types of the rows differ.
    """
    if kind_of(files) != "webdataset":
        return None
    _, first = next(groupby(_tar_members(files[0]), key=itemgetter(0)), ("", iter(())))
    endings = [ending for _, ending, _ in first]  # of the first sample
    if "json" not in endings or column in endings or (column == "label" and "cls" in endings):
        return None
    cells = list(read_cells(files, f"json/{column}"))
    if cells == [None]:
        return None
    try:
        label = generate_from_arrow_type(pyarrow.array(cells).type)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
        raise ValueError(
            f"The `json` members of {files[0]} and the other files must hold {column!r} in one type, lists of texts "
            f"or lists of integers: {error}"
        ) from error
    images = [ending for ending in endings if ending.rsplit(".", 1)[-1].lower() in WebDataset.IMAGE_EXTENSIONS]
    names = {"__key__": Value("string"), "__url__": Value("string")}
    return Features({**{ending: Image() for ending in images}, "json": {column: label}, **names})


def _cached(files: Sequence[str], column: str, read: Callable[[], list[Any]]) -> list[Any]:
    """Return the result of `read`, from the cache of `datasets` where it was stored before."""
    if any("://" in file for file in files):
        return read()
    stats = [os.stat(file) for file in files]
    # other sizes or times give another key; counts and cells of a file too, since only the latter name a column
    key: list[Any] = [
        (os.path.abspath(file), stat.st_size, stat.st_mtime_ns) for file, stat in zip(files, stats, strict=True)
    ]
    key += [column] if column else []
    key.append("whole archives")  # counts of an earlier version took archives that were cut off
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "transformers_ice_shards" / f"{digest}.json"
    if not cache.is_file():
        found = read()
        write_json(cache, found)
        return found
    return list(json.loads(cache.read_text()))


def _count_parquet(file: str) -> int:
    with _opened_parquet(file) as opened:
        return int(opened.metadata.num_rows)


def _parquet_cells(files: Sequence[str], column: str) -> Iterator[Any]:
    """Yield the cells of one column, the only one that is read."""
    for file in files:
        with _opened_parquet(file) as opened:
            _find_parquet_column(opened, column, file)
            for batch in opened.iter_batches(columns=[column]):
                yield from batch.column(0).to_pylist()


def _parquet_extremes(files: Sequence[str], column: str) -> Cells:
    """Return the smallest, the largest and the empty cell of each row group, at the first row of the group."""
    cells: Cells = {}
    first = 0
    for file in files:
        with _opened_parquet(file) as opened:
            number = _find_parquet_column(opened, column, file)
            for group in map(opened.metadata.row_group, range(opened.metadata.num_row_groups)):
                # statistics are optional in Parquet, and so is each of their fields
                found = group.column(number).statistics
                if found is not None:
                    extremes = [found.min, found.max] if found.has_min_max else []
                    extremes += [None] if found.null_count else []
                    # earlier row groups win: the first row of each cell is kept
                    cells = {cell: (first, 1) for cell in extremes} | cells
                first += group.num_rows
    return cells


def _find_parquet_column(opened: pyarrow.parquet.ParquetFile, column: str, file: str) -> int:
    """Return the index of a column among the leaf columns, as the statistics of Parquet count them."""
    # a column of lists has its leaf below it: label.list.element
    paths = [opened.schema.column(number).path for number in range(len(opened.schema))]
    found = next((number for number, path in enumerate(paths) if f"{path}.".startswith(f"{column}.")), None)
    if found is None:
        raise ValueError(f"The Parquet file {file} has no column {column!r}, as other files have, only {paths}.")
    return found


@contextmanager
def _opened_parquet(file: str) -> Iterator[pyarrow.parquet.ParquetFile]:
    try:
        with fsspec.open(file) as opened:
            yield pyarrow.parquet.ParquetFile(opened)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise ValueError(f"The Parquet file {file} cannot be read: {error}") from error


def _count_tar(file: str) -> int:
    """Count the samples as `datasets` makes them: neighbouring files of the same name."""
    count, last = 0, None
    for name, _, _ in _tar_members(file):
        count += name != last
        last = name
    return count


def _tar_cells(files: Sequence[str], column: str) -> Iterator[Any]:
    """Yield the label of each sample, None where it has none."""
    # the decoder that `datasets` applies to the same ending, so both see the same label
    member, _, key = column.partition("/")
    decode = WebDataset.DECODERS.get(member.rsplit(".", 1)[-1].lower(), bytes.decode)
    for file in files:
        last, cell = None, None
        for name, ending, content in _tar_members(file):
            if last not in (None, name):
                yield cell
                cell = None
            last = name
            if ending == member:
                try:
                    cell = decode(content())
                    cell = _labels_in_json(cell, key) if key else cell
                except ValueError as error:
                    raise ValueError(f"The label {name}.{ending} of {file} cannot be read: {error}") from error
        if last is not None:
            yield cell


def _labels_in_json(content: Any, key: str) -> Any:
    """Return what a `json` member holds under a key, None if nothing; `ValueError` for objects, such as boxes."""
    cell = content.get(key) if isinstance(content, dict) else None
    if any(isinstance(part, dict) for part in (cell if isinstance(cell, list) else [cell])):
        raise ValueError(f"names or numbers of classes were expected under {key!r}, got {str(cell)[:50]}")
    return cell


def _tar_members(file: str) -> Iterator[tuple[str, str, Callable[[], bytes]]]:
    """Yield sample, ending and what reads the content of each file of a WebDataset."""
    try:
        # "r:" is a seekable file: the contents of images are skipped, not read
        with tarfile.open(file, "r:") as archive:
            while (member := archive.next()) is not None:
                # tarfile keeps every member that it has seen: gigabytes for millions of images
                vars(archive)["members"] = []
                name = _SAMPLE_NAME.fullmatch(member.name)
                if not member.name.isascii():
                    member.name.encode()  # a name that is no UTF-8 cannot be in a table
                if member.isreg() and name and not os.path.basename(member.name).startswith((".", "__")):
                    yield name[1], name[2], partial(_content_of, archive, member)
            _check_end(archive)
    except UnicodeEncodeError as error:
        raise ValueError(f"The tar file {file} holds a name that is no UTF-8: {error.object!r}.") from error
    except (OSError, tarfile.TarError) as error:
        raise ValueError(f"The tar file {file} cannot be read: {error}") from error


def _check_end(archive: tarfile.TarFile) -> None:
    """Raise unless the end of an archive follows, which tarfile takes a broken header for: a block of zeros."""
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it has no end, so it was cut off or a header is damaged. Download it again")
    while rest := archive.fileobj.read(1 << 20):
        if rest.strip(tarfile.NUL):
            raise tarfile.ReadError("more follows after its end. Pack archives that were joined as one again")


def _content_of(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    opened = archive.extractfile(member)
    return b"" if opened is None else opened.read()
