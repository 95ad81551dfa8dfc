# SPDX-License-Identifier: Apache-2.0
"""Readers of evaluation sets with labels, masks or boxes, by name."""

from .examples import EvaluationSet, Example
from .mosaics import MosaicSet, plan_mosaics
from .registry import EVALUATION_SETS, EvaluationSource, load_evaluation_set


__all__ = [
    "EVALUATION_SETS",
    "EvaluationSet",
    "EvaluationSource",
    "Example",
    "MosaicSet",
    "load_evaluation_set",
    "plan_mosaics",
]
