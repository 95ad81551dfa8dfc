# SPDX-License-Identifier: Apache-2.0
"""`transformers_ice.data.images.labels`: which cell stands for which class, and that bad ones end a run at once."""

from __future__ import annotations

import ast
import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from streaming_shards import png_of, write_parquet, write_tars

from transformers_ice.data.benchmarks.table_evaluation import TableEvaluation
from transformers_ice.data.images import labels as labels_module
from transformers_ice.data.images.cells import count_cells
from transformers_ice.data.images.labels import Labels
from transformers_ice.data.images.loading import build_data_sets, load_images
from transformers_ice.data.images.shards import find_shards, read_cells
from transformers_ice.ice_deit.image_processing_ice_deit import IceDeiTImageProcessor
from transformers_ice.training import DataArguments, ImageCollator, LabelledImages


DECLARED = ClassLabel(names=["ant", "bee"])


def write_labels(file: Path, labels: list, feature) -> str:
    """Write a Parquet file of images with these labels, which `datasets` does not look at."""
    cells = [{"bytes": png_of(number), "path": f"{number}.png"} for number in range(len(labels))]
    plain = Value("int64") if isinstance(feature, ClassLabel) else feature
    rows = Dataset.from_dict({"image": cells, "label": labels}, features=Features(image=Image(), label=plain))
    schema = Features(image=Image(), label=feature).arrow_schema
    pyarrow.parquet.write_table(rows.data.table.cast(schema), file)
    return str(file)


def load(train: str, evaluation: str, streaming: bool = False, **arguments):
    arguments = {"train_files": train, "validation_files": evaluation, "augmentation": "none"} | arguments
    return load_images(DataArguments(**arguments, streaming=streaming), (8, 8))


def write_names(folder: Path, text: str = "ant\nbee\n") -> str:
    (folder / "names.txt").write_text(text, encoding="utf-8")
    return str(folder / "names.txt")


# --- cells and their numbers ---------------------------------------------------------------------------------------

COLUMNS = {
    "declared": (DECLARED, [0, 1], None),
    "integers": (Value("int64"), [7, 3, 7], None),
    "bytes": (Value("uint8"), [7, 3, 7], None),
    "texts": (Value("string"), ["bee", "ant"], None),
    "booleans": (Value("bool"), [True], None),
    "counted integers": (Value("int32"), [1], "ant\nbee\n"),
    "counted booleans": (Value("bool"), [True], "ant\nbee\n"),
    "texts of a file": (Value("string"), ["bee"], "bee\nant\n"),
}


def labels_of(kind: str, folder: Path) -> Labels:
    feature, cells, text = COLUMNS[kind]
    return Labels.from_column("label", feature, lambda: count_cells(cells), text and write_names(folder, text))


@pytest.mark.parametrize(
    ("kind", "names", "numbers"),
    [
        ("declared", ["ant", "bee"], {0: 0, 1: 1}),
        ("integers", ["3", "7"], {3: 0, 7: 1}),
        ("bytes", ["3", "7"], {3: 0, 7: 1}),
        ("texts", ["ant", "bee"], {"ant": 0, "bee": 1}),
        ("booleans", ["False", "True"], {False: 0, True: 1}),
        ("counted integers", ["ant", "bee"], {0: 0, 1: 1}),
        ("counted booleans", ["ant", "bee"], {False: 0, True: 1}),
        ("texts of a file", ["bee", "ant"], {"bee": 0, "ant": 1}),
    ],
)
def test_cells_have_their_numbers(tmp_path, kind, names, numbers):
    labels = labels_of(kind, tmp_path)
    assert labels.names == names
    assert {cell: labels.encode(cell) for cell in numbers} == numbers
    assert all(type(labels.encode(cell)) is int for cell in numbers)
    if not isinstance(next(iter(numbers)), str):
        assert [labels.encode(np.asarray(cell)[()]) for cell in numbers] == list(numbers.values())


@pytest.mark.parametrize("cell", [None, float("nan"), 1.5, 1.0, -1, 2, 10**30, "", "cat", [0], {}, b"0"], ids=repr)
@pytest.mark.parametrize("kind", COLUMNS)
def test_other_cells_are_refused_with_what_was_expected(tmp_path, kind, cell):
    labels = labels_of(kind, tmp_path)
    with pytest.raises(ValueError, match=r"none of the 2 classes, expected (an integer from 0 to 1|one of \w+, \w+)"):
        labels.encode(cell)


