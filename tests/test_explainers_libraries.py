# SPDX-License-Identifier: Apache-2.0
"""Baselines of captum and torchcam: what they return is what their definition says, on the right patches."""

from __future__ import annotations

import sys

import pytest
import torch
from explainer_models import explained, pixels, tiny

from transformers_ice.explainers import EXPLAINERS, explain


CAPTUM = [name for name, explainer in EXPLAINERS.items() if explainer.library == "captum"]
TORCHCAM = [name for name, explainer in EXPLAINERS.items() if explainer.library == "torchcam"]
# Rectangular patches on a rectangular image: a swap of rows and columns cannot go unnoticed.
FAMILY_SIZES = [
    ("vit", {}),
    ("deit_teacher", {}),
    ("ice", {"image_size": [32, 24], "patch_size": [8, 4]}),
    ("ice_distilled", {"image_size": [16, 48], "patch_size": [8, 16]}),
]


@pytest.fixture(params=FAMILY_SIZES, ids=[family for family, _ in FAMILY_SIZES])
def case(request):
    """Return a model and images of its size, both float64, and what cuts a pixel map into patches."""
    family, sizes = request.param
    pytest.importorskip("captum")
    pytest.importorskip("torchcam")
    model = tiny(family, num_hidden_layers=2, **sizes).double()
    height, width = sizes.get("image_size", [32, 32])
    patch_height, patch_width = sizes.get("patch_size", [8, 8])

    def patches(values):
        """Yield row, column and the pixels `(..., patch_height, patch_width)` of each patch."""
        for row in range(height // patch_height):
            for column in range(width // patch_width):
                rows = slice(row * patch_height, (row + 1) * patch_height)
                columns = slice(column * patch_width, (column + 1) * patch_width)
                yield row, column, (..., rows, columns), values[..., rows, columns]

    return model, pixels(2, height, width).double(), patches


def gradient_of(model, images, target):
    images = images.clone().requires_grad_()
    return torch.autograd.grad(explained(model, images)[:, target].sum(), images)[0]


def test_saliency_is_the_sum_of_absolute_gradients(case):
    model, images, patches = case
    relevance = explain(model, images, method="saliency", target=2)
    for row, column, _, values in patches(gradient_of(model, images, 2)):
        torch.testing.assert_close(relevance[:, row, column].double(), values.abs().sum(dim=(1, 2, 3)))


@pytest.mark.parametrize("absolute", [True, False])
def test_input_x_gradient_is_what_its_name_says(case, absolute):
    model, images, patches = case
    relevance = explain(model, images, method="input_x_gradient", target=2, absolute=absolute)
    for row, column, _, values in patches(images * gradient_of(model, images, 2)):
        expected = (values.abs() if absolute else values).sum(dim=(1, 2, 3))
        torch.testing.assert_close(relevance[:, row, column].double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("baseline", [0.0, -0.5])
def test_integrated_gradients_add_up_to_what_the_image_adds_to_the_logit(case, baseline):
    model, images, _ = case
    options = {"method": "integrated_gradients", "target": 2, "num_steps": 100, "baseline": baseline}
    relevance = explain(model, images, **options, absolute=False)
    with torch.no_grad():
        added = (explained(model, images) - explained(model, torch.full_like(images, baseline)))[:, 2]
    torch.testing.assert_close(relevance.sum(dim=(1, 2)).double(), added, atol=2e-2, rtol=2e-2)  # 100 steps
    assert (explain(model, images, **options) >= relevance.abs() - 1e-5).all()


def test_smooth_grad_without_noise_is_saliency(case):
    model, images, _ = case
    relevance = explain(model, images, method="smooth_grad", noise_level=0.0, num_samples=3)
    torch.testing.assert_close(relevance, explain(model, images, method="saliency"))


def test_smooth_grad_averages_gradients_at_noisy_copies(case):
    model, images, patches = case
    relevance = explain(model, images, method="smooth_grad", target=1, num_samples=4, noise_level=0.2, seed=7)
    gradients = []
    for image in images:
        # captum draws float32 noise for all copies of an image at once
        generator = torch.Generator().manual_seed(7)
        deviation = torch.full((4, *image.shape), 0.2 * (image.max() - image.min()).item())
        noisy = image + torch.normal(torch.zeros_like(deviation), deviation, generator=generator)
        gradients.append(gradient_of(model, noisy, 1).mean(dim=0))
    for row, column, _, values in patches(torch.stack(gradients)):
        torch.testing.assert_close(relevance[:, row, column].double(), values.abs().sum(dim=(1, 2, 3)))


def test_gradient_shap_adds_up_on_average_to_what_the_image_adds_to_the_logit():
    pytest.importorskip("captum")
    model, images = tiny("vit", num_hidden_layers=1, initializer_range=0.1), pixels()
    options = {"method": "gradient_shap", "target": 2, "num_samples": 2000, "noise_level": 0.0, "absolute": False}
    relevance = explain(model, images, **options)
    for image, image_map in zip(images, relevance, strict=True):
        plain = torch.stack([torch.full_like(image, value) for value in (image.min(), 0.0, image.max())])
        with torch.no_grad():
            added = explained(model, image[None])[0, 2] - explained(model, plain)[:, 2].mean()
        torch.testing.assert_close(image_map.sum(), added, atol=0.02, rtol=0.05)  # 2000 random points


@pytest.mark.parametrize("method", ["smooth_grad", "gradient_shap"])
def test_seed_alone_decides_about_the_noise(method):
    pytest.importorskip("captum")
    model, images = tiny("vit"), pixels()
    relevance = explain(model, images, method=method)
    torch.manual_seed(123)
    assert torch.equal(explain(model, images, method=method, seed=0), relevance)
    assert not torch.allclose(explain(model, images, method=method, seed=1), relevance, rtol=1e-3)


@pytest.mark.parametrize("baseline", [0.0, 1.0])
def test_feature_ablation_is_the_fall_of_the_logit_without_the_patch(case, baseline):
    model, images, patches = case
    relevance = explain(model, images, method="feature_ablation", target=2, baseline=baseline)
    with torch.no_grad():
        whole = explained(model, images)[:, 2]
        for row, column, place, _ in patches(images):
            without = images.clone()
            without[place] = baseline
            expected = whole - explained(model, without)[:, 2]
            torch.testing.assert_close(relevance[:, row, column].double(), expected, atol=1e-5, rtol=1e-5)
    assert relevance.min() < 0


@pytest.mark.parametrize("window", [1, 2, 9])
def test_occlusion_is_the_mean_fall_over_the_windows_on_the_patch(case, window):
    model, images, patches = case
    relevance = explain(model, images, method="occlusion", target=2, window=window)
    rows, columns = relevance.shape[1:]
    height, width = min(window, rows), min(window, columns)
    falls, counts = torch.zeros(relevance.shape, dtype=torch.float64), torch.zeros(rows, columns)
    with torch.no_grad():
        whole = explained(model, images)[:, 2]
        for top in range(rows - height + 1):
            for left in range(columns - width + 1):
                without = images.clone()
                for row, column, place, _ in patches(images):
                    if top <= row < top + height and left <= column < left + width:
                        without[place] = 0
                falls[:, top : top + height, left : left + width] += (whole - explained(model, without)[:, 2]).view(
                    -1, 1, 1
                )
                counts[top : top + height, left : left + width] += 1
    torch.testing.assert_close(relevance.double(), falls / counts, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layer", [0, -1])
@pytest.mark.parametrize("method", TORCHCAM)
def test_class_activation_maps_by_definition(case, method, layer):
    model, images, _ = case
    relevance = explain(model, images, method=method, target=2, layer=layer)
    tokens = []
    norm = model.base_model.layers[layer].layernorm_before
    handle = norm.register_forward_hook(lambda module, given, made: tokens.append(made))
    score = explained(model, images.clone().requires_grad_())[:, 2].sum()
    handle.remove()
    (gradients,) = torch.autograd.grad(score, tokens)
    prefix = model.base_model.embeddings.position_embeddings.shape[1] - relevance[0].numel()
    features, gradients = tokens[0][:, prefix:].detach(), gradients[:, prefix:]
    weights = gradients.mean(dim=1, keepdim=True) if method == "token_grad_cam" else gradients.clamp(min=0)
    expected = (weights * features).sum(dim=2).clamp(min=0)
    torch.testing.assert_close(relevance.flatten(1).double(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("method", CAPTUM + TORCHCAM)
def test_missing_library_is_named_with_the_way_to_install_it(method, monkeypatch):
    library = EXPLAINERS[method].library
    for name in (library, f"{library}.attr", f"{library}.methods"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"needs {library}.*pip install transformers-ice\[eval\]"):
        explain(tiny("vit"), pixels(), method=method)


def test_images_that_are_no_multiple_of_the_patch_are_cropped():
    pytest.importorskip("captum")
    model, images = tiny("vit"), pixels(2, 37, 42)
    for method in (*CAPTUM, *TORCHCAM, "legrad", "partial_lrp"):
        assert explain(model, images, method=method, target=1).shape == (2, 4, 5)
    relevance = explain(model, images, method="full_lrp", target=1)
    assert relevance.shape == (2, 37, 42)
    assert (relevance[:, 32:] == 0).all()
    assert (relevance[:, :, 40:] == 0).all()
    ablated = explain(model, images, method="feature_ablation", target=1)
    cropped = images.clone()
    cropped[:, :, 32:], cropped[:, :, :, 40:] = 0, 0  # pixels that the model does not see
    torch.testing.assert_close(explain(model, cropped, method="feature_ablation", target=1), ablated)
