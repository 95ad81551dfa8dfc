# SPDX-License-Identifier: Apache-2.0
"""The head of a card, which the Hub reads, made and checked with `huggingface_hub`'s own classes. No network."""

from __future__ import annotations

from typing import Any, cast

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.repocard_data import model_index_to_eval_results
from huggingface_hub.utils import validate_repo_id

from .facts import ModelFacts
from .records import METRICS, ModelRecord, ResultEntry


__all__ = ["LICENSE", "check_card", "check_card_for_publication", "make_metadata"]

LICENSE = "apache-2.0"

_TASKS = {
    "classification": ("image-classification", "image classification"),
    "segmentation": ("image-segmentation", "foreground masks learnt from image labels"),
    "localization": ("object-detection", "object localization learnt from image labels"),
    "discovery": ("object-detection", "object discovery learnt from image labels"),
}
_PIPELINE_TAGS = ("image-classification", "image-segmentation")
# what is measured beside the model: no result of its own
_NOT_OF_THE_MODEL = ("ceiling",)


def make_metadata(record: ModelRecord, facts: ModelFacts) -> ModelCardData:
    """Return the head of a card."""
    own = [entry for entry in record.results if entry.method not in _NOT_OF_THE_MODEL]
    tags = ["vision", "image-classification"]
    if facts.is_ice:
        tags += ["image-segmentation", "explainability", "weakly-supervised", "ice", "custom_code"]
    return ModelCardData(
        license=LICENSE,
        library_name="transformers",
        pipeline_tag="image-classification",
        base_model=record.training.base_model,
        datasets=list(record.training.datasets) or None,
        metrics=list(dict.fromkeys(METRICS[entry.metric].hub_type for entry in own)) or _planned_metrics(facts),
        tags=tags,
        model_name=record.name if own else None,  # belongs to the results
        eval_results=[_eval_result(entry) for entry in own] or None,
    )


def _planned_metrics(facts: ModelFacts) -> list[str]:
    return ["accuracy", "mean_iou"] if facts.is_ice else ["accuracy"]


def _eval_result(entry: ResultEntry) -> EvalResult:
    task_type, task_name = _TASKS[entry.benchmark]
    title = METRICS[entry.metric].title
    return EvalResult(
        task_type=task_type,
        task_name=task_name,
        dataset_type=entry.dataset,
        dataset_name=entry.dataset,
        dataset_split=entry.split,
        metric_type=METRICS[entry.metric].hub_type,
        metric_name=f"{title} ({entry.method})" if entry.method else title,
        metric_value=entry.value,
    )


def check_card(text: str) -> list[str]:
    """Return what is wrong with the head of a card, as sentences; empty where it is valid.

    The head is read as `huggingface_hub` reads it, ids are checked by its `validate_repo_id`, results by its own
    conversion. `ModelCard.validate` asks the Hub itself; `scripts/publish_checkpoint.py` calls it before an upload.
    """
    try:
        card = ModelCard(text)
    except Exception as error:  # the YAML reader and the classes of the Hub raise many kinds
        return [f"its metadata cannot be read by huggingface_hub: {error}"]
    data = cast(Any, card.data)
    problems = [
        f"`{name}` is missing in its metadata"
        for name in ("license", "library_name", "pipeline_tag", "datasets", "metrics")
        if not data.get(name)
    ]
    if data.get("pipeline_tag") not in (None, *_PIPELINE_TAGS):
        problems.append(f"`pipeline_tag` must be one of {list(_PIPELINE_TAGS)}, got {data.get('pipeline_tag')!r}")
    for name in ("base_model", "datasets"):
        problems += _invalid_ids(name, data.get(name))
    return problems + _invalid_results(data)


def _invalid_ids(name: str, value: Any) -> list[str]:
    problems = []
    for repo_id in [value] if isinstance(value, str) else list(value or ()):
        try:
            validate_repo_id(repo_id)
        except HFValidationError as error:
            problems.append(f"`{name}` must hold ids of the Hub, got {repo_id!r}: {error}")
    return problems


def _invalid_results(data: Any) -> list[str]:
    if not data.get("eval_results"):
        return []
    _, results = model_index_to_eval_results(data.to_dict()["model-index"])
    values = [(result.metric_name or result.metric_type, result.metric_value) for result in results]
    return [
        f"the result {name!r} must be a finite number, got {value!r}"
        for name, value in values
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) < float("inf")
    ]


def check_card_for_publication(text: str) -> list[str]:
    """Return why a card must not be published: what `check_card` finds, and a card without results."""
    problems = check_card(text)
    if not problems and not ModelCard(text).data.get("eval_results"):
        problems.append(
            "it has no results (`model-index`). Measure the model with scripts/run_evaluation.py and write the card "
            "with scripts/write_model_card.py"
        )
    return problems
