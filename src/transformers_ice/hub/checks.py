# SPDX-License-Identifier: Apache-2.0
"""What must hold of a folder before it is published. Its code is compared with that of the package, not run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification
from transformers.utils import logging

from ..ice_deit.configuration_ice_deit import IceDeiTConfig
from ..ice_deit.remote_code import AUTO_MAP, CUSTOM_PIPELINES, remote_code_files
from ..redaction import known_secrets
from .metadata import check_card_for_publication
from .published_files import FolderContents, find_secret_files, sort_files


__all__ = ["check_folder", "holds_ice_model"]

_MODEL_CODE = Path(__file__).resolve().parents[1] / "ice_deit"
_NEEDED = ("config.json", "preprocessor_config.json", "README.md")
_SHOWN = 5


def check_folder(folder: Path) -> list[str]:
    """Return what stands in the way of publishing a folder, one sentence each; empty where nothing does.

    Every sentence names the file, what was expected, what is there, and the way out.

    Args:
        folder: A saved model with its image processor and card.
    """
    if not folder.is_dir():
        return [f"{folder}: expected a folder with a saved model, got none. Pass the folder that training wrote"]
    contents = sort_files(folder)
    problems = [f"{name}: {reason}" for name, reason in contents.refused.items()]
    problems += _check_presence(folder, contents)
    problems += _check_secrets(folder, contents)
    config = _read_json(folder / "config.json", problems)
    preprocessing = _read_json(folder / "preprocessor_config.json", problems)
    if config is not None:
        is_ice = config.get("model_type") == IceDeiTConfig.model_type
        problems += _check_entries(config, preprocessing or {}, is_ice)
        problems += _check_code(folder, contents, is_ice)
    problems += _check_values(folder, contents)
    if not problems:  # only what is whole so far is loaded
        problems += _check_loading(folder)
    return problems + _check_card(folder) + _check_images(folder, contents)


def holds_ice_model(folder: Path) -> bool:
    """Return whether a folder holds a model of this project, rather than a plain classifier of transformers."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config.get("model_type") == IceDeiTConfig.model_type


def _check_presence(folder: Path, contents: FolderContents) -> list[str]:
    ways = {
        "config.json": "Save the model with `model.save_pretrained(folder)`",
        "preprocessor_config.json": "Save the image processor with `image_processor.save_pretrained(folder)`",
        "README.md": "Write the card with scripts/write_model_card.py",
    }
    problems = [f"{name}: expected in {folder}, but it is not there. {ways[name]}" for name in _NEEDED]
    problems = [text for name, text in zip(_NEEDED, problems, strict=True) if name not in contents.published]
    if not any(name.endswith(".safetensors") for name in contents.published):
        problems.append(
            f"model.safetensors: expected in {folder}, but it is not there. Save the model with "
            "`model.save_pretrained(folder)`, or convert it with scripts/convert_checkpoint.py"
        )
    return problems


def _check_secrets(folder: Path, contents: FolderContents) -> list[str]:
    """Return which files hold the token in use, or what looks like a token or a password."""
    names = [name for name in contents.published if (folder / name).is_file()]
    return [
        f"{name}: expected no token or password, got what looks like one in line {line}. Remove it there; if the "
        "folder was shared before, revoke it at https://huggingface.co/settings/tokens"
        for name, line in find_secret_files(folder, names, known_secrets()).items()
    ]


def _read_json(file: Path, problems: list[str]) -> dict[str, Any] | None:
    """Return a mapping of a file, or None; what is wrong goes to `problems`."""
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        problems.append(f"{file.name}: expected JSON, got text that cannot be read ({error}). Save the model again")
        return None
    if not isinstance(content, dict):
        problems.append(f"{file.name}: expected a mapping, got {type(content).__name__}. Save the model again")
        return None
    return content


