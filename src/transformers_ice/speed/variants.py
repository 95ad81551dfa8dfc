# SPDX-License-Identifier: Apache-2.0
"""Variants of a model to compare: one set of weights, run in several ways."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from transformers import PreTrainedModel, ViTConfig, ViTForImageClassification

from ..ice_deit.modeling_ice_deit import IceDeiTForImageClassification
from ..ice_deit.token_pruning import STRATEGIES, BackgroundStrategy


__all__ = [
    "BACKGROUND",
    "REFERENCE",
    "Variant",
    "build_variants",
    "share_as_vit",
    "share_weights",
    "unusable_strategies",
]

REFERENCE = "ICE unpruned"
BACKGROUND = BackgroundStrategy.name
_VIT = "ViT (transformers)"


@dataclass
class Variant:
    """One way to run the weights.

    Attributes:
        name: Its row in the table.
        model: In evaluation mode; its parameters are those of all other variants.
        is_compiled: Whether `torch.compile` is to be called on it.
        is_decided: Whether the images decide how many patches are kept.
    """

    name: str
    model: PreTrainedModel
    is_compiled: bool = False
    is_decided: bool = False


def share_weights(model: IceDeiTForImageClassification, **changes: Any) -> IceDeiTForImageClassification:
    """Return a model with the same parameter tensors and a configuration of its own, with the given changes.

    Raises:
        ValueError: If the changed configuration contradicts itself or the modules of the model.
    """
    tensors = [*model.parameters(), *model.buffers()]
    # the memo of `deepcopy`: these tensors count as copied already, so the twin refers to the same ones
    twin = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    for name, value in changes.items():
        setattr(twin.config, name, value)
    twin.config.check_values()
    twin.deit.check_pruning_heads()
    return twin


def share_as_vit(model: IceDeiTForImageClassification) -> ViTForImageClassification:
    """Return the ViT of transformers with the parameter tensors of an ICE model; those of its own heads are unused."""
    known = {**ViTConfig().to_dict(), **model.config.to_dict()}
    own = {"model_type", "transformers_version", "architectures"}
    config = ViTConfig(**{name: known[name] for name in ViTConfig().to_dict() if name not in own})
    config._attn_implementation = model.config._attn_implementation
    with torch.device("meta"):  # no memory: all weights are assigned below
        vit = ViTForImageClassification(config)
    wanted = set(vit.state_dict())
    # the two classes name their weights alike but for the prefix
    tensors = {name.replace("deit.", "vit.", 1): tensor for name, tensor in model.named_parameters()}
    # assigned, not copied: both models hold the same tensors
    vit.load_state_dict({name: tensor for name, tensor in tensors.items() if name in wanted}, assign=True)
    return vit.train(model.training)


def unusable_strategies(model: IceDeiTForImageClassification) -> list[str]:
    """Return the names of the strategies whose trained pruning heads a model lacks."""
    return [] if model.config.has_pruning_heads else [name for name in STRATEGIES if STRATEGIES[name].needs_heads]


def build_variants(
    model: IceDeiTForImageClassification,
    keep_rates: Sequence[float],
    compiles: bool = False,
    decided_names: Sequence[str] = (BACKGROUND,),
) -> list[Variant]:
    """Return the variants of a model: unpruned, and pruned by every strategy that it has the pruning heads for.

    Args:
        model: In evaluation mode.
        keep_rates: Each is taken at every pruning layer by every strategy that keeps fixed numbers, with fused tokens
            where it can.
        compiles: Whether to add the compiled unpruned and "top_k" models.
        decided_names: Names of the variants under "background", one for each set of prescribed numbers.

    Raises:
        ValueError: If a keep rate is out of its range.
    """
    layers = model.config.pruning_layers or []
    plain: dict[str, Any] = {"pruning_strategy": None, "fuse_pruned_tokens": False}
    left_out = unusable_strategies(model)
    fixed = [strategy for strategy in STRATEGIES.values() if strategy.has_fixed_counts]
    fixed = [strategy for strategy in fixed if strategy.name not in left_out]
    variants = []
    if model.config.num_prefix_tokens == 1:  # the ViT has [CLS] alone
        variants.append(Variant(_VIT, share_as_vit(model)))
    variants.append(Variant(REFERENCE, share_weights(model, **plain)))
    for strategy, rate in product(fixed, keep_rates):
        fields = {"pruning_strategy": strategy.name, "fuse_pruned_tokens": strategy.can_fuse}
        pruned = share_weights(model, **fields, keep_rates=[rate] * len(layers))
        variants.append(Variant(f"{strategy.name} {rate:g}", pruned))
    for name in decided_names if BACKGROUND not in left_out else ():
        background = share_weights(model, **{**plain, "pruning_strategy": BACKGROUND})
        variants.append(Variant(name, background, is_decided=True))
    if compiles:
        for variant in list(variants):
            twin: Any = variant.model
            ranks_by_heads = getattr(twin.config, "has_pruning_heads", False) and not variant.is_decided
            if variant.name == REFERENCE or ranks_by_heads:
                variants.append(Variant(f"{variant.name}, compiled", share_weights(twin), is_compiled=True))
    return variants
