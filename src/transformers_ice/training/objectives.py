# SPDX-License-Identifier: Apache-2.0
"""The objectives that a run may train by: fields of `IceDeiTConfig`, set together under a name."""

from __future__ import annotations

from typing import Any


__all__ = ["OBJECTIVES"]

OBJECTIVES: dict[str, dict[str, Any]] = {
    # Choi, Jin, Han, CVPR 2023, and `engine_ICE.py`, number for number
    "published": {
        "background_loss_weight": 0.025,
        "background_logit_scale": 0.5,
        "min_foreground_ratio": 0.1,
        "max_foreground_ratio": 1.0,
        "cls_loss_weight": 0.0,
        "classification_loss_weight": 1.0,
        "foreground_pooling": "hard",
        "candidate_label_loss_weight": 0.0,
        "num_local_windows": 0,
    },
    # ours: patches answer for what their own part of the image shows, and [CLS] keeps its loss
    "balanced": {
        "background_loss_weight": 0.02,
        "background_logit_scale": 0.5,
        "min_foreground_ratio": 0.1,
        "max_foreground_ratio": 0.7,
        "cls_loss_weight": 1.0,
        "classification_loss_weight": 1.0,
        "foreground_pooling": "soft",
        "candidate_label_loss_weight": 0.05,
        "num_local_windows": 2,
        "local_loss_weight": 1.0,
        "local_distillation_weight": 3.0,
        "local_image_share": 0.5,
        "local_appearance_weight": 2.0,
        "local_smoothing_steps": 4,
    },
}
