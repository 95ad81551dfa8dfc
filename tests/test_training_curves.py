# SPDX-License-Identifier: Apache-2.0
"""Curves of training runs: what is read, what is drawn, and what is refused."""

import json

import pytest
import training_curves


def write_run(folder, top_1):
    log = [
        {"epoch": 1.0, "loss": 2.0, "step": 1},
        {"epoch": 1.0, "eval_top_1": top_1, "eval_cls_top_1": 0.9, "eval_foreground_ratio": 0.5, "step": 1},
        {"epoch": 2.0, "loss": 1.5, "step": 2},
        {"epoch": 2.0, "eval_top_1": top_1 + 0.1, "eval_cls_top_1": 0.9, "eval_foreground_ratio": 0.4, "step": 2},
    ]
    folder.mkdir()
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    return folder


def test_runs_of_one_name_have_one_colour(tmp_path):
    runs = [(name, training_curves.read_curves(write_run(tmp_path / f"{name}{index}", 0.5 + index / 10)))
            for name, index in (("a", 0), ("a", 1), ("b", 2))]  # fmt: skip
    assert runs[1][1]["eval_top_1"] == [(1.0, 0.6), (2.0, 0.7)]
    accuracy, foreground, loss = training_curves.draw_curves(runs).axes
    lines = [(line.get_color(), line.get_linestyle(), line.get_ydata()[0]) for line in accuracy.lines]
    first, second = lines[0][0], lines[4][0]
    assert first != second
    expected = [(first, "-", 0.5), (first, "--", 0.9), (first, "-", 0.6), (first, "--", 0.9)]
    assert lines == [*expected, (second, "-", 0.7), (second, "--", 0.9)]
    assert [list(line.get_xdata()) for line in loss.lines] == [[1.0, 2.0]] * 3
    assert len(foreground.lines) == 3


def test_a_file_is_written_and_wrong_input_is_refused(tmp_path, capsys):
    folder, picture = write_run(tmp_path / "run", 0.5), tmp_path / "curves.png"
    training_curves.main(["--runs", f"one={folder}", "--output", str(picture)])
    assert picture.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match="must be the output of a training run"):
        training_curves.main(["--runs", f"one={tmp_path}", "--output", str(picture)])
    with pytest.raises(SystemExit):
        training_curves.main(["--runs", str(folder), "--output", str(picture)])
    assert "expected NAME=FOLDER" in capsys.readouterr().err
