# SPDX-License-Identifier: Apache-2.0
"""Local windows: what patches say when they see only their own part of the image, and how they learn from it.

In a transformer every patch sees the whole image, so a patch of anything soon names the class of the image, and ICE
takes it for foreground. A patch whose window does not hold the object cannot. Pure functions of tensors.
"""

import torch.nn.functional as F
from torch import Tensor


# binomial, the smallest kernel that blurs: what is true of a place is likely to be true next to it
_BLUR = (1.0, 2.0, 1.0)


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


def blur_grid(values: Tensor, grid_size: tuple[int, int]) -> Tensor:
    """Average each patch with its neighbours, 4 : 2 : 1 by distance; beyond the edge lies the edge once more.

    Args:
        values: `(batch_size, rows * columns, n)`.
        grid_size: Rows and columns.

    Returns:
        The same shape. Probabilities stay probabilities.
    """
    # (batch, rows * columns, n) -> (batch, n, rows, columns)
    grid = F.pad(values.unflatten(1, grid_size).permute(0, 3, 1, 2), (1, 1, 1, 1), mode="replicate")
    left, middle, right = (weight / sum(_BLUR) for weight in _BLUR)
    grid = left * grid[..., :-2, :] + middle * grid[..., 1:-1, :] + right * grid[..., 2:, :]
    grid = left * grid[..., :-2] + middle * grid[..., 1:-1] + right * grid[..., 2:]
    return grid.flatten(2).transpose(1, 2)


def local_distillation_loss(patch_logits: Tensor, local_logits: Tensor, grid_size: tuple[int, int]) -> Tensor:
    """Return how far patches that see the whole image are from what they say by themselves, 0-dim.

    Args:
        patch_logits: `(batch_size, num_patches, num_labels + 1)`, of patches that see everything: the learners.
        local_logits: The same of patches that see their window only: the teachers, without gradient.
        grid_size: Rows and columns; the teachers' probabilities are blurred, since things cover neighbouring patches.

    Returns:
        The cross-entropy in float32, mean over patches and images. Its least value is the teachers' entropy, not 0.
    """
    targets = blur_grid(local_logits.detach().float().softmax(dim=-1), grid_size)
    return -(targets * patch_logits.float().log_softmax(dim=-1)).sum(dim=-1).mean()


def every_nth(values: Tensor, share: float) -> Tensor:
    """Return evenly spaced rows of a batch, about `share` of it and at least the first.

    Evenly spaced rows are the same ones however the batch is divided over processes, as long as its parts are
    multiples of the spacing.
    """
    return values[:: max(1, round(1 / share))]


__all__ = ["blur_grid", "every_nth", "join_windows", "local_distillation_loss", "split_windows"]
