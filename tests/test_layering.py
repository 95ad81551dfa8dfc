# SPDX-License-Identifier: Apache-2.0
"""The layers of the package: imports go down only, and the code of a checkpoint imports nothing else of the package.

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

from transformers_ice.ice_deit.remote_code import AUTO_MAP, CUSTOM_PIPELINES, remote_code_files


if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "transformers_ice"

# The layers of the package, from the ground up: a package or module may import those of the layers below it only.
LAYERS = (
    ("ice_deit", "console", "hardware"),
    ("__init__", "model_names", "conversion", "data", "explainers", "visualization"),
    ("speed", "inference"),
    ("evaluation", "hub"),
    ("export", "app", "training"),
    ("cli",),
)
LAYER_OF = {name: number for number, layer in enumerate(LAYERS) for name in layer}
MODEL = PACKAGE / "ice_deit"  # what travels with a checkpoint

REMOTE_CODE_MAY_IMPORT = {"torch", "transformers", "huggingface_hub", "numpy", "PIL"}
NEVER_IMPORTED = {"torchvision", "timm"}
DISTRIBUTIONS = packages_distributions()  # which package on PyPI an imported name belongs to
SOURCES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted([*(ROOT / "scripts").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")])


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports_of(path: Path) -> Iterator[tuple[int, str, int]]:
    """Yield (dots, dotted name, line) of every import, those inside functions and `TYPE_CHECKING` too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.level, node.module, node.lineno
        elif isinstance(node, ast.ImportFrom):  # from . import x
            yield from ((node.level, alias.name, node.lineno) for alias in node.names)


def package_of(path: Path) -> str:
    """Return the package or module of the top level that a file belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_modules(path: Path) -> Iterator[tuple[str, int]]:
    """Yield (dotted name inside transformers_ice, line) of every import of the package's own code."""
    folders = path.relative_to(PACKAGE).parts[:-1]
    for dots, name, line in imports_of(path):
        if dots:
            yield ".".join([*folders[: len(folders) - dots + 1], name]), line
        elif name.split(".")[0] == PACKAGE.name:
            yield name.partition(".")[2], line


def imported_packages(path: Path) -> Iterator[tuple[str, int]]:
    """Yield (name, line) of every import of another package or module of the top level."""
    for name, line in imported_modules(path):
        top = name.partition(".")[0]
        top = top if top in LAYER_OF else "__init__"
        if top != package_of(path):
            yield top, line


def third_party_roots(path: Path) -> set[str]:
    roots = {name.split(".")[0] for dots, name, _ in imports_of(path) if dots == 0}
    return roots - set(sys.stdlib_module_names) - {PACKAGE.name} - {script.stem for script in SCRIPTS}


def declared_libraries() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = sum(project["optional-dependencies"].values(), project["dependencies"])
    names = {re.match(r"[\w.-]+", requirement)[0].lower() for requirement in requirements}
    return names | {"huggingface-hub"}  # comes with transformers, whose configurations are its dataclasses


def test_every_package_has_its_layer():
    assert {package_of(path) for path in SOURCES} <= set(LAYER_OF), "give the new package its layer"
    assert len(LAYER_OF) <= 17
    assert len(LAYERS) <= 6


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_go_down_only(path: Path):
    layer = LAYER_OF[package_of(path)]
    upward = [f"line {line}: {name}" for name, line in imported_packages(path) if LAYER_OF[name] >= layer]
    assert not upward


def test_modules_of_a_package_import_each_other_in_one_direction():
    """No circle of imports between files."""
    files = {name_of_module(path): path for path in SOURCES}
    graph = {
        module: {target for name, _ in imported_modules(path) for target in resolve_module(name, files)} - {module}
        for module, path in files.items()
    }
    while graph:
        leaves = [module for module, targets in graph.items() if not targets & set(graph)]
        assert leaves, f"a circle among {sorted(graph)}"
        for module in leaves:
            del graph[module]


def name_of_module(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def resolve_module(name: str, files: dict[str, Path]) -> Iterator[str]:
    """Yield the module that a dotted name is, or is a part of."""
    if name in files:
        yield name
    elif name.rpartition(".")[0] in files:
        yield name.rpartition(".")[0]


@pytest.mark.parametrize("path", [path for path in SOURCES if path.parent == MODEL], ids=name_of)
def test_code_of_a_checkpoint_imports_only_what_every_user_has(path: Path):
    allowed = REMOTE_CODE_MAY_IMPORT | set(sys.stdlib_module_names)
    for node in ast.walk(ast.parse(path.read_text())):
        bare = isinstance(node, ast.ImportFrom) and node.module is None
        assert not bare, f"line {node.lineno}: `from . import module` is copied but cannot be loaded"
    for dots, name, line in imports_of(path):
        if dots == 0:
            assert name.split(".")[0] in allowed, f"line {line}: {name}"
        else:
            # the copying code of transformers follows this form alone
            assert dots == 1, f"line {line}: only `from .module import name` travels"
            assert (MODEL / f"{name}.py").is_file(), f"line {line}: {name} is not in {MODEL.name}"


def test_entry_points_of_a_checkpoint_reach_all_of_its_code():
    """Remote code that is saved again fetches its entry points and what they import, so nothing else may be needed."""
    reached, waiting = set(), {entry.partition(".")[0] for entry in AUTO_MAP.values()}
    waiting |= {task["impl"].partition(".")[0] for task in CUSTOM_PIPELINES.values()}
    while waiting:
        module = waiting.pop()
        reached.add(module)
        waiting |= {name for dots, name, _ in imports_of(MODEL / f"{module}.py") if dots} - reached
    assert {f"{module}.py" for module in reached} == set(remote_code_files())


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
