# SPDX-License-Identifier: Apache-2.0
"""The three model classes: outputs, checkpoints in and out, attention backends, capture, training, errors."""

import copy
import json
import re
from pathlib import Path

import pytest
import torch
from conftest import HUB_FAMILIES, HUB_LAYOUTS, randomize
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTModel,
    DeiTPreTrainedModel,
    ViTForImageClassification,
)

from transformers_ice import (
    IceDeiTConfig,
    IceDeiTForImageClassification,
    IceDeiTForSemanticSegmentation,
    IceDeiTModel,
)
from transformers_ice.ice_deit.modeling_ice_deit import IceDeiTDropPath
from transformers_ice.ice_deit.remote_code import AUTO_MAP, remote_code_files


SOURCES = Path(__file__).parents[1] / "src" / "transformers_ice" / "ice_deit"
MODEL_CLASSES = (IceDeiTModel, IceDeiTForImageClassification, IceDeiTForSemanticSegmentation)
OWNERS = {
    "vit": ViTForImageClassification,
    "deit": DeiTForImageClassification,
    "deit-with-teacher": DeiTForImageClassificationWithTeacher,
}


@pytest.fixture(params=[(False, 0), (True, 0), (True, 4)], ids=["one prefix token", "two", "two and registers"])
def config(request, tiny_config):
    has_token, num_registers = request.param
    prefix = {"use_distillation_token": has_token, "num_register_tokens": num_registers}
    return IceDeiTConfig(**{**tiny_config.to_dict(), **prefix})


@pytest.fixture
def pixel_values():
    return torch.randn(2, 3, 32, 32)


def make(model_class, config):
    model = model_class(config).eval()
    randomize(model)
    return model


# --- outputs


def test_the_classes_are_deit_classes():
    assert issubclass(IceDeiTModel, DeiTModel)
    for model_class in MODEL_CLASSES:
        assert issubclass(model_class, DeiTPreTrainedModel)


def test_outputs_have_the_documented_shapes(config, pixel_values):
    outputs = make(IceDeiTForImageClassification, config)(pixel_values)
    shapes = {name: tuple(value.shape) for name, value in outputs.items()}
    assert shapes == {
        "logits": (2, 3),
        "cls_logits": (2, 3),
        "patch_logits": (2, 16, 4),
        "foreground_logits": (2, 4),
        "background_logits": (2, 4),
        "foreground_ratio": (2,),
        "patch_exit_layer": (2, 16),
        "grid_size": (2, 2),
    }
    assert outputs.grid_size.tolist() == [[4, 4], [4, 4]]
    assert (outputs.patch_exit_layer == 2).all()
    assert set(outputs) - {"logits"} <= set(config.keys_to_ignore_at_inference)


def test_losses_come_with_labels_only_and_are_ignored_at_inference(config, pixel_values):
    model = make(IceDeiTForImageClassification, config)
    extra = set(model(pixel_values, labels=torch.tensor([0, 2]))) - set(model(pixel_values))
    assert extra == {"loss", "classification_loss", "background_loss", "cls_loss"}
    assert extra - {"loss"} <= set(config.keys_to_ignore_at_inference)


def test_logits_come_from_the_named_source(tiny_config, pixel_values):
    model = make(IceDeiTForImageClassification, tiny_config)
    outputs = model(pixel_values)
    assert torch.equal(outputs.logits, outputs.foreground_logits[:, :3])
    model.config.logits_source = "cls"
    assert torch.equal(model(pixel_values).logits, outputs.cls_logits)


def test_patches_are_classified_before_the_final_layer_norm(config, pixel_values):
    model = make(IceDeiTModel, config)
    outputs = model(pixel_values, output_hidden_states=True)
    patches = outputs.hidden_states[-1][:, config.num_prefix_tokens :]
    assert torch.equal(outputs.patch_logits, model.patch_head(patches))
    assert len(outputs.hidden_states) == config.num_hidden_layers + 1


