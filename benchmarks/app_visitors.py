# SPDX-License-Identifier: Apache-2.0
"""A running app in a process of its own, and visitors of it that speak plain HTTP, as the page in a browser does."""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


__all__ = ["Answer", "RunningApp", "Visitor", "draw_picture", "resident_mb"]

ROOT = Path(__file__).resolve().parents[1]
FOREGROUND = -1  # choice of a target: everything that is not background
_BOUNDARY = "picture-of-a-visitor"


class RunningApp:
    """The app as `transformers-ice app` starts it, on a free port.

    Args:
        model: Checkpoint.
        home: Folder for its temporary files; it becomes `TMPDIR` of the process.
        options: Further arguments.
    """

    def __init__(self, model: str | os.PathLike[str], home: Path, options: Sequence[str] = ()) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        home.mkdir(parents=True, exist_ok=True)
        self.home, self.log = home, home.with_name(f"{home.name}.log")
        path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "TMPDIR": str(home), "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
        environment.pop("GRADIO_TEMP_DIR", None)
        words = ["-m", "transformers_ice.cli", "app", "--model", str(model), "--port", str(self.port), *options]
        with open(self.log, "w", encoding="utf-8") as log:
            # in a session of its own: Ctrl-C at this terminal is not for the app. A shell may have ignored SIGINT.
            self.process = subprocess.Popen(
                [sys.executable, *words],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )

    def wait_until_open(self, seconds: float = 150) -> RunningApp:
        """Wait until the page is served."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
                return self
            except OSError:
                time.sleep(0.1)
        self.process.kill()
        raise RuntimeError(f"The app did not start:\n{self.log.read_text(encoding='utf-8')}")

    def stop(self, number: int = signal.SIGINT, seconds: float = 60) -> float:
        """Send a signal; return the seconds until the process has gone."""
        start = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(seconds)
        return time.monotonic() - start

    @property
    def memory(self) -> float:
        """Resident memory in MB."""
        return resident_mb(self.process.pid)

    @property
    def peak_memory(self) -> float:
        """Largest resident memory so far, in MB."""
        return resident_mb(self.process.pid, "VmHWM")

    @property
    def cpu_seconds(self) -> float:
        """CPU time so far, of all threads."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def files(self) -> list[Path]:
        """Return the files in its temporary folder."""
        return [path for path in self.home.rglob("*") if path.is_file()]

    def leftovers(self) -> list[str]:
        """Return files and folders in its temporary folder, relative to it; not the empty cache folder of torch."""
        names = (str(path.relative_to(self.home)) for path in self.home.rglob("*"))
        return sorted(name for name in names if not name.startswith("torchinductor_"))


def resident_mb(pid: int | str = "self", name: str = "VmRSS") -> float:
    """Return the resident memory of a process in MB; `VmHWM` is its peak."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition(f"{name}:")[2].split()[0]) / 1024


@dataclass(frozen=True)
class Answer:
    """What an event answered."""

    seconds: float
    components: dict[str, Any]  # by name; empty where gradio reported an error
    text: str  # the stream as it came

    @property
    def status(self) -> str:
        """The status line, without markup."""
        html = next((str(value) for name, value in self.components.items() if name.endswith("status")), self.text)
        return re.sub(r"<[^>]+>", "", html).strip()

    @property
    def model_seconds(self) -> float | None:
        """Seconds of the one run of the model, as the page shows them."""
        found = re.search(r"run of the model took (\d+) ms", self.status)
        return int(found[1]) / 1000 if found else None

    @property
    def content(self) -> str:
        """Everything that does not depend on the time it took."""
        kept = {name: value for name, value in self.components.items() if not name.endswith("status")}
        # figures are named by their content; other explainers and pruning show milliseconds
        text = json.dumps(kept, sort_keys=True)
        return re.sub(r'[\d.,]+ ms|"url": "[^"]*"|"milliseconds[^,}]*', "", text)


class Visitor:
    """A visitor of the app on this machine."""

    def __init__(self, port: int, timeout: float = 150) -> None:
        self.port, self.timeout = port, timeout
        config = json.loads(self.request("GET", "/config")[1])
        names = {part["id"]: part["props"].get("elem_id") for part in config["components"]}
        self.events = {event["api_name"]: event["id"] for event in config["dependencies"]}
        self._outputs = {
            event["api_name"]: [names[output] for output in event["outputs"]] for event in config["dependencies"]
        }

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Return the status and the content of a response."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.timeout)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def upload(self, content: bytes, name: str = "picture.png") -> dict[str, Any]:
        """Upload a file; return what an event takes as the picture."""
        head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
        form = head.encode() + content + f"\r\n--{_BOUNDARY}--\r\n".encode()
        headers = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}
        status, reply = self.request("POST", "/gradio_api/upload", form, headers)
        if status != 200:
            raise RuntimeError(f"The upload was answered with {status}: {reply[:200]!r}")
        return {"path": json.loads(reply)[0], "meta": {"_type": "gradio.FileData"}}

    def join(self, event: str | int, data: Any, session: str | None = None) -> tuple[int, Any]:
        """Send an event without listening for its answer; return status and reply."""
        number = self.events[event] if isinstance(event, str) else event
        body = json.dumps({"fn_index": number, "data": data, "session_hash": session or secrets.token_hex(6)})
        headers = {"Content-Type": "application/json"}
        status, reply = self.request("POST", "/gradio_api/queue/join", body.encode(), headers)
        return status, json.loads(reply)

    def ask(self, event: str, *data: Any) -> Answer:
        """Send an event and wait for its answer."""
        start, session = time.monotonic(), secrets.token_hex(6)
        status, reply = self.join(event, list(data), session)
        if status != 200:
            return Answer(time.monotonic() - start, {}, f"{status}: {reply}")
        text = self.request("GET", f"/gradio_api/queue/data?session_hash={session}")[1].decode()
        components: dict[str, Any] = {}
        for line in text.splitlines():
            message = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
            if message.get("msg") == "process_completed" and message["success"]:
                components = dict(zip(self._outputs[event], message["output"]["data"], strict=True))
        return Answer(time.monotonic() - start, components, text)

    def figures(self, answer: Answer) -> int:
        """Load the figures of an explanation, as a browser does; return their bytes."""
        paths = re.findall(r'"path": "([^"]+\.png)"', json.dumps(answer.components))
        return sum(len(self.request("GET", f"/gradio_api/file={path}")[1]) for path in paths)


def draw_picture(width: int, height: int, image_format: str, seed: int) -> bytes:
    """Return an image file of soft colours with some noise, whose size in bytes is about that of a photograph."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    soft = coarse.resize((width, height), Image.Resampling.BICUBIC)
    if image_format != "PNG":  # noise makes a large PNG larger than an upload may be
        grain = rng.integers(-6, 7, (height, width, 1), dtype=np.int16)
        soft = Image.fromarray((np.asarray(soft) + grain).clip(0, 255).astype(np.uint8))
    buffer = io.BytesIO()
    soft.save(buffer, image_format)
    return buffer.getvalue()
