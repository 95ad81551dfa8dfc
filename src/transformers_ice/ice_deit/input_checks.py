# SPDX-License-Identifier: Apache-2.0
"""Checks at the models' public edge: what was expected, what came, and the way out."""

import torch
from torch import Tensor

from .configuration_ice_deit import IceDeiTConfig, as_pair


def check_pixel_values(pixel_values: Tensor | None, config: IceDeiTConfig) -> Tensor:
    """Return pixel values that the model can take.

    Args:
        pixel_values: What the user passed.
        config: The model's configuration.

    Raises:
        ValueError: If they are missing, or have a wrong shape, size or type.
    """
    if pixel_values is None:
        raise ValueError("`pixel_values` is missing: pass the image processor's output, `model(**inputs)`.")
    if pixel_values.dim() != 4 or pixel_values.shape[1] != config.num_channels:
        raise ValueError(
            f"`pixel_values` must have shape (batch_size, {config.num_channels}, height, width), got "
            f"{tuple(pixel_values.shape)}. The image processor converts and stacks images so."
        )
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


def check_labels(labels: Tensor, batch_size: int, num_labels: int) -> None:
    """Refuse labels that the loss cannot take.

    Args:
        labels: What the user passed.
        batch_size: Number of images.
        num_labels: Number of image classes.

    Raises:
        ValueError: If they are neither class indices nor soft targets of the right shape, or, in eager mode, if an
            index is out of range.
    """
    soft = labels.dim() == 2 and labels.is_floating_point()
    hard = labels.dim() == 1 and not labels.is_floating_point() and labels.dtype != torch.bool
    if labels.shape[:1] != (batch_size,) or not (soft or hard) or (soft and labels.shape[1] != num_labels):
        raise ValueError(
            f"`labels` must be integers of shape ({batch_size},) or floating-point soft targets of shape "
            f"({batch_size}, {num_labels}), without a background column, got {labels.dtype} of shape "
            f"{tuple(labels.shape)}."
        )
    # data-dependent, so it would break a compiled or exported graph
    if hard and not torch.compiler.is_compiling() and not torch.jit.is_tracing():
        low, high = (value.item() for value in labels.aminmax())
        if low < 0 or high >= num_labels:
            raise ValueError(
                f"`labels` must be class indices in [0, {num_labels - 1}], got values from {low} to {high}. Set "
                "`num_labels` (or `id2label`) to the classes of the data, with `ignore_mismatched_sizes=True`."
            )


__all__ = ["check_labels", "check_pixel_values"]
