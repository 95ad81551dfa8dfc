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
from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NoReturn, cast

import yaml
from transformers import HfArgumentParser

from .exits import redact
from .redaction import PLACEHOLDER, is_secret_name


__all__ = ["check_number", "check_range", "parse_config_overrides", "parse_dataclasses"]

_SCREEN = 40  # options that are shown at once
# the strings that `HfArgumentParser` reads as booleans
_TRUTH_VALUES = ("yes", "true", "t", "y", "1", "no", "false", "f", "n", "0")


class _RedactingParser(HfArgumentParser):
    """Parser that redacts the secrets of the command line in its messages."""

    def error(self, message: str) -> NoReturn:
        """End the program as `argparse` does."""
        super().error(redact(message))


def parse_dataclasses(
    groups: Sequence[type],
    argv: Sequence[str],
    description: str | None = None,
    positional: Sequence[str] = (),
    alternatives: Sequence[Sequence[Sequence[str]]] = (),
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
        alternatives: Groups of fields that exclude each other, for each of several choices: where an option gives a
            field of one group, the file's fields of the others are dropped.

    Returns:
        One instance of each data class.
    """
    parser = _RedactingParser(
        cast(Any, list(groups)),
        description=description,
        usage=f"%(prog)s [FILE.yaml] {''.join(f'{name.upper()} ' for name in positional)}[--name value ...]",
        # an abbreviation that is unique today would hide a misspelt name
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument(
        "-h", "--help", nargs="?", const="", metavar="GROUP", help="show options: of one group, or all"
    )
    arguments = list(argv)
    try:
        if arguments and arguments[0].endswith((".yaml", ".yml", ".json")):
            values = _read_argument_file(Path(arguments[0]))
            given = {argument.partition("=")[0].lstrip("-").replace("-", "_") for argument in arguments[1:]}
            dropped = {
                name
                for choice in alternatives
                if any(given & set(group) for group in choice)
                for group in choice
                if not given & set(group)
                for name in group
            }
            arguments[:1] = _as_arguments({name: value for name, value in values.items() if name not in dropped})
        topic = _help_topic(arguments)
        if topic is not None:
            _print_help(parser, groups, topic)
            sys.exit(0)
        arguments = _name_positional(parser, arguments, positional)
        *parsed, _, unknown = parser.parse_args_into_dataclasses(
            arguments, look_for_args_file=False, return_remaining_strings=True
        )
    except ValueError as error:
        parser.error(str(error))
    if unknown:
        parser.error(_describe_unknown(unknown, list(parser._option_string_actions)))
    return tuple(parsed)


def _help_topic(arguments: Sequence[str]) -> str | None:
    """Return the topic of `--help`: "" for none, a group, an option, "all"; `None` without `--help`."""
    for argument, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        if argument in ("-h", "--help"):
            return "" if following.startswith("-") else following
        if argument.startswith("--help="):
            return argument.partition("=")[2]
    return None


def _name_positional(parser: HfArgumentParser, arguments: Sequence[str], positional: Sequence[str]) -> list[str]:
    """Return the arguments with the names of those that were given without one."""
    # a switch takes no value here unless it is one: `--dry_run FOLDER` is a switch and a folder
    explicit: list[str] = []
    for argument, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        explicit.append(argument)
        action = parser._option_string_actions.get(argument)
        is_switch = action is not None and action.nargs == "?" and action.const is True
        if is_switch and following and not following.startswith("-") and following.lower() not in _TRUTH_VALUES:
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


def _print_help(parser: argparse.ArgumentParser, groups: Sequence[type], topic: str) -> None:
    """Print the options: all of them where a screen holds them, else the list of groups; or those of the topic."""
    actions = {action.dest: action for action in parser._actions if action.dest != "help"}
    own = _group_options(groups, actions)
    inherited = [name for name in actions if not any(name in names for names in own.values())]
    option = topic.lstrip("-").replace("-", "_")
    shown: dict[str, list[str]] = {}
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
    print(parser.format_usage())
    if not topic and parser.description:
        print(f"{parser.description.strip()}\n")
    for title, names in shown.items():
        print(f"{title}:", *(_describe_option(actions[name]) for name in names), "", sep="\n")
    if not shown or (inherited and topic in ("", *own)):
        counts = [f"{title} ({len(names)})" for title, names in own.items()]
        print(f"Options come in groups: {', '.join(counts)}.")
        also = f", of these and the {len(inherited)} options of transformers.TrainingArguments" if inherited else ""
        print(f"`--help GROUP` shows one group, `--help NAME` one option, `--help all` all{also}.")


def _group_options(groups: Sequence[type], actions: dict[str, argparse.Action]) -> dict[str, list[str]]:
    """Return the options by group: one for every class of this package that declares some, named by `help_group`."""
    package, known = __name__.partition(".")[0], set[str]()
    own: dict[str, list[str]] = {}
    for group in groups:
        # base classes first: a field belongs to the class that declares it first
        for owner in reversed(group.__mro__):
            if owner is not group and owner.__module__.partition(".")[0] != package:
                continue  # fields inherited from transformers are shown by "all" only
            title = vars(owner).get("help_group", owner.__name__.removesuffix("Arguments").lower() or "options")
            declared = vars(owner).get("__annotations__", {})
            names = [name for name in declared if name in actions and name not in known]
            known.update(names)
            if names:
                own.setdefault(title, []).extend(names)
    return own


def _describe_option(action: argparse.Action) -> str:
    """Return one option with its values, its help and its default, wrapped."""
    choices = f" {{{','.join(map(str, action.choices))}}}" if action.choices else ""
    # argparse formats help texts with `%`, so that a literal one is doubled
    text = "" if action.help in (None, argparse.SUPPRESS) else str(action.help).replace("%%", "%")
    if action.required:
        text += " (required)"
    elif action.default not in (None, argparse.SUPPRESS) and not callable(action.default):
        text += f" (default: {action.default})"
    lines = textwrap.wrap(text, 100, initial_indent=" " * 8, subsequent_indent=" " * 8)
    return "\n".join([f"  {action.option_strings[0]}{choices}", *lines])


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


class _StrictLoader(yaml.SafeLoader):
    """Loader that refuses a key which stands twice in a mapping, of which YAML would take the last, and nesting."""

    def fetch_flow_collection_start(self, token: type[yaml.Token]) -> None:
        """Read `[` or `{`; the time that YAML takes for nested ones grows with the square of their number."""
        if self.flow_level >= 20:
            raise yaml.MarkedYAMLError(problem="it is nested too deeply", problem_mark=self.get_mark())
        super().fetch_flow_collection_start(token)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping of a node."""
        names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<")
        twice = next((key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and names[key.value] > 1), None)
        if twice is not None:
            raise yaml.MarkedYAMLError(problem=f"`{twice.value}` stands twice", problem_mark=twice.start_mark)
        return super().construct_mapping(node, deep)


def _read_argument_file(path: Path) -> dict[str, Any]:
    """Return the entries of a YAML or JSON file."""
    if not path.is_file():
        raise ValueError(f"the argument file {path} does not exist")
    try:
        values = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_StrictLoader)
    except (OSError, ValueError, RecursionError) as error:  # no UTF-8, a number of thousands of digits, a 13th month
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise ValueError(f"the argument file {path} cannot be read as UTF-8 text: {reason}") from error
    except yaml.YAMLError as error:
        reason = "it is not valid YAML or JSON"
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
            # not its own text, which quotes the lines of the file: they may contain a token
            mark = error.problem_mark
            reason = f"{error.problem} (line {mark.line + 1}, column {mark.column + 1})"
        raise ValueError(f"the argument file {path} cannot be read: {reason}") from error
    if not isinstance(values, dict):
        raise ValueError(f"the argument file {path} must map names to values, got {type(values).__name__}")
    for name, value in values.items():
        # a few lines of aliases can stand for gigabytes of nested lists
        parts = value.values() if isinstance(value, dict) else [value]
        items = [item for part in parts for item in (part if isinstance(part, list) else [part])]
        if any(isinstance(item, list | dict) for item in items):
            raise ValueError(f"the argument file {path} must hold values and flat lists, `{name}` is nested")
    return {str(name).replace("-", "_"): value for name, value in values.items()}


def _as_arguments(values: dict[str, Any]) -> list[str]:
    """Return entries of a file as command-line arguments, so that both get the same checks."""
    arguments: list[str] = []
    for name, value in values.items():
        if value is not None:
            items = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else value]
            arguments += [f"--{name}", *map(str, items)]
    return arguments


def parse_config_overrides(text: str | None) -> dict[str, Any]:
    """Return configuration fields from `name=value,name=value`, or from a JSON object.

    Values are JSON or Python literals, or else plain text.
    """
    if text is None or not text.strip():
        return {}
    if text.lstrip().startswith("{"):
        try:
            return json.loads(text)
        except (RecursionError, ValueError) as error:
            raise ValueError(f"`config_overrides` must be name=value or JSON, got {text[:80]!r}: {error}.") from error
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
        except (ValueError, SyntaxError, RecursionError, MemoryError):
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
