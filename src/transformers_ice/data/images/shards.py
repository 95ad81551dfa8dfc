# SPDX-License-Identifier: Apache-2.0
"""Parquet and WebDataset shards: which files, of which kind, and how many rows each holds, without decoding images."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import datasets
import fsspec
import pyarrow
import pyarrow.parquet
from datasets import load_dataset_builder

from ...output_files import write_json


__all__ = ["ShardKind", "count_rows", "find_shards", "hub_shards", "kind_of"]

ShardKind = Literal["parquet", "webdataset"]

_KINDS: dict[str, ShardKind] = {".parquet": "parquet", ".tar": "webdataset"}
# a sample of a WebDataset is all files of one name up to the first dot behind the last slash
_SAMPLE_NAME = re.compile(r"((?:.*/|)[^.]+)[.][^/]*")


def find_shards(pattern: str, argument: str = "train_files") -> list[str]:
    """Return the files that a pattern names, sorted.

    Args:
        pattern: A path with `*` and `**`, relative or absolute; "~" is the home folder.
        argument: Name of the argument, for errors.

    Raises:
        ValueError: If there is no such file, or files are not all `.parquet` or all `.tar`.
    """
    path = Path(pattern).expanduser()
    root = Path(path.anchor or ".")
    files = sorted(str(file) for file in root.glob(str(path.relative_to(path.anchor))) if file.is_file())
    if not files:
        raise ValueError(
            f"`--{argument} {pattern}` names no file in {Path.cwd()}. Quote the pattern, so that the shell leaves its "
            'stars alone: "shards/*.parquet".'
        )
    kind_of(files, argument)
    return files


def kind_of(files: Sequence[str], argument: str = "train_files") -> ShardKind:
    """Return the kind that the endings of files say.

    Raises:
        ValueError: If they say none, or several.
    """
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
    """Return the files of each split of a data set of the Hub, or of a local folder that `datasets` understands.

    Raises:
        ValueError: If the data set cannot be reached, or is not made of Parquet files.
    """
    try:
        builder = load_dataset_builder(name, config_name, token=token, cache_dir=cache_dir)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"The data set {name!r} could not be opened: {error} Give the id of a data set of the Hub (which needs a "
            "network), or files with `--train_files`."
        ) from error
    files = {str(split): list(paths) for split, paths in (builder.config.data_files or {}).items()}
    if {Path(path).suffix for paths in files.values() for path in paths} != {".parquet"}:
        raise ValueError(
            f"The data set {name!r} is not made of Parquet files, so its rows cannot be counted before they are read. "
            "Download its files (`hf download --repo-type dataset`) and pass `--train_files`, or leave `--streaming` "
            "out."
        )
    return files


def count_rows(files: Sequence[str]) -> list[int]:
    """Return the number of rows of each shard; they are counted once and remembered in the cache of `datasets`.

    Args:
        files: Parquet files (their footers are read) or tars (their headers are), of one kind.

    Raises:
        ValueError: If a file cannot be read, naming it.
    """
    memory = _memory_of(files)
    if memory is not None and memory.is_file():
        return list(json.loads(memory.read_text()))
    count = _count_parquet if kind_of(files) == "parquet" else _count_tar
    counts = [count(file) for file in files]
    if memory is not None:
        write_json(memory, counts)
    return counts


def _memory_of(files: Sequence[str]) -> Path | None:
    """Return where the counts of local files are remembered; other sizes or times are other files."""
    if any("://" in file for file in files):
        return None
    stats = [os.stat(file) for file in files]
    facts = [(os.path.abspath(file), stat.st_size, stat.st_mtime_ns) for file, stat in zip(files, stats, strict=True)]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
    return Path(datasets.config.HF_DATASETS_CACHE) / "transformers_ice_shards" / f"{digest}.json"


def _count_parquet(file: str) -> int:
    try:
        with fsspec.open(file) as opened:
            return int(pyarrow.parquet.read_metadata(opened).num_rows)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise ValueError(f"The Parquet file {file} cannot be read: {error}") from error


def _count_tar(file: str) -> int:
    """Count the samples as `datasets` makes them: neighbouring files of the same name."""
    count, last = 0, None
    try:
        # a plain file, not a pipe: the contents are jumped over
        with tarfile.open(file, "r:") as archive:
            while (member := archive.next()) is not None:
                vars(archive)["members"] = []  # or millions of them would be kept
                name = _SAMPLE_NAME.fullmatch(member.name)
                if member.isreg() and name and not os.path.basename(member.name).startswith((".", "__")):
                    count += name[1] != last
                    last = name[1]
    except (OSError, tarfile.TarError) as error:
        raise ValueError(f"The tar file {file} cannot be read: {error}") from error
    return count
