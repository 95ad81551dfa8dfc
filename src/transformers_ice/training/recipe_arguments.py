# SPDX-License-Identifier: Apache-2.0
"""Arguments of the training recipe: averaged weights, layer-wise rates, repeated augmentation, distillation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ..console.command_line import check_number


__all__ = ["RecipeArguments"]


@dataclass(kw_only=True)
class RecipeArguments:
    """Options of the training recipe beyond `TrainingArguments`.

    Args:
        ema_decay: Decay of the moving average of the weights, in (0, 1) (DeiT: 0.99996); `None` averages nothing.
        layer_decay: Factor on the learning rate from one layer to the one below, in (0, 1]; 1 is no decay.
        repeated_augmentation: How often an image comes in an epoch, which then shows as many fewer images (DeiT: 3).
        teacher_model_name_or_path: Teacher of the distillation, a classifier of the same classes.
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
        default=None, metadata={"help": "Folder or Hub id of the teacher, a classifier of the same classes."}
    )
    distillation_type: Literal["none", "soft", "hard"] = field(
        default="none", metadata={"help": "Learn the teacher's distribution (soft) or its best class (hard)."}
    )
    distillation_alpha: float = field(default=0.5, metadata={"help": "Weight of the teacher in the loss."})
    distillation_tau: float = field(default=1.0, metadata={"help": "Temperature of soft distillation."})

    def check_recipe(self) -> None:
        """Check every argument by itself and against the others."""
        if self.ema_decay is not None:
            check_number("ema_decay", self.ema_decay, "in (0, 1)", 0 < self.ema_decay < 1)
        check_number("layer_decay", self.layer_decay, "in (0, 1]", 0 < self.layer_decay <= 1)
        check_number(
            "repeated_augmentation", self.repeated_augmentation, "at least 1", self.repeated_augmentation >= 1
        )
        check_number("distillation_alpha", self.distillation_alpha, "in [0, 1]", 0 <= self.distillation_alpha <= 1)
        check_number("distillation_tau", self.distillation_tau, "above 0", 0 < self.distillation_tau < float("inf"))
        if (self.teacher_model_name_or_path is None) != (self.distillation_type == "none"):
            raise ValueError(
                "`--teacher_model_name_or_path` and `--distillation_type soft` (or hard) go together, got "
                f"{self.teacher_model_name_or_path!r} and {self.distillation_type!r}."
            )
