# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that the converter is given: files of other kinds, damaged, contradictory, or with code to run."""

from __future__ import annotations

import argparse
import io
import math
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from hostile.folders import copy_model, edited, with_field, with_file
from hostile.frame import Finished, Place, Row, command
from hostile.pictures import NO_PICTURES


def convert(place: Place, source: Any) -> Any:
    from transformers_ice.conversion import convert_checkpoint

    return convert_checkpoint(source, place.output / "new", num_attention_heads=4)


def is_whole(report: Any) -> bool:
    """Return whether the converter wrote a folder that loads."""
    from transformers_ice import IceDeiTForImageClassification

    return IceDeiTForImageClassification.from_pretrained(report.output_dir) is not None


def saved(change: Callable[[dict[str, Any]], Any], place: Place) -> Path:
    """Write the weights of the model as a PyTorch file, changed."""
    import torch
    from safetensors.torch import load_file

    weights = load_file(place.model / "model.safetensors")
    changed = change(weights)
    stream = io.BytesIO()
    torch.save(weights if changed is None else changed, stream)
    return place.put("x.pth", stream.getvalue())


def _tensor(**changes: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    key = "deit.layers.0.mlp.fc1.weight"

    def change(weights: dict[str, Any]) -> None:
        for function in changes.values():
            weights[key] = function(weights[key])

    return change


class Runs:
    """An object whose pickle runs a program."""

    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


def checkpoints() -> Iterator[Row]:
    import torch

    yield Row("weights as they should be", partial(saved, lambda weights: None), convert, is_whole)
    yield Row("weights below model", partial(saved, lambda weights: {"model": weights}), convert, is_whole)
    allowed = argparse.Namespace(lr=1)
    yield Row(
        "weights with arguments",
        partial(saved, lambda weights: {"model": weights, "args": allowed}),
        convert,
        is_whole,
    )
    for title, change in {
        "code to run": lambda weights: {"model": weights, "x": Runs()},
        "only code to run": lambda weights: Runs(),
        "a number": lambda weights: 7,
        "a list": lambda weights: [1],
        "nothing": lambda weights: {},
        "no tensors": lambda weights: {"model": {"a": 1}},
        "a number among the tensors": lambda weights: {**weights, "epoch": 7},
        "numbers as names": lambda weights: dict(enumerate(weights.values())),
        "one tensor": lambda weights: {"a": torch.ones(1)},
        "an unknown name": lambda weights: {**weights, "deit.unknown": torch.ones(1)},
        "9,999 unknown names": lambda weights: {**weights, **{f"x{n}": torch.ones(1) for n in range(9999)}},
        "a layer missing": lambda weights: {k: v for k, v in weights.items() if ".layers.0." not in k},
        "a bias missing": lambda weights: {k: v for k, v in weights.items() if not k.endswith("fc1.bias")},
        "a layer 9999": lambda weights: {**weights, "deit.layers.9999.mlp.fc1.bias": torch.ones(1)},
        "NaN": _tensor(a=lambda value: value * math.nan),
        "infinity": _tensor(a=lambda value: value / 0),
        "whole numbers": _tensor(a=lambda value: value.int()),
        "complex numbers": _tensor(a=lambda value: value * 1j),
        "float8": _tensor(a=lambda value: value.to(torch.float8_e4m3fn)),
        "a sparse tensor": _tensor(a=lambda value: value.to_sparse()),
        "a tensor without values": _tensor(a=lambda value: value.to("meta")),
        "a nested tensor": _tensor(a=lambda value: torch.nested.nested_tensor([value])),
        "a tensor of stride 0": _tensor(a=lambda value: value[:1, :1].expand(10**6, 10**6)),
        "a turned tensor": _tensor(a=lambda value: value.T.contiguous()),
        "a tensor of no axes": _tensor(a=lambda value: value.sum()),
        "a tensor of no size": _tensor(a=lambda value: value[:0]),
    }.items():
        yield Row(f"checkpoint: {title}", partial(saved, change), convert, megabytes=300)
    data = {
        title: NO_PICTURES[title] for title in ("nothing", "text", "web page", "lfs pointer", "zip", "gzip", "pickle")
    }
    data |= {"a megabyte of zeros": bytes(2**20)}
    for title, content in data.items():
        for ending in ("pth", "safetensors", "bin"):
            yield Row(f"{title} as x.{ending}", partial(_put, f"x.{ending}", content), convert, says=r"x\.")
    for part in (1, 4, 7):

        def cut(place: Place, part: int = part) -> Path:
            path = saved(lambda weights: None, place)
            content = path.read_bytes()
            path.write_bytes(content[: len(content) * part // 8])
            return path

        yield Row(f"checkpoint cut after {part}/8", cut, convert, says=r"x\.pth")


def _put(name: str, content: bytes, place: Place) -> Path:
    return place.put(name, content)


def folders() -> Iterator[Row]:
    yield Row("a folder as it should be", copy_model, convert, is_whole)
    config, settings = "config.json", "preprocessor_config.json"
    for file, name, values in (
        (config, "model_type", (None, 7, "bert", "")),
        (config, "num_labels", (10**9, -1, "x")),
        (config, "num_hidden_layers", (10**6, 0, 3, "x", None)),
        (config, "hidden_size", (10**9, 0, 31, None)),
        (config, "num_attention_heads", (0, -1, 5)),
        (config, "hidden_act", ("zzz", 7)),
        (config, "layer_norm_eps", (math.nan, -1)),
        (config, "image_size", (0, "x", [1], 10**9, None)),
        (config, "patch_size", (0, 7, [8, 8, 8])),
        (config, "id2label", ([], {"5": "a"}, {"0": []}, {"0": "a", "1": "a", "2": "a"}, "abc")),
        (config, "dtype", ("floatx", 7)),
        (settings, "image_std", ([0, 0, 0], [math.nan] * 3, "x")),
        (settings, "image_mean", ([1], "x", {})),
        (settings, "rescale_factor", (0, "x")),
        (settings, "size", (-1, 10**6, "x", {"height": -1, "width": 5})),
        (settings, "resample", (99, "x")),
        (settings, "image_processor_type", ("NoSuch", 7)),
    ):
        for value in values:
            row = f"folder, {file}: {name} = {str(value)[:30]}"
            yield Row(row, with_field(file, name, value), convert, is_whole, True, megabytes=300)
    for file in (config, settings):
        for content in (b"", b"null", b"[]", b"{", b"[" * 100_000, b"\xff\xfe", b"{}"):
            may_answer = content == b"{}" and file == settings
            row = f"folder, {file} = {content[:5]!r}"
            yield Row(row, with_file(file, content), convert, is_whole if may_answer else None, may_answer)
    yield Row("a folder without weights", with_file("model.safetensors", None), convert)
    foreign = partial(edited, config, lambda content: content.update(auto_map={"AutoConfig": "evil.Config"}))
    yield Row("a folder with foreign code", foreign, convert, is_whole)


def commands() -> Iterator[Row]:
    """Yield the command with names of classes, outputs that exist, and places that cannot be written."""
    base = ("convert", "--checkpoint", "{written}", "--num_attention_heads", "4")

    def with_names(content: bytes, place: Place) -> Path:
        place.put("names.json", content)
        return copy_model(place)

    run = command(*base, "--output_dir", "{out}/new", "--id2label", "{in}/names.json")
    for content in (
        *(
            b"",
            b"7",
            b"null",
            b"{",
            b'["a"]',
            b'["a", "b", "c", "d"]',
            b'{"1": "a", "2": "b", "3": "c"}',
            b'["a", "a", "a"]',
        ),
        *(
            b'[["a"], "b", "c"]',
            b'{"0": 1}',
            b"[" * 100_000,
            b"\xff",
            b'{"a": 0, "b": 1, "c": 2}',
            b'["a", null, "c"]',
        ),
    ):
        yield Row(f"names of classes = {content[:30]!r}", partial(with_names, content), run)

    def is_kept(finished: Finished) -> bool:
        return finished.code == 0

    outside = command(*base, "--output_dir", "{in}/model")
    yield Row("output is the checkpoint", copy_model, outside)
    yield Row("output is a file", copy_model, command(*base, "--output_dir", "{in}/model/config.json"))
    yield Row("output below a file", copy_model, command(*base, "--output_dir", "{in}/model/config.json/x"))
    again = command(*base, "--output_dir", "{in}/model", "--overwrite_output_dir")
    yield Row("output is the checkpoint, overwritten", copy_model, again)
    report = command(*base, "--output_dir", "{out}/new", "--report", "{in}/model/config.json")
    yield Row("report over the checkpoint", copy_model, report)
    yield Row("a whole conversion", copy_model, command(*base, "--output_dir", "{out}/new"), is_kept)
    for words in (
        ["--image_size", "0"],
        ["--image_size", "1", "2", "3"],
        ["--num_attention_heads", "-3"],
        ["--weights_key", "x"],
    ):
        yield Row(
            f"convert {words}",
            copy_model,
            command(*base, "--output_dir", "{out}/new", *words),
            is_kept,
            words[0] == "--weights_key",
        )


def rows() -> list[Row]:
    """Return all rows."""
    return [*checkpoints(), *folders(), *commands()]
