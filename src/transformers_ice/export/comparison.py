# SPDX-License-Identifier: Apache-2.0
"""Exported files against their model: largest differences of the outputs, and scores on the same images."""

from __future__ import annotations

import json
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
from .onnx_file import OUTPUT_NAMES, require


if TYPE_CHECKING:
    from ..data.benchmarks.examples import EvaluationSet, Example

__all__ = ["ExportScores", "OnnxDifferences", "OnnxModel", "compare_with_onnx", "score_exports"]

Run = Callable[[Tensor], Mapping[str, np.ndarray]]


class OnnxModel:
    """Exported `file` that runs on the CPU, with as many threads as torch has.

    Attributes:
        metadata: Metadata of the file, decoded from JSON.
        image_size: Height and width that it takes.

    Raises:
        ValueError: If onnxruntime is not installed, or the file is no ONNX file.
    """

    def __init__(self, file: str | os.PathLike) -> None:
        onnxruntime = require("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises many kinds of its own
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ValueError(f"{str(file)!r} is no ONNX file that can be run: {reason}. Export it again.") from error
        properties = self._session.get_modelmeta().custom_metadata_map
        self.metadata = {name: json.loads(value) for name, value in properties.items() if not name.startswith("onnx.")}
        self.image_size: tuple[int, int] = tuple(self._session.get_inputs()[0].shape[2:])

    def __call__(self, pixel_values: Tensor) -> dict[str, np.ndarray]:
        """Return the outputs by name for `(batch_size, num_channels, height, width)`.

        Raises:
            ValueError: If the images have another size than the file takes.
        """
        if pixel_values.dim() != 4 or tuple(pixel_values.shape[2:]) != self.image_size:
            height, width = self.image_size
            raise ValueError(
                f"This file takes `pixel_values` of {height} x {width} pixels, got shape {tuple(pixel_values.shape)}. "
                "Resize the images, or export with another `image_size`."
            )
        # the file takes float32 from the CPU
        arrays = self._session.run(list(OUTPUT_NAMES), {"pixel_values": pixel_values.float().cpu().numpy()})
        return dict(zip(OUTPUT_NAMES, arrays, strict=True))

    def outputs(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Return the outputs in the form that the `post_process_*` methods of `IceDeiTImageProcessor` take.

        Tensors by name, `grid_size` among them and, of a multi-label model, `object_thresholds`; the same objects as
        those of the PyTorch model follow from them. Arguments and errors as for the call.
        """
        outputs = {name: torch.from_numpy(array) for name, array in self(pixel_values).items()}
        number = len(pixel_values)
        outputs["grid_size"] = torch.tensor(self.metadata["grid_size"]).expand(number, -1)
        if "object_thresholds" in self.metadata:
            outputs["object_thresholds"] = torch.tensor(self.metadata["object_thresholds"]).expand(number, -1)
        return outputs


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
    model: PreTrainedModel, file: str | os.PathLike, pixel_values: Tensor, batch_sizes: Sequence[int] = (1, 3, 8)
) -> OnnxDifferences:
    """Compare an ONNX file with the model it was exported from.

    Args:
        model: The model. Restored afterwards.
        file: From `export_onnx` or `quantize_int8`.
        pixel_values: `(num_images, num_channels, height, width)`, at least as many images as the largest batch.
        batch_sizes: How many of the first images go through both at once, one batch for each number.

    Raises:
        ValueError: If there are too few images, they have another size than the file takes, or onnxruntime is missing.
    """
    if not batch_sizes or not 1 <= min(batch_sizes) <= max(batch_sizes) <= len(pixel_values):
        raise ValueError(
            f"`batch_sizes` must be numbers from 1 to the {len(pixel_values)} images given, got {list(batch_sizes)}."
        )
    exported, original = OnnxModel(file), _runner(model)
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
    files: Mapping[str, str | os.PathLike],
    image_processor: Any,
    examples: EvaluationSet,
    label_map: Mapping[int, int] | None = None,
    batch_size: int = 64,
) -> list[ExportScores]:
    """Score a model and its exported files on the same images.

    A patch is foreground where its best class is not background.

    Args:
        model: The classifier. Restored afterwards.
        files: From `export_onnx` or `quantize_int8`, by the names they are to have.
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

    runs: dict[str, Run] = {"PyTorch": _runner(model), **{name: OnnxModel(file) for name, file in files.items()}}
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


def _runner(model: PreTrainedModel) -> Run:
    """Return the model as a function from pixel values to arrays by the name of the output."""

    @torch.inference_mode()
    def run(pixel_values: Tensor) -> dict[str, np.ndarray]:
        with evaluation_mode(model):
            outputs = model(pixel_values.to(model.device), return_dict=True)
        return {name: outputs[name].cpu().numpy() for name in OUTPUT_NAMES}

    return run
