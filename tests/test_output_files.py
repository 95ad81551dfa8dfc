# SPDX-License-Identifier: Apache-2.0
"""Outputs never destroy: files are written completely or not at all, never over an input, never through a link."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transformers_ice.cli import benchmark as run_benchmark
from transformers_ice.cli import convert as convert_script
from transformers_ice.cli import demo as run_demo
from transformers_ice.cli import evaluate as run_evaluation
from transformers_ice.console import output_files
from transformers_ice.console.output_files import (
    check_outputs,
    is_own_picture,
    make_folder,
    replaced,
    staged,
    write_json,
    write_text,
)
from transformers_ice.conversion import convert_checkpoint
from transformers_ice.visualization import PICTURES, picture_figure, save_figure, save_result


ROOT = Path(__file__).resolve().parents[1]


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def fill_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every file refuse to be brought to the disk, as the last pages of a full one do."""

    def refuse(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(output_files, "synchronize", refuse)


def test_a_file_is_replaced_when_it_is_complete(tmp_path: Path):
    file = tmp_path / "new" / "a.txt"
    write_text(file, "first")
    with replaced(file) as temporary:
        temporary.write_text("second")
        assert file.read_text() == "first"
        assert (temporary.parent, temporary.suffix) == (file.parent, ".txt")
    assert file.read_text() == "second"
    assert names(tmp_path) == ["new/a.txt"]


@pytest.mark.parametrize("error", [ValueError("no"), OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_a_failure_keeps_the_former_file_and_no_half_one(tmp_path: Path, error: BaseException):
    file = tmp_path / "a.txt"
    file.write_text("good")

    def write() -> None:
        with replaced(file) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)):
        write()
    assert file.read_text() == "good"
    assert names(tmp_path) == ["a.txt"]


def test_a_full_disk_names_the_file_and_keeps_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_json(tmp_path / "a.json", [1])
    fill_disk(monkeypatch)
    with pytest.raises(OSError, match=r"No space left on device; .*unchanged: '.*/a\.json'") as caught:
        write_json(tmp_path / "a.json", [2])
    assert caught.value.errno == errno.ENOSPC
    assert json.loads((tmp_path / "a.json").read_text()) == [1]
    with pytest.raises(OSError, match=r"No space left on device; .*/folder'"), staged(tmp_path / "folder") as staging:
        (staging / "b").write_text("b")
    assert names(tmp_path) == ["a.json"]


def test_numbers_that_json_lacks_are_refused_before_the_file_changes(tmp_path: Path):
    write_json(tmp_path / "a.json", [1])
    with pytest.raises(ValueError, match="Out of range float values"):
        write_json(tmp_path / "a.json", [float("nan")])
    assert json.loads((tmp_path / "a.json").read_text()) == [1]


def test_a_link_is_replaced_and_not_followed(tmp_path: Path):
    (tmp_path / "precious").write_text("precious")
    for link, target in (("a", tmp_path / "precious"), ("b", tmp_path / "nowhere")):
        (tmp_path / link).symlink_to(target)
        write_text(tmp_path / link, "new")
        assert (tmp_path / link).read_text() == "new"
        assert not (tmp_path / link).is_symlink()
    os.link(tmp_path / "precious", tmp_path / "c")
    write_text(tmp_path / "c", "new")
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_that_leads_out_by_a_link_is_refused(tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "images").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"must be in .*out, but a link leads to .*elsewhere"):
        write_text(tmp_path / "out" / "images" / "a.txt", "a", inside=tmp_path / "out")
    assert names(tmp_path) == []
    (tmp_path / "alias").symlink_to(tmp_path / "out")  # the output folder itself may be a link
    write_text(tmp_path / "alias" / "a.txt", "a", inside=tmp_path / "alias")
    assert names(tmp_path / "out") == ["a.txt"]


