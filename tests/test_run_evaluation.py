# SPDX-License-Identifier: Apache-2.0
"""`scripts/run_evaluation.py` from end to end with tiny models."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmark_models import SIZES as TINY_SIZES
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from transformers_ice import IceDeiTConfig, IceDeiTForImageClassification
from transformers_ice.cli import evaluate as run_evaluation
from transformers_ice.ice_deit.image_processing_ice_deit import IceDeiTImageProcessor


SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


SIZES = {**TINY_SIZES, "num_labels": 10}  # as many as the scenes have


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    IceDeiTForImageClassification(IceDeiTConfig(**SIZES)).save_pretrained(folder / "ice")
    IceDeiTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / "ice")
    ViTForImageClassification(ViTConfig(**SIZES)).save_pretrained(folder / "vit")
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder / "vit")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for index in range(5):
        height, width = (30, 40 + index)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / f"images/{index}.png")
        mask = np.zeros((height, width), dtype=np.uint8)
        mask[5:20, 10:25] = 255
        Image.fromarray(mask).save(folder / f"masks/{index}.png")
    return folder


def evaluate(*words):
    return run_evaluation.main([*map(str, words), "--device", "cpu"])


def test_scenes_give_a_table_a_file_and_pictures(models, tmp_path, capsys):
    options = ("--limit", 6, "--batch_size", 4, "--num_resamples", 5, "--num_pictures", 2, "--check_sanity", "true")
    words = ("--models", f"one={models / 'ice'}", models / "vit", "--benchmark", "segmentation", "discovery")
    explainers = ("--explainers", "ice", "rollout", "full_lrp", "ceiling")
    assert evaluate(*words, *explainers, *options, "--output_dir", tmp_path) == 0
    table = capsys.readouterr().out
    assert "6 images of scenes" in table
    report = json.loads((tmp_path / "results.json").read_text())
    lines = {(line["checkpoint"], line["method"]): line for line in report["results"]}
    controls = ("whole_image", "center_ellipse", "random")
    expected = {("one", method) for method in ("ice", "rollout", "full_lrp", "ceiling", *controls)}
    assert set(lines) == expected | {("vit", method) for method in ("rollout", "full_lrp", *controls)}
    for (checkpoint, method), line in lines.items():
        assert 0 <= line["scores"]["mean_iou"]["value"] <= 1
        assert (line["cost"] is None) == (method in ("ceiling", *controls))
        assert f"{line['scores']['corloc']['value']:.4f}" in table, checkpoint
    assert set(report["sanity"]["one"]["ice"]) == {"heads", "layer 1", "layer 0", "embeddings"}
    assert report["machine"]["torch"] == torch.__version__
    for name in ("scores.png", "methods.png"):
        with Image.open(tmp_path / name) as picture:
            assert np.asarray(picture.convert("L")).std() > 5  # something is drawn
    header, _, rest = (tmp_path / "table.md").read_text().partition("\n\n")
    assert header.startswith(
        "6 images of scenes (set scenes; split test; limit 6, the first ones). Intervals: 95 %, 5 "
    )
    assert f"torch {torch.__version__}" in header
    assert f"{datetime.datetime.now(datetime.timezone.utc).year}-" in header
    assert rest.startswith("| checkpoint | method | pixel acc. |")
    assert "- `ceiling` is left out for vit (segmentation, discovery): that of one is the same" in rest
    assert "- `ice` is left out for vit (segmentation, discovery): it needs an ICE checkpoint" in table


def test_a_folder_of_ones_own_and_a_file_of_arguments(models, photos, tmp_path, capsys):
    file = tmp_path / "arguments.yaml"
    file.write_text(
        f"models: [{models / 'vit'}]\ndata_dir: {photos}\nbenchmark: [segmentation, jaccard]\nexplainers: [rollout]\n"
        f"output_dir: {tmp_path / 'out'}\nmeasure_cost: false\nnum_resamples: 0\nnum_pictures: 1\nimage_size: 48\n"
    )
    assert evaluate(file) == 0
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert report["dataset"]["num_examples"] == 5
    assert report["protocol"]["image_size"] == 48
    assert report["results"][0]["scores"]["jaccard"]["low"] is None
    rows = sorted(file.stat().st_mtime_ns for file in (tmp_path / "out/rows").rglob("*.npz"))
    assert evaluate(file) == 0  # nothing is left to do
    assert rows == sorted(file.stat().st_mtime_ns for file in (tmp_path / "out/rows").rglob("*.npz"))


def test_a_model_of_nan_weights_ends_with_an_error_and_keeps_the_others(models, tmp_path, capsys):
    # a ViT: those of ICE are refused when they are loaded
    model = ViTForImageClassification.from_pretrained(models / "vit")
    with torch.no_grad():
        model.classifier.weight.fill_(float("nan"))
    model.save_pretrained(tmp_path / "nan")
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "nan")
    processor = ViTImageProcessorPil(size={"height": 32, "width": 32}, image_std=[0.0] * 3)  # division by zero
    ViTForImageClassification.from_pretrained(models / "vit").save_pretrained(tmp_path / "zero")
    processor.save_pretrained(tmp_path / "zero")
    words = ("--models", tmp_path / "nan", tmp_path / "zero", models / "ice", "--limit", 4, "--check_sanity", "true")
    options = ("--num_resamples", 5, "--num_pictures", 2, "--output_dir", tmp_path / "out")
    assert evaluate(*words, "--explainers", "ice", "rollout", *options) == 1
    output = capsys.readouterr()
    assert "Error: some rows have no scores" in output.err
    assert "Error: nan, `rollout` has no scores under segmentation" in output.out
    lines = {(line["checkpoint"], line["method"]): line for line in results_in(tmp_path / "out")}
    assert lines["nan", "rollout"]["scores"] == lines["zero", "rollout"]["scores"] == {}
    assert lines["ice", "ice"]["scores"]["mean_iou"]["value"] > 0


def test_all_benchmarks_are_those_that_the_data_allow(models, photos, tmp_path, capsys):
    words = ("--models", models / "vit", "--data_dir", photos, "--benchmark", "all", "--explainers", "rollout")
    options = ("--num_resamples", 2, "--num_pictures", 0, "--measure_cost", "false")
    assert evaluate(*words, *options, "--output_dir", tmp_path) == 0
    output = capsys.readouterr().out
    assert "- discovery is left out: photos" in output.replace(photos.name, "photos")
    assert {"mean_iou", "jaccard"} <= set(results_in(tmp_path)[0]["scores"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--explainers", "gradcam"), "Did you mean 'grad_cam'?"),
        (("--explainers", "lime"), "`methods` must be some of"),
        (("--benchmark", "speed"), "`benchmarks` must be some of"),
        (("--dataset_name", "cub"), "needs `data_dir`"),
        (("--dataset_name", "imagenet"), "must be one of scenes"),
        (("--dataset_options", "colour=red"), "has no option 'colour'"),
        (("--dataset_options", "seed=two"), "`seed` of 'scenes' must be a whole number"),
        (("--dataset_options", "seed"), "must be name=value, got 'seed'"),
        (("--data_dir", "/nowhere/at/all"), "/nowhere/at/all"),
    ],
)
def test_mistakes_end_cleanly_and_say_what_is_possible(models, tmp_path, capsys, words, message):
    assert evaluate("--models", models / "vit", "--limit", 2, "--output_dir", tmp_path, *words) == 1
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("Error: ")
    assert message in error


def test_a_missing_model_is_named(tmp_path, capsys):
    assert evaluate("--models", tmp_path / "nothing", "--output_dir", tmp_path) == 1
    assert "nothing" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("--limit", "0"), ("--explainer", "ice"), ("--attention_mass", "2"), ()])
def test_wrong_options_end_with_usage(models, capsys, words):
    with pytest.raises(SystemExit) as stop:
        run_evaluation.main(["--models", str(models / "vit"), *words] if words else [])
    assert stop.value.code == 2
    assert "usage" in capsys.readouterr().err


def command_of(models, *words):
    """Return the words of a quick evaluation of the ICE model, for a process of its own."""
    fixed = ("--batch_size", "2", "--measure_cost", "false", "--num_pictures", "0", "--device", "cpu")
    return [str(SCRIPTS / "run_evaluation.py"), "--models", str(models / "ice"), *fixed, *words]


def results_in(folder):
    return json.loads((folder / "results.json").read_text())["results"]


@pytest.mark.slow
def test_two_real_processes_give_the_numbers_of_one(models, tmp_path):
    benchmarks = ("--benchmark", "segmentation", "localization", "--explainers", "ice", "rollout", "ceiling")
    words = command_of(models, "--limit", "11", *benchmarks)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for folder, launcher in (("one", []), ("two", ["-m", "torch.distributed.run", "--nproc_per_node", "2"])):
        command = [sys.executable, *launcher, *words, "--output_dir", str(tmp_path / folder)]
        subprocess.run(command, check=True, env=environment, timeout=300)
    assert results_in(tmp_path / "one") == results_in(tmp_path / "two")


@pytest.mark.slow
def test_a_killed_run_is_resumed_with_the_same_table(models, tmp_path):
    benchmarks = ("--benchmark", "segmentation", "faithfulness", "--explainers", "ice", "rollout")
    words = command_of(models, "--limit", "60", *benchmarks)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    running = subprocess.Popen([sys.executable, *words, "--output_dir", str(killed)])
    while running.poll() is None and len(list(killed.rglob("*.npz"))) < 20:
        time.sleep(0.05)
    running.kill()
    assert running.wait() != 0
    assert 20 <= len(list(killed.rglob("*.npz"))) < 120
    for folder in (killed, whole):
        subprocess.run([sys.executable, *words, "--output_dir", str(folder)], check=True, timeout=300)
    assert results_in(killed) == results_in(whole)
