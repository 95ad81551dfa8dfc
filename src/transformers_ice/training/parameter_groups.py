# SPDX-License-Identifier: Apache-2.0
"""Which parameters train and which decay, and how fast each learns: frozen layers, weight decay, layer decay.

With a layer decay, the nearer a layer is to the pixels, the slower it learns; frozen layers do not learn at all.

Source: Clark et al., "ELECTRA" (2020); Bao et al., "BEiT" (2022), whose numbering of the layers this follows, as timm
does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging


__all__ = ["check_frozen_layers", "decay_layer_rates", "decaying_parameters", "freeze_layers", "layer_scale"]

logger = logging.get_logger(__name__)

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


def check_frozen_layers(num_frozen: int | None, config: PreTrainedConfig) -> None:
    """Raise a `ValueError` unless a model of this configuration has that many layers to freeze; None freezes none."""
    num_layers = getattr(config, "num_hidden_layers", 0)
    if num_frozen is not None and not 0 <= num_frozen <= num_layers:
        raise ValueError(
            f"`freeze_layers` must lie in [0, {num_layers}] for {num_layers} layers, got {num_frozen}: 0 freezes the "
            f"embeddings alone, {num_layers} all but the heads."
        )


def freeze_layers(model: nn.Module, num_frozen: int | None) -> list[nn.Module]:
    """Freeze the embeddings and the first layers of a ViT, DeiT or ICE model; changes it in place.

    Autograd records nothing below the first parameter that trains, so frozen layers take neither the time nor the
    memory of a backward pass. They have to run in evaluation mode, without dropout and drop path, which is up to the
    caller: `Trainer` switches the mode at every step.

    Args:
        model: Model with or without a head.
        num_frozen: Layers to freeze, from the embeddings on; 0: the embeddings alone; all of them: the final layer
            norm too, so that the heads alone train (linear probing); None: nothing.

    Returns:
        The frozen modules.

    Raises:
        ValueError: If the model has fewer layers, or no `embeddings` and `layers`.
    """
    if num_frozen is None:
        return []
    encoder: Any = cast(PreTrainedModel, model).base_model
    if not (hasattr(encoder, "embeddings") and hasattr(encoder, "layers")):
        raise ValueError(
            f"`freeze_layers` needs a ViT, DeiT or ICE model, got {type(model).__name__} without `embeddings` and "
            "`layers`. Leave it out; a model with adapters is frozen already."
        )
    check_frozen_layers(num_frozen, encoder.config)
    frozen = [encoder.embeddings, *encoder.layers[:num_frozen]]
    if num_frozen == len(encoder.layers):
        frozen.append(encoder.layernorm)
    for module in frozen:
        module.requires_grad_(False)
    weights = list(model.parameters())
    num_trained = sum(weight.numel() for weight in weights if weight.requires_grad)
    logger.warning(
        f"Frozen: the embeddings and {num_frozen} of {len(encoder.layers)} layers. {num_trained:,} of "
        f"{sum(weight.numel() for weight in weights):,} weights train."
    )
    return frozen
