# SPDX-License-Identifier: Apache-2.0
"""Pruning by any rates, margins, layers and batches: counts, prefix tokens, positions, layouts, order of the batch."""

from __future__ import annotations

import math

import torch
from hypothesis import example, given
from hypothesis import strategies as st

from transformers_ice import IceDeiTConfig, IceDeiTForImageClassification
from transformers_ice.ice_deit.packed_attention import Packing
from transformers_ice.ice_deit.token_pruning import STRATEGIES, keep_foreground, num_kept, split_by_rank


LAYERS = 4
RATES = st.one_of(st.floats(1e-9, 1), st.sampled_from([1e-9, 0.5, 1.0, 1 - 2**-53]))
MARGINS = st.one_of(st.floats(-1, 1), st.sampled_from([-math.inf, math.inf, 0.0, 0, 1e300, -1e300]))


@st.composite
def models(draw):
    """A model with weights in float64, far from zero unless its heads are new, and images."""
    strategy = draw(st.sampled_from(sorted(STRATEGIES)))
    layers = sorted(draw(st.sets(st.integers(0, LAYERS - 1), min_size=1)))
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    config = IceDeiTConfig(
        hidden_size=16,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=[4 * rows, 4 * columns],
        patch_size=4,
        num_labels=draw(st.integers(1, 4)),
        use_distillation_token=draw(st.booleans()),
        num_register_tokens=draw(st.sampled_from([0, 0, 1, 4])),
        pruning_strategy=strategy,
        pruning_layers=layers,
        keep_rates=[draw(RATES) for _ in layers],
        background_margin=draw(MARGINS),
        pruning_head=draw(st.sampled_from(["gate", "patch"])),
        fuse_pruned_tokens=strategy == "attentiveness" and draw(st.booleans()),
    )
    torch.manual_seed(draw(st.integers(0, 99)))
    model = IceDeiTForImageClassification(config).double().eval()
    has_new_heads = draw(st.booleans())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not (has_new_heads and "pruning_heads" in name):
                parameter.add_(0.3 * torch.randn_like(parameter))
    # another grid than that of the configuration, too
    height, width = (4 * draw(st.sampled_from([side, 3])) for side in (rows, columns))
    images = torch.randn(draw(st.integers(1, 4)), 3, height, width, dtype=torch.float64)
    return model, images * draw(st.sampled_from([1.0, 0.0, 10.0]))


@torch.no_grad()
def outputs_of(model, images, execution="packed"):
    model.config.pruning_execution = execution
    outputs = model.deit(images)
    return outputs.patch_exit_layer, outputs.patch_logits, outputs.last_hidden_state


def assert_same(outputs, expected):
    assert torch.equal(outputs[0], expected[0])
    for values, wanted in zip(outputs[1:], expected[1:], strict=True):
        torch.testing.assert_close(values, wanted, atol=1e-5, rtol=0)


@given(models())
def test_counts_add_up_and_prefix_tokens_are_kept(case):
    model, images = case
    config = model.config
    exits, logits, states = outputs_of(model, images)
    num_images, num_patches = exits.shape
    assert exits.shape == logits.shape[:2] == (len(images), images.shape[2] * images.shape[3] // 16)
    assert {*exits.flatten().tolist()} <= {*config.pruning_schedule, LAYERS}
    assert logits.isfinite().all()
    kept = exits == LAYERS
    prefix, patches = states.split([config.num_prefix_tokens, num_patches], dim=1)
    assert prefix.abs().sum(dim=2).min() > 0
    assert torch.equal(patches.abs().sum(dim=2) > 0, kept)
    if config.pruning_strategy == "background":
        assert kept.any(dim=1).all()
        if config.background_margin == math.inf:
            assert kept.all()
    elif not config.fuse_pruned_tokens:
        present = num_patches
        for layer, rate in config.pruning_schedule.items():
            left = num_kept(rate, present)
            assert ((exits == layer).sum(dim=1) == present - left).all()
            present = left
        assert (kept.sum(dim=1) == present).all()
    counts = STRATEGIES[config.pruning_strategy].count_tokens(config, exits.numpy())
    assert counts.tokens_per_layer.shape == (num_images, LAYERS)
    assert (counts.tokens_per_layer >= config.num_prefix_tokens + 1).all()
    assert (counts.mlp_tokens <= counts.tokens_per_layer).all()


@given(models())
def test_packed_equals_masked(case):
    model, images = case
    assert_same(outputs_of(model, images), outputs_of(model, images, "masked"))


@given(models(), st.randoms(use_true_random=False))
def test_order_and_size_of_the_batch_change_nothing(case, random):
    model, images = case
    whole = outputs_of(model, images)
    order = random.sample(range(len(images)), len(images))
    assert_same(outputs_of(model, images[order]), [values[order] for values in whole])
    for index in range(len(images)):
        assert_same(outputs_of(model, images[index : index + 1]), [values[index : index + 1] for values in whole])


SCORES = st.one_of(st.floats(-2, 2, width=32), st.sampled_from([0.0, math.inf, -math.inf]))


@given(st.data(), st.integers(1, 4), st.integers(1, 9))
def test_ranks_split_places_into_two_distinct_parts(data, num_images, num_tokens):
    scores = torch.tensor(data.draw(rows_of(SCORES, num_images, num_tokens)))
    count = data.draw(st.integers(0, num_tokens))
    best, rest = split_by_rank(scores, count)
    assert best.shape == (num_images, count)
    places = torch.cat((best, rest), dim=1).sort(dim=1).values
    assert torch.equal(places, torch.arange(num_tokens).expand(num_images, -1))
    for row, own, others in zip(scores, best, rest, strict=True):
        assert own.tolist() == sorted(own.tolist())
        if count and len(others):
            assert row[own].min() >= row[others].max()


def rows_of(elements, num_images, num_tokens):
    return st.lists(
        st.lists(elements, min_size=num_tokens, max_size=num_tokens), min_size=num_images, max_size=num_images
    )


@given(st.data(), st.integers(1, 3), st.integers(1, 6), MARGINS)
def test_foreground_is_kept_and_at_least_the_nearest_patch(data, num_images, num_tokens, most):
    margin = torch.tensor(data.draw(rows_of(SCORES, num_images, num_tokens)))
    present = torch.tensor(data.draw(rows_of(st.booleans(), num_images, num_tokens)))
    present[:, data.draw(st.integers(0, num_tokens - 1))] = True
    keep = keep_foreground(margin, present, most)
    assert not (keep & ~present).any()
    assert (keep | ~present | (margin > most)).all()
    for row, own, is_kept in zip(margin, present, keep, strict=True):
        assert is_kept.any()
        if not (own & (row <= most)).any():
            assert is_kept.sum() == 1
            assert row[is_kept].item() == row[own].min()


@given(st.data(), st.integers(1, 4), st.integers(1, 6))
@example(None, 1, 1)
def test_packing_and_unpacking_are_inverse(data, num_images, num_places):
    present = [[True]] if data is None else data.draw(rows_of(st.booleans(), num_images, num_places))
    present = torch.tensor(present)
    values = torch.randn(*present.shape, 2)
    packing = Packing.of(present)
    packed = packing.pack(values)
    assert packed.shape == (present.sum(), 2)
    if len(packed):
        assert torch.equal(packing.unpack(packed)[present], values[present])
    assert packing.image_of_token.tolist() == present.nonzero()[:, 0].tolist()
