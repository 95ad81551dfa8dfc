# SPDX-License-Identifier: Apache-2.0
"""The table of margins of a model with pruning heads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pruning_margins
import pytest
from PIL import Image

from transformers_ice.data.scenes import SCENE_CLASSES, draw_scene


CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(6):
        scene = draw_scene(index, image_size=64)
        mask = scene.mask.astype(np.uint8)
        mask[0] = 255  # not known
        for kind, array in (("images", scene.image), ("masks", mask)):
            file = tmp_path / kind / SCENE_CLASSES[scene.label] / f"{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(file)
    return tmp_path


def test_a_large_margin_keeps_all_and_a_small_one_few(folder: Path, capsys: pytest.CaptureFixture[str]):
    words = [
        "--model",
        str(CHECKPOINTS / "ice-deit-scenes-pruned"),
        "--data_dir",
        str(folder),
        "--ignore_value",
        "255",
    ]
    pruning_margins.main([*words, "--margins", "-2", "1000", "--counts_dir", str(folder / "counts")])
    lines = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    unpruned, small, large = lines[2:]
    assert unpruned[1:4] == large[1:4]  # top-1, difference, mean IoU
    assert large[4].split(", ")[0].strip() == "64"
    assert float(small[6]) > 1.5 > float(large[6])
    assert "nan" not in str(lines)
    shares = json.loads((folder / "counts" / "margin 1000.json").read_text())
    np.testing.assert_allclose(shares, np.ones((6, 3)))


def test_a_model_without_pruning_heads_is_refused(folder: Path):
    words = ["--model", str(CHECKPOINTS / "ice-deit-scenes"), "--data_dir", str(folder), "--margins", "1"]
    with pytest.raises(SystemExit, match="no pruning heads"):
        pruning_margins.main(words)
