# SPDX-License-Identifier: Apache-2.0
"""Token pruning: the strategies that decide which patches are kept, one object each, and their tensor functions.

`num_patches` counts the cells of the full patch grid; a token that is no patch, such as [CLS], is a prefix token and
never pruned. A mask is True where a patch is present.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig


# torch 2.6 has no such function
is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", lambda: False)

EXECUTIONS = ("auto", "packed", "masked")
PRUNING_HEADS = ("gate", "patch")

KeepPolicy = Callable[[int, Tensor, Tensor], Tensor]
"""Decides which patches are kept at a pruning layer: maps its index, the background margin and the mask of the patches
present, both `(batch_size, num_patches)`, to the mask of those kept, at least one of each image. Where no patch is
present, the margin may have any value."""


def head_output_to_patch_logits(head_output: Tensor, num_labels: int) -> Tensor:
    """Return the output of a pruning head as patch logits, `(..., num_labels + 1)`, which pass unchanged.

    Of a gate, `(..., 1)`, the background logit is its own and every class has `-log(num_labels)`: the softmax gives
    background the gate's sigmoid and every class an equal share of the rest.
    """
    if head_output.shape[-1] == num_labels + 1:
        return head_output
    return nn.functional.pad(head_output, (num_labels, 0), value=-math.log(num_labels))


def background_margin(head_output: Tensor) -> Tensor:
    """Return the margin by which background beats what else a patch could be, `(...)`.

    Of patch logits `(..., num_labels + 1)` the background score minus the best class. A gate `(..., 1)` knows one
    alternative, "no background", whose score is 0 (the log-sum-exp of its class logits), so its margin is its logit,
    and 0 means p(background) = 0.5, however many classes there are.
    """
    if head_output.shape[-1] == 1:
        return head_output.squeeze(-1)
    return head_output[..., -1] - head_output[..., :-1].amax(dim=-1)


def keep_foreground(margin: Tensor, present: Tensor, max_margin: float) -> Tensor:
    """Return the patches that are kept, `(batch_size, num_patches)`, bool: those with at most `max_margin`.

    `margin` may have any value where no patch is `present`. The patch nearest to foreground is always kept.
    """
    keep = present & ~(margin > max_margin)
    # a present patch with a margin of infinity still comes before one that was pruned
    finite = margin.clamp(max=torch.finfo(margin.dtype).max)
    nearest = finite.masked_fill(~present, math.inf).argmin(dim=1, keepdim=True)
    rescued = torch.zeros_like(keep).scatter(1, nearest, True)
    return keep | (rescued & ~keep.any(dim=1, keepdim=True))


def foreground_policy(max_margin: float) -> KeepPolicy:
    """Return the policy that is `keep_foreground` with a fixed `max_margin`."""
    return lambda _, margin, present: keep_foreground(margin, present, max_margin)


def num_kept(keep_rate: float, num_entered: int) -> int:
    """Return how many of the tokens that enter a pruning step it keeps, as EViT: `ceil(keep_rate * num_entered)`."""
    return math.ceil(keep_rate * num_entered)


def split_by_rank(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the places of the `count` highest scores `(batch_size, num_tokens)`, and those of the rest.

    Both are in ascending order of place, so that tokens keep their order in the image.
    """
    if is_exporting():  # ONNX knows no stable sort
        order = scores.argsort(dim=1, descending=True)
    else:  # equal scores fall the same way in every layout of the tokens
        order = scores.argsort(dim=1, descending=True, stable=True)
    return order[:, :count].sort(dim=1).values, order[:, count:].sort(dim=1).values


def indices_to_mask(indices: Tensor, num_places: int) -> Tensor:
    """Return indices `(batch_size, count)` as a mask `(batch_size, num_places)`, True at each of them."""
    mask = torch.zeros(indices.shape[0], num_places, dtype=torch.bool, device=indices.device)
    return mask.scatter(1, indices, True)


def flat_indices(indices: Tensor, num_places: int) -> Tensor:
    """Return `(batch_size, count)` indices of places as `(batch_size * count,)` of rows of the flattened batch."""
    return (indices + num_places * torch.arange(indices.shape[0], device=indices.device).unsqueeze(1)).flatten()


