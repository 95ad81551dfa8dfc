# SPDX-License-Identifier: Apache-2.0
"""What the package makes of hostile names: figures, cards, records, annotations, ONNX files, and the app's answers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from hostile.frame import Place, Row
from hostile.pictures import NO_PICTURES, png, scene, whole


NAMES = (
    *(
        "a$b$",
        "$$",
        r"$\bad$",
        "$",
        "a\nb",
        "a\tb",
        "\x00",
        "\x1b[31mred",
        "\u202ecba",
        "|pipe|",
        "```",
        "<script>alert(1)",
    ),
    *(
        "&amp;",
        '"',
        "'",
        "\\",
        "%s {0} {x}",
        "../../x",
        "/etc/passwd",
        "-",
        " ",
        "#",
        "---",
        "x" * 10_000,
        "木",
        "\ud83d",
        "\uffff",
    ),
)
"""Names of classes that are legal, and mean something to some format."""


@cache
def explained(folder: Path) -> dict[str, Any]:
    from transformers import pipeline

    import transformers_ice  # noqa: F401

    return pipeline("patch-explanation", model=str(folder))(scene())


def is_drawn(path: Path) -> bool:
    """Return whether a figure is whole: a picture, or well-formed XML."""
    if path.suffix == ".svg":
        return ElementTree.fromstring(path.read_bytes()) is not None
    with Image.open(path) as image:
        image.load()
        return image.width > 9


def draw(kind: str, suffix: str, name: str, place: Place, _: Any) -> Path:
    from transformers_ice.visualization import save_result

    result = dict(explained(place.model))
    result["label"] = name
    path = place.output / f"x.{suffix}"
    save_result(np.asarray(scene()), result, {0: name, 1: "b", 2: "c"}, str(path), picture=kind)
    return path


def nothing(place: Place) -> None:
    return None


def figures() -> Iterator[Row]:
    kinds = (("panel", "svg"), ("class_map", "png"), ("panel", "png"), ("class_map", "svg"))
    for number, name in enumerate(NAMES):
        kind, suffix = kinds[number % 4]
        yield Row(f"{kind}.{suffix} of a class {name[:20]!r}", nothing, partial(draw, kind, suffix, name), is_drawn)


def annotate(kind: Any, name: str, place: Place, _: Any) -> list[Path]:
    from transformers_ice.export import AnnotationFiles

    result = dict(explained(place.model))
    result |= {"label": name, "found": True}
    files = AnnotationFiles(kind, place.output, {0: name, 1: "b", 2: "c"})
    files.add(place.inputs / "x.png", "x", result)
    files.write()
    return sorted(path for path in place.output.rglob("*") if path.is_file())


def are_readable(paths: list[Path]) -> bool:
    for path in paths:
        text = path.read_bytes()
        (ElementTree.fromstring if path.suffix == ".xml" else json.loads)(text)
    return bool(paths)


def annotations() -> Iterator[Row]:
    for number, name in enumerate(NAMES):
        kind = ("voc", "coco", "labelme")[number % 3]
        yield Row(
            f"{kind} of a class {name[:20]!r}", nothing, partial(annotate, kind, name), are_readable, may_refuse=True
        )


def html_page(name: str, place: Place, _: Any) -> str:
    from transformers_ice.export import ExplanationPage

    page = ExplanationPage(place.output, {0: name, 1: "b", 2: "c"})
    page.add(
        place.inputs / f"{name.replace('/', '')[:90]}.png".replace("\0", ""),
        scene(),
        {**explained(place.model), "label": name},
    )
    page.write()
    return (place.output / "index.html").read_text(encoding="utf-8")


def has_no_script(text: str) -> bool:
    return "<script>alert" not in text and "</html>" in text


def pages() -> Iterator[Row]:
    for name in NAMES:
        yield Row(
            f"page of a class {name[:20]!r}",
            nothing,
            partial(html_page, name),
            has_no_script,
            may_refuse="\ud83d" in name,
        )


def records() -> Iterator[Row]:
    """Yield records of cards that are cut, of other types, or from elsewhere."""

    def read(place: Place, path: Path) -> Any:
        from transformers_ice.hub import read_record

        return read_record(path)

    training = {"command": "x", "data": "y"}
    whole_record: dict[str, Any] = {"name": "tiny", "training": training}
    entry = {
        "benchmark": "classification",
        "dataset": "d",
        "split": "s",
        "metric": "top_1",
        "method": "",
        "value": 0.5,
    }
    entry |= {"num_images": 3, "seed": 0, "command": "c", "hardware": "h", "date": "2026-01-01"}
    changed: dict[str, Any] = {
        "a list": [],
        "null": None,
        "nothing": {},
        "training that is a list": {**whole_record, "training": []},
        "training without data": {**whole_record, "training": {"command": "x"}},
        "an unknown field": {**whole_record, "evil": 1},
        "results that are a number": {**whole_record, "results": 7},
        "results that are numbers": {**whole_record, "results": [7]},
        "a result without a value": {**whole_record, "results": [{"metric": "top_1"}]},
        "a result with more": {**whole_record, "results": [{**entry, "x": 1}]},
    }
    texts: dict[str, bytes] = {title: json.dumps(value).encode() for title, value in changed.items()}
    text = json.dumps({**whole_record, "results": [entry]}).encode()
    texts |= {f"cut after {part}/8": text[: len(text) * part // 8] for part in (0, 1, 4, 7)}
    texts |= {"no UTF-8": b"\xff\xfe", "nested without end": b"[" * 100_000, "zeros": bytes(99)}
    texts["a number of 5,000 digits"] = b'{"name": ' + b"9" * 5000 + b"}"
    for title, data in texts.items():
        yield Row(f"model_card.json: {title}", partial(_put, "model_card.json", data), read, says=r"model_card\.json")
    right = partial(_put, "model_card.json", text)
    yield Row("model_card.json as it should be", right, read, lambda record: record.name == "tiny")


def _put(name: str, data: bytes, place: Place) -> Path:
    return place.put(name, data)


def cards() -> Iterator[Row]:
    def build(name: str, place: Place, _: Any) -> str:
        from transformers_ice.hub import ModelRecord, TrainingRecord, build_card, read_facts

        facts = read_facts(place.model)
        record = ModelRecord(name, TrainingRecord(command=name, data=name), location=name)
        return build_card(record, facts)

    def is_card(text: str) -> bool:
        import yaml

        metadata = text.split("---\n")[1]
        fences = len(re.findall(r"^`{3,}", text, re.MULTILINE))
        return isinstance(yaml.safe_load(metadata), dict) and fences % 2 == 0 and "\x1b" not in text

    for name in NAMES:
        if name != "\ud83d":
            yield Row(f"card of a model {name[:20]!r}", nothing, partial(build, name), is_card, may_refuse=True)


def onnx_files() -> Iterator[Row]:
    """Yield files that are no ONNX, for the runtime."""

    def load(place: Place, path: Path) -> Any:
        from transformers_ice.export import OnnxModel

        return OnnxModel(path)

    for title in ("nothing", "text", "pickle", "zip", "lfs pointer", "a megabyte of zeros", "only a png signature"):
        yield Row(f"ONNX: {title}", partial(_put, "x.onnx", NO_PICTURES[title]), load, says=r"x\.onnx")
    yield Row("ONNX: no file", lambda place: place.inputs / "x.onnx", load, says=r"x\.onnx")
    yield Row("ONNX: a folder", lambda place: place.inputs, load)


def app_answers() -> Iterator[Row]:
    """Yield uploads and choices for the handlers of the app: each must answer with a status, whatever comes."""

    @cache
    def handlers(folder: Path) -> Any:
        from transformers_ice.app.analysis import load_model
        from transformers_ice.app.limits import Limits
        from transformers_ice.app.page import Handlers

        return Handlers(load_model(str(folder)), Limits())

    def ask(name: str, arguments: tuple[Any, ...], place: Place, path: Any) -> Any:
        return getattr(handlers(place.model), name)(None if path is None else str(path), *arguments)

    @cache
    def page(folder: Path) -> Any:
        from transformers_ice.app.limits import Limits
        from transformers_ice.app.page import build_page

        return build_page(handlers(folder).loaded, Limits())

    def checked(event: Any, data: Any, place: Place, _: Any) -> str:
        from transformers_ice.app.server import check_event

        numbers = {function.api_name: number for number, function in page(place.model).fns.items()}
        return check_event(page(place.model), numbers.get(event, event) if isinstance(event, str) else event, data)

    def refuses(answer: dict[str, Any]) -> bool:
        status = next(value for key, value in answer.items() if key.endswith("status"))
        return "problem" in status and "Traceback" not in status and "<script>alert" not in status

    for title, data in NO_PICTURES.items():
        yield Row(
            f"app, explain: {title}",
            partial(_put, "x.png", data),
            partial(ask, "explain", (-1,)),
            refuses,
            megabytes=150,
        )
    for title, data in {
        "cut": whole("PNG")[:60],
        "11000 x 11000": png(11000, 11000, 0, 1),
        "1 x 80000": png(1, 80_000),
    }.items():
        for name, arguments in (
            ("explain", (-1,)),
            ("compare", (-1, ["rollout"])),
            ("prune", ("attentiveness", 0.0, 0.5)),
        ):
            act = partial(ask, name, arguments)
            yield Row(f"app, {name}: a picture {title}", partial(_put, "x.png", data), act, refuses, megabytes=150)
    picture, upload = partial(_put, "x.png", whole("PNG")), {"path": "x.png"}
    for target in (7, -2, 99):
        yield Row(f"app, explain: class {target}", picture, partial(ask, "explain", (target,)), refuses)
    for strategy in ("top_k", "background"):  # the model has no heads for them
        yield Row(f"app, prune: {strategy}", picture, partial(ask, "prune", (strategy, 0.0, 0.5)), refuses)
    thing: Any
    for thing in (7, -2, "x", 1.5, [0], "0", {}, True, None, float("nan"), "x" * 9999):
        for event, data in (
            *(("explain", [upload, thing]), ("explain", [thing or 7, -1]), ("compare", [upload, -1, thing])),
            *(
                ("compare", [upload, -1, [thing]]),
                ("prune", [upload, thing, 0.0, 0.5]),
                ("prune", [upload, "top_k", [], 1]),
            ),
            *(("prune", [upload, "top_k", 0.0, thing]), ("explain", thing), (thing, [])),
        ):
            if not (thing == 7 and event == 7):
                yield Row(f"app, {str(event)[:9]} with {str(data)[:60]}", nothing, partial(checked, event, data), bool)
    for title, path in {
        "nothing": None,
        "a folder": "/tmp",
        "/dev/zero": "/dev/zero",
        "no file": "/nowhere/x.png",
    }.items():
        act = partial(ask, "explain", (-1,))
        answer = refuses if path else lambda answer: "Drop a picture" in answer["status"]
        yield Row(f"app, explain: {title}", lambda place, path=path: path, act, answer)


def rows() -> list[Row]:
    """Return all rows."""
    tables = (figures, annotations, pages, records, cards, onnx_files, app_answers)
    return [row for table in tables for row in table()]