def test_a_patch_head_with_a_hidden_layer(tiny_config, pixel_values):
    tiny_config.patch_head_hidden_size = 8
    model = make(IceDeiTForImageClassification, tiny_config)
    assert {name for name in model.state_dict() if "patch_head" in name} == {
        "deit.patch_head.fc1.weight",
        "deit.patch_head.fc1.bias",
        "deit.patch_head.fc2.weight",
    }
    assert model(pixel_values).patch_logits.shape == (2, 16, 4)


def test_an_image_without_foreground_has_zero_logits(tiny_config, pixel_values):
    model = make(IceDeiTForImageClassification, tiny_config)
    with torch.no_grad():
        model.deit.patch_head.weight.zero_()
    model.deit.patch_head.register_forward_hook(lambda module, args, logits: logits + torch.tensor([0.0, 0, 0, 1]))
    outputs = model(pixel_values, labels=torch.tensor([0, 1]))
    assert outputs.foreground_ratio.tolist() == [0.0, 0.0]
    assert not outputs.logits.any()
    assert outputs.loss.isfinite()


def test_segmentation_gives_the_patch_logits_as_a_map(config):
    pixel_values = torch.randn(2, 3, 32, 48)
    classifier = make(IceDeiTForImageClassification, config)
    segmenter = IceDeiTForSemanticSegmentation(config).eval()
    segmenter.load_state_dict(classifier.state_dict())  # same weights, strictly
    logits = segmenter(pixel_values).logits
    assert logits.shape == (2, 4, 4, 6)
    patch_logits = classifier(pixel_values).patch_logits
    for row in range(4):
        for column in range(6):
            assert torch.equal(logits[:, :, row, column], patch_logits[:, row * 6 + column])
    assert segmenter.config.id2label[3] == "background"
    assert segmenter.config.num_labels == 3


@pytest.mark.parametrize("model_class", MODEL_CLASSES)
def test_tuples_are_returned_on_request(model_class, config, pixel_values):
    model = make(model_class, config)
    as_tuple = model(pixel_values, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[0], model(pixel_values)[0])


def test_batch_composition_does_not_change_an_image(config, pixel_values):
    model = make(IceDeiTForImageClassification, config)
    together, alone = model(pixel_values), model(pixel_values[1:])
    # one float32 rounding of a differently blocked matrix product
    torch.testing.assert_close(together.patch_logits[1:], alone.patch_logits, atol=1e-5, rtol=1e-4)


# --- image sizes


