# SPDX-License-Identifier: Apache-2.0
"""The order of the rooms: imports go down only, and what travels with a checkpoint imports nothing that stays behind.

The sources are read, not run, except for the import of the whole package in a fresh process.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from transformers_ice.remote_code import REMOTE_CODE_FILES


if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "transformers_ice"

# From the ground up: a room may import the rooms before it. Those of the first group travel with a checkpoint.
TRAVELLING_ROOMS = (
    "adversarial_normalization",
    "local_windows",
    "patch_smoothing",
    "token_pruning",
    "patch_maps",
    "image_conversion",
    "remote_code",
    "configuration_ice_deit",
    "input_checks",
    "packed_attention",
    "layers_ice_deit",
    "outputs_ice_deit",
    "token_layouts",
    "pruned_encoding",
    "pretrained_ice_deit",
    "modeling_ice_deit",
    "image_processing_ice_deit",
    "pipeline_patch_explanation",
)
WORKBENCH_ROOMS = (
    "command_line",
    "output_files",
    "model_names",
    "hub_folder",
    "conversion",
    "metrics",
    "data",
    "explainers",
    "training",
    "export",
)
REPORT_ROOMS = (
    "efficiency",
    "evaluation",
    "visualization",
    "training_panels",
    "model_card",
    "publishing",
    "app",
    "demo",
)
ROOMS = (*TRAVELLING_ROOMS, *WORKBENCH_ROOMS, *REPORT_ROOMS, "__init__")

REMOTE_CODE_MAY_IMPORT = {"torch", "transformers", "huggingface_hub", "numpy", "PIL"}
NEVER_IMPORTED = {"torchvision", "timm"}
DISTRIBUTIONS = packages_distributions()  # which package on PyPI an imported name belongs to
SOURCES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports_of(path: Path) -> Iterator[tuple[int, str, int]]:
    """Yield (dots, dotted name, line) of every import, those inside functions and `TYPE_CHECKING` too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.level, node.module, node.lineno
        elif isinstance(node, ast.ImportFrom):  # from . import x
            yield from ((node.level, alias.name, node.lineno) for alias in node.names)


def imported_rooms(path: Path) -> Iterator[tuple[str, int]]:
    """Yield (room, line) of every import of another room of the package."""
    depth = len(path.relative_to(PACKAGE).parts)  # so many dots lead to the package itself
    for dots, name, line in imports_of(path):
        parts = name.split(".")
        if dots == 0 and parts[0] == PACKAGE.name:
            parts, dots = parts[1:], depth
        if dots == depth:
            yield parts[0] if parts and parts[0] in ROOMS else "__init__", line


def third_party_roots(path: Path) -> set[str]:
    roots = {name.split(".")[0] for dots, name, _ in imports_of(path) if dots == 0}
    return roots - set(sys.stdlib_module_names) - {PACKAGE.name} - {script.stem for script in SCRIPTS}


def declared_libraries() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = sum(project["optional-dependencies"].values(), project["dependencies"])
    names = {re.match(r"[\w.-]+", requirement)[0].lower() for requirement in requirements}
    return names | {"huggingface-hub"}  # comes with transformers, whose configurations are its dataclasses


def test_every_room_has_its_place():
    unknown = {room_of(path) for path in SOURCES} - set(ROOMS)
    assert not unknown, "give the new room its place in ROOMS, above everything it imports"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_go_down_only(path: Path):
    height = ROOMS.index(room_of(path))
    upward = [f"line {line}: {room}" for room, line in imported_rooms(path) if ROOMS.index(room) >= height]
    assert not upward


@pytest.mark.parametrize("path", [PACKAGE / f"{room}.py" for room in TRAVELLING_ROOMS], ids=name_of)
def test_remote_code_imports_only_what_every_user_has(path: Path):
    allowed = REMOTE_CODE_MAY_IMPORT | set(sys.stdlib_module_names)
    for dots, name, line in imports_of(path):
        if dots == 0:
            assert name.split(".")[0] in allowed, f"line {line}: {name}"
        else:
            # the copying code of transformers follows this form alone
            assert dots == 1, f"line {line}: only `from .room import name` travels"
            assert name in TRAVELLING_ROOMS, f"line {line}: {name} does not travel"


def test_remote_code_names_the_room_it_imports_from():
    for room in TRAVELLING_ROOMS:
        path = PACKAGE / f"{room}.py"
        nodes = ast.walk(ast.parse(path.read_text())) if path.exists() else ()
        bare = [node.lineno for node in nodes if isinstance(node, ast.ImportFrom) and node.module is None]
        assert not bare, f"{room}, lines {bare}: `from . import room` is copied but cannot be loaded"


def test_a_saved_folder_takes_along_every_room_that_travels():
    present = {path.name for path in SOURCES if path.stem in TRAVELLING_ROOMS and path.parent == PACKAGE}
    assert set(REMOTE_CODE_FILES) == present


@pytest.mark.parametrize("path", SOURCES + SCRIPTS, ids=name_of)
def test_every_library_in_use_is_declared(path: Path):
    for root in third_party_roots(path):
        assert root not in NEVER_IMPORTED
        distributions = {name.lower().replace("_", "-") for name in DISTRIBUTIONS.get(root, [root])}
        assert distributions & declared_libraries(), f"{root} is not in pyproject.toml"


IMPORT_OFFLINE = """
import socket, sys

def refuse(*arguments, **options):
    raise AssertionError("importing the package touches the network")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import transformers_ice
print(*sorted({name.split(".")[0] for name in sys.modules}))
"""


def test_importing_the_package_loads_nothing_heavy_and_asks_no_network():
    command = [sys.executable, "-c", IMPORT_OFFLINE]
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "HF_HUB_OFFLINE": "0"}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    loaded = set(finished.stdout.split())
    assert {"torch", "transformers", "transformers_ice"} <= loaded
    # accelerate and scipy are not in this list: transformers itself loads them where they are installed
    assert not loaded & {"torchvision", "timm", "evaluate", "datasets", "matplotlib", "gradio"}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_modules_say_what_is_public(path: Path):
    assert path.stem != "utils", "name the room after what it holds"
    assigned = {
        target.id
        for node in ast.parse(path.read_text()).body
        if isinstance(node, (ast.Assign, ast.AnnAssign))
        for target in getattr(node, "targets", [getattr(node, "target", None)])
        if isinstance(target, ast.Name)
    }
    assert (path.stem.startswith("_") and path.stem != "__init__") or "__all__" in assigned


@pytest.mark.parametrize("path", SOURCES + SCRIPTS + sorted((ROOT / "tests").rglob("*.py")), ids=name_of)
def test_files_begin_with_their_licence_and_a_docstring(path: Path):
    text = path.read_text()
    first = text.splitlines()[1] if text.startswith("#!") else text.splitlines()[0]
    assert first == "# SPDX-License-Identifier: Apache-2.0"
    assert ast.get_docstring(ast.parse(text))
