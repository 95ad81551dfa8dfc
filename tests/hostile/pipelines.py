# SPDX-License-Identifier: Apache-2.0
"""Garbage into the three pipelines, the image processor and the model: wrong types, shapes and values."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hostile.frame import Place, Row
from hostile.pictures import HEIGHT, NO_PICTURES, WIDTH, scene, whole


TASKS = ("patch-explanation", "image-classification", "image-segmentation")


@cache
def pipe(task: Any, folder: Path) -> Any:
    from transformers import pipeline

    import transformers_ice  # noqa: F401

    return pipeline(task, model=str(folder))


def run(task: str, place: Place, written: Any, **options: Any) -> Any:
    return pipe(task, place.model)(written() if callable(written) else written, **options)


def is_right(result: Any) -> bool:
    """Return whether one answer of one of the pipelines is one: finite scores, names, maps of the picture."""
    if isinstance(result, dict):  # an explanation
        heatmap = np.asarray(result["heatmap"])
        return 0 <= result["score"] <= 1 and bool(np.isfinite(heatmap).all()) and heatmap.ndim == 2
    names = {"disc", "square", "star", "background"}
    if not isinstance(result, list) or not result:
        return False
    scores = [entry["score"] for entry in result if entry.get("score") is not None]
    return all(entry["label"] in names for entry in result) and all(map(math.isfinite, scores))


def are_right(count: int) -> Callable[[Any], bool]:
    return lambda results: len(results) == count and all(map(is_right, results))


def numbers(*shape: int, kind: Any = np.uint8, value: float | None = None) -> np.ndarray:
    grid = np.indices(shape).sum(0) % 7 if value is None else np.full(shape, value)
    return np.asarray(grid).astype(kind)


def broken(value: float, kind: Any = np.float32) -> np.ndarray:
    pixels = np.full((HEIGHT, WIDTH, 3), 0.5, dtype=kind)
    pixels[1, 2, 0] = value
    return pixels


GARBAGE: dict[str, Any] = {
    "None": None,
    "a number": 7,
    "NaN": math.nan,
    "True": True,
    "an object": object(),
    "a class": int,
    "a function of a picture": scene,
    "a set": {1},
    "an empty text": "",
    "a text": "nothing here",
    "a long text": "x" * 100_000,
    "base64 of text": base64.b64encode(b"no picture at all").decode(),
    "base64 that is cut": base64.b64encode(whole("PNG")).decode()[:40],
    "a data address": "data:image/png;base64,AAAA",
    "a text with zeros": "a\0b.png",
    "an address of files": "file:///etc/passwd",
    "an address that is none": "http://",
    "an address of a port that is none": "http://127.0.0.1:99999/a.png",
    "an address of nobody": "http://127.0.0.1:9/a.png",
    "a letter that is no text": "a\udcff.png",
    "an empty mapping": {},
    "a row of nothing": {"bytes": None, "path": None},
    "a row of text": {"bytes": "abc"},
    "a row of an address": {"bytes": None, "path": "http://127.0.0.1:9/a.png"},
    "a folder": Path("/tmp"),
    "/dev/zero": "/dev/zero",
}
"""Things that are no picture."""

ARRAYS: dict[str, tuple[Any, bool]] = {
    "no axes": (np.float32(3), False),
    "one axis": (numbers(9), False),
    "no pixels": (numbers(0, 4, 3), False),
    "no channels": (numbers(4, 4, 0), False),
    "two channels": (numbers(8, 8, 2), False),
    "five channels": (numbers(8, 8, 5), False),
    "four axes": (numbers(1, 8, 8, 3), False),
    "text": (np.array([["a", "b"]]), False),
    "objects": (np.array([[object()]]), False),
    "complex": (numbers(8, 8, 3, kind=np.complex64), False),
    "dates": (numbers(8, 8, 3).astype("datetime64[s]"), False),
    "NaN": (broken(math.nan), False),
    "infinity": (broken(math.inf), False),
    "-0.1": (broken(-0.1), False),
    "1e30": (broken(1e30), False),
    "-1 of integers": (numbers(8, 8, 3, kind=np.int64, value=-1), False),
    "70000": (numbers(8, 8, 3, kind=np.int64, value=70_000), False),
    "uint8": (numbers(8, 9, 3), True),
    "bools": (numbers(8, 9, 3, kind=bool), True),
    "uint16": (numbers(8, 9, 3, kind=np.uint16), True),
    "int64": (numbers(8, 9, 3, kind=np.int64), True),
    "float16": (numbers(8, 9, 3, kind=np.float16, value=0.5), True),
    "float64": (numbers(8, 9, 3, kind=np.float64, value=1.0), True),
    "channels first": (numbers(3, 9, 8), True),
    "grey": (numbers(8, 9), True),
    "RGBA": (numbers(8, 9, 4), True),
    "one pixel": (numbers(1, 1, 3), True),
    "one row": (numbers(1, 900, 3), True),
    "not contiguous": (numbers(9, 16, 3)[:, ::-2], True),
    "read only": (np.broadcast_to(np.uint8(7), (8, 9, 3)), True),
    "bytes of the other end": (numbers(8, 9, 3).astype(">u2"), True),
}
"""Arrays, and whether they are a picture."""


def explanations() -> Iterator[Row]:
    """Yield all of it for the pipeline of this package."""
    explain = partial(run, "patch-explanation")
    for title, thing in GARBAGE.items():
        yield Row(f"patch-explanation of {title}", partial(_give, thing), explain)
        yield Row(f"patch-explanation of a list with {title}", partial(_give, [scene(), thing]), explain)
    for title, (array, is_picture) in ARRAYS.items():
        answer = is_right if is_picture else None
        yield Row(f"patch-explanation of an array: {title}", partial(_give, array), explain, answer)
        try:
            tensor = torch.from_numpy(np.array(array))
        except (TypeError, ValueError):
            continue
        yield Row(f"patch-explanation of a tensor: {title}", partial(_give, tensor), explain, answer)
    for title, things, count in (
        ("a batch of odd sizes", [scene(), Image.new("L", (1, 900)), Image.new("RGBA", (300, 2))], 3),
        ("a tuple", (scene(), scene("L")), 2),
        ("an empty list", [], 0),
        ("a mix of kinds", [scene(), np.asarray(scene()), torch.from_numpy(np.array(scene()))], 3),
    ):
        yield Row(f"patch-explanation of {title}", partial(_give, things), explain, are_right(count))
    for mode in ("1", "L", "P", "LA", "PA", "RGBA", "La", "RGBa", "CMYK", "YCbCr", "HSV", "LAB", "I", "F"):
        image = Image.new(mode, (9, 7))
        yield Row(f"patch-explanation of a PIL image of mode {mode}", partial(_give, image), explain, is_right)
    yield Row("patch-explanation of a PIL image of no pixels", partial(_give, Image.new("RGB", (0, 5))), explain)
    meta = torch.zeros(8, 9, 3, device="meta")
    yield Row("patch-explanation of a tensor without values", partial(_give, meta), explain)
    sparse = torch.eye(9).to_sparse()
    yield Row("patch-explanation of a sparse tensor", partial(_give, sparse), explain, is_right, may_refuse=True)
    for target in ("no class", "", 7, -1, 1.5, True, [0], {}, math.nan, "0", "disc\0"):
        yield Row(f"target = {target!r}", partial(_give, scene()), partial(explain, target=target))
    for options in ({"treshold": 1}, {"top_k": 2}):
        yield Row(f"options {options}", partial(_give, scene()), partial(explain, **options))


def _give(thing: Any, place: Place) -> Any:
    return (lambda: thing) if callable(thing) else thing


def others() -> Iterator[Row]:
    """Yield files and some garbage for the pipelines of transformers; these raise its own kinds of errors as well."""
    kinds = (ValueError, OSError, TypeError)
    for task in TASKS[1:]:
        act = partial(run, task)
        for title in ("None", "a number", "an empty text", "a text", "base64 of text", "an address that is none"):
            yield Row(f"{task} of {title}", partial(_give, GARBAGE[title]), act, kinds=kinds)
        for mode in ("1", "L", "P", "LA", "RGBA", "CMYK", "I", "F"):
            yield Row(f"{task} of mode {mode}", partial(_give, Image.new(mode, (9, 7))), act, is_right)
        for title, image in {"1 x 1": Image.new("RGB", (1, 1)), "900 x 1": Image.new("RGB", (900, 1))}.items():
            yield Row(f"{task} of {title}", partial(_give, image), act, is_right)
    for task in TASKS:
        for title in ("nothing", "text", "svg with a script", "only a png signature", "pickle"):
            put = partial(_put, NO_PICTURES[title])
            yield Row(f"{task} of a file: {title}", put, partial(run, task), kinds=kinds)
        yield Row(f"{task} of a whole file", partial(_put, whole("PNG")), partial(run, task), is_right)
        yield Row(f"{task} of a cut file", partial(_put, whole("JPEG")[:-200]), partial(run, task), kinds=kinds)


def _put(data: bytes, place: Place) -> str:
    return str(place.put("x.png", data))


def models() -> Iterator[Row]:
    """Yield pixel values and labels of odd shapes, types and values, for the model itself."""

    @cache
    def model(folder: Path) -> Any:
        from transformers_ice import IceDeiTForImageClassification

        return IceDeiTForImageClassification.from_pretrained(folder).eval()

    def forward(make: Callable[[], dict[str, Any]], place: Place, _: Any) -> Any:
        with torch.inference_mode():
            return model(place.model)(**make())

    def x(*shape: int, **options: Any) -> torch.Tensor:
        return torch.ones(shape or (2, 3, 32, 32), **options)

    def finite(outputs: Any) -> bool:
        return bool(outputs.logits.isfinite().all())

    inputs: dict[str, tuple[Callable[[], dict[str, Any]], bool]] = {
        "nothing": (dict, False),
        "None": (lambda: {"pixel_values": None}, False),
        "no images": (lambda: {"pixel_values": x(0, 3, 32, 32)}, False),
        "three axes": (lambda: {"pixel_values": x(3, 32, 32)}, False),
        "one channel": (lambda: {"pixel_values": x(1, 1, 32, 32)}, False),
        "other sizes": (lambda: {"pixel_values": x(1, 3, 31, 33)}, False),
        "whole numbers": (lambda: {"pixel_values": x(1, 3, 32, 32, dtype=torch.uint8)}, False),
        "complex numbers": (lambda: {"pixel_values": x(1, 3, 32, 32, dtype=torch.complex64)}, False),
        "a list": (lambda: {"pixel_values": [[1.0]]}, False),
        "labels of text": (lambda: {"pixel_values": x(), "labels": "disc"}, False),
        "labels that are too large": (lambda: {"pixel_values": x(), "labels": torch.tensor([0, 3])}, False),
        "labels below 0": (lambda: {"pixel_values": x(), "labels": torch.tensor([0, -1])}, False),
        "too few labels": (lambda: {"pixel_values": x(), "labels": torch.tensor([0])}, False),
        "bools as labels": (lambda: {"pixel_values": x(), "labels": torch.tensor([True, False])}, False),
        "NaN as targets": (lambda: {"pixel_values": x(), "labels": torch.full((2, 3), math.nan)}, False),
        "targets below 0": (lambda: {"pixel_values": x(), "labels": torch.full((2, 3), -1.0)}, False),
        "as it should be": (lambda: {"pixel_values": x(), "labels": torch.tensor([0, 2])}, True),
        "a constant of 1e4": (lambda: {"pixel_values": x() * 1e4}, True),
    }
    for title, (make, is_right_) in inputs.items():
        yield Row(f"model: {title}", partial(_give, None), partial(forward, make), finite if is_right_ else None)


def rows() -> list[Row]:
    """Return all rows."""
    return [*explanations(), *others(), *models()]
