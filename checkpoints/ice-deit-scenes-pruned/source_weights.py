# SPDX-License-Identifier: Apache-2.0
"""What loading does to the weights of another family: LayerScale folded, positions brought to the size asked for."""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import logging

from .configuration_fields import as_pair, check_grid
from .configuration_ice_deit import IceDeiTConfig
from .position_interpolation import POSITION_INTERPOLATIONS, PositionInterpolation
from .source_families import SOURCE_FAMILIES, SourceFamily


logger = logging.get_logger(__name__)

_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


class SourceLayerScale(nn.Module):
    """Factors for the outputs of a branch, in a model that is being loaded; `fold_layer_scales` removes them."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.lambda1 = nn.Parameter(torch.ones(hidden_size))


def scale_rows(factors: Tensor, tensor: Tensor) -> Tensor:
    """Return a weight `(rows, ...)` or bias `(rows,)` whose rows are multiplied by `(rows,)`, rounded once."""
    shaped = factors.double().reshape(-1, *[1] * (tensor.ndim - 1))
    return (shaped * tensor.double()).to(tensor.dtype)


@torch.no_grad()
def fold_layer_scales(layers: Iterable[Any]) -> None:
    """Multiply the LayerScale of every layer into the layer before it, and remove it.

    That is exact: gamma * (W x + b) = (gamma W) x + gamma b.
    """
    for layer in layers:
        for name, linear in (("layer_scale1", layer.attention.o_proj), ("layer_scale2", layer.mlp.fc2)):
            factors = getattr(layer, name).lambda1
            if factors.is_meta or linear.weight.is_meta:
                raise ValueError(
                    "A checkpoint with LayerScale cannot be loaded onto disk or without values. Convert it first: "
                    "`transformers-ice convert`."
                )
            linear.weight.copy_(scale_rows(factors, linear.weight))
            linear.bias.copy_(scale_rows(factors, linear.bias))
            delattr(layer, name)


def read_source_config(name: Any, options: dict[str, Any]) -> tuple[SourceFamily | None, dict[str, Any]]:
    """Return the family of a checkpoint, `None` for one of ICE-DeiT itself, and its `config.json`.

    Args:
        name: Folder or Hub id.
        options: Those of `from_pretrained`.

    Returns:
        Nothing of either where there is no configuration to read; loading then says so itself.
    """
    config = options.get("config")
    origin = config if config is not None and not isinstance(config, PreTrainedConfig) else name
    if origin is None or options.get("state_dict") is not None:
        return None, {}
    try:
        hub = {option: options[option] for option in _HUB_OPTIONS if option in options}
        content, _ = PreTrainedConfig.get_config_dict(origin, **hub)
    except (OSError, ValueError):
        return None, {}
    return SOURCE_FAMILIES.get(content.get("model_type", "")), content


def load_at_own_size(
    options: dict[str, Any], family: SourceFamily | None, content: dict[str, Any]
) -> dict[str, Any] | None:
    """Change the options of `from_pretrained` so that the positions of a checkpoint fit; `None` if they do as it is.

    Returns:
        What the configuration has to have after `resize_positions`: the size asked for, and the local windows, which
        need not divide the checkpoint's own grid (DINOv2's is 37 x 37) and are off until then.
    """
    config = options.get("config")
    wanted = config.image_size if isinstance(config, IceDeiTConfig) else options.get("image_size")
    defaults = {} if family is None else family.default_fields
    own = content.get("image_size", defaults.get("image_size", IceDeiTConfig.image_size))
    if wanted is None or not content or as_pair(wanted, "image_size") == as_pair(own, "image_size"):
        return None
    check_grid(wanted, content.get("patch_size", defaults.get("patch_size", IceDeiTConfig.patch_size)))
    if isinstance(config, IceDeiTConfig):
        num_windows = config.num_local_windows
        options["config"] = config = copy.deepcopy(config)
        config.image_size, config.num_local_windows = own, 0
    else:
        given = {**content, **options}
        num_windows = given.get("num_local_windows", IceDeiTConfig.num_local_windows)
        options["image_size"], options["num_local_windows"] = own, 0
    return {
        "image_size": list(wanted) if isinstance(wanted, tuple) else wanted,
        "num_local_windows": num_windows,
    }


def resize_positions(model: Any, family: SourceFamily | None, wanted: dict[str, Any]) -> None:
    """Bring the position embeddings of a loaded model to an image size, as its source would at that size.

    `wanted` is from `load_at_own_size`.
    """
    config = model.config
    # those of ICE-DeiT itself as its forward pass interpolates
    name = "antialias" if config.interpolate_antialias else "bicubic"
    interpolation: PositionInterpolation = POSITION_INTERPOLATIONS[name] if family is None else family.interpolation
    embeddings = model.base_model.embeddings
    embeddings.resize(wanted["image_size"], interpolation)
    for name, value in wanted.items():
        setattr(config, name, value)
    config.check_values()


def refuse_other_classifier(
    model: Any, info: dict[str, Any], name: Any, family: SourceFamily | None, new_heads: bool
) -> None:
    """Refuse a classifier whose answer a linear [CLS] head cannot give, or begin it again where that is allowed.

    Args:
        model: The loaded model.
        info: Loading information of transformers, with the mismatched keys.
        name: Folder or Hub id.
        family: Family of the checkpoint.
        new_heads: Whether heads may be new.

    Raises:
        ValueError: If the family has such a classifier, the checkpoint holds one, and heads may not be new.
    """
    mismatched = {entry[0] for entry in info["mismatched_keys"]}
    if family is None or family.classifier is None or "classifier.weight" not in mismatched:
        return
    difference = (
        f"The classifier of {str(name)!r} reads {family.classifier}; that of {type(model).__name__} reads [CLS]"
    )
    if not new_heads:
        raise ValueError(
            f"{difference}, so it cannot be kept. Pass `ignore_mismatched_sizes=True` to load the encoder with a new "
            "classifier, and train it."
        )
    logger.warning(f"{difference}, so it is new: train it.")
    # the bias alone would fit, and belong to nothing
    nn.init.zeros_(model.classifier.bias)


__all__ = [
    "SourceLayerScale",
    "fold_layer_scales",
    "load_at_own_size",
    "read_source_config",
    "refuse_other_classifier",
    "resize_positions",
    "scale_rows",
]
