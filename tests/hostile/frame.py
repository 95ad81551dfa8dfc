# SPDX-License-Identifier: Apache-2.0
"""What a hostile input is, and the one check that every one of them has to pass.

A row writes its files, acts on them, and must end in the answer that it states or in an error of a public kind: for a
call a `ValueError` or `OSError` with a sentence, for a command an exit code with a line that begins with "Error:", and
never a traceback. Whatever the end: files that were there keep bytes, time and name, and nothing is written outside
the row's folder for outputs. Time and memory are bounded.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


LONGEST_MESSAGE = 3000  # characters of an error; a list of keys must not fill the screen
_OURS = ("transformers_ice", "transformers_modules", "transformers", "huggingface_hub", "argparse")


@dataclass(frozen=True)
class Place:
    """Folders of one row; what is in them is watched, apart from `output`."""

    root: Path
    model: Path  # of a tiny model that all rows share

    @property
    def inputs(self) -> Path:
        """Where the row writes its files."""
        return self.root / "in"

    @property
    def output(self) -> Path:
        """Where it may be written to."""
        return self.root / "out"

    def put(self, name: str, content: bytes | str = b"") -> Path:
        """Write an input file; return its path."""
        path = self.inputs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path


@dataclass(frozen=True)
class Finished:
    """End of a command."""

    code: int
    stdout: str
    stderr: str
    place: Place


class ReportedError(ValueError):
    """Faults that a report of this package names: as good a refusal as an error."""


@dataclass(frozen=True)
class Row:
    """A hostile input, what is done with it, and what must come of it.

    Args:
        name: Of the input; fails are reported by it.
        write: Write the input into `place.inputs`; what it returns is given to `act`.
        act: Call or command; a command returns `Finished`.
        answer: Whether an answer is right; `None` where there must be none.
        may_refuse: Whether a refusal is right as well as such an answer.
        says: Regular expression that a refusal must contain, usually the name of the file.
        kinds: Errors that a call may raise.
        seconds: Limit of processor time; what does not end at all is found by the program that runs the rows.
        megabytes: Limit of additional memory at its peak.
    """

    name: str
    write: Callable[[Place], Any]
    act: Callable[[Place, Any], Any]
    answer: Callable[[Any], bool] | None = None
    may_refuse: bool = False
    says: str = ""
    kinds: tuple[type[Exception], ...] = (ValueError, OSError)
    seconds: float = 10.0
    megabytes: int = 400


@dataclass(frozen=True)
class Verdict:
    """End of a row: `faults` is empty if it passed."""

    name: str
    end: str  # refused or answered
    faults: list[str]
    seconds: float
    megabytes: float
    message: str = ""


def run_row(row: Row, place: Place) -> Verdict:
    """Write the input of a row, act on it, and judge the end."""
    for folder in (place.inputs, place.output, place.root / "cwd", place.root / "tmp"):
        folder.mkdir(parents=True)
    os.chdir(place.root / "cwd")
    os.environ["TMPDIR"] = tempfile.tempdir = str(place.root / "tmp")
    os.environ["GRADIO_TEMP_DIR"] = str(place.root.parent / "gradio")  # which gradio makes, and an app replaces
    written = row.write(place)
    before = snapshot(place.root, place.output) | snapshot(place.model, reads=False)
    memory, start = reset_peak(), time.process_time()
    answer: Any = None
    error: BaseException | None = None
    try:
        answer = row.act(place, written)
    except (Exception, SystemExit) as caught:
        error = caught
    seconds, megabytes = time.process_time() - start, peak() - memory
    os.chdir("/")
    after = snapshot(place.root, place.output) | snapshot(place.model, reads=False)
    end, message, faults = judge(row, answer, error)
    faults += [f"changed or left behind: {name}" for name in sorted(_differences(before, after))]
    faults += [f"half a file was left: {path}" for path in place.output.rglob(".partial-*")]
    if seconds > row.seconds:
        faults.append(f"it took {seconds:.1f} s, at most {row.seconds:g} are allowed")
    if megabytes > row.megabytes:
        faults.append(f"it took {megabytes:.0f} MB, at most {row.megabytes} are allowed")
    return Verdict(row.name, end, faults, seconds, megabytes, message)


def judge(row: Row, answer: Any, error: BaseException | None) -> tuple[str, str, list[str]]:
    """Return "refused" or "answered", the message of a refusal, and the faults of this end."""
    faults: list[str] = []
    if error is not None:
        message = str(error)
        faults += _faults_of_error(row, error)
    elif isinstance(answer, Finished):
        message = answer.stderr if answer.code else ""
        faults += _faults_of_command(answer)
    else:
        message = ""
    if error is None and not (isinstance(answer, Finished) and answer.code):
        if row.answer is None:
            faults.append(f"it must be refused, got {_shown(answer)}")
        elif not row.answer(answer):
            faults.append(f"the answer is not right: {_shown(answer)}")
        return "answered", "", faults
    if row.answer is not None and not row.may_refuse:
        faults.append(f"it must be answered, got: {message[:500]}")
    elif not re.search(row.says, message):
        faults.append(f"the message must contain {row.says!r}, got: {message[:500]}")
    if len(message) > LONGEST_MESSAGE:
        faults.append(f"the message has {len(message)} characters: {message[:300]} ...")
    return "refused", message, faults


def _faults_of_error(row: Row, error: BaseException) -> list[str]:
    """Return what is wrong with the error of a call: its kind, its origin, or that it says nothing."""
    frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    is_ours = isinstance(error, OSError | ReportedError) or frames[-1].partition(".")[0] in _OURS
    is_bare = isinstance(error, ValueError) and type(error).__module__ in ("builtins", "json.decoder", "struct")
    is_bare = is_bare and type(error) not in (ValueError,)  # UnicodeDecodeError, JSONDecodeError
    if not isinstance(error, row.kinds) or not is_ours or is_bare or (is_ours and len(str(error).split()) < 3):
        shown = "".join(traceback.format_exception(type(error), error, error.__traceback__)[-4:])
        return [f"no error of a public kind: {shown[-1500:]}"]
    return []


def _faults_of_command(finished: Finished) -> list[str]:
    """Return what is wrong with the end of a command."""
    printed = finished.stdout + finished.stderr
    if "Traceback (most recent call last)" in printed:
        return [f"a traceback: {printed[printed.index('Traceback (most') :][-1500:]}"]
    errors = re.findall(r"^(?:Error: |transformers-ice \w+: error: ).*", finished.stderr, re.MULTILINE)
    if finished.code and len(errors) != 1:
        return [f"exit code {finished.code} with {len(errors)} lines of errors: {printed[-1500:]}"]
    return [] if finished.code in (0, 1, 2) else [f"exit code {finished.code}"]


def _shown(answer: Any) -> str:
    if isinstance(answer, Finished):
        return f"exit code {answer.code}: {(answer.stdout + answer.stderr)[-800:]}"
    return repr(answer)[:500]


def command(*arguments: str) -> Callable[[Place, Any], Finished]:
    """Return an action: run `transformers-ice` with arguments.

    {in}, {out}, {model} and {written} stand for the folders of the row, and what was written.
    """

    def act(place: Place, written: Any) -> Finished:
        values = {"in": place.inputs, "out": place.output, "model": place.model, "written": written}
        argv = [re.sub(r"\{(in|out|model|written)\}", lambda found: str(values[found[1]]), word) for word in arguments]
        return run_command(argv, place)

    return act


def run_command(argv: list[str], place: Place) -> Finished:
    """Run `transformers-ice` in this process, as its entry point does, and return what it printed."""
    from transformers_ice import cli

    kept = (sys.stdout, sys.stderr, sys.excepthook, sys.argv)
    # files, since the commands ask streams for their numbers
    with (
        tempfile.TemporaryFile("w+", dir=place.root.parent, errors="backslashreplace") as stdout,
        tempfile.TemporaryFile("w+", dir=place.root.parent, errors="backslashreplace") as stderr,
    ):
        sys.stdout, sys.stderr, sys.argv = stdout, stderr, ["transformers-ice", *argv]  # type: ignore[assignment]
        try:
            code: Any = cli.main(argv)
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
            code = 1
        finally:
            sys.stdout, sys.stderr, sys.excepthook, sys.argv = kept
        stdout.seek(0)
        stderr.seek(0)
        code = code if isinstance(code, int) else int(code is not None)
        return Finished(code, stdout.read(), stderr.read(), place)


def snapshot(folder: Path, without: Path | None = None, reads: bool = True) -> dict[bytes, tuple[Any, ...]]:
    """Return kind, time, and content or size of everything below a folder; nothing is followed."""
    found: dict[bytes, tuple[Any, ...]] = {}
    excluded = without and os.fsencode(without)
    waiting = [os.fsencode(folder)]
    while waiting:
        for entry in os.scandir(waiting.pop()):
            if entry.path == excluded:
                continue
            status = entry.stat(follow_symlinks=False)
            content: Any = None
            if stat.S_ISLNK(status.st_mode):
                content = os.readlink(entry.path)
            elif stat.S_ISDIR(status.st_mode):
                waiting.append(entry.path)
            elif stat.S_ISREG(status.st_mode):
                content = (status.st_size, _digest(entry.path) if reads else None)
            is_tmp = entry.path.endswith((b"/tmp", b"/cwd"))  # these may be written to, and are empty in the end
            found[entry.path] = (stat.S_IFMT(status.st_mode), None if is_tmp else status.st_mtime_ns, content)
    return found


def _digest(path: bytes) -> bytes:
    with open(path, "rb") as file:
        return hashlib.sha1(file.read()).digest()


def _differences(before: dict[bytes, tuple[Any, ...]], after: dict[bytes, tuple[Any, ...]]) -> set[str]:
    names = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    return {repr(os.fsdecode(name)) for name in names}


def _memory(field: str) -> float:
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:  # no Linux: memory is not measured
        return 0.0
    return int(re.findall(rf"{field}:\s+(\d+) kB", text)[0]) / 1024


def reset_peak() -> float:
    """Let the peak of memory begin here; return what is used now, in MB."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _memory("VmHWM")
    return _memory("VmRSS")


def peak() -> float:
    """Return the peak of memory since `reset_peak`, in MB."""
    return _memory("VmHWM")
