# SPDX-License-Identifier: Apache-2.0
"""Encoders of every family give the same hidden states in ICE-DeiT: loaded or converted, at two image sizes.

The references are transformers' own classes with random weights. Files in the layouts of timm and facebook are those
weights renamed; their positions at another size are written out from the definition.
"""

from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForImageClassification

from transformers_ice import IceDeiTConfig, IceDeiTForImageClassification, IceDeiTModel
from transformers_ice.cli import convert
from transformers_ice.conversion import config_from_state_dict, convert_checkpoint, convert_state_dict
from transformers_ice.ice_deit.position_interpolation import POSITION_INTERPOLATIONS


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
TRAINED, SMALLER, LARGER = 32, 24, [40, 48]
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}
MLP = {"intermediate_size": 48}
DECODER = {"decoder_hidden_size": 16, "decoder_num_attention_heads": 2, "decoder_num_hidden_layers": 1}
FAMILIES = {
    "vit": (transformers.ViTForImageClassification, MLP),
    "vit_msn": (transformers.ViTMSNForImageClassification, MLP),
    "vit_mae": (transformers.ViTMAEForPreTraining, {**MLP, **DECODER, "mask_ratio": 0.0}),
    "dinov2": (transformers.Dinov2Model, {"mlp_ratio": 2}),
    "dinov2, classifier": (transformers.Dinov2ForImageClassification, {"mlp_ratio": 2}),
    "registers": (transformers.Dinov2WithRegistersModel, {"num_register_tokens": 3, "layer_norm_eps": 1e-5}),
    "registers, classifier": (transformers.Dinov2WithRegistersForImageClassification, {"num_register_tokens": 3}),
}


