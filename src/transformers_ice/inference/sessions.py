# SPDX-License-Identifier: Apache-2.0
"""Run an ONNX file on the CPU, by ONNX Runtime or OpenVINO."""

from __future__ import annotations

import functools
import importlib.util
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from .onnx_file import require


__all__ = ["RUNTIMES", "Session", "is_installed", "open_session"]

_core_lock = threading.Lock()

Session = Callable[[np.ndarray, Sequence[str]], list[np.ndarray]]
"""From float32 pixels `(batch_size, num_channels, height, width)` and names of outputs to these outputs."""

RUNTIMES = ("onnxruntime", "openvino")


def is_installed(runtime: str) -> bool:
    """Return whether a runtime of `RUNTIMES` is installed."""
    return importlib.util.find_spec(runtime) is not None


def open_session(
    file: str | os.PathLike,
    runtime: str = "onnxruntime",
    precision: str = "float32",
    num_threads: int | None = None,
) -> Session:
    """Return a function that runs a file; several threads may call it.

    Args:
        file: An ONNX file.
        runtime: One of `RUNTIMES`.
        precision: "float32"; "bfloat16" for OpenVINO on a processor that has it.
        num_threads: `None` is as many as torch has.

    Raises:
        ValueError: If the runtime is not installed or unknown, or the file is no ONNX file.
    """
    if runtime not in RUNTIMES:
        raise ValueError(f"`runtime` must be one of {', '.join(RUNTIMES)}, got {runtime!r}.")
    module = require(runtime)
    threads = num_threads or torch.get_num_threads()
    try:
        if runtime == "openvino":
            return _open_openvino(str(file), precision, threads)
        return _open_onnxruntime(module, str(file), threads)
    except Exception as error:  # both raise many kinds of their own
        lines = [line for line in str(error).splitlines() if line.strip()]
        reason = lines[-1 if runtime == "openvino" else 0] if lines else type(error).__name__
        raise ValueError(f"{str(file)!r} is no ONNX file that can be run: {reason}. Export it again.") from error


def _open_onnxruntime(onnxruntime: Any, file: str, num_threads: int) -> Session:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    # idle threads that spin take the cores from torch, which doubled the time of what it did next on two cores
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def run(pixels: np.ndarray, names: Sequence[str]) -> list[np.ndarray]:
        return session.run(list(names), {"pixel_values": pixels})

    return run


@functools.cache
def _only_core() -> Any:
    """Return the one `openvino.Core` of this process, which is never freed.

    The CPU plugin of a core brings a signal stack, and hands back the one before when it is freed. Of two cores, the
    first freed first, the second hands back freed memory, and the next signal that Python handles, Ctrl-C or the end
    of a process of a DataLoader, ends the process by SIGSEGV (OpenVINO 2026.4).
    """
    return require("openvino").Core()


def _open_openvino(file: str, precision: str, num_threads: int) -> Session:
    with _core_lock:
        core = _only_core()
    hints = {
        "PERFORMANCE_HINT": "LATENCY",  # one stream on all threads: the answers of one batch at a time
        "INFERENCE_NUM_THREADS": num_threads,
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
    }
    compiled = core.compile_model(core.read_model(file), "CPU", hints)
    lock = threading.Lock()  # a compiled model answers one caller at a time

    def run(pixels: np.ndarray, names: Sequence[str]) -> list[np.ndarray]:
        with lock:
            results = compiled([pixels])
            return [results[name] for name in names]

    return run
