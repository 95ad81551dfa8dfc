# SPDX-License-Identifier: Apache-2.0
"""Runs that are killed in the middle of a write, in every file of a checkpoint, and end as the whole run does."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_resume import RUN, SCRIPT, sha256_of

from transformers_ice.training.checkpoints import is_complete, last_complete_checkpoint, list_checkpoints


KILLED_AT_WRITE = Path(__file__).with_name("killed_at_write.py")
WORDS = [*RUN, "--max_steps", "10", "--save_total_limit", "1"]
NUM_KILLS = 20


def choose_writes(names: list[str]) -> dict[int, str]:
    """Return `NUM_KILLS` writes by number, from checkpoint-6 on: first those whose file was not written before."""
    begin = next(number for number, name in enumerate(names, 1) if "checkpoint-6/" in name)
    order, seen = list[tuple[bool, bool, int]](), set[str]()
    for number, name in list(enumerate(names, 1))[begin - 1 :]:
        kind = re.sub(r"checkpoint-\d+|partial-\w+", "", name)
        order.append((kind in seen, name.endswith(".py"), number))
        seen.add(kind)
    return {number: names[number - 1] for *_, number in sorted(sorted(order)[:NUM_KILLS])}


@pytest.mark.slow
def test_a_run_killed_in_the_middle_of_any_write_ends_as_the_whole_run(tmp_path, warm_python):
    def run(*words: str) -> int:
        finished = subprocess.run([warm_python.python, *map(str, words)], capture_output=True, text=True)
        assert "Traceback" not in finished.stderr
        return finished.returncode

    assert run(KILLED_AT_WRITE, "0", tmp_path / "whole", *WORDS) == 0
    names = json.loads((tmp_path / "writes.json").read_text())
    num_same = 0
    for number, name in choose_writes(names).items():
        folder = tmp_path / "killed"
        assert run(KILLED_AT_WRITE, str(number), folder, *WORDS) == 128 + 9
        complete = last_complete_checkpoint(folder)
        incomplete = [path.name for path in list_checkpoints(folder) if not is_complete(path)]
        assert complete is not None, f"nothing is left of the run after a kill in {name}"
        assert run(SCRIPT, *WORDS, "--output_dir", folder, "--resume_from_checkpoint", "auto") == 0
        is_same = sha256_of(folder) == sha256_of(tmp_path / "whole")
        num_same += is_same
        sys.stdout.write(f"{name:<58} resumed from {complete.name}, incomplete {incomplete}: same weights {is_same}\n")
        sys.stdout.flush()
        shutil.rmtree(folder)
    sys.stdout.write(f"{num_same} of {NUM_KILLS} the same; {len(names)} writes in the whole run\n")
    assert num_same == NUM_KILLS
