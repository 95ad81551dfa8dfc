# SPDX-License-Identifier: Apache-2.0
"""Local windows: what patches say when they see only their own part of the image, and how they learn from it.

In a transformer every patch sees the whole image, so a patch of anything soon names the class of the image, and ICE
takes it for foreground. A patch whose window does not hold the object cannot. Pure functions of tensors.
"""

import torch
from torch import Tensor


def split_windows(patches: Tensor, grid_size: tuple[int, int], num_windows: int) -> Tensor:
    """Cut a grid of patches into windows.

    Args:
        patches: `(batch_size, rows * columns, n)`.
        grid_size: Rows and columns of the grid.
        num_windows: Windows along each side; divides both.

    Returns:
        `(batch_size * num_windows**2, patches of a window, n)`: all windows of the first image, row by row, then those
        of the second, ...

    Raises:
        ValueError: If the windows do not come out even.
    """
    rows, columns = grid_size
    if rows % num_windows or columns % num_windows:
        raise ValueError(
            f"`num_local_windows` must divide the rows and columns of the patch grid, got {num_windows} for a grid of "
            f"{rows} x {columns}. Choose another number or image size, or 0 to train without windows."
        )
    # (batch, rows * columns, n) -> (batch, windows, window rows, windows, window columns, n)
    cells = patches.unflatten(1, (num_windows, rows // num_windows, num_windows, columns // num_windows))
    return cells.transpose(2, 3).flatten(0, 2).flatten(1, 2)


def join_windows(windows: Tensor, grid_size: tuple[int, int], num_windows: int) -> Tensor:
    """Put windows back: the inverse of `split_windows`, `(batch_size, rows * columns, n)`."""
    rows, columns = grid_size
    cells = windows.unflatten(1, (rows // num_windows, columns // num_windows))
    return cells.unflatten(0, (-1, num_windows, num_windows)).transpose(2, 3).flatten(1, 4)


def local_distillation_loss(patch_logits: Tensor, local_logits: Tensor, smoothing: Tensor) -> Tensor:
    """Return how far patches that see the whole image are from what they say by themselves, 0-dim.

    Args:
        patch_logits: `(batch_size, num_patches, num_labels + 1)`, of patches that see everything: the learners.
        local_logits: The same of patches that see their window only: the teachers, without gradient.
        smoothing: `(batch_size, num_patches, num_patches)`, from `patch_smoothing.smoothing_weights`: how much each
            teacher counts for each learner, since things cover neighbouring patches.

    Returns:
        The cross-entropy in float32, mean over patches and images. Its least value is the targets' entropy, not 0.
    """
    # autocast would multiply in half precision, and the targets would not sum to 1
    with torch.autocast(smoothing.device.type, enabled=False):
        targets = smoothing @ local_logits.detach().float().softmax(dim=-1)
    return -(targets * patch_logits.float().log_softmax(dim=-1)).sum(dim=-1).mean()


def every_nth(values: Tensor, share: float) -> Tensor:
    """Return evenly spaced rows of a batch, about `share` of it and at least the first.

    Evenly spaced rows are the same ones however the batch is divided over processes, as long as its parts are
    multiples of the spacing.
    """
    return values[:: max(1, round(1 / share))]


__all__ = ["every_nth", "join_windows", "local_distillation_loss", "split_windows"]
