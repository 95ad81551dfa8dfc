# SPDX-License-Identifier: Apache-2.0
"""Tests of the starting weights for few images: what the paper says of them, on all three model families."""

import math

import pytest
import torch
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from transformers_ice import IceDeiTConfig, IceDeiTForImageClassification
from transformers_ice.training import ModelArguments, build_config, build_model, initialize_mimetically
from transformers_ice.training.initialization import sinusoidal_positions


SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
GRID = {"image_size": [24, 32], "patch_size": 8}
FAMILIES = {
    "vit": (ViTForImageClassification, ViTConfig, 1),
    "deit": (DeiTForImageClassification, DeiTConfig, 2),
    "ice": (IceDeiTForImageClassification, IceDeiTConfig, 1),
}


def build(family):
    model_class, config_class, num_prefix_tokens = FAMILIES[family]
    torch.manual_seed(0)
    return model_class(config_class(**SIZES, **GRID)).eval(), num_prefix_tokens


def cosine_with_identity(matrix):
    return float(matrix.detach().trace() / (matrix.detach().norm() * math.sqrt(len(matrix))))


def test_positions_follow_the_definition():
    """A slow loop over the equation, in float64."""
    rows, columns, size = 3, 4, 16
    expected = torch.zeros(rows, columns, size, dtype=torch.float64)
    for row in range(rows):
        for column in range(columns):
            for index in range(size // 4):
                frequency = 1 / 10000 ** (index / (size // 4))
                for part, value in enumerate((row, row, column, column)):
                    wave = math.sin if part % 2 == 0 else math.cos
                    expected[row, column, part * size // 4 + index] = wave(value * frequency)
    # float32 against float64
    torch.testing.assert_close(
        sinusoidal_positions((rows, columns), size).double(), expected.flatten(0, 1), atol=1e-6, rtol=0
    )


def test_positions_need_a_quarter_for_each_wave_and_axis():
    with pytest.raises(ValueError, match="`hidden_size` must be a multiple of 4 for sinusoidal positions, got 30"):
        sinusoidal_positions((2, 2), 30)


@pytest.mark.parametrize("family", FAMILIES)
def test_queries_and_keys_agree_and_values_and_outputs_oppose(family):
    model, _ = build(family)
    initialize_mimetically(model)
    for layer in model.base_model.layers:
        query, key, value, output = (getattr(layer.attention, f"{name}_proj").weight for name in "qkvo")
        head_size = SIZES["hidden_size"] // SIZES["num_attention_heads"]
        for start in range(0, SIZES["hidden_size"], head_size):
            head = slice(start, start + head_size)
            # of the rank of a head; random weights give 0 +- 0.02
            assert cosine_with_identity(query[head].T @ key[head]) > 0.3
        # 0.4 noise of standard deviation 1 / sqrt(64) and -0.4 times the identity: a cosine of about -1 / sqrt(2)
        assert cosine_with_identity(value.T @ output.T) == pytest.approx(-1 / math.sqrt(2), abs=0.1)


@pytest.mark.parametrize("family", FAMILIES)
def test_patches_begin_by_attending_to_themselves_and_their_neighbours(family):
    model, num_prefix_tokens = build(family)
    initialize_mimetically(model)
    model.set_attn_implementation("eager")
    # without content only the positions are left
    attention = model(torch.zeros(1, 3, *GRID["image_size"]), output_attentions=True).attentions[0]
    weights = attention[0].mean(dim=0)[num_prefix_tokens:, num_prefix_tokens:]
    rows, columns = 3, 4
    place = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), -1).flatten(0, 1)
    distance = (place[:, None] - place[None]).abs().sum(-1)
    near, far = weights[distance <= 1].mean(), weights[distance >= 3].mean()
    assert near > 1.5 * far


@pytest.mark.parametrize("family", FAMILIES)
def test_everything_else_stays(family):
    model, num_prefix_tokens = build(family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    initialize_mimetically(model)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    expected = {name for name in before if name.endswith(tuple(f"{letter}_proj.weight" for letter in "qkvo"))}
    assert changed - {name for name in before if name.endswith("position_embeddings")} == expected
    positions = model.base_model.embeddings.position_embeddings
    assert not positions[0, :num_prefix_tokens].any()
    torch.testing.assert_close(positions[0, num_prefix_tokens:], sinusoidal_positions((3, 4), 64))


def test_the_argument_reaches_the_model_and_the_seed_decides():
    overrides = ",".join(f"{name}={value}" for name, value in {**SIZES, "image_size": 32, "patch_size": 8}.items())
    attentions = []
    for seed in (0, 0, 1):
        arguments = ModelArguments(model_type="vit", initialization="mimetic", config_overrides=overrides)
        torch.manual_seed(seed)
        model = build_model(arguments, build_config(arguments), ["a", "b"])
        attentions.append(model.vit.layers[0].attention)
    first, again, other = (attention.v_proj.weight for attention in attentions)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert cosine_with_identity(first.T @ attentions[0].o_proj.weight.T) < -0.5


def test_another_architecture_is_refused():
    config = BeitConfig(**SIZES, image_size=32, patch_size=8)
    with pytest.raises(ValueError, match="supports models of type vit, deit, ice_deit, got 'beit'"):
        initialize_mimetically(BeitForImageClassification(config))


def test_a_checkpoint_cannot_be_initialised():
    with pytest.raises(ValueError, match=r"`--initialization mimetic` draws random weights and needs `--model_type`"):
        ModelArguments(model_name_or_path="folder", initialization="mimetic")
