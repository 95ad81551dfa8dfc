# SPDX-License-Identifier: Apache-2.0
"""The study of patch heads on a frozen encoder computes what the model computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import run_head_study
import torch
from PIL import Image
from pruning_models import build, images

from transformers_ice import IceDeiTImageProcessor


def test_outputs_of_the_frozen_encoder_are_those_of_the_model(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run_head_study, "has_fast_bfloat16", lambda: False)
    model = build(None, num_local_windows=2)
    pixels = images(4)
    encoder = run_head_study.FrozenEncoder(model, pixels, 2)
    encoder.head, encoder.rows = model.deit.patch_head, torch.arange(4)
    with torch.no_grad():
        torch.testing.assert_close(encoder.encode_windows(pixels[::2]), model.deit.encode_windows(pixels[::2]))
        torch.testing.assert_close(encoder.head(encoder.patches), model(pixels).patch_logits)
        torch.testing.assert_close(encoder.states, model.deit(pixels).last_hidden_state)


def test_it_prints_a_line_for_each_variant(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    generator = np.random.default_rng(0)
    noise = [Image.fromarray(generator.integers(0, 255, (64, 64, 3), np.uint8)) for _ in range(4)]
    for place, image in enumerate(noise):
        file = tmp_path / "train" / f"class {place % 2}" / f"{place}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file)
    for kind, image in (("images", noise[0]), ("masks", Image.new("L", (64, 64), 1))):
        (tmp_path / "scored" / kind / "class 1").mkdir(parents=True)
        image.save(tmp_path / "scored" / kind / "class 1" / "0.png")
    model = build(None, num_labels=2, id2label={0: "class 0", 1: "class 1"}, label2id={"class 0": 0, "class 1": 1})
    model.save_pretrained(tmp_path / "model")
    IceDeiTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "model")
    words = ["--model", str(tmp_path / "model"), "--train_dir", str(tmp_path / "train")]
    words += ["--data_dir", str(tmp_path / "scored"), "--seeds", "0", "1", "--steps", "10", "--per_class", "1"]
    run_head_study.main([*words, "--variants", "balanced", "published, 0.3"])
    lines = capsys.readouterr().out.splitlines()
    # heads that start at zero are all foreground until they can classify noise, and the mask is the whole picture
    assert lines[0].startswith("balanced: 1.000 1.000; the ground in 0; top-1 ")
    assert lines[1].startswith("published, 0.3: ")
