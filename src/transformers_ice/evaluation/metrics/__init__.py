# SPDX-License-Identifier: Apache-2.0
"""Metrics: `evaluate.Metric`s over arrays, independent of the model, without a network, over several processes."""

from .boxes import box_iou, contour_boxes, largest_component_box, normalize_score_map, resize_boxes
from .class_regions import ClassCorLoc, ClassIou
from .classification import TopKAccuracy
from .faithfulness import InsertionDeletionAuc, PerturbationAuc
from .localization import CorLoc, GridPointingGame, MaxBoxAccuracy, PointingGame
from .localization_protocols import LOCALIZATION_PROTOCOLS, LocalizationAccuracy, LocalizationProtocol
from .multi_label import (
    MultiLabelAveragePrecision,
    MultiLabelF1,
    average_precisions,
    calibrate_thresholds,
    f1_scores,
)
from .rows import MeanOf, RowMetric
from .segmentation import ForegroundAveragePrecision, ForegroundF1, ForegroundSegmentation, ObjectJaccard


__all__ = [
    "LOCALIZATION_PROTOCOLS",
    "ClassCorLoc",
    "ClassIou",
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
    "MultiLabelAveragePrecision",
    "MultiLabelF1",
    "ObjectJaccard",
    "PerturbationAuc",
    "PointingGame",
    "RowMetric",
    "TopKAccuracy",
    "average_precisions",
    "box_iou",
    "calibrate_thresholds",
    "contour_boxes",
    "f1_scores",
    "largest_component_box",
    "normalize_score_map",
    "resize_boxes",
]
