# SPDX-License-Identifier: Apache-2.0
"""Adversarial normalization: the formulas of the ICE loss, from patch logits and image labels alone.

Pure functions of tensors. `patch_logits` holds one score per patch and class, background on the last index.
Source: Choi, Jin, Han, CVPR 2023, and the authors' `models_ICE.py` and `engine_ICE.py` (Hanyang-HCC-Lab/ICE).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class PooledPatches:
    """Patch logits of each image, pooled by the functions of the same names."""

    foreground_logits: Tensor
    background_logits: Tensor
    foreground_ratio: Tensor


def foreground_mask(patch_logits: Tensor) -> Tensor:
    """Return which patches have another best class than background, `(batch_size, num_patches)`, bool.

    Of equal logits the class counts, as it does for `argmax`, which is ten times as slow for 1,000 classes.
    """
    return patch_logits[..., :-1].amax(dim=-1) >= patch_logits[..., -1]


def foreground_ratio(patch_logits: Tensor) -> Tensor:
    """Return the ratio of foreground patches of each image, `(batch_size,)`, float32, in [0, 1].

    The authors' code reports the mean over the batch instead.
    """
    return foreground_mask(patch_logits).float().mean(dim=-1)


def pool_foreground_logits(patch_logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """Average the logits of the foreground patches, with one added to their number: `(batch_size, num_labels + 1)`.

    All zero for an image without a foreground patch. `mask` is `foreground_mask(patch_logits)`, where it is known.
    Source: `models_ICE.py`; the selection itself has no gradient.
    """
    mask = foreground_mask(patch_logits) if mask is None else mask
    # in float32, as autocast would not: the sum of some thousand patches is beyond float16
    with torch.autocast(patch_logits.device.type, enabled=False):
        logits = patch_logits.to(torch.promote_types(patch_logits.dtype, torch.float32))
        # a product with a matrix of one row sums in one pass; multiplying first would write all logits once more
        sums = (mask.unsqueeze(1).to(logits.dtype) @ logits).squeeze(1)
    return (sums / (mask.sum(dim=1, keepdim=True) + 1)).to(patch_logits.dtype)


def log_normalizer(patch_logits: Tensor) -> Tensor:
    """Return the logarithm that the softmax subtracts from each patch's logits, `(batch_size, num_patches)`, float32.

    Several parts of the loss need it or the map. (batch, patches, classes) is the largest tensor of a training step,
    so both are computed once for all of them, by one pass over it and no probability but that of background.
    """
    return patch_logits.float().logsumexp(dim=-1)


def foreground_map(patch_logits: Tensor, normalizer: Tensor | None = None) -> Tensor:
    """Return 1 - p(background) of each patch, `(batch_size, num_patches)`, float32.

    `normalizer` is `log_normalizer(patch_logits)`, where it is known.
    """
    normalizer = log_normalizer(patch_logits) if normalizer is None else normalizer
    return -torch.expm1(patch_logits[..., -1].float() - normalizer)


def pool_softly(patch_logits: Tensor, maps: Tensor | None = None) -> Tensor:
    """Average the logits of all patches, each weighted by 1 - p(background): `(batch_size, num_labels + 1)`, float32.

    The soft form of `pool_foreground_logits`: the loss then has a gradient by which patches count. `maps` is
    `foreground_map(patch_logits)`, where it is known.
    """
    maps = foreground_map(patch_logits) if maps is None else maps
    # autocast would multiply in half precision; as a product, since a weighted copy would be as large as the logits
    with torch.autocast(patch_logits.device.type, enabled=False):
        sums = (maps.unsqueeze(1) @ patch_logits.float()).squeeze(1)
    return sums / (maps.sum(dim=1, keepdim=True) + 1)


def candidate_label_loss(patch_logits: Tensor, targets: Tensor, normalizer: Tensor | None = None) -> Tensor:
    """Return the partial-label loss of patches, whose candidates are the image's class and background; 0-dim, float32.

    -log(p(class) + p(background)), mean over patches and images: a patch that only looks like another class becomes
    background. `targets` `(batch_size, num_labels)` are soft; of a mixed image the two largest count, by their value.
    Source: learning from partial labels (Cour, Sapp, Taskar, JMLR 2011), the candidates being class and background.
    `normalizer` is `log_normalizer(patch_logits)`, where it is known.
    """
    logits = patch_logits.float()
    normalizer = log_normalizer(patch_logits) if normalizer is None else normalizer
    shares, classes = targets.topk(min(2, targets.shape[-1]), dim=-1)
    shares = shares / shares.sum(dim=-1, keepdim=True)
    # only the candidates are taken out, as in `log_normalizer`
    of_class = logits.gather(2, classes.unsqueeze(1).expand(-1, logits.shape[1], -1))
    of_candidates = torch.logaddexp(of_class, logits[..., -1:])
    losses = normalizer.unsqueeze(-1) - of_candidates
    return (losses * shares.unsqueeze(1)).sum(dim=-1).mean()


def position_loss(patch_logits: Tensor, max_common_map_share: float, maps: Tensor | None = None) -> Tensor:
    """Return how much of the foreground maps is alike in all images, beyond what may be; 0-dim, float32, in [0, 1].

    Of the maps m = 1 - p(background), each less its mean over the image: the mean product at the same place of two
    different images, divided by that of an image with itself; less `max_common_map_share`, and at least 0. A map that
    goes by the place of a patch, such as "below is the class, above is background", satisfies every other part of the
    loss, as each patch can know its place and the class of the whole image. 0 for a batch of one image. `maps` is
    `foreground_map(patch_logits)`, where it is known.
    """
    batch_size = patch_logits.shape[0]
    maps = foreground_map(patch_logits) if maps is None else maps
    deviations = maps - maps.mean(dim=1, keepdim=True)
    # the sum over all pairs less those of an image with itself
    products = deviations.sum(dim=0).square() - deviations.square().sum(dim=0)
    covariance = products.mean() / max(batch_size * (batch_size - 1), 1)
    variance = deviations.square().mean() + _LEAST_VARIANCE
    return (covariance / variance - max_common_map_share).clamp(min=0)


def pool_background_logits(patch_logits: Tensor, scale: float) -> Tensor:
    """Average the logits of all patches and scale them (published: 0.5), `(batch_size, num_labels + 1)`."""
    dtype = torch.promote_types(patch_logits.dtype, torch.float32)  # a sum in float16 is infinite early
    return (patch_logits.mean(dim=1, dtype=dtype) * scale).to(patch_logits.dtype)


def pool_patches(patch_logits: Tensor, background_logit_scale: float) -> PooledPatches:
    """Pool patch logits over each image, as published."""
    mask = foreground_mask(patch_logits)
    return PooledPatches(
        foreground_logits=pool_foreground_logits(patch_logits, mask),
        background_logits=pool_background_logits(patch_logits, background_logit_scale),
        foreground_ratio=mask.float().mean(dim=-1),
    )


def soft_targets(labels: Tensor, num_labels: int) -> Tensor:
    """Return class indices `(batch_size,)` as soft targets `(batch_size, num_labels)`, float32; soft targets pass."""
    return F.one_hot(labels.long(), num_labels).float() if labels.dim() == 1 else labels.float()


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits with target distributions, `(batch_size, num_classes)`, in float32."""
    return -(targets * logits.float().log_softmax(dim=-1)).sum(dim=-1).mean()


