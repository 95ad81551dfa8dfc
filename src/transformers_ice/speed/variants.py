# SPDX-License-Identifier: Apache-2.0
"""Variants of a model to compare: one set of weights, run in several ways."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, ViTConfig, ViTForImageClassification

from ..explainers.inspection import share_parameters
from ..ice_deit.configuration_ice_deit import IceDeiTConfig
from ..ice_deit.modeling_ice_deit import IceDeiTForImageClassification
from ..ice_deit.token_pruning import STRATEGIES, BackgroundStrategy, TokenCounts


__all__ = [
    "BACKGROUND",
    "REFERENCE",
    "Variant",
    "build_variants",
    "optimize_variants",
    "share_as_vit",
    "share_weights",
    "unusable_strategies",
]

REFERENCE = "ICE unpruned"
BACKGROUND = BackgroundStrategy.name
_VIT = "ViT (transformers)"


Optimizer = Callable[[PreTrainedModel, str, str], Any]
"""Returns a faster model that is called alike, from a model, a backend and a precision: `optimize_for_inference`."""


@dataclass(frozen=True)
class Variant:
    """One way to run the weights.

    Attributes:
        name: Its row in the table.
        model: Called with pixel values, in evaluation mode; it has the weights of all other variants.
        config: That of the model, or of one with the same sizes.
        dtype: Number type of its pixel values.
        precision: Number type of its matrix products: "float32", "bfloat16", "float16", "int8".
        decided_by: Name of the numbers of patches to keep where the images decide; `None` where they do not.
        counts: Tokens of one image, of published code of other methods; `None` where they follow from configuration
            and images.
        eager: Model in PyTorch that computes the same tokens, for one that torch cannot count; `None`: the model.
    """

    name: str
    model: Any
    config: PreTrainedConfig
    dtype: torch.dtype = torch.float32
    precision: str = "float32"
    decided_by: str | None = None
    counts: TokenCounts | None = None
    eager: PreTrainedModel | None = None

    def to(self, precision: str, suffix: str) -> Variant:
        """Return the variant of a PyTorch model in another number type, with a model of its own."""
        dtype = getattr(torch, precision)
        model = self.model if dtype == self.dtype else copy.deepcopy(self.model).to(dtype)
        return replace(self, name=self.name + suffix, model=model, dtype=dtype, precision=precision)


def share_weights(model: IceDeiTForImageClassification, **changes: Any) -> IceDeiTForImageClassification:
    """Return a model with the same parameter tensors and a configuration of its own, with the given changes.

    Raises:
        ValueError: If the changed configuration contradicts itself or the modules of the model.
    """
    twin = share_parameters(model)
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
    decided_names: Sequence[str] = (BACKGROUND,),
    suffix: str = "",
) -> list[Variant]:
    """Return the variants of a model: unpruned, and pruned by every strategy that it has the pruning heads for.

    Args:
        model: In evaluation mode.
        keep_rates: Each is taken at every pruning layer by every strategy that keeps fixed numbers, with fused tokens
            where it can.
        decided_names: Names of the variants under "background", one for each set of prescribed numbers.
        suffix: End of every name, such as ", bfloat16".

    Raises:
        ValueError: If a keep rate is out of its range.
    """
    layers = model.config.pruning_layers or []
    plain: dict[str, Any] = {"pruning_strategy": None, "fuse_pruned_tokens": False}
    left_out = unusable_strategies(model)
    fixed = [strategy for strategy in STRATEGIES.values() if strategy.has_fixed_counts]
    fixed = [strategy for strategy in fixed if strategy.name not in left_out]
    models: dict[str, PreTrainedModel] = {}
    if model.config.num_prefix_tokens == 1:  # the ViT has [CLS] alone
        models[_VIT] = share_as_vit(model)
    models[REFERENCE] = share_weights(model, **plain)
    for strategy, rate in product(fixed, keep_rates):
        fields = {"pruning_strategy": strategy.name, "fuse_pruned_tokens": strategy.can_fuse}
        models[f"{strategy.name} {rate:g}"] = share_weights(model, **fields, keep_rates=[rate] * len(layers))
    deciding = [] if BACKGROUND in left_out else list(decided_names)
    for name in deciding:
        models[name] = share_weights(model, **{**plain, "pruning_strategy": BACKGROUND})
    precision = str(model.dtype).removeprefix("torch.")
    return [
        Variant(name + suffix, twin, twin.config, model.dtype, precision, name if name in deciding else None)
        for name, twin in models.items()
    ]


def optimize_variants(variants: Sequence[Variant], choices: Sequence[str], optimize: Optimizer) -> list[Variant]:
    """Return each ICE variant as every one of several optimized models.

    Args:
        variants: In float32; the ViT of transformers among them is left out.
        choices: Backends, each alone or with a precision: "onnxruntime", "onnxruntime:int8".
        optimize: Builds the optimized model, whose `optimization` names the precision it has.
    """
    optimized = []
    for variant in variants:
        for choice in choices if isinstance(variant.config, IceDeiTConfig) else ():
            backend, _, precision = choice.partition(":")
            fast = optimize(variant.model, backend, precision or "auto")
            optimized.append(
                replace(
                    variant,
                    name=f"{variant.name}, {choice.replace(':', ' ')}",
                    model=fast,
                    dtype=fast.dtype,
                    precision=fast.optimization.precision,
                    eager=variant.model,
                )
            )
    return optimized
