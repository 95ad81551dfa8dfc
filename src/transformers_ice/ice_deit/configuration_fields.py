# SPDX-License-Identifier: Apache-2.0
"""Fields of a configuration that carry their help and their allowed values, and the checks that follow from both."""

import dataclasses
import difflib
from collections.abc import Collection, Iterable
from typing import Any, TypeVar


T = TypeVar("T")

# Keys of old Hub configurations that only look like an ICE field.
_FOREIGN_FIELDS = ("pruned_heads",)


def ice_field(default: T, help: str, *, within: str | None = None, choices: Collection[str] | None = None) -> T:
    """Declare a field of a configuration: all that others derive from it.

    The type checker sees the default, as for `dataclasses.field`. `help` is also the text of the field's option in
    `run_train.py --help`; `within` an interval such as "[0, 1)". `choices` that are a registry are read at every
    check, so that it may grow. Longer text stands in the docstring below the field.
    """
    return dataclasses.field(default=default, metadata={"help": help, "within": within, "choices": choices})


def check_fields(config: Any) -> None:
    """Check every field of a configuration that was declared by `ice_field`, each alone."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        check_choice(field.name, value, field.metadata.get("choices"))
        check_interval(field.name, value, field.metadata.get("within"))


def check_choice(name: str, value: Any, choices: Collection[str] | None) -> None:
    """Raise unless `value` is one of the choices, or `None`, which the type of a field allows or refuses."""
    if choices is not None and value is not None and value not in choices:
        raise ValueError(f"`{name}` must be one of {list(choices)}, got {value!r}.")


def check_interval(name: str, value: Any, interval: str | None) -> None:
    """Raise unless `value` lies in an interval such as "[0, 1)", or is `None`.

    NaN lies in none, infinity in those that are closed there.
    """
    if interval is None or value is None:
        return
    low, high = (float(end) for end in interval[1:-1].split(","))
    is_above = value >= low if interval[0] == "[" else value > low
    is_below = value <= high if interval[-1] == "]" else value < high
    if not (is_above and is_below):
        expected = f"at least {interval[1:-6]}" if interval.endswith(", inf)") and interval[0] == "[" else None
        raise ValueError(f"`{name}` must be {expected or f'in {interval}'}, got {value}.")


def refuse_near_misses(names: Iterable[str], known: Collection[str]) -> None:
    """Raise a `ValueError` if a keyword looks like a misspelling of a known field."""
    for name in names:
        if name in known or name in _FOREIGN_FIELDS:
            continue
        # 0.75 catches dropped words and letters ("background_weight") and no key of the ViT and DeiT configurations
        close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.75)
        if close:
            raise ValueError(f"Unknown configuration field `{name}`. Did you mean `{close[0]}`?")


def as_pair(size: int | list[int] | tuple[int, int], name: str = "size") -> tuple[int, int]:
    """Return a size, one number or the two, as (height, width); an error calls it `name`."""
    if isinstance(size, int):
        return size, size
    if len(size) != 2:
        raise ValueError(f"`{name}` must be one number or [height, width], got {size}.")
    return size[0], size[1]


__all__ = ["as_pair", "check_choice", "check_fields", "check_interval", "ice_field", "refuse_near_misses"]
