# SPDX-License-Identifier: Apache-2.0
"""ICE's own explanation: the predictions of the patch head, in the same forward pass as the prediction."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..ice_deit.patch_maps import class_map, foreground_probability
from .inspection import evaluation_mode, grid_size


__all__ = ["ice", "ice_hard"]


@torch.no_grad()
def ice(model: PreTrainedModel, pixel_values: Tensor, target: Tensor | None = None) -> Tensor:
    """Return each patch's probability of not being background, or of one class, in [0, 1]."""
    patch_logits = _patch_logits(model, pixel_values)
    if target is None:
        return foreground_probability(patch_logits)
    index = target.view(-1, 1, 1, 1).expand(*patch_logits.shape[:3], 1)  # (batch_size, rows, columns, 1)
    # (batch_size, rows, columns, num_labels + 1) -> (batch_size, rows, columns)
    return patch_logits.float().softmax(dim=-1).gather(-1, index).squeeze(-1)


@torch.no_grad()
def ice_hard(model: PreTrainedModel, pixel_values: Tensor, target: Tensor | None = None) -> Tensor:
    """Return 1 where a patch's best class is not background, or is the target, and 0 elsewhere."""
    patch_logits = _patch_logits(model, pixel_values)
    classes = class_map(patch_logits)  # (batch_size, rows, columns), int64
    background = patch_logits.shape[-1] - 1  # the last class
    foreground = classes != background if target is None else classes == target.view(-1, 1, 1)
    return foreground.float().masked_fill(patch_logits.isnan().any(dim=-1), torch.nan)  # no class is the best of NaN


def _patch_logits(model: PreTrainedModel, pixel_values: Tensor) -> Tensor:
    """Return `(batch_size, rows, columns, num_labels + 1)`."""
    encoder = model.base_model
    if not hasattr(encoder, "patch_head"):
        raise ValueError(
            f"This method needs a model with a patch head, got {type(model).__name__}. Load an ICE model "
            "(`IceDeiTForImageClassification`), or explain this one by a baseline such as method='rollout'."
        )
    with evaluation_mode(encoder):
        patch_logits = encoder(pixel_values).patch_logits
    # (batch_size, num_patches, num_labels + 1) -> (batch_size, rows, columns, num_labels + 1)
    return patch_logits.unflatten(1, grid_size(model, pixel_values))
