# SPDX-License-Identifier: Apache-2.0
"""Repeated augmentation: fewer images in an epoch, each several times in different augmentations.

Source: Hoffer et al., "Augment your batch" (2020), and Berman et al., "MultiGrain" (2019); the order is that of DeiT's
`RASampler` (`samplers.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Sampler


__all__ = ["RepeatedAugmentationSampler"]

_WHOLE_BATCHES_OF = 256  # DeiT drops the rest of an epoch, modulo this number of images


class RepeatedAugmentationSampler(Sampler[int]):
    """Sampler of as many rows as there are images (rounded down as in DeiT), each image `num_repeats` times.

    So an epoch shows about `1 / num_repeats` of the images. Repeat k of image i is index i + k * number of images,
    which `LabelledImages` takes and gives other random numbers. The order depends on seed and epoch alone, so a
    resumed run continues it. It is the order of all processes together, which accelerate divides into batches.

    Equal to `RASampler`: repeats are neighbours, and in different processes where there are several; from 256
    images on an epoch is the largest multiple of 256. Different: the permutation of a seed, and that the last batch
    may be smaller (`dataloader_drop_last` as in DeiT drops it).

    Args:
        dataset: Training images; has a length, and `epoch`.
        num_repeats: Number of times each image occurs, at least 2.
        seed: Seed of the order.
        batch_size: Rows a process takes at once.
        num_processes: Number of processes.

    Raises:
        ValueError: If the data set cannot be repeated.
    """

    def __init__(
        self, dataset: Any, num_repeats: int = 3, seed: int = 0, batch_size: int = 1, num_processes: int = 1
    ) -> None:
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "epoch"):
            raise ValueError(
                f"`repeated_augmentation` needs images with a length and an epoch (`LabelledImages`), got a "
                f"{type(dataset).__name__}. Set it to 1 for streamed images."
            )
        self.dataset, self.num_repeats, self.seed = dataset, num_repeats, seed
        self.batch_size, self.num_processes = batch_size, num_processes

    def __len__(self) -> int:
        num_images = len(self.dataset)
        return num_images if num_images < _WHOLE_BATCHES_OF else num_images // _WHOLE_BATCHES_OF * _WHOLE_BATCHES_OF

    def __iter__(self) -> Iterator[int]:
        num_images = len(self.dataset)
        # an odd multiplier: no two epochs of a run share a seed, nor two runs of neighbouring seeds
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.dataset.epoch)
        # rounded up, so that the repeats fill the epoch
        images = torch.randperm(num_images, generator=generator)[: -(-len(self) // self.num_repeats)]
        # (num_repeats,), distance of a repeat's index from its image's
        repeats = torch.arange(self.num_repeats) * num_images
        # (images, repeats), flattened: the repeats of an image are neighbours
        order = (images.unsqueeze(1) + repeats).flatten()[: len(self)].tolist()
        yield from self._deal_to_processes(order)

    def _deal_to_processes(self, order: list[int]) -> list[int]:
        """Reorder rows so that neighbours go to different processes, at the same step, as `RASampler` deals them.

        accelerate gives whole batches to the processes in turn. The rows of an incomplete last block keep their place.
        """
        block = self.batch_size * self.num_processes
        dealt: list[int] = []
        for start in range(0, len(order) - block + 1, block):
            rows = order[start : start + block]
            # row i of the block goes to process i % num_processes
            dealt += [row for process in range(self.num_processes) for row in rows[process :: self.num_processes]]
        return dealt + order[len(dealt) :]
