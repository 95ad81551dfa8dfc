# SPDX-License-Identifier: Apache-2.0
"""The machine on which times are measured, and how its memory is freed, which affects CPU latency by about 10 %."""

from __future__ import annotations

import ctypes
import platform
import sys
from pathlib import Path
from typing import Any

import torch
import transformers


__all__ = ["describe_machine", "keep_freed_memory"]

# <malloc.h> of the GNU C library
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_TOP_PAD = 256 * 2**20  # bytes by which the heap grows at least


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


def keep_freed_memory() -> bool:
    """Let this process keep the memory of its freed tensors; return whether it could, as only the GNU C library can.

    By default that library returns large blocks to the kernel at once and requests them again, page by page, for the
    next tensor: time that does not depend on the model and differs from process to process. Servers avoid it by
    jemalloc or tcmalloc; this sets the same behaviour in the C library's allocator.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries, such as musl, may lack it
    if mallopt is None:
        return False
    # no block from `mmap`, nothing returned at the end of the heap, growth in large steps
    wanted = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: _TOP_PAD}
    # a list: every option is set, even after one that fails
    return all([mallopt(option, value) == 1 for option, value in wanted.items()])
