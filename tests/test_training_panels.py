# SPDX-License-Identifier: Apache-2.0
"""`transformers_ice.training.panels`: which images a run draws, where, and that it changes nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from transformers import TrainerCallback, ViTConfig, ViTForImageClassification

import transformers_ice.training.panels as panels
from transformers_ice import IceDeiTForImageClassification
from transformers_ice.ice_deit.image_processing_ice_deit import IceDeiTImageProcessor
from transformers_ice.training import IceTrainingArguments, LabelledImages, build_trainer
from transformers_ice.training.panels import PanelCallback, panel_rows, spread_indices


NAMES = ["disc", "square", "star"]


def make_images(number: int = 5, size: tuple[int, int] = (48, 32), masks: bool = True) -> LabelledImages:
    """Images whose first colour is their index; the left half of each is foreground."""
    pixels = [np.full((*size, 3), (index, 100, 200), dtype=np.uint8) for index in range(number)]
    columns = {"image": [Image.fromarray(array) for array in pixels], "label": [index % 3 for index in range(number)]}
    features = {"image": ImageFeature(), "label": ClassLabel(names=NAMES)}
    if masks:
        half = np.zeros(size, dtype=np.uint8)
        half[:, : size[1] // 2] = 255
        columns["mask"], features["mask"] = [Image.fromarray(half)] * number, ImageFeature()
    processor = IceDeiTImageProcessor(size={"height": 32, "width": 32})
    return LabelledImages(Dataset.from_dict(columns, features=Features(features)), processor)


def make_trainer(folder: Path, model, images, num_images: int = 2, **fields):
    args = IceTrainingArguments(str(folder), use_cpu=True, disable_tqdm=True, **fields)
    callbacks = [PanelCallback(num_images)]
    return build_trainer(model, args, images, images, images.image_processor, callbacks=callbacks)


def pictures_of(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "panels").glob("*"))


def test_indices_are_spread_and_the_same_every_time():
    assert spread_indices(100, 4) == [0, 25, 50, 75]
    assert spread_indices(3, 8) == [0, 1, 2]
    assert spread_indices(3, 0) == []


def test_rows_hold_the_maps_of_the_pipeline_and_the_truth(tiny_config):
    model = IceDeiTForImageClassification(tiny_config).train()
    images = make_images()
    rows = panel_rows(model, images, [1, 4])
    assert model.training
    assert [row.image[0, 0, 0] for row in rows] == [1, 4]
    inputs = images.image_processor([Image.fromarray(row.image) for row in rows], return_tensors="pt")
    with torch.no_grad():
        outputs = model.eval()(**inputs)
    expected = images.image_processor.post_process_heatmap(outputs, [(48, 32)] * 2)
    for row, heatmap in zip(rows, expected, strict=True):
        assert row.class_map.shape == row.mask.shape == (48, 32)
        np.testing.assert_array_equal(row.heatmap, heatmap)
        np.testing.assert_array_equal(row.mask, row.class_map != 3)
        np.testing.assert_array_equal(row.truth, np.arange(32)[None] < np.full((48, 1), 16))
    for row, scores, truth in zip(rows, outputs.logits.softmax(-1), ("square", "square"), strict=True):
        found = NAMES[int(scores.argmax())]
        wrong = "" if found == truth else f"\n(true: {truth})"
        assert row.title == f"{found}\n{float(scores.max()):.2f}{wrong}"


def test_nothing_found_is_background_in_the_title_too(tiny_config):
    model = IceDeiTForImageClassification(tiny_config)
    background = torch.tensor([0.0, 0.0, 0.0, 2.0])
    model.deit.patch_head.register_forward_hook(lambda head, args, output: background.expand_as(output))
    (row,) = panel_rows(model, make_images(), [1])
    assert row.title == f"background\n{background.softmax(0)[3]:.2f}\n(true: square)"


def test_large_images_are_shrunk_with_their_masks(tiny_config):
    row = panel_rows(IceDeiTForImageClassification(tiny_config), make_images(1, (500, 1000)), [0])[0]
    assert row.image.shape == (224, 448, 3)
    assert row.truth.shape == row.mask.shape == (224, 448)
    assert row.truth.mean() == 0.5


def test_data_without_masks_have_no_truth(tiny_config):
    assert panel_rows(IceDeiTForImageClassification(tiny_config), make_images(1, masks=False), [0])[0].truth is None


def test_every_evaluation_writes_its_panel_and_training_stays_the_same(tiny_config, tmp_path):
    pytest.importorskip("matplotlib")
    weights = []
    for num_images in (2, 0):
        torch.manual_seed(0)
        model = IceDeiTForImageClassification(tiny_config)
        folder = tmp_path / str(num_images)
        options = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "no", "max_steps": 2}
        make_trainer(folder, model, make_images(), num_images, **options).train()
        weights.append(model.state_dict())
    assert pictures_of(tmp_path / "2") == ["step-000001.png", "step-000002.png"]
    assert pictures_of(tmp_path / "0") == []
    with Image.open(tmp_path / "2" / "panels" / "step-000002.png") as picture:
        assert min(picture.size) > 100
    for name, weight in weights[0].items():
        assert torch.equal(weight, weights[1][name]), name


def test_classifier_without_patches_and_other_processes_draw_nothing(tiny_config, tmp_path):
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    make_trainer(tmp_path, ViTForImageClassification(ViTConfig(num_labels=3, **shape)), make_images()).evaluate()
    trainer = make_trainer(tmp_path, IceDeiTForImageClassification(tiny_config), make_images())
    trainer.state.is_world_process_zero = False
    trainer.evaluate()
    assert pictures_of(tmp_path) == []


def test_missing_matplotlib_warns_once(tiny_config, tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr(panels, "is_matplotlib_available", lambda: False)
    monkeypatch.setattr(panels.logger, "warning", warnings.append)
    trainer = make_trainer(tmp_path, IceDeiTForImageClassification(tiny_config), make_images())
    trainer.evaluate()
    trainer.evaluate()
    assert len(warnings) == 1
    assert "pip install transformers-ice[viz]" in warnings[0]
    assert pictures_of(tmp_path) == []


def test_panel_that_cannot_be_drawn_is_a_warning_and_class_names_are_text(tiny_config, tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr(panels.logger, "warning", warnings.append)
    model = IceDeiTForImageClassification(tiny_config)
    model.config.id2label = {index: "$$" for index in model.config.id2label}
    trainer = make_trainer(tmp_path, model, make_images())
    trainer.evaluate()
    assert not warnings
    assert len(pictures_of(tmp_path)) == 1

    def fail(*_):
        raise RuntimeError("no glyph")

    monkeypatch.setattr(panels, "explanation_panel", fail)
    assert "eval_loss" in trainer.evaluate()
    assert [message.endswith("could not be drawn: RuntimeError: no glyph") for message in warnings] == [True]


class TensorBoard(TrainerCallback):
    """A tracker as transformers' own, which holds its writer."""

    def __init__(self) -> None:
        self.tb_writer, self.sent = self, []

    def add_image(self, name, pixels, step, dataformats):
        self.sent.append((name, pixels.ndim, step, dataformats))


class WandB(TrainerCallback):
    def __init__(self) -> None:
        self._wandb, self.run, self.sent = self, "run", []

    def log(self, values):
        self.sent.append(values)

    def Image(self, path):  # noqa: N802, as in wandb
        return Path(path).name


def test_trackers_get_the_panels_and_the_last_one_is_that_of_the_final_model(tiny_config, tmp_path):
    pytest.importorskip("matplotlib")
    options = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "no", "max_steps": 2}
    trainer = make_trainer(tmp_path, IceDeiTForImageClassification(tiny_config), make_images(), **options)
    board, wandb = TensorBoard(), WandB()
    trainer.add_callback(board)
    trainer.add_callback(wandb)
    trainer.train()
    before = (tmp_path / "panels" / "step-000002.png").stat().st_mtime_ns
    trainer.evaluate()  # as a run does at its end, with weights that may be those of another step
    assert pictures_of(tmp_path) == ["final.png", "step-000002.png"]
    assert (tmp_path / "panels" / "step-000002.png").stat().st_mtime_ns == before
    assert board.sent == [("panels", 3, 2, "HWC")] * 2
    assert wandb.sent == [{"panels": name, "train/global_step": 2} for name in ("step-000002.png", "final.png")]