def soft_binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean binary cross-entropy over images and classes, both `(batch_size, num_classes)`, in float32.

    Source: Wightman et al., "ResNet strikes back" (2021), and DeiT III train so.
    """
    return F.binary_cross_entropy_with_logits(logits.float(), targets.float())


_LEAST_VARIANCE = 0.01  # a map that is nearly even has no share to speak of

CLASSIFICATION_LOSSES = {"cross_entropy": soft_cross_entropy, "bce": soft_binary_cross_entropy}
"""Losses of logits with target distributions by the name of `classification_loss_type`."""


def batch_mean(values: Tensor, across_ranks: bool) -> Tensor:
    """Return the mean over the whole batch of a value of each image, 0-dim, without gradient.

    With `across_ranks` it is the mean over all processes of the default group, every one of which has to call then.
    """
    values = values.detach()
    if not (across_ranks and torch.distributed.is_available() and torch.distributed.is_initialized()):
        return values.mean()
    # sum and count, not a mean of means: the last batch of a rank may be smaller
    total = torch.stack((values.sum(), values.new_tensor(float(values.numel()))))
    torch.distributed.all_reduce(total)
    return total[0] / total[1]


def label_evidence(image_logits: Tensor, targets: Tensor) -> Tensor:
    """Return how well pooled logits name the label of each image, `(batch_size,)`, float32, without gradient.

    The probability of the label among the classes, background left out: 0 is that of chance, 1 that of the targets
    themselves, and less than 0 is possible. `image_logits` `(batch_size, num_labels + 1)`, `targets` `(batch_size,
    num_labels)` are soft.
    """
    probabilities = image_logits.detach()[:, :-1].float().softmax(dim=-1)
    agreement = (probabilities * targets).sum(dim=-1) / targets.amax(dim=-1)
    chance = 1 / targets.shape[-1]
    return (agreement - chance) / max(1 - chance, chance)  # of one class there is nothing to name


def evidence_of_parts(
    patch_logits: Tensor, targets: Tensor, maps: Tensor | None = None, normalizer: Tensor | None = None
) -> Tensor:
    """Return the `label_evidence` of foreground and of background, `(2, batch_size)`, float32, without gradient.

    Each is that of the mean of all patch logits, weighted by 1 - p(background) and by p(background). `maps` is
    `foreground_map(patch_logits)`, `normalizer` is `log_normalizer(patch_logits)`, where they are known.
    """
    logits = patch_logits.detach().float()
    normalizer = log_normalizer(logits) if normalizer is None else normalizer.detach()
    maps = foreground_map(logits, normalizer) if maps is None else maps.detach()
    foreground = maps.clamp_min(torch.finfo(torch.float32).eps)
    # by logarithms: also where hardly anything is background, some patches are it more than others
    background = (logits[..., -1] - normalizer).softmax(dim=1)
    weights = torch.stack((foreground / foreground.sum(dim=1, keepdim=True), background))
    with torch.autocast(patch_logits.device.type, enabled=False):
        means = (weights.unsqueeze(2) @ logits).squeeze(2)
    return torch.stack([label_evidence(mean, targets) for mean in means])


def adversary_gate(evidence_lead: Tensor, min_evidence_lead: float) -> Tensor:
    """Return what the adversary counts, 0-dim, in [0, 1]: 1 from `min_evidence_lead` on, 0 up to half of it.

    Two solutions satisfy the loss of patches that all know the class of the image: the object names it and the rest
    is background, or the reverse. Evidence tells them apart, since it is strongest on the object. So what pulls
    patches to background waits until the foreground names the label better than the background does, by so much.
    `evidence_lead`, 0-dim, is the evidence of the foreground less that of the background, mean over the batch.
    """
    return (2 * evidence_lead / min_evidence_lead - 1).clamp(0, 1)


def background_cross_entropy(background_logits: Tensor) -> Tensor:
    """Return the mean cross-entropy of pooled background logits with the background class, 0-dim, in float32.

    This is the adversary, which pulls every patch towards background.
    """
    # written so that background's index stays "the last one"
    return -background_logits.float().log_softmax(dim=-1)[:, -1].mean()


def background_weight(
    batch_ratio: Tensor, background_loss_weight: float, min_foreground_ratio: float, max_foreground_ratio: float = 1.0
) -> Tensor:
    """Return the weight of the background part for a batch, 0-dim, float32, without gradient.

    It is `background_loss_weight` (published: 0.025) while the batch's mean foreground ratio is at least
    `min_foreground_ratio` (published: 0.1). From `max_foreground_ratio` on (published: 1, never) it grows with the
    ratio, by up to 1 where every patch is foreground: a weight that was chosen too small corrects itself.
    """
    weight = background_loss_weight * (batch_ratio >= min_foreground_ratio).float()
    if max_foreground_ratio < 1:
        weight = weight + ((batch_ratio - max_foreground_ratio) / (1 - max_foreground_ratio)).clamp(min=0)
    return weight


__all__ = [
    "CLASSIFICATION_LOSSES",
    "PooledPatches",
    "adversary_gate",
    "background_cross_entropy",
    "background_weight",
    "batch_mean",
    "candidate_label_loss",
    "evidence_of_parts",
    "foreground_map",
    "foreground_mask",
    "foreground_ratio",
    "label_evidence",
    "log_normalizer",
    "pool_background_logits",
    "pool_foreground_logits",
    "pool_patches",
    "pool_softly",
    "position_loss",
    "soft_binary_cross_entropy",
    "soft_cross_entropy",
    "soft_targets",
]
