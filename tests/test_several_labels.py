# SPDX-License-Identifier: Apache-2.0
"""Several classes an image, or none: the same multi-hot targets from every source, and a run that learns them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, LargeList, List, Value
from streaming_shards import png_of, row_of, write_parquet
from transformers import AutoModelForImageClassification

from transformers_ice.data.augmentation import AugmentingCollator, BatchMixing, ImageCollator
from transformers_ice.data.augmentation.batch_augmentation import AUGMENTATION_SEED, mix_targets, smooth_labels
from transformers_ice.data.augmentation.repeated_augmentation import RepeatedAugmentationSampler
from transformers_ice.data.images.cells import count_cells
from transformers_ice.data.images.labels import Labels
from transformers_ice.data.images.loading import build_data_sets, load_images
from transformers_ice.ice_deit.image_processing_ice_deit import IceDeiTImageProcessor
from transformers_ice.training import DataArguments, LabelledImages, check_data
from transformers_ice.training.classifier_losses import distillation_loss


NAMES = ["ant", "bee", "cat"]
CELLS = [["cat", "ant"], [], ["bee"], ["ant", "cat", "ant"], ["cat"]]
TARGETS = [[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 0, 1], [0, 0, 1]]
NUMBERS = [[NAMES.index(name) for name in cell] for cell in CELLS]


def processor() -> IceDeiTImageProcessor:
    return IceDeiTImageProcessor(size={"height": 8, "width": 8}, do_center_crop=False)


# --- sources -------------------------------------------------------------------------------------------------------


def write_rows(folder: Path, cells: list, feature, name: str = "train") -> str:
    """Write a Parquet file of images with these cells."""
    images = [{"bytes": png_of(number), "path": f"{number}.png"} for number in range(len(cells))]
    table = Dataset.from_dict({"image": images, "label": cells}, features=Features(image=Image(), label=feature))
    table.to_parquet(folder / f"{name}.parquet")
    return str(folder / f"{name}.parquet")


def write_json_tars(folder: Path, cells: list, name: str = "train", **others) -> str:
    """Write a tar of images and `json` members with these cells under `label`."""
    with tarfile.open(folder / f"{name}.tar", "w") as archive:
        for number, cell in enumerate(cells):
            content = json.dumps({"id": number, "label": cell} | others).encode()
            for ending, data in (("png", png_of(number)), ("json", content)):
                member = tarfile.TarInfo(f"part.1/{number:04d}.{ending}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return str(folder / f"{name}.tar")


def write_folder(folder: Path, cells: list, separator: str | None = None) -> str:
    """Write images with a `metadata.jsonl`, or with a separator a `metadata.csv`."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{number}.png" for number in range(len(cells))]
    for number, name in enumerate(names):
        (folder / name).write_bytes(png_of(number))
    if separator is None:
        lines = [json.dumps({"file_name": name, "label": cell}) for name, cell in zip(names, cells, strict=True)]
    else:
        joined = (f"{separator} ".join(map(str, cell)) for cell in cells)
        lines = ["file_name,label", *(f'{name},"{text}"' for name, text in zip(names, joined, strict=True))]
    (folder / f"metadata.{'jsonl' if separator is None else 'csv'}").write_text("\n".join(lines) + "\n")
    return str(folder)


def parquet(feature, cells=CELLS, **arguments):
    return lambda folder: {"train_files": write_rows(folder, cells, feature), **arguments}


def names_file(folder: Path) -> str:
    (folder / "names.txt").write_text("ant\nbee\ncat\n")
    return str(folder / "names.txt")


SOURCES = {
    "folder, jsonl": lambda folder: {"train_dir": write_folder(folder / "images", CELLS)},
    "folder, csv": lambda folder: {"train_dir": write_folder(folder / "images", CELLS, "|"), "label_separator": "|"},
    "declared lists": parquet(List(ClassLabel(names=NAMES)), NUMBERS),
    "declared large lists": parquet(LargeList(ClassLabel(names=NAMES)), NUMBERS),
    "lists of texts": parquet(List(Value("string"))),
    "texts": parquet(Value("string"), [" ;".join(cell) for cell in CELLS], label_separator=";"),
    "lists of integers": lambda folder: {
        **parquet(List(Value("int32")), NUMBERS)(folder),
        "class_names_file": names_file(folder),
    },
    "texts of a file": lambda folder: {
        **parquet(List(Value("large_string")))(folder),
        "class_names_file": names_file(folder),
    },
    "json of a WebDataset": lambda folder: {"train_files": write_json_tars(folder, CELLS)},
    "json of a WebDataset, numbers": lambda folder: {
        "train_files": write_json_tars(folder, NUMBERS, boxes=[{"x": 1}]),
        "class_names_file": names_file(folder),
    },
}
STREAMED = [name for name in SOURCES if not name.startswith("folder")]


