# SPDX-License-Identifier: Apache-2.0
"""Images per second of training, without the time of evaluating and saving."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


__all__ = ["ThroughputMeter"]


class ThroughputMeter:
    """Count images and the seconds they took, from one reading to the next.

    Args:
        clock: Returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._since: float | None = None
        self._paused_seconds = 0.0
        self._num_images = 0

    def count(self, num_images: int) -> None:
        """Add images that are about to be trained on; the first ones start the clock."""
        if self._since is None:
            self._since = self._clock()
        self._num_images += num_images

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time of the block; only from a reading inside it on, if there is one."""
        begin = self._clock()
        try:
            yield
        finally:
            self._paused_seconds += self._clock() - max(begin, self._since or begin)

    def read(self) -> float:
        """Return the images per second since the last reading, and start again."""
        now = self._clock()
        seconds = now - (now if self._since is None else self._since) - self._paused_seconds
        rate = self._num_images / seconds if seconds > 0 else 0.0
        self._since, self._paused_seconds, self._num_images = now, 0.0, 0
        return rate
