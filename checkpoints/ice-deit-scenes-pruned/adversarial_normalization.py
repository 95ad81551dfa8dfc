# SPDX-License-Identifier: Apache-2.0
"""Adversarial normalization: the ICE loss, from patch logits and image labels alone.

Pure functions of tensors. `patch_logits` holds one score per patch and class, background on the last index.
Source: Choi, Jin, Han, CVPR 2023, and the authors' `models_ICE.py` and `engine_ICE.py` (Hanyang-HCC-Lab/ICE).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


LOSS_PARTS = (
    "classification_loss",
    "background_loss",
    "cls_loss",
    "candidate_label_loss",
    "local_loss",
    "pruning_loss",
)
"""Names of the parts of the loss: what the model returns beside `loss`, unweighted, and what training logs."""


@dataclass(frozen=True)
class AdversarialNormalizationLoss:
    """Hold the loss and its unweighted parts, each 0-dim.

    Args:
        total: Weighted sum of the two; the weight of `background` is 0 while the gate is closed.
        classification: Cross-entropy of the pooled foreground logits with the image's label.
        background: Cross-entropy of the pooled background logits with the background class.
        candidate_label: `candidate_label_loss`; `None` where it has no weight (published).
    """

    total: Tensor
    classification: Tensor
    background: Tensor
    candidate_label: Tensor | None = None


@dataclass(frozen=True)
class PooledPatches:
    """Hold what the patches of each image say together.

    Args:
        foreground_logits: `(batch_size, num_labels + 1)`, from `pool_foreground_logits`.
        background_logits: `(batch_size, num_labels + 1)`, from `pool_background_logits`.
        foreground_ratio: `(batch_size,)`, from `foreground_ratio`.
    """

    foreground_logits: Tensor
    background_logits: Tensor
    foreground_ratio: Tensor


def foreground_mask(patch_logits: Tensor) -> Tensor:
    """Return which patches have another best class than background.

    Args:
        patch_logits: `(batch_size, num_patches, num_labels + 1)`.

    Returns:
        `(batch_size, num_patches)`, bool, True is foreground.
    """
    return patch_logits.argmax(dim=-1) != patch_logits.shape[-1] - 1


def foreground_ratio(patch_logits: Tensor) -> Tensor:
    """Return each image's share of foreground patches.

    Args:
        patch_logits: `(batch_size, num_patches, num_labels + 1)`.

    Returns:
        `(batch_size,)`, float32, in [0, 1]. The authors' code reports the mean over the batch instead.
    """
    return foreground_mask(patch_logits).float().mean(dim=-1)


def pool_foreground_logits(patch_logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """Average the logits of the foreground patches, with one added to their number.

    Args:
        patch_logits: `(batch_size, num_patches, num_labels + 1)`.
        mask: `foreground_mask(patch_logits)`, where it is known already.

    Returns:
        `(batch_size, num_labels + 1)`; all zero for an image without a foreground patch.

    Source: `models_ICE.py`; the selection itself has no gradient.
    """
    mask = foreground_mask(patch_logits) if mask is None else mask
    # a product with a matrix of one row sums in one pass; multiplying first would write all logits once more
    sums = (mask.unsqueeze(1).to(patch_logits.dtype) @ patch_logits).squeeze(1)
    return sums / (mask.sum(dim=1, keepdim=True) + 1)


def pool_softly(patch_logits: Tensor) -> Tensor:
    """Average the logits of all patches, each as far as it is foreground.

    The soft form of `pool_foreground_logits`: a patch counts by 1 - p(background) instead of by 1 or 0, so the loss
    also says which patches should count.

    Args:
        patch_logits: `(batch_size, num_patches, num_labels + 1)`.

    Returns:
        `(batch_size, num_labels + 1)`, float32.
    """
    logits = patch_logits.float()
    weights = 1 - logits.softmax(dim=-1)[..., -1:]
    return (weights * logits).sum(dim=1) / (weights.sum(dim=1) + 1)


def candidate_label_loss(patch_logits: Tensor, targets: Tensor) -> Tensor:
    """Return how far patches are from what they may be: the image's class, or background.

    Whatever else a patch may look like, the image's label does not name it. With this a patch that only looks like a
    class goes to background, and not to that class.

    Args:
        patch_logits: `(batch_size, num_patches, num_labels + 1)`.
        targets: `(batch_size, num_labels)` soft targets. Of a mixed image the two largest count, by their share.

    Returns:
        0-dim: -log(p(class) + p(background)) in float32, mean over patches and images.

    Source: learning from partial labels (Cour, Sapp, Taskar, JMLR 2011), the candidates being class and background.
    """
    logits = patch_logits.float()
    shares, classes = targets.topk(min(2, targets.shape[-1]), dim=-1)
    shares = shares / shares.sum(dim=-1, keepdim=True)
    # only the candidates are taken out: (batch, num_patches, classes) is the largest tensor of a training step
    of_class = logits.gather(2, classes.unsqueeze(1).expand(-1, logits.shape[1], -1))
    of_candidates = torch.logaddexp(of_class, logits[..., -1:])
    losses = logits.logsumexp(dim=-1, keepdim=True) - of_candidates
    return (losses * shares.unsqueeze(1)).sum(dim=-1).mean()


def pool_background_logits(patch_logits: Tensor, scale: float) -> Tensor:
    """Average the logits of all patches and scale them.

    Args:
        patch_logits: `(batch_size, num_patches, num_labels + 1)`.
        scale: Factor on the mean (published: 0.5).

    Returns:
        `(batch_size, num_labels + 1)`.
    """
    return patch_logits.mean(dim=1) * scale


def soft_targets(labels: Tensor, num_labels: int) -> Tensor:
    """Return labels as a distribution over the image classes.

    Args:
        labels: `(batch_size,)` class indices, or `(batch_size, num_labels)` soft targets, which pass unchanged.
        num_labels: Number of image classes.

    Returns:
        `(batch_size, num_labels)`, float32.
    """
    return F.one_hot(labels, num_labels).float() if labels.dim() == 1 else labels.float()


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits with target distributions, computed in float32.

    Args:
        logits: `(batch_size, num_classes)`.
        targets: `(batch_size, num_classes)`, non-negative.

    Returns:
        0-dim.
    """
    return -(targets * logits.float().log_softmax(dim=-1)).sum(dim=-1).mean()


