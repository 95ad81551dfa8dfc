# SPDX-License-Identifier: Apache-2.0
"""Training data that is damaged or contradictory: Parquet files, WebDataset tars, class folders, lists of classes."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from PIL import Image

from hostile.frame import Place, ReportedError, Row
from hostile.pictures import NO_PICTURES, encode, whole


def picture(number: int) -> bytes:
    return encode(Image.new("RGB", (8, 8), (number * 9, 40, 90)), "PNG")


def tar_of(members: Sequence[tuple[str, bytes]], **options: Any) -> bytes:
    """Return a tar of files; `options` are attributes of its entries."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for key, value in options.items():
                setattr(member, key, value)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def parquet_of(cells: Sequence[Any], labels: Sequence[Any], **columns: Any) -> bytes:
    """Return a Parquet file with columns image and label."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    stream = io.BytesIO()
    pq.write_table(pa.table({"image": cells, "label": labels, **columns}), stream)
    return stream.getvalue()


def cells(count: int = 4) -> list[Any]:
    return [{"bytes": picture(number), "path": f"{number}.png"} for number in range(count)]


def members(count: int = 4) -> list[tuple[str, bytes]]:
    names = [(f"{number}.{ending}", number) for number in range(count) for ending in ("png", "cls")]
    return [(name, picture(number) if name.endswith("png") else b"01"[number % 2 :][:1]) for name, number in names]


def shard(name: str, data: bytes | Callable[[], bytes], place: Place) -> list[str]:
    """Write a bad training file, a good one of the same kind, and the names of the classes; return arguments."""
    ending = name.rpartition(".")[2]
    good = tar_of(members()) if ending == "tar" else parquet_of(cells(), [0, 1, 0, 1])
    bad = place.put(name, data if isinstance(data, bytes) else data())
    names = place.put("names.txt", "ant\nbee\n")
    return [str(bad), str(place.put(f"good.{ending}", good)), str(names)]


def check(is_stream: bool, place: Place, files: list[str]) -> Any:
    """Check the data as `--check_only` does; what it finds is an error here."""
    from transformers_ice.training import DataArguments, check_data

    arguments = DataArguments(
        train_files=files[0], validation_files=files[1], class_names_file=files[2], streaming=is_stream
    )
    return judged(check_data(arguments, show_progress=False, cache_dir=str(place.output)))


def check_folder(place: Place, folder: Any) -> Any:
    from transformers_ice.training import DataArguments, check_data

    return judged(check_data(DataArguments(train_dir=str(folder)), show_progress=False, cache_dir=str(place.output)))


def judged(report: Any) -> Any:
    if report.exit_code:
        raise ReportedError(f"The data must be fixed: {report.faults} {report.missing('train')}")
    return report


def counts(*numbers: int) -> Callable[[Any], bool]:
    return lambda report: [report.counts["train"][index] for index in range(len(numbers))] == list(numbers)


def tars() -> Iterator[Row]:
    data, two = tar_of(members()), members(2)
    size = len(data)
    files: dict[str, bytes] = {
        **{title: NO_PICTURES[title] for title in ("nothing", "text", "zip", "gzip", "pickle")},
        **{f"cut after {part}/8": data[: size * part // 8] for part in range(1, 7)},
        "cut inside a header": data[:1600],
        "without members": tar_of([]),
        "a checksum that is wrong": data[:100] + b"99" + data[102:],
        "class that is text": tar_of([*two, ("9.png", picture(9)), ("9.cls", b"cat")]),
        "class that is empty": tar_of([*two, ("9.png", picture(9)), ("9.cls", b"")]),
        "class that is binary": tar_of([*two, ("9.png", picture(9)), ("9.cls", b"\xff\x00")]),
        "class of 5,000 digits": tar_of([*two, ("9.png", picture(9)), ("9.cls", b"9" * 5000)]),
        "class -1": tar_of([*two, ("9.png", picture(9)), ("9.cls", b"-1")]),
        "class 2 of 2": tar_of([*two, ("9.png", picture(9)), ("9.cls", b"2")]),
        "a row without a class": tar_of([*two, ("9.png", picture(9))]),
        "a row without a picture": tar_of([*two, ("9.cls", b"1")]),
        "a picture that is none": tar_of([*two, ("9.png", b"no"), ("9.cls", b"1")]),
        "a picture that is cut": tar_of([*two, ("9.png", picture(9)[:50]), ("9.cls", b"1")]),
        "json that is broken": tar_of([*two, ("9.png", picture(9)), ("9.cls", b"1"), ("9.json", b"{")]),
        "a pickle among the members": tar_of(
            [("0.png", picture(0)), ("0.cls", b"0"), ("0.pkl", NO_PICTURES["pickle"])]
        ),
        "objects of numpy": tar_of([("0.png", picture(0)), ("0.cls", b"0"), ("0.npy", _objects())]),
    }
    for title, content in files.items():
        for is_stream in (False, True):
            # members of other kinds are read by none, or refused
            is_extra = title.startswith(("a pickle among", "objects", "json"))
            says = r"\.tar|9" if not is_extra else ""
            name = f"tar, {'stream' if is_stream else 'table'}: {title}"
            answer = (lambda report: True) if is_extra else None
            yield Row(name, partial(shard, "bad.tar", content), partial(check, is_stream), answer, is_extra, says)
    outside = [(name.replace("0.", "../../0."), content) for name, content in members()]
    for title, content, answer in (
        ("as it should be", data, counts(2, 2)),
        ("names that lead outwards", tar_of(outside), counts(2, 2)),
        ("absolute names", tar_of([(f"/tmp/hostile/{name}", content) for name, content in members()]), counts(2, 2)),
        ("links", tar_of(members(), type=tarfile.SYMTYPE, linkname="/etc/passwd"), None),
        ("devices", tar_of(members(), type=tarfile.CHRTYPE), None),
        ("members twice", tar_of([*members(), *members()]), counts(4, 4)),
    ):
        for is_stream in (False, True):
            may_refuse = title != "as it should be"
            write = partial(shard, "bad.tar", content)
            name = f"tar, {'stream' if is_stream else 'table'}: {title}"
            yield Row(name, write, partial(check, is_stream), answer, may_refuse)


def _objects() -> bytes:
    import numpy as np

    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return stream.getvalue()


def parquets() -> Iterator[Row]:
    data = partial(parquet_of, cells(), [0, 1, 0, 1])

    def changed(change: Callable[[bytes], bytes]) -> bytes:
        return change(data())

    other = [
        {"bytes": None, "path": path} for path in ("http://127.0.0.1:9/x.png", "/etc/passwd", "nowhere.png", None)
    ]
    files: dict[str, bytes | Callable[[], bytes]] = {
        **{title: NO_PICTURES[title] for title in ("nothing", "text", "zip", "pickle", "json")},
        **{
            f"cut after {part}/8": partial(changed, lambda content, part=part: content[: len(content) * part // 8])
            for part in (1, 4, 7)
        },
        "zeros in the middle": partial(changed, lambda content: content[:300] + bytes(200) + content[500:]),
        "a footer of 2 GB": partial(changed, lambda content: content[:-8] + b"\xff\xff\xff\x7fPAR1"),
        "no rows": partial(parquet_of, [], []),
        "class 7": partial(parquet_of, cells(), [0, 1, 0, 7]),
        "class -1": partial(parquet_of, cells(), [0, 1, 0, -1]),
        "a class that is missing": partial(parquet_of, cells(), [0, 1, 0, None]),
        "classes of floats": partial(parquet_of, cells(), [0.5, 1.0, 0.0, 1.0]),
        "classes that are names of none": partial(parquet_of, cells(), ["ant", "bee", "ant", "cow"]),
        "classes that are lists": partial(parquet_of, cells(), [[0], [1], [0], [1]]),
        "a row of null": partial(parquet_of, [*cells(3), None], [0, 1, 0, 1]),
        "pictures that are text": partial(parquet_of, ["a.png"] * 4, [0, 1, 0, 1]),
        "pictures that are numbers": partial(parquet_of, [1, 2, 3, 4], [0, 1, 0, 1]),
        "a picture that is none": partial(parquet_of, [*cells(3), {"bytes": b"no", "path": "3.png"}], [0, 1, 0, 1]),
        **{f"a picture at {cell['path']}": partial(parquet_of, [*cells(3), cell], [0, 1, 0, 1]) for cell in other},
        "no column of classes": partial(_renamed, "label", "x"),
        "no column of pictures": partial(_renamed, "image", "x"),
    }
    for title, content in files.items():
        for is_stream in (False, True):
            name = f"parquet, {'stream' if is_stream else 'table'}: {title}"
            yield Row(name, partial(shard, "bad.parquet", content), partial(check, is_stream))
    yield Row("parquet as it should be", partial(shard, "bad.parquet", data), partial(check, False), counts(2, 2))


def _renamed(name: str, other: str) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"image": cells(), "label": [0, 1, 0, 1]})
    stream = io.BytesIO()
    pq.write_table(
        table.rename_columns([other if column == name else column for column in table.column_names]), stream
    )
    return stream.getvalue()


def class_names() -> Iterator[Row]:
    data = partial(parquet_of, cells(), [0, 1, 0, 1])

    def write(content: bytes | None, place: Place) -> list[str]:
        files = shard("bad.parquet", data, place)
        (place.inputs / "names.txt").unlink()
        if content is None:
            os.mkfifo(place.inputs / "names.txt")
        else:
            (place.inputs / "names.txt").write_bytes(content)
        return files

    for title, content in {
        "empty": b"",
        "one name": b"ant\n",
        "twice the same": b"ant\nant\n",
        "no UTF-8": b"ant\n\xff\xfe\n",
        "zeros": b"ant\0\nb\0\n",
        "a pipe": None,
        "an empty line between": b"ant\n\nbee\n",
    }.items():
        answer = counts(2, 2) if title in ("zeros", "an empty line between") else None
        yield Row(f"names of classes: {title}", partial(write, content), partial(check, False), answer, True)
    yield Row("names of Windows", partial(write, b"\xef\xbb\xbfant\r\nbee\r\n"), partial(check, True), counts(2, 2))


def folders() -> Iterator[Row]:
    """Yield class folders with things that are no pictures, or no files."""

    def write(entries: dict[str, bytes | str | None], place: Place) -> Any:
        for number in range(8):
            place.put(f"{'ab'[number % 2]}/{number}.png", picture(number))
        for name, content in entries.items():
            path = place.inputs / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                path.mkdir()
            elif content == "pipe":
                os.mkfifo(path)
            elif isinstance(content, str):
                os.symlink(content, path)
            else:
                path.write_bytes(content)
        return place.inputs

    for title, entries, answer in (
        ("as it should be", {}, True),
        ("a folder without a picture", {"c": None}, True),
        ("a picture that is none", {"a/x.png": b"no"}, False),
        ("an empty picture", {"a/x.png": b""}, False),
        ("a picture that is cut", {"a/x.png": whole("PNG")[:60]}, False),
        ("a bomb", {"a/x.png": NO_PICTURES["icon around a large png"]}, False),
        ("a pipe", {"a/x.png": "pipe"}, True),
        ("a link to nothing", {"a/x.png": "nowhere"}, True),
        ("a link to itself", {"a/x.png": "x.png"}, True),
        ("a link upwards", {"a/up": ".."}, True),
        ("a folder named like a picture", {"a/x.png": None}, True),
        ("a folder of hidden files", {"c/.x.png": picture(1)}, True),
        ("a name that is no UTF-8", {"a/\udcff.png": picture(1)}, False),
        ("a class that is no UTF-8", {"\udcff/x.png": picture(1)}, False),
        ("a picture beside the classes", {"x.png": picture(1)}, False),
        ("brackets and stars", {"[a]*/x.png": picture(1), "[a]*/y.png": picture(2)}, True),
        ("names with control characters", {"a/\x1b[31m\n.png": picture(1)}, True),
        ("metadata of another kind", {"metadata.csv": b"file_name,label\na/0.png,7\n"}, False),
    ):
        right = (lambda report: sum(report.counts["train"].values()) >= 6) if answer else None
        yield Row(
            f"class folders: {title}",
            partial(write, entries),
            check_folder,
            right,
            may_refuse=title == "a picture beside the classes",
        )
    for title, name in (
        ("no such folder", "none"),
        ("a file", "a/0.png"),
        ("an empty folder", "c"),
        ("no classes", "a"),
    ):
        yield Row(f"class folders: {title}", partial(write, {"c": None}), partial(_check_below, name))


def _check_below(name: str, place: Place, folder: Any) -> Any:
    return check_folder(place, folder / name)


def rows() -> list[Row]:
    """Return all rows."""
    return [row for table in (tars, parquets, class_names, folders) for row in table()]
