# SPDX-License-Identifier: Apache-2.0
"""The quick `python` of the tests does what the real one does."""

from __future__ import annotations

import subprocess
import sys

import pytest


PROGRAM = "import os, sys; print(sys.argv, os.getcwd(), os.environ['A'], input()); print('e', file=sys.stderr)"


@pytest.mark.parametrize(
    "code", [PROGRAM, "import sys; sys.exit(3)", "import sys; sys.exit('why')", "raise ValueError('x')"]
)
@pytest.mark.parametrize("as_file", [True, False])
def test_a_program_gets_and_gives_what_it_would_otherwise(warm_python, tmp_path, code, as_file):
    (tmp_path / "program.py").write_text(code)
    words = [str(tmp_path / "program.py"), "a b"] if as_file else ["-c", code, "a b"]

    def run(python):
        finished = subprocess.run(
            [python, *words], cwd=tmp_path, env={"A": "1"}, input="line\n", capture_output=True, text=True
        )
        last_line = finished.stderr.splitlines()[-1:]  # a traceback has other frames
        return finished.returncode, finished.stdout, last_line

    assert run(warm_python.python) == run(sys.executable)


def test_programs_share_nothing(warm_python):
    def run(code):
        return subprocess.run([warm_python.python, "-c", f"import os, torch; {code}"], capture_output=True, text=True)

    assert run("os.environ['X'] = '1'; torch.x = 1").returncode == 0
    assert run("print('X' in os.environ, hasattr(torch, 'x'))").stdout == "False False\n"
