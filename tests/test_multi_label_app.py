# SPDX-License-Identifier: Apache-2.0
"""The app on a multi-label model: several objects with their colours, labels with thresholds, or nothing found."""

import base64
import json
import re

import pytest


pytest.importorskip("gradio")

import numpy as np
import torch
from PIL import Image
from transformers import pipeline

from transformers_ice import IceDeiTConfig, IceDeiTForImageClassification, IceDeiTImageProcessor
from transformers_ice.app.analysis import explain_image, load_model, prepare_image
from transformers_ice.app.limits import Limits
from transformers_ice.app.page import FOREGROUND, Handlers
from transformers_ice.app.pictures import draw_class_map, draw_mask


SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "id2label": {0: "cat", 1: "<b>dog</b>", 2: "hen"},
    "label2id": {"cat": 0, "<b>dog</b>": 1, "hen": 2},
    "problem_type": "multi_label_classification",
}


def save_model(folder, thresholds):
    torch.manual_seed(9)  # every class has patches of a noise image
    model = IceDeiTForImageClassification(IceDeiTConfig(**SIZES, object_thresholds=thresholds))
    with torch.no_grad():
        model.deit.patch_head.weight.mul_(50)
    model.save_pretrained(folder)
    IceDeiTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("several"), [0.0, 0.0, 1.0])


@pytest.fixture
def photo(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (80, 96, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_objects_are_those_of_the_pipeline(folder, photo):
    loaded = load_model(str(folder))
    with Image.open(photo) as picture:
        image = prepare_image(loaded, picture)
    explanation = explain_image(loaded, image)
    expected = pipeline("patch-explanation", model=str(folder))(str(photo))
    objects = explanation.shown.objects
    assert [own.label for own in objects] == [found["label"] for found in expected["objects"]]
    assert {own.label for own in objects} == {"cat", "<b>dog</b>"}
    assert [list(box) for box in explanation.object_boxes] == [list(f["box"].values()) for f in expected["objects"]]
    assert list(explanation.box) == list(expected["box"].values())
    assert explanation.thresholds == {name: {"hen": 1.0}.get(name, 0.0) for name in SIZES["label2id"]}
    assert list(explanation.scores.values()) == sorted(explanation.scores.values(), reverse=True)
    mask, class_map = draw_mask(loaded, image, explanation), draw_class_map(loaded, image, explanation)
    colors = {name.split(" · ")[0]: color for name, color in class_map.legend.items()}
    assert {name.split(" · ")[0]: color for name, color in mask.legend.items()} == {
        own.label: colors[own.label] for own in objects
    }
    assert (
        f"of 2 of the classes, each with its part of the picture and its box in the {96} x {80} pixels" in mask.caption
    )


@pytest.mark.parametrize("target", [FOREGROUND, 2])
def test_the_page_lists_labels_scores_and_thresholds(folder, photo, target):
    answer = Handlers(load_model(str(folder)), Limits()).explain(str(photo), target)
    record = json.loads(base64.b64decode(re.search(r'base64,([^"]+)"', answer["download"])[1]))
    assert len(record["objects"]) == 2
    labels = [found["label"] for found in record["objects"]]
    assert record["thresholds"]["hen"] == 1.0
    text = re.sub(r"<[^>]+>", "", answer["answer"])
    assert text.startswith(", ".join(labels).replace("<", "&lt;").replace(">", "&gt;"))
    assert "hen from 100 %" in text
    assert "<b>dog" not in answer["answer"]
    assert len(re.findall(r"background:#[0-9A-F]{6}", answer["answer"])) == 2


def test_nothing_found_is_said(tmp_path, photo):
    loaded = load_model(str(save_model(tmp_path / "strict", [1.0] * 3)))
    answer = Handlers(loaded, Limits()).explain(str(photo), FOREGROUND)
    assert "Nothing found" in answer["answer"]
    assert "no class reaches its threshold" in answer["mask-caption"]
    assert "no class reaches its threshold" in answer["cutout-caption"]
    record = json.loads(base64.b64decode(re.search(r'base64,([^"]+)"', answer["download"])[1]))
    assert (record["objects"], record["found"], record["box"]) == ([], False, None)
