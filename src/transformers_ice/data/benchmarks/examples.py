# SPDX-License-Identifier: Apache-2.0
"""The common form of every evaluation set: an annotated image, and a sequence of them that is read one by one."""

from __future__ import annotations

import hashlib
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch.utils.data import Dataset


__all__ = ["ANNOTATIONS", "EvaluationSet", "Example", "ImageClasses", "LabelledFiles"]

ANNOTATIONS: tuple[str, ...] = ("label", "mask", "segmentation", "boxes")


_BOX_SLACK = 0.05  # of a side


@dataclass(frozen=True, eq=False)
class Example:
    """One image with its annotations; those that a set does not provide are None.

    Attributes:
        image_id: Name of the image, unique in its set.
        image: RGB, upright, in its original size.
        label: Index into the set's own `class_names`.
        mask: `(height, width)`, int8: 1 foreground, 0 background, -1 ignored.
        segmentation: `(height, width)`, int16: 0 background, k the class `class_names[k - 1]`, -1 void.
        boxes: `(num_boxes, 4)`, float64, xyxy in half-open pixels of the original image. There may be many, or none.
    """

    image_id: str
    image: Image.Image
    label: int | None = None
    mask: np.ndarray | None = None
    segmentation: np.ndarray | None = None
    boxes: np.ndarray | None = None


class EvaluationSet(Dataset[Example], ABC):
    """A sequence of examples that are read from disk one by one, on access.

    Making a set reads lists of names only, and raises at once if files are missing. A set can be pickled, so the
    workers of a `DataLoader` can use it: `DataLoader(examples, batch_size=8, num_workers=2, collate_fn=list)`.
    Masks and boxes are in the frame of the upright image. The published sets hold no images with an EXIF orientation;
    where a file of one's own has one, the annotation has to fit the image as viewers show it.

    Args:
        name: Name of the set, for reports.
        provides: Which of `ANNOTATIONS` every example has.
        class_names: Names of the classes that `label` and `segmentation` count.
        published_size: Number of images of the published set, where it is known.
    """

    def __init__(
        self,
        name: str,
        provides: Iterable[str],
        class_names: Sequence[str] | None = None,
        published_size: int | None = None,
    ) -> None:
        self.name = name
        self.provides = frozenset(provides)
        self.class_names = None if class_names is None else list(class_names)
        self.published_size = published_size

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def _identity(self) -> Iterable[object]:
        """Yield what identifies the set, as objects whose `repr` is the same in every process."""

    @abstractmethod
    def _read(self, index: int) -> Example:
        """Read the example at an index in `[0, len(self))`."""

    @property
    def fingerprint(self) -> str:
        """A short digest of names and annotations, the same in every process; the key under which results are stored.

        For published sets it depends neither on their folder nor on the content of images and masks. For tables and
        own folders it changes with their files.
        """
        digest = hashlib.sha256()
        for part in (type(self).__name__, self.name, sorted(self.provides), self.class_names, *self._identity()):
            # `repr`, not `hash`: the hash of text differs between processes
            digest.update(repr(part).encode())
        return digest.hexdigest()[:16]

    def __getitem__(self, index: int) -> Example:
        """Read one example; negative positions count from the end.

        Raises:
            IndexError: If there is no such position.
            ValueError: If a file of the example is missing, damaged or inconsistent; the message names it.
        """
        position = operator.index(index)
        if not -len(self) <= position < len(self):
            raise IndexError(f"The set {self.name!r} has {len(self)} examples, got index {position}.")
        example = self._read(position % len(self))
        for annotation in ("mask", "segmentation"):
            _check_size(example, annotation)
        _check_boxes(example)
        return example

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))

    def select(self, indices: Iterable[int]) -> EvaluationSet:
        """Return the set of the examples at some indices, in their order; nothing is read.

        Raises:
            IndexError: If the set has no such position.
        """
        return _Selection(self, indices)

    def head(self, count: int) -> EvaluationSet:
        """Return the set of the first examples, all if there are fewer than `count`."""
        return self.select(range(self._at_most(count)))

    def spread(self, count: int) -> EvaluationSet:
        """Return the set of `count` examples at equal distances: of a set sorted by class it keeps all classes."""
        count = self._at_most(count)
        # rounded down in integers: the first example is always among them, positions never repeat
        return self.select(index * len(self) // count for index in range(count))

    def _at_most(self, count: int) -> int:
        if count < 1:
            raise ValueError(f"The number of examples must be at least 1, got {count}.")
        return min(count, len(self))


class LabelledFiles(EvaluationSet):
    """Image files of one class each, which can be trained on too: `files` are their paths, `labels` their classes."""

    files: list[Path]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.files)


class ImageClasses(NamedTuple):
    """Image files with the classes in each: sorted indices into `class_names`, each once; none where there is none."""

    files: list[Path]
    labels: list[list[int]]
    class_names: Sequence[str]


class _Selection(EvaluationSet):
    """Some examples of another set."""

    def __init__(self, whole: EvaluationSet, indices: Iterable[int]) -> None:
        super().__init__(whole.name, whole.provides, whole.class_names, whole.published_size)
        self._whole = whole
        self._indices = [operator.index(index) for index in indices]
        outside = [index for index in self._indices if not -len(whole) <= index < len(whole)]
        if outside:
            raise IndexError(f"The set {whole.name!r} has {len(whole)} examples, got index {outside[0]}.")

    def __len__(self) -> int:
        return len(self._indices)

    def _identity(self) -> Iterable[object]:
        return self._whole.fingerprint, self._indices

    def _read(self, index: int) -> Example:
        return self._whole[self._indices[index]]


def _check_size(example: Example, annotation: str) -> None:
    """Raise if a map of an example does not have the size of its image."""
    values = getattr(example, annotation)
    width, height = example.image.size
    if values is not None and values.shape != (height, width):
        raise ValueError(
            f"The {annotation} of {example.image_id!r} must have the size of its upright image, {(height, width)} as "
            f"(height, width), got {values.shape}. Was one of them resized, or turned by an EXIF orientation?"
        )


def _check_boxes(example: Example) -> None:
    """Raise if a box is far outside its image; published boxes end a few pixels after it."""
    size = np.array(example.image.size * 2, dtype=np.float64)  # width, height, width, height
    slack = 2 + _BOX_SLACK * size
    for box in np.zeros((0, 4)) if example.boxes is None else example.boxes:
        if not ((box >= -slack) & (box <= size + slack)).all():
            raise ValueError(
                f"A box of {example.image_id!r} must lie inside its image of {example.image.width} x "
                f"{example.image.height} pixels, got {box.tolist()} as xyxy. Is the image a copy of another size?"
            )
