# SPDX-License-Identifier: Apache-2.0
"""Oxford-IIIT Pet, ECSSD, Imagenette and Imagewoof on tiny drawn files of exactly their formats; training on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from datasets import Image as ImageFeature
from PIL import Image
from test_benchmark_data import check_types, write_image, write_lines

from transformers_ice.data.benchmarks import load_evaluation_set
from transformers_ice.data.benchmarks.ecssd import Ecssd
from transformers_ice.data.benchmarks.imagenette import Imagenette
from transformers_ice.data.benchmarks.oxford_pets import OxfordPets
from transformers_ice.data.images import loading
from transformers_ice.data.images.named_sets import find_hub_name
from transformers_ice.training import DataArguments, check_data, load_image_tables


def write_levels(path: Path, fill: int, *points: tuple[int, int, int], mode: str = "L") -> Path:
    """Write a map of 12 x 8 pixels of one level, but for some points (row, column, level)."""
    levels = np.full((8, 12), fill, dtype=np.uint8)
    for row, column, level in points:
        levels[row, column] = level
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels).convert(mode).save(path)
    return path


# --- Oxford-IIIT Pet -----------------------------------------------------------------------------------------------

# the classes are in another order than the lines, and than capitals before small letters
PETS_LISTS = {
    "list.txt": (
        "#Image CLASS-ID SPECIES BREED ID",
        "Bengal_7 3 1 2",
        "Abyssinian_1 1 1 1",
        "american_bulldog_2 2 2 1",
    ),
    "trainval.txt": ("Bengal_7 3 1 2",),
    "test.txt": ("american_bulldog_2 2 2 1", "Abyssinian_1 1 1 1"),
}
PETS = ("Abyssinian_1", "american_bulldog_2", "Bengal_7")


def write_pets(root: Path, with_lists: bool = True) -> Path:
    for name in PETS:
        write_image(root / "images" / f"{name}.jpg")
        write_levels(root / "annotations" / "trimaps" / f"{name}.png", 2, (0, 11, 1), (7, 0, 3))
        (root / "annotations" / "trimaps" / f"._{name}.png").write_bytes(b"written by macOS")
    (root / "images" / "Abyssinian_100.mat").write_bytes(b"of MATLAB")
    for name, lines in PETS_LISTS.items() if with_lists else ():
        write_lines(root / "annotations" / name, *lines)
    return root


def test_pets_are_read_by_their_lists(tmp_path):
    examples = OxfordPets(write_pets(tmp_path))
    assert (len(examples), examples.provides, examples.published_size) == (2, {"label", "mask"}, 3669)
    assert examples.class_names == ["Abyssinian", "american_bulldog", "Bengal"]
    assert [(example.image_id, example.label) for example in examples] == [
        ("american_bulldog_2", 1),
        ("Abyssinian_1", 0),
    ]
    expected = np.zeros((8, 12), dtype=int)
    expected[0, 11], expected[7, 0] = 1, -1
    check_types(examples[0])
    np.testing.assert_array_equal(examples[0].mask, expected)
    training = OxfordPets(tmp_path, "trainval")
    assert ([example.label for example in training], training.class_names) == ([2], examples.class_names)
    whole = OxfordPets(tmp_path, "all")
    assert [example.image_id for example in whole] == ["Bengal_7", "Abyssinian_1", "american_bulldog_2"]
    assert (training.published_size, whole.published_size) == (3680, 7349)
    assert len({examples.fingerprint, training.fingerprint, whole.fingerprint}) == 3


def test_pets_without_lists_are_all_that_have_a_trimap(tmp_path):
    write_pets(tmp_path, with_lists=False)
    write_image(tmp_path / "images" / "Abyssinian_2.jpg")  # without a trimap
    examples = OxfordPets(tmp_path)
    assert [example.image_id for example in examples] == sorted(PETS)
    assert examples.class_names == ["Abyssinian", "american_bulldog", "Bengal"]
    with pytest.raises(ValueError, match=r"'test' is listed in .*test\.txt, which is missing\. Take the split 'all'"):
        OxfordPets(tmp_path, "test")


@pytest.mark.parametrize("mode", ["P", "RGBA"])
def test_pets_in_other_modes_become_rgb(tmp_path, mode):
    write_pets(tmp_path, with_lists=False)
    Image.new(mode, (12, 8)).save(tmp_path / "images" / "Bengal_7.jpg", "PNG")
    check_types(load_evaluation_set("oxford-pets", tmp_path)[0])


def test_pets_of_a_list_of_ones_own(tmp_path):
    write_pets(tmp_path)
    names = write_lines(tmp_path / "mine.txt", "Bengal_7.jpg", "Abyssinian_1")
    examples = load_evaluation_set("oxford-pets", tmp_path, image_list=names)
    assert [(example.image_id, example.label) for example in examples] == [("Bengal_7", 2), ("Abyssinian_1", 0)]
    assert examples.published_size is None
    with pytest.raises(ValueError, match=r"mine\.txt, line 1, must name one of the 2 images of the split 'test'"):
        OxfordPets(tmp_path, "test", names)
    write_lines(names, "Abyssinian_1", "Abyssinian_1.jpg")
    with pytest.raises(ValueError, match=r"line 2, names Abyssinian_1 for the second time"):
        OxfordPets(tmp_path, None, names)
    with pytest.raises(ValueError, match=r"nothing\.txt is missing: the names of the images to read"):
        OxfordPets(tmp_path, None, tmp_path / "nothing.txt")


@pytest.mark.parametrize("level", [0, 4, 255])
def test_a_trimap_of_other_values_is_named(tmp_path, level):
    write_pets(tmp_path, with_lists=False)
    trimap = write_levels(tmp_path / "annotations" / "trimaps" / "Bengal_7.png", 2, (3, 3, level))
    examples = OxfordPets(tmp_path)
    with pytest.raises(ValueError, match=r"Bengal_7\.png must be a trimap of 1 \(object\), 2 .* from \d+ to \d+"):
        examples[1]
    Image.new("RGB", (12, 8), (1, 1, 1)).save(trimap)
    with pytest.raises(ValueError, match=r"Bengal_7\.png must be a trimap .* shape \(8, 12, 3\)"):
        examples[1]


def test_missing_parts_of_the_pets_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"annotations is missing: the archives `images` and `annotations`"):
        OxfordPets(tmp_path)
    (tmp_path / "annotations" / "trimaps").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"images is missing"):
        OxfordPets(tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(ValueError, match=r"hold no image with a trimap of the same name"):
        OxfordPets(tmp_path)
    write_pets(tmp_path)
    with pytest.raises(ValueError, match="`split` must be one of test, trainval, all, got 'val'"):
        OxfordPets(tmp_path, "val")
    (tmp_path / "annotations" / "trimaps" / "Abyssinian_1.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 2 trimaps are missing in .*Abyssinian_1"):
        OxfordPets(tmp_path)
    (tmp_path / "images" / "american_bulldog_2.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 of 2 images are missing in .*images.*american_bulldog_2"):
        OxfordPets(tmp_path)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("../../etc/passwd_1 1 1 1",), r"images are missing in .*passwd_1"),
        (("Abyssinian_1 1 1",), r"line 1, must be an image name and its class, species and breed"),
        (("Abyssinian_1 one 1 1",), r"line 1, must be an image name and its class"),
        (("Abyssinian_1 1 1 1", "Abyssinian_1 1 1 1"), r"line 2, names Abyssinian_1 for the second time"),
        (("# only a comment",), r"test\.txt names no image"),
        (("Abyssinian_1 2 1 1",), r"gives 'Abyssinian' the class 2, after 1 before"),
        (("Abyssinian_1 1 1 1", "Siamese_1 1 1 1"), r"images are missing in .*Siamese_1"),
        (("Abyssinian 1 1 1",), r"images are missing"),
        ((), r"test\.txt is empty"),
    ],
)
def test_wrong_lists_of_pets_are_refused(tmp_path, lines, message):
    write_pets(tmp_path)
    write_lines(tmp_path / "annotations" / "test.txt", *lines)
    with pytest.raises(ValueError, match=message):
        OxfordPets(tmp_path)


def test_pets_of_one_class_number_or_no_breed_are_refused(tmp_path):
    write_pets(tmp_path)
    write_lines(tmp_path / "annotations" / "list.txt", "Bengal_7 1 1 2", "Abyssinian_1 1 1 1")
    for name in ("trainval.txt", "test.txt"):
        (tmp_path / "annotations" / name).unlink()
    with pytest.raises(ValueError, match="give several breeds the same class"):
        OxfordPets(tmp_path)
    (tmp_path / "annotations" / "list.txt").unlink()
    for file in ("images/cat.jpg", "annotations/trimaps/cat.png"):
        write_image(tmp_path / file)
    with pytest.raises(ValueError, match=r"must name images <breed>_<number>, .* got 'cat'"):
        OxfordPets(tmp_path)


# --- ECSSD ---------------------------------------------------------------------------------------------------------


def write_ecssd(root: Path, nested: bool = False, mode: str = "L") -> Path:
    images, masks = (root / name / (name if nested else "") for name in ("images", "ground_truth_mask"))
    for name in ("0001", "0002"):
        write_image(images / f"{name}.jpg")
        write_levels(masks / f"{name}.png", 0, (0, 11, 255), (7, 0, 128), (3, 3, 127), mode=mode)
    return root


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_salient_objects_are_what_is_bright(tmp_path, nested, mode):
    examples = Ecssd(write_ecssd(tmp_path, nested, mode))
    assert (len(examples), examples.provides, examples.published_size) == (2, {"mask"}, 1000)
    assert [example.image_id for example in examples] == ["0001", "0002"]
    check_types(examples[0])
    assert np.argwhere(examples[0].mask).tolist() == [[0, 11], [7, 0]]


def test_missing_parts_of_ecssd_are_named(tmp_path):
    with pytest.raises(ValueError, match="nothing is missing: the unpacked archives `images` and `ground_truth_mask`"):
        Ecssd(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"images is missing: the photographs of ECSSD"):
        Ecssd(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "ground_truth_mask").mkdir()
    with pytest.raises(ValueError, match=r"images holds no \.jpg file"):
        Ecssd(tmp_path)
    write_ecssd(tmp_path)
    write_levels(tmp_path / "ground_truth_mask" / "0002.png", 0).rename(tmp_path / "ground_truth_mask" / "0003.png")
    with pytest.raises(ValueError, match=r"1 of 2 masks are missing in .*ground_truth_mask.*0002"):
        Ecssd(tmp_path)


# --- Imagenette and Imagewoof --------------------------------------------------------------------------------------

NETTE = {"n01440764": "tench", "n02102040": "English springer", "n03888257": "parachute"}
BOXES_HEADER = "file,wnid,width,height,xmin,ymin,xmax,ymax"


def write_imagenette(root: Path, by_name: bool = False) -> Path:
    """Write a training and a validation image of three classes, of 12 x 8 pixels."""
    for number, (wnid, name) in enumerate(NETTE.items()):
        folder = name if by_name else wnid
        write_image(root / "train" / folder / f"{wnid}_{number}.JPEG")
        write_image(root / "val" / folder / f"ILSVRC2012_val_{number}.JPEG", color=(number, 0, 0))
    return root


@pytest.mark.parametrize("by_name", [False, True])
def test_imagenette_has_readable_classes(tmp_path, by_name):
    write_imagenette(tmp_path, by_name)
    examples = Imagenette(tmp_path)
    assert (len(examples), examples.provides, examples.published_size) == (3, {"label"}, 3925)
    assert (examples.class_names[0], examples.class_names[9], len(examples.class_names)) == ("tench", "parachute", 10)
    assert [(example.image_id, example.label) for example in examples] == [
        ("n01440764/ILSVRC2012_val_0.JPEG", 0),
        ("n02102040/ILSVRC2012_val_1.JPEG", 1),
        ("n03888257/ILSVRC2012_val_2.JPEG", 9),
    ]
    assert Imagenette(tmp_path, split="train")[0].image_id == "n01440764/n01440764_0.JPEG"
    assert Imagenette(tmp_path / "val").fingerprint == examples.fingerprint
    assert Imagenette(tmp_path / "val").published_size is None


def test_imagewoof_has_classes_of_its_own(tmp_path):
    write_image(tmp_path / "val" / "n02115641" / "a.JPEG")
    write_image(tmp_path / "val" / "Old_English_sheepdog" / "b.JPEG")
    examples = load_evaluation_set("imagewoof", tmp_path, "val")
    assert [examples.class_names[example.label] for example in examples] == ["Old English sheepdog", "dingo"]
    assert (examples.name, examples.published_size) == ("imagewoof", 3929)
    with pytest.raises(ValueError, match=r"must be called n01440764 or 'tench' .* of imagenette.*; got "):
        load_evaluation_set("imagenette", tmp_path)


def test_boxes_of_the_originals_fit_the_stored_files(tmp_path):
    write_imagenette(tmp_path)
    boxes = write_lines(
        tmp_path / "boxes.csv",
        BOXES_HEADER,
        "ILSVRC2012_val_2.JPEG,n03888257,24,32,0,0,23,31",
        "n01440764_0.JPEG,n01440764,12,8,2,1,2,1",
        "ILSVRC2012_val_2.JPEG,n03888257,24,32,2,4,3,7",
    )
    examples = load_evaluation_set("imagenette", tmp_path, boxes_file=boxes)
    assert (examples.provides, examples.published_size) == ({"label", "boxes"}, None)
    check_types(examples[0])
    # 24 x 32 pixels are stored as 12 x 8; the last pixel of the list is included
    assert [(example.image_id, example.label, example.boxes.tolist()) for example in examples] == [
        ("n03888257/ILSVRC2012_val_2.JPEG", 9, [[0, 0, 12, 8], [1, 1, 2, 2]]),
        ("n01440764/n01440764_0.JPEG", 0, [[2, 1, 3, 2]]),
    ]
    with pytest.raises(ValueError, match=r"1 of 2 images with boxes are missing in .* n01440764_0\.JPEG"):
        Imagenette(tmp_path, split="val", boxes_file=boxes)
    write_lines(boxes, BOXES_HEADER, "ILSVRC2012_val_1.JPEG,n02102040,24,16,0,0,11,15")
    flat = Imagenette(tmp_path / "val", boxes_file=boxes)
    assert flat[0].boxes.tolist() == [[0, 0, 6, 8]]
    assert flat.fingerprint != Imagenette(tmp_path / "val").select([1]).fingerprint


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((), r"is empty"),
        (("image,xmin,ymin,xmax,ymax",), r"must begin with a line `file,wnid,width,height,xmin,ymin,xmax,ymax`"),
        ((BOXES_HEADER,), r"holds no boxes"),
        ((BOXES_HEADER, "a.JPEG"), r"line 2, must hold 6 numbers"),
        ((BOXES_HEADER, "a.JPEG,n01440764,12,8,0,0,x,5"), r"line 2, must hold 6 numbers"),
        ((BOXES_HEADER, "a.JPEG,n02115641,12,8,0,0,5,5"), r"must name one of the classes n01440764, .*'n02115641'"),
        ((BOXES_HEADER, "a.JPEG,n01440764,0,8,0,0,5,5"), r"must hold width and height .* got 0 x 8"),
        ((BOXES_HEADER, "a.JPEG,n01440764,12,8,9,0,5,5"), r"line 2, holds a box that ends before it begins"),
        (
            (BOXES_HEADER, "a.JPEG,n01440764,12,8,0,0,5,5", "a.JPEG,n01440764,12,9,0,0,5,5"),
            r"line 3, must agree with the earlier lines about a\.JPEG",
        ),
        ((BOXES_HEADER, "a.JPEG,n01440764,12,8,0,0,5,5"), r"1 of 1 images with boxes are missing"),
        ((BOXES_HEADER, "ILSVRC2012_val_0.JPEG,n02102040,12,8,0,0,5,5"), r"the class n02102040, but it is .*val_0"),
    ],
)
def test_wrong_lists_of_boxes_are_refused(tmp_path, lines, message):
    write_imagenette(tmp_path)
    with pytest.raises(ValueError, match=message):
        Imagenette(tmp_path, boxes_file=write_lines(tmp_path / "boxes.csv", *lines))


def test_a_box_outside_its_original_is_refused(tmp_path):
    write_imagenette(tmp_path)
    lines = (BOXES_HEADER, "ILSVRC2012_val_0.JPEG,n01440764,12,8,0,0,40,5")
    examples = Imagenette(tmp_path, boxes_file=write_lines(tmp_path / "boxes.csv", *lines))
    with pytest.raises(ValueError, match=r"A box of 'n01440764/ILSVRC2012_val_0\.JPEG' must lie inside"):
        examples[0]


def test_missing_parts_of_imagenette_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"nothing is missing: imagenette2 as fast\.ai packs it"):
        Imagenette(tmp_path / "nothing")
    with pytest.raises(ValueError, match="holds no images of imagenette in class folders"):
        Imagenette(tmp_path)
    with pytest.raises(ValueError, match=r"train is missing: a part of imagenette2"):
        Imagenette(tmp_path, split="train")
    with pytest.raises(ValueError, match="`split` must be one of train, val, got 'test'"):
        Imagenette(tmp_path, split="test")
    with pytest.raises(ValueError, match="`variant` must be one of imagenette, imagewoof, got 'imagewang'"):
        Imagenette(tmp_path, "imagewang")
    write_imagenette(tmp_path)
    write_image(tmp_path / "val" / "tench" / "ILSVRC2012_val_0.JPEG")
    with pytest.raises(ValueError, match=r"names n01440764/ILSVRC2012_val_0\.JPEG for the second time"):
        Imagenette(tmp_path)
    write_image(tmp_path / "val" / "a.JPEG")
    with pytest.raises(ValueError, match=r"and hold all images; got a\.JPEG"):
        Imagenette(tmp_path)


# --- training ------------------------------------------------------------------------------------------------------


def test_named_sets_are_trained_on_by_their_folder(tmp_path):
    write_imagenette(tmp_path)
    tables = load_image_tables(DataArguments(dataset_name="imagenette", data_dir=str(tmp_path)), (16, 16))
    assert (tables.class_names[1], len(tables.class_names)) == ("English springer", 10)
    assert (tables.train["label"][:], tables.evaluation["label"][:]) == ([0, 1, 9], [0, 1, 9])
    paths = [cell["path"] for cell in tables.train.cast_column("image", ImageFeature(decode=False))["image"]]
    assert [Path(path).parent.relative_to(tmp_path).as_posix() for path in paths] == [f"train/{n}" for n in NETTE]
    report = check_data(DataArguments(dataset_name="imagenette", data_dir=str(tmp_path)), show_progress=False)
    assert report.missing("train") == [name for name in tables.class_names if name not in NETTE.values()]


def test_unreadable_images_of_a_named_set_stop_or_are_skipped(tmp_path):
    write_pets(tmp_path)
    (tmp_path / "images" / "american_bulldog_2.jpg").write_bytes(b"no image")
    arguments = {"dataset_name": "oxford-pets", "data_dir": str(tmp_path)}
    with pytest.raises(ValueError, match=r"american_bulldog_2\.jpg"):
        load_image_tables(DataArguments(**arguments), (16, 16))
    tables = load_image_tables(DataArguments(**arguments, on_bad_image="skip"), (16, 16))
    assert (tables.train["label"][:], tables.evaluation["label"][:]) == ([2], [0])


def test_named_sets_without_a_folder_come_from_the_hub(monkeypatch):
    asked = []

    def refuse(*arguments):
        asked.append(arguments[:2])
        raise ValueError("no network")

    monkeypatch.setattr(loading, "load_hub_images", refuse)
    monkeypatch.setattr(loading, "hub_shards", refuse)
    for options in (
        {"dataset_name": "imagewoof"},
        {"dataset_name": "imagenette", "dataset_config_name": "160px", "streaming": True},
        {"dataset_name": "oxford-pets"},
    ):
        with pytest.raises(ValueError, match="no network"):
            loading.open_images(DataArguments(**options), (16, 16))
    assert asked == [("frgfm/imagewoof", "320px"), ("frgfm/imagenette", "160px"), ("timm/oxford-iiit-pet", None)]
    assert find_hub_name("owner/other", "small") == ("owner/other", "small")


@pytest.mark.parametrize(
    "options", [{"dataset_name": "scenes"}, {"train_dir": "x"}, {"dataset_name": "imagenette", "streaming": True}]
)
def test_a_folder_needs_the_name_of_its_set(options):
    with pytest.raises(ValueError, match=r"`--data_dir folder` needs `--dataset_name` with one of imagenette, "):
        DataArguments(data_dir="folder", **options)
