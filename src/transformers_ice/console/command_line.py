# SPDX-License-Identifier: Apache-2.0
"""Command lines from data classes, by `HfArgumentParser`, with argument files that get the same checks."""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

import yaml
from transformers import HfArgumentParser

from .exits import redact
from .redaction import PLACEHOLDER, is_secret_name


__all__ = [
    "check_number",
    "check_range",
    "parse_config_overrides",
    "parse_dataclasses",
    "print_help",
]


class _RedactingParser(HfArgumentParser):
    """Parser that redacts the secrets of the command line in its messages."""

    def error(self, message: str) -> NoReturn:
        """End the program as `argparse` does."""
        super().error(redact(message))


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help formatter that shows defaults and keeps the lines of the description."""


def parse_dataclasses(
    groups: Sequence[type],
    argv: Sequence[str],
    description: str | None = None,
    positional: Sequence[str] = (),
) -> tuple[Any, ...]:
    """Parse a command line, or one YAML or JSON file followed by options that override it.

    Mistakes end the program as `argparse` does, with exit code 2 and a message: an unknown or misspelt name (also in a
    file), a value of the wrong type, arguments that contradict each other.

    Args:
        groups: Data classes, whose fields are the options.
        argv: The arguments after the command's name. Where the first ends in .yaml, .yml or .json, it is read as a
            mapping from option names to values.
        description: Text above the list of options in `--help`.
        positional: Fields that may also be given without their name, in this order; a list takes all that remain.

    Returns:
        One instance of each data class.
    """
    parser = _RedactingParser(
        cast(Any, list(groups)),
        description=description,
        formatter_class=_HelpFormatter,
        usage=f"%(prog)s [FILE.yaml] {''.join(f'{name.upper()} ' for name in positional)}[--name value ...]",
        # an abbreviation that is unique today would hide a misspelt name
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument(
        "-h", "--help", nargs="?", const="", metavar="GROUP", help="show options: of one group, or all"
    )
    try:
        arguments = _read_argument_file(Path(argv[0])) + list(argv[1:]) if _names_a_file(argv) else list(argv)
        topic = _help_topic(arguments)
        if topic is not None:
            print_help(parser, groups, topic)
            sys.exit(0)
        arguments = _name_positional(parser, groups, arguments, positional)
        *parsed, _, unknown = parser.parse_args_into_dataclasses(
            arguments, look_for_args_file=False, return_remaining_strings=True
        )
    except ValueError as error:
        parser.error(str(error))
    if unknown:
        parser.error(_describe_unknown(unknown, list(parser._option_string_actions)))
    return tuple(parsed)


def _help_topic(arguments: Sequence[str]) -> str | None:
    """Return the topic of `--help`: "" for none, a group, "all"; `None` without `--help`."""
    for position, argument in enumerate(arguments):
        if argument in ("-h", "--help"):
            following = arguments[position + 1 : position + 2]
            return following[0] if following and not following[0].startswith("-") else ""
        if argument.startswith("--help="):
            return argument.partition("=")[2]
    return None


def _name_positional(
    parser: HfArgumentParser, groups: Sequence[type], arguments: Sequence[str], positional: Sequence[str]
) -> list[str]:
    """Return the arguments with the names of those that were given without one."""
    switches = {
        option
        for action in parser._actions
        if action.nargs == "?" and action.const is True
        for option in action.option_strings
    }
    # a switch takes no value here unless it is one: `--dry_run FOLDER` is a switch and a folder
    explicit: list[str] = []
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        explicit.append(argument)
        has_value = following and not following.startswith("-")
        if argument in switches and has_value and following.lower() not in _TRUTH_VALUES:
            explicit.append("true")
    if not positional:
        return explicit
    named, free = _split_positional(parser, explicit)
    takes_list = {action.dest for action in parser._actions if action.nargs in ("+", "*")}
    for name in positional:
        taken = free if name in takes_list else free[:1]
        free = free[len(taken) :]
        named += [f"--{name}", *taken] if taken else []
    return named + free


def _split_positional(parser: HfArgumentParser, arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the options with their values, and the arguments that are the value of no option."""
    named: list[str] = []
    free: list[str] = []
    num_values = 0.0  # that the option before may still take
    for argument in arguments:
        if num_values and not (argument.startswith("--") or (argument.startswith("-") and num_values > 1)):
            named.append(argument)
            num_values -= 1
        elif argument.startswith("-"):
            named.append(argument)
            action = parser._option_string_actions.get(argument)  # none where it is misspelt, or `--name=value`
            num_values = 0 if action is None else float("inf") if action.nargs in ("+", "*") else 1
        else:
            free.append(argument)
    return named, free


# the strings that `HfArgumentParser` reads as booleans
_TRUTH_VALUES = ("yes", "true", "t", "y", "1", "no", "false", "f", "n", "0")


