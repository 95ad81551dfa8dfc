# SPDX-License-Identifier: Apache-2.0
"""The check of hostile inputs finds each kind of fault; a table that passes has none of them."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from hostile.frame import Finished, Place, Row, run_row
from hostile.program import rows_of
from hostile.test_hostile_inputs import TABLES
from transformers_ice.ice_deit.preprocessing_checks import check_preprocessing


def verdict_of(tmp_path, monkeypatch, act, **options):
    """Return the verdict of a row with one input file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", "")
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    row = Row("row", lambda place: place.put("x.txt", "precious"), act, **options)
    return run_row(row, Place(tmp_path / "row", tmp_path / "model"))


def refuse(place, path):
    check_preprocessing({"image_mean": "x"})


def answer(place, path):
    return 7


def end(code, stdout="", stderr=""):
    return lambda place, path: Finished(code, stdout, stderr, place)


def after(action):
    def act(place, path):
        action(place, path)
        refuse(place, path)

    return act


def overwrite_in_place(place, path):
    status = path.stat()
    path.write_text("PRECIOUS")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def raise_bare(place, path):
    b"\xff".decode()


def raise_elsewhere(place, path):
    np.zeros((2, 2)).reshape(3)


TRACEBACK = "Traceback (most recent call last):\n  x\nKeyError: 0\n"


@pytest.mark.parametrize(
    ("act", "options", "fault"),
    [
        (refuse, {}, None),
        (answer, {"answer": lambda value: value == 7}, None),
        (refuse, {"answer": bool, "may_refuse": True}, None),
        (end(1, stderr="Error: no such file\n"), {}, None),
        (end(0), {"answer": lambda finished: True}, None),
        (answer, {}, "must be refused"),
        (answer, {"answer": lambda value: value == 8}, "is not right"),
        (refuse, {"answer": bool}, "must be answered"),
        (refuse, {"says": "no such words"}, "must contain"),
        (lambda place, path: {}["x"], {}, "no error of a public kind"),
        (raise_bare, {}, "no error of a public kind"),
        (raise_elsewhere, {}, "no error of a public kind"),
        (lambda place, path: sys.exit(3), {}, "no error of a public kind"),
        (end(1, stderr=TRACEBACK), {}, "a traceback"),
        (end(0, stdout=TRACEBACK), {"answer": lambda finished: True}, "a traceback"),
        (end(1), {}, "0 lines of errors"),
        (end(1, stderr="Error: a\nError: b\n"), {}, "2 lines of errors"),
        (end(139, stderr="Error: a\n"), {}, "exit code 139"),
        (end(1, stderr=f"Error: {'x' * 5000}\n"), {}, "characters"),
        (after(lambda place, path: path.write_text("other")), {}, "changed or left behind"),
        (after(overwrite_in_place), {}, "changed or left behind"),
        (after(lambda place, path: path.touch()), {}, "changed or left behind"),
        (after(lambda place, path: path.rename(path.with_name("y"))), {}, "changed or left behind"),
        (after(lambda place, path: path.unlink()), {}, "changed or left behind"),
        (after(lambda place, path: place.put("new")), {}, "changed or left behind"),
        (after(lambda place, path: Path("ran").touch()), {}, "changed or left behind"),
        (after(lambda place, path: tempfile.mkstemp()), {}, "changed or left behind"),
        (after(lambda place, path: (place.model / "x").touch()), {}, "changed or left behind"),
        (after(lambda place, path: (place.output / "fine").touch()), {}, None),
        (after(lambda place, path: (place.output / ".partial-1").touch()), {}, "half a file"),
        (after(lambda place, path: np.ones(10**7).sum()), {"megabytes": 20}, "MB, at most 20"),
        (after(lambda place, path: sum(range(3 * 10**6))), {"seconds": 0.001}, "s, at most 0.001"),
        (after(lambda place, path: time.sleep(0.01)), {"seconds": 0.005}, None),  # others may use the processor
    ],
)
def test_the_check_finds_each_kind_of_fault(tmp_path, monkeypatch, act, options, fault):
    if "megabytes" in options and not Path("/proc/self/clear_refs").exists():
        pytest.skip("memory is measured on Linux only")
    faults = verdict_of(tmp_path, monkeypatch, act, **options).faults
    if fault is None:
        assert faults == []
    else:
        assert any(fault in found for found in faults), faults


def test_there_are_enough_inputs_and_their_names_tell_them_apart():
    names = [f"{table}: {row.name}" for table in TABLES for row in rows_of(table)]
    assert len(set(names)) >= 600