def load(arguments: dict, **others):
    kind = "train_dir" if "train_dir" in arguments else "train_files"
    same = {kind.replace("train", "validation"): arguments[kind]}
    data_args = DataArguments(**same | arguments | others, augmentation="none", shuffle_buffer_size=1)
    images = load_images(data_args, (8, 8))
    return images, *build_data_sets(images, data_args, processor())


@pytest.mark.parametrize(
    ("source", "streaming"), [*((name, False) for name in SOURCES), *((name, True) for name in STREAMED)]
)
def test_every_source_gives_the_same_multi_hot_targets(tmp_path, source, streaming):
    images, train, evaluation = load(SOURCES[source](tmp_path), streaming=streaming)
    assert (images.class_names, images.is_multi_label) == (NAMES, True)
    assert images.evaluation.features["label"] == List(ClassLabel(names=NAMES))
    assert images.evaluation["label"][:] == [sorted(set(cell)) for cell in NUMBERS]
    rows = list(train) if streaming else [train[index] for index in range(len(CELLS))]
    for examples in (rows, [evaluation[index] for index in range(len(CELLS))]):
        assert [row_of(row["pixel_values"]) for row in examples] == [0, 1, 2, 3, 4]
        batch = ImageCollator.from_image_processor(processor())(examples)
        assert (batch["labels"].dtype, batch["labels"].tolist()) == (torch.float32, TARGETS)


def test_numbers_of_a_csv_file_are_names_where_there_is_a_separator(tmp_path):
    folder = write_folder(tmp_path / "images", [[7], [], [3], [3]], "|")
    images, train, _ = load({"train_dir": folder, "label_separator": "|"})
    assert images.class_names == ["3", "7"]
    assert [train[row]["labels"].tolist() for row in range(4)] == [[0, 1], [0, 0], [1, 0], [1, 0]]


@pytest.mark.parametrize("streaming", [False, True], ids=["table", "stream"])
def test_rows_without_a_class_may_be_the_first_of_a_tar_or_all_of_evaluation(tmp_path, streaming):
    train = write_json_tars(tmp_path, [[]] * 6 + [["ant"]])
    arguments = {"train_files": train, "validation_files": write_json_tars(tmp_path, [[]] * 2, "val")}
    _, rows, evaluation = load(arguments, streaming=streaming)
    assert [row["labels"].tolist() for row in (rows if streaming else map(rows.__getitem__, range(7)))][5:] == [
        [0],
        [1],
    ]
    assert evaluation[1]["labels"].tolist() == [0]


def test_declared_classes_of_another_order_are_matched_by_name(tmp_path):
    train = write_rows(tmp_path, NUMBERS, List(ClassLabel(names=NAMES)))
    other = write_rows(tmp_path, [[0, 2], []], List(ClassLabel(names=["cat", "bee", "ant"])), "val")
    _, _, evaluation = load({"train_files": train, "validation_files": other})
    assert [evaluation[row]["labels"].tolist() for row in range(2)] == [[1, 0, 1], [0, 0, 0]]


def test_a_text_without_a_separator_is_one_class(tmp_path):
    images, train, _ = load(parquet(Value("string"), ["a|b", "a"])(tmp_path))
    assert (images.class_names, images.is_multi_label, train[0]["labels"]) == (["a", "a|b"], False, 1)


def test_the_only_column_of_declared_lists_is_found_after_single_classes():
    several, one = List(ClassLabel(names=NAMES)), ClassLabel(names=NAMES)
    assert Labels.find_column(Features(tags=several, x=Value("int64")), "label") == "tags"
    assert Labels.find_column(Features(tags=several, kind=one), "label") == "kind"


