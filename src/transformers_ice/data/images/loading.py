# SPDX-License-Identifier: Apache-2.0
"""From the arguments to the images of a run: what is stored, then tables and streams, then data sets of pixels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, TypeVar, cast

import datasets
import pyarrow
import pyarrow.compute
from datasets import Dataset, Features, Image, Value
from datasets.utils.logging import get_logger
from huggingface_hub.constants import HF_HUB_CACHE

from ..augmentation.image_augmentation import TrainingAugmentation
from ..scenes import load_scenes
from .arguments import DataArguments
from .cells import Cells, count_cells, read_column
from .folders import load_hub_images, load_image_folder
from .labels import Labels
from .named_sets import find_hub_name, load_named_set
from .pixels import remove_bad_images
from .shards import check_origin, count_rows, find_shards, hub_shards, place_in_shards
from .streamed_images import StreamedImages
from .streams import ShardedRows, load_shards, open_shards
from .tables import LabelledImages


__all__ = [
    "ImageTables",
    "StoredImages",
    "build_data_sets",
    "check_columns",
    "hold_out",
    "load_image_tables",
    "load_images",
    "open_images",
]

logger = get_logger(__name__)

Rows = TypeVar("Rows", Dataset, ShardedRows)


@dataclass(frozen=True)
class ImageTables:
    """Training and evaluation images of a run.

    Args:
        train: Training images.
        evaluation: Evaluation images.
        labels: The classes, and the class of each cell in the label column of `train`.
    """

    train: Dataset | ShardedRows
    evaluation: Dataset
    labels: Labels

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, in the order of their numbers."""
        return self.labels.names

    @property
    def is_multi_label(self) -> bool:
        """Whether an image has any number of classes, also none."""
        return self.labels.is_multi_label


@dataclass(frozen=True)
class StoredImages:
    """Images ("training" or "evaluation") as they are stored, whose columns have the names that the arguments give.

    `labels` has the class of each cell in the label column; `files` are the shards that a table was made of, `notes`
    lines about what was passed over, and `places` where the files of rows without bytes may be (anywhere if empty).
    """

    rows: Dataset | ShardedRows
    split: str
    labels: Labels
    files: Sequence[str] = ()
    notes: Sequence[str] = ()
    places: Sequence[str] = ()

    def place_of(self, index: int) -> str:
        """Return file and row of an image, or its row alone where rows are in no file that is known."""
        if isinstance(self.rows, ShardedRows):
            return self.rows.place_of(index)
        # a table after `select` or `shuffle` keeps the row numbers of the original in `_indices`
        if self.rows._indices is not None:
            index = self.rows._indices.column(0)[index].as_py()
        return place_in_shards(self.files, self._counts, index) if self.files else f"row {index}"

    @cached_property
    def _counts(self) -> list[int]:
        return count_rows(self.files)

    def check_labels(self, column: str) -> None:
        """Raise `ValueError` with file and row if a label is no class; no image is decoded."""
        are_numbers = self.labels.cell_type is int and not self.labels.is_multi_label
        cells = _cells_of(self.rows, column, extremes_suffice=are_numbers)
        self.labels.check(cells, column, self.split, self.place_of)

    def check_origins(self) -> None:
        """Raise `ValueError` with file and row if an image of a table has no bytes and may not be read by its path."""
        if not isinstance(self.rows, ShardedRows) and self.places:
            for column, feature in self.rows.features.items():
                if isinstance(feature, Image):
                    self._check_origins(column, self.rows.data.column(column))

    def _check_origins(self, column: str, cells: pyarrow.ChunkedArray) -> None:
        row = 0
        for chunk in cells.chunks:
            # two fields, bytes and path; the bytes themselves are not read
            alone = pyarrow.compute.and_(chunk.is_valid(), chunk.field("bytes").is_null())
            for index in pyarrow.compute.indices_nonzero(alone).to_pylist():
                record = {"bytes": None, "path": chunk.field("path")[index].as_py()}
                try:
                    check_origin({column: record}, self.places)
                except ValueError as error:
                    raise ValueError(f"The {self.split} images, {self.place_of(row + index)}: {error}") from error
            row += len(chunk)

    def declare_labels(self, column: str) -> StoredImages:
        """Return a table whose label column holds class numbers; a stream is encoded row by row, as it is read."""
        if isinstance(self.rows, ShardedRows):
            return self
        labels = Labels.from_names(self.labels.names, is_multi_label=self.labels.is_multi_label)
        return replace(self, rows=self.labels.declare(self.rows, column), labels=labels)


