# SPDX-License-Identifier: Apache-2.0
"""Annotations for labelling tools and the page of explanations, read back by decoders of their own."""

from __future__ import annotations

import json
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.path import Path as Outline
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from scipy.ndimage import binary_fill_holes, label

from transformers_ice.cli import explain
from transformers_ice.data.scenes import draw_scene
from transformers_ice.export import AnnotationFiles, ExplanationPage, encode_rle, trace_polygons


MODEL = Path(__file__).resolve().parents[1] / "checkpoints" / "ice-deit-scenes"
NAMES = {0: "cat", 1: "<b>&\x00 \udce9", 2: "dog"}


def decode_rle(rle):
    """Return the mask of run lengths by the definition of COCO: columns first, background first."""
    values, current = [], False
    for count in rle["counts"]:
        values += [current] * count
        current = not current
    height, width = rle["size"]
    return np.array([[values[column * height + row] for column in range(width)] for row in range(height)], bool)


def fill(polygons, shape):
    """Return the pixels whose centres lie in any of the polygons."""
    rows, columns = np.mgrid[: shape[0], : shape[1]] + 0.5
    centres = np.stack((columns.ravel(), rows.ravel()), axis=1)
    filled = np.zeros(shape[0] * shape[1], bool)
    for polygon in polygons:
        filled |= Outline([*polygon, polygon[0]], closed=True).contains_points(centres)
    return filled.reshape(shape)


def masks():
    rng = np.random.default_rng(0)
    yield from (rng.random(shape) < share for shape in ((1, 1), (5, 8), (9, 4), (1, 7)) for share in (0, 0.3, 0.6, 1))
    ring = np.ones((6, 7), bool)
    ring[2:4, 2:5] = False
    yield ring
    yield np.kron(np.eye(3, dtype=bool), np.ones((2, 3), bool))  # parts that touch at corners


@pytest.mark.parametrize("mask", list(masks()), ids=str)
def test_run_lengths_and_polygons_are_read_back_as_the_mask(mask):
    rle = encode_rle(mask)
    assert np.array_equal(decode_rle(rle), mask)
    assert json.loads(json.dumps(rle)) == rle
    polygons = trace_polygons(mask)
    parts, number = label(mask)
    filled = np.zeros_like(mask)
    for index in range(number):
        filled |= binary_fill_holes(parts == index + 1, structure=np.ones((3, 3)))
    assert np.array_equal(fill(polygons, mask.shape), filled)


def test_run_lengths_by_hand():
    assert encode_rle(np.array([[0, 1], [0, 1], [1, 1]], bool)) == {"size": [3, 2], "counts": [2, 4]}
    assert encode_rle(np.array([[1, 0]], bool)) == {"size": [1, 2], "counts": [0, 1, 1]}


def result_of(name, found=True, score=0.9):
    mask = np.zeros((6, 8), bool)
    mask[1:4, 2:7] = found
    box = {"xmin": 2, "ymin": 1, "xmax": 7, "ymax": 4} if found else None
    ratio = float(mask.mean())
    return {"label": name, "score": score, "box": box, "mask": mask, "foreground_ratio": ratio} | {
        "heatmap": mask.astype(np.float32)
    }


def test_coco_has_an_annotation_of_each_object_and_none_of_an_empty_image(tmp_path):
    writer = AnnotationFiles("coco", tmp_path, NAMES)
    for name, found in (("dog", True), ("background", False), ("cat", False), (NAMES[1], True)):
        writer.add(tmp_path / "a.png", "a", result_of(name, found))
    writer.write()
    content = json.loads((tmp_path / "coco.json").read_text())
    assert [image["id"] for image in content["images"]] == [1, 2, 3, 4]
    assert [(item["image_id"], item["category_id"]) for item in content["annotations"]] == [(1, 2), (4, 1)]
    assert {item["id"]: item["name"] for item in content["categories"]} == NAMES
    for item in content["annotations"]:
        assert item["bbox"] == [2, 1, 5, 3]
        assert item["area"] == 15
        assert np.array_equal(decode_rle(item["segmentation"]), result_of("dog")["mask"])