def gather_tokens(values: Tensor, indices: Tensor) -> Tensor:
    """Return `values[b, indices[b]]`: of `(batch_size, num_tokens, ...)` and `(batch_size, count)`."""
    # whole rows: the runtimes of exported models copy them faster than single values
    rows = flat_indices(indices, values.shape[1])
    return values.flatten(0, 1).index_select(0, rows).unflatten(0, indices.shape)


def add_prefix(patches: Tensor, num_prefix_tokens: int) -> Tensor:
    """Return a mask of patches `(batch_size, num_patches)` as one of tokens, whose prefix is always True."""
    return torch.nn.functional.pad(patches, (num_prefix_tokens, 0), value=True)


def gate_loss(gate_logits: Tensor, present: Tensor, is_background: Tensor) -> Tensor:
    """Return the loss of a gate, 0-dim: binary cross-entropy in float32, mean over an image's patches, then images.

    The target `is_background` is the decision of the last head. Patches that did not reach the gate, which are not
    `present`, do not count. `gate_logits` is `(batch_size, num_patches, 1)`, the masks `(batch_size, num_patches)`.
    """
    losses = torch.nn.functional.binary_cross_entropy_with_logits(
        gate_logits.squeeze(-1).float(), is_background.float(), reduction="none"
    )
    return ((losses * present).sum(dim=1) / present.sum(dim=1)).mean()


@dataclass(frozen=True)
class EncodedTokens:
    """Kept and pruned tokens after the last layer, on the full patch grid.

    `last_hidden_state` `(batch_size, num_tokens, hidden_size)` is zero for pruned patches. `exit_layer`
    `(batch_size, num_patches)` is the layer before which a patch was pruned, or their number. `last_patch_logits` are
    those of the last head, for pruned patches too; `None` where they were not computed.
    """

    last_hidden_state: Tensor
    patch_logits: Tensor
    exit_layer: Tensor
    last_patch_logits: Tensor | None = None


class TokenLayout(Protocol):
    """Tokens of a batch between two layers; immutable, each method returns the next one."""

    def apply_layer(self, layer: nn.Module, **kwargs: Any) -> "TokenLayout":
        """Return the tokens after a layer."""
        ...

    def apply_head(self, head: nn.Module) -> Tensor:
        """Return the output of a head for the patches, `(batch_size, n, 1 or num_labels + 1)`."""
        ...

    def scatter_to_grid(self, final_norm: nn.Module, patch_head: nn.Module) -> EncodedTokens:
        """Scatter kept and pruned patches back to the full patch grid."""
        ...


class VariableCountLayout(TokenLayout, Protocol):
    """Layout in which images may keep different numbers of patches."""

    @property
    def present(self) -> Tensor:
        """`(batch_size, num_patches)`, bool: the patches that are attended to."""
        ...

    def keep(self, keep: Tensor, head_output: Tensor, layer_index: int) -> TokenLayout:
        """Prune the patches that are False in `keep`, `(batch_size, num_patches)`."""
        ...


class FixedCountLayout(TokenLayout, Protocol):
    """Layout in which all images keep the same number of patches."""

    def keep_best(self, scores: Tensor, count: int, head_output: Tensor, layer_index: int) -> TokenLayout:
        """Keep the `count` patches of each image with the highest `scores`, `(batch_size, n)`."""
        ...

    def prune_inside(
        self, layer: nn.Module, count: int, patch_head: nn.Module, layer_index: int, **kwargs: Any
    ) -> TokenLayout:
        """Apply a layer; between attention and MLP, keep the `count` patches that [CLS] attends to most."""
        ...


@dataclass(frozen=True)
class PruningStep:
    """Layer of an encoder that prunes, as the strategies see it.

    By the schedule, `num_entered` tokens of an image enter it (prefix aside), and its keep rate keeps `count` of
    these. `keep_policy` decides where images keep different numbers.
    """

    layer_index: int
    num_entered: int
    count: int
    keep_policy: KeepPolicy