@pytest.mark.parametrize(("height", "width"), [(8, 8), (64, 32), (24, 72)])
def test_any_multiple_of_the_patch_size_is_accepted(config, height, width):
    outputs = make(IceDeiTForImageClassification, config)(torch.randn(1, 3, height, width))
    assert outputs.grid_size.tolist() == [[height // 8, width // 8]]
    assert outputs.patch_logits.shape[1] == height // 8 * width // 8


def test_positions_are_interpolated_as_transformers_does(hub_folder):
    pixel_values = torch.randn(1, 3, 48, 64)
    for family in HUB_FAMILIES:
        owner = OWNERS[family].from_pretrained(hub_folder(family, "new")).eval()
        model = IceDeiTForImageClassification.from_pretrained(hub_folder(family, "new")).eval()
        expected = owner(pixel_values, interpolate_pos_encoding=True).logits
        assert torch.equal(model(pixel_values).cls_logits, expected)
        # the flag changes nothing
        assert torch.equal(model(pixel_values, interpolate_pos_encoding=True).cls_logits, expected)


def test_a_rectangular_configuration(tiny_config):
    config = IceDeiTConfig(**{**tiny_config.to_dict(), "image_size": [16, 48], "patch_size": [8, 4]})
    model = make(IceDeiTForImageClassification, config)
    assert model.deit.embeddings.position_embeddings.shape[1] == 1 + 2 * 12
    assert model(torch.randn(1, 3, 16, 48)).grid_size.tolist() == [[2, 12]]
    assert model(torch.randn(1, 3, 32, 24)).grid_size.tolist() == [[4, 6]]


# --- checkpoints in


@pytest.mark.parametrize("model_class", MODEL_CLASSES)
@pytest.mark.parametrize("layout", HUB_LAYOUTS)
@pytest.mark.parametrize("family", HUB_FAMILIES)
def test_hub_folders_load_exactly(family, layout, model_class, hub_folder, pixel_values):
    folder = hub_folder(family, layout)
    model, info = model_class.from_pretrained(folder, output_loading_info=True)
    missing = {"patch_head.weight"} if model_class is IceDeiTModel else {"deit.patch_head.weight"}
    assert info["missing_keys"] == missing
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert model.config.logits_source == "cls"
    assert torch.isfinite(model.get_parameter(missing.pop())).all()

    owner = OWNERS[family].from_pretrained(folder).eval()
    outputs = model.eval()(pixel_values)
    if model_class is IceDeiTModel:
        assert torch.equal(outputs.last_hidden_state, owner.base_model(pixel_values).last_hidden_state)
    else:
        assert torch.equal(outputs.cls_logits, owner(pixel_values).logits)
    if model_class is IceDeiTForImageClassification:
        assert torch.equal(outputs.logits, outputs.cls_logits)  # it classifies as before


# --- checkpoints out


def test_auto_classes_load_what_was_saved(config, pixel_values, tmp_path):
    model = make(IceDeiTForImageClassification, config)
    model.save_pretrained(tmp_path)
    expected = model(pixel_values)
    assert set(load_file(tmp_path / "model.safetensors")) == set(model.state_dict())
    for auto_class, model_class in (
        (AutoModel, IceDeiTModel),
        (AutoModelForImageClassification, IceDeiTForImageClassification),
        (AutoModelForSemanticSegmentation, IceDeiTForSemanticSegmentation),
    ):
        loaded, info = auto_class.from_pretrained(tmp_path, output_loading_info=True)
        assert type(loaded) is model_class
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert torch.equal(loaded.eval()(pixel_values).patch_logits, expected.patch_logits)


def test_a_saved_folder_holds_the_code_and_all_auto_map_entries(tiny_config, tmp_path):
    model = make(IceDeiTForSemanticSegmentation, tiny_config)
    model.save_pretrained(tmp_path)
    for name in remote_code_files():
        assert (tmp_path / name).read_text() == (SOURCES / name).read_text()
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["auto_map"] == AUTO_MAP
    assert written["custom_pipelines"]["patch-explanation"]["impl"].startswith("pipeline_patch_explanation.")
    assert len(written["id2label"]) == 3
    # the living model is not changed by it
    assert not hasattr(model.config, "custom_pipelines")


def test_a_model_saved_by_the_segmentation_class_loads_as_a_classifier(config, pixel_values, tmp_path):
    segmenter = make(IceDeiTForSemanticSegmentation, config)
    segmenter.save_pretrained(tmp_path)
    classifier, info = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(classifier.eval()(pixel_values).cls_logits, segmenter(pixel_values).cls_logits)
    # and the configuration of a living segmentation model serves the other classes
    assert IceDeiTForImageClassification(segmenter.config).config.num_labels == 3


def test_another_number_of_labels_needs_the_flag(tiny_config, tmp_path):
    make(IceDeiTForImageClassification, tiny_config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="ignore_mismatched_sizes"):
        IceDeiTForImageClassification.from_pretrained(tmp_path, num_labels=7)
    model = IceDeiTForImageClassification.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    assert model.deit.patch_head.weight.shape == (8, 32)
    assert torch.isfinite(model.deit.patch_head.weight).all()


# --- attention backends, capture, precision


@pytest.mark.parametrize(
    "implementation",
    ["eager", "sdpa", pytest.param("flex_attention", marks=pytest.mark.slow)],  # which is compiled
)
def test_attention_implementations_agree(implementation, config, pixel_values):
    model = make(IceDeiTForImageClassification, config)
    with torch.no_grad():
        model.set_attn_implementation("eager")
        expected = model(pixel_values).patch_logits
        model.set_attn_implementation(implementation)
        # float32 sums in another order
        torch.testing.assert_close(model(pixel_values).patch_logits, expected, atol=1e-5, rtol=1e-4)


def test_attentions_are_returned_by_the_eager_implementation(config, pixel_values):
    model = make(IceDeiTForImageClassification, config)
    model.set_attn_implementation("eager")
    attentions = model(pixel_values, output_attentions=True).attentions
    assert [tuple(attention.shape) for attention in attentions] == [
        (2, 4, 16 + config.num_prefix_tokens) * 1 + (16 + config.num_prefix_tokens,)
    ] * 2


def test_compiles_as_one_graph_with_and_without_labels(config, pixel_values):
    model = make(IceDeiTForImageClassification, config)
    # "eager" checks the graph without waiting for a C++ compiler
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    labels = torch.tensor([0, 2])
    with torch.no_grad():
        assert torch.equal(compiled(pixel_values).patch_logits, model(pixel_values).patch_logits)
        assert torch.equal(compiled(pixel_values, labels=labels).loss, model(pixel_values, labels=labels).loss)


@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_exports_with_a_dynamic_batch(strict, config, pixel_values):
    model = make(IceDeiTForImageClassification, config)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (pixel_values,), dynamic_shapes=({0: batch},), strict=strict)
    other = torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(program.module()(other)["logits"], model(other).logits, atol=1e-5, rtol=1e-4)


def test_bfloat16_stays_close_to_float32(config, pixel_values):
    model = make(IceDeiTForImageClassification, config)
    expected = model(pixel_values, labels=torch.tensor([0, 1]))
    half = copy.deepcopy(model).bfloat16()
    outputs = half(pixel_values, labels=torch.tensor([0, 1]))
    assert outputs.logits.dtype == torch.bfloat16
    assert outputs.loss.dtype == torch.float32
    # 8 bits of mantissa through two layers
    torch.testing.assert_close(outputs.patch_logits.float(), expected.patch_logits, atol=0.3, rtol=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(pixel_values, labels=torch.tensor([0, 1])).loss.isfinite()


# --- training


def test_every_parameter_has_a_gradient(config, pixel_values):
    model = make(IceDeiTForImageClassification, config).train()
    model(pixel_values, labels=torch.tensor([0, 1])).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_the_cls_loss_counts_with_its_weight(tiny_config, pixel_values):
    model = make(IceDeiTForImageClassification, tiny_config)
    labels = torch.tensor([0, 1])
    without = model(pixel_values, labels=labels)
    model.config.cls_loss_weight = 0.5
    outputs = model(pixel_values, labels=labels)
    torch.testing.assert_close(outputs.loss, without.loss + 0.5 * without.cls_loss)
    expected = torch.nn.functional.cross_entropy(outputs.cls_logits, labels)
    torch.testing.assert_close(outputs.cls_loss, expected)


def test_hard_labels_equal_their_one_hot_soft_labels(tiny_config, pixel_values):
    model = make(IceDeiTForImageClassification, tiny_config)
    soft = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    assert torch.equal(model(pixel_values, labels=torch.tensor([0, 2])).loss, model(pixel_values, labels=soft).loss)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_checkpointing_changes_no_gradient(implementation, config, pixel_values):
    gradients = []
    for checkpointing in (False, True):
        model = make(IceDeiTForImageClassification, config).train()
        model.set_attn_implementation(implementation)
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(pixel_values, labels=torch.tensor([0, 1])).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_stochastic_depth_grows_with_depth_and_is_off_in_evaluation(tiny_config, pixel_values):
    config = IceDeiTConfig(**{**tiny_config.to_dict(), "num_hidden_layers": 3, "drop_path_rate": 0.6})
    model = make(IceDeiTForImageClassification, config)
    assert [layer.drop_path.drop_probability for layer in model.deit.layers] == pytest.approx([0.0, 0.3, 0.6])
    assert torch.equal(model(pixel_values).logits, model(pixel_values).logits)
    model.train()
    assert not torch.equal(model(pixel_values).patch_logits, model(pixel_values).patch_logits)


def test_stochastic_depth_drops_whole_images_and_keeps_the_mean():
    drop_path = IceDeiTDropPath(0.25).train()
    branch = torch.ones(4000, 2, 3)
    dropped = drop_path(branch)
    per_image = dropped.flatten(1)
    assert ((per_image == 0).all(1) | torch.isclose(per_image, torch.tensor(4 / 3)).all(1)).all()
    # standard error of the mean over 4000 images: sqrt(0.25 / 0.75 / 4000) = 0.009
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.04)


def test_a_fresh_model_starts_as_timm_does(config):
    config.hidden_size, config.num_attention_heads = 64, 4
    model = IceDeiTForImageClassification(config)
    for name, parameter in model.named_parameters():
        is_matrix = name.endswith("weight") and "norm" not in name
        if is_matrix or name.endswith(("token", "tokens", "position_embeddings")):
            expected = (3 * 64) ** -0.5 / 3**0.5 if "projection" in name else 0.02
            # the least of these tensors has 64 random values: a relative standard error of 9 %
            assert parameter.std().item() == pytest.approx(expected, rel=0.3), name
        elif "projection" not in name:
            assert torch.equal(parameter, torch.full_like(parameter, "norm" in name and name.endswith("weight")))


# --- wrong input


@pytest.mark.parametrize(
    ("pixel_values", "message"),
    [
        (None, "`pixel_values` is missing"),
        (torch.zeros(3, 32, 32), r"shape \(batch_size, 3, height, width\), got \(3, 32, 32\)"),
        (torch.zeros(1, 1, 32, 32), r"got \(1, 1, 32, 32\)"),
        (torch.zeros(1, 3, 33, 32), "multiple of the patch size 8 x 8, got 33 x 32"),
        (torch.zeros(1, 3, 32, 4), "got 32 x 4"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "floating point, got torch.uint8"),
    ],
)
@pytest.mark.parametrize("model_class", MODEL_CLASSES)
def test_wrong_pixel_values_are_refused(pixel_values, message, model_class, tiny_config):
    with pytest.raises(ValueError, match=message):
        model_class(tiny_config)(pixel_values)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 3]), r"class indices in \[0, 2\], got values from 0 to 3"),
        (torch.tensor([-1, 0]), "got values from -1 to 0"),
        (torch.tensor([0, 1, 2]), r"integers of shape \(2,\)"),
        (torch.tensor([0.0, 1.0]), "integers of shape"),
        (torch.tensor([True, False]), "integers of shape"),
        (torch.zeros(2, 4), r"soft targets of shape \(2, 3\), without a background column, got torch.float32"),
        (torch.zeros(2, 3, dtype=torch.long), "floating-point soft targets"),
    ],
)
def test_wrong_labels_are_refused(labels, message, tiny_config, pixel_values):
    with pytest.raises(ValueError, match=message):
        IceDeiTForImageClassification(tiny_config)(pixel_values, labels=labels)