def test_the_box_of_coco_holds_all_parts_of_the_mask(tmp_path):
    writer, result = AnnotationFiles("coco", tmp_path, NAMES), result_of("dog")
    result["mask"][5, 0] = True  # a second part: the box of the explanation is that of the largest
    writer.add(tmp_path / "a.png", "a", result)
    writer.write()
    assert json.loads((tmp_path / "coco.json").read_text())["annotations"][0]["bbox"] == [0, 1, 7, 5]


@pytest.mark.parametrize("kind", ["labelme", "voc"])
def test_a_file_per_image_holds_its_object_and_an_empty_image_has_none(kind, tmp_path):
    writer = AnnotationFiles(kind, tmp_path / "out", NAMES)
    writer.add(tmp_path / "in" / "a.png", "a", result_of(NAMES[1]))
    writer.add(tmp_path / "in" / "b.png", "b", result_of("background", found=False))
    writer.write()
    (file,) = (tmp_path / "out" / kind).iterdir()
    if kind == "labelme":
        content = json.loads(file.read_text())
        assert (file.parent / content["imagePath"]).resolve() == tmp_path / "in" / "a.png"
        assert (content["imageHeight"], content["imageWidth"], content["imageData"]) == (6, 8, None)
        assert [shape["label"] for shape in content["shapes"]] == [NAMES[1]]
        polygons = [shape["points"] for shape in content["shapes"]]
        assert np.array_equal(fill(polygons, (6, 8)), result_of("cat")["mask"])
        return
    root = ElementTree.parse(file).getroot()
    assert root.findtext("object/name") == r"<b>&\x00 \udce9"
    corners = [int(root.findtext(f"object/bndbox/{name}")) for name in ("xmin", "ymin", "xmax", "ymax")]
    assert corners == [3, 2, 7, 4]  # counted from 1, the last pixel included


@pytest.mark.parametrize("kind", ["coco", "labelme", "voc"])
def test_annotations_that_may_have_been_corrected_are_never_replaced(kind, tmp_path):
    writer = AnnotationFiles(kind, tmp_path, NAMES)
    writer.add(tmp_path / "a.png", "a", result_of("cat"))
    writer.write()
    with pytest.raises(ValueError, match=r"must not exist yet.*corrected by hand.*--output_dir"):
        AnnotationFiles(kind, tmp_path, NAMES)


class Page(HTMLParser):
    """Reader of a page: its cards, its texts, and every address in it."""

    def __init__(self, text):
        super().__init__()
        self.cards, self.texts, self.addresses, self.tags = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "action", "data")]
        if tag == "figure":
            self.cards.append(dict(attributes))

    def handle_data(self, data):
        self.texts.append(data)


def test_page_is_one_file_of_escaped_text_with_the_wrong_images_first(tmp_path):
    page = ExplanationPage(tmp_path, NAMES)
    image = Image.new("RGB", (8, 6))
    page.add(Path("photos/cat/1.png"), image, result_of("cat", score=0.2))
    page.add(Path("photos/cat/2.png"), image, result_of("dog", score=0.9))
    page.add(Path("photos/<script>alert(1)</script>\x1b.png"), image, result_of(NAMES[1], score=0.1))
    page.add(Path("photos/cat/3.png"), image, result_of("dog", found=False, score=0.3))
    page.write()
    text = page.file.read_text(encoding="utf-8")
    read = Page(text)
    assert [card["data-place"] for card in read.cards] == ["3", "1", "2", "0"]  # wrong first, then by score
    assert [card.get("class") for card in read.cards] == ["wrong", "wrong", None, None]
    assert all(address.startswith("data:image/jpeg;base64,") for address in read.addresses)
    assert read.tags.count("script") == 1
    assert "http://" not in text.replace("http-equiv", "")
    assert "https://" not in text
    shown = "\n".join(read.texts)
    for part in (NAMES[1].encode("unicode_escape").decode(), r"</script>\x1b.png", "2 of 3 with a known class"):
        assert part in shown
    assert "nothing found" in shown


def test_page_of_another_program_is_not_replaced(tmp_path):
    (tmp_path / "index.html").write_text("<p>mine</p>")
    with pytest.raises(ValueError, match="must not replace a file that transformers-ice did not write"):
        ExplanationPage(tmp_path, NAMES)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    (folder / "red dotted").mkdir()
    for index in range(3):
        image = Image.fromarray(draw_scene(index, image_size=96).image)
        image.save(folder / "red dotted" / f"{index}.png")
    Image.new("RGB", (80, 60), "gray").save(folder / "plain.png")
    return folder


