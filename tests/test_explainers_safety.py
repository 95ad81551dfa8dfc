# SPDX-License-Identifier: Apache-2.0
"""Explaining from several threads, after an interruption, of images that hold NaN, and in half precision."""

from __future__ import annotations

import copy
import threading

import numpy as np
import pytest
import torch
from explainer_models import BASELINES, METHODS, pairs, pixels, tiny
from scipy.stats import spearmanr
from test_explainers_all_methods import half_frozen, snapshot, state_of

from transformers_ice import IceDeiTForImageClassification
from transformers_ice.explainers import explain, relevance_based
from transformers_ice.speed import share_weights


SIZES = {"num_hidden_layers": 2}


def explain_in_threads(models, images, method, num_calls):
    """Explain image k by model k in its own thread; return the maps of each thread and the errors."""
    maps, errors = [[] for _ in models], []

    def work(index):
        for _ in range(num_calls):
            try:
                maps[index].append(explain(models[index], images[index], method))
            except Exception as error:
                errors.append(repr(error))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(models))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return maps, errors


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shared", ["model", "weights", "configuration"])
def test_threads_get_the_maps_of_a_single_one_and_leave_the_model_as_it_was(method, shared):
    model = half_frozen("ice", "sdpa")
    images = pixels(3).split(1)
    models = {
        "model": [model] * 3,
        "weights": [model, share_weights(model), share_weights(model)],
        "configuration": [model, *(type(model)(model.config) for _ in range(2))],
    }[shared]
    expected = [explain(model, image, method) for model, image in zip(models, images, strict=True)]
    before, generators = [state_of(model) for model in models], snapshot()
    num_calls = 6 if shared == "model" else 2
    maps, errors = explain_in_threads(models, images, method, num_calls)
    assert not errors
    for own, wanted in zip(maps, expected, strict=True):
        assert len(own) == num_calls
        assert all(torch.equal(values, wanted) for values in own)
    assert [state_of(model) for model in models] == before
    assert snapshot() == generators


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, MemoryError])
def test_model_is_left_as_it_was_after_an_interruption_and_the_next_call_works(stop, method):
    model, images = half_frozen("ice", "sdpa"), pixels()
    expected = explain(model, images, method)
    before, generators = state_of(model), snapshot()

    def interrupt(*_):
        raise stop

    handle = model.deit.layernorm.register_forward_hook(interrupt)
    with pytest.raises(stop):
        explain(model, images, method)
    handle.remove()
    assert state_of(model) == before
    assert snapshot() == generators
    (maps,), errors = explain_in_threads([model], [images], method, num_calls=1)  # the lock is free for others
    assert not errors
    assert torch.equal(maps[0], expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(("family", "method"), pairs("ice"))
def test_image_that_is_not_finite_has_a_map_of_nan_and_the_others_their_own(family, method, value):
    model, images = tiny(family, **SIZES), pixels(3)
    broken = images.clone()
    broken[1, 0, 3, 5] = value
    maps = explain(model, broken, method, target=[0, 1, 2])
    assert maps[1].isnan().all()
    alone = explain(model, images[[0, 2]], method, target=[0, 2])
    scale = alone.abs().max().clamp(min=1e-6)
    torch.testing.assert_close(maps[[0, 2]] / scale, alone / scale, atol=1e-4, rtol=0)
    assert explain(model, torch.full_like(images, value), method).isnan().all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("part", ["deit.layers.0.attention.o_proj", "deit.embeddings.patch_embeddings.projection"])
def test_model_of_nan_weights_gives_nan(part, method):
    model = tiny("ice", **SIZES)
    torch.nn.init.constant_(model.get_submodule(part).weight, float("nan"))
    assert explain(model, pixels(), method).isnan().all(dim=(1, 2)).all() or method in ("raw_attention", "rollout")


def rank_correlations(maps, expected):
    """Return the rank correlation of each pair of maps; a map without any order has that of its equal."""
    flat = [(own.flatten().numpy(), wanted.flatten().numpy()) for own, wanted in zip(maps, expected, strict=True)]
    return [1.0 if np.array_equal(*pair) else spearmanr(*pair).statistic for pair in flat]


# Least rank correlation of a map with that of the same weights in float64. A bfloat16 number has 3 digits: in the
# model's own precision, neighbouring ranks change places, most where the map is a difference of two logits.
LEAST = {torch.float32: {}, torch.bfloat16: {"feature_ablation": 0.6, "occlusion": 0.6}}
BY_RELEVANCE = ("transformer_attribution", "partial_lrp", "full_lrp")  # never in less than float32


@pytest.mark.parametrize("method", ["ice", *BASELINES])
@pytest.mark.parametrize("dtype", LEAST)
def test_ranks_of_the_patches_are_those_of_double_precision(dtype, method):
    model, images = tiny("ice", **SIZES).to(dtype), pixels(4).to(dtype)
    target = [0, 1, 2, 3]
    maps = explain(model, images, method, target)
    expected = explain(copy.deepcopy(model).double(), images.double(), method, target)
    least = 0.999 if dtype == torch.float32 or method in BY_RELEVANCE else LEAST[dtype].get(method, 0.95)
    assert min(rank_correlations(maps, expected)) >= least


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", BY_RELEVANCE)
def test_relevance_of_a_trained_model_is_that_of_double_precision(dtype, method, pytestconfig):
    folder = pytestconfig.rootpath / "checkpoints" / "ice-deit-scenes"
    model = IceDeiTForImageClassification.from_pretrained(folder, dtype=dtype).eval()
    images = pixels(4, 64, 64).to(dtype)
    maps = explain(model, images, method, target=4)
    expected = explain(copy.deepcopy(model).double(), images.double(), method, target=4)
    assert min(rank_correlations(maps, expected)) >= 0.99
    scale = expected.abs().amax(dim=(1, 2), keepdim=True)
    # `full_lrp` runs in float64: equal. The others divide by sums close to 0 in float32.
    atol = {"full_lrp": 1e-5, "partial_lrp": 0.02, "transformer_attribution": 0.05}[method]
    torch.testing.assert_close(maps / scale, expected / scale, atol=atol, rtol=0)
    assert {weight.dtype for weight in model.parameters()} == {dtype}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_full_lrp_of_weights_in_half_precision_warns_that_their_rounding_decides(dtype, monkeypatch):
    messages = []
    monkeypatch.setattr(relevance_based.logger, "warning_once", messages.append)
    explain(tiny("vit", **SIZES).to(dtype), pixels(1).to(dtype), "full_lrp")
    assert [f"are in {str(dtype).removeprefix('torch.')}" in message for message in messages] == (
        [] if dtype == torch.float32 else [True]
    )
