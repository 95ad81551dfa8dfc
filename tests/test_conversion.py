# SPDX-License-Identifier: Apache-2.0
"""Checkpoints in: every key accounted for, sizes from the weights, no code run, nothing left behind by bad input."""

from __future__ import annotations

import argparse
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoModelForImageClassification

from transformers_ice import IceDeiTConfig, IceDeiTForImageClassification, IceDeiTForSemanticSegmentation
from transformers_ice.conversion import (
    DROPPED_KEYS,
    KEY_TABLES,
    config_from_state_dict,
    convert_checkpoint,
    convert_state_dict,
    read_checkpoint,
    read_id2label,
    revert_state_dict,
)
from transformers_ice.ice_deit.image_processing_ice_deit import IceDeiTImageProcessor


ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "convert_checkpoint.py"
FAMILIES = {
    "vit": "ViTForImageClassification",
    "deit": "DeiTForImageClassification",
    "deit-with-teacher": "DeiTForImageClassificationWithTeacher",
}


def timm_weights(
    distilled: bool = False,
    patch_head: bool = False,
    grid: tuple[int, int] = (4, 4),
    hidden_size: int = 32,
    qkv_bias: bool = True,
) -> dict[str, Tensor]:
    """Random weights of a two-layer DeiT with patches of 8 pixels and 5 classes, named as timm names them."""
    generator = torch.Generator().manual_seed(1)
    num_positions = grid[0] * grid[1] + 1 + distilled
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, hidden_size),
        "pos_embed": (1, num_positions, hidden_size),
        "patch_embed.proj.weight": (hidden_size, 3, 8, 8),
        "patch_embed.proj.bias": (hidden_size,),
        "norm.weight": (hidden_size,),
        "norm.bias": (hidden_size,),
        "head.weight": (5, hidden_size),
        "head.bias": (5,),
    }
    for layer in range(2):
        linear = {"attn.qkv": (3 * hidden_size, hidden_size), "attn.proj": (hidden_size, hidden_size)}
        linear.update({"mlp.fc1": (48, hidden_size), "mlp.fc2": (hidden_size, 48)})
        for name, shape in linear.items():
            shapes[f"blocks.{layer}.{name}.weight"] = shape
            shapes[f"blocks.{layer}.{name}.bias"] = shape[:1]
        for name in ("norm1", "norm2"):
            shapes[f"blocks.{layer}.{name}.weight"] = shapes[f"blocks.{layer}.{name}.bias"] = (hidden_size,)
    if distilled:
        shapes.update(
            {"dist_token": (1, 1, hidden_size), "head_dist.weight": (5, hidden_size), "head_dist.bias": (5,)}
        )
    if patch_head:
        shapes["mlp_head.weight"] = (6, hidden_size)
    if not qkv_bias:
        shapes = {name: shape for name, shape in shapes.items() if not name.endswith("qkv.bias")}
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def timm_forward(weights: dict[str, Tensor], pixel_values: Tensor, num_heads: int) -> tuple[Tensor, Tensor | None]:
    """DeiT's forward pass written out from its definition: class logits, and patch logits with a patch head."""

    def linear(name: str, value: Tensor) -> Tensor:
        return F.linear(value, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def norm(name: str, value: Tensor) -> Tensor:
        return F.layer_norm(value, value.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-6)

    weights = {name: weight.double() for name, weight in weights.items()}
    patches = F.conv2d(
        pixel_values.double(), weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], stride=8
    )
    prefix = [weights[name].expand(len(patches), 1, -1) for name in ("cls_token", "dist_token") if name in weights]
    hidden = torch.cat([*prefix, patches.flatten(2).transpose(1, 2)], dim=1) + weights["pos_embed"]
    for layer in range(2):
        block = f"blocks.{layer}"
        parts = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", hidden)).chunk(3, dim=-1)
        heads = [part.unflatten(-1, (num_heads, -1)).transpose(1, 2) for part in parts]
        scores = heads[0] @ heads[1].transpose(-1, -2) / heads[0].shape[-1] ** 0.5
        attended = (scores.softmax(-1) @ heads[2]).transpose(1, 2).flatten(2)
        hidden = hidden + linear(f"{block}.attn.proj", attended)
        inner = F.gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", hidden)))
        hidden = hidden + linear(f"{block}.mlp.fc2", inner)
    final = norm("norm", hidden)
    logits = linear("head", final[:, 0])
    if "dist_token" in weights:
        logits = (logits + linear("head_dist", final[:, 1])) / 2
    patch_logits = linear("mlp_head", hidden[:, len(prefix) :]) if "mlp_head.weight" in weights else None
    return logits, patch_logits


def save_training_state(path: Path, weights: dict[str, Tensor], **entries: object) -> Path:
    """Write the file of the DeiT and ICE training scripts: weights, and the state of everything around them."""
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    state = {
        "model": weights,
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": {"base_values": [1e-4], "metric": None},
        "epoch": 0,
        "scaler": {"scale": 65536.0, "growth_tracker": 0},
        "args": argparse.Namespace(model="deit_small_patch16_224", lr=1e-4, data_set="IMNET", distributed=False),
        **entries,
    }
    torch.save(state, path)
    return path


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def without(weights: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: weight for name, weight in weights.items() if name not in names}


# --- values ---


