# SPDX-License-Identifier: Apache-2.0
"""Readers of the published evaluation sets, on tiny files of exactly their formats; every field is known by hand."""

from __future__ import annotations

import multiprocessing
import pickle
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from transformers_ice.data.benchmarks.cub import Cub
from transformers_ice.data.benchmarks.examples import Example
from transformers_ice.data.benchmarks.imagenet_segmentation import ImageNetSegmentation
from transformers_ice.data.benchmarks.pascal_voc import VocDetection, VocSegmentation


def write_image(path: Path, size: tuple[int, int] = (12, 8), color: tuple[int, int, int] = (10, 20, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


def write_lines(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def check_types(example: Example) -> None:
    size = (example.image.height, example.image.width)
    assert example.image.mode == "RGB"
    assert example.mask is None or (example.mask.dtype == np.int8 and example.mask.shape == size)
    assert example.segmentation is None or (example.segmentation.dtype == np.int16)
    assert example.boxes is None or (example.boxes.dtype == np.float64 and example.boxes.shape[1:] == (4,))


# --- ImageNet-Segmentation -----------------------------------------------------------------------------------------


def write_segmentation_file(path: Path, count: int = 3, width: int = 5, height: int = 3) -> list[np.ndarray]:
    """Write the HDF5 layout of MATLAB 7.3: columns of references, cells in cells, axes in MATLAB's order."""
    images = []
    with h5py.File(path, "w", userblock_size=512) as file:
        hidden, value = file.create_group("#refs#"), file.create_group("value")
        columns = {key: value.create_dataset(key, (count, 1), dtype=h5py.ref_dtype) for key in ("img", "gt", "id")}
        for index in range(count):
            image = np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3) + index
            mask = np.zeros((height, width), dtype=np.uint8)
            mask[0, 4] = mask[2, index] = 1
            pixels = hidden.create_dataset(f"i{index}", data=image.transpose(2, 1, 0))
            inner = hidden.create_dataset(f"m{index}", data=mask.T)
            cell = hidden.create_dataset(f"c{index}", (1, 1), dtype=h5py.ref_dtype)
            cell[0, 0] = inner.ref
            letters = np.array([[ord(letter)] for letter in f"n01_{index}"], dtype=np.uint16)
            name = hidden.create_dataset(f"n{index}", data=letters)
            for key, stored in (("img", pixels), ("gt", cell), ("id", name)):
                columns[key][index, 0] = stored.ref
            images.append(image)
    return images


def test_matlab_arrays_get_rows_and_columns_back(tmp_path):
    images = write_segmentation_file(tmp_path / "gtsegs_ijcv.mat")
    examples = ImageNetSegmentation(tmp_path)
    assert (len(examples), examples.provides, examples.class_names) == (3, {"mask"}, None)
    example = examples[1]
    check_types(example)
    assert example.image_id == "n01_1"
    assert example.image.size == (5, 3)
    np.testing.assert_array_equal(np.asarray(example.image), images[1])
    np.testing.assert_array_equal(example.mask, [[0, 0, 0, 0, 1], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0]])
    assert (example.label, example.boxes, example.segmentation) == (None, None, None)


@pytest.mark.parametrize("method", sorted({"fork", "spawn"} & set(multiprocessing.get_all_start_methods())))
def test_file_is_opened_by_each_worker(tmp_path, method):
    write_segmentation_file(tmp_path / "gtsegs_ijcv.mat", count=5)
    examples = ImageNetSegmentation(tmp_path / "gtsegs_ijcv.mat")
    assert examples._file is None
    expected = [example.image_id for example in examples]  # the file is open here before the workers begin
    if method == "spawn":
        copy = pickle.loads(pickle.dumps(examples))
        assert copy._file is None
        assert [example.image_id for example in copy] == expected
        return  # a spawned worker gets this very copy, after the seconds that importing torch takes
    loader = DataLoader(examples, batch_size=2, num_workers=2, collate_fn=list, multiprocessing_context=method)
    loaded = [example for batch in loader for example in batch]
    assert [example.image_id for example in loaded] == expected
    np.testing.assert_array_equal(loaded[4].mask, examples[4].mask)


def test_damaged_segmentation_files_are_named(tmp_path):
    path = tmp_path / "gtsegs_ijcv.mat"
    with pytest.raises(ValueError, match=r"gtsegs_ijcv\.mat is missing.*holds nothing"):
        ImageNetSegmentation(tmp_path)
    write_segmentation_file(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"gtsegs_ijcv\.mat \(\d+ bytes\) is no complete HDF5 file"):
        ImageNetSegmentation(path)
    with h5py.File(path, "w") as file:
        file["other"] = 1
    with pytest.raises(ValueError, match=r"holds no `/value/img`, only \['other'\]"):
        ImageNetSegmentation(path)
    write_segmentation_file(path)
    with h5py.File(path, "r+") as file:
        file["#refs#/c1"][0, 0] = h5py.Reference()  # which leads nowhere
        file["#refs#/m2"][0, 0] = 7
    examples = ImageNetSegmentation(path)
    assert examples[0].image_id == "n01_0"
    with pytest.raises(ValueError, match=r"gtsegs_ijcv\.mat: image 1 cannot be read"):
        examples[1]
    with pytest.raises(ValueError, match=r"image 2 must be uint8 .* mask hold 0 and 1.*up to 7"):
        examples[2]


# --- PASCAL VOC ----------------------------------------------------------------------------------------------------


def voc_object(name: str, box: tuple, difficult: int = 0, truncated: int | None = 0) -> str:
    corners = "".join(
        f"<{tag}>{value}</{tag}>" for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    flag = "" if truncated is None else f"<truncated>{truncated}</truncated>"
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    return (
        f"<object><name>{name}</name>{flag}<difficult>{difficult}</difficult>"
        f"{part if name == 'person' else ''}<bndbox>{corners}</bndbox></object>"
    )


def write_devkit(root: Path, year: str = "2007") -> Path:
    folder = root / "VOCdevkit" / f"VOC{year}"
    objects = {
        "000005": [voc_object("dog", (1, 2, 12, 8)), voc_object("person", (3, 3, 5.5, 6), truncated=1)],
        "000007": [voc_object("cat", (2, 2, 4, 4), difficult=1)],
        "000009": [voc_object("car", (5, 1, 9, 8), truncated=None)],
    }
    for name, content in objects.items():
        write_image(folder / "JPEGImages" / f"{name}.jpg")
        write_lines(folder / "Annotations" / f"{name}.xml", f"<annotation>{''.join(content)}</annotation>")
    write_lines(folder / "ImageSets" / "Main" / "trainval.txt", *objects)
    write_lines(folder / "ImageSets" / "Main" / "cat_trainval.txt", "000005 -1", "000007  1")
    write_lines(folder / "ImageSets" / "Segmentation" / "val.txt", "000007", "000005")
    for name in ("000005", "000007"):
        classes = Image.new("P", (12, 8))
        classes.putpalette([value for index in range(256) for value in (index, 255 - index, 0)])
        classes.putpixel((11, 0), 20)
        classes.putpixel((0, 7), 255)
        classes.putpixel((3, 2), 1)
        (folder / "SegmentationClass").mkdir(exist_ok=True)
        classes.save(folder / "SegmentationClass" / f"{name}.png")
    return folder


def test_voc_boxes_become_half_open_from_zero(tmp_path):
    write_devkit(tmp_path)
    examples = VocDetection(tmp_path)
    assert (len(examples), examples.provides, examples.published_size) == (3, {"boxes"}, 5011)
    example = examples[0]
    check_types(example)
    assert example.image_id == "000005"
    assert example.image.size == (12, 8)
    # the first one is the whole image but its first row; parts such as the head are no objects
    assert example.boxes.tolist() == [[0, 1, 12, 8], [2, 2, 5.5, 6]]


@pytest.mark.parametrize("place", [".", "VOCdevkit", "VOCdevkit/VOC2007"])
def test_hard_objects_and_images_left_without_any_are_dropped(tmp_path, place):
    write_devkit(tmp_path)
    examples = VocDetection(tmp_path / place, 2007, keep_hard=False)
    assert [example.image_id for example in examples] == ["000005", "000009"]
    assert examples[0].boxes.tolist() == [[0, 1, 12, 8]]
    assert examples[1].boxes.tolist() == [[4, 0, 9, 8]]  # no `truncated` is not truncated
    assert examples.fingerprint != VocDetection(tmp_path / place).fingerprint


def test_voc_void_is_ignored_and_palette_indices_are_classes(tmp_path):
    write_devkit(tmp_path, "2012")
    examples = VocSegmentation(tmp_path)
    assert [example.image_id for example in examples] == ["000007", "000005"]
    assert (examples.class_names[0], examples.class_names[19], len(examples.class_names)) == (
        "aeroplane", "tvmonitor", 20,
    )  # fmt: skip
    example = examples[0]
    check_types(example)
    expected = np.zeros((8, 12), dtype=int)
    expected[0, 11], expected[7, 0], expected[2, 3] = 20, -1, 1
    np.testing.assert_array_equal(example.segmentation, expected)
    np.testing.assert_array_equal(example.mask, np.clip(expected, -1, 1))


def test_missing_pieces_of_the_devkit_are_named(tmp_path):
    folder = write_devkit(tmp_path)
    with pytest.raises(ValueError, match=r"VOC2012/JPEGImages is missing.*VOCdevkit holds VOC2007"):
        VocDetection(tmp_path, "2012")
    with pytest.raises(ValueError, match=r"VOC2012/JPEGImages is missing"):
        VocDetection(folder, "2012")
    with pytest.raises(ValueError, match=r"`split` must be one of trainval in .*Main, got 'cat_trainval2'"):
        VocDetection(tmp_path, split="cat_trainval2")
    with pytest.raises(ValueError, match="must hold one image name a line, got '000005 -1'"):
        VocDetection(tmp_path, split="cat_trainval")
    write_lines(folder / "ImageSets" / "Main" / "twice.txt", "000005", "000007", "000005")
    with pytest.raises(ValueError, match=r"twice\.txt, line 3, names 000005 for the second time"):
        VocDetection(tmp_path, split="twice")
    with pytest.raises(ValueError, match="`keep_hard` must be True or False, got 'False'"):
        VocDetection(tmp_path, keep_hard="False")
    with pytest.raises(ValueError, match="`year` must be a year"):
        VocDetection(tmp_path, "07")
    (folder / "JPEGImages" / "000007.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 of 3 images are missing in .*JPEGImages, which holds 2 .*000007\.jpg"):
        VocDetection(tmp_path)
    (folder / "SegmentationClass" / "000005.png").unlink()
    write_image(folder / "JPEGImages" / "000007.jpg")
    with pytest.raises(ValueError, match=r"1 of 2 class maps are missing in .*SegmentationClass.*000005\.png"):
        VocSegmentation(tmp_path, "2007")
    (folder / "Annotations" / "000005.xml").unlink()
    with pytest.raises(ValueError, match=r"1 of 3 annotations are missing in .*Annotations.*000005\.xml"):
        VocDetection(tmp_path)


BILLION_LAUGHS = """<?xml version="1.0"?>
<!DOCTYPE annotation [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]>
<annotation><object><name>&c;</name></object></annotation>"""
OUTSIDE_FILE = '<!DOCTYPE annotation [<!ENTITY a SYSTEM "file:///etc/hostname">]><annotation>&a;</annotation>'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BILLION_LAUGHS, "declares a document type"),
        (OUTSIDE_FILE, "declares a document type"),
        ('<!DOCTYPE annotation SYSTEM "http://localhost/x.dtd"><annotation/>', "declares a document type"),
        ("<annotation>&a;</annotation>", "no well-formed XML: undefined entity"),
        ("<annotation><object>", "no well-formed XML: no element found"),
        ("", "no well-formed XML"),
        ("<foo/>", "must hold an `annotation`, got `foo`"),
        ('<?xml version="1.0" encoding="shift_jis"?><annotation/>', "no well-formed XML: multi-byte encodings"),
        ('<?xml version="1.0" encoding="utf-7"?><annotation/>', "no well-formed XML"),
        ('<?xml version="1.0" encoding="nonsense"?><annotation/>', "no well-formed XML: unknown encoding"),
        ("<annotation><object><name>dog</name></object></annotation>", "no `name` or no `bndbox`"),
        (f"<annotation>{voc_object('dog', (1, 2, 'x', 8))}</annotation>", "must hold 4 numbers here"),
        (f"<annotation>{voc_object('dog', (5, 2, 4, 8))}</annotation>", "ends before it begins"),
        (f"<annotation>{voc_object('dog', (1, 2, 3, 8), difficult=3)}</annotation>", "`difficult` must be 0 or 1"),
    ],
)
def test_bad_annotations_are_refused_by_name(tmp_path, content, message):
    folder = write_devkit(tmp_path)
    (folder / "Annotations" / "000007.xml").write_text(content)
    examples = VocDetection(tmp_path)
    assert len(examples[0].boxes) == 2
    with pytest.raises(ValueError, match=rf"000007\.xml.*{message}"):
        examples[1]