def test_segmentation_refuses_labels(tiny_config, pixel_values):
    with pytest.raises(ValueError, match="Train with IceDeiTForImageClassification"):
        IceDeiTForSemanticSegmentation(tiny_config)(pixel_values, labels=torch.zeros(2, 32, 32, dtype=torch.long))


# --- the sample checkpoint


@pytest.mark.parametrize("name", ["ice-deit-imagenette", "ice-deit-scenes", "ice-deit-scenes-pruned"])
def test_the_sample_checkpoints_carry_the_code_of_this_package(name):
    folder = SOURCES.parents[2] / "checkpoints" / name
    stale = [name for name in remote_code_files() if (folder / name).read_text() != (SOURCES / name).read_text()]
    assert not stale, "run `make checkpoint-code`"


def _drop(*keys):
    def change(weights):
        for key in keys:
            del weights[key]

    return change


@pytest.mark.parametrize(
    ("config", "weights", "expected"),
    [
        ({"num_hidden_layers": 1}, None, r"no place for, deit\.layers\.1\..* and 6 more"),
        ({"num_hidden_layers": 3}, None, r"lacks deit\.layers\.2\."),
        ({"patch_head_hidden_size": 8}, None, r"lacks deit\.patch_head\.fc1.*no place for, deit\.patch_head\.weight"),
        ({"hidden_size": 16}, None, r"in another shape classifier\.weight \(3, 32\) for \(3, 16\)"),
        ({}, _drop("deit.patch_head.weight"), r"lacks deit\.patch_head\.weight"),
        ({}, _drop("classifier.weight"), r"lacks classifier\.weight"),
        ({}, lambda weights: weights.update(stray=torch.zeros(1)), "no place for, stray"),
        ({}, lambda weights: weights["classifier.bias"].fill_(torch.nan), r"NaN or infinity: classifier\.bias"),
        ({}, lambda weights: weights["classifier.bias"].fill_(torch.inf), r"NaN or infinity: classifier\.bias"),
        ({"num_attention_heads": 0}, None, r"config.*num_attention_heads"),
        ({"dtype": "floatx"}, None, "config.*`dtype` must be a type"),
        ({"hidden_size": "32"}, None, "config.*'hidden_size' expected int"),
    ],
)
def test_half_a_model_is_refused_by_name(tiny_config, tmp_path, config, weights, expected):
    make(IceDeiTForImageClassification, tiny_config).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    if weights is not None:
        state = load_file(tmp_path / "model.safetensors")
        weights(state)
        save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=expected.replace("config", re.escape(str(tmp_path)))):
        AutoModelForImageClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1", "model.safetensors.*Git LFS pointer"),
        ("model.safetensors", b"", "model.safetensors.*is empty"),
        ("model.safetensors", b"\x10" * 100, "cannot be read: .*Is the download complete"),
        ("model.safetensors.index.json", b'{"weight_map": {}}', "index.json.* is empty"),
        ("model.safetensors.index.json", b"[]", "index.json.*must hold a `weight_map`"),
        ("pytorch_model.bin", b"PK\x03\x04" + bytes(100), "cannot be read"),
    ],
)
def test_broken_weight_files_are_refused_by_name(tiny_config, tmp_path, name, content, expected):
    make(IceDeiTForImageClassification, tiny_config).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=expected):
        AutoModelForImageClassification.from_pretrained(tmp_path)


