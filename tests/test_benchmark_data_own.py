# SPDX-License-Identifier: Apache-2.0
"""Evaluation sets of one's own (folders, tables), what all sets share, and the sets by name."""

from __future__ import annotations

import logging
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image
from test_benchmark_data import (
    check_types,
    write_cub,
    write_devkit,
    write_image,
    write_lines,
    write_segmentation_file,
)
from test_benchmark_data_boxes import write_box_lists, write_coco
from test_photograph_sets import write_ecssd, write_imagenette, write_pets
from torch.utils.data import DataLoader

from transformers_ice.data import EVALUATION_SETS, SCENE_CLASSES, load_evaluation_set, load_scenes
from transformers_ice.data.benchmarks.annotated_folder import AnnotatedFolder
from transformers_ice.data.benchmarks.table_evaluation import TableEvaluation


# --- folders -------------------------------------------------------------------------------------------------------


def write_mask(path: Path, mode: str = "L", values: tuple[int, int, int] = (255, 1, 128)) -> Path:
    levels = np.zeros((8, 12), dtype=np.uint8)
    levels[0, 11], levels[7, 0], levels[3, 3] = values
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(levels)
    if mode == "P":
        image = Image.frombytes("P", image.size, image.tobytes())
        image.putpalette([255] * 3 + [0, 0, 0] * 255)
    image.convert(mode).save(path)
    return path


def test_masks_boxes_and_labels_of_a_folder_are_joined(tmp_path):
    for name in ("b.jpg", "a.png"):
        write_image(tmp_path / "images" / name)
        write_mask(tmp_path / "masks" / f"{name[0]}.png")
    write_lines(
        tmp_path / "boxes.csv", "image,xmin,ymin,xmax,ymax", "b.jpg,0,0,12,8", "a.png,1,2,3,4", "b.jpg,2,2,4,4.5"
    )
    write_lines(tmp_path / "labels.csv", "\ufefflabel,image", "ten, a.png", "", '"ni,ne", b.jpg')
    examples = AnnotatedFolder(tmp_path)
    assert (len(examples), examples.name, examples.provides) == (2, tmp_path.name, {"mask", "boxes", "label"})
    assert examples.class_names == ["ni,ne", "ten"]
    check_types(examples[0])
    assert [(item.image_id, item.label, item.boxes.tolist()) for item in examples] == [
        ("a.png", 1, [[1, 2, 3, 4]]),
        ("b.jpg", 0, [[0, 0, 12, 8], [2, 2, 4, 4.5]]),
    ]
    assert np.argwhere(examples[0].mask).tolist() == [[0, 11], [3, 3], [7, 0]]


MASKS = {
    "object in the alpha channel": (
        lambda levels: np.dstack([levels * 0 + 255] * 3 + [levels]),
        "alpha channel from 0",
    ),
    "object in the alpha of a grey image": (
        lambda levels: np.dstack([levels * 0 + 255, levels]),
        "alpha channel from 0",
    ),
    "object and border": (
        lambda levels: np.where(levels > 128, 255, (levels > 0) * 1).astype("uint8"),
        "holds 1 and 255",
    ),
    "classes and border": (
        lambda levels: np.where(levels > 128, 255, (levels > 0) * 20).astype("uint8"),
        "holds 20 and 255",
    ),
    "no numbers": (lambda levels: np.where(levels > 0, np.nan, 0).astype("float32"), "no numbers"),
    "endless": (lambda levels: np.where(levels > 0, np.inf, 0).astype("float32"), "no numbers"),
}


@pytest.mark.parametrize("kind", MASKS)
def test_masks_of_two_meanings_are_refused(tmp_path, kind):
    write_image(tmp_path / "images" / "a.jpg")
    write_mask(tmp_path / "masks" / "a.png", values=(255, 255, 100))
    levels = np.asarray(Image.open(tmp_path / "masks" / "a.png"))
    make, message = MASKS[kind]
    (tmp_path / "masks" / "a.png").unlink()
    Image.fromarray(make(levels)).save(tmp_path / "masks" / "a.tif")
    with pytest.raises(ValueError, match=rf"a\.tif.*{message}"):
        AnnotatedFolder(tmp_path)[0]
    if "border" in kind:
        mask = AnnotatedFolder(tmp_path, ignore_value=255)[0].mask
        assert (mask[0, 11], mask[3, 3], mask[0, 0]) == (-1, 1, 0)