def test_a_box_far_outside_its_image_is_refused(tmp_path):
    folder = write_devkit(tmp_path)
    content = f"<annotation>{voc_object('dog', (1, 2, 300, 8))}</annotation>"
    (folder / "Annotations" / "000007.xml").write_text(content)
    with pytest.raises(ValueError, match=r"A box of '000007' must lie inside its image of 12 x 8 pixels, got"):
        VocDetection(tmp_path)[1]
    # published boxes end a pixel or two after their image
    (folder / "Annotations" / "000007.xml").write_text(content.replace("300", "14"))
    assert VocDetection(tmp_path)[1].boxes.tolist() == [[0, 1, 14, 8]]


def test_damaged_voc_pictures_are_named_when_read(tmp_path):
    folder = write_devkit(tmp_path)
    examples = VocSegmentation(tmp_path, "2007")  # opens none of them
    (folder / "JPEGImages" / "000007.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"000007\.jpg"):
        examples[0]
    Image.new("RGB", (12, 8)).save(folder / "SegmentationClass" / "000005.png")
    with pytest.raises(ValueError, match=r"000005\.png must be a palette or grey image of class"):
        examples[1]
    Image.new("L", (12, 8), 21).save(folder / "SegmentationClass" / "000005.png")
    with pytest.raises(ValueError, match=r"000005\.png must hold 0 to 20 and 255, got 21"):
        examples[1]
    Image.new("L", (8, 12)).save(folder / "SegmentationClass" / "000005.png")
    with pytest.raises(ValueError, match=r"of '000005' must have the size .*\(8, 12\).* got \(12, 8\)"):
        examples[1]


# --- CUB -----------------------------------------------------------------------------------------------------------

CUB_FILES = {
    "images.txt": ("1 001.Albatross/a.jpg", "2 001.Albatross/b.jpg", "3 002.Auk/c.jpg"),
    "train_test_split.txt": ("1 1", "2 0", "3 0"),
    "image_class_labels.txt": ("1 1", "2 1", "3 2"),
    "bounding_boxes.txt": ("1 0.0 0.0 3.0 3.0", "2 1.0 2.0 9.5 5.0", "3 2.0 1.0 10.0 7.0"),
    "classes.txt": ("1 001.Albatross", "2 002.Auk"),
}


def write_cub(root: Path) -> Path:
    folder = root / "CUB_200_2011"
    for name, lines in CUB_FILES.items():
        write_lines(folder / name, *lines)
    for line in CUB_FILES["images.txt"]:
        write_image(folder / "images" / line.split()[1])
    return folder


def test_cub_lists_are_joined_by_id(tmp_path):
    folder = write_cub(tmp_path)
    write_lines(folder / "bounding_boxes.txt", *reversed(CUB_FILES["bounding_boxes.txt"]))
    examples = Cub(tmp_path)
    assert (len(examples), examples.provides, examples.published_size) == (2, {"label", "boxes"}, 5794)
    assert examples.class_names == ["001.Albatross", "002.Auk"]
    check_types(examples[0])
    assert [(item.image_id, item.label, item.boxes.tolist(), item.mask) for item in examples] == [
        ("001.Albatross/b.jpg", 0, [[1.0, 2.0, 10.5, 7.0]], None),
        ("002.Auk/c.jpg", 1, [[2.0, 1.0, 12.0, 8.0]], None),
    ]
    assert [item.image_id for item in Cub(folder, "train")] == ["001.Albatross/a.jpg"]


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize("beside", [True, False])
def test_cub_masks_are_what_half_of_the_annotators_saw(tmp_path, mode, beside):
    folder = write_cub(tmp_path)
    masks = (tmp_path if beside else folder) / "segmentations"
    levels = np.zeros((8, 12), dtype=np.uint8)
    levels[0, :4], levels[7, 11] = (51, 127, 128, 204), 255
    for name in ("001.Albatross/b.png", "002.Auk/c.png"):
        (masks / name).parent.mkdir(parents=True)
        Image.fromarray(levels).convert(mode).save(masks / name)
    examples = Cub(tmp_path)
    assert examples.provides == {"label", "boxes", "mask"}
    check_types(examples[0])
    assert np.argwhere(examples[0].mask).tolist() == [[0, 2], [0, 3], [7, 11]]
    (masks / "002.Auk/c.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 2 segmentations are missing.*002\.Auk/c\.png"):
        Cub(tmp_path)


@pytest.mark.parametrize("name", CUB_FILES)
def test_missing_or_short_cub_lists_are_named(tmp_path, name):
    folder = write_cub(tmp_path)
    write_lines(folder / name, CUB_FILES[name][0])
    if name != "images.txt":  # a shorter list of images is a smaller set
        with pytest.raises(ValueError, match=rf"{name}"):
            Cub(tmp_path)
    (folder / name).unlink()
    with pytest.raises(ValueError, match=rf"{name} is missing: the .* of CUB_200_2011\. .*CUB_200_2011 holds "):
        Cub(tmp_path)


def test_wrong_cub_lines_and_images_are_named(tmp_path):
    folder = write_cub(tmp_path)
    with pytest.raises(ValueError, match="`split` must be one of train, test, got 'val'"):
        Cub(tmp_path, "val")
    with pytest.raises(ValueError, match=r"nothing is missing: the segmentations"):
        Cub(tmp_path, segmentations=tmp_path / "nothing")
    shutil.rmtree(folder / "images" / "002.Auk")
    with pytest.raises(ValueError, match=r"1 of 2 images are missing in .*images.*002\.Auk/c\.jpg"):
        Cub(tmp_path)
    write_lines(folder / "bounding_boxes.txt", "1 0 0 3 3", "2 1 2 9", "3 2 1 10 7")
    with pytest.raises(ValueError, match=r"bounding_boxes\.txt, image 2, must hold 4 numbers here"):
        Cub(tmp_path)
    write_lines(folder / "image_class_labels.txt", "1 1", "2 3", "3 2")
    with pytest.raises(ValueError, match=r"image_class_labels\.txt: the class of image 2 must be .* 1 to 2, got '3'"):
        Cub(tmp_path)
    write_lines(folder / "images.txt", "1 a.jpg", "1 b.jpg")
    with pytest.raises(ValueError, match=r"images\.txt, line 2, must be a new id"):
        Cub(tmp_path)


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("classes.txt", ("5 001.Albatross", "7 002.Auk"), "must number its 2 classes from 1 to 2, got '5'"),
        ("classes.txt", ("0 001.Albatross", "1 002.Auk"), "must number its 2 classes from 1 to 2, got '0'"),
        ("classes.txt", ("1 001.Auk", "2 001.Auk"), r"line 2, names 001\.Auk for the second time"),
        ("images.txt", ("1 001.Albatross/b.jpg", "2 001.Albatross/b.jpg"), r"line 2, names 001\.Albatross/b\.jpg"),
        ("image_class_labels.txt", ("1 1", "2 " + "1" * 5000, "3 2"), "the class of image 2 must be one of"),
        ("bounding_boxes.txt", ("1 0 0 3 3", "2 0 0 inf 3", "3 0 0 3 3"), "image 2, must hold 4 numbers"),
    ],
)
def test_cub_lists_that_contradict_themselves_are_refused(tmp_path, name, lines, message):
    folder = write_cub(tmp_path)
    write_lines(folder / name, *lines)
    with pytest.raises(ValueError, match=rf"{name}.*{message}"):
        Cub(tmp_path)


