# SPDX-License-Identifier: Apache-2.0
"""Model cards: `model_card_template.md`, filled from a record and from the folder of a model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors import safe_open

from ..console.json_files import read_json
from ..console.redaction import redact_text
from ..ice_deit.configuration_ice_deit import IceDeiTConfig, as_pair
from ..ice_deit.modeling_ice_deit import IceDeiTForImageClassification
from ..ice_deit.patch_maps import grid_size
from .records import COMPARED_METHODS, METRICS, ModelRecord, ResultEntry


__all__ = ["ModelFacts", "build_card", "facts_of_architecture", "first_snippet", "for_repository", "read_facts"]

_TEMPLATE = Path(__file__).with_name("model_card_template.md")
# task type and name on the Hub, per benchmark
_TASKS = {
    "classification": ("image-classification", "image classification"),
    "segmentation": ("image-segmentation", "foreground masks learnt from image labels"),
    "localization": ("object-detection", "object localization learnt from image labels"),
    "discovery": ("object-detection", "object discovery learnt from image labels"),
}
_TYPE_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}  # as safetensors writes them
_ICE_TAGS = ["image-segmentation", "explainability", "weakly-supervised", "ice", "custom_code"]
_LOCATION = re.compile(r'^checkpoint = "((?:[^"\\\n]|\\.)+)"$', re.MULTILINE)
_PYTHON_BLOCK = re.compile(r"^(`{3,})python\n(.*?)^\1$", re.MULTILINE | re.DOTALL)
_CONTROLS = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u202a-\\u202e\\u2066-\\u2069]")  # also those of direction
_LONGEST_NAME = 60


@dataclass(frozen=True)
class ModelFacts:
    """Facts that are read from the folder of a model."""

    config: Mapping[str, Any]  # config.json
    num_parameters: int
    class_names: tuple[str, ...] = ()  # in the order of their indices
    train_seconds: float | None = None  # of the last call of the training; None where it was not written down
    resumed_at_step: int | None = None  # where that call resumed a run
    train_epochs: float | None = None
    weights_type: str = "float32"  # of the numbers in the file; more than one are joined by commas

    @property
    def is_ice(self) -> bool:
        """Whether the model is an ICE model, with maps of its own."""
        return self.config.get("model_type") == IceDeiTConfig.model_type

    @property
    def is_multi_label(self) -> bool:
        """Whether an image has several classes, or none."""
        return self.config.get("problem_type") == "multi_label_classification"

    @property
    def thresholds(self) -> str:
        """From which score a class counts as found, in words; of a multi-label ICE model."""
        values = self.config.get("object_thresholds") or [0.5]
        if min(values) == max(values):
            return f"{values[0]:g}"
        return f"{min(values):.2g} to {max(values):.2g}, one for each class (`object_thresholds` in `config.json`)"

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the input, in pixels."""
        return as_pair(self.config["image_size"])

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return grid_size(self.image_size, as_pair(self.config["patch_size"]))


