# SPDX-License-Identifier: Apache-2.0
"""Labelled images to train and evaluate on: folders, Hub data sets, shards and streams, as tables of rows."""

from .arguments import DataArguments
from .check import DataReport, check_data
from .streamed_images import StreamedImages
from .tables import ImageTables, LabelledImages, load_image_tables


__all__ = [
    "DataArguments",
    "DataReport",
    "ImageTables",
    "LabelledImages",
    "StreamedImages",
    "check_data",
    "load_image_tables",
]
