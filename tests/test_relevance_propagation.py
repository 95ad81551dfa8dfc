# SPDX-License-Identifier: Apache-2.0
"""Relevance rules in a slower form that follows their definitions entry by entry, float64; and what they conserve."""

from __future__ import annotations

import pytest
import torch
from explainer_models import SOURCE_FAMILIES, pixels, tiny

from transformers_ice.explainers import explain
from transformers_ice.explainers.relevance_based import _trace, _walk_back
from transformers_ice.explainers.relevance_rules import (
    addition_rule,
    copy_rule,
    divide,
    linear_rule,
    pixel_rule,
    product_rule,
)


EPSILON = 1e-9
# Sums in another order, float64: 1e-9 leaves room for quotients by numbers a thousand times smaller than the terms.
CLOSE = {"atol": 1e-9, "rtol": 1e-9}


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def quotient(numerator, denominator):
    """Return a / b for numbers, 0 where b is 0, with b moved off 0 by 1e-9."""
    if denominator == 0:
        return 0.0
    return numerator / (denominator + (EPSILON if denominator > 0 else -EPSILON))


def slow_linear(x, weight, relevance, joint):
    """Apply the rule to one vector: each result's relevance goes to the products that made it, group by group."""
    result = torch.zeros_like(x)
    for j in range(len(weight)):
        products = [x[i] * weight[j, i] for i in range(len(x))]
        plus = sum(p for p, a, b in zip(products, x, weight[j], strict=True) if a > 0 and b > 0)
        minus = sum(p for p, a, b in zip(products, x, weight[j], strict=True) if a < 0 and b < 0)
        for i in range(len(x)):
            group = plus if x[i] > 0 and weight[j, i] > 0 else minus if x[i] < 0 and weight[j, i] < 0 else None
            if group is not None:
                result[i] += products[i] * quotient(relevance[j], plus + minus if joint else group)
    return result


def slow_product(left, right, relevance):
    """Apply the rule to two matrices: half of each term's share goes to each of its two factors."""
    of_left, of_right = torch.zeros_like(left), torch.zeros_like(right)
    for i in range(left.shape[0]):
        for j in range(right.shape[1]):
            terms = [left[i, k] * right[k, j] for k in range(left.shape[1])]
            for k, term in enumerate(terms):
                part = term * quotient(relevance[i, j], sum(terms)) / 2
                of_left[i, k] += part
                of_right[k, j] += part
    return of_left, of_right


def slow_addition(a, b, relevance, rescale):
    """Apply the rule to the tensors of one image."""
    flat = [[part[i] * quotient(relevance[i], a[i] + b[i]) for i in range(len(a))] for part in (a, b)]
    if rescale:
        total, sums = sum(relevance), [sum(side) for side in flat]
        shares = [quotient(abs(side), abs(sums[0]) + abs(sums[1])) * total for side in sums]
        flat = [[x * quotient(share, s) for x in side] for side, share, s in zip(flat, shares, sums, strict=True)]
    return torch.stack([torch.stack(side) for side in flat])