def test_permissions_stay_and_protected_files_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "a.txt"
    file.write_text("a")
    file.chmod(0o640)
    write_text(file, "b")
    assert file.stat().st_mode & 0o777 == 0o640
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ValueError, match=r"a\.txt must not be write-protected"):
        write_text(file, "c")
    assert file.read_text() == "b"


def test_devices_are_written_and_not_replaced():
    write_text("/dev/null", "a")
    assert not Path("/dev/null").is_file()


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("nowhere")], ids=["file", "dangling link"])
def test_an_output_folder_that_is_none_is_named(tmp_path: Path, make):
    make(tmp_path / "out")
    with pytest.raises(ValueError, match=r"must be a folder or a new name, got .*out"):
        make_folder(tmp_path / "out")
    with pytest.raises(ValueError, match="got the folder"):
        write_text(tmp_path, "a")


def stage_over(folder: Path) -> None:
    with staged(folder, [folder / "a"]) as staging:
        (staging / "a").write_text("other")
        (staging / "c").write_text("c")


def test_staged_files_appear_together_or_not_at_all(tmp_path: Path):
    with staged(tmp_path / "new" / "folder") as staging:
        (staging / "a").write_text("a")
        assert not (tmp_path / "new" / "folder").exists()
    with staged(tmp_path / "new" / "folder") as staging:
        (staging / "deep").mkdir()
        (staging / "deep" / "b").write_text("b")
    assert names(tmp_path) == ["new/folder/a", "new/folder/deep/b"]
    with pytest.raises(ValueError, match="must not replace the input"):
        stage_over(tmp_path / "new" / "folder")
    assert names(tmp_path) == ["new/folder/a", "new/folder/deep/b"]
    assert (tmp_path / "new" / "folder" / "a").read_text() == "a"


SPELLINGS = {
    "the same": lambda file: file,
    "with dots": lambda file: file.parent / "." / ".." / file.parent.name / file.name,
    "relative": lambda file: Path(os.path.relpath(file)),
    "a link": lambda file: _linked(file, os.symlink),
    "a hard link": lambda file: _linked(file, os.link),
    "a folder by a link": lambda file: _linked(file.parent, os.symlink) / file.name,
}


def _linked(path: Path, link) -> Path:
    other = path.parent / f"other-{path.name}"
    link(path, other)
    return other


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_an_output_that_is_an_input_is_refused_in_every_spelling(tmp_path: Path, spelling: str):
    file = tmp_path / "in" / "a.txt"
    file.parent.mkdir()
    file.write_text("a")
    output = SPELLINGS[spelling](file)
    with pytest.raises(ValueError, match=r"must not replace the input .*a\.txt: they are the same file"):
        check_outputs([output], [file])
    if spelling != "a hard link":  # which loses a name and no content
        with pytest.raises(ValueError, match=r"must not replace a file of the input .*in"):
            check_outputs([output], [file.parent])


def test_outputs_that_destroy_nothing_are_allowed(tmp_path: Path):
    (tmp_path / "in").mkdir()
    (tmp_path / "old.json").write_text("{}")
    new = [tmp_path / "in" / "new.txt", tmp_path / "old.json", tmp_path / "a.png", "/dev/stdout", "/dev/stdout"]
    check_outputs(new, [tmp_path / "in", "owner/name", "*.png"])
    with pytest.raises(ValueError, match="Two outputs must not be the same file"):
        check_outputs([tmp_path / "b", tmp_path / "in" / ".." / "b"])


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
@pytest.mark.parametrize("kind", PICTURES)
def test_pictures_are_known_as_own(tmp_path: Path, kind: str, suffix: str):
    image, file = np.zeros((16, 16, 3), np.uint8), tmp_path / f"a.{suffix}"
    values = {"class_map": np.zeros((16, 16), int), "heatmap": np.zeros((16, 16)), "mask": np.zeros((16, 16), bool)}
    box = {"xmin": 0, "ymin": 0, "xmax": 8, "ymax": 8}
    save_result(image, {**values, "box": box, "label": "a", "score": 0.5}, ["a"], file, kind)
    assert is_own_picture(file)
    check_outputs([file])
    file.write_bytes(b"a photograph")
    with pytest.raises(ValueError, match="must not replace a picture that transformers-ice did not write"):
        check_outputs([file])