def test_other_parts_than_heads_are_never_drawn_again(tiny_config, tmp_path):
    make(IceDeiTForImageClassification, tiny_config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"another shape .*patch_embeddings\.projection.*interpolated"):
        IceDeiTForImageClassification.from_pretrained(tmp_path, num_channels=1, ignore_mismatched_sizes=True)


def test_weights_have_the_mode_of_the_files_next_to_them(tiny_config, tmp_path):
    make(IceDeiTForImageClassification, tiny_config).save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "config.json").stat().st_mode


@pytest.mark.parametrize(
    ("source", "weight", "training", "warns"),
    [("cls", 0.0, True, True), ("cls", 1.0, True, False), ("cls", 0.0, False, False), ("patch", 0.0, True, False)],
)
def test_a_loop_that_does_not_train_its_logits_is_told(tiny_config, monkeypatch, source, weight, training, warns):
    said = []
    monkeypatch.setattr("transformers_ice.ice_deit.modeling_ice_deit.logger.warning_once", said.append)
    tiny_config.logits_source, tiny_config.cls_loss_weight = source, weight
    model = IceDeiTForImageClassification(tiny_config).train(training)
    model(torch.zeros(2, 3, 32, 32), labels=torch.tensor([0, 1]))
    assert bool(said) == warns
    assert all('model.config.logits_source = "patch"' in text for text in said)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32])
