# SPDX-License-Identifier: Apache-2.0
"""Look into a model of transformers and leave it as it was; `families` lists those that can be explained."""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary
from transformers import PreTrainedModel

from ..ice_deit import patch_maps
from ..ice_deit.configuration_ice_deit import as_pair
from .families import backbone_of


__all__ = [
    "attention_maps",
    "check_start_layer",
    "class_token_row",
    "eager_attention",
    "evaluation_mode",
    "exclusive_use",
    "forward_options",
    "frozen_parameters",
    "full_grid",
    "grid_size",
    "num_prefix_tokens",
    "record_calls",
    "share_parameters",
    "without_adapters",
]


AnyModel = TypeVar("AnyModel", bound=PreTrainedModel)

_LOCKS = WeakIdKeyDictionary()  # by configuration and by first parameter: models may share either
_NEW_LOCK = threading.Lock()


@contextmanager
def exclusive_use(model: PreTrainedModel) -> Iterator[None]:
    """Let one thread at a time into such blocks of a model, or of models with the same parameters or configuration."""
    with _NEW_LOCK:
        keys = [*_configs(model), *itertools.islice(model.parameters(), 1)]
        locks = {id(lock): lock for lock in (_LOCKS.setdefault(key, threading.RLock()) for key in keys)}
    with ExitStack() as held:
        for number in sorted(locks):  # the same order everywhere: two threads cannot wait for each other
            held.enter_context(locks[number])
        yield


