# SPDX-License-Identifier: Apache-2.0
"""Explainers by definition, against recorded values of the published code, and without a trace on the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import (
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    DeiTModel,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from transformers_ice import IceDeiTConfig, IceDeiTForImageClassification, IceDeiTForSemanticSegmentation, IceDeiTModel
from transformers_ice.explainers import EXPLAINERS, HARD_EXPLAINERS, evaluation_mode, explain
from transformers_ice.metrics import ForegroundSegmentation


REFERENCE = Path(__file__).parent / "reference" / "explainers_reference.safetensors"
ATTENTION_METHODS = ["raw_attention", "rollout"]
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 5,
    "initializer_range": 0.3,  # far from uniform attention, so that maps differ
}
FAMILIES = {
    "vit": (ViTForImageClassification, ViTConfig, 1),
    "vit_encoder": (ViTModel, ViTConfig, 1),
    "deit": (DeiTForImageClassificationWithTeacher, DeiTConfig, 2),
    "deit_encoder": (DeiTModel, DeiTConfig, 2),
    "ice": (IceDeiTForImageClassification, IceDeiTConfig, 1),
    "ice_distilled": (IceDeiTForImageClassification, lambda **k: IceDeiTConfig(use_distillation_token=True, **k), 2),
    "ice_segmentation": (IceDeiTForSemanticSegmentation, IceDeiTConfig, 1),
    "ice_encoder": (IceDeiTModel, IceDeiTConfig, 1),
}
ICE_FAMILIES = [name for name in FAMILIES if name.startswith("ice")]


def tiny(family, **changes):
    model_class, config_class, _ = FAMILIES[family]
    torch.manual_seed(0)
    return model_class(config_class(**{**SIZES, **changes})).eval()


def pixels(batch_size=2, height=32, width=32):
    return torch.randn(batch_size, 3, height, width, generator=torch.Generator().manual_seed(1))


def vit_weights(reference):
    """Rename timm's keys to those of HF ViT and split the joint query-key-value matrix."""
    names = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "blocks.": "layers.",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.proj": "attention.o_proj",
    }
    weights = {}
    for key in reference.keys():  # noqa: SIM118 - an open file, not a mapping
        if not key.startswith("model."):
            continue
        name = key.removeprefix("model.")
        name = name.replace("norm.", "layernorm.") if name.startswith("norm.") else name
        for old, new in names.items():
            name = name.replace(old, new)
        if "attn.qkv" in name:
            for part, tensor in zip("qkv", reference.get_tensor(key).chunk(3), strict=True):
                weights[name.replace("attn.qkv", f"attention.{part}_proj")] = tensor
        else:
            weights[name] = reference.get_tensor(key)
    return weights


@pytest.fixture(scope="module")
def reference():
    with safe_open(REFERENCE, "pt") as file:
        metadata = file.metadata()
        sizes = {key: int(metadata[key]) for key in ("hidden_size", "num_attention_heads", "num_hidden_layers")}
        config = ViTConfig(
            **sizes, intermediate_size=4 * sizes["hidden_size"], image_size=64, patch_size=16, layer_norm_eps=1e-6
        )
        model = ViTModel(config, add_pooling_layer=False).eval()
        model.load_state_dict(vit_weights(file), strict=True)
        tensors = {key: file.get_tensor(key) for key in file.keys() if not key.startswith("model.")}  # noqa: SIM118
    return model, tensors


