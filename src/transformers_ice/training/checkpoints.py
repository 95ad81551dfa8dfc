# SPDX-License-Identifier: Apache-2.0
"""Checkpoint folders that are known to be complete: a marker, written last, lists their files.

A process can be killed, and a disk can fill up, at any moment. So a checkpoint counts from the moment its marker is on
the disk, after everything that the marker lists; and it stops counting before the first of its files is removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from accelerate.utils import wait_for_everyone
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from ..console.output_files import make_folder, synchronize, write_json


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


__all__ = [
    "COMPLETION_MARKER",
    "CompletionCallback",
    "choose_checkpoint",
    "damaged_files",
    "is_complete",
    "last_complete_checkpoint",
    "list_checkpoints",
    "locked_folder",
    "mark_complete",
    "missing_files",
    "parse_step",
    "remove_checkpoint",
    "surplus_checkpoints",
]

logger = logging.get_logger(__name__)

_LOCK_FILE = ".run.lock"

COMPLETION_MARKER = "checkpoint_complete.json"
"""Name of the marker file: everything else in this folder is complete, and on the disk."""


def mark_complete(folder: Path) -> None:
    """Bring all files to the disk, then write the marker; to be called once every process has written its files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != COMPLETION_MARKER)
    # folders too: the entry of a new file is part of its folder
    for path in [*files, *{path.parent for path in files}]:
        synchronize(path)
    names = {path.relative_to(folder).as_posix(): path for path in files}
    sizes = {name: path.stat().st_size for name, path in names.items()}
    digests = {name: _digest_of(path) for name, path in names.items()}
    write_json(folder / COMPLETION_MARKER, {"files": sizes, "sha256": digests}, indent=2)
    synchronize(folder)
    synchronize(folder.parent)


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def missing_files(folder: Path) -> list[str]:
    """Return the files that are missing or have another size than the marker lists; the marker if it is unreadable."""
    try:
        sizes = json.loads((folder / COMPLETION_MARKER).read_text())["files"].items()
        return [
            name for name, size in sizes if not (folder / name).is_file() or (folder / name).stat().st_size != size
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [COMPLETION_MARKER]


def damaged_files(folder: Path) -> list[str]:
    """Return the files that are missing or whose content is not that which the marker lists; reads all of them."""
    missing = missing_files(folder)
    # a marker of an earlier version has sizes only
    digests = {} if missing else json.loads((folder / COMPLETION_MARKER).read_text()).get("sha256", {})
    return missing or [name for name, digest in digests.items() if _digest_of(folder / name) != digest]


def is_complete(folder: Path) -> bool:
    """Return whether a checkpoint has its marker and everything that the marker lists."""
    return not missing_files(folder)


def parse_step(folder: Path) -> int:
    """Return the optimizer steps that had been done when a checkpoint was saved."""
    return int(folder.name.rsplit("-", 1)[1])


def list_checkpoints(output_dir: str | Path | None) -> list[Path]:
    """Return the checkpoint folders of a run, complete or not, by their step."""
    folders = Path(output_dir or ".").glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    numbered = (path for path in folders if re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-\d+", path.name) and path.is_dir())
    return sorted(numbered, key=parse_step)


def last_complete_checkpoint(output_dir: str | Path | None) -> Path | None:
    """Return the complete checkpoint of most steps, or None."""
    return next(filter(is_complete, reversed(list_checkpoints(output_dir))), None)


def surplus_checkpoints(complete: Sequence[Path], kept: Collection[Path], limit: int | None) -> list[Path]:
    """Return which complete checkpoints, oldest first, a limit removes (None, 0: none); those `kept` count, too."""
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


class CompletionCallback(TrainerCallback):
    """Completion of checkpoints: a marker once all is on the disk, and only then are older ones removed.

    It has to come after all callbacks that store something: their files are part of the checkpoint.
    """

    def __init__(self, save_total_limit: int | None) -> None:
        self.save_total_limit = save_total_limit
        self._being_written: Path | None = None
        self._last_completed: Path | None = None

    def begin(self, folder: Path, args: TrainingArguments) -> bool:
        """Clear the folder of a new checkpoint, in every process; return whether it is to be written."""
        # the weights are the same, and a complete checkpoint is never taken apart to be written again
        if folder == self._last_completed:
            return False
        if args.should_save:
            # files of an interrupted run in this folder must not become part of the new checkpoint
            remove_checkpoint(folder)
        wait_for_everyone()
        self._being_written = folder
        return True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Mark the checkpoint as complete once all processes have written it, and remove the oldest ones."""
        folder = self._being_written
        if folder is None:
            return
        wait_for_everyone()
        if args.should_save:
            mark_complete(folder)
            complete = list(filter(is_complete, list_checkpoints(folder.parent)))
            kept = {folder, folder.with_name(Path(state.best_model_checkpoint or folder).name)}
            for surplus in surplus_checkpoints(complete, kept, self.save_total_limit):
                remove_checkpoint(surplus)
        wait_for_everyone()
        self._being_written, self._last_completed = None, folder


def choose_checkpoint(training_args: TrainingArguments) -> str | None:
    """Return the checkpoint to resume from, or None for a fresh start.

    Raises:
        ValueError: If a folder that was named is no checkpoint or lacks files, or a fresh start would mix with
            checkpoints of another run.
    """
    wanted, output_dir = training_args.resume_from_checkpoint, training_args.output_dir
    if wanted not in (None, "auto"):
        _check_checkpoint(Path(wanted))
        return wanted
    if wanted is None:
        _check_fresh_start(output_dir)
        return None
    for folder in reversed(list_checkpoints(output_dir)):
        damaged = damaged_files(folder)
        if not damaged:
            logger.warning(f"Resuming from {folder}.")
            return str(folder)
        if damaged == [COMPLETION_MARKER]:
            logger.warning(
                f"Not resuming from {folder.name} in {output_dir}: incomplete, as after a run that was killed while "
                "it saved. If an earlier version of this package saved it, pass its path to "
                "`--resume_from_checkpoint`."
            )
        else:
            logger.warning(
                f"Not resuming from {folder.name} in {output_dir}: {', '.join(damaged)} damaged or missing."
            )
    return None


def _check_checkpoint(folder: Path) -> None:
    """Raise unless a folder that was named is a checkpoint with all that its marker lists, if it has one."""
    if not (folder / "trainer_state.json").is_file():
        raise ValueError(f"`resume_from_checkpoint` must be a checkpoint folder or auto, got {str(folder)!r}.")
    missing = damaged_files(folder)
    if missing == [COMPLETION_MARKER]:
        logger.warning(f"{folder} has no completion marker: completeness cannot be verified.")
    elif missing:
        raise ValueError(
            f"The checkpoint {folder} is damaged: {', '.join(missing)} missing, or other than when it was saved. Pass "
            "`--resume_from_checkpoint auto` to resume from the last complete one."
        )


def _check_fresh_start(output_dir: str | None) -> None:
    """Raise if `output_dir` holds checkpoints that a fresh run would replace."""
    earlier = [folder for folder in list_checkpoints(output_dir) if (folder / "trainer_state.json").is_file()]
    if earlier:
        raise ValueError(
            f"{output_dir} holds checkpoints of an earlier run, the last one is {earlier[-1].name}. "
            "Pass `--resume_from_checkpoint auto` to resume from it, or another `--output_dir`."
        )


@contextmanager
def locked_folder(folder: str | Path, is_main_process: bool = True) -> Iterator[None]:
    """Keep the folder of a run for this run; a folder that was made and holds nothing at the end is removed.

    Raises:
        ValueError: If another run works in it; with its host and process id.
    """
    if not is_main_process or fcntl is None:
        yield
        return
    folder = Path(folder)
    is_new = not folder.exists()
    make_folder(folder)
    file = folder / _LOCK_FILE
    with file.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however that ends
        except BlockingIOError:
            lock.seek(0)
            raise ValueError(
                f"Another run works in {folder} ({lock.read().strip() or 'it has just begun'}). Wait for its end, or "
                "pass another `--output_dir`."
            ) from None
        except OSError:  # a file system without locks
            logger.warning(f"{folder} cannot be locked: see to it that no other run works there.")
        lock.truncate(0)
        with suppress(OSError):  # a full disk: it is locked without this text, too
            os.write(lock.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        try:
            yield
        finally:
            file.unlink(missing_ok=True)
            if is_new and not any(folder.iterdir()):
                folder.rmdir()
