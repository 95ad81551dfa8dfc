# SPDX-License-Identifier: Apache-2.0
"""Baselines that captum computes from the pixels; here they only meet a model of transformers and its patch grid.

Guided backpropagation is left out, since it is the plain gradient where there is no ReLU, and captum's LRP, since it
has no rule for layer norms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d
from transformers import PreTrainedModel

from ..ice_deit.configuration_ice_deit import as_pair
from .class_scores import explained_logits, gradient_pass, target_or_predicted
from .inspection import grid_size
from .libraries import import_library


__all__ = [
    "feature_ablation",
    "gradient_shap",
    "input_x_gradient",
    "integrated_gradients",
    "occlusion",
    "saliency",
    "smooth_grad",
]


def saliency(model: PreTrainedModel, pixel_values: Tensor, target: Tensor | None = None) -> Tensor:
    """Sum the absolute gradient of the class's logit over the pixels and channels of each patch.

    Args:
        model: A ViT, DeiT or ICE classifier.
        pixel_values: `(batch_size, num_channels, height, width)`.
        target: `(batch_size,)` class indices; `None` is the predicted class.

    Returns:
        `(batch_size, rows, columns)`, float32, not negative.

    Raises:
        ImportError: If captum is not installed.
        ValueError: If the model has no classification head.

    Source: Simonyan, Vedaldi and Zisserman, "Deep Inside Convolutional Networks", 2013; `captum.attr.Saliency`.
    """
    captum = import_library("captum.attr")
    with _attribution(model, pixel_values, target) as (logits_of, pixels, classes):
        attribution = captum.Saliency(logits_of).attribute(pixels, target=classes)
    return _sum_over_patches(attribution, model)


def input_x_gradient(
    model: PreTrainedModel, pixel_values: Tensor, target: Tensor | None = None, absolute: bool = True
) -> Tensor:
    """Sum pixel times gradient of the class's logit over the pixels and channels of each patch.

    Args:
        model: A ViT, DeiT or ICE classifier.
        pixel_values: `(batch_size, num_channels, height, width)`.
        target: `(batch_size,)` class indices; `None` is the predicted class.
        absolute: Whether to sum absolute values; if not, evidence for and against the class cancels in a patch.

    Returns:
        `(batch_size, rows, columns)`, float32, not negative if `absolute`.

    Raises:
        ImportError: If captum is not installed.
        ValueError: If the model has no classification head.

    Source: Shrikumar et al., "Not Just a Black Box", 2016; `captum.attr.InputXGradient`.
    """
    captum = import_library("captum.attr")
    with _attribution(model, pixel_values, target) as (logits_of, pixels, classes):
        attribution = captum.InputXGradient(logits_of).attribute(pixels, target=classes)
    return _sum_over_patches(attribution, model, absolute)


def integrated_gradients(
    model: PreTrainedModel,
    pixel_values: Tensor,
    target: Tensor | None = None,
    num_steps: int = 50,
    baseline: float = 0.0,
    absolute: bool = True,
) -> Tensor:
    """Sum over each patch the gradients along the way from a plain image to this one, times the way.

    Args:
        model: A ViT, DeiT or ICE classifier.
        pixel_values: `(batch_size, num_channels, height, width)`.
        target: `(batch_size,)` class indices; `None` is the predicted class.
        num_steps: Gradients per image; one image goes through the model at a time, with all its steps.
        baseline: Value of all pixels of the plain image; 0 is the mean colour for the usual normalisation.
        absolute: Whether to sum absolute values. If not, a map sums to the logit minus that of the plain image.

    Returns:
        `(batch_size, rows, columns)`, float32, not negative if `absolute`.

    Raises:
        ImportError: If captum is not installed.
        ValueError: If the model has no classification head.

    Source: Sundararajan, Taly and Yan, "Axiomatic Attribution for Deep Networks", ICML 2017;
    `captum.attr.IntegratedGradients`.
    """
    captum = import_library("captum.attr")
    with _attribution(model, pixel_values, target) as (logits_of, pixels, classes):
        method = captum.IntegratedGradients(logits_of)
        maps = [
            method.attribute(image, baselines=baseline, target=label, n_steps=num_steps)
            for image, label in _one_by_one(pixels, classes)
        ]
    return _sum_over_patches(torch.cat(maps), model, absolute)


def smooth_grad(
    model: PreTrainedModel,
    pixel_values: Tensor,
    target: Tensor | None = None,
    num_samples: int = 20,
    noise_level: float = 0.15,
    seed: int = 0,
) -> Tensor:
    """Average the gradient over noisy copies of the image, and sum its absolute value over each patch.

    Args:
        model: A ViT, DeiT or ICE classifier.
        pixel_values: `(batch_size, num_channels, height, width)`.
        target: `(batch_size,)` class indices; `None` is the predicted class.
        num_samples: Copies per image; one image goes through the model at a time, with all its copies.
        noise_level: Standard deviation of the noise, as a share of the range of the image's values.
        seed: Every image gets the noise of this seed; the global generators are left as they were.

    Returns:
        `(batch_size, rows, columns)`, float32, not negative.

    Raises:
        ImportError: If captum is not installed.
        ValueError: If the model has no classification head.

    Source: Smilkov et al., "SmoothGrad: removing noise by adding noise", 2017; `captum.attr.NoiseTunnel`.
    """
    captum = import_library("captum.attr")
    with _attribution(model, pixel_values, target) as (logits_of, pixels, classes):
        # the tunnel averages the gradients with their signs; absolute values come after it
        method = captum.NoiseTunnel(captum.Saliency(logits_of))
        maps = []
        for image, label in _one_by_one(pixels, classes):
            options = {"nt_type": "smoothgrad", "nt_samples": num_samples, "stdevs": noise_level * _range_of(image)}
            with _seeded(seed, image.device):
                maps.append(method.attribute(image, target=label, abs=False, **options))
    return _sum_over_patches(torch.cat(maps), model)


def gradient_shap(
    model: PreTrainedModel,
    pixel_values: Tensor,
    target: Tensor | None = None,
    num_samples: int = 20,
    noise_level: float = 0.1,
    absolute: bool = True,
    seed: int = 0,
) -> Tensor:
    """Sum over each patch the expected gradient between plain images and noisy copies of this one, times the way.

    The plain images have one value throughout: the image's least, 0 (the mean colour for the usual normalisation), or
    its largest.

    Args:
        model: A ViT, DeiT or ICE classifier.
        pixel_values: `(batch_size, num_channels, height, width)`.
        target: `(batch_size,)` class indices; `None` is the predicted class.
        num_samples: Copies per image, each at a random point of its way; one image goes through the model at a time.
        noise_level: Standard deviation of the noise, as a share of the range of the image's values.
        absolute: Whether to sum absolute values; if not, evidence for and against the class cancels in a patch.
        seed: Every image gets the random numbers of this seed; the global generators are left as they were.

    Returns:
        `(batch_size, rows, columns)`, float32, not negative if `absolute`.

    Raises:
        ImportError: If captum is not installed.
        ValueError: If the model has no classification head.

    Source: Lundberg and Lee, "A Unified Approach to Interpreting Model Predictions", NeurIPS 2017;
    `captum.attr.GradientShap`.
    """
    captum = import_library("captum.attr")
    with _attribution(model, pixel_values, target) as (logits_of, pixels, classes):
        method = captum.GradientShap(logits_of)
        maps = []
        for image, label in _one_by_one(pixels, classes):
            # (3,): the least value, the mean colour, the largest value
            values = torch.stack([image.detach().amin(), image.new_zeros(()), image.detach().amax()])
            plain = values.view(3, 1, 1, 1).expand(3, *image.shape[1:])  # (3, num_channels, height, width)
            options = {"n_samples": num_samples, "stdevs": noise_level * _range_of(image)}
            with _seeded(seed, image.device):
                maps.append(method.attribute(image, baselines=plain, target=label, **options))
    return _sum_over_patches(torch.cat(maps), model, absolute)


def feature_ablation(
    model: PreTrainedModel, pixel_values: Tensor, target: Tensor | None = None, baseline: float = 0.0
) -> Tensor:
    """Return how far the class's logit falls when a patch is replaced by a plain one.

    Args:
        model: A ViT, DeiT or ICE classifier.
        pixel_values: `(batch_size, num_channels, height, width)`.
        target: `(batch_size,)` class indices; `None` is the predicted class.
        baseline: Value of all pixels of the plain patch; 0 is the mean colour for the usual normalisation.

    Returns:
        `(batch_size, rows, columns)`, float32, of either sign: below 0 where the patch speaks against the class.

    Raises:
        ImportError: If captum is not installed.
        ValueError: If the model has no classification head.

    Source: `captum.attr.FeatureAblation`.
    """
    captum = import_library("captum.attr")
    with _attribution(model, pixel_values, target) as (logits_of, pixels, classes):
        # one pass per patch, all pixels and channels of it at once
        options = {"baselines": baseline, "target": classes, "feature_mask": _patch_numbers(model, pixels)}
        # detached: the passes need no graph
        attribution = captum.FeatureAblation(logits_of).attribute(pixels.detach(), **options)
    return _mean_over_patches(attribution, model)


def occlusion(
    model: PreTrainedModel,
    pixel_values: Tensor,
    target: Tensor | None = None,
    window: int = 2,
    baseline: float = 0.0,
) -> Tensor:
    """Return how far the class's logit falls when a window over the patch is replaced, as a mean over such windows.

    Args:
        model: A ViT, DeiT or ICE classifier.
        pixel_values: `(batch_size, num_channels, height, width)`.
        target: `(batch_size,)` class indices; `None` is the predicted class.
        window: Side of the square window in patches, which slides by one patch; cut to the grid.
        baseline: Value of all pixels of the window; 0 is the mean colour for the usual normalisation.

    Returns:
        `(batch_size, rows, columns)`, float32, of either sign: below 0 where the patch speaks against the class.

    Raises:
        ImportError: If captum is not installed.
        ValueError: If the model has no classification head.

    Source: Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014;
    `captum.attr.Occlusion`.
    """
    captum = import_library("captum.attr")
    patch_height, patch_width = as_pair(model.config.patch_size)
    rows, columns = (min(window, size) for size in grid_size(model, pixel_values))  # size of the window, in patches
    num_channels = pixel_values.shape[1]
    with _attribution(model, pixel_values, target) as (logits_of, pixels, classes):
        attribution = captum.Occlusion(logits_of).attribute(
            pixels.detach(),
            sliding_window_shapes=(num_channels, rows * patch_height, columns * patch_width),  # in pixels
            strides=(num_channels, patch_height, patch_width),  # by one patch
            baselines=baseline,
            target=classes,
        )
    return _mean_over_patches(attribution, model)


@contextmanager
def _attribution(
    model: PreTrainedModel, pixel_values: Tensor, target: Tensor | None
) -> Iterator[tuple[Callable[[Tensor], Tensor], Tensor, Tensor]]:
    """Yield what captum asks for: a function from images to logits, the images, and their classes."""
    with gradient_pass(model, pixel_values) as pixels:

        def logits_of(images: Tensor) -> Tensor:
            return explained_logits(model, images)

        with torch.no_grad():  # only the class is needed here; captum runs the model again
            logits = logits_of(pixels)
        yield logits_of, pixels, target_or_predicted(logits, target)


def _one_by_one(pixels: Tensor, classes: Tensor) -> Iterator[tuple[Tensor, int]]:
    """Yield each image as a batch, with its class: no image's random numbers depend on where it stands."""
    for image, label in zip(pixels.detach().split(1), classes.tolist(), strict=True):
        yield image.clone().requires_grad_(), label  # (1, num_channels, height, width)