@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("patch_head", [False, True])
def test_a_converted_model_equals_the_definition_of_deit(tmp_path, distilled, patch_head):
    weights = timm_weights(distilled, patch_head)
    checkpoint = save_training_state(tmp_path / "checkpoint.pth", weights)
    convert_checkpoint(checkpoint, tmp_path / "out", num_attention_heads=4)
    model, info = AutoModelForImageClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert isinstance(model, IceDeiTForImageClassification)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    pixel_values = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        outputs = model(pixel_values)
    logits, patch_logits = timm_forward(weights, pixel_values, num_heads=4)
    # float32 against float64 on logits of size 1 to 5
    torch.testing.assert_close(outputs.cls_logits.double(), logits, atol=2e-5, rtol=1e-5)
    assert model.config.logits_source == ("patch" if patch_head else "cls")
    if patch_head:
        torch.testing.assert_close(outputs.patch_logits.double(), patch_logits, atol=2e-5, rtol=1e-5)
    else:
        assert torch.equal(outputs.logits, outputs.cls_logits)


@pytest.mark.parametrize("layout", ["old", "new"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_folder_classifies_as_the_class_that_owns_it(hub_folder, tmp_path, family, layout):
    folder = hub_folder(family, layout)
    report = convert_checkpoint(folder, tmp_path / "out")
    assert report.layout == ("transformers (old)" if layout == "old" else "transformers")
    assert report.initialized_keys == ("deit.patch_head.weight",)
    owner = getattr(transformers, FAMILIES[family]).from_pretrained(folder)
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    pixel_values = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected, outputs = owner(pixel_values).logits, model(pixel_values)
    assert torch.equal(outputs.logits, expected)
    assert torch.equal(outputs.cls_logits, expected)
    assert model.config.id2label == owner.config.id2label
    assert model.config.num_attention_heads == owner.config.num_attention_heads
    assert model.config.layer_norm_eps == owner.config.layer_norm_eps


def test_a_bare_weight_file_of_a_folder_needs_no_configuration(hub_folder, tmp_path):
    report = convert_checkpoint(
        hub_folder("deit-with-teacher", "old") / "model.safetensors", tmp_path / "out", num_attention_heads=4
    )
    assert report.sizes["use_distillation_head"]
    assert report.sizes["intermediate_size"] == 74


def test_an_ice_folder_converts_to_itself(tmp_path, tiny_config):
    tiny_config.patch_head_hidden_size = 20
    tiny_config.background_loss_weight = 0.2
    model = IceDeiTForImageClassification(tiny_config)
    model.save_pretrained(tmp_path / "ice")
    IceDeiTImageProcessor(size={"height": 40, "width": 48}, image_mean=[0.5, 0.4, 0.3]).save_pretrained(
        tmp_path / "ice"
    )
    report = convert_checkpoint(tmp_path / "ice", tmp_path / "out")
    assert equal(load_file(tmp_path / "out" / "model.safetensors"), model.state_dict())
    assert report.initialized_keys == ()
    config = IceDeiTConfig.from_pretrained(tmp_path / "out")
    assert config.background_loss_weight == 0.2
    assert config.patch_head_hidden_size == 20
    assert config.logits_source == "patch"
    image_processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert list(image_processor.image_mean) == [0.5, 0.4, 0.3]
    assert (image_processor.size["height"], image_processor.size["width"]) == (40, 48)


def test_half_precision_weights_are_written_in_float32(tmp_path):
    weights = {name: weight.bfloat16() for name, weight in timm_weights().items()}
    save_file(weights, tmp_path / "weights.safetensors")
    convert_checkpoint(tmp_path / "weights.safetensors", tmp_path / "out", num_attention_heads=4)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert {weight.dtype for weight in written.values()} == {torch.float32}
    assert torch.equal(written["classifier.weight"], weights["head.weight"].float())
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "out").dtype == torch.float32


def test_the_same_checkpoint_gives_the_same_folder_and_leaves_the_random_state_alone(tmp_path):
    checkpoint = save_training_state(tmp_path / "checkpoint.pth", timm_weights())
    for seed, name in enumerate(("one", "two")):
        before = torch.manual_seed(seed).get_state()
        convert_checkpoint(checkpoint, tmp_path / name, num_attention_heads=4)
        assert torch.equal(torch.get_rng_state(), before)
    heads = [load_file(tmp_path / name / "model.safetensors")["deit.patch_head.weight"] for name in ("one", "two")]
    assert torch.equal(*heads)
    assert heads[0].std() > 0


# --- keys ---


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("distilled", [False, True])
def test_converting_and_converting_back_restores_every_key_and_bit(distilled, qkv_bias):
    weights = timm_weights(distilled, patch_head=True, qkv_bias=qkv_bias)
    converted, report = convert_state_dict(weights)
    assert equal(revert_state_dict(converted), weights)
    assert report.num_source_keys == len(weights)
    assert report.num_converted_keys == len(converted) == len(weights) + (8 if qkv_bias else 4)
    assert report.dropped_keys == {}


def test_fused_rows_are_query_key_value_in_this_order():
    converted, _ = convert_state_dict(timm_weights())
    qkv = timm_weights()["blocks.1.attn.qkv.weight"]
    for name, rows in (("q", slice(0, 32)), ("k", slice(32, 64)), ("v", slice(64, 96))):
        assert torch.equal(converted[f"deit.layers.1.attention.{name}_proj.weight"], qkv[rows])


def test_converted_tensors_can_be_saved_as_safetensors(tmp_path):
    converted, _ = convert_state_dict(timm_weights())
    save_file(converted, tmp_path / "converted.safetensors")
    assert equal(load_file(tmp_path / "converted.safetensors"), converted)


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.model.", "_orig_mod."])
def test_wrapper_prefixes_do_not_matter(prefix):
    weights = timm_weights(patch_head=True)
    converted, _ = convert_state_dict({prefix + name: weight for name, weight in weights.items()})
    assert equal(converted, convert_state_dict(weights)[0])


@pytest.mark.parametrize("layout", list(KEY_TABLES))
def test_no_table_names_a_tensor_twice(layout):
    names = [name for name, _ in KEY_TABLES[layout]]
    assert len(set(names)) == len(names)


def test_every_unknown_and_missing_key_is_named_at_once():
    weights = without(timm_weights(), "cls_token", "blocks.1.norm2.bias", "head.bias")
    weights["blocks.0.attn.surprise"] = torch.zeros(1)
    weights["stranger.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match="must hold the weights of a ViT or DeiT classifier") as error:
        convert_state_dict(weights)
    unknown, missing = str(error.value).split("missing: ")
    assert "unknown: blocks.0.attn.surprise, stranger.weight" in unknown
    assert missing.startswith("cls_token, blocks.1.norm2.bias, head.bias. ")


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("pre_logits.fc.weight", "extra layer"),
        ("fc_norm.weight", "mean of the patches"),
        ("mlp_head.bias", "no bias"),
    ],
)
def test_a_known_key_that_changes_the_model_is_refused_with_its_meaning(name, meaning):
    with pytest.raises(ValueError, match=rf"unknown: {name} \(.*{meaning}"):
        convert_state_dict({**timm_weights(patch_head=True), name: torch.zeros(1)})


