# SPDX-License-Identifier: Apache-2.0
"""ICE models as ONNX files that need neither this package nor torch, and a proof that the files predict the same.

A file takes any number of images of one size. It carries what a deployment needs, the names of the classes and the
preprocessing, in its `metadata_props`, each value as JSON. Explanations become annotations of labelling tools
(`AnnotationFiles`) or one page of HTML (`ExplanationPage`).
"""

from ..inference import OUTPUT_NAMES, OnnxModel, processed_size, quantize_int8
from .annotations import AnnotationFiles, encode_rle, trace_polygons
from .comparison import ExportScores, OnnxDifferences, compare_with_onnx, score_exports, time_exports
from .onnx_file import export_onnx
from .page import ExplanationPage


__all__ = [
    "OUTPUT_NAMES",
    "AnnotationFiles",
    "ExplanationPage",
    "ExportScores",
    "OnnxDifferences",
    "OnnxModel",
    "compare_with_onnx",
    "encode_rle",
    "export_onnx",
    "processed_size",
    "quantize_int8",
    "score_exports",
    "time_exports",
    "trace_polygons",
]
