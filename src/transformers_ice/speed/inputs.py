# SPDX-License-Identifier: Apache-2.0
"""The model and the images of a benchmark, as its arguments name them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import cast

import torch
from PIL import Image
from torch import Tensor

from ..console.command_line import parse_config_overrides
from ..data.scenes import draw_scene
from ..ice_deit.configuration_ice_deit import IceDeiTConfig, as_pair
from ..ice_deit.image_conversion import IMAGE_ENDINGS, load_image
from ..ice_deit.image_processing_ice_deit import IceDeiTImageProcessor
from ..ice_deit.modeling_ice_deit import IceDeiTForImageClassification
from ..ice_deit.token_pruning import AttentivenessStrategy
from ..model_names import resolve_model_name
from .arguments import BenchmarkArguments
from .keep_counts import counts_from_shares, draw_keep_shares, read_keep_shares
from .speed import Workload


__all__ = ["load_model", "load_workload"]

# DeiT-S/16 of Touvron et al., "Training data-efficient image transformers", ICML 2021
_DEIT_S = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536, "num_labels": 1000}


def load_model(arguments: BenchmarkArguments, device: torch.device | None = None) -> IceDeiTForImageClassification:
    """Return the classifier to time, on a device, in float32 and evaluation mode.

    Its strategy is "background"; "attentiveness" for a checkpoint without trained pruning heads, unless the numbers of
    patches to keep are prescribed: then heads of random weights do.

    Raises:
        ValueError: If there is no such folder, or no model is named and no numbers are prescribed.
        OSError: If the Hub has no such model, or cannot be reached.
    """
    fields = {**parse_config_overrides(arguments.config_overrides), "pruning_strategy": "background"}
    unknown = set(fields) - {*IceDeiTConfig().to_dict(), "num_labels", "attn_implementation"}
    if unknown:
        raise ValueError(f"An ICE model has no configuration field {', '.join(sorted(unknown))}.")
    torch.manual_seed(arguments.seed)
    if arguments.model_name_or_path is not None:
        load = partial(IceDeiTForImageClassification.from_pretrained, resolve_model_name(arguments.model_name_or_path))
        fields = {"fuse_pruned_tokens": False, **fields}
        try:
            model = load(initialize_pruning_heads=arguments.is_prescribed, **fields)
        except ValueError as error:
            if "no trained pruning heads" not in str(error):
                raise
            model = load(**{**fields, "pruning_strategy": AttentivenessStrategy.name})
    elif arguments.is_prescribed:
        model = IceDeiTForImageClassification(IceDeiTConfig(**{**_DEIT_S, **fields}))
    else:
        raise ValueError(
            "A model of random weights cannot recognize background. Prescribe how many patches are kept by "
            "`--keep_beta MEAN DEVIATION` or `--keep_counts FILE`, or pass a trained `--model_name_or_path` and "
            "images."
        )
    return model.eval().to(device=device, dtype=torch.float32)


def load_workload(arguments: BenchmarkArguments, model: IceDeiTForImageClassification) -> Workload:
    """Return the images, on the device of the model and in float32, and the prescribed numbers, if any.

    Without a source the images are noise, and the numbers of patches to keep must be prescribed.

    Raises:
        ValueError: If there are no images where they are needed, or the numbers do not fit the model.
    """
    pixel_values = _load_pixels(arguments, model.config).to(model.device)
    if not arguments.is_prescribed:
        return Workload(pixel_values)
    num_images, num_layers = len(pixel_values), len(model.config.pruning_layers or ())
    if arguments.keep_counts is not None:
        read = [read_keep_shares(file, num_layers) for file in arguments.keep_counts]
        drawn = [shares[[index % len(shares) for index in range(num_images)]] for shares in read]
    else:
        mean, deviation = cast(list[float], arguments.keep_beta)
        drawn = [draw_keep_shares(mean, deviation, num_images, num_layers, arguments.seed)]
    rows, columns = model.deit.embeddings.grid_size_of(pixel_values)
    counts = [torch.from_numpy(counts_from_shares(rates, rows * columns)).to(model.device) for rates in drawn]
    return Workload(pixel_values, dict(zip(arguments.decided_names, counts, strict=True)))


def _load_pixels(arguments: BenchmarkArguments, config: IceDeiTConfig) -> Tensor:
    """Return `(num_images, num_channels, height, width)`, float32."""
    height, width = as_pair(config.image_size)
    images: list[Image.Image] = []
    if arguments.dataset_name is not None:
        scenes = (draw_scene(index, "test", (height, width)) for index in range(arguments.num_images))
        images = [Image.fromarray(scene.image) for scene in scenes]
    elif arguments.data_dir is not None:
        images = [load_image(file) for file in _find_images(Path(arguments.data_dir))[: arguments.num_images]]
    elif arguments.is_prescribed:
        shape = (arguments.num_images, config.num_channels, height, width)
        return torch.randn(shape, generator=torch.Generator().manual_seed(arguments.seed))
    else:
        raise ValueError(
            "A model that decides which patches it keeps needs images: `--dataset_name scenes` or `--data_dir`."
        )
    name = arguments.model_name_or_path
    if name is None:
        processor = IceDeiTImageProcessor(size={"height": height, "width": width})
    else:
        processor = IceDeiTImageProcessor.from_pretrained(name, do_convert_rgb=True)
    return processor(images, return_tensors="pt")["pixel_values"]


def _find_images(folder: Path) -> list[Path]:
    """Return the files below a folder whose extension is that of an image, sorted."""
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_ENDINGS)
    if not files:
        raise ValueError(f"`data_dir` must be a folder with image files, and {folder} holds none.")
    return files
