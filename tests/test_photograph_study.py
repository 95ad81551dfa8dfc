# SPDX-License-Identifier: Apache-2.0
"""The study on photographs: its commands are valid, what is done is not done again, and its table by hand."""

import json

import pytest
import run_photograph_study as study
from PIL import Image

from transformers_ice.evaluation.arguments import parse_evaluation_arguments


def write(folder, name, values):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(values))


@pytest.fixture
def words(tmp_path):
    for part in ("train", "val"):
        (tmp_path / part / "cat").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / part / "cat" / "a.png")
    folders = ["--train_dir", str(tmp_path / "train"), "--validation_dir", str(tmp_path / "val")]
    return [*folders, "--start", "start", "--data_dir", "data", "--output_dir", str(tmp_path / "out")]


def lines_of(names, **values):
    """Return lines of results.json in which all scores of a method are the same."""
    return [
        {"method": method, "is_control": method == "random", "scores": {name: {"value": value} for name in names}}
        for method, value in values.items()
    ]


@pytest.mark.parametrize("name", list(study.STUDIES))
def test_commands_are_valid_and_run_once(name, words, tmp_path, monkeypatch):
    trained, scored = [], []

    def train(model_args, data_args, training_args):
        assert training_args.num_train_epochs == 3
        trained.append((model_args.objective, training_args.seed, training_args.freeze_layers))
        write(tmp_path / "out" / training_args.output_dir, "all_results.json", {"eval_top_1": 0.5})

    def score(options):
        arguments, _ = parse_evaluation_arguments(options, "")
        scored.append(arguments)
        values = lines_of(study.STUDIES[name].scores, ice=0.8, ice_hard=0.9, rollout=0.7, random=0.75, ceiling=0.95)
        write(tmp_path / "out" / arguments.output_dir, "results.json", {"results": values})

    monkeypatch.setattr(study, "run_training", train)
    monkeypatch.setattr(study.evaluate, "main", score)
    more = ["--num_train_epochs", "3", *([] if name == "pets" else ["--boxes_file", "boxes.csv"])]
    study.main([name, *words, *more, "--seeds", "0", "1"])
    assert len(trained) == len(scored) == 2 * len(study.VARIANTS)
    assert trained[0] == ("balanced", 0, 8 if name == "labels" else 12)
    assert not scored[0].measure_cost
    without = [arguments for arguments in scored if arguments.models[0].startswith("without ICE")]
    assert without
    assert not any("ice" in arguments.explainers for arguments in without)
    study.main([name, *words, *more, "--seeds", "0", "1"])
    assert len(trained) == len(scored) == 2 * len(study.VARIANTS)
    assert (tmp_path / "out" / "table.md").read_text().count("\n") == 2 + len(study.VARIANTS)


def test_numbers_of_a_model_by_hand():
    lines = lines_of(["mean_iou"], ice=0.8, ice_hard=0.9, rollout=0.7, legrad=0.6, random=0.75, ceiling=0.95)
    lines += lines_of(["top_1"], **{"": 0.4})
    values = study.summarize(study.STUDIES["pets"], lines, {"eval_top_1": 0.5, "eval_cls_top_1": 0.25})
    assert values == {
        "top_1": 0.5,
        "cls_top_1": 0.25,
        "foreground": None,
        "scored_top_1": 0.4,
        "mean_iou, ice": 0.8,
        "mean_iou, ice_hard": 0.9,
        "mean_iou, other": 0.7,
        "mean_iou, control": 0.75,
        "ceiling": 0.95,
    }


def test_spread_over_seeds_by_hand():
    assert study._spread([{"a": 0.25}, {"a": 0.75}], "a") == (0.5, pytest.approx(0.125**0.5))
    assert study._spread([{"a": 0.25}], "a") == 0.25
    assert study._spread([{"a": 0.25}, {"a": None}], "a") is None


@pytest.mark.parametrize(("name", "more"), [("labels", []), ("imagenette", []), ("pets", ["--boxes_file", "b.csv"])])
def test_boxes_are_for_the_half_that_scores_them(name, more, words, capsys):
    with pytest.raises(SystemExit):
        study.main([name, *words, *more])
    assert "--boxes_file" in capsys.readouterr().err
