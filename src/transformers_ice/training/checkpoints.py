# SPDX-License-Identifier: Apache-2.0
"""Checkpoint folders that are known to be complete: a marker, written last, lists what has to be there.

A process can be killed, and a disk can fill up, at any moment. So a checkpoint counts from the moment its marker is on
the disk, after everything that the marker lists; and it stops counting before the first of its files is removed.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..output_files import synchronize, write_json


__all__ = [
    "COMPLETION_MARKER",
    "is_complete",
    "last_complete_checkpoint",
    "list_checkpoints",
    "mark_complete",
    "missing_files",
    "remove_checkpoint",
    "step_of",
    "surplus_checkpoints",
]

COMPLETION_MARKER = "checkpoint_complete.json"
"""Name of the file that says: everything else in this folder is complete, and on the disk."""


def mark_complete(folder: Path) -> None:
    """Bring all files of a folder to the disk, then write its marker.

    To be called once every process has written its files.

    Args:
        folder: The checkpoint; files in subfolders count too.

    Raises:
        OSError: If the disk does not take the files or the marker; the checkpoint stays incomplete.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != COMPLETION_MARKER)
    for path in [*files, *{path.parent for path in files}]:
        synchronize(path)
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    write_json(folder / COMPLETION_MARKER, {"files": sizes}, indent=2)
    synchronize(folder)
    synchronize(folder.parent)


def missing_files(folder: Path) -> list[str]:
    """Return what the marker of a checkpoint lists and the folder lacks, or holds in another size.

    Returns:
        Names relative to `folder`; that of the marker itself if there is none, or none that can be read.
    """
    try:
        sizes = json.loads((folder / COMPLETION_MARKER).read_text())["files"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [COMPLETION_MARKER]
    return [name for name, size in sizes if not _has_size(folder / name, size)]


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def is_complete(folder: Path) -> bool:
    """Return whether a checkpoint has its marker and everything that the marker lists."""
    return not missing_files(folder)


def step_of(folder: Path) -> int:
    """Return the optimizer steps that had been done when a checkpoint was saved."""
    return int(folder.name.rsplit("-", 1)[1])


def list_checkpoints(output_dir: str | Path | None) -> list[Path]:
    """Return the checkpoint folders of a run, complete or not, by their step."""
    folders = Path(output_dir or ".").glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    numbered = (path for path in folders if re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-\d+", path.name) and path.is_dir())
    return sorted(numbered, key=step_of)


def last_complete_checkpoint(output_dir: str | Path | None) -> Path | None:
    """Return the complete checkpoint of most steps, or None."""
    return next(filter(is_complete, reversed(list_checkpoints(output_dir))), None)


def surplus_checkpoints(complete: Sequence[Path], kept: Collection[Path], limit: int | None) -> list[Path]:
    """Return which complete checkpoints are too many.

    Args:
        complete: Complete checkpoints, oldest first.
        kept: Those that stay whatever the limit: the one just completed, the best one.
        limit: Checkpoints to keep; `None` or 0 keeps all.
    """
    if not limit or limit < 0:
        return []
    candidates = [folder for folder in complete if folder not in kept]
    num_kept = len(complete) - len(candidates)
    return candidates[: max(0, len(candidates) - max(0, limit - num_kept))]


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint, its marker first: killed in between, it is incomplete rather than broken."""
    (folder / COMPLETION_MARKER).unlink(missing_ok=True)
    if folder.is_dir():
        shutil.rmtree(folder)
