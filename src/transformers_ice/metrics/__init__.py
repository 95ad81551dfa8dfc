# SPDX-License-Identifier: Apache-2.0
"""Metrics: `evaluate.Metric`s over arrays, blind to the model, usable without a network."""

from .classification import TopKAccuracy
from .segmentation import ForegroundSegmentation


__all__ = ["ForegroundSegmentation", "TopKAccuracy"]
