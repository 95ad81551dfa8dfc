# SPDX-License-Identifier: Apache-2.0
"""Augmentation of training images and batches: crops, RandAugment, color jitter, erasing, mixup, cutmix."""

from .arguments import AugmentationArguments, build_augmentation, build_train_collator
from .batch_augmentation import AugmentingCollator, BatchMixing, RandomErasing
from .collator import ImageCollator
from .image_augmentation import TrainingAugmentation
from .rand_augment import RandAugment, parse_rand_augment
from .repeated_augmentation import RepeatedAugmentationSampler


__all__ = [
    "AugmentationArguments",
    "AugmentingCollator",
    "BatchMixing",
    "ImageCollator",
    "RandAugment",
    "RandomErasing",
    "RepeatedAugmentationSampler",
    "TrainingAugmentation",
    "build_augmentation",
    "build_train_collator",
    "parse_rand_augment",
]