def build(family: str, dtype: torch.dtype = torch.float32, **changes: object) -> transformers.PreTrainedModel:
    """A random model of a family; all of its weights differ, also norms and LayerScale."""
    model_class, fields = FAMILIES[family]
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**{**SIZES, **fields, "num_labels": 5, **changes})).eval().to(dtype)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def encode(model: transformers.PreTrainedModel, pixel_values: Tensor) -> Tensor:
    """Last hidden states of a model of transformers, at any image size."""
    options: dict[str, object] = {}
    if not model.config.model_type.startswith("dinov2"):
        options["interpolate_pos_encoding"] = True
    if model.config.model_type == "vit_mae":  # nothing is masked, and this order keeps the patches in theirs
        num_patches = math.prod(side // 8 for side in pixel_values.shape[2:])
        options["noise"] = torch.arange(float(num_patches)).expand(len(pixel_values), -1)
    with torch.no_grad():
        return model.base_model(pixel_values, **options).last_hidden_state


def images(size: int | list[int], dtype: torch.dtype = torch.float32) -> Tensor:
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(2, 3, height, width, dtype=dtype, generator=torch.Generator().manual_seed(0))


def hidden_states(model: IceDeiTForImageClassification, pixel_values: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval().deit(pixel_values).last_hidden_state


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


# --- folders of transformers ---


@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_loaded_encoder_equals_its_source_at_the_size_asked_for(tmp_path, family, dtype):
    source = build(family, dtype)
    source.save_pretrained(tmp_path)
    new_head = {"ignore_mismatched_sizes": True} if family.endswith("classifier") else {}
    for size in (TRAINED, SMALLER, LARGER):
        model = IceDeiTForImageClassification.from_pretrained(tmp_path, image_size=size, **new_head)
        pixel_values = images(size, dtype)
        assert model.dtype == dtype
        assert model.config.image_size == size
        close(hidden_states(model, pixel_values), encode(source, pixel_values), TOLERANCES[dtype])
        assert not any("layer_scale" in name for name in model.state_dict())


@pytest.mark.parametrize("family", ["vit", "vit_msn"])
@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
def test_a_classifier_of_cls_is_kept(tmp_path, family, dtype):
    source = build(family, dtype)
    source.save_pretrained(tmp_path)
    for size in (TRAINED, SMALLER):
        model = IceDeiTForImageClassification.from_pretrained(tmp_path, image_size=size).eval()
        with torch.no_grad():
            expected = source(images(size, dtype), interpolate_pos_encoding=True).logits
            outputs = model(images(size, dtype))
        close(outputs.cls_logits, expected, TOLERANCES[dtype])
        assert torch.equal(outputs.logits, outputs.cls_logits)


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("size", [TRAINED, SMALLER, LARGER], ids=str)
def test_a_converted_encoder_equals_its_source_at_the_size_asked_for(tmp_path, family, size):
    source = build(family)
    source.save_pretrained(tmp_path / "source")
    has_head = hasattr(source, "classifier")
    report = convert_checkpoint(
        tmp_path / "source", tmp_path / "out", image_size=size, num_labels=None if has_head else 7
    )
    model = IceDeiTForImageClassification.from_pretrained(tmp_path / "out")
    close(hidden_states(model, images(size)), encode(source, images(size)))
    assert model.config.num_labels == (5 if has_head else 7)
    assert model.config.layer_norm_eps == source.config.layer_norm_eps
    # every tensor of the file is in the result or has its reason
    in_file = load_file(tmp_path / "source" / "model.safetensors")
    assert report.num_source_keys == len(in_file) == report.num_converted_keys + len(report.dropped_keys)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert len(written) == report.num_converted_keys + len(report.initialized_keys)
    assert "decoder" in " ".join(report.dropped_keys) or family != "vit_mae"


@pytest.mark.parametrize("save_original_format", [True, False])
@pytest.mark.parametrize("family", ["dinov2", "registers", "vit_mae", "vit_msn"])
def test_both_layouts_of_a_family_load_alike(tmp_path, family, save_original_format):
    source = build(family)
    source.save_pretrained(tmp_path / "source", save_original_format=save_original_format)
    expected = encode(source, images(TRAINED))
    close(hidden_states(IceDeiTForImageClassification.from_pretrained(tmp_path / "source"), images(TRAINED)), expected)
    convert_checkpoint(tmp_path / "source", tmp_path / "out", num_labels=5)
    close(hidden_states(IceDeiTForImageClassification.from_pretrained(tmp_path / "out"), images(TRAINED)), expected)


@pytest.mark.parametrize("family", ["dinov2", "dinov2, classifier", "registers, classifier"])
def test_the_encoder_class_loads_alone(tmp_path, family):
    source = build(family)
    source.save_pretrained(tmp_path)
    model = IceDeiTModel.from_pretrained(tmp_path, image_size=SMALLER).eval()
    with torch.no_grad():
        close(model(images(SMALLER)).last_hidden_state, encode(source, images(SMALLER)))


def test_left_at_its_own_size_a_model_interpolates_as_its_source(tmp_path):
    for family in ("vit", "dinov2", "registers"):
        source = build(family)
        source.save_pretrained(tmp_path / family)
        model = IceDeiTForImageClassification.from_pretrained(tmp_path / family)
        close(hidden_states(model, images(LARGER)), encode(source, images(LARGER)))
        close(hidden_states(model, images(SMALLER)), encode(source, images(SMALLER)))


def test_windows_divide_the_grid_asked_for_whatever_that_of_the_checkpoint(tmp_path):
    """DINOv2's own grid is 37 x 37."""
    source = build("dinov2", image_size=40)  # 5 x 5 patches
    source.save_pretrained(tmp_path)
    by_field = IceDeiTForImageClassification.from_pretrained(tmp_path, image_size=TRAINED, num_local_windows=2)
    config = IceDeiTConfig.from_pretrained(tmp_path, image_size=TRAINED, num_local_windows=2)
    by_config = IceDeiTForImageClassification.from_pretrained(tmp_path, config=config)
    for model in (by_field, by_config):
        assert (model.config.image_size, model.config.num_local_windows) == (TRAINED, 2)
        close(hidden_states(model, images(TRAINED)), encode(source, images(TRAINED)))
    assert (config.image_size, config.num_local_windows) == (TRAINED, 2)
    with pytest.raises(ValueError, match="2 for a grid of 3 x 3"):
        IceDeiTForImageClassification.from_pretrained(tmp_path, image_size=SMALLER, num_local_windows=2)
    with pytest.raises(ValueError, match="2 for a grid of 5 x 5"):
        IceDeiTForImageClassification.from_pretrained(tmp_path, num_local_windows=2)
    by_field.save_pretrained(tmp_path / "ice")
    again = IceDeiTForImageClassification.from_pretrained(tmp_path / "ice", image_size=48)
    assert (again.config.image_size, again.config.num_local_windows) == (48, 2)


def test_an_ice_checkpoint_loads_at_another_size(tmp_path, tiny_config):
    model = IceDeiTForImageClassification(tiny_config).eval()
    model.save_pretrained(tmp_path)
    patch = tiny_config.patch_size
    size = 6 * (patch if isinstance(patch, int) else patch[0])
    larger = IceDeiTForImageClassification.from_pretrained(tmp_path, image_size=size)
    assert torch.equal(hidden_states(larger, images(size)), hidden_states(model, images(size)))
    larger.save_pretrained(tmp_path / "again")
    again = AutoModelForImageClassification.from_pretrained(tmp_path, image_size=size)
    assert torch.equal(hidden_states(again, images(size)), hidden_states(model, images(size)))
    again = IceDeiTForImageClassification.from_pretrained(tmp_path / "again")
    assert again.config.image_size == size
    assert torch.equal(hidden_states(again, images(size)), hidden_states(model, images(size)))


# --- what cannot be kept ---


@pytest.mark.parametrize("family", ["dinov2, classifier", "registers, classifier"])
def test_a_classifier_that_reads_patches_is_refused_or_new(tmp_path, family, caplog):
    source = build(family)
    source.save_pretrained(tmp_path / "source")
    with pytest.raises(ValueError, match=r"reads \[CLS\] and the mean of the patches.*ignore_mismatched_sizes=True"):
        IceDeiTForImageClassification.from_pretrained(tmp_path / "source")
    model = IceDeiTForImageClassification.from_pretrained(tmp_path / "source", ignore_mismatched_sizes=True)
    assert not model.classifier.bias.any()  # not that of the classifier that was left out
    report = convert_checkpoint(tmp_path / "source", tmp_path / "out")
    assert "mean of the patches" in report.dropped_keys["classifier.weight"]
    assert "mean of the patches" in report.dropped_keys["classifier.bias"]
    assert set(report.initialized_keys) == {"classifier.weight", "classifier.bias", "deit.patch_head.weight"}


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("dinov2", {"use_swiglu_ffn": True}, "`use_swiglu_ffn` of a dinov2 model is True: SwiGLU"),
        ("registers", {"use_swiglu_ffn": True}, "`use_swiglu_ffn` of a dinov2_with_registers model is True: SwiGLU"),
        ("vit", {"head_dim": 4}, "`head_dim` times `num_attention_heads` must be `hidden_size`"),
    ],
)
def test_a_field_that_changes_the_model_is_refused_by_name(tmp_path, family, changes, message):
    build(family).save_pretrained(tmp_path / "source")
    file = tmp_path / "source" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    for load in (
        IceDeiTForImageClassification.from_pretrained,
        lambda folder: convert_checkpoint(folder, tmp_path / "out", num_labels=2),
    ):
        with pytest.raises(ValueError, match=message):
            load(tmp_path / "source")


