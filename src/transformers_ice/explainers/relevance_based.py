# SPDX-License-Identifier: Apache-2.0
"""Baselines that walk relevance back from one class's logit through the layers, to attention or to the pixels.

One forward pass leaves a trace; the rules of `relevance_rules` then go through it from the end. Every image of a batch
is treated as if it were alone.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from transformers import PreTrainedModel
from transformers.utils import logging

from .class_scores import (
    classification_heads,
    gradient_pass,
    run_classifier,
    target_or_predicted,
    target_scores,
)
from .families import Backbone, backbone_of
from .inspection import (
    check_start_layer,
    class_token_row,
    eager_attention,
    grid_size,
    num_prefix_tokens,
    record_calls,
)
from .relevance_rules import addition_rule, copy_rule, linear_rule, pixel_rule, product_rule, share


__all__ = ["full_lrp", "partial_lrp", "transformer_attribution"]

logger = logging.get_logger(__name__)


def transformer_attribution(
    model: PreTrainedModel, pixel_values: Tensor, target: Tensor | None = None, start_layer: int = 1
) -> Tensor:
    """Follow gradient times relevance of the attention through the layers, with the skip connection added.

    Per layer: positive part of (gradient * relevance), mean over heads, plus the identity; later layers multiply from
    the left; rows are not normalised: not negative, no upper bound.

    Source: Chefer, Gur and Wolf, "Transformer Interpretability Beyond Attention Visualization", CVPR 2021;
    `start_layer=1` and the rows as in `hila-chefer/Transformer-Explainability`.
    """
    check_start_layer(start_layer, model)
    trace = _trace(model, pixel_values, target, with_gradients=True)
    # (num_tokens, num_tokens); the first layer adds the axis of the images
    product = torch.eye(trace.attentions[0].shape[-1], dtype=trace.attentions[0].dtype, device=pixel_values.device)
    for step in itertools.islice(_walk_back(trace, joint=True), len(trace.attentions) - start_layer):
        # mean over heads -> (batch_size, num_tokens, num_tokens)
        layer = (trace.gradients[step.index] * step.attention).clamp(min=0).mean(dim=1)
        # the walk starts at the last layer, so each earlier layer multiplies from the right
        product = product @ (layer + torch.eye(layer.shape[-1], dtype=layer.dtype, device=layer.device))
    return class_token_row(product, model, pixel_values).float()


def partial_lrp(model: PreTrainedModel, pixel_values: Tensor, target: Tensor | None = None) -> Tensor:
    """Return the relevance of the last layer's attention: positive part, mean over heads, [CLS] row over the patches.

    Source: the baseline of that name in `hila-chefer/Transformer-Explainability`, after Voita et al., "Analyzing
    Multi-Head Self-Attention", ACL 2019.
    """
    trace = _trace(model, pixel_values, target)
    last = next(_walk_back(trace, joint=False))  # a generator: no other layer is computed
    return class_token_row(last.attention.clamp(min=0).mean(dim=1), model, pixel_values).float()


def full_lrp(model: PreTrainedModel, pixel_values: Tensor, target: Tensor | None = None) -> Tensor:
    """Return the relevance of the pixels `(batch_size, height, width)`, walked back through the whole model.

    Of either sign, without bounds.

    Source: the baseline of that name in `hila-chefer/Transformer-Explainability`.
    """
    if model.dtype.itemsize < 4:
        logger.warning_once(
            f"The weights are in {str(model.dtype).removeprefix('torch.')}. `full_lrp` divides by sums close to 0, so "
            "their rounding changes its maps beyond recognition. Load the model with `dtype=torch.float32`."
        )
    # float32 decides about some maps by rounding, too. Apple's GPUs have no float64.
    dtype = torch.float32 if model.device.type == "mps" else torch.float64
    trace = _trace(model, pixel_values, target, dtype=dtype)
    *_, first = _walk_back(trace, joint=False)  # the walk ends at the first layer
    embeddings = backbone_of(trace.model).embeddings
    patches, embedded = trace.result_of(embeddings.patch_embeddings), trace.result_of(embeddings)
    prefix = num_prefix_tokens(model)
    # the positions were added to the patches, and keep their share
    relevance = share(patches, embedded[:, prefix:], first.hidden_states[:, prefix:])
    # (batch_size, num_patches, hidden_size) -> (batch_size, hidden_size, rows, columns)
    relevance = relevance.transpose(1, 2).unflatten(2, grid_size(model, pixel_values))
    # (hidden_size, num_channels, patch_height, patch_width)
    weight = embeddings.patch_embeddings.projection.weight.detach()
    return pixel_rule(pixel_values.detach().to(relevance.dtype), weight, relevance).float()


@dataclass(frozen=True)
class _Trace:
    """Trace of one forward pass: calls by module, attention and its gradients by layer, and the targets."""

    model: PreTrainedModel
    calls: dict[nn.Module, tuple[Tensor, Tensor]]
    attentions: list[Tensor]
    gradients: list[Tensor]
    target: Tensor

    def input_of(self, module: nn.Module) -> Tensor:
        """Return what a module got."""
        return self.calls[module][0].detach()

    def result_of(self, module: nn.Module) -> Tensor:
        """Return what a module gave."""
        return self.calls[module][1].detach()


@dataclass(frozen=True)
class _Step:
    """Relevance of one layer: of its attention `(batch_size, heads, tokens, tokens)` and of its input."""

    index: int
    attention: Tensor
    hidden_states: Tensor


def _trace(
    model: PreTrainedModel,
    pixel_values: Tensor,
    target: Tensor | None,
    with_gradients: bool = False,
    dtype: torch.dtype = torch.float32,
) -> _Trace:
    """Run a model in a precision of at least `dtype`, whatever its own: the rules divide by small differences."""
    if any(not hasattr(layer.mlp, "fc1") for layer in backbone_of(model).layers):
        raise ValueError(
            f"Relevance has no rule for a gated MLP (`use_swiglu_ffn`, as in DINOv2-giant), which this "
            f"{type(model).__name__} has. Use method='legrad' or 'integrated_gradients'."
        )
    model = _in_precision(model, torch.promote_types(dtype, model.dtype))
    with (
        gradient_pass(model, pixel_values) as pixels,
        torch.set_grad_enabled(with_gradients),
        eager_attention(model),
        record_calls(_modules_on_the_way(model)) as calls,
    ):
        logits, outputs = run_classifier(model, pixels, output_attentions=True)
        target = target_or_predicted(logits, target)
        scores = target_scores(logits, target).sum()  # sum over images, none of which affects another's score
        gradients = torch.autograd.grad(scores, outputs.attentions) if with_gradients else ()
    return _Trace(model, calls, [weights.detach() for weights in outputs.attentions], list(gradients), target)


def _in_precision(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Return a model, or a copy of it in another precision, outside of any inference mode of the caller."""
    if all(weight.dtype == dtype for weight in model.parameters()):
        return model
    with torch.inference_mode(False), torch.no_grad():
        tensors: dict[int, Tensor] = {
            id(weight): nn.Parameter(weight.to(dtype), requires_grad=False) for weight in model.parameters()
        }
        tensors |= {id(buffer): buffer.to(dtype) for buffer in model.buffers() if buffer.is_floating_point()}
        # the memo of `deepcopy`: of the weights, only those in the new precision are made
        return copy.deepcopy(model, tensors)


