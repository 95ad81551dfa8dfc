# SPDX-License-Identifier: Apache-2.0
"""A `python` that starts in milliseconds: programs run in forks of a process that has imported the heavy libraries.

Importing torch and transformers takes seconds of every short program, and the documents start dozens of them.
`WarmPython` starts one server; its folder `bin` holds `transformers-ice` and a `python` that passes arguments, working
directory, environment and the three standard streams to the server, which forks. Programs share nothing.
"""

from __future__ import annotations

import array
import atexit
import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, ModuleType


CLIENT = """#!{python} -IS
import array, json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    request = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    streams = array.array("i", [0, 1, 2])
    server.sendmsg([len(request).to_bytes(8, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
    server.sendall(request)
    answer = server.recv(4)
sys.exit(int.from_bytes(answer, "big") if answer else 1)
"""


class WarmPython:
    """A running server and the folder with its `python`; `close` ends it.

    Args:
        launcher: What the server is started by, e.g. `unshare`; it has to become the server.
        environment: Variables that libraries read when they are imported; programs get their own ones besides.
    """

    def __init__(self, launcher: Sequence[str] = (), environment: Mapping[str, str] = MappingProxyType({})) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="warm-python-"))  # short: an address has at most 107 bytes
        address = str(self.folder / "socket")
        self.bin = self.folder / "bin"
        self.bin.mkdir()
        self.python = self.bin / "python"
        self.python.write_text(CLIENT.format(python=os.path.realpath(sys.executable), address=address))
        self.python.chmod(0o755)
        command = self.bin / "transformers-ice"
        command.write_text(f'#!/bin/sh\nexec {self.python} -m transformers_ice.cli "$@"\n')
        command.chmod(0o755)
        words = [*launcher, sys.executable, __file__, address]
        self.server = subprocess.Popen(words, stdout=subprocess.PIPE, env={**os.environ, **environment})
        assert self.server.stdout is not None
        self.server.stdout.readline()  # it listens

    def close(self) -> None:
        self.server.kill()
        self.server.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def run_program(arguments: list[str]) -> int:
    """Run `-c CODE`, `-m MODULE` or `FILE` with its arguments as python does; return the exit code."""
    kind = arguments[0] if arguments[0] in ("-c", "-m") else "file"
    what, *rest = arguments[1:] if kind != "file" else arguments
    sys.argv = [kind if kind != "file" else what, *rest]
    sys.path[0] = str(Path(what).resolve().parent) if kind == "file" else os.getcwd()
    try:
        if kind == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        elif kind == "-c":
            main = sys.modules["__main__"] = ModuleType("__main__")
            exec(compile(what, "<string>", "exec"), main.__dict__)
        else:
            runpy.run_path(what, run_name="__main__")
    except SystemExit as end:
        if not (end.code is None or isinstance(end.code, int)):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def serve_one(connection: socket.socket) -> None:
    """Read one request, run it in a child of this fork, and answer with its exit code."""
    size, ancillary, _, _ = connection.recvmsg(8, socket.CMSG_LEN(3 * array.array("i").itemsize))
    streams = array.array("i", ancillary[0][2])
    with connection.makefile("rb") as request:
        arguments, folder, environment = json.loads(request.read(int.from_bytes(size, "big")))
    child = os.fork()
    if child == 0:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        # new objects: those of the server know whether its own streams could seek
        sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        code = run_program(arguments)
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    connection.sendall((code if code >= 0 else 128 - code).to_bytes(4, "big"))


def main(address: str) -> None:
    """Import what programs need, listen, and fork for every request."""
    import torch

    import transformers_ice.cli.evaluate
    import transformers_ice.cli.explain
    import transformers_ice.cli.train  # noqa: F401

    torch.set_num_threads(1)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nothing waits for the forks of requests
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        print("listening", flush=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                listener.close()
                serve_one(connection)
                os._exit(0)
            connection.close()


if __name__ == "__main__":
    main(sys.argv[1])
