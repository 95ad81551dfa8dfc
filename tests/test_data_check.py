# SPDX-License-Identifier: Apache-2.0
"""The look at all images before training: counts, faults by file and row, and the exit code of the script."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from datasets import Dataset, Features, Image, Value
from streaming_shards import png_of, write_parquet, write_tars

from transformers_ice.data.images.loading import load_images
from transformers_ice.training import DataArguments, DataReport, check_data


SCRIPT = Path(__file__).parents[1] / "scripts" / "run_train.py"


@pytest.fixture(scope="module")
def run_train():
    from transformers_ice.cli import train

    return train


def check(**arguments) -> DataReport:
    return check_data(DataArguments(**arguments), (32, 32), show_progress=False)


@pytest.mark.parametrize("streaming", [False, True])
def test_images_are_counted_by_class(tmp_path, streaming):
    train, validation = write_parquet(tmp_path, [4, 3]), write_parquet(tmp_path, [2], name="val")
    report = check(train_files=train, validation_files=validation, streaming=streaming)
    assert dict(report.counts["train"]) == {0: 3, 1: 2, 2: 2}
    assert report.missing("evaluation") == ["cat"]
    assert (report.exit_code, report.faults) == (0, [])
    lines = str(report).splitlines()
    assert lines[:2] == ["class          train evaluation", "ant                3          1"]
    assert lines[4] == "3 classes          7          2"
    assert lines[-1] == "The data can be trained on."
    assert "1 classes without an image in evaluation (these are not scored): cat" in lines


def write_faults(folder: Path) -> str:
    """Write one good row, one image that is none, one row without an image, and one class that is not there."""
    cells = [{"bytes": png_of(1), "path": "a.png"}, {"bytes": b"none", "path": "b.png"}, None]
    cells.append({"bytes": png_of(2), "path": "d.png"})
    features = Features(image=Image(), label=Value("int64"))
    Dataset.from_dict({"image": cells, "label": [0, 1, 0, 3]}, features=features).to_parquet(folder / "t.parquet")
    (folder / "names.txt").write_text("ant\nbee\ncat\n")
    return str(folder / "t.parquet")


@pytest.mark.parametrize("streaming", [False, True])
def test_faults_are_listed_with_file_and_row(tmp_path, streaming):
    train, validation = write_faults(tmp_path), write_parquet(tmp_path, [3], name="val")
    names = str(tmp_path / "names.txt")
    report = check(train_files=train, validation_files=validation, streaming=streaming, class_names_file=names)
    assert [fault.split(": ")[0] for fault in report.faults] == [
        f"train, row 1 of {train} (b.png)", f"train, row 2 of {train}", f"train, row 3 of {train} (d.png)",
    ]  # fmt: skip
    assert "there is no image" in report.faults[1]
    assert "the class 3 is none of the 3 classes" in report.faults[2]
    assert report.missing("train") == ["cat"]
    assert report.exit_code == 1


@pytest.mark.parametrize("streaming", [False, True])
def test_a_class_that_is_not_there_ends_a_run_before_it_begins(tmp_path, streaming):
    files = {"train_files": write_faults(tmp_path), "validation_files": write_parquet(tmp_path, [3], name="val")}
    arguments = DataArguments(**files, class_names_file=str(tmp_path / "names.txt"), streaming=streaming)
    with pytest.raises(ValueError, match=r"row 3 of .*t\.parquet: the class 3 is none of the 3 classes"):
        load_images(arguments, (32, 32))


def test_image_folders_are_checked_too(tmp_path):
    for name, number in (("cat", 5), ("dog", 3)):
        (tmp_path / name).mkdir()
        for index in range(number):
            (tmp_path / name / f"{index}.png").write_bytes(png_of(index))
    (tmp_path / "dog" / "bad.png").write_bytes(b"")
    report = check(train_dir=str(tmp_path), validation_dir=str(tmp_path))
    assert dict(report.counts["train"]) == {0: 5, 1: 4}
    assert len(report.faults) == 2
    assert all(str(tmp_path / "dog" / "bad.png") in fault for fault in report.faults)


def test_many_classes_are_shortened():
    names = [f"c{number:03d}" for number in range(200)]
    counts = {"train": {number: 200 - number for number in range(200)}, "evaluation": dict.fromkeys(range(200), 1)}
    report = DataReport(names, {split: Counter(numbers) for split, numbers in counts.items()})
    listed = [line.split()[0] for line in str(report).splitlines() if line.startswith("c0") or line.startswith("c1")]
    assert listed == [f"c{number:03d}" for number in [*range(199, 174, -1), *range(24, -1, -1)]]


@pytest.mark.parametrize("is_good", [True, False])
def test_script_ends_with_the_code_of_the_check(run_train, tmp_path, capsys, is_good):
    train = write_tars(tmp_path, [4, 3]) if is_good else write_faults(tmp_path)
    words = ["--model_type", "vit", "--output_dir", str(tmp_path / "out"), "--train_files", train]
    words += ["--validation_files", write_parquet(tmp_path, [3], name="val") if not is_good else train]
    words += [] if is_good else ["--class_names_file", str(tmp_path / "names.txt")]
    code = run_train.main([*words, "--streaming", "true", "--check_only", "true", "--use_cpu"])
    assert code == (0 if is_good else 1)
    assert ("can be trained on" if is_good else "must be fixed") in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_script_says_that_the_model_cannot_be_had(run_train, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    words = ["--model_name_or_path", str(tmp_path / "empty"), "--output_dir", str(tmp_path / "out")]
    words += ["--train_files", write_tars(tmp_path, [4]), "--validation_files", write_tars(tmp_path, [4])]
    assert run_train.main([*words, "--check_only", "true", "--use_cpu"]) == 1
    output = capsys.readouterr()
    assert "can be trained on" in output.out
    assert "The model cannot be had" in output.err


def test_script_says_what_cannot_even_be_counted(run_train, tmp_path, capsys):
    words = ["--model_type", "vit", "--output_dir", str(tmp_path / "out"), "--train_files", str(tmp_path / "*.tar")]
    assert run_train.main([*words, "--check_only", "true", "--use_cpu"]) == 1
    assert "names no file" in capsys.readouterr().err
