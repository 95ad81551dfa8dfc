# SPDX-License-Identifier: Apache-2.0
"""Files that a command writes: complete or not at all, never over an input, never through a link.

A file is written under a temporary name in its own folder, brought to the disk and renamed. So a full disk, an
interruption or an error keeps the former file, and a link is replaced instead of followed.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO


__all__ = [
    "PICTURE_MARK",
    "check_outputs",
    "is_own_picture",
    "make_folder",
    "name_errors",
    "open_log",
    "replaced",
    "staged",
    "synchronize",
    "unfinished_name",
    "write_json",
    "write_text",
]

PICTURE_MARK = "transformers-ice explanation"
"""Text in the metadata of the figures of this package, by which a later run recognizes files it may replace."""

_PICTURE_ENDINGS = (".png", ".svg", ".pdf")
_LONGEST_ENDING = 16


@contextmanager
def replaced(path: str | Path, inside: str | Path | None = None) -> Iterator[Path]:
    """Yield a temporary name in the folder of a file, with its ending; rename it at the end of the block.

    The folder is made if missing, and must not lead out of `inside` through a link. If the block fails, the former
    file is unchanged, and an `OSError` names it. Devices such as /dev/stdout are written directly.
    """
    path = Path(path)
    if _is_device(path):
        yield path
        return
    _check_target(path)
    make_folder(path.parent, inside)
    temporary = path.with_name(_temporary_name(path.suffix))  # the same folder: a rename is atomic there only
    try:
        with name_errors(path, temporary):
            yield temporary
            _move(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def staged(folder: str | Path, inputs: Iterable[str | Path] = ()) -> Iterator[Path]:
    """Yield a temporary folder on the same file system; move its files to `folder` at the end of the block.

    A missing folder appears in one step with all its files. If the block fails, or a file would replace one of
    `inputs` (see `check_outputs`), nothing has changed.
    """
    folder = Path(folder)
    exists = folder.is_dir()
    home = folder if exists else folder.parent
    make_folder(home)
    staging = home / _temporary_name("")
    staging.mkdir()
    try:
        with name_errors(folder, staging):
            yield staging
            # in reverse: NAME.data before NAME, which refers to it
            files = sorted((file for file in staging.rglob("*") if file.is_file()), reverse=True)
            targets = [folder / file.relative_to(staging) for file in files]
            check_outputs(targets, inputs)
            if any(map(_is_device, targets)):  # `os.replace` would replace the device itself
                raise ValueError(f"The outputs in {folder} must be files, got a device. Choose another name.")
            if not exists and not os.path.lexists(folder):
                for file in files:
                    synchronize(file)
                os.replace(staging, folder)  # one rename: the folder appears with all its files
                return
            for file, target in zip(files, targets, strict=True):
                make_folder(target.parent, folder)
                _move(file, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_text(path: str | Path, text: str, inside: str | Path | None = None) -> None:
    """Write a text file in UTF-8; arguments and errors are those of `replaced`."""
    with replaced(path, inside) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any, indent: int | None = 1, inside: str | Path | None = None) -> None:
    """Write plain values as JSON, as `write_text` does; NaN and infinity, which JSON does not have, are refused."""
    write_text(path, json.dumps(content, indent=indent, allow_nan=False) + "\n", inside)


def check_outputs(outputs: Iterable[str | Path], inputs: Iterable[str | Path] = ()) -> None:
    """Refuse output files that would destroy something, before any work is done.

    None may be the same file as an input (also by a link or another spelling), lie in an input folder, be another
    output too, be a folder, or be a picture that this package did not write. Inputs that are no files (a Hub id, a
    pattern) are ignored.
    """
    files, given_paths = [Path(path) for path in outputs], [Path(path) for path in inputs]
    folders = {path.resolve(): path for path in given_paths if path.is_dir()}
    for number, output in enumerate(files):
        if _is_device(output):
            continue
        _check_target(output)
        for given in given_paths:
            if _is_same_file(output, given):
                raise ValueError(
                    f"The output {output} must not replace the input {given}: they are the same file. Choose another "
                    "name or folder for the output."
                )
        # the folder of a link itself, and that of its target
        above_it = (*(output.parent.resolve() / output.name).parents, *output.resolve().parents)
        above = next((folders[parent] for parent in above_it if parent in folders), None)
        if above is not None and os.path.lexists(output):
            raise ValueError(
                f"The output {output} must not replace a file of the input {above}. Choose another name or folder for "
                "the output, or remove the file first."
            )
        if any(_is_same_place(output, other) for other in files[:number]):
            raise ValueError(f"Two outputs must not be the same file, got {output} twice. Choose other names.")
        if output.suffix.lower() in _PICTURE_ENDINGS and os.path.lexists(output) and not is_own_picture(output):
            raise ValueError(
                f"The output {output} must not replace a picture that transformers-ice did not write. Choose another "
                "folder, or remove the picture first."
            )


def is_own_picture(path: str | Path) -> bool:
    """Return whether a file is a picture that this package wrote, by `PICTURE_MARK` in its metadata."""
    return Path(path).is_file() and PICTURE_MARK.encode() in Path(path).read_bytes()


def make_folder(folder: str | Path, inside: str | Path | None = None) -> Path:
    """Make a folder and those above it, where they are missing, and return it; a link may not lead out of `inside`."""
    folder = Path(folder)
    if inside is not None and not folder.resolve().is_relative_to(Path(inside).resolve()):
        raise ValueError(
            f"The folder {folder} must be in {inside}, but a link leads to {folder.resolve()}. Remove the link."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise _no_folder(folder) from error
    return folder


def _no_folder(folder: Path) -> ValueError:
    return ValueError(
        f"The output folder must be a folder or a new name, got {folder}, which is a file or a broken link. Choose "
        "another."
    )


def synchronize(path: Path) -> None:
    """Wait until a file or folder is on the disk itself."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open folders
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def name_errors(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Let an `OSError` of a block that names no file, or the temporary one, name the file that was to be written."""
    try:
        yield
    except OSError as error:
        name = error.filename
        is_temporary = temporary is not None and isinstance(name, str) and Path(name).is_relative_to(temporary)
        if name is not None and not is_temporary:
            raise
        reason = f"{error.strerror or error}; the file was not written, a former one is unchanged"
        if error.errno is None:
            raise OSError(f"{reason}: '{path}'") from error
        raise OSError(error.errno, reason, str(path)) from error


def _move(temporary: Path, path: Path) -> None:
    """Bring a finished file to the disk and to its name, with the permissions of the file that it replaces."""
    if path.is_file() and not path.is_symlink():  # a link is replaced: the mode of its target does not matter
        shutil.copymode(path, temporary)
    synchronize(temporary)
    os.replace(temporary, path)


def _temporary_name(ending: str) -> str:
    # not longer than usual names are; writers read the format off the ending
    return f".partial-{secrets.token_hex(6)}{ending if len(ending) <= _LONGEST_ENDING else ''}"


def _check_target(path: Path) -> None:
    """Refuse a folder, a name below a file, and a file that its owner has protected."""
    above = next((folder for folder in path.absolute().parents if os.path.lexists(folder)), path.parent)
    if os.path.lexists(above) and not above.is_dir():
        raise _no_folder(above)
    if path.is_dir():
        raise ValueError(f"The output must be a file, got the folder {path}. Choose another name.")
    if path.is_file() and not os.access(path, os.W_OK):
        raise ValueError(f"The output {path} must not be write-protected. Choose another name, or remove the file.")


def _is_device(path: Path) -> bool:
    """Return whether a path is a device or a pipe, such as /dev/stdout."""
    is_special = path.exists() and not path.is_file() and not path.is_dir()
    return is_special or str(path.absolute()).startswith(("/dev/fd/", "/dev/std", "/proc/"))


def _is_same_file(first: Path, second: Path) -> bool:
    try:
        return os.path.samefile(first, second)
    except OSError:  # one of them is not there
        return False


def _is_same_place(first: Path, second: Path) -> bool:
    """Return whether two files, which may be yet to be written, have one name."""
    return first.parent.resolve() / first.name == second.parent.resolve() / second.name or _is_same_file(first, second)


def unfinished_name(log_file: Path) -> Path:
    """Return the file with the lines of an unfinished run."""
    return log_file.with_name(f"{log_file.name}.part")


@contextmanager
def open_log(log_file: Path) -> Iterator[TextIO]:
    """Open the unfinished log; its lines are kept if the block fails, and an empty one is removed."""
    file = unfinished_name(log_file)
    file.unlink(missing_ok=True)  # a link is not followed
    try:
        # line buffered, so that a killed run keeps all finished lines
        with name_errors(file), open(file, "x", encoding="utf-8", buffering=1) as log:
            yield log
            log.flush()
            os.fsync(log.fileno())
    finally:
        if file.is_file() and not file.stat().st_size:
            file.unlink()
