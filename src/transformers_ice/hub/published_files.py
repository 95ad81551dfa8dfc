# SPDX-License-Identifier: Apache-2.0
"""Files of a folder: those that are published, those that are kept local, and those that are refused."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from ..console.redaction import find_secret_line
from ..ice_deit.remote_code import remote_code_files


__all__ = ["PUBLISHED_PATTERNS", "RESUME_PATTERNS", "FolderContents", "find_secret_files", "sort_files"]

_MODEL_PATTERNS = (
    "config.json",
    "preprocessor_config.json",
    "model.safetensors",
    "model-?????-of-?????.safetensors",
    "model.safetensors.index.json",
    *remote_code_files(),
)

PUBLISHED_PATTERNS = (
    *("README.md", "LICENSE"),
    *_MODEL_PATTERNS,
    *("all_results.json", "training_log.jsonl"),
    *("images/*.png", "images/*.jpg"),
)
"""Files of a published model, as glob patterns relative to its folder; `images/` is one level deep."""

RESUME_PATTERNS = (
    *_MODEL_PATTERNS,
    *("raw_weights.safetensors", "trainer_state.json", "training_args.bin", "run_settings.json"),
    *("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state*.pth"),
    # FSDP, whole and in shards
    *("optimizer.bin", "pytorch_model_fsdp*.bin", "optimizer_?/*", "pytorch_model_fsdp_?/*"),
)
"""Files of a checkpoint that training resumes from, as glob patterns relative to its folder."""

# the header with its metadata comes first; after it come numbers
_NUM_SEARCHED_BYTES = 1 << 20

# files that a run writes next to the model; some of them are pickled by torch
_TRAINING_PATTERNS = (
    *("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state*.pth", "scaler.pt"),
    *("checkpoint-*/*", "runs/*", "panels/*"),
)
_HIDDEN_PATTERNS = (".*", "*/.*", "__pycache__/*", "*/__pycache__/*", "_*")
_PICKLE_ENDINGS = {
    *(".bin", ".pt", ".pth", ".t7", ".pkl", ".pickle", ".dill", ".joblib"),
    *(".ckpt", ".npy", ".npz", ".h5", ".msgpack"),
}
_OTHER_CODE_ENDINGS = {".py", ".pyc", ".so", ".sh", ".dll", ".dylib"}


@dataclass
class FolderContents:
    """Files of a folder, as sorted paths relative to it."""

    published: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)  # path -> why it must not be in a published folder


def sort_files(folder: Path) -> FolderContents:
    """Sort the files of a saved model, or of the `output_dir` of a run, by their names only."""
    contents = FolderContents()
    for path in sorted(_files_below(folder)):
        name = path.relative_to(folder).as_posix()
        reason = _reason_to_refuse(folder, path, name)
        if reason is not None:
            contents.refused[name] = reason
        else:
            (contents.published if _matches(name, PUBLISHED_PATTERNS) else contents.left_out).append(name)
    return contents


def find_secret_files(folder: Path, names: Sequence[str], secrets: Sequence[str] = ()) -> dict[str, int]:
    """Return the line of what looks like a token or a password, by the names of the files that have one."""
    found = {}
    for name in names:
        with open(folder / name, "rb") as file:
            content = file.read(_NUM_SEARCHED_BYTES if name.endswith(".safetensors") else -1)
        line = find_secret_line(content.decode("utf-8", errors="replace"), secrets)
        if line is not None:
            found[name] = line
    return found


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield files, and links of any kind; links to folders are not followed."""
    for root, folders, files in os.walk(folder):
        yield from (Path(root, name) for name in files)
        yield from (Path(root, name) for name in folders if Path(root, name).is_symlink())


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    # the star of `fnmatch` also matches slashes
    return any(fnmatch(name, pattern) and name.count("/") <= pattern.count("/") for pattern in patterns)


def _reason_to_refuse(folder: Path, path: Path, name: str) -> str | None:
    if any(fnmatch(name, pattern) for pattern in (*_TRAINING_PATTERNS, *_HIDDEN_PATTERNS)):
        return None
    if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
        return f"a link that leads out of the folder, to {os.readlink(path)}. Put the file itself there"
    if path.suffix.lower() in _PICKLE_ENDINGS:
        return (
            "may be a pickle, which runs code when it is read. Expected model.safetensors: save with "
            "`model.save_pretrained(folder)`, or convert with scripts/convert_checkpoint.py, and remove this file"
        )
    if path.suffix.lower() in _OTHER_CODE_ENDINGS and name not in remote_code_files():
        return "code that is no part of this project. Remove it"
    return None
