# SPDX-License-Identifier: Apache-2.0
"""Attention in a packed batch, whose images have different numbers of tokens: four exact ways to run it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.masking_utils import create_bidirectional_mask

from .token_pruning import Packing


varlen_attn: Any = None
try:  # newer than the oldest torch that the package runs on
    from torch.nn.attention import varlen
except ImportError:
    pass
else:
    varlen_attn = varlen.varlen_attn


def attend_packed(
    attend: Callable[..., tuple[Tensor, Tensor | None]],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    config: PreTrainedConfig,
) -> Tensor:
    """Let the tokens of each image attend to those of the same image.

    Args:
        attend: The attention implementation: query, key, value `(batch_size, num_heads, num_tokens, head_dim)` and a
            mask to `(batch_size, num_tokens, num_heads, head_dim)` and weights or `None`.
        query: `(1, num_heads, total_tokens, head_dim)`.
        key: The same shape.
        value: The same shape.
        packing: Which image each token belongs to.
        config: Says which attention implementation it is.

    Returns:
        `(1, total_tokens, num_heads, head_dim)`.
    """
    if packing.lengths is None:
        return _attend_padded(attend, query, key, value, packing, config)
    if "flash" in str(config._attn_implementation):
        return _attend_flash(attend, query, key, value, packing.lengths)
    if _fits_varlen(query, config, attend):
        return _attend_varlen(query, key, value, packing.lengths)
    return _attend_each(attend, query, key, value, packing.lengths)


def _attend_each(
    attend: Callable[..., tuple[Tensor, Tensor | None]],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: tuple[int, ...],
) -> Tensor:
    """Call the attention once for each image: the least work, and faster than padding at every size tried on a CPU."""
    images = zip(*(states.split(lengths, dim=2) for states in (query, key, value)), strict=True)
    return torch.cat([attend(*image, None)[0] for image in images], dim=1)


def _attend_padded(
    attend: Callable[..., tuple[Tensor, Tensor | None]],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    config: PreTrainedConfig,
) -> Tensor:
    """Call the attention once, on images padded to the full grid: shapes do not depend on the images."""
    padded = [packing.unpack(states[0].transpose(0, 1)).transpose(1, 2) for states in (query, key, value)]
    mask = create_bidirectional_mask(config, padded[0][:, 0], packing.present)
    attended = attend(*padded, mask)[0]
    return packing.pack(attended).unsqueeze(0)


def _cumulative(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor((0, *lengths), device=device).cumsum(0).to(torch.int32)


def _attend_flash(
    attend: Callable[..., tuple[Tensor, Tensor | None]],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: tuple[int, ...],
) -> Tensor:
    """Hand the boundaries to FlashAttention through the options that transformers defines for it."""
    boundaries, longest = _cumulative(lengths, query.device), max(lengths)
    return attend(
        query,
        key,
        value,
        None,
        cu_seq_lens_q=boundaries,
        cu_seq_lens_k=boundaries,
        max_length_q=longest,
        max_length_k=longest,
    )[0]


def _fits_varlen(query: Tensor, config: PreTrainedConfig, attend: Callable) -> bool:
    """Whether torch's own kernel for images of different lengths can stand in for its SDPA here.

    It is FlashAttention: half precision, cards from Ampere on, heads of up to 256 in steps of 8.
    """
    is_plain = config._attn_implementation == "sdpa" and not getattr(attend, "keywords", {}).get("dropout")
    fits = query.dtype in (torch.float16, torch.bfloat16) and query.shape[3] % 8 == 0 and query.shape[3] <= 256
    if varlen_attn is None or not (query.is_cuda and is_plain and fits):
        return False
    return torch.cuda.get_device_capability(query.device) >= (8, 0)


def _attend_varlen(query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...]) -> Tensor:
    boundaries, longest = _cumulative(lengths, query.device), max(lengths)
    packed = [states[0].transpose(0, 1).contiguous() for states in (query, key, value)]
    return varlen_attn(*packed, boundaries, boundaries, longest, longest).unsqueeze(0)


__all__ = ["attend_packed"]
