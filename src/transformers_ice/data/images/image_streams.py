# SPDX-License-Identifier: Apache-2.0
"""Where streamed training images come from, and what their classes are called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from datasets import ClassLabel, Dataset, Features
from transformers.utils import logging

from .arguments import DataArguments
from .class_columns import find_columns, read_class_names
from .folders import check_columns, encode_classes
from .shards import find_shards, hub_shards
from .streams import ShardedRows, label_names, open_shards
from .tables import ImageTables, load_image_tables, load_shard_table, name_columns, prepare_table


__all__ = ["load_image_streams", "load_images"]

logger = logging.get_logger(__name__)


def load_images(
    data_args: DataArguments,
    image_size: tuple[int, int],
    seed: int = 0,
    cache_dir: str | None = None,
    token: str | None = None,
) -> ImageTables:
    """Return what the arguments name: see `load_image_tables`, and with `streaming` `load_image_streams`."""
    if data_args.streaming:
        return load_image_streams(data_args, seed, cache_dir, token)
    return load_image_tables(data_args, image_size, seed, cache_dir, token)


def load_image_streams(
    data_args: DataArguments, seed: int = 0, cache_dir: str | None = None, token: str | None = None
) -> ImageTables:
    """Open the training images as a stream, and load the evaluation images as a table.

    Evaluation scores masks, draws panels and gathers the answers of all processes by row, and so has a table; it lies
    on the disk, not in memory.

    Args:
        data_args: Where they are.
        seed: Decides which evaluation images are used where only some are.
        cache_dir: Folder that keeps downloads and tables.
        token: Hub token.

    Raises:
        ValueError: If files, columns or classes are not as they should be.
    """
    train_files, evaluation_files = _find_files(data_args, cache_dir, token)
    train = _name_stream_columns(open_shards(train_files), data_args)
    class_names = _class_names(train, data_args)
    evaluation = name_columns(load_shard_table(evaluation_files, cache_dir, "validation_files"), data_args)
    evaluation = _encode_as(class_names, evaluation, data_args.label_column_name)
    return ImageTables(train, prepare_table(evaluation, data_args.max_eval_samples, data_args, seed), class_names)


def _find_files(data_args: DataArguments, cache_dir: str | None, token: str | None) -> tuple[list[str], list[str]]:
    """Return the files of training and of evaluation."""
    if data_args.train_files is not None:
        evaluation = find_shards(str(data_args.validation_files), "validation_files")
        return find_shards(data_args.train_files), evaluation
    name = str(data_args.dataset_name)
    splits = hub_shards(name, data_args.dataset_config_name, token, cache_dir)
    others = next((split for split in ("validation", "valid", "val", "test") if split in splits), None)
    if "train" not in splits or others is None:
        raise ValueError(
            f"To stream the data set {name!r} takes a split `train` and a split `validation` or `test`, it has "
            f"{', '.join(sorted(splits))}. Without `--streaming` some of `train` is held out."
        )
    return splits["train"], splits[others]


def _name_stream_columns(rows: ShardedRows, data_args: DataArguments) -> ShardedRows:
    """Return the two columns that training reads, under the names that the arguments give them."""
    wanted = (data_args.image_column_name, data_args.label_column_name)
    for found, name in zip(find_columns(rows.features, *wanted), wanted, strict=True):
        rows = rows if found == name else rows.rename_column(found, name)
    check_columns(rows, image_column_name=wanted[0], label_column_name=wanted[1])
    return rows.select_columns(wanted)


def _class_names(rows: ShardedRows, data_args: DataArguments) -> list[str]:
    """Return the names in a file, those the column declares, or the sorted values that are found."""
    column = data_args.label_column_name
    declared = label_names(rows, column)
    if data_args.class_names_file is not None:
        names = read_class_names(data_args.class_names_file)
        if declared is not None and len(declared) != len(names):
            raise ValueError(
                f"`--class_names_file` has {len(names)} names, the column {column!r} declares {len(declared)} classes."
            )
        return names
    if declared is not None:
        return declared
    logger.warning(
        f"Reading all training files once to find the classes in the column {column!r}; a `--class_names_file` "
        "spares this."
    )
    values = {_checked(value, column) for value in rows.values_of(column)}
    return [str(value) for value in sorted(values)]


def _checked(value: object, column: str) -> str | int:
    if not isinstance(value, str | int):
        raise ValueError(f"The column {column!r} must hold class names or numbers, got {value!r}.")
    return value


def _encode_as(names: Sequence[str], table: Dataset, column: str) -> Dataset:
    """Return the evaluation table with the classes of training."""
    like = Dataset.from_dict({column: []}, features=Features({column: ClassLabel(names=list(names))}))
    return cast(Dataset, encode_classes(like, table, column)[1])