@pytest.mark.parametrize("method", ATTENTION_METHODS)
def test_map_equals_that_of_the_published_code(reference, method):
    model, tensors = reference
    relevance = explain(model, tensors["pixel_values"], method=method)
    # The tolerance that the reference values are stated with; float32 on both sides.
    torch.testing.assert_close(relevance, tensors[f"relevance.{method}"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", ATTENTION_METHODS)
def test_segmentation_scores_equal_those_of_the_published_code(reference, method):
    model, tensors = reference
    relevance = explain(model, tensors["pixel_values"], method=method)
    relevance = torch.nn.functional.interpolate(relevance[:, None], scale_factor=16, mode="bilinear")[:, 0]
    masks = relevance > relevance.mean(dim=(1, 2), keepdim=True)
    scores = ForegroundSegmentation().compute(predictions=masks.numpy(), references=tensors["masks"].numpy())
    pixel_accuracy, mean_iou, _ = tensors[f"metrics.{method}"].tolist()
    # Counts of pixels: equal, or one pixel (1/16384) off where its value is within rounding of the threshold.
    assert scores["pixel_accuracy"] == pytest.approx(pixel_accuracy, abs=1e-4)
    assert scores["mean_iou"] == pytest.approx(mean_iou, abs=1e-4)


def eager_attentions(model, pixel_values):
    """Attention of every layer as float64, from a model that is set to eager for good."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return [layer.double() for layer in model.base_model(pixel_values, output_attentions=True).attentions]


@pytest.mark.parametrize("family", FAMILIES)
def test_raw_attention_is_the_class_row_over_the_patches(family):
    model, images = tiny(family), pixels()
    relevance = explain(model, images, method="raw_attention")
    last = eager_attentions(model, images)[-1]
    prefix = FAMILIES[family][2]
    assert last.shape[-1] == 16 + prefix
    for row in range(4):
        for column in range(4):
            expected = last[:, :, 0, prefix + 4 * row + column].mean(dim=1)
            torch.testing.assert_close(relevance[:, row, column].double(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("family", "start_layer"), [("vit", 1), ("deit", 1), ("ice", 0), ("ice_distilled", 2)])
def test_rollout_is_the_product_of_normalised_attention_with_identity(family, start_layer):
    model, images = tiny(family), pixels()
    relevance = explain(model, images, method="rollout", start_layer=start_layer)
    layers = eager_attentions(model, images)
    prefix = FAMILIES[family][2]
    for b in range(len(images)):
        product = torch.eye(16 + prefix, dtype=torch.float64)
        for layer in layers[start_layer:]:
            mixed = sum(layer[b, h] for h in range(4)) / 4 + torch.eye(16 + prefix, dtype=torch.float64)
            product = (mixed / mixed.sum(dim=1, keepdim=True)) @ product
        # float32 attention: 1e-6 is about ten times its rounding on values below 1
        torch.testing.assert_close(relevance[b].double(), product[0, prefix:].view(4, 4), atol=1e-6, rtol=1e-5)


def test_rollout_starts_at_layer_one():
    model, images = tiny("vit"), pixels()
    default = explain(model, images, method="rollout")
    assert torch.equal(default, explain(model, images, method="rollout", start_layer=1))
    assert not torch.allclose(default, explain(model, images, method="rollout", start_layer=0), atol=1e-3)


@pytest.mark.parametrize("family", ICE_FAMILIES)
def test_ice_maps_are_the_patch_probabilities(family):
    model, images = tiny(family), pixels()
    with torch.no_grad():
        patch_logits = model(images).patch_logits.view(2, 4, 4, 6)
    probabilities = patch_logits.softmax(dim=-1)
    # 1 - p loses digits that the sum over classes keeps
    torch.testing.assert_close(explain(model, images), 1 - probabilities[..., -1], atol=1e-6, rtol=0)
    torch.testing.assert_close(explain(model, images, target=3), probabilities[..., 3])
    per_image = explain(model, images, target=[4, 0])
    torch.testing.assert_close(per_image, torch.stack((probabilities[0, ..., 4], probabilities[1, ..., 0])))
    classes = patch_logits.argmax(dim=-1)
    assert torch.equal(explain(model, images, method="ice_hard"), (classes != 5).float())
    assert torch.equal(explain(model, images, method="ice_hard", target=2), (classes == 2).float())


@pytest.mark.parametrize("method", EXPLAINERS)
@pytest.mark.parametrize("family", ["ice", "ice_distilled"])
def test_map_has_the_shape_of_the_patch_grid_for_other_image_sizes(family, method):
    relevance = explain(tiny(family), pixels(height=24, width=48), method=method)
    assert relevance.shape == (2, 3, 6)
    assert relevance.dtype == torch.float32
    assert relevance.min() >= 0
    assert relevance.max() <= 1


@pytest.mark.parametrize("family", ["vit", "deit"])
def test_other_image_sizes_work_on_plain_vit_and_deit(family):
    assert explain(tiny(family), pixels(height=48, width=24), method="rollout").shape == (2, 6, 3)


def test_rectangular_patches_and_images_are_laid_out_in_rows_and_columns():
    model = tiny("ice", image_size=[32, 24], patch_size=[8, 4])
    assert explain(model, pixels(height=32, width=24), method="rollout").shape == (2, 4, 6)


@pytest.mark.parametrize("method", EXPLAINERS)
def test_one_image_alone_has_the_map_it_has_in_a_batch(method):
    model, images = tiny("ice"), pixels(3)
    together = explain(model, images, method=method)
    alone = torch.cat([explain(model, image[None], method=method) for image in images])
    torch.testing.assert_close(alone, together, atol=1e-6, rtol=1e-5)  # other matrix sizes, other summation order


def state_of(model):
    # Asking for attentions makes transformers hook its own, inert recorders into a model, once: have them in place.
    with torch.inference_mode():
        model.base_model(pixels(), output_attentions=True)
    return {
        "training": [module.training for module in model.modules()],
        "gradients": [(weight.requires_grad, weight.grad) for weight in model.parameters()],
        "hooks": sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()),
        "attention": model.config._attn_implementation,
        "config": model.config.to_dict(),
    }


@pytest.mark.parametrize("method", EXPLAINERS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_model_is_left_as_it_was(method, attention):
    model = tiny("ice")
    model.set_attn_implementation(attention)
    model.train()
    model.deit.layers[0].eval()  # a part frozen in evaluation mode stays so
    model.deit.embeddings.requires_grad_(False)
    before = state_of(model)
    relevance = explain(model, pixels(), method=method)
    assert state_of(model) == before
    assert before["attention"] == attention
    assert not relevance.requires_grad


def test_model_is_left_as_it_was_after_an_error():
    model = tiny("vit")
    model.set_attn_implementation("sdpa")
    model.train()
    before = state_of(model)
    with pytest.raises(ValueError, match="channel"):
        explain(model, torch.zeros(1, 4, 32, 32), method="rollout")
    assert state_of(model) == before
    assert before["attention"] == "sdpa"


def test_dropout_has_no_influence_in_training_mode():
    model = tiny("ice", hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    expected = explain(model, pixels(), method="rollout")
    model.train()
    assert torch.equal(explain(model, pixels(), method="rollout"), expected)


@pytest.mark.parametrize("method", EXPLAINERS)
def test_gradient_mode_of_the_caller_has_no_influence(method):
    model = tiny("ice")
    expected = explain(model, pixels(), method=method)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(explain(model, pixels(), method=method), expected)


def test_half_precision_models_give_float32_maps():
    model = tiny("ice").bfloat16()
    for method in EXPLAINERS:
        assert explain(model, pixels().bfloat16(), method=method).dtype == torch.float32


def test_hard_explainers_give_zero_and_one_only():
    assert set(EXPLAINERS) >= HARD_EXPLAINERS
    for method in HARD_EXPLAINERS:
        assert set(explain(tiny("ice"), pixels(8), method=method).unique().tolist()) == {0.0, 1.0}


def test_evaluation_mode_restores_each_module_after_an_error():
    model = tiny("vit").train()
    model.vit.layernorm.eval()
    before = [module.training for module in model.modules()]
    with evaluation_mode(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == before
    with pytest.raises(ValueError, match="channel"), evaluation_mode(model):
        model(torch.zeros(1, 4, 32, 32))
    assert [module.training for module in model.modules()] == before


def test_unknown_method_lists_the_valid_ones():
    with pytest.raises(ValueError, match="one of ice, ice_hard, raw_attention, rollout, got 'attention'"):
        explain(tiny("ice"), pixels(), method="attention")


@pytest.mark.parametrize("method", ["ice", "ice_hard"])
def test_model_without_patch_head_is_refused_with_a_way_out(method):
    with pytest.raises(ValueError, match=r"patch head, got ViTForImageClassification.*method='rollout'"):
        explain(tiny("vit"), pixels(), method=method)


def test_model_of_another_family_is_refused():
    config = SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1], num_heads=[2], window_size=4)
    with pytest.raises(ValueError, match="ViT, DeiT or ICE model of transformers, got SwinForImageClassification"):
        explain(SwinForImageClassification(config), pixels(), method="raw_attention")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": 5}, r"`target` must lie in \[0, 4\], got \[5\]"),
        ({"target": [0, -1]}, r"got \[-1, 0\]"),
        ({"target": [0, 1, 2]}, "one class index or 2 of them"),
        ({"target": 1.0}, "torch.float32"),
        ({"method": "rollout", "start_layer": 3}, r"`start_layer` must lie in \[0, 2\] for 3 layers, got 3"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        explain(tiny("ice"), pixels(), **arguments)


def test_pixel_values_need_a_batch_axis():
    with pytest.raises(ValueError, match=r"got \(3, 32, 32\)"):
        explain(tiny("ice"), pixels()[0])
