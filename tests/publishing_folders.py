# SPDX-License-Identifier: Apache-2.0
"""Tiny complete folders for the tests of cards and publishing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conftest import randomize
from PIL import Image

from transformers_ice import IceDeiTConfig, IceDeiTForImageClassification, IceDeiTImageProcessor
from transformers_ice.hub import ModelRecord, ResultEntry, TrainingRecord, build_card, read_facts


SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "id2label": {0: "disc", 1: "square", 2: "star"},
    "label2id": {"disc": 0, "square": 1, "star": 2},
}


def make_entry(**changes: Any) -> ResultEntry:
    values: dict[str, Any] = {
        "benchmark": "classification",
        "dataset": "scenes",
        "split": "test",
        "metric": "top_1",
        "method": "",
        "value": 0.75,
        "low": 0.7,
        "high": 0.8,
        "num_images": 100,
        "seed": 0,
        "command": "python scripts/run_evaluation.py --models tiny",
        "hardware": "2 threads of a CPU",
        "date": "2026-01-01",
    }
    return ResultEntry(**{**values, **changes})


def make_record(folder: Path, **changes: Any) -> ModelRecord:
    training = TrainingRecord(
        command="python scripts/run_train.py tiny.yaml", data="some images", datasets=("scenes",), base_model="start"
    )
    values = {"name": "tiny", "training": training, "location": folder.as_posix(), "results": (make_entry(),)}
    return ModelRecord(**{**values, **changes})


def write_complete_folder(folder: Path, **fields: Any) -> Path:
    """Write a tiny ICE model, its configuration with these fields, with everything that a publication needs."""
    model = IceDeiTForImageClassification(IceDeiTConfig(**SIZES, logits_source="patch", **fields)).eval()
    randomize(model)
    model.save_pretrained(folder)
    IceDeiTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    (folder / "images").mkdir()
    Image.new("RGB", (40, 30), "red").save(folder / "images" / "tiny.png")
    card = build_card(make_record(folder), read_facts(folder), "images/tiny.png")
    (folder / "README.md").write_text(card, encoding="utf-8")
    return folder
