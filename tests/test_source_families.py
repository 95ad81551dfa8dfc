# SPDX-License-Identifier: Apache-2.0
"""Source families: one registry, which loading and conversion read alike."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersForImageClassification

from transformers_ice import IceDeiTConfig, IceDeiTForImageClassification
from transformers_ice.conversion import KEY_TABLES
from transformers_ice.explainers.inspection import num_prefix_tokens
from transformers_ice.ice_deit.source_families import (
    SOURCE_FAMILIES,
    encoder_renamings,
    prefix_renamings,
    unused_key_patterns,
)


FAMILIES = list(SOURCE_FAMILIES.values())


def renamed(name: str) -> str:
    """The name that loading gives to a weight: each renaming once, in order."""
    for pattern, replacement in encoder_renamings():
        name = re.sub(pattern, replacement, name)
    return name


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
@pytest.mark.parametrize("layout", [layout for layout in KEY_TABLES if layout != "timm"])
def test_loading_and_conversion_give_a_weight_the_same_name(family, layout):
    rows = [(old, new) for old, new in KEY_TABLES[layout] if new.startswith("deit.")]
    assert len(rows) > 10
    for old, new in rows:
        example = {"n": 11, "p": "bias"}
        assert renamed(family.key_prefix + old.format(**example)) == new.format(**example)


def test_the_prefix_of_ice_itself_is_not_renamed():
    assert SOURCE_FAMILIES["deit"].prefix_renamings == ()
    assert prefix_renamings()[0] == (r"^vit\.", "deit.")


def test_what_conversion_drops_is_what_loading_ignores(tiny_config):
    patterns = [re.compile(pattern) for pattern in unused_key_patterns()]
    names = [name.format(n=0, p="weight", rest="x.bias") for family in FAMILIES for name in family.unused_keys]
    for prefix in ("", "vit.", "deit."):
        assert all(any(pattern.search(prefix + name) for pattern in patterns) for name in names if "." in name)
    weights = IceDeiTForImageClassification(tiny_config).state_dict()
    assert not [key for key in weights if any(pattern.search(key) for pattern in patterns)]
    re.compile("|".join(f"({pattern})" for pattern in patterns))  # as transformers joins them


def test_adoption_overrides_what_the_family_decides_and_keeps_the_rest():
    config = {"model_type": "deit", "hidden_size": 48, "architectures": ["DeiTForImageClassificationWithTeacher"]}
    adopted = SOURCE_FAMILIES["deit"].adopt_config(config)
    assert adopted == {
        **config,
        "layer_norm_eps": 1e-12,
        "use_distillation_token": True,
        "use_distillation_head": True,
        "logits_source": "cls",
    }
    assert not SOURCE_FAMILIES["vit"].adopt_config({"model_type": "vit"})["use_distillation_token"]


def test_one_entry_makes_another_family_load(hub_folder, tmp_path, monkeypatch):
    toy = replace(SOURCE_FAMILIES["vit"], model_type="toy", default_fields={"layer_norm_eps": 0.125})
    source = Path(shutil.copytree(hub_folder("vit", "new"), tmp_path / "toy"))
    content = json.loads((source / "config.json").read_text())
    content["model_type"] = "toy"
    content.pop("layer_norm_eps")
    (source / "config.json").write_text(json.dumps(content))
    assert IceDeiTConfig.from_pretrained(source).logits_source == "patch"  # unknown, and so taken for one of ours
    monkeypatch.setitem(SOURCE_FAMILIES, "toy", toy)
    model = IceDeiTForImageClassification.from_pretrained(source)
    assert (model.config.model_type, model.config.layer_norm_eps) == ("ice_deit", 0.125)
    assert model.config.logits_source == "cls"
    weights = load_file(source / "model.safetensors")
    assert torch.equal(model.deit.layernorm.weight, weights["vit.layernorm.weight"])


def test_registers_are_prefix_tokens():
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
    for num_register_tokens in (0, 3):
        config = Dinov2WithRegistersConfig(**sizes, num_register_tokens=num_register_tokens)
        model = Dinov2WithRegistersForImageClassification(config).eval()
        assert num_prefix_tokens(model) == 1 + num_register_tokens
    with torch.no_grad():
        states = model.base_model(torch.zeros(1, 3, 32, 32)).last_hidden_state
    assert states.shape[1] == num_prefix_tokens(model) + 16  # a grid of 4 x 4
