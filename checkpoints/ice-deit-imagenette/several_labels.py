# SPDX-License-Identifier: Apache-2.0
"""The loss and the class scores where a picture shows several classes, or none: from patch logits, as pure functions.

Each patch still is one class or background, by a softmax. A picture's score for a class is pooled from the patches
that name it, and compared with the label of that class alone. `patch_logits` is `(batch_size, num_patches,
num_labels + 1)`, background last; `targets` `(batch_size, num_labels)`, each in [0, 1], all 0 where there is nothing.
"""

import torch
from torch import Tensor

from .adversarial_normalization import soft_binary_cross_entropy


_SMALLEST = 1e-6


def pool_class_logits(patch_logits: Tensor) -> Tensor:
    """Return the logit that each class is in the picture, `(batch_size, num_labels)`, float32.

    Its sigmoid is the score, sum(p^2) / (sum(p) + 1) over the patches, p being p(class): the mean of p, each patch
    weighted by p itself, with one added to their number as in `pool_foreground_logits`. One sure patch scores 1/2.
    """
    p = patch_logits.float().softmax(dim=-1)[..., :-1]
    score = (p * p).sum(dim=1) / (p.sum(dim=1) + 1)
    return score.clamp(_SMALLEST, 1 - _SMALLEST).logit()


def per_class_loss(class_logits: Tensor, targets: Tensor) -> Tensor:
    """Return the binary cross-entropy of each class, summed over classes, mean over images; 0-dim, float32."""
    return soft_binary_cross_entropy(class_logits, targets) * targets.shape[-1]


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
