# SPDX-License-Identifier: Apache-2.0
"""The settings on which a score depends, in one place; they are stored with every result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from .metrics import LOCALIZATION_PROTOCOLS


__all__ = ["MOSAIC_SETTINGS", "Protocol", "ProtocolArguments"]

MOSAIC_SETTINGS = frozenset({"mosaic_side", "num_mosaics", "cell_size"})
"""Settings on which the benchmark of mosaics alone depends."""


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Protocol:
    """Protocol by which explanations are scored.

    Args:
        paper_compat: Repeat four quirks of published evaluations, to compare with numbers made by them: images are
            normalised with mean and deviation 0.5 and resized bilinearly (segmentation), an image whose patches are
            all foreground counts as all background (segmentation), void pixels count in the union (Jaccard), and an
            empty map gets the box of the whole image (localization, rule "sat").
        image_size: Side of the square input in pixels; `None` takes that of the image processor. The Jaccard protocol
            of PASCAL VOC uses 512 for patches of 16 pixels.
        localization_rule: Rules for GT-known, Top-1 and Top-5 Loc, by code base: "wsolevaluation", "tscam" or "sat".
        box_threshold: Threshold of the maps for GT-known, Top-1 and Top-5 Loc, relative to the map's maximum, in
            [0, 1); `None` takes that of the rule; "wsolevaluation" has none: half the maximum is used there.
        threshold_step: Step of the swept thresholds of MaxBoxAcc, in (0, 1).
        attention_mass: Fraction of a soft map's sum inside its mask under the Jaccard protocol, in (0, 1].
        perturbation_target: Class whose map ranks the pixels: "predicted" or "true".
        num_insertion_steps: Steps of insertion and deletion after the starting point.
        mosaic_side: Cells along a side of a mosaic (grid pointing): 2 for 2 x 2 images.
        num_mosaics: Largest number of mosaics; fewer where the images do not reach.
        cell_size: "fit" for mosaics of about the model's input size, in whole patches; "full" for cells of that size,
            so that mosaics are `mosaic_side` times as high and wide.
        seed: Seed for ties between equally relevant pixels, for the stochastic explainers, and for the mosaics.

    Raises:
        ValueError: If a number is out of range or a choice unknown.
    """

    paper_compat: bool = _option(False, "Repeat the quirks of the published evaluation.")
    image_size: int | None = _option(None, "Side of the input; 512 is usual for jaccard.")
    localization_rule: Literal["wsolevaluation", "tscam", "sat"] = _option(
        "wsolevaluation", "Rules of GT-known, Top-1 and Top-5 Loc."
    )
    box_threshold: float | None = _option(None, "Threshold for GT-known and Top-k Loc; default: that of the rule.")
    threshold_step: float = _option(0.01, "Step of the thresholds of MaxBoxAcc.")
    attention_mass: float = _option(0.9, "Part of a soft map's sum in the jaccard mask.")
    perturbation_target: Literal["predicted", "true"] = _option(
        "predicted", "Class whose map ranks the pixels (faithfulness)."
    )
    num_insertion_steps: int = _option(10, "Steps of insertion and deletion.")
    mosaic_side: int = _option(2, "Cells along a side of a mosaic (grid_pointing).")
    num_mosaics: int = _option(500, "Largest number of mosaics (grid_pointing).")
    cell_size: Literal["fit", "full"] = _option(
        "fit", "Mosaics of about the model's input size, or with every cell at it (grid_pointing)."
    )
    seed: int = _option(0, "Seed of ties and of mosaics.")

    def __post_init__(self) -> None:
        rules = ", ".join(LOCALIZATION_PROTOCOLS)
        checks = {
            "perturbation_target": ("be 'predicted' or 'true'", self.perturbation_target in ("predicted", "true")),
            "localization_rule": (f"be one of {rules}", self.localization_rule in LOCALIZATION_PROTOCOLS),
            "box_threshold": ("lie in [0, 1)", self.box_threshold is None or 0 <= self.box_threshold < 1),
            "seed": ("be at least 0", self.seed >= 0),
            "attention_mass": ("lie in (0, 1]", 0 < self.attention_mass <= 1),
            "threshold_step": ("lie in (0, 1)", 0 < self.threshold_step < 1),
            "num_insertion_steps": ("be at least 1", self.num_insertion_steps >= 1),
            "mosaic_side": ("be at least 2", self.mosaic_side >= 2),
            "num_mosaics": ("be at least 1", self.num_mosaics >= 1),
            "cell_size": ("be 'fit' or 'full'", self.cell_size in ("fit", "full")),
            "image_size": ("be positive", self.image_size is None or self.image_size >= 1),
        }
        for name, (expected, is_right) in checks.items():
            if not is_right:
                raise ValueError(f"`{name}` must {expected}, got {getattr(self, name)!r}.")

    @property
    def effective_box_threshold(self) -> float | None:
        """The threshold of GT-known and Top-k Loc; `None` is that of the rule."""
        return 0.5 if self.box_threshold is None and self.localization_rule == "wsolevaluation" else self.box_threshold


ProtocolArguments = Protocol  # its fields are options of the command line