@pytest.mark.parametrize(
    "missing", ["blocks.1.attn.qkv.bias", "blocks.0.attn.qkv.weight", "head_dist.bias", "mlp_head.weight"]
)
def test_a_group_of_keys_is_there_as_a_whole_or_not_at_all(missing):
    weights = without(timm_weights(distilled=True, patch_head=True), missing)
    if missing == "mlp_head.weight":  # a group of one: leaving it out is a model without a patch head
        assert "deit.patch_head.weight" not in convert_state_dict(weights)[0]
    else:
        with pytest.raises(ValueError, match=f"missing: {missing}\\. "):
            convert_state_dict(weights)


def test_a_layer_left_out_in_the_middle_is_missed():
    weights = {name.replace("blocks.1.", "blocks.2."): weight for name, weight in timm_weights().items()}
    with pytest.raises(ValueError, match=r"missing: blocks\.1\.norm1\.weight, .*blocks\.1\.mlp\.fc2\.bias"):
        convert_state_dict(weights)


def test_two_names_of_one_tensor_are_refused(hub_folder):
    weights = load_file(hub_folder("vit", "new") / "model.safetensors")
    weights["cls_classifier.weight"] = weights["classifier.weight"]
    with pytest.raises(ValueError, match=r"two names of one tensor: classifier\.weight and cls_classifier\.weight"):
        convert_state_dict(weights)


def test_an_encoder_without_classifier_is_told_the_way_out(tmp_path, hub_folder):
    encoder = transformers.ViTModel.from_pretrained(hub_folder("vit", "new"))
    encoder.save_pretrained(tmp_path / "encoder")
    with pytest.raises(ValueError, match=r"missing: classifier\.weight, classifier\.bias\. .*num_labels"):
        convert_checkpoint(tmp_path / "encoder", tmp_path / "out")


def test_droppable_keys_are_reported_with_the_reason(hub_folder):
    weights = load_file(hub_folder("vit", "old") / "model.safetensors")
    expected, _ = convert_state_dict(weights)
    extra = {"vit.pooler.dense.weight": torch.ones(2), "vit.pooler.dense.bias": torch.ones(2)}
    converted, report = convert_state_dict({**weights, **extra, "vit.embeddings.mask_token": torch.ones(2)})
    assert equal(converted, expected)
    assert report.dropped_keys == {
        **dict.fromkeys(extra, DROPPED_KEYS["pooler.dense.{p}"]),
        "vit.embeddings.mask_token": DROPPED_KEYS["embeddings.mask_token"],
    }
    assert report.num_source_keys == len(weights) + 3


def test_what_timm_has_no_name_for_does_not_revert(tiny_config):
    tiny_config.patch_head_hidden_size = 20
    with pytest.raises(ValueError, match=r"got deit\.patch_head\.fc1\.weight, .*fc1\.bias, .*fc2\.weight, for which"):
        revert_state_dict(IceDeiTForImageClassification(tiny_config).state_dict())
    with pytest.raises(ValueError, match=r"got deit\.layers\.0\.attention\.q_proj\.weight, for which"):
        revert_state_dict({"deit.layers.0.attention.q_proj.weight": torch.zeros(2, 2)})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(value):
    weights = timm_weights()
    weights["blocks.1.attn.qkv.weight"][40, 3] = value
    weights["norm.bias"][0] = value
    with pytest.raises(
        ValueError, match=r"hold NaN or infinity: blocks\.1\.attn\.qkv\.weight, norm\.bias\.$|norm\.bias, "
    ):
        convert_state_dict(weights)


