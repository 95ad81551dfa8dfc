# SPDX-License-Identifier: Apache-2.0
"""Refuse the weights of a checkpoint that are missing, not whole or no numbers, by name and before they are used."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn


WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""What is looked for in a folder, best first; an index names the shards of a large model."""

_FIRST_BYTES_OF_IMPOSTORS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the weights. Run `git lfs pull` where you cloned it"),
    (b"<!doctype html", "a web page, not the weights. Download the file itself (on the Hub: /resolve/, not /blob/)"),
    (b"<html", "a web page, not the weights. Download the file itself (on the Hub: /resolve/, not /blob/)"),
    (b"<?xml", "an XML answer of a server, not the weights. Download the file again"),
)
# what a checkpoint of another task may lack or hold: these parts are trained again for other classes
_HEADS = re.compile(r"(^|\.)(classifier|cls_classifier|distillation_classifier|patch_head|pruning_heads)\.")
_PATCH_HEAD = re.compile(r"(^|\.)patch_head\.")
_CLASSIFIER = re.compile(r"For(Image|Semantic)")  # others have no head for classes, as `ViTMAEForPreTraining`
_NONE = re.compile(r"(?!)")  # matches nothing


def refuse_impostors(file: Path) -> None:
    """Refuse the things that a failed download leaves under the name of the weights."""
    with file.open("rb") as stream:
        head = stream.read(512).lstrip().lower()
    if not head:
        raise ValueError(f"{str(file)!r} is empty. Download it again.")
    for first_bytes, meaning in _FIRST_BYTES_OF_IMPOSTORS:
        if head.startswith(first_bytes):
            raise ValueError(f"{str(file)!r} is {meaning}.")


def shards_of(index: Path) -> list[Path]:
    """Return the files that the index of a large model names; refuse one that names none, or others than are there."""
    try:
        names = sorted({*json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
        # only the file name counts: an index must not lead out of its folder
        shards = [index.parent / Path(name).name for name in names]
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            f"{str(index)!r} must hold a `weight_map`, name -> shard, got {type(error).__name__}: {str(error)[:100]}. "
            "Download the folder again."
        ) from error
    if not shards:
        raise ValueError(f"The `weight_map` of {str(index)!r} is empty. Download the folder again.")
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise FileNotFoundError(f"{str(index)!r} names shards that are not there: {some_names(missing)}.")
    return shards


def refuse_broken_folder(name: Any) -> None:
    """Refuse a local folder whose weight files or index are none; other names pass."""
    folder = Path(str(name))
    file = next((folder / file for file in WEIGHT_FILES if (folder / file).is_file()), None)
    if file is not None:
        for part in [file] if file.suffix != ".json" else shards_of(file):
            refuse_impostors(part)


def describe_damage(error: Exception) -> str | None:
    """Return in words how a weight file is damaged, by the error of its reader; `None` if it is another matter."""
    text = str(error)
    if "weights_only" in text:  # its own text is advice to load unsafely
        return "the file asks for more than tensors and plain values; nothing of it was run"
    is_damage = not isinstance(error, (ImportError, OSError, RuntimeError, TypeError, ValueError))
    # what the readers of PyTorch's own format raise for files that end too early
    is_damage |= isinstance(error, RuntimeError) and "PytorchStreamReader" in text
    is_damage |= isinstance(error, OSError) and error.errno is not None and error.filename is None
    return next(iter(text.splitlines()), type(error).__name__) if is_damage else None


def some_names(names: Iterable[str], most: int = 10) -> str:
    """Return names for an error: the first ones, and how many more there are."""
    listed = list(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


def refuse_incomplete(model: Any, info: dict[str, Any], name: Any, other_classes: bool, new_heads: bool) -> None:
    """Refuse a checkpoint whose weights are not those of the model.

    Args:
        model: The loaded model.
        info: Loading information of transformers: missing, unexpected and mismatched keys.
        name: Folder or Hub id.
        other_classes: Whether heads may be of other classes.
        new_heads: Whether the checkpoint may lack heads. That of an encoder alone always may, and one that classifies
            by [CLS] has no patch head before it is trained.
    """
    mismatched = {entry[0]: f" {tuple(entry[1])} for {tuple(entry[2])}" for entry in info["mismatched_keys"]}
    classifies = any(_CLASSIFIER.search(name) for name in model.config.architectures or ["ForImageClassification"])
    new_heads = new_heads or not classifies
    may_lack = _HEADS if new_heads else _PATCH_HEAD if model.config.logits_source == "cls" else _NONE
    problems = []
    for what, keys, is_fine in (
        ("lacks", {*info["missing_keys"]} - {*mismatched}, may_lack),
        ("holds, and the model has no place for,", {*info["unexpected_keys"]}, _HEADS if new_heads else _NONE),
        ("has in another shape", {*mismatched}, _HEADS if other_classes else _NONE),
    ):
        refused = sorted(key for key in keys if not is_fine.search(key))
        if refused:
            problems.append(f"{what} {some_names(key + mismatched.get(key, '') for key in refused)}")
    if problems:
        raise ValueError(
            f"The weights of {str(name)!r} are not those of the {type(model).__name__} of its config.json: "
            f"the file {'; it '.join(problems)}. Is the folder complete, and its config.json unchanged? For other "
            "classes pass `ignore_mismatched_sizes=True`, which draws the heads again. Another input size needs no "
            "change: positions are interpolated."
        )


def refuse_not_finite(model: nn.Module, name: Any) -> None:
    """Refuse weights that hold NaN or infinity: every answer would."""
    broken = [
        key
        for key, value in model.named_parameters()
        if not value.is_meta and value.is_floating_point() and value.element_size() > 1 and not value.isfinite().all()
    ]
    if broken:
        raise ValueError(
            f"The weights of {str(name)!r} hold NaN or infinity: {some_names(broken)}. The training diverged, or the "
            "file is damaged; take an earlier checkpoint."
        )


__all__ = [
    "WEIGHT_FILES",
    "describe_damage",
    "refuse_broken_folder",
    "refuse_impostors",
    "refuse_incomplete",
    "refuse_not_finite",
    "shards_of",
    "some_names",
]
