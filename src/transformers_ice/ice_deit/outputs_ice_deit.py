# SPDX-License-Identifier: Apache-2.0
"""What the ICE-DeiT models return."""

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class IceDeiTModelOutput(ModelOutput):
    """Hold what the encoder returns.

    Args:
        last_hidden_state: `(batch_size, num_prefix_tokens + num_patches, hidden_size)`, after the final layer norm;
            zero where a patch left on the way.
        patch_logits: `(batch_size, num_patches, num_labels + 1)`, background last, on the full grid.
        patch_exit_layer: `(batch_size, num_patches)`, int: the layer before which a patch left, `num_hidden_layers`
            if it stayed.
        grid_size: `(batch_size, 2)`, int: rows and columns of the patch grid.
        pruning_logits: Per pruning layer, what its head says of every patch, `(batch_size, num_patches, 1)` of a gate
            or `(..., num_labels + 1)`; like the next, only while the model trains and has pruning heads.
        last_patch_logits: `(batch_size, num_patches, num_labels + 1)`, what the last head says of every patch, also of
            those that left and only looked on since.
        hidden_states: Per layer, with `output_hidden_states=True`.
        attentions: Per layer, with `output_attentions=True` and the eager attention implementation.
    """

    last_hidden_state: Tensor | None = None
    patch_logits: Tensor | None = None
    patch_exit_layer: Tensor | None = None
    grid_size: Tensor | None = None
    pruning_logits: tuple[Tensor, ...] | None = None
    last_patch_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class IceDeiTImageClassifierOutput(ModelOutput):
    """Hold labels and their explanation.

    Args:
        loss: 0-dim, only with labels, like the three parts below.
        logits: `(batch_size, num_labels)`, from the source that `config.logits_source` names.
        cls_logits: `(batch_size, num_labels)`, the [CLS] classifier, averaged with the distillation token's if it has
            one.
        patch_logits: `(batch_size, num_patches, num_labels + 1)`, background last, on the full grid.
        foreground_logits: `(batch_size, num_labels + 1)`, pooled over the foreground patches.
        background_logits: `(batch_size, num_labels + 1)`, pooled over all patches and scaled.
        foreground_ratio: `(batch_size,)`, share of foreground patches, in [0, 1].
        patch_exit_layer: `(batch_size, num_patches)`, int, as in `IceDeiTModelOutput`.
        grid_size: `(batch_size, 2)`, int: rows and columns of the patch grid.
        classification_loss: 0-dim, unweighted cross-entropy of the foreground logits.
        background_loss: 0-dim, unweighted cross-entropy of the background logits with background.
        cls_loss: 0-dim, unweighted cross-entropy of the [CLS] logits.
        pruning_loss: 0-dim, unweighted loss of the pruning heads; only while the model trains and has some.
        candidate_label_loss: 0-dim, unweighted `candidate_label_loss`; only where it has a weight.
        local_loss: 0-dim, loss of the local windows, not weighted as a whole; only while the model trains with some.
        hidden_states: Per layer, with `output_hidden_states=True`.
        attentions: Per layer, with `output_attentions=True` and the eager attention implementation.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    cls_logits: Tensor | None = None
    patch_logits: Tensor | None = None
    foreground_logits: Tensor | None = None
    background_logits: Tensor | None = None
    foreground_ratio: Tensor | None = None
    patch_exit_layer: Tensor | None = None
    grid_size: Tensor | None = None
    classification_loss: Tensor | None = None
    background_loss: Tensor | None = None
    cls_loss: Tensor | None = None
    pruning_loss: Tensor | None = None
    candidate_label_loss: Tensor | None = None
    local_loss: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


__all__ = ["IceDeiTImageClassifierOutput", "IceDeiTModelOutput"]