def test_integer_weights_are_refused():
    weights = {**timm_weights(), "head.weight": torch.ones(5, 32, dtype=torch.int8)}
    with pytest.raises(ValueError, match=r"not floating point \(quantised\?\): head\.weight"):
        convert_state_dict(weights)


# --- sizes ---


def test_sizes_are_read_from_the_weights():
    config = config_from_state_dict(convert_state_dict(timm_weights(distilled=True))[0], num_attention_heads=2)
    assert config.hidden_size == 32
    assert config.num_hidden_layers == 2
    assert config.intermediate_size == 48
    assert config.num_labels == 5
    assert config.patch_size == 8
    assert config.image_size == 32
    assert config.num_channels == 3
    assert config.num_attention_heads == 2
    assert config.qkv_bias
    assert config.use_distillation_token
    assert config.has_distillation_head
    assert config.id2label[4] == "LABEL_4"


@pytest.mark.parametrize(("hidden_size", "heads"), [(64, 1), (192, 3), (384, 6)])
def test_heads_are_64_wide_unless_said(hidden_size, heads):
    state_dict, _ = convert_state_dict(timm_weights(hidden_size=hidden_size))
    assert config_from_state_dict(state_dict).num_attention_heads == heads
    assert config_from_state_dict(state_dict, num_attention_heads=8).num_attention_heads == 8


def test_a_hidden_size_that_is_no_multiple_of_64_needs_the_heads():
    with pytest.raises(ValueError, match=r"hidden_size 32 is no multiple of 64.*Pass `num_attention_heads`"):
        config_from_state_dict(convert_state_dict(timm_weights())[0])


@pytest.mark.parametrize("heads", [5, 0])
def test_heads_must_divide_the_hidden_size(heads):
    with pytest.raises(ValueError, match=f"`num_attention_heads` must divide the hidden size.* 32, got {heads}"):
        config_from_state_dict(convert_state_dict(timm_weights())[0], num_attention_heads=heads)


def test_a_rectangular_grid_needs_the_image_size(tmp_path):
    weights = timm_weights(grid=(2, 5))
    checkpoint = save_training_state(tmp_path / "checkpoint.pth", weights)
    with pytest.raises(ValueError, match=r"10 patches, which is no square grid\. Pass `image_size`"):
        convert_checkpoint(checkpoint, tmp_path / "out", num_attention_heads=4)
    convert_checkpoint(checkpoint, tmp_path / "out", num_attention_heads=4, image_size=[16, 40])
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    pixel_values = torch.randn(1, 3, 16, 40)
    with torch.no_grad():
        cls_logits = model(pixel_values).cls_logits
    # float32 against float64
    torch.testing.assert_close(cls_logits.double(), timm_forward(weights, pixel_values, 4)[0], atol=2e-5, rtol=1e-5)
    image_processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert (image_processor.size["height"], image_processor.size["width"]) == (16, 40)


@pytest.mark.parametrize("image_size", [40, [32, 40], [30, 34]])
def test_an_image_size_must_fit_the_position_embeddings(image_size):
    with pytest.raises(ValueError, match="`image_size` must give a grid of 16 patches of 8 x 8 pixels"):
        config_from_state_dict(convert_state_dict(timm_weights())[0], num_attention_heads=4, image_size=image_size)


def test_the_patch_head_must_have_one_class_more_than_the_classifier():
    weights = {**timm_weights(patch_head=True), "mlp_head.weight": torch.zeros(5, 32)}
    with pytest.raises(ValueError, match=r"must have num_labels \+ 1 = 6 rows .*got shape \(5, 32\)"):
        config_from_state_dict(convert_state_dict(weights)[0], num_attention_heads=4)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("blocks.1.mlp.fc1.weight", (40, 32), r"blocks\.1\.mlp\.fc1\.weight .*\(40, 32\), expected \(48, 32\)"),
        ("blocks.0.attn.qkv.weight", (90, 32), r"blocks\.0\.attn\.qkv\.weight .*\(30, 32\), expected \(32, 32\)"),
        ("blocks.0.attn.qkv.weight", (95, 32), r"`blocks\.0\.attn\.qkv\.weight` must have 3 x hidden_size rows"),
        ("cls_token", (1, 1, 16), r"cls_token .*\(1, 1, 16\), expected \(1, 1, 32\)"),
        ("head.weight", (5,), r"`classifier\.weight` must have 2 axes, got shape \(5,\)"),
        ("head.bias", (4,), r"head\.bias .*\(4,\), expected \(5,\)"),
    ],
)
def test_a_wrong_shape_is_named_before_anything_is_written(tmp_path, name, shape, message):
    checkpoint = save_training_state(tmp_path / "checkpoint.pth", {**timm_weights(), name: torch.zeros(shape)})
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(checkpoint, tmp_path / "out", num_attention_heads=4)
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pth"]


def copy_folder(source: Path, target: Path, **changes: object) -> Path:
    """Copy a Hub-like folder with changes in its config.json."""
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **changes}))
    return target


def test_a_configuration_that_contradicts_its_weights_is_refused(hub_folder, tmp_path):
    folder = copy_folder(hub_folder("vit", "new"), tmp_path / "vit", intermediate_size=80, num_hidden_layers=3)
    with pytest.raises(ValueError, match=r"num_hidden_layers is 3 .* and 2 .*intermediate_size is 80 .* and 74"):
        convert_checkpoint(folder, tmp_path / "out")