# --- cells ---------------------------------------------------------------------------------------------------------


def labels_of(feature=List(Value("string")), cells=CELLS, separator=None) -> Labels:  # noqa: B008
    return Labels.from_column("label", feature, lambda: count_cells(cells), separator=separator)


def test_cells_are_sorted_numbers_each_once():
    labels = labels_of()
    assert [labels.encode(cell) for cell in CELLS] == [[0, 2], [], [1], [0, 2], [2]]
    assert labels.classes_of(["cat", "ant"]) == [0, 2]
    assert labels.feature == List(ClassLabel(names=NAMES))
    names = dict(enumerate(NAMES))
    assert [labels.title(cell, names) for cell in ([0, 2], [], 1)] == ["ant, cat", "background", "bee"]


def test_lists_are_counted_as_tuples():
    assert count_cells([["a"], [], ["a"], None]) == {("a",): (0, 2), (): (1, 1), None: (3, 1)}


def test_texts_are_divided_and_stripped():
    labels = labels_of(Value("string"), ["a | b", "", "b|", " "], "|")
    assert (labels.names, labels.is_multi_label) == (["a", "b"], True)
    assert [labels.encode(cell) for cell in (" b|a ", "", "a||a", "b|")] == [[0, 1], [], [0], [1]]


@pytest.mark.parametrize("cell", [None, "cat", 1, {}], ids=repr)
def test_other_cells_than_lists_are_refused(cell):
    with pytest.raises(
        ValueError, match=r"a list of classes was expected, got .*; write \[\] where an image has none"
    ):
        labels_of().encode(cell)


@pytest.mark.parametrize("cell", [["dog"], [None], [""], [1], [["ant"]]], ids=repr)
def test_other_entries_than_classes_are_refused(cell):
    with pytest.raises(ValueError, match=r"is none of the 3 classes, expected one of ant, bee, cat"):
        labels_of().encode(cell)


@pytest.mark.parametrize(
    ("feature", "separator", "message"),
    [
        (List(Value("bool")), None, "got lists of booleans, as one for each class. Write the names or the numbers"),
        (List(List(Value("int64"))), None, "must hold class names or numbers"),
        (List(Value("float32")), None, "must hold class names or numbers"),
        (List(Value("null")), None, "names no class in any row"),
        (Value("int64"), "|", r"`--label_separator \|` divides texts, but the column 'label' holds Value\('int64'\)"),
        (ClassLabel(names=NAMES), "|", "holds class numbers, one class an image"),
    ],
)
def test_columns_of_something_else_are_refused(feature, separator, message):
    with pytest.raises(ValueError, match=message):
        labels_of(feature, [[], None], separator)


BAD_CELLS = {
    "null": (List(Value("string")), None, "a list of classes was expected, got None"),
    "null in a list": (List(Value("string")), ["ant", None], "the class None is none of the 3 classes"),
    "too large": (List(ClassLabel(names=NAMES)), [0, 3], "the class 3 is none of the 3 classes"),
    "negative": (List(Value("int64")), [-1], "the class -1 is none"),
}


@pytest.mark.parametrize("streaming", [False, True], ids=["table", "stream"])
@pytest.mark.parametrize("case", BAD_CELLS)
def test_bad_cells_are_named_by_file_and_row_before_a_run(tmp_path, case, streaming):
    feature, bad, message = BAD_CELLS[case]
    cells = CELLS if feature == List(Value("string")) else NUMBERS
    plain = List(Value("int64")) if isinstance(feature.feature, ClassLabel) else feature
    file = write_rows(tmp_path, [*cells, bad], plain)
    if plain != feature:  # `datasets` itself would refuse the row
        Dataset.from_parquet(file)
        table = Dataset.from_parquet(file).data.table.cast(Features(image=Image(), label=feature).arrow_schema)
        import pyarrow.parquet

        pyarrow.parquet.write_table(table, file)
    with pytest.raises(
        ValueError, match="column 'label' of the training images holds cells that are no class"
    ) as error:
        load({"train_files": file}, streaming=streaming)
    assert f"row 5 of {file}: {message}" in str(error.value)


