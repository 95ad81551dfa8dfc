# SPDX-License-Identifier: Apache-2.0
"""Published code of other methods: imported from a folder without timm, with equal weights, equal class logits.

The folders here hold small stand-ins of the published files, written from the papers, with the same imports.
"""

from __future__ import annotations

import json
import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from transformers_ice import IceDeiTConfig, IceDeiTForImageClassification
from transformers_ice.cli import benchmark as run_benchmark
from transformers_ice.speed import (
    SpeedRow,
    comparison_table,
    count_macs,
    external_variants,
    ideal_macs,
    summarize_spread,
)


SIZES = {
    "hidden_size": 48,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "image_size": 32,
    "patch_size": 4,
    "num_labels": 3,
    "initializer_range": 0.3,  # attention that differs between patches
}

HELPERS = """
from torchprofile import profile_macs

def attention_of_class(attention):
    return attention[:, :, 0, 1:].mean(dim=1)
"""

# EViT, image by image, from Section 3 of the paper
EVIT = """
import math
import torch
from torch import nn
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.models.helpers import build_model_with_cfg, named_apply, adapt_input_conv
from timm.models.layers import trunc_normal_, lecun_normal_, to_2tuple
from timm.models.registry import register_model
from helpers import attention_of_class

class Layer(nn.Module):
    def __init__(self, width, heads, hidden, norm_layer, rate):
        super().__init__()
        self.norm1, self.norm2, self.rate, self.heads = norm_layer(width), norm_layer(width), rate, heads
        self.attn, self.mlp = nn.Module(), nn.Module()
        self.attn.qkv, self.attn.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):  # (1, tokens, width)
        q, k, v = self.attn.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(dim=-1)
        x = x + self.attn.proj((attention @ v).transpose(1, 2).flatten(2))
        if self.rate < 1:
            score, patches = attention_of_class(attention)[0], x[0, 1:]
            order = score.argsort(descending=True)
            count = math.ceil(self.rate * len(order))
            rest = order[count:]
            fused = (score[rest, None] * patches[rest]).sum(dim=0, keepdim=True)
            x = torch.cat((x[0, :1], patches[order[:count]], fused))[None]
        return x + self.mlp.fc2(nn.functional.gelu(self.mlp.fc1(self.norm2(x))))

class EViT(nn.Module):
    def __init__(self, img_size, patch_size, in_chans, num_classes, embed_dim, depth, num_heads, mlp_ratio, qkv_bias,
                 norm_layer, keep_rate, fuse_token):
        super().__init__()
        size, _ = to_2tuple(img_size)
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(in_chans, embed_dim, patch_size, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (size // patch_size[0]) ** 2, embed_dim))
        hidden = int(mlp_ratio * embed_dim)
        self.blocks = nn.Sequential(*(Layer(embed_dim, num_heads, hidden, norm_layer, rate) for rate in keep_rate))
        self.norm, self.head = norm_layer(embed_dim), nn.Linear(embed_dim, num_classes)

    def forward(self, pixel_values):
        images = []
        for image in pixel_values.split(1):
            patches = self.patch_embed.proj(image).flatten(2).transpose(1, 2)
            tokens = torch.cat((self.cls_token, patches), dim=1) + self.pos_embed
            images.append(self.head(self.norm(self.blocks(tokens))[:, 0]))
        return torch.cat(images)
"""

# the frame of ToMe: it replaces the classes of blocks and merges nothing here
TOME = """
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from tome.merge import merged

class MergingAttention(Attention):
    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attention = self.attn_drop((q @ k.transpose(-1, -2) * self.scale).softmax(dim=-1))
        return self.proj_drop(self.proj((attention @ v).transpose(1, 2).flatten(2)))

class MergingBlock(Block):
    def forward(self, x):
        x = merged(x + self.drop_path(self.attn(self.norm1(x))))
        return x + self.drop_path(self.mlp(self.norm2(x)))

def apply_patch(model):
    assert isinstance(model, VisionTransformer)
    for module in model.modules():
        if isinstance(module, Block):
            module.__class__ = MergingBlock
        elif isinstance(module, Attention):
            module.__class__ = MergingAttention
"""


@pytest.fixture
def model():
    torch.manual_seed(0)
    fields = {"pruning_strategy": "background", "pruning_layers": [1, 3], **SIZES}
    return IceDeiTForImageClassification(IceDeiTConfig(**fields)).eval()


@pytest.fixture
def pixel_values():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def folders(tmp_path):
    (tmp_path / "evit").mkdir()
    (tmp_path / "tome/patch").mkdir(parents=True)
    for name, text in {
        "evit/evit.py": EVIT,
        "evit/helpers.py": HELPERS,
        "tome/patch/timm.py": TOME,
        "tome/merge.py": "def merged(x):\n    return x\n",
        "tome/__init__.py": "import timm.models.mae_of_long_ago\n",
        "tome/patch/__init__.py": "from .swag import apply_patch\n",
    }.items():
        (tmp_path / name).write_text(text)
    return {"evit": str(tmp_path / "evit"), "tome": str(tmp_path)}


