# SPDX-License-Identifier: Apache-2.0
"""Hostile inputs end in the stated answer or in a sentence; files stay as they were. `frame.py` has the check."""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from hostile.program import rows_of


TABLES = ("images", "folders", "annotations", "shards", "pipelines", "conversion", "commands", "products")
SLOW_TABLES = ("images", "folders", "commands", "products")


def run_table(warm_python, table, model, scratch, speed):
    """Return the verdicts of all rows of a table; one that hangs is a verdict too."""
    rows, verdicts, seconds = rows_of(table, speed == "slow"), [], 0.0
    while len(verdicts) < len(rows):
        finished = subprocess.run(
            [warm_python.python, "-m", "hostile.program", table, model, scratch, str(len(verdicts)), speed],
            cwd=Path(__file__).parents[1],
            env={**os.environ, "COLUMNS": "200"},
            capture_output=True,
            text=True,
        )
        lines = [json.loads(line) for line in finished.stdout.splitlines()]
        verdicts += [line for line in lines if "faults" in line]
        seconds += lines[-1].get("cpu", 0) if lines else 0
        if finished.returncode == 0:
            break
        name = lines[-1]["name"] if lines else "the table itself"
        verdicts.append({"name": name, "end": "hang", "faults": [f"hangs or dies: {finished.stderr[-3000:]}"]})
        assert lines, finished.stderr
    return verdicts, seconds


def count(verdicts):
    faults = [fault for verdict in verdicts for fault in verdict["faults"]]
    kinds = {"tracebacks": ("no error of a public kind", "a traceback"), "changed": ("changed or", "half a file")}
    counts = Counter(verdict["end"] for verdict in verdicts)
    counts = Counter(
        inputs=len(verdicts), refused=counts["refused"], answered=counts["answered"], hangs=counts["hang"]
    )
    for kind, beginnings in kinds.items():
        counts[kind] = sum(fault.startswith(beginnings) for fault in faults)
    counts["other faults"] = len(faults) - sum(counts[kind] for kind in (*kinds, "hangs"))
    return dict(counts)


def check_table(warm_python, tiny_folder, tmp_path, record_property, table, speed):
    verdicts, seconds = run_table(warm_python, table, tiny_folder, tmp_path, speed)
    record_property("hostile", {**count(verdicts), "seconds": seconds})
    bad = [f"{verdict['name']}: {fault}" for verdict in verdicts for fault in verdict["faults"]]
    assert not bad, f"{len(bad)} faults of {len(verdicts)} inputs\n" + "\n\n".join(bad)


@pytest.mark.parametrize("table", TABLES)
def test_hostile_inputs_end_in_an_answer_or_a_sentence(warm_python, tiny_folder, tmp_path, record_property, table):
    check_table(warm_python, tiny_folder, tmp_path, record_property, table, "fast")


@pytest.mark.slow
@pytest.mark.parametrize("table", SLOW_TABLES)
def test_hostile_inputs_that_need_seconds(warm_python, tiny_folder, tmp_path, record_property, table):
    check_table(warm_python, tiny_folder, tmp_path, record_property, table, "slow")