def share_parameters(model: AnyModel) -> AnyModel:
    """Return a model of the same parameter tensors with modules and a configuration of its own."""
    tensors = [*model.parameters(), *model.buffers()]
    # the memo of `deepcopy`: these tensors count as copied already, so the twin refers to the same ones
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch every module to evaluation mode inside the block, and back to what each was after it.

    Args:
        model: Any module; parts of it may be frozen in evaluation mode while the rest trains.
    """
    training = [module for module in model.modules() if module.training]
    try:
        model.eval()
        yield
    finally:
        for module in training:
            module.training = True  # not `train()`, which would switch its children too


@contextmanager
def frozen_parameters(model: nn.Module) -> Iterator[None]:
    """Keep the parameters out of every graph inside the block; flags and gradients come back as they were after it.

    The gradients are put aside: a library that clears or fills them finds none.
    """
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    try:
        for parameter, _, _ in before:
            parameter.requires_grad_(False)
            parameter.grad = None
        yield
    finally:
        for parameter, requires_grad, gradient in before:
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient


@contextmanager
def record_calls(modules: Iterable[nn.Module]) -> Iterator[dict[nn.Module, tuple[Tensor, Tensor]]]:
    """Note the first argument and the result of the last call of each module inside the block, still in the graph."""
    calls: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def note(module: nn.Module, arguments: tuple[Any, ...], result: Any) -> None:
        # a layer inside which patches are pruned returns more after its tokens
        calls[module] = (arguments[0], result[0] if isinstance(result, tuple) else result)

    with ExitStack() as hooks:  # removed one by one, also if an interruption comes between two of them
        for module in modules:
            hooks.callback(module.register_forward_hook(note).remove)
        yield calls


@contextmanager
def eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """Use the attention implementation that returns its weights inside the block; the others return none."""
    before = [(config, config._attn_implementation) for config in _configs(model)]
    try:
        for config, _ in before:
            config._attn_implementation = "eager"
        with _no_lasting_recorders(model):
            yield
    finally:
        for config, implementation in before:
            config._attn_implementation = implementation


def _configs(model: PreTrainedModel) -> list[Any]:
    """Return the configurations of a model and its parts, each once."""
    # by identity: submodels usually share one configuration, and configurations are not hashable
    return list(
        {id(part.config): part.config for part in model.modules() if isinstance(part, PreTrainedModel)}.values()
    )


@contextmanager
def full_grid(model: PreTrainedModel) -> Iterator[None]:
    """Let a model that prunes compute all patches, and mask out those that are pruned, inside the block.

    Its outputs do not change, and attention, hidden states and their gradients have the shape of the full grid.
    """
    before = [(config, config.pruning_execution) for config in _configs(model) if hasattr(config, "pruning_execution")]
    try:
        for config, _ in before:
            config.pruning_execution = "masked"
        yield
    finally:
        for config, execution in before:
            config.pruning_execution = execution


@contextmanager
def _no_lasting_recorders(model: PreTrainedModel) -> Iterator[None]:
    """Take the hooks away that transformers leaves in a model at the first request for attention, inert and for good.

    A model that holds them can no longer be pickled.
    """
    mark = "_output_capturing_hooks_installed"
    before = [(module, set(module._forward_hooks), mark in vars(module)) for module in model.modules()]
    try:
        yield
    finally:
        for module, hooks, was_marked in before:
            for key in set(module._forward_hooks) - hooks:
                del module._forward_hooks[key]
            if mark in vars(module) and not was_marked:
                delattr(module, mark)


def attention_maps(model: PreTrainedModel, pixel_values: Tensor) -> tuple[Tensor, ...]:
    """Return the attention of every layer, `(batch_size, num_heads, num_tokens, num_tokens)`; rows sum to 1."""
    encoder = model.base_model
    with evaluation_mode(encoder), eager_attention(model):
        outputs = encoder(pixel_values, output_attentions=True, **forward_options(model, pixel_values))
    return outputs.attentions


def forward_options(model: PreTrainedModel, pixel_values: Tensor) -> dict[str, bool]:
    """Return what `forward` needs besides the images `(batch_size, num_channels, height, width)`."""
    if not backbone_of(model).family.takes_position_flag:
        return {}
    # The flag stays away where it changes nothing: interpolating 8x8 positions to 8x8 would cost their last digits.
    return {"interpolate_pos_encoding": tuple(pixel_values.shape[2:]) != as_pair(model.config.image_size)}


def class_token_row(weights: Tensor, model: PreTrainedModel, pixel_values: Tensor) -> Tensor:
    """Return what the [CLS] token takes from each patch; rows of the weights are the tokens that take."""
    # (batch_size, num_tokens, num_tokens) -> (batch_size, num_patches) -> (batch_size, rows, columns)
    return weights[:, 0, num_prefix_tokens(model) :].unflatten(1, grid_size(model, pixel_values))


def check_start_layer(start_layer: int, model: PreTrainedModel) -> None:
    """Refuse a first layer, 0-based, that the model does not have."""
    num_prefix_tokens(model)  # refuses other families
    num_layers = model.config.num_hidden_layers
    if not 0 <= start_layer < num_layers:
        raise ValueError(
            f"`start_layer` must lie in [0, {num_layers - 1}] for {num_layers} layers, got {start_layer}."
        )


def num_prefix_tokens(model: PreTrainedModel) -> int:
    """Return the number of tokens before the patches: [CLS], a distillation token, registers (1 for ViT, 2 for DeiT).

    Models of families that cannot be explained are refused.
    """
    return backbone_of(model).num_prefix_tokens


def grid_size(model: PreTrainedModel, pixel_values: Tensor) -> tuple[int, int]:
    """Return the rows and columns of patches of a batch `(batch_size, num_channels, height, width)`."""
    return patch_maps.grid_size((pixel_values.shape[2], pixel_values.shape[3]), as_pair(model.config.patch_size))


def without_adapters(model: Any) -> PreTrainedModel:
    """Return a model of transformers: of a `PeftModel` a copy with its adapters merged, any other model itself.

    Relevance follows the weights of each layer, which are those of the merged one. Merged in place and taken back, the
    weights would not be the same bits as before.
    """
    if not hasattr(model, "merge_and_unload"):
        return model
    with torch.inference_mode(False), torch.no_grad():  # weights copied in the inference mode allow no gradient
        merged: PreTrainedModel = copy.deepcopy(model).merge_and_unload()
    return merged
