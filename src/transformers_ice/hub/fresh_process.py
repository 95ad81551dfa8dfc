# SPDX-License-Identifier: Apache-2.0
"""Test that a folder works without this package: its pipelines give the same outputs in a fresh process."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import pipeline

from ..data.scenes import draw_scene
from .card import ModelFacts, read_facts


__all__ = ["PIPELINES", "TOLERANCE", "compare_without_package"]

PIPELINES = ("image-classification", "image-segmentation", "patch-explanation")
TOLERANCE = 1e-6
"""Tolerance of scores and maps in [0, 1]: the same operations in float32, on as many threads."""


def compare_without_package(folder: Path, python: str = sys.executable) -> list[str]:
    """Run the pipelines of a folder in a fresh process without this package and compare them with those here.

    Args:
        folder: A complete model. Its code runs: compare it with the package's first (`check_folder`).
        python: The interpreter of the fresh process; needs torch, transformers, safetensors, numpy and Pillow.

    Returns:
        The differences, one sentence each; empty if there is none. A plain classifier has the classification only.
    """
    facts = read_facts(folder)
    tasks = PIPELINES if facts.is_ice else PIPELINES[:1]
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        _draw_test_image(facts, home / "image.png")
        finished = _run_without_package(python, folder.resolve(), home, tasks)
        if finished.returncode:
            # the end of a traceback, with the error itself
            last = finished.stderr.strip().splitlines()[-3:] or [f"exit code {finished.returncode}"]
            return [f"{folder}: expected pipelines that run without transformers_ice, got an error: {' '.join(last)}"]
        here = _run_pipelines(str(folder), str(home / "image.png"), tasks, trust_remote_code=False)
        with np.load(home / "outputs.npz", allow_pickle=False) as file:
            fresh = dict(file)
    different = "expected the output with the package, got another one in a fresh process"
    problems = {key: "only one of the two processes gave it" for key in fresh.keys() ^ here.keys()}
    problems |= {key: different for key in fresh.keys() & here.keys() if not _is_same(fresh[key], here[key])}
    return [f"{key}: {problem}" for key, problem in sorted(problems.items())]


def _draw_test_image(facts: ModelFacts, file: Path) -> None:
    """Draw a scene of another size and aspect than the model's input, so that resizing is compared too."""
    height, width = facts.image_size
    scene = draw_scene(0, "test", (max(16, height + height // 4), max(16, 2 * width)))
    Image.fromarray(scene.image).save(file)


def _run_pipelines(folder: str, image: str, tasks: Sequence[str], trust_remote_code: bool) -> dict[str, np.ndarray]:
    """Return all outputs as arrays; texts and boxes as JSON. Both processes run this source."""
    outputs = {}
    for task in tasks:
        run: Any = pipeline(task, model=folder, device="cpu", trust_remote_code=trust_remote_code)  # type: ignore[call-overload]
        found = run(image)
        for number, entry in enumerate(found if isinstance(found, list) else [found]):
            parts = [(f"{task}/{number}", entry)]
            for key, part in parts:  # which grows: a multi-label model's objects are entries of an entry
                for name, value in part.items():
                    if isinstance(value, list):
                        parts += [(f"{key}/{name}/{index}", item) for index, item in enumerate(value)]
                        value = len(value)
                    is_text = value is None or isinstance(value, (str, dict))
                    outputs[f"{key}/{name}"] = np.asarray(json.dumps(value) if is_text else value)
    return outputs


_WITHOUT_PACKAGE = f"""
from __future__ import annotations
import json, sys
sys.modules["transformers_ice"] = None  # importing it raises an ImportError, wherever it is
import numpy as np
import torch
from transformers import pipeline

{inspect.getsource(_run_pipelines)}
torch.set_num_threads(int(sys.argv[4]))
np.savez(sys.argv[3], **_run_pipelines(sys.argv[1], sys.argv[2], sys.argv[5:], True))
"""


def _run_without_package(
    python: str, folder: Path, home: Path, tasks: Sequence[str]
) -> subprocess.CompletedProcess[str]:
    """Run the pipelines in another process, which writes `outputs.npz` into `home`."""
    files = (str(folder), str(home / "image.png"), str(home / "outputs.npz"))
    # nothing of the user's environment: no token, no cache, no PYTHONPATH (-I)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING", "PYTHON"))}
    environment = {**kept, "HF_HUB_OFFLINE": "1", "HF_HOME": str(home / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [python, "-I", "-c", _WITHOUT_PACKAGE, *files, str(torch.get_num_threads()), *tasks]
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True)


def _is_same(first: np.ndarray, second: np.ndarray) -> bool:
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    if np.issubdtype(first.dtype, np.floating):
        return bool(np.allclose(first, second, rtol=0, atol=TOLERANCE))
    return bool(np.array_equal(first, second))
