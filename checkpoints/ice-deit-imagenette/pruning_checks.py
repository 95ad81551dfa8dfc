# SPDX-License-Identifier: Apache-2.0
"""Checks of the fields of a configuration that say how patches are pruned."""

from transformers import PreTrainedConfig

from .configuration_fields import check_choice
from .token_pruning import EXECUTIONS, PRUNING_HEADS, STRATEGIES


def check_pruning(config: PreTrainedConfig) -> None:
    """Raise a `ValueError` that names the field unless the fields of a pruning strategy fit the model and each other.

    `config` is an `IceDeiTConfig` with a `pruning_strategy`.
    """
    for name, choices in (
        ("pruning_strategy", STRATEGIES),
        ("pruning_execution", EXECUTIONS),
        ("pruning_head", PRUNING_HEADS),
    ):
        check_choice(name, getattr(config, name), choices)
    strategy = STRATEGIES[config.pruning_strategy or ""]
    layers, rates = list(config.pruning_layers or ()), list(config.keep_rates or ())
    if not layers or layers != sorted({*layers}) or layers[0] < 0 or layers[-1] >= config.num_hidden_layers:
        raise ValueError(
            f"`pruning_layers` must be ascending layers in [0, {config.num_hidden_layers - 1}], for a model of "
            f"{config.num_hidden_layers} layers, got {config.pruning_layers}."
        )
    has_rates = len(rates) == len(layers) and all(0 < rate <= 1 for rate in rates)
    if strategy.has_fixed_counts and not has_rates:
        raise ValueError(
            f"`keep_rates` must be one number in (0, 1] for each of the pruning layers {layers}, got {rates}."
        )
    if config.fuse_pruned_tokens and not strategy.can_fuse:
        names = " or ".join(f'"{name}"' for name, other in STRATEGIES.items() if other.can_fuse)
        raise ValueError(
            f"`fuse_pruned_tokens` weights tokens by attention and needs `pruning_strategy={names}`, got "
            f"{config.pruning_strategy!r}."
        )


__all__ = ["check_pruning"]
