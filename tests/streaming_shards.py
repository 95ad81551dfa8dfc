# SPDX-License-Identifier: Apache-2.0
"""Small Parquet files and WebDataset tars for the tests of streams; a pixel value says which row an image is."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PillowImage


NAMES = ["ant", "bee", "cat"]


def png_of(index: int, size: int = 8) -> bytes:
    file = io.BytesIO()
    PillowImage.new("RGB", (size, size), (index % 256, index // 256, 7)).save(file, "PNG")
    return file.getvalue()


def row_of(pixel_values) -> int:
    return int(pixel_values[0, 0, 0]) + 256 * int(pixel_values[0, 0, 1])


def write_parquet(folder: Path, sizes: list[int], label=None, name: str = "train") -> str:
    """Write shards whose rows are numbered on; return their pattern."""
    folder.mkdir(parents=True, exist_ok=True)
    label, first = label or ClassLabel(names=NAMES), 0
    for shard, size in enumerate(sizes):
        numbers = range(first, first + size)
        cells = [{"bytes": png_of(number), "path": f"{number}.png"} for number in numbers]
        is_text = getattr(label, "dtype", None) == "string"
        labels = [NAMES[number % 3] if is_text else number % 3 for number in numbers]
        table = Dataset.from_dict({"image": cells, "label": labels}, features=Features(image=Image(), label=label))
        table.to_parquet(folder / f"{name}-{shard:02d}.parquet", batch_size=2)
        first += size
    return str(folder / f"{name}-*.parquet")


def write_tars(folder: Path, sizes: list[int], name: str = "train") -> str:
    """Write WebDataset shards of png and cls; return their pattern."""
    folder.mkdir(parents=True, exist_ok=True)
    first = 0
    for shard, size in enumerate(sizes):
        with tarfile.open(folder / f"{name}-{shard:02d}.tar", "w") as archive:
            for number in range(first, first + size):
                for ending, content in (("png", png_of(number)), ("cls", str(number % 3).encode())):
                    member = tarfile.TarInfo(f"part.1/{number:04d}.{ending}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
        first += size
    return str(folder / f"{name}-*.tar")
