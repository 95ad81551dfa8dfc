# SPDX-License-Identifier: Apache-2.0
"""Read the configuration of a model off the shapes of its weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..ice_deit.configuration_ice_deit import IceDeiTConfig, as_pair
from ..ice_deit.patch_maps import grid_size


__all__ = ["config_from_state_dict", "read_grid", "read_sizes"]

_PATCH_HEAD = "deit.patch_head."
# The published models use heads of this width: DeiT-Ti 192 / 3, DeiT-S 384 / 6, DeiT-B 768 / 12.
_HEAD_SIZE = 64


def config_from_state_dict(
    state_dict: Mapping[str, Tensor],
    *,
    num_attention_heads: int | None = None,
    image_size: int | list[int] | tuple[int, int] | None = None,
    id2label: Mapping[int, str] | None = None,
    base_config: IceDeiTConfig | None = None,
    num_labels: int | None = None,
    interpolate_antialias: bool = False,
) -> IceDeiTConfig:
    """Read the configuration of a model off its weights.

    Args:
        state_dict: Weights under the names of ICE-DeiT, from `convert_state_dict`.
        num_attention_heads: As for `convert_checkpoint`, like the next two.
        image_size: As there.
        id2label: As there.
        base_config: Configuration that came with the weights. What weights do not show (heads, epsilon, labels) is
            kept; what they do show must agree.
        num_labels: Number of classes where the weights have no classifier.
        interpolate_antialias: How positions are interpolated at other sizes, where no `base_config` says so.

    Returns:
        The configuration; `logits_source` is "patch" where the weights hold a patch head, unless `base_config` says
        otherwise, else "cls".

    Raises:
        ValueError: If the weights contradict each other, an argument or `base_config`.
    """
    if image_size is None and base_config is not None:
        image_size = base_config.image_size
    sizes = read_sizes(state_dict, image_size, num_labels)
    has_patch_head = any(key.startswith(_PATCH_HEAD) for key in state_dict)
    if base_config is None:
        heads = _choose_heads(sizes["hidden_size"], num_attention_heads)
        source = "patch" if has_patch_head else "cls"
        options: dict[str, Any] = {"logits_source": source, "interpolate_antialias": interpolate_antialias}
        config = IceDeiTConfig(**sizes, num_attention_heads=heads, **options)
    else:
        _check_agreement(base_config, {**sizes, "num_attention_heads": num_attention_heads})
        config = copy.deepcopy(base_config)
        for name, value in sizes.items():
            setattr(config, name, value)
        config.logits_source = base_config.logits_source if has_patch_head else "cls"
        config.check_values()
    if id2label is not None:
        _check_id2label(id2label, sizes["num_labels"])
        config.id2label = dict(sorted(id2label.items()))
        config.label2id = {label: index for index, label in config.id2label.items()}
    return config


def read_sizes(
    state_dict: Mapping[str, Tensor],
    image_size: int | list[int] | tuple[int, int] | None,
    num_labels: int | None = None,
) -> dict[str, Any]:
    """Return the fields of the configuration that shapes show, by name.

    Without `image_size`, a square grid is read off the position embeddings; `num_labels` is for weights without a
    classifier. A tensor with a wrong number of axes, a patch head that does not fit the classifier, and a grid that
    does not fit the position embeddings are a `ValueError`.
    """
    projection = _shape(state_dict, "deit.embeddings.patch_embeddings.projection.weight", 4)
    positions = _shape(state_dict, "deit.embeddings.position_embeddings", 3)[1]
    if num_labels is None or "classifier.weight" in state_dict:
        num_labels = _shape(state_dict, "classifier.weight", 2)[0]
    registers = "deit.embeddings.register_tokens"
    has_token = "deit.embeddings.distillation_token" in state_dict
    layers = {int(key.split(".")[2]) for key in state_dict if key.startswith("deit.layers.")}
    mlp_head = f"{_PATCH_HEAD}fc1.weight" in state_dict
    _check_patch_head(state_dict, num_labels)
    _refuse_swiglu(state_dict)
    return {
        "hidden_size": projection[0],
        "num_hidden_layers": 1 + max(layers),
        "intermediate_size": _shape(state_dict, "deit.layers.0.mlp.fc1.weight", 2)[0],
        "num_channels": projection[1],
        "patch_size": _one_or_pair((projection[2], projection[3])),
        "image_size": _read_image_size(positions - 1 - has_token, (projection[2], projection[3]), image_size),
        "num_labels": num_labels,
        "qkv_bias": "deit.layers.0.attention.q_proj.bias" in state_dict,
        "use_distillation_token": has_token,
        "use_distillation_head": "distillation_classifier.weight" in state_dict,
        "patch_head_hidden_size": _shape(state_dict, f"{_PATCH_HEAD}fc1.weight", 2)[0] if mlp_head else None,
        "num_register_tokens": _shape(state_dict, registers, 3)[1] if registers in state_dict else 0,
    }


def read_grid(num_patches: int, patch_size: tuple[int, int], *image_sizes: Any) -> tuple[int, int] | None:
    """Return the rows and columns of patches that position embeddings are for, `None` if that cannot be told.

    The first of the image sizes that has this number of patches decides, then a square.
    """
    for image_size in image_sizes:
        height, width = as_pair(image_size, "image_size") if image_size is not None else (0, 0)
        grid = grid_size((height, width), patch_size)
        if not height % patch_size[0] and not width % patch_size[1] and math.prod(grid) == num_patches:
            return grid
    side = math.isqrt(max(num_patches, 0))
    return (side, side) if side and side * side == num_patches else None


def _shape(state_dict: Mapping[str, Tensor], key: str, ndim: int) -> tuple[int, ...]:
    """Return the shape of a tensor that must have `ndim` axes."""
    shape = tuple(state_dict[key].shape)
    if len(shape) != ndim:
        raise ValueError(f"`{key}` must have {ndim} axes, got shape {shape}.")
    return shape


def _refuse_swiglu(state_dict: Mapping[str, Tensor]) -> None:
    """Refuse timm's SwiGLU, which has the names of an MLP and twice its rows."""
    rows = _shape(state_dict, "deit.layers.0.mlp.fc1.weight", 2)[0]
    if rows == 2 * _shape(state_dict, "deit.layers.0.mlp.fc2.weight", 2)[1]:
        raise ValueError(
            f"The first layer of the MLP gives {rows} numbers and the second takes {rows // 2}: this is SwiGLU (as in "
            "DINOv2's ViT-g), which the encoder of DeiT does not have. Start from a smaller model of the family."
        )


