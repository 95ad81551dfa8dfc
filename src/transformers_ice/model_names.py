# SPDX-License-Identifier: Apache-2.0
"""Resolve a local folder or Hub id, and fail early on typos, before any weight is loaded."""

from __future__ import annotations

import difflib
import sysconfig
from contextlib import suppress
from pathlib import Path

from transformers import AutoConfig

from .console.json_files import read_json
from .ice_deit.configuration_ice_deit import IceDeiTConfig


__all__ = ["resolve_ice_model_name", "resolve_model_name", "sample_folder"]


def sample_folder(kind: str, name: str = "") -> Path:
    """Return the path of a sample of this project: in a clone, or where a wheel installs it.

    `kind` is "checkpoints" or "recipes", `name` the folder or file in it; a missing one is a `ValueError`.
    """
    clone = Path(__file__).resolve().parents[2]
    installed = Path(sysconfig.get_path("data"), "share", "transformers-ice")
    for home in (clone, installed):
        path = home / kind / name
        # a site-packages folder may hold a folder of that name that is not ours
        if path.exists() and (home is installed or (home / "pyproject.toml").is_file()):
            return path
    raise ValueError(
        f"{kind}/{name} is in a clone of the project, and in the wheel; found in neither {clone} nor {installed}."
    )


def resolve_model_name(name: str) -> str:
    """Return the folder or Hub id of a name; one that can only be a folder is never requested from the Hub.

    Raises:
        ValueError: If it is written like a path, or its parent is a local folder, and there is no such folder. The
            message lists folders of similar names.
    """
    path = Path(name).expanduser()
    if name.startswith("checkpoints/") and not path.exists():
        # a sample of the project resolves from any working directory, as the commands of the docs need it
        with suppress(ValueError):
            return str(sample_folder("checkpoints", name.partition("/")[2]))
    is_path = name.startswith(("/", ".", "~")) or name.count("/") > 1 or "\\" in name
    if path.is_dir():
        for file, kind in (("config.json", "model_type"), ("preprocessor_config.json", "image_processor_type")):
            _check_json(path / file, kind)
        return str(path) if name.startswith("~") else name
    # "owner/name" may be on the Hub, unless a folder `owner` exists here: then it is more likely a typo
    if not is_path and not ("/" in name and path.parent.is_dir()):
        return name
    siblings = [str(folder) for folder in path.parent.iterdir() if folder.is_dir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(str(path), siblings, n=3, cutoff=0.8)
    hint = f"Did you mean {' or '.join(close)}?" if close else "Check the spelling and the working directory."
    raise ValueError(f"A model must be a folder or a Hub id (owner/name), got {name!r}: no such folder. {hint}")


def _check_json(file: Path, kind: str) -> None:
    """Refuse a file that is no JSON object, or whose entries for loading are of another type.

    transformers would end in an error of Python.
    """
    if not file.is_file():
        return
    content = read_json(file)
    if not isinstance(content, dict) or not isinstance(content.get(kind, ""), str):
        raise ValueError(f"{str(file)!r} must hold an object with a `{kind}`, got {str(content)[:80]}.")
    code = content.get("auto_map", {})
    if not isinstance(code, dict):
        raise ValueError(f"{str(file)!r} must map classes to code in `auto_map`, got {str(code)[:80]}.")


def resolve_ice_model_name(name: str) -> str:
    """Return the folder or Hub id of an ICE model; no code of the folder runs.

    Raises:
        OSError: If the Hub has no such model, or cannot be reached.
        ValueError: If there is no such folder, or it holds another kind of model.
    """
    name = resolve_model_name(name)
    # the configuration alone: a few kilobytes, and no remote code
    model_type = AutoConfig.from_pretrained(name, trust_remote_code=False).model_type
    if model_type != IceDeiTConfig.model_type:
        raise ValueError(
            f"{name} must hold an ICE model ({IceDeiTConfig.model_type}), got {model_type}. Train one from it with "
            f"`python scripts/run_train.py --model_name_or_path {name} ...`."
        )
    return name
