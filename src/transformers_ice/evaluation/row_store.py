# SPDX-License-Identifier: Apache-2.0
"""Rows on disk, one file per chunk of examples, so that an interrupted run can resume."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging

from ..console.output_files import make_folder, replaced


__all__ = ["RowKey", "RowStore"]

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class RowKey:
    """Key of rows: checkpoint, method (empty for the model itself), benchmark, and a fingerprint of all the rest."""

    checkpoint: str
    method: str
    benchmark: str
    digest: str

    @property
    def folder(self) -> str:
        """A name for a folder, the same for the same rows."""
        parts = (self.checkpoint, self.method or "model", self.benchmark)
        return "-".join([*(re.sub(r"[^A-Za-z0-9_.]+", "_", part) for part in parts), self.digest])


class RowStore:
    """Store of rows in a folder; a chunk is written completely or not at all.

    Args:
        directory: Where to write; made if missing. Several processes may write into it at once.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = make_folder(directory)

    def has(self, key: RowKey, chunk: int) -> bool:
        """Return whether a chunk has been written and can be read; a damaged one is to be computed again."""
        if not self._file(key, chunk).is_file():
            return False
        try:
            self.load(key, [chunk])
        except ValueError as error:
            logger.warning(str(error).replace("Delete the file and run again", "They are computed again"))
            return False
        return True

    def save(self, key: RowKey, chunk: int, rows: Mapping[str, np.ndarray]) -> None:
        """Write the rows of a chunk; they appear under their name when they are complete."""
        file = self._file(key, chunk)
        columns: dict[str, Any] = {name.replace("/", "|"): values for name, values in rows.items()}
        with replaced(file) as temporary:
            np.savez_compressed(temporary, **columns)

    def load(self, key: RowKey, chunks: Sequence[int]) -> dict[str, np.ndarray]:
        """Return the rows of some chunks, joined in their order; a `ValueError` names a file that cannot be read."""
        parts = [self._read(self._file(key, chunk)) for chunk in chunks]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _read(self, file: Path) -> dict[str, np.ndarray]:
        try:
            with np.load(file, allow_pickle=False) as content:
                return {name.replace("|", "/"): content[name] for name in content.files}
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"The rows in {file} cannot be read: {error}. Delete the file and run again.") from error

    def _file(self, key: RowKey, chunk: int) -> Path:
        return self.directory / key.folder / f"{chunk:06d}.npz"
