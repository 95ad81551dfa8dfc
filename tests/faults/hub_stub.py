# SPDX-License-Identifier: Apache-2.0
"""A stand-in of the Hub on this machine, which answers as the Hub does, or fails in one of `FAULTS`."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


FAULTS = {
    "401": 401,
    "404": 404,
    "500": 500,
    "a page of HTML": b"<html>Please log in</html>",
    "no answer": None,
    "half an answer": "half",
}
SHA = "0" * 40


@dataclass
class Request:
    """What the server was sent; `files` are the decoded files of a commit by name."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    files: dict[str, bytes] = field(default_factory=dict)


class HubStub(ThreadingHTTPServer):
    """The server. `fault` names what it does to the requests whose path contains `faulty_path`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.fault: str | None = None
        self.faulty_path = ""
        self.requests: list[Request] = []

    def answer(self, request: Request) -> dict[str, Any]:
        """Return what the Hub answers."""
        path = request.path
        if "repos/create" in path:
            return {"url": f"{self.address}/owner/m", "name": "owner/m", "id": "x"}
        if "validate-yaml" in path:
            return {"errors": [], "warnings": []}
        if "/preupload/" in path:
            kinds = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            names = [file["path"] for file in json.loads(request.body)["files"]]
            return {"files": [{"path": name, **kinds} for name in names], "commitOid": SHA}
        if "/commit/" in path:
            lines = map(json.loads, request.body.splitlines())
            files = [line["value"] for line in lines if line["key"] == "file"]
            request.files = {file["path"]: base64.b64decode(file["content"]) for file in files}
            commit = {"commitUrl": f"{self.address}/owner/m/commit/a", "commitOid": "a", "commitMessage": "x"}
            return {**commit, "success": True, "hookOutput": ""}
        return {"id": "owner/m", "modelId": "owner/m", "sha": SHA, "siblings": [], "private": False, "tags": []}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing where a client has gone."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubStub

    def do_GET(self) -> None:
        request = Request(self.command, self.path, dict(self.headers.items()), self._read_body())
        self.server.requests.append(request)
        is_faulty = self.server.fault is not None and self.server.faulty_path in self.path
        fault = FAULTS[str(self.server.fault)] if is_faulty else {}
        if fault is None:
            time.sleep(600)
        status = fault if isinstance(fault, int) else 200
        content = fault if isinstance(fault, bytes) else json.dumps(self.server.answer(request) if not fault else {})
        content = content.encode() if isinstance(content, str) else content
        self.send_response(status)
        self.send_header("Content-Length", str(len(content) + 100 * (fault == "half")))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        self.close_connection = fault == "half"

    do_POST = do_PUT = do_HEAD = do_DELETE = do_GET  # noqa: N815

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        blocks = []
        while size := int(self.rfile.readline(), 16):
            blocks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(blocks)

    def log_message(self, *args: Any) -> None:
        """Print nothing."""


@contextmanager
def running_hub() -> Iterator[HubStub]:
    """Yield a server, which ends with the block."""
    with HubStub() as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        try:
            yield hub
        finally:
            hub.shutdown()