def test_cub_classes_and_boxes_belong_to_their_numbers(tmp_path):
    folder = write_cub(tmp_path)
    write_lines(folder / "classes.txt", *reversed(CUB_FILES["classes.txt"]))
    examples = Cub(tmp_path)
    assert examples.class_names[examples[1].label] == "002.Auk"
    write_lines(folder / "bounding_boxes.txt", "1 0 0 3 3", "2 90 90 5 5", "3 0 0 3 3")
    with pytest.raises(ValueError, match=r"001\.Albatross/b\.jpg' must lie inside its image of 12 x 8 pixels"):
        Cub(tmp_path)[0]


def change_segmentation_file(path: Path, change: str) -> None:
    with h5py.File(path, "r+") as file:
        value, hidden = file["value"], file["#refs#"]
        if change == "group":
            del value["img"]
            value.create_group("img")
        elif change == "link to nothing":
            del value["img"]
            value["img"] = h5py.SoftLink("/nowhere")
        elif change == "link to itself":
            del value["img"]
            value["img"] = h5py.SoftLink("/value/img")
        elif change == "no images":
            for key in ("img", "gt"):
                del value[key]
                value.create_dataset(key, (0, 1), dtype=h5py.ref_dtype)
        elif change == "image is a group":
            value["img"][0, 0] = hidden.create_group("g").ref
        else:
            shape = {"five channels": (5, 5, 3), "huge": (3, 200_000, 200_000), "no pixels": (3, 0, 3)}[change]
            value["img"][0, 0] = hidden.create_dataset("x", shape, dtype=np.uint8, chunks=True).ref


