# SPDX-License-Identifier: Apache-2.0
"""What explanations cost, and whether they change with the weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from benchmark_models import Pictures, ice_checkpoint, vit_checkpoint
from scipy import stats

from transformers_ice.evaluation import (
    InputBatch,
    Protocol,
    measure_costs,
    randomization_similarity,
)
from transformers_ice.evaluation.cost import peak_tensor_bytes
from transformers_ice.evaluation.sanity import randomized_models, rank_correlation


@pytest.fixture
def ice():
    return ice_checkpoint()


@pytest.fixture
def vit():
    return vit_checkpoint()


def test_peak_counts_what_is_alive_together():
    megabyte = 250_000  # float32

    def chain():
        first = torch.zeros(megabyte)
        second = first + 1
        del first
        return second * 2 + 1

    assert peak_tensor_bytes(lambda: torch.zeros(megabyte) + 1) == 2_000_000
    assert peak_tensor_bytes(chain) == 3_000_000
    assert peak_tensor_bytes(lambda: torch.zeros(megabyte).view(500, 500).t()) == 1_000_000


def test_peak_holds_what_a_backward_pass_needs():
    def backward():
        value = weight
        for _ in range(10):
            value = value.sigmoid()
        value.sum().backward()

    weight = torch.zeros(250_000, requires_grad=True)
    assert 10_000_000 < peak_tensor_bytes(backward) < 14_000_000


def test_costs_are_ratios_to_a_forward_pass(ice):
    pixels = InputBatch(ice, [Pictures()[index] for index in range(4)], Protocol()).pixel_values
    costs = measure_costs(ice.model, pixels, ["ice", "transformer_attribution"], num_repeats=3)
    assert set(costs) == {"ice", "transformer_attribution"}
    assert costs["ice"].memory_ratio == pytest.approx(1, abs=0.1)
    assert costs["transformer_attribution"].memory_ratio > 2
    assert costs["transformer_attribution"].forward_passes > costs["ice"].forward_passes > 0


def test_rank_correlation_is_spearmans():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 5, 30), rng.random(30)
    assert rank_correlation(first, second) == pytest.approx(stats.spearmanr(first, second).statistic)
    assert math.isnan(rank_correlation(np.ones(4), second[:4]))


@pytest.mark.parametrize("name", ["ice", "vit"])
def test_randomisation_reaches_every_weight_and_leaves_the_model_alone(name, request):
    model = request.getfixturevalue(name).model
    before = {key: value.clone() for key, value in model.state_dict().items()}
    stages, copies = zip(*randomized_models(model, seed=1), strict=True)
    assert list(stages) == ["heads", "layer 1", "layer 0", "embeddings"]
    for key, value in copies[-1].state_dict().items():
        if value.ndim > 1:  # biases and norms start as constants
            assert not torch.equal(value, before[key]), key
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_maps_change_with_the_weights(ice):
    pixels = InputBatch(ice, [Pictures()[index] for index in range(6)], Protocol()).pixel_values
    similarity = randomization_similarity(ice.model, pixels, ["ice", "rollout"])
    assert abs(similarity["ice"]["embeddings"]) < 0.6
    assert similarity["rollout"]["heads"] == pytest.approx(1)  # rollout does not know the heads