@pytest.mark.parametrize("streaming", [False, True], ids=["table", "stream"])
def test_bad_json_members_are_named(tmp_path, streaming):
    with pytest.raises(ValueError, match=r"row 5 of .*train.tar: a list of classes was expected, got None"):
        load({"train_files": write_json_tars(tmp_path, [*CELLS, None])}, streaming=streaming)
    with pytest.raises(ValueError, match="must hold 'label' in one type, lists of texts or lists of integers"):
        load({"train_files": write_json_tars(tmp_path, [*CELLS, [1]])}, streaming=streaming)
    with pytest.raises(ValueError, match=r"names or numbers of classes were expected under 'label', got .*{'a': 1}"):
        load({"train_files": write_json_tars(tmp_path, [*CELLS, [{"a": 1}]])}, streaming=streaming)
    with pytest.raises(ValueError, match="`--label_column_name kinds` is not a column of the data"):
        load({"train_files": write_json_tars(tmp_path, CELLS)}, streaming=streaming, label_column_name="kinds")


def test_training_and_evaluation_have_several_classes_or_neither(tmp_path):
    several, one = write_rows(tmp_path, CELLS, List(Value("string"))), write_parquet(tmp_path, [3], name="one")
    message = "The {} images have several classes an image .* the {} images one in the column 'label'"
    with pytest.raises(ValueError, match=message.format("training", "evaluation")):
        load({"train_files": several, "validation_files": one})
    with pytest.raises(ValueError, match=message.format("evaluation", "training")):
        load({"train_files": one, "validation_files": several})


def test_a_table_of_undeclared_lists_is_no_data_set_of_images():
    table = Dataset.from_dict({"image": [{"bytes": png_of(1), "path": None}], "label": [[1]]}).cast_column(
        "image", Image()
    )
    with pytest.raises(ValueError, match="must declare the names of the classes"):
        LabelledImages(table, processor())


def test_an_empty_separator_is_refused():
    with pytest.raises(ValueError, match="`--label_separator` must be a text"):
        DataArguments(dataset_name="scenes", label_separator="")


@pytest.mark.parametrize("source", ["folder, jsonl", "lists of texts", "json of a WebDataset"])
def test_check_counts_classes_images_and_those_without_a_class(tmp_path, source):
    arguments = SOURCES[source](tmp_path)
    kind = "train_dir" if "train_dir" in arguments else "train_files"
    others = {kind.replace("train", "validation"): arguments[kind]}
    report = check_data(DataArguments(**arguments, **others), (8, 8), show_progress=False)
    assert dict(report.counts["train"]) == {0: 2, 1: 1, 2: 3}
    assert (report.num_images["train"], report.num_without["train"], report.exit_code) == (5, 1, 0)
    assert [line.split() for line in str(report).splitlines()[4:7]] == [
        ["3", "classes", "6", "6"], ["images", "5", "5"], ["without", "a", "class", "1", "1"],
    ]  # fmt: skip
    # the same images in both parts, with the same classes
    assert "5 images occur in two classes, or in training and evaluation" in str(report)


# --- targets -------------------------------------------------------------------------------------------------------


def features_of(targets) -> list[dict]:
    pixels = torch.arange(len(targets), dtype=torch.uint8).mul(50)
    return [
        {"pixel_values": torch.full((4, 4, 3), int(value)), "labels": torch.tensor(target, dtype=torch.float32),
         AUGMENTATION_SEED: f"0/0/{row}"}
        for row, (value, target) in enumerate(zip(pixels, targets, strict=True))
    ]  # fmt: skip


def test_smoothing_takes_half_of_it_from_each_answer():
    smooth = smooth_labels(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), 2, 0.1)
    assert torch.allclose(smooth, torch.tensor([[0.95, 0.05], [0.05, 0.05]]))


def test_mixing_takes_the_mean_of_multi_hot_rows():
    mixed = mix_targets(torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]), 0.75)
    assert mixed.tolist() == [[0.75, 0.0, 0.75], [0.25, 0.0, 0.25]]


