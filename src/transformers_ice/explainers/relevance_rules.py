# SPDX-License-Identifier: Apache-2.0
"""Rules of layer-wise relevance propagation: how the relevance of a result is shared out among what made it.

Pure functions: tensors in, tensors out. The first axis is the image everywhere, and no image sees another.

Source: Chefer, Gur and Wolf, "Transformer Interpretability Beyond Attention Visualization", CVPR 2021, as the
published code (`hila-chefer/Transformer-Explainability`) computes them for one image at a time. Biases get nothing;
softmax, scaling, activations and layer norms pass relevance on unchanged.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d, conv_transpose2d, linear, pad


__all__ = [
    "addition_rule",
    "copy_rule",
    "divide",
    "linear_rule",
    "pixel_rule",
    "product_rule",
    "share",
]

_EPSILON = 1e-9  # that of `safe_divide` in the published code


def divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divide, with 0 where the denominator is 0; it is moved away from 0 by 1e-9 to the side it is on."""
    safe = denominator + _EPSILON * denominator.sign()
    is_zero = denominator == 0
    # the inner 1 avoids a division by 0, the outer 0 is the result there
    return (numerator / safe.masked_fill(is_zero, 1.0)).masked_fill(is_zero, 0.0)


def share(part: Tensor, total: Tensor, relevance: Tensor) -> Tensor:
    """Return the relevance of one summand: its portion of the total, elementwise; all of the same shape."""
    return part * divide(relevance, total)


def addition_rule(left: Tensor, right: Tensor, relevance: Tensor, rescale: bool) -> tuple[Tensor, Tensor]:
    """Return the relevance of both sides of `left + right`, all of the same shape.

    With `rescale` they get, image by image, parts of the sum of `relevance` in proportion to the absolute sums of
    their portions; portions of opposite sign can otherwise grow without bound. Both ways they sum to that of the
    result, but where the result is 0.
    """
    total = left + right
    shares = share(left, total, relevance), share(right, total, relevance)
    if not rescale:
        return shares
    sums = [_sum_per_image(part) for part in shares]  # (batch_size, 1, ...) each
    whole = _sum_per_image(relevance)
    magnitude = sums[0].abs() + sums[1].abs()
    parts = [divide(part.abs(), magnitude) * whole for part in sums]
    return shares[0] * divide(parts[0], sums[0]), shares[1] * divide(parts[1], sums[1])


def copy_rule(inputs: Tensor, *relevances: Tensor) -> Tensor:
    """Collect the relevance of a tensor that was used several times; all of the same shape."""
    # (num_uses, batch_size, ...) -> (batch_size, ...)
    return inputs * torch.stack([divide(relevance, inputs) for relevance in relevances]).sum(dim=0)


def linear_rule(inputs: Tensor, weight: Tensor, relevance: Tensor, joint: bool) -> Tensor:
    """Share out the relevance `(..., out_features)` of `inputs @ weight.T` (alpha = 1: only what adds counts).

    If `joint`, positive inputs through positive weights and negative through negative share one relevance, by their
    portions of the common sum. If not, each of the two groups gets all of it, which doubles the sum.
    """
    positive = inputs.clamp(min=0), weight.clamp(min=0)
    negative = inputs.clamp(max=0), weight.clamp(max=0)
    products = linear(*positive), linear(*negative)  # (..., out_features) each, not negative
    common = products[0] + products[1]
    result = torch.zeros_like(inputs)
    for (values, weights), product in zip((positive, negative), products, strict=True):
        # (..., out_features) @ (out_features, in_features) -> (..., in_features)
        result = result + values * (divide(relevance, common if joint else product) @ weights)
    return result


def product_rule(left: Tensor, right: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """Share out the relevance of the matrix product `left @ right`, one half to each side."""
    ratio = divide(relevance, left @ right)  # (..., rows, columns)
    return left * (ratio @ right.transpose(-1, -2)) / 2, right * (left.transpose(-1, -2) @ ratio) / 2


def pixel_rule(pixel_values: Tensor, weight: Tensor, relevance: Tensor) -> Tensor:
    """Share out the relevance of the patch projection among the pixels, whose range is bounded per image.

    From `(batch_size, hidden_size, rows, columns)` to `(batch_size, height, width)`, summed over channels; 0 at pixels
    beyond the last whole patch.
    """
    patch_size = (weight.shape[2], weight.shape[3])
    height, width = relevance.shape[2] * patch_size[0], relevance.shape[3] * patch_size[1]
    pixels = pixel_values[:, :, :height, :width]
    lowest = pixel_values.amin(dim=(1, 2, 3), keepdim=True).expand_as(pixels)  # the bounds of the whole image
    highest = pixel_values.amax(dim=(1, 2, 3), keepdim=True).expand_as(pixels)
    # z^B rule of deep Taylor decomposition (Montavon et al., 2017): values, weights, sign
    terms = ((pixels, weight, 1), (lowest, weight.clamp(min=0), -1), (highest, weight.clamp(max=0), -1))
    # (batch_size, hidden_size, rows, columns)
    total = sum(sign * conv2d(values, weights, stride=patch_size) for values, weights, sign in terms)
    ratio = relevance / (total + _EPSILON)
    shares = [sign * values * conv_transpose2d(ratio, weights, stride=patch_size) for values, weights, sign in terms]
    missing = pixel_values.shape[3] - width, pixel_values.shape[2] - height
    # (3, batch_size, num_channels, height, width) -> (batch_size, height, width)
    return pad(torch.stack(shares).sum(dim=(0, 2)), (0, missing[0], 0, missing[1]))


def _sum_per_image(values: Tensor) -> Tensor:
    # (batch_size, ...) -> (batch_size, 1, ...)
    return values.flatten(1).sum(dim=1).view(-1, *(1,) * (values.dim() - 1))