def _check_entries(config: dict[str, Any], preprocessing: dict[str, Any], is_ice: bool) -> list[str]:
    """Return which entries for remote code are not as this version writes them."""
    if not is_ice:
        foreign = [name for name in ("auto_map", "custom_pipelines") if config.get(name)]
        return [
            f"config.json: expected no `{name}` for a {config.get('model_type')!r} model, which needs no code, "
            f"got {config[name]}. Remove the entry"
            for name in foreign
        ]
    processor = {"AutoImageProcessor": AUTO_MAP["AutoImageProcessor"]}
    wanted = [
        ("config.json", "auto_map", AUTO_MAP, config.get("auto_map")),
        ("config.json", "custom_pipelines", CUSTOM_PIPELINES, config.get("custom_pipelines")),
        ("preprocessor_config.json", "auto_map", processor, preprocessing.get("auto_map")),
    ]
    return [
        f"{file}: expected `{name}` {expected}, got {found}. Save model and image processor again with this version"
        for file, name, expected, found in wanted
        if found != expected
    ]


def _check_code(folder: Path, contents: FolderContents, is_ice: bool) -> list[str]:
    """Return which code files are missing or differ from those of this package."""
    present = set(contents.published) & set(remote_code_files())
    if not is_ice:
        return [f"{name}: code that a plain classifier does not need. Remove it" for name in sorted(present)]
    way = "Load the model and save it again, or copy the code with `copy_remote_code`"
    problems = [
        f"{name}: expected beside the weights, but it is not there. {way}"
        for name in sorted(set(remote_code_files()) - present)
    ]
    for name in sorted(present):
        if (folder / name).read_bytes() != (_MODEL_CODE / name).read_bytes():
            problems.append(f"{name}: expected the code of the installed package, got another text. {way}")
    return problems


def _check_values(folder: Path, contents: FolderContents) -> list[str]:
    """Return which weights are not finite, or cannot be read."""
    problems = []
    for file in (name for name in contents.published if name.endswith(".safetensors")):
        try:
            with safe_open(str(folder / file), "pt") as weights:
                bad = [name for name in weights.keys() if not _is_finite(weights.get_tensor(name))]  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            problems.append(f"{file}: expected safetensors, got a file that cannot be read ({error}). Save it again")
            continue
        if bad:
            problems.append(
                f"{file}: expected finite numbers, got NaN or infinity in {_some(bad)}. Publish an earlier checkpoint"
            )
    return problems


def _is_finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def _check_loading(folder: Path) -> list[str]:
    """Return which weights the model lacks, has too many of, or has in another shape."""
    model_type = AutoConfig.from_pretrained(folder, trust_remote_code=False).model_type
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its report of the keys is said again below
    try:
        loaded = AutoModelForImageClassification.from_pretrained(
            folder, trust_remote_code=False, output_loading_info=True, ignore_mismatched_sizes=True
        )
        AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        return [f"{folder}: expected a {model_type!r} classifier that loads, got an error: {error}"]
    finally:
        logging.set_verbosity(verbosity)
    info = cast(tuple[Any, dict[str, Any]], loaded)[1]
    mismatched = [
        f"{entry[0]} (file {tuple(entry[1])}, model {tuple(entry[2])})" if isinstance(entry, tuple) else str(entry)
        for entry in info["mismatched_keys"]
    ]
    found = {
        "no weights for": sorted(info["missing_keys"]),
        "weights that the model does not have:": sorted(info["unexpected_keys"]),
        "other shapes in": sorted(mismatched),
    }
    return [
        f"model.safetensors: expected what config.json describes, got {what} {_some(names)}. Save model and "
        "configuration together, with `model.save_pretrained(folder)`"
        for what, names in found.items()
        if names
    ]


def _check_card(folder: Path) -> list[str]:
    card = folder / "README.md"
    if not card.is_file():
        return []  # said before
    return [f"README.md: {problem}" for problem in check_card_for_publication(card.read_text(encoding="utf-8"))]


def _check_images(folder: Path, contents: FolderContents) -> list[str]:
    problems = []
    for name in (name for name in contents.published if name.startswith("images/")):
        try:
            with Image.open(folder / name) as image:
                image.verify()
        except (OSError, SyntaxError, ValueError) as error:
            problems.append(f"{name}: expected a picture, got a file that cannot be read ({error}). Remove it")
    return problems