def _modules_on_the_way(model: PreTrainedModel) -> Iterator[nn.Module]:
    backbone = backbone_of(model)
    yield from (backbone.embeddings, backbone.embeddings.patch_embeddings, backbone.layernorm)
    for layer in backbone.layers:
        attention, mlp = layer.attention, layer.mlp
        yield from (layer, attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj, mlp.fc1, mlp.fc2)


@torch.no_grad()
def _walk_back(trace: _Trace, joint: bool) -> Iterator[_Step]:
    """Yield the relevance layer by layer, from the last to the first; as many as are asked for are computed.

    `joint` rules are those of `transformer_attribution`, the others those of LRP: see `linear_rule`, `addition_rule`.
    """
    relevance = _at_the_final_tokens(trace, joint)
    layers = list(enumerate(backbone_of(trace.model).layers))
    for index, layer in reversed(layers):
        middle = _through_mlp(trace, layer, relevance, joint)
        attention, relevance = _through_attention(trace, index, layer, middle, joint)
        yield _Step(index, attention, relevance)


def _at_the_final_tokens(trace: _Trace, joint: bool) -> Tensor:
    """Return the relevance of the last layer's tokens: 1 on the target's logit, through the heads to their tokens."""
    backbone = backbone_of(trace.model)
    tokens = trace.result_of(backbone.layernorm)
    heads = classification_heads(trace.model)
    inputs = backbone.head_inputs(tokens, len(heads))
    weights = [head.weight.detach() for head in heads]
    start = one_hot(trace.target, weights[0].shape[0]).to(tokens.dtype)  # (batch_size, num_labels)
    parts: tuple[Tensor, ...] = (start,)
    if len(heads) == 2:
        # the logits are the mean of two heads, that is, the sum of their halves
        halves = [head(features) for head, features in zip(heads, inputs, strict=True)]
        parts = addition_rule(halves[0] / 2, halves[1] / 2, start, rescale=joint)
    of_inputs = [linear_rule(*case, joint) for case in zip(inputs, weights, parts, strict=True)]
    return _from_head_inputs(backbone, tokens, of_inputs)


