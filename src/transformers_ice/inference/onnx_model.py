# SPDX-License-Identifier: Apache-2.0
"""An exported file as a function from pixels to outputs."""

from __future__ import annotations

import json
import os

import numpy as np
import torch
from torch import Tensor

from .onnx_file import OUTPUT_NAMES, require
from .sessions import open_session


__all__ = ["OnnxModel"]


class OnnxModel:
    """Exported `file` that runs on the CPU, by the `runtime` "onnxruntime" or "openvino".

    `precision` "bfloat16" is OpenVINO's, on a processor that has it; `None` threads are as many as torch has.

    Attributes:
        metadata: Metadata of the file, decoded from JSON.
        image_size: Height and width that it takes.

    Raises:
        ValueError: If the runtime is not installed, or the file is no ONNX file.
    """

    def __init__(
        self,
        file: str | os.PathLike,
        runtime: str = "onnxruntime",
        precision: str = "float32",
        num_threads: int | None = None,
    ) -> None:
        self._session = open_session(file, runtime, precision, num_threads)
        # weights of large models lie in a file of their own, and are not needed here
        model = require("onnx").load(file, load_external_data=False)
        properties = {entry.key: entry.value for entry in model.metadata_props}
        self.metadata = {name: json.loads(value) for name, value in properties.items() if not name.startswith("onnx.")}
        height, width = (dimension.dim_value for dimension in model.graph.input[0].type.tensor_type.shape.dim[2:])
        self.image_size: tuple[int, int] = (height, width)

    def __call__(self, pixel_values: Tensor) -> dict[str, np.ndarray]:
        """Return the outputs by name for `(batch_size, num_channels, height, width)`.

        Raises:
            ValueError: If the images have another size than the file takes.
        """
        if pixel_values.dim() != 4 or tuple(pixel_values.shape[2:]) != self.image_size:
            height, width = self.image_size
            raise ValueError(
                f"This file takes `pixel_values` of {height} x {width} pixels, got shape {tuple(pixel_values.shape)}. "
                "Resize the images, or export with another `image_size`."
            )
        # the file takes float32 from the CPU
        arrays = self._session(pixel_values.float().cpu().contiguous().numpy(), OUTPUT_NAMES)
        return dict(zip(OUTPUT_NAMES, arrays, strict=True))

    def outputs(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Return the outputs in the form that the `post_process_*` methods of `IceDeiTImageProcessor` take.

        Tensors by name, `grid_size` among them and, of a multi-label model, `object_thresholds`; the same objects as
        those of the PyTorch model follow from them. Arguments and errors as for the call.
        """
        outputs = {name: torch.from_numpy(array) for name, array in self(pixel_values).items()}
        number = len(pixel_values)
        outputs["grid_size"] = torch.tensor(self.metadata["grid_size"]).expand(number, -1)
        if "object_thresholds" in self.metadata:
            outputs["object_thresholds"] = torch.tensor(self.metadata["object_thresholds"]).expand(number, -1)
        return outputs
