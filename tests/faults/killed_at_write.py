# SPDX-License-Identifier: Apache-2.0
"""Run `scripts/run_train.py`, killed in the middle of its NUMBER-th write below a folder; 0 lists all writes instead.

    python killed_at_write.py NUMBER FOLDER [argument of run_train.py ...]

A write is a file that is opened for writing, saved by torch or safetensors, renamed or removed, or a folder that is
removed. The process ends by SIGKILL with half of the file on the disk, half of the folder gone, or the name unchanged.
"""

from __future__ import annotations

import builtins
import io
import json
import os
import runpy
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import safetensors.torch
import torch


LIST = "writes.json"  # beside the folder


class Writes:
    """Count of the writes below a folder."""

    def __init__(self, number: int, folder: Path) -> None:
        self.number, self.folder, self.names = number, folder, list[str]()

    def is_last(self, kind: str, path: Any) -> bool:
        """Count a write; return whether the process is to be killed in it."""
        if not isinstance(path, str | os.PathLike) or not Path(path).absolute().is_relative_to(self.folder):
            return False
        name = Path(path).absolute().relative_to(self.folder).as_posix()
        if name == ".run.lock":
            return False
        self.names.append(f"{kind} {name}")
        return len(self.names) == self.number


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def halve(path: Any) -> None:
    os.truncate(path, os.path.getsize(path) // 2)


class HalfFile:
    """A file that is killed when it is closed, half written."""

    def __init__(self, file: Any, path: Any) -> None:
        self._file, self._path = file, path

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> HalfFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()
        halve(self._path)
        kill()


def patch(writes: Writes) -> None:
    """Count the writes of this process from here on."""
    open_file, save, save_file = open, torch.save, safetensors.torch.save_file

    def counted_open(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        is_last = not mode.startswith("r") and writes.is_last("write", file)
        opened = open_file(file, mode, *args, **kwargs)
        return HalfFile(opened, file) if is_last else opened

    def counted_saver(saver: Any) -> Any:
        def saved(content: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
            is_last = writes.is_last("save", path)
            result = saver(content, path, *args, **kwargs)
            if is_last:
                halve(path)
                kill()
            return result

        return saved

    def counted_before(kind: str, function: Any) -> Any:
        def called(path: Any, *args: Any, **kwargs: Any) -> Any:
            if writes.is_last(kind, path):
                if kind == "remove":
                    for file in list(Path(path).iterdir())[::2]:
                        file.unlink()
                kill()
            return function(path, *args, **kwargs)

        return called

    builtins.open = io.open = counted_open  # type: ignore[assignment]
    torch.save = counted_saver(save)
    counted_save_file = counted_saver(save_file)
    for module in list(sys.modules.values()):
        for name in ("save_file", "safe_save_file"):
            if getattr(module, name, None) is save_file:
                setattr(module, name, counted_save_file)
    os.replace = counted_before("rename", os.replace)  # type: ignore[assignment]
    os.unlink = counted_before("unlink", os.unlink)  # type: ignore[assignment]
    shutil.rmtree = counted_before("remove", shutil.rmtree)  # type: ignore[assignment]


def main() -> None:
    import transformers_ice.cli.train  # noqa: F401

    number, folder, *words = sys.argv[1:]
    writes = Writes(int(number), Path(folder).absolute())
    patch(writes)
    script = Path(__file__).parents[2] / "scripts" / "run_train.py"
    sys.argv = [str(script), *words, "--output_dir", folder]
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        (writes.folder.parent / LIST).write_text(json.dumps(writes.names))


if __name__ == "__main__":
    main()
