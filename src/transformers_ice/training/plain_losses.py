# SPDX-License-Identifier: Apache-2.0
"""The loss of plain classifiers of transformers where theirs does not do: soft labels, binary cross-entropy."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ..ice_deit.adversarial_normalization import CLASSIFICATION_LOSSES, soft_targets


__all__ = ["use_soft_label_loss"]


def use_soft_label_loss(model: PreTrainedModel, loss_type: str = "cross_entropy") -> None:
    """Let a classifier take `labels` of shape (batch_size, num_labels), too.

    The loss of transformers would flatten them, or change the problem type of the configuration. This one is the mean
    of a batch, so the Trainer has to divide it by the accumulated batches, as `accepts_loss_kwargs = False` tells it.

    Args:
        model: A classifier whose `forward` calls `self.loss_function`, e.g. ViT or DeiT; changed in place, not saved.
        loss_type: One of `CLASSIFICATION_LOSSES`.
    """
    model.loss_function = partial(_soft_label_loss, loss_type=loss_type)
    model.accepts_loss_kwargs = False  # type: ignore[assignment]


def _soft_label_loss(labels: Tensor, logits: Tensor, config: Any, loss_type: str, **kwargs: Any) -> Tensor:
    """Return the loss of a batch, 0-dim, from class indices or soft labels."""
    return CLASSIFICATION_LOSSES[loss_type](logits, soft_targets(labels.to(logits.device), config.num_labels))
