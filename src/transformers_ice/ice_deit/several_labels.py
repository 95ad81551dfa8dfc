# SPDX-License-Identifier: Apache-2.0
"""The loss and the class scores where a picture shows several classes, or none: from patch logits, as pure functions.

Each patch still is one class or background, by a softmax. A picture's score for a class is pooled from the patches
that name it, and compared with the label of that class alone. `patch_logits` is `(batch_size, num_patches,
num_labels + 1)`, background last; `targets` `(batch_size, num_labels)`, each in [0, 1], all 0 where there is nothing.
"""

import os

import torch
import torch.nn.functional as F
from torch import Tensor


_SMALLEST = 1e-6


def pool_class_logits(patch_logits: Tensor) -> Tensor:
    """Return the logit that each class is in the picture, `(batch_size, num_labels)`; its sigmoid is the score."""
    kind = os.environ.get("ICE_POOL", "weighted")
    log_p = patch_logits.float().log_softmax(dim=-1)[..., :-1]
    p = log_p.exp()
    if kind == "weighted":
        score = (p * p).sum(dim=1) / (p.sum(dim=1) + 1)
        score = score.clamp(_SMALLEST, 1 - _SMALLEST)
        return score.log() - (-score).log1p()
    if kind == "noisy_or":
        none = (-p.clamp(max=1 - _SMALLEST)).log1p().sum(dim=1)  # log of the probability that no patch shows it
        return (-none) + (-none.clamp(max=-_SMALLEST).exp()).log1p()
    odds = log_p - (-p.clamp(max=1 - _SMALLEST)).log1p()
    if kind == "log_sum_exp":
        return odds.logsumexp(dim=1) - torch.tensor(float(odds.shape[1])).log()
    if kind == "top_mean":
        return odds.topk(max(1, odds.shape[1] // 16), dim=1).values.mean(dim=1)
    raise ValueError(kind)


def per_class_loss(class_logits: Tensor, targets: Tensor) -> Tensor:
    """Return the binary cross-entropy of each class, summed over classes, mean over images; 0-dim, float32."""
    losses = F.binary_cross_entropy_with_logits(class_logits.float(), targets.float(), reduction="none")
    return losses.sum(dim=-1).mean()


def candidate_labels_loss(patch_logits: Tensor, targets: Tensor) -> Tensor:
    """Return the loss that lets each patch be only one of the picture's classes or background; 0-dim, float32.

    -log(sum over classes of target * p(class) + p(background)), mean over patches and images. For one class it is
    `candidate_label_loss`; a picture without a label pulls every patch to background.
    """
    log_p = patch_logits.float().log_softmax(dim=-1)
    log_targets = targets.float().log().clamp(min=-1e4)  # a gradient through -inf would be NaN
    of_classes = (log_p[..., :-1] + log_targets.unsqueeze(1)).logsumexp(dim=-1)
    return -torch.logaddexp(of_classes, log_p[..., -1]).mean()


__all__ = ["candidate_labels_loss", "per_class_loss", "pool_class_logits"]
