# SPDX-License-Identifier: Apache-2.0
"""Models of transformers beside ViT and DeiT: what differs between families is in no map."""

from __future__ import annotations

import pytest
import torch
from explainer_models import BASELINES, FAMILIES, METHODS, SIZES, pixels, tiny
from test_relevance_propagation import quotient, slow_linear
from transformers import Dinov2Config, Dinov2ForImageClassification, ViTConfig, ViTForImageClassification

from transformers_ice.explainers import EXPLAINERS, explain
from transformers_ice.explainers.families import backbone_of
from transformers_ice.explainers.inspection import num_prefix_tokens
from transformers_ice.explainers.relevance_based import _at_the_final_tokens, _trace


OTHERS = ["vit_msn", "dinov2", "dinov2_no_registers", "dinov2_registers"]
# (height, width) and the rows and columns of patches of 8 pixels: the last has pixels beyond the last whole patch
IMAGE_SIZES = {(32, 32): (4, 4), (24, 40): (3, 5), (45, 31): (5, 3)}
RELEVANCE = ("transformer_attribution", "partial_lrp", "full_lrp")


@pytest.mark.parametrize("family", [name for name in FAMILIES if not name.startswith("ice")])
@pytest.mark.parametrize(("size", "grid"), IMAGE_SIZES.items())
def test_tokens_are_the_prefix_and_the_grid_at_every_image_size(family, size, grid):
    model = tiny(family, num_hidden_layers=1)
    with torch.no_grad():
        options = {} if family.startswith("dinov2") else {"interpolate_pos_encoding": True}
        states = model.base_model(pixels(1, *size), **options).last_hidden_state
    assert num_prefix_tokens(model) == FAMILIES[family][2]
    assert states.shape[1] == num_prefix_tokens(model) + grid[0] * grid[1]


@pytest.mark.parametrize("method", BASELINES)
@pytest.mark.parametrize("family", OTHERS)
@pytest.mark.parametrize(("size", "grid"), IMAGE_SIZES.items())
def test_map_has_the_rows_and_columns_of_the_patch_grid(size, grid, family, method):
    relevance = explain(tiny(family, num_hidden_layers=2), pixels(1, *size), method=method)
    assert relevance.shape == (1, *(size if EXPLAINERS[method].resolution == "pixel" else grid))
    assert relevance.isfinite().all()
    assert (relevance.amin() < relevance.amax()) or method == "grad_cam"  # which may find nothing


@pytest.mark.parametrize(("size", "grid"), IMAGE_SIZES.items())
@pytest.mark.parametrize("family", ["dinov2", "dinov2_registers"])
def test_attention_maps_are_those_of_the_last_tokens_which_are_the_patches(family, size, grid):
    model, images, num_patches = tiny(family), pixels(2, *size), grid[0] * grid[1]
    raw, rolled = (explain(model, images, method=method) for method in ("raw_attention", "rollout"))
    model.set_attn_implementation("eager")
    with torch.no_grad():
        layers = [layer.double().mean(dim=1) for layer in model(images, output_attentions=True).attentions]
    # the patches are counted from the end: however many tokens precede them, they are the last
    torch.testing.assert_close(raw.double().flatten(1), layers[-1][:, 0, -num_patches:], atol=1e-6, rtol=1e-5)
    product = torch.eye(layers[0].shape[-1]).double()
    for layer in layers[1:]:
        mixed = layer + torch.eye(layer.shape[-1])
        product = mixed / mixed.sum(dim=-1, keepdim=True) @ product
    torch.testing.assert_close(rolled.double().flatten(1), product[:, 0, -num_patches:], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("method", BASELINES)
def test_model_with_no_register_has_the_maps_of_the_model_without_registers(method):
    plain, empty = tiny("dinov2", num_hidden_layers=2), tiny("dinov2_no_registers", num_hidden_layers=2)
    weights = {f"dinov2_with_registers.{name}": weight for name, weight in plain.dinov2.state_dict().items()}
    assert weights["dinov2_with_registers.embeddings.mask_token"].shape == (1, 32)
    weights |= {f"classifier.{name}": weight for name, weight in plain.classifier.state_dict().items()}
    weights["dinov2_with_registers.embeddings.register_tokens"] = torch.zeros(1, 0, 32)
    empty.load_state_dict(weights)
    expected = explain(plain, pixels(), method=method, target=2)
    scale = expected.abs().max()
    relevance = explain(empty, pixels(), method=method, target=2)
    torch.testing.assert_close(relevance / scale, expected / scale, atol=1e-5, rtol=0)


def without_places(family):
    """Return a model that does not know where a patch is: all patches have one position."""
    model = tiny(family, num_hidden_layers=2)
    positions = model.base_model.embeddings.position_embeddings
    with torch.no_grad():
        positions[:, 1:] = positions[:, 1:2].clone()
    return model


# `gradient_shap` draws its points on the way at random, image by image
@pytest.mark.parametrize("method", [name for name in BASELINES if name != "gradient_shap"])
@pytest.mark.parametrize("family", ["vit", *OTHERS])
def test_moving_patches_moves_their_relevance(family, method):
    model, images = without_places(family), pixels(2)
    if method in RELEVANCE:  # its quotients enlarge what a sum in another order changes, by processor up to 2e-3
        model, images = model.double(), images.double()
    # noise and windows belong to places
    options = {"noise_level": 0.0} if method == "smooth_grad" else {"window": 1} if method == "occlusion" else {}
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3))

    def move(values):
        # (batch, channels, 32, 32) -> (batch, channels, 4, 8, 4, 8) -> (batch, 16, channels, 8, 8), moved, and back
        cells = values.unflatten(3, (4, 8)).unflatten(2, (4, 8)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)[:, order]
        return cells.unflatten(1, (4, 4)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)

    before = explain(model, images, method=method, target=1, **options)
    after = explain(model, move(images), method=method, target=1, **options)
    if EXPLAINERS[method].resolution == "pixel":
        expected = move(before[:, None])[:, 0]
    else:
        expected = before.flatten(1)[:, order].unflatten(1, (4, 4))
    assert not torch.allclose(before, expected, rtol=1e-2)
    scale = before.abs().max()
    torch.testing.assert_close(after / scale, expected / scale, atol=1e-5, rtol=0)


