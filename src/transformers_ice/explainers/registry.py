# SPDX-License-Identifier: Apache-2.0
"""Name every explainer, say what it needs, and call one by its name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from . import attention_based, gradient_based, library_based, relevance_based
from .ice import ice, ice_hard
from .inspection import exclusive_use, full_grid, without_adapters


__all__ = ["EXPLAINERS", "HARD_EXPLAINERS", "Explainer", "explain"]


@dataclass(frozen=True)
class Explainer:
    """Describe a way to explain; calling it calls its function.

    Attributes:
        function: `(model, pixel_values, target=None, **options)` to `(batch_size, rows, columns)`.
        model: "ice" if it reads the patch head of an ICE model, "any" for every model of `FAMILIES`.
        takes_target: Whether the map depends on the class.
        needs_gradient: Whether it runs the model backwards, which takes the memory of a training step.
        is_hard: Whether the map is a mask already: no threshold, and nearest instead of bilinear on the way to the
            pixels.
        resolution: "patch", or "pixel" for maps `(batch_size, height, width)`.
        library: What has to be installed for it, if anything.
        title: Its name in user interfaces, such as the app; without one, its key in `EXPLAINERS` in words.
    """

    function: Callable[..., Tensor]
    model: Literal["any", "ice"] = "any"
    takes_target: bool = True
    needs_gradient: bool = False
    is_hard: bool = False
    resolution: Literal["patch", "pixel"] = "patch"
    library: str | None = None
    title: str = ""

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the options beyond model, images and target."""
        return tuple(inspect.signature(self.function).parameters)[3:]  # after model, pixel_values and target

    def __call__(self, model: PreTrainedModel, pixel_values: Tensor, *args: Any, **options: Any) -> Tensor:
        """Return the map of each image; see `explain`, which also checks its arguments."""
        return self.function(model, pixel_values, *args, **options)


EXPLAINERS: dict[str, Explainer] = {
    "ice": Explainer(ice, model="ice", title="ICE"),
    "ice_hard": Explainer(ice_hard, model="ice", is_hard=True, title="ICE, yes or no"),
    "raw_attention": Explainer(attention_based.raw_attention, takes_target=False),
    "rollout": Explainer(attention_based.rollout, takes_target=False, title="Attention rollout"),
    "grad_cam": Explainer(gradient_based.grad_cam, needs_gradient=True, title="Grad-CAM"),
    "generic_attention": Explainer(gradient_based.generic_attention, needs_gradient=True),
    "legrad": Explainer(gradient_based.legrad, needs_gradient=True, title="LeGrad"),
    "transformer_attribution": Explainer(relevance_based.transformer_attribution, needs_gradient=True),
    "partial_lrp": Explainer(relevance_based.partial_lrp, title="Partial LRP"),
    "full_lrp": Explainer(relevance_based.full_lrp, resolution="pixel", title="Full LRP"),
    "saliency": Explainer(library_based.saliency, needs_gradient=True, library="captum"),
    "input_x_gradient": Explainer(library_based.input_x_gradient, needs_gradient=True, library="captum"),
    "integrated_gradients": Explainer(library_based.integrated_gradients, needs_gradient=True, library="captum"),
    "smooth_grad": Explainer(library_based.smooth_grad, needs_gradient=True, library="captum", title="SmoothGrad"),
    "gradient_shap": Explainer(
        library_based.gradient_shap, needs_gradient=True, library="captum", title="Gradient SHAP"
    ),
    "feature_ablation": Explainer(library_based.feature_ablation, library="captum"),
    "occlusion": Explainer(library_based.occlusion, library="captum"),
    "token_grad_cam": Explainer(
        library_based.token_grad_cam, needs_gradient=True, library="torchcam", title="Token Grad-CAM"
    ),
    "layer_cam": Explainer(library_based.layer_cam, needs_gradient=True, library="torchcam", title="Layer-CAM"),
}
HARD_EXPLAINERS = frozenset(name for name, explainer in EXPLAINERS.items() if explainer.is_hard)


