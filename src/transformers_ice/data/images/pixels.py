# SPDX-License-Identifier: Apache-2.0
"""From an undecoded image to the pixels of the model's input."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...ice_deit.image_conversion import convert_to_rgb, load_image
from ..augmentation.image_augmentation import TrainingAugmentation


__all__ = ["PixelReader", "input_size"]


class PixelReader:
    """Decode an image, vary it or only size it.

    Args:
        image_processor: Gives the size, and the whole geometry where there is no augmentation.
        augmentation: Varies the images; `None` resizes and crops them as `image_processor` does.
    """

    def __init__(self, image_processor: Any, augmentation: TrainingAugmentation | None = None) -> None:
        self.image_processor, self.augmentation = image_processor, augmentation
        self.input_size = input_size(image_processor)

    def __call__(self, record: dict[str, Any], seed: str) -> torch.Tensor:
        """Return one image as a uint8 tensor `(height, width, 3)`.

        Args:
            record: Path and bytes.
            seed: Of the random numbers of the augmentation.

        Raises:
            ValueError: If the image cannot be read.
        """
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
