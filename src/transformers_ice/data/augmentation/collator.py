# SPDX-License-Identifier: Apache-2.0
"""Collation of a list of images to the input batch of a model.

Workers send images as bytes, and a whole batch is scaled and normalised here at once: one third of the memory traffic
and a fraction of the calls of doing it image by image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


__all__ = ["ImageCollator"]


class ImageCollator:
    """Collator that stacks images and labels, and normalises the pixels as the image processor would.

    A recipe that mixes images (mixup, cutmix) wraps this class: it takes the batch and returns the mixed pixels with
    soft labels `(batch_size, num_labels)`, which the models of this package accept.

    Args:
        image_mean: Mean of each channel, of pixels in [0, 1].
        image_std: Standard deviation of each channel, of pixels in [0, 1].
        rescale_factor: Factor from bytes to [0, 1].
    """

    def __init__(self, image_mean: Sequence[float], image_std: Sequence[float], rescale_factor: float = 1 / 255):
        mean = torch.tensor(image_mean, dtype=torch.float32).view(1, -1, 1, 1)
        std = torch.tensor(image_std, dtype=torch.float32).view(1, -1, 1, 1)
        # (x * rescale - mean) / std as one multiplication and one addition; both (1, channels, 1, 1)
        self.scale = rescale_factor / std
        self.shift = -mean / std

    @classmethod
    def from_image_processor(cls, image_processor: Any) -> ImageCollator:
        """Return the collator that does what `image_processor` does after its resize and crop."""
        mean = image_processor.image_mean if image_processor.do_normalize else (0.0, 0.0, 0.0)
        std = image_processor.image_std if image_processor.do_normalize else (1.0, 1.0, 1.0)
        return cls(mean, std, image_processor.rescale_factor if image_processor.do_rescale else 1.0)

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Return a batch.

        Args:
            features: Dictionaries with `pixel_values`, uint8 `(height, width, 3)`, and `labels`, an int, or for
                several classes an image a float row `(num_labels,)`.

        Returns:
            `pixel_values`, float32 `(batch_size, 3, height, width)`, and `labels`, int64 `(batch_size,)`; float32
            where they are floats, such as soft or multi-hot targets `(batch_size, num_labels)`.
        """
        pixels = torch.stack([feature["pixel_values"] for feature in features])
        # (batch, height, width, channels) -> (batch, channels, height, width)
        pixels = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        # class indices (batch,), or soft targets (batch, num_labels)
        labels = torch.stack([torch.as_tensor(feature["labels"]) for feature in features])
        # integers of any width: the losses of torch take int64 alone
        labels = labels.float() if labels.is_floating_point() else labels.long()
        # in place: `pixels` is a copy already, of the bytes of the workers
        return {"pixel_values": pixels.mul_(self.scale).add_(self.shift), "labels": labels}