def test_heads_that_contradict_the_configuration_are_refused(hub_folder, tmp_path):
    with pytest.raises(ValueError, match=r"num_attention_heads is 4 in `config\.json` and 2"):
        convert_checkpoint(hub_folder("vit", "new"), tmp_path / "out", num_attention_heads=2)


@pytest.mark.parametrize("model_type", ["resnet", None])
def test_a_folder_of_another_model_is_refused(hub_folder, tmp_path, model_type):
    folder = copy_folder(hub_folder("vit", "new"), tmp_path / "other", model_type=model_type)
    with pytest.raises(ValueError, match=f"`model_type` among vit, deit, .*dinov2.*, ice_deit, got {model_type!r}"):
        convert_checkpoint(folder, tmp_path / "out")


# --- labels ---


def test_class_names_are_written(tmp_path):
    names = ["ant", "bee", "cat", "dog", "emu"]
    (tmp_path / "list.json").write_text(json.dumps(names))
    (tmp_path / "dict.json").write_text(json.dumps({str(index): name for index, name in enumerate(names)}))
    assert read_id2label(tmp_path / "list.json") == read_id2label(tmp_path / "dict.json") == dict(enumerate(names))
    checkpoint = save_training_state(tmp_path / "checkpoint.pth", timm_weights())
    convert_checkpoint(
        checkpoint, tmp_path / "out", num_attention_heads=4, id2label=read_id2label(tmp_path / "list.json")
    )
    config = IceDeiTConfig.from_pretrained(tmp_path / "out")
    assert config.id2label == dict(enumerate(names))
    assert config.label2id["emu"] == 4


@pytest.mark.parametrize("names", [["a", "b"], ["a", "b", "c", "d", "d"]])
def test_class_names_must_fit_the_classifier(names):
    with pytest.raises(ValueError, match=r"`id2label` must give the classes 0 to 4 .*all different"):
        config_from_state_dict(
            convert_state_dict(timm_weights())[0], num_attention_heads=4, id2label=dict(enumerate(names))
        )


@pytest.mark.parametrize("content", ['{"a": "b"}', "3", "not json"])
def test_a_file_without_class_names_is_refused(tmp_path, content):
    (tmp_path / "labels.json").write_text(content)
    with pytest.raises(ValueError, match=r"must hold a list of names|must be a JSON file"):
        read_id2label(tmp_path / "labels.json")
    with pytest.raises(FileNotFoundError, match="`id2label` must be a JSON file"):
        read_id2label(tmp_path / "nowhere.json")


# --- preprocessing ---


def test_a_file_gets_the_preprocessing_of_deit(tmp_path):
    checkpoint = save_training_state(tmp_path / "checkpoint.pth", timm_weights())
    report = convert_checkpoint(checkpoint, tmp_path / "out", num_attention_heads=4)
    written = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert written["image_processor_type"] == "IceDeiTImageProcessor"
    assert written["image_mean"] == [0.485, 0.456, 0.406]
    assert written["image_std"] == [0.229, 0.224, 0.225]
    assert written["resample"] == 3  # bicubic
    assert written["do_convert_rgb"] is True
    assert written["do_center_crop"] is False
    assert written["size"] == {"height": 32, "width": 32}
    assert json.loads(json.dumps(report.to_dict()))["preprocessing"]["image_mean"] == [0.485, 0.456, 0.406]


def test_a_folder_keeps_its_own_preprocessing(hub_folder, tmp_path):
    folder = copy_folder(hub_folder("deit", "old"), tmp_path / "deit")
    # the form of the older files on the Hub: sides as plain numbers, settings left out
    own = {"feature_extractor_type": "DeiTFeatureExtractor", "size": 40, "crop_size": 32, "do_center_crop": True}
    own.update({"resample": 2, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7], "do_normalize": True})
    (folder / "preprocessor_config.json").write_text(json.dumps(own))
    report = convert_checkpoint(folder, tmp_path / "out")
    image = torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8)
    ours = AutoImageProcessor.from_pretrained(tmp_path / "out")
    theirs = AutoImageProcessor.from_pretrained(folder, backend="pil")
    assert type(ours).__name__ == "IceDeiTImageProcessor"
    pixels = [processor(image, return_tensors="pt").pixel_values for processor in (ours, theirs)]
    assert pixels[0].shape == (1, 3, 32, 32)
    # the same arithmetic in another order of rounding at most
    torch.testing.assert_close(*pixels, atol=1e-6, rtol=0)
    assert report.preprocessing["source"] == "preprocessor_config.json of the checkpoint"


