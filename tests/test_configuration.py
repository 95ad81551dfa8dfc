# SPDX-License-Identifier: Apache-2.0
"""Configuration: published defaults, checks, near-misses, and what hub configurations become."""

import copy

import pytest
from transformers import AutoConfig, DeiTConfig, ViTConfig

from transformers_ice import IceDeiTConfig


def test_defaults_are_the_published_numbers():
    config = IceDeiTConfig()
    assert config.background_loss_weight == 0.025
    assert config.background_logit_scale == 0.5
    assert config.min_foreground_ratio == 0.1
    assert config.cls_loss_weight == 0.0
    assert config.layer_norm_eps == 1e-6
    assert config.drop_path_rate == 0.0
    assert config.logits_source == "patch"
    assert config.patch_head_hidden_size is None
    assert config.num_prefix_tokens == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"background_loss_weight": -0.1}, r"`background_loss_weight` must be in \[0, inf\], got -0.1"),
        ({"cls_loss_weight": -1}, "`cls_loss_weight` must be in"),
        ({"min_foreground_ratio": 1.5}, r"`min_foreground_ratio` must be in \[0, 1\], got 1.5"),
        ({"background_logit_scale": float("nan")}, "`background_logit_scale` must be in"),
        ({"drop_path_rate": 1.0}, r"`drop_path_rate` must be in \[0, 1\), got 1.0"),
        ({"logits_source": "patches"}, r"`logits_source` must be one of \['patch', 'cls'\], got 'patches'"),
        ({"patch_head_hidden_size": 0}, "`patch_head_hidden_size` must be positive or None, got 0"),
        ({"use_distillation_head": True}, "needs `use_distillation_token=True`"),
        ({"num_labels": 0}, "at least one image class"),
        ({"hidden_size": 100, "num_attention_heads": 3}, "multiple of `num_attention_heads`, got 100 and 3"),
        ({"image_size": 225}, "`image_size` must be a positive multiple of `patch_size`, got 225 and 16"),
        ({"image_size": [224, 230]}, "`image_size` must be a positive multiple"),
        ({"image_size": [224, 224, 3]}, r"one number or \[height, width\]"),
    ],
)
def test_wrong_values_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        IceDeiTConfig(**fields)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("background_weight", "background_loss_weight"),
        ("background_los_weight", "background_loss_weight"),
        ("logit_source", "logits_source"),
        ("min_foreground", "min_foreground_ratio"),
        ("use_distilation_token", "use_distillation_token"),
        ("drop_path", "drop_path_rate"),
        ("cls_weight", "cls_loss_weight"),
        ("patch_head_size", "patch_head_hidden_size"),
    ],
)
def test_a_near_miss_is_refused_with_the_name_that_was_meant(name, meant, tmp_path):
    with pytest.raises(ValueError, match=f"`{name}`. Did you mean `{meant}`"):
        IceDeiTConfig(**{name: 0.1})
    IceDeiTConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"Did you mean `{meant}`"):
        IceDeiTConfig.from_pretrained(tmp_path, **{name: 0.1})


def test_foreign_keys_of_hub_configurations_are_kept():
    foreign = {**ViTConfig().to_dict(), **DeiTConfig().to_dict(), "finetuning_task": "x", "use_mask_token": False}
    foreign.pop("model_type")
    config = IceDeiTConfig(**foreign)
    assert config.finetuning_task == "x"


def test_an_override_that_contradicts_another_field_is_refused_by_the_model(tmp_path, tiny_config):
    from transformers_ice import IceDeiTForImageClassification

    IceDeiTForImageClassification(tiny_config).save_pretrained(tmp_path)
    # overrides are set after the configuration was checked, so the model has to check again
    with pytest.raises(ValueError, match="`min_foreground_ratio` must be in"):
        IceDeiTForImageClassification.from_pretrained(tmp_path, min_foreground_ratio=7.0)


@pytest.mark.parametrize(
    ("source", "token", "head"),
    [
        (ViTConfig(), False, False),
        (DeiTConfig(architectures=["DeiTForImageClassification"]), True, False),
        (DeiTConfig(architectures=["DeiTForImageClassificationWithTeacher"]), True, True),
    ],
)
def test_hub_configurations_become_ice_configurations(source, token, head, tmp_path):
    source.save_pretrained(tmp_path)
    config = IceDeiTConfig.from_pretrained(tmp_path)
    assert config.model_type == "ice_deit"
    assert config.use_distillation_token is token
    assert config.has_distillation_head is head
    assert config.layer_norm_eps == source.layer_norm_eps
    assert config.logits_source == "cls"  # its patch head is untrained
    assert IceDeiTConfig.from_pretrained(tmp_path, logits_source="patch").logits_source == "patch"


def test_the_distillation_token_brings_its_head_unless_told_otherwise():
    assert IceDeiTConfig(use_distillation_token=True).has_distillation_head
    assert not IceDeiTConfig(use_distillation_token=True, use_distillation_head=False).has_distillation_head


def test_round_trip_through_a_file(tmp_path):
    config = IceDeiTConfig(image_size=[32, 64], patch_size=8, id2label={0: "cat", 1: "dog"}, cls_loss_weight=1)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, IceDeiTConfig)
    assert loaded.to_diff_dict() == config.to_diff_dict()
    assert loaded.image_size == [32, 64]


def test_background_is_named_in_a_copy_and_in_no_file(tmp_path):
    config = IceDeiTConfig(id2label={0: "cat", 1: "dog"})
    marked = config.with_background_label()
    assert marked.id2label == {0: "cat", 1: "dog", 2: "background"}
    assert marked.label2id["background"] == 2
    assert marked.num_labels == config.num_labels == 2
    assert marked.background_index == 2
    assert config.id2label == {0: "cat", 1: "dog"}

    assert copy.deepcopy(marked).num_labels == 2
    assert IceDeiTConfig(**marked.to_dict()).id2label == config.id2label
    marked.save_pretrained(tmp_path)
    assert IceDeiTConfig.from_pretrained(tmp_path).id2label == config.id2label
    assert '"background"' not in (tmp_path / "config.json").read_text()

    # marking twice adds nothing, and a new number of labels starts afresh
    assert marked.with_background_label().id2label == marked.id2label
    marked.num_labels = 5
    assert marked.num_labels == len(marked.id2label) == 5


def test_a_class_that_is_called_background_keeps_its_name():
    config = IceDeiTConfig(id2label={0: "background", 1: "dog"})
    marked = config.with_background_label()
    assert marked.id2label[0] == "background"
    assert marked.id2label[2] not in ("background", "dog")
    assert IceDeiTConfig(**marked.to_dict()).id2label == config.id2label
