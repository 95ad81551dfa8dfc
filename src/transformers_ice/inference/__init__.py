# SPDX-License-Identifier: Apache-2.0
"""Fast inference: a model as ONNX Runtime, OpenVINO or a compiled graph, called as before.

`optimize_for_inference` chooses by what the machine has. `write_onnx` and `quantize_int8` write the files;
`transformers_ice.export` adds classes and preprocessing to them.
"""

from ..hardware import has_fast_bfloat16
from .onnx_file import (
    OUTPUT_NAMES,
    check_exportable,
    checked_size,
    processed_size,
    quantize_int8,
    require,
    write_onnx,
)
from .onnx_model import OnnxModel
from .optimization import BACKENDS, PRECISIONS, Optimization, choose_optimization, optimize_for_inference
from .sessions import RUNTIMES, is_installed


__all__ = [
    "BACKENDS",
    "OUTPUT_NAMES",
    "PRECISIONS",
    "RUNTIMES",
    "OnnxModel",
    "Optimization",
    "check_exportable",
    "checked_size",
    "choose_optimization",
    "has_fast_bfloat16",
    "is_installed",
    "optimize_for_inference",
    "processed_size",
    "quantize_int8",
    "require",
    "write_onnx",
]
