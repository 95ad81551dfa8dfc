# SPDX-License-Identifier: Apache-2.0
"""Run one table of hostile inputs: `python -m hostile.program TABLE MODEL SCRATCH FIRST SLOW`, a line of JSON a row.

It runs in a process of its own, since a row that hangs in a decoder cannot be interrupted: the process then ends, with
the place of all threads on standard error, and the caller begins again after that row.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import importlib
import json
import os
import resource
import shutil
import sys
import time
from pathlib import Path

from hostile.frame import Place, Row, run_row


_HANGS = 40.0  # seconds beyond a row's own, on a busy machine
_GIGABYTES = 3  # of addresses beyond those in use: what needs more fails at once, and does not take the machine along


def rows_of(table: str, is_slow: bool = False) -> list[Row]:
    """Return the rows of a table, those that need seconds or the others."""
    module = importlib.import_module(f"hostile.{table}")
    rows: list[Row] = module.slow_rows() if is_slow and hasattr(module, "slow_rows") else []
    return rows if is_slow else module.rows()


def main(table: str, model: str, scratch: str, first: str, is_slow: str) -> None:
    """Run the rows from a number on; print a line before and after each."""
    import torch

    for name in ("explain", "evaluate", "train"):  # libraries keep things in the folder for temporary files
        importlib.import_module(f"transformers_ice.cli.{name}")
    start = time.process_time()
    torch.set_num_threads(1)
    report = os.fdopen(os.dup(1), "w", buffering=1)
    messages = os.open(os.path.join(scratch, "printed.txt"), os.O_RDWR | os.O_CREAT | os.O_APPEND)
    os.dup2(messages, 1)
    errors = os.fdopen(os.dup(2), "w")
    os.dup2(messages, 2)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _GIGABYTES * 2**30, resource.RLIM_INFINITY))
    for number, row in enumerate(rows_of(table, is_slow == "slow")):
        if number < int(first):
            continue
        root = Path(scratch, f"{number:03d}")
        report.write(json.dumps({"begin": number, "name": row.name}) + "\n")
        faulthandler.dump_traceback_later(_HANGS + row.seconds, exit=True, file=errors)
        try:
            verdict = run_row(row, Place(root, Path(model)))
        finally:
            faulthandler.cancel_dump_traceback_later()
        report.write(json.dumps(dataclasses.asdict(verdict)) + "\n")
        if not verdict.faults:
            shutil.rmtree(os.fsencode(root), ignore_errors=True)
    report.write(json.dumps({"cpu": time.process_time() - start}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
