# SPDX-License-Identifier: Apache-2.0
"""Who stays and the way back, by hand and against slow loops; extreme scores included."""

from __future__ import annotations

import math

import pytest
import torch

from transformers_ice.ice_deit.packed_attention import Packing
from transformers_ice.ice_deit.token_pruning import (
    add_prefix,
    background_margin,
    gate_loss,
    gather_tokens,
    head_output_to_patch_logits,
    indices_to_mask,
    keep_foreground,
    num_kept,
    split_by_rank,
)


INF, NAN = math.inf, math.nan


def keep_by_loop(margin: list[float], present: list[bool], max_margin: float) -> list[bool]:
    keep = [there and not value > max_margin for value, there in zip(margin, present, strict=True)]
    if not any(keep):
        places = [place for place, there in enumerate(present) if there]
        keep[min(places, key=lambda place: margin[place])] = True
    return keep


@pytest.mark.parametrize("seed", range(8))
def test_kept_patches_equal_those_of_a_loop(seed):
    generator = torch.Generator().manual_seed(seed)
    margin = torch.randn(6, 4, generator=generator)
    present = torch.rand(6, 4, generator=generator) < 0.6
    present[:, seed % 4] = True
    for max_margin in (-INF, -1.0, 0.0, 0.5, INF):
        rows = zip(margin.tolist(), present.tolist(), strict=True)
        expected = [keep_by_loop(*row, max_margin) for row in rows]
        assert keep_foreground(margin, present, max_margin).tolist() == expected


@pytest.mark.parametrize(
    ("margin", "present", "expected"),
    [
        ([2.0, 2.0, 2.0, 2.0], [0, 1, 1, 1], [0, 1, 0, 0]),  # equals: the first that is there
        ([0.0, 0.0, 1.0, 0.0], [1, 1, 1, 1], [1, 1, 0, 1]),  # at the margin itself a patch stays
        ([-INF, 1.0, -9.0, 2.0], [0, 1, 0, 1], [0, 1, 0, 0]),  # who is not there is not asked
        ([NAN, 3.0, 3.0, 2.0], [0, 1, 1, 1], [0, 0, 0, 1]),
        ([3.0, NAN, 3.0, 2.0], [1, 1, 1, 1], [0, 1, 0, 0]),  # what has no score is not background
        ([0.0, INF, INF, 5.0], [0, 1, 1, 1], [0, 0, 0, 1]),
        ([0.0, INF, INF, 5.0], [0, 1, 1, 0], [0, 1, 0, 0]),  # nobody who left comes back
    ],
)
def test_kept_patches_by_hand(margin, present, expected):
    keep = keep_foreground(torch.tensor([margin]), torch.tensor([present]).bool(), 0.0)
    assert keep.int().tolist() == [expected]


@pytest.mark.parametrize("num_labels", [1, 7, 1000])
def test_the_softmax_of_a_gate_is_its_sigmoid_and_equal_shares(num_labels):
    gate = torch.linspace(-6, 6, 8, dtype=torch.float64).reshape(2, 4, 1)
    shares = head_output_to_patch_logits(gate, num_labels).softmax(dim=-1)
    torch.testing.assert_close(shares[..., -1:], gate.sigmoid())
    torch.testing.assert_close(shares[..., :-1], ((1 - gate.sigmoid()) / num_labels).expand(-1, -1, num_labels))
    # the alternative of a gate is "no background": the log-sum-exp of its classes
    classes = head_output_to_patch_logits(gate, num_labels)[..., :-1].logsumexp(dim=-1)
    torch.testing.assert_close(gate.squeeze(-1) - classes, background_margin(gate))


def test_the_margin_of_patch_logits_is_background_minus_the_best_class():
    logits = torch.tensor([[[1.0, 4.0, 2.0], [3.0, -1.0, 5.0]], [[0.0, 0.0, 0.0], [-2.0, -3.0, -4.0]]])
    assert background_margin(logits).tolist() == [[-2.0, 2.0], [0.0, -2.0]]
    assert head_output_to_patch_logits(logits, num_labels=2) is logits


@pytest.mark.parametrize(
    ("rate", "entered", "kept"), [(0.7, 196, 138), (0.7, 138, 97), (0.5, 7, 4), (1.0, 9, 9), (1e-9, 64, 1)]
)
def test_numbers_are_rounded_up(rate, entered, kept):
    assert num_kept(rate, entered) == kept