def _check_patch_head(state_dict: Mapping[str, Tensor], num_labels: int) -> None:
    """Refuse a patch head of another number of classes."""
    for name in ("weight", "fc2.weight"):
        head = state_dict.get(_PATCH_HEAD + name)
        if head is not None and head.shape[:1] != (num_labels + 1,):
            raise ValueError(
                f"The patch head `{_PATCH_HEAD}{name}` must have num_labels + 1 = {num_labels + 1} rows (background "
                f"last), as the classifier has {num_labels}, got shape {tuple(head.shape)}."
            )


def _read_image_size(
    num_patches: int, patch_size: tuple[int, int], image_size: int | list[int] | tuple[int, int] | None
) -> int | list[int]:
    """Return the image size whose patch grid has `num_patches` patches."""
    if image_size is not None:
        height, width = as_pair(image_size)
        fits = not height % patch_size[0] and not width % patch_size[1]
        if not fits or math.prod(grid_size((height, width), patch_size)) != num_patches:
            raise ValueError(
                f"`image_size` must give a grid of {num_patches} patches of {patch_size[0]} x {patch_size[1]} pixels, "
                f"one for each position embedding, got {image_size}."
            )
        return _one_or_pair((height, width))
    side = math.isqrt(max(num_patches, 0))
    if side < 1 or side * side != num_patches:
        raise ValueError(
            f"The position embeddings have {num_patches} patches, which is no square grid. Pass `image_size` as "
            f"[height, width] (patches are {patch_size[0]} x {patch_size[1]} pixels)."
        )
    return _one_or_pair((side * patch_size[0], side * patch_size[1]))


def _one_or_pair(size: tuple[int, int]) -> int | list[int]:
    """Return a size as the configuration writes it: one number where both sides are equal."""
    return size[0] if size[0] == size[1] else list(size)


def _choose_heads(hidden_size: int, num_attention_heads: int | None) -> int:
    """Return the number of attention heads, which no weight shows."""
    if num_attention_heads is None:
        if hidden_size % _HEAD_SIZE:
            raise ValueError(
                f"The number of attention heads cannot be read from weights, and hidden_size {hidden_size} is no "
                f"multiple of {_HEAD_SIZE}, the usual width of a head. Pass `num_attention_heads`."
            )
        return hidden_size // _HEAD_SIZE
    if num_attention_heads < 1 or hidden_size % num_attention_heads:
        raise ValueError(
            f"`num_attention_heads` must divide the hidden size of the weights, {hidden_size}, got "
            f"{num_attention_heads}."
        )
    return num_attention_heads


def _check_agreement(config: IceDeiTConfig, expected: Mapping[str, Any]) -> None:
    """Refuse a configuration that contradicts the weights or an argument."""
    # the grid was checked against the weights already; which heads there are, is for the weights to say
    skipped = ("image_size", "use_distillation_head", "patch_head_hidden_size")
    wrong = []
    for name, value in expected.items():
        stated = getattr(config, name)
        same = as_pair(stated) == as_pair(value) if name == "patch_size" else stated == value
        if value is not None and name not in skipped and not same:
            wrong.append(f"{name} is {stated} in `config.json` and {value} in the weights or arguments")
    if wrong:
        raise ValueError(f"The configuration must agree with the weights, but {'; '.join(wrong)}.")


def _check_id2label(id2label: Mapping[int, str], num_labels: int) -> None:
    """Refuse names that do not fit the classifier."""
    if sorted(id2label) != list(range(num_labels)) or len(set(id2label.values())) != num_labels:
        raise ValueError(
            f"`id2label` must give the classes 0 to {num_labels - 1} of the classifier a name each, all different, "
            f"got {len(id2label)} entries with {len(set(id2label.values()))} different names."
        )
