# SPDX-License-Identifier: Apache-2.0
"""Three layouts of the tokens of a batch from which patches leave, each with its way through a layer and back.

`MaskedTokens` keeps every token and hides those that left: the definition. `GatheredTokens` keeps the same number for
all images, `PackedTokens` any number for each. A layout is immutable; what changes it returns the next one. Each
remembers what the leaving patches said and when they left, so `finish` gives the picture of the full grid.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask

from .configuration_ice_deit import IceDeiTConfig
from .token_pruning import (
    Packing,
    mask_of,
    patch_logits_of,
    split_by_rank,
    take,
    with_prefix,
)


@dataclass(frozen=True)
class EncodedTokens:
    """Hold what became of all tokens; cells are those of the full patch grid.

    Args:
        last_hidden_state: `(batch_size, num_prefix_tokens + num_patches, hidden_size)`, after the final layer norm;
            zero where a patch left.
        patch_logits: `(batch_size, num_patches, num_labels + 1)`.
        exit_layer: `(batch_size, num_patches)`, int: the layer before which a patch left, or the number of layers.
        onlooker_logits: `(batch_size, num_patches, num_labels + 1)`, the last head's opinion also of patches that
            left; `None` where they were not computed to the end.
    """

    last_hidden_state: Tensor
    patch_logits: Tensor
    exit_layer: Tensor
    onlooker_logits: Tensor | None = None


@dataclass(frozen=True)
class MaskedTokens:
    """Keep all tokens; a patch that left goes on as an onlooker, which sees the others and is not seen.

    Args:
        hidden_states: `(batch_size, num_prefix_tokens + num_patches, hidden_size)`.
        config: The model's configuration.
        present: `(batch_size, num_patches)`, bool: who is seen.
        is_patch: `(batch_size, num_patches)`, bool: False where a fused token took the place of a patch that left.
        exit_layer: See `EncodedTokens`.
        exit_output: What the leaving patches' heads said, `(batch_size, num_patches, 1 or num_labels + 1)`.
        attention_mask: Hides who is not present, in the form of the attention implementation; made once a cut.
    """

    hidden_states: Tensor
    config: IceDeiTConfig
    present: Tensor
    is_patch: Tensor
    exit_layer: Tensor
    exit_output: Tensor | None = None
    attention_mask: Any = None

    @classmethod
    def start(cls, hidden_states: Tensor, config: IceDeiTConfig) -> "MaskedTokens":
        """Return all tokens `(batch_size, num_prefix_tokens + num_patches, hidden_size)`, before any patch leaves."""
        present = _all_present(hidden_states, config)
        return cls(hidden_states, config, present, present, _stays(present, config))

    def apply(self, layer: nn.Module, **kwargs: Any) -> "MaskedTokens":
        """Return the tokens after a layer."""
        return replace(self, hidden_states=layer(self.hidden_states, self.attention_mask, None, None, **kwargs))

    def ask(self, head: nn.Module) -> Tensor:
        """Return what a head says of every cell, `(batch_size, num_patches, 1 or num_labels + 1)`."""
        return head(self.hidden_states[:, self.config.num_prefix_tokens :])

    def keep(self, keep: Tensor, head_output: Tensor, layer_index: int) -> "MaskedTokens":
        """Return the tokens without the patches that are False in `keep`, `(batch_size, num_patches)`."""
        leaves = self.present & self.is_patch & ~keep
        return replace(
            self,
            present=keep,
            attention_mask=self._mask_of(keep),
            exit_layer=self.exit_layer.masked_fill(leaves, layer_index),
            exit_output=_where_left(leaves, head_output, self.exit_output),
        )

    def _mask_of(self, present: Tensor) -> Any:
        tokens = with_prefix(present, self.config.num_prefix_tokens)
        return create_bidirectional_mask(self.config, self.hidden_states, tokens)

    def keep_best(self, scores: Tensor, count: int, head_output: Tensor, layer_index: int) -> "MaskedTokens":
        """Return the tokens with the `count` best patches of each image by `scores`, `(batch_size, num_patches)`."""
        return self.keep(self._best(scores, count), head_output, layer_index)

    def _best(self, scores: Tensor, count: int) -> Tensor:
        # a present patch with a score of minus infinity still comes before one that has left
        finite = scores.clamp(min=torch.finfo(scores.dtype).min)
        best, _ = split_by_rank(finite.masked_fill(~self.present, -torch.inf), count)
        return mask_of(best, self.present.shape[1])

    def cut_inside(
        self, layer: nn.Module, count: int, patch_head: nn.Module, layer_index: int, **kwargs: Any
    ) -> "MaskedTokens":
        """Return the tokens after a layer between whose attention and MLP all but `count` tokens left (EViT)."""
        cut = partial(self._cut, count=count)
        hidden_states, keep, fused, leaving = layer(self.hidden_states, self.attention_mask, None, cut, **kwargs)
        tokens = self.keep(keep, patch_head(leaving), layer_index)
        if self.config.fuse_pruned_tokens:
            present = keep | fused
            is_patch, mask = tokens.is_patch & ~fused, self._mask_of(present)
            tokens = replace(tokens, present=present, is_patch=is_patch, attention_mask=mask)
        return replace(tokens, hidden_states=hidden_states)

    def _cut(self, hidden_states: Tensor, class_scores: Tensor, count: int) -> tuple[Tensor, ...]:
        num_prefix = self.config.num_prefix_tokens
        scores = _attentiveness(class_scores, with_prefix(self.present, num_prefix))[:, num_prefix:]
        keep = self._best(scores, count)
        prefix, patches = hidden_states[:, :num_prefix], hidden_states[:, num_prefix:]
        fused = torch.zeros_like(keep)
        if self.config.fuse_pruned_tokens:
            leaves = self.present & ~keep
            # the first place that becomes free: shapes stay those of the full grid
            fused = mask_of(leaves.to(torch.uint8).argmax(dim=1, keepdim=True), keep.shape[1])
            sums = (patches * (scores * leaves).to(patches.dtype).unsqueeze(-1)).sum(dim=1, keepdim=True)
            hidden_states = torch.cat((prefix, torch.where(fused.unsqueeze(-1), sums, patches)), dim=1)
        return hidden_states, keep, fused, patches

    def finish(self, layernorm: nn.Module, patch_head: nn.Module) -> EncodedTokens:
        """Return the picture of the full grid."""
        logits = self.ask(patch_head)
        stayed = self.exit_layer == self.config.num_hidden_layers
        seen = with_prefix(stayed, self.config.num_prefix_tokens).unsqueeze(-1)
        patch_logits = logits
        if self.exit_output is not None:
            exit_logits = patch_logits_of(self.exit_output, self.config.num_labels)
            patch_logits = torch.where(stayed.unsqueeze(-1), logits, exit_logits)
        return EncodedTokens(layernorm(self.hidden_states) * seen, patch_logits, self.exit_layer, logits)


@dataclass(frozen=True)
class GatheredTokens:
    """Keep the same number of tokens for all images; shapes never depend on what the images show.

    Args:
        hidden_states: `(batch_size, num_prefix_tokens + num_present, hidden_size)`.
        config: The model's configuration.
        cells: `(batch_size, num_present)`, int: the cell of each token behind the prefix; `num_patches`, one beyond
            the grid, for a fused token.
        exit_layer: `(batch_size, num_patches + 1)`; see `EncodedTokens`.
        exits: Cells and outputs of patches that left, `(batch_size, n)` and `(batch_size, n, 1 or num_labels + 1)`.
    """

    hidden_states: Tensor
    config: IceDeiTConfig
    cells: Tensor
    exit_layer: Tensor
    exits: tuple[tuple[Tensor, Tensor], ...] = ()

    @classmethod
    def start(cls, hidden_states: Tensor, config: IceDeiTConfig) -> "GatheredTokens":
        """Return all tokens `(batch_size, num_prefix_tokens + num_patches, hidden_size)`, before any patch leaves."""
        present = _all_present(hidden_states, config)
        cells = torch.arange(present.shape[1], device=present.device).expand(present.shape[0], -1)
        return cls(hidden_states, config, cells, nn.functional.pad(_stays(present, config), (0, 1)))

    def apply(self, layer: nn.Module, **kwargs: Any) -> "GatheredTokens":
        """Return the tokens after a layer."""
        return replace(self, hidden_states=layer(self.hidden_states, None, None, None, **kwargs))

    def ask(self, head: nn.Module) -> Tensor:
        """Return what a head says of every present patch, `(batch_size, num_present, 1 or num_labels + 1)`."""
        return head(self.hidden_states[:, self.config.num_prefix_tokens :])

    def keep_best(self, scores: Tensor, count: int, head_output: Tensor, layer_index: int) -> "GatheredTokens":
        """Return the tokens with the `count` best patches of each image by `scores`, `(batch_size, num_present)`."""
        best, rest = split_by_rank(scores, count)
        prefix, patches = self._split(self.hidden_states)
        hidden_states = torch.cat((prefix, take(patches, best)), dim=1)
        return replace(self._leave(best, rest, take(head_output, rest), layer_index), hidden_states=hidden_states)

    def cut_inside(
        self, layer: nn.Module, count: int, patch_head: nn.Module, layer_index: int, **kwargs: Any
    ) -> "GatheredTokens":
        """Return the tokens after a layer between whose attention and MLP all but `count` tokens left (EViT)."""
        cut = partial(self._cut, count=count)
        hidden_states, best, rest, leaving = layer(self.hidden_states, None, None, cut, **kwargs)
        tokens = self._leave(best, rest, patch_head(leaving), layer_index)
        cells = tokens.cells
        if self.config.fuse_pruned_tokens:
            cells = nn.functional.pad(cells, (0, 1), value=self.exit_layer.shape[1] - 1)
        return replace(tokens, hidden_states=hidden_states, cells=cells)

    def _cut(self, hidden_states: Tensor, class_scores: Tensor, count: int) -> tuple[Tensor, ...]:
        scores = _attentiveness(class_scores)[:, self.config.num_prefix_tokens :]
        best, rest = split_by_rank(scores, count)
        prefix, patches = self._split(hidden_states)
        leaving = take(patches, rest)
        parts = [prefix, take(patches, best)]
        if self.config.fuse_pruned_tokens:
            parts.append((leaving * take(scores, rest).to(leaving.dtype).unsqueeze(-1)).sum(dim=1, keepdim=True))
        return torch.cat(parts, dim=1), best, rest, leaving

    def _split(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        num_prefix = self.config.num_prefix_tokens
        return hidden_states[:, :num_prefix], hidden_states[:, num_prefix:]

    def _leave(self, best: Tensor, rest: Tensor, output: Tensor, layer_index: int) -> "GatheredTokens":
        leaving = take(self.cells, rest)
        exit_layer = self.exit_layer.scatter(1, leaving, layer_index)
        return replace(
            self, cells=take(self.cells, best), exit_layer=exit_layer, exits=(*self.exits, (leaving, output))
        )

    def finish(self, layernorm: nn.Module, patch_head: nn.Module) -> EncodedTokens:
        """Return the picture of the full grid."""
        num_patches = self.exit_layer.shape[1] - 1
        normed = layernorm(self.hidden_states)
        prefix, patches = self._split(normed)
        last = patches.new_zeros(patches.shape[0], num_patches + 1, patches.shape[2])
        last = _put(last, self.cells, patches)[:, :num_patches]
        stayed = self.ask(patch_head)
        width = self.exits[0][1].shape[-1] if self.exits else stayed.shape[-1]
        picture = stayed.new_zeros(stayed.shape[0], num_patches + 1, width)
        for cells, output in self.exits:
            picture = _put(picture, cells, output.to(picture.dtype))
        picture = _put(patch_logits_of(picture, self.config.num_labels), self.cells, stayed)
        last_hidden_state = torch.cat((prefix, last), dim=1)
        return EncodedTokens(last_hidden_state, picture[:, :num_patches], self.exit_layer[:, :num_patches])


@dataclass(frozen=True)
class PackedTokens:
    """Keep any number of tokens for each image, one image behind the other.

    Args:
        hidden_states: `(total_tokens, hidden_size)`.
        config: The model's configuration.
        present: `(batch_size, num_patches)`, bool.
        packing: Places of the tokens among all tokens of the full grid; `None` while all are there.
        exit_layer: See `EncodedTokens`.
        exit_output: What the leaving patches' heads said, `(batch_size, num_patches, 1 or num_labels + 1)`.
    """

    hidden_states: Tensor
    config: IceDeiTConfig
    present: Tensor
    packing: Packing | None
    exit_layer: Tensor
    exit_output: Tensor | None = None

    @classmethod
    def start(cls, hidden_states: Tensor, config: IceDeiTConfig) -> "PackedTokens":
        """Return all tokens `(batch_size, num_prefix_tokens + num_patches, hidden_size)`, before any patch leaves."""
        present = _all_present(hidden_states, config)
        return cls(hidden_states.flatten(0, 1), config, present, None, _stays(present, config))

    def apply(self, layer: nn.Module, **kwargs: Any) -> "PackedTokens":
        """Return the tokens after a layer."""
        if self.packing is None or self.packing.is_rectangular:
            hidden_states = self.hidden_states.unflatten(0, (self.present.shape[0], -1))
            hidden_states = layer(hidden_states, None, None, None, **kwargs).flatten(0, 1)
        else:
            hidden_states = layer(self.hidden_states.unsqueeze(0), None, self.packing, None, **kwargs).squeeze(0)
        return replace(self, hidden_states=hidden_states)

    def ask(self, head: nn.Module) -> Tensor:
        """Return what a head says of every present cell, `(batch_size, num_patches, 1 or num_labels + 1)`, else 0."""
        return self._places().unpack(head(self.hidden_states))[:, self.config.num_prefix_tokens :]

    def _places(self) -> Packing:
        if self.packing is not None:
            return self.packing
        # all are there: counted, not looked for, so that a captured graph knows how many
        tokens = with_prefix(self.present, self.config.num_prefix_tokens)
        return Packing(tokens, torch.arange(tokens.numel(), device=tokens.device), None)

    def keep(self, keep: Tensor, head_output: Tensor, layer_index: int) -> "PackedTokens":
        """Return the tokens without the patches that are False in `keep`, `(batch_size, num_patches)`."""
        leaves = self.present & ~keep
        kept_tokens = with_prefix(keep, self.config.num_prefix_tokens)
        return replace(
            self,
            hidden_states=self._places().select(self.hidden_states, kept_tokens),
            present=keep,
            # in a graph that serves all images no number may depend on them
            packing=Packing.of(kept_tokens, torch.compiler.is_compiling() or torch.jit.is_tracing()),
            exit_layer=self.exit_layer.masked_fill(leaves, layer_index),
            exit_output=_where_left(leaves, head_output, self.exit_output),
        )

    def finish(self, layernorm: nn.Module, patch_head: nn.Module) -> EncodedTokens:
        """Return the picture of the full grid."""
        batch_size, num_patches = self.present.shape
        only_patches = nn.functional.pad(self.present, (self.config.num_prefix_tokens, 0), value=False)
        packing = self._places()
        rows = patch_head(packing.select(self.hidden_states, only_patches))
        output = self.exit_output
        if output is None:
            output = rows.new_zeros(batch_size, num_patches, 1)
        picture = patch_logits_of(output, self.config.num_labels).flatten(0, 1)
        picture = picture.index_copy(0, self.present.flatten().nonzero().squeeze(1), rows)
        last_hidden_state = packing.unpack(layernorm(self.hidden_states))
        return EncodedTokens(last_hidden_state, picture.unflatten(0, (batch_size, num_patches)), self.exit_layer)


def _all_present(hidden_states: Tensor, config: IceDeiTConfig) -> Tensor:
    batch_size, num_tokens, _ = hidden_states.shape
    return hidden_states.new_ones((batch_size, num_tokens - config.num_prefix_tokens), dtype=torch.bool)


def _stays(present: Tensor, config: IceDeiTConfig) -> Tensor:
    return torch.full_like(present, config.num_hidden_layers, dtype=torch.long)


def _where_left(leaves: Tensor, output: Tensor, before: Tensor | None) -> Tensor:
    """Return what leaving patches' heads said, beside what others said before them."""
    return torch.where(leaves.unsqueeze(-1), output, torch.zeros_like(output) if before is None else before)


