# SPDX-License-Identifier: Apache-2.0
"""Files below a folder: links are followed, each folder is visited once, and what is passed over is named."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..ice_deit.image_conversion import IMAGE_ENDINGS


__all__ = ["FileList", "list_files"]

_MAX_LISTED = 10


@dataclass
class FileList:
    """Files below a folder, sorted, as relative paths with forward slashes, and what was passed over.

    `folders` are those directly in it, `endings` the number of other files by ending, `passed_over` names by reason.
    """

    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    endings: Counter[str] = field(default_factory=Counter)
    passed_over: dict[str, list[str]] = field(default_factory=dict)

    def add(self, entry: os.DirEntry[str], path: str, suffixes: Collection[str]) -> bool:
        """Add a directory entry; return whether it is a folder that is to be read."""
        try:
            path.encode()
        except UnicodeEncodeError:
            raise ValueError(f"The name {path!r} is no UTF-8 text. Rename it, and list it again.") from None
        try:
            is_folder, is_file = entry.is_dir(), entry.is_file()
        except OSError:  # a link that leads to itself
            is_folder = is_file = False
        ending = os.path.splitext(entry.name)[1].lower()
        is_hidden = entry.name.startswith(".") or entry.name == "__MACOSX"
        if is_folder and not is_hidden:
            if "/" not in path:
                self.folders.append(path)
            if ending in suffixes:
                self.pass_over("folders are named like files", path)
        elif is_folder:
            self.pass_over("hidden folders were left out", path)
        elif not is_file:
            self.pass_over("links lead to nothing" if entry.is_symlink() else "are pipes or devices", path)
        elif not is_hidden and ending in suffixes:
            self.files.append(path)
        elif not is_hidden:
            self.endings[ending] += 1
        elif ending in suffixes and not entry.name.startswith("._"):  # which macOS writes next to every file
            self.pass_over("hidden files were left out", path)
        return is_folder and not is_hidden

    def pass_over(self, reason: str, path: str) -> None:
        """Note that something was passed over."""
        self.passed_over.setdefault(reason, []).append(path)

    def notes(self) -> Iterator[str]:
        """Yield a line for each kind of what was passed over."""
        if self.endings:
            endings = sorted(self.endings.items())
            counts = ", ".join(f"{ending or 'without an ending'} {count}" for ending, count in endings)
            yield f"{self.endings.total()} files of other types were left out: {counts}."
        for reason, names in self.passed_over.items():
            more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
            yield f"{len(names)} {reason}: {', '.join(sorted(names)[:_MAX_LISTED])}{more}."


def list_files(folder: Path, suffixes: Collection[str] = IMAGE_ENDINGS) -> FileList:
    """Return the files below a folder with some lower-case endings; none are opened.

    Raises:
        ValueError: If a folder cannot be read, or a name is no UTF-8 text, which no table can hold.
    """
    found, seen = FileList(), set[tuple[int, int]]()
    # folders first, then links to folders: what is reached by both keeps its own name
    waiting, links = [(folder, "")], list[tuple[Path, str]]()
    while waiting or links:
        directory, name = (waiting or links).pop(0)
        try:
            status = os.stat(directory)
            entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
        except OSError as error:
            raise ValueError(f"The folder {directory} cannot be read: {error}") from error
        if (status.st_dev, status.st_ino) in seen:
            found.pass_over("links lead to a folder that is listed already", name)
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in entries:
            path = f"{name}/{entry.name}" if name else entry.name
            if found.add(entry, path, suffixes):
                (links if entry.is_symlink() else waiting).append((directory / entry.name, path))
    found.files.sort()
    return found
