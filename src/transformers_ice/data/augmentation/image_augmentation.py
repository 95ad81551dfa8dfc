# SPDX-License-Identifier: Apache-2.0
"""Random crops, flips and colours of one training image, in PIL, without torchvision.

The random numbers come from a generator that the caller seeds, so that an image looks the same whenever its seed is
the same, in whatever worker or process it is drawn.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageEnhance

from .rand_augment import RandAugment


__all__ = ["TrainingAugmentation", "jitter_colors", "random_crop_box"]

_CROP_ATTEMPTS = 10  # as torchvision


def random_crop_box(
    width: int, height: int, scale: Sequence[float], ratio: Sequence[float], generator: random.Random
) -> tuple[int, int, int, int]:
    """Draw the crop of a random resized crop: `(left, top, right, bottom)` in pixels, half-open.

    `scale` bounds the fraction of the area, `ratio` width / height, which is uniform in its logarithm. Source: Szegedy
    et al., "Going deeper with convolutions" (2015), section 6; attempts and fallback are those of torchvision.
    """
    log_ratio = (math.log(ratio[0]), math.log(ratio[1]))
    for _ in range(_CROP_ATTEMPTS):
        area = width * height * generator.uniform(*scale)  # in pixels
        aspect = math.exp(generator.uniform(*log_ratio))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            # both ends included
            left, top = generator.randint(0, width - crop_width), generator.randint(0, height - crop_height)
            return left, top, left + crop_width, top + crop_height
    # no draw fits: the largest centred crop, with the image's own ratio clipped to the range
    aspect = min(max(width / height, ratio[0]), ratio[1])
    crop_width = min(width, max(1, round(height * aspect)))
    crop_height = min(height, max(1, round(width / aspect)))
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height


def jitter_colors(image: Image.Image, strength: float, generator: random.Random) -> Image.Image:
    """Change brightness, contrast and saturation of an RGB image by factors around 1, in a random order."""
    enhancers = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color]
    generator.shuffle(enhancers)
    for enhancer in enhancers:
        image = enhancer(image).enhance(generator.uniform(max(0.0, 1 - strength), 1 + strength))
    return image


@dataclass(frozen=True)
class TrainingAugmentation:
    """Augmentation of one image: random crop resized to the model's input (bicubic), flip, then colours and shape.

    Args:
        size: Height and width of the result in pixels.
        crop: Whether to crop; otherwise the whole image is resized.
        flip_probability: Probability of a left-right flip, in [0, 1].
        scale: Smallest and largest fraction of the image area in a crop.
        ratio: Smallest and largest width / height of a crop.
        rand_augment: Applied after the flip.
        color_jitter: Strength of the change of colours, where there is no `rand_augment`: timm combines no two.
    """

    size: tuple[int, int]
    crop: bool = True
    flip_probability: float = 0.5
    scale: tuple[float, float] = (0.08, 1.0)  # of the area, as torchvision and timm
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    rand_augment: RandAugment | None = None
    color_jitter: float = 0.0

    def __call__(self, image: Image.Image, generator: random.Random) -> Image.Image:
        """Return the augmented RGB image of `size`."""
        height, width = self.size
        box = random_crop_box(*image.size, self.scale, self.ratio, generator) if self.crop else (0, 0, *image.size)
        # crop and resize in one step: no pixel is interpolated twice
        if box != (0, 0, width, height) or image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BICUBIC, box=box)
        if generator.random() < self.flip_probability:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.rand_augment is not None:
            return self.rand_augment(image, generator)
        return jitter_colors(image, self.color_jitter, generator) if self.color_jitter else image
