# SPDX-License-Identifier: Apache-2.0
"""Readers of files with random damage: a value or a sentence, no other exception, and within seconds."""

from __future__ import annotations

import io
import json
import shutil
import signal
import tarfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from transformers_ice import IceDeiTConfig, IceDeiTForImageClassification
from transformers_ice.console.command_line import parse_dataclasses
from transformers_ice.data.benchmarks.annotated_folder import AnnotatedFolder
from transformers_ice.data.benchmarks.coco import Coco20k
from transformers_ice.data.benchmarks.cub import Cub
from transformers_ice.data.benchmarks.imagenet_boxes import ImageNetBoxes
from transformers_ice.data.benchmarks.pascal_voc import read_voc_objects
from transformers_ice.data.images.arguments import DataArguments
from transformers_ice.data.images.check import check_data
from transformers_ice.data.images.shards import count_rows, read_cells
from transformers_ice.data.masks import binary_mask
from transformers_ice.ice_deit.image_conversion import load_image, read_rgb
from transformers_ice.ice_deit.image_processing_ice_deit import IceDeiTImageProcessor


SECONDS = 20  # far beyond what any of these small files takes


@dataclass(frozen=True)
class Damage:
    """A change of a part of a file; places are fractions of its length."""

    kind: str
    start: float
    length: int
    payload: bytes

    def apply(self, content: bytes) -> bytes:
        start = int(self.start * len(content))
        stop = min(start + self.length, len(content))
        before, part, after = content[:start], content[start:stop], content[stop:]
        return {
            "cut": before,
            "drop": before + after,
            "repeat": before + part * 3 + after,
            "zero": before + bytes(len(part)) + after,
            "insert": before + self.payload + part + after,
            "replace": before + (self.payload * self.length)[: len(part)] + after,
            "flip": before + bytes(byte ^ 1 << self.length % 8 for byte in part[:1]) + part[1:] + after,
            "move": after + part + before,
        }[self.kind]


