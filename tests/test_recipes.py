# SPDX-License-Identifier: Apache-2.0
"""`recipes/`: every file parses, builds its configuration and its batches, and those of papers hold their numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from transformers_ice import IceDeiTConfig
from transformers_ice.data.augmentation import build_augmentation, build_train_collator
from transformers_ice.data.augmentation.batch_augmentation import BatchMixing
from transformers_ice.data.augmentation.rand_augment import DEIT_POLICY, parse_rand_augment
from transformers_ice.data.images.pixels import input_size
from transformers_ice.ice_deit.objective_ice_deit import LOSS_PARTS
from transformers_ice.training import build_config, build_image_processor, parse_arguments, prepare_training
from transformers_ice.training.objective_presets import OBJECTIVES


ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def parse(path: Path, *options: str):
    return parse_arguments([str(path), "--use_cpu", *options])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_builds_its_configuration_and_its_batches(path, hub_folder):
    start = yaml.safe_load(path.read_text()).get("model_name_or_path") or ""
    made = start.startswith("outputs/")  # by the user, with benchmarks/distill_start.py
    model_args, data_args, training_args = parse(
        path, *(["--model_name_or_path", str(hub_folder("vit", "old"))] if made else [])
    )
    name = model_args.model_name_or_path
    if name is not None and not made and not (ROOT / name).exists():
        assert name == "facebook/deit-small-patch16-224", "a Hub model without distillation token is of type vit"
        model_args.model_name_or_path = str(hub_folder("vit", "old"))
    elif name is not None:
        model_args.model_name_or_path = str(ROOT / name)
    config = build_config(model_args, data_args.image_size)
    processor = build_image_processor(model_args, config, data_args.image_size)
    values = yaml.safe_load(path.read_text())
    for field in ("background_loss_weight", "cls_loss_weight", "drop_path_rate", "min_foreground_ratio"):
        if field in values:
            assert isinstance(config, IceDeiTConfig)
            assert getattr(config, field) == values[field]
    assert build_augmentation(data_args, input_size(processor), processor.image_mean) is not None
    collator = build_train_collator(data_args, processor, 10)
    assert (collator is None) == ("scenes" in path.stem)
    assert training_args.label_smoothing_factor == 0


def assert_augmentation_of_deit(data_args, training_args):
    augmentation = build_augmentation(data_args, (224, 224), (0.485, 0.456, 0.406))
    assert (augmentation.crop, augmentation.scale, augmentation.ratio) == (True, (0.08, 1.0), (3 / 4, 4 / 3))
    assert augmentation.flip_probability == 0.5
    assert augmentation.rand_augment == parse_rand_augment(DEIT_POLICY)
    mixing = BatchMixing(data_args.mixup_alpha, data_args.cutmix_alpha, data_args.mixup_switch_prob)
    assert mixing == BatchMixing(0.8, 1.0, 0.5, 1.0)
    assert (data_args.random_erasing_prob, data_args.label_smoothing) == (0.25, 0.1)
    assert training_args.repeated_augmentation == 3
    assert (training_args.weight_decay, training_args.max_grad_norm) == (0.05, 0.0)
    assert (training_args.adam_beta1, training_args.adam_beta2, training_args.adam_epsilon) == (0.9, 0.999, 1e-8)
    assert (training_args.dataloader_drop_last, training_args.ema_decay) == (True, None)


def test_imagenet_recipe_is_the_published_run(hub_folder):
    model_args, data_args, training_args = parse(ROOT / "recipes" / "ice-deit-s-imagenet.yaml")
    assert_augmentation_of_deit(data_args, training_args)
    published = IceDeiTConfig()
    model_args.model_name_or_path = str(hub_folder("vit", "old"))
    config = build_config(model_args, data_args.image_size)
    for name in OBJECTIVES["published"]:
        assert getattr(config, name) == getattr(published, name)
    assert (model_args.drop_path_rate, data_args.image_size) == (0.1, 224)
    assert (training_args.num_train_epochs, training_args.per_device_train_batch_size) == (1, 256)
    # 1e-4 * 512 / 512 is what the warm-up goes to; its first epoch runs at where it starts
    assert (training_args.learning_rate, training_args.lr_scheduler_type, training_args.warmup_steps) == (
        1e-5,
        "constant",
        0,
    )


def test_scratch_recipe_is_that_of_deit():
    model_args, data_args, training_args = parse(ROOT / "recipes" / "deit-from-scratch.yaml")
    assert_augmentation_of_deit(data_args, training_args)
    config = build_config(model_args, data_args.image_size)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (384, 12, 6)
    assert (config.drop_path_rate, config.num_prefix_tokens) == (0.1, 1)
    # nothing but the loss of [CLS] has a weight: no windows, no candidate labels
    weights = {part.weight_field: getattr(config, part.weight_field) for part in LOSS_PARTS.values()}
    assert {name for name, weight in weights.items() if weight} == {
        "cls_loss_weight",
        "local_loss_weight",
        "pruning_loss_weight",
    }
    assert (config.num_local_windows, config.pruning_strategy) == (0, None)
    assert training_args.learning_rate == 5e-4 * 4 * training_args.per_device_train_batch_size / 512
    assert training_args.warmup_steps == 5 * (1_281_167 // 256 * 256 // 1024)
    scheduler = training_args.lr_scheduler_kwargs
    assert scheduler["min_lr"] == 1e-5
    assert scheduler["warmup_lr_rate"] * training_args.learning_rate == pytest.approx(1e-6)


def test_frozen_recipe_is_the_one_for_folders_but_for_what_is_frozen():
    folder, frozen = (
        yaml.safe_load((ROOT / "recipes" / f"{name}.yaml").read_text())
        for name in ("finetune-folder", "frozen-backbone")
    )
    changed = {name for name in folder.keys() | frozen.keys() if folder.get(name) != frozen.get(name)}
    assert changed == {
        *("freeze_layers", "num_train_epochs", "learning_rate", "output_dir"),
        *("drop_path_rate", "layer_decay"),  # without effect in frozen layers
        "cpu_precision",  # compared on photographs for this one alone
        *("load_best_model_at_end", "metric_for_best_model"),  # masks of heads alone get better to the end
    }
    _, _, training_args = parse(ROOT / "recipes" / "frozen-backbone.yaml")
    assert training_args.freeze_layers == 12


def test_frozen_recipe_trains_the_heads_of_a_checkpoint_alone(tmp_path, hub_folder):
    source = str(hub_folder("vit", "old"))
    options = ["--use_cpu", "--output_dir", str(tmp_path), "--model_name_or_path", source, "--freeze_layers", "2"]
    options += ["--dataset_name", "scenes", "--max_train_samples", "16", "--max_eval_samples", "8"]
    options += ["--image_size", "32", "--max_steps", "3", "--per_device_train_batch_size", "8"]
    options += ["--dataloader_num_workers", "0", "--num_panel_images", "0"]
    arguments = parse_arguments([str(ROOT / "recipes" / "frozen-backbone.yaml"), *options])
    trainer = prepare_training(*arguments)
    assert trainer.model.config._attn_implementation == "eager"  # on a processor, 16 patches
    trained = {name.split(".")[-2] for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    assert trained == {"classifier", "patch_head"}
    before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    trainer.train()
    moved = {name for name, weight in trainer.model.state_dict().items() if not weight.equal(before[name])}
    assert moved == {"classifier.weight", "classifier.bias", "deit.patch_head.weight"}


def test_readers_are_told_what_was_not_measured():
    for path in RECIPES:
        data = yaml.safe_load(path.read_text())
        if data.get("dataset_name") != "scenes":
            head = path.read_text().split("\n\n")[0].replace("\n# ", " ")
            assert "no number was measured" in head or "not tuned" in head