@pytest.mark.parametrize("kind", ["coco", "labelme", "voc"])
def test_command_writes_annotations_that_agree_with_the_lines_and_a_page(kind, photos, tmp_path, capsys):
    arguments = [str(photos), "--model", str(MODEL), "--output_dir", str(tmp_path), "--annotations", kind, "--html"]
    assert explain.main(arguments) == 0
    records = [json.loads(line) for line in (tmp_path / "explanations.jsonl").read_text().splitlines()]
    boxes = {record["path"]: tuple(record["box"].values()) for record in records if record["box"]}
    found = {}
    if kind == "coco":
        content = json.loads((tmp_path / "coco.json").read_text())
        paths = {image["id"]: image["file_name"] for image in content["images"]}
        for item in content["annotations"]:
            left, top, width, height = item["bbox"]
            rows, columns = decode_rle(item["segmentation"]).nonzero()
            assert (left, top) == (columns.min(), rows.min())
            assert (left + width, top + height) == (columns.max() + 1, rows.max() + 1)
            found[paths[item["image_id"]]] = boxes[paths[item["image_id"]]]
    elif kind == "voc":
        for file in (tmp_path / "voc").iterdir():
            root = ElementTree.parse(file).getroot()
            corner = {node.tag: int(node.text) for node in root.find("object/bndbox")}
            box = (corner["xmin"] - 1, corner["ymin"] - 1, corner["xmax"], corner["ymax"])
            found[root.findtext("path")] = box
    else:
        for file in (tmp_path / "labelme").iterdir():
            content = json.loads(file.read_text())
            path = str((file.parent / content["imagePath"]).resolve())
            found[path] = boxes[path]
            assert content["shapes"]
    assert found == boxes
    assert len(Page((tmp_path / "index.html").read_text()).cards) == len(records) == 4
    assert explain.main(arguments) == 1
    assert "must not exist yet" in capsys.readouterr().err


def test_page_names_what_its_heat_maps_show(tmp_path):
    image = Image.new("RGB", (8, 6))
    image.info["comment"] = b"taken at home"
    for target, name in ((None, "p(not background)"), ("<b>", "p(<b>)")):
        page = ExplanationPage(tmp_path, NAMES, target)
        page.add("http://example.com/dog/a b.png", image, result_of("cat"))
        page.write()
        read = Page(page.file.read_text(encoding="utf-8"))
        shown = "\n".join(read.texts)
        assert f"Heat map, {name}: 0" in shown
        assert "http://example.com/dog/a b.png" in shown  # no path, and so no folder that names a class
        assert read.cards[0].get("class") is None
        assert not any(b"home" in b64decode(address.partition(",")[2]) for address in read.addresses)


@pytest.mark.parametrize("kind", ["comment", "exif", "xmp", "png text"])
def test_nothing_that_a_photograph_carries_is_written(kind, tmp_path):
    photo, secret = draw_scene(0, image_size=96).image, "48.2082 N 16.3738 E"
    image, exif, text = Image.fromarray(photo), Image.Exif(), PngInfo()
    exif[0x010E] = secret  # ImageDescription
    text.add_text("Comment", secret)
    options = {"comment": {"comment": secret}, "exif": {"exif": exif}, "xmp": {"xmp": secret.encode()}}
    file = tmp_path / ("photo.png" if kind == "png text" else "photo.jpg")
    image.save(file, **options.get(kind, {"pnginfo": text}))
    assert secret.encode() in file.read_bytes()
    for picture in ("heatmap", "panel"):
        output = tmp_path / picture
        arguments = [str(file), "--model", str(MODEL), "--output_dir", str(output), "--picture", picture]
        assert explain.main([*arguments, "--html", "--annotations", "coco"]) == 0
        page = Page((output / "index.html").read_text(encoding="utf-8"))
        embedded = [b64decode(address.partition(",")[2]) for address in page.addresses]
        written = [path.read_bytes() for path in output.rglob("*") if path.is_file()]
        assert len(written) == 4
        assert not any(secret.encode() in content for content in (*written, *embedded))
