# SPDX-License-Identifier: Apache-2.0
"""Labelled images to train and evaluate on: folders, Hub data sets, shards and streams.

To be read in this order: `cells`, `labels`, `named_sets`, `arguments`, `pixels`, the readers `folders`, `shards`,
`streams`, the data sets `tables` and `streamed_images`, then `loading`, which uses them all, and `check`.
"""

from .arguments import DataArguments
from .check import DataReport, check_data
from .labels import Labels
from .loading import ImageTables, build_data_sets, load_image_tables, load_images
from .streamed_images import StreamedImages
from .tables import LabelledImages


__all__ = [
    "DataArguments",
    "DataReport",
    "ImageTables",
    "LabelledImages",
    "Labels",
    "StreamedImages",
    "build_data_sets",
    "check_data",
    "load_image_tables",
    "load_images",
]