@pytest.mark.parametrize("mode", ["L", "1"])
def test_a_mask_of_255_alone_is_an_object(tmp_path, mode):
    write_image(tmp_path / "images" / "a.jpg")
    write_mask(tmp_path / "masks" / "a.png", values=(255, 255, 255)).replace(tmp_path / "masks" / "b.png")
    Image.open(tmp_path / "masks" / "b.png").convert(mode).save(tmp_path / "masks" / "a.png")
    assert AnnotatedFolder(tmp_path)[0].mask.sum() == 3


def test_links_are_followed_once_and_left_overs_are_named(tmp_path, caplog):
    write_image(tmp_path / "images" / "c" / "a.png")
    write_image(tmp_path / "pool" / "b.jpg")
    os.symlink("..", tmp_path / "images" / "c" / "up")
    os.symlink(tmp_path / "pool", tmp_path / "images" / "d")
    (tmp_path / "images" / "c" / "notes.txt").write_text("")
    for name in "abz":
        write_mask(tmp_path / "masks" / f"{name}.png")
    logger = logging.getLogger("transformers_ice")
    logger.propagate = True
    with caplog.at_level(logging.WARNING):
        examples = AnnotatedFolder(tmp_path)
    assert [example.image_id for example in examples] == ["c/a.png", "d/b.jpg"]
    for message in ("listed already: c/up", "left out: .txt 1", "1 masks belong to no image: z.png"):
        assert message in caplog.text
    write_image(tmp_path / "masks" / "a.bmp")
    with pytest.raises(ValueError, match=r"holds two masks of one image: a\.bmp and a\.png"):
        AnnotatedFolder(tmp_path)


@pytest.mark.parametrize("name", ["boxes.csv", "labels.csv"])
def test_a_pipe_in_the_place_of_a_list_does_not_hang(tmp_path, name):
    write_image(tmp_path / "images" / "a.jpg")
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=rf"{name} is no file"):
        AnnotatedFolder(tmp_path)


@pytest.mark.parametrize("mode", ["L", "P", "LA", "RGB", "RGBA", "I;16"])
def test_masks_of_every_kind_mean_the_same(tmp_path, mode):
    write_image(tmp_path / "images" / "cat" / "a.jpg")
    write_mask(tmp_path / "masks" / "cat" / "a.png", mode)
    assert np.argwhere(AnnotatedFolder(tmp_path)[0].mask == 1).tolist() == [[0, 11], [3, 3], [7, 0]]
    if mode in ("RGB", "RGBA"):
        with pytest.raises(ValueError, match=r"masks/cat/a\.png has mode RGB.*needs a grey or palette image"):
            AnnotatedFolder(tmp_path, ignore_value=128)[0]
    else:
        mask = AnnotatedFolder(tmp_path, ignore_value=128)[0].mask
        assert (mask[3, 3], mask[0, 11], mask.min(), mask.sum()) == (-1, 1, -1, 1)


def test_classes_come_from_folders_or_from_boxes(tmp_path):
    for name in ("10/a.jpg", "9/b.jpg"):
        write_image(tmp_path / name)
    examples = AnnotatedFolder(tmp_path)
    assert (examples.provides, examples.class_names) == ({"label"}, ["9", "10"])
    assert [(item.image_id, item.label) for item in examples] == [("10/a.jpg", 1), ("9/b.jpg", 0)]
    header = "image,xmin,ymin,xmax,ymax,label"
    write_lines(tmp_path / "boxes.csv", header, "a.jpg,1,1,2,2,cat", "9/b.jpg,1,1,2,2,dog", "a.jpg,1,1,3,3,cat")
    assert AnnotatedFolder(tmp_path).class_names == ["cat", "dog"]
    assert AnnotatedFolder(tmp_path)[0].boxes.tolist() == [[1, 1, 2, 2], [1, 1, 3, 3]]
    write_lines(tmp_path / "boxes.csv", header, "a.jpg,1,1,2,2,cat", "9/b.jpg,1,1,2,2,dog", "a.jpg,1,1,3,3,dog")
    assert AnnotatedFolder(tmp_path).class_names == ["9", "10"]  # a.jpg shows two classes


