# SPDX-License-Identifier: Apache-2.0
"""`benchmarks/draw_families.py`: lower layers of one ViT in every family, and a small run from training to figures."""

from __future__ import annotations

import json

import draw_families
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageClassification, ViTConfig, ViTForImageClassification

from transformers_ice.data.scenes import SCENE_CLASSES


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture
def start(monkeypatch):
    monkeypatch.setattr(draw_families, "SIZES", SIZES)
    torch.manual_seed(0)
    config = ViTConfig(**SIZES, intermediate_size=128, image_size=64, patch_size=8, layer_norm_eps=1e-6, num_labels=10)
    return ViTForImageClassification(config).eval()


def build(name):
    family = draw_families.FAMILIES[name]
    fields = dict(pair.split("=") for pair in family.config_overrides.split(","))
    config = AutoConfig.for_model(family.model_type, **{key: json.loads(value) for key, value in fields.items()})
    config.architectures = []
    torch.manual_seed(1)
    return AutoModelForImageClassification.from_config(config).eval()


@pytest.mark.parametrize("name", ["vit", "vit_msn", "dinov2"])
def test_copied_layers_compute_what_they_did_in_the_vit(start, name):
    model, images = build(name), torch.randn(2, 3, 64, 64)
    draw_families.copy_lower_layers(model, start, 1)
    with torch.no_grad():
        own, other = (each(images, output_hidden_states=True).hidden_states for each in (model, start))
    torch.testing.assert_close(own[1], other[1], atol=1e-5, rtol=0)
    assert not torch.allclose(own[2], other[2], atol=1e-2)  # the upper layer is not copied


@pytest.mark.parametrize(("name", "prefix"), [("deit", 2), ("dinov2_with_registers", 5)])
def test_further_tokens_stand_between_the_copied_ones(start, name, prefix):
    model, images = build(name), torch.randn(2, 3, 64, 64)
    copied = draw_families.copy_lower_layers(model, start, 2)
    with torch.no_grad():
        own, other = (each.base_model.embeddings(images) for each in (model, start))
    torch.testing.assert_close(own[:, :1], other[:, :1])
    torch.testing.assert_close(own[:, prefix:], other[:, 1:])
    # what only this family has is left to be trained
    left = {key for key, value in model.named_parameters() if not any(value is parameter for parameter in copied)}
    own_names = ("distillation_token", "mask_token", "register_tokens", "layer_scale", "layernorm.", "classifier")
    assert left
    assert all(any(part in key for part in own_names) for key in left)


def test_small_run_trains_scores_and_draws_and_resumes(start, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(draw_families, "METHODS", {"rollout": "rollout"})
    monkeypatch.setattr(draw_families, "DECODER_SIZE", 16)
    start.save_pretrained(tmp_path / "start")
    options = ["--start", str(tmp_path / "start"), "--num_start_layers", "1", "--output_dir", str(tmp_path / "out")]
    options += ["--max_steps", "2", "--num_train", "20", "--num_eval", "10", "--num_scored", "2"]
    options += ["--scenes", "0", "--families", "vit_mae"]
    draw_families.main(options)
    (line,) = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (line["class"], line["tokens"]) == ("ViTForImageClassification", 1)
    assert 0 < line["rollout"] < line["ceiling"] <= 1
    assert "| MAE, fine-tuned |" in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "family_vit_mae.png") as figure:
        assert figure.mode == "P"
        assert min(figure.size) > 100
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out" / "vit_mae")
    assert list(model.config.id2label.values()) == list(SCENE_CLASSES)
    # the lower layer is still that of the start, the upper one is not
    own, other = model.vit.layers, start.vit.layers
    assert torch.equal(own[0].mlp.fc1.weight, other[0].mlp.fc1.weight)
    assert not torch.equal(own[1].mlp.fc1.weight, other[1].mlp.fc1.weight)
    monkeypatch.setattr(draw_families, "prepare_training", None)  # what is trained is not trained again
    draw_families.main(options)
