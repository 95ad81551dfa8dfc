# SPDX-License-Identifier: Apache-2.0
"""From an undecoded image to the pixels of the model's input, and which images cannot be decoded."""

from __future__ import annotations

import os
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from datasets.utils.logging import get_logger
from PIL import Image

from ...ice_deit.image_conversion import convert_to_rgb, load_image
from ..augmentation.image_augmentation import TrainingAugmentation


__all__ = ["BadImage", "PixelReader", "find_bad_images", "input_size", "read_error", "remove_bad_images"]

logger = get_logger(__name__)

_CHECK_BATCH = 1024


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
        """Return one image as a uint8 tensor `(height, width, 3)`.

        Args:
            record: Path and bytes.
            seed: Seed of the augmentation.

        Raises:
            ValueError: If the image cannot be read.
        """
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

    Raises:
        ValueError: If the processor keeps the proportions of each image, so that a batch cannot be stacked.
    """
    size = image_processor.crop_size if image_processor.do_center_crop else image_processor.size
    if not size["height"] or not size["width"]:
        raise ValueError(
            f"The image processor must give all images one size, got {size} without a crop. Pass `--image_size`."
        )
    return size["height"], size["width"]


@dataclass(frozen=True)
class BadImage:
    """An image that cannot be read.

    Args:
        row: Its row in the table.
        path: Its file, or the name the table gives it.
        error: Why it cannot be read.
    """

    row: int
    path: str
    error: str


def find_bad_images(table: Dataset, column: str, num_threads: int | None = None) -> list[BadImage]:
    """Decode every image of a table once and return those that cannot be read.

    Args:
        table: A table.
        column: Column of images.
        num_threads: Threads that decode; by default one per core.

    Returns:
        The bad ones in the order of their rows: no image, empty, truncated, of an unknown format, missing.
    """
    records = table.select_columns([column]).cast_column(column, ImageFeature(decode=False))
    bad = []
    with ThreadPoolExecutor(num_threads or os.cpu_count()) as pool:
        for start in range(0, len(records), _CHECK_BATCH):
            batch = records[start : start + _CHECK_BATCH][column]
            for row, (record, error) in enumerate(zip(batch, pool.map(read_error, batch), strict=True), start):
                if error is not None:
                    bad.append(BadImage(row, str((record or {}).get("path") or f"row {row}"), error))
    return bad


def read_error(record: dict[str, Any] | None) -> str | None:
    """Return why an undecoded image cannot be read, or None if it can."""
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
    """Return a table without unreadable images, or stop because of them.

    Args:
        table: A table.
        column: Column of images.
        on_bad_image: "stop" raises and lists them; "skip" removes them with a warning that lists them.
        num_threads: Threads that decode; by default one per core.

    Raises:
        ValueError: If there are bad images under "stop", or no image remains under "skip". It lists their paths.
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
