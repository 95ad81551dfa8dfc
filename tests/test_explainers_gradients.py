# SPDX-License-Identifier: Apache-2.0
"""Baselines that weigh attention by gradients, by definition: slow loops, and gradients found along another path."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from explainer_models import CLASSIFIERS, FAMILIES, explained, layers_of, pixels, tiny
from transformers import AttentionInterface

from transformers_ice.explainers import explain


HEADS, PATCHES, TARGETS = 4, 16, (3, 1)
# The attention of the package is float32 after softmax, and so are the maps.
CLOSE = {"atol": 1e-5, "rtol": 1e-4}


@dataclass
class Differentiated:
    """Attention weights and gradients by layer, `(layers, batch, heads, tokens, tokens)`, float64."""

    weights: torch.Tensor
    gradients: torch.Tensor
    gradients_by_layer_score: torch.Tensor


def differentiate(model, images, targets):
    """Differentiate by zeros that are added to the attention weights, in an attention function of its own."""
    encoder, offsets, seen = model.base_model, [], []

    def attention_with_offset(module, query, key, value, attention_mask, scaling, dropout=0.0, **_):
        weights = (query @ key.transpose(-1, -2) * scaling).softmax(dim=-1)
        offset = torch.zeros_like(weights, requires_grad=True)
        offsets.append(offset)
        seen.append(weights.detach())
        return ((weights + offset) @ value).transpose(1, 2), None

    AttentionInterface.register("with_offset_for_tests", attention_with_offset)
    model.set_attn_implementation("with_offset_for_tests")
    layers = []
    handles = [layer.register_forward_hook(lambda m, a, result: layers.append(result)) for layer in layers_of(model)]
    scores = explained(model, images)[range(len(images)), targets]
    for handle in handles:
        handle.remove()
    gradients = torch.autograd.grad(scores.sum(), offsets, retain_graph=True)
    by_layer = []
    for hidden_states, offset in zip(layers, offsets, strict=True):
        logits = classify(model, encoder.layernorm(hidden_states))
        score = logits[range(len(images)), targets].sum()
        by_layer.append(torch.autograd.grad(score, offset, retain_graph=True)[0])
    return Differentiated(torch.stack(seen), torch.stack(gradients), torch.stack(by_layer))


def classify(model, tokens):
    """Return the logits of the prefix tokens, spelled out for each class of transformers."""
    if hasattr(model.config, "layerscale_value"):  # DINOv2: [CLS] and the mean of the patches
        patches = tokens[:, 1 + getattr(model.config, "num_register_tokens", 0) :]
        return model.classifier(torch.cat((tokens[:, 0], patches.mean(dim=1)), dim=1))
    if hasattr(model, "classify_prefix"):
        return model.classify_prefix(tokens)
    if hasattr(model, "cls_classifier"):
        return (model.cls_classifier(tokens[:, 0]) + model.distillation_classifier(tokens[:, 1])) / 2
    return model.classifier(tokens[:, 0])


@pytest.fixture(scope="module", params=CLASSIFIERS)
def case(request):
    """Return a model in float64, its images, the number of prefix tokens, and what its attention does."""
    model, images = tiny(request.param).double(), pixels().double()
    found = differentiate(tiny(request.param).double(), images, list(TARGETS))
    assert found.gradients.abs().amax() > 1e-3
    return model, images, FAMILIES[request.param][2], found


def test_grad_cam_by_definition(case):
    model, images, prefix, found = case
    relevance = explain(model, images, method="grad_cam", target=TARGETS)
    for b in range(2):
        expected = torch.zeros(PATCHES, dtype=torch.float64)
        for head in range(HEADS):
            row = found.weights[-1, b, head, 0, prefix:]
            weight = sum(found.gradients[-1, b, head, 0, prefix + n] for n in range(PATCHES)) / PATCHES
            expected += row * weight / HEADS
        expected = expected.clamp(min=0)
        expected -= expected.min()
        expected /= expected.max() if expected.max() > 0 else 1
        torch.testing.assert_close(relevance[b].double(), expected.view(4, 4), **CLOSE)


def test_generic_attention_by_definition(case):
    model, images, prefix, found = case
    relevance = explain(model, images, method="generic_attention", target=TARGETS)
    for b in range(2):
        total = torch.eye(PATCHES + prefix, dtype=torch.float64)
        for weights, gradients in zip(found.weights[:, b], found.gradients[:, b], strict=True):
            positive = sum((weights[head] * gradients[head]).clamp(min=0) for head in range(HEADS)) / HEADS
            total = total + positive @ total
        torch.testing.assert_close(relevance[b].double(), total[0, prefix:].view(4, 4), **CLOSE)


def test_legrad_by_definition(case):
    model, images, prefix, found = case
    relevance = explain(model, images, method="legrad", target=TARGETS)
    layers, tokens = len(found.weights), PATCHES + prefix
    for b in range(2):
        for n in range(PATCHES):
            column = [
                found.gradients_by_layer_score[layer, b, head, query, prefix + n].clamp(min=0)
                for layer in range(layers)
                for head in range(HEADS)
                for query in range(tokens)
            ]
            expected = sum(column) / (layers * HEADS * tokens)
            torch.testing.assert_close(relevance[b, n // 4, n % 4].double(), expected, **CLOSE)


def test_gradient_found_along_the_other_path_is_a_difference_quotient():
    model, images = tiny("vit", num_hidden_layers=1).double(), pixels(1).double()
    found = differentiate(model, images, [3])
    model.set_attn_implementation("eager")
    step = 1e-4  # the error of central differences is its square

    def score(change):
        def attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **_):
            weights = (query @ key.transpose(-1, -2) * scaling).softmax(dim=-1)
            weights[0, 2, 0, 5] += change
            return (weights @ value).transpose(1, 2), None

        AttentionInterface.register("with_change_for_tests", attention)
        model.set_attn_implementation("with_change_for_tests")
        with torch.no_grad():
            return model(images).logits[0, 3]

    quotient = (score(step) - score(-step)) / (2 * step)
    torch.testing.assert_close(found.gradients[0, 0, 2, 0, 5], quotient, atol=1e-7, rtol=1e-5)


def test_grad_cam_is_zero_where_no_patch_is_relevant():
    model = tiny("vit")
    torch.nn.init.zeros_(model.classifier.weight)  # no gradient anywhere
    assert torch.equal(explain(model, pixels(), method="grad_cam"), torch.zeros(2, 4, 4))


@pytest.mark.parametrize("start_layer", [0, 1, 2])
def test_transformer_attribution_starts_where_it_is_told(start_layer):
    model, images = tiny("vit"), pixels()
    default = explain(model, images, method="transformer_attribution")
    relevance = explain(model, images, method="transformer_attribution", start_layer=start_layer)
    assert torch.equal(relevance, default) == (start_layer == 1)
