# SPDX-License-Identifier: Apache-2.0
"""Local windows: split and joined, the distillation from them, and the bilateral smoothing of its targets.

In a transformer every patch sees the whole image, so a patch of anything soon predicts the class of the image, and ICE
takes it for foreground. A patch whose window does not hold the object cannot. Objects cover neighbouring patches and
end at edges, so the window predictions are smoothed over patches that look alike. Pure functions of tensors.
"""

import torch
from torch import Tensor


def check_num_windows(grid_size: tuple[int, int], num_windows: int) -> None:
    """Raise a `ValueError` unless `num_windows` along each side divide the grid; 0 is none."""
    rows, columns = grid_size
    if num_windows and (rows % num_windows or columns % num_windows):
        raise ValueError(
            f"`num_local_windows` must divide the rows and columns of the patch grid, got {num_windows} for a grid of "
            f"{rows} x {columns}. Choose another number or image size, or 0 to train without windows."
        )


def split_windows(patches: Tensor, grid_size: tuple[int, int], num_windows: int) -> Tensor:
    """Cut a grid of patches into windows, `num_windows` along each side, which must come out even.

    `(batch_size, rows * columns, n)` becomes `(batch_size * num_windows**2, patches of a window, n)`: all windows of
    the first image, row by row, then those of the second, ...
    """
    check_num_windows(grid_size, num_windows)
    rows, columns = grid_size
    # (batch, rows * columns, n) -> (batch, windows, window rows, windows, window columns, n)
    cells = patches.unflatten(1, (num_windows, rows // num_windows, num_windows, columns // num_windows))
    return cells.transpose(2, 3).flatten(0, 2).flatten(1, 2)


def join_windows(windows: Tensor, grid_size: tuple[int, int], num_windows: int) -> Tensor:
    """Put windows back: the inverse of `split_windows`, `(batch_size, rows * columns, n)`."""
    rows, columns = grid_size
    cells = windows.unflatten(1, (rows // num_windows, columns // num_windows))
    return cells.unflatten(0, (-1, num_windows, num_windows)).transpose(2, 3).flatten(1, 4)


def local_distillation_loss(patch_logits: Tensor, local_logits: Tensor, smoothing: Tensor) -> Tensor:
    """Return the distillation loss from window logits (teacher) to full-image logits (student), 0-dim.

    Both are `(batch_size, num_patches, num_labels + 1)`; no gradient flows into the teacher. `smoothing`, from
    `smoothing_weights`, is how much each teacher patch counts for each student patch. It is the cross-entropy in
    float32, mean over patches and images; its least value is the targets' entropy, not 0.
    """
    # autocast would multiply in half precision, and the targets would not sum to 1
    with torch.autocast(smoothing.device.type, enabled=False):
        targets = smoothing @ local_logits.detach().float().softmax(dim=-1)
    return -(targets * patch_logits.float().log_softmax(dim=-1)).sum(dim=-1).mean()


def every_nth(values: Tensor, fraction: float) -> Tensor:
    """Return evenly spaced rows of a batch, about a `fraction` of it and at least the first.

    They are the same ones however the batch is divided over processes, as long as its parts are multiples of the
    spacing.
    """
    return values[:: max(1, round(1 / fraction))]


# binomial, the smallest kernel that blurs: the weight of each step along a side
_KERNEL = {-1: 0.25, 0: 0.5, 1: 0.25}


def patch_appearance(pixel_values: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Return the mean and standard deviation of the pixels of each patch, by channel, in units of the pixel values.

    `(batch_size, num_patches, 2 * num_channels)`, float32. Pixels beyond the last whole patch are left out.
    """
    height, width = patch_size
    # (batch, channels, rows, columns, height, width) -> (batch, channels, patches, pixels)
    cells = pixel_values.float().unfold(2, height, height).unfold(3, width, width).flatten(4).flatten(2, 3)
    deviation, mean = torch.std_mean(cells, dim=-1, correction=0)
    return torch.cat((mean, deviation), dim=1).transpose(1, 2)


def neighbor_weights(grid_size: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """Return the weight of each patch in the mean of each other: 4 : 2 : 1 for itself, beside, across.

    `(num_patches, num_patches)`, float32; row i is the mean that patch i becomes, so each row sums to 1. The grid is
    padded by repeating its edge.
    """
    lines = []
    for length in grid_size:
        line = torch.zeros(length, length, device=device)
        index = torch.arange(length, device=device)
        for step, weight in _KERNEL.items():
            line[index, (index + step).clamp(0, length - 1)] += weight
        lines.append(line)
    return torch.kron(*lines)


def smoothing_weights(appearance: Tensor, grid_size: tuple[int, int], appearance_weight: float, steps: int) -> Tensor:
    """Return the matrices that average each patch with the neighbours that look like it.

    `(batch_size, num_patches, num_patches)`, float32, rows sum to 1, so probabilities stay probabilities. A neighbour
    counts by 4 : 2 : 1 times exp(-appearance_weight * d^2), d the Euclidean distance of `patch_appearance`. d^2 is a
    sum over channels, in squared units of the pixel values: a fair weight belongs to one normalisation and number of
    channels. The average reaches `steps` (>= 1) patches far. Dense, so meant for grids of some hundred patches: time
    grows with the cube of their number. No gradient flows.

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


__all__ = [
    "check_num_windows",
    "every_nth",
    "join_windows",
    "local_distillation_loss",
    "neighbor_weights",
    "patch_appearance",
    "smoothing_weights",
    "split_windows",
]
