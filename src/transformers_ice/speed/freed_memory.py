# SPDX-License-Identifier: Apache-2.0
"""Whether memory that a tensor gives back stays with the process: on a CPU a tenth of a forward pass hangs on it."""

from __future__ import annotations

import ctypes
import sys


__all__ = ["keep_freed_memory"]

# <malloc.h> of the GNU C library
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_TOP_PAD = 256 * 2**20


def keep_freed_memory() -> bool:
    """Let this process keep the memory that its tensors give back, from here on.

    By itself the GNU C library hands large blocks back to the kernel at once and gets them anew, page by page, for the
    next tensor: time that has nothing to do with the model, and that differs from process to process. Servers avoid it
    by jemalloc or tcmalloc; this does the same to the allocator that is there.

    Returns:
        Whether the allocator did as told; False where it is another one than that of the GNU C library.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    wanted = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: _TOP_PAD}
    return all([mallopt(option, value) == 1 for option, value in wanted.items()])
