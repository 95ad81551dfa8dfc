# SPDX-License-Identifier: Apache-2.0
"""Baselines that torchcam computes from the patch tokens, which it is shown as a feature map.

Grad-CAM++ and Smooth Grad-CAM++ are left out, since torchcam (up to 0.5) does not weigh as their papers say, and
XGrad-CAM, since it divides by sums of activations, which may be 0 for normalised tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .class_scores import explained_logits, gradient_pass, target_or_predicted
from .inspection import encoder_of, grid_size, num_prefix_tokens
from .libraries import import_library


__all__ = ["layer_cam", "token_grad_cam"]


def token_grad_cam(
    model: PreTrainedModel, pixel_values: Tensor, target: Tensor | None = None, layer: int = -1
) -> Tensor:
    """Return Grad-CAM of the patch tokens that enter a layer's attention, as a feature map.

    Args:
        model: A ViT, DeiT or ICE classifier.
        pixel_values: `(batch_size, num_channels, height, width)`.
        target: `(batch_size,)` class indices; `None` is the predicted class.
        layer: Whose `layernorm_before` to read; negative counts from the end. No patch token reaches the logits later
            than through the attention of the last layer.

    Returns:
        `(batch_size, rows, columns)`, float32, not negative, not scaled.

    Raises:
        ImportError: If torchcam is not installed.
        ValueError: If the model has no classification head, or lacks the layer.

    Source: Selvaraju et al., "Grad-CAM", ICCV 2017; `torchcam.methods.GradCAM`.
    """
    return _class_activation_map("GradCAM", model, pixel_values, target, layer)


def layer_cam(model: PreTrainedModel, pixel_values: Tensor, target: Tensor | None = None, layer: int = -1) -> Tensor:
    """Return LayerCAM of the patch tokens that enter a layer's attention: gradients count where they are positive.

    Args:
        model: A ViT, DeiT or ICE classifier.
        pixel_values: `(batch_size, num_channels, height, width)`.
        target: `(batch_size,)` class indices; `None` is the predicted class.
        layer: As of `token_grad_cam`.

    Returns:
        `(batch_size, rows, columns)`, float32, not negative, not scaled.

    Raises:
        ImportError: If torchcam is not installed.
        ValueError: If the model has no classification head, or lacks the layer.

    Source: Jiang et al., "LayerCAM", IEEE TIP 2021; `torchcam.methods.LayerCAM`.
    """
    return _class_activation_map("LayerCAM", model, pixel_values, target, layer)


def _class_activation_map(
    name: str, model: PreTrainedModel, pixel_values: Tensor, target: Tensor | None, layer: int
) -> Tensor:
    """Return the map `(batch_size, rows, columns)` of a class of torchcam, before it is scaled."""
    extractor_class = getattr(import_library("torchcam.methods"), name)
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
    return relevance.detach().float()


class _TokenGridClassifier(nn.Module):
    """Classify images by a model whose patch tokens pass through a module of their own, laid out as a feature map."""

    def __init__(self, model: PreTrainedModel, layer: int) -> None:
        super().__init__()
        num_prefix_tokens(model)  # refuses other families
        self.model = model
        self.norm = encoder_of(model).layers[layer].layernorm_before
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
