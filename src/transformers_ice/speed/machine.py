# SPDX-License-Identifier: Apache-2.0
"""Description of the machine on which times are measured."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch
import transformers


__all__ = ["describe_machine"]


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Describe what times depend on besides the model: processor, threads, versions."""
    is_cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if is_cuda else str(device),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "allow_tf32": torch.backends.cuda.matmul.allow_tf32 if is_cuda else None,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