def load_images(
    data_args: DataArguments,
    image_size: tuple[int, int],
    seed: int = 0,
    cache_dir: str | None = None,
    token: str | None = None,
) -> ImageTables:
    """Load, check and split the images that the arguments name.

    Training images are a table, or with `streaming` a stream. Evaluation images are always a table, since masks and
    panels are looked up by row, and the predictions of all processes are gathered by row. The table is memory-mapped.

    Args:
        data_args: Where they are.
        image_size: Height and width that `scenes` are drawn in.
        seed: Seed of the held-out split, and of the subset where the number of images is limited.
        cache_dir: Folder that keeps downloads and tables.
        token: Hub token.

    Raises:
        ValueError: If files, columns, classes, labels or images are not as they should be.
    """
    column = data_args.label_column_name
    # labels are checked before the split, so that errors name the rows of the files
    stored = [images for images in open_images(data_args, image_size, cache_dir, token) if images is not None]
    for images in stored:
        images.check_labels(column)
        for note in images.notes:
            logger.warning(note)
    train, evaluation = hold_out(*(images.declare_labels(column) for images in stored), data_args=data_args, seed=seed)
    return ImageTables(
        _without_bad_images(train.rows, data_args),
        cast(Dataset, _without_bad_images(evaluation.rows, data_args)),
        train.labels,
    )


def load_image_tables(data_args: DataArguments, *args: Any, **kwargs: Any) -> ImageTables:
    """Return the images as `load_images` does, the training images as a table with `streaming` too."""
    return load_images(replace(data_args, streaming=False), *args, **kwargs)


def build_data_sets(
    images: ImageTables,
    data_args: DataArguments,
    image_processor: Any,
    augmentation: TrainingAugmentation | None = None,
    seed: int = 0,
) -> tuple[LabelledImages | StreamedImages, LabelledImages]:
    """Return the training and the evaluation images as data sets of pixels and labels.

    Args:
        images: Result of `load_images`.
        data_args: Names of the columns, and the size of a stream's shuffle buffer.
        image_processor: Source of the input size, and of the whole geometry of evaluation images.
        augmentation: Augmentation of the training images.
        seed: Seed of the augmentation, and of the order of a stream.
    """
    columns = (data_args.image_column_name, data_args.label_column_name)
    mask_column, buffer_size = data_args.mask_column_name, data_args.shuffle_buffer_size
    evaluation = LabelledImages(images.evaluation, image_processor, None, *columns, mask_column)
    if isinstance(images.train, ShardedRows):
        options = (*columns, seed, buffer_size)
        return StreamedImages(images.train, images.labels, image_processor, augmentation, *options), evaluation
    return LabelledImages(images.train, image_processor, augmentation, *columns, mask_column, seed), evaluation


def open_images(
    data_args: DataArguments, image_size: tuple[int, int], cache_dir: str | None = None, token: str | None = None
) -> tuple[StoredImages, StoredImages | None]:
    """Return the training and evaluation images as they are stored, with their classes; labels are not checked."""
    opened, other = _open_rows(data_args, image_size, cache_dir, token)
    column = data_args.label_column_name
    train = _name_columns(opened, "training", data_args)
    separator = data_args.label_separator
    labels = Labels.from_column(
        column, train.features[column], lambda: _cells_of(train, column), data_args.class_names_file, separator
    )
    if isinstance(train, ShardedRows):
        train = train.select_columns([data_args.image_column_name, column])
    stored = StoredImages(train, "training", labels, *opened[1:])
    stored.check_origins()
    if other is None:
        return stored, None
    rows = _name_columns(other, "evaluation", data_args)
    same = labels.as_written_in(column, rows.features[column], separator)
    evaluation = StoredImages(rows, "evaluation", same, *other[1:])
    evaluation.check_origins()
    return stored, evaluation


