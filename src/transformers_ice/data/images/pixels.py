# SPDX-License-Identifier: Apache-2.0
"""From an undecoded image to the pixels of the model's input, and which images cannot be decoded."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from datasets.utils.logging import get_logger
from PIL import Image

from ...ice_deit.image_conversion import convert_to_rgb, load_image
from ..augmentation.image_augmentation import TrainingAugmentation


__all__ = ["BadImage", "PixelReader", "find_bad_images", "input_size", "read_errors", "remove_bad_images"]

logger = get_logger(__name__)

_AT_ONCE = 1024  # undecoded images that are held in memory while they are decoded


class PixelReader:
    """Reader from an undecoded image to the pixels of the model's input, with or without augmentation.

    Args:
        image_processor: Source of the input size, and of the whole geometry without augmentation.
        augmentation: Augmentation of the images; `None` resizes and crops them as `image_processor` does.
    """

    def __init__(self, image_processor: Any, augmentation: TrainingAugmentation | None = None) -> None:
        self.image_processor, self.augmentation = image_processor, augmentation
        self.input_size = input_size(image_processor)

    def __call__(self, record: dict[str, Any], seed: str) -> torch.Tensor:
        """Return an image of path and bytes as a uint8 tensor `(height, width, 3)`; `ValueError` if unreadable."""
        # transparent pixels get the mean colour, which is 0 after the normalisation
        image = convert_to_rgb(load_image(record), backdrop=self.image_processor.image_mean)
        image = self._resize(image) if self.augmentation is None else self.augmentation(image, random.Random(seed))
        return torch.from_numpy(np.array(image))

    def _resize(self, image: Image.Image) -> Image.Image:
        """Resize and crop an RGB image as the image processor does."""
        if not self.image_processor.do_center_crop and image.size == self.input_size[::-1]:
            return image
        pixels = self.image_processor(image, do_rescale=False, do_normalize=False)["pixel_values"][0]
        # (channels, height, width) -> (height, width, channels)
        return Image.fromarray(np.moveaxis(np.asarray(pixels), 0, -1).round().clip(0, 255).astype(np.uint8))


def input_size(image_processor: Any) -> tuple[int, int]:
    """Return height and width of the pixels that an image processor makes.

    Raises `ValueError` if it keeps the proportions of each image, so that a batch cannot be stacked.
    """
    size = image_processor.crop_size if image_processor.do_center_crop else image_processor.size
    if not size["height"] or not size["width"]:
        raise ValueError(
            f"The image processor must give all images one size, got {size} without a crop. Pass `--image_size`."
        )
    return size["height"], size["width"]


@dataclass(frozen=True)
class BadImage:
    """Row of a table whose image cannot be read, its file (or the name the table gives it), and the reason."""

    row: int
    path: str
    error: str


def find_bad_images(table: Dataset, column: str, num_threads: int | None = None) -> list[BadImage]:
    """Decode every image of a table once and return those that cannot be read, in the order of their rows."""
    rows = table.select_columns([column]).cast_column(column, ImageFeature(decode=False))
    records = (record for batch in rows.iter(_AT_ONCE) for record in batch[column])
    return [
        BadImage(row, str((record or {}).get("path") or f"row {row}"), error)
        for row, (record, error) in enumerate(read_errors(((record, record) for record in records), num_threads))
        if error is not None
    ]


def read_errors(
    records: Iterable[tuple[Any, dict[str, Any] | None]], num_threads: int | None = None
) -> Iterator[tuple[Any, str | None]]:
    """Yield the key of each undecoded image, and why it cannot be read: empty, truncated, missing ..., or None."""
    records = iter(records)
    # threads suffice: PIL releases the GIL while it decodes
    with ThreadPoolExecutor(num_threads or os.cpu_count()) as pool:
        while batch := list(islice(records, _AT_ONCE)):
            errors = pool.map(_read_error, [record for _, record in batch])
            yield from zip([key for key, _ in batch], errors, strict=True)


def _read_error(record: dict[str, Any] | None) -> str | None:
    if record is None:
        return "there is no image"
    try:
        convert_to_rgb(load_image(record))
    except ValueError as error:
        # the cause alone: the caller adds the path
        return str(error.__cause__ or error)
    return None


def remove_bad_images(
    table: Dataset, column: str, on_bad_image: Literal["stop", "skip"] = "stop", num_threads: int | None = None
) -> Dataset:
    """Return a table without its unreadable images and warn of them ("skip"), or stop because of them.

    Raises `ValueError` if there are bad images under "stop", or no image remains under "skip". It lists their paths.
    """
    bad = find_bad_images(table, column, num_threads)
    if not bad:
        return table
    listing = "\n".join(f"  {image.path}: {image.error}" for image in bad)
    if on_bad_image == "stop" or len(bad) == len(table):
        raise ValueError(
            f"{len(bad)} of {len(table)} images cannot be read:\n{listing}\n"
            "Repair or remove them, or pass `--on_bad_image skip` to train without them."
        )
    logger.warning(f"Skipping {len(bad)} of {len(table)} images that cannot be read:\n{listing}")
    rows = {image.row for image in bad}
    return table.select([row for row in range(len(table)) if row not in rows])
