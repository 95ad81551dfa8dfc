# SPDX-License-Identifier: Apache-2.0
"""`benchmarks/profile_model.py`: kinds of work by hand, and a small run from end to end."""

from __future__ import annotations

import json

import numpy as np
import profile_model
import pytest
import torch
from PIL import Image
from profile_model import KINDS, OVERHEAD, ProfileRow, kind_of

from transformers_ice import IceDeiTConfig, IceDeiTForImageClassification


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        ("aten::addmm", "linear maps"),
        ("aten::mm", "linear maps"),
        ("aten::mkldnn_convolution", "linear maps"),
        ("aten::bmm", "attention"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::_softmax", "softmax"),
        ("aten::native_layer_norm", "norms"),
        ("aten::gelu", "GELU"),
        ("aten::index_copy", "pruning"),
        ("aten::gather", "pruning"),
        ("aten::masked_fill_", "pruning"),
        ("aten::copy_", "copies"),
        ("aten::cat", "copies"),
        ("aten::add", "additions"),
        ("aten::view", None),
        ("aten::empty", None),
        ("aten::as_strided", None),
        ("aten::transpose", None),
    ],
)
def test_operators_have_their_kind_of_work(operator, kind):
    assert kind_of(operator) == kind


def test_parts_of_a_pass_add_up_to_100_percent():
    row = ProfileRow("a", 1, "float32", "b", 8.0, {kind: 1.0 for kind in (*KINDS, OVERHEAD)})
    assert sum(row.percent(kind) for kind in row.parts) == pytest.approx(100)


def test_a_small_model_is_profiled_drawn_and_written(tmp_path, capsys):
    torch.manual_seed(0)
    config = IceDeiTConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
    )
    IceDeiTForImageClassification(config).save_pretrained(tmp_path / "small")
    words = ["--models", str(tmp_path / "small"), "--batch_sizes", "2", "--num_repeats", "1"]
    assert profile_model.main([*words, "--output_dir", str(tmp_path / "out")]) == 0
    rows = json.loads((tmp_path / "out/results.json").read_text())["rows"]
    assert [row["variant"] for row in rows] == ["ICE unpruned", "top_k 0.7", "attentiveness 0.7", "background"]
    unpruned, *pruned = (row["parts"] for row in rows)
    assert unpruned["pruning"] == 0 < min(parts["pruning"] for parts in pruned)
    assert all(row["parts"]["linear maps"] > 0 and row["milliseconds"] > 0 for row in rows)
    assert "Python, launches" in capsys.readouterr().out
    with Image.open(tmp_path / "out/profile.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 5
