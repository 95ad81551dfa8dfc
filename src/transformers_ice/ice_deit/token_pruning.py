# SPDX-License-Identifier: Apache-2.0
"""Token pruning: which patches stay, how their tokens are laid out, and the way back to the full grid.

Pure functions and immutable layouts of tensors. `num_patches` counts the cells of the full patch grid; a token that is
no patch, such as [CLS], is a prefix token and never leaves. A mask is True where a patch is present.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


STRATEGIES = ("background", "top_k", "attentiveness")
EXECUTIONS = ("auto", "packed", "masked")
PRUNING_HEADS = ("gate", "patch")


def patch_logits_of(head_output: Tensor, num_labels: int) -> Tensor:
    """Return what a pruning head says of a patch as patch logits.

    Args:
        head_output: `(..., num_labels + 1)` patch logits, which pass unchanged, or `(..., 1)`, the logit of a gate.
        num_labels: Number of image classes.

    Returns:
        `(..., num_labels + 1)`. Of a gate, the background logit is its own and every class has `-log(num_labels)`: the
        softmax gives background the gate's sigmoid and every class an equal share of the rest.
    """
    if head_output.shape[-1] == num_labels + 1:
        return head_output
    classes = head_output.new_full((*head_output.shape[:-1], num_labels), -math.log(num_labels))
    return torch.cat((classes, head_output), dim=-1)


def background_margin(head_output: Tensor) -> Tensor:
    """Return by how much background beats what else a patch could be.

    Args:
        head_output: `(..., num_labels + 1)` patch logits, or `(..., 1)`, the logit of a gate.

    Returns:
        `(...)`. Of patch logits, the background score minus the best class. A gate knows one alternative, "no
        background", whose score is 0 (the log-sum-exp of its class logits), so its margin is the gate's logit and 0
        means p(background) = 0.5, however many classes there are.
    """
    if head_output.shape[-1] == 1:
        return head_output.squeeze(-1)
    return head_output[..., -1] - head_output[..., :-1].amax(dim=-1)


def keep_foreground(margin: Tensor, present: Tensor, max_margin: float) -> Tensor:
    """Return which patches stay under the strategy "background".

    Args:
        margin: `(batch_size, num_patches)`, from `background_margin`; any value where no patch is present.
        present: `(batch_size, num_patches)`, bool, the patches that have not left before.
        max_margin: A patch leaves when its margin exceeds this.

    Returns:
        `(batch_size, num_patches)`, bool. At least one patch of every image stays: the one nearest to foreground.
    """
    keep = present & ~(margin > max_margin)
    # a present patch with a margin of infinity still comes before one that has left
    finite = margin.clamp(max=torch.finfo(margin.dtype).max)
    nearest = finite.masked_fill(~present, math.inf).argmin(dim=1, keepdim=True)
    rescued = torch.zeros_like(keep).scatter(1, nearest, True)
    return keep | (rescued & ~keep.any(dim=1, keepdim=True))


def num_kept(keep_rate: float, num_entered: int) -> int:
    """Return how many of the tokens that entered a cut stay, as EViT counts: `ceil(keep_rate * num_entered)`."""
    return math.ceil(keep_rate * num_entered)


def split_by_rank(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the places of the `count` highest scores, and those of the rest.

    Args:
        scores: `(batch_size, num_tokens)`.
        count: How many, at most `num_tokens`.

    Returns:
        `(batch_size, count)` and `(batch_size, num_tokens - count)`, int, each in ascending order of place, so that
        tokens go on as they lay in the image.
    """
    if torch.compiler.is_exporting():  # ONNX knows no stable sort
        order = scores.argsort(dim=1, descending=True)
    else:  # equal scores fall the same way in every layout of the tokens
        order = scores.argsort(dim=1, descending=True, stable=True)
    return order[:, :count].sort(dim=1).values, order[:, count:].sort(dim=1).values


def mask_of(indices: Tensor, num_places: int) -> Tensor:
    """Return indices `(batch_size, count)` as a mask `(batch_size, num_places)`, True at each of them."""
    mask = torch.zeros(indices.shape[0], num_places, dtype=torch.bool, device=indices.device)
    return mask.scatter(1, indices, True)


