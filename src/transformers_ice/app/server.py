# SPDX-License-Identifier: Apache-2.0
"""What stands between the network and the page: a private folder for uploads, and a check of every request."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit


try:
    import fcntl
except ImportError:  # Windows, where the folders of killed apps are not recognized
    fcntl = None  # type: ignore[assignment]


__all__ = ["LOCAL_HOSTS", "Gate", "Listeners", "UploadFolder", "check_event"]

_PREFIX = "transformers-ice-app-"
_SWEEP_SECONDS, _MAX_AGE_SECONDS = 600, 3600  # how often files of visitors are checked, and their largest age
_MAX_BODY = 2**16  # bytes of a request that is no upload; those of the page have a few hundred
# interfaces of gradio that the page does not use
_CLOSED = ("/openapi.json", *(f"/gradio_api/{name}" for name in ("call/", "run/", "api/", "openapi.json", "dev/")))
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")


class UploadFolder:
    """Temporary folder of one running app, which only its user may read; removed when the app ends.

    Files of any kind are removed after an hour, broken-off uploads among them. A lock on the folder ends with the
    process, so that the next app recognizes and removes the folder of one that was killed.
    """

    def __init__(self) -> None:
        self._before = os.environ.get("GRADIO_TEMP_DIR", "")
        home = Path(self._before or tempfile.gettempdir())
        home = home.parent if home.name.startswith(_PREFIX) else home  # another app of this process
        home.mkdir(parents=True, exist_ok=True)
        self.remove_leftovers(home)
        new = Path(tempfile.mkdtemp(prefix=".new-", dir=home))  # mode 0700
        self._lock = _lock(new)
        self.path = new.rename(home / f"{_PREFIX}{new.name.removeprefix('.new-')}")  # locked when it has its name
        os.environ["GRADIO_TEMP_DIR"] = str(self.path)  # read when gradio makes a component, an app or a file
        self._closed = threading.Event()
        threading.Thread(target=self._sweep_often, name="sweeper", daemon=True).start()
        atexit.register(self.close)
        self._close_at_signals()

    @staticmethod
    def remove_leftovers(home: Path) -> None:
        """Remove the folders of apps that do not run any more."""
        for folder in home.glob(f"{_PREFIX}*"):
            lock = _lock(folder)
            if lock is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)

    def sweep(self, max_age: float = _MAX_AGE_SECONDS) -> None:
        """Remove files and empty folders that are older, in seconds."""
        oldest = time.time() - max_age
        for folder, names, files in os.walk(self.path, topdown=False):
            for name in files:
                with suppress(OSError):  # another thread was faster
                    path = os.path.join(folder, name)
                    if os.lstat(path).st_mtime < oldest:
                        os.unlink(path)
            for name in names:
                with suppress(OSError):  # it is not empty
                    path = os.path.join(folder, name)
                    if os.lstat(path).st_mtime < oldest:
                        os.rmdir(path)

    def close(self) -> None:
        """Remove everything."""
        self._closed.set()
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        atexit.unregister(self.close)
        if os.environ.get("GRADIO_TEMP_DIR") == str(self.path):
            os.environ["GRADIO_TEMP_DIR"] = self._before

    @asynccontextmanager
    async def lifespan(self, _: Any) -> AsyncIterator[None]:
        """Remove everything when the server ends."""
        try:
            yield
        finally:
            self.close()

    def _sweep_often(self) -> None:
        while not self._closed.wait(_SWEEP_SECONDS):
            self.sweep()

    def _close_at_signals(self) -> None:
        """Let the signals that end a service remove the folder before they end the process as they always do."""

        def close(number: int, _: Any) -> None:
            self.close()
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

        if threading.current_thread() is threading.main_thread():  # no other may set a handler
            for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
                number = getattr(signal, name, None)
                if number and signal.getsignal(number) == signal.SIG_DFL:
                    signal.signal(number, close)


def _lock(folder: Path) -> int | None:
    """Return the descriptor that locks a folder; `None` where another process has it, or there are no locks."""
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


class Listeners:
    """Visitors (session hashes of gradio) who hold the stream of their answers open, counted from several threads."""

    def __init__(self) -> None:
        self._streams: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __contains__(self, visitor: object) -> bool:
        with self._lock:
            return self._streams.get(str(visitor), 0) > 0

    @contextmanager
    def listening(self, visitor: str) -> Iterator[None]:
        """Count a stream as long as the block runs."""
        with self._lock:
            self._streams[visitor] += 1
        try:
            yield
        finally:
            with self._lock:
                self._streams[visitor] -= 1
                if self._streams[visitor] <= 0:
                    del self._streams[visitor]


class Gate:
    """ASGI middleware in front of gradio: checks host, path and content of requests, and counts open streams.

    Args:
        app: The next ASGI application.
        listeners: Where the streams are counted.
        hosts: Names by which the app may be called, without port; `None` for all. A page of another site that lets its
            own name point to this machine cannot use the app then.
        check_event: Function of the number of an event and its data, which returns what is wrong; empty where nothing.
    """

    def __init__(
        self,
        app: Any,
        listeners: Listeners,
        hosts: Sequence[str] | None,
        check_event: Callable[[Any, Any], str],
    ) -> None:
        self.app, self.listeners, self.hosts, self.check_event = app, listeners, hosts, check_event

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Answer what is refused; pass on the rest."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path, headers = scope["path"], {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if problem := self._check_host(headers):
            await _refuse(send, 421, problem)
        elif path.startswith(_CLOSED):
            await _refuse(send, 404, "The app has a page and no interface for programs.")
        elif path == "/gradio_api/queue/data":
            query = parse_qs(scope["query_string"].decode("latin-1"))
            with self.listeners.listening(query.get("session_hash", [""])[0]):
                await self.app(scope, receive, send)
        elif path == "/gradio_api/queue/join" and scope["method"] == "POST":
            body = await _read_body(receive)
            if problem := self._check_body(body):
                await _refuse(send, 422, problem)
            else:
                await self.app(scope, _replay(body or b"", receive), send)
        else:
            await self.app(scope, receive, send)

    def _check_host(self, headers: dict[bytes, str]) -> str:
        for name in (b"host", b"x-forwarded-host"):
            try:
                host = urlsplit(f"//{headers.get(name, 'localhost')}").hostname or ""
            except ValueError:  # brackets without an address
                host = headers[name]
            if self.hosts is not None and host not in self.hosts:
                return f"The app is not known by the name {host!r}. Start it with --allowed_hosts {host} to allow it."
        return ""

    def _check_body(self, body: bytes | None) -> str:
        if body is None:
            return f"The request is longer than {_MAX_BODY} bytes."
        try:
            content = json.loads(body, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            return "The request is no JSON (in UTF-8, without NaN and Infinity)."
        if not isinstance(content, dict) or not isinstance(content.get("session_hash"), str):
            return "The request must be an object with a `session_hash`, a string."
        return self.check_event(content.get("fn_index"), content.get("data"))


def check_event(page: Any, number: Any, data: Any) -> str:
    """Return what is wrong with the number of an event of a `gr.Blocks`, or with its data; empty where nothing."""
    event = page.fns.get(number) if type(number) is int else None
    if event is None:
        return "`fn_index` must be the number of an event of the page."
    if not isinstance(data, list) or len(data) != len(event.inputs):
        return f"`data` must be a list of {len(event.inputs)} values."
    for component, value in zip(event.inputs, data, strict=True):
        expected = _expected(component, value)
        if expected:
            return f"“{component.label}” must be {expected}."
    return ""


def _expected(component: Any, value: Any) -> str:
    """Return what the value of a component has to be, where it is something else."""
    kind, choices = component.get_block_name(), [choice for _, choice in getattr(component, "choices", None) or ()]
    if kind == "image":
        is_upload = isinstance(value, dict) and isinstance(value.get("path"), str)
        return "" if value is None or is_upload else "an upload, or null"
    if kind == "checkboxgroup":
        is_right = isinstance(value, list) and all(type(item) is str and item in choices for item in value)
        return "" if is_right else "a list of its choices"
    if kind in ("dropdown", "radio"):
        is_right = type(value) in (int, str) and value in choices
        return "" if is_right else "one of its choices"
    if kind == "slider":
        is_right = type(value) in (int, float) and component.minimum <= value <= component.maximum
        return "" if is_right else f"a number from {component.minimum} to {component.maximum}"
    return ""


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


async def _read_body(receive: Any) -> bytes | None:
    """Return the body of a request; `None` where it is too long."""
    body, has_more = b"", True
    while has_more:
        message = await receive()
        body += message.get("body", b"")
        has_more = message.get("more_body", False)
        if len(body) > _MAX_BODY:
            return None
    return body


def _replay(body: bytes, receive: Any) -> Callable[[], Any]:
    """Return a function that gives the body that was read, and then what comes after it."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Any:
        return messages.pop() if messages else await receive()

    return receive_again


async def _refuse(send: Any, status: int, problem: str) -> None:
    """Answer with a sentence, in the form in which gradio answers."""
    body = json.dumps({"detail": problem}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
