# SPDX-License-Identifier: Apache-2.0
"""Arguments that name the images to train and evaluate on: image folders, a named or Hub data set, or shards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...console.command_line import check_number, check_range
from ..augmentation.arguments import AugmentationArguments, option
from .named_sets import NAMED_SETS


__all__ = ["DataArguments", "ShardArguments"]


@dataclass(kw_only=True)
class ShardArguments:
    """Which Parquet files or WebDataset tars to read, and how."""

    help_group = "shards"  # of its options in `--help`

    train_files: str | None = option(None, 'Training files, .parquet or .tar (WebDataset): "shards/train-*.parquet".')
    validation_files: str | None = option(None, "Evaluation files, .parquet or .tar.")
    class_names_file: str | None = option(None, "Text file with the name of class 0, of class 1, ... one a line.")
    streaming: bool = option(False, "Read training files from front to back, without a copy as a table.")
    shuffle_buffer_size: int = option(1000, "Undecoded rows that each reader of a stream shuffles; 1: none, in order.")
    check_only: bool = option(False, "Check the data, print counts and faults, and end without training.")

    def check_shards(self, dataset_name: str | None, max_train_samples: int | None, on_bad_image: str) -> None:
        """Raise `ValueError` if these arguments contradict each other, or what else names or limits the data."""
        if self.validation_files is not None and self.train_files is None:
            raise ValueError(f"`--validation_files {self.validation_files}` needs `--train_files` too.")
        if self.shuffle_buffer_size < 1:
            raise ValueError(f"`shuffle_buffer_size` must be at least 1, got {self.shuffle_buffer_size}.")
        if not self.streaming:
            return
        if self.train_files is None and dataset_name in (None, "scenes"):
            raise ValueError(
                "`--streaming true` needs `--train_files` (.parquet or .tar) or a `--dataset_name` of the Hub; scenes "
                "and image folders are read as tables."
            )
        if self.train_files is not None and self.validation_files is None:
            raise ValueError(
                "`--streaming true` needs `--validation_files` next to `--train_files`: nothing can be held out of a "
                "stream. Name some of the shards there, and not in `--train_files`."
            )
        if max_train_samples is not None:
            raise ValueError("`--max_train_samples` cannot be had with `--streaming true`: name fewer files.")
        if on_bad_image == "skip":
            raise ValueError(
                "`--on_bad_image skip` cannot be had with `--streaming true`: the length would not be known. "
                "`--check_only true` lists the images that cannot be read."
            )


@dataclass
class DataArguments(ShardArguments, AugmentationArguments):
    """Which images to train and evaluate on, and how training images are varied.

    Args:
        dataset_name: "scenes" (drawn by this package), "imagenette", "imagewoof" or "oxford-pets" (from `data_dir`,
            else from the Hub), "pascal-voc" or "coco" (from `data_dir`, several classes an image), or a data set id of
            the Hub.
        dataset_config_name: Configuration of the Hub data set; "several" for scenes with no object to three; the year
            of pascal-voc and coco.
        data_dir: Folder of the unpacked set of that name, as evaluation reads it.
        train_dir: Folder with one subfolder of images per class.
        validation_dir: The same for evaluation, with the same class names.
        train_val_split: Fraction of the training images held out where there is no validation set, in (0, 1).
        max_train_samples: Number of training images to use.
        max_eval_samples: Number of evaluation images to use.
        image_column_name: Column that holds the images.
        label_column_name: Column that holds the classes. A column of lists has several classes an image, or none.
        label_separator: What stands between the classes of an image in a column of texts, such as "|". Without it a
            text is the name of one class.
        mask_column_name: Column that holds foreground masks; used in evaluation only.
        image_size: Side of the (square) model input in pixels.
        on_bad_image: What to do about files that cannot be read.
        check_images: Whether every image is decoded once before training.
        num_proc: Processes that draw scenes, threads that check images.
        **kwargs: Shards (`train_files`, `validation_files`, `class_names_file`, `streaming`, `shuffle_buffer_size`),
            `check_only`, and the fields of `AugmentationArguments`.

    Raises:
        ValueError: If no data are named, or a folder and `dataset_name` are both given, or a range is not one.
    """

    dataset_name: str | None = option(
        None,
        "scenes (drawn here, no download), imagenette, imagewoof, oxford-pets, pascal-voc, coco, or an id of the Hub.",
    )
    dataset_config_name: str | None = option(
        None, "Configuration of the Hub data set; several (scenes), year (VOC, COCO)."
    )
    data_dir: str | None = option(None, "Folder of the unpacked set that `dataset_name` names; else the Hub's.")
    train_dir: str | None = option(None, "Folder of training images: one subfolder per class, named like the class.")
    validation_dir: str | None = option(None, "Folder of evaluation images, with the same subfolders as train_dir.")
    train_val_split: float = option(0.15, "Fraction of the training images held out if there is no validation set.")
    max_train_samples: int | None = option(None, "Use this many training images only.")
    max_eval_samples: int | None = option(None, "Use this many evaluation images only.")
    image_column_name: str = option("image", "Column that holds the images.")
    label_column_name: str = option("label", "Column that holds the classes; lists: several an image, or none.")
    label_separator: str | None = option(None, "What divides the classes of an image in a column of texts, e.g. |.")
    mask_column_name: str = option("mask", "Column of foreground masks, if there is one; used in evaluation only.")
    image_size: int | None = option(None, "Side of the model input in pixels; by default the model's own.")
    on_bad_image: Literal["stop", "skip"] = option(
        "stop", "Unreadable images: stop before training and list them, or skip them with a warning."
    )
    check_images: bool = option(True, "Decode every image once before training, to find unreadable ones.")
    num_proc: int | None = option(None, "Processes that draw scenes, or threads that check images.")

    def __post_init__(self) -> None:
        """Check the values against each other."""
        sources = (self.dataset_name, self.train_dir, self.train_files)
        if sum(source is not None for source in sources) != 1:
            raise ValueError(
                "Give either `--dataset_name` (scenes or a Hub id) or `--train_dir` (image folders) or "
                f"`--train_files` (.parquet or .tar), got {', '.join(map(repr, sources))}."
            )
        if self.data_dir is not None and (self.dataset_name not in NAMED_SETS or self.streaming):
            raise ValueError(
                f"`--data_dir {self.data_dir}` needs `--dataset_name` with one of {', '.join(NAMED_SETS)}, as tables "
                f"without `--streaming`, got {self.dataset_name!r}. Folders of classes are named by `--train_dir`."
            )
        if (
            self.dataset_name in NAMED_SETS
            and self.data_dir is None
            and NAMED_SETS[self.dataset_name].hub_name is None
        ):
            raise ValueError(
                f"`--dataset_name {self.dataset_name}` needs `--data_dir`: {NAMED_SETS[self.dataset_name].content}."
            )
        if self.label_separator is not None and not self.label_separator:
            raise ValueError("`--label_separator` must be a text such as |, got an empty one. Or remove the option.")
        if self.validation_dir is not None and self.train_dir is None:
            raise ValueError(f"`--validation_dir {self.validation_dir}` needs `--train_dir` too.")
        for name in ("max_train_samples", "max_eval_samples", "image_size", "num_proc"):
            value = getattr(self, name)
            if value is not None:
                check_number(name, value, "at least 1", value >= 1)
        self.check_shards(self.dataset_name, self.max_train_samples, self.on_bad_image)
        self.fill_in_augmentation()
        check_range("random_resized_crop_scale", self.random_resized_crop_scale, highest=1.0)
        check_range("random_resized_crop_ratio", self.random_resized_crop_ratio, highest=float("inf"))
        if not 0 < self.train_val_split < 1:
            raise ValueError(f"`train_val_split` must lie between 0 and 1, got {self.train_val_split}.")