def test_labels_may_be_integers_of_any_type(tiny_config, dtype):
    model, pixel_values = make(IceDeiTForImageClassification, tiny_config), torch.randn(2, 3, 32, 32)
    expected = model(pixel_values, labels=torch.tensor([1, 2])).loss
    assert model(pixel_values, labels=torch.tensor([1, 2], dtype=dtype)).loss == expected


@pytest.mark.parametrize(
    "rows",
    [[[0, 1, 1], [1, 0, 0]], [[0, 0, 0], [1, 0, 0]], [[2, -1, 0], [1, 0, 0]], [[torch.nan, 0, 1], [1, 0, 0]]],
    ids=["two classes", "none", "negative", "nan"],
)
def test_soft_labels_are_distributions(tiny_config, rows):
    model = make(IceDeiTForImageClassification, tiny_config)
    with pytest.raises(ValueError, match="row of each image must sum to 1"):
        model(torch.randn(2, 3, 32, 32), labels=torch.tensor(rows, dtype=torch.float32))


def test_regression_is_refused_in_training_only(tiny_config):
    model, pixel_values = make(IceDeiTForImageClassification, tiny_config), torch.randn(1, 3, 32, 32)
    model.config.problem_type = "regression"
    assert model(pixel_values).loss is None
    with pytest.raises(ValueError, match=r"`problem_type` must be None, .*as ICE learns classes, got 'regression'"):
        model(pixel_values, labels=torch.tensor([1]))