# bytes that mean something to one reader or another
TOKENS = [b"\x00", b"\xff", b"\xff\xfe", b'"', b"'", b"{", b"[", b"]}", b",", b"\n", b"\r"]
TOKENS += [
    b"\xe2\x80\xa8",
    b"\xed\xa0\x80",
    b"1e999",
    b"NaN",
    b"Infinity",
    b"-1",
    b"9" * 20,
    b"null",
    b"true",
    b"&a *a",
    b"<!DOCTYPE",
    b"../",
]
DAMAGES = st.lists(
    st.builds(
        Damage,
        st.sampled_from(["cut", "drop", "repeat", "zero", "insert", "replace", "flip", "flip", "move"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(1, 40),
        st.one_of(st.sampled_from(TOKENS), st.binary(min_size=1, max_size=6)),
    ),
    max_size=4,
)


def damaged(content: bytes, damages: list[Damage]) -> bytes:
    for damage in damages:
        content = damage.apply(content)
    return content


@contextmanager
def time_limit():
    def stop(*_):
        raise AssertionError(f"no answer within {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def sentence_or_value():
    """Let `ValueError`s with a text pass; any other exception fails the test."""
    with time_limit():
        try:
            yield
        except ValueError as error:
            assert type(error).__name__ == "ValueError" or str(error), repr(error)
            assert str(error).strip(), repr(error)


def encoded(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8))
TURNED = Image.Exif()
TURNED[0x0112] = 6  # stored lying on its side
IMAGES = {
    "PNG": encoded(PICTURE, "PNG"),
    "palette PNG": encoded(PICTURE.convert("P"), "PNG", transparency=3),
    "16-bit PNG": encoded(Image.fromarray(np.arange(108, dtype=np.uint16).reshape(9, 12)), "PNG"),
    "JPEG": encoded(PICTURE, "JPEG", exif=TURNED),
    "CMYK JPEG": encoded(PICTURE.convert("CMYK"), "JPEG", progressive=True),
    "WEBP": encoded(PICTURE, "WEBP"),
    "GIF": encoded(PICTURE, "GIF"),
    "BMP": encoded(PICTURE, "BMP"),
    "TIFF": encoded(PICTURE, "TIFF", compression="tiff_lzw"),
}


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.filterwarnings("ignore")
@given(DAMAGES)
def test_image(kind, damages):
    content = damaged(IMAGES[kind], damages)
    with sentence_or_value():
        image = read_rgb(content)
        assert image.mode == "RGB"
        assert IceDeiTImageProcessor()(image, return_tensors="pt")["pixel_values"].isfinite().all()
    with sentence_or_value():
        mask = binary_mask(load_image(content), "mask.png", None)
        assert {*np.unique(mask).tolist()} <= {0, 1}


def png(shade: int = 0) -> bytes:
    return encoded(Image.new("L", (4, 4), shade), "PNG")


def tar_bytes() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for row in range(3):
            for ending, content in (("png", png(row)), ("cls", str(row % 2).encode())):
                member = tarfile.TarInfo(f"{row:03d}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def parquet_bytes() -> bytes:
    buffer = io.BytesIO()
    images = [{"bytes": png(row), "path": None} for row in range(3)]
    pyarrow.parquet.write_table(pyarrow.table({"image": images, "label": [0, 1, 0]}), buffer)
    return buffer.getvalue()


SHARDS = {".tar": (tar_bytes(), "cls"), ".parquet": (parquet_bytes(), "label")}


@pytest.mark.parametrize("ending", SHARDS)
@given(DAMAGES)
def test_shard(tmp_path, ending, damages):
    content, column = SHARDS[ending]
    file = tmp_path / f"shard{ending}"
    file.write_bytes(damaged(content, damages))
    with sentence_or_value():
        assert count_rows([str(file)])[0] >= 0
    with sentence_or_value():
        assert isinstance(read_cells([str(file)], column), dict)
    with sentence_or_value():
        names = tmp_path / "names.txt"
        names.write_text("a\nb\n")
        arguments = {"class_names_file": str(names)} if ending == ".tar" else {}
        check_data(DataArguments(train_files=str(file), **arguments), show_progress=False)


def write_lists(folder: Path) -> dict[str, Path]:
    """Write the smallest sets with lists, and return the files of the lists by name."""
    (folder / "images" / "001.a").mkdir(parents=True)
    for name in ("images/a.png", "images/b.png", "images/001.a/x.png", "train/a.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        PICTURE.save(folder / name)
    texts = {
        "boxes.csv": "image,xmin,ymin,xmax,ymax,label\na.png,0,0,12,9,cat\nb.png,1,2,3,4,dog\n"
        "001.a/x.png,1,1,2,2,cat\n",
        "labels.csv": "image,label\na.png,cat\nb.png,dog\n001.a/x.png,cat\n",
        "coco.json": json.dumps({
            "images": [{"id": 1, "file_name": "a.png"}],
            "annotations": [{"image_id": 1, "iscrowd": 0, "bbox": [1, 2, 3, 4], "segmentation": [[1, 2]]}],
        }),
        "coco.txt": "train/a.png\n",
        "localization.txt": "a.png,1,2,11,7\nb.png,3,3,5,4\n",
        "tscam.txt": "a.png 970 1 2 11 7 3 3 5 4\nb.png 3 1 2 3 4\n",
        "image_sizes.txt": "a.png,12,9\nb.png,12,9\n",
        "classes.txt": "1 001.a\n",
        "images.txt": "1 001.a/x.png\n",
        "train_test_split.txt": "1 0\n",
        "image_class_labels.txt": "1 1\n",
        "bounding_boxes.txt": "1 1.0 2.0 3.0 4.0\n",
        "voc.xml": "<annotation><object><name>cat</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>1</ymin>"
        "<xmax>5</xmax><ymax>6</ymax></bndbox></object></annotation>",
    }  # fmt: skip
    for name, text in texts.items():
        (folder / name).write_text(text)
    return {name: folder / name for name in texts}


def sets_of(name: str, folder: Path):
    """Return the examples of the set that a list belongs to."""
    if name in ("boxes.csv", "labels.csv"):
        return AnnotatedFolder(folder)
    if name.startswith("coco"):
        return Coco20k(folder / "train", folder / "coco.json", folder / "coco.txt")
    if name in ("localization.txt", "tscam.txt", "image_sizes.txt"):
        boxes = folder / ("tscam.txt" if name == "tscam.txt" else "localization.txt")
        return ImageNetBoxes(folder / "images", boxes, image_sizes_file=folder / "image_sizes.txt")
    return Cub(folder) if name != "voc.xml" else read_voc_objects(folder / name)


@pytest.fixture(scope="module")
def lists(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lists")
    return folder, {name: (path, path.read_bytes()) for name, path in write_lists(folder).items()}


@given(st.data(), DAMAGES)
def test_list_of_boxes_or_labels(lists, data, damages):
    folder, files = lists
    name = data.draw(st.sampled_from(sorted(files)))
    path, content = files[name]
    path.write_bytes(damaged(content, damages))
    try:
        with sentence_or_value():
            for item in sets_of(name, folder):
                boxes = getattr(item, "boxes", None)
                assert boxes is None or np.isfinite(boxes).all()
    finally:
        path.write_bytes(content)


RECIPE = b"""# a comment
train_dir: photos
image_size: 64
color_jitter: 0.3
streaming: false
"""


@pytest.mark.filterwarnings("ignore")
@given(DAMAGES)
def test_recipe(tmp_path, capsys, damages):
    file = tmp_path / "recipe.yaml"
    file.write_bytes(damaged(RECIPE, damages))
    with time_limit():
        try:
            (arguments,) = parse_dataclasses([DataArguments], [str(file)])
            assert isinstance(arguments, DataArguments)
        except SystemExit as end:
            assert end.code == 2
            assert "error: " in capsys.readouterr().err


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    folder = tmp_path_factory.mktemp("checkpoint")
    config = IceDeiTConfig(**sizes, image_size=8, patch_size=4, num_labels=2)
    IceDeiTForImageClassification(config).save_pretrained(folder)
    IceDeiTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "preprocessor_config.json"])
@given(DAMAGES)
def test_checkpoint(tmp_path, checkpoint, name, damages):
    folder = tmp_path / "copy"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("*.py"))
    (folder / name).write_bytes(damaged((checkpoint / name).read_bytes(), damages))
    with sentence_or_value():
        try:
            if name.startswith("preprocessor"):
                IceDeiTImageProcessor.from_pretrained(folder)(PICTURE, return_tensors="pt")
            else:
                model = IceDeiTForImageClassification.from_pretrained(folder)
                assert all(weights.isfinite().all() for weights in model.parameters())
        except OSError as error:  # transformers' own sentences about files that are missing or no JSON
            assert str(folder) in str(error)
