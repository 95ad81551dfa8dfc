# SPDX-License-Identifier: Apache-2.0
"""Mistakes in the names of models are told before anything is loaded or asked of the Hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from transformers_ice.app.analysis import load_model as load_for_app
from transformers_ice.evaluation.checkpoints import load_checkpoint
from transformers_ice.ice_deit.image_processing_ice_deit import IceDeiTImageProcessor
from transformers_ice.model_names import resolve_ice_model_name, resolve_model_name
from transformers_ice.speed.arguments import BenchmarkArguments
from transformers_ice.speed.inputs import load_model as load_for_benchmark
from transformers_ice.training import ModelArguments
from transformers_ice.training.classifier_losses import load_teacher


ROOT = Path(__file__).parents[1]
LOADERS = {
    "missing": resolve_model_name,
    "other": resolve_ice_model_name,
    "training": lambda name: ModelArguments(model_name_or_path=name),
    "evaluation": load_checkpoint,
    "benchmark": lambda name: load_for_benchmark(BenchmarkArguments(model_name_or_path=name)),
    "app": load_for_app,
    "teacher": lambda name: load_teacher(name, ["a"], IceDeiTImageProcessor()),
}


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("name", ["/gone", "./gone", "checkpoints/deit/gone", "~/gone", "a\\b", "checkpoints/gone"])
def test_a_folder_that_is_not_there_is_not_asked_of_the_hub(name):
    with pytest.raises(ValueError, match=r"must be a folder or a Hub id .* no such folder\. Check the spelling"):
        resolve_model_name(name)


@pytest.mark.parametrize("name", ["facebook/deit-small-patch16-224", "gpt2", "checkpoints/deit-scenes", "."])
def test_folders_and_ids_stay_as_they_are(name):
    assert resolve_model_name(name) == name


def test_home_is_found(monkeypatch):
    monkeypatch.setenv("HOME", str(ROOT))
    assert resolve_ice_model_name("~/checkpoints/ice-deit-scenes") == str(ROOT / "checkpoints/ice-deit-scenes")


@pytest.mark.parametrize("place", LOADERS)
def test_a_misspelt_folder_is_answered_with_the_one_that_was_meant(place):
    with pytest.raises(ValueError, match=r"Did you mean checkpoints/ice-deit-scenes"):
        LOADERS[place]("checkpoints/ice-deit-scene")


def test_another_kind_of_model_is_refused_with_the_way_out():
    with pytest.raises(
        ValueError, match=r"must hold an ICE model \(ice_deit\), got .*run_train\.py --model_name_or_path"
    ):
        resolve_ice_model_name("checkpoints/deit-scenes")
    resolve_ice_model_name("checkpoints/ice-deit-scenes")