def print_help(parser: argparse.ArgumentParser, groups: Sequence[type], topic: str) -> None:
    """Print the options: all of them where a screen holds them, else the list of groups, or one group.

    Args:
        parser: Made from the data classes.
        groups: The data classes. Their fields form one group for every class of this package that declares them, named
            by its `help_group`; fields inherited from transformers are shown by "all" only.
        topic: "", "all", the name of a group, or of an option.
    """
    actions = {action.dest: action for action in parser._actions if action.dest != "help"}
    own: dict[str, list[str]] = {}
    for group in groups:
        # base classes first: a field belongs to the class that declares it first
        for owner in reversed(group.__mro__):
            if owner.__module__.partition(".")[0] == __name__.partition(".")[0] or owner is group:
                names = [name for name in vars(owner).get("__annotations__", {}) if name in actions]
                known = {name for shown in own.values() for name in shown}
                title = vars(owner).get("help_group", owner.__name__.removesuffix("Arguments").lower() or "options")
                own.setdefault(title, []).extend(name for name in names if name not in known)
    own = {title: names for title, names in own.items() if names}
    inherited = [name for name in actions if not any(name in names for names in own.values())]
    option = topic.lstrip("-").replace("-", "_")
    if topic == "all":
        shown = {**own, **({"transformers.TrainingArguments": inherited} if inherited else {})}
    elif topic in own:
        shown = {topic: own[topic]}
    elif option in actions:
        shown = {"option": [option]}
    elif topic:
        raise ValueError(f"--help takes one of {', '.join(own)}, all, or the name of an option, got {topic!r}")
    elif sum(map(len, own.values())) <= _SCREEN:
        shown = own
    else:
        shown = {}
    print(parser.format_usage())
    if not topic and parser.description:
        print(f"{parser.description.strip()}\n")
    for title, names in shown.items():
        print(f"{title}:")
        for name in names:
            print(_describe_option(actions[name]))
        print()
    if not shown or (inherited and topic in ("", *own)):
        counts = [f"{title} ({len(names)})" for title, names in own.items()]
        print(f"Options come in groups: {', '.join(counts)}.")
        also = f", of these and the {len(inherited)} options of transformers.TrainingArguments" if inherited else ""
        print(f"`--help GROUP` shows one group, `--help NAME` one option, `--help all` all{also}.")


_SCREEN = 40  # options that are shown at once


def _describe_option(action: argparse.Action) -> str:
    """Return one option with its values, its help and its default, wrapped."""
    choices = f" {{{','.join(map(str, action.choices))}}}" if action.choices else ""
    # argparse formats help texts with `%`, so that a literal one is doubled
    help_text = "" if action.help in (None, argparse.SUPPRESS) else str(action.help).replace("%%", "%")
    is_plain = action.default in (None, argparse.SUPPRESS) or callable(action.default)
    default = "" if is_plain or action.required else f" (default: {action.default})"
    required = " (required)" if action.required else ""
    text = textwrap.fill(f"{help_text}{required}{default}", 100, initial_indent=" " * 8, subsequent_indent=" " * 8)
    return (
        f"  {action.option_strings[0]}{choices}\n{text}" if text.strip() else f"  {action.option_strings[0]}{choices}"
    )


def _names_a_file(argv: Sequence[str]) -> bool:
    """Return whether the first argument is an argument file."""
    return bool(argv) and argv[0].endswith((".yaml", ".yml", ".json"))


def _describe_unknown(arguments: Sequence[str], options: Sequence[str]) -> str:
    """Return an error about unknown arguments, with suggestions; values of misspelt secret options are hidden."""
    close: list[str] = []
    shown: list[str] = []
    hides_value = False
    for argument in arguments:
        name, separator, _ = argument.partition("=")
        matches = difflib.get_close_matches(name, options, n=1)
        close += matches
        if not argument.startswith("-"):
            shown.append(PLACEHOLDER if hides_value else argument)
            continue
        # `matches` too: a misspelt `--hub_tokn` is followed by a token all the same
        hides_value = any(map(is_secret_name, [name, *matches]))
        shown.append(f"{name}={PLACEHOLDER}" if hides_value and separator else argument)
    suggestion = f" (did you mean {', '.join(close)}?)" if close else ""
    return f"unrecognized arguments: {' '.join(shown)}{suggestion}"


def _read_argument_file(path: Path) -> list[str]:
    """Return the entries of a YAML or JSON file as command-line arguments, so that both get the same checks."""
    if not path.is_file():
        raise ValueError(f"the argument file {path} does not exist")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"the argument file {path} cannot be read: {_describe_yaml_error(error)}") from error
    if not isinstance(values, dict):
        raise ValueError(f"the argument file {path} must map names to values, got {type(values).__name__}")
    arguments: list[str] = []
    for name, value in values.items():
        if value is not None:
            arguments += [f"--{name}", *_value_to_arguments(value)]
    return arguments


def _describe_yaml_error(error: yaml.YAMLError) -> str:
    """Return the error and its position, without the lines of the file, which may contain a token."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return "it is not valid YAML or JSON"
    return f"{error.problem} (line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1})"


def _value_to_arguments(value: Any) -> list[str]:
    """Return one value of an argument file as command-line arguments."""
    if isinstance(value, list):
        return [str(item) for item in value]
    return [json.dumps(value) if isinstance(value, dict) else str(value)]


def parse_config_overrides(text: str | None) -> dict[str, Any]:
    """Parse configuration fields from text.

    Args:
        text: `name=value,name=value`, where values are JSON or Python literals or else plain text; or a JSON object.

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
    for parse in (json.loads, ast.literal_eval):  # JSON first: `true` and `null` are no Python literals
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
