# SPDX-License-Identifier: Apache-2.0
"""What is known of a model beside its weights: how it was made, and every number that is published of it.

`model_cards/results.json` holds one `ModelRecord` for each model; a run of `scripts/run_train.py` writes one into its
folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from ..output_files import write_json


__all__ = [
    "METRICS",
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


@dataclass(frozen=True)
class Metric:
    """Say what a score is called.

    Attributes:
        title: In a table.
        benchmark: Which benchmark gives it.
        hub_type: Identifier of the metric on the Hub.
    """

    title: str
    benchmark: str
    hub_type: str


METRICS: dict[str, Metric] = {
    "top_1": Metric("top-1 accuracy", "classification", "accuracy"),
    "top_5": Metric("top-5 accuracy", "classification", "top_5_accuracy"),
    "cls_top_1": Metric("top-1 accuracy of the [CLS] classifier", "classification", "accuracy"),
    "pixel_accuracy": Metric("pixel accuracy", "segmentation", "pixel_accuracy"),
    "mean_iou": Metric("mean IoU", "segmentation", "mean_iou"),
    "mean_average_precision": Metric("mean average precision of pixels", "segmentation", "mean_average_precision"),
    "max_box_acc_v2": Metric("MaxBoxAccV2", "localization", "max_box_acc_v2"),
    "pointing_game": Metric("pointing game", "localization", "pointing_game"),
    "corloc": Metric("CorLoc", "discovery", "corloc"),
}
"""The scores that are published, in the order of the tables."""

_EVALUATION_METRICS = {"eval_top_1": "", "eval_top_5": "", "eval_cls_top_1": ""}
_MASK_METRICS = {"eval_pixel_accuracy": "ice_hard", "eval_mean_iou": "ice_hard"}


@dataclass(frozen=True)
class ResultEntry:
    """Hold one published number, with all that is needed to get it again.

    Attributes:
        benchmark: As `scripts/run_evaluation.py` calls it.
        dataset: Name of the data set.
        split: Part of it.
        metric: A key of `METRICS`.
        method: Explainer that made the maps; "" for the classifier itself.
        value: The number.
        low: Lower end of its 95 % interval over resampled images; None where it was not computed.
        high: Upper end.
        num_images: Images it was measured on.
        seed: Of the training run.
        command: What prints the number.
        hardware: What it ran on.
        date: Year-month-day.
    """

    benchmark: str
    dataset: str
    split: str
    metric: str
    method: str
    value: float
    low: float | None
    high: float | None
    num_images: int
    seed: int
    command: str
    hardware: str
    date: str


@dataclass(frozen=True)
class TrainingRecord:
    """Say how a model was made.

    Attributes:
        command: What makes it again.
        data: A sentence on the images it was trained on.
        datasets: Their names, as the Hub writes ids.
        base_model: Id of the model it was started from; None for random weights.
        hardware: What it ran on; "" where nobody wrote it down.
        seed: Seed of the run.
        settings: What a reader asks for first: steps, batch, learning rate, objective.
        power_watts: Assumed power of that hardware; None where nothing is assumed.
        power_basis: Where that number comes from.
        note: A sentence on what is special about this run.
    """

    command: str
    data: str
    datasets: tuple[str, ...] = ()
    base_model: str | None = None
    hardware: str = ""
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    power_watts: float | None = None
    power_basis: str = ""
    note: str = ""


@dataclass(frozen=True)
class ModelRecord:
    """Hold all that a card says and the folder does not.

    Attributes:
        name: Name of the model.
        training: How it was made.
        location: Folder that the snippets load.
        evaluation: Words of `scripts/run_evaluation.py` after `--models` and the folder.
        results: The numbers.
        weights_sha256: Of the weights that they belong to.
        is_template: Whether the model is still to be trained.
        architecture: Sizes of a template's model.
        image: Image that the snippets explain.
        output: What the first snippet prints; "" where it was not run.
        limits: Sentences on what the model is not for, beyond those of every card.
    """

    name: str
    training: TrainingRecord
    location: str = ""
    evaluation: str = ""
    results: tuple[ResultEntry, ...] = ()
    weights_sha256: str = ""
    is_template: bool = False
    architecture: Mapping[str, Any] = field(default_factory=dict)
    image: str = "photo.jpg"
    output: str = ""
    limits: tuple[str, ...] = ()


T = TypeVar("T")


def _from_json(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    names = {item.name for item in fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(values.keys() - names)
    if unknown:
        raise ValueError(f"{where} must hold the fields {sorted(names)}, got {unknown}. Remove or rename them.")
    try:
        return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
    except TypeError as error:
        raise ValueError(f"{where} is not complete: {error}.") from error


def _record_from_json(values: Mapping[str, Any], where: str) -> ModelRecord:
    training = _from_json(TrainingRecord, values.get("training", {}), f"{where}, training")
    results = [_from_json(ResultEntry, entry, f"{where}, results") for entry in values.get("results", ())]
    return _from_json(ModelRecord, {**values, "training": training, "results": results}, where)


def read_records(file: Path) -> dict[str, ModelRecord]:
    """Read the records of all models, by name.

    Raises:
        ValueError: If a field is unknown or missing.
    """
    content = json.loads(file.read_text(encoding="utf-8"))
    return {
        name: _record_from_json({"name": name, **values}, f"{file.name}, {name}") for name, values in content.items()
    }


def write_records(file: Path, records: Mapping[str, ModelRecord]) -> None:
    """Write the records of all models."""
    content = {name: _as_json(record) for name, record in records.items()}
    for values in content.values():
        values.pop("name")
    write_json(file, content)


def read_record(file: Path) -> ModelRecord:
    """Read the record that a run wrote into its folder."""
    return _record_from_json(json.loads(file.read_text(encoding="utf-8")), file.name)


def write_record(file: Path, record: ModelRecord) -> None:
    """Write the record of one model."""
    write_json(file, _as_json(record))


def _as_json(record: ModelRecord) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(record)))


def weights_digest(folder: Path) -> str:
    """Return the SHA-256 of the weights of a folder, over all files that they are spread over."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("model*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def entries_from_evaluation(
    report: Mapping[str, Any], checkpoint: str, command: str, hardware: str, date: str, seed: int = 0
) -> tuple[ResultEntry, ...]:
    """Return the published numbers of a report of `scripts/run_evaluation.py`.

    Args:
        report: Its `results.json`.
        checkpoint: Name of the model in it.
        command: What wrote it.
        hardware: What it ran on, in words.
        date: Year-month-day.
        seed: Of the training run.

    Raises:
        ValueError: If the report has no number of this model.
    """
    split = report["settings"]["split"] or ("test" if report["dataset"]["name"] == "scenes" else "default")
    dataset = report["dataset"]["name"]
    lines = [line for line in report["results"] if line["checkpoint"] == checkpoint]
    entries = tuple(
        ResultEntry(
            benchmark=metric.benchmark,
            dataset=dataset,
            split=split,
            metric=name,
            method=line["method"],
            value=round(score["value"], 6),
            low=_rounded(score["low"]),
            high=_rounded(score["high"]),
            num_images=score["num_examples"],
            seed=seed,
            command=command,
            hardware=hardware,
            date=date,
        )
        for line in lines
        for name, metric in METRICS.items()
        if (score := line["scores"].get(name)) is not None and score["value"] is not None
    )
    if not entries:
        raise ValueError(f"The report must hold scores of {checkpoint!r}, got none. Name the model so with NAME=PATH.")
    return entries


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def entries_from_training(
    numbers: Mapping[str, float], dataset: str, num_images: int, command: str, hardware: str, date: str, seed: int
) -> tuple[ResultEntry, ...]:
    """Return the published numbers of the evaluation that ends a training run (`all_results.json`)."""
    return tuple(
        ResultEntry(
            METRICS[name].benchmark, dataset, "validation", name, method, round(numbers[key], 6), None, None,
            num_images, seed, command, hardware, date,
        )
        for key, method in {**_EVALUATION_METRICS, **_MASK_METRICS}.items()
        if key in numbers and (name := key.removeprefix("eval_")) in METRICS
    )  # fmt: skip