def take(values: Tensor, indices: Tensor) -> Tensor:
    """Return `values[b, indices[b]]`: of `(batch_size, num_tokens, ...)` and `(batch_size, count)`."""
    index = indices.reshape(*indices.shape, *(1,) * (values.dim() - 2)).expand(-1, -1, *values.shape[2:])
    return values.gather(1, index)


def with_prefix(patches: Tensor, num_prefix_tokens: int) -> Tensor:
    """Return a mask of patches `(batch_size, num_patches)` as one of tokens, whose prefix is always True."""
    return torch.nn.functional.pad(patches, (num_prefix_tokens, 0), value=True)


@dataclass(frozen=True)
class Packing:
    """Say where the tokens of a packed batch belong: all tokens of the first image, then those of the second, ...

    Packed tensors are `(total_tokens, ...)`, padded ones `(batch_size, num_places, ...)`.

    Args:
        present: `(batch_size, num_places)`, bool, the places that hold a token.
        places: `(total_tokens,)`, int, each token's place in the flattened `present`.
        lengths: Tokens of each image. `None` in a graph that is captured once for all images: there it is not known.
    """

    present: Tensor
    places: Tensor
    lengths: tuple[int, ...] | None

    @classmethod
    def of(cls, present: Tensor, is_captured: bool = False) -> "Packing":
        """Return the packing of the places `(batch_size, num_places)` where `present` is True."""
        places = present.flatten().nonzero().squeeze(1)
        return cls(present, places, None if is_captured else tuple(present.sum(dim=1).tolist()))

    @property
    def is_rectangular(self) -> bool:
        """Whether all images are known to have the same number of tokens."""
        return self.lengths is not None and len(set(self.lengths)) <= 1

    @property
    def image_of_token(self) -> Tensor:
        """Which image each token belongs to, `(total_tokens,)`, int."""
        return self.places // self.present.shape[1]

    def pack(self, padded: Tensor) -> Tensor:
        """Return the tokens that are present of `(batch_size, num_places, ...)` as `(total_tokens, ...)`."""
        return padded.flatten(0, 1).index_select(0, self.places)

    def unpack(self, packed: Tensor, fill: float = 0.0) -> Tensor:
        """Return `(total_tokens, ...)` as `(batch_size, num_places, ...)`, with `fill` where there is no token."""
        batch_size, num_places = self.present.shape
        padded = packed.new_full((batch_size * num_places, *packed.shape[1:]), fill)
        return padded.index_copy(0, self.places, packed).unflatten(0, (batch_size, num_places))

    def select(self, packed: Tensor, present: Tensor) -> Tensor:
        """Return those packed tokens whose place is True in `present`, a part of this packing's own mask."""
        row_of_place = self.present.flatten().cumsum(0) - 1
        return packed.index_select(0, row_of_place[present.flatten().nonzero().squeeze(1)])


def gate_loss(gate_logits: Tensor, present: Tensor, is_background: Tensor) -> Tensor:
    """Return how far a gate is from telling early what the last head says of a patch.

    Args:
        gate_logits: `(batch_size, num_patches, 1)`.
        present: `(batch_size, num_patches)`, bool: the patches that reached the gate; the others do not count.
        is_background: `(batch_size, num_patches)`, bool: what the last head says.

    Returns:
        0-dim: the binary cross-entropy in float32, its mean over the patches of each image, then over the images.
    """
    losses = torch.nn.functional.binary_cross_entropy_with_logits(
        gate_logits.squeeze(-1).float(), is_background.float(), reduction="none"
    )
    return ((losses * present).sum(dim=1) / present.sum(dim=1)).mean()


__all__ = [
    "EXECUTIONS",
    "PRUNING_HEADS",
    "STRATEGIES",
    "Packing",
    "background_margin",
    "gate_loss",
    "keep_foreground",
    "mask_of",
    "num_kept",
    "patch_logits_of",
    "split_by_rank",
    "take",
    "with_prefix",
]
