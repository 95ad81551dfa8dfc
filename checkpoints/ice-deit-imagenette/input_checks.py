# SPDX-License-Identifier: Apache-2.0
"""Checks of what is given to an ICE-DeiT model: pixel values and labels."""

import torch
from torch import Tensor

from .configuration_ice_deit import IceDeiTConfig, as_pair


def check_pixel_values(pixel_values: Tensor | None, config: IceDeiTConfig) -> Tensor:
    """Return the pixel values; raise a `ValueError` if they are missing, or have a wrong shape, size or type."""
    if pixel_values is None:
        raise ValueError("`pixel_values` is missing: pass the image processor's output, `model(**inputs)`.")
    if not isinstance(pixel_values, Tensor):
        raise ValueError(f"`pixel_values` must be a tensor, got {type(pixel_values).__name__}.")
    if pixel_values.dim() != 4 or pixel_values.shape[1] != config.num_channels:
        raise ValueError(
            f"`pixel_values` must have shape (batch_size, {config.num_channels}, height, width), got "
            f"{tuple(pixel_values.shape)}. The image processor converts and stacks images so."
        )
    if pixel_values.shape[0] == 0:
        raise ValueError("`pixel_values` must hold at least one image, got an empty batch.")
    if not pixel_values.is_floating_point():
        raise ValueError(
            f"`pixel_values` must be floating point, got {pixel_values.dtype}: raw pixels have to be rescaled and "
            "normalised first, as the image processor does."
        )
    patch_height, patch_width = as_pair(config.patch_size)
    height, width = pixel_values.shape[2:]
    if height < patch_height or width < patch_width or height % patch_height or width % patch_width:
        raise ValueError(
            f"The image size must be a multiple of the patch size {patch_height} x {patch_width}, got "
            f"{height} x {width}. Resize the images, for example with the image processor's `size`."
        )
    return pixel_values


def check_labels(labels: Tensor, batch_size: int, num_labels: int, is_multi_label: bool = False) -> None:
    """Raise a `ValueError` if labels are neither class indices nor soft targets of the right shape.

    With `is_multi_label` they must be a row for each image with one number for each class. In eager mode class indices
    and targets out of range are refused too.
    """
    if not isinstance(labels, Tensor):
        raise ValueError(f"`labels` must be a tensor, got {type(labels).__name__}.")
    if is_multi_label:
        _check_several_labels(labels, batch_size, num_labels)
        return
    soft = labels.dim() == 2 and labels.is_floating_point()
    hard = labels.dim() == 1 and not labels.is_floating_point() and labels.dtype != torch.bool
    if labels.shape[:1] != (batch_size,) or not (soft or hard) or (soft and labels.shape[1] != num_labels):
        raise ValueError(
            f"`labels` must be integers of shape ({batch_size},) or floating-point soft targets of shape "
            f"({batch_size}, {num_labels}), without a background column, got {labels.dtype} of shape "
            f"{tuple(labels.shape)}."
        )
    # data-dependent, so it would break a compiled or exported graph
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return
    if soft:
        sums = labels.float().sum(dim=1)
        if not ((sums - 1).abs() < 0.01).all() or labels.min() < 0:  # so written that NaN is refused too
            raise ValueError(
                "Soft `labels` must be non-negative, and the row of each image must sum to 1, as this model learns "
                f"one class an image, got sums from {sums.min().item():g} to {sums.max().item():g} and a smallest "
                f"value of {labels.min().item():g}. Divide rows by their sums; for images of several classes or none "
                'set `problem_type="multi_label_classification"` in the configuration.'
            )
    else:
        low, high = (value.item() for value in labels.long().aminmax())
        if low < 0 or high >= num_labels:
            raise ValueError(
                f"`labels` must be class indices in [0, {num_labels - 1}], got values from {low} to {high}. Set "
                "`num_labels` (or `id2label`) to the classes of the data, with `ignore_mismatched_sizes=True`."
            )


def _check_several_labels(labels: Tensor, batch_size: int, num_labels: int) -> None:
    if labels.shape != (batch_size, num_labels) or not labels.is_floating_point():
        raise ValueError(
            f"`labels` of a multi-label model must be floating point of shape ({batch_size}, {num_labels}), 1 for "
            f"each class in the picture and 0 for the others, got {labels.dtype} of shape {tuple(labels.shape)}. For "
            "class indices use `torch.nn.functional.one_hot(labels, num_labels).float()`."
        )
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return
    if not ((labels >= 0) & (labels <= 1)).all():  # so written that NaN is refused too
        low, high = (value.item() for value in labels.aminmax())
        raise ValueError(
            f"`labels` of a multi-label model must be in [0, 1], got values from {low:g} to {high:g}. Write 1 for "
            "each class in the picture and 0 for the others; a row of zeros is a picture of none."
        )


__all__ = ["check_labels", "check_pixel_values"]
