# SPDX-License-Identifier: Apache-2.0
"""Write an ICE model with its classes and preprocessing as one ONNX file."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import PreTrainedModel

from ..conversion import PREPROCESSING_FIELDS
from ..ice_deit.configuration_ice_deit import as_pair
from ..ice_deit.patch_maps import grid_size
from ..inference import check_exportable, checked_size, processed_size, require, write_onnx


__all__ = ["export_onnx"]


def export_onnx(
    model: PreTrainedModel,
    file: str | os.PathLike,
    image_processor: Any,
    image_size: int | Sequence[int] | None = None,
    source: str | None = None,
) -> Path:
    """Write an ICE model as an ONNX file.

    Args:
        model: `IceDeiTForImageClassification` (or the segmentation class, whose `logits` are a map) in float32, with
            or without a pruning strategy. Restored afterwards.
        file: Where to write; missing folders are made. From 1.8 GB on, the weights are in a second file next to it.
        image_processor: The one that belongs to the model; its settings go into the metadata. Must make images of the
            exported size.
        image_size: Side, or (height, width), in pixels, that the file takes; `None` is what the image processor makes,
            which may be another size than that of the configuration after fine-tuning.
        source: Where the model comes from, for the metadata; `None` is the name it was loaded by, without the folders
            above it where that is a path of this machine.

    Returns:
        The path of the file. Its input is `pixel_values`, `(batch_size, num_channels, height, width)`, float32; its
        outputs are those of the model named in `OUTPUT_NAMES`, with any `batch_size`. Of a multi-label model the
        metadata hold `object_thresholds`, the score from which each class counts as found.

    Raises:
        ValueError: If the model is no ICE classifier or not in float32, the size is not one of whole patches or not
            what the image processor makes, or a package of the extra `export` is not installed.
    """
    for package in ("onnx", "onnxscript"):
        require(package)
    check_exportable(model)
    size = checked_size(model.config, processed_size(image_processor) if image_size is None else image_size)
    _check_processor(image_processor, size)
    return write_onnx(model, file, size, _metadata(model, image_processor, size, source))


def _check_processor(image_processor: Any, image_size: tuple[int, int]) -> None:
    """Refuse a processor whose images do not have the exported size, whatever the size of the original."""
    # neither the size nor the ratio of the exported images
    blank = Image.new("RGB", (image_size[1] * 2, image_size[0] * 3))
    made = tuple(image_processor([blank], return_tensors="pt")["pixel_values"].shape[2:])
    if made != image_size:
        raise ValueError(
            f"`image_processor` must make images of the exported size {image_size}, got {made} from an image of "
            f"{blank.height} x {blank.width}. Load it with "
            f'`size={{"height": {image_size[0]}, "width": {image_size[1]}}}, do_center_crop=False`; on the command '
            f"line pass `--image_size {image_size[0]} {image_size[1]}`."
        )


def _metadata(
    model: PreTrainedModel, image_processor: Any, image_size: tuple[int, int], source: str | None
) -> dict[str, str]:
    config: Any = model.config
    name = source or model.name_or_path or ""
    settings = image_processor.to_dict()
    values = {
        "source": Path(name).name if source is None and Path(name).is_absolute() else name,
        "id2label": config.id2label,
        "background_index": config.background_index,
        "image_size": image_size,
        "grid_size": grid_size(image_size, as_pair(config.patch_size)),
        "num_hidden_layers": config.num_hidden_layers,
        "logits_source": config.logits_source,
        "pruning_strategy": config.pruning_strategy,
        "pruning_schedule": config.pruning_schedule,
        **{key: settings.get(key) for key in PREPROCESSING_FIELDS},
    }
    if config.problem_type == "multi_label_classification":
        values["object_thresholds"] = config.object_thresholds or [0.5] * config.num_labels
    return {key: json.dumps(value) for key, value in values.items()}