@pytest.mark.parametrize(
    "change",
    [
        "group",
        "link to nothing",
        "link to itself",
        "no images",
        "image is a group",
        "five channels",
        "huge",
        "no pixels",
    ],
)
def test_segmentation_files_of_other_content_are_named(tmp_path, change):
    path = tmp_path / "gtsegs_ijcv.mat"
    write_segmentation_file(path)
    change_segmentation_file(path, change)
    with pytest.raises(ValueError, match=r"gtsegs_ijcv\.mat"):
        ImageNetSegmentation(path)[0]


def test_images_one_pixel_wide_keep_their_axes(tmp_path):
    path = tmp_path / "gtsegs_ijcv.mat"
    write_segmentation_file(path)
    with h5py.File(path, "r+") as file:
        hidden, value = file["#refs#"], file["value"]
        value["img"][0, 0] = hidden.create_dataset("x", data=np.zeros((3, 1, 40), dtype=np.uint8)).ref
        cell = hidden.create_dataset("y", (1, 1), dtype=h5py.ref_dtype)
        cell[0, 0] = hidden.create_dataset("z", data=np.ones((1, 40), dtype=np.uint8)).ref
        value["gt"][0, 0] = cell.ref
    example = ImageNetSegmentation(path)[0]
    assert (example.image.size, example.mask.shape) == ((1, 40), (40, 1))