def test_published_code_runs_with_the_weights_and_the_macs_of_its_rows(model, folders, pixel_values):
    variants = {v.name: v for v in external_variants(model, folders, [0.7, 0.5], pixel_values)}
    evit = {rate: variants[f"EViT's code {rate}, fused"] for rate in (0.7, 0.5)}
    for variant in evit.values():
        counted = count_macs(lambda model=variant.model: model(pixel_values[:1]))
        assert counted == ideal_macs(variant.config, **vars(variant.counts))[0]
    # 64 patches; ceil(0.5 x 64) and a fused token, ceil(0.5 x 33) and a fused one; [CLS]
    assert evit[0.5].counts.tokens_per_layer.tolist() == [[65, 65, 34, 34, 19]]
    tome = next(v for name, v in variants.items() if name.startswith("ToMe's code, r = "))
    wanted = ideal_macs(model.config, **vars(evit[0.7].counts))[0]
    assert ideal_macs(model.config, **vars(tome.counts))[0] == pytest.approx(wanted, rel=0.05)
    number = int(tome.name.rpartition(" ")[2])
    assert tome.model.r == number
    assert np.diff(tome.counts.tokens_per_layer).tolist() == [[-number] * 4]


def test_the_modules_of_the_process_are_as_before_and_no_file_is_written(model, folders, pixel_values, tmp_path):
    own = ModuleType("helpers")
    sys.modules["helpers"] = own
    before, files = dict(sys.modules), sorted(tmp_path.rglob("*"))
    try:
        external_variants(model, folders, [0.5], pixel_values)
        assert sys.modules["helpers"] is own
        assert not {"timm", "evit", "tome", "tome.merge", "torchprofile"} & (set(sys.modules) - set(before))
        assert sorted(tmp_path.rglob("*")) == files
    finally:
        del sys.modules["helpers"]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("evit/evit.py", None, "there is no .*evit.py"),
        ("evit/helpers.py", "import a_module_that_is_nowhere", "ModuleNotFoundError"),
        ("evit/evit.py", "class Other: ...", "must define EViT"),
        (
            "evit/evit.py",
            EVIT.replace("argsort(descending=True)", "argsort()"),
            "EViT at keep rate 0.5: the class logits",
        ),
        ("evit/evit.py", EVIT.replace("self.norm, self.head", "self.norm_, self.head"), "has other parts"),
        ("tome/merge.py", "def merged(x):\n    return 2 * x\n", "ToMe: the class logits"),
    ],
)
def test_a_folder_with_other_code_is_refused(model, folders, pixel_values, tmp_path, file, text, message):
    (tmp_path / file).unlink()
    if text is not None:
        (tmp_path / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        external_variants(model, folders, [0.5], pixel_values)


def test_a_model_with_registers_is_refused(folders, pixel_values):
    model = IceDeiTForImageClassification(IceDeiTConfig(**SIZES, num_register_tokens=2)).eval()
    with pytest.raises(ValueError, match="as the only prefix token"):
        external_variants(model, folders, [0.5], pixel_values)


def row(variant, seconds, is_published=False):
    spread = summarize_spread([1.0])
    speeds = (spread, spread, spread, [1.0], 1.0, None, 1.0, 1.0, "float32", None, None)
    return SpeedRow(variant, 1, *speeds, is_published=is_published, seconds=seconds)


def test_ratios_to_published_code_are_of_the_same_repeat():
    rows = [row("ours", [1.0, 2.0, 4.0]), row("EViT's code", [1.1, 2.4, 4.0], is_published=True)]
    assert comparison_table(rows).splitlines()[-1].split() == ["ours", "1.100", "(1.050-1.150)"]
    assert comparison_table(rows[:1]) == ""


def test_the_command_times_published_code_by_turns(folders, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers_ice.speed.peak._SIDES", {"cpu": 64})
    monkeypatch.setattr(run_benchmark, "check_dtypes", lambda names, device: None)
    tiny = ",".join(f"{name}={value}" for name, value in {**SIZES, "pruning_layers": "[1,3]"}.items())
    words = f"--config_overrides {tiny} --keep_beta 0.5 0.2 --keep_rates 0.5 --dtype float32 bfloat16 --device cpu"
    words += " --num_images 2 --num_repeats 1 --num_warmups 0 --images_per_repeat 1 --batch_sizes 1"
    published = [f"{name}={folder}" for name, folder in folders.items()]
    output = ["--output_dir", str(tmp_path / "out")]
    assert run_benchmark.main([*words.split(), *output, "--external", *published]) == 0
    rows = {row["variant"]: row for row in json.loads((tmp_path / "out/results.json").read_text())["rows"]}
    assert rows["EViT's code 0.5, fused"]["counted_gmacs"] == pytest.approx(rows["EViT's code 0.5, fused"]["gmacs"])
    assert rows["EViT's code 0.5, fused, bfloat16"]["precision"] == "bfloat16"