def hold_out(
    train: StoredImages, evaluation: StoredImages | None = None, *, data_args: DataArguments, seed: int = 0
) -> tuple[StoredImages, StoredImages]:
    """Return training and evaluation images; without the latter, a random fraction of the former (no stream)."""
    if evaluation is None:
        table = cast(Dataset, train.rows)
        # random, not stratified: a class of one image must not be an error
        parts = table.train_test_split(data_args.train_val_split, seed=seed)
        train, evaluation = replace(train, rows=parts["train"]), replace(train, rows=parts["test"], split="evaluation")
    return (
        _limited(train, data_args.max_train_samples, seed),
        _limited(evaluation, data_args.max_eval_samples, seed),
    )


def _limited(images: StoredImages, max_samples: int | None, seed: int) -> StoredImages:
    """Return at most `max_samples` of the images, drawn at random."""
    if max_samples is None or max_samples >= len(images.rows) or isinstance(images.rows, ShardedRows):
        return images
    return replace(images, rows=images.rows.shuffle(seed=seed).select(range(max_samples)))


def _without_bad_images(rows: Rows, data_args: DataArguments) -> Rows:
    """Drop or refuse unreadable images of a table; streams and scenes are not checked."""
    if isinstance(rows, ShardedRows) or not data_args.check_images or data_args.dataset_name == "scenes":
        return rows
    return remove_bad_images(rows, data_args.image_column_name, data_args.on_bad_image, data_args.num_proc)


class _Opened(NamedTuple):
    """Rows under the names they are stored by, their shards, and what else `StoredImages` has."""

    rows: Dataset | ShardedRows
    files: Sequence[str] = ()
    notes: Sequence[str] = ()
    places: Sequence[str] = ()


def _open_rows(
    data_args: DataArguments, image_size: tuple[int, int], cache_dir: str | None, token: str | None
) -> tuple[_Opened, _Opened | None]:
    """Return training and evaluation images as they are stored."""
    if data_args.dataset_name == "scenes":
        options: dict[str, Any] = {"image_size": image_size, "cache_dir": cache_dir, "num_proc": data_args.num_proc}
        options["config_name"] = data_args.dataset_config_name
        # no more scenes than needed are drawn: every prefix holds all classes
        train = load_scenes("train", data_args.max_train_samples, **options)
        return _Opened(train), _Opened(load_scenes("validation", data_args.max_eval_samples, **options))
    if data_args.train_dir is not None:
        other = data_args.validation_dir
        # "3|7" and "3" in a CSV file: texts, not numbers
        texts = None if data_args.label_separator is None else data_args.label_column_name
        return _open_folder(data_args.train_dir, texts), None if other is None else _open_folder(other, texts)
    if data_args.dataset_name is not None and data_args.data_dir is not None:
        name, config_name = data_args.dataset_name, data_args.dataset_config_name
        train, evaluation = load_named_set(name, data_args.data_dir, config_name)
        return _Opened(train), _Opened(evaluation)
    if data_args.dataset_name is not None and not data_args.streaming:
        name, config_name = find_hub_name(data_args.dataset_name, data_args.dataset_config_name)
        splits = load_hub_images(name, config_name, token, cache_dir)
        caches = [str(datasets.config.HF_DATASETS_CACHE), HF_HUB_CACHE, *([cache_dir] if cache_dir else [])]
        places = [os.path.expanduser(place) for place in (name, *caches)]
        places = [place for place in places if os.path.isdir(place)]
        train, evaluation = (None if rows is None else _Opened(rows, places=places) for rows in splits)
        return cast(_Opened, train), evaluation
    files, column = _find_files(data_args, cache_dir, token), data_args.label_column_name
    # the paths in a table are checked at once, those of a stream as its rows are read
    tables = [
        _Opened(load_shards(part, argument, cache_dir, column), part, (), part) if part else None
        for part, argument in zip(files, ("train_files", "validation_files"), strict=True)
        if not (data_args.streaming and argument == "train_files")
    ]
    train = _Opened(open_shards(files[0], column), files[0]) if data_args.streaming else cast(_Opened, tables[0])
    return train, tables[-1]