def _put(grid: Tensor, cells: Tensor, values: Tensor) -> Tensor:
    """Return `(batch_size, num_cells, n)` with `values` `(batch_size, count, n)` at `cells` `(batch_size, count)`."""
    batch_size, num_cells, _ = grid.shape
    rows = cells + num_cells * torch.arange(batch_size, device=cells.device).unsqueeze(1)
    return grid.flatten(0, 1).index_copy(0, rows.flatten(), values.flatten(0, 1)).unflatten(0, (batch_size, num_cells))


def _attentiveness(class_scores: Tensor, visible: Tensor | None = None) -> Tensor:
    """Return what [CLS] pays to each token, mean over heads, `(batch_size, num_tokens)`, float32.

    Args:
        class_scores: `(batch_size, num_heads, num_tokens)`, before the softmax.
        visible: `(batch_size, num_tokens)`, bool: the tokens that are attended to; all, if `None`.
    """
    if visible is not None:
        class_scores = class_scores.masked_fill(~visible.unsqueeze(1), -torch.inf)
    return class_scores.softmax(dim=-1).mean(dim=1)


def choose_layout(
    config: IceDeiTConfig, is_training: bool, records_states: bool
) -> type[MaskedTokens] | type[GatheredTokens] | type[PackedTokens]:
    """Return how the tokens are laid out.

    Args:
        config: Strategy and execution.
        is_training: Whether the model trains. Pruning heads learn from what becomes of the patches that leave.
        records_states: Whether hidden states or attentions are asked for, which have the shape of the full grid.
    """
    learns = is_training and config.has_pruning_heads
    if config.pruning_execution == "masked" or records_states or learns:
        return MaskedTokens
    if config.pruning_strategy != "background":
        return GatheredTokens
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting() and not _captures_dynamic_shapes():
        return MaskedTokens
    return PackedTokens


@torch.compiler.assume_constant_result
def _captures_dynamic_shapes() -> bool:
    """Whether `torch.compile` was told to take in shapes that depend on the images; they would break the graph."""
    return torch._dynamo.config.capture_dynamic_output_shape_ops


__all__ = ["EncodedTokens", "GatheredTokens", "MaskedTokens", "PackedTokens", "choose_layout"]