def soft_binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean binary cross-entropy over images and classes, computed in float32: every class by itself.

    Args:
        logits: `(batch_size, num_classes)`.
        targets: `(batch_size, num_classes)`, in [0, 1].

    Returns:
        0-dim.

    Source: Wightman et al., "ResNet strikes back" (2021), and DeiT III train so.
    """
    return F.binary_cross_entropy_with_logits(logits.float(), targets.float())


CLASSIFICATION_LOSSES = {"cross_entropy": soft_cross_entropy, "bce": soft_binary_cross_entropy}
"""Losses of logits with target distributions by the name of `classification_loss_type`."""


def batch_foreground_ratio(ratio: Tensor, across_ranks: bool) -> Tensor:
    """Return the mean foreground ratio of the whole batch.

    Args:
        ratio: `(batch_size,)`, the ratio of each image on this rank.
        across_ranks: Whether to average over all processes of the default group; every rank has to call then.

    Returns:
        0-dim, without gradient.
    """
    ratio = ratio.detach()
    if not (across_ranks and torch.distributed.is_available() and torch.distributed.is_initialized()):
        return ratio.mean()
    # sum and count, not a mean of means: the last batch of a rank may be smaller
    total = torch.stack((ratio.sum(), ratio.new_tensor(float(ratio.numel()))))
    torch.distributed.all_reduce(total)
    return total[0] / total[1]


def adversarial_normalization_loss(
    foreground_logits: Tensor,
    background_logits: Tensor,
    targets: Tensor,
    batch_ratio: Tensor,
    background_loss_weight: float,
    min_foreground_ratio: float,
    classification_loss_weight: float = 1.0,
    max_foreground_ratio: float = 1.0,
    classification_loss_type: str = "cross_entropy",
) -> AdversarialNormalizationLoss:
    """Return the ICE loss of a batch.

    Args:
        foreground_logits: `(batch_size, num_labels + 1)`, from `pool_foreground_logits`.
        background_logits: `(batch_size, num_labels + 1)`, from `pool_background_logits`.
        targets: `(batch_size, num_labels)` soft targets; background gets 0.
        batch_ratio: 0-dim mean foreground ratio of the whole batch, which closes the gate.
        background_loss_weight: Weight of the background part (published: 0.025).
        min_foreground_ratio: The background part counts only while `batch_ratio` is at least this (published: 0.1).
        classification_loss_weight: Weight of the classification part (published: 1).
        max_foreground_ratio: From here on the weight of the background part grows with `batch_ratio`, by up to 1 where
            every patch is foreground: a weight that was chosen too small corrects itself (published: 1, never).
        classification_loss_type: One of `CLASSIFICATION_LOSSES` (published: "cross_entropy"). The background part is a
            cross-entropy in any case.

    Returns:
        The total and its unweighted parts.
    """
    classification = CLASSIFICATION_LOSSES[classification_loss_type](foreground_logits, F.pad(targets, (0, 1)))
    # cross-entropy with the background class, written so that background's index stays "the last one"
    background = -background_logits.float().log_softmax(dim=-1)[:, -1].mean()
    weight = background_loss_weight * (batch_ratio >= min_foreground_ratio).to(background.dtype)
    if max_foreground_ratio < 1:
        weight = weight + ((batch_ratio - max_foreground_ratio) / (1 - max_foreground_ratio)).clamp(min=0)
    total = classification_loss_weight * classification + weight * background
    return AdversarialNormalizationLoss(total, classification, background)


__all__ = [
    "CLASSIFICATION_LOSSES",
    "LOSS_PARTS",
    "AdversarialNormalizationLoss",
    "PooledPatches",
    "adversarial_normalization_loss",
    "batch_foreground_ratio",
    "candidate_label_loss",
    "foreground_mask",
    "foreground_ratio",
    "pool_background_logits",
    "pool_foreground_logits",
    "pool_softly",
    "soft_binary_cross_entropy",
    "soft_cross_entropy",
    "soft_targets",
]
