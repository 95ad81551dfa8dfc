# SPDX-License-Identifier: Apache-2.0
"""What a user calls a model, a folder or a Hub id, looked at before anything is loaded: mistakes are told at once."""

from __future__ import annotations

import difflib
from pathlib import Path

from transformers import AutoConfig

from .configuration_ice_deit import IceDeiTConfig


__all__ = ["refuse_missing_folder", "refuse_other_models"]


def refuse_missing_folder(name: str) -> None:
    """Refuse the name of a model that can only be a folder, where there is none: the Hub would be asked for it.

    Args:
        name: Folder or Hub id (name or owner/name).

    Raises:
        ValueError: If it is written like a path, or its parent is a folder here; says which folders are like it.
    """
    path = Path(name).expanduser()
    is_path = name.startswith(("/", ".", "~")) or name.count("/") > 1 or "\\" in name
    if path.is_dir() or not (is_path or ("/" in name and path.parent.is_dir())):
        return
    beside = [str(folder) for folder in path.parent.iterdir() if folder.is_dir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(str(path), beside, n=3, cutoff=0.8)
    hint = f"Did you mean {' or '.join(close)}?" if close else "Check the spelling and the working directory."
    raise ValueError(f"A model must be a folder or a Hub id (owner/name), got {name!r}: no such folder. {hint}")


def refuse_other_models(name: str) -> None:
    """Refuse a name that is not that of an ICE model; no code of the folder runs.

    Args:
        name: Folder or Hub id.

    Raises:
        OSError: If the Hub has no such model, or cannot be reached.
        ValueError: If there is no such folder, or it holds another kind of model.
    """
    refuse_missing_folder(name)
    model_type = AutoConfig.from_pretrained(name, trust_remote_code=False).model_type
    if model_type != IceDeiTConfig.model_type:
        raise ValueError(
            f"{name} must hold an ICE model ({IceDeiTConfig.model_type}), got {model_type}. Train one from it with "
            f"`python scripts/run_train.py --model_name_or_path {name} ...`."
        )
