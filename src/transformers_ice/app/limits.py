# SPDX-License-Identifier: Apache-2.0
"""Limits of a request: size of an upload, number of pixels, seconds, others that wait; with errors for visitors."""

from __future__ import annotations

import asyncio
import os
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from ..ice_deit.image_conversion import MAX_SIDE, load_image, open_image


__all__ = ["Deadline", "Limits", "RequestError", "Worker", "read_upload"]

MAX_WAITING = 32  # requests; further visitors get a message that the app is busy
_LISTEN_SECONDS = 5.0  # by then a visitor must have opened the stream of answers
_POLL_SECONDS = 0.1

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
    if not os.path.isfile(path):  # a pipe would never end
        raise RequestError("This upload is not there any more. Send it again.")
    size = Path(path).stat().st_size
    if size > limits.max_upload_mb * 2**20:
        raise RequestError(
            f"This file has {size / 2**20:.1f} MB; at most {limits.max_upload_mb:g} MB are accepted. Save the picture "
            "smaller, or as JPEG."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit of this app comes next
            with open_image(os.fspath(path)) as header:
                width, height = header.size
    except Image.DecompressionBombError as error:
        raise _too_many_pixels("more than 178 million", limits) from error
    except Exception as error:  # a damaged header can fail anywhere inside a decoder
        raise RequestError(
            "This file is not a picture that can be read here. JPEG, PNG, WebP, GIF, BMP, TIFF and AVIF work."
        ) from error
    if width * height > limits.max_pixels:
        raise _too_many_pixels(f"{width} x {height}", limits)
    if max(width, height) > MAX_SIDE:
        raise RequestError(
            f"This picture has {width} x {height} pixels; at most {MAX_SIDE:,} on a side are accepted. Crop it."
        )
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
    """Time by which a request has to be answered; long work checks it between its steps.

    Args:
        seconds: From now on.
        is_wanted: Whether anyone still waits for the answer.
    """

    def __init__(self, seconds: float, is_wanted: Callable[[], bool] = lambda: True) -> None:
        self.seconds, self.is_wanted = seconds, is_wanted
        self.start = time.monotonic()  # not the wall clock, which may be set back
        self.problem = ""  # why the request was refused before its time was over

    @property
    def remaining(self) -> float:
        """Remaining seconds, at least 0."""
        return max(0.0, self.seconds - self.elapsed)

    @property
    def elapsed(self) -> float:
        """Seconds since the request came."""
        return time.monotonic() - self.start

    def end(self) -> None:
        """Let the time be over."""
        self.problem = self.problem or (
            f"This took longer than the {self.seconds:g} seconds that one request may take. Others may be using the "
            "app too: try again, or ask for fewer methods."
        )

    def check(self) -> None:
        """Raise a `RequestError` if the time is over or nobody waits for the answer, and from then on."""
        if not self.remaining:
            self.end()
        if not self.is_wanted():
            self.problem = self.problem or "Nobody waits for this answer any more."
        if self.problem:
            raise RequestError(self.problem)


@dataclass(eq=False)
class _Job:
    work: Callable[[], Any]
    deadline: Deadline
    result: Future[Any] = field(default_factory=Future)


class Worker:
    """Thread that answers requests one after the other, those first that somebody listens for.

    One thread, because explainers change a model temporarily (hooks, gradients), and measured times are valid only
    where nothing else runs. It cannot be stopped from outside: running work ends at its next `deadline.check()`. It
    does not keep the process alive.
    """

    def __init__(self) -> None:
        self._waiting: list[_Job] = []
        self._changed = threading.Condition()
        threading.Thread(target=self._serve, name="explainer", daemon=True).start()

    async def run(self, work: Callable[[], T], deadline: Deadline) -> T:
        """Return the result of the work; a `RequestError` if it was refused, and then `deadline.check` raises it too.

        The clock of the deadline runs while the request waits.
        """
        job = _Job(work, deadline)
        with self._changed:
            if len(self._waiting) >= MAX_WAITING:
                deadline.problem = f"The app is busy: {MAX_WAITING} requests are waiting. Try again in a minute."
                deadline.check()
            self._waiting.append(job)
            self._changed.notify()
        try:
            return await asyncio.wait_for(asyncio.wrap_future(job.result), deadline.remaining)
        except asyncio.TimeoutError as error:
            deadline.end()
            raise RequestError(deadline.problem) from error
        finally:
            with self._changed:
                if job in self._waiting:
                    self._waiting.remove(job)

    def _serve(self) -> None:
        while True:
            with self._changed:
                while (job := self._next()) is None:
                    self._changed.wait(_POLL_SECONDS if self._waiting else None)
                self._waiting.remove(job)
            with suppress(InvalidStateError):  # nobody waits for the result any more
                try:
                    job.deadline.check()
                    job.result.set_result(job.work())
                except Exception as error:
                    job.result.set_exception(error)
            del job  # with the arrays of the result, or of the frames of the error

    def _next(self) -> _Job | None:
        """Return the first request that somebody listens for, or for which nobody came in time: it is refused next."""
        for job in self._waiting:
            if job.deadline.is_wanted() or job.deadline.elapsed > _LISTEN_SECONDS:
                return job
        return None
