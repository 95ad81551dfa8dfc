# SPDX-License-Identifier: Apache-2.0
"""Readers of lists of boxes (wsolevaluation, TS-CAM, COCO), on tiny files of exactly their formats."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_benchmark_data import check_types, write_image, write_lines

from transformers_ice.data.benchmarks.coco import Coco20k
from transformers_ice.data.benchmarks.imagenet_boxes import ImageNetBoxes


# --- lists of boxes ------------------------------------------------------------------------------------------------


def write_box_lists(root: Path, nested: bool = False) -> tuple[Path, Path, Path]:
    for index, synset in ((2, "n01"), (1, "n02")):
        write_image(root / "val" / (synset if nested else "") / f"ILSVRC2012_val_0000000{index}.JPEG")
    boxes = write_lines(
        root / "localization.txt",
        "val/ILSVRC2012_val_00000002.JPEG,1,2,11,7",
        "val/ILSVRC2012_val_00000001.JPEG,0,0,12,8",
        "val/ILSVRC2012_val_00000002.JPEG,3,3,5,4",
    )
    names = ("val/ILSVRC2012_val_00000001.JPEG", "val/ILSVRC2012_val_00000002.JPEG")
    labels = write_lines(root / "class_labels.txt", f"{names[0]},65", f"{names[1]},970", "val/other.JPEG,3")
    return boxes, labels, write_lines(root / "image_sizes.txt", *(f"{name},12,8" for name in names))


@pytest.mark.parametrize("nested", [True, False])
def test_boxes_of_an_image_are_collected(tmp_path, nested):
    boxes, labels, sizes = write_box_lists(tmp_path, nested)
    examples = ImageNetBoxes(tmp_path / "val", boxes, labels, sizes)
    assert (len(examples), examples.provides) == (2, {"boxes", "label"})
    check_types(examples[0])
    assert [(item.image_id[-6:], item.label, item.boxes.tolist()) for item in examples] == [
        ("2.JPEG", 970, [[1, 2, 11, 7], [3, 3, 5, 4]]),
        ("1.JPEG", 65, [[0, 0, 12, 8]]),
    ]
    plain = ImageNetBoxes(tmp_path / "val", boxes)
    assert (plain.provides, plain[0].label) == ({"boxes"}, None)


def test_lines_with_spaces_bring_their_labels(tmp_path):
    write_box_lists(tmp_path, nested=True)
    path = write_lines(
        tmp_path / "val_folder_new.txt",
        "n01/ILSVRC2012_val_00000002.JPEG 970 1 2 11 7 3 3 5 4",
        "n02/ILSVRC2012_val_00000001.JPEG 65 0 0 12 8",
    )
    examples = ImageNetBoxes(tmp_path / "val", path)
    assert [(item.label, item.boxes.tolist()) for item in examples] == [
        (970, [[1, 2, 11, 7], [3, 3, 5, 4]]),
        (65, [[0, 0, 12, 8]]),
    ]


def test_resized_copies_of_images_are_refused(tmp_path):
    boxes, labels, sizes = write_box_lists(tmp_path)
    examples = ImageNetBoxes(tmp_path / "val", boxes, labels, sizes)
    write_image(tmp_path / "val" / "ILSVRC2012_val_00000002.JPEG", (6, 4))
    with pytest.raises(ValueError, match=r"00000002\.JPEG must have its original size, \(12, 8\).*got \(6, 4\)"):
        examples[0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.JPEG,1,2,3", r"line 1, must hold 4 numbers here"),
        ("a.JPEG,1,2,3,nan", r"line 1, must hold 4 numbers here"),
        ("a.JPEG,5,2,3,4", r"ends before it begins"),
        ("a.JPEG", r"line 1, must hold a class index after the path, got ''"),
        ("a.JPEG 7 1 2 3 4 5", r"line 1, must hold 4 numbers here"),
        ("a.JPEG 7 1 2 3 4\nb.JPEG,1,2,3,4", "mixes lines with commas and lines with spaces"),
        ("a.JPEG 7 1 2 3 4\na.JPEG 7 1 2 3 4", r"line 2, names a\.JPEG for the second time"),
        ("", "is empty"),
    ],
)
def test_wrong_lines_of_boxes_are_named(tmp_path, line, message):
    write_box_lists(tmp_path)
    with pytest.raises(ValueError, match=rf"localization\.txt.*{message}"):
        ImageNetBoxes(tmp_path / "val", write_lines(tmp_path / "localization.txt", line))


def test_images_without_file_or_line_are_named(tmp_path):
    boxes, labels, sizes = write_box_lists(tmp_path)
    write_lines(labels, "val/ILSVRC2012_val_00000001.JPEG,65")
    with pytest.raises(ValueError, match=r"1 of 2 lines for images with boxes are missing in .*class_labels\.txt"):
        ImageNetBoxes(tmp_path / "val", boxes, labels)
    write_lines(sizes, "val/ILSVRC2012_val_00000001.JPEG,12")
    with pytest.raises(ValueError, match=r"image_sizes\.txt, line 1, must hold 2 numbers"):
        ImageNetBoxes(tmp_path / "val", boxes, image_sizes_file=sizes)
    (tmp_path / "val" / "ILSVRC2012_val_00000002.JPEG").unlink()
    with pytest.raises(ValueError, match=r"1 of 2 images are missing in .*val.*val_00000002\.JPEG"):
        ImageNetBoxes(tmp_path / "val", boxes)
    for folder in ("a", "b"):  # of two files with the name, none is meant
        write_image(tmp_path / "val" / folder / "ILSVRC2012_val_00000002.JPEG")
    with pytest.raises(ValueError, match="1 of 2 images are missing"):
        ImageNetBoxes(tmp_path / "val", boxes)


def test_lists_that_contradict_themselves_are_refused(tmp_path):
    boxes, labels, sizes = write_box_lists(tmp_path)
    name = "val/ILSVRC2012_val_00000001.JPEG"
    write_lines(labels, *labels.read_text().splitlines(), f"{name},65", f"{name},66")
    with pytest.raises(ValueError, match=rf"class_labels\.txt, line 5, must agree .* {name}, got 66 after 65"):
        ImageNetBoxes(tmp_path / "val", boxes, labels)
    write_lines(labels, f"{name},{'1' * 5000}")
    with pytest.raises(ValueError, match=r"class_labels\.txt, line 1, must hold a class index"):
        ImageNetBoxes(tmp_path / "val", boxes, labels)
    write_lines(sizes, f"{name},12,8", f"{name},12,9")
    with pytest.raises(ValueError, match=r"image_sizes\.txt, line 2, must agree"):
        ImageNetBoxes(tmp_path / "val", boxes, image_sizes_file=sizes)
    write_lines(boxes, f"{name},0,0,12,8", "ILSVRC2012_val_00000001.JPEG,0,0,12,8")
    with pytest.raises(ValueError, match=r"localization\.txt, .*names ILSVRC2012_val_00000001\.JPEG for the second"):
        ImageNetBoxes(tmp_path / "val", boxes)
    write_lines(boxes, f"{name},100,100,120,108")
    with pytest.raises(ValueError, match="must lie inside its image of 12 x 8 pixels, got"):
        ImageNetBoxes(tmp_path / "val", boxes)[0]


# --- COCO20k -------------------------------------------------------------------------------------------------------


def write_coco(root: Path, **changes: object) -> tuple[Path, Path, Path]:
    names = [f"COCO_train2014_00000000000{index}.jpg" for index in range(3)]
    boxes = [(0, 0, [0.4, 1.5, 3.2, 4.0]), (1, 1, [0, 0, 12, 8]), (0, 0, [2.5, 2.0, 6.0, 3.51]), (2, 0, [0, 0, 1, 1])]
    outlines = [[[1.0, 2.0]], {"counts": [3, 4], "size": [8, 12]}, [], []]
    content = {
        "info": {"year": 2014},
        "images": [{"id": index, "file_name": name, "width": 12, "height": 8} for index, name in enumerate(names)],
        "annotations": [
            {"id": row, "image_id": image, "iscrowd": crowd, "bbox": box, "segmentation": outline, "category_id": 1}
            for row, ((image, crowd, box), outline) in enumerate(zip(boxes, outlines, strict=True))
        ],
        "categories": [{"id": 1, "name": "person"}],
        **changes,
    }
    annotations = write_lines(root / "annotations" / "instances_train2014.json", json.dumps(content))
    for name in names:
        write_image(root / "train2014" / name)
    return root, annotations, write_lines(root / "coco_20k_filenames.txt", f"train2014/{names[1]}", names[0])


def test_coco_boxes_are_rounded_without_crowds(tmp_path):
    examples = Coco20k(*write_coco(tmp_path))
    assert (len(examples), examples.provides, examples.published_size) == (2, {"boxes"}, 19817)
    assert [item.image_id[-5:] for item in examples] == ["1.jpg", "0.jpg"]
    check_types(examples[0])
    assert examples[0].boxes.shape == (0, 4)
    # 0.4, 1.5, 3.6, 5.5 and 2.5, 2.0, 8.5, 5.51: halves go to the even neighbour
    assert examples[1].boxes.tolist() == [[0, 2, 4, 6], [2, 2, 8, 6]]


def test_missing_pieces_of_coco_are_named(tmp_path):
    root, annotations, names = write_coco(tmp_path)
    write_lines(names, "COCO_train2014_000000000000.jpg", "COCO_train2014_000000000009.jpg")
    with pytest.raises(ValueError, match=r"1 of 2 images of the list are missing in .*instances_train2014\.json"):
        Coco20k(root, annotations, names)
    write_lines(names, "COCO_train2014_000000000000.jpg")
    (root / "train2014" / "COCO_train2014_000000000000.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 of 1 images are missing in .*train2014"):
        Coco20k(root, annotations, names)
    for content in ("{", "[]", "{}", '{"images": [{"id": 1, "file_name": 3}]}'):
        annotations.write_text(content)
        with pytest.raises(ValueError, match=r"instances_train2014\.json is no annotation file of COCO"):
            Coco20k(root, annotations, names)
    with pytest.raises(ValueError, match=r"nowhere\.json is missing: the instances of COCO"):
        Coco20k(root, root / "nowhere.json", names)


IMAGES = [{"id": index, "file_name": f"COCO_train2014_00000000000{index}.jpg"} for index in range(3)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"annotations": [{"image_id": 0, "iscrowd": "0", "bbox": [0, 0, 1, 1]}]},
            "`iscrowd` must be 0 or 1, got '0'",
        ),
        ({"annotations": [{"image_id": 0, "iscrowd": 2, "bbox": [0, 0, 1, 1]}]}, "`iscrowd` must be 0 or 1, got 2"),
        ({"images": [*IMAGES, {**IMAGES[1], "id": 0}]}, "its 4 images an id of its own, got 3 ids"),
        ({"images": [*IMAGES, {**IMAGES[1], "id": 9}]}, r"image 9, names .*1\.jpg for the second time"),
        (
            {"annotations": [{"image_id": "0", "iscrowd": 0, "bbox": [0, 0, 1, 1]}]},
            "an object of image '0', which is no",
        ),
        ({"annotations": [{"image_id": 0, "iscrowd": 0, "bbox": [0, 0, 1, float("inf")]}]}, "holds a box"),
        ({"annotations": [{"image_id": 0, "iscrowd": 0, "bbox": [0, float("nan"), 1, 1]}]}, "holds a box"),
        ({"annotations": [{"image_id": 0, "iscrowd": 0, "bbox": [0, 1, 1]}]}, "must have a `bbox` of x, y, width"),
        ({"annotations": [{"image_id": 0, "iscrowd": 0, "bbox": "0111"}]}, "must have a `bbox` of x, y, width"),
        ({"annotations": [{"image_id": 0, "iscrowd": 0, "bbox": [90, 90, 5, 5]}]}, "must lie inside its image"),
    ],
)
def test_coco_files_that_contradict_themselves_are_refused(tmp_path, changes, message):
    root, annotations, names = write_coco(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        list(Coco20k(root, annotations, names))