def folded_pair():
    """Return a DINOv2 whose classifier reads [CLS] alone, and the ViT that has its LayerScale in its weights."""
    scaled = tiny("dinov2").double()
    with torch.no_grad():
        scaled.classifier.weight[:, 32:] = 0
    weights = {}
    for name, value in scaled.dinov2.state_dict().items():
        for old, new in (("encoder.layer", "layers"), ("norm1", "layernorm_before"), ("norm2", "layernorm_after")):
            name = name.replace(old, new)
        weights[name] = value.clone()
    for layer in range(3):
        for scale, linear in (("layer_scale1", "attention.o_proj"), ("layer_scale2", "mlp.fc2")):
            factors = weights.pop(f"layers.{layer}.{scale}.lambda1")
            assert (factors < 0).any()
            weights[f"layers.{layer}.{linear}.weight"] *= factors[:, None]
            weights[f"layers.{layer}.{linear}.bias"] *= factors
    weights.pop("embeddings.mask_token")
    sizes = {**SIZES, "intermediate_size": 128, "layer_norm_eps": scaled.config.layer_norm_eps}
    folded = ViTForImageClassification(ViTConfig(**sizes)).eval().double()
    folded.vit.load_state_dict(weights)
    folded.classifier.weight = torch.nn.Parameter(scaled.classifier.weight[:, :32].clone())
    folded.classifier.bias = torch.nn.Parameter(scaled.classifier.bias.clone())
    return scaled, folded


@pytest.mark.parametrize("method", [name for name in METHODS if EXPLAINERS[name].model != "ice"])
def test_layer_scale_is_explained_like_the_weights_it_can_be_multiplied_into(method):
    scaled, folded = folded_pair()
    images = pixels().double()
    with torch.no_grad():
        torch.testing.assert_close(scaled(images).logits, folded(images).logits, atol=1e-9, rtol=1e-9)
    expected = explain(folded, images, method=method, target=3)
    relevance = explain(scaled, images, method=method, target=3)
    scale = expected.abs().max()
    # weights rounded in another order, which the quotients of relevance enlarge
    torch.testing.assert_close(relevance / scale, expected / scale, atol=1e-3 if method in RELEVANCE else 1e-5, rtol=0)


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize(("family", "prefix"), [("dinov2", 1), ("dinov2_registers", 5)])
def test_relevance_of_a_classifier_of_patches_by_definition(family, prefix, joint):
    model = tiny(family, num_hidden_layers=1).double()
    trace = _trace(model, pixels(1).double(), torch.tensor([2]))
    relevance = _at_the_final_tokens(trace, joint)[0]
    tokens = trace.result_of(backbone_of(model).layernorm)[0]
    mean = sum(tokens[prefix:]) / 16
    start = torch.eye(5).double()[2]
    of_features = slow_linear(torch.cat((tokens[0], mean)), model.classifier.weight.detach(), start, joint)
    expected = torch.zeros_like(tokens)  # registers get nothing
    expected[0] = of_features[:32]
    for n in range(prefix, prefix + 16):
        for k in range(32):
            expected[n, k] = tokens[n, k] * quotient(of_features[32 + k], 16 * mean[k])
    torch.testing.assert_close(relevance, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("method", RELEVANCE)
def test_gated_mlp_is_refused_by_relevance_alone(method):
    model = Dinov2ForImageClassification(Dinov2Config(**SIZES, use_swiglu_ffn=True)).eval()
    with pytest.raises(ValueError, match=r"no rule for a gated MLP .*Dinov2ForImageClassification.*method='legrad'"):
        explain(model, pixels(), method=method)
    assert explain(model, pixels(), method="legrad").shape == (2, 4, 4)
