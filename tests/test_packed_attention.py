# SPDX-License-Identifier: Apache-2.0
"""Each way through packed attention is the attention of every image alone."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from transformers_ice import IceDeiTConfig, IceDeiTForImageClassification
from transformers_ice.ice_deit import packed_attention
from transformers_ice.ice_deit.modeling_ice_deit import IceDeiTDropPath
from transformers_ice.ice_deit.packed_attention import (
    Packing,
    attend_by_products,
    attend_packed,
    choose_way,
    prefers_products,
)


HEADS, HEAD_DIM = 2, 8
# float32: the ways sum in other orders
TOLERANCE = {"atol": 1e-6, "rtol": 0}


def plain(query, key, value, mask, **kwargs):
    return scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2), None


def config_of(implementation: str = "sdpa") -> IceDeiTConfig:
    config = IceDeiTConfig(hidden_size=HEADS * HEAD_DIM, num_attention_heads=HEADS)
    config._attn_implementation = implementation
    return config


@pytest.fixture(params=range(3))
def packed(request) -> SimpleNamespace:
    """A packed batch, and what each of its images gives alone; the third has one token."""
    generator = torch.Generator().manual_seed(request.param)
    present = torch.rand(4, 9, generator=generator) < 0.6
    present[:, 0] = True
    present[2, 1:] = False
    packing = Packing.of(present)
    states = torch.randn(3, 1, HEADS, sum(packing.lengths), HEAD_DIM, generator=generator)
    images, start = [], 0
    for length in packing.lengths:
        images.append(plain(*states[:, :, :, start : start + length], None)[0])
        start += length
    return SimpleNamespace(states=states, packing=packing, expected=torch.cat(images, dim=1))


def test_images_are_attended_one_by_one_on_a_cpu(packed):
    attended = attend_packed(plain, *packed.states, packed.packing, config_of())
    torch.testing.assert_close(attended, packed.expected, **TOLERANCE)


LENGTHS = {"one token each": [1, 1, 1], "one token": [1], "equal": [7, 7], "very unequal": [1, 300, 2, 90, 1]}


@pytest.mark.parametrize("way", ["products", "kernel", "padded"])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_every_way_attends_as_each_image_alone(lengths, way):
    present = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    packing = Packing.captured(present) if way == "padded" else Packing.of(present)
    states = torch.randn(3, 1, HEADS, len(packing.places), HEAD_DIM, generator=torch.Generator().manual_seed(0))
    tokens = states[:, :, :, : sum(lengths)]
    images = [plain(*image, None)[0] for image in zip(*(part.split(lengths, 2) for part in tokens), strict=True)]
    attended = attend_packed(plain, *states, packing, config_of(), way)
    torch.testing.assert_close(attended[:, : sum(lengths)], torch.cat(images, dim=1), **TOLERANCE)


@pytest.mark.parametrize("lengths", [[5, 9, 1], [120, 90]], ids=["few tokens", "many tokens"])
def test_products_in_bfloat16_are_as_exact_as_its_numbers(lengths):
    packing = Packing.of(torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1))
    states = torch.randn(3, 1, HEADS, sum(lengths), HEAD_DIM, generator=torch.Generator().manual_seed(0)).bfloat16()
    attended = attend_packed(plain, *states, packing, config_of(), "products")
    assert attended.dtype == torch.bfloat16
    images = [
        plain(*image, None)[0] for image in zip(*(part.float().split(lengths, 2) for part in states), strict=True)
    ]
    torch.testing.assert_close(attended.float(), torch.cat(images, dim=1), atol=0.01, rtol=0.01)


def test_the_way_is_chosen_by_what_is_known_and_by_the_size():
    def way(lengths, implementation="sdpa", dtype=torch.float32, attend=plain, is_captured=False):
        present = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
        packing = Packing.captured(present) if is_captured else Packing.of(present)
        query = torch.zeros(1, HEADS, sum(lengths), HEAD_DIM, dtype=dtype)
        return choose_way(attend, query, packing, config_of(implementation))

    assert way([1, 191]) == "products"  # 96 tokens on average
    assert way([2, 191]) == "kernel"
    assert way([3, 4], is_captured=True) == "padded"
    assert way([3, 4], "flash_attention_2") == "flash"
    assert way([3, 4], "eager") == "kernel"
    assert way([3, 4], dtype=torch.bfloat16) == "products"
    assert way([2, 191], dtype=torch.bfloat16) == "products"
    assert way([3, 4], dtype=torch.float64) == "kernel"
    assert way([3, 4], attend=partial(plain, dropout=0.1)) == "kernel"
    assert way([3, 4], attend=partial(plain, dropout=0.0)) == "products"


@pytest.mark.parametrize("most_scores", [1, 2 * 9**2 * HEADS, 2**21], ids=["one image", "two images", "all"])
def test_products_attend_alike_for_any_number_of_images_at_once(monkeypatch, most_scores):
    monkeypatch.setattr(packed_attention, "_MOST_SCORES", most_scores)
    states = torch.randn(3, 5, HEADS, 9, HEAD_DIM, generator=torch.Generator().manual_seed(0))
    attended = attend_by_products(*states, 0.3)
    expected = scaled_dot_product_attention(*states, scale=0.3).transpose(1, 2)
    torch.testing.assert_close(attended, expected, **TOLERANCE)


def test_products_are_for_inference_in_bfloat16_and_for_plain_attention():
    def prefers(dtype=torch.bfloat16, implementation="sdpa", dropout=0.0, requires_grad=False):
        query = torch.zeros(1, HEADS, 9, HEAD_DIM, dtype=dtype, requires_grad=requires_grad)
        return prefers_products(query, config_of(implementation), dropout)

    assert prefers()
    assert not prefers(torch.float32)
    assert not prefers(torch.float64)
    assert not prefers(implementation="eager")
    assert not prefers(dropout=0.1)
    assert not prefers(requires_grad=True)


def test_a_model_in_bfloat16_attends_as_in_float32_up_to_its_rounding():
    torch.manual_seed(0)
    config = IceDeiTConfig(
        hidden_size=32, num_attention_heads=2, num_hidden_layers=2, intermediate_size=48, image_size=96, patch_size=8
    )
    model = IceDeiTForImageClassification(config).eval()
    pixel_values = torch.randn(3, 3, 96, 96)
    with torch.no_grad():
        expected = model(pixel_values).patch_logits
        model.to(torch.bfloat16)
        by_products = model(pixel_values.bfloat16()).patch_logits
        model.set_attn_implementation("eager")
        by_eager = model(pixel_values.bfloat16()).patch_logits
    error = (by_products.float() - expected).abs().mean()
    assert 0 < error < 1.2 * (by_eager.float() - expected).abs().mean()


def test_a_captured_graph_attends_within_images_and_asks_for_no_length(packed):
    captured, total = Packing.captured(packed.packing.present), packed.states.shape[3]
    spare = len(captured.places) - total
    states = torch.nn.functional.pad(packed.states, (0, 0, 0, spare), value=9.0)
    attended = attend_packed(plain, *states, captured, config_of())
    torch.testing.assert_close(attended[:, :total], packed.expected, **TOLERANCE)


def attend_by_boundaries(query, key, value, boundaries, longest):
    """Attend between boundaries as variable-length kernels define it, `(total_tokens, num_heads, head_dim)`."""
    assert boundaries.dtype == torch.int32
    assert longest == boundaries.diff().max().item()
    spans = zip(boundaries[:-1].tolist(), boundaries[1:].tolist(), strict=True)
    images = [[states[start:end].transpose(0, 1) for states in (query, key, value)] for start, end in spans]
    return torch.cat([scaled_dot_product_attention(*image).transpose(0, 1) for image in images])


def test_flash_attention_is_told_where_images_end(packed):
    def flash(query, key, value, mask, cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k):
        assert mask is None
        assert torch.equal(cu_seq_lens_q, cu_seq_lens_k)
        assert max_length_q == max_length_k
        states = [values[0].transpose(0, 1) for values in (query, key, value)]
        return attend_by_boundaries(*states, cu_seq_lens_q, max_length_q).unsqueeze(0), None

    attended = attend_packed(flash, *packed.states, packed.packing, config_of("flash_attention_2"))
    torch.testing.assert_close(attended, packed.expected, **TOLERANCE)


def test_the_kernel_of_torch_is_told_where_images_end(packed, monkeypatch):
    def varlen(query, key, value, boundaries, key_boundaries, longest, longest_key):
        assert torch.equal(boundaries, key_boundaries)
        assert longest == longest_key
        assert all(states.is_contiguous() for states in (query, key, value))
        return attend_by_boundaries(query, key, value, boundaries, longest)

    monkeypatch.setattr(packed_attention, "varlen_attn", varlen)
    monkeypatch.setattr(packed_attention, "_fits_varlen", lambda *_: True)
    attended = attend_packed(plain, *packed.states, packed.packing, config_of())
    torch.testing.assert_close(attended, packed.expected, **TOLERANCE)


def test_the_kernel_of_torch_is_for_cuda_alone():
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert not packed_attention._fits_varlen(torch.zeros(1, HEADS, 3, HEAD_DIM, dtype=dtype), config_of(), plain)


def test_packed_images_drop_as_wholes():
    packing = Packing.of(torch.rand(40, 6, generator=torch.Generator().manual_seed(0)) < 0.7)
    branch = torch.ones(1, sum(packing.lengths), 3)
    dropped = IceDeiTDropPath(0.5).train()(branch, packing)[0]
    images = dropped.split(packing.lengths)
    assert {image.unique().numel() for image in images if len(image)} == {1}
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