def read_facts(folder: Path) -> ModelFacts:
    """Read the facts of a folder.

    Raises:
        ValueError: If it holds no model.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} must hold a model, got no config.json there. Pass the folder that training wrote.")
    config = read_json(folder / "config.json")
    names = {int(index): name for index, name in config.get("id2label", {}).items()}
    results = folder / "all_results.json"
    numbers = read_json(results) if results.is_file() else {}
    num_parameters, weights_type = _read_weights(folder)
    return ModelFacts(
        config=config,
        num_parameters=num_parameters,
        weights_type=weights_type,
        class_names=tuple(names[index] for index in sorted(names)),
        train_seconds=numbers.get("train_runtime"),
        train_epochs=numbers.get("epoch"),
        resumed_at_step=numbers.get("train_resumed_at_step"),
    )


def _read_weights(folder: Path) -> tuple[int, str]:
    """Return how many numbers the weight files hold, and their types; without a file none, in float32."""
    count, types = 0, set()
    for file in folder.glob("model*.safetensors"):
        with safe_open(str(file), "pt") as weights:
            for name in weights.keys():  # noqa: SIM118
                part = weights.get_slice(name)
                count += prod(part.get_shape())
                types.add(_TYPE_NAMES.get(part.get_dtype(), part.get_dtype()))
    return count, ", ".join(sorted(types)) or "float32"


def facts_of_architecture(architecture: Mapping[str, Any]) -> ModelFacts:
    """Return the facts of a model that is still to be trained, from its sizes; nothing is allocated."""
    config = IceDeiTConfig(**architecture)
    with torch.device("meta"):
        model = IceDeiTForImageClassification(config)
    return ModelFacts(config.to_dict(), sum(weight.numel() for weight in model.parameters()))


def build_card(record: ModelRecord, facts: ModelFacts, picture: str | None = None) -> str:
    """Return the card of a model, in the format of the Hub.

    Args:
        record: How the model was made, and its numbers.
        facts: Facts of its folder.
        picture: Path of its figure, relative to the card.

    Raises:
        ImportError: If Jinja2 is not installed.
    """
    card = ModelCard.from_template(
        _card_data(record, facts),
        template_path=str(_TEMPLATE),
        record=record,
        facts=facts,
        picture=picture,
        metrics=METRICS,
        tables=_result_tables(record.results),
        cell=table_cell,
        block=fenced_block,
        quoted=quoted,
    )
    # a record may be older than its redaction, and hold what a terminal or a browser would obey
    return redact_text(_CONTROLS.sub(" ", f"{card}\n"))


def table_cell(text: Any) -> str:
    """Return text as the cell of a table: one line, no markup, no control or direction characters, not too long."""
    plain = "".join(character if character.isprintable() else " " for character in str(text))
    plain = " ".join(plain.split())
    plain = plain if len(plain) <= _LONGEST_NAME else f"{plain[:_LONGEST_NAME]}..."
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))


def fenced_block(text: str, language: str = "") -> str:
    """Return a code block whose fence is longer than any run of backticks in the text."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return f"{fence}{language}\n{text}\n{fence}"


def quoted(text: str) -> str:
    """Return text as a string of python in double quotes."""
    return json.dumps(text, ensure_ascii=not text.isprintable())


def _card_data(record: ModelRecord, facts: ModelFacts) -> ModelCardData:
    own = [entry for entry in record.results if entry.method not in COMPARED_METHODS]
    planned = ["mean_average_precision", "f1"] if facts.is_multi_label else ["accuracy"]
    planned += ["mean_iou"] if facts.is_ice else []
    return ModelCardData(
        license=record.license,
        library_name="transformers",
        pipeline_tag="image-classification",
        base_model=record.training.base_model,
        datasets=list(record.training.datasets) or None,
        metrics=list(dict.fromkeys(METRICS[entry.metric].hub_type for entry in own)) or planned,
        tags=["vision", "image-classification", *(_ICE_TAGS if facts.is_ice else [])],
        model_name=record.name if own else None,  # belongs to the results
        eval_results=[_eval_result(entry) for entry in own] or None,
    )


def _eval_result(entry: ResultEntry) -> EvalResult:
    task_type, task_name = _TASKS[entry.benchmark]
    metric = METRICS[entry.metric]
    return EvalResult(
        task_type=task_type,
        task_name=task_name,
        dataset_type=entry.dataset,
        dataset_name=entry.dataset,
        dataset_split=entry.split,
        metric_type=metric.hub_type,
        metric_name=f"{metric.title} ({entry.method})" if entry.method else metric.title,
        metric_value=entry.value,
    )


def _result_tables(results: Iterable[ResultEntry]) -> list[dict[tuple[str, str], ResultEntry]]:
    """Return the cells of one table for each command, by metric and method."""
    tables: dict[tuple[str, int], dict[tuple[str, str], ResultEntry]] = {}
    for entry in results:
        tables.setdefault((entry.command, entry.num_images), {})[entry.metric, entry.method] = entry
    return list(tables.values())


def first_snippet(card: str) -> str:
    """Return the first python block of a card, which loads the pipelines; "" where there is none."""
    found = _PYTHON_BLOCK.search(card)
    return "" if found is None else found[2]


def for_repository(card: str, repo_id: str) -> str:
    """Let the snippets of a card load a repository of the Hub instead of a folder.

    Args:
        card: The text, whose snippets may load `checkpoint = "FOLDER"`.
        repo_id: The repository, `owner/name`.
    """
    found = _LOCATION.search(card)
    if found is None:
        return card
    location, files = found[1], f"https://huggingface.co/{repo_id}/resolve/main"

    def replace(block: re.Match[str]) -> str:
        # inside a string of python, the location is written as it was found
        text = block[0].replace(f"https://huggingface.co/{location}/resolve/main", files)  # published before
        return text.replace(f'"{location}/', f'"{files}/').replace(f'"{location}"', f'"{repo_id}"')

    return _PYTHON_BLOCK.sub(replace, card)
