# SPDX-License-Identifier: Apache-2.0
"""A process of a run that is killed: the others end in time with a sentence, and the resumed run is the whole one."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from test_resume import (
    ROOT,
    last_complete_step,
    log_of,
    processes_of,
    sha256_of,
    start,
    wait_for_a_new_checkpoint,
)

from transformers_ice.training.stopping import LOST_PROCESS_EXIT_CODE


ACCELERATE = (sys.executable, "-m", "accelerate.commands.launch", "--config_file")
ACCELERATE += (str(ROOT / "configs" / "accelerate" / "cpu_two_processes.yaml"),)
MAX_SECONDS = 60

needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in /proc")


@pytest.mark.slow
@needs_proc
def test_a_killed_worker_costs_no_step(tmp_path):
    words, folder = ("--max_steps", "60"), tmp_path / "killed"
    process = start(folder, *words)
    wait_for_a_new_checkpoint(process, folder)
    os.kill(processes_of(process)[0], signal.SIGKILL)
    begin = time.monotonic()
    code = process.wait(MAX_SECONDS)
    seconds, log = time.monotonic() - begin, log_of(folder).read_text()
    assert code == LOST_PROCESS_EXIT_CODE, log
    assert "A process that loads images was killed (is the memory full?)" in log
    assert "Traceback" not in log
    step = last_complete_step(folder)
    assert f"The last complete checkpoint is {folder}/checkpoint-{step}." in log
    assert start(folder, *words, "--resume_from_checkpoint", "auto").wait() == 0
    assert start(tmp_path / "whole", *words).wait() == 0
    assert sha256_of(folder) == sha256_of(tmp_path / "whole")
    sys.stdout.write(
        f"a worker killed: ended after {seconds:.1f} s with step {step} saved, resumed to the same weights\n"
    )


@pytest.mark.slow
@needs_proc
def test_a_killed_rank_ends_the_other_one(tmp_path):
    words, folder = ("--max_steps", "40"), tmp_path / "killed"
    launcher = start(folder, *words, launcher=ACCELERATE)
    wait_for_a_new_checkpoint(launcher, folder)
    os.kill(processes_of(launcher)[1], signal.SIGKILL)
    begin = time.monotonic()
    assert launcher.wait(MAX_SECONDS) != 0
    seconds, log = time.monotonic() - begin, log_of(folder).read_text()
    assert "Another process of the run has ended" in log, log
    assert "[rank0]: Traceback" not in log
    assert "To resume: python scripts/run_train.py" in log
    step = last_complete_step(folder)
    assert start(folder, *words, "--resume_from_checkpoint", "auto", launcher=ACCELERATE).wait() == 0
    assert start(tmp_path / "whole", *words, launcher=ACCELERATE).wait() == 0
    assert sha256_of(folder) == sha256_of(tmp_path / "whole")
    sys.stdout.write(
        f"a rank killed: ended after {seconds:.1f} s, step {step} was saved, resumed to the same weights\n"
    )