def test_images_of_every_kind_come_out_upright_in_colour(tmp_path):
    turned = Image.new("RGB", (8, 12))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    (tmp_path / "images").mkdir()
    turned.save(tmp_path / "images" / "a.jpg", exif=exif)
    Image.new("CMYK", (12, 8)).save(tmp_path / "images" / "b.jpg")
    Image.new("P", (12, 8)).save(tmp_path / "images" / "c.gif")
    for name in "abc":
        write_mask(tmp_path / "masks" / f"{name}.png")
    assert {example.image.size for example in AnnotatedFolder(tmp_path)} == {(12, 8)}
    for example in AnnotatedFolder(tmp_path):
        check_types(example)


def folder_with(root: Path, *images: str) -> Path:
    for name in images:
        write_image(root / "images" / name)
    return root


def test_incomplete_folders_say_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere is missing: the folder of images.* holds nothing"):
        AnnotatedFolder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"holds no images\. Expected `images/`"):
        AnnotatedFolder(tmp_path)
    folder_with(tmp_path, "a.jpg", "b.jpg")
    with pytest.raises(ValueError, match=r"holds 2 images and no annotations of them\. Expected"):
        AnnotatedFolder(tmp_path)
    write_image(tmp_path / "masks" / "a.jpg")
    with pytest.raises(ValueError, match=r"masks are JPEG|are JPEG, which does not keep their values"):
        AnnotatedFolder(tmp_path)
    write_mask(tmp_path / "masks" / "a.png")
    with pytest.raises(ValueError, match=r"1 of 2 images have no mask in .*; for b\.jpg it would be b\.png"):
        AnnotatedFolder(tmp_path)
    write_image(tmp_path / "images" / "a.png")
    with pytest.raises(ValueError, match=r"a\.jpg and a\.png use the same mask"):
        AnnotatedFolder(tmp_path)


def test_images_in_and_out_of_folders_need_a_list_of_classes(tmp_path):
    folder_with(tmp_path, "a.jpg", "cat/b.jpg")
    with pytest.raises(ValueError, match=r"1 images are in folders .* but 1 are not, e\.g\. a\.jpg.*labels\.csv"):
        AnnotatedFolder(tmp_path)
    write_lines(tmp_path / "labels.csv", "image,label", "a.jpg,cat", "b.jpg,cat")
    assert AnnotatedFolder(tmp_path).class_names == ["cat"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["image;xmin;ymin;xmax;ymax", "a.jpg;1;1;2;2"], "must begin with a line `image,xmin,ymin,xmax,ymax`"),
        (["image,xmin,ymin,xmax,ymax", "a.jpg,1,1,2"], "line 2, must hold 5 fields"),
        (["image,xmin,ymin,xmax,ymax", "", "a.jpg,1,1,2,x"], "line 3, must hold 4 numbers"),
        (["image,xmin,ymin,xmax,ymax", "c.jpg,1,1,2,2"], "line 2, must name an image by its path .* got 'c.jpg'"),
        (["image,xmin,ymin,xmax,ymax", "a.jpg,2,1,1,2"], "line 2, holds a box that ends before it begins"),
        (["image,xmin,ymin,xmax,ymax,xmin", "a.jpg,1,1,2,2,1"], "must have each column once, got 'xmin' 2 times"),
        (["image,xmin,ymin,xmax,ymax,label", "a.jpg,1,1,2,2," + "x" * 140_000], "line 2, cannot be read as fields"),
        (["image,xmin,ymin,xmax,ymax", "a.jpg,1,1,2,2"], r"has no line for 1 of 2 images, e\.g\. b\.jpg"),
    ],
)
def test_wrong_lists_of_boxes_are_named(tmp_path, lines, message):
    folder_with(tmp_path, "a.jpg", "b.jpg")
    write_lines(tmp_path / "boxes.csv", *lines)
    with pytest.raises(ValueError, match=rf"boxes\.csv.*{message}"):
        AnnotatedFolder(tmp_path)