def test_division_is_zero_by_zero_and_keeps_the_sign_of_small_denominators():
    numerator = torch.tensor([1.0, -2.0, 3.0, 1.0], dtype=torch.float64)
    denominator = torch.tensor([0.0, 4.0, -1e-9, 1e-9], dtype=torch.float64)
    expected = torch.tensor([0.0, -0.5, -1.5e9, 0.5e9], dtype=torch.float64)
    torch.testing.assert_close(divide(numerator, denominator), expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("joint", [True, False])
def test_linear_rule_by_definition(joint):
    x, weight, relevance = random(2, 3, 5), random(4, 5, seed=1), random(2, 3, 4, seed=2)
    x[0, 0, 2] = 0
    result = linear_rule(x, weight, relevance, joint)
    for b in range(2):
        for n in range(3):
            torch.testing.assert_close(result[b, n], slow_linear(x[b, n], weight, relevance[b, n], joint), **CLOSE)


@pytest.mark.parametrize(("joint", "factor"), [(True, 1), (False, 2)])
def test_linear_rule_gives_each_group_all_relevance_or_both_together(joint, factor):
    x, weight, relevance = random(7, 40), random(6, 40, seed=1), random(7, 6, seed=2)
    result = linear_rule(x, weight, relevance, joint)
    # 1e-6: the 1e-9 in the denominators takes its share
    torch.testing.assert_close(result.sum(dim=1), factor * relevance.sum(dim=1), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("rescale", [True, False])
def test_addition_rule_by_definition_and_per_image(rescale):
    a, b, relevance = random(3, 4, 2), random(3, 4, 2, seed=1), random(3, 4, 2, seed=2)
    b[0, 0, 0] = -a[0, 0, 0]  # a sum of 0 shares nothing
    results = addition_rule(a, b, relevance, rescale)
    for i in range(3):
        expected = slow_addition(a[i].flatten(), b[i].flatten(), relevance[i].flatten(), rescale)
        for result, values in zip(results, expected, strict=True):
            torch.testing.assert_close(result[i].flatten(), values, **CLOSE)


@pytest.mark.parametrize("rescale", [True, False])
def test_addition_rule_conserves_relevance(rescale):
    a, b, relevance = random(3, 4, 2), random(3, 4, 2, seed=1), random(3, 4, 2, seed=2)
    left, right = addition_rule(a, b, relevance, rescale)
    whole = relevance.sum(dim=(1, 2))
    torch.testing.assert_close((left + right).sum(dim=(1, 2)), whole, atol=1e-6, rtol=1e-6)
    if rescale:
        share = left.sum(dim=(1, 2)) / whole
        assert ((share >= 0) & (share <= 1)).all()


def test_copy_rule_collects_what_every_use_got():
    x = random(2, 5)
    x[0, 0] = 0
    parts = [random(2, 5, seed=seed) for seed in (1, 2, 3)]
    expected = sum(parts)
    expected[0, 0] = 0
    torch.testing.assert_close(copy_rule(x, *parts), expected, atol=1e-6, rtol=1e-6)


def test_product_rule_by_definition_gives_each_side_half():
    left, right, relevance = random(2, 3, 4, 5), random(2, 3, 5, 6, seed=1), random(2, 3, 4, 6, seed=2)
    of_left, of_right = product_rule(left, right, relevance)
    for b in range(2):
        for head in range(3):
            expected = slow_product(left[b, head], right[b, head], relevance[b, head])
            torch.testing.assert_close(of_left[b, head], expected[0], **CLOSE)
            torch.testing.assert_close(of_right[b, head], expected[1], **CLOSE)
    half = relevance.sum(dim=(2, 3)) / 2
    torch.testing.assert_close(of_left.sum(dim=(2, 3)), half, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(of_right.sum(dim=(2, 3)), half, atol=1e-6, rtol=1e-6)


def test_pixel_rule_by_definition_with_the_bounds_of_each_image():
    images, weight, relevance = random(2, 3, 5, 6), random(4, 3, 2, 3, seed=1), random(2, 4, 2, 2, seed=2)
    images[1] *= 10
    result = pixel_rule(images, weight, relevance)
    expected = torch.zeros(2, 5, 6, dtype=torch.float64)
    for b in range(2):
        low, high = images[b].min(), images[b].max()
        for row in range(2):
            for column in range(2):
                patch = images[b, :, 2 * row : 2 * row + 2, 3 * column : 3 * column + 3]
                for kernel, value in zip(weight, relevance[b, :, row, column], strict=True):
                    terms = patch * kernel - low * kernel.clamp(min=0) - high * kernel.clamp(max=0)
                    part = terms * value / (terms.sum() + EPSILON)
                    expected[b, 2 * row : 2 * row + 2, 3 * column : 3 * column + 3] += part.sum(dim=0)
    torch.testing.assert_close(result, expected, **CLOSE)
    assert (result[:, 4] == 0).all()  # beyond the last whole patch
    # every term is at least 0, so nothing is lost and nothing changes its sign
    torch.testing.assert_close(result.sum(dim=(1, 2)), relevance.sum(dim=(1, 2, 3)), **CLOSE)


@pytest.mark.parametrize("family", ["vit", "deit", "deit_teacher", "ice", "ice_distilled", *SOURCE_FAMILIES])
def test_attribution_rules_conserve_the_one_that_they_start_from(family):
    trace = _trace(tiny(family).double(), pixels(3).double(), None)
    steps = list(_walk_back(trace, joint=True))
    assert [step.index for step in steps] == [2, 1, 0]
    for step in steps:
        # what stays in the values and queries is not seen here, so only the tokens sum to 1; 1e-3 after many quotients
        torch.testing.assert_close(step.hidden_states.sum(dim=(1, 2)), torch.ones(3).double(), atol=1e-3, rtol=0)
        assert step.attention.shape == (3, 4, *[step.hidden_states.shape[1]] * 2)


def slow_last_attention(model, image, label):
    """Return the relevance of the attention `(heads, tokens, tokens)` of a DeiT with one layer and two classifiers."""
    layer, values = model.deit.layers[0], {}
    for module in model.modules():
        module.register_forward_hook(lambda m, given, made: values.update({m: (given, made)}))
    outputs = model(image, output_attentions=True)
    given = {module: pair[0][0][0] for module, pair in values.items() if pair[0]}
    made = {module: pair[1][0] for module, pair in values.items()}
    final = made[model.deit.layernorm]
    halves = torch.stack((outputs.cls_logits, outputs.distillation_logits))[:, 0] / 2
    start = torch.nn.functional.one_hot(torch.tensor(label), halves.shape[1]).double()
    relevance = torch.zeros_like(final)
    heads = (model.cls_classifier.weight, model.distillation_classifier.weight)
    for row, part in enumerate(slow_addition(*halves, start, rescale=False)):
        relevance[row] = slow_linear(final[row], heads[row], part, joint=False)
    attention, mlp = layer.attention, layer.mlp
    branch, inputs = made[attention.o_proj], given[layer]
    sides = slow_addition((inputs + branch).flatten(), made[mlp.fc2].flatten(), relevance.flatten(), rescale=False)
    skipped, relevance = (side.view_as(inputs) for side in sides)
    for linear in (mlp.fc2, mlp.fc1):
        rows = zip(given[linear], relevance, strict=True)
        relevance = torch.stack([slow_linear(x, linear.weight, r, joint=False) for x, r in rows])
    sides = slow_addition(inputs.flatten(), branch.flatten(), (skipped + relevance).flatten(), rescale=False)
    rows = zip(given[attention.o_proj], sides[1].view_as(branch), strict=True)
    relevance = torch.stack([slow_linear(x, attention.o_proj.weight, r, joint=False) for x, r in rows])
    per_head = (outputs.attentions[0][0], made[attention.v_proj].chunk(2, dim=1), relevance.chunk(2, dim=1))
    return torch.stack([slow_product(*parts)[0] for parts in zip(*per_head, strict=True)])


def test_partial_lrp_of_two_heads_by_definition():
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 12}
    model = tiny("deit_teacher", **sizes, image_size=16, num_labels=3).double()
    model.set_attn_implementation("eager")
    image = pixels(1, 16, 16).double()
    relevance = explain(model, image, method="partial_lrp", target=2)[0]
    with torch.no_grad():
        expected = slow_last_attention(model, image, 2).clamp(min=0).mean(dim=0)[0, 2:].view(2, 2)
    torch.testing.assert_close(relevance.double(), expected, atol=0, rtol=1e-5)  # the map is rounded to float32


@pytest.mark.parametrize(("method", "factor"), [("partial_lrp", 1), ("full_lrp", 1), ("grad_cam", 1), ("legrad", 0.5)])
def test_second_classifier_of_zeros_takes_no_relevance(method, factor):
    single, double = tiny("deit"), tiny("deit_teacher")
    double.deit.load_state_dict(single.deit.state_dict())
    double.cls_classifier.load_state_dict(single.classifier.state_dict())
    torch.nn.init.zeros_(double.distillation_classifier.weight)
    torch.nn.init.zeros_(double.distillation_classifier.bias)
    expected, relevance = (explain(model, pixels(), method=method, target=3) for model in (single, double))
    # the logit is half of what it was: a gradient halves, a share does not, nor does a scaled map
    scale = expected.abs().max()
    torch.testing.assert_close(relevance / scale, factor * expected / scale, atol=1e-4, rtol=0)


def test_lrp_rules_double_relevance_at_each_linear_layer():
    trace = _trace(tiny("vit", num_hidden_layers=1).double(), pixels().double(), None)
    (step,) = _walk_back(trace, joint=False)
    assert (step.hidden_states.sum(dim=(1, 2)).abs() > 1.5).all()
