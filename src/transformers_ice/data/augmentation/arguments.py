# SPDX-License-Identifier: Apache-2.0
"""Arguments of the augmentation, the numbers of DeiT, and the augmentation built from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ...console.command_line import check_number
from .batch_augmentation import AugmentingCollator, BatchMixing, RandomErasing
from .collator import ImageCollator
from .image_augmentation import TrainingAugmentation
from .rand_augment import DEIT_POLICY, parse_rand_augment


__all__ = ["DEIT_AUGMENTATION", "AugmentationArguments", "build_augmentation", "build_train_collator", "option"]

DEIT_AUGMENTATION: dict[str, Any] = {
    "random_resized_crop_scale": [0.08, 1.0],
    "rand_augment": DEIT_POLICY,
    "color_jitter": 0.4,
    "random_erasing_prob": 0.25,
    "mixup_alpha": 0.8,
    "cutmix_alpha": 1.0,
    "label_smoothing": 0.1,
}
"""What `--augmentation deit` fills in where an argument is not given (`main.py` of facebookresearch/deit, 2021)."""

_NO_AUGMENTATION: dict[str, Any] = dict.fromkeys(DEIT_AUGMENTATION, 0.0) | {
    "random_resized_crop_scale": [0.6, 1.0],
    "rand_augment": "none",
}


def option(default: Any, help: str) -> Any:
    """Return the field of an option with its line of `--help`."""
    return field(default=default, metadata={"help": help})


@dataclass(kw_only=True)
class AugmentationArguments:
    """Augmentation of training images and batches.

    Args:
        augmentation: "none", "flip", "crop_flip", or "deit": crop, flip, and the numbers of `DEIT_AUGMENTATION` for
            all arguments below that are not given.
        random_resized_crop_scale: Smallest and largest fraction of the image area a random crop covers.
        random_resized_crop_ratio: Smallest and largest width / height of a random crop.
        rand_augment: Policy of `parse_rand_augment`, or "none".
        color_jitter: Brightness, contrast and saturation change by factors in [1 - color_jitter, 1 + color_jitter];
            without effect where there is a RandAugment policy, as in timm.
        random_erasing_prob: Fraction of the images in which a box is erased, in [0, 1].
        mixup_alpha: See `BatchMixing`; 0 is off.
        cutmix_alpha: See `BatchMixing`; 0 is off.
        mixup_switch_prob: See `BatchMixing`.
        mixup_prob: See `BatchMixing`.
        label_smoothing: Fraction of a label that is spread over all classes, in [0, 1); with several classes an image,
            over present and absent of each class.

    Raises:
        ValueError: If a number is out of its range, or a policy cannot be read.
    """

    augmentation: Literal["none", "flip", "crop_flip", "deit"] = option(
        "crop_flip", "none, flip (left-right), crop_flip (random crop and flip), or deit (all of it)."
    )
    random_resized_crop_scale: list[float] | None = field(
        default=None,
        metadata={
            "help": "Smallest and largest fraction of the image that a random crop covers: 0.6 1, or 0.08 1 with deit."
        },
    )
    random_resized_crop_ratio: list[float] = field(
        default_factory=lambda: [3 / 4, 4 / 3], metadata={"help": "Smallest and largest width / height of a crop."}
    )
    rand_augment: str | None = option(
        None, "RandAugment policy as timm writes it, e.g. rand-m9-mstd0.5-inc1 (deit), or none."
    )
    color_jitter: float | None = option(None, "Strength of brightness, contrast and saturation; not with RandAugment.")
    random_erasing_prob: float | None = option(
        None, "Fraction of the images in which a box is filled with noise (deit: 0.25)."
    )
    mixup_alpha: float | None = option(None, "Alpha of mixup, 0 is off (deit: 0.8).")
    cutmix_alpha: float | None = option(None, "Alpha of cutmix, 0 is off (deit: 1).")
    mixup_switch_prob: float = option(0.5, "Probability of cutmix where both are enabled.")
    mixup_prob: float = option(1.0, "Fraction of the batches that are mixed.")
    label_smoothing: float | None = option(None, "Fraction of a label that is spread over all classes (deit: 0.1).")

    def fill_in_augmentation(self) -> None:
        """Set every argument that is `None` to its default, and check them all."""
        # `None` means "as the kind of augmentation has it", so that a single number can be changed
        defaults = DEIT_AUGMENTATION if self.augmentation == "deit" else _NO_AUGMENTATION
        for name, value in defaults.items():
            if getattr(self, name) is None:
                setattr(self, name, list(value) if isinstance(value, list) else value)
        for name in ("random_erasing_prob", "mixup_switch_prob", "mixup_prob"):
            check_number(name, getattr(self, name), "in [0, 1]", 0 <= getattr(self, name) <= 1)
        for name in ("color_jitter", "mixup_alpha", "cutmix_alpha"):
            check_number(name, getattr(self, name), "at least 0", 0 <= getattr(self, name) < float("inf"))
        smoothing = self.label_smoothing or 0.0
        check_number("label_smoothing", smoothing, "in [0, 1)", 0 <= smoothing < 1)
        if self.rand_augment not in (None, "none"):
            parse_rand_augment(str(self.rand_augment))


def build_augmentation(
    data_args: AugmentationArguments, size: tuple[int, int], image_mean: Sequence[float]
) -> TrainingAugmentation | None:
    """Return the augmentation of single training images, `None` where there is none.

    Args:
        data_args: Arguments of the augmentation.
        size: Height and width of the model's input.
        image_mean: Mean of each channel, of pixels in [0, 1], as fill colour.
    """
    # DeiT and timm use colour jitter only where there is no RandAugment
    policy, jitter = data_args.rand_augment, data_args.color_jitter or 0.0
    has_policy = policy not in (None, "none")
    if data_args.augmentation == "none" and not has_policy and not jitter:
        return None
    smallest, largest = data_args.random_resized_crop_scale or (0.08, 1.0)
    narrowest, widest = data_args.random_resized_crop_ratio
    return TrainingAugmentation(
        size,
        crop=data_args.augmentation in ("crop_flip", "deit"),
        flip_probability=0.0 if data_args.augmentation == "none" else 0.5,
        scale=(smallest, largest),
        ratio=(narrowest, widest),
        rand_augment=parse_rand_augment(str(policy), image_mean) if has_policy else None,
        color_jitter=jitter,
    )


def build_train_collator(
    data_args: AugmentationArguments, image_processor: Any, num_labels: int
) -> AugmentingCollator | None:
    """Return the collator that augments training batches, `None` where the collator of evaluation suffices.

    Args:
        data_args: Arguments of the augmentation.
        image_processor: Source of mean, standard deviation and rescale factor.
        num_labels: Number of classes.
    """
    mixing = BatchMixing(
        data_args.mixup_alpha or 0.0, data_args.cutmix_alpha or 0.0, data_args.mixup_switch_prob, data_args.mixup_prob
    )
    collator = AugmentingCollator(
        ImageCollator.from_image_processor(image_processor),
        num_labels,
        RandomErasing(data_args.random_erasing_prob or 0.0),
        mixing,
        data_args.label_smoothing or 0.0,
    )
    # class indices and no erasing: the plain collator does the same
    return collator if collator.makes_soft_labels or collator.erasing.probability else None
