# SPDX-License-Identifier: Apache-2.0
"""Random erasing, mixup, cutmix and label smoothing: what DeiT does to a batch of normalised images.

Every random number comes from the seeds that the rows of the batch carry (`AUGMENTATION_SEED`: seed, epoch and row),
so that the same rows give the same batch, in any worker, process or resumed run.

Sources: Zhong et al., "Random erasing data augmentation" (2020); Zhang et al., "mixup" (2018); Yun et al., "CutMix"
(2019); Szegedy et al., "Rethinking the Inception architecture" (2016), section 7, for label smoothing; the numbers and
their interplay are those of timm (`random_erasing.py`, `mixup.py`, mode "batch") as DeiT calls it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .collator import ImageCollator


__all__ = [
    "AUGMENTATION_SEED",
    "AugmentingCollator",
    "BatchMixing",
    "RandomErasing",
    "draw_cut_box",
    "mix_targets",
    "smooth_labels",
]

AUGMENTATION_SEED = "augmentation_seed"
"""Key under which a row of a batch carries the seed of its random numbers, a text."""

_ERASING_ATTEMPTS = 10  # as timm

Box = tuple[int, int, int, int]
"""`(top, left, bottom, right)` in pixels, half-open."""


@dataclass(frozen=True)
class RandomErasing:
    """Random erasing: a random box of a normalised image is filled with normal noise, drawn per pixel and channel.

    Args:
        probability: Probability that a box of an image is erased, in [0, 1] (DeiT: 0.25).
        area: Smallest and largest fraction of the image that the box covers.
        ratio: Smallest height / width of the box, in (0, 1]; the largest is its inverse.
    """

    probability: float = 0.25
    area: tuple[float, float] = (0.02, 1 / 3)  # timm's default, as the next
    ratio: float = 0.3

    def __call__(self, pixels: Tensor, generator: random.Random) -> Tensor:
        """Erase in place, in normalised pixels `(channels, height, width)`, and return them."""
        if generator.random() >= self.probability:
            return pixels
        box = self.draw_box(pixels.shape[1], pixels.shape[2], generator)
        if box is not None:
            top, left, bottom, right = box
            # torch draws the noise, seeded by the generator of the row
            noise = torch.Generator().manual_seed(generator.getrandbits(63))
            shape = (pixels.shape[0], bottom - top, right - left)
            pixels[:, top:bottom, left:right] = torch.randn(shape, generator=noise, dtype=pixels.dtype)
        return pixels

    def draw_box(self, height: int, width: int, generator: random.Random) -> Box | None:
        """Draw a box smaller than an image of `height` x `width` pixels; `None` where ten draws do not fit."""
        limit = -math.log(self.ratio)  # the aspect is drawn evenly in its logarithm, from -limit to limit
        for _ in range(_ERASING_ATTEMPTS):
            area = generator.uniform(*self.area) * height * width  # in pixels
            aspect = math.exp(generator.uniform(-limit, limit))
            box_height, box_width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < box_height < height and 0 < box_width < width:
                top, left = generator.randint(0, height - box_height), generator.randint(0, width - box_width)
                return top, left, top + box_height, left + box_width
        return None


def smooth_labels(labels: Tensor, num_labels: int, smoothing: float) -> Tensor:
    """Return targets `(batch_size, num_labels)` in which `smoothing` of each label is spread.

    Of class indices `(batch_size,)` it is spread over all classes. Of multi-hot rows `(batch_size, num_labels)` each
    class is a question of its own with two answers: an entry t becomes `t * (1 - smoothing) + smoothing / 2`.
    """
    if labels.dim() == 2:
        return labels * (1 - smoothing) + smoothing / 2
    targets = torch.full((len(labels), num_labels), smoothing / num_labels)  # of every class but the true one
    # (batch,) -> (batch, num_labels)
    return targets.scatter_(1, labels.unsqueeze(1), 1 - smoothing + smoothing / num_labels)


def mix_targets(targets: Tensor, fraction: float) -> Tensor:
    """Return `fraction` of each row plus the rest of its partner, the row at the same distance from the other end."""
    return targets * fraction + targets.flip(0) * (1 - fraction)


def draw_cut_box(height: int, width: int, fraction: float, generator: random.Random) -> Box:
    """Draw the box of cutmix that keeps `fraction` of an image, around a centre drawn evenly from all pixels.

    It has the image's proportions, and is clipped at the border, so that it may cover less than `1 - fraction`.
    """
    # both sides shrink alike: their product is 1 - fraction of the area
    side = math.sqrt(1 - fraction)
    box_height, box_width = int(height * side), int(width * side)
    centre_y, centre_x = generator.randrange(height), generator.randrange(width)
    top, left = centre_y - box_height // 2, centre_x - box_width // 2
    bottom, right = centre_y + box_height // 2, centre_x + box_width // 2
    return max(top, 0), max(left, 0), min(bottom, height), min(right, width)


@dataclass(frozen=True)
class BatchMixing:
    """Mixup or cutmix of a batch, with one fraction for all its images (timm: mode "batch").

    Image i is mixed with image `batch_size - 1 - i`. The middle image of an odd batch is unchanged.

    Args:
        mixup_alpha: Parameter of the beta distribution of the fraction in mixup; 0 disables it (DeiT: 0.8).
        cutmix_alpha: The same for cutmix (DeiT: 1.0).
        switch_probability: Probability of cutmix where both are enabled, in [0, 1] (DeiT: 0.5).
        probability: Probability that a batch is mixed, in [0, 1] (DeiT: 1).
    """

    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    switch_probability: float = 0.5
    probability: float = 1.0

    @property
    def is_active(self) -> bool:
        """Whether any batch is mixed."""
        return (self.mixup_alpha > 0 or self.cutmix_alpha > 0) and self.probability > 0

    def __call__(self, pixels: Tensor, targets: Tensor, generator: random.Random) -> tuple[Tensor, Tensor]:
        """Mix `(batch_size, channels, height, width)` in place, and targets `(batch_size, num_labels)`; return both.

        The targets of cutmix follow the clipped area of the box.
        """
        if not self.is_active or generator.random() >= self.probability:
            return pixels, targets
        use_cutmix = self._draw_cutmix(generator)
        alpha = self.cutmix_alpha if use_cutmix else self.mixup_alpha
        fraction = generator.betavariate(alpha, alpha)  # in [0, 1], for the whole batch
        if not use_cutmix:
            # a copy first, since the pixels are then changed in place
            partners = pixels.flip(0).mul_(1 - fraction)
            return pixels.mul_(fraction).add_(partners), mix_targets(targets, fraction)
        height, width = pixels.shape[2:]  # (batch, channels, height, width)
        top, left, bottom, right = draw_cut_box(height, width, fraction, generator)
        # `flip` makes a copy, so no row takes what was already mixed
        pixels[:, :, top:bottom, left:right] = pixels.flip(0)[:, :, top:bottom, left:right]
        # the fraction of the pixels outside the clipped box
        return pixels, mix_targets(targets, 1 - (bottom - top) * (right - left) / (height * width))

    def _draw_cutmix(self, generator: random.Random) -> bool:
        """Return whether the batch gets cutmix rather than mixup."""
        if self.mixup_alpha > 0 and self.cutmix_alpha > 0:
            return generator.random() < self.switch_probability
        return self.cutmix_alpha > 0


@dataclass(frozen=True)
class AugmentingCollator:
    """Collator of training batches: stack and normalise, erase, smooth the labels, mix.

    Args:
        collator: Collator that stacks and normalises.
        num_labels: Number of classes.
        erasing: Random erasing of single images.
        mixing: Mixup and cutmix of the batch.
        label_smoothing: Fraction of a label that is spread evenly over all classes, in [0, 1); see `smooth_labels`.
    """

    collator: ImageCollator
    num_labels: int
    erasing: RandomErasing = field(default_factory=lambda: RandomErasing(0.0))
    mixing: BatchMixing = field(default_factory=BatchMixing)
    label_smoothing: float = 0.0

    @property
    def makes_soft_labels(self) -> bool:
        """Whether class indices come out as `(batch_size, num_labels)`; multi-hot labels do so in any case."""
        return self.mixing.is_active or self.label_smoothing > 0

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Return a batch.

        Args:
            features: As for the collator, each with `AUGMENTATION_SEED`.

        Returns:
            `pixel_values`, float32 `(batch_size, 3, height, width)`, and `labels`: float32 `(batch_size, num_labels)`
            where they are soft or multi-hot, else int64 `(batch_size,)`.
        """
        seeds = [feature[AUGMENTATION_SEED] for feature in features]
        batch = self.collator(features)
        if self.erasing.probability > 0:
            # one generator per image: erasing does not depend on the other rows of the batch
            for pixels, seed in zip(batch["pixel_values"], seeds, strict=True):
                self.erasing(pixels, random.Random(f"{seed} erasing"))
        if self.makes_soft_labels:
            targets = smooth_labels(batch["labels"], self.num_labels, self.label_smoothing)
            # mixing is drawn once per batch, so it takes the seeds of all its rows
            generator = random.Random(" ".join([*seeds, "mixing"]))
            batch["pixel_values"], batch["labels"] = self.mixing(batch["pixel_values"], targets, generator)
        return batch
