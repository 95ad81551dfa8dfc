# SPDX-License-Identifier: Apache-2.0
"""What pruning costs and saves: pixels by side, scores over seeds, MACs from what stayed."""

from __future__ import annotations

import json

import numpy as np
import pytest
import run_pruning_study
import torch
from pruning_scores import (
    PruningRows,
    pruning_rows,
    pruning_table,
    summarize_pruning,
)

from transformers_ice import IceDeiTConfig, IceDeiTForImageClassification
from transformers_ice.speed import count_tokens, ideal_macs


def build(**fields) -> IceDeiTForImageClassification:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    config = IceDeiTConfig(**shape, image_size=32, patch_size=8, num_labels=3, **fields)
    model = IceDeiTForImageClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def test_rows_are_those_of_a_loop_over_pixels():
    model = build(pruning_strategy="background", pruning_layers=[1, 2])
    pixel_values, labels = torch.randn(5, 3, 32, 32), np.array([0, 1, 2, 0, 1])
    masks = np.random.default_rng(0).random((5, 32, 32)) < 0.4
    rows = pruning_rows(model, pixel_values, labels, masks, batch_size=2)
    assert model.training
    with torch.no_grad():
        outputs = model.eval()(pixel_values)
    cells = (outputs.patch_logits.argmax(-1) != 3).numpy().reshape(5, 4, 4)
    predicted = cells.repeat(8, axis=1).repeat(8, axis=2)
    for true in (0, 1):
        for guess in (0, 1):
            both = ((masks == true) & (predicted == guess)).sum(axis=(1, 2))
            assert rows.areas[:, true, guess].tolist() == both.tolist()
    assert rows.is_correct.tolist() == (outputs.logits.argmax(-1).numpy() == labels).tolist()
    assert rows.kept.tolist() == [
        [int((exits > layer).sum()) for layer in (1, 2)] for exits in outputs.patch_exit_layer
    ]


def test_mean_iou_is_that_of_both_sides():
    areas = np.array([[[3, 1], [2, 4]]])
    rows = PruningRows(np.array([True]), np.array([True]), areas, np.empty((1, 0)))
    assert rows.mean_iou == pytest.approx((3 / 6 + 4 / 7) / 2)


def test_lines_compare_seed_by_seed_and_count_macs_from_what_stayed():
    model = build(pruning_strategy="background", pruning_layers=[1, 2])
    plain = build().config
    areas = np.ones((4, 2, 2), dtype=int)

    def rows(correct: int, kept: np.ndarray) -> PruningRows:
        return PruningRows(np.arange(4) < correct, np.arange(4) < correct, areas, kept)

    kept = np.array([[9, 5], [16, 16], [3, 1], [16, 2]])
    runs = {
        "all": (plain, [rows(3, np.empty((4, 0))), rows(4, np.empty((4, 0)))]),
        "some": (model.config, [rows(2, kept), rows(4, kept)]),
    }
    first, second = summarize_pruning(runs, "all", num_patches=16)
    assert second["top_1"] == (0.75, pytest.approx(np.std([0.5, 1], ddof=1)))
    assert second["difference"] == (-12.5, pytest.approx(np.std([-25, 0], ddof=1)))
    exits = np.full((4, 16), 3)
    for image, (after_first, after_second) in enumerate(kept):
        exits[image, after_second:] = 2
        exits[image, after_first:] = 1
    expected = ideal_macs(model.config, **vars(count_tokens(model.config, exits)), num_patches=16).mean()
    assert second["megamacs"] == pytest.approx(expected / 1e6)
    assert second["ideal_speed_up"] == pytest.approx(first["megamacs"] / second["megamacs"])
    assert pruning_table([first, second]).splitlines()[3].startswith("| some | 0.7500 ± 0.3536 | -12.50 ± 17.68 |")


@pytest.mark.slow
def test_study_trains_measures_replays_and_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    runs = {name: run_pruning_study.RUNS[name] for name in ("deit", "patch-unmasked", "evit-0.7")}
    monkeypatch.setattr(run_pruning_study, "RUNS", runs)
    words = f"--output_dir {tmp_path} --seeds 0 --max_steps 1 --num_train 64 --num_eval 20".split()
    run_pruning_study.main([*words, "--variants", "patch-unmasked"])
    assert "No table yet" in capsys.readouterr().out
    run_pruning_study.main([*words, "--variants", *runs])
    out = capsys.readouterr().out
    assert "evit-0.7, as trained, seed 0" in out
    assert "patch-unmasked, top_k 0.7, seed 0" not in out  # its rows lay there
    lines = {line["name"]: line for line in json.loads((tmp_path / "results.json").read_text())}
    assert set(lines) == {f"{variant}, {run}" for variant, named in runs.items() for run in named}
    assert lines["patch-unmasked, top_k 0.7"]["kept"] == [45, 32, 23]
    assert lines["evit-0.7, as trained"]["mean_iou"] is None
    assert lines["deit, as trained"]["ideal_speed_up"] == 1
    shares = json.loads((tmp_path / "counts/patch-unmasked, background +0.json").read_text())
    assert np.shape(shares) == (20, 3)
    with pytest.raises(SystemExit, match=r"holds .*'skip_eval': 0.*, got .*'skip_eval': 5.*another `--output_dir`"):
        run_pruning_study.main([*words, "--skip_eval", "5"])
