# SPDX-License-Identifier: Apache-2.0
"""The explanation of one image, and what is read from model outputs to build it.

`IceDeiTImageProcessor.post_process_explanation` builds a `PatchExplanation`; the pipeline, the app and the figures use
it. This file travels with a checkpoint as remote code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .adversarial_normalization import pool_foreground_logits
from .patch_maps import (
    ImageGeometry,
    box_to_image,
    class_map,
    component_box,
    foreground_probability,
    largest_component,
    to_grid,
    visible_cells,
)


__all__ = [
    "BACKGROUND_LABEL",
    "PatchExplanation",
    "classify_image",
    "describe_outputs",
    "locate_object",
    "read_class_logits",
    "read_output",
    "read_patch_logits",
]

BACKGROUND_LABEL = "background"
_BOX_NAMES = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True, eq=False)  # arrays have no truth value, so `==` could not compare two explanations
class PatchExplanation:
    """Explanation of one image by its patches: the class, where it is, and how sure the model is.

    All maps have one size `(height, width)`: that of the image, or the patch grid where no size was given.

    Attributes:
        label: Name of the predicted class; "background" where nothing was found.
        score: Softmax probability of the class among the classes, in [0, 1]; where nothing was found, the mean
            p(background) of the patches.
        box: `(x_min, y_min, x_max, y_max)`, half-open, in pixels of the maps: around the largest connected component
            of foreground patches; `None` where there is none.
        heatmap: `(height, width)`, float32, in [0, 1]: 1 - p(background), or p(target).
        class_map: `(height, width)`, int64, class of each pixel's patch; `num_labels` is background.
        mask: `(height, width)`, bool, True = foreground.
        foreground_ratio: Ratio of foreground patches, in [0, 1].
        exit_layers: `(height, width)`, int64: the layer before which each pixel's patch was pruned, the number of
            layers where it was kept. `None` if the outputs do not hold it, as those of an exported file may not.
        class_index: Index of the predicted class; `None` with the label "background".
    """

    label: str
    score: float
    box: tuple[int, int, int, int] | None
    heatmap: np.ndarray
    class_map: np.ndarray
    mask: np.ndarray
    foreground_ratio: float
    exit_layers: np.ndarray | None
    class_index: int | None

    @property
    def found(self) -> bool:
        """Whether any patch is foreground. The label may be a class all the same: that of a [CLS] classifier."""
        return self.box is not None

    def to_dict(self) -> dict[str, Any]:
        """Return what `pipeline("patch-explanation")` answers; `box` by the names of its corners."""
        return {
            "label": self.label,
            "score": self.score,
            "heatmap": self.heatmap,
            "class_map": self.class_map,
            "mask": self.mask,
            "found": self.found,
            "box": None if self.box is None else dict(zip(_BOX_NAMES, self.box, strict=True)),
            "foreground_ratio": self.foreground_ratio,
            "exit_layers": self.exit_layers,
        }


def classify_image(image_logits: Tensor, patch_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the class of one image and its score, without dimensions: the one rule for "nothing found".

    Nothing is found where no patch is foreground and the class scores `(num_labels,)` are all zero, which is the mean
    over no patch; then these are the background index and the mean p(background) of the patches. Scores of a [CLS]
    classifier are not zero there, and name the class.
    """
    background_index = patch_logits.shape[-1] - 1
    if not image_logits.any() and (class_map(patch_logits) == background_index).all():
        score = 1 - foreground_probability(patch_logits).mean()
        return torch.tensor(background_index), score
    score, label = image_logits.softmax(dim=-1).max(dim=-1)
    return label, score


def locate_object(
    patch_logits: Tensor, grid_size: tuple[int, int], geometry: ImageGeometry
) -> tuple[int, int, int, int] | None:
    """Return the box around the largest component of foreground patches that show any of the image.

    `(x_min, y_min, x_max, y_max)`, half-open, in pixels of the original image; `None` where there is no such patch.
    """
    foreground = to_grid(class_map(patch_logits) != patch_logits.shape[-1] - 1, grid_size)
    mask = foreground.cpu().numpy() & visible_cells(grid_size, geometry)
    return box_to_image(component_box(largest_component(mask)), grid_size, geometry) if mask.any() else None


def read_output(outputs: Any, name: str) -> Any:
    """Return one entry of a model's outputs, a dict or an object, or `None` where there is none."""
    return outputs.get(name) if isinstance(outputs, dict) else getattr(outputs, name, None)


def read_patch_logits(outputs: Any) -> tuple[Tensor, list[tuple[int, int]]]:
    """Return the patch logits and the grid size of each image, from the outputs of any ICE-DeiT class.

    The logits are `(batch_size, num_patches, num_labels + 1)`, float32; raises a `ValueError` where there are none.
    """
    logits, patch_logits = read_output(outputs, "logits"), read_output(outputs, "patch_logits")
    if isinstance(logits, Tensor) and logits.ndim == 4:
        grid_size = (logits.shape[2], logits.shape[3])
        # (batch, classes, rows, columns) -> (batch, patches, classes)
        patch_logits = logits.flatten(2).transpose(1, 2).float()
        _refuse_nan(patch_logits, "patch_logits")
        return patch_logits, [grid_size] * len(logits)
    grid_sizes = read_output(outputs, "grid_size")
    if not isinstance(patch_logits, Tensor) or patch_logits.ndim != 3 or grid_sizes is None:
        raise ValueError(
            "`outputs` must hold `patch_logits` (batch_size, num_patches, num_labels + 1) and `grid_size`, or "
            f"`logits` (batch_size, num_labels + 1, rows, columns), got {describe_outputs(outputs)}. Pass what an "
            "ICE-DeiT model returned."
        )
    _refuse_nan(patch_logits, "patch_logits")
    pairs = torch.as_tensor(grid_sizes).expand(len(patch_logits), 2).tolist()
    return patch_logits.float(), [(rows, columns) for rows, columns in pairs]


def read_class_logits(outputs: Any) -> Tensor:
    """Return the class scores of the images, `(batch_size, num_labels)`, float32: `outputs.logits`, if they are that.

    Otherwise the mean over the foreground patches.
    """
    logits = read_output(outputs, "logits")
    if isinstance(logits, Tensor) and logits.ndim == 2:
        _refuse_nan(logits, "logits")
        return logits.float()
    pooled = pool_foreground_logits(read_patch_logits(outputs)[0])[:, :-1]
    _refuse_nan(pooled, "patch_logits")  # the mean over patches of a class that one of them rules out
    return pooled


def _refuse_nan(logits: Tensor, name: str) -> None:
    """Refuse logits whose softmax is NaN: a class and a box would be read off them all the same."""
    broken = ~logits.float().logsumexp(dim=-1).isfinite().reshape(len(logits), -1).all(dim=1)
    if broken.any():
        raise ValueError(
            f"`outputs.{name}` must be finite, got NaN or infinity for image {broken.nonzero()[0].item()} of "
            f"{len(logits)}. The model diverged, its half precision overflowed, or the pixels are not finite."
        )


def describe_outputs(outputs: Any) -> str:
    """Return the names and shapes of a model's outputs, for an error."""
    items = outputs if isinstance(outputs, dict) else getattr(outputs, "__dict__", {})
    shapes = [f"{name} {tuple(value.shape)}" for name, value in items.items() if isinstance(value, Tensor)]
    return ", ".join(shapes) or type(outputs).__name__
