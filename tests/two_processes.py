# SPDX-License-Identifier: Apache-2.0
"""Code that runs on two processes of torch.distributed, for the tests that compare two with one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


TESTS = Path(__file__).parent
PATHS = [str(TESTS), str(TESTS.parent / "src")]  # what the code puts into `sys.path`


def run_on_two_processes(code: str, folder: Path) -> None:
    """Run code, saved in a folder, on two processes of this machine; fail with what they said if one does."""
    script = folder / "rank.py"
    script.write_text(code)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