def test_a_field_of_a_later_transformers_is_refused_where_it_does_something(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "transformers_ice.ice_deit.source_families._declared_fields", lambda model_type: {"use_qk_norm": False}
    )
    build("vit_msn").save_pretrained(tmp_path)
    IceDeiTConfig.from_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "use_qk_norm": True}))
    with pytest.raises(ValueError, match="`use_qk_norm` of a vit_msn model is True"):
        IceDeiTConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("family", ["dinov2", "registers", "vit_mae"])
def test_fields_are_mapped_and_those_of_other_parts_left_out(tmp_path, family):
    source = build(family, hidden_act="relu", qkv_bias=False, initializer_range=0.05)
    source.save_pretrained(tmp_path)
    config = IceDeiTForImageClassification.from_pretrained(tmp_path).config
    assert (config.hidden_act, config.qkv_bias, config.initializer_range) == ("relu", False, 0.05)
    assert config.intermediate_size == (48 if family == "vit_mae" else 32 * source.config.mlp_ratio)
    assert config.num_register_tokens == (3 if family == "registers" else 0)
    assert config.interpolate_antialias == (family == "registers")
    left_out = {"mlp_ratio", "layerscale_value", "use_swiglu_ffn", "stage_names", "mask_ratio", "decoder_hidden_size"}
    assert not left_out & {*config.to_dict()}


