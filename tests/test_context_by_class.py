# SPDX-License-Identifier: Apache-2.0
"""How much of a mask lies on the object, class by class."""

from __future__ import annotations

from pathlib import Path

import context_by_class
import numpy as np
import pytest
from PIL import Image

from transformers_ice.data.benchmarks.examples import Example


def test_shares_are_of_the_known_pixels():
    truth = np.array([[1, 1, 0, 0], [1, -1, 0, -1]], np.int8)
    foreground = np.array([[True, False, True, False], [True, True, False, True]])
    overlap = context_by_class.compare("a", foreground, truth)
    assert (overlap.object_share, overlap.foreground_share) == (3 / 6, 3 / 6)
    assert overlap.on_object == overlap.covered == pytest.approx(2 / 3)
    assert overlap.iou == 2 / 4


def test_an_empty_foreground_covers_nothing():
    overlap = context_by_class.compare("a", np.zeros((2, 2), bool), np.ones((2, 2), np.int8))
    assert (overlap.on_object, overlap.covered, overlap.iou) == (0, 0, 0)


def test_boxes_are_half_open():
    example = Example("a", Image.new("RGB", (4, 3)), boxes=np.array([[1.0, 0.0, 3.0, 2.0]]))
    assert context_by_class.object_mask(example).tolist() == [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    with pytest.raises(SystemExit, match="masks or boxes"):
        context_by_class.object_mask(Example("a", Image.new("RGB", (4, 3))))


def test_it_prints_a_row_for_each_class_and_the_worst_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for kind, mode, value in (("images", "RGB", (200, 30, 30)), ("masks", "L", 1)):
        (tmp_path / kind / "red").mkdir(parents=True)
        Image.new(mode, (64, 64), value).save(tmp_path / kind / "red" / "0.png")
    checkpoint = Path(__file__).parents[1] / "checkpoints" / "ice-deit-scenes"
    context_by_class.main(["--model", str(checkpoint), "--data_dir", str(tmp_path), "--worst", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| class | images | object |")
    assert lines[2].split("|")[2:4] == [" 1 ", " 1.00 "]  # one image, which is all object
    assert "IoU" in lines[-1]
