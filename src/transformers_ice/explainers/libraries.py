# SPDX-License-Identifier: Apache-2.0
"""Load the libraries that some baselines come from, when one is asked for."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


__all__ = ["import_library"]


def import_library(name: str) -> ModuleType:
    """Return a module of an optional library.

    Args:
        name: Dotted name of the module.

    Raises:
        ImportError: If it is not installed; the message says how to install it.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(
            f"This method needs {name.split('.')[0]}, which cannot be imported ({error}). "
            "Install it with `pip install transformers-ice[eval]`."
        ) from error