def _from_head_inputs(backbone: Backbone, tokens: Tensor, of_inputs: list[Tensor]) -> Tensor:
    """Return the relevance of the final tokens, of that of what each head reads of them."""
    relevance = torch.zeros_like(tokens)
    if not backbone.family.classifies_patches:
        for index, of_token in enumerate(of_inputs):
            relevance[:, index] = of_token  # (batch_size, hidden_size), of prefix token i
        return relevance
    relevance[:, 0], of_mean = of_inputs[0].chunk(2, dim=1)  # (batch_size, hidden_size) each
    # a mean is a sum of summands; the published code shares out average pooling in the same way
    patches = tokens[:, backbone.num_prefix_tokens :]
    relevance[:, backbone.num_prefix_tokens :] = share(patches, patches.sum(dim=1, keepdim=True), of_mean[:, None])
    return relevance


def _through_mlp(trace: _Trace, layer: Any, relevance: Tensor, joint: bool) -> Tensor:
    """Return the relevance of the tokens between attention and MLP, of that of the layer's result."""
    backbone = backbone_of(trace.model)
    scales = _factors(backbone.scale_of_attention(layer)), _factors(backbone.scale_of_mlp(layer))
    added = trace.result_of(layer.mlp.fc2) * scales[1]  # the branch of the second skip connection
    # the tokens after the first skip connection, (batch_size, num_tokens, hidden_size)
    middle = trace.input_of(layer) + trace.result_of(layer.attention.o_proj) * scales[0]
    skipped, relevance = addition_rule(middle, added, relevance, rescale=joint)
    relevance = _through_linear(trace, layer.mlp.fc2, relevance, joint, scales[1])
    # the activation between them passes relevance on unchanged
    relevance = _through_linear(trace, layer.mlp.fc1, relevance, joint)
    return copy_rule(middle, skipped, relevance)


def _through_attention(trace: _Trace, index: int, layer: Any, relevance: Tensor, joint: bool) -> tuple[Tensor, Tensor]:
    """Return the relevance of the attention weights and of the layer's input, of that of the tokens behind them."""
    attention, hidden_states = layer.attention, trace.input_of(layer)
    scale = _factors(backbone_of(trace.model).scale_of_attention(layer))
    added = trace.result_of(attention.o_proj) * scale
    skipped, relevance = addition_rule(hidden_states, added, relevance, rescale=joint)
    weights = trace.attentions[index]
    query, key, value = (
        _split_heads(trace.result_of(projection), weights.shape[1])
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    relevance = _split_heads(_through_linear(trace, attention.o_proj, relevance, joint, scale), weights.shape[1])
    of_weights, of_value = product_rule(weights, value, relevance)  # attention is `weights @ value` per head
    of_query, of_key = product_rule(query, key.transpose(-1, -2), of_weights)  # through softmax and scaling unchanged
    parts = (
        (attention.q_proj, of_query),
        (attention.k_proj, of_key.transpose(-1, -2)),  # the product took the transposed key
        (attention.v_proj, of_value),
    )
    branches = [_through_linear(trace, projection, _join_heads(part), joint) for projection, part in parts]
    return of_weights, copy_rule(hidden_states, skipped, torch.stack(branches).sum(dim=0))


def _factors(scale: Any) -> Tensor | float:
    """Return the factors of a LayerScale, `(hidden_size,)`, or 1 without one."""
    return 1.0 if scale is None else scale.lambda1.detach()


def _through_linear(trace: _Trace, module: Any, relevance: Tensor, joint: bool, scale: Tensor | float = 1.0) -> Tensor:
    """Return the relevance of what a linear layer got; one that is scaled afterwards is one layer with its scale."""
    weight = module.weight.detach()
    if isinstance(scale, Tensor):
        weight = weight * scale[:, None]  # (out_features, in_features), each row by the factor of its result
    return linear_rule(trace.input_of(module), weight, relevance, joint)


def _split_heads(values: Tensor, num_heads: int) -> Tensor:
    # (batch_size, num_tokens, hidden_size) -> (batch_size, num_heads, num_tokens, head_dim)
    return values.unflatten(2, (num_heads, -1)).transpose(1, 2)


def _join_heads(values: Tensor) -> Tensor:
    # (batch_size, num_heads, num_tokens, head_dim) -> (batch_size, num_tokens, hidden_size)
    return values.transpose(1, 2).flatten(2)
