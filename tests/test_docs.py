# SPDX-License-Identifier: Apache-2.0
"""What the documents say is true: code blocks run and print what they show, links lead somewhere, commands exist.

All ```python blocks of a document run in order in a process of their own, in a folder with copies of `checkpoints/`
and `docs/`. A ```text block directly after one is what that block prints. In the guides the ```bash blocks run too.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from warm_python import WarmPython

import transformers_ice


ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("model_cards/**/*.md")])
GUIDES = ("docs/quick-start.md", "docs/own-images.md", "docs/own-masks.md", "docs/training/several-classes.md")
CODE_BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```\n(?:\n*^```text\n(.*?)^```)?", re.MULTILINE | re.DOTALL)
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")

NOTEBOOKS = sorted(ROOT.glob("docs/**/*.ipynb"))

RUN_BLOCKS = """
import contextlib, io, json, subprocess, sys
namespace, printed = {"__name__": "__main__"}, []
for number, (language, block) in enumerate(json.load(open("blocks.json")), 1):
    if language == "bash":
        block = block.format(**namespace) if sys.argv[1:] == ["notebook"] else block  # `!command {variable}`
        printed.append(subprocess.run(["bash", "-ec", block], check=True, stdout=subprocess.PIPE, text=True).stdout)
        continue
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(compile(block, f"<python block {number}>", "exec"), namespace)
    printed.append(output.getvalue())
json.dump(printed, open("printed.json", "w"))
"""


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks_to_run(path: Path) -> list[tuple[str, str, str | None]]:
    """Return (language, code, text that follows it or None) of every block that runs."""
    languages = ("python", "bash") if name_of(path) in GUIDES else ("python",)
    return [match.groups() for match in CODE_BLOCK.finditer(path.read_text()) if match[1] in languages]


def cells_to_run(path: Path) -> list[tuple[str, str]]:
    """Return (language, code) of the cells of a notebook; a cell is python or, after "!", one command."""
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    sources = ["".join(cell["source"]) for cell in cells]
    return [("bash", text[1:]) if text.startswith("!") else ("python", text) for text in sources]


def targets_of_links(path: Path) -> set[str]:
    prose = FENCED.sub("", path.read_text())
    links = {match[1] or match[2] for match in LINK.finditer(prose)}
    return {link for link in links if not re.match(r"[a-z]+:", link)}


def anchors_of(path: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_documents_of_the_project_are_there():
    names = {name_of(path) for path in DOCUMENTS}
    assert {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"} <= names
    assert blocks_to_run(ROOT / "README.md"), "the README shows the use in python"
    assert set(GUIDES) <= names


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if blocks_to_run(path)], ids=name_of)
def test_code_blocks_run_and_print_what_they_show(path: Path, tmp_path: Path, warm_python: WarmPython):
    if name_of(path) == "docs/training/adapters.md":
        pytest.importorskip("peft", reason="LoRA needs peft: pip install transformers-ice[adapters]")
    blocks = blocks_to_run(path)
    printed = run_blocks([(language, code) for language, code, _ in blocks], tmp_path, warm_python)
    for (_, code, shown), output in zip(blocks, printed, strict=True):
        assert shown is None or output.strip() == shown.strip(), code


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_notebooks_run_and_hold_no_outputs(path: Path, tmp_path: Path, warm_python: WarmPython):
    printed = run_blocks(cells_to_run(path), tmp_path, warm_python, "notebook")
    assert any("rollout" in output and "ceiling" in output for output in printed), "the table of scores"
    cells = json.loads(path.read_text())["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


def run_blocks(blocks: list[tuple[str, str]], tmp_path: Path, warm_python: WarmPython, *options: str) -> list[str]:
    """Run (language, code) in order in one process, beside copies of checkpoints and documents; return the output."""
    for folder in ("checkpoints", "docs"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    for folder in ("scripts", "recipes"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / "blocks.json").write_text(json.dumps(blocks))
    environment = {**os.environ, "PATH": f"{warm_python.bin}{os.pathsep}{os.environ['PATH']}"}
    finished = subprocess.run(
        [warm_python.python, "-c", RUN_BLOCKS, *options], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads((tmp_path / "printed.json").read_text())


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_within_the_project_lead_somewhere(path: Path):
    for link in targets_of_links(path):
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in anchors_of(target), link


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_commands_that_are_shown_exist(path: Path):
    text = path.read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    shown = set(re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)", text, re.MULTILINE))
    assert {first or second for first, second in shown} <= targets
    missing = [script for script in re.findall(r"\bscripts/\w+\.\w+", text) if not (ROOT / script).is_file()]
    assert not missing


def test_what_the_method_page_names_stands_in_the_file_beside_it():
    rows = re.findall(
        r"^\|.*\| `(?:\w+\.)?(\w+)` in \[[\w.]+\]\(\.\./(\S+?)\)", (ROOT / "docs/method.md").read_text(), re.M
    )
    assert len(rows) > 15
    for name, file in rows:
        assert re.search(rf"(def|class|self\.) ?{name}\b", (ROOT / file).read_text()), (name, file)


def test_one_version_stands_in_all_places():
    version = transformers_ice.__version__
    assert f'\nversion = "{version}"\n' in (ROOT / "pyproject.toml").read_text()
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text()
