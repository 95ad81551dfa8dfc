# SPDX-License-Identifier: Apache-2.0
"""Three layouts of the tokens of a batch from which patches are pruned, each with its way through a layer and back.

`MaskedTokens` keeps every token and masks the pruned ones: the definition. `GatheredTokens` keeps the same number for
all images, `PackedTokens` any number for each. A layout is immutable; what changes it returns the next one. Each
records the head outputs and exit layers of pruned patches, so `scatter_to_grid` covers the full patch grid.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask

from .configuration_ice_deit import IceDeiTConfig
from .packed_attention import Packing
from .token_pruning import (
    STRATEGIES,
    EncodedTokens,
    add_prefix,
    flat_indices,
    gather_tokens,
    head_output_to_patch_logits,
    indices_to_mask,
    is_exporting,
    split_by_rank,
)


@dataclass(frozen=True)
class MaskedTokens:
    """Layout of all tokens; a pruned patch keeps attending to the kept tokens but is masked out as a key.

    `hidden_states` is `(batch_size, num_prefix_tokens + num_patches, hidden_size)`; the masks `present` (what is
    attended to) and `is_patch` (False where a fused token took the place of a pruned patch) and `exit_layer` are
    `(batch_size, num_patches)`; `exit_output` holds the head outputs of pruned patches, `(batch_size, num_patches, 1
    or num_labels + 1)`. The attention mask, in the form of the attention implementation, is made once per pruning
    step.
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
        """Return all tokens `(batch_size, num_prefix_tokens + num_patches, hidden_size)`, before any pruning."""
        present = _all_present(hidden_states, config)
        return cls(hidden_states, config, present, present, _initial_exit_layer(present, config))

    def apply_layer(self, layer: nn.Module, **kwargs: Any) -> "MaskedTokens":
        """Return the tokens after a layer."""
        return replace(self, hidden_states=layer(self.hidden_states, self.attention_mask, None, None, **kwargs))

    def apply_head(self, head: nn.Module) -> Tensor:
        """Return the output of a head for every cell, `(batch_size, num_patches, 1 or num_labels + 1)`."""
        return head(self.hidden_states[:, self.config.num_prefix_tokens :])

    def keep(self, keep: Tensor, head_output: Tensor, layer_index: int) -> "MaskedTokens":
        """Prune the patches that are False in `keep`, `(batch_size, num_patches)`."""
        pruned = self.present & self.is_patch & ~keep
        return replace(
            self,
            present=keep,
            attention_mask=self._attention_mask(keep),
            exit_layer=self.exit_layer.masked_fill(pruned, layer_index),
            exit_output=_record_outputs(pruned, head_output, self.exit_output),
        )

    def _attention_mask(self, present: Tensor) -> Any:
        tokens = add_prefix(present, self.config.num_prefix_tokens)
        return create_bidirectional_mask(self.config, self.hidden_states, tokens)

    def keep_best(self, scores: Tensor, count: int, head_output: Tensor, layer_index: int) -> "MaskedTokens":
        """Return the tokens with the `count` best patches of each image by `scores`, `(batch_size, num_patches)`."""
        return self.keep(self._best(scores, count), head_output, layer_index)

    def _best(self, scores: Tensor, count: int) -> Tensor:
        # a present patch with a score of minus infinity still comes before a pruned one
        finite = scores.clamp(min=torch.finfo(scores.dtype).min)
        best, _ = split_by_rank(finite.masked_fill(~self.present, -torch.inf), count)
        return indices_to_mask(best, self.present.shape[1])

    def prune_inside(
        self, layer: nn.Module, count: int, patch_head: nn.Module, layer_index: int, **kwargs: Any
    ) -> "MaskedTokens":
        """Apply a layer; between attention and MLP, keep the `count` patches that [CLS] attends to most (EViT)."""
        prune = partial(self._prune_by_attention, count=count)
        hidden_states, keep, fused, patches = layer(self.hidden_states, self.attention_mask, None, prune, **kwargs)
        tokens = self.keep(keep, patch_head(patches), layer_index)
        if self.config.fuse_pruned_tokens:
            present = keep | fused
            is_patch, mask = tokens.is_patch & ~fused, self._attention_mask(present)
            tokens = replace(tokens, present=present, is_patch=is_patch, attention_mask=mask)
        return replace(tokens, hidden_states=hidden_states)

    def _prune_by_attention(self, hidden_states: Tensor, class_scores: Tensor, count: int) -> tuple[Tensor, ...]:
        num_prefix = self.config.num_prefix_tokens
        scores = _class_attention(class_scores, add_prefix(self.present, num_prefix))[:, num_prefix:]
        keep = self._best(scores, count)
        prefix, patches = hidden_states[:, :num_prefix], hidden_states[:, num_prefix:]
        fused = torch.zeros_like(keep)
        if self.config.fuse_pruned_tokens:
            pruned = self.present & ~keep
            # the first place that becomes free: shapes stay those of the full grid
            fused = indices_to_mask(pruned.to(torch.uint8).argmax(dim=1, keepdim=True), keep.shape[1])
            sums = (patches * (scores * pruned).to(patches.dtype).unsqueeze(-1)).sum(dim=1, keepdim=True)
            hidden_states = torch.cat((prefix, torch.where(fused.unsqueeze(-1), sums, patches)), dim=1)
        return hidden_states, keep, fused, patches

    def scatter_to_grid(self, final_norm: nn.Module, patch_head: nn.Module) -> EncodedTokens:
        """Scatter kept and pruned patches back to the full patch grid."""
        logits = self.apply_head(patch_head)
        is_kept = self.exit_layer == self.config.num_hidden_layers
        kept_tokens = add_prefix(is_kept, self.config.num_prefix_tokens).unsqueeze(-1)
        patch_logits = logits
        if self.exit_output is not None:
            exit_logits = head_output_to_patch_logits(self.exit_output, self.config.num_labels)
            patch_logits = torch.where(is_kept.unsqueeze(-1), logits, exit_logits)
        return EncodedTokens(final_norm(self.hidden_states) * kept_tokens, patch_logits, self.exit_layer, logits)


