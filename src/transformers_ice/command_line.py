# SPDX-License-Identifier: Apache-2.0
"""Command lines made of data classes, as `HfArgumentParser` makes them, with argument files that are checked alike."""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import re
import sys
import traceback
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, cast

import yaml
from transformers import HfArgumentParser

from .redaction import PLACEHOLDER, argument_secrets, is_secret_name, redact_text


__all__ = ["check_number", "check_range", "clean_exit", "parse_config_overrides", "parse_dataclasses"]


@contextmanager
def clean_exit() -> Iterator[None]:
    """End the program with a message and exit code 1 where this package refused something.

    What it raises as `ValueError`, and what transformers raises as `OSError` (no such model), is written for the user;
    errors from anywhere else keep their traceback. Both are printed without tokens and passwords.
    """
    hook_before, sys.excepthook = sys.excepthook, _print_redacted_traceback
    try:
        yield
        sys.excepthook = hook_before
    except (ValueError, OSError) as error:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        raised_in = frame.f_globals.get("__name__", "").partition(".")[0]
        if raised_in != ("transformers" if isinstance(error, OSError) else __name__.partition(".")[0]):
            raise
        sys.exit(f"Error: {_redact(str(error))}")


def _redact(text: str) -> str:
    return redact_text(text, argument_secrets(sys.argv[1:]))


def _print_redacted_traceback(
    kind: type[BaseException], error: BaseException, trace: types.TracebackType | None
) -> None:
    sys.stderr.write(_redact("".join(traceback.format_exception(kind, error, trace))))


class _RedactingParser(HfArgumentParser):
    """Parser whose messages hold no secrets, wherever on the command line they stand."""

    def error(self, message: str) -> NoReturn:
        """End the program as `argparse` does."""
        super().error(_redact(message))


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Show defaults, and keep the lines of the description."""


def parse_dataclasses(groups: Sequence[type], argv: Sequence[str], description: str | None = None) -> tuple[Any, ...]:
    """Parse a command line, or one YAML or JSON file followed by options that override it.

    Mistakes end the program as `argparse` does, with exit code 2 and a message: an unknown or misspelt name (also in a
    file), a value of the wrong type, arguments that contradict each other.

    Args:
        groups: Data classes, whose fields are the options.
        argv: The words after the script's name. Where the first ends in .yaml, .yml or .json, it is read as a mapping
            from argument names to values.
        description: Text above the list of options in `--help`.

    Returns:
        One instance of each data class.
    """
    parser = _RedactingParser(
        cast(Any, list(groups)),
        description=description,
        formatter_class=_HelpFormatter,
        usage="%(prog)s [FILE.yaml] [--name value ...]",
        # an abbreviation that is unique today would hide a misspelt name
        allow_abbrev=False,
    )
    try:
        words = _read_argument_file(Path(argv[0])) + list(argv[1:]) if _names_a_file(argv) else list(argv)
        *parsed, unknown = parser.parse_args_into_dataclasses(
            words, look_for_args_file=False, return_remaining_strings=True
        )
    except ValueError as error:
        parser.error(str(error))
    if unknown:
        parser.error(_describe_unknown(unknown, list(parser._option_string_actions)))
    return tuple(parsed)


def _names_a_file(argv: Sequence[str]) -> bool:
    """Return whether the first word is an argument file."""
    return bool(argv) and argv[0].endswith((".yaml", ".yml", ".json"))


def _describe_unknown(words: Sequence[str], options: Sequence[str]) -> str:
    """Return an error about words that are no arguments, with what may have been meant; misspelt tokens are hidden."""
    close: list[str] = []
    shown: list[str] = []
    hides_value = False
    for word in words:
        name, separator, _ = word.partition("=")
        matches = difflib.get_close_matches(name, options, n=1)
        close += matches
        if not word.startswith("-"):
            shown.append(PLACEHOLDER if hides_value else word)
            continue
        hides_value = any(map(is_secret_name, [name, *matches]))
        shown.append(f"{name}={PLACEHOLDER}" if hides_value and separator else word)
    suggestion = f" (did you mean {', '.join(close)}?)" if close else ""
    return f"unrecognized arguments: {' '.join(shown)}{suggestion}"


def _read_argument_file(path: Path) -> list[str]:
    """Return the arguments of a YAML or JSON file as command-line words, so that both are checked alike."""
    if not path.is_file():
        raise ValueError(f"the argument file {path} does not exist")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"the argument file {path} cannot be read: {_describe_yaml_error(error)}") from error
    if not isinstance(values, dict):
        raise ValueError(f"the argument file {path} must map names to values, got {type(values).__name__}")
    words: list[str] = []
    for name, value in values.items():
        if value is not None:
            words += [f"--{name}", *_value_to_words(value)]
    return words


def _describe_yaml_error(error: yaml.YAMLError) -> str:
    """Return what is wrong and where, without the lines of the file, which may hold a token."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return "it is not valid YAML or JSON"
    return f"{error.problem} (line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1})"


def _value_to_words(value: Any) -> list[str]:
    """Return one value of an argument file as command-line words."""
    if isinstance(value, list):
        return [str(item) for item in value]
    return [json.dumps(value) if isinstance(value, dict) else str(value)]


def parse_config_overrides(text: str | None) -> dict[str, Any]:
    """Return configuration fields from text.

    Args:
        text: `name=value,name=value`, where values are JSON or Python literals or else plain words; or a JSON object.

    Returns:
        Value by name, empty for `None`.

    Raises:
        ValueError: If a part is no `name=value`.
    """
    if text is None or not text.strip():
        return {}
    if text.lstrip().startswith("{"):
        return json.loads(text)
    overrides = {}
    # commas inside a list are not followed by a name and an equals sign
    for item in re.split(r",(?=\s*\w+\s*=)", text):
        name, separator, value = item.partition("=")
        if not separator or not name.strip().isidentifier():
            raise ValueError(f"`config_overrides` must be name=value,name=value, got {item!r} in {text!r}.")
        overrides[name.strip()] = _parse_value(value.strip())
    return overrides


def _parse_value(text: str) -> Any:
    """Return a JSON or Python literal, or the text itself."""
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError):
            continue
    return text


def check_number(name: str, value: float, expected: str, is_right: bool) -> None:
    """Raise unless `is_right`, which is False for nan."""
    if not is_right:
        raise ValueError(f"`{name}` must be {expected}, got {value}.")


def check_range(name: str, values: list[float] | None, highest: float) -> None:
    """Raise unless `values` are two numbers with 0 < first <= second <= highest."""
    if values is None or len(values) != 2 or not 0 < values[0] <= values[1] <= highest:
        raise ValueError(f"`{name}` must be two numbers with 0 < first <= second <= {highest}, got {values}.")
