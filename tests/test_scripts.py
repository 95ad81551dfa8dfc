# SPDX-License-Identifier: Apache-2.0
"""The scripts that show explanations, end to end with tiny models."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, pipeline
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil

from transformers_ice import IceDeiTConfig, IceDeiTForImageClassification
from transformers_ice.cli import demo as run_demo
from transformers_ice.cli import explain as explain_images
from transformers_ice.console import output_files
from transformers_ice.data.scenes import SCENE_CLASSES
from transformers_ice.ice_deit.image_processing_ice_deit import IceDeiTImageProcessor
from transformers_ice.training import TrainingStoppedError
from transformers_ice.visualization import PICTURES


SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "initializer_range": 0.3,
}
SCENE_LABELS = {"id2label": dict(enumerate(SCENE_CLASSES)), "label2id": {n: i for i, n in enumerate(SCENE_CLASSES)}}


@pytest.fixture(scope="module")
def ice_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ice")
    torch.manual_seed(0)
    config = IceDeiTConfig(**SIZES, id2label={0: "cat", 1: "dog", 2: "hen"}, label2id={"cat": 0, "dog": 1, "hen": 2})
    IceDeiTForImageClassification(config).save_pretrained(folder)
    IceDeiTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def start_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deit")
    torch.manual_seed(0)
    ViTForImageClassification(ViTConfig(**SIZES, **SCENE_LABELS)).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    DeiTImageProcessorPil(size=size, do_center_crop=False, do_convert_rgb=True).save_pretrained(folder)
    return folder


def picture(height=20, width=30, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def photos(tmp_path):
    """A folder tree of four pictures, two of which have the same stem, and files that are no pictures."""
    folder = tmp_path / "photos"
    (folder / "deep" / "er").mkdir(parents=True)
    for index, name in enumerate(["a.png", "b.JPG", "deep/a.jpg", "deep/er/c.webp"]):
        picture(seed=index).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_bytes(b"")
    return folder


def explain(capsys, *words):
    """Run the script; return its exit code, its JSON lines and its messages."""
    code = explain_images.main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, [json.loads(line) for line in captured.out.splitlines()], captured.err


def names(paths, folder):
    return [Path(path).relative_to(folder).as_posix() for path in paths]


def test_every_picture_of_a_folder_gets_an_overlay_and_a_line(capsys, ice_folder, photos, tmp_path):
    code, records, _ = explain(capsys, photos, "--model", ice_folder, "--output_dir", tmp_path / "out")
    assert code == 0
    assert names((record["path"] for record in records), photos) == ["a.png", "b.JPG", "deep/a.jpg", "deep/er/c.webp"]
    outputs = [Path(record["output"]) for record in records]
    assert [output.name for output in outputs] == ["a.png", "b.png", "a-2.png", "c.png"]
    for output in outputs:
        with Image.open(output) as overlay:
            assert overlay.size == (30, 20)
    lines = (tmp_path / "out" / "explanations.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == records


def test_line_holds_the_result_of_the_pipeline(capsys, ice_folder, photos, tmp_path):
    words = ("--model", ice_folder, "--output_dir", tmp_path / "out")
    _, records, _ = explain(capsys, photos / "a.png", photos / "b.JPG", *words, "--batch_size", 2)
    explainer = pipeline(
        "patch-explanation",
        model=IceDeiTForImageClassification.from_pretrained(ice_folder),
        image_processor=IceDeiTImageProcessor.from_pretrained(ice_folder),
    )
    for record in records:
        expected = explainer(record["path"])
        assert set(record) == {"path", "label", "score", "found", "box", "foreground_ratio", "output"}
        assert record["label"] == expected["label"]
        assert record["score"] == pytest.approx(expected["score"], abs=1e-5)  # six digits, and another batch size
        assert record["box"] == expected["box"]
        assert record["foreground_ratio"] == expected["foreground_ratio"]


@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_every_picture_is_written_in_every_format(capsys, ice_folder, photos, tmp_path, kind, suffix):
    words = ("--model", ice_folder, "--output_dir", tmp_path / "out", "--picture", kind, "--format", suffix)
    code, records, _ = explain(capsys, photos / "a.png", *words)
    assert code == 0
    content = Path(records[0]["output"]).read_bytes()
    assert records[0]["output"].endswith(f"a.{suffix}")
    assert content.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix])
    if (suffix, kind) in {("png", "heatmap"), ("png", "mask"), ("png", "cut_out")}:
        with Image.open(records[0]["output"]) as drawn:
            assert drawn.size == (30, 20)


def test_a_larger_scale_gives_finer_pictures(capsys, ice_folder, photos, tmp_path):
    words = ("--model", ice_folder, "--output_dir", tmp_path / "out", "--picture", "mask", "--scale", 4)
    _, records, _ = explain(capsys, photos / "a.png", *words)
    with Image.open(records[0]["output"]) as drawn:
        assert drawn.size == (120, 80)


def test_pictures_of_an_earlier_run_are_not_explained(ice_folder, photos, capsys):
    words = (photos, "--model", ice_folder, "--output_dir", photos / "out")
    first, second = (names((record["path"] for record in explain(capsys, *words)[1]), photos) for _ in range(2))
    assert first == second
    assert len(first) == 4


def test_files_of_other_types_are_counted(ice_folder, tmp_path, capsys):
    for name in ("a.CR2", "b.cr2", "notes.txt", "README", ".hidden.cr2"):
        (tmp_path / name).write_text("x")
    Image.new("RGB", (8, 8)).save(tmp_path / "c.png")
    _, records, messages = explain(capsys, tmp_path, "--model", ice_folder, "--output_dir", tmp_path / "out")
    assert len(records) == 1
    assert "4 files of other types were left out: .cr2 2, .txt 1, without an ending 1" in messages
    _, _, messages = explain(capsys, tmp_path / "*.*", "--model", ice_folder, "--output_dir", tmp_path / "out")
    assert "other types" not in messages  # of a glob they were chosen to match


def test_links_in_a_folder_are_followed_once(tmp_path):
    pool, folder = tmp_path / "pool", tmp_path / "photos"
    for path in (pool / "a.png", folder / "b.png"):
        path.parent.mkdir()
        Image.new("RGB", (8, 8)).save(path)
    (folder / "linked").symlink_to(pool)
    (folder / "up").symlink_to("..")  # would list everything again, without an end
    (folder / "dangling.png").symlink_to("nothing")
    found = explain_images.find_images([str(folder)], tmp_path / "out")
    assert [path.name for path in found] == ["b.png", "a.png"]


def test_globs_and_repeated_paths_name_each_file_once(photos, tmp_path):
    paths = [f"{photos}/*", f"{photos}/**/*.jpg", str(photos / "a.png"), str(photos / "deep")]
    found = names(explain_images.find_images(paths, tmp_path / "out"), photos)
    assert sorted(found) == ["a.png", "b.JPG", "deep/a.jpg", "deep/er/c.webp"]
    brackets = photos / "x[1].png"
    picture().save(brackets)
    assert explain_images.find_images([str(brackets)], tmp_path / "out") == [brackets]
    assert explain_images.find_images([str(photos / "notes.txt")], tmp_path) == [photos / "notes.txt"]


def test_output_names_never_collide():
    paths = [Path(name) for name in ("x/a.png", "y/a.png", "A.jpg", "a-2.png", "a.gif")]
    outputs = [path.name.lower() for path in explain_images.name_outputs(paths, Path("out"))]
    assert len(set(outputs)) == 5
    assert outputs[:2] == ["a.png", "a-2.png"]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


OWN_NAMES = {
    "the folder": lambda own: ("a.png", own),
    "with dots": lambda own: ("a.png", own / "." / ".." / "own"),
    "by a link": lambda own: ("a.png", own.parent / "alias"),
    "an unrelated picture": lambda own: ("a.jpg", own),
}


@pytest.mark.parametrize("spelling", OWN_NAMES)
def test_no_image_and_no_other_picture_is_replaced(capsys, ice_folder, tmp_path, spelling):
    own = tmp_path / "own"
    own.mkdir()
    (tmp_path / "alias").symlink_to(own)
    for name in ("a.png", "a.jpg", "a.svg"):
        picture().save(own / name, format="PNG")
    before = contents(own)
    name, output_dir = OWN_NAMES[spelling](own)
    for _ in range(2):  # the second run replaces what the first wrote
        code, records, _ = explain(capsys, own / name, "--model", ice_folder, "--output_dir", output_dir)
        assert code == 0
        assert Path(records[0]["output"]).name == "a-explained.png"
    after = contents(own)
    assert {name: after[name] for name in before} == before
    assert sorted(after) == ["a-explained.png", "a.jpg", "a.png", "a.svg", "explanations.jsonl"]
    _, (record,), _ = explain(capsys, own / "a-explained.png", "--model", ice_folder, "--output_dir", output_dir)
    assert Path(record["output"]).name == "a-explained-explained.png"


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_links_to_an_image_are_not_replaced(capsys, ice_folder, photos, tmp_path, link):
    (tmp_path / "out").mkdir()
    link(photos / "a.png", tmp_path / "out" / "a.png")
    before = (photos / "a.png").read_bytes()
    _, (record,), _ = explain(capsys, photos / "a.png", "--model", ice_folder, "--output_dir", tmp_path / "out")
    assert Path(record["output"]).name == "a-explained.png"
    assert (photos / "a.png").read_bytes() == (tmp_path / "out" / "a.png").read_bytes() == before


def test_a_run_that_fails_keeps_what_the_run_before_wrote(capsys, ice_folder, photos, tmp_path, monkeypatch):
    out = tmp_path / "out"
    words = (photos / "a.png", photos / "b.JPG", "--model", ice_folder, "--output_dir", out)
    explain(capsys, *words)
    before = contents(out)
    code, _, messages = explain(capsys, *words, "--target", "nonexistent")
    assert (code, contents(out)) == (1, before)
    assert "got 'nonexistent'" in messages
    (photos / "b.JPG").write_bytes(b"no picture")
    explain(capsys, *words, "--on_bad_image", "stop")
    assert contents(out)["explanations.jsonl"] == before["explanations.jsonl"]
    assert len(contents(out)["explanations.jsonl.part"].splitlines()) == 1

    def refuse(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(output_files, "synchronize", refuse)
    code, _, messages = explain(capsys, *words, "--picture", "mask")
    assert (code, contents(out)) == (1, before)
    assert "No space left on device" in messages
    assert str(out / "a.png") in messages


def test_an_interrupted_run_keeps_its_lines_and_the_former_log(capsys, ice_folder, photos, tmp_path, monkeypatch):
    words = (photos, "--model", ice_folder, "--output_dir", tmp_path / "out", "--batch_size", 1)
    explain(capsys, *words)
    log = tmp_path / "out" / "explanations.jsonl"
    former = log.read_text(encoding="utf-8")
    save_result = explain_images.save_result

    def interrupt(pixels, result, names, output, *arguments):
        if output.name == "c.png":
            raise KeyboardInterrupt
        save_result(pixels, result, names, output, *arguments)

    monkeypatch.setattr(explain_images, "save_result", interrupt)
    code, _, messages = explain(capsys, *words)
    assert code == 130
    assert "explanations.jsonl.part" in messages
    assert log.read_text(encoding="utf-8") == former
    part = explain_images.unfinished_name(log)
    assert part.read_text(encoding="utf-8").splitlines() == former.splitlines()[:3]
    monkeypatch.undo()
    assert explain(capsys, *words)[0] == 0
    assert not part.exists()


def test_unreadable_files_are_named_and_the_others_explained(capsys, ice_folder, photos, tmp_path):
    whole = (photos / "a.png").read_bytes()
    (photos / "cut.png").write_bytes(whole[: len(whole) // 2])
    (photos / "empty.jpg").write_bytes(b"")
    words = ("--model", ice_folder, "--output_dir", tmp_path / "out", "--batch_size", 3)
    code, records, messages = explain(capsys, photos, photos / "gone.png", photos / "notes.txt", *words)
    assert code == 1
    assert len(records) == 4
    for name in ("cut.png", "empty.jpg", "gone.png", "notes.txt"):
        assert str(photos / name) in messages
    assert "4 of 8 images explained" in messages


def test_on_bad_image_stop_ends_the_run(capsys, ice_folder, photos, tmp_path):
    (photos / "b.JPG").write_bytes(b"no picture")
    words = ("--model", ice_folder, "--output_dir", tmp_path / "out", "--on_bad_image", "stop", "--batch_size", 4)
    code, records, messages = explain(capsys, photos, *words)
    assert code == 1
    assert names((record["path"] for record in records), photos) == ["a.png"]
    assert "b.JPG" in messages


def test_no_images_is_a_clear_exit(capsys, ice_folder, tmp_path):
    code, records, messages = explain(capsys, tmp_path, "--model", ice_folder, "--output_dir", tmp_path / "out")
    assert (code, records) == (1, [])
    assert f"No images found in {tmp_path}" in messages


def rotated(folder):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    picture(20, 30).save(folder / "rotated.jpg", exif=exif)
    return (20, 30)


KINDS = {
    "grey.png": lambda: picture().convert("L"),
    "rgba.png": lambda: picture().convert("RGBA"),
    "palette.gif": lambda: picture().convert("P"),
    "cmyk.jpg": lambda: picture().convert("CMYK"),
    "16bit.png": lambda: Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100),
    "narrow.png": lambda: picture(30, 1),
    "flat.png": lambda: picture(1, 30),
    "pixel.png": lambda: picture(1, 1),
}


def test_every_kind_of_picture_is_explained_in_its_upright_size(capsys, ice_folder, tmp_path):
    sizes = {"rotated": rotated(tmp_path)}
    for name, make in KINDS.items():
        image = make()
        image.save(tmp_path / name)
        sizes[Path(name).stem] = image.size
    code, records, _ = explain(capsys, tmp_path, "--model", ice_folder, "--output_dir", tmp_path / "out")
    assert code == 0
    assert len(records) == len(KINDS) + 1
    for record in records:
        width, height = sizes[Path(record["path"]).stem]
        with Image.open(record["output"]) as overlay:
            assert overlay.size == (width, height)
        box = record["box"]
        assert record["found"] == (box is not None)
        if box is not None:
            assert 0 <= box["xmin"] < box["xmax"] <= width
            assert 0 <= box["ymin"] < box["ymax"] <= height


def test_target_changes_the_heat_and_nothing_else(capsys, ice_folder, photos, tmp_path):
    runs = []
    for name, extra in (("all", ()), ("hen", ("--target", "hen")), ("2", ("--target", "2"))):
        words = (photos / "a.png", "--model", ice_folder, "--output_dir", tmp_path / name)
        _, (record,), _ = explain(capsys, *words, *extra)
        assert record.pop("target", None) == ("hen" if extra else None)
        runs.append((np.asarray(Image.open(record.pop("output"))), record))
    assert runs[0][1] == runs[1][1] == runs[2][1]
    assert np.array_equal(runs[1][0], runs[2][0])
    assert not np.array_equal(runs[0][0], runs[1][0])
    for target in ("cow", "3", "-1", "1.0", "²"):
        code, _, messages = explain(capsys, *words, "--target", target)
        assert code == 1
        assert "`target` must be a class" in messages


def test_a_number_that_is_the_name_of_a_class_is_that_class(capsys, ice_folder, photos, tmp_path):
    model = IceDeiTForImageClassification.from_pretrained(ice_folder)
    names = ["0", "10", "2"]
    model.config.id2label, model.config.label2id = dict(enumerate(names)), {n: i for i, n in enumerate(names)}
    model.save_pretrained(tmp_path / "model")
    IceDeiTImageProcessor.from_pretrained(ice_folder).save_pretrained(tmp_path / "model")
    words = (photos / "a.png", "--model", tmp_path / "model", "--output_dir", tmp_path / "out", "--target")
    for target, name in (("2", "2"), ("10", "10"), ("1", "10")):  # the last is no name: an index
        code, (record,), _ = explain(capsys, *words, target)
        assert (code, record["target"]) == (0, name)


def test_images_in_which_nothing_is_found_say_so(capsys, ice_folder, photos, tmp_path, monkeypatch):
    explainer = explain_images.load_explainer(str(ice_folder))
    explainer.model.config.logits_source = "patch"
    head = torch.nn.Linear(32, 4)
    torch.nn.init.zeros_(head.weight)
    head.bias.data = torch.tensor([0.0, 0.0, 0.0, 9.0])  # background everywhere
    explainer.model.deit.patch_head = head
    monkeypatch.setattr(explain_images, "load_explainer", lambda *_: explainer)
    code, records, messages = explain(capsys, photos, "--model", ice_folder, "--output_dir", tmp_path / "out")
    assert code == 0
    for record in records:
        assert (record["label"], record["found"], record["box"]) == ("background", False, None)
    assert "4 of 4: nothing the model knows (it knows: cat, dog, hen)" in messages


def test_a_name_that_is_no_utf8_is_the_fault_of_its_file_alone(capsys, ice_folder, photos, tmp_path):
    os.rename(photos / "b.JPG", os.path.join(os.fsencode(photos), b"b\xff.png"))
    code, records, messages = explain(capsys, photos, "--model", ice_folder, "--output_dir", tmp_path / "out")
    assert (code, len(records)) == (1, 3)
    assert "The name of the image must be UTF-8" in messages
    assert r"b\xff.png" in messages
    words = ("--model", ice_folder, "--output_dir", os.fsdecode(os.fsencode(tmp_path) + b"/o\xff"))
    code, records, messages = explain(capsys, photos, *words)
    assert (code, records) == (1, [])
    assert "output folder must be UTF-8" in messages


def test_an_address_is_not_made_a_path(capsys, ice_folder, tmp_path, monkeypatch):
    seen = []

    def read(self, source, timeout=None):
        seen.append(source)
        return picture()

    monkeypatch.setattr(IceDeiTImageProcessor, "read_image", read)
    address = "https://example.org/x/a.jpg?token=secret0123"
    code, (record,), _ = explain(capsys, address, "--model", ice_folder, "--output_dir", tmp_path / "out")
    assert code == 0
    assert seen[0] == address
    assert record["path"] == "https://example.org/x/a.jpg?token=***"
    assert Path(record["output"]).name == "a.png"


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("nowhere")], ids=["file", "dangling link"])
def test_an_output_folder_that_is_none_is_refused_with_a_sentence(capsys, ice_folder, photos, tmp_path, make):
    make(tmp_path / "out")
    code, _, messages = explain(capsys, photos, "--model", ice_folder, "--output_dir", tmp_path / "out")
    assert code == 1
    assert "The output folder must be a folder or a new name" in messages


EXPLAIN = "from transformers_ice.cli.explain import main; import sys; sys.exit(main())"


def test_output_that_cannot_be_shown_or_read_ends_no_work(warm_python, ice_folder, photos, tmp_path):
    """In an ASCII terminal, and where the reader of the lines goes after the first."""
    (photos / "a.png").rename(photos / "ä.png")
    words = [warm_python.python, "-c", EXPLAIN, photos, "--model", ice_folder, "--batch_size", "1", "--output_dir"]
    words = [str(word) for word in words]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*words, str(tmp_path / "ö")], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {Path(json.loads(line)["path"]).name for line in done.stdout.splitlines()} >= {"ä.png", "b.JPG"}
    run = subprocess.Popen([*words, str(tmp_path / "out")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    run.stdout.close()
    messages = run.stderr.read()
    run.stderr.close()
    assert run.wait(60) == 0, messages
    assert "Traceback" not in messages
    assert "BrokenPipe" not in messages
    assert len((tmp_path / "out" / "explanations.jsonl").read_text(encoding="utf-8").splitlines()) == 4


def test_missing_folders_and_the_patch_head_of_other_models_are_refused(capsys, start_folder, photos, tmp_path):
    words = ("--model", start_folder, "--method", "ice", "--output_dir", tmp_path / "out")
    code, _, messages = explain(capsys, photos, *words)
    assert code == 1
    assert "--method ice reads the patch head of an ICE model, which" in messages
    code, _, messages = explain(capsys, photos, "--model", tmp_path / "nowhere", "--output_dir", tmp_path / "out")
    assert code == 1
    assert "nowhere" in messages


@pytest.mark.parametrize(
    ("word", "message"),
    [("--batch_size", "--batch_size must be at least 1, got 0"), ("--scale", "--scale must lie in (0, 16], got 0.0")],
)
def test_numbers_out_of_range_are_refused(capsys, tmp_path, word, message):
    with pytest.raises(SystemExit, match="2"):
        explain_images.main([str(tmp_path), "--model", "x", "--output_dir", "y", word, "0"])
    assert message in capsys.readouterr().err


def test_demo_trains_measures_draws_and_explains_own_images(capsys, start_folder, photos, tmp_path):
    output_dir = tmp_path / "demo"
    words = ["--start", start_folder, "--output_dir", output_dir, "--images", photos, photos / "gone.png"]
    sizes = ["--num_train", "24", "--num_eval", "10", "--max_steps", "2"]
    code = run_demo.main([str(word) for word in words] + sizes)
    captured = capsys.readouterr()
    assert code == 1  # because of gone.png only
    assert "gone.png" in captured.err
    results = json.loads((output_dir / "results.json").read_text(encoding="utf-8"))
    assert [row["method"].split()[0] for row in results["rows"]] == ["ICE", "raw", "rollout,", "ceiling", "control:"]
    assert results["settings"]["max_steps"] == 2
    assert f"background_loss_weight {results['settings']['background_loss_weight']}" in captured.out
    (ceiling,) = (row for row in results["rows"] if row["method"].startswith("ceiling"))
    for row in results["rows"]:
        assert f"{row['mean_iou']:.4f}" in captured.out
        assert row["ceiling_share"] == pytest.approx(row["mean_iou"] / ceiling["mean_iou"])
    for task in ("image-classification", "image-segmentation", "patch-explanation"):
        assert task in captured.out
    with Image.open(output_dir / "explanations.png") as panel:
        assert min(panel.size) > 500
    assert len((output_dir / "images" / "explanations.jsonl").read_text(encoding="utf-8").splitlines()) == 4
    model = IceDeiTForImageClassification.from_pretrained(output_dir / "model")
    assert model.config.logits_source == "patch"
    last_line = captured.out.strip().splitlines()[-1]
    assert all(str(output_dir / name) in last_line for name in ("model", "explanations.png", "results.json", "images"))


def test_a_demo_that_is_stopped_says_how_to_resume(capsys, monkeypatch, start_folder, tmp_path):
    def stop(arguments, start, recipe, model_dir):
        raise TrainingStoppedError("Training stopped after step 1, by SIGTERM.", model_dir, 143)

    monkeypatch.setattr(run_demo, "train", stop)
    assert run_demo.main(["--start", str(start_folder), "--output_dir", str(tmp_path / "demo")]) == 143
    messages = capsys.readouterr().err
    assert "by SIGTERM. There is no complete checkpoint." in messages
    assert "The same command resumes the training." in messages


@pytest.mark.parametrize(
    "arguments",
    [
        "own --model m --output_dir own",
        "--output_dir own --model m own",
        "--model m own --output_dir own",
        "--output_dir own --model=m --paths own",
    ],
)
def test_a_path_may_equal_the_value_of_an_option(arguments):
    parsed = explain_images.parse_arguments(arguments.split())
    assert (parsed.paths, parsed.model, parsed.output_dir) == (["own"], "m", "own")