def test_an_unreadable_preprocessing_is_an_error(hub_folder, tmp_path):
    folder = copy_folder(hub_folder("vit", "old"), tmp_path / "vit")
    (folder / "preprocessor_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"`preprocessor_config.json` of .* cannot be read"):
        convert_checkpoint(folder, tmp_path / "out")


def test_a_timm_folder_keeps_its_mean_and_deviation(tmp_path):
    (tmp_path / "timm").mkdir()
    save_file(timm_weights(), tmp_path / "timm" / "model.safetensors")
    described = {"mean": [0.5, 0.5, 0.5], "std": [0.4, 0.4, 0.4], "interpolation": "bilinear", "crop_pct": 0.9}
    config = {"architecture": "deit_tiny_patch16_224", "num_classes": 5, "pretrained_cfg": described}
    (tmp_path / "timm" / "config.json").write_text(json.dumps(config))
    report = convert_checkpoint(tmp_path / "timm", tmp_path / "out", num_attention_heads=4)
    assert report.layout == "timm"
    image_processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert list(image_processor.image_mean) == [0.5, 0.5, 0.5]
    assert list(image_processor.image_std) == [0.4, 0.4, 0.4]
    assert image_processor.resample == 2  # bilinear
    assert image_processor.size["height"] == 32


# --- files ---


def test_the_file_of_the_authors_is_read_and_its_average_can_be_chosen(tmp_path):
    weights = timm_weights(patch_head=True)
    average = {name: weight / 2 for name, weight in weights.items()}
    checkpoint = save_training_state(tmp_path / "0_checkpoint.pth", weights, model_ema=average)
    assert equal(read_checkpoint(checkpoint), weights)
    assert equal(read_checkpoint(checkpoint, weights_key="model_ema"), average)
    with pytest.raises(ValueError, match=r"under 'teacher', got entries .*'model', .*'model_ema'"):
        read_checkpoint(checkpoint, weights_key="teacher")


@pytest.mark.parametrize("form", ["bare", "state_dict", "parameters", "legacy"])
def test_other_forms_of_pytorch_files_are_read(tmp_path, form):
    weights = timm_weights()
    content = {"state_dict": {"state_dict": weights}}.get(form, weights)
    if form == "parameters":
        content = {name: nn.Parameter(weight) for name, weight in weights.items()}
    torch.save(content, tmp_path / "weights.bin", _use_new_zipfile_serialization=form != "legacy")
    read = read_checkpoint(tmp_path / "weights.bin")
    assert equal(read, weights)
    assert not any(weight.requires_grad for weight in read.values())


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_sharded_folder_is_read_whole(tmp_path, suffix):
    weights = timm_weights()
    names, save = sorted(weights), save_file if suffix == "safetensors" else torch.save
    shards = {f"shard-{index}.{suffix}": names[index::2] for index in range(2)}
    for shard, keys in shards.items():
        save({name: weights[name] for name in keys}, tmp_path / shard)
    index = {"weight_map": {name: shard for shard, keys in shards.items() for name in keys}}
    stem = "model.safetensors" if suffix == "safetensors" else "pytorch_model.bin"
    (tmp_path / f"{stem}.index.json").write_text(json.dumps(index))
    assert equal(read_checkpoint(tmp_path), weights)
    (tmp_path / f"shard-1.{suffix}").unlink()
    with pytest.raises(FileNotFoundError, match=f"shards that are not there: shard-1.{suffix}"):
        read_checkpoint(tmp_path)


def test_an_index_without_a_map_is_refused(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ValueError, match="must hold a `weight_map`"):
        read_checkpoint(tmp_path)


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"got '.*nowhere\.pth', which does not exist"):
        read_checkpoint(tmp_path / "nowhere.pth")
    with pytest.raises(FileNotFoundError, match=r"folder with one of model\.safetensors, .*without any"):
        read_checkpoint(tmp_path)


