# SPDX-License-Identifier: Apache-2.0
"""Write ICE models as ONNX files, in float32 or with 8-bit weights, each with its classes and preprocessing inside."""

from __future__ import annotations

import importlib
import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..console.output_files import staged
from ..conversion import PREPROCESSING_FIELDS
from ..explainers import evaluation_mode
from ..ice_deit.configuration_ice_deit import IceDeiTConfig, as_pair
from ..ice_deit.patch_maps import grid_size


__all__ = ["OUTPUT_NAMES", "export_onnx", "processed_size", "quantize_int8", "require"]

OUTPUT_NAMES = ("logits", "cls_logits", "patch_logits", "patch_exit_layer", "foreground_ratio")

_MAX_BATCH_SIZE = 2**16  # without a bound the number of tokens of a batch may overflow in the analysis of torch


class _NamedOutputs(nn.Module):
    """Wrapper of a model that returns its outputs as a tuple, in the order of `OUTPUT_NAMES`."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        outputs = self.model(pixel_values, return_dict=True)
        return tuple(outputs[name] for name in OUTPUT_NAMES)


def export_onnx(
    model: PreTrainedModel,
    file: str | os.PathLike,
    image_processor: Any,
    image_size: int | Sequence[int] | None = None,
    source: str | None = None,
) -> Path:
    """Write an ICE model as an ONNX file.

    Args:
        model: `IceDeiTForImageClassification` (or the segmentation class, whose `logits` are a map) in float32, with
            or without a pruning strategy. Restored afterwards.
        file: Where to write; missing folders are made. From 1.8 GB on, the weights are in a second file next to it.
        image_processor: The one that belongs to the model; its settings go into the metadata. Must make images of the
            exported size.
        image_size: Side, or (height, width), in pixels, that the file takes; `None` is what the image processor makes,
            which may be another size than that of the configuration after fine-tuning.
        source: Where the model comes from, for the metadata; `None` is the name it was loaded by, without the folders
            above it where that is a path of this machine.

    Returns:
        The path of the file. Its input is `pixel_values`, `(batch_size, num_channels, height, width)`, float32; its
        outputs are those of the model named in `OUTPUT_NAMES`, with any `batch_size`. Of a multi-label model the
        metadata hold `object_thresholds`, the score from which each class counts as found.

    Raises:
        ValueError: If the model is no ICE classifier or not in float32, the size is not one of whole patches or not
            what the image processor makes, or a package of the extra `export` is not installed.
    """
    for package in ("onnx", "onnxscript"):
        require(package)
    _check_model(model)
    height, width = _checked_size(model.config, processed_size(image_processor) if image_size is None else image_size)
    _check_processor(image_processor, (height, width))
    parameter = next(model.parameters())
    # two images: torch would export a batch of one as a constant
    example = torch.zeros(2, model.config.num_channels, height, width, device=parameter.device)
    with evaluation_mode(model), torch.no_grad(), _quiet():
        program = torch.onnx.export(
            _NamedOutputs(model).eval(),
            (example,),
            dynamo=True,
            verbose=False,
            input_names=["pixel_values"],
            output_names=list(OUTPUT_NAMES),
            dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch_size", max=_MAX_BATCH_SIZE)}},
        )
    if program is None:  # only the types of torch say that this may happen
        raise RuntimeError("torch.onnx.export returned no program.")
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces, with the paths of this machine
    program.model.metadata_props.update(_metadata(model, image_processor, (height, width), source))
    path = Path(file)
    with staged(path.parent) as staging:
        program.save(staging / path.name)
    return path


def quantize_int8(file: str | os.PathLike, int8_file: str | os.PathLike) -> Path:
    """Write an exported file with the weights of its linear maps in 8 bits, and return the path of the new file.

    Activations are scaled at run time; the patch embedding, the norms and the products inside attention remain in
    float32. Inputs, outputs and metadata are those of `file`.

    Raises:
        ValueError: If a package of the extra `export` is not installed.
    """
    quantization, onnx = require("onnxruntime.quantization"), require("onnx")
    path = Path(int8_file)
    model = onnx.load(file)
    # shapes between the operations: before onnxruntime 1.32 those of the exporter contradict what the quantizer infers
    del model.graph.value_info[:]
    with staged(path.parent) as staging, _quiet():
        quantization.quantize_dynamic(
            model,
            str(staging / path.name),
            per_channel=True,  # one scale per output channel
            # 7 bits: without VNNI instructions the sum of two products of 8 bits overflows its 16-bit register
            reduce_range=True,
            weight_type=quantization.QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm"],  # without "Conv", the patch embedding
        )
    return path


def require(package: str) -> Any:
    """Return a module of the extra `export`, or raise a `ValueError` with the command to install it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ValueError(f"ONNX export needs `{package}`: pip install transformers-ice[export]") from error


