# SPDX-License-Identifier: Apache-2.0
"""Model folders whose configuration, preprocessing or weights are damaged, incomplete or contradictory."""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hostile.frame import Finished, Place, Row, command
from hostile.pictures import NO_PICTURES, scene


def copy_model(place: Place) -> Path:
    """Copy the shared model without its code, which is never run from there."""
    folder = place.inputs / "model"
    folder.mkdir(parents=True)
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        shutil.copyfile(place.model / name, folder / name)
    return folder


def explain(place: Place, folder: Path) -> Any:
    """Load as the command `explain` does, and explain one picture."""
    from transformers_ice.cli.explain import load_explainer

    return load_explainer(str(folder))(scene())


def explain_in_app(place: Place, folder: Path) -> Any:
    """Load and explain as the app does."""
    from transformers_ice.app.analysis import explain_image, load_model, prepare_image

    loaded = load_model(str(folder))
    shown = explain_image(loaded, prepare_image(loaded, scene())).shown
    return {"score": shown.score, "label": shown.label, "heatmap": np.asarray(shown.heatmap)}


def score(place: Place, folder: Path) -> Any:
    """Load as the evaluation does, and classify one picture."""
    import torch

    from transformers_ice.evaluation.checkpoints import class_logits, load_checkpoint

    checkpoint = load_checkpoint(str(folder), None, torch.device("cpu"))
    inputs = checkpoint.image_processor(scene(), return_tensors="pt")
    logits = class_logits(checkpoint.model, inputs["pixel_values"])
    best = int(logits.argmax())
    return {"score": float(logits.softmax(-1)[0, best]), "label": checkpoint.model.config.id2label[best]}


DOORS = (explain, explain_in_app, score)


def is_explanation(result: Any) -> bool:
    """Return whether an explanation has a finite score, a name and a map of the picture."""
    heatmap = np.asarray(result.get("heatmap", 0.0), dtype=float)
    is_map = "heatmap" not in result or (heatmap.ndim == 2 and heatmap.min() >= 0 and heatmap.max() <= 1)
    return isinstance(result["label"], str) and 0 <= result["score"] <= 1 and is_map


def is_done(finished: Finished) -> bool:
    return "1 of 1 images explained" in finished.stderr and (finished.place.output / "x.png").is_file()


def edited(file: str, change: Callable[[Any], Any], place: Place) -> Path:
    """Write a copy of the model in which the content of a JSON file was changed."""
    folder = copy_model(place)
    content = json.loads((folder / file).read_text())
    content = change(content) or content
    (folder / file).write_text(json.dumps(content))
    return folder


def with_field(file: str, name: str, value: Any) -> Callable[[Place], Path]:
    return partial(edited, file, lambda content: content.update({name: value}))


def with_file(file: str, data: bytes | None) -> Callable[[Place], Path]:
    def write(place: Place) -> Path:
        folder = copy_model(place)
        (folder / file).unlink()
        if data is not None:
            (folder / file).write_bytes(data)
        return folder

    return write


_VALUES: tuple[Any, ...] = (
    *(None, "x", "", -1, 0, 1, 10**6, 10**9, 0.5, -0.5, math.nan, math.inf, 1e300, True),
    *([], [1], [-1, 0], ["a"], {}, {"a": 1}, {"0": "a"}, [[1]], "a" * 5000),
)


def configurations() -> Iterator[Row]:
    """Yield each field of the configuration with values of other types and ranges, in turn; and without it."""
    from transformers_ice import IceDeiTConfig

    fields = sorted(IceDeiTConfig().to_dict().keys() - {"transformers_version", "_name_or_path"})
    for number, name in enumerate([*fields, "architectures", "dtype", "auto_map", "custom_pipelines", "num_labels"]):
        for turn in range(3):
            value = _VALUES[(number * 3 + turn * 8) % len(_VALUES)]
            title = f"config.json: {name} = {str(value)[:20]!r}"
            door = DOORS[(number + turn) % 3]
            yield Row(title, with_field("config.json", name, value), door, is_explanation, True)
    for name in ("model_type", "hidden_size", "num_hidden_layers", "id2label", "image_size", "patch_size"):
        write = partial(edited, "config.json", partial(_without, name))
        yield Row(f"config.json without {name}", write, explain, is_explanation, True)
    for name, value in {
        "num_hidden_layers": 1,
        "num_attention_heads": 3,
        "hidden_size": 10**9,
        "patch_head_hidden_size": 10**9,
        "id2label": {str(index): f"c{index}" for index in range(5)},
        "model_type": "deit",
        "hidden_act": "zzz",
        "layer_norm_eps": -1.0,
        "image_size": [32, 10**6],
        "patch_size": [8, 8, 8],
        "output_hidden_states": [[1]],
        "architectures": [-1],
        "auto_map": 7,
        "pruning_strategy": "background",
    }.items():
        yield Row(f"config.json: {name} = {str(value)[:30]}", with_field("config.json", name, value), explain)


def _without(name: str, content: dict[str, Any]) -> None:
    del content[name]


