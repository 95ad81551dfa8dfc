# SPDX-License-Identifier: Apache-2.0
"""`transformers_ice.data.images.folders` and the tables a run is made of: files, columns and classes."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as PilImage

from transformers_ice.data.images.cells import count_cells
from transformers_ice.data.images.folders import load_hub_images, load_image_folder
from transformers_ice.data.images.labels import Labels
from transformers_ice.data.images.loading import check_columns
from transformers_ice.data.images.pixels import BadImage, find_bad_images, remove_bad_images
from transformers_ice.training import DataArguments, check_data, load_image_tables


def write_image(path: Path, color: int = 0, size: tuple[int, int] = (12, 9), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    PilImage.new(mode, size, color).save(path)
    return path


def write_folder(folder: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 3) -> Path:
    for value, name in enumerate(classes):
        for index in range(count):
            write_image(folder / name / f"{index}.png", 40 * value + index)
    return folder


def write_bad_images(folder: Path) -> list[Path]:
    bad = [folder / "cat" / "empty.jpg", folder / "cat" / "text.png", folder / "dog" / "truncated.jpg"]
    bad[0].write_bytes(b"")
    bad[1].write_text("this is no image")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    PilImage.fromarray(noise).save(bad[2])
    bad[2].write_bytes(bad[2].read_bytes()[:2000])
    return bad


def table_of(labels: list, names: list[str] | None = None) -> Dataset:
    images = [PilImage.new("RGB", (4, 4)) for _ in labels]
    label = ClassLabel(names=names) if names else (Value("string") if isinstance(labels[0], str) else Value("int64"))
    return Dataset.from_dict({"image": images, "label": labels}, features=Features({"image": Image(), "label": label}))


# --- folders -------------------------------------------------------------------------------------------------------


def test_subfolders_are_the_classes(tmp_path):
    table = load_image_folder(write_folder(tmp_path / "with [brackets] and *", ("dog", "cat", "test")))
    assert table.features["label"].names == ["cat", "dog", "test"]
    assert sorted(table["label"]) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    # the colour says which folder an image came from: cat was written second, dog first, test third
    cells = zip(table["label"], table["image"], strict=True)
    assert {(label, image.getpixel((0, 0))[0] // 40) for label, image in cells} == {(0, 1), (1, 0), (2, 2)}


def test_other_files_are_left_alone(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "README.txt").write_text("about these images")
    (tmp_path / "cat" / ".DS_Store").write_bytes(b"0")
    (tmp_path / "cat" / "Thumbs.db").write_bytes(b"0")
    assert len(load_image_folder(tmp_path)) == 6


def test_one_class_and_nested_folders_have_labels_too(tmp_path):
    one = load_image_folder(write_folder(tmp_path / "one", ("cat",)))
    assert one.features["label"].names == ["cat"]
    nested = tmp_path / "nested"
    write_image(nested / "cat" / "black" / "1.png")
    write_image(nested / "dog" / "1.png")
    table = load_image_folder(nested)
    assert table.features["label"].names == ["cat", "dog"]
    assert sorted(table["label"]) == [0, 1]


def test_folders_without_classes_or_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere' does not exist"):
        load_image_folder(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no image files"):
        load_image_folder(tmp_path / "empty")
    write_image(tmp_path / "flat" / "1.png")
    with pytest.raises(ValueError, match=r"one subfolder per class, but 1 are in .*flat itself, e.g. .*1\.png"):
        load_image_folder(tmp_path / "flat")


@pytest.mark.parametrize("names", [("cat/indoor", "dog/outdoor"), ("cat/day", "cat/night", "dog/day", "dog/night")])
def test_the_class_is_the_outermost_folder(tmp_path, names):
    table = load_image_folder(write_folder(tmp_path, names))
    assert table.features["label"].names == ["cat", "dog"]
    paths = table.cast_column("image", Image(decode=False))["image"]
    for record, label in zip(paths, table["label"], strict=True):
        assert Path(record["path"]).relative_to(tmp_path).parts[0] == ["cat", "dog"][label]


def test_links_are_followed_once_and_what_is_passed_over_is_named(tmp_path):
    folder, notes = write_folder(tmp_path / "photos", ("cat", "__x", ".x")), []
    os.symlink(write_folder(tmp_path / "pool", ("eel",)) / "eel", folder / "eel")
    os.symlink("..", folder / "cat" / "up")
    os.symlink(folder / "cat", folder / "eel" / "back")
    os.symlink("nothing.png", folder / "cat" / "broken.png")
    os.symlink("itself.png", folder / "cat" / "itself.png")
    os.mkfifo(folder / "cat" / "pipe.png")
    (folder / "cat" / "x.jpg").mkdir()
    (folder / "empty").mkdir()
    for name in ("notes.txt", "no_ending", "more.zip", "b.TXT", ".c.png", "._d.png", ".DS_Store"):
        (folder / "cat" / name).write_text("")
    table = load_image_folder(folder, notes)
    assert table.features["label"].names == ["__x", "cat", "eel"]
    assert len(table) == 9
    assert sorted(notes) == sorted(
        [
            "4 files of other types were left out: without an ending 1, .txt 2, .zip 1.",
            "1 hidden folders were left out: .x.",
            "1 hidden files were left out: cat/.c.png.",
            "2 links lead to a folder that is listed already: cat/up, eel/back.",
            "2 links lead to nothing: cat/broken.png, cat/itself.png.",
            "1 are pipes or devices: cat/pipe.png.",
            "1 folders are named like files: cat/x.jpg.",
            "1 folders hold no image and are no class: empty.",
        ]
    )
    report = check_data(DataArguments(train_dir=str(folder)), show_progress=False)
    assert all(note in str(report) for note in notes)
    assert report.exit_code == 0


def test_images_of_all_endings_are_read(tmp_path):
    for index, ending in enumerate(("avif", "jfif", "jpe", "JPG", "tif", "gif", "webp", "bmp")):
        write_image(tmp_path / "cat" / f"{index}.{ending}")
    table = load_image_folder(tmp_path)
    assert len(table) == 8
    assert find_bad_images(table, "image") == []


@pytest.mark.parametrize("ending", ["jp2", "tga", "ppm"])
def test_an_image_of_a_format_that_is_not_decoded_is_named(tmp_path, ending):
    write_image(tmp_path / "cat" / f"0.{ending}")
    (bad,) = find_bad_images(load_image_folder(tmp_path), "image")
    assert bad.path.endswith(f"cat/0.{ending}")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("train/cat", "val/cat"), r"holds train/ and val/, .* `--train_dir .*/train --validation_dir .*/val`"),
        (("Training/cat", "test/dog", "test"), r"holds Training/ and test/"),
        (("train/cat", "valid/cat", "masks"), r"holds train/ and valid/"),
        (
            ("photos/cat", "photos/dog"),
            r"The classes would be photos, .* Did you mean .*/photos, which holds cat, dog",
        ),
        (("images", "masks"), r"The classes would be images, masks"),
        (("cat/\udcff",), r"The name 'cat/\\udcff' is no UTF-8"),
    ],
)
def test_folders_of_other_layouts_are_refused(tmp_path, names, message):
    with pytest.raises(ValueError, match=message):
        load_image_folder(write_folder(tmp_path, names))


@pytest.mark.parametrize("names", [("metadata",), ("train", "test", "val"), ("train", "plane"), ("cat/a",)])
def test_odd_names_of_classes_are_classes(tmp_path, names):
    table = load_image_folder(write_folder(tmp_path, names))
    assert table.features["label"].names == sorted(name.split("/")[0] for name in names)


METADATA = [f"{name}/{index}.png" for name in ("cat", "dog") for index in range(3)]


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_metadata_is_added_to_the_classes_of_the_folders(tmp_path, ending):
    write_folder(tmp_path)
    rows = [(name, f"a, {number}") for number, name in enumerate(reversed(METADATA))]
    if ending == "csv":
        text = "\ufefffile_name,caption\n" + "".join(f'{name},"{caption}"\n' for name, caption in rows)
    else:
        text = "".join(f'{{"file_name": "{name}", "caption": "{caption}"}}\n' for name, caption in rows)
    (tmp_path / f"metadata.{ending}").write_text(text)
    table = load_image_folder(tmp_path)
    assert table.column_names == ["image", "label", "caption"]
    assert table["label"] == [1, 1, 1, 0, 0, 0]
    assert table["caption"] == [f"a, {number}" for number in range(6)]


def test_metadata_may_name_classes_and_masks(tmp_path):
    for number in range(2):
        write_image(tmp_path / f"{number}.png")
        write_image(tmp_path / "masks" / f"{number}.png", mode="L", color=number)
    lines = ["file_name,mask_file_name,label", "0.png,masks/0.png,cat", "1.png,masks/1.png,dog"]
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    table = load_image_folder(tmp_path)
    assert table["label"] == ["cat", "dog"]
    assert [np.asarray(mask).max() for mask in table["mask"]] == [0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("caption\nx\n", "must have a column `file_name`, got caption"),
        ("", "cannot be read as a table"),
        ("file_name,a\n" + "".join(f"{name},1\n" for name in METADATA[:4]), r"none for dog/1\.png, dog/2\.png"),
        ("file_name,a\n" + "".join(f"{name},1\n" for name in [*METADATA, "cat/0.png"]), "got 7 lines for 6"),
        ("file_name,a\n../x.png,1\n", r"row 0: `file_name` must be the path of an image below .*got '\.\./x\.png'"),
        ("file_name,a\nhttp://127.0.0.1/x.png,1\n", "must be the path of an image below"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(tmp_path, text, message):
    write_folder(tmp_path)
    (tmp_path / "metadata.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_image_folder(tmp_path)


def test_evaluation_images_may_lack_a_class_but_not_have_another_one(tmp_path):
    train, evaluation = (
        write_folder(tmp_path / "a", ("cat", "dog", "eel")),
        write_folder(tmp_path / "b", ("cat", "eel")),
    )
    (evaluation / "dog").mkdir()
    tables = load_image_tables(DataArguments(train_dir=str(train), validation_dir=str(evaluation)), (16, 16))
    assert tables.class_names == ["cat", "dog", "eel"]
    assert set(tables.evaluation["label"]) == {0, 2}
    report = check_data(DataArguments(train_dir=str(train), validation_dir=str(evaluation)), show_progress=False)
    assert "1 classes without an image in evaluation (these are not scored): dog" in str(report)
    with pytest.raises(ValueError, match="Only in training: none; only in evaluation: dog"):
        load_image_tables(DataArguments(train_dir=str(evaluation), validation_dir=str(train)), (16, 16))


def test_copies_in_two_classes_or_splits_are_named(tmp_path):
    for place, color in (("a/cat/0", 1), ("a/dog/0", 1), ("a/dog/1", 2), ("b/cat/9", 3), ("b/dog/1", 2)):
        write_image(tmp_path / f"{place}.png", color)
    arguments = DataArguments(train_dir=str(tmp_path / "a"), validation_dir=str(tmp_path / "b"))
    report = check_data(arguments, show_progress=False)
    (note,) = report.notes
    assert "2 images occur in two classes, or in training and evaluation" in note
    assert (
        note.index("a/dog/0.png") < note.index("a/cat/0.png") < note.index("b/dog/1.png") < note.index("a/dog/1.png")
    )
    assert report.exit_code == 0


# --- unreadable images ---------------------------------------------------------------------------------------------


def test_every_bad_file_is_found_by_its_path(tmp_path):
    bad = write_bad_images(write_folder(tmp_path))
    found = find_bad_images(load_image_folder(tmp_path), "image")
    assert sorted(image.path for image in found) == sorted(map(str, bad))
    assert all(image.error for image in found)
    assert [image.row for image in found] == sorted(image.row for image in found)


def test_stop_lists_the_files(tmp_path):
    bad = write_bad_images(write_folder(tmp_path))
    with pytest.raises(ValueError, match="3 of 9 images cannot be read") as error:
        remove_bad_images(load_image_folder(tmp_path), "image")
    assert all(str(path) in str(error.value) for path in bad)
    assert "--on_bad_image skip" in str(error.value)


def test_skip_drops_the_files_and_says_so(tmp_path, caplog):
    bad = write_bad_images(write_folder(tmp_path))
    logger = logging.getLogger("datasets")
    logger.propagate = True
    with caplog.at_level(logging.WARNING):
        table = remove_bad_images(load_image_folder(tmp_path), "image", "skip")
    logger.propagate = False
    assert "Skipping 3 of 9 images" in caplog.text
    assert all(str(path) in caplog.text for path in bad)
    assert len(table) == 6
    assert find_bad_images(table, "image") == []


def test_nothing_left_is_an_error_also_under_skip(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.png").write_bytes(b"")
    with pytest.raises(ValueError, match="1 of 1 images cannot be read"):
        remove_bad_images(load_image_folder(tmp_path), "image", "skip")


def test_missing_images_and_bytes_are_found_in_tables():
    cells = [{"bytes": b"no image", "path": "a.png"}, {"bytes": None, "path": "/nowhere/b.png"}, None]
    table = Dataset.from_dict({"photo": cells}, features=Features({"photo": Image()}))
    found = find_bad_images(table, "photo")
    assert [(image.row, image.path) for image in found] == [(0, "a.png"), (1, "/nowhere/b.png"), (2, "row 2")]
    assert found[2] == BadImage(2, "row 2", "there is no image")


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "I;16", "CMYK", "1"])
def test_images_of_every_kind_are_good(tmp_path, mode):
    write_image(
        tmp_path / "cat" / ("1.tif" if mode == "CMYK" else "1.png"), mode=mode, color=0 if mode != "LA" else (0, 9)
    )
    assert find_bad_images(load_image_folder(tmp_path), "image") == []


def encode_classes(train: Dataset, evaluation: Dataset | None, column: str) -> tuple:
    """Return both tables with class numbers, and the names of the classes."""
    labels = Labels.from_column(column, train.features[column], lambda: count_cells(train[column]))
    train = labels.declare(train, column)
    if evaluation is not None:
        evaluation = labels.as_written_in(column, evaluation.features[column]).declare(evaluation, column)
    return train, evaluation, labels.names


# --- columns and classes -------------------------------------------------------------------------------------------


def test_missing_column_is_named_with_those_there_are():
    table = table_of([0, 1], ["a", "b"]).rename_column("image", "img")
    with pytest.raises(
        ValueError, match=r"`--image_column_name image` is not a column of the data, which has img, label"
    ):
        check_columns(table, image_column_name="image", label_column_name="label")
    with pytest.raises(ValueError, match="'label' does not hold images"):
        check_columns(table, image_column_name="label")
    check_columns(table, image_column_name="img", label_column_name="label")


def test_classes_that_differ_are_named():
    train, evaluation = table_of([0, 1], ["cat", "dog"]), table_of([0, 1], ["cat", "dgo"])
    with pytest.raises(ValueError, match=r"Only in training: dog; only in evaluation: dgo"):
        encode_classes(train, evaluation, "label")


def test_same_classes_in_another_order_are_renumbered():
    train, evaluation = table_of([0, 1], ["cat", "dog"]), table_of([0, 1, 1], ["dog", "cat"])
    _, evaluation, names = encode_classes(train, evaluation, "label")
    assert names == ["cat", "dog"]
    assert evaluation["label"] == [1, 0, 0]
    assert evaluation.features["label"].names == ["cat", "dog"]


def test_undeclared_names_and_numbers_become_classes():
    train, evaluation, names = encode_classes(table_of(["dog", "cat", "cow"]), table_of(["dog", "cat"]), "label")
    assert names == ["cat", "cow", "dog"]
    assert (train["label"], evaluation["label"]) == ([2, 0, 1], [2, 0])
    # numbers in their own order: 10 after 9
    train, _, names = encode_classes(table_of([10, 9, 2, 10]), None, "label")
    assert names == ["2", "9", "10"]
    assert train["label"] == [2, 1, 0, 2]
    with pytest.raises(ValueError, match=r"the class 'bird' is none of the 2 classes, expected one of cat, dog"):
        encode_classes(table_of(["dog", "cat"]), table_of(["bird", "cat"]), "label")


def test_labels_that_are_no_classes_are_refused():
    table = Dataset.from_dict({"label": [0.5, 1.0]})
    with pytest.raises(ValueError, match=r"must hold class names or numbers, one an image, got float64\. Write"):
        encode_classes(table, None, "label")


# --- tables of a run -----------------------------------------------------------------------------------------------


def test_unreachable_data_set_says_what_to_do():
    with pytest.raises(ValueError, match=r"'nobody/nothing' could not be loaded.*needs a network"):
        load_hub_images("nobody/nothing")


def test_a_folder_of_images_is_no_data_set_id(tmp_path):
    """`datasets` would take the innermost folders for the classes, and leave links out."""
    for part in ("train", "val"):
        write_folder(tmp_path / part, ("cat/day", "dog/day"))
    with pytest.raises(ValueError, match=r"holds images in folders, .* `--train_dir .*/train`"):
        load_hub_images(str(tmp_path))


def test_parquet_folder_is_loaded_with_its_columns(tmp_path):
    tables = DatasetDict({"train": table_of([0, 1, 1], ["a", "b"]), "test": table_of([1], ["a", "b"])})
    for split, table in tables.items():
        table.to_parquet(tmp_path / f"{split}-00000.parquet")
    train, evaluation = load_hub_images(str(tmp_path))
    assert (len(train), len(evaluation)) == (3, 1)
    assert train.features["label"].names == ["a", "b"]
    (tmp_path / "train-00000.parquet").unlink()
    with pytest.raises(ValueError, match="no split `train`"):
        load_hub_images(str(tmp_path))


def test_part_of_the_training_images_is_held_out(tmp_path):
    arguments = DataArguments(train_dir=str(write_folder(tmp_path, count=10)), train_val_split=0.25)
    tables = load_image_tables(arguments, (16, 16), seed=1)
    files = [table.cast_column("image", Image(decode=False))["image"] for table in (tables.train, tables.evaluation)]
    train, evaluation = ({record["path"] for record in column} for column in files)
    assert (len(train), len(evaluation)) == (15, 5)
    assert not train & evaluation
    assert tables.class_names == ["cat", "dog"]


def test_run_on_folders_reports_bad_files_by_policy(tmp_path):
    train, evaluation = write_folder(tmp_path / "train"), write_folder(tmp_path / "val")
    bad = write_bad_images(evaluation)
    arguments = {"train_dir": str(train), "validation_dir": str(evaluation)}
    with pytest.raises(ValueError, match="3 of 9 images cannot be read") as error:
        load_image_tables(DataArguments(**arguments), (16, 16))
    assert all(str(path) in str(error.value) for path in bad)
    tables = load_image_tables(DataArguments(**arguments, on_bad_image="skip"), (16, 16))
    assert (len(tables.train), len(tables.evaluation)) == (6, 6)


def test_limits_take_images_of_all_classes(tmp_path):
    arguments = DataArguments(
        train_dir=str(write_folder(tmp_path, ("a", "b", "c"), count=12)), max_train_samples=15, max_eval_samples=3
    )
    tables = load_image_tables(arguments, (16, 16))
    assert (len(tables.train), len(tables.evaluation)) == (15, 3)
    assert set(tables.train["label"]) == {0, 1, 2}


def test_scenes_are_drawn_in_the_size_of_the_input(tmp_path):
    arguments = DataArguments(dataset_name="scenes", max_train_samples=4, max_eval_samples=2)
    tables = load_image_tables(arguments, (24, 32), cache_dir=str(tmp_path))
    assert (len(tables.train), len(tables.evaluation)) == (4, 2)
    assert tables.train[0]["image"].size == (32, 24)
    assert tables.train[0]["mask"].size == (32, 24)
    assert len(tables.class_names) >= 10
