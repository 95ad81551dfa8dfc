# SPDX-License-Identifier: Apache-2.0
"""Objectives: what they set, which one a run takes, and the study that compares them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import run_objective_study
import run_pruning_study
import torch
from objective_scores import objective_table, summarize_objectives
from pruning_scores import PruningRows, ceiling_rows, control_rows

from transformers_ice import IceDeiTConfig, IceDeiTForImageClassification
from transformers_ice.training import ModelArguments, parse_arguments
from transformers_ice.training.arguments import ICE_OPTIONS
from transformers_ice.training.models import build_config
from transformers_ice.training.objective_presets import OBJECTIVES


START = run_objective_study.ROOT / "checkpoints/deit-scenes"


def test_published_is_what_the_configuration_says_by_default():
    config = IceDeiTConfig()
    assert all(getattr(config, name) == value for name, value in OBJECTIVES["published"].items())
    assert len(OBJECTIVES["published"]) == 12


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_objective_sets_allowed_values_of_fields_that_are_options(name):
    IceDeiTConfig(**OBJECTIVES[name])
    assert OBJECTIVES[name].keys() <= set(ICE_OPTIONS.values())


@pytest.mark.parametrize("name", sorted(run_objective_study.VARIANTS))
def test_variant_of_the_study_is_made_of_options(name):
    words = ["--model_type", "ice_deit", "--output_dir", "x", "--dataset_name", "scenes"]
    build_config(parse_arguments([*words, *run_objective_study.VARIANTS[name].split()])[0])


@pytest.mark.parametrize(
    "options", [v for k, v in run_objective_study.VARIANTS.items() if "published" in k] + [run_pruning_study.CLS_ONLY]
)
def test_published_variants_of_the_studies_have_no_bound_of_the_recipe(options):
    words = [str(run_pruning_study.RECIPE), "--use_cpu", *options.split()]
    assert (
        build_config(parse_arguments(words)[0]).max_foreground_ratio == OBJECTIVES["published"]["max_foreground_ratio"]
    )


@pytest.mark.parametrize(
    ("objective", "weight"), [(None, OBJECTIVES["balanced"]["background_loss_weight"]), ("published", 0.025)]
)
def test_a_classifier_becomes_ice_by_the_balanced_objective_unless_told_otherwise(objective, weight):
    config = build_config(ModelArguments(str(START), objective=objective))
    assert config.background_loss_weight == weight
    config = build_config(ModelArguments(model_type="ice_deit", objective=objective))
    assert config.background_loss_weight == weight


def test_an_ice_model_keeps_its_objective_unless_told_otherwise(tmp_path):
    IceDeiTConfig(background_loss_weight=0.4).save_pretrained(tmp_path)
    assert build_config(ModelArguments(str(tmp_path))).background_loss_weight == 0.4
    assert build_config(ModelArguments(str(tmp_path), objective="published")).background_loss_weight == 0.025
    chosen = build_config(ModelArguments(str(tmp_path), objective="balanced", background_loss_weight=0.3))
    assert (chosen.background_loss_weight, chosen.foreground_pooling) == (0.3, "soft")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("foreground_pooling", "mean"),
        ("num_local_windows", -1),
        ("local_image_share", 0.0),
        ("local_distillation_weight", -1.0),
        ("local_appearance_weight", -1.0),
        ("local_appearance_weight", float("inf")),
        ("local_feature_weight", -1.0),
        ("local_distance_weight", float("nan")),
        ("max_foreground_ratio", 1.5),
        ("candidate_label_loss_weight", -0.1),
    ],
)
def test_values_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=name):
        IceDeiTConfig(**{name: value})


# what the windows teach is added to "local_loss" as soon as the foreground names the label better than the background
@pytest.mark.parametrize(
    ("lead", "falling"),
    [(0.5, ["classification_loss", "cls_loss"]), (0.0, ["classification_loss", "cls_loss", "local_loss"])],
)
def test_a_few_steps_of_the_balanced_objective_teach_patches_and_cls(lead, falling):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    fields = {**OBJECTIVES["balanced"], "min_evidence_lead": lead, "num_labels": 3}
    model = IceDeiTForImageClassification(IceDeiTConfig(**shape, image_size=32, patch_size=8, **fields))
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    seen = []
    for _ in range(20):
        outputs = model(images, labels=labels)
        seen.append({name: outputs[name].item() for name in falling})
        optimizer.zero_grad()
        outputs.loss.backward()
        optimizer.step()
    assert all(seen[-1][name] < seen[0][name] for name in falling)


def rows_of(correct, areas) -> PruningRows:
    return PruningRows(np.array(correct), np.array(correct), np.array(areas), np.empty((len(correct), 0)))


def test_ceiling_is_that_of_the_majority():
    # two patches of four pixels: 3 and 1 pixels of the object
    rows = ceiling_rows(np.array([[[1, 1, 0, 0], [1, 0, 0, 1]]], dtype=bool), 2)
    assert rows.areas.tolist() == [[[3, 1], [1, 3]]]
    assert rows.mean_iou == pytest.approx(3 / 5)


def test_controls_are_those_of_the_evaluation():
    masks = np.zeros((1, 10, 10), dtype=bool)
    masks[0, 2:8, 2:8] = True
    assert control_rows(masks, 2, "whole_image").areas.tolist() == [[[0, 64], [0, 36]]]
    # the centres of 52 pixels lie within 4 pixels of the middle, those of the square among them
    assert control_rows(masks, 2, "center_ellipse").areas.tolist() == [[[48, 16], [0, 36]]]
    assert control_rows(masks, 2, "random").areas.sum() == 100


def test_summary_is_over_seeds_and_beside_the_reference():
    first, second = rows_of([True, False], [[[4, 0], [0, 4]]] * 2), rows_of([True, True], [[[2, 2], [2, 2]]] * 2)
    runs = {"a": [second, second], "b": [first, second]}
    lines = summarize_objectives(runs, {"a": [1.0, 3.0], "b": [1.0, 1.0]}, 0.5, 0.5, "a")
    assert lines[0]["mean_iou"] == (pytest.approx(1 / 3), 0.0)
    assert lines[0]["seconds"] == (2.0, pytest.approx(2**0.5))
    assert lines[1]["cls_gain"][0] == pytest.approx(25.0)
    assert lines[1]["iou_gain"][0] == pytest.approx(1 / 3)
    assert lines[1]["ceiling_share"][0] == pytest.approx(4 / 3)
    assert lines[1]["foreground_ratio"][0] == pytest.approx(0.5)
    assert "| a | 1.0000 ± 0.0000 |" in objective_table(lines)


@pytest.mark.slow
def test_study_trains_measures_and_goes_on(tmp_path, monkeypatch, capsys):
    words = f"--output_dir {tmp_path} --seeds 0 --max_steps 1 --num_train 64 --num_eval 20".split()
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    names = [run_objective_study.REFERENCE, next(iter(run_objective_study.VARIANTS))]
    run_objective_study.main([*words, "--variants", names[1]])
    assert "No table yet" in capsys.readouterr().out
    run_objective_study.main([*words, "--variants", *names])
    out = capsys.readouterr().out
    assert next(line for line in out.splitlines() if "seed 0" in line).startswith(names[0])
    assert f"{names[1]}, seed 0" not in out  # it lay there
    results = json.loads((tmp_path / "results.json").read_text())
    assert {line["name"] for line in results["lines"]} == set(names)
    assert 0.7 < results["ceiling"] < 1
