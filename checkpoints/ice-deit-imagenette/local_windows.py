# SPDX-License-Identifier: Apache-2.0
"""Local windows: split and joined, the distillation from them, and the grouping of its targets.

In a transformer every patch sees the whole image, so a patch of anything soon predicts the class of the image, and ICE
takes it for foreground. A patch whose window does not hold the object cannot. An object's patches look alike, to the
network or to the eye, so the window predictions are averaged over patches that do. Pure functions of tensors.
"""

import math

import torch
import torch.nn.functional as F
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


def local_distillation_loss(patch_logits: Tensor, local_logits: Tensor, grouping: Tensor) -> Tensor:
    """Return the distillation loss from window logits (teacher) to full-image logits (student), 0-dim.

    Both are `(batch_size, num_patches, num_labels + 1)`; no gradient flows into the teacher. `grouping`, from
    `grouping_weights`, is how much each teacher patch counts for each student patch. It is the cross-entropy in
    float32, mean over patches and images; its least value is the targets' entropy, not 0.
    """
    # autocast would multiply in half precision, and the targets would not sum to 1
    with torch.autocast(grouping.device.type, enabled=False):
        targets = grouping @ local_logits.detach().float().softmax(dim=-1)
    return -(targets * patch_logits.float().log_softmax(dim=-1)).sum(dim=-1).mean()


def every_nth(values: Tensor, fraction: float) -> Tensor:
    """Return evenly spaced rows of a batch, about a `fraction` of it and at least the first.

    They are the same ones however the batch is divided over processes, as long as its parts are multiples of the
    spacing.
    """
    return values[:: max(1, round(1 / fraction))]


def patch_appearance(pixel_values: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Return the mean and standard deviation of the pixels of each patch, by channel, in units of the pixel values.

    `(batch_size, num_patches, 2 * num_channels)`, float32. Pixels beyond the last whole patch are left out.
    """
    height, width = patch_size
    # (batch, channels, rows, columns, height, width) -> (batch, channels, patches, pixels)
    cells = pixel_values.float().unfold(2, height, height).unfold(3, width, width).flatten(4).flatten(2, 3)
    deviation, mean = torch.std_mean(cells, dim=-1, correction=0)
    return torch.cat((mean, deviation), dim=1).transpose(1, 2)


def grouping_weights(
    features: Tensor,
    appearance: Tensor,
    grid_size: tuple[int, int],
    feature_weight: float,
    appearance_weight: float,
) -> Tensor:
    """Return the matrices that average each patch with the patches of its image that belong to it.

    `(batch_size, num_patches, num_patches)`, float32; row i is the mean that patch i becomes, so rows sum to 1 and
    probabilities stay probabilities. They are a random walk on the grid: a step stays or goes to one of the eight
    neighbours with probability proportional to

        exp(feature_weight * cosine - appearance_weight * d^2 / mean(d^2))

    with the cosine of the patches' `features` `(batch_size, num_patches, hidden_size)`, less their mean over the
    image, and d the Euclidean distance of their `patch_appearance`, whose mean is over all pairs of the image. A walk
    has num_patches / 8 steps, rounded to a power of 2, so it goes as far on a fine grid as on a coarse one. Nothing
    depends on the normalisation of the pixels, the number of channels or the scale of the features. No gradient flows.

    Source: the random walk over affinities of AffinityNet (Ahn and Kwak, CVPR 2018), which learns them. That features
    of a transformer group the patches of an object is what LOST (Simeoni et al., BMVC 2021) and TokenCut (Wang et al.,
    CVPR 2022) use; looks are those of a bilateral filter (Tomasi and Manduchi, ICCV 1998).
    """
    # autocast would multiply in half precision
    with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
        features, appearance = features.float(), appearance.float()
        directions = F.normalize(features - features.mean(dim=1, keepdim=True), dim=-1)
        # by differences and not by products, which lose small distances to rounding
        distances = torch.cdist(appearance, appearance, compute_mode="donot_use_mm_for_euclid_dist").square()
        # an image of one colour has no distances
        distances = distances / distances.mean(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        scores = feature_weight * (directions @ directions.transpose(1, 2)) - appearance_weight * distances
        step = scores.masked_fill(~_are_neighbours(grid_size, scores.device), float("-inf")).softmax(dim=-1)
        for _ in range(max(0, round(math.log2(scores.shape[-1] / 8)))):
            step = step @ step
        return step


def _are_neighbours(grid_size: tuple[int, int], device: torch.device) -> Tensor:
    """Return which patches of a grid touch or are the same, `(num_patches, num_patches)`."""
    rows, columns = (torch.arange(length, device=device) for length in grid_size)
    places = torch.cartesian_prod(rows, columns)  # row by row, as patches are
    return (places[:, None] - places).abs().amax(dim=-1) <= 1


__all__ = [
    "check_num_windows",
    "every_nth",
    "grouping_weights",
    "join_windows",
    "local_distillation_loss",
    "patch_appearance",
    "split_windows",
]
