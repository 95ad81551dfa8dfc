# SPDX-License-Identifier: Apache-2.0
"""What this machine can do: the arithmetic that its processor has instructions for, and a compiler."""

from __future__ import annotations

import os
import shutil

import torch


__all__ = ["has_compiler", "has_fast_bfloat16"]


def has_fast_bfloat16() -> bool:
    """Return whether the processor multiplies bfloat16 matrices by instructions of its own (AVX-512 BF16 or AMX).

    Without them torch computes the same in other steps, many times slower than in float32.
    """
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(check() for check in checks if check is not None)


def has_compiler() -> bool:
    """Return whether there is a C++ compiler, which `torch.compile` needs on a CPU; `CXX` may name it."""
    return any(shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++", "c++") if name)
