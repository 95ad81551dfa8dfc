# SPDX-License-Identifier: Apache-2.0
"""Turn a checkpoint into a complete folder: files -> keys -> sizes -> model -> folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoImageProcessor
from transformers.image_utils import PILImageResampling

from ..console.json_files import read_json
from ..console.output_files import staged
from ..ice_deit.configuration_ice_deit import IceDeiTConfig, as_pair
from ..ice_deit.image_processing_ice_deit import IceDeiTImageProcessor
from ..ice_deit.modeling_ice_deit import IceDeiTForImageClassification
from ..ice_deit.source_families import SOURCE_FAMILIES
from ..ice_deit.weight_checks import some_names
from .files import read_checkpoint
from .keys import convert_keys, source_key
from .sizes import config_from_state_dict, read_sizes


__all__ = [
    "PREPROCESSING_FIELDS",
    "ConversionReport",
    "convert_checkpoint",
    "convert_state_dict",
    "read_id2label",
]

_MODEL_TYPES = (*SOURCE_FAMILIES, IceDeiTConfig.model_type)
_PATCH_HEAD = "deit.patch_head."
PREPROCESSING_FIELDS = (
    "do_resize",
    "size",
    "resample",
    "do_center_crop",
    "crop_size",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
)


@dataclass(frozen=True)
class ConversionReport:
    """Account of a conversion.

    Args:
        layout: Naming of the source, a key of `KEY_LAYOUTS`.
        num_source_keys: Tensors found.
        num_converted_keys: Tensors of the result that come from the source; a fused `qkv` becomes three.
        dropped_keys: Source name -> why it was dropped.
        initialized_keys: Tensors of the result that the source does not have; they hold random values.
        output_dir: Folder that was written, `None` if none was.
        sizes: What the configuration says of the model's shape.
        preprocessing: Mean, deviation, size, ... written beside the weights; `source` says where they are from.
    """

    layout: str
    num_source_keys: int
    num_converted_keys: int
    dropped_keys: dict[str, str]
    initialized_keys: tuple[str, ...] = ()
    output_dir: str | None = None
    sizes: dict[str, Any] | None = None
    preprocessing: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values, for JSON."""
        return {**asdict(self), "initialized_keys": list(self.initialized_keys)}


def convert_checkpoint(
    checkpoint: str | Path,
    output_dir: str | Path,
    *,
    num_attention_heads: int | None = None,
    image_size: int | list[int] | None = None,
    id2label: Mapping[int, str] | None = None,
    weights_key: str | None = None,
    overwrite_output_dir: bool = False,
) -> ConversionReport:
    """Convert a checkpoint into a folder for `AutoModelForImageClassification.from_pretrained`.

    The folder holds `config.json`, `model.safetensors` (float32), `preprocessor_config.json` and the code. It appears
    when all of it is written; bad input leaves nothing behind. Without a patch head in the source, one is initialised
    (the same in every run) and the model classifies by [CLS] as before, `logits_source="cls"`.

    Args:
        checkpoint: A weight file or a folder, as for `read_checkpoint`. The `config.json` and
            `preprocessor_config.json` of a folder are kept; a file gets ImageNet's mean and deviation and no crop.
        output_dir: Folder to write.
        num_attention_heads: Heads per layer. Weights do not show them: by default `hidden_size / 64`.
        image_size: Side in pixels, or [height, width]. By default read from the position embeddings as a square.
        id2label: Class names, 0 to `num_labels - 1`.
        weights_key: Entry of a training checkpoint, such as `"model_ema"`; by default `"model"`.
        overwrite_output_dir: Whether to write into a folder that holds files already.

    Returns:
        What became of every key.

    Raises:
        FileNotFoundError: If `checkpoint` is not there.
        FileExistsError: If `output_dir` holds files and `overwrite_output_dir` is off.
        ValueError: If the checkpoint cannot be read, is no ViT or DeiT, or contradicts itself or the arguments.
    """
    source, target = Path(checkpoint), Path(output_dir).resolve()
    _check_output_dir(source, target, overwrite_output_dir)
    base_config = _read_folder_config(source)
    state_dict, report = convert_state_dict(read_checkpoint(source, weights_key))
    config = config_from_state_dict(
        state_dict,
        num_attention_heads=num_attention_heads,
        image_size=image_size,
        id2label=id2label,
        base_config=base_config,
    )
    model, initialized_keys = _build_model(config, state_dict, report.layout)
    image_processor, preprocessing_source = _build_image_processor(source, config)
    # nothing is left behind where it fails; the source's file is not replaced
    with staged(target, [source] if source.is_file() else []) as staging:
        model.save_pretrained(staging)
        image_processor.save_pretrained(staging)
    return replace(
        report,
        initialized_keys=initialized_keys,
        output_dir=str(target),
        sizes={**read_sizes(state_dict, config.image_size), "num_attention_heads": config.num_attention_heads},
        preprocessing={"source": preprocessing_source, **_preprocessing_of(image_processor)},
    )


def convert_state_dict(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], ConversionReport]:
    """Rename the weights of a checkpoint to those of `IceDeiTForImageClassification`.

    Args:
        state_dict: Name -> tensor in one of the three namings, possibly behind `module.` or `model.`.

    Returns:
        The renamed weights, unchanged but for the split of a fused `qkv`, and what became of every key.

    Raises:
        ValueError: If this is no ViT or DeiT; a key is unknown, missing or double; a tensor does not hold finite
            floating-point numbers.
    """
    converted, layout, dropped_keys = convert_keys(state_dict)
    _check_values(converted, layout)
    return converted, ConversionReport(layout, len(state_dict), len(converted), dropped_keys)


