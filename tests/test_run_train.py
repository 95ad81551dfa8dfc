# SPDX-License-Identifier: Apache-2.0
"""`scripts/run_train.py`: from a command line to a folder that the Auto classes load."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import yaml
from safetensors import safe_open
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

from transformers_ice.training import parse_arguments


ROOT = Path(__file__).parents[1]
SCENES = ["--dataset_name", "scenes", "--max_train_samples", "16", "--max_eval_samples", "8"]
TINY = "hidden_size=32,num_hidden_layers=2,num_attention_heads=2,intermediate_size=32,image_size=32,patch_size=8"
STEPS = [
    "--max_steps",
    "2",
    "--per_device_train_batch_size",
    "8",
    "--logging_steps",
    "1",
    "--use_cpu",
    "--disable_tqdm",
    "true",
]


@pytest.fixture(scope="module")
def run_train():
    spec = importlib.util.spec_from_file_location("run_train", ROOT / "scripts" / "run_train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def classifier(run_train, tmp_path_factory) -> Path:
    """A plain ViT that the script trained for two steps."""
    folder = tmp_path_factory.mktemp("deit-scenes")
    words = ["--model_type", "vit", "--config_overrides", TINY, "--output_dir", str(folder)]
    run_train.main([*words, *SCENES, *STEPS])
    return folder


def test_plain_classifier_folder_is_complete(classifier, capsys):
    model = AutoModelForImageClassification.from_pretrained(classifier)
    assert type(model).__name__ == "ViTForImageClassification"
    assert model.config.num_labels == len(model.config.id2label) >= 10
    processor = json.loads((classifier / "preprocessor_config.json").read_text())
    assert processor["do_convert_rgb"] is True
    assert processor["size"] == {"height": 32, "width": 32}
    with safe_open(classifier / "model.safetensors", "pt") as weights:
        assert set(weights.keys()) == model.state_dict().keys()
        assert all(weights.get_slice(name).get_dtype() == "F32" for name in model.state_dict())
    numbers = json.loads((classifier / "all_results.json").read_text())
    assert 0 <= numbers["eval_top_1"] <= numbers["eval_top_5"] <= 1
    assert "eval_mean_iou" not in numbers


def test_checkpoint_becomes_an_ice_model(run_train, classifier, tmp_path, capsys):
    words = ["--model_name_or_path", str(classifier), "--output_dir", str(tmp_path), "--background_loss_weight", "0.2"]
    numbers = run_train.main([*words, *SCENES, *STEPS])
    assert f"{numbers['eval_mean_iou']:.4f}" in capsys.readouterr().out
    assert {"eval_top_1", "eval_cls_top_1", "eval_pixel_accuracy", "eval_foreground_ratio"} <= numbers.keys()
    history = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    assert [line["step"] for line in history if "background_loss" in line] == [1, 2]
    model = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(model).__name__ == "IceDeiTForImageClassification"
    assert (model.config.logits_source, model.config.background_loss_weight) == ("patch", 0.2)
    assert type(AutoImageProcessor.from_pretrained(tmp_path)).__name__ == "IceDeiTImageProcessor"
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    names = {name.partition(".")[0] for name in auto_map.values()}
    assert all((tmp_path / f"{name}.py").is_file() for name in names)
    # ... and goes on as one: its own fields are kept where none are given
    words = ["--model_name_or_path", str(tmp_path), "--output_dir", str(tmp_path / "again"), "--max_steps", "1"]
    run_train.main([*words, *SCENES, "--use_cpu", "--disable_tqdm", "true"])
    assert AutoConfig.from_pretrained(tmp_path / "again").background_loss_weight == 0.2


def test_second_start_needs_a_word(run_train, tmp_path):
    words = ["--model_type", "ice_deit", "--config_overrides", TINY, "--output_dir", str(tmp_path)]
    words += [*SCENES, *STEPS]
    first = run_train.main(words)
    with pytest.raises(ValueError, match="--resume_from_checkpoint auto"):
        run_train.main(words)
    again = run_train.main([*words, "--resume_from_checkpoint", "auto"])
    assert again["eval_loss"] == first["eval_loss"]


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_are_valid_and_open_with_their_command(recipe):
    assert f"scripts/run_train.py recipes/{recipe.name}" in recipe.read_text().split("\n\n")[0]
    _, _, training_args = parse_arguments([str(recipe), "--use_cpu"])
    values = yaml.safe_load(recipe.read_text())
    assert training_args.output_dir == values["output_dir"]
    assert float(values["learning_rate"]) == training_args.learning_rate


def test_both_recipes_are_there():
    assert {path.stem for path in (ROOT / "recipes").glob("*.yaml")} >= {"deit-scenes", "ice-deit-scenes"}
