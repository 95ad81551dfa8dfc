# SPDX-License-Identifier: Apache-2.0
"""Tokens and passwords kept out of everything that is written, printed or uploaded.

A secret is known by one of three signs: the name of its option, whatever its spelling (`--hub_token`, `--hub-token=`);
its value, where the arguments have been parsed or the environment holds it; its form (`hf_...`, user and password or a
signature in a URL).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants


__all__ = [
    "PLACEHOLDER",
    "argument_secrets",
    "find_secret_line",
    "is_secret_name",
    "known_secrets",
    "redact_arguments",
    "redact_text",
    "tokens_hidden",
]

PLACEHOLDER = "***"
"""Replacement of a secret."""

_SECRET_NAMES = ("token", "password", "secret", "api_key")
# shorter values may be part of ordinary words; they are redacted by the name of their option only
_MIN_LENGTH = 8
# a capital or a digit, or great length: `hf_transfer` is a package
_HUB_TOKEN = re.compile(
    r"\bhf_(?:(?:oauth|jwt|app)_[\w.-]{8,}|(?=[a-z]*[A-Z0-9])[A-Za-z0-9]{8,}|[a-z]{20,})|\bapi_org_[A-Za-z0-9]{8,}"
)
_USER_INFO = re.compile(r"""(\b[a-z][a-z0-9+.-]*://)[^/\s"?#<>]+@""", re.IGNORECASE)
_QUERY_VALUE = re.compile(
    r"""([?&;#](?:[\w.%-]*(?:token|signature|secret|password|passwd|pwd|credentials?|policy|key|key-?id|key-pair-id"""
    r"""|authorization)|sig|auth|sas|jwt|pass|code)=)[^&;#\s"'<>]+""",
    re.IGNORECASE,
)


def is_secret_name(name: str) -> bool:
    """Return whether an option or a field holds a secret: `hub_token`, `--hub-token`, with or without `=value`."""
    plain = name.partition("=")[0].lstrip("-").replace("-", "_").lower()
    return any(plain == ending or plain.endswith(f"_{ending}") for ending in _SECRET_NAMES)


def argument_secrets(argv: Sequence[str]) -> tuple[str, ...]:
    """Return the values of the secret options of a command line, and the token of the environment or of a login."""
    values = [*_tokens_of_login(), *(value for _, value in _split_arguments(argv) if value)]
    return tuple(dict.fromkeys(values))


def known_secrets(*groups: Any) -> tuple[str, ...]:
    """Return the values of the secret fields of data classes, and the token of the environment or of a login."""
    values: list[Any] = _tokens_of_login()
    for group in groups:
        values += [getattr(group, name) for name in _secret_fields(group)]
    return tuple(dict.fromkeys(value for value in values if isinstance(value, str) and value))


def _tokens_of_login() -> list[str]:
    """Return the tokens of the environment and of `hf auth login`, which `get_token` may refresh over the network."""
    tokens = [os.environ.get(name, "") for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")]
    with suppress(OSError, UnicodeDecodeError):
        tokens.append(Path(constants.HF_TOKEN_PATH).read_text(encoding="utf-8"))
    return [token.strip() for token in tokens if token.strip()]


def _secret_fields(group: Any) -> list[str]:
    return [field.name for field in fields(group) if is_secret_name(field.name)] if is_dataclass(group) else []


def redact_arguments(argv: Sequence[str], secrets: Sequence[str] = ()) -> list[str]:
    """Return a command line without its secret options and their values; the rest as by `redact_text`."""
    secrets = (*secrets, *argument_secrets(argv))
    kept = [argument for argument, value in _split_arguments(argv) if value is None]
    return [PLACEHOLDER if argument in secrets else redact_text(argument, secrets) for argument in kept]


def _split_arguments(argv: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Yield each argument, with None where it may be shown, else the secret that it holds ("" where it holds none)."""
    is_value = False
    for argument in argv:
        if is_value and (argument == "--" or not argument.startswith("--")):
            is_value = argument == "--"  # argparse takes what comes after it
            yield argument, "" if argument == "--" else argument
        elif argument.startswith("-") and is_secret_name(argument):
            is_value = "=" not in argument
            yield argument, argument.partition("=")[2]
        else:
            is_value = False
            yield argument, None


def redact_text(text: str, secrets: Sequence[str] = ()) -> str:
    """Return a text with `PLACEHOLDER` for the known secrets, for Hub tokens, and for credentials in URLs.

    Of `secrets`, values known to be secret, those of fewer than 8 characters are ignored.
    """
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _MIN_LENGTH:
            text = text.replace(secret, PLACEHOLDER)
    text = _HUB_TOKEN.sub(PLACEHOLDER, text)
    text = _USER_INFO.sub(rf"\g<1>{PLACEHOLDER}@", text)
    return _QUERY_VALUE.sub(rf"\g<1>{PLACEHOLDER}", text)


def find_secret_line(text: str, secrets: Sequence[str] = ()) -> int | None:
    """Return the number of the first line, from 1, that `redact_text` would change; None where none has a secret."""
    lines = enumerate(text.splitlines(), 1)
    return next((number for number, line in lines if redact_text(line, secrets) != line), None)


@contextmanager
def tokens_hidden(group: Any) -> Iterator[None]:
    """Set the secret fields of a data class to None inside the block, for code that saves all fields."""
    before = {name: getattr(group, name) for name in _secret_fields(group)}
    try:
        for name in before:
            setattr(group, name, None)
        yield
    finally:
        for name, value in before.items():
            setattr(group, name, value)