@dataclass(frozen=True)
class _Exits:
    """Patches pruned at one step, `n` of each image, and what their logits are made from.

    `places` is `(batch_size, n)`. `values` are head outputs `(batch_size, n, 1 or num_labels + 1)`, or hidden states
    `(batch_size, n, hidden_size)` for the patch head.
    """

    layer_index: int
    places: Tensor
    values: Tensor


@dataclass(frozen=True)
class GatheredTokens:
    """Layout of the tokens kept, the same number for all images; shapes never depend on what the images show.

    `hidden_states` is `(batch_size, num_prefix_tokens + num_present, hidden_size)`; `places` `(batch_size,
    num_prefix_tokens + num_present)` is the place of each token among all tokens of the full grid; one beyond them for
    a fused token. `exits` are the patches pruned so far: everything of the full grid is made from them at the end.
    """

    hidden_states: Tensor
    config: IceDeiTConfig
    num_prefix: int
    num_patches: int
    places: Tensor
    exits: tuple[_Exits, ...] = ()
    prunes_inside: bool = False

    @classmethod
    def start(cls, hidden_states: Tensor, config: IceDeiTConfig) -> "GatheredTokens":
        """Return all tokens `(batch_size, num_prefix_tokens + num_patches, hidden_size)`, before any pruning."""
        batch_size, num_tokens, _ = hidden_states.shape
        places = torch.arange(num_tokens, device=hidden_states.device).expand(batch_size, -1)
        num_prefix = config.num_prefix_tokens
        return cls(hidden_states, config, num_prefix, num_tokens - num_prefix, places)

    def apply_layer(self, layer: nn.Module, **kwargs: Any) -> "GatheredTokens":
        """Return the tokens after a layer."""
        return replace(self, hidden_states=layer(self.hidden_states, None, None, None, **kwargs))

    def apply_head(self, head: nn.Module) -> Tensor:
        """Return the output of a head for present patches, `(batch_size, num_present, 1 or num_labels + 1)`."""
        return head(self.hidden_states)[:, self.num_prefix :]  # the patches alone would have to be copied first

    def keep_best(self, scores: Tensor, count: int, head_output: Tensor, layer_index: int) -> "GatheredTokens":
        """Return the tokens with the `count` best patches of each image by `scores`, `(batch_size, num_present)`."""
        kept, pruned = self._rank(scores, count)
        exits = _Exits(
            layer_index, gather_tokens(self.places, pruned), gather_tokens(head_output, pruned - self.num_prefix)
        )
        return replace(
            self,
            hidden_states=gather_tokens(self.hidden_states, kept),
            places=gather_tokens(self.places, kept),
            exits=(*self.exits, exits),
        )

    def prune_inside(
        self, layer: nn.Module, count: int, patch_head: nn.Module, layer_index: int, **kwargs: Any
    ) -> "GatheredTokens":
        """Apply a layer; between attention and MLP, keep the `count` patches that [CLS] attends to most (EViT)."""
        prune = partial(self._prune_by_attention, count=count)
        hidden_states, kept, pruned, values = layer(self.hidden_states, None, None, prune, **kwargs)
        places = gather_tokens(self.places, kept)
        if self.config.fuse_pruned_tokens:
            places = nn.functional.pad(places, (0, 1), value=self.num_prefix + self.num_patches)
        exits = _Exits(layer_index, gather_tokens(self.places, pruned), values)
        return replace(
            self, hidden_states=hidden_states, places=places, exits=(*self.exits, exits), prunes_inside=True
        )

    def _rank(self, scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return the tokens that are kept, prefix included, and those that are pruned, as indices."""
        best, rest = split_by_rank(scores, count)
        prefix = torch.arange(self.num_prefix, device=scores.device).expand(scores.shape[0], -1)
        return torch.cat((prefix, best + self.num_prefix), dim=1), rest + self.num_prefix

    def _prune_by_attention(self, hidden_states: Tensor, class_scores: Tensor, count: int) -> tuple[Tensor, ...]:
        scores = _class_attention(class_scores)
        kept, pruned = self._rank(scores[:, self.num_prefix :], count)
        values, tokens = gather_tokens(hidden_states, pruned), gather_tokens(hidden_states, kept)
        if self.config.fuse_pruned_tokens:
            weights = gather_tokens(scores, pruned).to(values.dtype).unsqueeze(1)
            tokens = torch.cat((tokens, weights @ values), dim=1)  # the sum of the pruned ones is (batch, 1, dim)
        return tokens, kept, pruned, values

    def scatter_to_grid(self, final_norm: nn.Module, patch_head: nn.Module) -> EncodedTokens:
        """Scatter kept and pruned patches back to the full patch grid."""
        num_tokens = self.num_prefix + self.num_patches
        last_hidden_state = _scatter(self.places, final_norm(self.hidden_states), num_tokens)
        exit_layer = self.places.new_full((self.places.shape[0], num_tokens + 1), self.config.num_hidden_layers)
        for step in self.exits:
            exit_layer = exit_layer.scatter(1, step.places, step.layer_index)
        return EncodedTokens(last_hidden_state, self._grid_logits(patch_head), exit_layer[:, self.num_prefix : -1])

    def _grid_logits(self, patch_head: nn.Module) -> Tensor:
        """Return the logits of all patches, kept and pruned, `(batch_size, num_patches, num_labels + 1)`."""
        kept = self.hidden_states[:, self.num_prefix :]
        if not self.exits:
            return patch_head(kept)
        cells = [places - self.num_prefix for places in (*(step.places for step in self.exits), self.places)]
        cells[-1] = cells[-1][:, self.num_prefix :]
        values = [step.values for step in self.exits]
        if self.prunes_inside:  # one product for all patches
            places, states = torch.cat(cells, dim=1), torch.cat((*values, kept), dim=1)
            return patch_head(_gather_to_grid(places, states, self.num_patches))
        logits = patch_head(kept)
        values = [output.to(logits.dtype) for output in values]
        if values[0].shape[2] > 1:
            return _gather_to_grid(torch.cat(cells, dim=1), torch.cat((*values, logits), dim=1), self.num_patches)
        gates = _scatter(torch.cat(cells[:-1], dim=1), torch.cat(values, dim=1), self.num_patches)
        grid = head_output_to_patch_logits(gates, self.config.num_labels)
        rows = flat_indices(cells[-1], self.num_patches)
        return grid.flatten(0, 1).index_copy_(0, rows, logits.flatten(0, 1)).unflatten(0, grid.shape[:2])


@dataclass(frozen=True)
class PackedTokens:
    """Layout of the tokens kept, any number of each image, one image after the other, `(total_tokens, hidden_size)`.

    `packing` holds the places of the tokens among all tokens of the full grid, `None` while all are present. The
    others are as in `MaskedTokens`.
    """

    hidden_states: Tensor
    config: IceDeiTConfig
    present: Tensor
    packing: Packing | None
    exit_layer: Tensor
    exit_output: Tensor | None = None

    @classmethod
    def start(cls, hidden_states: Tensor, config: IceDeiTConfig) -> "PackedTokens":
        """Return all tokens `(batch_size, num_prefix_tokens + num_patches, hidden_size)`, before any pruning."""
        present = _all_present(hidden_states, config)
        return cls(hidden_states.flatten(0, 1), config, present, None, _initial_exit_layer(present, config))

    def apply_layer(self, layer: nn.Module, **kwargs: Any) -> "PackedTokens":
        """Return the tokens after a layer."""
        if self.packing is None or self.packing.is_rectangular:
            hidden_states = self.hidden_states.unflatten(0, (self.present.shape[0], -1))
            hidden_states = layer(hidden_states, None, None, None, **kwargs).flatten(0, 1)
        else:
            hidden_states = layer(self.hidden_states.unsqueeze(0), None, self.packing, None, **kwargs).squeeze(0)
        return replace(self, hidden_states=hidden_states)

    def apply_head(self, head: nn.Module) -> Tensor:
        """Return the output of a head, `(batch_size, num_patches, n)`, with any values where patches are pruned."""
        return self._apply(head)[:, self.config.num_prefix_tokens :]

    def _apply(self, module: nn.Module) -> Tensor:
        """Return the output of a module for all tokens, as `apply_head` does, `(batch_size, num_tokens, n)`."""
        if self.packing is None:
            return module(self.hidden_states.unflatten(0, (self.present.shape[0], -1)))
        return self.packing.unpack(module(self.hidden_states))

    def keep(self, keep: Tensor, head_output: Tensor, layer_index: int) -> "PackedTokens":
        """Prune the patches that are False in `keep`, `(batch_size, num_patches)`."""
        pruned = self.present & ~keep
        kept_tokens = add_prefix(keep, self.config.num_prefix_tokens)
        # in a graph that serves all images no number may depend on them
        is_captured = torch.compiler.is_compiling() or torch.jit.is_tracing()
        packing = Packing.captured(kept_tokens) if is_captured else Packing.of(kept_tokens)
        rows = packing.places
        if self.packing is not None:
            rows = self.packing.rows.flatten().index_select(0, rows)
        return replace(
            self,
            hidden_states=self.hidden_states.index_select(0, rows),
            present=keep,
            packing=packing,
            exit_layer=self.exit_layer.masked_fill(pruned, layer_index),
            exit_output=_record_outputs(pruned, head_output, self.exit_output),
        )

    def scatter_to_grid(self, final_norm: nn.Module, patch_head: nn.Module) -> EncodedTokens:
        """Scatter kept and pruned patches back to the full patch grid."""
        patch_logits, last_hidden_state = self.apply_head(patch_head), self._apply(final_norm)
        if self.exit_output is not None:
            exit_logits = head_output_to_patch_logits(self.exit_output, self.config.num_labels)
            patch_logits = torch.where(self.present.unsqueeze(-1), patch_logits, exit_logits)
            tokens = add_prefix(self.present, self.config.num_prefix_tokens).unsqueeze(-1)
            last_hidden_state = last_hidden_state.masked_fill(~tokens, 0.0)
        return EncodedTokens(last_hidden_state, patch_logits, self.exit_layer)


def _all_present(hidden_states: Tensor, config: IceDeiTConfig) -> Tensor:
    batch_size, num_tokens, _ = hidden_states.shape
    return hidden_states.new_ones((batch_size, num_tokens - config.num_prefix_tokens), dtype=torch.bool)


def _initial_exit_layer(present: Tensor, config: IceDeiTConfig) -> Tensor:
    return torch.full_like(present, config.num_hidden_layers, dtype=torch.long)


def _record_outputs(pruned: Tensor, output: Tensor, before: Tensor | None) -> Tensor:
    """Return the head outputs of the patches pruned now, beside those of patches pruned before."""
    return torch.where(pruned.unsqueeze(-1), output, torch.zeros_like(output) if before is None else before)


def _scatter(cells: Tensor, values: Tensor, num_cells: int) -> Tensor:
    """Return `(batch_size, num_cells, n)` with `values` `(batch_size, count, n)` at `cells` `(batch_size, count)`.

    It is zero elsewhere. Values at `num_cells`, as those of fused tokens, are left out.
    """
    return _gather_to_grid(cells, nn.functional.pad(values, (0, 0, 0, 1)), num_cells)


def _gather_to_grid(cells: Tensor, values: Tensor, num_cells: int) -> Tensor:
    """Return values at their cells, as `_scatter` does; a cell that no value is for gets the last one."""
    sources = torch.arange(cells.shape[1], device=cells.device).expand_as(cells)
    source = cells.new_full((cells.shape[0], num_cells + 1), values.shape[1] - 1).scatter(1, cells, sources)
    return gather_tokens(values, source[:, :num_cells])


def _class_attention(class_scores: Tensor, visible: Tensor | None = None) -> Tensor:
    """Return the attention of [CLS] to each token, mean over heads, `(batch_size, num_tokens)`, float32.

    Of scores before the softmax, `(batch_size, num_heads, num_tokens)`; where not `visible`, tokens are not attended
    to.
    """
    if visible is not None:
        class_scores = class_scores.masked_fill(~visible.unsqueeze(1), -torch.inf)
    return class_scores.softmax(dim=-1).mean(dim=1)


def choose_layout(
    config: IceDeiTConfig, is_training: bool, records_states: bool
) -> type[MaskedTokens] | type[GatheredTokens] | type[PackedTokens]:
    """Return the layout for a pruned model: the cheapest that gives what is asked for.

    Pruning heads in training learn from the last logits of pruned patches too; recorded hidden states and attentions
    have the shape of the full grid.
    """
    learns = is_training and config.has_pruning_heads
    if config.pruning_execution == "masked" or records_states or learns:
        return MaskedTokens
    if STRATEGIES[config.pruning_strategy or ""].has_fixed_counts:
        return GatheredTokens
    if torch.compiler.is_compiling() and not is_exporting() and not _captures_dynamic_shapes():
        return MaskedTokens
    return PackedTokens


@torch.compiler.assume_constant_result
def _captures_dynamic_shapes() -> bool:
    """Whether `torch.compile` was told to capture shapes that depend on the images; otherwise they break the graph."""
    return torch._dynamo.config.capture_dynamic_output_shape_ops


__all__ = ["EncodedTokens", "GatheredTokens", "MaskedTokens", "PackedTokens", "choose_layout"]
