# SPDX-License-Identifier: Apache-2.0
"""The study of several objects: its commands are valid, what is done is not done again, and its table by hand."""

import json

import pytest
import run_several_study as study

from transformers_ice.evaluation.arguments import parse_evaluation_arguments


def write(folder, name, values):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(values))


def test_commands_are_valid_and_run_once_and_the_table_has_their_mean(tmp_path, monkeypatch, capsys):
    trained, scored = [], []

    def train(model_args, data_args, training_args):
        trained.append(
            (model_args.objective, data_args.dataset_config_name, training_args.seed, training_args.max_steps)
        )
        write(tmp_path / training_args.output_dir, "all_results.json", {"eval_map": 0.5})

    def score(options):
        arguments, _ = parse_evaluation_arguments(options, "")
        scored.append((arguments.limit, arguments.explainers))
        value = 0.5 + len(scored) / 100
        scores = {name: {"value": value} for name in study.SCORES}
        lines = [{"method": method, "scores": scores} for method in arguments.explainers]
        lines.append({"method": "random", "scores": {"class_iou": {"value": 0.1}}})
        write(tmp_path / arguments.output_dir, "results.json", {"results": lines})

    monkeypatch.setattr(study, "run_training", train)
    monkeypatch.setattr(study.evaluate, "main", score)
    words = ["--output_dir", str(tmp_path), "--seeds", "0", "1", "--max_steps", "30", "--num_eval", "7"]
    study.main(words)
    assert trained == [(objective, "several", seed, 30) for seed in (0, 1) for objective in ("balanced", "published")]
    assert len(scored) == 5  # the single-label model is one, whatever the seed
    assert all(limit == 7 for limit, _ in scored)
    table = (tmp_path / "table.md").read_text()
    ice = next(line for line in table.splitlines() if line.startswith("| ICE (2) | ice |"))
    assert "0.525 ± 0.021" in ice  # of 0.51 and 0.54
    control = next(line for line in table.splitlines() if line.startswith("| ICE (2) | random |"))
    assert control.split("|")[3:5] == [" 0.100 ± 0.000 ", " - "]
    study.main(words)
    assert len(trained) == 4
    assert len(scored) == 5
    capsys.readouterr()


def test_other_settings_in_the_same_folder_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "run_variant", lambda *_: None)
    study.main(["--output_dir", str(tmp_path), "--max_steps", "30"])
    with pytest.raises(SystemExit, match="Choose another `--output_dir`, or the same settings"):
        study.main(["--output_dir", str(tmp_path), "--max_steps", "31"])
