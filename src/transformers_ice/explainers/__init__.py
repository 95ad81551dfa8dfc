# SPDX-License-Identifier: Apache-2.0
"""Explainers: one relevance value per patch, from ICE's own patch head or from a baseline on any DeiT or ViT."""

from .inspection import evaluation_mode
from .registry import EXPLAINERS, HARD_EXPLAINERS, explain


__all__ = ["EXPLAINERS", "HARD_EXPLAINERS", "evaluation_mode", "explain"]
