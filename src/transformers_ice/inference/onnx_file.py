# SPDX-License-Identifier: Apache-2.0
"""Write ICE models as ONNX files, in float32 or with 8-bit weights."""

from __future__ import annotations

import importlib
import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..console.output_files import staged
from ..explainers import evaluation_mode
from ..explainers.inspection import eager_attention
from ..ice_deit.configuration_ice_deit import IceDeiTConfig, as_pair
from .smoothing import linear_maps, smooth_activations


__all__ = [
    "OUTPUT_NAMES",
    "check_calibration_images",
    "check_exportable",
    "checked_size",
    "processed_size",
    "quantize_int8",
    "require",
    "write_onnx",
]

OUTPUT_NAMES = ("logits", "cls_logits", "patch_logits", "patch_exit_layer", "foreground_ratio")

_MAX_BATCH_SIZE = 2**16  # without a bound the number of tokens of a batch may overflow in the analysis of torch
_CALIBRATION_BATCH = 8
_LINEAR = ["MatMul", "Gemm"]


class _NamedOutputs(nn.Module):
    """Wrapper of a model that returns the outputs of these names as a tuple."""

    def __init__(self, model: PreTrainedModel, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        outputs = self.model(pixel_values, return_dict=True)
        return tuple(outputs[name] for name in self.names)


def write_onnx(
    model: PreTrainedModel,
    file: str | os.PathLike,
    image_size: tuple[int, int],
    metadata: Mapping[str, str] | None = None,
    output_names: Sequence[str] = OUTPUT_NAMES,
) -> Path:
    """Write an ICE classifier as an ONNX file and return its path; see `transformers_ice.export.export_onnx`.

    Args:
        model: In float32. Restored afterwards.
        file: Where to write; missing folders are made. From 1.8 GB on, the weights are in a second file next to it.
        image_size: Height and width in pixels, whole patches.
        metadata: Entries of the file's metadata.
        output_names: Which outputs of the model the file returns.

    Raises:
        ValueError: If the model is no ICE classifier or not in float32, or a package of the extra `export` is missing.
    """
    for package in ("onnx", "onnxscript"):
        require(package)
    check_exportable(model)
    parameter = next(model.parameters())
    # two images: torch would export a batch of one as a constant
    example = torch.zeros(2, model.config.num_channels, *image_size, device=parameter.device)
    # eager attention: runtimes fuse its plain products, and the exporter writes SDPA as twice as many operations
    with evaluation_mode(model), eager_attention(model), torch.no_grad(), _quiet():
        program = torch.onnx.export(
            _NamedOutputs(model, output_names).eval(),
            (example,),
            dynamo=True,
            verbose=False,
            input_names=["pixel_values"],
            output_names=list(output_names),
            dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch_size", max=_MAX_BATCH_SIZE)}},
        )
    if program is None:  # only the types of torch say that this may happen
        raise RuntimeError("torch.onnx.export returned no program.")
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces, with the paths of this machine
    program.model.metadata_props.update(metadata or {})
    path = Path(file)
    with staged(path.parent) as staging:
        program.save(staging / path.name)
    return path


def quantize_int8(
    file: str | os.PathLike, int8_file: str | os.PathLike, calibration_images: Tensor | None = None
) -> Path:
    """Write an exported file with the weights of its linear maps in 8 bits, and return the path of the new file.

    The patch embedding, the norms and the products inside attention keep their precision. Inputs, outputs and metadata
    are those of `file`.

    Args:
        file: From `write_onnx`.
        int8_file: Where to write.
        calibration_images: Pixel values `(num_images, num_channels, height, width)`. With them each activation has one
            scale, that of its largest magnitude on these images, and OpenVINO multiplies in 8 bits. `None`:
            activations are scaled at run time, as ONNX Runtime does fast.

    Raises:
        ValueError: If a package of the extra `export` is not installed, or the images do not fit the file.
    """
    quantization, onnx = require("onnxruntime.quantization"), require("onnx")
    path = Path(int8_file)
    model = onnx.load(file)
    # shapes between the operations: before onnxruntime 1.32 those of the exporter contradict what the quantizer infers
    del model.graph.value_info[:]
    options: dict[str, Any] = {
        "per_channel": True,  # one scale per output channel
        # 7 bits: without VNNI instructions the sum of two products of 8 bits overflows its 16-bit register
        "reduce_range": calibration_images is None,
        "weight_type": quantization.QuantType.QInt8,
        "op_types_to_quantize": _LINEAR,  # without "Conv", the patch embedding
    }
    with staged(path.parent) as staging, _quiet():
        output = str(staging / path.name)
        if calibration_images is None:
            quantization.quantize_dynamic(model, output, **options)
            return path
        batches = _calibration_batches(model, calibration_images)
        smooth_activations(onnx, require("onnxruntime"), model, batches)
        quantization.quantize_static(
            model,
            output,
            _calibration_reader(quantization, batches),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QInt8,
            nodes_to_quantize=[node.name for node in linear_maps(model)],  # without the products inside attention
            # OpenVINO has no fast product for activations whose zero is not 0
            extra_options={
                "ActivationSymmetric": True,
                # what a linear map returns is not rounded: attention, GELU and the residual stream read it
                "OpTypesToExcludeOutputQuantization": _LINEAR,
            },
            **options,
        )
    return path


def check_calibration_images(images: Tensor, expected: Sequence[int]) -> None:
    """Raise a `ValueError` unless images are finite pixel values of `expected` channels, height and width."""
    if images.dim() != 4 or list(images.shape[1:]) != list(expected) or not len(images):
        raise ValueError(
            f"`calibration_images` must be pixel values (num_images, {', '.join(map(str, expected))}), at least one "
            f"image, got shape {tuple(images.shape)}."
        )
    if not images.isfinite().all():
        raise ValueError("`calibration_images` must be finite, got NaN or infinite pixel values.")


def _calibration_batches(model: Any, images: Tensor) -> list[np.ndarray]:
    """Return calibration images in small batches, after a check that they fit a model."""
    shape = model.graph.input[0].type.tensor_type.shape
    check_calibration_images(images, [dimension.dim_value for dimension in shape.dim[1:]])
    return [batch.numpy() for batch in images.detach().float().cpu().split(_CALIBRATION_BATCH)]


def _calibration_reader(quantization: Any, batches: Iterable[np.ndarray]) -> Any:
    """Return what gives images to the quantizer."""
    remaining = iter(batches)

    class Reader(quantization.CalibrationDataReader):
        def get_next(self) -> dict[str, Any] | None:
            batch = next(remaining, None)
            return None if batch is None else {"pixel_values": batch}

    return Reader()


def require(package: str) -> Any:
    """Return a module of the extra `export`, or raise a `ValueError` with the command to install it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ValueError(f"This needs `{package}`: pip install transformers-ice[export]") from error


def check_exportable(model: PreTrainedModel) -> None:
    """Raise a `ValueError` unless a model is an ICE classifier in float32."""
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


def checked_size(config: Any, image_size: int | Sequence[int]) -> tuple[int, int]:
    """Return a side, or (height, width), as height and width; a `ValueError` unless they are whole patches."""
    patch_size = as_pair(config.patch_size)
    size = as_pair(image_size if isinstance(image_size, int) else list(image_size))
    if any(side < patch or side % patch for side, patch in zip(size, patch_size, strict=True)):
        raise ValueError(
            f"`image_size` must be a multiple of the patch size {patch_size[0]} x {patch_size[1]}, got {size}."
        )
    return size


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
