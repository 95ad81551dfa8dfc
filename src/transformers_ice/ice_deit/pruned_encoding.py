# SPDX-License-Identifier: Apache-2.0
"""Run the encoder's layers while patches leave, by any strategy and in any layout of the tokens."""

from typing import Any

import torch
from torch import Tensor

from .configuration_ice_deit import IceDeiTConfig
from .outputs_ice_deit import IceDeiTModelOutput
from .token_layouts import GatheredTokens, MaskedTokens, PackedTokens
from .token_pruning import background_margin, num_kept


def choose_layout(
    config: IceDeiTConfig, is_training: bool, records_states: bool
) -> type[MaskedTokens] | type[GatheredTokens] | type[PackedTokens]:
    """Return how the tokens are laid out.

    Args:
        config: Strategy and execution.
        is_training: Whether the model trains. Pruning heads learn from what becomes of the patches that leave.
        records_states: Whether hidden states or attentions are asked for, which have the shape of the full grid.
    """
    learns = is_training and config.has_pruning_heads
    if config.pruning_execution == "masked" or records_states or learns:
        return MaskedTokens
    if config.pruning_strategy != "background":
        return GatheredTokens
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting() and not _captures_dynamic_shapes():
        return MaskedTokens
    return PackedTokens


@torch.compiler.assume_constant_result
def _captures_dynamic_shapes() -> bool:
    """Whether `torch.compile` was told to take in shapes that depend on the images; they would break the graph."""
    return torch._dynamo.config.capture_dynamic_output_shape_ops


def encode_pruned(model: Any, hidden_states: Tensor, **kwargs: Any) -> IceDeiTModelOutput:
    """Run the layers and the patch head while patches leave.

    Args:
        model: The `IceDeiTModel`, with a pruning strategy.
        hidden_states: `(batch_size, num_prefix_tokens + num_patches, hidden_size)`.
        **kwargs: Options of the attention implementation.

    Returns:
        The model's output, without `grid_size`.
    """
    config = model.config
    records_states = any(
        kwargs.get(name, getattr(config, name, False)) for name in ("output_hidden_states", "output_attentions")
    )
    tokens: Any = choose_layout(config, model.training, records_states).start(hidden_states, config)
    schedule = config.pruning_schedule
    num_present, pruning_logits = hidden_states.shape[1] - config.num_prefix_tokens, []
    for index, layer in enumerate(model.layers):
        count = num_kept(schedule.get(index, 1.0), num_present)
        if index in schedule and config.has_pruning_heads:
            head_output = tokens.ask(model.pruning_heads[str(index)])
            pruning_logits.append(head_output)
            # what a patch said as it left is learnt from the pruning loss alone
            tokens = _decide(model, tokens, head_output.detach(), count, index)
            num_present = count
        if config.pruning_strategy == "attentiveness" and count < num_present:
            tokens = tokens.cut_inside(layer, count, model.patch_head, index, **kwargs)
            num_present = count + config.fuse_pruned_tokens
        else:
            tokens = tokens.apply(layer, **kwargs)
    encoded = tokens.finish(model.layernorm, model.patch_head)
    learns = model.training and config.has_pruning_heads
    return IceDeiTModelOutput(
        last_hidden_state=encoded.last_hidden_state,
        patch_logits=encoded.patch_logits,
        patch_exit_layer=encoded.exit_layer,
        pruning_logits=tuple(pruning_logits) if learns else None,
        last_patch_logits=encoded.onlooker_logits if learns else None,
    )


def _decide(model: Any, tokens: Any, head_output: Tensor, count: int, index: int) -> Any:
    """Return the tokens without the patches that the head of a pruning layer sends away."""
    if model.training and not model.config.prune_in_training:
        return tokens
    margin = background_margin(head_output)
    if model.config.pruning_strategy == "top_k":
        return tokens if count == margin.shape[1] else tokens.keep_best(-margin, count, head_output, index)
    keep = model.foreground_patches(index, margin, tokens.present)
    return tokens.keep(keep, head_output, index)


__all__ = ["choose_layout", "encode_pruned"]
