# SPDX-License-Identifier: Apache-2.0
"""Arguments of the training recipe: augmentation, mixed batches, averaged weights, layer-wise rates, distillation.

Bases of `DataArguments` and `IceTrainingArguments`, so that a command line has one place for each. What is `None` here
is off, unless `--augmentation deit` asks for DeiT's numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from .rand_augment import DEIT_POLICY, parse_rand_augment


__all__ = ["DEIT_AUGMENTATION", "AugmentationArguments", "RecipeArguments"]

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

_NO_AUGMENTATION: dict[str, Any] = {
    "random_resized_crop_scale": [0.6, 1.0],
    "rand_augment": "none",
    "color_jitter": 0.0,
    "random_erasing_prob": 0.0,
    "mixup_alpha": 0.0,
    "cutmix_alpha": 0.0,
    "label_smoothing": 0.0,
}


@dataclass(kw_only=True)
class AugmentationArguments:
    """How training images and batches are varied.

    Args:
        augmentation: "none", "flip", "crop_flip", or "deit": crop, flip, and the numbers of `DEIT_AUGMENTATION` for
            all arguments below that are not given.
        random_resized_crop_scale: Smallest and largest share of the image area a random crop covers.
        random_resized_crop_ratio: Smallest and largest width / height of a random crop.
        rand_augment: Policy of `parse_rand_augment`, or "none".
        color_jitter: Strength of `jitter_colors`; without effect where there is a RandAugment policy, as in timm.
        random_erasing_prob: Share of the images that lose a box, in [0, 1].
        mixup_alpha: See `BatchMixing`; 0 is off.
        cutmix_alpha: See `BatchMixing`; 0 is off.
        mixup_switch_prob: See `BatchMixing`.
        mixup_prob: See `BatchMixing`.
        label_smoothing: Share of a label that is spread over all classes, in [0, 1).

    Raises:
        ValueError: If a number is out of its range, or a policy cannot be read.
    """

    augmentation: Literal["none", "flip", "crop_flip", "deit"] = field(
        default="crop_flip",
        metadata={"help": "none, flip (left-right), crop_flip (random crop and flip), or deit (all of it)."},
    )
    random_resized_crop_scale: list[float] | None = field(
        default=None,
        metadata={
            "help": "Smallest and largest share of the image that a random crop covers: 0.6 1, or 0.08 1 with deit."
        },
    )
    random_resized_crop_ratio: list[float] = field(
        default_factory=lambda: [3 / 4, 4 / 3], metadata={"help": "Smallest and largest width / height of a crop."}
    )
    rand_augment: str | None = field(
        default=None, metadata={"help": f"RandAugment policy as timm writes it, e.g. {DEIT_POLICY} (deit), or none."}
    )
    color_jitter: float | None = field(
        default=None, metadata={"help": "Strength of brightness, contrast and saturation; not beside RandAugment."}
    )
    random_erasing_prob: float | None = field(
        default=None, metadata={"help": "Share of the images of which a box is filled with noise (deit: 0.25)."}
    )
    mixup_alpha: float | None = field(default=None, metadata={"help": "Alpha of mixup, 0 is off (deit: 0.8)."})
    cutmix_alpha: float | None = field(default=None, metadata={"help": "Alpha of cutmix, 0 is off (deit: 1)."})
    mixup_switch_prob: float = field(default=0.5, metadata={"help": "Share of cutmix where there are both."})
    mixup_prob: float = field(default=1.0, metadata={"help": "Share of the batches that are mixed."})
    label_smoothing: float | None = field(
        default=None, metadata={"help": "Share of a label that is spread over all classes (deit: 0.1)."}
    )

    def fill_in_augmentation(self) -> None:
        """Give every argument that is `None` its number, and check them all."""
        defaults = DEIT_AUGMENTATION if self.augmentation == "deit" else _NO_AUGMENTATION
        for name, value in defaults.items():
            if getattr(self, name) is None:
                setattr(self, name, list(value) if isinstance(value, list) else value)
        for name in ("random_erasing_prob", "mixup_switch_prob", "mixup_prob"):
            _check_number(name, getattr(self, name), "in [0, 1]", 0 <= getattr(self, name) <= 1)
        for name in ("color_jitter", "mixup_alpha", "cutmix_alpha"):
            _check_number(name, getattr(self, name), "at least 0", 0 <= getattr(self, name) < float("inf"))
        smoothing = self.label_smoothing or 0.0
        _check_number("label_smoothing", smoothing, "in [0, 1)", 0 <= smoothing < 1)
        if self.rand_augment not in (None, "none"):
            parse_rand_augment(str(self.rand_augment))


@dataclass(kw_only=True)
class RecipeArguments:
    """How the weights are trained, beyond `TrainingArguments`.

    Args:
        ema_decay: Decay of the moving average of the weights, in (0, 1) (DeiT: 0.99996); `None` is without.
        layer_decay: Factor on the learning rate from one layer to the one below, in (0, 1]; 1 is without.
        repeated_augmentation: How often an image comes in an epoch, which then shows as many fewer images (DeiT: 3).
        teacher_model_name_or_path: Classifier to learn from.
        distillation_type: "none", "soft" or "hard".
        distillation_alpha: Weight of the teacher, in [0, 1].
        distillation_tau: Temperature of "soft", > 0.

    Raises:
        ValueError: If a number is out of its range, or teacher and `distillation_type` do not go together.
    """

    ema_decay: float | None = field(
        default=None,
        metadata={"help": "Average the weights with this decay, and evaluate and save the average (DeiT: 0.99996)."},
    )
    layer_decay: float = field(
        default=1.0, metadata={"help": "Factor on the learning rate from a layer to the one below (BEiT: 0.65)."}
    )
    repeated_augmentation: int = field(
        default=1, metadata={"help": "Show each image of an epoch this often, and as many fewer images (DeiT: 3)."}
    )
    teacher_model_name_or_path: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of a classifier of the same classes to learn from."}
    )
    distillation_type: Literal["none", "soft", "hard"] = field(
        default="none", metadata={"help": "Learn the teacher's distribution (soft) or its best class (hard)."}
    )
    distillation_alpha: float = field(default=0.5, metadata={"help": "Weight of the teacher in the loss."})
    distillation_tau: float = field(default=1.0, metadata={"help": "Temperature of soft distillation."})

    def check_recipe(self) -> None:
        """Check every argument, alone and against the others."""
        if self.ema_decay is not None:
            _check_number("ema_decay", self.ema_decay, "in (0, 1)", 0 < self.ema_decay < 1)
        _check_number("layer_decay", self.layer_decay, "in (0, 1]", 0 < self.layer_decay <= 1)
        _check_number(
            "repeated_augmentation", self.repeated_augmentation, "at least 1", self.repeated_augmentation >= 1
        )
        _check_number("distillation_alpha", self.distillation_alpha, "in [0, 1]", 0 <= self.distillation_alpha <= 1)
        _check_number("distillation_tau", self.distillation_tau, "above 0", 0 < self.distillation_tau < float("inf"))
        if (self.teacher_model_name_or_path is None) != (self.distillation_type == "none"):
            raise ValueError(
                "`--teacher_model_name_or_path` and `--distillation_type soft` (or hard) go together, got "
                f"{self.teacher_model_name_or_path!r} and {self.distillation_type!r}."
            )


def _check_number(name: str, value: float, expected: str, is_right: bool) -> None:
    """Raise unless `is_right`, which is False for nan."""
    if not is_right:
        raise ValueError(f"`{name}` must be {expected}, got {value}.")