@pytest.mark.parametrize("alphas", [(0.8, 0.0), (0.0, 1.0)], ids=["mixup", "cutmix"])
def test_collator_mixes_targets_as_it_mixes_pixels(alphas):
    collator = AugmentingCollator(ImageCollator((0, 0, 0), (1, 1, 1), 1.0), 2, mixing=BatchMixing(*alphas))
    batch = collator(features_of([[1, 1], [0, 0]]))
    # the first image is 0 everywhere, the second 50: its part of an image is the mean of the pixels
    part = batch["pixel_values"].mean(dim=(1, 2, 3)) / 50
    assert torch.allclose(batch["labels"], (1 - part)[:, None].expand(2, 2), atol=1e-6)
    assert batch["labels"].dtype == torch.float32


def test_collator_smooths_multi_hot_rows_and_leaves_them_without_smoothing():
    plain = ImageCollator((0, 0, 0), (1, 1, 1))
    batch = AugmentingCollator(plain, 2, label_smoothing=0.2)(features_of([[1, 0], [0, 0]]))
    assert torch.allclose(batch["labels"], torch.tensor([[0.9, 0.1], [0.1, 0.1]]))
    assert AugmentingCollator(plain, 2)(features_of([[1, 0], [0, 0]]))["labels"].tolist() == [[1, 0], [0, 0]]


def test_repeats_of_an_image_have_its_classes(tmp_path):
    _, train, _ = load(SOURCES["lists of texts"](tmp_path))
    order = list(RepeatedAugmentationSampler(train, 2))
    assert [train[index]["labels"].tolist() for index in order] == [TARGETS[index % len(CELLS)] for index in order]


def test_distillation_compares_each_class_alone():
    student, teacher = torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0, -3.0]])
    hard = distillation_loss(student, teacher, "hard", is_multi_label=True)
    # -log(sigmoid(0)) with target 1 (sigmoid 0.5 counts), -log(1 - sigmoid(2)) with target 0: softplus(2)
    assert hard.item() == pytest.approx((0.693147 + 2.126928) / 2, abs=1e-5)
    soft = distillation_loss(student, teacher, "soft", tau=2.0, is_multi_label=True)
    # at logits / 2: target 0.5 and logit 0 give 0.693147; target sigmoid(-1.5) = 0.182426 and logit 1 give
    # softplus(1) - 0.182426 * 1 = 1.130836; mean times 4
    assert soft.item() == pytest.approx(4 * (0.693147 + 1.130836) / 2, abs=1e-4)


# --- sets with annotations of objects ------------------------------------------------------------------------------


def write_voc(folder: Path) -> Path:
    """Write three images: a cat and a difficult dog, two persons, and no object."""
    root = folder / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    objects = {"a": [("cat", 0), ("dog", 1)], "b": [("person", 0), ("person", 0), ("bird", 0)], "c": []}
    for name, found in objects.items():
        (root / "JPEGImages" / f"{name}.jpg").write_bytes(png_of(1))
        box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>4</ymax></bndbox>"
        text = "".join(
            f"<object><name>{kind}</name><difficult>{hard}</difficult>{box}</object>" for kind, hard in found
        )
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{text}</annotation>")
    (root / "ImageSets/Main/train.txt").write_text("a\nb\n")
    (root / "ImageSets/Main/val.txt").write_text("c\na\n")
    return root


def write_coco(folder: Path) -> None:
    """Write two training images, a crowd of persons and a dog, and nothing, and one of evaluation, a dog."""
    categories = [{"id": 18, "name": "dog", "supercategory": "animal"}, {"id": 1, "name": "person"}]
    content = {
        "train": (["x.jpg", "y.jpg"], [(0, 18, 0), (0, 1, 1), (0, 18, 0)]),
        "val": (["z.jpg"], [(0, 18, 0)]),
    }
    (folder / "annotations").mkdir(parents=True)
    for split, (names, objects) in content.items():
        (folder / f"{split}2017").mkdir()
        for name in names:
            (folder / f"{split}2017" / name).write_bytes(png_of(1))
        values = {
            "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
            "annotations": [
                {"image_id": image, "category_id": kind, "iscrowd": crowd, "bbox": [0, 0, 2, 2], "segmentation": []}
                for image, kind, crowd in objects
            ],
            "categories": categories,
        }
        (folder / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(values))


