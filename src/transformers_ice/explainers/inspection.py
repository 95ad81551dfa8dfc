# SPDX-License-Identifier: Apache-2.0
"""Look into a ViT, DeiT or ICE model of transformers and leave it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from transformers import PreTrainedModel


__all__ = ["attention_maps", "evaluation_mode", "grid_size", "num_prefix_tokens"]


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch every module to evaluation mode inside the block, and back to what each was after it.

    Args:
        model: Any module; parts of it may be frozen in evaluation mode while the rest trains.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """Use the attention implementation that returns its weights inside the block; the others return none."""
    # by identity: submodels usually share one configuration, and configurations are not hashable
    configs = {id(part.config): part.config for part in model.modules() if isinstance(part, PreTrainedModel)}
    before = [(config, config._attn_implementation) for config in configs.values()]
    try:
        for config, _ in before:
            config._attn_implementation = "eager"
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation = implementation


def attention_maps(model: PreTrainedModel, pixel_values: Tensor) -> tuple[Tensor, ...]:
    """Return the attention weights of every layer, whatever attention implementation the model uses.

    Args:
        model: A ViT, DeiT or ICE model, with or without a head.
        pixel_values: `(batch_size, num_channels, height, width)`.

    Returns:
        Per layer `(batch_size, num_heads, num_tokens, num_tokens)`; rows (queries) sum to 1.
    """
    encoder = model.base_model
    # The flag stays away where it changes nothing: interpolating 8x8 positions to 8x8 would cost their last digits.
    resized = tuple(pixel_values.shape[2:]) != _as_pair(model.config.image_size)
    with evaluation_mode(encoder), _eager_attention(model):
        outputs = encoder(pixel_values, output_attentions=True, interpolate_pos_encoding=resized)
    return outputs.attentions


def num_prefix_tokens(model: PreTrainedModel) -> int:
    """Return how many tokens stand before the patches, counted in the position embeddings (1 for ViT, 2 for DeiT).

    Args:
        model: A ViT, DeiT or ICE model, with or without a head.

    Raises:
        ValueError: If the model has no such position embeddings, as models without a [CLS] token.
    """
    embeddings = getattr(model.base_model, "embeddings", None)
    positions = getattr(embeddings, "position_embeddings", None)
    if positions is None or not hasattr(model.config, "patch_size"):
        raise ValueError(
            f"`model` must be a ViT, DeiT or ICE model of transformers, got {type(model).__name__}, "
            "which has no `embeddings.position_embeddings` over patches."
        )
    rows, columns = _cells(_as_pair(model.config.image_size), _as_pair(model.config.patch_size))
    return positions.shape[1] - rows * columns


def grid_size(model: PreTrainedModel, pixel_values: Tensor) -> tuple[int, int]:
    """Return the rows and columns of patches of a batch `(batch_size, num_channels, height, width)`."""
    return _cells(tuple(pixel_values.shape[2:]), _as_pair(model.config.patch_size))


def _cells(image_size: tuple[int, ...], patch_size: tuple[int, int]) -> tuple[int, int]:
    return image_size[0] // patch_size[0], image_size[1] // patch_size[1]


def _as_pair(size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
