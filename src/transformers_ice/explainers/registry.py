# SPDX-License-Identifier: Apache-2.0
"""Name every explainer and call one by its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .attention_based import raw_attention, rollout
from .ice import ice, ice_hard


__all__ = ["EXPLAINERS", "HARD_EXPLAINERS", "explain"]


EXPLAINERS: dict[str, Callable[..., Tensor]] = {
    "ice": ice,
    "ice_hard": ice_hard,
    "raw_attention": raw_attention,
    "rollout": rollout,
}
# Their maps are masks already: no threshold, and nearest instead of bilinear on the way to the pixels.
HARD_EXPLAINERS = frozenset({"ice_hard"})


def explain(
    model: PreTrainedModel,
    pixel_values: Tensor,
    method: str = "ice",
    target: int | Sequence[int] | Tensor | None = None,
    **options: Any,
) -> Tensor:
    """Return how relevant each patch is.

    The model comes back as it was: its attention implementation, training mode and gradients are not touched.

    Args:
        model: A ViT, DeiT or ICE model of transformers; `ice` and `ice_hard` need an ICE model.
        pixel_values: `(batch_size, num_channels, height, width)`, as the image processor makes them, on the model's
            device.
        method: A name in `EXPLAINERS`.
        target: The class to explain, one for all images or one per image. `None` is what the method explains by
            itself: all foreground for `ice` and `ice_hard`. The attention-based methods know no class.
        **options: Options of the method, such as `start_layer` of `rollout`.

    Returns:
        `(batch_size, rows, columns)`, float32, larger is more relevant; the range is that of the method.

    Raises:
        ValueError: If the method is unknown or does not fit the model, or `pixel_values` or `target` is out of range.

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
    if target is not None:
        options["target"] = _class_per_image(target, pixel_values, cast(int, model.config.num_labels))
    return EXPLAINERS[method](model, pixel_values, **options)


def _class_per_image(target: int | Sequence[int] | Tensor, pixel_values: Tensor, num_labels: int) -> Tensor:
    """Return class indices `(batch_size,)` on the device of the pixels."""
    batch_size = pixel_values.shape[0]
    classes = torch.as_tensor(target, device=pixel_values.device)
    if classes.is_floating_point() or classes.dtype == torch.bool or classes.shape not in ((), (batch_size,)):
        raise ValueError(
            f"`target` must be one class index or {batch_size} of them, got {classes.dtype} of shape "
            f"{tuple(classes.shape)}."
        )
    classes = classes.long().expand(batch_size)
    if classes.min() < 0 or classes.max() >= num_labels:
        raise ValueError(f"`target` must lie in [0, {num_labels - 1}], got {sorted(set(classes.tolist()))}.")
    return classes
