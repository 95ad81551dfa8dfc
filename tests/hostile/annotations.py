# SPDX-License-Identifier: Apache-2.0
"""Evaluation sets whose lists, boxes, masks and annotations are cut, contradictory or of other types."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hostile.frame import Place, Row
from hostile.pictures import HEIGHT, WIDTH, encode, whole


_CUB = {
    "images.txt": "1 a/x.png\n2 b/y.png\n",
    "train_test_split.txt": "1 0\n2 0\n",
    "image_class_labels.txt": "1 1\n2 2\n",
    "bounding_boxes.txt": "1 1 1 5 5\n2 2 2 4 4\n",
    "classes.txt": "1 a\n2 b\n",
}
_COCO = {
    "images": [{"id": 1, "file_name": "x.png"}],
    "annotations": [{"image_id": 1, "iscrowd": 0, "bbox": [1, 1, 5, 5]}],
}
_XML = (
    "<annotation><object><name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox>"
    "</object></annotation>"
)
_BOMB = '<!DOCTYPE a [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>' + _XML
_READS = '<!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/passwd">]>' + _XML.replace("cat", "&a;")


def load(name: str, place: Place, folder: Path) -> list[Any]:
    """Open a set and read all of its examples."""
    from transformers_ice.data.benchmarks import load_evaluation_set

    examples = load_evaluation_set(name, data_dir=folder)
    return [examples[index] for index in range(len(examples))]


def has(count: int, label: int | None = None) -> Any:
    """Return a check of examples: so many, the first of a class, with boxes and masks of their picture."""

    def check(examples: list[Any]) -> bool:
        for example in examples:
            width, height = example.image.size
            mask_fits = example.mask is None or example.mask.shape == (height, width)
            if not mask_fits or (example.boxes is not None and not np.isfinite(example.boxes).all()):
                return False
        return len(examples) == count and (label is None or examples[0].label == label)

    return check


def files(entries: Mapping[str, bytes | str | None], place: Place) -> Path:
    """Write files; `None` makes a folder."""
    for name, content in entries.items():
        if content is None:
            (place.inputs / name).mkdir(parents=True)
        else:
            place.put(name, content)
    return place.inputs


def _lists(changes: Mapping[str, bytes | str | None], place: Place) -> Path:
    """Write a little CUB in which some lists were replaced, or are missing (`None`)."""
    for name, content in {**_CUB, **changes}.items():
        if content is not None:
            place.put(name, content)
    for name in ("a/x.png", "b/y.png"):
        place.put(f"images/{name}", whole("PNG"))
    return place.inputs


# what may stand in any text list: refused, whatever the list
_NO_LISTS: dict[str, bytes | str | None] = {
    "missing": None,
    "empty": "",
    "blanks": "\n \n",
    "zeros": bytes(99),
    "no UTF-8": b"1 \xff\xfe\n",
    "UTF-16": "1 a/x.png\n".encode("utf-16"),
    "a web page": "<!DOCTYPE html>\n<html>",
    "a picture": whole("PNG"),
    "one very long line": "x" * 300_000,
}


def birds() -> Iterator[Row]:
    read = partial(load, "cub")
    yield Row("CUB as it should be", partial(_lists, {}), read, has(2, 0))
    for file in _CUB:
        for title, content in _NO_LISTS.items():
            yield Row(f"CUB, {file}: {title}", partial(_lists, {file: content}), read, says=file)
    turned = partial(_lists, {"classes.txt": "2 b\n1 a\n"})
    yield Row("CUB, classes.txt in another order", turned, read, has(2, 0))
    windows = partial(_lists, {"classes.txt": "\ufeff1 a\r\n2 b\r\n"})
    yield Row("CUB, classes.txt of Windows", windows, read, has(2, 0))
    wrong = {
        "images.txt": (
            "1 a/x.png\n1 b/y.png",
            "1 a/x.png\n2 a/x.png",
            "1 ../../etc/passwd\n2 b/y.png",
            "1\n2",
            "1 /etc/passwd\n2 b/y.png",
        ),
        "train_test_split.txt": ("1 0", "1 0\n1 1\n2 0", "1 1\n2 1", "1 x\n2 x"),
        "image_class_labels.txt": (
            "1 1",
            "1 0\n2 1",
            "1 3\n2 1",
            "1 -1\n2 1",
            "1 " + "9" * 5000 + "\n2 1",
            "1 1.5\n2 1",
            "1 ²\n2 1",
        ),
        "bounding_boxes.txt": (
            "1 1 1 5\n2 2 2 4 4",
            "1 nan 1 5 5\n2 2 2 4 4",
            "1 1 1 inf 5\n2 2 2 4 4",
            "1 1 1 -5 5\n2 2 2 4 4",
            "1 a b c d\n2 2 2 4 4",
            "1 1 1 1e400 5\n2 2 2 4 4",
        ),
        "classes.txt": ("1 a\n3 b", "5 a\n7 b", "1 a\n1 b", "1 a\n2 a", "a 1\nb 2"),
    }
    for file, contents in wrong.items():
        for content in contents:
            yield Row(f"CUB, {file} = {content[:40]!r}", partial(_lists, {file: content}), read)
    # boxes outside of the picture: refused
    for box in ("900 900 5 5", "-50 -50 5 5", "1 1 5000 5"):
        content = f"1 {box}\n2 2 2 4 4"
        yield Row(
            f"CUB, a box {box} of a small picture",
            partial(_lists, {"bounding_boxes.txt": content}),
            read,
            has(2),
            True,
        )


def _coco(content: bytes | str, place: Place) -> Path:
    place.put("train2014/x.png", whole("PNG"))
    place.put("coco_20k_filenames.txt", "x.png\n")
    place.put("annotations/instances_train2014.json", content)
    return place.inputs


def coco() -> Iterator[Row]:
    read = partial(load, "coco20k")
    yield Row("COCO as it should be", partial(_coco, json.dumps(_COCO)), read, has(1))
    texts: dict[str, bytes | str] = {
        **{title: content for title, content in _NO_LISTS.items() if content is not None},
        "cut": json.dumps(_COCO)[:60],
        "nested without end": "[" * 100_000,
        "null": "null",
        "a list": "[]",
        "nothing in it": "{}",
        "a number of 5,000 digits": '{"images": [{"id": '
        + "9" * 5000
        + ', "file_name": "x.png"}], "annotations": []}',
    }
    for title, content in texts.items():
        yield Row(f"COCO: {title}", partial(_coco, content), read, says="instances_train2014")
    for box in (
        [1, 1, 5],
        [1, 1, "5", 5],
        None,
        [1, 1, -5, 5],
        [1, 1, 1e400, 5],
        "1 1 5 5",
        [[1, 1, 5, 5]],
        [True] * 4,
        {},
    ):
        changed = {**_COCO, "annotations": [{"image_id": 1, "iscrowd": 0, "bbox": box}]}
        yield Row(f"COCO: bbox = {box}", partial(_coco, json.dumps(changed)), read)
    for crowd in ("0", 2, 0.5, None, [], "no"):
        changed = {**_COCO, "annotations": [{"image_id": 1, "iscrowd": crowd, "bbox": [1, 1, 5, 5]}]}
        yield Row(
            f"COCO: iscrowd = {crowd!r}", partial(_coco, json.dumps(changed)), read, has(1) if crowd is None else None
        )
    for title, part in {
        "annotations of no image": {"annotations": [{"image_id": 9, "iscrowd": 0, "bbox": [1, 1, 5, 5]}]},
        "an id twice": {"images": [{"id": 1, "file_name": "x.png"}, {"id": 1, "file_name": "y.png"}]},
        "a name twice": {"images": [{"id": 1, "file_name": "x.png"}, {"id": 2, "file_name": "x.png"}]},
        "no such image": {"images": [{"id": 1, "file_name": "y.png"}]},
        "ids that are lists": {"images": [{"id": [], "file_name": "x.png"}]},
        "names that are numbers": {"images": [{"id": 1, "file_name": 7}]},
        "images that are a mapping": {"images": {"1": "x.png"}},
        "images that are numbers": {"images": [1]},
        "annotations that are null": {"annotations": None},
    }.items():
        yield Row(f"COCO: {title}", partial(_coco, json.dumps({**_COCO, **part})), read)


def _voc(xml: bytes | str, place: Place) -> Path:
    entries = {"JPEGImages/x.jpg": whole("JPEG"), "ImageSets/Main/trainval.txt": "x\n", "Annotations/x.xml": xml}
    return files(entries, place)


def voc() -> Iterator[Row]:
    read = partial(load, "voc2007-detection")
    yield Row("VOC as it should be", partial(_voc, _XML), read, has(1))
    texts: dict[str, bytes | str] = {
        **{title: content for title, content in _NO_LISTS.items() if content is not None},
        "cut": _XML[:50],
        "entities that grow": _BOMB,
        "an entity that reads a file": _READS,
        "shift_jis": '<?xml version="1.0" encoding="shift_jis"?>' + _XML,
        "utf-7": '<?xml version="1.0" encoding="utf-7"?>' + _XML,
        "an unknown encoding": '<?xml version="1.0" encoding="nonsense"?>' + _XML,
        "another root": "<foo/>",
        "an object without a box": _XML.replace("bndbox", "box"),
        "an object without a name": _XML.replace("<name>cat</name>", ""),
        "no number": _XML.replace("<xmin>1", "<xmin>a"),
        "NaN": _XML.replace("<xmin>1", "<xmin>nan"),
        "a box that ends before it begins": _XML.replace("<xmax>5", "<xmax>0"),
        "difficult = maybe": _XML.replace("<bndbox>", "<difficult>maybe</difficult><bndbox>"),
        "nested 5,000 deep": "<annotation>" + "<a>" * 5000,
    }
    for title, xml in texts.items():
        yield Row(f"VOC: {title}", partial(_voc, xml), read, says=r"x\.xml")
    deep = "<annotation>" + "<a>" * 50_000 + "</a>" * 50_000 + "</annotation>"
    yield Row("VOC: nested 50,000 deep, whole", partial(_voc, deep), read, has(1), True)
    segment = partial(load, "voc2012-segmentation")
    palette = Image.fromarray(np.resize(np.asarray([0, 1, 20, 255], np.uint8), (HEIGHT, WIDTH))).convert("P")
    for title, data, answer in (
        ("as it should be", encode(palette, "PNG"), has(1)),
        ("class 77", encode(Image.new("L", (WIDTH, HEIGHT), 77), "PNG"), None),
        ("colours", whole("PNG"), None),
        ("16 bits", encode(Image.new("I;16", (WIDTH, HEIGHT)), "PNG"), None),
        ("another size", encode(Image.new("L", (5, 5)), "PNG"), None),
        ("cut", encode(palette, "PNG")[:60], None),
        ("empty", b"", None),
    ):
        entries = {"JPEGImages/x.jpg": whole("JPEG"), "ImageSets/Segmentation/val.txt": "x\n"}
        write = partial(files, {**entries, "SegmentationClass/x.png": data})
        yield Row(f"VOC, class map: {title}", write, segment, answer)
    for text in ("../x\n", "x\nx\n", "/etc/passwd\n", "x y\n", "", "nowhere\n", "x\0\n"):
        entries = {"JPEGImages/x.jpg": whole("JPEG"), "Annotations/x.xml": _XML, "ImageSets/Main/trainval.txt": text}
        yield Row(f"VOC, list = {text!r}", partial(files, entries), read)


def boxes_of_imagenet() -> Iterator[Row]:
    read = partial(load, "imagenet-boxes")
    image = {"val/x.png": whole("PNG"), "val/y.png": whole("JPEG")}
    for text, answer in {
        "val/x.png,1,1,5,5\n": has(1),
        "x.png 0 1 1 5 5\n": has(1, 0),
        "x.png,1,1,5,5\nval/x.png,1,1,5,5\n": None,
        "val/x.png,1,1,5\n": None,
        "val/x.png,5,5,1,1\n": None,
        "val/x.png,nan,1,5,5\n": None,
        "val/none.png,1,1,5,5\n": None,
        "x.png 0 1 1 5\n": None,
        "x.png 0\n": None,
        "x.png a 1 1 5 5\n": None,
        f"x.png {'9' * 5000} 1 1 5 5\n": None,
        "x.png 0 1 1 5 5\nx.png 1 1 1 5 5\n": None,
        "x.png 0 1 1 5 5\ny.png,1,1,5,5\n": None,
        "../../etc/passwd,1,1,5,5\n": None,
    }.items():
        yield Row(f"ImageNet boxes: {text[:40]!r}", partial(files, {**image, "localization.txt": text}), read, answer)
    boxes = {**image, "localization.txt": "val/x.png,1,1,5,5\n"}
    for title, content in _NO_LISTS.items():
        if content is not None:
            yield Row(f"ImageNet boxes: {title}", partial(files, {**image, "localization.txt": content}), read)
    for text in (
        "val/x.png,1\nval/x.png,2\n",
        "val/x.png,a\n",
        "val/x.png\n",
        "val/y.png,1\n",
        f"val/x.png,{'9' * 5000}\n",
    ):
        yield Row(f"ImageNet classes: {text[:40]!r}", partial(files, {**boxes, "class_labels.txt": text}), read)
    for text in ("val/x.png,1,1\n", "val/x.png,a,b\n", "val/x.png,nan,5\n", "val/x.png,24\n"):
        yield Row(f"ImageNet sizes: {text!r}", partial(files, {**boxes, "image_sizes.txt": text}), read)


def own_folders() -> Iterator[Row]:
    read = partial(load, "folder")
    image, mask = {"images/x.png": whole("PNG")}, encode(Image.new("L", (WIDTH, HEIGHT), 1), "PNG")
    line = "image,xmin,ymin,xmax,ymax\n"
    yield Row("own folder with a mask", partial(files, {**image, "masks/x.png": mask}), read, has(1))
    for title, entries in {
        "no annotations": {},
        "a mask of no image": {"masks/y.png": mask},
        "two masks": {"masks/x.png": mask, "masks/x.bmp": mask},
        "masks as JPEG": {"masks/x.jpg": whole("JPEG")},
        "a mask that is cut": {"masks/x.png": mask[:40]},
        "an empty mask": {"masks/x.png": b""},
        "a mask of another size": {"masks/x.png": encode(Image.new("L", (3, 3)), "PNG")},
        "a mask that is a folder": {"masks/x.png": None},
        "no masks in masks": {"masks": None},
        "two images of one mask": {"images/x.jpg": whole("JPEG"), "masks/x.png": mask},
        "an image that is none": {"images/y.png": b"no", "masks/x.png": mask, "masks/y.png": mask},
    }.items():
        yield Row(f"own folder: {title}", partial(files, {**image, **entries}), read)
    for text, answer in {
        line + "x.png,1,1,5,5\n": has(1),
        "\ufeff" + line.replace("\n", "\r\n") + "x.png,1,1,5,5\r\n": has(1),
        line: None,
        "x.png,1,1,5,5\n": None,
        line + "x.png,1,1,5\n": None,
        line + "x.png,1,1,nan,5\n": None,
        line + "x.png,5,5,1,1\n": None,
        line + "x.png,1,1,500,5\n": None,
        line + "x.png,-1,1,5,5\n": None,
        line + "none.png,1,1,5,5\n": None,
        line + '"x.png,1,1,5,5\n': None,
        line + "../images/x.png,1,1,5,5\n": None,
        line + "x" * 200_000 + ",1,1,5,5\n": None,
        "image,image,xmin,ymin,xmax,ymax\nx.png,x.png,1,1,5,5\n": None,
        "image;xmin;ymin;xmax;ymax\nx.png;1;1;5;5\n": None,
    }.items():
        yield Row(f"boxes.csv: {text[:45]!r}", partial(files, {**image, "boxes.csv": text}), read, answer)
    for text, answer in {
        "image,label\nx.png,a\n": has(1, 0),
        "image,label\nx.png,a\nx.png,b\n": None,
        "image,label\nx.png,\n": None,
        "image,label\n": None,
        f"image,label\nx.png,{'9' * 5000}\n": has(1, 0),
        "image,label\nx.png,<script>alert(1)</script>\n": has(1, 0),
    }.items():
        yield Row(f"labels.csv: {text[:40]!r}", partial(files, {**image, "labels.csv": text}), read, answer)
    for name in ("boxes.csv", "labels.csv"):
        for title, content in _NO_LISTS.items():
            if content is not None:
                yield Row(f"{name}: {title}", partial(files, {**image, name: content}), read, says=name)
        yield Row(f"{name} is a folder", partial(files, {**image, name: None}), read, says=name)
        yield Row(f"{name} is a pipe", partial(_pipe, image, name), read, says=name)
    yield Row("a link that leads upwards", partial(_upwards, mask), read, has(1))


def _pipe(image: Mapping[str, bytes], name: str, place: Place) -> Path:
    files(image, place)
    os.mkfifo(place.inputs / name)
    return place.inputs


def _upwards(mask: bytes, place: Place) -> Path:
    files({"images/c/x.png": whole("PNG"), "masks/c/x.png": mask}, place)
    os.symlink("..", place.inputs / "images/c/up")
    return place.inputs


def matlab() -> Iterator[Row]:
    """Yield MATLAB files whose tables and references are others than those of ImageNet-Segmentation."""
    read = partial(load, "imagenet-segmentation")

    def write(shape: tuple[int, ...], mask: tuple[int, ...], kind: str, place: Place) -> Path:
        import h5py

        place.inputs.mkdir(exist_ok=True)
        with h5py.File(place.inputs / "gtsegs_ijcv.mat", "w") as file:
            pixels = file.create_dataset("a", shape, kind, fillvalue=1) if kind != "links" else file.create_group("a")
            inner = file.create_dataset("m", mask, "u1", fillvalue=1)
            reference = file.create_dataset("r", (1, 1), h5py.ref_dtype)
            reference[0, 0] = inner.ref
            for name, target in (("value/img", pixels), ("value/gt", reference)):
                file.create_dataset(name, (1, 1), h5py.ref_dtype)[0, 0] = target.ref
        return place.inputs

    for title, arguments, answer in (
        ("as it should be", ((3, 8, 6), (8, 6), "u1"), has(1)),
        ("five channels", ((5, 8, 6), (8, 6), "u1"), None),
        ("two axes", ((8, 6), (8, 6), "u1"), None),
        ("floats", ((3, 8, 6), (8, 6), "f4"), None),
        ("a mask of another size", ((3, 8, 6), (4, 6), "u1"), None),
        ("an image of 10**11 pixels", ((3, 200_000, 200_000), (8, 6), "u1"), None),
        ("a group as an image", ((3, 8, 6), (8, 6), "links"), None),
        ("no pixels", ((3, 0, 6), (0, 6), "u1"), None),
    ):
        yield Row(f"MATLAB: {title}", partial(write, *arguments), read, answer)
    for title, content in _NO_LISTS.items():
        if content is not None:
            yield Row(f"MATLAB: {title}", partial(files, {"gtsegs_ijcv.mat": content}), read)


def rows() -> list[Row]:
    """Return all rows."""
    return [row for table in (birds, coco, voc, boxes_of_imagenet, own_folders, matlab) for row in table()]
