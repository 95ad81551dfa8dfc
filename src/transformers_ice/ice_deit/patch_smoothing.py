# SPDX-License-Identifier: Apache-2.0
"""Smoothing over the patch grid: what is true of a patch is likely true of its neighbours, of alike ones above all.

Things cover neighbouring patches, and their edges lie where the picture changes. Pure functions of tensors.
"""

import torch
from torch import Tensor


# binomial, the smallest kernel that blurs: the share of each step along a side
_SHARES = {-1: 0.25, 0: 0.5, 1: 0.25}


def patch_appearance(pixel_values: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Return what the patches of images look like: the mean and standard deviation of their pixels, by channel.

    Args:
        pixel_values: `(batch_size, num_channels, height, width)`, normalised.
        patch_size: Height and width of a patch; pixels beyond the last whole patch are left out.

    Returns:
        `(batch_size, num_patches, 2 * num_channels)`, float32, in units of the pixel values.
    """
    height, width = patch_size
    # (batch, channels, rows, columns, height, width) -> (batch, channels, patches, pixels)
    cells = pixel_values.float().unfold(2, height, height).unfold(3, width, width).flatten(4).flatten(2, 3)
    deviation, mean = torch.std_mean(cells, dim=-1, correction=0)
    return torch.cat((mean, deviation), dim=1).transpose(1, 2)


def neighbor_weights(grid_size: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """Return how much each patch counts for each other one: 4 : 2 : 1 for itself and its neighbours by distance.

    Beyond the edge of the grid lies the edge once more.

    Args:
        grid_size: Rows and columns.
        device: Of the result.

    Returns:
        `(num_patches, num_patches)`, float32; row i is the mean that patch i becomes, so each row sums to 1.
    """
    lines = []
    for length in grid_size:
        line = torch.zeros(length, length, device=device)
        index = torch.arange(length, device=device)
        for step, share in _SHARES.items():
            line[index, (index + step).clamp(0, length - 1)] += share
        lines.append(line)
    return torch.kron(*lines)


def smoothing_weights(appearance: Tensor, grid_size: tuple[int, int], appearance_weight: float, steps: int) -> Tensor:
    """Return the matrices that average each patch with the neighbours that look like it.

    Args:
        appearance: `(batch_size, num_patches, n)`, from `patch_appearance`.
        grid_size: Rows and columns.
        appearance_weight: A neighbour counts by 4 : 2 : 1 times exp(-appearance_weight * d^2), where d is the
            Euclidean distance of appearance, >= 0. d^2 is a sum over channels, in squared units of the pixel values: a
            fair weight belongs to one normalisation and number of channels.
        steps: How often it is done, >= 1: so many patches far the average reaches.

    Returns:
        `(batch_size, num_patches, num_patches)`, float32, rows sum to 1, so probabilities stay probabilities.

    Dense, so meant for grids of some hundred patches: time grows with the cube of their number. No gradient flows.

    Source: the bilateral filter (Tomasi, Manduchi, ICCV 1998), over patches. Araslanov, Roth, "Single-Stage Semantic
    Segmentation from Image Labels" (CVPR 2020), refine masks by the likeness of neighbours too, of pixels, scaled
    locally.
    """
    near = neighbor_weights(grid_size, appearance.device)
    # autocast would multiply in half precision
    with torch.no_grad(), torch.autocast(appearance.device.type, enabled=False):
        # by differences and not by products, which lose small distances to rounding
        distances = torch.cdist(appearance, appearance, compute_mode="donot_use_mm_for_euclid_dist")
        weights = near * torch.exp(-appearance_weight * distances.square())
        return torch.matrix_power(weights / weights.sum(dim=-1, keepdim=True), steps)


__all__ = ["neighbor_weights", "patch_appearance", "smoothing_weights"]
