# SPDX-License-Identifier: Apache-2.0
"""Read the tensors of a checkpoint file or folder without ever running code from it.

PyTorch files are pickles, and a pickle can call anything. They are opened with `weights_only=True` and a short
allow-list: what the DeiT and ICE training scripts store beside their weights is an `argparse.Namespace`, which can
hold values but not act. Everything else is refused by name.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..ice_deit.weight_checks import WEIGHT_FILES, refuse_impostors, shards_of, some_names


__all__ = ["ALLOWED_GLOBALS", "read_checkpoint"]

ALLOWED_GLOBALS = (argparse.Namespace,)
"""Classes beyond tensors and plain containers that a PyTorch checkpoint may hold."""

_DEFAULT_WEIGHTS_KEYS = ("model", "state_dict", "teacher")  # the last in checkpoints of DINO and DINOv2


def read_checkpoint(path: str | Path, weights_key: str | None = None) -> dict[str, Tensor]:
    """Return the named tensors of a checkpoint, on the CPU, under the names they have in the file.

    Args:
        path: A `.safetensors` file, a PyTorch file (`.pth`, `.pt`, `.bin`), or a folder with one of `WEIGHT_FILES`.
        weights_key: Which entry of a training checkpoint to take, such as `"model_ema"`. By default `"model"`, then
            `"state_dict"`, then `"teacher"`; a file that is itself a state dict needs none.

    Returns:
        Name -> tensor, with the shapes and dtypes of the file.

    Raises:
        FileNotFoundError: If there is no such file, or no weights in the folder.
        ValueError: If the file is not a checkpoint, is truncated, holds objects beyond `ALLOWED_GLOBALS`, or has no
            entry `weights_key`.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"`checkpoint` must be a file or folder on this machine, got {str(path)!r}, which does not exist. "
            "Download a Hub checkpoint first: `hf download <repo> --local-dir <folder>`."
        )
    if path.is_dir():
        return {name: tensor for file in _weight_files(path) for name, tensor in _read(file, weights_key).items()}
    return _read(path, weights_key)


def _weight_files(folder: Path) -> list[Path]:
    """Return the weight files of a folder: one, or the shards that its index names."""
    found = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"`checkpoint` must be a folder with one of {', '.join(WEIGHT_FILES)}, got {str(folder)!r} without any. "
            "Pass the weight file itself if it has another name."
        )
    if found.suffix != ".json":
        return [found]
    return shards_of(found)


def _read(file: Path, weights_key: str | None) -> dict[str, Tensor]:
    """Return the tensors of one file."""
    refuse_impostors(file)
    loaded = _load_safetensors(file) if file.suffix == ".safetensors" else _load_torch(file)
    return _select_weights(loaded, weights_key, file)


def _load_safetensors(file: Path) -> dict[str, Tensor]:
    """Open a safetensors file."""
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(
            f"{str(file)!r} is truncated or not a safetensors file ({error}). Download it again."
        ) from error


def _load_torch(file: Path) -> Any:
    """Open a PyTorch file with the allow-list; say which objects it was refused for."""
    try:
        with torch.serialization.safe_globals(list(ALLOWED_GLOBALS)):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file can fail anywhere inside the unpickler
        refused = sorted(set(re.findall(r"GLOBAL (\S+)", str(error))))
        if refused:
            allowed = ", ".join(f"{item.__module__}.{item.__qualname__}" for item in ALLOWED_GLOBALS)
            raise ValueError(
                f"{str(file)!r} asks for {', '.join(refused)}; nothing of it was run. A checkpoint may hold tensors, "
                f"plain containers and {allowed}. If you trust its author, load it with the code that wrote it and "
                "save `model.state_dict()` alone with safetensors."
            ) from error
        # the first line of PyTorch's text is advice to load unsafely; what it met stands further down
        found = re.search(r"WeightsUnpickler error:\s*(.*)", str(error))
        reason = found[1] if found else (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{str(file)!r} is truncated or not a PyTorch checkpoint ({reason}). Download it again."
        ) from error


def _select_weights(loaded: Any, weights_key: str | None, file: Path) -> dict[str, Tensor]:
    """Pick the state dict out of what a file holds."""
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{str(file)!r} must hold a dict of tensors, got {type(loaded).__name__}.")
    if weights_key is None and any(isinstance(value, Tensor) for value in loaded.values()):
        return _check_tensors(loaded, file)
    candidates = _DEFAULT_WEIGHTS_KEYS if weights_key is None else (weights_key,)
    chosen = next((loaded[key] for key in candidates if isinstance(loaded.get(key), Mapping)), None)
    if chosen is None:
        available = [str(key) for key, value in loaded.items() if isinstance(value, Mapping)]
        raise ValueError(
            f"{str(file)!r} must hold weights under {' or '.join(map(repr, candidates))}, got entries "
            f"{available or 'without any dict'}. Name the right one with `weights_key`."
        )
    return _check_tensors(chosen, file)


def _check_tensors(weights: Mapping[Any, Any], file: Path) -> dict[str, Tensor]:
    """Refuse a state dict in which something is not a tensor; it could not be accounted for."""
    strangers = [str(key) for key, value in weights.items() if not isinstance(value, Tensor)]
    if strangers or not weights:
        raise ValueError(
            f"The weights in {str(file)!r} must all be tensors, got {some_names(strangers) or 'none at all'}."
        )
    return {str(key): value.detach() for key, value in weights.items()}