@dataclass(frozen=True)
class TokenCounts:
    """Tokens that each part of a model works on, for every image.

    `tokens_per_layer` and `mlp_tokens` are `(num_images, num_layers)`, prefix included; the MLP sees fewer where
    patches are pruned inside. The others are `(num_images,)`: patches that pruning heads are applied to, summed over
    the layers; patches of the patch head; tokens whose attention from [CLS] is computed once more, to rank them.
    """

    tokens_per_layer: np.ndarray
    mlp_tokens: np.ndarray
    pruning_head_patches: np.ndarray
    patch_head_patches: np.ndarray
    class_attention_tokens: np.ndarray


def count_present_tokens(config: PreTrainedConfig, exit_layer: np.ndarray) -> TokenCounts:
    """Count the tokens of images whose patches are pruned before a layer, or not at all.

    `config` is an `IceDeiTConfig`, `exit_layer` the model's `patch_exit_layer`, `(num_images, num_patches)`.
    """
    layers = np.arange(config.num_hidden_layers)
    tokens = (exit_layer[:, None] > layers[:, None]).sum(axis=2) + config.num_prefix_tokens
    none = np.zeros(len(exit_layer), dtype=int)
    judged = sum(((exit_layer >= index).sum(axis=1) for index in config.pruning_schedule), start=none)
    return TokenCounts(tokens, tokens, judged, (exit_layer == len(layers)).sum(axis=1), none)


Layout = TypeVar("Layout", bound=TokenLayout)


class PruningStrategy(Generic[Layout]):
    """Rule by which patches are pruned; a new one is a subclass with an entry in `STRATEGIES`.

    Its `tokens` are in a layout of `token_layouts`: `GatheredTokens` where `has_fixed_counts`, else `PackedTokens`, or
    `MaskedTokens`, which has the methods of both.

    Attributes:
        name: Its value of `config.pruning_strategy`.
        title: One line for user interfaces: name, colon, what it does.
        needs_heads: Whether it decides by a trained pruning head at each pruning layer.
        has_fixed_counts: Whether `config.keep_rates` fix how many patches are kept; otherwise each image decides.
        can_fuse: Whether `config.fuse_pruned_tokens` may be set.
    """

    name: str
    title: str
    needs_heads: bool = True
    has_fixed_counts: bool = True
    can_fuse: bool = False

    def schedule(self, layers: Iterable[int], keep_rates: Iterable[float]) -> dict[int, float]:
        """Return the keep rate by pruning layer."""
        return dict(zip(layers, keep_rates, strict=True))

    def decide(self, tokens: Layout, head_output: Tensor, step: PruningStep) -> TokenLayout:
        """Return the tokens that enter a pruning layer, by the output of its pruning head."""
        return tokens

    def apply_layer(
        self, tokens: Layout, layer: nn.Module, patch_head: nn.Module, step: PruningStep, **kwargs: Any
    ) -> TokenLayout:
        """Return the tokens after any layer of the encoder."""
        return tokens.apply_layer(layer, **kwargs)

    def num_left(self, step: PruningStep, fuses: bool) -> int:
        """Return how many tokens of an image, prefix aside, are left after a layer."""
        return step.count

    def count_tokens(self, config: PreTrainedConfig, exit_layer: np.ndarray) -> TokenCounts:
        """Count the tokens that each part of the model works on; arguments as for `count_present_tokens`."""
        return count_present_tokens(config, exit_layer)


class BackgroundStrategy(PruningStrategy[VariableCountLayout]):
    """Prune as many patches as the pruning heads call background."""

    name = "background"
    title = "Background: a patch is pruned once it is surely background"
    has_fixed_counts = False

    def schedule(self, layers: Iterable[int], keep_rates: Iterable[float]) -> dict[int, float]:
        """Return 1 for each layer: the images decide."""
        return dict.fromkeys(layers, 1.0)

    def decide(self, tokens: VariableCountLayout, head_output: Tensor, step: PruningStep) -> TokenLayout:
        """Return the tokens that the keep policy keeps."""
        keep = step.keep_policy(step.layer_index, background_margin(head_output), tokens.present)
        return tokens.keep(keep, head_output, step.layer_index)


