# SPDX-License-Identifier: Apache-2.0
"""Records of models: the training, and every published number, which the model's folder does not contain.

`model_cards/results.json` holds one `ModelRecord` for each model; a run of `scripts/run_train.py` writes one into its
folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ..console.json_files import read_json
from ..console.output_files import write_json


__all__ = [
    "COMPARED_METHODS",
    "LICENSE",
    "METRICS",
    "RECORD_FILE",
    "Metric",
    "ModelRecord",
    "ResultEntry",
    "TrainingRecord",
    "entries_from_evaluation",
    "entries_from_training",
    "read_record",
    "read_records",
    "weights_digest",
    "write_record",
    "write_records",
]

RECORD_FILE = "model_card.json"
"""Record in the folder of a model, from which `scripts/write_model_card.py` writes its card; it is not published."""

LICENSE = "apache-2.0"
"""Licence of the weights where a record names no other, as an identifier of the Hub."""


class Metric(NamedTuple):
    """Names of a score: in a table, of the benchmark that gives it, and on the Hub."""

    title: str
    benchmark: str
    hub_type: str


METRICS: dict[str, Metric] = {
    "top_1": Metric("top-1 accuracy", "classification", "accuracy"),
    "top_5": Metric("top-5 accuracy", "classification", "top_5_accuracy"),
    "cls_top_1": Metric("top-1 accuracy of the [CLS] classifier", "classification", "accuracy"),
    "map": Metric("mean average precision of the classes of an image", "classification", "mean_average_precision"),
    "cls_map": Metric("the same of the [CLS] classifier", "classification", "mean_average_precision"),
    "f1": Metric("F1 of the classes of an image (macro, at 0.5)", "classification", "f1"),
    "foreground_ratio": Metric("fraction of foreground patches", "classification", "foreground_ratio"),
    "pixel_accuracy": Metric("pixel accuracy", "segmentation", "pixel_accuracy"),
    "mean_iou": Metric("mean IoU", "segmentation", "mean_iou"),
    "mean_average_precision": Metric("mean average precision of pixels", "segmentation", "mean_average_precision"),
    "max_box_acc_v2": Metric("MaxBoxAccV2", "localization", "max_box_acc_v2"),
    "pointing_game": Metric("pointing game", "localization", "pointing_game"),
    "corloc": Metric("CorLoc", "discovery", "corloc"),
}
"""The scores that are published, in the order of the tables."""

COMPARED_METHODS = ("ceiling", "whole_image", "center_ellipse", "random")
"""Rows that are measured for comparison: the best map of the patch grid and the controls are no results of a model."""

# score of the evaluation that ends a training run -> method of its maps
_TRAINING_METHODS = {
    **dict.fromkeys(("top_1", "top_5", "cls_top_1", "map", "cls_map", "f1", "foreground_ratio"), ""),
    **dict.fromkeys(("pixel_accuracy", "mean_iou"), "ice_hard"),
}


@dataclass(frozen=True, kw_only=True)
class ResultEntry:
    """Published number, with all that is needed to reproduce it."""

    benchmark: str  # as `scripts/run_evaluation.py` calls it
    dataset: str
    split: str
    metric: str  # a key of `METRICS`
    method: str  # explainer that made the maps; "" for the classifier itself
    value: float
    low: float | None = None  # end of the 95 % interval over resampled images; None where it was not computed
    high: float | None = None
    num_images: int
    seed: int  # of the training run
    command: str  # what prints the number
    hardware: str
    date: str  # year-month-day


@dataclass(frozen=True)
class TrainingRecord:
    """Training of a model: data, start, settings and hardware."""

    command: str
    data: str  # a sentence on the training images
    datasets: tuple[str, ...] = ()  # their names, as the Hub writes ids
    base_model: str | None = None  # id of the model it was started from; None for random weights
    hardware: str = ""
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)  # steps, batch size, learning rate, objective
    power_watts: float | None = None  # assumed power of the hardware; None where nothing is assumed
    power_basis: str = ""  # where that number comes from
    note: str = ""  # a sentence on the peculiarities of this run


@dataclass(frozen=True)
class ModelRecord:
    """Content of a card that the folder of the model does not contain."""

    name: str
    training: TrainingRecord
    location: str = ""  # folder that the snippets load
    evaluation: str = ""  # arguments of `scripts/run_evaluation.py` after `--models` and the folder
    results: tuple[ResultEntry, ...] = ()
    weights_sha256: str = ""  # of the weights that the results belong to
    is_template: bool = False  # whether the model is still to be trained
    architecture: Mapping[str, Any] = field(default_factory=dict)  # sizes of a template's model
    image: str = "photo.jpg"  # image that the snippets explain
    output: str = ""  # output of the first snippet; "" where it was not run
    limits: tuple[str, ...] = ()  # limitations beyond those of every card
    license: str = LICENSE  # of the weights


T = TypeVar("T")


def _from_json(kind: type[T], values: Any, where: str) -> T:
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} must hold the fields of a record, got {type(values).__name__}. Write it again.")
    names = {item.name for item in fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(values.keys() - names)
    if unknown:
        raise ValueError(f"{where} must hold the fields {sorted(names)}, got {unknown}. Remove or rename them.")
    try:
        return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
    except TypeError as error:
        raise ValueError(f"{where} is not complete: {error}.") from error


def _record_from_json(values: Any, where: str) -> ModelRecord:
    values = values if isinstance(values, Mapping) else _from_json(ModelRecord, values, where).__dict__
    training = _from_json(TrainingRecord, values.get("training", {}), f"{where}, training")
    entries = values.get("results", ())
    if not isinstance(entries, (list, tuple)):
        raise ValueError(f"{where}, results must be a list, got {type(entries).__name__}. Write it again.")
    results = [_from_json(ResultEntry, entry, f"{where}, results") for entry in entries]
    return _from_json(ModelRecord, {**values, "training": training, "results": results}, where)


def _record_to_json(record: ModelRecord) -> dict[str, Any]:
    values = asdict(record)
    if record.license == LICENSE:  # files from before other licences were possible do not change
        del values["license"]
    return values


def read_records(file: Path) -> dict[str, ModelRecord]:
    """Read the records of all models, by name.

    Raises:
        ValueError: If a field is unknown or missing.
    """
    content = read_json(file)
    if not isinstance(content, dict) or not all(isinstance(values, dict) for values in content.values()):
        raise ValueError(f"{file} must map the names of models to their records. Restore the file.")
    return {
        name: _record_from_json({"name": name, **values}, f"{file.name}, {name}") for name, values in content.items()
    }


def write_records(file: Path, records: Mapping[str, ModelRecord]) -> None:
    """Write the records of all models."""
    content = {name: _record_to_json(record) for name, record in records.items()}
    for values in content.values():
        del values["name"]
    write_json(file, content)


def read_record(file: Path) -> ModelRecord:
    """Read the record that a run wrote into its folder."""
    return _record_from_json(read_json(file), str(file))


def write_record(file: Path, record: ModelRecord) -> None:
    """Write the record of one model."""
    write_json(file, _record_to_json(record))


def weights_digest(folder: Path) -> str:
    """Return the SHA-256 of the weights of a folder, over all files that they are spread over."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("model*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def entries_from_evaluation(report: Mapping[str, Any], checkpoint: str, **run: Any) -> tuple[ResultEntry, ...]:
    """Return the published numbers of a model in a report of `scripts/run_evaluation.py`.

    `run` has the fields of a `ResultEntry` that are not in the report: `seed`, `command`, `hardware` and `date`.
    """
    dataset = report["dataset"]["name"]
    split = report["settings"]["split"] or ("test" if dataset == "scenes" else "default")
    entries = tuple(
        ResultEntry(
            benchmark=metric.benchmark,
            dataset=dataset,
            split=split,
            metric=name,
            method=line["method"],
            num_images=score["num_examples"],
            **_rounded(score),
            **run,
        )
        for line in report["results"]
        if line["checkpoint"] == checkpoint
        for name, metric in METRICS.items()
        if (score := line["scores"].get(name)) is not None and score["value"] is not None
    )
    if not entries:
        raise ValueError(f"The report must hold scores of {checkpoint!r}, got none. Name the model so with NAME=PATH.")
    return entries


def _rounded(score: Mapping[str, Any]) -> dict[str, Any]:
    """Return a score and its interval to six decimals."""
    return {key: None if score[key] is None else round(score[key], 6) for key in ("value", "low", "high")}


def entries_from_training(numbers: Mapping[str, float], **run: Any) -> tuple[ResultEntry, ...]:
    """Return the published numbers of the evaluation that ends a run, from `all_results.json`; `run` as above."""
    scores = {name: numbers[f"eval_{name}"] for name in _TRAINING_METHODS if f"eval_{name}" in numbers}
    if "map" not in scores:  # of one class an image the masks say enough
        scores.pop("foreground_ratio", None)
    return tuple(
        ResultEntry(
            benchmark=METRICS[name].benchmark,
            split="validation",
            metric=name,
            method=_TRAINING_METHODS[name],
            value=round(value, 6),
            **run,
        )
        for name, value in scores.items()
    )
