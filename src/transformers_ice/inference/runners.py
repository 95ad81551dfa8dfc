# SPDX-License-Identifier: Apache-2.0
"""What runs an optimized model: ONNX Runtime, OpenVINO, or torch's compiler, each from pixels to outputs by name."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..hardware import has_fast_bfloat16
from .onnx_cache import exported_file
from .onnx_file import OUTPUT_NAMES
from .sessions import open_session


__all__ = ["RUN_OUTPUTS", "Run", "runtime_run", "torch_run"]

Run = Callable[[Tensor], Mapping[str, Tensor]]
"""From pixel values `(batch_size, num_channels, height, width)` to the outputs of `RUN_OUTPUTS` by name."""

RUN_OUTPUTS = (*OUTPUT_NAMES, "foreground_logits", "background_logits")
"""Outputs of the classifier that depend on the pixels."""

_LARGEST_BATCH = 2**16


def runtime_run(
    model: PreTrainedModel,
    image_size: tuple[int, int],
    runtime: str = "onnxruntime",
    precision: str = "float32",
    num_threads: int | None = None,
    cache_dir: str | os.PathLike | None = None,
    calibration_images: Tensor | None = None,
) -> Run:
    """Return a model exported and opened by a runtime of `RUNTIMES`; arguments as for `optimize_for_inference`."""
    is_int8 = precision == "int8"
    if is_int8:  # the 8 bits are in the file; this is for what they leave: norms, softmax, attention
        precision = "bfloat16" if runtime == "openvino" and has_fast_bfloat16() else "float32"
    with exported_file(model, image_size, RUN_OUTPUTS, is_int8, cache_dir, calibration_images) as file:
        try:
            session = open_session(file, runtime, precision, num_threads)
        except ValueError:  # a damaged file of the cache; what is wrong with the runtime itself is raised once more
            file.unlink()
            with exported_file(model, image_size, RUN_OUTPUTS, is_int8, file.parent, calibration_images) as again:
                session = open_session(again, runtime, precision, num_threads)

    def run(pixel_values: Tensor) -> dict[str, Tensor]:
        arrays = session(pixel_values.detach().float().cpu().contiguous().numpy(), RUN_OUTPUTS)
        return {name: torch.from_numpy(array) for name, array in zip(RUN_OUTPUTS, arrays, strict=True)}

    return run


def torch_run(model: PreTrainedModel, precision: str = "float32") -> Run:
    """Return a model compiled by torch with its weights inside the graph, on its own device.

    There is one graph for one image and one for all larger batches; each is compiled when it is first needed.
    """
    # a copy: the compiler brings the weights into the layout of its kernels, and may drop the originals
    twin = copy.deepcopy(model).eval().to(getattr(torch, precision))
    compiled: Any = torch.compile(twin, options={"freezing": True})

    def run(pixel_values: Tensor) -> dict[str, Tensor]:
        pixel_values = pixel_values.detach()  # a tensor of its own, which is marked below
        if len(pixel_values) > 1:
            torch._dynamo.mark_dynamic(pixel_values, 0, min=2, max=_LARGEST_BATCH)
        with torch.no_grad():
            outputs = compiled(pixel_values, return_dict=True)
        named = {name: outputs[name] for name in RUN_OUTPUTS}
        return {name: value.float() if value.is_floating_point() else value for name, value in named.items()}

    return run
