# SPDX-License-Identifier: Apache-2.0
"""Multiply-accumulate operations (MACs) of a forward pass: counted as it runs, and computed from the sizes.

What papers call the "GFLOPs" of a ViT are billions of MACs. Both ways include matrix products and convolutions only.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from transformers import PreTrainedConfig

from ..ice_deit.configuration_ice_deit import IceDeiTConfig, as_pair
from ..ice_deit.token_pruning import STRATEGIES, TokenCounts, count_present_tokens


__all__ = ["TokenCounts", "count_macs", "count_tokens", "ideal_macs"]


def _cpu_attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Return the FLOPs of torch's CPU attention kernel, of shapes; without this torch counts none."""
    return sdpa_flop_count(query, key, value)


def count_macs(call: Callable[[], Any]) -> int:
    """Count the MACs of a call, as torch does: the padding of a padded batch counts too.

    Not counted is the attention of torch's kernel for images of different lengths, which runs packed batches in half
    precision on a GPU; `ideal_macs` includes it.

    Args:
        call: Runs the model; a compiled one cannot be counted.
    """
    kernel: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={kernel: _cpu_attention_flops}) as counter:
        call()
    return counter.get_total_flops() // 2  # a multiplication and an addition are one MAC


def count_tokens(config: PreTrainedConfig, exit_layer: np.ndarray) -> TokenCounts:
    """Return how many tokens each part of a model works on.

    Args:
        config: That of the model; a plain ViT has no patch head.
        exit_layer: `(num_images, num_patches)`, the model's `patch_exit_layer`. It is needed where images keep
            different numbers of patches; elsewhere its shape alone counts.
    """
    if not isinstance(config, IceDeiTConfig):
        num_images, num_patches = exit_layer.shape
        tokens = np.full((num_images, config.num_hidden_layers), num_patches + 1)  # [CLS] too
        none = np.zeros(num_images, dtype=int)
        return TokenCounts(tokens, tokens, none, none, none)
    strategy = STRATEGIES.get(config.pruning_strategy or "")
    return (strategy.count_tokens if strategy else count_present_tokens)(config, exit_layer)


def ideal_macs(
    config: PreTrainedConfig,
    tokens_per_layer: np.ndarray,
    mlp_tokens: np.ndarray | None = None,
    pruning_head_patches: np.ndarray | int = 0,
    patch_head_patches: np.ndarray | int = 0,
    class_attention_tokens: np.ndarray | int = 0,
    num_patches: int | None = None,
) -> np.ndarray:
    """Compute the MACs of each image without wasted computation: no padding, no pruned token.

    With N tokens of width D and an MLP of width I, a layer takes 4 N D^2 for its projections, 2 N^2 D for attention
    and 2 N D I for the MLP.

    Args:
        config: That of a ViT or an ICE model.
        tokens_per_layer: `(..., num_layers)`; this and the next four are described at `TokenCounts`.
        mlp_tokens: `(..., num_layers)`; `None` means as many as enter the layer.
        pruning_head_patches: `(...)`.
        patch_head_patches: `(...)`.
        class_attention_tokens: `(...)`.
        num_patches: Patches of the image; `None` takes the configured size.

    Returns:
        `(...)`, float64.
    """
    tokens = np.asarray(tokens_per_layer, dtype=np.float64)
    mlp = tokens if mlp_tokens is None else np.asarray(mlp_tokens, dtype=np.float64)
    width, patch_size = config.hidden_size, as_pair(config.patch_size)
    if num_patches is None:
        num_patches = prod(side // patch for side, patch in zip(as_pair(config.image_size), patch_size, strict=True))
    # (..., num_layers)
    layers = 4 * tokens * width**2 + 2 * tokens**2 * width + 2 * mlp * width * config.intermediate_size
    num_classifiers = 2 if getattr(config, "has_distillation_head", False) else 1
    # outside the layers: the patch embedding, and the classifiers on the prefix tokens
    once = num_patches * width * config.num_channels * prod(patch_size) + num_classifiers * width * config.num_labels
    head, pruning_head = _head_macs(config)
    return (
        layers.sum(axis=-1)
        + once
        + pruning_head * np.asarray(pruning_head_patches)
        + head * np.asarray(patch_head_patches)
        + width * np.asarray(class_attention_tokens)
    )


def _head_macs(config: PreTrainedConfig) -> tuple[int, int]:
    """Return the MACs of the patch head and of a pruning head for one patch."""
    if not isinstance(config, IceDeiTConfig):
        return 0, 0
    width, hidden, num_outputs = config.hidden_size, config.patch_head_hidden_size, config.num_labels + 1
    # linear, or an MLP with one hidden layer
    patch_head = width * num_outputs if hidden is None else hidden * (width + num_outputs)
    # a gate has a single logit
    return patch_head, width if config.pruning_head == "gate" else patch_head