class Exec:
    """Runs python when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return (exec, (f"open({str(self.target)!r}, 'w').close()",))


@pytest.mark.parametrize("form", ["zip", "legacy", "plain pickle", "inside the namespace", "beside the weights"])
def test_a_checkpoint_that_would_run_code_is_refused_and_does_not_run(tmp_path, form):
    trap, path = tmp_path / "executed", tmp_path / "checkpoint.pth"
    if form == "plain pickle":
        path.write_bytes(pickle.dumps(Exec(trap), protocol=2))
    elif form == "inside the namespace":
        save_training_state(path, timm_weights(), args=argparse.Namespace(lr=Exec(trap)))
    elif form == "beside the weights":
        save_training_state(path, timm_weights(), extra=[Exec(trap)])
    else:
        torch.save({"model": Exec(trap)}, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ValueError, match=r"asks for exec; nothing of it was run") as error:
        convert_checkpoint(path, tmp_path / "out", num_attention_heads=4)
    assert "argparse.Namespace" in str(error.value)
    assert not trap.exists()
    assert not (tmp_path / "out").exists()
    if form == "plain pickle":  # the trap works: an ordinary unpickler walks into it
        pickle.loads(path.read_bytes())
        assert trap.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_of_a_newer_protocol_is_refused_and_does_not_run(tmp_path):
    (tmp_path / "checkpoint.pth").write_bytes(pickle.dumps(Exec(tmp_path / "executed"), protocol=4))
    with pytest.raises(ValueError, match=r"not a PyTorch checkpoint \(Unsupported operand"):
        read_checkpoint(tmp_path / "checkpoint.pth")
    assert not (tmp_path / "executed").exists()


def test_the_allow_list_ends_with_the_reading(tmp_path):
    save_training_state(tmp_path / "checkpoint.pth", timm_weights())
    read_checkpoint(tmp_path / "checkpoint.pth")
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("weights.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "Git LFS pointer"),
        ("weights.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ("weights.pth", b"\n<!DOCTYPE html><html></html>", "a web page"),
        ("weights.safetensors", b"<html><body>404</body></html>", "a web page"),
        ("weights.pth", b"<?xml version='1.0'?><Error>AccessDenied</Error>", "XML answer"),
        ("weights.pth", b"", "is empty"),
        ("weights.pth", b"neither pickle nor archive", "truncated or not a PyTorch checkpoint"),
        ("weights.safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00{", "truncated or not a safetensors file"),
    ],
)
def test_what_a_failed_download_leaves_is_recognised(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(tmp_path / name, tmp_path / "out", num_attention_heads=4)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth", "legacy.pth"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_file_is_recognised(tmp_path, name, share):
    if name.endswith("safetensors"):
        save_file(timm_weights(), tmp_path / name)
    else:
        torch.save(timm_weights(), tmp_path / name, _use_new_zipfile_serialization=name != "legacy.pth")
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="truncated or not a"):
        read_checkpoint(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(1)], "must hold a dict of tensors, got list"),
        ({"epoch": 3}, "weights under 'model' or 'state_dict' or 'teacher', got entries without any dict"),
        ({"model": {}}, "must all be tensors, got none at all"),
        ({"model": {"cls_token": torch.ones(1), "epoch": 3}}, r"must all be tensors, got epoch"),
    ],
)
def test_a_file_without_weights_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "checkpoint.pth")
    with pytest.raises(ValueError, match=message):
        read_checkpoint(tmp_path / "checkpoint.pth")


def test_a_resnet_is_not_taken_for_a_transformer(tmp_path):
    names = ["conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "fc.weight"]
    torch.save({name: torch.ones(1) for name in names}, tmp_path / "resnet18.pth")
    with pytest.raises(
        ValueError, match=r"must be a ViT or DeiT .*4 tensors of which 0 have a known name.*conv1\.weight"
    ):
        convert_checkpoint(tmp_path / "resnet18.pth", tmp_path / "out")


# --- the folder ---


def test_the_folder_is_complete_and_names_no_place_of_this_machine(hub_folder, tmp_path):
    convert_checkpoint(hub_folder("vit", "old"), tmp_path / "deep" / "out")
    names = {file.name for file in (tmp_path / "deep" / "out").iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "modeling_ice_deit.py"} <= names
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["out"]
    for name in ("config.json", "preprocessor_config.json"):
        assert str(tmp_path.parent) not in (tmp_path / "deep" / "out" / name).read_text()
    model = IceDeiTForSemanticSegmentation.from_pretrained(tmp_path / "deep" / "out")
    assert model(torch.zeros(1, 3, 32, 32)).logits.shape == (1, 4, 4, 4)


def test_a_folder_with_files_is_only_overwritten_when_asked(hub_folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds files already.*overwrite_output_dir"):
        convert_checkpoint(hub_folder("vit", "new"), tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["notes.txt"]
    convert_checkpoint(hub_folder("vit", "new"), tmp_path / "out", overwrite_output_dir=True)
    convert_checkpoint(hub_folder("deit", "new"), tmp_path / "out", overwrite_output_dir=True)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "out").config.use_distillation_token


def test_an_output_that_would_lose_something_is_refused(hub_folder, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="`output_dir` must be a folder"):
        convert_checkpoint(hub_folder("vit", "new"), tmp_path / "file")
    with pytest.raises(ValueError, match="`output_dir` must differ from `checkpoint`"):
        convert_checkpoint(hub_folder("vit", "new"), hub_folder("vit", "new"), overwrite_output_dir=True)


def test_a_failure_while_writing_leaves_nothing(hub_folder, tmp_path, monkeypatch):
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("transformers_ice.conversion.checkpoint.IceDeiTImageProcessor.save_pretrained", fail)
    with pytest.raises(OSError, match="No space left"):
        convert_checkpoint(hub_folder("vit", "new"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# --- the script ---


@pytest.fixture(scope="module")
def script():
    from transformers_ice.cli import convert

    return convert


def test_the_script_works_from_end_to_end(tmp_path, warm_python):
    checkpoint = save_training_state(tmp_path / "0_checkpoint.pth", timm_weights(patch_head=True))
    words = ["--checkpoint", checkpoint, "--output_dir", tmp_path / "out", "--num_attention_heads", "4"]
    result = subprocess.run(
        [warm_python.python, SCRIPT, *words, "--report", tmp_path / "report.json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "tensors found" in result.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["num_source_keys"] == 33
    assert report["num_converted_keys"] == 41
    assert report["sizes"]["num_attention_heads"] == 4
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert model.config.logits_source == "patch"


def test_the_script_says_what_it_initialised(script, hub_folder, tmp_path, capsys):
    script.main(["--checkpoint", str(hub_folder("vit", "old")), "--output_dir", str(tmp_path / "out")])
    assert "initialised deit.patch_head.weight" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_the_script_takes_its_options_from_a_file(script, tmp_path, suffix):
    checkpoint = save_training_state(tmp_path / "checkpoint.pth", timm_weights(grid=(2, 5)))
    (tmp_path / "labels.json").write_text(json.dumps(list("abcde")))
    options = {"checkpoint": str(checkpoint), "output_dir": str(tmp_path / "out"), "num_attention_heads": 4}
    options.update(image_size=[16, 40], id2label=str(tmp_path / "labels.json"))
    (tmp_path / f"options.{suffix}").write_text(json.dumps(options))  # JSON is YAML
    script.main([str(tmp_path / f"options.{suffix}")])
    config = IceDeiTConfig.from_pretrained(tmp_path / "out")
    assert config.image_size == [16, 40]
    assert config.id2label[4] == "e"


def test_the_script_ends_with_the_reason(script, tmp_path, capsys):
    assert script.main(["--checkpoint", str(tmp_path / "no.pth"), "--output_dir", str(tmp_path / "out")]) == 1
    assert re.search(r"Error: `checkpoint` must be a file or folder.*does not exist", capsys.readouterr().err)
    with pytest.raises(SystemExit, match="2"):
        script.main(["--checkpoint", "a", "--output_dir", "b", "--num_heads", "3"])
    assert "--num_heads" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["blocks.{}.ls{}.gamma", "blocks.{}.gamma_{}"], ids=["DINOv2", "DeiT III"])
@pytest.mark.parametrize("scales", [(1, 2), (1,), (2,)], ids=str)
def test_layer_scale_is_multiplied_into_the_layer_before_it(name, scales):
    weights, expected = timm_weights(), timm_weights()
    for block in range(2):
        for scale in scales:
            layer = f"blocks.{block}.{'attn.proj' if scale == 1 else 'mlp.fc2'}"
            gamma = torch.randn(
                len(weights[f"{layer}.weight"]), generator=torch.Generator().manual_seed(block + scale)
            )
            weights[name.format(block, scale)] = gamma
            expected[f"{layer}.weight"] = gamma[:, None] * weights[f"{layer}.weight"]
            expected[f"{layer}.bias"] = gamma * weights[f"{layer}.bias"]
    converted, report = convert_state_dict(weights)
    for key, value in convert_state_dict(expected)[0].items():
        torch.testing.assert_close(converted[key], value, rtol=1e-7, atol=0)  # one rounding to float32
    assert report.dropped_keys[name.format(1, scales[0])].startswith("LayerScale, multiplied into ")
    assert len(report.dropped_keys) == 2 * len(scales)


def test_a_layer_scale_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"`blocks.0.ls1.gamma` of shape \(5,\) does not scale the rows"):
        convert_state_dict(
            {**timm_weights(), "blocks.0.ls1.gamma": torch.ones(5), "blocks.1.ls1.gamma": torch.ones(32)}
        )


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        (torch.zeros(1).expand(10**6, 10**6), "stand for more numbers than the file holds"),
        (torch.zeros(3, 3).to_sparse(), "are sparse, nested or without values"),
        (torch.empty(3, 3, device="meta"), "are sparse, nested or without values"),
        (torch.zeros(3).to(torch.float8_e4m3fn), r"are not floating point \(quantised\?\)"),
        (torch.zeros(3, dtype=torch.int8), r"are not floating point \(quantised\?\)"),
        (torch.tensor([torch.nan]), "hold NaN or infinity"),
    ],
)
def test_tensors_that_are_no_plain_numbers_are_refused(tensor, expected):
    with pytest.raises(ValueError, match=rf"these {expected}.*: head\.bias"):
        convert_state_dict({**timm_weights(), "head.bias": tensor})


def test_an_error_names_ten_keys_and_how_many_more():
    with pytest.raises(ValueError, match=r"missing: .* and \d+ more") as error:
        convert_state_dict({**timm_weights(), "blocks.9999.norm1.weight": torch.ones(3)})
    assert len(str(error.value)) < 2000


@pytest.mark.parametrize("content", ["[" * 100_000, "{", "null", '"x"', "[]"])
def test_a_configuration_that_is_no_object_is_refused(tmp_path, content):
    save_file(timm_weights(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json.*must"):
        convert_checkpoint(tmp_path, tmp_path / "converted")


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"image_std": [0, 0, 0]}, "image_std"), ({"size": 10**6}, "size"), ({"resample": "x"}, "resample")],
)
def test_preprocessing_that_cannot_work_is_refused(tmp_path, settings, name):
    save_file(timm_weights(), tmp_path / "model.safetensors")
    settings = {"image_processor_type": "ViTImageProcessor", **settings}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=rf"preprocessor_config\.json.*{name}"):
        convert_checkpoint(tmp_path, tmp_path / "converted", num_attention_heads=2)
    assert not (tmp_path / "converted").exists()


LARGE_MODEL = """
import resource, sys, time
from pathlib import Path
from transformers import DeiTConfig, DeiTForImageClassification, DeiTImageProcessor
from transformers_ice import IceDeiTForImageClassification
from transformers_ice.conversion import convert_checkpoint

