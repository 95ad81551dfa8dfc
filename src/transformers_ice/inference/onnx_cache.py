# SPDX-License-Identifier: Apache-2.0
"""Exported files that later processes find again: an export takes much longer than reading its file."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import constants
from torch import Tensor
from transformers import PreTrainedModel

from ..ice_deit import remote_code
from .onnx_file import quantize_int8, write_onnx


__all__ = ["exported_file"]

logger = logging.getLogger(__name__)

_WRITERS = ("onnx_file.py", "smoothing.py")


@contextmanager
def exported_file(
    model: PreTrainedModel,
    image_size: tuple[int, int],
    output_names: Sequence[str],
    int8: bool = False,
    cache_dir: str | os.PathLike | None = None,
    calibration_images: Tensor | None = None,
) -> Iterator[Path]:
    """Yield the ONNX file of a model, exported unless an earlier call left it.

    Args:
        model: An ICE classifier in float32.
        image_size: Height and width in pixels.
        output_names: Outputs of the model that the file returns.
        int8: Whether the weights of the linear maps have 8 bits.
        cache_dir: Folder in which files are kept, by what they depend on: weights, configuration, size, versions.
            `None` is `transformers-ice` in the cache of the Hub (`HF_HOME`). Where it cannot be written, the file
            lives as long as the block.
        calibration_images: Of an int8 file, as for `quantize_int8`.
    """
    folder = Path(cache_dir) if cache_dir is not None else Path(constants.HF_HOME) / "transformers-ice"
    ending = "-int8" if int8 else ""
    if calibration_images is not None:
        values = calibration_images.detach().float().cpu().contiguous()
        ending = f"-int8-{hashlib.sha256(values.numpy().tobytes()).hexdigest()[:16]}"
    name = f"{_fingerprint(model, image_size, output_names)}{ending}.onnx"
    if (folder / name).is_file():
        yield folder / name
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_writable = os.access(folder, os.W_OK)
    except OSError:
        is_writable = False
    if is_writable:
        yield _export(model, folder / name, image_size, output_names, int8, calibration_images)
        return
    logger.warning("The exported model is not kept: %s cannot be written. Set HF_HOME or pass `cache_dir`.", folder)
    with tempfile.TemporaryDirectory() as temporary:
        yield _export(model, Path(temporary) / name, image_size, output_names, int8, calibration_images)


def _export(
    model: PreTrainedModel,
    file: Path,
    image_size: tuple[int, int],
    output_names: Sequence[str],
    int8: bool,
    calibration_images: Tensor | None,
) -> Path:
    if not int8:
        return write_onnx(model, file, image_size, output_names=output_names)
    # a float32 file that an earlier call left may be damaged, so it is not read
    with tempfile.TemporaryDirectory() as temporary:
        plain = write_onnx(model, Path(temporary) / "float32.onnx", image_size, output_names=output_names)
        return quantize_int8(plain, file, calibration_images)


def _fingerprint(model: PreTrainedModel, image_size: tuple[int, int], output_names: Sequence[str]) -> str:
    """Return a hash of everything that an exported file depends on."""
    config = {key: value for key, value in model.config.to_dict().items() if not key.startswith("_")}
    folder, here = Path(remote_code.__file__).parent, Path(__file__).parent
    code = [*(folder / name for name in remote_code.remote_code_files()), *(here / name for name in _WRITERS)]
    versions = [torch.__version__, *(file.read_text("utf-8") for file in code)]
    digest = hashlib.sha256(
        json.dumps([type(model).__name__, config, image_size, list(output_names), versions], default=str).encode()
    )
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy())
    return digest.hexdigest()[:32]