@pytest.mark.parametrize("kind", ["declared", "integers", "counted integers", "texts"])
def test_a_boolean_is_no_integer_and_no_name(tmp_path, kind):
    with pytest.raises(ValueError, match="the class True is none of the 2 classes"):
        labels_of(kind, tmp_path).encode(True)


def test_an_integer_is_no_boolean(tmp_path):
    with pytest.raises(ValueError, match=r"the class 1 is none of the 2 classes, expected one of False, True"):
        labels_of("booleans", tmp_path).encode(1)


@pytest.mark.parametrize(
    "feature",
    [Value("float32"), Value("null"), List(Value("float32")), {"name": Value("string")}, Value("date32")],
    ids=str,
)
def test_columns_of_something_else_are_refused(feature):
    with pytest.raises(ValueError, match=r"'kind' must hold class names or numbers, one an image, got .*label_column"):
        Labels.from_column("kind", feature, dict)


def test_folders_are_sorted_classes():
    labels = Labels.from_folders(["dog", "cat", "dog"])
    assert (labels.names, labels.encode("dog")) == (["cat", "dog"], 1)
    with pytest.raises(ValueError, match="the class 'Dog' is none"):
        labels.encode("Dog")


@pytest.mark.parametrize("text", ["\ufeffant\r\nbee\r\n", "ant\nbee", "ant \nbee\n\n\n"], ids=repr)
def test_class_names_are_read_as_other_programs_write_them(tmp_path, text):
    assert Labels.names_in_file(write_names(tmp_path, text)) == ["ant", "bee"]


@pytest.mark.parametrize("text", ["", "\n\n", "ant\n\nbee\n", "ant\nant\n"], ids=repr)
def test_unusable_class_names_are_refused(tmp_path, text):
    with pytest.raises(ValueError, match="one name a line, each once and none empty"):
        Labels.names_in_file(write_names(tmp_path, text))


def test_declaring_changes_the_column_of_labels_alone():
    table = Dataset.from_dict({"id": [5, 6, 7], "label": ["b", "a", "b"]})
    labels = Labels.from_column("label", table.features["label"], lambda: count_cells(table["label"]))
    declared = labels.declare(table, "label")
    assert (declared["id"], declared["label"], declared.features["label"].names) == ([5, 6, 7], [1, 0, 1], ["a", "b"])
    assert Labels.from_names(labels.names).declare(declared, "label") is declared


# --- runs ----------------------------------------------------------------------------------------------------------

# what a column holds, its good cells, a bad one, and what the error says of it
BAD_LABELS = {
    "hidden": (DECLARED, [0, 1], -1, "the class -1 is none of the 2 classes, expected an integer from 0 to 1"),
    "too large": (DECLARED, [0, 1], 5, "the class 5 is none"),
    "none declared": (DECLARED, [0, 1], None, "the class None is none"),
    "none of integers": (
        Value("int64"),
        [3, 7],
        None,
        "the class None is none of the 2 classes, expected one of 3, 7",
    ),
    "negative": (Value("int64"), [3, 7], -1, "the class -1 is none"),
    "none of texts": (Value("string"), ["a", "b"], None, "the class None is none"),
    "empty text": (Value("string"), ["a", "b"], "", "the class '' is none of the 2 classes, expected one of a, b"),
    "blank text": (Value("string"), ["a", "b"], " ", "the class ' ' is none"),
    "none of booleans": (Value("bool"), [False, True], None, "the class None is none"),
}


@pytest.mark.parametrize("streaming", [False, True], ids=["table", "stream"])
@pytest.mark.parametrize("split", ["training", "evaluation"])
@pytest.mark.parametrize("case", BAD_LABELS)
def test_bad_labels_are_named_by_file_and_row_before_a_run(tmp_path, case, split, streaming):
    feature, good, bad, message = BAD_LABELS[case]
    files = {"training": good * 4, "evaluation": good * 2}
    files[split][-1] = bad
    paths = [write_labels(tmp_path / f"{name}.parquet", cells, feature) for name, cells in files.items()]
    with pytest.raises(
        ValueError, match=f"column 'label' of the {split} images holds cells that are no class"
    ) as error:
        load(*paths, streaming=streaming, check_images=False)
    assert f"row {len(files[split]) - 1} of {tmp_path / split}.parquet: {message}" in str(error.value)
    assert "Correct or remove these rows" in str(error.value)


