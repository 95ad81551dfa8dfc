# SPDX-License-Identifier: Apache-2.0
"""The words of the field in sources, documents and test names, and the sizes that CONTRIBUTING.md sets.

The sources are read, not run. Quoted text does not count: what is in backticks or in code blocks of documents.
"""

from __future__ import annotations

import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
SCRIPTS = sorted([*(ROOT / "scripts").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")])
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "src").rglob("*.md")])
TESTS = sorted((ROOT / "tests").glob("test_*.py"))

# pattern of what is not written -> the word of the field
WORDS = {
    r"onlook(er|ers|ing)": "pruned query: it attends to the kept tokens and is masked out as a key",
    r"anew": "again, re-trained, re-computed",
    r"living (models?|modules?|objects?|configurations?)": "instantiated model",
    r"pictures? of the (full |whole |patch )*grid": "patch map, scattered back to the full patch grid",
    r"pictures? of (a |an |the |its )?(results?|explanations?|answers?|maps?)": "map, figure, overlay, panel",
    r"what (\w+ ){0,3}(patch(es)?|heads?|gates?|models?|windows?|classifiers?|teachers?|methods?) (\w+ )?says?": (
        "predicts; prediction, logits"
    ),
    r"(patch(es)?|heads?|gates?|classifiers?|teachers?|learners?) (that )?(says?|said)": "predicts",
    r"says? of (itself|themselves)": "describes, declares",
    r"(patch(es)?|tokens?) (that |which |may |can |to )?(leaves?|left|stays?|stayed)": "is pruned, is kept",
    r"who (leaves?|left|stays?|stayed)": "which patches are pruned, are kept",
    r"(leaves?|leaving) (here|before|on the way)": "is pruned; exit layer",
    r"lookalikes?": "distractor",
    r"pieces? left out": "ablation, component",
    r"against nothing": "difference to the full method",
    r"behind (its|the|that|this|each|every) (last|first|block|layers?|tokens?|gates?|end|steps?|patch(es)?)": "after",
    r"(in|of|how|through) the house|house of": "package",
    r"(this|the|a|each|every|other|these) rooms?|rooms? (that|below|above|imports?)": "module, package",
    r"(top|upper|lower|ground|three|two) floors?": "layer of the package",
    r"mend(s|ed|ing)?": "fix, fixed",
    r"so many": "this many, `num_...`",
    r"learners?": "student",
    r"opinions?": "prediction, target",
    r"adversary (rests|has not started)": "is gated off",
    r"shares? of (the |all |its |those )?patch(es)?": "fraction, ratio; keep rate where it is one",
    r"(at|by|after|before) (each|every|the first|the last|one) cut|cuts? (at|before) (the )?layers?": (
        "pruning step, pruning layer"
    ),
    r"(?<!percentage )points (of|in|more|less) (top-1|accuracy|mean|IoU)": "percentage points (pp)",
    r"words (after|of) (it|the (script|command|program))": "arguments",
}

# words of which no test name needs one, since a test states a fact about the code
NAMES = {
    r"who|nobody|somebody|whoever": "the object: model, patch, file",
    r"behind": "after",
    r"living": "instantiated",
    r"patch(es)?( that)? (leaves?|stays?)": "pruned, kept",
    r"(heads?|gates?|patch(es)?|windows?|models?|teacher|definition)( that)? (says?|said)": "predicts, defines",
}

# (path, what is written there): the reason
EXCEPTIONS: dict[tuple[str, str], str] = {
    ("src/transformers_ice/training/run_card.py", "anew"): "the mark by which cards of earlier runs are known",
}

MAX_LINES = 400
MAX_LINES_OF_MODEL = 700  # modeling_ice_deit.py reads from embeddings to heads in one file, as those of transformers
MAX_NAME = 80
LEAST_COMMENTS = 0.05  # of the lines of code
NOT_NOUNS = {"Hold", "Holds", "Say", "Says", "Give", "Gives", "Tell", "Tells"}


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number, text) of the lines of a file, without what is quoted."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        # keep the line breaks, so that the numbers stay right
        text = re.sub(r"^```.*?^```", lambda match: "\n" * match[0].count("\n"), text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"``[^\n]*?``|`[^`\n]*`", "``", text)
    yield from enumerate(text.splitlines(), 1)