def preprocessing() -> Iterator[Row]:
    """Yield each setting of the image processor with values of other types and ranges, in turn."""
    names = ["do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor"]
    names += ["do_normalize", "image_mean", "image_std", "do_convert_rgb", "image_processor_type", "auto_map"]
    for number, name in enumerate(names):
        for turn in range(4):
            value = _VALUES[(number * 5 + turn * 6) % len(_VALUES)]
            title = f"preprocessor_config.json: {name} = {str(value)[:20]!r}"
            write = with_field("preprocessor_config.json", name, value)
            yield Row(title, write, DOORS[(number + turn) % 3], is_explanation, True)
    for name, value in (
        ("image_std", [0, 0, 0]),
        ("image_std", [math.nan] * 3),
        ("image_mean", [1]),
        ("rescale_factor", 0),
        ("resample", 99),
        ("image_mean", 1e300),
        ("image_std", 1e-300),
        ("size", ["a"]),
        ("crop_size", [1]),
        ("auto_map", -1),
        ("size", {"height": 10**6, "width": 10**6}),
        ("size", {"height": 0, "width": 32}),
        ("size", {"height": "32", "width": 32}),
        ("size", {"shortest_edge": -1}),
    ):
        title = f"preprocessor_config.json: {name} = {value}"
        yield Row(title, with_field("preprocessor_config.json", name, value), explain, says=name)


def broken_files() -> Iterator[Row]:
    """Yield folders in which a file is missing, cut, of another kind, or nested without end."""
    contents: dict[str, bytes | None] = {
        "missing": None,
        "empty": b"",
        "null": b"null",
        "a list": b"[1, 2]",
        "a number": b"7",
        "cut": b'{"model_type": "ice_deit", "hidden_si',
        "no UTF-8": b'{"model_type": "\xff\xfe"}',
        "nested without end": b"[" * 100_000,
        "a number of 5,000 digits": b'{"model_type": "ice_deit", "hidden_size": ' + b"9" * 5000 + b"}",
        "a web page": NO_PICTURES["web page"],
        "a pointer": NO_PICTURES["lfs pointer"],
    }
    for file in ("config.json", "preprocessor_config.json"):
        for number, (title, data) in enumerate(contents.items()):
            yield Row(f"{file}: {title}", with_file(file, data), DOORS[number % 3])
    data = b'{"__metadata__": {"format": "pt"}}'
    weights: dict[str, bytes | None] = {
        **{title: contents[title] for title in ("missing", "empty", "null", "a web page", "a pointer", "cut")},
        "a header of 2**60 bytes": struct.pack("<Q", 2**60) + b"{}",
        "a header of 100 MB, missing": struct.pack("<Q", 10**8) + b"{}",
        "a header of 0 bytes": bytes(8),
        "a header that is no JSON": struct.pack("<Q", 4) + b"ooo}",
        "a header without tensors": struct.pack("<Q", len(data)) + data,
        "eight zeros": bytes(64),
        "a zip": NO_PICTURES["zip"],
        "a pickle": NO_PICTURES["pickle"],
    }
    for number, (title, data_) in enumerate(weights.items()):
        yield Row(f"model.safetensors: {title}", with_file("model.safetensors", data_), DOORS[number % 3])


