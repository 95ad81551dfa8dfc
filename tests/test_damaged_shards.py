# SPDX-License-Identifier: Apache-2.0
"""Shards that are damaged or hostile: a sentence with file and row, in tables and streams, before the first step."""

from __future__ import annotations

import io
import tarfile
import urllib.request
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Features
from datasets import Image as ImageFeature
from PIL import Image

from transformers_ice.data.images import check_data, load_images
from transformers_ice.training import DataArguments


NUM_ROWS = 8
BAD_ROW = 5
Members = dict[str, bytes]


def png(shade: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8), shade).save(buffer, "PNG")
    return buffer.getvalue()


def samples() -> list[tuple[str, Members]]:
    return [(f"{row:03d}", {"png": png(row), "cls": str(row % 2).encode()}) for row in range(NUM_ROWS)]


def write_tar(path: Path, rows: list[tuple[str, Members]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, members in rows:
            for ending, content in members.items():
                member = tarfile.TarInfo(f"{name}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def write_parquet(path: Path, rows: list[dict | None], labels: list[int | None] | None = None) -> Path:
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a", "b"])})
    table = pyarrow.table({"image": rows, "label": labels or [row % 2 for row in range(len(rows))]})
    pyarrow.parquet.write_table(table.replace_schema_metadata(features.arrow_schema.metadata), path)
    return path


@pytest.fixture
def good(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "names.txt").write_text("a\nb\n")
    return {
        ".tar": write_tar(tmp_path / "good.tar", samples()),
        ".parquet": write_parquet(tmp_path / "good.parquet", [{"bytes": png(), "path": None}] * NUM_ROWS),
    }


def error_of(reader, bad: Path, good: dict[str, Path], streaming: bool, as_evaluation: bool = False) -> str:
    """Return the error of `check_data` or `load_images`, or the faults of the former."""
    files = {"train_files": str(bad), "validation_files": str(good[bad.suffix])}
    if as_evaluation:
        files = {"train_files": str(good[bad.suffix]), "validation_files": str(bad)}
    names = str(bad.parent / "names.txt") if bad.suffix == ".tar" else None
    arguments = DataArguments(**files, class_names_file=names, streaming=streaming)
    try:
        if reader is check_data:
            return "\n".join(check_data(arguments, show_progress=False).faults)
        load_images(arguments, (8, 8))
    except ValueError as error:
        return str(error)
    return ""


# after the whole rows, inside a header, a header of other bytes or with a wrong checksum, two archives in one, nothing
CUTS = {
    "between members": lambda data, offset: data[:offset],
    "inside a header": lambda data, offset: data[: offset + 100],
    "broken header": lambda data, offset: data[:offset] + b"x" * 512 + data[offset + 512 :],
    "wrong checksum": lambda data, offset: data[: offset + 148] + b"9999999" + data[offset + 155 :],
    "inside data": lambda data, offset: data[: offset + 520],
    "joined": lambda data, offset: data + data,
    "empty": lambda data, offset: b"",
    "text": lambda data, offset: b"no archive",
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("cut", CUTS)
def test_an_archive_that_is_not_whole_is_refused(tmp_path, good, cut, streaming):
    with tarfile.open(good[".tar"]) as archive:
        offset = archive.getmembers()[2 * BAD_ROW].offset
    bad = tmp_path / "bad.tar"
    bad.write_bytes(CUTS[cut](good[".tar"].read_bytes(), offset))
    for reader in (check_data, load_images):
        assert error_of(reader, bad, good, streaming).startswith(f"The tar file {bad} cannot be read: ")


MEMBERS = {
    "text": {"cls": b"cat"},
    "empty": {"cls": b""},
    "binary": {"cls": b"\xff\x00"},
    "digits": {"cls": b"1" * 5000},
    "large": {"cls": b"1" * 30},
    "negative": {"cls": b"-1"},
    "out of range": {"cls": b"2"},
    "json": {"json": b"{broken"},
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("members", MEMBERS)
def test_a_member_that_cannot_be_decoded_is_named(tmp_path, good, members, streaming):
    rows = samples()
    if "json" in MEMBERS[members]:
        rows = [(name, content | {"json": b"{}"}) for name, content in rows]
    rows[BAD_ROW][1].update(MEMBERS[members])
    bad = write_tar(tmp_path / "bad.tar", rows)
    error = error_of(check_data, bad, good, streaming)
    assert f"row {BAD_ROW}" in error
    assert str(bad) in error


@pytest.mark.parametrize("streaming", [False, True])
def test_names_and_labels_that_are_missing_are_named(tmp_path, good, streaming):
    rows = samples()
    del rows[BAD_ROW][1]["cls"]
    bad = write_tar(tmp_path / "bad.tar", rows)
    assert f"row {BAD_ROW} of {bad} (005.png): the class None is none" in error_of(check_data, bad, good, streaming)
    bad = write_tar(tmp_path / "other.tar", [("a\udcff", members) for _, members in samples()])
    assert error_of(check_data, bad, good, streaming) == (
        f"The tar file {bad} holds a name that is no UTF-8: 'a\\udcff.png'."
    )
    bad = write_tar(tmp_path / "none.tar", [])
    assert "hold no rows" in error_of(check_data, bad, good, streaming)


DAMAGES = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "text": lambda data: b"no Parquet",
    "footer": lambda data: data[:-40] + b"x" * 36 + data[-4:],
    "pages": lambda data: data[:4] + b"\xff" * 60 + data[64:],
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_parquet_file_that_is_damaged_is_named(tmp_path, good, damage, streaming):
    bad = tmp_path / "bad.parquet"
    bad.write_bytes(DAMAGES[damage](good[".parquet"].read_bytes()))
    assert str(bad) in error_of(check_data, bad, good, streaming)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("as_evaluation", [False, True])
@pytest.mark.parametrize("cell", [-1, 5, None])
def test_a_class_that_is_none_is_found_before_the_first_step(tmp_path, good, cell, as_evaluation, streaming):
    labels = [row % 2 for row in range(NUM_ROWS)]
    labels[BAD_ROW] = cell
    bad = write_parquet(tmp_path / "bad.parquet", [{"bytes": png(), "path": None}] * NUM_ROWS, labels)
    for reader in (check_data, load_images):
        error = error_of(reader, bad, good, streaming, as_evaluation)
        assert f"row {BAD_ROW} of {bad}: the class {cell} is none of the 2 classes" in error or (
            # `datasets` looks at declared numbers as it reads a stream
            cell == 5 and error == f"{bad}, row {BAD_ROW}: Class label 5 greater than configured num_classes 2"
        )


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "path",
    ["http://127.0.0.1:9/x.png", "https://a/b", "/etc/passwd", "../a.png", "file:///a.png", "zip://a::http://b"],
)
def test_rows_send_no_requests_and_open_files_of_the_set_alone(tmp_path, good, path, streaming, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: pytest.fail("a request was sent"))
    rows = [{"bytes": png(), "path": None}] * NUM_ROWS
    rows[BAD_ROW] = {"bytes": None, "path": path}
    bad = write_parquet(tmp_path / "bad.parquet", rows)
    error = error_of(check_data, bad, good, streaming)
    assert f"its path {path!r} is no file below {tmp_path}" in error
    assert f"row {BAD_ROW}" in error


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_may_name_files_of_the_set(tmp_path, good, streaming):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "a.png").write_bytes(png(9))
    rows = [{"bytes": None, "path": str(tmp_path / "own" / "a.png")}] * NUM_ROWS
    assert error_of(check_data, write_parquet(tmp_path / "paths.parquet", rows), good, streaming) == ""
