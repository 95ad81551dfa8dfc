# SPDX-License-Identifier: Apache-2.0
"""Which parameters decay, and how fast each learns: weight decay by name, learning-rate decay by layer.

With a layer decay, the nearer a layer is to the pixels, the slower it learns.

Source: Clark et al., "ELECTRA" (2020); Bao et al., "BEiT" (2022), whose numbering of the layers this follows, as timm
does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedModel


__all__ = ["decay_layer_rates", "decaying_parameters", "layer_scale"]

_LAYER = re.compile(r"(?:^|\.)layers?\.(\d+)\.")
_TOKENS_AND_POSITIONS = {
    "cls_token",
    "distillation_token",
    "mask_token",
    "position_embeddings",
    "register_tokens",
}
_CLS_CLASSIFIERS = {"classifier", "distillation_classifier"}


def decaying_parameters(names: Iterable[str], cls_is_trained: bool) -> list[str]:
    """Return the names of the parameters that weight decay applies to, out of those that `Trainer` decays.

    Excluded are tokens and position embeddings (as in DeiT), and the [CLS] classifiers where they get no loss and
    would be shrunk by decay alone.
    """
    excluded = _TOKENS_AND_POSITIONS if cls_is_trained else _TOKENS_AND_POSITIONS | _CLS_CLASSIFIERS
    return [name for name in names if excluded.isdisjoint(name.split("."))]


def layer_scale(name: str, num_layers: int, decay: float) -> float:
    """Return the factor on the learning rate of a parameter of a ViT, DeiT or ICE model.

    1 for modules after the layers (final norm, patch, pruning and [CLS] heads), `decay ** (num_layers - i)` for layer
    i, counted from 0, and `decay ** (num_layers + 1)` for the embeddings.
    """
    if "embeddings" in name.split("."):
        return decay ** (num_layers + 1)
    match = _LAYER.search(name)
    return 1.0 if match is None else decay ** (num_layers - int(match[1]))


def decay_layer_rates(optimizer: torch.optim.Optimizer, model: nn.Module, decay: float) -> None:
    """Split the parameter groups of a fresh optimizer by layer, and scale the learning rate of each.

    Schedulers multiply the rate of every group alike, so the ratios hold through warm-up and cosine, and a minimum
    rate is scaled with the rest. The heads come first: their rate, the full one, is what the Trainer logs.

    Args:
        optimizer: A fresh optimizer, before its first step and before any scheduler.
        model: Model of the parameters; has `config.num_hidden_layers`.
        decay: See `layer_scale`.

    Raises:
        ValueError: If no layer of the model is found by name.
    """
    num_layers = cast(PreTrainedModel, model).config.num_hidden_layers
    scales = {parameter: layer_scale(name, num_layers, decay) for name, parameter in model.named_parameters()}
    if len(set(scales.values())) <= 2:  # the heads and the embeddings only
        raise ValueError(
            f"`layer_decay` finds the layers by their names (layers.0, ...), and {type(model).__name__} has none. "
            "Set it to 1."
        )
    groups = []
    for group in optimizer.param_groups:
        by_scale: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            by_scale.setdefault(scales[parameter], []).append(parameter)
        groups += [
            {**group, "params": params, "lr": group["lr"] * scale, "layer_scale": scale}
            for scale, params in by_scale.items()
        ]
    # the largest scale, 1, first
    optimizer.param_groups[:] = sorted(groups, key=lambda group: -group["layer_scale"])