class TopKStrategy(PruningStrategy[FixedCountLayout]):
    """Keep a fixed number of patches, those that the pruning heads find least like background."""

    name = "top_k"
    title = "Top k: a fixed ratio is kept, the least like background"

    def decide(self, tokens: FixedCountLayout, head_output: Tensor, step: PruningStep) -> TokenLayout:
        """Return the tokens with the `step.count` smallest margins."""
        margin = background_margin(head_output)
        prunes = step.count < margin.shape[1]
        return tokens.keep_best(-margin, step.count, head_output, step.layer_index) if prunes else tokens

    def count_tokens(self, config: PreTrainedConfig, exit_layer: np.ndarray) -> TokenCounts:
        """Count by the schedule; of `exit_layer` the shape alone matters."""
        (num_images, present), schedule = exit_layer.shape, config.pruning_schedule
        tokens, judged = [], 0
        for index in range(config.num_hidden_layers):
            if index in schedule:
                judged += present
                present = num_kept(schedule[index], present)
            tokens.append(config.num_prefix_tokens + present)
        return _same_for_all(num_images, tokens, tokens, judged, present, 0)


class AttentivenessStrategy(PruningStrategy[FixedCountLayout]):
    """Keep a fixed number of patches, those that [CLS] attends to most, between attention and MLP of a layer.

    Source: Liang et al., "Not All Patches are What You Need" (EViT), ICLR 2022.
    """

    name = "attentiveness"
    title = "Attentiveness: a fixed ratio is kept, by [CLS] attention (EViT)"
    needs_heads = False
    can_fuse = True

    def apply_layer(
        self, tokens: FixedCountLayout, layer: nn.Module, patch_head: nn.Module, step: PruningStep, **kwargs: Any
    ) -> TokenLayout:
        """Return the tokens after a layer that prunes inside."""
        if step.count < step.num_entered:
            return tokens.prune_inside(layer, step.count, patch_head, step.layer_index, **kwargs)
        return tokens.apply_layer(layer, **kwargs)

    def num_left(self, step: PruningStep, fuses: bool) -> int:
        """Return the number of kept patches, plus 1 for a fused token."""
        return step.count + (fuses and step.count < step.num_entered)

    def count_tokens(self, config: PreTrainedConfig, exit_layer: np.ndarray) -> TokenCounts:
        """Count by the schedule; of `exit_layer` the shape alone matters."""
        (num_images, present), prefix, schedule = exit_layer.shape, config.num_prefix_tokens, config.pruning_schedule
        entering, after_attention, classified, ranked = [], [], 0, 0
        for index in range(config.num_hidden_layers):
            entering.append(prefix + present)
            kept = num_kept(schedule.get(index, 1.0), present)
            if kept < present:
                ranked += prefix + present
                classified += present - kept  # the patch head classifies a patch as it is pruned
                present = kept + config.fuse_pruned_tokens
            after_attention.append(prefix + present)
        return _same_for_all(num_images, entering, after_attention, 0, classified + present, ranked)


def _same_for_all(num_images: int, *counts: Any) -> TokenCounts:
    return TokenCounts(*(np.repeat(np.asarray(part)[None], num_images, axis=0) for part in counts))


_ALL: tuple[PruningStrategy[Any], ...] = (BackgroundStrategy(), TopKStrategy(), AttentivenessStrategy())
STRATEGIES = {strategy.name: strategy for strategy in _ALL}
"""Strategies by the value of `config.pruning_strategy`."""

__all__ = [
    "EXECUTIONS",
    "PRUNING_HEADS",
    "STRATEGIES",
    "BackgroundStrategy",
    "EncodedTokens",
    "FixedCountLayout",
    "KeepPolicy",
    "PruningStep",
    "PruningStrategy",
    "TokenCounts",
    "TokenLayout",
    "VariableCountLayout",
    "add_prefix",
    "background_margin",
    "count_present_tokens",
    "flat_indices",
    "foreground_policy",
    "gate_loss",
    "gather_tokens",
    "head_output_to_patch_logits",
    "indices_to_mask",
    "is_exporting",
    "keep_foreground",
    "num_kept",
    "split_by_rank",
]
