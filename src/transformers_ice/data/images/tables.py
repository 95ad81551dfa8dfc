# SPDX-License-Identifier: Apache-2.0
"""The images of a run as `torch` data sets: decoded, varied, sized, ready for the collator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset as ImageTable
from datasets import Image as ImageFeature
from datasets import load_dataset
from torch.utils.data import Dataset

from ...ice_deit.image_processing_ice_deit import IceDeiTImageProcessor
from ...ice_deit.patch_maps import ImageGeometry
from ..augmentation.batch_augmentation import AUGMENTATION_SEED
from ..augmentation.image_augmentation import TrainingAugmentation
from ..scenes import load_scenes
from .arguments import DataArguments
from .class_columns import declare_classes, find_columns, read_class_names
from .folders import (
    check_columns,
    encode_classes,
    load_hub_images,
    load_image_folder,
    remove_bad_images,
)
from .pixels import PixelReader
from .shards import find_shards, kind_of
from .streams import ShardedRows


__all__ = ["ImageTables", "LabelledImages", "load_image_tables", "load_shard_table", "name_columns", "prepare_table"]


class LabelledImages(Dataset):
    """A table of images and classes as a data set of uint8 pixels and labels.

    The random numbers of an augmentation depend on seed, epoch and row alone. So a resumed run sees the very images
    of an uninterrupted one, with any number of workers and processes. An index of `len(self)` and more stands for the
    same rows once more, varied anew: index + k * len(self) is repeat k (`repeated_augmentation`).

    Args:
        table: A `datasets.Dataset`.
        image_processor: Gives the size, and the whole geometry where there is no augmentation.
        augmentation: Varies the images; `None` resizes and crops them as `image_processor` does.
        image_column: Column of images.
        label_column: Column of classes, as ints.
        mask_column: Column of foreground masks; a table need not have it.
        seed: Seed of the augmentation.
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
        # undecoded: only what is asked for is decoded, and an unreadable image can be named
        self._rows = table.select_columns([image_column, label_column]).cast_column(
            image_column, ImageFeature(decode=False)
        )
        self._masks = table.select_columns([mask_column]) if mask_column in table.column_names else None
        self.image_column, self.label_column, self.mask_column = image_column, label_column, mask_column
        self.image_processor, self.augmentation, self.seed = image_processor, augmentation, seed
        self._read_pixels = PixelReader(image_processor, augmentation)
        self.input_size = self._read_pixels.input_size
        # shared memory: workers that live longer than an epoch see the new number too
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
        assert self._masks is not None  # for the type checker: `has_masks` is asked before
        mask = np.asarray(self._masks[index][self.mask_column])
        # a mask that was stored in colour: foreground is whatever is not black
        return np.asarray((mask if mask.ndim == 2 else mask[..., :3].max(axis=-1)) > 0)

    def geometry(self, image_size: tuple[int, int]) -> ImageGeometry:
        """Return where the pixels of an image of `(height, width)` end up in the model's input."""
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
        # what else is random about an image or its batch is derived from the seed, in the collator
        return [
            {"pixel_values": self._pixels(index, record), "labels": label, AUGMENTATION_SEED: self._seed_of(index)}
            for index, record, label in cells
        ]

    def _seed_of(self, index: int) -> str:
        """Return the seed of one image in this epoch."""
        return f"{self.seed}/{self.epoch}/{index}"

    def _pixels(self, index: int, record: dict[str, Any]) -> torch.Tensor:
        """Return one image as a uint8 tensor `(height, width, 3)`."""
        try:
            return self._read_pixels(record, self._seed_of(index))
        except ValueError as error:
            raise ValueError(f"Row {index % len(self._rows)} of the data: {error}") from error


@dataclass(frozen=True)
class ImageTables:
    """What a run trains and evaluates on.

    Args:
        train: Training images.
        evaluation: Evaluation images.
        class_names: Names of the classes, in the order of the labels.
    """

    train: ImageTable | ShardedRows
    evaluation: ImageTable
    class_names: list[str]


