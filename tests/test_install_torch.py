# SPDX-License-Identifier: Apache-2.0
"""`scripts/install_torch.sh` with stand-ins for python and nvidia-smi: which pip calls are made, in which order."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]
CPU_INDEX = "--index-url https://download.pytorch.org/whl/cpu"


@pytest.fixture
def install(tmp_path: Path):
    """Return `install(...) -> (finished process, pip arguments of each call)`."""

    def write_command(name: str, body: str) -> Path:
        path = tmp_path / name
        path.write_text(f"#!/usr/bin/env bash\n{body}\n")
        path.chmod(0o755)
        return path

    def run(gpu: bool = False, installed: bool = False, failing: str = "nothing fails", **environment: str):
        log = tmp_path / "calls"
        log.write_text("")
        write_command("nvidia-smi", 'echo "GPU 0: a card"' if gpu else "exit 9")
        body = f'if [ "$1" = -c ]; then exit {int(not installed)}; fi; echo "$*" >> {log}; [[ "$*" != *"{failing}"* ]]'
        python = write_command("python", body)
        (tmp_path / "constraints.txt").write_text("# first\ntorch==2.13.0\nnumpy==2.4.6\n")
        finished = subprocess.run(
            ["bash", ROOT / "scripts/install_torch.sh", python, tmp_path / "constraints.txt"],
            env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", **environment},
            capture_output=True,
            text=True,
        )
        prefix = f"-m pip --disable-pip-version-check -qq install --no-compile -c {tmp_path}/constraints.txt "
        calls = log.read_text().splitlines()
        assert all(call.startswith(prefix) for call in calls)
        return finished, [call.removeprefix(prefix) for call in calls]

    return run


def test_an_installed_torch_is_left_alone(install):
    finished, calls = install(installed=True)
    assert (finished.returncode, calls) == (0, [])


def test_a_machine_with_a_gpu_gets_the_default_build(install):
    finished, calls = install(gpu=True)
    assert (finished.returncode, calls) == (0, ["torch==2.13.0"])


def test_a_local_wheel_wins_where_there_is_no_gpu(install):
    finished, calls = install()
    assert (finished.returncode, calls) == (0, ["--no-index --no-deps torch==2.13.0", "torch==2.13.0"])


def test_without_gpu_and_wheel_the_cpu_index_is_asked_and_never_the_default_one(install):
    finished, calls = install(failing="--no-index")
    assert (finished.returncode, calls) == (0, ["--no-index --no-deps torch==2.13.0", f"{CPU_INDEX} torch==2.13.0"])


def test_another_index_can_be_named(install):
    _, calls = install(failing="--no-index", TORCH_CPU_INDEX="https://mirror.example/cpu")
    assert calls[-1] == "--index-url https://mirror.example/cpu torch==2.13.0"


def test_an_unreachable_index_is_an_error_that_names_the_way_out(install):
    finished, calls = install(failing="torch==2.13.0")
    assert finished.returncode == 1
    assert len(calls) == 2
    assert "Set TORCH_CPU_INDEX" in finished.stderr


def test_the_pinned_torch_stands_first_in_the_constraints():
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert pins[0].startswith("torch==")
    assert "+" not in pins[0], "a local version such as +cpu would forbid every other build"
