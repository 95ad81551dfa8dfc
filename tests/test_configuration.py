# SPDX-License-Identifier: Apache-2.0
"""Configuration: published defaults, checks, near-misses, and what hub configurations become."""

import copy
import math
import pickle
from dataclasses import fields

import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig, DeiTConfig, ViTConfig

from transformers_ice import IceDeiTConfig
from transformers_ice.ice_deit.configuration_fields import check_interval, ice_field
from transformers_ice.ice_deit.configuration_ice_deit import ICE_FIELDS
from transformers_ice.ice_deit.modeling_ice_deit import IceDeiTImageClassifierOutput
from transformers_ice.ice_deit.objective_ice_deit import LOSS_PARTS


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
        ({"background_loss_weight": -0.1}, r"`background_loss_weight` must be in \[0, 1e6\], got -0.1"),
        ({"cls_loss_weight": -1}, "`cls_loss_weight` must be in"),
        ({"min_foreground_ratio": 1.5}, r"`min_foreground_ratio` must be in \[0, 1\], got 1.5"),
        ({"background_logit_scale": float("nan")}, "`background_logit_scale` must be in"),
        ({"drop_path_rate": 1.0}, r"`drop_path_rate` must be in \[0, 1\), got 1.0"),
        ({"logits_source": "patches"}, r"`logits_source` must be one of \['patch', 'cls'\], got 'patches'"),
        ({"patch_head_hidden_size": 0}, "`patch_head_hidden_size` must be in \\[1, 262144\\], got 0"),
        ({"use_distillation_head": True}, "needs `use_distillation_token=True`"),
        ({"num_labels": 0}, "at least one image class"),
        ({"hidden_size": 100, "num_attention_heads": 3}, "multiple of `num_attention_heads`, got 100 and 3"),
        ({"image_size": 225}, "`image_size` must be a positive multiple of `patch_size`, got 225 and 16"),
        ({"image_size": [224, 230]}, "`image_size` must be a positive multiple"),
        ({"image_size": [224, 224, 3]}, r"`image_size` must be one number or \[height, width\]"),
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


# --- one declaration for each field --------------------------------------------------------------------------------

NAN, INF = math.nan, math.inf
NO_WEIGHTS = (-0.1, NAN, INF, -INF, 1e300, True, None, "1")
NO_RATIOS = (-0.1, 1.1, NAN, INF, True, None)
NO_SIZES = (0, -1, 0.5, True, None)
REFUSED = {
    **{name: NO_WEIGHTS for name in ICE_FIELDS if name.endswith("_weight")},
    "background_logit_scale": NO_WEIGHTS,
    "min_foreground_ratio": NO_RATIOS,
    "max_foreground_ratio": NO_RATIOS,
    "max_common_map_share": NO_RATIOS,
    "min_evidence_lead": NO_RATIOS,
    "local_image_share": (*NO_RATIOS, 0.0),
    "drop_path_rate": (*NO_RATIOS, 1.0),
    "num_local_windows": (-1, 0.5, True, None, 3, 15),
    "patch_head_hidden_size": (0, -1, 0.5, True, 10**9),
    "background_margin": (NAN, True, None, "0"),
    "interpolate_antialias": (1, None, "yes"),
    "num_register_tokens": (-1, 0.5, True, None, 10**6),
    "use_distillation_token": (1, None, "yes"),
    "use_distillation_head": (1, "yes"),
    "fuse_pruned_tokens": (1, None),
    "prune_in_training": (1, None),
    "pruning_layers": (3, ["3"], [0.5], [True]),
    "keep_rates": (0.5, ["0.5"], [None]),
    "object_thresholds": (0.5, [], [0.5], [0.5] * 3, [0.5, 1.1], [0.5, NAN], ["0.5", "0.5"]),  # of two classes
    **{name: ("bogus", "", 1) for name, field in ICE_FIELDS.items() if field.metadata["choices"]},
    # of DeiT, as far as the model uses them
    "layer_norm_eps": (0.0, 1e-45, -1.0, -0.5, 1.5, NAN, INF, True),
    "hidden_size": (*NO_SIZES, 100),
    "num_attention_heads": (*NO_SIZES, 5),
    "num_hidden_layers": (-1, 0.5, True, None),
    "intermediate_size": NO_SIZES,
    "num_channels": NO_SIZES,
    "hidden_dropout_prob": NO_RATIOS,
    "attention_probs_dropout_prob": NO_RATIOS,
    "initializer_range": (0.0, -0.02, NAN, INF),
    "hidden_act": ("bogus", "", None, 1),
    "qkv_bias": (1, None),
    "image_size": (0, -16, 8, 225, [224], [224, 0], [], None, True, 16 * 10**5),
    "patch_size": (0, -16, 448, [8, 8, 8], [16, 0], [], None),
    "id2label": (
        {1: "a", 2: "b"},
        {0: "a", 5: "b"},
        {-1: "a", 0: "b"},
        {},
        ["a"],
        {0: ["a"]},
        {"a": "b"},
        {0: "a", 1: "a"},
    ),
    "dtype": ("floatx", "int8", 5, "float8_e4m3fn"),
    "num_labels": (0, -1, 10**9, True, 1.5),
}
# fields of DeiT that no part of an ICE model reads
UNUSED = {"encoder_stride", "pooler_output_size", "pooler_act"}


