# SPDX-License-Identifier: Apache-2.0
"""A resumed run is the run that was begun: other settings, classes and damaged files are noticed, with names."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PilImage

from transformers_ice import IceDeiTConfig, IceDeiTForImageClassification, IceDeiTImageProcessor
from transformers_ice.training import DataArguments, IceTrainingArguments, LabelledImages
from transformers_ice.training.checkpoints import (
    COMPLETION_MARKER,
    choose_checkpoint,
    damaged_files,
    locked_folder,
    mark_complete,
)
from transformers_ice.training.run_settings import SETTINGS_FILE, check_settings, describe_images, describe_run


SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SHAPE |= {"image_size": 16, "patch_size": 8, "id2label": {0: "a", 1: "b"}}


def make_images(num_images: int = 4, folder: Path | None = None) -> LabelledImages:
    picture = PilImage.new("RGB", (16, 16))
    images: list = [picture] * num_images
    if folder is not None:
        images = []
        for index in range(num_images):
            (folder / "a").mkdir(parents=True, exist_ok=True)
            PilImage.new("RGB", (16, 16), (index, 0, 0)).save(folder / "a" / f"{index}.png")
            images.append(str(folder / "a" / f"{index}.png"))
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b"])})
    table = Dataset.from_dict({"image": images, "label": [i % 2 for i in range(num_images)]}, features=features)
    return LabelledImages(table, IceDeiTImageProcessor(size={"height": 16, "width": 16}))


def describe(tmp_path: Path, config: dict | None = None, data: dict | None = None, images=None, **args) -> dict:
    model = IceDeiTForImageClassification(IceDeiTConfig(**{**SHAPE, **(config or {})}))
    data_args = DataArguments(**{"train_files": "x.parquet", "validation_files": "y.parquet", **(data or {})})
    training_args = IceTrainingArguments(str(tmp_path), use_cpu=True, **{"per_device_train_batch_size": 8, **args})
    return describe_run(model, training_args, data_args, images or make_images())


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    folder = tmp_path / "checkpoint-3"
    IceDeiTConfig(**SHAPE).save_pretrained(folder)
    (folder / SETTINGS_FILE).write_text(json.dumps(describe(tmp_path)))
    (folder / "trainer_state.json").write_text('{"global_step": 3}')
    return folder


CHANGES = {
    "batch": ({"per_device_train_batch_size": 16}, "images a step 8 in the checkpoint, 16 now"),
    "smaller batch": ({"per_device_train_batch_size": 4}, "images a step 8 in the checkpoint, 4 now"),
    "accumulation": ({"gradient_accumulation_steps": 2}, "`gradient_accumulation_steps` 1 in the checkpoint, 2 now"),
    "learning rate": ({"learning_rate": 1e-3}, "`learning_rate` 0.0001 in the checkpoint, 0.001 now"),
    "decay": ({"weight_decay": 0.5}, "`weight_decay` 0.05 in the checkpoint, 0.5 now"),
    "scheduler": ({"lr_scheduler_type": "linear"}, "`lr_scheduler_type` 'cosine' in the checkpoint, 'linear' now"),
    "seed": ({"seed": 1}, "`seed` 42 in the checkpoint, 1 now"),
    "layers": ({"layer_decay": 0.5}, "`layer_decay` 1.0 in the checkpoint, 0.5 now"),
    "repeats": ({"repeated_augmentation": 3}, "`repeated_augmentation` 1 in the checkpoint, 3 now"),
    "objective": (
        {"config": {"background_loss_weight": 9.0}},
        "`background_loss_weight` 0.025 in the checkpoint, 9.0",
    ),
    "pooling": ({"config": {"foreground_pooling": "soft"}}, "`foreground_pooling` 'hard' in the checkpoint, 'soft'"),
    "architecture": ({"config": {"intermediate_size": 64}}, "`intermediate_size` 32 in the checkpoint, 64 now"),
    "size": ({"config": {"image_size": 32}}, "`image_size` 16 in the checkpoint, 32 now"),
    "mixup": ({"data": {"mixup_alpha": 0.8}}, "`mixup_alpha` 0.0 in the checkpoint, 0.8 now"),
    "stream": ({"data": {"streaming": True}}, "`streaming` False in the checkpoint, True now"),
    "classes": ({"config": {"id2label": {0: "b", 1: "a2"}}}, r"other classes, a, b \(2\), than .* b, a2 \(2\)"),
    "order": ({"config": {"id2label": {0: "b", 1: "a"}}}, r"other classes, a, b \(2\), than .* b, a \(2\)"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_other_settings_are_refused_with_both_values(tmp_path, checkpoint, name):
    changes, message = CHANGES[name]
    with pytest.raises(ValueError, match=message) as error:
        check_settings(checkpoint, describe(tmp_path, **changes))
    assert f"--model_name_or_path {checkpoint}" in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        {"logging_steps": 7, "save_steps": 9, "num_train_epochs": 9, "per_device_eval_batch_size": 2},
        {"config": {"pruning_execution": "masked"}},
    ],
)
def test_settings_that_change_no_step_are_taken(tmp_path, checkpoint, changes):
    check_settings(checkpoint, describe(tmp_path, **changes))


@pytest.mark.parametrize("data", [{"streaming": True}, {"mixup_alpha": 0.8}])
def test_where_the_order_depends_on_the_parts_4_x_2_is_not_8(tmp_path, checkpoint, data):
    (checkpoint / SETTINGS_FILE).write_text(json.dumps(describe(tmp_path, data=data)))
    changed = describe(tmp_path, data=data, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    with pytest.raises(ValueError, match="`per_device_train_batch_size` 8 in the checkpoint, 4 now"):
        check_settings(checkpoint, changed)


def test_a_checkpoint_of_an_earlier_version_is_compared_by_its_configuration(tmp_path, checkpoint):
    (checkpoint / SETTINGS_FILE).unlink()
    check_settings(checkpoint, describe(tmp_path, learning_rate=1e-3))
    with pytest.raises(ValueError, match="`background_loss_weight`"):
        check_settings(checkpoint, describe(tmp_path, config={"background_loss_weight": 9.0}))


@pytest.mark.parametrize("name", ["config.json", "trainer_state.json", SETTINGS_FILE])
@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, checkpoint, name, content):
    (checkpoint / name).write_text(content)
    with pytest.raises(ValueError, match=rf"checkpoint-3/{name} .*Pass another checkpoint, or auto"):
        check_settings(checkpoint, describe(tmp_path))


def test_other_images_are_said(tmp_path, checkpoint, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr("transformers_ice.training.run_settings.logger.warning", said.append)
    check_settings(checkpoint, describe(tmp_path, images=make_images(4)))
    assert not said
    check_settings(checkpoint, describe(tmp_path, images=make_images(6)))
    assert "4 then, 6 now" in said[0]


def test_images_are_known_by_name_size_and_class_and_not_by_their_folder(tmp_path):
    before = describe_images(make_images(4, tmp_path / "x"))
    assert describe_images(make_images(4, tmp_path / "moved" / "x")) == before
    assert describe_images(make_images(3, tmp_path / "x")) != before
    images = make_images(4, tmp_path / "x")
    PilImage.effect_noise((16, 16), 90).save(tmp_path / "x" / "a" / "0.png")
    assert describe_images(images) != before


# --- damaged files -------------------------------------------------------------------------------------------------


def make_checkpoint(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text('{"global_step": 3}')
    (folder / "model.safetensors").write_bytes(bytes(range(100)))
    mark_complete(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", bytes(100)),
        ("model.safetensors", bytes(99)),
        ("trainer_state.json", b'{"global_step": 9}'),
        ("trainer_state.json", b"[]"),
        ("trainer_state.json", None),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, monkeypatch, name, content):
    said: list[str] = []
    monkeypatch.setattr("transformers_ice.training.checkpoints.logger.warning", said.append)
    before, last = make_checkpoint(tmp_path / "checkpoint-3"), make_checkpoint(tmp_path / "checkpoint-6")
    (last / name).unlink() if content is None else (last / name).write_bytes(content)
    assert damaged_files(last) == [name]
    args = IceTrainingArguments(str(tmp_path), use_cpu=True, resume_from_checkpoint="auto")
    assert choose_checkpoint(args) == str(before)
    assert [f"checkpoint-6 in {tmp_path}: {name} damaged" in line for line in said] == [True, False]
    args.resume_from_checkpoint = str(last)
    with pytest.raises(ValueError, match=rf"is damaged: {name} missing, or other than|must be a checkpoint folder"):
        choose_checkpoint(args)


def test_a_marker_of_an_earlier_version_has_sizes_only(tmp_path):
    folder = make_checkpoint(tmp_path / "checkpoint-3")
    marker = json.loads((folder / COMPLETION_MARKER).read_text())
    (folder / COMPLETION_MARKER).write_text(json.dumps({"files": marker["files"]}))
    (folder / "model.safetensors").write_bytes(bytes(100))
    assert not damaged_files(folder)


# --- one run in a folder -------------------------------------------------------------------------------------------

HOLD = """
import os, sys
from transformers_ice.training.checkpoints import locked_folder
with locked_folder(sys.argv[1]):
    print(os.getpid(), flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_a_second_run_in_the_folder_is_refused_until_the_first_one_ends(warm_python, tmp_path):
    folder = tmp_path / "run"
    command = [warm_python.python, "-c", HOLD, str(folder)]
    first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None
        process = int(first.stdout.readline())
        with pytest.raises(ValueError, match=rf"Another run works in .*process {process} on"), locked_folder(folder):
            pass
        os.kill(process, signal.SIGKILL)  # nothing is cleaned up
    finally:
        first.communicate()
    with locked_folder(folder), locked_folder(folder, is_main_process=False):
        (folder / "file").write_text("")
    assert [path.name for path in folder.iterdir()] == ["file"]


def test_a_folder_without_a_file_of_the_run_is_not_left_over(tmp_path):
    with locked_folder(tmp_path / "run"):
        pass
    assert not (tmp_path / "run").exists()
