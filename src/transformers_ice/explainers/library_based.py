# SPDX-License-Identifier: Apache-2.0
"""Baselines that captum computes from the pixels, and torchcam from the patch tokens laid out as a feature map.

Left out: captum's guided backpropagation, since it is the plain gradient where there is no ReLU, and its LRP, which
has no rule for layer norms; torchcam's Grad-CAM++ and Smooth Grad-CAM++, since it (up to 0.5) does not weigh as their
papers say, and XGrad-CAM, which divides by sums of activations that may be 0 for normalised tokens.

`absolute` says whether absolute values are summed over a patch; if not, evidence for and against the class cancels
there, and maps have either sign. A `baseline` is the value of all pixels of what replaces an image or a patch: 0 is
the mean colour for the usual normalisation.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d
from transformers import PreTrainedModel

from ..ice_deit.configuration_ice_deit import as_pair
from .class_scores import explained_logits, gradient_pass, target_or_predicted
from .families import backbone_of
from .inspection import grid_size, num_prefix_tokens


__all__ = [
    "feature_ablation",
    "gradient_shap",
    "input_x_gradient",
    "integrated_gradients",
    "layer_cam",
    "occlusion",
    "saliency",
    "smooth_grad",
    "token_grad_cam",
]


_GENERATORS = threading.Lock()


def saliency(model: PreTrainedModel, pixel_values: Tensor, target: Tensor | None = None) -> Tensor:
    """Sum the absolute gradient of the class's logit over the pixels and channels of each patch.

    Source: Simonyan, Vedaldi and Zisserman, "Deep Inside Convolutional Networks", 2013.
    """
    with _attribution("Saliency", model, pixel_values, target) as (method, pixels, classes):
        return _sum_over_patches(method.attribute(pixels, target=classes), model)


def input_x_gradient(
    model: PreTrainedModel, pixel_values: Tensor, target: Tensor | None = None, absolute: bool = True
) -> Tensor:
    """Sum pixel times gradient of the class's logit over the pixels and channels of each patch.

    Source: Shrikumar et al., "Not Just a Black Box", 2016.
    """
    with _attribution("InputXGradient", model, pixel_values, target) as (method, pixels, classes):
        return _sum_over_patches(method.attribute(pixels, target=classes), model, absolute)


def integrated_gradients(
    model: PreTrainedModel,
    pixel_values: Tensor,
    target: Tensor | None = None,
    num_steps: int = 50,
    baseline: float = 0.0,
    absolute: bool = True,
) -> Tensor:
    """Sum over each patch the gradients along the way from a plain image to this one, times the way.

    If not `absolute`, a map sums to the logit minus that of the plain image. All steps of an image run at once.

    Source: Sundararajan, Taly and Yan, "Axiomatic Attribution for Deep Networks", ICML 2017.
    """
    with _attribution("IntegratedGradients", model, pixel_values, target) as (method, pixels, classes):

        def attribute(image: Tensor, label: int) -> Tensor:
            return method.attribute(image, baselines=baseline, target=label, n_steps=num_steps)

        return _sum_over_patches(_one_by_one(attribute, pixels, classes), model, absolute)


def smooth_grad(
    model: PreTrainedModel,
    pixel_values: Tensor,
    target: Tensor | None = None,
    num_samples: int = 20,
    noise_level: float = 0.15,
    seed: int = 0,
) -> Tensor:
    """Average the gradient over noisy copies of the image, and sum its absolute value over each patch.

    The standard deviation of the noise is `noise_level` times the range of the image's values; every image gets the
    noise of this seed. All copies of an image run at once.

    Source: Smilkov et al., "SmoothGrad: removing noise by adding noise", 2017.
    """
    with _attribution("Saliency", model, pixel_values, target) as (gradient, pixels, classes):
        # the tunnel averages the gradients with their signs; absolute values come after it
        method = _import_library("captum.attr").NoiseTunnel(gradient)

        def attribute(image: Tensor, label: int) -> Tensor:
            options = {"nt_type": "smoothgrad", "nt_samples": num_samples, "stdevs": noise_level * _range_of(image)}
            return method.attribute(image, target=label, abs=False, **options)

        return _sum_over_patches(_one_by_one(attribute, pixels, classes, seed), model)


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

    The plain images have one value throughout: the image's least, 0, or its largest. Each copy is at a random point of
    its way; noise and seed as of `smooth_grad`.

    Source: Lundberg and Lee, "A Unified Approach to Interpreting Model Predictions", NeurIPS 2017.
    """
    with _attribution("GradientShap", model, pixel_values, target) as (method, pixels, classes):

        def attribute(image: Tensor, label: int) -> Tensor:
            # (3,): the least value, the mean colour, the largest value
            values = torch.stack([image.detach().amin(), image.new_zeros(()), image.detach().amax()])
            plain = values.view(3, 1, 1, 1).expand(3, *image.shape[1:])  # (3, num_channels, height, width)
            options = {"n_samples": num_samples, "stdevs": noise_level * _range_of(image)}
            return method.attribute(image, baselines=plain, target=label, **options)

        return _sum_over_patches(_one_by_one(attribute, pixels, classes, seed), model, absolute)


