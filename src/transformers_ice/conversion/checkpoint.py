# SPDX-License-Identifier: Apache-2.0
"""Turn a checkpoint into a complete folder: files -> keys -> sizes -> model -> folder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoImageProcessor
from transformers.image_utils import PILImageResampling

from ..console.json_files import read_json
from ..console.output_files import staged
from ..ice_deit.configuration_fields import check_choice, check_grid
from ..ice_deit.configuration_ice_deit import IceDeiTConfig, as_pair
from ..ice_deit.image_processing_ice_deit import IceDeiTImageProcessor
from ..ice_deit.modeling_ice_deit import IceDeiTForImageClassification
from ..ice_deit.patch_maps import grid_size
from ..ice_deit.position_interpolation import POSITION_INTERPOLATIONS, PositionInterpolation
from ..ice_deit.source_families import SOURCE_FAMILIES
from ..ice_deit.weight_checks import some_names
from .files import read_checkpoint
from .keys import convert_keys, source_key
from .positions import GridChange, choose_interpolation, complete_positions, resize_positions
from .sizes import config_from_state_dict, read_grid, read_sizes


__all__ = [
    "PREPROCESSING_FIELDS",
    "ConversionReport",
    "convert_checkpoint",
    "convert_state_dict",
    "read_id2label",
]

_MODEL_TYPES = (*SOURCE_FAMILIES, IceDeiTConfig.model_type)
_NEW_PARTS = ("deit.patch_head.", "classifier.")  # may be missing, and are initialised
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
        positions: Grid of the position embeddings before and after, and how the source interpolates them.
        changed_keys: Name in the result -> what was done to its numbers, which changes no embedding of an image.
    """

    layout: str
    num_source_keys: int
    num_converted_keys: int
    dropped_keys: dict[str, str]
    initialized_keys: tuple[str, ...] = ()
    output_dir: str | None = None
    sizes: dict[str, Any] | None = None
    preprocessing: dict[str, Any] | None = None
    positions: str | None = None
    changed_keys: dict[str, str] = field(default_factory=dict)

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
    num_labels: int | None = None,
    position_interpolation: str | None = None,
) -> ConversionReport:
    """Convert a checkpoint into a folder for `AutoModelForImageClassification.from_pretrained`.

    The folder holds `config.json`, `model.safetensors` (float32), `preprocessor_config.json` and the code. It appears
    when all of it is written; bad input leaves nothing behind. Without a patch head in the source, one is initialised
    (the same in every run) and the model classifies by [CLS] as before, `logits_source="cls"`; so is a classifier that
    is missing, or that reads the patches too, as that of DINOv2.

    At another `image_size` than the checkpoint's, the position embeddings are interpolated once and for all, as the
    code that the checkpoint comes from does at that size, so the result equals its model there. Which way that is, the
    report says: for a folder it follows from the family; for a file from the names of its weights, or from
    `position_interpolation`. Interpolated again at still other sizes, by the model itself, the positions are those of
    the source only if they were left as they are and the source has no offset.

    Args:
        checkpoint: A weight file or a folder, as for `read_checkpoint`. The `config.json` and
            `preprocessor_config.json` of a folder are kept; a file gets ImageNet's mean and deviation and no crop.
        output_dir: Folder to write.
        num_attention_heads: Heads per layer. Weights do not show them: by default `hidden_size / 64`.
        image_size: Side in pixels, or [height, width]. By default that of the checkpoint: for a file, a square read
            off the position embeddings. Where these have just as many patches, the size says which grid they are for.
        id2label: Class names, 0 to `num_labels - 1`.
        weights_key: Entry of a training checkpoint, such as `"model_ema"`; by default `"model"`.
        overwrite_output_dir: Whether to write into a folder that holds files already.
        num_labels: Number of classes of the classifier to initialise where the checkpoint has none; by default as
            many as `id2label` has.
        position_interpolation: A key of `POSITION_INTERPOLATIONS`. By default the habit of the code that wrote the
            checkpoint; files of facebook's DINO without its projection head need "offset" to be known.

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
    weights = read_checkpoint(source, weights_key)
    own_size = None if base_config is None else base_config.image_size
    state_dict, report = convert_state_dict(
        weights, num_labels=num_labels or len(id2label or ()) or None, image_size=own_size or image_size
    )
    num_labels = _count_labels(state_dict, weights, report, num_labels, id2label)
    if base_config is not None and "classifier.weight" not in state_dict:
        base_config.num_labels = num_labels
    name, interpolation = _find_interpolation(position_interpolation, source, base_config, weights)
    state_dict, positions = _resize(state_dict, interpolation, own_size, image_size)
    config = config_from_state_dict(
        state_dict,
        num_attention_heads=num_attention_heads,
        image_size=image_size,
        id2label=id2label,
        base_config=base_config,
        num_labels=num_labels,
        interpolate_antialias=name == "antialias",
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
        sizes={
            **read_sizes(state_dict, config.image_size, config.num_labels),
            "num_attention_heads": config.num_attention_heads,
        },
        preprocessing={"source": preprocessing_source, **_preprocessing_of(image_processor)},
        positions=positions,
    )


def convert_state_dict(
    state_dict: Mapping[str, Tensor], *, num_labels: int | None = None, image_size: Any = None
) -> tuple[dict[str, Tensor], ConversionReport]:
    """Rename the weights of a checkpoint to those of `IceDeiTForImageClassification`.

    Args:
        state_dict: Name -> tensor in one of the known namings, possibly behind `module.`, `model.`, `teacher.`,
            `student.` or `backbone.`.
        num_labels: With a number, the classifier may be missing.
        image_size: Size of the images that tells how many patches have positions, where these are no square.

    Returns:
        The renamed weights, and what became of every key. They are unchanged but for the split of a fused `qkv`,
        LayerScale, which is multiplied into the layer before it, and positions that [CLS] lacks or registers have.

    Raises:
        ValueError: If this is no ViT or DeiT; a key is unknown, missing or double; a tensor does not hold finite
            floating-point numbers.
    """
    converted, layout, dropped_keys = convert_keys(state_dict, needs_classifier=num_labels is None)
    _check_values(converted, layout)
    grid = None
    projection = converted["deit.embeddings.patch_embeddings.projection.weight"]
    if image_size is not None and projection.ndim == 4:
        grid = grid_size(as_pair(image_size, "image_size"), (projection.shape[2], projection.shape[3]))
    converted, changed_keys = complete_positions(converted, state_dict.keys(), grid)
    return converted, ConversionReport(
        layout, len(state_dict), len(converted), dropped_keys, changed_keys=changed_keys
    )


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
        items = dict(content.items() if isinstance(content, dict) else enumerate(content))
        if not all(isinstance(label, str | int) for label in items.values()):
            raise TypeError("a name is no text")
        return {int(index): str(label) for index, label in items.items()}
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


def _count_labels(
    state_dict: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    report: ConversionReport,
    num_labels: int | None,
    id2label: Mapping[int, str] | None,
) -> int:
    """Return the number of classes: of the classifier, of one that was dropped, or as asked for."""
    dropped = next((key for key in report.dropped_keys if re.search(r"(^|\.)classifier\.weight$", key)), None)
    found = state_dict.get("classifier.weight", weights.get(dropped or ""))
    if found is None:
        return num_labels or len(id2label or ())
    if num_labels not in (None, found.shape[0]):
        raise ValueError(
            f"`num_labels` must be that of the checkpoint's classifier, {found.shape[0]}, got {num_labels}."
        )
    return int(found.shape[0])


def _find_interpolation(
    name: str | None, source: Path, base_config: IceDeiTConfig | None, weights: Mapping[str, Tensor]
) -> tuple[str, PositionInterpolation]:
    """Return how the source of a checkpoint interpolates positions, and the name of that."""
    if name is not None:
        check_choice("position_interpolation", name, POSITION_INTERPOLATIONS)
    elif base_config is not None:
        name = "antialias" if base_config.interpolate_antialias else "bicubic"
    else:
        name = choose_interpolation(weights.keys(), is_timm=(source / "config.json").is_file())
    return name, POSITION_INTERPOLATIONS[name]


def _resize(
    state_dict: dict[str, Tensor], interpolation: PositionInterpolation, own_size: Any, image_size: Any
) -> tuple[dict[str, Tensor], str | None]:
    """Return the weights with the positions for an image size, and what was done in words.

    What has the wrong shape is left as it is: the sizes are read next, and it is refused by its name.
    """
    projection = state_dict["deit.embeddings.patch_embeddings.projection.weight"]
    positions = state_dict["deit.embeddings.position_embeddings"]
    if projection.ndim != 4 or positions.ndim != 3:
        return state_dict, None
    patch_size = (projection.shape[2], projection.shape[3])
    num_patches = positions.shape[1] - 1 - ("deit.embeddings.distillation_token" in state_dict)
    old = read_grid(num_patches, patch_size, own_size, image_size)
    if old is None:
        return state_dict, None
    new = old if image_size is None else check_grid(image_size, patch_size)
    change = GridChange(old, new, interpolation)
    return resize_positions(state_dict, old, new, interpolation), change.describe()


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
    initial = {key: tensor for key, tensor in expected.items() if key.startswith(_NEW_PARTS) and key not in state_dict}
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