def test_wrong_lists_of_classes_and_boxes_outside_are_named(tmp_path):
    folder_with(tmp_path, "x/a.jpg", "y/a.jpg")
    write_lines(tmp_path / "labels.csv", "image,label", "a.jpg,cat")
    with pytest.raises(ValueError, match=r"labels\.csv, line 2, must name .* a file name that occurs once"):
        AnnotatedFolder(tmp_path)
    write_lines(tmp_path / "labels.csv", "image,label", "x/a.jpg,cat", "x/a.jpg,dog")
    with pytest.raises(ValueError, match=r"labels\.csv, line 3, must hold the one class of x/a\.jpg, got 'dog'"):
        AnnotatedFolder(tmp_path)
    (tmp_path / "labels.csv").unlink()
    write_lines(tmp_path / "boxes.csv", "image,xmin,ymin,xmax,ymax", "x/a.jpg,0,0,13,8", "y/a.jpg,0,0,12,8")
    examples = AnnotatedFolder(tmp_path)
    assert examples[1].boxes.tolist() == [[0, 0, 12, 8]]
    with pytest.raises(ValueError, match=r"boxes of 'x/a\.jpg' .* inside the image of 12 x 8 pixels"):
        examples[0]


# --- tables --------------------------------------------------------------------------------------------------------


