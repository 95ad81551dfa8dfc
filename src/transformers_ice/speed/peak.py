# SPDX-License-Identifier: Apache-2.0
"""Peak of a machine: one large matrix product in each number type, timed by turns with the models."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .timing import time_call


__all__ = ["check_dtypes", "peak_flops", "peak_measure"]

_SIDES = {"cpu": 2048, "cuda": 8192}  # of square matrices: large enough for the rate no longer to grow
_PRODUCTS_PER_REPEAT = 3  # the fastest of them counts
_PROBE_SIDE = 256
_SLOW = 4.0  # no processor with instructions for a number type takes this many times as long as in float32


def peak_measure(dtype: torch.dtype, device: torch.device) -> Callable[[int], float]:
    """Return a function that takes the number of a repeat and returns the seconds of one large matrix product."""
    first, second = _square_matrices(_SIDES.get(device.type, 2048), dtype, device)
    return lambda repeat: min(time_call(lambda: first @ second, device) for _ in range(_PRODUCTS_PER_REPEAT))


def peak_flops(seconds: float, device: torch.device) -> float:
    """Return the operations a second of a product of `peak_measure`; a MAC is two of them."""
    return 2 * _SIDES.get(device.type, 2048) ** 3 / seconds


def check_dtypes(names: Sequence[str], device: torch.device) -> None:
    """Refuse number types that a processor only emulates.

    Raises:
        ValueError: If a matrix product takes more than 4 times as long as in float32.
    """
    base = _probe_seconds(torch.float32, device)
    for name in names:
        factor = _probe_seconds(getattr(torch, name), device) / base
        if factor > _SLOW:
            raise ValueError(
                f"This processor only emulates {name}: a matrix product takes {factor:.0f} times as long as in "
                f"float32. Leave {name} out of `--dtype`, or run on a processor with instructions for it."
            )


def _probe_seconds(dtype: torch.dtype, device: torch.device) -> float:
    """Return the shortest time of a small product, which even an emulated number type finishes soon."""
    first, second = _square_matrices(_PROBE_SIDE, dtype, device)
    taken: list[float] = []
    start = time.perf_counter()
    # one product of an emulated type may take a second; fast ones are repeated, since the first calls are slow
    while len(taken) < 20 and (len(taken) < 2 or time.perf_counter() - start < 0.2):
        taken.append(time_call(lambda: first @ second, device))
    return min(taken)


def _square_matrices(side: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return two matrices `(side, side)` of random numbers."""
    matrices = torch.randn(2, side, side, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    return matrices[0], matrices[1]