def test_an_encoder_without_classifier_needs_the_number_of_classes(tmp_path):
    build("dinov2").save_pretrained(tmp_path / "source")
    with pytest.raises(ValueError, match=r"missing: classifier\.weight, classifier\.bias\. .*pass `num_labels`"):
        convert_checkpoint(tmp_path / "source", tmp_path / "out")
    convert_checkpoint(tmp_path / "source", tmp_path / "out", id2label={0: "ant", 1: "bee", 2: "cat"})
    assert IceDeiTConfig.from_pretrained(tmp_path / "out").id2label == {0: "ant", 1: "bee", 2: "cat"}


def test_a_number_of_classes_that_contradicts_the_classifier_is_refused(tmp_path):
    build("vit").save_pretrained(tmp_path / "source")
    with pytest.raises(ValueError, match="`num_labels` must be that of the checkpoint's classifier, 5, got 3"):
        convert_checkpoint(tmp_path / "source", tmp_path / "out", num_labels=3)


# --- files in the layouts of timm and facebook ---

RENAMINGS = (
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.register_tokens$", "register_tokens"),
    (r"^embeddings\.(cls_token|mask_token)$", r"\1"),
    (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^layernorm", "norm"),
    (r"^(encoder\.layer|layers)\.", "blocks."),
    (r"attention\.o_proj", "attn.proj"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
)


def facebook_layout(model: transformers.PreTrainedModel) -> dict[str, Tensor]:
    """Weights of an encoder under the names of facebook's files, which are timm's but for the registers."""
    weights: dict[str, Tensor] = {}
    for name, tensor in model.base_model.state_dict().items():
        for pattern, new in RENAMINGS:
            name = re.sub(pattern, new, name)
        weights[name] = tensor.clone()
    for block in range(model.config.num_hidden_layers):
        for parameter in ("weight", "bias"):
            parts = [weights.pop(f"blocks.{block}.attention.{part}_proj.{parameter}") for part in "qkv"]
            weights[f"blocks.{block}.attn.qkv.{parameter}"] = torch.cat(parts)
    return weights


def reference_at(model: transformers.PreTrainedModel, size: int, antialias: bool, offset: float) -> Tensor:
    """Hidden states at another size, the positions interpolated as timm's or facebook's code does it."""
    positions = model.base_model.embeddings.position_embeddings.data
    patches = positions[:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    new = size // 8
    scale = {"scale_factor": ((new + offset) / 4,) * 2} if offset else {"size": (new, new)}
    patches = F.interpolate(patches, mode="bicubic", antialias=antialias, **scale)
    assert patches.shape[-2:] == (new, new)
    patches = patches.flatten(2).transpose(1, 2)
    # as many positions as patches: the model adds them as they are
    resized = copy.deepcopy(model)
    resized.base_model.embeddings.position_embeddings.data = torch.cat((positions[:, :1], patches), dim=1)
    return encode(resized, images(size))


def without_class_position(model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    model.base_model.embeddings.position_embeddings.data[:, 0] = 0
    return model


def dinov2_file(chunks: bool = False) -> tuple[transformers.PreTrainedModel, dict[str, Tensor]]:
    model = build("dinov2")
    weights = facebook_layout(model)
    if chunks:
        weights = {re.sub(r"^blocks\.(\d)\.", r"blocks.0.\1.", name): value for name, value in weights.items()}
    return model, weights


def dinov2_training_file() -> tuple[transformers.PreTrainedModel, dict[str, Tensor]]:
    model, weights = dinov2_file(chunks=True)
    weights = {f"backbone.{name}": value for name, value in weights.items()}
    return model, {**weights, "dino_head.mlp.0.weight": torch.ones(2, 2), "ibot_head.last_layer.x": torch.ones(2)}


def dino_file() -> tuple[transformers.PreTrainedModel, dict[str, Tensor]]:
    model = build("vit")
    weights = {f"module.backbone.{name}": value for name, value in facebook_layout(model).items()}
    return model, {
        **weights,
        "module.head.mlp.0.weight": torch.ones(2, 2),
        "module.head.last_layer.weight_g": torch.ones(2),
    }


def mae_file() -> tuple[transformers.PreTrainedModel, dict[str, Tensor]]:
    model = build("vit_mae")
    unused = ("mask_token", "decoder_pos_embed", "decoder_embed.weight", "decoder_blocks.0.attn.qkv.weight")
    unused += ("decoder_norm.bias", "decoder_pred.bias")
    return model, {**facebook_layout(model), **{name: torch.ones(2, 2) for name in unused}}


def deit3_file() -> tuple[transformers.PreTrainedModel, dict[str, Tensor]]:
    model = without_class_position(build("dinov2"))
    weights = facebook_layout(model)
    del weights["mask_token"]
    weights["pos_embed"] = weights["pos_embed"][:, 1:].clone()
    return model, {re.sub(r"ls(\d)\.gamma", r"gamma_\1", name): value for name, value in weights.items()}


def timm_register_file(with_positions: bool) -> tuple[transformers.PreTrainedModel, dict[str, Tensor]]:
    model = build("registers")
    if not with_positions:
        without_class_position(model)
    weights = facebook_layout(model)
    del weights["mask_token"]
    registers, positions = weights.pop("register_tokens"), weights["pos_embed"]
    if with_positions:
        own = torch.randn(registers.shape, generator=torch.Generator().manual_seed(2))
        registers, positions = registers - own, torch.cat((positions[:, :1], own, positions[:, 1:]), dim=1)
    else:
        positions = positions[:, 1:].clone()
    return model, {**weights, "reg_token": registers, "pos_embed": positions}


# name -> (model and file, antialias, offset, number of changed tensors)
FILES = {
    "DINOv2": (dinov2_file, False, 0.1, 0),
    "DINOv2 in chunks": (lambda: dinov2_file(chunks=True), False, 0.1, 0),
    "DINOv2 in training": (dinov2_training_file, False, 0.1, 0),
    "DINO": (dino_file, False, 0.1, 0),
    "MAE": (mae_file, False, 0.0, 0),
    "DINOv2 with registers": (lambda: (build("registers"), facebook_layout(build("registers"))), True, 0.0, 0),
    "timm dinov2": (lambda: without(dinov2_file(), "mask_token"), True, 0.0, 0),
    "DeiT III": (deit3_file, False, 0.0, 1),
    "timm reg4 no_embed_class": (lambda: timm_register_file(with_positions=False), True, 0.0, 1),
    "timm reg4": (lambda: timm_register_file(with_positions=True), True, 0.0, 1),
}


def without(
    pair: tuple[transformers.PreTrainedModel, dict[str, Tensor]], name: str
) -> tuple[transformers.PreTrainedModel, dict[str, Tensor]]:
    return pair[0], {key: value for key, value in pair[1].items() if key != name}


@pytest.mark.parametrize("size", [TRAINED, SMALLER, 48])
@pytest.mark.parametrize("name", list(FILES))
def test_a_converted_file_equals_its_source_at_the_size_asked_for(tmp_path, name, size):
    make, antialias, offset, num_changed = FILES[name]
    source, weights = make()
    # as DINO and DINOv2 wrap it
    torch.save({"teacher": weights, "epoch": 3} if name.endswith("training") else weights, tmp_path / "weights.pth")
    report = convert_checkpoint(
        tmp_path / "weights.pth", tmp_path / "out", image_size=size, num_labels=4, num_attention_heads=4
    )
    model = IceDeiTForImageClassification.from_pretrained(tmp_path / "out")
    # a file does not hold its epsilon
    model.deit.layernorm.eps = source.config.layer_norm_eps
    for layer in model.deit.layers:
        layer.layernorm_before.eps = layer.layernorm_after.eps = source.config.layer_norm_eps
    expected = encode(source, images(size)) if size == TRAINED else reference_at(source, size, antialias, offset)
    close(hidden_states(model, images(size)), expected)
    assert len(report.changed_keys) == num_changed
    assert report.num_source_keys == len(weights)
    qkv_parts = 2 * 2 * 2  # a fused qkv of two layers, weight and bias, counts as three
    assert report.num_converted_keys - qkv_parts + len(report.dropped_keys) == len(weights)
    assert model.config.interpolate_antialias == antialias
    assert POSITION_INTERPOLATIONS["offset" if offset else "antialias" if antialias else "bicubic"].description in (
        report.positions
    )


@pytest.mark.parametrize("name", ["DINOv2", "DeiT III", "timm reg4", "timm reg4 no_embed_class", "DINO"])
def test_in_float64_a_file_is_converted_to_the_last_digits(name):
    source, weights = FILES[name][0]()
    source = source.double()
    weights = {key: value.double() for key, value in weights.items()}
    converted, _ = convert_state_dict(weights, num_labels=2)
    config = config_from_state_dict(converted, num_attention_heads=4, num_labels=2)
    config.layer_norm_eps = source.config.layer_norm_eps
    model = IceDeiTForImageClassification(config).double()
    model.load_state_dict({**model.state_dict(), **converted})
    pixel_values = images(TRAINED, torch.float64)
    # `timm reg4` was made by a subtraction in float32, before the weights were cast
    tolerance = 1e-6 if name == "timm reg4" else 1e-10
    close(hidden_states(model, pixel_values), encode(source, pixel_values), tolerance)


def test_the_habit_of_a_file_can_be_named(tmp_path):
    source, weights = without(dinov2_file(), "mask_token")
    torch.save(weights, tmp_path / "weights.pth")
    words = ["--checkpoint", str(tmp_path / "weights.pth"), "--output_dir", str(tmp_path / "out"), "--num_labels", "4"]
    words += ["--num_attention_heads", "4", "--image_size", "24"]
    assert convert.main([*words, "--position_interpolation", "offset"]) == 0
    model = IceDeiTForImageClassification.from_pretrained(tmp_path / "out")
    close(hidden_states(model, images(SMALLER)), reference_at(source, SMALLER, antialias=False, offset=0.1))
    assert not model.config.interpolate_antialias


def test_an_unknown_habit_is_refused(tmp_path):
    torch.save(dinov2_file()[1], tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"`position_interpolation` must be .*bicubic.*got 'nearest'"):
        convert_checkpoint(tmp_path / "weights.pth", tmp_path / "out", num_labels=2, position_interpolation="nearest")


def test_the_command_says_what_became_of_the_positions(tmp_path, capsys):
    build("registers, classifier").save_pretrained(tmp_path / "source")
    words = ["--checkpoint", str(tmp_path / "source"), "--output_dir", str(tmp_path / "out"), "--image_size", "48"]
    assert convert.main([*words, "--report", str(tmp_path / "report.json")]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"position embeddings +from 4 x 4 to 6 x 6 patches; .*antialias", printed)
    assert re.search(r"dropped classifier\.weight +the classifier reads \[CLS\] and the mean of the patches", printed)
    assert re.search(r"initialised classifier\.weight +not in the checkpoint", printed)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["dropped_keys"]["dinov2_with_registers.embeddings.mask_token"].startswith("the mask token")


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("blocks.0.mlp.w12.weight", "SwiGLU"),
        ("attn_pool.latent", "by attention"),
        ("rope.freqs", "rotary"),
        ("blocks.0.attn.q_norm.weight", "normalised queries"),
        ("norm_pre.weight", "before the layers"),
    ],
)
def test_parts_that_deit_lacks_are_refused_by_name(name, meaning):
    with pytest.raises(ValueError, match=rf"unknown: {re.escape(name)} \(.*{meaning}"):
        convert_state_dict({**dinov2_file()[1], name: torch.ones(2)}, num_labels=2)


def test_the_swiglu_of_timm_is_refused_by_its_shapes():
    weights = dinov2_file()[1]
    for block in range(2):
        weights[f"blocks.{block}.mlp.fc1.weight"] = torch.ones(128, 32)
        weights[f"blocks.{block}.mlp.fc1.bias"] = torch.ones(128)
    converted, _ = convert_state_dict(weights, num_labels=2)
    with pytest.raises(ValueError, match=r"gives 128 numbers and the second takes 64: this is SwiGLU"):
        config_from_state_dict(converted, num_attention_heads=4, num_labels=2)


def test_positions_of_patches_alone_are_not_guessed_for_a_plain_vit(tmp_path):
    weights = facebook_layout(build("vit"))
    weights["pos_embed"] = torch.ones(1, 16, 32)  # [CLS] and a grid of 3 x 5, or 4 x 4 patches
    torch.save(weights, tmp_path / "weights.pth")
    options = {"num_labels": 2, "num_attention_heads": 4}
    with pytest.raises(ValueError, match=r"15 patches, which is no square grid\. Pass `image_size`"):
        convert_checkpoint(tmp_path / "weights.pth", tmp_path / "out", **options)
    convert_checkpoint(tmp_path / "weights.pth", Path(tmp_path / "out"), image_size=[24, 40], **options)
    assert IceDeiTConfig.from_pretrained(tmp_path / "out").image_size == [24, 40]