def explain(
    model: PreTrainedModel,
    pixel_values: Tensor,
    method: str = "ice",
    target: int | Sequence[int] | Tensor | None = None,
    **options: Any,
) -> Tensor:
    """Return how relevant each patch is.

    The model comes back as it was, even after an error: attention implementation, training mode, hooks, gradients and
    their flags. Calls of several threads for one model wait for each other; nothing else may use the model meanwhile.
    The caller may be in any gradient mode. No image has a part in another's map.

    Args:
        model: An ICE model, or one of transformers' families in `FAMILIES`: ViT, DeiT, ViT-MSN, DINOv2 with or without
            registers. `ice` and `ice_hard` need an ICE model, methods that take a target a classification head.
            Of a `PeftModel` each call merges a copy: for many calls, pass `merge_and_unload()` of it.
        pixel_values: `(batch_size, num_channels, height, width)`, as the image processor makes them, on the model's
            device.
        method: A name in `EXPLAINERS`.
        target: The class to explain, one for all images or one per image. `None` is all foreground for `ice` and
            `ice_hard`, and for the others the predicted class (of an ICE model, that of `cls_logits`). The
            attention-based methods know no class.
        **options: Options of the method, such as `start_layer` of `rollout`: `EXPLAINERS[method].options`.

    Returns:
        `(batch_size, rows, columns)`, or `(batch_size, height, width)` for `full_lrp`; float32, larger is more
        relevant; the range is that of the method. NaN for an image whose pixels are not all finite.

    Raises:
        ImportError: If the library that the method comes from is not installed.
        ValueError: If the method or an option is unknown, the method does not fit the model, or `pixel_values` or
            `target` is out of range.

    Example:
        >>> heatmaps = explain(model, pixel_values, method="rollout", start_layer=0)
    """
    if method not in EXPLAINERS:
        raise ValueError(f"`method` must be one of {', '.join(sorted(EXPLAINERS))}, got {method!r}.")
    if pixel_values.dim() != 4:
        raise ValueError(
            "`pixel_values` must have shape (batch_size, num_channels, height, width), "
            f"got {tuple(pixel_values.shape)}. Pass what the image processor returns."
        )
    if not len(pixel_values):
        raise ValueError("`pixel_values` must hold at least one image, got an empty batch.")
    explainer, model = EXPLAINERS[method], without_adapters(model)
    unknown = sorted(set(options) - set(explainer.options))
    if unknown:
        known = ", ".join(explainer.options) or "none"
        raise ValueError(f"The options of method {method!r} are: {known}; got {', '.join(unknown)}.")
    if target is not None:
        options["target"] = _class_per_image(target, pixel_values, cast(int, model.config.num_labels))
    # an image that holds NaN says nothing: some methods would map it to 0 or 1, others fail for the whole batch
    is_finite = pixel_values.isfinite().flatten(1).all(dim=1)[:, None, None]  # (batch_size, 1, 1)
    if not is_finite.all():
        pixel_values = torch.where(is_finite[..., None], pixel_values, 0.0)
    # a map has a value for every patch, also where the model prunes
    with exclusive_use(model), full_grid(model):
        return explainer(model, pixel_values, **options).masked_fill(~is_finite, torch.nan)


def _class_per_image(target: int | Sequence[int] | Tensor, pixel_values: Tensor, num_labels: int) -> Tensor:
    """Return class indices `(batch_size,)` on the device of the pixels."""
    batch_size = pixel_values.shape[0]
    classes = torch.as_tensor(target, device=pixel_values.device)
    if classes.is_floating_point() or classes.dtype == torch.bool or classes.shape not in ((), (batch_size,)):
        raise ValueError(
            f"`target` must be one class index or {batch_size} of them, got {classes.dtype} of shape "
            f"{tuple(classes.shape)}."
        )
    classes = classes.long().expand(batch_size)  # () or (batch_size,) -> (batch_size,)
    if classes.min() < 0 or classes.max() >= num_labels:
        raise ValueError(f"`target` must lie in [0, {num_labels - 1}], got {sorted(set(classes.tolist()))}.")
    return classes