def test_classes_of_pascal_voc_are_those_of_objects_that_are_not_difficult(tmp_path):
    root = write_voc(tmp_path)
    for data_dir in (tmp_path, root):
        images = load_images(DataArguments(dataset_name="pascal-voc", data_dir=str(data_dir)), (8, 8))
        assert images.is_multi_label
        assert len(images.class_names) == 20
        names = [[images.class_names[number] for number in cell] for cell in images.train["label"]]
        assert names == [["cat"], ["bird", "person"]]
        assert [*images.evaluation["label"]] == [[], [7]]
    with pytest.raises(ValueError, match="VOC2007"):
        load_images(
            DataArguments(dataset_name="pascal-voc", data_dir=str(tmp_path), dataset_config_name="2007"), (8, 8)
        )
    (root / "Annotations/a.xml").write_text((root / "Annotations/a.xml").read_text().replace("cat", "cow2"))
    with pytest.raises(ValueError, match=r"a\.xml: 'cow2' must be one of the classes aeroplane"):
        load_images(DataArguments(dataset_name="pascal-voc", data_dir=str(tmp_path)), (8, 8))


def test_classes_of_coco_are_in_the_order_of_their_ids(tmp_path):
    write_coco(tmp_path)
    arguments = DataArguments(dataset_name="coco", data_dir=str(tmp_path))
    images = load_images(arguments, (8, 8))
    assert (images.class_names, [*images.train["label"]]) == (["person", "dog"], [[0, 1], []])
    assert [*images.evaluation["label"]] == [[1]]
    file = tmp_path / "annotations" / "instances_train2017.json"
    file.write_text(file.read_text().replace('"category_id": 1,', '"category_id": 5,'))
    with pytest.raises(ValueError, match="an object of image 0, must have the id of a category, got 5"):
        load_images(arguments, (8, 8))
    file.unlink()
    with pytest.raises(ValueError, match=r"instances_train2017\.json is missing"):
        load_images(arguments, (8, 8))


@pytest.mark.parametrize("name", ["pascal-voc", "coco"])
def test_sets_without_a_folder_are_refused(name):
    with pytest.raises(ValueError, match=f"`--dataset_name {name}` needs `--data_dir`"):
        DataArguments(dataset_name=name)


# --- runs ----------------------------------------------------------------------------------------------------------

