# SPDX-License-Identifier: Apache-2.0
"""Local windows: split and joined, the distillation from them, and the grouping of its targets.

In a transformer every patch sees the whole image, so a patch of anything soon predicts the class of the image, and ICE
takes it for foreground. A patch whose window does not hold the object cannot. An object's patches look alike, to the
network or to the eye, so the window predictions are averaged over patches that do. Pure functions of tensors.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


# of looks beside features; which of them counts is chosen image by image. More would be nearer to a best one, not better
APPEARANCE_WEIGHTS = (0.0, 1.0, 2.0, 4.0)


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
    `choose_grouping`, is how much each teacher patch counts for each student patch. It is the cross-entropy in
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


def grouping_scores(features: Tensor, appearance: Tensor, feature_weight: float) -> Tensor:
    """Return how alike the patches of each image are, in several mixtures of features and looks.

    `(len(APPEARANCE_WEIGHTS), batch_size, num_patches, num_patches)`, float32. The softmax over the last axis is a
    grouping: row i is the mean that patch i becomes. The scores are, for each weight of `APPEARANCE_WEIGHTS`,

        feature_weight * cosine - appearance_weight * d^2 / mean(d^2)

    with the cosine of the patches' `features` `(batch_size, num_patches, hidden_size)`, less their mean over the image;
    and d the Euclidean distance of `patch_appearance`, whose mean is over all pairs of the image. Neither depends on
    the normalisation of the pixels, on the number of channels or on the size of the grid. No gradient flows.

    Source: non-local means (Buades, Coll, Morel, CVPR 2005), over patches of a transformer. That features of the network
    group the patches of an object is what LOST (Simeoni et al., BMVC 2021) and TokenCut (Wang et al., CVPR 2022) use.
    """
    # autocast would multiply in half precision
    with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
        features, appearance = features.float(), appearance.float()
        directions = F.normalize(features - features.mean(dim=1, keepdim=True), dim=-1)
        cosines = directions @ directions.transpose(1, 2)
        # by differences and not by products, which lose small distances to rounding
        distances = torch.cdist(appearance, appearance, compute_mode="donot_use_mm_for_euclid_dist").square()
        # an image of one colour has no distances
        distances = distances / distances.mean(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        return torch.stack([feature_weight * cosines - weight * distances for weight in APPEARANCE_WEIGHTS])


def choose_grouping(
    scores: Tensor, local_logits: Tensor, grid_size: tuple[int, int], num_windows: int
) -> tuple[Tensor, Tensor]:
    """Return for each image the grouping by which one window's predictions tell most about another's, and which it is.

    `scores` are from `grouping_scores`, `local_logits` `(batch_size, num_patches, num_labels + 1)` those of the windows.
    A patch is predicted by the mean over the patches *outside its window*, which saw other pixels; that grouping is
    chosen whose cross-entropy with the patch's own prediction is least, mean over the patches of an image. Returned are
    the grouping of all patches `(batch_size, num_patches, num_patches)`, rows of which sum to 1, so probabilities stay
    probabilities, and its index in `scores`, `(batch_size,)`. With one window nothing is outside; the first is taken.

    Source: cross-validation of a smoother (Stone, JRSS B 1974), where a fold is a window.
    """
    with torch.no_grad(), torch.autocast(scores.device.type, enabled=False):
        if num_windows == 1:
            index = torch.zeros(scores.shape[1], dtype=torch.long, device=scores.device)
            return scores[0].softmax(dim=-1), index
        log_probabilities = local_logits.float().log_softmax(dim=-1)
        probabilities = log_probabilities.exp()
        rows, columns = grid_size
        patches = torch.arange(rows * columns, device=scores.device).view(rows, columns)
        windows = patches // columns // (rows // num_windows) * num_windows
        windows = (windows + patches % columns // (columns // num_windows)).flatten()
        others = scores.masked_fill(windows[:, None] == windows, float("-inf")).softmax(dim=-1) @ probabilities
        # a class without any probability elsewhere costs what float32 can still tell from 0
        losses = -(probabilities * others.clamp(min=1e-6).log()).sum(dim=-1).mean(dim=-1)
        index = losses.argmin(dim=0)
        return scores[index, torch.arange(len(index), device=index.device)].softmax(dim=-1), index


__all__ = [
    "APPEARANCE_WEIGHTS",
    "check_num_windows",
    "choose_grouping",
    "every_nth",
    "grouping_scores",
    "join_windows",
    "local_distillation_loss",
    "patch_appearance",
    "split_windows",
]