@pytest.mark.parametrize("model_class", [IceDeiTModel, IceDeiTForImageClassification])
def test_no_attention_mask_is_taken_and_none_is_fine(tiny_config, model_class):
    model, pixel_values = make(model_class, tiny_config), torch.randn(1, 3, 32, 32)
    assert torch.equal(model(pixel_values, attention_mask=None)[0], model(pixel_values)[0])
    with pytest.raises(ValueError, match="`attention_mask` must be None"):
        model(pixel_values, attention_mask=torch.ones(1, 17))


@pytest.mark.parametrize("model_class", [IceDeiTModel, IceDeiTForImageClassification])
@pytest.mark.parametrize("strategy", [None, "background", "top_k", "attentiveness"])
def test_a_batch_without_images_is_refused(tiny_config, model_class, strategy):
    model = make(
        model_class,
        IceDeiTConfig(
            **{**tiny_config.to_dict(), "pruning_strategy": strategy, "pruning_layers": [1], "keep_rates": [0.5]}
        ),
    )
    with pytest.raises(ValueError, match="at least one image, got an empty batch"):
        model(torch.zeros(0, 3, 32, 32))


def test_a_loss_that_does_not_train_the_returned_logits_says_so(tiny_config, monkeypatch):
    said = []
    monkeypatch.setattr("transformers_ice.ice_deit.modeling_ice_deit.logger.warning_once", said.append)
    model, pixel_values = make(IceDeiTForImageClassification, tiny_config).train(), torch.randn(1, 3, 32, 32)
    for changes in ({"logits_source": "patch"}, {"logits_source": "cls", "cls_loss_weight": 1.0}):
        vars(model.config).update(changes)
        model(pixel_values, labels=torch.tensor([1]))
        assert not said
    model.config.cls_loss_weight = 0.0
    model(pixel_values, labels=torch.tensor([1]))
    assert 'model.config.logits_source = "patch"' in said[0]