def tensors() -> Iterator[Row]:
    """Yield weights that are cut, or whose tensors are missing, surplus, of other shapes and types, or no numbers."""

    def cut(part: int, place: Place) -> Path:
        folder = copy_model(place)
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[: len(data) * part // 8])
        return folder

    def change(function: Callable[[dict[str, Any]], Any], place: Place) -> Path:
        from safetensors.torch import load_file, save_file

        folder = copy_model(place)
        weights = load_file(folder / "model.safetensors")
        save_file(function(weights) or weights, folder / "model.safetensors", {"format": "pt"})
        return folder

    def header(function: Callable[[dict[str, Any]], Any], place: Place) -> Path:
        folder = copy_model(place)
        data = (folder / "model.safetensors").read_bytes()
        size = struct.unpack("<Q", data[:8])[0]
        entries = json.loads(data[8 : 8 + size])
        function(entries)
        text = json.dumps(entries).encode()
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
        return folder

    for part in range(1, 8):
        yield Row(f"weights cut after {part}/8", partial(cut, part), DOORS[part % 3], says="weights|safetensors")
    keys = {
        "the patch head": "deit.patch_head.weight",
        "a layer norm": "deit.layers.1.layernorm_before.weight",
        "positions": "deit.embeddings.position_embeddings",
        "the patches": "deit.embeddings.patch_embeddings.projection.weight",
    }
    changes: dict[str, Callable[[Any, str], Any]] = {
        "missing": lambda weights, key: weights.pop(key) is None or None,
        "NaN": lambda weights, key: weights[key].view(-1)[0].fill_(math.nan) is None or None,
        "infinite": lambda weights, key: weights[key].fill_(-math.inf) is None or None,
        "whole numbers": lambda weights, key: weights.update({key: weights[key].int()}),
        "flat": lambda weights, key: weights.update({key: weights[key].flatten()[:3].clone()}),
        "of no size": lambda weights, key: weights.update({key: weights[key][:0].clone()}),
        "complex": lambda weights, key: weights.update({key: weights[key] * 1j}),
    }
    number = 0
    for what, key in keys.items():
        for how, function in changes.items():
            write = partial(change, partial(_on_key, function, key))
            answer = is_explanation if how in ("whole numbers", "complex") else None
            yield Row(f"weights: {what} {how}", write, DOORS[number % 3], answer, answer is not None)
            number += 1
    surplus = partial(change, lambda weights: weights.update({"deit.layers.9999.x": weights["classifier.bias"] + 1}))
    yield Row("weights with one of layer 9999", surplus, explain, says="9999")
    yield Row("weights with 9,999 more", partial(change, _many), explain, says="and 99")
    first = "deit.patch_head.weight"
    for title, function_ in {
        "an unknown type": lambda entries: entries[first].update(dtype="Q9"),
        "offsets after the end": lambda entries: entries[first].update(data_offsets=[0, 10**12]),
        "negative offsets": lambda entries: entries[first].update(data_offsets=[-4, 4]),
        "a shape of 10**12": lambda entries: entries[first].update(shape=[10**6, 10**6]),
        "a negative shape": lambda entries: entries[first].update(shape=[-4]),
        "an entry that is a list": lambda entries: entries.update({first: []}),
    }.items():
        yield Row(f"header of the weights: {title}", partial(header, function_), explain)


def _on_key(function: Callable[[Any, str], Any], key: str, weights: Any) -> Any:
    match = key if key in weights else next(name for name in weights if name.endswith(key.rpartition(".")[2]))
    function(weights, match)


def _many(weights: Any) -> None:
    weights.update({f"x{number}": weights["classifier.bias"].clone() for number in range(9999)})


def indices_and_pickles() -> Iterator[Row]:
    """Yield indices of shards that lead nowhere or out of the folder, and PyTorch files that would run code."""
    maps: dict[str, Any] = {
        "empty": {},
        "a list": ["model.safetensors"],
        "of numbers": {"a": 1},
        "of lists": {"a": []},
        "to a missing shard": {"a": "none.safetensors"},
        "out of the folder": {"a": "../../../../etc/passwd"},
        "to an absolute name": {"a": "/etc/passwd"},
    }
    for number, (title, value) in enumerate(maps.items()):

        def write(place: Place, value: Any = value) -> Path:
            folder = copy_model(place)
            (folder / "model.safetensors").unlink()
            (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": value}))
            return folder

        yield Row(f"an index whose map is {title}", write, DOORS[number % 3])

    class Touch:
        def __reduce__(self) -> Any:
            return os.system, ("touch ran",)

    for title, data in {
        "code to run": pickle.dumps(Touch()),
        "an old pickle": NO_PICTURES["pickle"],
        "text": b"hello",
        "nothing": b"",
    }.items():

        def put(place: Place, data: bytes = data) -> Path:
            folder = copy_model(place)
            (folder / "model.safetensors").unlink()
            (folder / "pytorch_model.bin").write_bytes(data)
            return folder

        for door in DOORS:
            yield Row(f"pytorch_model.bin with {title}, {door.__name__}", put, door)


def commands() -> Iterator[Row]:
    """Yield some of the folders again, by the commands, which must print one line."""

    def with_picture(write: Callable[[Place], Path], place: Place) -> Path:
        scene().save(place.inputs / "x.png")
        return write(place)

    run = command("explain", "{in}/x.png", "--model", "{written}", "--output_dir", "{out}")
    for title, write in {
        "a pointer as weights": with_file("model.safetensors", NO_PICTURES["lfs pointer"]),
        "no weights": with_file("model.safetensors", None),
        "config.json null": with_file("config.json", b"null"),
        "no config.json": with_file("config.json", None),
        "no preprocessor": with_file("preprocessor_config.json", None),
        "three layers": with_field("config.json", "num_hidden_layers", 3),
        "0 heads": with_field("config.json", "num_attention_heads", 0),
        "another type": with_field("config.json", "model_type", "vit"),
        "foreign code": with_field("config.json", "auto_map", {"AutoConfig": "evil.Config"}),
        "classes from 5": with_field("config.json", "id2label", {"5": "a", "6": "b", "7": "c"}),
        "deviation 0": with_field("preprocessor_config.json", "image_std", [0, 0, 0]),
    }.items():
        answer = is_done if title == "foreign code" else None
        yield Row(f"explain with {title}", partial(with_picture, write), run, answer)
    for name in (
        "nowhere",
        "./nowhere",
        "/nowhere/x",
        "a/b/c",
        "~/nowhere-9",
        "",
        " ",
        "checkpoints/none",
        "\0",
        "in",
    ):
        named = command("explain", "{in}/x.png", "--model", name, "--output_dir", "{out}")
        yield Row(f"explain with the model {name!r}", partial(with_picture, copy_model), named)


def rows() -> list[Row]:
    """Return all rows."""
    tables = (configurations, preprocessing, broken_files, tensors, indices_and_pickles, commands)
    return [row for table in tables for row in table()]