def names_in(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, name) of the tests of a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node.lineno, node.name


def find_words(pattern: str, texts: Iterator[tuple[str, int, str]]) -> list[str]:
    """Return "path:line: what is written" of every match that is no exception."""
    compiled = re.compile(rf"(?<![\w-])({pattern})(?![\w-])", re.IGNORECASE)
    found = ((place, number, match[0].strip()) for place, number, text in texts for match in compiled.finditer(text))
    return [f"{place}:{number}: {text}" for place, number, text in found if (place, text.lower()) not in EXCEPTIONS]


@pytest.fixture(scope="module")
def prose() -> list[tuple[str, int, str]]:
    paths = [*SOURCES, *SCRIPTS, *DOCUMENTS]
    return [(path.relative_to(ROOT).as_posix(), number, line) for path in paths for number, line in lines_of(path)]


@pytest.mark.parametrize("pattern", WORDS)
def test_sources_and_documents_use_the_words_of_the_field(prose, pattern):
    found = find_words(pattern, iter(prose))
    assert not found, f"Write: {WORDS[pattern]}.\n" + "\n".join(found)


@pytest.fixture(scope="module")
def names() -> list[tuple[str, int, str]]:
    return [(path.name, line, name) for path in TESTS for line, name in names_in(path)]


@pytest.mark.parametrize("pattern", [*WORDS, *NAMES])
def test_names_of_tests_use_the_words_of_the_field(names, pattern):
    sentences = ((file, line, name.removeprefix("test_").replace("_", " ")) for file, line, name in names)
    found = find_words(pattern, sentences)
    assert not found, f"Write: {(WORDS | NAMES)[pattern]}.\n" + "\n".join(found)


def test_names_of_tests_are_short(names):
    long = [f"{file}:{line}: {name}" for file, line, name in names if len(name) > MAX_NAME]
    assert not long, "\n".join(long)


def test_class_docstrings_are_noun_phrases():
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            first = (ast.get_docstring(node) or "").split(" ")[0] if isinstance(node, ast.ClassDef) else ""
            if first in NOT_NOUNS:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {first}")
    assert not found, "\n".join(found)


def test_files_are_small():
    sizes = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    limits = {path: MAX_LINES_OF_MODEL if path.name == "modeling_ice_deit.py" else MAX_LINES for path in SOURCES}
    found = [f"{path.relative_to(ROOT)}: {size} lines" for path, size in sizes.items() if size > limits[path]]
    assert not found, "\n".join(found)


def count_lines(path: Path) -> tuple[int, int]:
    """Return the numbers of lines with a comment (but the licence) and of lines with code (but docstrings)."""
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            docstrings |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    comments, code = set(), set()
    layout = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER, tokenize.ENCODING)
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.COMMENT and "SPDX" not in token.string:
                comments.add(token.start[0])
            elif token.type != tokenize.COMMENT and token.type not in layout:
                code |= set(range(token.start[0], token.end[0] + 1))
    return len(comments), len(code - docstrings)


def test_one_line_of_code_in_twenty_has_a_comment():
    comments, code = (sum(counts) for counts in zip(*map(count_lines, SOURCES), strict=True))
    assert comments >= LEAST_COMMENTS * code, f"{comments} comments for {code} lines of code in src"


def test_the_test_of_words_can_fail(tmp_path):
    (tmp_path / "a.md").write_text("`anew` and\n```\nanew\n```\nit starts anew.\n")
    lines = (("a.md", number, line) for number, line in lines_of(tmp_path / "a.md"))
    assert find_words("anew", lines) == ["a.md:5: anew"]
    (tmp_path / "b.py").write_text('# SPDX-License-Identifier: Apache-2.0\n"""Text."""\n\nx = 1  # why\n# shape\n')
    assert count_lines(tmp_path / "b.py") == (2, 1)