def read_id2label(path: str | Path) -> dict[int, str]:
    """Read class names from a JSON file.

    Args:
        path: File with a list of names, or an object `{"0": "tench", ...}` as `config.json` has it.

    Returns:
        Class index -> name.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not JSON of that kind.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"`id2label` must be a JSON file, got {str(path)!r}, which does not exist.")
    content = read_json(path)
    try:
        items = content.items() if isinstance(content, dict) else enumerate(content)
        return {int(index): str(label) for index, label in items}
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{str(path)!r} must hold a list of names or an object index -> name, got {str(content)[:80]}."
        ) from error


def _check_output_dir(source: Path, target: Path, overwrite: bool) -> None:
    """Refuse a target that would lose something."""
    if target.exists() and not target.is_dir():
        raise FileExistsError(f"`output_dir` must be a folder, got the file {str(target)!r}.")
    if target == source.resolve():
        raise ValueError(f"`output_dir` must differ from `checkpoint`, got {str(target)!r} for both.")
    if not overwrite and target.is_dir() and any(target.iterdir()):
        raise FileExistsError(
            f"`output_dir` {str(target)!r} holds files already. Choose another, or pass `overwrite_output_dir`."
        )


def _read_folder_config(source: Path) -> IceDeiTConfig | None:
    """Return the configuration of a transformers folder; a file or a timm folder has none."""
    file = source / "config.json"
    if not file.is_file():
        return None
    content = read_json(file)
    model_type = content.get("model_type") if isinstance(content, dict) else None
    if model_type in _MODEL_TYPES:
        return IceDeiTConfig.from_pretrained(source)
    if isinstance(content, dict) and "pretrained_cfg" in content:  # written by timm; it names no sizes
        return None
    raise ValueError(f"{str(file)!r} must have a `model_type` among {', '.join(_MODEL_TYPES)}, got {model_type!r}.")


def _check_values(state_dict: Mapping[str, Tensor], layout: str) -> None:
    """Refuse tensors that are no finite floating-point numbers, by their published names."""
    problems: dict[str, dict[str, None]] = {}
    for key, tensor in state_dict.items():
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_nested:
            problem = "are sparse, nested or without values"
        elif tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            problem = "stand for more numbers than the file holds (strides of 0)"  # a few bytes would become terabytes
        elif not tensor.is_floating_point() or tensor.element_size() < 2:
            problem = "are not floating point (quantised?)"
        elif not tensor.isfinite().all():
            problem = "hold NaN or infinity"
        else:
            continue
        problems.setdefault(problem, {})[source_key(key, layout)] = None
    for problem, names in problems.items():
        raise ValueError(f"The weights must be finite floating-point numbers; these {problem}: {some_names(names)}.")


def _build_model(
    config: IceDeiTConfig, state_dict: Mapping[str, Tensor], layout: str
) -> tuple[IceDeiTForImageClassification, tuple[str, ...]]:
    """Return the model with its weights, and the names of those that the checkpoint lacks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the same checkpoint gives the same folder
        model = IceDeiTForImageClassification(config)
    expected = model.state_dict()
    wrong = [
        f"{source_key(key, layout)} (-> {key}) has shape {tuple(tensor.shape)}, expected {tuple(expected[key].shape)}"
        for key, tensor in state_dict.items()
        if key in expected and tensor.shape != expected[key].shape
    ]
    if wrong:
        raise ValueError(f"The shapes of the weights must fit one another, but {'; '.join(wrong)}.")
    initial = {
        key: tensor for key, tensor in expected.items() if key.startswith(_PATCH_HEAD) and key not in state_dict
    }
    model.load_state_dict({**initial, **state_dict})
    return model.eval(), tuple(initial)


def _build_image_processor(source: Path, config: IceDeiTConfig) -> tuple[IceDeiTImageProcessor, str]:
    """Return the image processor for the model, and where its numbers are from."""
    if (source / "preprocessor_config.json").is_file():
        # its own class knows the defaults that older files leave out
        try:
            own = AutoImageProcessor.from_pretrained(source, backend="pil")
            image_processor = IceDeiTImageProcessor(**_preprocessing_of(own))
        except Exception as error:  # a class of transformers may fail in any way at a value that it does not expect
            raise ValueError(
                f"`preprocessor_config.json` of {str(source)!r} must describe an image processor of transformers, but "
                f"it cannot be read: {error}. Remove it to write ImageNet's mean and deviation instead."
            ) from error
        return image_processor, "preprocessor_config.json of the checkpoint"
    height, width = as_pair(config.image_size)
    fields: dict[str, Any] = {"size": {"height": height, "width": width}}  # ImageNet's mean and deviation by default
    if (source / "config.json").is_file():
        timm = read_json(source / "config.json").get("pretrained_cfg") or {}
        named = {"image_mean": timm.get("mean"), "image_std": timm.get("std")}
        named["resample"] = getattr(PILImageResampling, str(timm.get("interpolation")).upper(), None)
        fields.update({name: value for name, value in named.items() if value is not None})
        if timm:
            return IceDeiTImageProcessor(**fields), "pretrained_cfg of timm (without its crop)"
    return IceDeiTImageProcessor(**fields), "ImageNet (the checkpoint states none)"


def _preprocessing_of(image_processor: Any) -> dict[str, Any]:
    """Return the settings of an image processor that change the pixels."""
    # as JSON holds them: lists, and the number of the resampling filter
    settings = json.loads(image_processor.to_json_string())
    return {name: settings[name] for name in PREPROCESSING_FIELDS if settings.get(name) is not None}