def _check_model(model: PreTrainedModel) -> None:
    # by type of the configuration: a class that came as remote code is not the one of this package
    if model.config.model_type != IceDeiTConfig.model_type or not hasattr(model, "classifier"):
        raise ValueError(f"`model` must be an IceDeiTForImageClassification, got {type(model).__name__}.")
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if dtypes != {torch.float32}:
        raise ValueError(
            f"`model` must be in float32, got {sorted(map(str, dtypes))}. Load it with `dtype=torch.float32`."
        )


def processed_size(image_processor: Any) -> tuple[int, int]:
    """Return height and width of what an image processor makes of an image."""
    height, width = image_processor([Image.new("RGB", (64, 64))], return_tensors="pt")["pixel_values"].shape[2:]
    return height, width


def _checked_size(config: Any, image_size: int | Sequence[int]) -> tuple[int, int]:
    patch_size = as_pair(config.patch_size)
    size = as_pair(image_size if isinstance(image_size, int) else list(image_size))
    if any(side < patch or side % patch for side, patch in zip(size, patch_size, strict=True)):
        raise ValueError(
            f"`image_size` must be a multiple of the patch size {patch_size[0]} x {patch_size[1]}, got {size}."
        )
    return size


def _check_processor(image_processor: Any, image_size: tuple[int, int]) -> None:
    """Refuse a processor whose images do not have the exported size, whatever the size of the original."""
    # neither the size nor the ratio of the exported images
    blank = Image.new("RGB", (image_size[1] * 2, image_size[0] * 3))
    made = tuple(image_processor([blank], return_tensors="pt")["pixel_values"].shape[2:])
    if made != image_size:
        raise ValueError(
            f"`image_processor` must make images of the exported size {image_size}, got {made} from an image of "
            f"{blank.height} x {blank.width}. Load it with "
            f'`size={{"height": {image_size[0]}, "width": {image_size[1]}}}, do_center_crop=False`; on the command '
            f"line pass `--image_size {image_size[0]} {image_size[1]}`."
        )


def _metadata(
    model: PreTrainedModel, image_processor: Any, image_size: tuple[int, int], source: str | None
) -> dict[str, str]:
    config: Any = model.config
    name = source or model.name_or_path or ""
    settings = image_processor.to_dict()
    values = {
        "source": Path(name).name if source is None and Path(name).is_absolute() else name,
        "id2label": config.id2label,
        "background_index": config.background_index,
        "image_size": image_size,
        "grid_size": grid_size(image_size, as_pair(config.patch_size)),
        "num_hidden_layers": config.num_hidden_layers,
        "logits_source": config.logits_source,
        "pruning_strategy": config.pruning_strategy,
        "pruning_schedule": config.pruning_schedule,
        **{key: settings.get(key) for key in PREPROCESSING_FIELDS},
    }
    if config.problem_type == "multi_label_classification":
        values["object_thresholds"] = config.object_thresholds or [0.5] * config.num_labels
    return {key: json.dumps(value) for key, value in values.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress warnings and log records below errors: of missing torchvision, of deprecations inside torch."""
    root = logging.getLogger()
    handlers, disabled = root.handlers[:], root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        root.handlers[:] = handlers  # onnxruntime logs through the root logger, which then adds a handler of its own
