# SPDX-License-Identifier: Apache-2.0
"""The mean map: its numbers by hand, and a run on drawn scenes."""

import mean_map
import pytest
import torch
from PIL import Image
from run_pruning_study import ROOT

from transformers_ice.data.scenes import draw_scene


def test_numbers_by_hand():
    maps = torch.tensor([[[0.0, 0.0], [1.0, 1.0]], [[0.0, 0.0], [1.0, 0.0]]])
    assert mean_map.describe_maps(maps).splitlines() == [
        "rows, top to bottom: 0.00 0.75",
        "columns, left to right: 0.50 0.25",
        "standard deviation over images: 0.18",  # 0.7071 at one of four places
        "standard deviation of the mean map, over places: 0.48",  # of 0, 0, 1, 0.5
    ]


def test_scenes_are_explained_by_what_they_show(tmp_path, capsys):
    for index in range(32):
        folder = tmp_path / f"class{index % 2}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(draw_scene(index, split="test", image_size=64).image).save(folder / f"{index}.png")
    model = str(ROOT / "checkpoints/ice-deit-scenes")
    mean_map.main(["--models", model, "--image_dir", str(tmp_path), "--per_class", "15"])
    printed = capsys.readouterr().out
    assert "30 images" in printed
    over_images, over_places = (float(line.split(": ")[1]) for line in printed.splitlines()[-2:])
    assert over_images > over_places > 0
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="must have subfolders of images"):
        mean_map.main(["--models", model, "--image_dir", str(tmp_path / "empty")])
