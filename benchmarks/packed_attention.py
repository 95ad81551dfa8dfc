# SPDX-License-Identifier: Apache-2.0
r"""Time of attention in a packed batch: image by image, padded to the longest, padded in groups, with a block mask.

    python benchmarks/packed_attention.py --num_heads 4 --head_dim 32 --most_tokens 65 --batch_sizes 32 64

By turns on the same random tokens; the lengths of the images are uniform from 1 to `--most_tokens`. Prints for each
way the median milliseconds, the median and the quartiles of the ratio to "kernel" of the same repeat (above 1 is
faster), and the largest difference from it. `choose_way` in `ice_deit/packed_attention.py` chooses by such numbers.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from run_pruning_study import positive
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from transformers_ice import IceDeiTConfig
from transformers_ice.ice_deit.packed_attention import Packing, attend_packed


NUM_GROUPS = (1, 4, 8)
CHUNK_SIZES = (128, 256)
Way = Callable[[Tensor, Tensor, Tensor], Tensor]


def pad_in_groups(query: Tensor, key: Tensor, value: Tensor, packing: Packing, num_groups: int) -> Tensor:
    """Attend in groups of images of alike lengths, each padded to its longest; as `attend_packed`, like the next."""
    lengths, starts = torch.tensor(packing.lengths), torch.tensor((0, *(packing.lengths or ()))).cumsum(0)
    attended, rows = [], []
    for images in lengths.argsort().chunk(num_groups):
        places = torch.arange(int(lengths[images].max()))
        mask = places < lengths[images].unsqueeze(1)  # (group, longest)
        tokens = (starts[images].unsqueeze(1) + places).where(mask, 0)
        # (1, heads, total, head_dim) -> (group, heads, longest, head_dim)
        states = [part[0][:, tokens].transpose(0, 1) for part in (query, key, value)]
        out = scaled_dot_product_attention(*states, attn_mask=mask[:, None, None]).transpose(1, 2)
        attended.append(out[mask])
        rows.append(tokens[mask])
    packed = torch.empty_like(attended[0][:1]).repeat(query.shape[2], 1, 1)
    return packed.index_copy(0, torch.cat(rows), torch.cat(attended)).unsqueeze(0)


def mask_in_chunks(query: Tensor, key: Tensor, value: Tensor, packing: Packing, chunk_size: int) -> Tensor:
    """Attend in chunks of whole images of about `chunk_size` tokens, with a mask between images."""
    sizes, image = [0], packing.image_of_token
    for length in packing.lengths or ():
        if sizes[-1] and sizes[-1] + length > chunk_size:
            sizes.append(0)
        sizes[-1] += length
    parts = zip(*(states.split(sizes, dim=2) for states in (query, key, value)), image.split(sizes), strict=True)
    attended = [
        scaled_dot_product_attention(*states, attn_mask=own.unsqueeze(1) == own).transpose(1, 2)
        for *states, own in parts
    ]
    return torch.cat(attended, dim=1)


def ways_of(packing: Packing, num_heads: int, head_dim: int) -> dict[str, Way]:
    """Return all ways by name."""
    config = IceDeiTConfig(hidden_size=num_heads * head_dim, num_attention_heads=num_heads)
    attend = partial(sdpa_attention_forward, torch.nn.Module(), is_causal=False)

    def by(way: str) -> Way:
        return lambda query, key, value: attend_packed(attend, query, key, value, packing, config, way)

    ways = {name: by(name) for name in ("kernel", "products")}
    ways |= {f"padded, {n} groups": partial(pad_in_groups, packing=packing, num_groups=n) for n in NUM_GROUPS}
    return ways | {f"chunks of {n}": partial(mask_in_chunks, packing=packing, chunk_size=n) for n in CHUNK_SIZES}


@torch.inference_mode()
def time_ways(ways: dict[str, Way], states: Tensor, num_repeats: int) -> dict[str, list[float]]:
    """Return the seconds of each repeat of each way; states are `(3, 1, num_heads, total_tokens, head_dim)`."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    order, rng = list(ways), random.Random(0)
    for repeat in range(-2, num_repeats):
        rng.shuffle(order)
        for name in order:
            start = time.perf_counter()
            ways[name](*states)
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def measure(batch_size: int, num_heads: int, head_dim: int, most_tokens: int, num_repeats: int) -> list[str]:
    """Return the lines of one batch size."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(1, most_tokens + 1, (batch_size, 1), generator=generator)
    packing = Packing.of(torch.arange(most_tokens) < counts)
    states = torch.randn(3, 1, int(counts.sum()), num_heads, head_dim, generator=generator).transpose(2, 3)
    ways = ways_of(packing, num_heads, head_dim)
    seconds, kernel = time_ways(ways, states, num_repeats), ways["kernel"](*states)
    lines = [f"batch {batch_size}, {num_heads} heads of {head_dim}, {counts.float().mean():.1f} tokens on average"]
    for name, own in seconds.items():
        ratios = [first / second for first, second in zip(seconds["kernel"], own, strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4)
        difference = (ways[name](*states) - kernel).abs().max().item()
        lines.append(
            f"  {name:18s} {1000 * statistics.median(own):7.2f} ms, {median:.2f} ({low:.2f}-{high:.2f}), minima "
            f"{min(seconds['kernel']) / min(own):.2f}, difference {difference:.0e}"
        )
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Print the lines of every batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_heads", type=positive, default=4)
    parser.add_argument("--head_dim", type=positive, default=32)
    parser.add_argument("--most_tokens", type=positive, default=65, help="of one image")
    parser.add_argument("--batch_sizes", type=positive, nargs="+", default=[32, 64])
    parser.add_argument("--num_repeats", type=positive, default=50)
    parser.add_argument("--num_threads", type=positive, default=2)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.num_threads)
    for batch_size in options.batch_sizes:
        lines = measure(batch_size, options.num_heads, options.head_dim, options.most_tokens, options.num_repeats)
        print("\n".join(lines), flush=True)


if __name__ == "__main__":
    sys.exit(main())