@pytest.mark.parametrize("streaming", [False, True], ids=["table", "stream"])
@pytest.mark.parametrize("cell", [-1, 2, None])
def test_numbers_that_count_no_name_of_the_file_are_refused(tmp_path, cell, streaming):
    train = write_labels(tmp_path / "a.parquet", [0, 1, 1, cell], Value("int64"))
    with pytest.raises(ValueError, match=rf"row 3 of .*a\.parquet: the class {cell} is none of the 2 classes"):
        load(train, train, streaming, class_names_file=write_names(tmp_path))


def test_an_unknown_name_of_evaluation_is_refused(tmp_path):
    paths = [write_labels(tmp_path / f"{name}.parquet", ["a", name], Value("string")) for name in "bc"]
    with pytest.raises(ValueError, match=r"evaluation images .*\n.*row 1 of .*the class 'c' is none of the 2 classes"):
        load(*paths)


def test_equal_faults_are_one_line(tmp_path):
    train = write_labels(tmp_path / "a.parquet", [0, -1, 1, -1, -1, None], DECLARED)
    with pytest.raises(ValueError, match="no class") as error:
        load(train, train)
    lines = str(error.value).splitlines()
    assert len(lines) == 4
    assert "row 1 of" in lines[1]
    assert "(the first of 3 such rows)" in lines[1]
    assert "row 5 of" in lines[2]


def test_row_of_a_later_shard_is_named_by_its_own_file(tmp_path):
    write_labels(tmp_path / "a-0.parquet", [0, 1, 1], DECLARED)
    write_labels(tmp_path / "a-1.parquet", [0, 2], DECLARED)
    for streaming in (False, True):
        with pytest.raises(ValueError, match=r"row 1 of .*a-1\.parquet: the class 2 is none"):
            load(str(tmp_path / "a-*.parquet"), str(tmp_path / "a-0.parquet"), streaming)


def add_members(file: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(file, "a") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (b"-1", "row 6 of .*: the class -1 is none of the 3 classes"),
        (b"3", "row 6 of .*: the class 3 is none"),
        (b"bee", r"The label part\.1/x\.cls of .*train-00\.tar cannot be read: invalid literal"),
    ],
)
def test_bad_labels_of_a_webdataset_stream_are_named(tmp_path, label, message):
    good = write_tars(tmp_path, [6], name="val")
    train = write_tars(tmp_path, [6])
    add_members(tmp_path / "train-00.tar", {"part.1/x.png": png_of(6), "part.1/x.cls": label})
    names = write_names(tmp_path, "ant\nbee\ncat\n")
    with pytest.raises(ValueError, match=message):
        load(train, good, streaming=True, class_names_file=names)


def test_a_sample_without_a_label_is_named(tmp_path):
    good, train = write_tars(tmp_path, [6], name="val"), write_tars(tmp_path, [6])
    add_members(tmp_path / "train-00.tar", {"part.1/x.png": png_of(6)})
    with pytest.raises(ValueError, match=r"row 6 of .*train-00\.tar: the class None is none of the 3 classes"):
        load(train, good, streaming=True)


@pytest.mark.parametrize("streaming", [False, True], ids=["table", "stream"])
@pytest.mark.parametrize("feature", [Value("bool"), Value("uint8"), Value("int16"), Value("int32")], ids=str)
def test_booleans_and_small_integers_are_classes(tmp_path, feature, streaming):
    file = write_labels(tmp_path / "a.parquet", [True, False, True, False], feature)
    images = load(file, file, streaming)
    assert images.class_names == (["False", "True"] if feature.dtype == "bool" else ["0", "1"])
    processor = IceDeiTImageProcessor(size={"height": 8, "width": 8}, do_center_crop=False)
    arguments = DataArguments(dataset_name="scenes", augmentation="none", shuffle_buffer_size=1)
    train, evaluation = build_data_sets(images, arguments, processor)
    collate = ImageCollator.from_image_processor(processor)
    rows = list(train) if streaming else [train[index] for index in range(4)]
    for batch in (collate(rows), collate([evaluation[index] for index in range(4)])):
        assert (batch["labels"].dtype, batch["labels"].tolist()) == (torch.int64, [1, 0, 1, 0])