def feature_ablation(
    model: PreTrainedModel, pixel_values: Tensor, target: Tensor | None = None, baseline: float = 0.0
) -> Tensor:
    """Return how far the class's logit falls when a patch is replaced: below 0 where it is evidence against it."""
    with _attribution("FeatureAblation", model, pixel_values, target) as (method, pixels, classes):
        # one pass per patch, all pixels and channels of it at once
        options = {"baselines": baseline, "target": classes, "feature_mask": _patch_numbers(model, pixels)}
        # detached: the passes need no graph
        return _mean_over_patches(method.attribute(pixels.detach(), **options), model)


def occlusion(
    model: PreTrainedModel,
    pixel_values: Tensor,
    target: Tensor | None = None,
    window: int = 2,
    baseline: float = 0.0,
) -> Tensor:
    """Return how far the class's logit falls when a window over the patch is replaced, as a mean over such windows.

    `window` is the side of the square window in patches, which slides by one patch; it is cut to the grid.

    Source: Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014.
    """
    patch_height, patch_width = as_pair(model.config.patch_size)
    num_channels = pixel_values.shape[1]
    with _attribution("Occlusion", model, pixel_values, target) as (method, pixels, classes):
        rows, columns = (min(window, size) for size in grid_size(model, pixels))  # size of the window, in patches
        attribution = method.attribute(
            pixels.detach(),
            sliding_window_shapes=(num_channels, rows * patch_height, columns * patch_width),  # in pixels
            strides=(num_channels, patch_height, patch_width),  # by one patch
            baselines=baseline,
            target=classes,
        )
    return _mean_over_patches(attribution, model)


def token_grad_cam(
    model: PreTrainedModel, pixel_values: Tensor, target: Tensor | None = None, layer: int = -1
) -> Tensor:
    """Return Grad-CAM of the patch tokens that enter a layer's attention, as a feature map.

    The map is not scaled. `layer` is the one whose layer norm before the attention is read; negative counts from the
    end. No patch token reaches the logits later than through the attention of the last layer, but for DINOv2, whose
    classifier also reads the mean of the patches: the tokens that go around that attention are not in the map.

    Source: Selvaraju et al., "Grad-CAM", ICCV 2017.
    """
    return _class_activation_map("GradCAM", model, pixel_values, target, layer)


def layer_cam(model: PreTrainedModel, pixel_values: Tensor, target: Tensor | None = None, layer: int = -1) -> Tensor:
    """Return LayerCAM of the patch tokens that enter a layer's attention: gradients count where they are positive.

    Source: Jiang et al., "LayerCAM", IEEE TIP 2021.
    """
    return _class_activation_map("LayerCAM", model, pixel_values, target, layer)


