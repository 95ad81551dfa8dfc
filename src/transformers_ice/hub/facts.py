# SPDX-License-Identifier: Apache-2.0
"""What the folder of a model says by itself: sizes, classes, preprocessing, how long it was trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from ..ice_deit.configuration_ice_deit import IceDeiTConfig, as_pair
from ..ice_deit.modeling_ice_deit import IceDeiTForImageClassification
from ..ice_deit.patch_maps import grid_size


__all__ = ["ModelFacts", "facts_of_architecture", "read_facts"]


@dataclass(frozen=True)
class ModelFacts:
    """Hold what a folder says of its model.

    Attributes:
        config: `config.json`.
        num_parameters: Numbers in the weights.
        class_names: In the order of their indices.
        train_seconds: How long the last call of the training ran; None where nobody wrote it down.
        train_epochs: Times that the training images were seen.
    """

    config: Mapping[str, Any]
    num_parameters: int
    class_names: tuple[str, ...]
    train_seconds: float | None = None
    train_epochs: float | None = None

    @property
    def is_ice(self) -> bool:
        """Whether the model explains itself."""
        return self.config.get("model_type") == IceDeiTConfig.model_type

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the input, in pixels."""
        return as_pair(self.config["image_size"])

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return grid_size(self.image_size, as_pair(self.config["patch_size"]))


def read_facts(folder: Path) -> ModelFacts:
    """Read the facts of a folder.

    Raises:
        ValueError: If it holds no model.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} must hold a model, got no config.json there. Pass the folder that training wrote.")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    names = {int(index): name for index, name in config.get("id2label", {}).items()}
    numbers: dict[str, Any] = {}
    if (folder / "all_results.json").is_file():
        numbers = json.loads((folder / "all_results.json").read_text(encoding="utf-8"))
    return ModelFacts(
        config=config,
        num_parameters=_count_weights(folder),
        class_names=tuple(names[index] for index in sorted(names)),
        train_seconds=numbers.get("train_runtime"),
        train_epochs=numbers.get("epoch"),
    )


def _count_weights(folder: Path) -> int:
    count = 0
    for file in sorted(folder.glob("model*.safetensors")):
        with safe_open(str(file), "pt") as weights:
            count += sum(prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    return count


def facts_of_architecture(architecture: Mapping[str, Any]) -> ModelFacts:
    """Return the facts of a model that is still to be trained, from its sizes; nothing is allocated."""
    config = IceDeiTConfig(**architecture)
    with torch.device("meta"):
        model = IceDeiTForImageClassification(config)
    return ModelFacts(config.to_dict(), sum(weight.numel() for weight in model.parameters()), ())
