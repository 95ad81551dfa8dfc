# SPDX-License-Identifier: Apache-2.0
"""Baselines that read the attention weights alone: one map for all classes, in [0, 1], with a sum of at most 1."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .inspection import attention_maps, check_start_layer, class_token_row


__all__ = ["raw_attention", "rollout"]


@torch.no_grad()
def raw_attention(model: PreTrainedModel, pixel_values: Tensor, target: Tensor | None = None) -> Tensor:
    """Return how much the [CLS] token attends to each patch in the last layer, as a mean over the heads."""
    weights = attention_maps(model, pixel_values)[-1]  # (batch_size, num_heads, num_tokens, num_tokens)
    # mean over heads -> (batch_size, num_tokens, num_tokens)
    return class_token_row(weights.float().mean(dim=1), model, pixel_values)


@torch.no_grad()
def rollout(
    model: PreTrainedModel, pixel_values: Tensor, target: Tensor | None = None, start_layer: int = 1
) -> Tensor:
    """Follow attention through the layers: the product of their mean attention with the skip connection added.

    Source: Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020; `start_layer=1`, 0-based, as in
    `hila-chefer/Transformer-Explainability`. Nothing is discarded.
    """
    check_start_layer(start_layer, model)
    layers = [_with_skip_connection(weights) for weights in attention_maps(model, pixel_values)[start_layer:]]
    product = layers[0]
    for layer in layers[1:]:
        product = layer @ product  # later layers from the left, as the recursion of the paper
    return class_token_row(product, model, pixel_values)


def _with_skip_connection(weights: Tensor) -> Tensor:
    # (batch_size, num_heads, num_tokens, num_tokens) -> (batch_size, num_tokens, num_tokens)
    layer = weights.float().mean(dim=1)
    layer = layer + torch.eye(layer.shape[-1], device=layer.device)  # the skip connection: each token passes itself on
    return layer / layer.sum(dim=-1, keepdim=True)  # rows sum to 1 again
