# SPDX-License-Identifier: Apache-2.0
"""Ends of a command: exit codes, and messages without tokens in place of tracebacks."""

from __future__ import annotations

import functools
import os
import sys
import traceback
import types
from collections.abc import Callable, Sequence
from pathlib import Path

from .redaction import argument_secrets, redact_text


__all__ = ["command", "how_called", "print_line", "redact"]

_PACKAGE = __name__.partition(".")[0]


def redact(text: str) -> str:
    """Return text without the secrets of the command line."""
    return redact_text(text, argument_secrets(sys.argv[1:]))


def _print_redacted_traceback(
    kind: type[BaseException], error: BaseException, trace: types.TracebackType | None
) -> None:
    sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))


def command(stopped: str = "Stopped.") -> Callable[[Callable[[list[str]], int | None]], Callable[..., int]]:
    """Make a function of the arguments a command: it returns an exit code, and ends with a sentence, not a traceback.

    0 after success, the function's own code, 1 where this package refused something, a file could not be read or
    written, a library is missing or memory did not suffice, 2 for mistakes in the arguments, 130 after Ctrl-C, 141
    where the reader of the output has gone. Errors of any other kind keep their traceback. All messages are printed
    without tokens and passwords.

    Args:
        stopped: What to print after Ctrl-C.
    """

    def decorate(main: Callable[[list[str]], int | None]) -> Callable[..., int]:
        @functools.wraps(main)
        def run(argv: Sequence[str] | None = None) -> int:
            sys.excepthook = _print_redacted_traceback
            for stream in (sys.stdout, sys.stderr):
                if hasattr(stream, "reconfigure"):  # what an ASCII terminal cannot show must not end finished work
                    stream.reconfigure(errors="backslashreplace")
            try:
                code = main(list(sys.argv[1:] if argv is None else argv)) or 0
                sys.stdout.flush()
                return code
            except BrokenPipeError:
                _discard_output()
                return 141  # as a program that SIGPIPE ends
            except KeyboardInterrupt:
                print(stopped, file=sys.stderr)
                return 130
            except (OSError, ValueError, ImportError, RuntimeError) as error:
                message = _message_for_user(error)
                if message is None:
                    raise
                print(f"Error: {redact(message)}", file=sys.stderr)
                return 1

        return run

    return decorate


def print_line(text: str) -> None:
    """Print a line; where its reader has gone (`| head`), it and further lines are dropped and the work continues."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        _discard_output()


def _discard_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def how_called(name: str) -> str:
    """Return how a user calls a subcommand: as `transformers-ice NAME`, or by the script that was run."""
    program = Path(sys.argv[0])
    is_script = program.suffix == ".py" and program.parent.name == "scripts"
    return f"python scripts/{program.name}" if is_script else f"transformers-ice {name}"


def _message_for_user(error: BaseException) -> str | None:
    """Return the message for the user, or `None` if the error is a fault of the program."""
    message = str(error).strip()
    if isinstance(error, RuntimeError):
        return f"{message} Use a smaller batch." if type(error).__name__ == "OutOfMemoryError" else None
    if isinstance(error, ValueError) and not isinstance(error, OSError):
        if "DataLoader worker" in message:
            return message.splitlines()[-1].partition(": ")[2] or message  # the last line of the worker's traceback
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        origin = frame.f_globals.get("__name__", "").partition(".")[0]
        return message if origin in (_PACKAGE, "transformers", "huggingface_hub") else None
    return message