def _range_of(image: Tensor) -> float:
    return float(image.detach().amax() - image.detach().amin())


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the generators that captum draws from, NumPy's among them, inside the block alone."""
    numpy_state = np.random.get_state()  # noqa: NPY002 - it is the global one that captum uses
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # not `torch.manual_seed`, which seeds devices that are not forked
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002


def _sum_over_patches(attribution: Tensor, model: PreTrainedModel, absolute: bool = True) -> Tensor:
    # (batch_size, num_channels, height, width) -> (batch_size, rows, columns)
    values = attribution.detach().abs() if absolute else attribution.detach()
    # a divisor of 1 makes the average a sum
    return avg_pool2d(values.sum(dim=1), as_pair(model.config.patch_size), divisor_override=1).float()


def _mean_over_patches(attribution: Tensor, model: PreTrainedModel) -> Tensor:
    # the pixels of a patch are replaced together and hold the same value, in every channel
    return avg_pool2d(attribution.detach().mean(dim=1), as_pair(model.config.patch_size)).float()


def _patch_numbers(model: PreTrainedModel, pixels: Tensor) -> Tensor:
    """Return the number of the patch that each pixel belongs to, `(1, 1, height, width)`, int64."""
    (rows, columns), (patch_height, patch_width) = grid_size(model, pixels), as_pair(model.config.patch_size)
    # pixels beyond the last whole patch are seen by none: they may change with the last
    row = (torch.arange(pixels.shape[2], device=pixels.device) // patch_height).clamp(max=rows - 1)
    column = (torch.arange(pixels.shape[3], device=pixels.device) // patch_width).clamp(max=columns - 1)
    return (row[:, None] * columns + column)[None, None]  # (height, width) -> (1, 1, height, width)
