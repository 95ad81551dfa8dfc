# SPDX-License-Identifier: Apache-2.0
"""Weights of a checkpoint that a run starts from: classes matched by name, positions for another input size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.utils import logging

from ..ice_deit.configuration_ice_deit import IceDeiTConfig, as_pair
from ..ice_deit.modeling_ice_deit import IceDeiTForImageClassification
from ..ice_deit.patch_maps import grid_size


__all__ = ["load_weights", "match_classes", "read_class_names"]

logger = logging.get_logger(__name__)

_HEADS = ("classifier", "patch_head", "pruning_heads")  # new where the checkpoint lacks them


def read_class_names(config: PreTrainedConfig) -> list[str]:
    """Return the names of a model's classes in the order of its logits."""
    return [str(name) for _, name in sorted((config.id2label or {}).items())]


def match_classes(names: Sequence[str], wanted: Sequence[str]) -> list[int] | None:
    """Return the position of each wanted class among the names, or None where these are other classes.

    A model that has only generic names (`LABEL_0`, ...) for as many classes is taken to have them in this order.
    """
    is_generic = list(names) == [f"LABEL_{index}" for index in range(len(names))]
    if len(names) == len(wanted) and (is_generic or list(names) == list(wanted)):
        return list(range(len(wanted)))
    is_same_set = len({*names}) == len(names) == len(wanted) and {*names} == {*wanted}
    return [names.index(name) for name in wanted] if is_same_set else None


def load_weights(
    source: str, config: IceDeiTConfig, ignore_mismatched_sizes: bool = False, **hub_options: Any
) -> IceDeiTForImageClassification:
    """Load a checkpoint as an ICE model of other classes, other heads or another input size, in float32.

    Heads of the same classes are kept, in the order of `config`; those of others are drawn again. Position embeddings
    are interpolated, by `from_pretrained`. Everything else must fit.

    Args:
        source: Folder or Hub id.
        config: Configuration of the model to train.
        ignore_mismatched_sizes: Whether heads of another number of classes are replaced.
        **hub_options: Options of `from_pretrained`.

    Raises:
        ValueError: If the checkpoint has another number of classes and `ignore_mismatched_sizes` is off, or any other
            weight does not fit; names it.
    """
    own = IceDeiTConfig.from_pretrained(source, **hub_options)
    names, wanted = read_class_names(own), read_class_names(config)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its report of the keys, which is said in sentences below
    try:
        model, info = IceDeiTForImageClassification.from_pretrained(
            source,
            config=config,
            # the file's own dtype may be a half precision, in which small updates vanish
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            initialize_pruning_heads=True,
            output_loading_info=True,
            **hub_options,
        )
    except ValueError as error:
        if "are not those of" not in str(error):
            raise
        raise ValueError(
            f"{error} Only class heads can be replaced: remove what changes other sizes from `--config_overrides`, or "
            "train from random weights with `--model_type ice_deit`."
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    if len(names) != len(wanted):
        if not ignore_mismatched_sizes:
            raise ValueError(
                f"{source} has {len(names)} classes and does not fit the {len(wanted)} classes of the data. To "
                "replace its class heads by fresh ones, pass `--ignore_mismatched_sizes`."
            )
        logger.warning(f"{source} has {len(names)} classes, the data {len(wanted)}: the class heads are new.")
    else:
        _match_heads(model, source, names, wanted)
    new_heads = sorted({_head_of(key) for key in info["missing_keys"]} - {""})
    if new_heads:
        logger.warning(
            f"New, since {source} has none: {', '.join(new_heads)}. Training begins from initial weights there."
        )
    old, new = (grid_size(as_pair(item.image_size), as_pair(item.patch_size)) for item in (own, config))
    if old != new:
        logger.warning(f"Positions are interpolated from {old[0]} x {old[1]} patches to {new[0]} x {new[1]}.")
    return model


def _is_head(key: str) -> bool:
    return bool(_head_of(key))


def _head_of(key: str) -> str:
    """Return the name of the head that a weight belongs to, or an empty string."""
    return next((part for part in key.split(".") if part.endswith(_HEADS)), "")


def _match_heads(model: IceDeiTForImageClassification, source: str, names: list[str], wanted: list[str]) -> None:
    """Bring the rows of the class heads into the order of the wanted classes, or draw them again for other classes."""
    order = match_classes(names, wanted)
    if order is None:
        num_found = len({*names} & {*wanted})
        logger.warning(
            f"Classes: {num_found} of {len(wanted)} found in {source} by name. They are not the same classes, so the "
            "class heads are new."
        )
        for module in _class_layers(model, all_layers=True):
            if getattr(module, "starts_at_zero", False):
                nn.init.zeros_(module.weight)
            else:
                nn.init.trunc_normal_(module.weight, std=model.config.initializer_range)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        return
    found = f"Classes: {len(wanted)} of {len(wanted)} found in {source} by name"
    if order == sorted(order):
        is_generic = names != wanted
        logger.warning(
            f"Classes: {source} does not name its {len(names)}: their order is kept." if is_generic else f"{found}."
        )
        return
    logger.warning(f"{found}, in another order.")
    with torch.no_grad():
        for module in _class_layers(model):
            # background is the last row of a head for patches
            rows = order if module.out_features == len(order) else [*order, len(order)]
            module.weight.copy_(module.weight[rows])
            if module.bias is not None:
                module.bias.copy_(module.bias[rows])


def _class_layers(model: IceDeiTForImageClassification, all_layers: bool = False) -> Iterable[nn.Linear]:
    """Yield the linear layers whose outputs are the classes; with `all_layers` those before them in a head, too."""
    num_labels = model.config.num_labels
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and _is_head(name) and not name.endswith(".score"):
            is_last = not name.endswith(".fc1") and module.out_features in (num_labels, num_labels + 1)
            if is_last or all_layers:
                yield module