def test_scenes_are_an_evaluation_set():
    table = load_scenes("validation", 3, (16, 24))
    examples = TableEvaluation(table, "scenes")
    assert (len(examples), examples.provides) == (3, {"label", "mask", "boxes"})
    assert examples.class_names == list(SCENE_CLASSES)
    for example, row in zip(examples, table, strict=True):
        check_types(example)
        np.testing.assert_array_equal(np.asarray(example.image), np.asarray(row["image"]))
        np.testing.assert_array_equal(example.mask, np.asarray(row["mask"]) // 255)
        assert (example.label, example.boxes.tolist()) == (row["label"], [row["box"]])
    assert TableEvaluation(table, "scenes").fingerprint == examples.fingerprint
    assert TableEvaluation(load_scenes("validation", 3, (16, 32))).fingerprint != examples.fingerprint
    assert pickle.loads(pickle.dumps(examples))[2].label == examples[2].label


def make_table(**columns: tuple[object, list]) -> Dataset:
    features = Features({"image": ImageFeature(), **{name: feature for name, (feature, _) in columns.items()}})
    values = {name: cells for name, (_, cells) in columns.items()}
    count = len(next(iter(values.values())))
    return Dataset.from_dict({"image": [Image.new("L", (3, 2))] * count, **values}, features=features)


def test_tables_may_hold_arrays_and_many_boxes():
    table = make_table(
        mask=(List(List(Value("int8"))), [[[1, 0, -1], [0, 0, 0]], [[2, 0, 0], [0, 0, 0]]]),
        boxes=(List(List(Value("float32"))), [[[0, 0, 1, 1], [1, 0, 3, 2]], []]),
        image_id=(Value("string"), ["first", "second"]),
        label=(ClassLabel(names=["a", "b"]), [1, None]),
        extra=(Value("string"), ["x", "y"]),
    )
    example = TableEvaluation(table)[0]
    check_types(example)
    assert (example.image_id, example.label, example.mask.tolist()) == ("first", 1, [[1, 0, -1], [0, 0, 0]])
    assert example.boxes.tolist() == [[0, 0, 1, 1], [1, 0, 3, 2]]
    with pytest.raises(ValueError, match="The label of row 1 of 'table' is missing"):
        TableEvaluation(table)[1]
    with pytest.raises(ValueError, match=r"In row 1 of 'table': a mask .* must hold 1, 0 and -1"):
        TableEvaluation(table.remove_columns("label"))[1]
    boxes = TableEvaluation(table.select_columns(["image", "boxes"]))
    assert (boxes.provides, boxes[1].boxes.shape, boxes[1].image_id) == ({"boxes"}, (0, 4), "1")


def test_tables_without_images_or_annotations_are_refused():
    table = make_table(label=(Value("int64"), [0]))
    with pytest.raises(ValueError, match="must have a column 'photo' of images"):
        TableEvaluation(table, image_column="photo")
    with pytest.raises(ValueError, match="must have a column 'label' of images"):
        TableEvaluation(table, image_column="label")
    with pytest.raises(
        ValueError, match="must have one of the columns label, mask, class_mask, box to evaluate against"
    ):
        TableEvaluation(table.remove_columns("label"))
    with pytest.raises(ValueError, match="has no column 'bbox' of boxes, only image, label"):
        TableEvaluation(table, boxes_column="bbox")
    cells = [{"bytes": b"no image", "path": "a.png"}]
    broken = Dataset.from_dict({"image": cells, "label": [0]}, features=table.features)
    with pytest.raises(ValueError, match=r"In row 0 of 'table': Cannot read the image 'a\.png'"):
        TableEvaluation(broken)[0]


# --- what all sets share -------------------------------------------------------------------------------------------


def test_parts_of_a_set_are_sets(tmp_path):
    folder_with(tmp_path, *(f"{name}/{index}.jpg" for name in "abcd" for index in range(3)))
    examples = AnnotatedFolder(tmp_path)
    assert [example.image_id for example in examples.head(2)] == ["a/0.jpg", "a/1.jpg"]
    assert [example.label for example in examples.spread(4)] == [0, 1, 2, 3]
    chosen = examples.select([5, -1]).select(np.array([1]))
    assert [example.image_id for example in chosen] == ["d/2.jpg"]
    assert (chosen.name, chosen.class_names, chosen.provides) == (examples.name, ["a", "b", "c", "d"], {"label"})
    assert (len(examples.head(99)), len(examples.spread(99))) == (12, 12)
    assert (examples[-1].image_id, examples[np.int64(0)].image_id) == ("d/2.jpg", "a/0.jpg")
    with pytest.raises(IndexError, match="has 12 examples, got index 12"):
        examples[12]
    with pytest.raises(IndexError, match="has 12 examples, got index -13"):
        examples.select([-13])
    with pytest.raises(ValueError, match="at least 1, got 0"):
        examples.head(0)
    loader = DataLoader(chosen, batch_size=2, collate_fn=list)
    assert [example.image_id for batch in loader for example in batch] == ["d/2.jpg"]


def test_fingerprints_tell_sets_apart(tmp_path):
    folder_with(tmp_path, "a/1.jpg", "b/2.jpg")
    examples = AnnotatedFolder(tmp_path)
    before = examples.fingerprint
    assert AnnotatedFolder(tmp_path).fingerprint == before
    assert len({before, examples.head(1).fingerprint, examples.select([1]).fingerprint}) == 3
    write_image(tmp_path / "images" / "a" / "1.jpg", (30, 30))
    assert AnnotatedFolder(tmp_path).fingerprint != before


def write_all(root: Path) -> dict[str, Path]:
    write_segmentation_file(root / "gtsegs_ijcv.mat")
    write_devkit(root)
    write_devkit(root, "2012")
    write_cub(root)
    write_box_lists(root / "imagenet")
    write_coco(root / "coco")
    folder_with(root / "own", "a/1.jpg", "b/2.jpg")
    write_pets(root / "pets")
    write_ecssd(root / "ecssd")
    write_imagenette(root / "imagenette")
    write_image(root / "imagewoof" / "beagle" / "a.JPEG")
    write_image(root / "imagewoof" / "dingo" / "b.JPEG")
    places = {"imagenet-boxes": root / "imagenet", "coco20k": root / "coco", "folder": root / "own"}
    places |= {name: root / name for name in ("ecssd", "imagenette", "imagewoof")} | {"oxford-pets": root / "pets"}
    return {name: places.get(name, root) for name in EVALUATION_SETS if name != "scenes"}


def test_making_a_set_opens_no_image(tmp_path, monkeypatch):
    places = write_all(tmp_path)
    opened = []
    original = Image.open
    monkeypatch.setattr(Image, "open", lambda *args, **options: opened.append(args) or original(*args, **options))
    for name, place in places.items():
        examples = load_evaluation_set(name, place, limit=2)
        fingerprint = examples.fingerprint
        assert not opened
        assert pickle.loads(pickle.dumps(examples)).fingerprint == fingerprint
        example = examples[1]
        check_types(example)
        given = {key for key in ("label", "mask", "segmentation", "boxes") if getattr(example, key) is not None}
        assert given == examples.provides
        opened.clear()


# --- sets by name --------------------------------------------------------------------------------------------------


def test_voc_is_chosen_by_task_year_and_need(tmp_path):
    write_devkit(tmp_path)
    write_devkit(tmp_path, "2012")
    assert load_evaluation_set("voc", tmp_path).name == "voc2012-segmentation"
    assert load_evaluation_set("voc", tmp_path, needs=["boxes"]).name == "voc2007-detection"
    assert (
        load_evaluation_set("voc", tmp_path, task="detection", year=2012, keep_hard=False).name == "voc2012-detection"
    )
    assert load_evaluation_set("voc2007-segmentation", tmp_path, "val").name == "voc2007-segmentation"
    assert len(load_evaluation_set("voc2012-detection", tmp_path, keep_hard=False)) == 2
    with pytest.raises(ValueError, match="`task` must be segmentation or detection, got 'faces'"):
        load_evaluation_set("voc", tmp_path, task="faces")


def test_names_options_and_needs_are_checked(tmp_path):
    with pytest.raises(ValueError, match=r"must be one of scenes, imagenet-segmentation, voc, .*folder, got 'cubs'"):
        load_evaluation_set("cubs")
    with pytest.raises(ValueError, match="got None"):
        load_evaluation_set()
    with pytest.raises(ValueError, match="'cub' has no option 'year', only segmentations"):
        load_evaluation_set("cub", tmp_path, year=2011)
    with pytest.raises(ValueError, match="'imagenet-segmentation' has no option 'x', only none"):
        load_evaluation_set("imagenet-segmentation", tmp_path, x=1)
    with pytest.raises(ValueError, match=r"'cub' needs `data_dir`: `CUB_200_2011`.*data\.caltech\.edu"):
        load_evaluation_set("cub")
    with pytest.raises(ValueError, match="'scenes' takes no `data_dir`"):
        load_evaluation_set("scenes", tmp_path)
    with pytest.raises(ValueError, match="'folder' takes no `split`, got 'val'"):
        load_evaluation_set(None, folder_with(tmp_path, "a/1.jpg"), "val")
    with pytest.raises(ValueError, match="does not provide mask, boxes, only label here"):
        load_evaluation_set(None, tmp_path, needs=("label", "mask", "boxes"))
    with pytest.raises(ValueError, match="`needs` must be among label, mask, segmentation, boxes, got 'masks'"):
        load_evaluation_set(None, tmp_path, needs="masks")
    with pytest.raises(ValueError, match="`limit` must be at least 1"):
        load_evaluation_set("scenes", limit=0)
    with pytest.raises(ValueError, match=r"localization\.txt is missing: the boxes"):
        load_evaluation_set("imagenet-boxes", tmp_path)


def test_scenes_draw_no_more_than_the_limit():
    examples = load_evaluation_set("scenes", limit=2, image_size=16, needs=["mask", "boxes", "label"])
    assert (len(examples), examples.name) == (2, "scenes")
    assert len(load_evaluation_set("scenes", split="validation", limit=3, image_size=16)) == 3


def test_sizes_unlike_the_published_ones_are_mentioned(tmp_path, caplog):
    write_cub(tmp_path)
    logger = logging.getLogger("transformers")
    logger.propagate = True
    with caplog.at_level(logging.WARNING):
        load_evaluation_set("cub", tmp_path)
    logger.propagate = False
    assert "cub has 2 images here, the published set 5794" in caplog.text


def test_library_that_reads_the_file_is_asked_for(tmp_path, monkeypatch):
    write_segmentation_file(tmp_path / "gtsegs_ijcv.mat")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"pip install transformers-ice\[eval\]"):
        load_evaluation_set("imagenet-segmentation", tmp_path)