@pytest.mark.parametrize("count", range(6))
def test_best_and_rest_are_all_places_once_and_in_order(count):
    scores = torch.tensor([[1.0, 5.0, 1.0, 2.0, 5.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    best, rest = split_by_rank(scores, count)
    assert best.shape == (2, count)
    for row in range(2):
        assert sorted(best[row].tolist() + rest[row].tolist()) == list(range(5))
        assert best[row].tolist() == sorted(best[row].tolist())
        assert rest[row].tolist() == sorted(rest[row].tolist())
        kept = scores[row][best[row]].tolist()
        assert sorted(kept, reverse=True) == sorted(scores[row].tolist(), reverse=True)[:count]


def test_indices_masks_and_prefixes_by_hand():
    values = torch.arange(16).reshape(2, 4, 2)
    indices = torch.tensor([[3, 0], [1, 2]])
    assert gather_tokens(values, indices).tolist() == [[[6, 7], [0, 1]], [[10, 11], [12, 13]]]
    mask = indices_to_mask(indices, 4)
    assert mask.int().tolist() == [[1, 0, 0, 1], [0, 1, 1, 0]]
    assert add_prefix(mask, 2).int().tolist() == [[1, 1, 1, 0, 0, 1], [1, 1, 0, 1, 1, 0]]


@pytest.mark.parametrize("seed", range(6))
def test_packed_tokens_lie_image_by_image_and_find_the_way_back(seed):
    generator = torch.Generator().manual_seed(seed)
    present = torch.rand(4, 5, generator=generator) < torch.rand(4, 1, generator=generator)
    values = torch.randn(4, 5, 6, generator=generator)
    packing = Packing.of(present)
    rows = [values[image, place] for image in range(4) for place in range(5) if present[image, place]]
    packed = packing.pack(values)
    assert torch.equal(packed, torch.stack(rows) if rows else values.new_zeros(0, 6))
    assert packing.image_of_token.tolist() == present.nonzero()[:, 0].tolist()
    if rows:
        assert torch.equal(packing.unpack(packed)[present], values[present])


def test_a_packing_is_rectangular_if_it_knows_equal_lengths():
    square = torch.tensor([[True, False, True], [False, True, True]])
    ragged = torch.tensor([[True, False, True], [False, True, False]])
    assert Packing.of(square).is_rectangular
    assert not Packing.of(ragged).is_rectangular
    assert not Packing.captured(square).is_rectangular


def test_the_gate_loss_weights_images_equally_and_skips_pruned_patches():
    generator = torch.Generator().manual_seed(0)
    gates = torch.randn(3, 4, 1, generator=generator)
    present = torch.tensor([[1, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 1]]).bool()
    background = torch.rand(3, 4, generator=generator) < 0.5
    means = []
    for image in range(3):
        terms = []
        for place in present[image].nonzero().flatten().tolist():
            share = 1 / (1 + math.exp(-gates[image, place].item()))
            terms.append(-math.log(share if background[image, place] else 1 - share))
        means.append(sum(terms) / len(terms))
    loss = gate_loss(gates, present, background)
    assert loss.item() == pytest.approx(sum(means) / 3, abs=1e-6)
    assert gate_loss(torch.where(present.unsqueeze(-1), gates, 9.0), present, background) == loss
    assert gate_loss(gates.to(torch.bfloat16), present, background).dtype == torch.float32


def test_a_gate_is_a_patch_with_one_alternative():
    gate = torch.tensor([[2.0], [-1.0]])
    logits = head_output_to_patch_logits(gate, num_labels=5)
    torch.testing.assert_close(logits.softmax(-1)[:, -1:], gate.sigmoid())
    assert background_margin(gate).tolist() == [2.0, -1.0]
    assert background_margin(torch.tensor([1.0, 3.0, 2.0])).item() == -1.0
    assert torch.equal(head_output_to_patch_logits(logits, num_labels=5), logits)


def test_at_least_one_patch_is_kept_the_least_background_one():
    margin = torch.tensor([[3.0, 1.0, 2.0, -5.0], [0.0, -1.0, 4.0, 0.5]])
    present = torch.tensor([[True, True, True, False], [True, True, True, True]])
    assert keep_foreground(margin, present, 0.0).int().tolist() == [[0, 1, 0, 0], [1, 1, 0, 0]]


def test_kept_numbers_are_those_of_evit():
    assert [num_kept(0.7, number) for number in (196, 138, 97)] == [138, 97, 68]


def test_ranks_split_places_in_order():
    best, rest = split_by_rank(torch.tensor([[0.1, 0.9, 0.5, 0.7]]), 2)
    assert best.tolist() == [[1, 3]]
    assert rest.tolist() == [[0, 2]]


@pytest.mark.parametrize("seed", range(3))
def test_packing_finds_the_way_back(seed):
    generator = torch.Generator().manual_seed(seed)
    present = torch.rand(3, 6, generator=generator) < 0.6
    values = torch.rand(3, 6, 2, generator=generator)
    packing = Packing.of(present)
    assert packing.lengths == tuple(present.sum(1).tolist())
    torch.testing.assert_close(packing.unpack(packing.pack(values))[present], values[present])


@pytest.mark.parametrize("seed", range(6))
def test_a_captured_packing_pads_images_and_finds_the_way_back(seed):
    generator = torch.Generator().manual_seed(seed)
    present = torch.rand(3, 20, generator=generator) < torch.rand(3, 1, generator=generator)
    present[:, 0] = True
    values = torch.rand(3, 20, 2, generator=generator)
    packing, lengths = Packing.captured(present), present.sum(1)
    packed, total = packing.pack(values), int(lengths.sum())
    assert torch.equal(packed[:total], values[present])
    assert len(packed) == -(-total // 8) * 8
    assert torch.equal(packing.unpack(packed)[present], values[present])
    padded = packing.padded.pad(packed)
    assert padded.shape == (3, -(-int(lengths.max()) // 8) * 8, 2)
    assert torch.equal(padded[packing.padded.present], values[present])
    assert packing.padded.present.sum(1).tolist() == lengths.tolist()
    assert torch.equal(packing.padded.pack(padded)[:total], packed[:total])


def test_the_gate_loss_is_that_of_a_loop():
    gates, present = torch.tensor([[0.3, -2.0, 1.0], [0.5, 0.1, -0.2]]), torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
    background = torch.tensor([[1, 0, 1], [0, 0, 1]]).bool()
    means = []
    for row in range(2):
        terms = [
            -math.log(torch.sigmoid(gate if is_background else -gate))
            for gate, is_present, is_background in zip(gates[row], present[row], background[row], strict=True)
            if is_present
        ]
        means.append(sum(terms) / len(terms))
    assert gate_loss(gates.unsqueeze(-1), present, background).item() == pytest.approx(sum(means) / 2, abs=1e-6)
