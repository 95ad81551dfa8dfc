# SPDX-License-Identifier: Apache-2.0
"""Fields of a configuration, alone and together: refused by name, or a model that works."""

from __future__ import annotations

import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from hypothesis import assume, example, given
from hypothesis import strategies as st
from transformers import DeiTConfig
from transformers.activations import ACT2FN

from transformers_ice import IceDeiTConfig, IceDeiTForImageClassification
from transformers_ice.ice_deit.configuration_ice_deit import ICE_FIELDS


TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 16,
    "patch_size": 8,
    "num_labels": 3,
    "pruning_layers": [1],
    "keep_rates": [0.5],
}
NAN, INF = math.nan, math.inf
ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.floats(),
    st.text(max_size=4),
    st.lists(st.integers(-2, 20), max_size=3),
    st.dictionaries(st.integers(-1, 3), st.text(max_size=2), max_size=3),
)
NUMBERS = st.one_of(
    st.sampled_from([0, 1, -0.0, 1e-320, 1e-45, 1e-12, 0.5, 1 - 2**-53, 1.0, 1e6, 1e300, NAN, INF, -INF, -0.1]),
    st.floats(0, 1),
)


def sizes(most: int, huge: int = 10**7):
    """Sizes of tiny models, and some that no machine holds."""
    return st.one_of(st.integers(-1, most), st.just(huge))


def pairs_of(values):
    return st.one_of(values, st.lists(values, min_size=1, max_size=3))


FIELDS = {
    **dict.fromkeys(("hidden_size", "intermediate_size", "patch_head_hidden_size"), sizes(40)),
    **dict.fromkeys(("num_attention_heads", "num_hidden_layers", "num_channels", "num_local_windows"), sizes(4)),
    "num_register_tokens": sizes(4),
    "image_size": pairs_of(sizes(24)),
    "patch_size": pairs_of(sizes(24)),
    "num_labels": sizes(8, 10**9),
    "id2label": st.dictionaries(st.integers(-1, 3), st.sampled_from(["", "a", "b", "background", "c"]), max_size=4),
    "label2id": st.dictionaries(st.sampled_from(["", "a", "b", "LABEL_0"]), st.integers(-1, 3), max_size=3),
    "hidden_act": st.sampled_from([*sorted(ACT2FN), "bogus"]),
    "pruning_layers": st.lists(st.integers(-1, 4), max_size=3),
    "keep_rates": st.lists(NUMBERS, max_size=3),
    "dtype": st.sampled_from(["float32", "bfloat16", "float16", "float64", "int8", "bogus", "float8_e5m2"]),
    "problem_type": st.sampled_from([None, "regression", "single_label_classification", "multi_label_classification"]),
    **dict.fromkeys(("qkv_bias", "use_distillation_token", "interpolate_antialias"), st.booleans()),
    **dict.fromkeys(("use_distillation_head", "fuse_pruned_tokens", "prune_in_training"), st.booleans()),
    **{
        name: st.sampled_from([*field.metadata["choices"], "bogus"])
        for name, field in ICE_FIELDS.items()
        if field.metadata["choices"]
    },
}
# all others are numbers
FIELDS |= {
    name: NUMBERS
    for name in [*ICE_FIELDS, *DeiTConfig.__annotations__]
    if name not in FIELDS and name not in ("encoder_stride", "pooler_output_size", "pooler_act", "model_type")
    and isinstance(getattr(IceDeiTConfig, name, None), int | float)
}  # fmt: skip


@st.composite
def fields(draw, count):
    names = draw(st.lists(st.sampled_from(sorted(FIELDS)), min_size=count, max_size=count, unique=True))
    return {name: draw(st.one_of(FIELDS[name], FIELDS[name], FIELDS[name], ANYTHING)) for name in names}


def build(values):
    """Return a model, or `None` where the fields are refused with their name."""
    base = {name: value for name, value in TINY.items() if not (name == "num_labels" and "id2label" in values)}
    try:
        config = IceDeiTConfig(**{**base, **values})
    except (ValueError, StrictDataclassError) as error:
        # a field of the base may contradict one that was drawn
        assert any(name in str(error) for name in [*values, *TINY]), error
        return None
    # what `from_pretrained` reads is at most as large as this
    assume(config.hidden_size * config.intermediate_size <= 10**5)
    return IceDeiTForImageClassification(config)


def values_of(config):
    """Return what is equal after loading; as text, in which NaN is equal, too."""
    return {name: repr(value) for name, value in config.to_dict().items() if name in FIELDS and name != "dtype"}


def check_works(model, folder):
    """Train a step, predict, prune, save and load."""
    config = model.config
    image_size = [config.image_size] * 2 if isinstance(config.image_size, int) else config.image_size
    dtype = next(model.parameters()).dtype
    pixel_values = torch.randn(2, config.num_channels, *image_size, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, config.num_labels - 1])
    model.train()
    if config.problem_type == "multi_label_classification":
        labels = torch.nn.functional.one_hot(labels, config.num_labels).float()
    if config.problem_type != "regression":
        outputs = model(pixel_values, labels=labels)
        assert outputs.loss.isfinite(), outputs.loss
        outputs.loss.backward()
    else:
        with pytest.raises(ValueError, match="problem_type"):
            model(pixel_values, labels=labels)
    model.eval()
    with torch.no_grad():
        outputs = model(pixel_values)
        assert outputs.logits.shape == (2, config.num_labels)
        assert outputs.logits.isfinite().all()
        assert outputs.patch_logits.isfinite().all()
        model.save_pretrained(folder)
        loaded = IceDeiTForImageClassification.from_pretrained(folder, initialize_pruning_heads=True).eval()
        assert values_of(loaded.config) == values_of(config)
        assert next(loaded.parameters()).dtype == dtype
        assert torch.equal(loaded(pixel_values).logits, outputs.logits)
        if config.pruning_strategy is None and config.num_hidden_layers:
            model.config.pruning_layers, model.config.keep_rates = [0], [0.5]
            model.config.pruning_strategy = "attentiveness"
        if config.num_hidden_layers:
            assert model(pixel_values).patch_logits.isfinite().all()


@given(fields(1))
@example({"num_local_windows": 3})
@example({"layer_norm_eps": 1e-320})
def test_one_field_is_refused_by_name_or_the_model_works(tmp_path, values):
    model = build(values)
    if model is not None:
        check_works(model, tmp_path)


@given(
    st.integers(2, 4).flatmap(fields),
    st.sampled_from([None, "background", "top_k", "attentiveness"]),
)
@example({"layer_norm_eps": 0.0, "hidden_size": 1, "num_attention_heads": 1}, None)
def test_several_fields_are_refused_by_name_or_the_model_works(tmp_path, values, strategy):
    model = build({"pruning_strategy": strategy, **values})
    if model is not None:
        check_works(model, tmp_path)
