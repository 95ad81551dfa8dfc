# SPDX-License-Identifier: Apache-2.0
"""Metrics: `evaluate.Metric`s over arrays, independent of the model, without a network, over several processes."""

from .boxes import box_iou, contour_boxes, largest_component_box, normalize_score_map, resize_boxes
from .classification import TopKAccuracy
from .faithfulness import InsertionDeletionAuc, PerturbationAuc
from .localization import CorLoc, GridPointingGame, MaxBoxAccuracy, PointingGame
from .localization_protocols import LOCALIZATION_PROTOCOLS, LocalizationAccuracy, LocalizationProtocol
from .rows import MeanOf, RowMetric
from .segmentation import ForegroundAveragePrecision, ForegroundF1, ForegroundSegmentation, ObjectJaccard


__all__ = [
    "LOCALIZATION_PROTOCOLS",
    "CorLoc",
    "ForegroundAveragePrecision",
    "ForegroundF1",
    "ForegroundSegmentation",
    "GridPointingGame",
    "InsertionDeletionAuc",
    "LocalizationAccuracy",
    "LocalizationProtocol",
    "MaxBoxAccuracy",
    "MeanOf",
    "ObjectJaccard",
    "PerturbationAuc",
    "PointingGame",
    "RowMetric",
    "TopKAccuracy",
    "box_iou",
    "contour_boxes",
    "largest_component_box",
    "normalize_score_map",
    "resize_boxes",
]
