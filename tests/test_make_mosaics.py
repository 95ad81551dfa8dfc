# SPDX-License-Identifier: Apache-2.0
"""Mosaics of photographs: the right image in each cell, the right classes in the list, the same ones again."""

import json

import make_mosaics
import pytest
from PIL import Image

from transformers_ice.data.images.folders import load_image_folder


COLORS = {"red": (250, 0, 0), "green": (0, 250, 0), "blue": (0, 0, 250)}


@pytest.fixture
def image_dir(tmp_path):
    for name, color in COLORS.items():
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (30, 20), color).save(tmp_path / "images" / name / f"{number}.png")
    return tmp_path / "images"


def test_the_list_holds_the_classes_that_the_picture_shows(image_dir, tmp_path):
    options = ["--image_dir", str(image_dir), "--num_mosaics", "5", "--num_single", "2"]
    make_mosaics.main([*options, "--output_dir", str(tmp_path / "a")])
    make_mosaics.main([*options, "--output_dir", str(tmp_path / "b")])
    lines = [json.loads(line) for line in (tmp_path / "a" / "metadata.jsonl").read_text().splitlines()]
    assert len(lines) == 7
    assert (tmp_path / "a" / "metadata.jsonl").read_text() == (tmp_path / "b" / "metadata.jsonl").read_text()
    for line in lines:
        with Image.open(tmp_path / "a" / line["file_name"]) as image:
            assert image.size == (160, 160)
            centres = [image.getpixel((x, y)) for y in (40, 120) for x in (40, 120)]
        shown = {tuple(COLORS)[max(range(3), key=pixel.__getitem__)] for pixel in centres}
        assert sorted(shown) == line["label"]
    assert all(len(line["label"]) == 1 for line in lines[5:])
    table = load_image_folder(tmp_path / "a")
    assert sorted(table["label"][0]) == lines[[line["file_name"] for line in lines].index("m0.jpg")]["label"]


def test_too_few_images_are_refused(image_dir, tmp_path):
    with pytest.raises(SystemExit, match="must hold 10 images, got 9"):
        make_mosaics.main(["--image_dir", str(image_dir), "--output_dir", str(tmp_path), "--num_single", "10"])
