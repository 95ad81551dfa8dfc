# SPDX-License-Identifier: Apache-2.0
"""A table of images and classes as a `torch` data set: decoded, augmented and resized for the collator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset as ImageTable
from datasets import Image as ImageFeature
from datasets import LargeList, List
from torch.utils.data import Dataset

from ...ice_deit.image_conversion import load_image
from ...ice_deit.image_processing_ice_deit import IceDeiTImageProcessor
from ...ice_deit.patch_maps import ImageGeometry
from ..augmentation.batch_augmentation import AUGMENTATION_SEED
from ..augmentation.image_augmentation import TrainingAugmentation
from ..masks import binary_mask
from .labels import Labels
from .pixels import PixelReader


__all__ = ["LabelledImages"]


class LabelledImages(Dataset):
    """A table of images and classes as a data set of uint8 pixels and labels.

    The random numbers of an augmentation depend on seed, epoch and row alone. So a resumed run sees exactly the images
    of an uninterrupted one, with any number of workers and processes. An index of `len(self)` and more stands for the
    same rows with another augmentation: index + k * len(self) is repeat k (`repeated_augmentation`).

    Args:
        table: A `datasets.Dataset`.
        image_processor: Source of the input size, and of the whole geometry without augmentation.
        augmentation: Augmentation of the images; `None` resizes and crops them as `image_processor` does.
        image_column: Column of images.
        label_column: Column of classes that it declares (`Labels.declare`), or of plain ints, which are taken as they
            are. Of declared lists of classes, `labels` are multi-hot: `(num_labels,)`, float32.
        mask_column: Column of foreground masks; a table need not have it.
        seed: Seed of the augmentation.

    Raises:
        ValueError: If the column of classes holds lists and declares no names.
    """

    def __init__(
        self,
        table: ImageTable,
        image_processor: Any,
        augmentation: TrainingAugmentation | None = None,
        image_column: str = "image",
        label_column: str = "label",
        mask_column: str = "mask",
        seed: int = 0,
    ) -> None:
        self.table = table
        # undecoded: only the rows of a batch are decoded, and an unreadable image can be named
        self._rows = table.select_columns([image_column, label_column]).cast_column(
            image_column, ImageFeature(decode=False)
        )
        self._masks = table.select_columns([mask_column]) if mask_column in table.column_names else None
        if self._masks is not None and isinstance(self._masks.features[mask_column], ImageFeature):
            self._masks = self._masks.cast_column(mask_column, ImageFeature(decode=False))
        self.image_column, self.label_column, self.mask_column = image_column, label_column, mask_column
        self.image_processor, self.augmentation, self.seed = image_processor, augmentation, seed
        feature = table.features[label_column]
        self.labels = Labels.from_feature(feature)
        if self.labels is None and isinstance(feature, List | LargeList):
            raise ValueError(
                f"The column {label_column!r} holds lists and must declare the names of the classes, got {feature}. "
                "Use the table that `Labels.declare` returns."
            )
        self._read_pixels = PixelReader(image_processor, augmentation)
        self.input_size = self._read_pixels.input_size
        # shared memory: persistent workers see the new number too
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Draw other crops and flips from here on, in every worker."""
        self._epoch.fill_(epoch)

    @property
    def epoch(self) -> int:
        """The epoch whose crops and flips are drawn."""
        return int(self._epoch)

    @property
    def has_masks(self) -> bool:
        """Whether the table has a column of foreground masks."""
        return self._masks is not None

    def foreground_mask(self, index: int) -> np.ndarray:
        """Return the true foreground of an image, `(height, width)`, bool, in the size it is stored in."""
        assert self._masks is not None  # for the type checker: callers check `has_masks` first
        cell = self._masks[index][self.mask_column]
        if isinstance(cell, dict):
            return binary_mask(load_image(cell), f"of row {index}") > 0
        mask = np.asarray(cell)
        # a mask that was stored in colour: foreground is whatever is not black
        return np.asarray((mask if mask.ndim == 2 else mask[..., :3].max(axis=-1)) > 0)

    def geometry(self, image_size: tuple[int, int]) -> ImageGeometry:
        """Return the map from the pixels of an image of `(height, width)` to those of the model's input."""
        if isinstance(self.image_processor, IceDeiTImageProcessor):
            return self.image_processor.image_geometry(image_size)
        return ImageGeometry.from_resize(image_size, self.input_size)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        # what `DataLoader` calls: one access to the table for the whole batch
        rows = self._rows[[index % len(self._rows) for index in indices]]
        cells = zip(indices, rows[self.image_column], rows[self.label_column], strict=True)
        return [self._example(index, record, label) for index, record, label in cells]

    def _example(self, index: int, record: dict[str, Any], cell: Any) -> dict[str, Any]:
        """Return one image as a uint8 tensor `(height, width, 3)`, with its class, or a multi-hot row of them."""
        # what else is random about an image or its batch is derived from the seed, in the collator
        seed = f"{self.seed}/{self.epoch}/{index}"
        try:
            label = cell if self.labels is None else self.labels.target_of(cell)
            return {"pixel_values": self._read_pixels(record, seed), "labels": label, AUGMENTATION_SEED: seed}
        except ValueError as error:
            raise ValueError(f"Row {index % len(self._rows)} of the data: {error}") from error