def _open_folder(directory: str, text_column: str | None) -> _Opened:
    notes: list[str] = []
    table = load_image_folder(directory, notes, text_column)
    return _Opened(table, (), [f"{directory}: {note}" for note in notes])


def _find_files(data_args: DataArguments, cache_dir: str | None, token: str | None) -> tuple[list[str], list[str]]:
    """Return the shards of training, and those of evaluation, none where images are to be held out."""
    if data_args.train_files is not None:
        others = data_args.validation_files
        return find_shards(data_args.train_files), [] if others is None else find_shards(others, "validation_files")
    name, config_name = find_hub_name(str(data_args.dataset_name), data_args.dataset_config_name)
    splits = hub_shards(name, config_name, token, cache_dir)
    # the names in use on the Hub, in order of preference
    others = next((split for split in ("validation", "valid", "val", "test") if split in splits), None)
    if "train" not in splits or others is None:
        raise ValueError(
            f"To stream the data set {name!r} takes a split `train` and a split `validation` or `test`, it has "
            f"{', '.join(sorted(splits))}. Without `--streaming` some of `train` is held out."
        )
    return splits["train"], splits[others]


def _cells_of(rows: Dataset | ShardedRows, column: str, extremes_suffice: bool = False) -> Cells:
    """Return the distinct cells of a column of labels."""
    if isinstance(rows, ShardedRows):
        return rows.cells_of(column, extremes_suffice)
    return count_cells(read_column(rows, column))


def _name_columns(opened: _Opened, split: str, data_args: DataArguments) -> Dataset | ShardedRows:
    """Return rows whose columns of images and classes have the names that the arguments give them."""
    rows = opened.rows
    image, label = data_args.image_column_name, data_args.label_column_name
    for found, name in (
        (_find_image_column(rows.features, image), image),
        (Labels.find_column(rows.features, label), label),
    ):
        rows = rows if found == name else rows.rename_column(found, name)
    # a stream keeps images undecoded, since its shuffle buffer holds a thousand of them
    if image in rows.features and _holds_encoded_images(rows.features[image]):
        # written by something else than `datasets`, whose files declare their images
        try:
            rows = rows.cast_column(image, Image(decode=not isinstance(rows, ShardedRows)))
        except ValueError:  # `datasets` casts all columns, and names no row
            labels = Labels.from_feature(rows.features.get(label))
            if labels is not None:
                StoredImages(rows, split, labels, opened.files).check_labels(label)
            raise
    check_columns(rows, image_column_name=image, label_column_name=label)
    return rows


def _find_image_column(features: Features, wanted: str) -> str:
    """Return the column of images: the given one, or the only one where `image` is no column."""
    found = [name for name, feature in features.items() if isinstance(feature, Image) and "mask" not in name]
    # a default is a guess that the data may correct; a given name is not
    return found[0] if wanted == "image" and wanted not in features and len(found) == 1 else wanted


def _holds_encoded_images(feature: Any) -> bool:
    """Return whether a column holds the bytes of files, bare or as `datasets` stores images."""
    if isinstance(feature, dict):
        # of null type where all images are named by their paths
        is_bytes = "bytes" in feature and (
            _holds_encoded_images(feature["bytes"]) or feature["bytes"] == Value("null")
        )
        return is_bytes and set(feature) <= {"bytes", "path"}
    return isinstance(feature, Value) and "binary" in feature.dtype


def check_columns(rows: Dataset | ShardedRows, **columns: str) -> None:
    """Raise if a column, given by argument name, is missing, or one that should hold images holds something else."""
    for argument, column in columns.items():
        if column not in rows.column_names:
            raise ValueError(
                f"`--{argument} {column}` is not a column of the data, which has {', '.join(rows.column_names)}. "
                f"Pass `--{argument}` with one of these."
            )
        if argument.startswith("image") and not isinstance(rows.features[column], Image):
            raise ValueError(
                f"The column {column!r} does not hold images, but {rows.features[column]}. Expected the bytes of "
                "image files, bare or as `bytes` next to their `path`. Paths alone become images by `datasets`: "
                f"`table.cast_column({column!r}, datasets.Image()).to_parquet(...)`."
            )
