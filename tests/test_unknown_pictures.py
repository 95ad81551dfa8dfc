# SPDX-License-Identifier: Apache-2.0
"""Known and unknown pictures: the separation by hand, and a whole run on drawn scenes and empty pictures."""

import numpy as np
import pytest
import unknown_pictures
from PIL import Image
from run_pruning_study import ROOT

from transformers_ice.data.scenes import draw_scene


def test_separation_by_hand():
    assert unknown_pictures.separation(np.array([0.9, 0.5]), np.array([0.5, 0.1])) == (3 + 0.5) / 4
    assert unknown_pictures.separation(np.array([0.0]), np.array([1.0])) == 0
    assert unknown_pictures.separation(np.array([1.0, 0.5]), np.array([1.0, 0.5])) == 0.5


def test_scenes_are_told_from_grey_pictures(tmp_path, capsys):
    for index in range(4):
        for name, image in (
            ("known/a", Image.fromarray(draw_scene(index, split="test", image_size=64).image)),
            ("unknown", Image.new("RGB", (64, 64), (120 + index, 120, 120))),
        ):
            (tmp_path / name).mkdir(parents=True, exist_ok=True)
            image.save(tmp_path / name / f"{index}.png")
    model = ["--model", str(ROOT / "checkpoints/ice-deit-scenes")]
    known = ["--known", str(tmp_path / "known")]
    unknown_pictures.main([*model, *known, "--unknown", str(tmp_path / "unknown"), "--limit", "3"])
    printed = capsys.readouterr().out
    assert "| known | 3 | 0.000 |" in printed
    assert "| unknown | 3 | 1.000 | 0.000 | 0.000 | 0.000 |" in printed
    assert "probability 1.000" in printed
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="holds no images"):
        unknown_pictures.main([*model, *known, "--unknown", str(tmp_path / "empty")])
