# SPDX-License-Identifier: Apache-2.0
"""The objectives that a run may train by: fields of `IceDeiTConfig`, set together under a name."""

from __future__ import annotations

from typing import Any

from ..ice_deit.configuration_ice_deit import ICE_FIELDS


__all__ = ["OBJECTIVES"]

# ours: patches are classified by their own part of the image, and [CLS] keeps its loss
_BALANCED: dict[str, Any] = {
    "background_loss_weight": 0.02,
    "background_logit_scale": 0.5,
    "min_foreground_ratio": 0.1,
    "max_foreground_ratio": 0.35,
    "cls_loss_weight": 1.0,
    "classification_loss_weight": 1.0,
    "foreground_pooling": "soft",
    "min_evidence_lead": 0.1,
    "candidate_label_loss_weight": 0.05,
    "position_loss_weight": 1.0,
    "max_common_map_share": 0.4,
    "num_local_windows": 2,
    "local_loss_weight": 1.0,
    "local_distillation_weight": 3.0,
    "local_image_share": 0.5,
    "local_feature_weight": 3.0,
    "local_appearance_weight": 2.0,
}

OBJECTIVES: dict[str, dict[str, Any]] = {
    # the defaults: Choi, Jin, Han, CVPR 2023, and `engine_ICE.py`; it has no windows, so nothing "local" to set
    "published": {name: ICE_FIELDS[name].default for name in _BALANCED if not name.startswith("local_")},
    "balanced": _BALANCED,
}
