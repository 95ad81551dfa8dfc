# SPDX-License-Identifier: Apache-2.0
"""Baselines that weigh attention by the gradient of one class's logit with respect to it."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .class_scores import classify_tokens, gradient_pass, run_classifier, target_or_predicted, target_scores
from .families import backbone_of
from .inspection import class_token_row, eager_attention, grid_size, num_prefix_tokens, record_calls


__all__ = ["generic_attention", "grad_cam", "legrad"]


def grad_cam(model: PreTrainedModel, pixel_values: Tensor, target: Tensor | None = None) -> Tensor:
    """Weigh the heads of the last layer's attention by their mean gradient (attention Grad-CAM).

    Scaled to [0, 1] per image; all 0 where no patch is relevant.

    Source: `hila-chefer/Transformer-Explainability`, the baseline named GradCAM there. It divides 0 by 0 where the
    map is constant.
    """
    prefix = num_prefix_tokens(model)
    weights, gradients = _attention_and_gradients(model, pixel_values, target)[-1]
    rows, row_gradients = weights[:, :, 0, prefix:], gradients[:, :, 0, prefix:]  # queries: [CLS]; keys: patches
    # (batch_size, num_heads, num_patches) -> (batch_size, num_patches)
    relevance = (rows * row_gradients.mean(dim=2, keepdim=True)).mean(dim=1).clamp(min=0)
    relevance = relevance - relevance.amin(dim=1, keepdim=True)
    highest = relevance.amax(dim=1, keepdim=True)
    # 1 in place of 0: a constant map becomes 0, not NaN
    relevance = relevance / torch.where(highest > 0, highest, 1.0)
    return relevance.unflatten(1, grid_size(model, pixel_values))


def generic_attention(model: PreTrainedModel, pixel_values: Tensor, target: Tensor | None = None) -> Tensor:
    """Add up relevance through the layers: from R = identity on, R grows by mean((gradient * attention)+) R.

    The mean is over heads, + cuts negative values, rows are not normalised: no upper bound.

    Source: Chefer, Gur and Wolf, "Generic Attention-model Explainability for Interpreting Bi-Modal and
    Encoder-Decoder Transformers", ICCV 2021, the rule for self-attention.
    """
    layers = _attention_and_gradients(model, pixel_values, target)
    num_tokens = layers[0][0].shape[-1]
    # (batch_size, num_tokens, num_tokens)
    relevance = torch.eye(num_tokens, device=pixel_values.device).expand(len(pixel_values), -1, -1)
    for weights, gradients in layers:
        # mean over heads -> (batch_size, num_tokens, num_tokens)
        relevance = relevance + (gradients * weights).clamp(min=0).mean(dim=1) @ relevance
    return class_token_row(relevance, model, pixel_values)


def legrad(model: PreTrainedModel, pixel_values: Tensor, target: Tensor | None = None) -> Tensor:
    """Average over the layers how sensitive the class is to where each layer attends.

    Each layer's own tokens go through the final layer norm and the head; the positive part of the gradient of that
    logit with respect to the layer's attention is averaged over heads and over the tokens that attend.

    Source: Bousselham et al., "LeGrad: An Explainability Method for Vision Transformers via Feature Formation
    Sensitivity", ICCV 2025; the authors also scale the map to [0, 1].
    """
    backbone = backbone_of(model)
    with (
        gradient_pass(model, pixel_values) as pixels,
        eager_attention(model),
        record_calls(backbone.layers) as calls,
    ):
        logits, outputs = run_classifier(model, pixels, output_attentions=True)
        target = target_or_predicted(logits, target)
        columns = []
        for layer, weights in zip(backbone.layers, outputs.attentions, strict=True):
            logits = classify_tokens(model, backbone.layernorm(calls[layer][1]))  # as if this layer were the last one
            (gradient,) = torch.autograd.grad(target_scores(logits, target).sum(), weights)
            # (batch_size, num_heads, queries, keys) -> (batch_size, patches)
            columns.append(gradient.float().clamp(min=0).mean(dim=(1, 2))[:, backbone.num_prefix_tokens :])
    # (num_layers, batch_size, num_patches) -> (batch_size, rows, columns)
    return torch.stack(columns).mean(dim=0).unflatten(1, grid_size(model, pixel_values))


def _attention_and_gradients(
    model: PreTrainedModel, pixel_values: Tensor, target: Tensor | None
) -> list[tuple[Tensor, Tensor]]:
    """Return per layer attention and the gradient of the target's logit, `(batch_size, heads, tokens, tokens)`."""
    with gradient_pass(model, pixel_values) as pixels, eager_attention(model):
        logits, outputs = run_classifier(model, pixels, output_attentions=True)
        scores = target_scores(logits, target_or_predicted(logits, target))
        # the sum over images: no image's attention has a part in another's score
        gradients = torch.autograd.grad(scores.sum(), outputs.attentions)
    pairs = zip(outputs.attentions, gradients, strict=True)
    return [(weights.detach().float(), gradient.float()) for weights, gradient in pairs]