def load_image_tables(
    data_args: DataArguments,
    image_size: tuple[int, int],
    seed: int = 0,
    cache_dir: str | None = None,
    token: str | None = None,
) -> ImageTables:
    """Load, check and split the images that the arguments name.

    Args:
        data_args: Where they are.
        image_size: Height and width that `scenes` are drawn in.
        seed: Decides which images are held out, and which are used where only some are.
        cache_dir: Folder that keeps downloads.
        token: Hub token.

    Raises:
        ValueError: If columns, classes or images are not as they should be.
    """
    if data_args.dataset_name == "scenes":
        return _load_scene_tables(data_args, image_size, cache_dir)
    train, evaluation = _load_raw_tables(data_args, cache_dir, token)
    train = name_columns(train, data_args)
    evaluation = None if evaluation is None else name_columns(evaluation, data_args)
    train, evaluation, class_names = encode_classes(train, evaluation, data_args.label_column_name)
    if evaluation is None:
        parts = train.train_test_split(data_args.train_val_split, seed=seed)
        train, evaluation = parts["train"], parts["test"]
    train = prepare_table(train, data_args.max_train_samples, data_args, seed)
    return ImageTables(train, prepare_table(evaluation, data_args.max_eval_samples, data_args, seed), class_names)


def name_columns(table: ImageTable, data_args: DataArguments) -> ImageTable:
    """Return a table with the columns and class names that the arguments ask for.

    Raises:
        ValueError: Naming the columns there are, or the classes that do not fit.
    """
    wanted = (data_args.image_column_name, data_args.label_column_name)
    for found, name in zip(find_columns(table.features, *wanted), wanted, strict=True):
        table = table if found == name else table.rename_column(found, name)
    check_columns(table, image_column_name=wanted[0], label_column_name=wanted[1])
    if data_args.class_names_file is None:
        return table
    return declare_classes(table, wanted[1], read_class_names(data_args.class_names_file))


def load_shard_table(pattern_or_files: str | Sequence[str], cache_dir: str | None, argument: str) -> ImageTable:
    """Return Parquet files or WebDataset tars as a table, kept on the disk in the cache of `datasets`.

    Args:
        pattern_or_files: A pattern, or the files.
        cache_dir: Folder of the cache.
        argument: Name of the argument, for errors.
    """
    files = find_shards(pattern_or_files, argument) if isinstance(pattern_or_files, str) else list(pattern_or_files)
    return load_dataset(kind_of(files, argument), data_files={"train": files}, split="train", cache_dir=cache_dir)


def _load_scene_tables(data_args: DataArguments, image_size: tuple[int, int], cache_dir: str | None) -> ImageTables:
    """Return the drawn scenes, in the size of the model's input."""
    options: dict[str, Any] = {"image_size": image_size, "cache_dir": cache_dir, "num_proc": data_args.num_proc}
    train = load_scenes("train", data_args.max_train_samples, **options)
    evaluation = load_scenes("validation", data_args.max_eval_samples, **options)
    return ImageTables(train, evaluation, train.features["label"].names)


def _load_raw_tables(
    data_args: DataArguments, cache_dir: str | None, token: str | None
) -> tuple[ImageTable, ImageTable | None]:
    """Return training and evaluation images as they are stored."""
    if data_args.dataset_name is not None:
        return load_hub_images(data_args.dataset_name, data_args.dataset_config_name, token, cache_dir)
    if data_args.train_files is not None:
        others = data_args.validation_files
        return (
            load_shard_table(data_args.train_files, cache_dir, "train_files"),
            None if others is None else load_shard_table(others, cache_dir, "validation_files"),
        )
    train = load_image_folder(str(data_args.train_dir))
    return train, None if data_args.validation_dir is None else load_image_folder(data_args.validation_dir)


def prepare_table(table: ImageTable, max_samples: int | None, data_args: DataArguments, seed: int) -> ImageTable:
    """Take some of the images at random, and deal with those that cannot be read."""
    if max_samples is not None and max_samples < len(table):
        table = table.shuffle(seed=seed).select(range(max_samples))
    if data_args.check_images:
        table = remove_bad_images(table, data_args.image_column_name, data_args.on_bad_image, data_args.num_proc)
    return table
