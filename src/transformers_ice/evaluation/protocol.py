# SPDX-License-Identifier: Apache-2.0
"""The settings on which a score depends, in one place; they are stored with every result."""

from __future__ import annotations

from dataclasses import dataclass

from .metrics import LOCALIZATION_PROTOCOLS


__all__ = ["Protocol"]


@dataclass(frozen=True)
class Protocol:
    """Settings of the scoring of explanations.

    Args:
        paper_compat: Repeat three quirks of the published evaluation, to compare with numbers made by it: images are
            normalised with mean and deviation 0.5 and resized bilinearly (segmentation), an image whose patches are
            all foreground counts as all background (segmentation), and void pixels count in the union (Jaccard).
        image_size: Side of the square input in pixels; `None` takes that of the image processor. The Jaccard protocol
            of PASCAL VOC uses 512 for patches of 16 pixels.
        localization_rule: Rules for GT-known, Top-1 and Top-5 Loc, by code base: "wsolevaluation", "tscam" or "sat".
        box_threshold: Threshold of the maps for GT-known, Top-1 and Top-5 Loc, relative to the map's maximum;
            `None` takes that of the rule; "wsolevaluation" has none: half the maximum is used there.
        threshold_step: Step of the swept thresholds of MaxBoxAcc, in (0, 1).
        attention_mass: Fraction of a soft map's sum inside its mask under the Jaccard protocol, in (0, 1].
        perturbation_target: Class whose map ranks the pixels: "predicted" or "true".
        num_insertion_steps: Steps of insertion and deletion after the starting point.
        seed: Seed for ties between equally relevant pixels, and for the stochastic explainers.

    Raises:
        ValueError: If a number is out of range or a choice unknown.
    """

    paper_compat: bool = False
    image_size: int | None = None
    localization_rule: str = "wsolevaluation"
    box_threshold: float | None = None
    threshold_step: float = 0.01
    attention_mass: float = 0.9
    perturbation_target: str = "predicted"
    num_insertion_steps: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if self.perturbation_target not in ("predicted", "true"):
            raise ValueError(f"`perturbation_target` must be 'predicted' or 'true', got {self.perturbation_target!r}.")
        if self.localization_rule not in LOCALIZATION_PROTOCOLS:
            raise ValueError(
                f"`localization_rule` must be one of {', '.join(LOCALIZATION_PROTOCOLS)}, "
                f"got {self.localization_rule!r}."
            )
        if self.box_threshold is not None and not 0 <= self.box_threshold < 1:
            raise ValueError(f"`box_threshold` must lie in [0, 1), got {self.box_threshold}.")
        if self.seed < 0:
            raise ValueError(f"`seed` must be at least 0, got {self.seed}.")
        if not 0 < self.attention_mass <= 1:
            raise ValueError(f"`attention_mass` must lie in (0, 1], got {self.attention_mass}.")
        if not 0 < self.threshold_step < 1:
            raise ValueError(f"`threshold_step` must lie in (0, 1), got {self.threshold_step}.")
        if self.num_insertion_steps < 1:
            raise ValueError(f"`num_insertion_steps` must be at least 1, got {self.num_insertion_steps}.")
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"`image_size` must be positive, got {self.image_size}.")

    @property
    def effective_box_threshold(self) -> float | None:
        """The threshold of GT-known and Top-k Loc; `None` is that of the rule."""
        return 0.5 if self.box_threshold is None and self.localization_rule == "wsolevaluation" else self.box_threshold
