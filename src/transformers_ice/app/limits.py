# SPDX-License-Identifier: Apache-2.0
"""Limits of a request: size of an upload, number of pixels, seconds; with error messages for visitors."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from PIL import Image

from ..ice_deit.image_conversion import load_image


__all__ = ["Deadline", "Limits", "RequestError", "Worker", "read_upload"]

T = TypeVar("T")


class RequestError(ValueError):
    """Error that a visitor can fix; its message is shown on the page."""


@dataclass(frozen=True)
class Limits:
    """Limits of a request."""

    max_upload_mb: float = 20.0  # largest file, in MB of 1024 x 1024 bytes
    max_pixels: int = 40_000_000  # a small file can hold a very large image
    timeout_s: float = 30.0  # a visitor gets a response then, even if the request is still running

    def __post_init__(self) -> None:
        for name in ("max_upload_mb", "max_pixels", "timeout_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}.")


def read_upload(path: str | os.PathLike[str], limits: Limits) -> Image.Image:
    """Read an uploaded image, upright and with its bit depth and transparency; the limits are checked before."""
    size = Path(path).stat().st_size
    if size > limits.max_upload_mb * 2**20:
        raise RequestError(
            f"This file has {size / 2**20:.1f} MB; at most {limits.max_upload_mb:g} MB are accepted. Save the picture "
            "smaller, or as JPEG."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit of this app comes next
            with Image.open(path) as header:  # reads the header only
                width, height = header.size
    except Image.DecompressionBombError as error:
        raise _too_many_pixels("more than 178 million", limits) from error
    except Exception as error:  # a damaged header can fail anywhere inside a decoder
        raise RequestError(
            "This file is not a picture that can be read here. JPEG, PNG, WebP, GIF, BMP and TIFF work."
        ) from error
    if width * height > limits.max_pixels:
        raise _too_many_pixels(f"{width} x {height}", limits)
    try:
        return load_image(os.fspath(path))
    except ValueError as error:
        raise RequestError(
            "This picture is damaged or incomplete: the file ends too early. Save or send it again."
        ) from error


def _too_many_pixels(found: str, limits: Limits) -> RequestError:
    return RequestError(
        f"This picture has {found} pixels; at most {limits.max_pixels / 1e6:g} million are accepted. Make it smaller."
    )


class Deadline:
    """Time by which a request has to be answered; long work checks it between its steps."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds  # not the wall clock, which may be set back

    @property
    def remaining(self) -> float:
        """Remaining seconds, at least 0."""
        return max(0.0, self._end - time.monotonic())

    def check(self) -> None:
        """Raise a `RequestError` if the time is over."""
        if not self.remaining:
            raise _timed_out(self.seconds)


def _timed_out(seconds: float) -> RequestError:
    return RequestError(
        f"This took longer than the {seconds:g} seconds that one request may take. Others may be using the app too: "
        "try again, or ask for fewer methods."
    )


class Worker:
    """Worker that runs requests one after the other in a thread, and stops waiting when their time is over.

    One thread, because explainers change a model temporarily (hooks, gradients), and measured times are valid only
    where nothing else runs. A thread cannot be stopped from outside: running work ends at its next
    `deadline.check()`, waiting work is cancelled.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="explainer")

    def run(self, work: Callable[[Deadline], T]) -> T:
        """Run the work and return its result."""
        deadline = Deadline(self.timeout_s)

        def begin() -> T:
            deadline.check()  # the time may have passed while the request was waiting
            return work(deadline)

        future = self._executor.submit(begin)
        try:
            return future.result(timeout=deadline.remaining)
        except FutureTimeoutError as error:
            future.cancel()  # has an effect only if it has not begun
            raise _timed_out(self.timeout_s) from error
