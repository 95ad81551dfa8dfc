# SPDX-License-Identifier: Apache-2.0
"""`scripts/run_train.py` and its arguments: from a command line to a folder that the Auto classes load."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    DeiTForImageClassification,
    TrainerControl,
    TrainerState,
    ViTConfig,
    ViTForImageClassification,
)

from transformers_ice import IceDeiTConfig, IceDeiTForImageClassification
from transformers_ice.console.command_line import parse_config_overrides
from transformers_ice.console.exits import command
from transformers_ice.data.images.pixels import input_size
from transformers_ice.ice_deit.configuration_ice_deit import ICE_FIELDS
from transformers_ice.ice_deit.image_processing_ice_deit import IceDeiTImageProcessor
from transformers_ice.training import (
    DataArguments,
    IceTrainingArguments,
    ModelArguments,
    build_config,
    build_image_processor,
    build_model,
    parse_arguments,
    progress,
)
from transformers_ice.training.arguments import ICE_OPTIONS, NOT_OPTIONS, StartArguments
from transformers_ice.training.checkpoints import choose_checkpoint, mark_complete
from transformers_ice.training.models import check_windows


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
    from transformers_ice.cli import train

    return train


def train(script, words: list[str]) -> dict[str, float]:
    """Train by a command line, as the script does; return its numbers."""
    return script.train(words, *parse_arguments(words))


@pytest.fixture(scope="module")
def classifier(run_train, tmp_path_factory) -> Path:
    """A plain ViT that the script trained for two steps."""
    folder = tmp_path_factory.mktemp("deit-scenes")
    words = ["--model_type", "vit", "--config_overrides", TINY, "--output_dir", str(folder)]
    train(run_train, [*words, *SCENES, *STEPS])
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
    numbers = train(run_train, [*words, *SCENES, *STEPS])
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
    train(run_train, [*words, *SCENES, "--use_cpu", "--disable_tqdm", "true"])
    assert AutoConfig.from_pretrained(tmp_path / "again").background_loss_weight == 0.2


def test_second_start_needs_an_option(run_train, tmp_path):
    words = ["--model_type", "ice_deit", "--config_overrides", TINY, "--output_dir", str(tmp_path)]
    words += [*SCENES, *STEPS]
    first = train(run_train, words)
    with pytest.raises(ValueError, match="--resume_from_checkpoint auto"):
        train(run_train, words)
    again = train(run_train, [*words, "--resume_from_checkpoint", "auto"])
    assert again["eval_loss"] == first["eval_loss"]


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_are_valid_and_open_with_their_command(recipe):
    assert f"scripts/run_train.py recipes/{recipe.name}" in recipe.read_text().split("\n\n")[0]
    values = yaml.safe_load(recipe.read_text())
    made = values.get("model_name_or_path", "").startswith("outputs/")  # the user makes that start first
    options = ["--model_name_or_path", str(ROOT / "checkpoints/deit-scenes")] if made else []
    _, _, training_args = parse_arguments([str(recipe), "--use_cpu", *options])
    assert training_args.output_dir == values["output_dir"]
    assert float(values["learning_rate"]) == training_args.learning_rate


def test_both_recipes_are_there():
    assert {path.stem for path in (ROOT / "recipes").glob("*.yaml")} >= {"deit-scenes", "ice-deit-scenes"}


def make_args(output_dir: Path, **fields) -> IceTrainingArguments:
    return IceTrainingArguments(str(output_dir), use_cpu=True, **fields)


# --- arguments -----------------------------------------------------------------------------------------------------


MINIMAL = ["--model_type", "vit", "--dataset_name", "scenes", "--output_dir", "out"]


def test_argument_file_is_read_and_overridden(tmp_path):
    file = tmp_path / "run.yaml"
    lines = [
        "model_type: vit",
        "dataset_name: scenes",
        "output_dir: out",
        "learning_rate: 1e-3",
        "seed: 3",
        "bf16: false",
    ]
    lines += ["config_overrides: {hidden_size: 8, image_size: [8, 16]}", "random_resized_crop_scale: [0.08, 1]"]
    file.write_text("\n".join(lines))
    model_args, data_args, training_args = parse_arguments([str(file), "--seed", "5", "--max_steps", "2"])
    assert parse_config_overrides(model_args.config_overrides) == {"hidden_size": 8, "image_size": [8, 16]}
    assert data_args.random_resized_crop_scale == [0.08, 1.0]
    assert (training_args.learning_rate, training_args.seed, training_args.max_steps) == (1e-3, 5, 2)
    assert training_args.remove_unused_columns is False


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dataset_nam", "x"], r"unrecognized arguments: --dataset_nam x \(did you mean --dataset_name\?\)"),
        (["--augmentation", "randaug"], "invalid choice: 'randaug'"),
        (["--learning_rate", "fast"], "invalid float value: 'fast'"),
        (["--train_dir", "x"], "either `--dataset_name` .*or `--train_dir`"),
        (["--model_name_or_path", "x"], "exactly one of `--model_name_or_path`"),
        (["--random_resized_crop_scale", "0.5"], "must be two numbers"),
        (["--random_resized_crop_scale", "0.9", "0.5"], "0 < first <= second <= 1"),
        (["--train_val_split", "15"], "between 0 and 1, got 15"),
        (["--max_train_samples", "0"], "`max_train_samples` must be at least 1, got 0"),
        (["--max_eval_samples", "-1"], "`max_eval_samples` must be at least 1, got -1"),
        (["--image_size", "0"], "`image_size` must be at least 1, got 0"),
        (["--num_train_epochs", "-1"], "`num_train_epochs` must be above 0 and finite, got -1"),
        (["--num_train_epochs", "0"], "`num_train_epochs` must be above 0 and finite, got 0"),
        (["--num_train_epochs", "nan"], "`num_train_epochs` must be above 0 and finite, got nan"),
        (["--max_steps", "0"], "`max_steps` must be at least 1, or -1 for none, got 0"),
        (["--max_steps", "-5"], "`max_steps` must be at least 1, or -1 for none, got -5"),
        (["--per_device_train_batch_size", "0"], "`per_device_train_batch_size` must be at least 1, got 0"),
        (["--per_device_eval_batch_size", "-1"], "`per_device_eval_batch_size` must be at least 1, got -1"),
        (["--gradient_accumulation_steps", "0"], "`gradient_accumulation_steps` must be at least 1, got 0"),
        (["--dataloader_num_workers", "-1"], "`dataloader_num_workers` must be at least 0 and finite, got -1"),
        (["--learning_rate", "-1"], "`learning_rate` must be at least 0 and finite, got -1"),
        (["--learning_rate", "nan"], "`learning_rate` must be at least 0 and finite, got nan"),
        (["--learning_rate", "inf"], "`learning_rate` must be at least 0 and finite, got inf"),
        (["--weight_decay", "-0.1"], "`weight_decay` must be at least 0 and finite, got -0.1"),
        (["--warmup_steps", "-1"], "`warmup_steps` must be at least 0 and finite, got -1"),
        (["--adam_beta1", "1"], r"`adam_beta1` must be in \[0, 1\), got 1"),
        (["--save_steps", "0"], "`save_steps` must be above 0 and finite, got 0"),
        (["--eval_steps", "-2"], "`eval_steps` must be above 0, got -2"),
        (["--save_total_limit", "-1"], "`save_total_limit` must be at least 0, got -1"),
        (["--num_panel_images", "-1"], "`num_panel_images` must be at least 0 and finite, got -1"),
        (["--output_dir", __file__], "`output_dir` must be a folder or a new name, got the file"),
        (["--report_to", "no_such_tracker"], "`report_to` must be none, all, or some of .*tensorboard"),
        (["--report_to", "none", "neptune"], "`report_to`|neptune"),
        (["--report_to", "neptune", "comet_ml"], "`--report_to neptune` needs"),
        (["--report_to", "Tensorboard"], "`report_to` must be none, all, or some of .*tensorboard"),
        (["--report_to", "neptune"], "`--report_to neptune` needs a package that is not installed"),
    ],
)
def test_wrong_arguments_end_with_a_message(capsys, words, message):
    with pytest.raises(SystemExit, match="2"):
        parse_arguments([*MINIMAL, *words])
    errors = capsys.readouterr().err
    assert re.search(message, errors), errors


def test_help_lists_every_argument_with_its_default(capsys):
    with pytest.raises(SystemExit, match="0"):
        parse_arguments(["--help"], "First line.\n\n    second line")
    text = capsys.readouterr().out
    assert "First line.\n\n    second line" in text
    assert len(text.splitlines()) < 40
    assert "augmentation (11)" in text
    for topic, names in {
        "all": ("--background_loss_weight", "--on_bad_image", "--learning_rate", "--random_resized_crop_scale"),
        "augmentation": ("--random_resized_crop_scale", "(default: crop_flip)"),
        "--on_bad_image": ("--on_bad_image {stop,skip}", "Unreadable images"),
    }.items():
        with pytest.raises(SystemExit, match="0"):
            parse_arguments(["--help", topic] if topic != "--on_bad_image" else ["--help=on_bad_image"])
        text = " ".join(capsys.readouterr().out.split())
        assert all(name in text for name in names)
        assert ("--adam_beta1" in text) == (topic == "all")
    with pytest.raises(SystemExit, match="2"):
        parse_arguments(["--help", "no_such_group"])
    assert "--help takes one of" in capsys.readouterr().err


def test_misspelt_name_in_a_file_ends_with_a_message(tmp_path, capsys):
    file = tmp_path / "run.json"
    file.write_text(
        json.dumps({"model_type": "vit", "dataset_name": "scenes", "output_dir": "out", "lerning_rate": 1})
    )
    with pytest.raises(SystemExit, match="2"):
        parse_arguments([str(file)])
    assert "did you mean --learning_rate?" in capsys.readouterr().err


# every name stands for nine of the one before, at the end for 9 ** 9 texts
ALIASES = "".join(f"{name}: &{name} [{', '.join([f'*{last}'] * 9)}]\n" for last, name in pairwise("abcdefghi"))
UNUSABLE = [
    *(
        None,
        "- a\n- b\n",
        "a: [1",
        "a: \xff".encode("latin-1"),
        "a: " + "[" * 100_000,
        "- " * 5000,
        "a: 1\nb: 2\na: 3\n",
    ),
    "".join(f"k{number}: 1\n" for number in range(10_000)) + "k7: 2",
    *("a: [[1]]", "a: {b: {c: 1}}", f"a: &a [x]\n{ALIASES}"),
]


@pytest.mark.parametrize("content", UNUSABLE)
def test_unusable_argument_file_ends_with_a_message(tmp_path, capsys, content):
    file = tmp_path / "run.yaml"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SystemExit, match="2"):
        parse_arguments([str(file)])
    assert f"the argument file {file}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "source"),
    [
        (["--dataset_name", "owner/set"], ("owner/set", None, None)),
        (["--dataset-name=owner/set"], ("owner/set", None, None)),
        (["--train_files", "a-*.parquet"], (None, None, "a-*.parquet")),
        (["--train_dir", "other"], (None, "other", None)),
        ([], (None, "photos/train", None)),
    ],
)
def test_data_of_the_command_line_replace_those_of_the_recipe(words, source):
    recipe = str(ROOT / "recipes" / "finetune-folder.yaml")
    _, data_args, _ = parse_arguments([recipe, *words])
    assert (data_args.dataset_name, data_args.train_dir, data_args.train_files) == source
    assert data_args.augmentation == "crop_flip"


def test_a_model_of_the_command_line_replaces_that_of_the_recipe(tmp_path):
    model_args, _, _ = parse_arguments([str(ROOT / "recipes" / "finetune-folder.yaml"), "--model_type", "ice_deit"])
    assert (model_args.model_name_or_path, model_args.model_type) == (None, "ice_deit")
    file = tmp_path / "run.yaml"
    file.write_text("model_type: vit\ninitialization: mimetic\ndataset_name: scenes\noutput_dir: out\n")
    model_args, data_args, _ = parse_arguments([str(file), "--model_name_or_path", str(tmp_path), "--train_dir", "x"])
    assert (model_args.model_type, model_args.initialization, data_args.dataset_name) == (None, "default", None)


def test_two_sources_of_one_command_line_are_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        parse_arguments([str(ROOT / "recipes" / "finetune-folder.yaml"), "--train_dir", "x", "--dataset_name", "y"])
    assert "Give either `--dataset_name`" in capsys.readouterr().err


def test_validation_dir_alone_is_refused():
    with pytest.raises(ValueError, match="needs `--train_dir`"):
        DataArguments(dataset_name="scenes", validation_dir="x")


def test_a_mistake_ends_the_run_with_a_message_and_no_traceback(tmp_path, warm_python):
    words = ["--model_name_or_path", str(ROOT / "checkpoints/deit-scenes"), "--train_dir", str(tmp_path), "--use_cpu"]
    command = [warm_python.python, str(ROOT / "scripts/run_train.py"), *words, "--output_dir", str(tmp_path / "out")]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 1
    assert "Traceback" not in finished.stderr
    assert f"Error: The folder {tmp_path} holds no image files" in finished.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("recipe", "reason"), [("finetune-folder.yaml", "no-folder"), ("none.yaml", "none.yaml")])
def test_recipes_of_the_project_are_found_from_any_folder(tmp_path, warm_python, recipe, reason):
    words = [f"recipes/{recipe}", "--train_dir", "no-folder", "--check_only", "true"]
    command = [warm_python.python, "-m", "transformers_ice.cli", "train", *words]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode in (1, 2)
    assert reason in finished.stderr
    assert ("argument file" in finished.stderr) == (recipe == "none.yaml")


@pytest.mark.parametrize(("steps", "warns"), [(12, True), (99, True), (100, False)])
def test_a_run_of_few_steps_says_so_and_what_makes_them_more(monkeypatch, tmp_path, steps, warns):
    said = []
    monkeypatch.setattr(progress.logger, "warning", said.append)
    args = IceTrainingArguments(output_dir=str(tmp_path), per_device_train_batch_size=8, use_cpu=True)
    progress.StepCountCallback().on_train_begin(args, TrainerState(max_steps=steps), TrainerControl())
    assert bool(said) == warns
    if warns:
        assert f"{steps} steps of 8 images" in said[0]


def test_an_error_of_another_package_keeps_its_traceback(capsys):
    with pytest.raises(ValueError, match="invalid literal"):
        command()(lambda argv: int(argv[0]))(["x"])
    assert command()(lambda argv: parse_config_overrides(argv[0]) and 0)(["hidden_size"]) == 1
    assert re.search("Error: .*must be name=value", capsys.readouterr().err)


def test_config_overrides_are_parsed():
    text = "hidden_size=128, image_size=[64, 96],layer_norm_eps=1e-6,qkv_bias=True,hidden_act=gelu,a={'b': 1}"
    assert parse_config_overrides(text) == {
        "hidden_size": 128, "image_size": [64, 96], "layer_norm_eps": 1e-6, "qkv_bias": True, "hidden_act": "gelu",
        "a": {"b": 1},
    }  # fmt: skip
    assert parse_config_overrides(None) == {}
    with pytest.raises(ValueError, match="must be name=value,name=value, got 'hidden_size'"):
        parse_config_overrides("hidden_size")


# --- one option for each field of the configuration ----------------------------------------------------------------

CHOSEN = {
    "background_loss_weight": 0.3,
    "foreground_pooling": "soft",
    "num_local_windows": 2,
    "classification_loss_type": "bce",
    "logits_source": "cls",
    "patch_head_hidden_size": 8,
    "pruning_strategy": "attentiveness",
    "pruning_layers": [1],
    "keep_rates": [0.25],
    "background_margin": -1.5,
    "fuse_pruned_tokens": True,
    "pruning_head": "patch",
    "prune_in_training": True,
}


def other_value(name: str):
    """Return a value of a field that is not its default."""
    if name in CHOSEN:
        return CHOSEN[name]
    return IceDeiTConfig().to_dict()[name] * 0.5 + 0.3


def test_every_option_reaches_its_field_and_the_saved_configuration(tmp_path):
    expected = {name: other_value(name) for name in ICE_OPTIONS.values()}
    assert all(expected[name] != getattr(IceDeiTConfig(), name) for name in expected)
    words = ["--model_type", "ice_deit", "--config_overrides", TINY, "--output_dir", str(tmp_path), *SCENES]
    for option, name in ICE_OPTIONS.items():
        value = expected[name]
        words += [f"--{option}", *map(str, value if isinstance(value, list) else [value])]
    model_args, _, _ = parse_arguments(words)
    build_config(model_args).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert {name: saved[name] for name in expected} == expected


def test_every_field_of_the_configuration_is_an_option_or_named_with_its_reason():
    assert set(ICE_OPTIONS.values()) | set(NOT_OPTIONS) == set(ICE_FIELDS)
    assert not set(ICE_OPTIONS.values()) & set(NOT_OPTIONS)
    assert all(NOT_OPTIONS.values())
    given = {field.name for field in fields(ModelArguments)} - {field.name for field in fields(StartArguments)}
    assert given == set(ICE_OPTIONS)


def test_help_is_that_of_the_configuration(capsys):
    shown = ""
    for group in ("ice", "windows", "pruning"):
        with pytest.raises(SystemExit):
            parse_arguments(["--help", group])
        text = capsys.readouterr().out
        assert len(text.splitlines()) < 40, "one screen"
        shown += " ".join(text.split())
    for option, name in ICE_OPTIONS.items():
        assert shown.count(f"--{option} ") == 1
        assert " ".join(ICE_FIELDS[name].metadata["help"].split()) in shown, name


def test_choices_of_an_option_are_those_of_the_field(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--model_type", "ice_deit", "--output_dir", "x", "--foreground_pooling", "mean"])
    assert re.search(r"invalid choice: 'mean' \(choose from '?hard'?, '?soft'?\)", capsys.readouterr().err)


def test_loss_type_is_the_short_name_of_classification_loss_type():
    words = ["--model_type", "ice_deit", "--output_dir", "x", *SCENES]
    for option in ("--loss_type", "--classification_loss_type"):
        assert build_config(parse_arguments([*words, option, "bce"])[0]).classification_loss_type == "bce"


def test_windows_that_do_not_divide_the_training_grid_are_refused():
    config = IceDeiTConfig(image_size=64, patch_size=8, num_local_windows=2)
    with pytest.raises(ValueError, match=r"`num_local_windows` must divide .* got 2 for a grid of 7 x 7"):
        check_windows(config, (56, 56))
    check_windows(config, (64, 48))
    config.image_size = 60
    with pytest.raises(ValueError, match="`image_size` must be a positive multiple of `patch_size`, got 60 and 8"):
        check_windows(config, (60, 60))
    check_windows(IceDeiTConfig(image_size=56, patch_size=8), (56, 56))
    check_windows(ViTConfig(), (56, 56))


# --- models --------------------------------------------------------------------------------------------------------


def test_unknown_fields_and_types_are_refused():
    with pytest.raises(ValueError, match=r"no configuration field `hiden_size`.*`hidden_size`"):
        build_config(ModelArguments(model_type="vit", config_overrides="hiden_size=8"))
    with pytest.raises(ValueError, match="no configuration field `cls_loss_weight`"):
        build_config(ModelArguments(model_type="vit", cls_loss_weight=1.0))
    with pytest.raises(ValueError, match=r"`model_type` 'vitt' is unknown"):
        build_config(ModelArguments(model_type="vitt"))


def test_plain_classifier_from_scratch():
    args = ModelArguments(
        model_type="vit", config_overrides="hidden_size=32,num_hidden_layers=1,num_attention_heads=2"
    )
    config = build_config(args, image_size=32)
    model = build_model(args, config, ["x", "y"])
    assert type(model) is ViTForImageClassification
    assert model.config.id2label == {0: "x", 1: "y"}
    assert model.config.image_size == 32
    processor = build_image_processor(args, config)
    assert (input_size(processor), processor.do_convert_rgb, processor.do_center_crop) == ((32, 32), True, False)
    assert list(processor.image_mean) == [0.485, 0.456, 0.406]


def test_a_family_of_several_classes_gives_its_first():
    arguments = ModelArguments(
        model_type="deit", config_overrides="hidden_size=32,num_hidden_layers=1,num_attention_heads=2"
    )
    model = build_model(arguments, build_config(arguments), ["a", "b"])
    assert type(model) is DeiTForImageClassification
    assert model.config.id2label == {0: "a", 1: "b"}


def test_checkpoint_becomes_an_ice_model_with_the_fields_asked_for(hub_folder):
    folder = str(hub_folder("vit", "old"))
    args = ModelArguments(folder, background_loss_weight=0.2, drop_path_rate=0.1)
    config = build_config(args)
    expected = ViTForImageClassification.from_pretrained(folder).eval()
    model = build_model(args, config, list(expected.config.id2label.values()))
    assert type(model) is IceDeiTForImageClassification
    assert model.config.logits_source == "patch"
    assert (model.config.background_loss_weight, model.config.drop_path_rate) == (0.2, 0.1)
    assert model.config.cls_loss_weight == 1.0
    assert model.config.label2id == {name: index for index, name in expected.config.id2label.items()}
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model.eval()(pixels).cls_logits, expected(pixels).logits)
    assert type(build_image_processor(args, config)) is IceDeiTImageProcessor
    assert input_size(build_image_processor(args, config, image_size=48)) == (48, 48)
    assert build_config(ModelArguments(folder, logits_source="cls")).logits_source == "cls"


def test_other_number_of_classes_needs_the_flag(hub_folder):
    args = ModelArguments(str(hub_folder("vit", "new")))
    with pytest.raises(ValueError, match=r"4 classes of the data.*--ignore_mismatched_sizes"):
        build_model(args, build_config(args), ["w", "x", "y", "z"])
    args.ignore_mismatched_sizes = True
    model = build_model(args, build_config(args), ["w", "x", "y", "z"])
    assert model.classifier.weight.shape == (4, 32)
    assert torch.isfinite(model.classifier.weight).all()


def test_checkpoint_without_image_processor_is_refused(tmp_path, tiny_config):
    IceDeiTForImageClassification(tiny_config).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink(missing_ok=True)
    args = ModelArguments(str(tmp_path))
    with pytest.raises(ValueError, match=r"holds no image processor.*--image_processor_name"):
        build_image_processor(args, build_config(args))


# --- checkpoints ---------------------------------------------------------------------------------------------------


def make_checkpoint(folder: Path, complete: bool = True) -> Path:
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text("{}")
    if complete:
        mark_complete(folder)
    return folder


def test_fresh_start_beside_checkpoints_is_refused(tmp_path):
    make_checkpoint(tmp_path / "checkpoint-5")
    with pytest.raises(ValueError, match=r"holds checkpoints.*checkpoint-5.*--resume_from_checkpoint auto"):
        choose_checkpoint(make_args(tmp_path))


def test_auto_takes_the_last_complete_checkpoint(tmp_path):
    assert choose_checkpoint(make_args(tmp_path)) is None
    assert choose_checkpoint(make_args(tmp_path, resume_from_checkpoint="auto")) is None
    make_checkpoint(tmp_path / "checkpoint-9")
    last = make_checkpoint(tmp_path / "checkpoint-10")
    make_checkpoint(tmp_path / "checkpoint-11", complete=False)
    assert choose_checkpoint(make_args(tmp_path, resume_from_checkpoint="auto")) == str(last)
    other = str(tmp_path / "checkpoint-9")
    assert choose_checkpoint(make_args(tmp_path, resume_from_checkpoint=other)) == other


def test_folder_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must be a checkpoint folder or auto"):
        choose_checkpoint(make_args(tmp_path, resume_from_checkpoint=str(tmp_path / "nothing")))
