# SPDX-License-Identifier: Apache-2.0
"""Exported files against their model: largest differences of the outputs, scores and speed on the same images."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..explainers import evaluation_mode
from ..ice_deit.adversarial_normalization import foreground_mask
from ..ice_deit.configuration_ice_deit import as_pair
from ..inference import OUTPUT_NAMES, OnnxModel
from ..speed import Spread, interleave, summarize_spread, time_call


if TYPE_CHECKING:
    from ..data.benchmarks.examples import EvaluationSet, Example

__all__ = ["ExportScores", "OnnxDifferences", "compare_with_onnx", "score_exports", "time_exports"]

Run = Callable[[Tensor], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class OnnxDifferences:
    """Largest differences between an ONNX file and its model, over all batches.

    Args:
        largest: Largest absolute difference of each output that is a real number, by name.
        exit_layers_agree: Whether every patch has the same exit layer.
        top_1_agreement: Fraction of images with the same best class, in [0, 1].
    """

    largest: dict[str, float]
    exit_layers_agree: bool
    top_1_agreement: float

    def is_within(self, tolerance: float) -> bool:
        """Return whether no difference exceeds the tolerance, or is NaN, and all exit layers agree."""
        # "all <=" rather than "none >": a NaN must fail
        return self.exit_layers_agree and all(difference <= tolerance for difference in self.largest.values())


def compare_with_onnx(
    model: PreTrainedModel,
    file: str | os.PathLike | Run,
    pixel_values: Tensor,
    batch_sizes: Sequence[int] = (1, 3, 8),
) -> OnnxDifferences:
    """Compare an ONNX file with the model it was exported from.

    Args:
        model: The model. Restored afterwards.
        file: From `export_onnx` or `quantize_int8`; or what runs it, an `OnnxModel`.
        pixel_values: `(num_images, num_channels, height, width)`, at least as many images as the largest batch.
        batch_sizes: How many of the first images go through both at once, one batch for each number.

    Raises:
        ValueError: If there are too few images, they have another size than the file takes, or onnxruntime is missing.
    """
    if not batch_sizes or not 1 <= min(batch_sizes) <= max(batch_sizes) <= len(pixel_values):
        raise ValueError(
            f"`batch_sizes` must be numbers from 1 to the {len(pixel_values)} images given, got {list(batch_sizes)}."
        )
    exported, original = _opened(file), _runner(model)
    pairs = [(original(pixel_values[:size]), exported(pixel_values[:size])) for size in batch_sizes]

    def join(name: str) -> tuple[np.ndarray, np.ndarray]:
        ours, theirs = zip(*((first[name], second[name]) for first, second in pairs), strict=True)
        return np.concatenate(ours), np.concatenate(theirs)

    largest = {}
    for name in OUTPUT_NAMES:
        if name != "patch_exit_layer":
            ours, theirs = join(name)
            largest[name] = float(np.abs(ours - theirs).max())  # NaN if either holds one
    exit_layers_agree = bool(np.array_equal(*join("patch_exit_layer")))  # integers: equal or not
    classes = [logits.argmax(axis=1) for logits in join("logits")]
    return OnnxDifferences(largest, exit_layers_agree, float((classes[0] == classes[1]).mean()))


@dataclass(frozen=True)
class ExportScores:
    """Scores of a model or of one of its exported files; all in [0, 1].

    Args:
        name: Name of the model or file.
        top_1: Fraction of images whose best class is the true one.
        mean_iou: Of the foreground mask with the true one; see `evaluation.observe_masks`.
        top_1_agreement: Fraction of images with the best class of the PyTorch model.
    """

    name: str
    top_1: float
    mean_iou: float
    top_1_agreement: float


def score_exports(
    model: PreTrainedModel,
    files: Mapping[str, str | os.PathLike | Run],
    image_processor: Any,
    examples: EvaluationSet,
    label_map: Mapping[int, int] | None = None,
    batch_size: int = 64,
) -> list[ExportScores]:
    """Score a model and its exported files on the same images.

    A patch is foreground where its best class is not background.

    Args:
        model: The classifier. Restored afterwards.
        files: From `export_onnx` or `quantize_int8`, or what runs them, by the names they are to have.
        image_processor: An `IceDeiTImageProcessor` that makes images of the exported size.
        examples: Images with `label` and `mask`.
        label_map: The model's class index by that of the data; `None` where both use the same indices.
        batch_size: Images that go through at once.

    Returns:
        One row for "PyTorch", then one for each file.

    Raises:
        ValueError: If onnxruntime is not installed, or an image comes in another size than a file takes.
    """
    # imported here: they need the extra `train`
    from ..evaluation.metrics import ForegroundSegmentation, RowMetric, TopKAccuracy
    from ..evaluation.scoring import Observation, observe_classes, observe_masks, score

    runs: dict[str, Run] = {"PyTorch": _runner(model), **{name: _opened(file) for name, file in files.items()}}
    patch_size = as_pair(model.config.patch_size)
    metrics: dict[str, RowMetric] = {}
    for name in runs:
        metrics |= {f"{name} {what}_": TopKAccuracy(top_k=(1,)) for what in ("label", "same")}
        metrics[f"{name} mask_"] = ForegroundSegmentation()

    def predict(batch: list[Example]) -> dict[str, Observation]:
        pixel_values = image_processor([example.image for example in batch], return_tensors="pt")["pixel_values"]
        labels = [label_map[example.label] if label_map else example.label for example in batch]  # type: ignore[index]
        truths = [cast(np.ndarray, example.mask) for example in batch]
        geometries = [image_processor.image_geometry(truth.shape) for truth in truths]
        grid_size = [side // patch for side, patch in zip(pixel_values.shape[2:], patch_size, strict=True)]
        outputs = {name: run(pixel_values) for name, run in runs.items()}
        classes = outputs["PyTorch"]["logits"].argmax(axis=1)  # (batch_size,), the reference of `same_`
        observations: dict[str, Observation] = {}
        for name, arrays in outputs.items():
            observations[f"{name} label_"] = observe_classes(torch.from_numpy(arrays["logits"]), labels)
            observations[f"{name} same_"] = arrays["logits"], classes
            # (batch_size, num_patches) -> (batch_size, rows, columns)
            grids = foreground_mask(torch.from_numpy(arrays["patch_logits"])).unflatten(1, grid_size)
            observations[f"{name} mask_"] = observe_masks(grids, truths, geometries)
        return observations

    scores = score(predict, examples, metrics, batch_size)
    return [
        ExportScores(name, *(scores[f"{name} {key}"] for key in ("label_top_1", "mask_mean_iou", "same_top_1")))
        for name in runs
    ]


def time_exports(
    model: PreTrainedModel,
    files: Mapping[str, str | os.PathLike | Run],
    pixel_values: Tensor,
    num_repeats: int = 15,
    num_warmups: int = 3,
) -> dict[str, Spread]:
    """Time a model and its exported files by turns on one batch.

    Args:
        model: The classifier. Restored afterwards.
        files: As for `score_exports`.
        pixel_values: The batch, `(batch_size, num_channels, height, width)`.
        num_repeats: Runs of each that count.
        num_warmups: Runs of each before them.

    Returns:
        Images per second by name, "PyTorch" first: median and quartiles.
    """
    runs: dict[str, Run] = {"PyTorch": _runner(model), **{name: _opened(file) for name, file in files.items()}}

    def measure(run: Run) -> Callable[[int], float]:
        def call(_: int) -> float:
            run(pixel_values)  # not counted: it finds the threads and the memory of the one before
            return time_call(lambda: run(pixel_values), model.device)

        return call

    seconds = interleave({name: measure(run) for name, run in runs.items()}, num_repeats, num_warmups)
    spreads = {name: summarize_spread(values) for name, values in seconds.items()}
    number = len(pixel_values)
    # the slowest time is the lowest rate
    return {
        name: Spread(number / time.median, number / time.high, number / time.low) for name, time in spreads.items()
    }


def _opened(file: str | os.PathLike | Run) -> Run:
    return OnnxModel(file) if isinstance(file, (str, os.PathLike)) else file


def _runner(model: PreTrainedModel) -> Run:
    """Return the model as a function from pixel values to arrays by the name of the output."""

    @torch.inference_mode()
    def run(pixel_values: Tensor) -> dict[str, np.ndarray]:
        with evaluation_mode(model):
            outputs = model(pixel_values.to(model.device), return_dict=True)
        return {name: outputs[name].cpu().numpy() for name in OUTPUT_NAMES}

    return run