@pytest.mark.parametrize(
    ("name", "value"), [pytest.param(name, value, id=f"{name}={value}") for name in REFUSED for value in REFUSED[name]]
)
def test_a_value_that_no_model_can_use_is_refused_by_name_when_built(name, value):
    with pytest.raises((ValueError, StrictDataclassFieldValidationError), match=name):
        IceDeiTConfig(**{name: value})


def test_every_field_of_the_model_has_values_that_are_refused():
    general = {field.name for field in fields(DeiTConfig) if field.name not in DeiTConfig.__annotations__}
    missing = {field.name for field in fields(IceDeiTConfig)} - general - REFUSED.keys() - UNUSED
    assert not missing


@pytest.mark.parametrize("strategy", [None, "top_k"])
def test_pruning_fields_are_checked_alone_without_a_strategy_and_together_with_one(strategy):
    fields = {"num_hidden_layers": 2, "pruning_layers": [5], "pruning_strategy": strategy}
    if strategy is None:
        assert IceDeiTConfig(**fields).pruning_schedule == {}
    else:
        with pytest.raises(ValueError, match="`pruning_layers` must be ascending layers"):
            IceDeiTConfig(**fields)
    with pytest.raises(ValueError, match="`pruning_execution` must be one of"):
        IceDeiTConfig(pruning_execution="fast", pruning_strategy=strategy)


def test_two_classes_may_have_one_name_as_the_cranes_of_imagenet():
    names = {index: f"class {index}" for index in range(100)}
    assert IceDeiTConfig(id2label={**names, 3: "crane", 60: "crane"}).num_labels == 100
    with pytest.raises(ValueError, match=r"`id2label` must give each class a name of its own, got \[.crane.\]"):
        IceDeiTConfig(id2label={0: "crane", 1: "crane"})


@pytest.mark.parametrize(
    ("interval", "inside", "outside", "expected"),
    [
        ("[0, 1)", (0, 0.5, None), (-0.1, 1, NAN), r"in \[0, 1\)"),
        ("(0, 1]", (0.1, 1), (0, 1.1, NAN), r"in \(0, 1\]"),
        ("[1, inf)", (1, 10**9), (0, INF), "at least 1"),
        ("(0, inf)", (1e-9,), (0, INF), r"in \(0, inf\)"),
        ("[-inf, inf]", (INF, -INF, 0), (NAN,), r"in \[-inf, inf\]"),
    ],
)
def test_intervals_hold_what_their_brackets_say(interval, inside, outside, expected):
    for value in inside:
        check_interval("x", value, interval)
    for value in outside:
        with pytest.raises(ValueError, match=f"`x` must be {expected}, got {value}"):
            check_interval("x", value, interval)


def test_every_field_has_one_line_of_help_and_a_default_that_it_allows():
    for name, field in ICE_FIELDS.items():
        assert 0 < len(field.metadata["help"]) <= 100, name
        assert "\n" not in field.metadata["help"], name
        assert field.metadata["help"].endswith("."), name
        assert getattr(IceDeiTConfig, name) == field.default, name
    assert "layer_norm_eps" not in ICE_FIELDS  # DeiT's own, with another default


def test_a_subclass_adds_a_field_that_is_checked_and_saved(tmp_path):
    class ToyConfig(IceDeiTConfig):
        toy_ratio: float | int = ice_field(0.5, "Ratio of toys.", within="[0, 1]")

    with pytest.raises(ValueError, match=r"`toy_ratio` must be in \[0, 1\], got 2"):
        ToyConfig(toy_ratio=2)
    ToyConfig(toy_ratio=1).save_pretrained(tmp_path)
    assert ToyConfig.from_pretrained(tmp_path).toy_ratio == 1


def test_copies_and_pickles_are_equal():
    config = IceDeiTConfig(pruning_strategy="top_k", foreground_pooling="soft", id2label={0: "cat"})
    for other in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert type(other) is IceDeiTConfig
        assert other.to_dict() == config.to_dict()
    chosen = AutoConfig.for_model("ice_deit", local_image_share=0.25)
    assert (type(chosen), chosen.local_image_share) == (IceDeiTConfig, 0.25)


def test_parts_of_the_loss_are_those_that_the_model_returns():
    names = {field.name for field in fields(IceDeiTImageClassifierOutput)}
    assert {name for name in names if name.endswith("_loss")} == set(LOSS_PARTS)
    assert names - {"loss", "logits"} == set(IceDeiTConfig.keys_to_ignore_at_inference)