TINY = "hidden_size=32,num_hidden_layers=2,num_attention_heads=2,intermediate_size=32,image_size=32,patch_size=8"
STEPS = ["--max_steps", "2", "--per_device_train_batch_size", "4", "--logging_steps", "1", "--use_cpu"]
STEPS += ["--disable_tqdm", "true", "--num_panel_images", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return write_folder(tmp_path_factory.mktemp("images"), CELLS * 4)


def train(words: list[str]) -> dict[str, float]:
    from transformers_ice.cli import train as script
    from transformers_ice.training import parse_arguments

    return script.train(words, *parse_arguments(words))


@pytest.fixture(scope="module")
def classifier(folder, tmp_path_factory) -> Path:
    """A plain DeiT that the command trained for two steps on lists of classes."""
    output = tmp_path_factory.mktemp("deit")
    words = ["--model_type", "deit", "--config_overrides", TINY, "--output_dir", str(output), "--train_dir", folder]
    train([*words, "--validation_dir", folder, *STEPS, "--load_best_model_at_end", "true"])
    return output


def test_a_plain_classifier_learns_several_classes(classifier):
    model = AutoModelForImageClassification.from_pretrained(classifier)
    assert type(model).__name__ == "DeiTForImageClassification"
    assert model.config.problem_type == "multi_label_classification"
    assert list(model.config.id2label.values()) == NAMES
    numbers = json.loads((classifier / "all_results.json").read_text())
    assert 0 <= numbers["eval_map"] <= 1
    state = json.loads((classifier / "trainer_state.json").read_text())
    assert state["best_metric"] == pytest.approx(numbers["eval_map"])
    # two answers with random weights: about log(2) a class, not log(3)
    assert abs(numbers["eval_loss"] - 0.693) < 0.15
    pixels, labels = torch.randn(2, 3, 32, 32), torch.tensor([[1.0, 0, 1], [0, 0, 0]])
    outputs = model(pixels, labels=labels)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(outputs.logits, labels)
    assert torch.allclose(outputs.loss, expected)
    assert "a list of classes each" in (classifier / "README.md").read_text()


@pytest.mark.parametrize("options", [
    ["--augmentation", "deit", "--gradient_accumulation_steps", "2", "--ema_decay", "0.9"],
    ["--repeated_augmentation", "2", "--loss_type", "bce"],
], ids=["deit, ema", "repeated"])  # fmt: skip
def test_recipes_run_with_several_classes(folder, tmp_path, options):
    words = ["--model_type", "deit", "--config_overrides", TINY, "--output_dir", str(tmp_path), "--train_dir", folder]
    numbers = train([*words, *STEPS, *options])
    # with several batches a step the loss is their mean, not their sum
    assert abs(numbers["train_loss"] - 0.693) < 0.2


def test_a_resumed_run_is_the_uninterrupted_one(folder, tmp_path):
    words = ["--model_type", "deit", "--config_overrides", TINY, "--train_dir", folder, *STEPS]
    words += ["--output_dir", str(tmp_path), "--save_strategy", "steps", "--save_steps", "1"]
    whole = train(words)
    again = train([*words, "--resume_from_checkpoint", str(tmp_path / "checkpoint-1")])
    assert again["eval_loss"] == whole["eval_loss"]


def test_an_ice_model_learns_several_classes_and_a_teacher(folder, classifier, tmp_path):
    words = ["--model_name_or_path", str(classifier), "--output_dir", str(tmp_path), "--train_dir", folder]
    words += ["--validation_dir", folder, "--teacher_model_name_or_path", str(classifier)]
    numbers = train([*words, "--distillation_type", "soft", *STEPS])
    assert {"eval_map", "eval_cls_map", "eval_f1", "eval_foreground_ratio"} <= numbers.keys()
    model = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(model).__name__ == "IceDeiTForImageClassification"
    assert model.config.problem_type == "multi_label_classification"
    history = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    assert [line["step"] for line in history if "distillation_loss" in line] == [1, 2]
    assert (tmp_path / "panels" / "final.png").is_file()


def test_the_problem_type_follows_the_data(classifier):
    from transformers_ice.training import ModelArguments, build_config, build_model, models

    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models.logger, "warning", said.append)
        arguments = ModelArguments(str(classifier))
        one = build_model(arguments, build_config(arguments), NAMES)
        assert one.config.problem_type == "single_label_classification"
        several = build_model(arguments, build_config(arguments), NAMES, is_multi_label=True)
        assert several.config.problem_type == "multi_label_classification"
    assert len(said) == 1
    assert "The data have one class an image, so `problem_type` becomes 'single_label_classification'" in said[0]


def test_a_loss_of_one_class_is_refused(folder, tmp_path):
    words = ["--model_type", "deit", "--config_overrides", TINY, "--output_dir", str(tmp_path), "--train_dir", folder]
    with pytest.raises(ValueError, match="`--loss_type cross_entropy` takes one class an image"):
        train([*words, *STEPS, "--loss_type", "cross_entropy"])
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_teacher_of_one_class_an_image_is_refused(folder, hub_folder, tmp_path):
    names = ["disc", "square", "star"]
    images = write_folder(tmp_path / "images", [names, [], names[:1]] * 2)
    words = ["--model_type", "deit", "--config_overrides", TINY, "--output_dir", str(tmp_path), "--train_dir", images]
    words += ["--teacher_model_name_or_path", str(hub_folder("vit", "new")), "--distillation_type", "hard"]
    with pytest.raises(ValueError, match="must be trained on several classes an image, as the data have"):
        train([*words, *STEPS])


def test_the_best_model_of_one_class_is_still_chosen_by_top_1():
    from transformers_ice.training import IceTrainingArguments, ModelArguments
    from transformers_ice.training.run import _follow_labels

    arguments, model_args = IceTrainingArguments("out", use_cpu=True), ModelArguments(model_type="deit")
    assert _follow_labels(SimpleNamespace(is_multi_label=False), model_args, arguments) is arguments
    followed = _follow_labels(SimpleNamespace(is_multi_label=True), model_args, arguments)
    assert (arguments.metric_for_best_model, followed.metric_for_best_model) == ("top_1", "map")
    arguments.metric_for_best_model = "mean_iou"
    followed = _follow_labels(SimpleNamespace(is_multi_label=True), model_args, arguments)
    assert followed.metric_for_best_model == "mean_iou"
