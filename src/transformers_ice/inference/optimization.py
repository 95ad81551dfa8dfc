# SPDX-License-Identifier: Apache-2.0
"""The fastest way to run a trained model on this machine, behind the call that the model has."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from ..explainers.inspection import share_parameters
from ..hardware import has_compiler, has_fast_bfloat16
from ..ice_deit.input_checks import check_pixel_values
from ..ice_deit.modeling_ice_deit import IceDeiTImageClassifierOutput
from .onnx_file import check_calibration_images, check_exportable, checked_size
from .runners import Run, runtime_run, torch_run


__all__ = ["BACKENDS", "PRECISIONS", "Optimization", "choose_optimization", "optimize_for_inference"]

logger = logging.get_logger(__name__)

BACKENDS = ("auto", "onnxruntime", "openvino", "torch")
PRECISIONS = ("auto", "float32", "bfloat16", "int8")

_PRECISIONS_OF = {
    "onnxruntime": ("float32", "int8"),
    "openvino": ("float32", "bfloat16", "int8"),
    "torch": ("float32", "bfloat16"),
}
_INSTALL = "pip install transformers-ice[export]"

Model = TypeVar("Model", bound=PreTrainedModel)


@dataclass(frozen=True)
class Optimization:
    """How an optimized model runs.

    Attributes:
        backend: "onnxruntime", "openvino", "torch" (compiled), or "eager" where nothing faster is installed.
        precision: "float32", "bfloat16" or "int8".
        reason: Why these, one sentence.
    """

    backend: str
    precision: str
    reason: str


def optimize_for_inference(
    model: Model,
    backend: str = "auto",
    precision: str = "auto",
    image_size: int | Sequence[int] | None = None,
    num_threads: int | None = None,
    cache_dir: str | os.PathLike | None = None,
    calibration_images: Tensor | None = None,
) -> Model:
    """Return a model that is called as the given one and answers faster.

    It has the weights and the configuration of this moment; later changes of either are not seen. Every pruning
    strategy stays as it is. The first call for a model exports it, which takes half a minute; its file is kept, and
    later calls, also of other processes, take seconds ("torch" keeps nothing: it compiles for a minute at the first
    image, and again at the first batch).

    Args:
        model: `IceDeiTForImageClassification` or the segmentation class, in float32. Not changed.
        backend: "onnxruntime" or "openvino", on a CPU; "torch", which compiles, on any device; "auto" is the fastest
            that is installed.
        precision: "float32" has the numbers of the model up to rounding. "bfloat16" needs a processor that has it.
            "int8" multiplies in 8 bits and changes logits by some tenths: measure it on your own images.
            "auto" is bfloat16 where it is fast, else float32.
        image_size: Side, or (height, width), in pixels of the images to come; `None` is that of the configuration.
            Images of other sizes are answered by the model itself, slower.
        num_threads: Threads on the CPU; `None` is as many as torch has now.
        cache_dir: Folder for exported files; `None` is `transformers-ice` in the cache of the Hub (`HF_HOME`).
        calibration_images: Pixel values of some 30 to 130 images like those to come, `(num_images, num_channels,
            height, width)`. With them "int8" fixes the scales of activations, and runs by OpenVINO: the fastest on a
            processor with VNNI. Without, ONNX Runtime scales them at run time.

    Returns:
        A model of the same class, in evaluation mode; its `optimization` says how it runs. Its parameters are shared
        with `model`. With labels, or options such as `output_hidden_states`, the model itself answers.

    Raises:
        ValueError: If the model is no ICE classifier in float32, or this machine lacks what was asked for, or the
            calibration images do not go with the rest.

    Example:
        >>> model = AutoModelForImageClassification.from_pretrained("checkpoints/ice-deit-scenes")
        >>> fast = transformers_ice.optimize_for_inference(model)
        >>> fast(pixel_values).logits, fast.optimization.backend
    """
    check_exportable(model)
    if isinstance(getattr(model, "optimization", None), Optimization):
        raise ValueError("`model` is optimized already. Pass the model that it was made from.")
    if num_threads is not None and num_threads < 1:
        raise ValueError(f"`num_threads` must be at least 1, got {num_threads}.")
    size = checked_size(model.config, model.config.image_size if image_size is None else image_size)
    optimization = choose_optimization(model.device, backend, precision, calibration_images is not None)
    if calibration_images is not None:
        check_calibration_images(calibration_images, (model.config.num_channels, *size))
    fast: Any = share_parameters(model).eval()
    fast.optimization = optimization
    if optimization.backend == "eager":
        logger.warning(f"The model runs as it is: {optimization.reason}")
        return fast
    if optimization.backend == "torch":
        run = torch_run(fast, optimization.precision)
    else:
        chosen = optimization.backend, optimization.precision
        run = runtime_run(fast, size, *chosen, num_threads, cache_dir, calibration_images)
    fast.forward = _OptimizedForward(fast, run, size)
    return fast


def choose_optimization(
    device: torch.device, backend: str = "auto", precision: str = "auto", is_calibrated: bool = False
) -> Optimization:
    """Return backend and precision for a device; arguments and errors as for `optimize_for_inference`.

    `is_calibrated` is whether there are calibration images.
    """
    for name, value, choices in (("backend", backend, BACKENDS), ("precision", precision, PRECISIONS)):
        if value not in choices:
            raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {value!r}.")
    if is_calibrated and (precision != "int8" or backend not in ("auto", "openvino")):
        raise ValueError(
            '`calibration_images` are for precision="int8" and the backend "auto" or "openvino", got '
            f"{precision!r} and {backend!r}. Leave them out, or change these."
        )
    if precision == "int8" and backend == "auto":
        backend = "openvino" if is_calibrated else "onnxruntime"
    on_cpu = device.type == "cpu"
    bfloat16 = has_fast_bfloat16() if on_cpu else device.type == "cuda" and torch.cuda.is_bf16_supported()
    if precision == "bfloat16" and not bfloat16:
        raise ValueError(
            "`precision` must not be bfloat16 on this machine: it has no instructions for it and would be many times "
            'slower than in float32. Use precision="float32" or, on a CPU, "int8".'
        )
    wanted = precision if precision != "auto" else "bfloat16" if bfloat16 and backend != "onnxruntime" else "float32"
    if backend == "auto":
        return _choose_backend(on_cpu, bfloat16, wanted, precision)
    if wanted not in _PRECISIONS_OF[backend]:
        offers = [name for name in BACKENDS[1:] if wanted in _PRECISIONS_OF[name]]
        raise ValueError(
            f"`precision` of {backend} must be one of {', '.join(_PRECISIONS_OF[backend])}, got {wanted!r}. It is "
            f"offered by {' and '.join(offers)}."
        )
    missing = _missing(backend, on_cpu)
    if missing:
        raise ValueError(f"`backend={backend!r}` {missing}")
    if backend == "openvino" and wanted == "int8" and not is_calibrated:
        raise ValueError(
            "`calibration_images` are missing: OpenVINO multiplies in 8 bits only with scales fixed beforehand, on "
            'images like those to come. Pass some, or use backend="onnxruntime".'
        )
    return Optimization(backend, wanted, "as asked for")


def _choose_backend(on_cpu: bool, has_bfloat16: bool, wanted: str, asked: str) -> Optimization:
    """Return the fastest backend that is there, by the measurements of docs/results/speed.md."""
    order = ("onnxruntime", "openvino", "torch")
    if has_bfloat16:  # such a processor has AVX-512 too, of which OpenVINO makes more in float32
        order = ("openvino", "torch", "onnxruntime") if wanted == "bfloat16" else ("openvino", "onnxruntime", "torch")
    usable = [name for name in order if not _missing(name, on_cpu)]
    for name in usable:
        if wanted in _PRECISIONS_OF[name]:
            return Optimization(name, wanted, f"{name} is the fastest for {wanted} of what is installed here.")
    if asked == "auto" and wanted == "bfloat16" and usable:
        return Optimization(usable[0], "float32", f"{usable[0]}, which is installed here, has no bfloat16.")
    if asked not in ("auto", "float32"):
        raise ValueError(f"`precision={asked!r}` needs a backend that is not installed: {_INSTALL}")
    return Optimization("eager", "float32", f"neither ONNX Runtime nor a C++ compiler is installed: {_INSTALL}")


def _missing(backend: str, on_cpu: bool) -> str:
    """Return what a backend lacks on this machine, as the end of a sentence; empty if nothing."""
    if backend == "torch":
        return "needs a C++ compiler, such as g++." if on_cpu and not has_compiler() else ""
    if not on_cpu:
        return 'runs on the CPU: pass `model.to("cpu")`, or use backend="torch".'
    packages = [name for name in ("onnx", "onnxscript", backend) if importlib.util.find_spec(name) is None]
    return f"needs {', '.join(packages)}: {_INSTALL}" if packages else ""


class _OptimizedForward:
    """`forward` of an optimized model: runs what it can, and leaves the rest to the model's own."""

    def __init__(self, model: Any, run: Run, image_size: tuple[int, int]) -> None:
        self.model, self.run, self.image_size = model, run, image_size
        self.own = model.forward

    def __call__(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        model = self.model
        if model.training:
            raise ValueError("An optimized model cannot be trained. Train the model that it was made from.")
        pixel_values = check_pixel_values(pixel_values, model.config)
        options = {name: value for name, value in kwargs.items() if value}
        if labels is not None or options:
            return self.own(pixel_values, labels=labels, return_dict=return_dict, **kwargs)
        if tuple(pixel_values.shape[2:]) != self.image_size:
            height, width = pixel_values.shape[2:]
            logger.warning_once(
                f"Images of {height} x {width} pixels are answered by the model itself, slower: it was optimized for "
                f"{self.image_size[0]} x {self.image_size[1]}. Pass `image_size` to optimize_for_inference."
            )
            return self.own(pixel_values, return_dict=return_dict)
        outputs = self._as_outputs(self.run(pixel_values), pixel_values)
        return outputs.to_tuple() if return_dict is False else outputs

    def _as_outputs(self, named: Any, pixel_values: Tensor) -> IceDeiTImageClassifierOutput:
        grid_size = torch.tensor(self.model.deit.embeddings.grid_size_of(pixel_values), device=pixel_values.device)
        outputs = IceDeiTImageClassifierOutput(**named, grid_size=grid_size.expand(len(pixel_values), 2))
        if self.model.config.is_multi_label:
            outputs["object_thresholds"] = self.model._object_thresholds(outputs.cls_logits)
        return outputs

    def __deepcopy__(self, memo: Any) -> Any:
        raise ValueError("An optimized model cannot be copied. Copy the model that it was made from.")

    __reduce__ = None  # type: ignore[assignment]  # nor pickled