home = Path(sys.argv[2])
if sys.argv[1] == "make":
    DeiTForImageClassification(DeiTConfig(num_labels=1000)).save_pretrained(home / "deit")
    DeiTImageProcessor().save_pretrained(home / "deit")
else:
    start = time.monotonic()
    convert_checkpoint(home / "deit", home / "ice")
    model = IceDeiTForImageClassification.from_pretrained(home / "ice")
    model.save_pretrained(home / "again")
    again = IceDeiTForImageClassification.from_pretrained(home / "again")
    assert all((again.state_dict()[name] == value).all() for name, value in model.state_dict().items())
    print(sum(value.numel() for value in model.parameters()), again.config.num_labels)
    print(time.monotonic() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.slow
def test_deit_b_of_1000_classes_is_converted_within_bounds(tmp_path):
    """Conversion, loading, saving and loading again, in a process of its own."""
    for step in ("make", "use"):
        words = [sys.executable, "-c", LARGE_MODEL, step, str(tmp_path)]
        finished = subprocess.run(words, capture_output=True, text=True, check=True)
    (parameters, labels), (seconds, megabytes) = (line.split() for line in finished.stdout.splitlines())
    assert 86e6 < int(parameters) < 88e6
    assert labels == "1000"
    assert float(seconds) < 60
    assert float(megabytes) < 2500  # the weights have 350 MB