@pytest.mark.parametrize(
    ("labels", "dtype", "shape"),
    [([1, 0], torch.int64, (2,)), (np.array([1, 0], np.uint8), torch.int64, (2,)),
     ([True, False], torch.int64, (2,)), ([[0.5, 0.5], [1.0, 0.0]], torch.float32, (2, 2))],
)  # fmt: skip
def test_collator_takes_integers_of_any_width_and_soft_targets(labels, dtype, shape):
    pixels = torch.zeros(4, 4, 3, dtype=torch.uint8)
    batch = ImageCollator((0, 0, 0), (1, 1, 1))([{"pixel_values": pixels, "labels": label} for label in labels])
    assert (batch["labels"].dtype, tuple(batch["labels"].shape)) == (dtype, shape)
    assert torch.equal(batch["labels"], torch.as_tensor(np.asarray(labels)).to(dtype))


def test_data_sets_of_a_table_name_the_row_of_a_bad_label():
    features = Features(image=Image(), label=DECLARED)
    table = Dataset.from_dict({"image": [{"bytes": png_of(1), "path": None}] * 2, "label": [0, -1]}, features=features)
    processor = IceDeiTImageProcessor(size={"height": 8, "width": 8}, do_center_crop=False)
    with pytest.raises(ValueError, match=r"Row 1 of the data: the class -1 is none of the 2 classes"):
        LabelledImages(table, processor)[1]
    with pytest.raises(ValueError, match=r"row 1 of 'table': the class -1 is none of the 2 classes"):
        TableEvaluation(table)[1]


# --- columns of images ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True], ids=["table", "stream"])
@pytest.mark.parametrize("kind", ["struct", "bytes", "large bytes"])
def test_images_that_other_programs_wrote_are_read(tmp_path, kind, streaming):
    cells = [png_of(number) for number in range(4)]
    images = {
        "struct": [{"bytes": cell, "path": None} for cell in cells],
        "bytes": cells,
        "large bytes": pyarrow.array(cells, pyarrow.large_binary()),
    }[kind]
    file = str(tmp_path / "a.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"image": images, "label": ["a", "b"] * 2}), file)
    loaded = load(file, file, streaming)
    assert loaded.evaluation[3]["image"].getpixel((0, 0)) == (3, 0, 7)
    processor = IceDeiTImageProcessor(size={"height": 8, "width": 8}, do_center_crop=False)
    arguments = DataArguments(dataset_name="scenes", augmentation="none", shuffle_buffer_size=1)
    train, _ = build_data_sets(loaded, arguments, processor)
    rows = list(train) if streaming else [train[index] for index in range(4)]
    assert [(int(row["pixel_values"][0, 0, 0]), row["labels"]) for row in rows] == [(0, 0), (1, 1), (2, 0), (3, 1)]


@pytest.mark.parametrize("streaming", [False, True], ids=["table", "stream"])
def test_paths_of_images_are_refused_with_the_way_out(tmp_path, streaming):
    file = str(tmp_path / "a.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"image": ["a.png", "b.png"], "label": ["a", "b"]}), file)
    with pytest.raises(ValueError, match=r"'image' does not hold images, but .*string.*cast_column\('image'"):
        load(file, file, streaming)


# --- labels of shards ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_labels_of_shards_are_those_of_their_rows(tmp_path, kind):
    write = write_parquet if kind == "parquet" else write_tars
    files = find_shards(write(tmp_path, [4, 3, 2]))
    expected = {0: (0, 3), 1: (1, 3), 2: (2, 3)}
    for _ in range(2):  # read, then remembered
        assert read_cells(files, "label" if kind == "parquet" else "cls") == expected


def test_footers_of_remote_files_hold_the_extreme_labels(tmp_path):
    write_labels(tmp_path / "a.parquet", [0, 1, -1, None, 1, 0], DECLARED)
    write_labels(tmp_path / "b.parquet", [1, 7], DECLARED)
    remote = [f"file://{tmp_path}/{name}.parquet" for name in "ab"]
    cells = read_cells(remote, "label", extremes_suffice=True)
    assert set(cells) == {-1, 1, None, 7}
    assert cells[7] == (6, 1)


# --- layers --------------------------------------------------------------------------------------------------------


def test_modules_are_read_in_one_order_up_to_the_check():
    order = ["cells", "labels", "named_sets", "arguments", "pixels", "folders", "shards", "streams", "tables"]
    order += ["streamed_images", "loading", "check", "__init__"]
    folder = Path(labels_module.__file__).parent
    assert {path.stem for path in folder.glob("*.py")} == set(order)
    for name in order:
        nodes = ast.walk(ast.parse((folder / f"{name}.py").read_text()))
        used = [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 1]
        assert all(order.index(module) < order.index(name) for module in used), name
