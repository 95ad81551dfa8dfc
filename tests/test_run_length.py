# SPDX-License-Identifier: Apache-2.0
"""Steps and time of a run before it begins."""

from __future__ import annotations

import re

import pytest
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerState, ViTConfig

from transformers_ice import IceDeiTConfig
from transformers_ice.training import IceTrainingArguments, progress
from transformers_ice.training.objective_presets import OBJECTIVES
from transformers_ice.training.run_length import count_steps, describe_length


def arguments(tmp_path, **options):
    return IceTrainingArguments(str(tmp_path), use_cpu=True, report_to="none", **options)


@pytest.mark.parametrize(
    "options",
    [
        {"per_device_train_batch_size": 8, "num_train_epochs": 3},
        {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 3, "num_train_epochs": 1.5},
        {"per_device_train_batch_size": 8, "dataloader_drop_last": True, "num_train_epochs": 2},
        {"per_device_train_batch_size": 64, "max_steps": 7},
    ],
)
def test_steps_are_those_of_the_trainer(tmp_path, options, monkeypatch):
    args = arguments(tmp_path, **options)
    data = DataLoader(range(45), args.train_batch_size, drop_last=args.dataloader_drop_last)
    trainer = Trainer.__new__(Trainer)  # its arithmetic alone
    monkeypatch.setattr(Trainer, "get_total_train_batch_size", lambda self, args: 1)
    monkeypatch.setattr(Trainer, "get_sp_size", lambda self: 1)
    _, per_epoch, *_, steps = trainer.set_initial_training_values(args, data)
    assert count_steps(45, args) == (per_epoch, steps)
    said = []
    monkeypatch.setattr(progress.logger, "warning", said.append)
    progress.StepCountCallback().on_train_begin(args, TrainerState(max_steps=steps), None, train_dataloader=data)
    assert f"{steps} steps of" in said[0]
    assert f"{per_epoch} steps an epoch" in said[0]


@pytest.mark.parametrize("kind", ["ice", "vit"])
def test_length_of_a_run_has_steps_and_time(tmp_path, kind):
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    small |= {"image_size": [32, 48], "patch_size": 8, "num_labels": 3}
    config = IceDeiTConfig(**small, **OBJECTIVES["balanced"]) if kind == "ice" else ViTConfig(**small)
    text = describe_length(config, (32, 48), 360, arguments(tmp_path, per_device_train_batch_size=32, max_steps=24))
    assert re.fullmatch(
        r"24 steps of 32 images, 12 steps an epoch; about (less than a minute|\d+ min) on this machine, "
        r"without reading images, evaluations and a teacher\.",
        text,
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.1, "less than a minute"), (59, "less than a minute"), (61, "1 min"), (7200, "2 h 0 min")]
)
def test_time_in_words(seconds, text):
    assert progress.describe_time(seconds) == text
