# SPDX-License-Identifier: Apache-2.0
"""`training_speed` and `benchmarks/run_training_benchmark.py`: small runs of all measurements."""

from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path

import pytest
import torch
from datasets import Image as ImageFeature
from peak_memory import peak_bytes
from PIL import Image
from training_speed import (
    TrainingBenchmarkArguments,
    build_step_models,
    draw_photographs,
    measure_first_steps,
    training_table,
)


SMALL = ["--image_size", "32", "--photograph_size", "40", "60", "--num_layers", "1", "--batch_size", "2"]
SMALL += ["--num_images", "3", "--num_repeats", "2", "--num_warmups", "0", "--waiting_steps", "3"]
SMALL += ["--waiting_warmups", "1", "--dataloader_num_workers", "0", "--use_cpu"]


@pytest.fixture(scope="module")
def run_benchmark():
    file = Path(__file__).parents[1] / "benchmarks" / "run_training_benchmark.py"
    spec = importlib.util.spec_from_file_location("run_training_benchmark", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_small_run_measures_everything(run_benchmark, tmp_path, capsys):
    assert run_benchmark.main([*SMALL, "--output_dir", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "step, ICE / DeiT" in text
    assert "of which waiting for data (%)" in text
    results = json.loads((tmp_path / "results.json").read_text())
    assert {name: len(values) for name, values in results["seconds_of_a_step"].items()} == {
        "DeiT": 2,
        "ICE": 2,
        "ICE, one token": 2,
        "ICE, one token, balanced": 2,
    }
    assert {name: len(values) for name, values in results["images_per_second"].items()} == {
        "none": 2,
        "crop_flip": 2,
        "deit": 2,
    }
    assert len(results["waiting"]["seconds"]) == len(results["waiting"]["waiting_share"]) == 3
    # without workers the batch is made while the Trainer waits
    assert all(0 < share < 1 for share in results["waiting"]["waiting_share"])
    assert results["mebibytes_an_image"].keys() == results["seconds_of_a_step"].keys()
    assert results["seconds_of_the_first_step"] == {}  # nothing is compiled
    assert results["settings"]["image_size"] == 32


def test_models_have_as_many_tokens_and_almost_as_many_weights():
    models = build_step_models(TrainingBenchmarkArguments(image_size=32, num_layers=1), torch.device("cpu"))
    tokens = {}
    for name, model in models.items():
        assert model.training
        encoder = getattr(model, "deit", model)
        tokens[name] = encoder(torch.zeros(1, 3, 32, 32)).last_hidden_state.shape[1]
    assert tokens == {"DeiT": 6, "ICE": 6, "ICE, one token": 5, "ICE, one token, balanced": 5}
    sizes = {name: sum(weight.numel() for weight in model.parameters()) for name, model in models.items()}
    # the patch head: no bias, one class more
    assert sizes["ICE"] - sizes["DeiT"] == 384 * 1001


def test_shares_of_the_images_are_timed_beside_the_others():
    arguments = TrainingBenchmarkArguments(image_size=32, num_layers=1, local_image_shares=[0.25, 0.125])
    models = build_step_models(arguments, torch.device("cpu"))
    shares = {name: model.config.local_image_share for name, model in models.items() if "windows" in name}
    assert shares == {"ICE, balanced, windows of 0.25": 0.25, "ICE, balanced, windows of 0.125": 0.125}


def test_width_is_that_of_deit():
    arguments = TrainingBenchmarkArguments(image_size=32, num_layers=1, hidden_size=192)
    config = build_step_models(arguments, torch.device("cpu"))["ICE"].config
    assert config._attn_implementation == "sdpa"
    assert (config.hidden_size, config.num_attention_heads, config.intermediate_size) == (192, 3, 768)
    with pytest.raises(ValueError, match=r"multiple of 64, got 100"):
        TrainingBenchmarkArguments(hidden_size=100)


def test_photographs_are_jpeg_files_of_the_size():
    table = draw_photographs(2, (40, 60))
    cell = table.cast_column("image", ImageFeature(decode=False))[1]["image"]
    image = Image.open(io.BytesIO(cell["bytes"]))
    assert (image.format, image.size) == ("JPEG", (60, 40))


def test_table_by_hand():
    steps = {"DeiT": [0.1, 0.2, 0.4], "ICE": [0.2, 0.2, 0.6]}
    waiting = {"seconds": [1.0], "waiting_share": [0.25]}
    table = training_table(steps, {"deit": [50.0]}, waiting, {"DeiT": [7.0]}, {"DeiT, compiled": [30.0]})
    rows = {line[: line.index("  ")]: line.split()[-4:] for line in table.splitlines()[2:]}
    assert rows["step, DeiT (ms)"] == ["200.000", "150.000", "-", "300.000"]
    assert rows["step, ICE / DeiT"] == ["1.500", "1.250", "-", "1.750"]
    assert rows["of which waiting for data (%)"][0] == "25.000"
    assert rows["memory of a step, DeiT (MiB an image)"][0] == "7.000"
    assert rows["first step, DeiT, compiled (s)"][0] == "30.000"


def test_peak_memory_is_that_of_what_lives_at_once():
    def call():
        for _ in range(3):  # one after the other, each freed before the next
            first = torch.zeros(2**18)  # 1 MiB
            second = first + 1
            del first, second

    assert peak_bytes(call, torch.device("cpu")) == pytest.approx(2 * 2**20, rel=0.01)


def test_compiled_models_are_timed_beside_the_others(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model: model)  # compiling takes half a minute
    arguments = TrainingBenchmarkArguments(image_size=32, num_layers=1, batch_size=2, torch_compile=True)
    models = build_step_models(arguments, torch.device("cpu"))
    compiled = ["DeiT, compiled", "ICE, one token, balanced, compiled"]
    assert list(models)[-2:] == compiled
    first = measure_first_steps(models, arguments, torch.device("cpu"))
    assert list(first) == compiled
    assert all(parameter.grad is None for model in models.values() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch_size", "0"], "`batch_size` must be at least 1, got 0"),
        (["--num_warmups", "-1"], "`num_warmups` must be at least 0, got -1"),
        (["--attn_implementation", "flash"], "must be sdpa or eager, got 'flash'"),
        (["--photograph_size", "20"], "must be a height and a width from 16 on"),
    ],
)
def test_wrong_arguments_end_with_a_message(run_benchmark, capsys, words, message):
    with pytest.raises(SystemExit, match="2"):
        run_benchmark.main(words)
    assert message in capsys.readouterr().err
