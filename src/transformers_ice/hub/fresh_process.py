# SPDX-License-Identifier: Apache-2.0
"""The proof that a folder works for others: its pipelines without this package, compared with them here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..data.scenes import draw_scene
from ..ice_deit.configuration_ice_deit import as_pair
from .checks import holds_ice_model


__all__ = ["PIPELINES", "TOLERANCE", "compare_outputs", "compare_without_package", "draw_test_image"]

PIPELINES = ("image-classification", "image-segmentation", "patch-explanation")
TOLERANCE = 1e-6
"""Of scores and maps in [0, 1]: the same operations in float32, on as many threads."""

# Both sides run this text, with the package and without. It needs torch, transformers, safetensors, numpy and PIL.
_RUN = """
import json, sys
import numpy as np
import torch
from transformers import pipeline

def run(folder, image, tasks, output, trust):
    values, arrays = {}, {}
    for task in tasks:
        found = pipeline(task, model=folder, device="cpu", trust_remote_code=trust)(image)
        for number, entry in enumerate(found if isinstance(found, list) else [found]):
            for name, value in entry.items():
                key = f"{task}/{number}/{name}"
                if isinstance(value, (str, int, float, dict)) or value is None:
                    values[key] = value
                else:
                    arrays[key] = np.asarray(value)
    np.savez(output + ".npz", **arrays)
    with open(output + ".json", "w") as file:
        json.dump(values, file)
"""
_WITHOUT_PACKAGE = (
    'import sys\nsys.modules["transformers_ice"] = None  # importing it is an ImportError now, wherever it lies\n'
    + _RUN
    + "\ntorch.set_num_threads(int(sys.argv[4]))\nrun(sys.argv[1], sys.argv[2], sys.argv[5:], sys.argv[3], True)\n"
)


def compare_without_package(folder: Path, python: str = sys.executable) -> list[str]:
    """Run the pipelines of a folder in a fresh process without this package and compare them with those here.

    Args:
        folder: A complete model. Its code runs: compare it with the package's first (`check_folder`).
        python: The interpreter of the fresh process; needs torch, transformers, safetensors, numpy and Pillow.

    Returns:
        What differs, one sentence each; empty where nothing does. A plain classifier has the classification only.
    """
    tasks = PIPELINES if holds_ice_model(folder) else PIPELINES[:1]
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        image = draw_test_image(folder, home / "image.png")
        failure = _run_without_package(python, folder, image, home, tasks)
        if failure:
            return [failure]
        _run_here(folder, image, home / "here", tasks)
        return compare_outputs(home / "fresh", home / "here")


def draw_test_image(folder: Path, file: Path) -> Path:
    """Draw a scene of another size and aspect than the model's input, so that resizing is compared too."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    height, width = as_pair(config["image_size"])
    scene = draw_scene(0, "test", (max(16, height + height // 4), max(16, 2 * width)))
    Image.fromarray(scene.image).save(file)
    return file


def _run_without_package(python: str, folder: Path, image: Path, home: Path, tasks: tuple[str, ...]) -> str | None:
    """Run the pipelines in another process; return why it failed, if it did."""
    words = [str(folder.resolve()), str(image), str(home / "fresh"), str(torch.get_num_threads()), *tasks]
    # nothing of the user's own: no token, no cache, no PYTHONPATH (-I)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING", "PYTHON"))}
    environment = {**kept, "HF_HUB_OFFLINE": "1", "HF_HOME": str(home / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    finished = subprocess.run(
        [python, "-I", "-c", _WITHOUT_PACKAGE, *words], cwd=home, env=environment, capture_output=True, text=True
    )
    if finished.returncode == 0:
        return None
    last = finished.stderr.strip().splitlines()[-3:] or [f"exit code {finished.returncode}"]
    return f"{folder}: expected pipelines that run without transformers_ice, got an error: {' '.join(last)}"


def _run_here(folder: Path, image: Path, output: Path, tasks: tuple[str, ...]) -> None:
    """Run the pipelines with the package."""
    namespace: dict[str, Any] = {}
    exec(_RUN, namespace)  # the same text as in the other process
    namespace["run"](str(folder), str(image), tasks, str(output), False)


def compare_outputs(fresh: Path, here: Path) -> list[str]:
    """Return what two runs say differently.

    Args:
        fresh: Path of the results of one, without `.json` and `.npz`.
        here: The same of the other.
    """
    sides = []
    for path in (fresh, here):
        with np.load(f"{path}.npz", allow_pickle=False) as arrays:
            sides.append({**json.loads(Path(f"{path}.json").read_text()), **dict(arrays)})
    there, expected = sides
    problems = [f"{key}: only one of the two processes gave it" for key in sorted(there.keys() ^ expected.keys())]
    for key in sorted(there.keys() & expected.keys()):
        if not _is_same(there[key], expected[key]):
            problems.append(f"{key}: expected what the package gives, got something else in a fresh process")
    return problems


def _is_same(first: Any, second: Any) -> bool:
    if isinstance(first, np.ndarray):
        same_kind = first.shape == second.shape and first.dtype == second.dtype
        if not same_kind or not np.issubdtype(first.dtype, np.floating):
            return same_kind and bool(np.array_equal(first, second))
        return bool(np.allclose(first, second, rtol=0, atol=TOLERANCE))
    if isinstance(first, float) and isinstance(second, float):
        return abs(first - second) <= TOLERANCE
    return first == second