def _import_library(name: str) -> Any:
    """Return a module of an optional library, by its dotted name."""
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(
            f"This method needs {name.split('.')[0]}, which cannot be imported ({error}). "
            "Install it with `pip install transformers-ice[eval]`."
        ) from error


@contextmanager
def _attribution(
    name: str, model: PreTrainedModel, pixel_values: Tensor, target: Tensor | None
) -> Iterator[tuple[Any, Tensor, Tensor]]:
    """Yield a method of captum for the explained logits, the images, and their classes."""
    method = getattr(_import_library("captum.attr"), name)
    with gradient_pass(model, pixel_values) as pixels:

        def logits_of(images: Tensor) -> Tensor:
            return explained_logits(model, images)

        with torch.no_grad():  # only the class is needed here; captum runs the model again
            logits = logits_of(pixels)
        yield method(logits_of), pixels, target_or_predicted(logits, target)


def _one_by_one(
    attribute: Callable[[Tensor, int], Tensor], pixels: Tensor, classes: Tensor, seed: int | None = None
) -> Tensor:
    """Return the attribution of each image as a batch of its own: its random numbers do not depend on its place."""
    maps = []
    for image, label in zip(pixels.detach().split(1), classes.tolist(), strict=True):
        with _seeded(seed, image.device):
            maps.append(attribute(image.clone().requires_grad_(), label))  # (1, num_channels, height, width)
    return torch.cat(maps)


def _range_of(image: Tensor) -> float:
    return float(image.detach().amax() - image.detach().amin())


@contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Seed the generators that captum draws from, NumPy's among them, inside the block alone."""
    if seed is None:
        yield
        return
    # one thread at a time, and NumPy's state within that: captum draws from the global generators
    with _GENERATORS, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        numpy_state = np.random.get_state()  # noqa: NPY002
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


def _class_activation_map(
    name: str, model: PreTrainedModel, pixel_values: Tensor, target: Tensor | None, layer: int
) -> Tensor:
    """Return the map `(batch_size, rows, columns)` of a class of torchcam, before it is scaled."""
    extractor_class = getattr(_import_library("torchcam.methods"), name)
    num_layers = model.config.num_hidden_layers
    if not -num_layers <= layer < num_layers:
        raise ValueError(f"`layer` must lie in [{-num_layers}, {num_layers - 1}], got {layer}.")
    with gradient_pass(model, pixel_values) as pixels:
        classifier = _TokenGridClassifier(model, layer)
        with extractor_class(classifier, classifier.token_grid) as extractor:
            logits = classifier(pixels)
            classes = target_or_predicted(logits, target).tolist()
            # one layer, so one map: (batch_size, rows, columns)
            (relevance,) = extractor(classes, logits, normalized=False)
    undefined = logits.isnan().any(dim=1)[:, None, None]  # torchcam takes NaN for 0
    return relevance.detach().float().masked_fill(undefined, torch.nan)


class _TokenGridClassifier(nn.Module):
    """Classify images by a model whose patch tokens pass through a module of their own, laid out as a feature map."""

    def __init__(self, model: PreTrainedModel, layer: int) -> None:
        super().__init__()
        backbone = backbone_of(model)
        self.model = model
        self.norm = backbone.norm_before_attention(backbone.layers[layer])
        self.token_grid = nn.Identity()  # where torchcam puts its hooks

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the explained logits `(batch_size, num_labels)`."""
        prefix, size = num_prefix_tokens(self.model), grid_size(self.model, pixels)

        def through_grid(_: nn.Module, __: Any, tokens: Tensor) -> Tensor:
            # (batch_size, num_patches, hidden_size) -> (batch_size, hidden_size, rows, columns), and back
            grid = self.token_grid(tokens[:, prefix:].transpose(1, 2).unflatten(2, size))
            return torch.cat((tokens[:, :prefix], grid.flatten(2).transpose(1, 2)), dim=1)

        handle = self.norm.register_forward_hook(through_grid)
        try:
            return explained_logits(self.model, pixels)
        finally:
            handle.remove()
