# SPDX-License-Identifier: Apache-2.0
"""SmoothQuant: activations of even magnitude before their linear maps are rounded to 8 bits.

A few channels of a ViT are many times as large as the others (more than 20 times the median in DINOv2), and one scale
for all then leaves the others a few of the 127 steps. Dividing each channel of the activations by a factor, and
multiplying the weights that read it by the same, changes nothing in float32. The factors are those of Xiao et al.,
"SmoothQuant" (ICML 2023), equation 4.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np


__all__ = ["linear_maps", "smooth_activations"]

_STRENGTH = 0.75
"""How much of the unevenness goes to the weights, in [0, 1]; docs/results/speed.md says what it was chosen on."""

_SMALLEST = 1e-5


def linear_maps(model: Any) -> list[Any]:
    """Return the nodes of an ONNX model that multiply by a weight matrix, without the products inside attention."""
    matrices = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 2}
    return [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm") and node.input[1] in matrices]


def smooth_activations(onnx: Any, onnxruntime: Any, model: Any, batches: Iterable[np.ndarray]) -> None:
    """Even out the activations that the linear maps of an ONNX model read, in place.

    Args:
        onnx: The package.
        onnxruntime: The package.
        model: Model proto in float32, whose input is `pixel_values`.
        batches: Calibration images, pixel values `(batch_size, num_channels, height, width)`.
    """
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    readers = defaultdict(list)  # by the name of the activations, the linear maps that read them
    for node in linear_maps(model):
        readers[node.input[0]].append(node)
    largest = _largest_of_channels(onnx, onnxruntime, model, list(readers), batches)
    # a weight that several maps share would be multiplied twice
    uses = [node.input[1] for nodes in readers.values() for node in nodes]
    for place, (name, nodes) in enumerate(readers.items()):
        if any(uses.count(node.input[1]) > 1 for node in nodes):
            continue
        arrays = [onnx.numpy_helper.to_array(weights[node.input[1]]) for node in nodes]
        arrays = [array.T if _is_transposed(node) else array for node, array in zip(nodes, arrays, strict=True)]
        of_weights = np.max([np.abs(array).max(axis=1) for array in arrays], axis=0)
        factors = _factors(largest[name], of_weights)
        for node, array in zip(nodes, arrays, strict=True):
            scaled = array * factors[:, None]
            tensor = onnx.numpy_helper.from_array(scaled.T if _is_transposed(node) else scaled, node.input[1])
            weights[node.input[1]].CopyFrom(tensor)
            node.input[0] = f"smooth_{place}"
        graph.initializer.append(onnx.numpy_helper.from_array(1 / factors, f"smooth_{place}_factors"))
        division = onnx.helper.make_node("Mul", [name, f"smooth_{place}_factors"], [f"smooth_{place}"])
        position = next(index for index, node in enumerate(graph.node) if node == nodes[0])
        graph.node.insert(position, division)


def _factors(of_activations: np.ndarray, of_weights: np.ndarray) -> np.ndarray:
    """Return by what each channel of the activations is divided, from the largest magnitudes."""
    activations, weights = (np.maximum(array, _SMALLEST) for array in (of_activations, of_weights))
    factors = activations**_STRENGTH / weights ** (1 - _STRENGTH)
    return np.where(of_activations > 0, factors, 1).astype(np.float32)


def _is_transposed(node: Any) -> bool:
    """Return whether the weight of a linear map is (outputs, inputs)."""
    return any(attribute.name == "transB" and attribute.i for attribute in node.attribute)


def _largest_of_channels(
    onnx: Any, onnxruntime: Any, model: Any, names: list[str], batches: Iterable[np.ndarray]
) -> dict[str, np.ndarray]:
    """Return the largest magnitude of each channel, the last axis, of activations by name."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    largest: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "watched.onnx"
        onnx.save(watched, file, save_as_external_data=True)  # which a model of any size can have
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        for batch in batches:
            for name, values in zip(names, session.run(names, {"pixel_values": batch}), strict=True):
                found = np.abs(values).reshape(-1, values.shape[-1]).max(axis=0)
                largest[name] = np.maximum(largest.get(name, 0), found)
    return largest
