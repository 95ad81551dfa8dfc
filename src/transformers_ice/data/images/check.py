# SPDX-License-Identifier: Apache-2.0
"""Check of all images before training: number per class, unreadable files, classes without an image."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Image as ImageFeature
from tqdm.auto import tqdm

from .arguments import DataArguments
from .cells import shorten
from .loading import StoredImages, hold_out, open_images
from .pixels import read_errors
from .streams import ShardedRows, ShardSpan


__all__ = ["DataReport", "check_data"]

_MAX_ROWS = 50  # of the printed table; ImageNet has 1,000 classes

_SKIP_HINT = "Unreadable images can be skipped: `--on_bad_image skip` (not with `--streaming`)."


@dataclass
class DataReport:
    """Result of the check of a data set.

    Args:
        class_names: Names of the classes.
        counts: Readable and unreadable images of each class, by the name of the split.
        faults: File or row, and the reason why it cannot be used.
        notes: What was passed over, and what is worth a look, but no fault.
        num_images: Images of each split whose classes are known; with several classes an image, `counts` has more.
        num_without: Images without a class, where there may be several an image, else None.
    """

    class_names: list[str]
    counts: dict[str, Counter[int]]
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    num_images: Counter[str] = field(default_factory=Counter)
    num_without: Counter[str] | None = None

    @property
    def exit_code(self) -> int:
        """0 if a run could train on the data, 1 if not."""
        return int(bool(self.faults or self.missing("train")))

    def missing(self, split: str) -> list[str]:
        """Return the names of the classes without an image in a split."""
        return [name for number, name in enumerate(self.class_names) if not self.counts[split][number]]

    def __str__(self) -> str:
        lines = [*self._table(), ""]
        for split, meaning in (("train", "a fault"), ("evaluation", "these are not scored")):
            missing = self.missing(split)
            if missing:
                lines.append(f"{len(missing)} classes without an image in {split} ({meaning}): {shorten(missing)}")
        lines += self.notes
        if self.faults:
            lines.append(f"{len(self.faults)} rows that cannot be used:")
            lines += [*(f"  {fault}" for fault in self.faults), _SKIP_HINT]
        lines.append("The data can be trained on." if not self.exit_code else "The data must be fixed.")
        return "\n".join(lines)

    def _table(self) -> Iterator[str]:
        """Yield the lines of the table; of many classes, those with the fewest and the most training images."""
        numbers = list(range(len(self.class_names)))
        if len(numbers) > _MAX_ROWS:
            # both ends of the distribution: where an imbalance or a wrong split shows
            by_count = sorted(numbers, key=lambda number: self.counts["train"][number])
            numbers = by_count[: _MAX_ROWS // 2] + by_count[-_MAX_ROWS // 2 :]
        rows: list[tuple[Any, ...]] = [
            (self.class_names[number], *(self.counts[split][number] for split in self.counts)) for number in numbers
        ]
        rows.append((f"{len(self.class_names)} classes", *(sum(counts.values()) for counts in self.counts.values())))
        if self.num_without is not None:
            rows.append(("images", *(self.num_images[split] for split in self.counts)))
            rows.append(("without a class", *(self.num_without[split] for split in self.counts)))
        width = max(len(row[0]) for row in rows)
        yield f"{'class':<{width}} {'train':>10} {'evaluation':>10}"
        yield from (f"{name:<{width}} {train:10d} {evaluation:10d}" for name, train, evaluation in rows)


def check_data(
    data_args: DataArguments,
    image_size: tuple[int, int] = (224, 224),
    seed: int = 0,
    cache_dir: str | None = None,
    token: str | None = None,
    show_progress: bool = True,
) -> DataReport:
    """Decode every image once, and count the images of each class.

    Args:
        data_args: Where the images are.
        image_size: Height and width in pixels at which `scenes` are drawn.
        seed: Decides which images are held out.
        cache_dir: Folder that keeps downloads.
        token: Hub token.
        show_progress: Whether a bar is drawn.

    Raises:
        ValueError: If files, columns or classes cannot be used, so that there is nothing to count.
    """
    stored = open_images(data_args, image_size, cache_dir, token)
    images = dict(zip(("train", "evaluation"), hold_out(*stored, data_args=data_args, seed=seed), strict=True))
    notes = [note for part in stored if part is not None for note in part.notes]
    labels = stored[0].labels
    report = DataReport(labels.names, {split: Counter() for split in images}, notes=notes)
    report.num_without = Counter() if labels.is_multi_label else None
    first: dict[bytes, tuple[str, Any, str]] = {}  # split, classes and place of the first image of a content
    copies: list[str] = []
    for split, part in images.items():
        bar = tqdm(_rows(part, data_args), desc=split, total=len(part.rows), unit=" images", disable=not show_progress)
        for (place, record, label), error in read_errors(bar, data_args.num_proc):
            where = f"{split}, {place}" + (f" ({record['path']})" if record and record.get("path") else "")
            try:
                label = part.labels.classes_of(label)
                report.counts[split].update(label)
                report.num_images[split] += 1
                if report.num_without is not None:
                    report.num_without[split] += not label
            except ValueError as fault:
                report.faults.append(f"{where}: {fault}")
            if error is not None:
                report.faults.append(f"{where}: {error}")
                continue
            other = first.setdefault(_digest(record), (split, label, where))
            if other[:2] != (split, label):
                copies.append(f"{where} is {other[2]}")
    if copies:
        report.notes.append(
            f"{len(copies)} images occur in two classes, or in training and evaluation: {shorten(copies[:10])}."
        )
    return report


def _digest(record: dict[str, Any]) -> bytes:
    content = record["bytes"] if record.get("bytes") is not None else Path(record["path"]).read_bytes()
    return hashlib.sha256(content).digest()[:16]


def _rows(images: StoredImages, data_args: DataArguments) -> Iterator[tuple[tuple[str, Any, Any], Any]]:
    """Yield place, undecoded image and label of each row, and the image once more, for `read_errors`."""
    image, label = data_args.image_column_name, data_args.label_column_name
    if isinstance(images.rows, ShardedRows):
        spans = [ShardSpan(shard, 0, count) for shard, count in enumerate(images.rows.counts)]
        rows = images.rows.read(spans)
    else:
        rows = enumerate(images.rows.select_columns([image, label]).cast_column(image, ImageFeature(decode=False)))
    return (((images.place_of(index), row[image], row[label]), row[image]) for index, row in rows)
