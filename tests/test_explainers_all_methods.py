# SPDX-License-Identifier: Apache-2.0
"""What every explainer keeps to: shapes, targets, one image at a time, and a model that comes back as it was."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from explainer_models import (
    BASELINES,
    CLASS_AWARE_BASELINES,
    CLASSIFIERS,
    METHODS,
    SOURCE_FAMILIES,
    explained,
    layers_of,
    pairs,
    pixels,
    tiny,
)

from transformers_ice.explainers import EXPLAINERS, explain


def map_size(method, image_size, patch_size=(8, 8)):
    if EXPLAINERS[method].resolution == "pixel":
        return image_size
    return image_size[0] // patch_size[0], image_size[1] // patch_size[1]


@pytest.mark.parametrize(
    ("family", "method"),
    pairs("ice", "ice_distilled", "ice_registers", "vit", "deit", "deit_teacher", *SOURCE_FAMILIES),
)
def test_map_has_the_shape_of_the_patch_grid_for_other_image_sizes(family, method):
    relevance = explain(tiny(family, num_hidden_layers=2), pixels(height=24, width=48), method=method)
    assert relevance.shape == (2, *map_size(method, (24, 48)))
    assert relevance.dtype == torch.float32
    assert relevance.isfinite().all()
    if method not in ("ice_hard", "grad_cam"):  # which may find nothing
        assert (relevance.amin(dim=(1, 2)) < relevance.amax(dim=(1, 2))).all()


@pytest.mark.parametrize("method", METHODS)
def test_rectangular_patches_and_images_are_laid_out_in_rows_and_columns(method):
    model = tiny("ice", image_size=[32, 24], patch_size=[8, 4], num_hidden_layers=2)
    relevance = explain(model, pixels(height=32, width=24), method=method)
    assert relevance.shape == (2, *map_size(method, (32, 24), (8, 4)))


@pytest.mark.parametrize(("family", "method"), pairs("ice", "ice_distilled", "ice_registers", "dinov2_registers"))
def test_one_image_alone_has_the_map_it_has_in_a_batch(family, method):
    model, images = tiny(family), pixels(3)
    images[1] *= 10  # what is taken over the batch instead of the image goes wrong
    together = explain(model, images, method=method)
    alone = torch.cat([explain(model, image[None], method=method) for image in images])
    # other matrix sizes, other summation order; relevance divides by small differences
    scale = together.abs().amax(dim=(1, 2), keepdim=True).clamp(min=1e-6)
    torch.testing.assert_close(alone / scale, together / scale, atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", ["ice", *BASELINES])
def test_map_of_another_class_differs_where_the_method_knows_classes(method):
    model, images = tiny("ice_distilled"), pixels()
    one, other = (explain(model, images, method=method, target=target) for target in (1, 3))
    assert torch.equal(one, other) == (not EXPLAINERS[method].takes_target)
    mixed = explain(model, images, method=method, target=[1, 3])
    scale = mixed.abs().max()
    torch.testing.assert_close(mixed / scale, torch.stack((one[0], other[1])) / scale, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", CLASS_AWARE_BASELINES)
@pytest.mark.parametrize("family", CLASSIFIERS)
def test_class_to_explain_is_by_default_the_best_logit_of_the_prefix_tokens(family, method):
    model, images = tiny(family, num_hidden_layers=2), pixels(4)
    with torch.no_grad():
        predicted = explained(model, images).argmax(dim=1)
    assert len(predicted.unique()) > 1
    assert torch.equal(explain(model, images, method=method), explain(model, images, method=method, target=predicted))


def state_of(model):
    return {
        "training": [module.training for module in model.modules()],
        "gradients": [(weight.requires_grad, weight.grad) for weight in model.parameters()],
        "values": [weight.detach().sum().item() for weight in model.parameters()],
        "hooks": [len(hooks) for module in model.modules() for hooks in hook_tables(module)],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "attention": model.config._attn_implementation,
        "config": model.config.to_dict(),
    }


def hook_tables(module):
    yield from (module._forward_hooks, module._forward_pre_hooks)
    yield from (module._backward_hooks, module._backward_pre_hooks)


def half_frozen(family, attention):
    model = tiny(family, num_hidden_layers=2)
    model.set_attn_implementation(attention)
    model.train()
    layers_of(model)[0].eval()  # a part frozen in evaluation mode stays so
    model.base_model.embeddings.requires_grad_(False)
    return model


def snapshot():
    """Return the state of the global random generators as something that can be compared."""
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()  # noqa: NPY002


@pytest.mark.parametrize(("family", "method"), pairs("ice", "deit_teacher", *SOURCE_FAMILIES))
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_model_and_generators_are_left_as_they_were(family, attention, method):
    model, images = half_frozen(family, attention), pixels()
    before, generators, pixels_before = state_of(model), snapshot(), images.clone()
    relevance = explain(model, images, method=method)
    assert state_of(model) == before
    assert snapshot() == generators
    assert before["attention"] == attention
    assert not relevance.requires_grad
    assert torch.equal(images, pixels_before)
    assert not images.requires_grad


@pytest.mark.parametrize("method", METHODS)
def test_model_can_still_be_pickled_and_asked_for_attention(method):
    model, images = tiny("ice", num_hidden_layers=2), pixels()
    expected = explain(model, images, method=method)
    copy = pickle.loads(pickle.dumps(model))
    assert torch.equal(explain(copy, images, method=method), expected)
    model.set_attn_implementation("eager")
    for _ in range(2):
        with torch.no_grad():
            assert len(model(images, output_attentions=True).attentions) == 2
        explain(model, images, method=method)
    with torch.no_grad():
        assert len(model(images, output_attentions=True).attentions) == 2


@pytest.mark.parametrize("method", METHODS)
def test_gradients_that_were_collected_before_are_kept(method):
    model, images = tiny("ice", num_hidden_layers=2), pixels()
    model(images, labels=torch.tensor([0, 1])).loss.backward()
    gradients = [weight.grad for weight in model.parameters()]
    values = [None if gradient is None else gradient.clone() for gradient in gradients]
    images.requires_grad_()
    explain(model, images, method=method)
    for weight, gradient, value in zip(model.parameters(), gradients, values, strict=True):
        assert weight.grad is gradient
        assert value is None or torch.equal(gradient, value)
    assert images.requires_grad
    assert images.grad is None


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("part", ["embeddings", "layers.1.attention.o_proj", "layernorm"])
def test_model_is_left_as_it_was_after_an_error_in_the_middle(part, method):
    def fail(*_):
        raise RuntimeError("broken in the middle")

    model = half_frozen("ice", "sdpa")
    before, generators = state_of(model), snapshot()
    handle = model.base_model.get_submodule(part).register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="broken in the middle"):
        explain(model, pixels(), method=method)
    handle.remove()
    assert state_of(model) == before
    assert snapshot() == generators


@pytest.mark.parametrize("method", [name for name in METHODS if "seed" in EXPLAINERS[name].options])
def test_generators_are_restored_after_an_error_under_way(method):
    model, calls = tiny("ice"), []

    def fail_later(*_):
        calls.append(1)
        if len(calls) == 2:  # the first call only asks for the predicted class
            raise RuntimeError("broken under way")

    before, generators = state_of(model), snapshot()
    handle = model.deit.layernorm.register_forward_hook(fail_later)
    with pytest.raises(RuntimeError, match="broken under way"):
        explain(model, pixels(), method=method)
    handle.remove()
    assert state_of(model) == before
    assert snapshot() == generators


@pytest.mark.parametrize("method", METHODS)
def test_dropout_has_no_influence_in_training_mode(method):
    model = tiny("ice", hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5, drop_path_rate=0.5)
    expected = explain(model, pixels(), method=method)
    model.train()
    assert torch.equal(explain(model, pixels(), method=method), expected)


@pytest.mark.parametrize("method", METHODS)
def test_gradient_mode_of_the_caller_has_no_influence(method):
    model = tiny("ice_distilled", num_hidden_layers=2)
    expected = explain(model, pixels(), method=method, target=[1, 2])
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():  # images and classes are made in it too
            relevance = explain(model, pixels(), method=method, target=torch.tensor([1, 2]))
            assert torch.equal(relevance, expected)


@pytest.mark.parametrize("method", [name for name in METHODS if EXPLAINERS[name].needs_gradient])
def test_model_made_in_inference_mode_is_refused_by_methods_with_gradients(method):
    with torch.inference_mode():
        model = tiny("vit")
    with pytest.raises(ValueError, match=r"must not be made or loaded under `torch.inference_mode\(\)`"):
        explain(model, pixels(), method=method)


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_and_double_precision_models_give_float32_maps(method):
    model = tiny("ice_distilled", num_hidden_layers=2, num_labels=3)
    expected = explain(model, pixels(), method=method, target=1)
    # the LRP baselines divide by small differences: 1 % of the largest value
    tolerance = expected.abs().max().item() * (1e-2 if method.endswith("lrp") else 1e-4)
    for dtype in (torch.float64, torch.bfloat16):
        relevance = explain(model.to(dtype), pixels().to(dtype), method=method, target=1)
        assert relevance.dtype == torch.float32
        assert relevance.isfinite().all()
        if dtype == torch.float64:
            torch.testing.assert_close(relevance, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("method", BASELINES)
def test_methods_that_need_a_gradient_say_so(method):
    kept = []

    def keep(tensor):
        kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        explain(tiny("vit"), pixels(), method=method)
    assert bool(kept) == EXPLAINERS[method].needs_gradient