def test_a_figure_that_cannot_be_written_keeps_the_former(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_figure(picture_figure(np.zeros((16, 16, 3), np.uint8)), tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    fill_disk(monkeypatch)
    with pytest.raises(OSError, match=r"No space left on device.*a\.png"):
        save_figure(picture_figure(np.ones((16, 16, 3), np.uint8)), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == before


def test_a_conversion_does_not_replace_its_checkpoint(tiny_folder: Path):
    weights = tiny_folder / "model.safetensors"
    before = {name: (tiny_folder / name).read_bytes() for name in names(tiny_folder)}
    with pytest.raises(ValueError, match=r"must not replace the input .*model\.safetensors"):
        convert_checkpoint(weights, tiny_folder, num_attention_heads=2, overwrite_output_dir=True)
    words = ["--checkpoint", str(tiny_folder), "--output_dir", str(tiny_folder.parent / "new")]
    assert convert_script.main([*words, "--report", str(weights)]) == 1
    assert {name: (tiny_folder / name).read_bytes() for name in names(tiny_folder)} == before
    assert not (tiny_folder.parent / "new").exists()


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    from transformers_ice import IceDeiTConfig, IceDeiTForImageClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = IceDeiTConfig(**sizes, image_size=16, patch_size=8, num_labels=2)
    IceDeiTForImageClassification(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def photograph(folder: Path, name: str) -> Path:
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (4, 4)).save(folder / name)
    return folder / name


def test_commands_refuse_to_replace_what_they_did_not_write(tmp_path: Path, capsys: pytest.CaptureFixture):
    out, file = tmp_path / "out", tmp_path / "out" / "results.json"
    shares = photograph(out, "methods.png")
    file.write_text("[]")
    before = {name: (out / name).read_bytes() for name in names(out)}
    commands = {
        "did not write": lambda: run_evaluation.main(["--models", "x", "--output_dir", str(out)]),
        "the input": lambda: run_benchmark.main(["--accuracies", str(file), "--output_dir", str(out)]),
        "must not be OUTPUT_DIR/model": lambda: run_demo.main(
            ["--output_dir", str(out), "--start", str(out / "model")]
        ),
        "must be a folder": lambda: run_evaluation.main(["--models", "x", "--output_dir", str(shares)]),
    }
    for message, command in commands.items():
        assert command() == 1
        assert message in capsys.readouterr().err
    assert {name: (out / name).read_bytes() for name in names(out)} == before


def test_a_disk_that_is_really_full_keeps_the_former_file(tmp_path: Path):
    """The folder lies on a file system of 64 kB, which only this one process sees."""
    mount = f"mount -t tmpfs -o size=64k none {tmp_path}"
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "sh", "-c", mount]).returncode:
        pytest.skip("needs a file system of its own")
    # loaded by its path: importing the package would take seconds
    code = f"""
import importlib.util, os
specification = importlib.util.spec_from_file_location("output_files", {output_files.__file__!r})
module = importlib.util.module_from_spec(specification)
specification.loader.exec_module(module)
os.chdir({str(tmp_path)!r})
module.write_text("a.txt", "a" * 30000)
try:
    module.write_text("a.txt", "b" * 60000)
except OSError as error:
    print(error)
print(os.listdir(), open("a.txt").read() == "a" * 30000)
"""
    words = ["unshare", "-rm", "sh", "-c", f'{mount} && "{sys.executable}" -c "$0"', code]
    finished = subprocess.run(words, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert "No space left on device" in finished.stdout
    assert "'a.txt'" in finished.stdout
    assert finished.stdout.endswith("['a.txt'] True\n")
