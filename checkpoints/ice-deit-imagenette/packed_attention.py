# SPDX-License-Identifier: Apache-2.0
"""Attention by plain matrix products where they are faster, and packed batches of images of different lengths."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.masking_utils import create_bidirectional_mask

from .token_pruning import flat_indices


varlen_attn: Any = None
try:  # newer than the oldest torch that the package runs on
    from torch.nn.attention import varlen
except ImportError:
    pass
else:
    varlen_attn = varlen.varlen_attn


WAYS = ("padded", "flash", "varlen", "products", "kernel")
"""Ways through packed attention; `choose_way` says which is taken when."""

_FEW_TOKENS = 96  # of an image: less work than what fused attention, or a product in bfloat16, needs to start
_MOST_SCORES = 2**21  # of the images that go through the products at once: what the caches of a core hold
_SIZE_STEP, _MOST_SPARE_ROWS = 8, 64  # of a captured graph


@dataclass(frozen=True)
class PaddedImages:
    """How packed tokens lie in a tensor padded to the longest image, `(batch_size, longest, ...)`.

    `sources` `(batch_size, longest)` is the row of the token at each place, that of the last token where none is;
    `targets` `(total_rows,)` the place of each row among the `batch_size * longest`; `present` `(batch_size, longest)`
    is True where a token is.
    """

    sources: Tensor
    targets: Tensor
    present: Tensor

    def pad(self, packed: Tensor) -> Tensor:
        """Return `(total_rows, n)` as `(batch_size, longest, n)`."""
        return _take_rows(packed, self.sources)

    def pack(self, padded: Tensor) -> Tensor:
        """Return `(batch_size, longest, ...)` as `(total_rows, ...)`."""
        return padded.flatten(0, 1).index_select(0, self.targets)


@dataclass(frozen=True)
class Packing:
    """Where the tokens of a packed batch belong: all tokens of the first image, then those of the second, ...

    Packed tensors are `(total_rows, ...)`, those on the full grid `(batch_size, num_places, ...)`. `present` is True
    where the grid holds a token; `places` `(total_rows,)` is each row's place, flattened, and `rows` `(batch_size,
    num_places)` the row of each place, any row where no token is. `lengths` are the tokens of each image, `None` in a
    graph that is captured once for all images: there they are not known, and attention takes the images `padded`.
    """

    present: Tensor
    places: Tensor
    rows: Tensor
    lengths: tuple[int, ...] | None
    padded: PaddedImages | None = None

    @classmethod
    def of(cls, present: Tensor) -> "Packing":
        """Return the packing of the places `(batch_size, num_places)` where `present` is True."""
        places = present.flatten().nonzero().squeeze(1)
        return cls(present, places, _rows_of(present), tuple(present.sum(dim=1).tolist()))

    @classmethod
    def captured(cls, present: Tensor) -> "Packing":
        """Return the packing that a graph for all images can compute; every image must have a token.

        Runtimes of exported models prepare again for each size that they meet, so sizes are rounded up. The rows that
        this adds repeat the first place, and what becomes of them is never read.
        """
        (batch_size, num_places), device = present.shape, present.device
        lengths, rows = present.sum(dim=1), _rows_of(present)
        # totals of large batches vary more
        step = (2 * torch.ones_like(lengths).sum()).clamp(_SIZE_STEP, _MOST_SPARE_ROWS)
        spare = torch.arange(_MOST_SPARE_ROWS, device=device) < (-lengths.sum()) % step
        places = torch.cat((present.flatten(), spare)).nonzero().squeeze(1)
        places = torch.where(places < batch_size * num_places, places, 0)
        longest = (lengths.max() + _SIZE_STEP - 1) // _SIZE_STEP * _SIZE_STEP
        ranks = torch.arange(num_places + _SIZE_STEP, device=device)
        ranks = (ranks < longest).nonzero().squeeze(1)  # -> (longest,): an image's first token, its second, ...
        torch._check(ranks.shape[0] > 1)  # which the analysis of torch.export cannot know
        first = (lengths.cumsum(0) - lengths).unsqueeze(1)
        sources = first + torch.minimum(ranks, lengths.unsqueeze(1) - 1)
        targets = flat_indices(rows - first, ranks.shape[0]).index_select(0, places)
        return cls(present, places, rows, None, PaddedImages(sources, targets, ranks < lengths.unsqueeze(1)))

    @property
    def is_rectangular(self) -> bool:
        """Whether all images are known to have the same number of tokens."""
        return self.lengths is not None and len(set(self.lengths)) <= 1

    @property
    def image_of_token(self) -> Tensor:
        """Which image each row belongs to, `(total_rows,)`, int."""
        return self.places // self.present.shape[1]

    def pack(self, grid: Tensor) -> Tensor:
        """Return the tokens that are present of `(batch_size, num_places, ...)` as `(total_rows, ...)`."""
        return grid.flatten(0, 1).index_select(0, self.places)

    def unpack(self, packed: Tensor) -> Tensor:
        """Return `(total_rows, n)` as `(batch_size, num_places, n)`, with any values where there is no token."""
        return _take_rows(packed, self.rows)


def _rows_of(present: Tensor) -> Tensor:
    return (present.flatten().cumsum(0) - 1).clamp(min=0).view(present.shape)


def _take_rows(packed: Tensor, rows: Tensor) -> Tensor:
    """Return rows `(batch_size, count)` of `(total_rows, n)` as `(batch_size, count, n)`."""
    # an index of two dimensions is exported as one operation; a change of shape after it is what OpenVINO 2026.4
    # refuses where a product of 8 bits comes before
    return torch.nn.functional.embedding(rows, packed)


def choose_way(attend: Callable, query: Tensor, packing: Packing, config: PreTrainedConfig) -> str:
    """Return the way of `WAYS` that `attend_packed`, whose arguments these are, takes.

    - "padded": once, on images padded to the longest, in a graph captured for all images, where no number is known.
    - "flash": once, by FlashAttention's own options, where the model was loaded with it.
    - "varlen": once, by torch's kernel for images of different lengths, where it fits (`_fits_varlen`).
    - "products": plain matrix products image by image, for SDPA on a CPU in bfloat16 (`prefers_products`), and in
      float32 up to 96 tokens an image on average. They need no set-up, which takes the kernel longer than the
      attention of so few tokens.
    - "kernel": the attention implementation image by image, for all else.

    On two cores padding to the longest, padding inside groups of alike lengths and block-diagonal masks over several
    images were slower than image by image at nearly every size, at best as fast; `benchmarks/packed_attention.py`
    measures all of them.
    """
    if packing.lengths is None:
        return "padded"
    if "flash" in str(config._attn_implementation):
        return "flash"
    if _fits_varlen(query, config, attend):
        return "varlen"
    dropout = getattr(attend, "keywords", {}).get("dropout")
    is_small = query.shape[2] <= _FEW_TOKENS * len(packing.lengths)
    fits = is_small and query.dtype == torch.float32 and _is_plain_on_cpu(query, config, dropout)
    return "products" if fits or prefers_products(query, config, dropout) else "kernel"


def _is_plain_on_cpu(query: Tensor, config: PreTrainedConfig, dropout: float | None) -> bool:
    """Return whether torch's fused attention would run on a CPU, without dropout."""
    return config._attn_implementation == "sdpa" and not dropout and query.device.type == "cpu"


def prefers_products(query: Tensor, config: PreTrainedConfig, dropout: float | None = None) -> bool:
    """Return whether plain matrix products attend faster than torch's fused attention (SDPA).

    They do in bfloat16 on a CPU, where SDPA multiplies no faster than in float32. Not where the query records
    gradients, for which all attention weights would be kept. In float32 a model attends as the class of transformers
    that it comes from, to the last bit; packed batches, which that class has not, may differ in rounding.

    Args:
        query: The query.
        config: Its attention implementation must be "sdpa".
        dropout: Of the attention weights; must be zero or `None`.
    """
    is_inference = query.dtype == torch.bfloat16 and not query.requires_grad
    return is_inference and _is_plain_on_cpu(query, config, dropout)


def attend_by_products(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Attend by matrix products, to as many images at a time as the caches hold.

    Each is `(batch_size, num_heads, num_tokens, head_dim)`, returns `(batch_size, num_tokens, num_heads, head_dim)`.
    """
    batch_size, num_heads, num_tokens, _ = query.shape
    states = [part.flatten(0, 1) for part in (query, key, value)]
    size = num_heads * max(1, _MOST_SCORES // (num_heads * num_tokens**2))
    if torch.compiler.is_compiling() or size >= len(states[0]):  # a graph is captured for all batch sizes
        attended = _products(*states, scale=scale)
    else:
        chunks = zip(*(part.split(size) for part in states), strict=True)
        attended = torch.cat([_products(*chunk, scale=scale) for chunk in chunks])
    return attended.unflatten(0, (batch_size, num_heads)).transpose(1, 2)


def _products(query: Tensor, key: Tensor, value: Tensor, *, scale: float) -> Tensor:
    """Attend within `(num_heads, num_tokens, head_dim)`."""
    # a scale inside the product, unlike one before or after it, is not rounded to bfloat16
    scores = torch.baddbmm(query.new_zeros(1), query, key.transpose(1, 2), beta=0, alpha=scale)
    return torch.bmm(scores.softmax(dim=-1), value)


def attend_packed(
    attend: Callable[..., tuple[Tensor, Tensor | None]],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    config: PreTrainedConfig,
    way: str | None = None,
) -> Tensor:
    """Let the tokens of each image attend to those of the same image.

    `attend` is the attention implementation: query, key, value `(batch_size, num_heads, num_tokens, head_dim)` and a
    mask to `(batch_size, num_tokens, num_heads, head_dim)`, and weights or `None`. Here query, key and value are `(1,
    num_heads, total_rows, head_dim)`, the result `(1, total_rows, num_heads, head_dim)`. `way` is one of `WAYS`, by
    default that of `choose_way`; a packing of a captured graph has one way only.
    """
    if packing.padded is not None:
        return _attend_padded(attend, query, key, value, packing.padded, config)
    way = choose_way(attend, query, packing, config) if way is None else way
    lengths = packing.lengths or ()
    if way == "flash":  # the options that transformers defines for it
        boundaries, longest = _boundaries(lengths, query.device), max(lengths)
        options = {"cu_seq_lens_q": boundaries, "cu_seq_lens_k": boundaries}
        return attend(query, key, value, None, max_length_q=longest, max_length_k=longest, **options)[0]
    if way == "varlen":
        boundaries, longest = _boundaries(lengths, query.device), max(lengths)
        packed = [states[0].transpose(0, 1).contiguous() for states in (query, key, value)]
        return varlen_attn(*packed, boundaries, boundaries, longest, longest).unsqueeze(0)
    if way == "products":
        return _attend_each_by_products(query[0], key[0], value[0], lengths)
    images = zip(*(states.split(lengths, dim=2) for states in (query, key, value)), strict=True)
    return torch.cat([attend(*image, None)[0] for image in images], dim=1)


def _attend_padded(
    attend: Callable, query: Tensor, key: Tensor, value: Tensor, images: PaddedImages, config: PreTrainedConfig
) -> Tensor:
    """Attend to images padded to the longest; the other arguments and the result are those of `attend_packed`."""
    heads = query.shape[1::2]
    rows = [states[0].transpose(0, 1).flatten(1) for states in (query, key, value)]
    # (total_rows, dim) -> (batch, heads, longest, head_dim)
    padded = [images.pad(states).unflatten(2, heads).transpose(1, 2) for states in rows]
    mask = create_bidirectional_mask(config, padded[0][:, 0], images.present)
    attended = attend(*padded, mask)[0]  # -> (batch, longest, heads, head_dim)
    return images.pack(attended.flatten(2)).unflatten(1, heads).unsqueeze(0)


def _attend_each_by_products(query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Attend image by image: `(num_heads, total_tokens, head_dim)` to `(1, total_tokens, num_heads, head_dim)`."""
    scale, dtype, states = query.shape[2] ** -0.5, query.dtype, [query, key, value]
    if query.shape[1] <= _FEW_TOKENS * len(lengths):  # in float32, where a product starts sooner than in bfloat16
        states = [part.float() for part in states]
    images = zip(*(part.split(lengths, dim=1) for part in states), strict=True)
    attended = [_products(*image, scale=scale) for image in images]
    return torch.cat(attended, dim=1).transpose(0, 1).unsqueeze(0).to(dtype)


def _boundaries(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor((0, *lengths), device=device).cumsum(0).to(torch.int32)


def _fits_varlen(query: Tensor, config: PreTrainedConfig, attend: Callable) -> bool:
    """Whether torch's own kernel for images of different lengths can stand in for its SDPA here.

    It is FlashAttention: half precision, cards from Ampere on, heads of up to 256 in steps of 8.
    """
    is_plain = config._attn_implementation == "sdpa" and not getattr(attend, "keywords", {}).get("dropout")
    fits = query.dtype in (torch.float16, torch.bfloat16) and query.shape[3] % 8 == 0 and query.shape[3] <= 256
    if varlen_attn is None or not (query.is_cuda and is_plain and fits):
        return False
    return torch.cuda.get_device_capability(query.device) >= (8, 0)


__all__ = ["WAYS", "Packing", "attend_by_products", "attend_packed", "choose_way", "prefers_products"]
