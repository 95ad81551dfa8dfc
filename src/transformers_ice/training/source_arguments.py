# SPDX-License-Identifier: Apache-2.0
"""Arguments of data that come in shards: which files, whether they are streamed, what their classes are called."""

from __future__ import annotations

from dataclasses import dataclass, field


__all__ = ["ShardArguments"]


@dataclass(kw_only=True)
class ShardArguments:
    """Which Parquet files or WebDataset tars to read, and how.

    Args:
        train_files: Pattern of training files, all `.parquet` or all `.tar`.
        validation_files: The same for evaluation.
        class_names_file: Text file with the name of class 0, of class 1, ... one a line.
        streaming: Whether training images are read from front to back rather than from a table on the disk.
        shuffle_buffer_size: Undecoded rows that each reader of a stream shuffles.
        check_only: Whether the data are checked and nothing is trained.
    """

    train_files: str | None = field(
        default=None, metadata={"help": 'Training files, .parquet or .tar (WebDataset): "shards/train-*.parquet".'}
    )
    validation_files: str | None = field(default=None, metadata={"help": "Evaluation files, .parquet or .tar."})
    class_names_file: str | None = field(
        default=None, metadata={"help": "Text file with the name of class 0, of class 1, ... one a line."}
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read training files from front to back, without a copy as a table."}
    )
    shuffle_buffer_size: int = field(
        default=1000, metadata={"help": "Undecoded rows that each reader of a stream shuffles; 1: none, in order."}
    )
    check_only: bool = field(
        default=False, metadata={"help": "Check the data, print counts and faults, and end without training."}
    )

    def check_shards(self, dataset_name: str | None, max_train_samples: int | None, on_bad_image: str) -> None:
        """Check the values against each other and against what else names or limits the data.

        Raises:
            ValueError: Saying what does not go together.
        """
        if self.validation_files is not None and self.train_files is None:
            raise ValueError(f"`--validation_files {self.validation_files}` needs `--train_files` beside it.")
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
                "`--streaming true` needs `--validation_files` beside `--train_files`: nothing can be held out of a "
                "stream. Name some of the shards there, and not in `--train_files`."
            )
        if max_train_samples is not None:
            raise ValueError("`--max_train_samples` cannot be had with `--streaming true`: name fewer files.")
        if on_bad_image == "skip":
            raise ValueError(
                "`--on_bad_image skip` cannot be had with `--streaming true`: the length would not be known. "
                "`--check_only true` lists the images that cannot be read."
            )
