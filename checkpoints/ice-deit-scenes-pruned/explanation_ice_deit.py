# SPDX-License-Identifier: Apache-2.0
"""The explanation of one image, and what is read from model outputs to build it.

`IceDeiTImageProcessor.post_process_explanation` builds a `PatchExplanation`; the pipeline, the app and the figures use
it. This file travels with a checkpoint as remote code.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    "localize",
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
            of foreground patches, the whole image where there is none.
        heatmap: `(height, width)`, float32, in [0, 1]: 1 - p(background), or p(target).
        class_map: `(height, width)`, int64, class of each pixel's patch; `num_labels` is background.
        mask: `(height, width)`, bool, True = foreground.
        foreground_ratio: Ratio of foreground patches, in [0, 1].
        exit_layers: `(height, width)`, int64: the layer before which each pixel's patch was pruned, the number of
            layers where it was kept. `None` if the outputs do not hold it, as those of an exported file may not.
        class_index: Index of the predicted class; `None` where nothing was found.
    """

    label: str
    score: float
    box: tuple[int, int, int, int]
    heatmap: np.ndarray
    class_map: np.ndarray
    mask: np.ndarray
    foreground_ratio: float
    exit_layers: np.ndarray | None
    class_index: int | None

    @classmethod
    def from_tensors(
        cls,
        localization: Mapping[str, Tensor],
        heatmap: Tensor,
        class_map: Tensor,
        patch_classes: Tensor,
        exit_layers: Tensor | None,
        *,
        background_index: int,
        id2label: Mapping[int, str] | None = None,
    ) -> PatchExplanation:
        """Return the explanation of one image from what the `post_process_*` methods return for it.

        Args:
            localization: From `post_process_object_localization`.
            heatmap: From `post_process_heatmap`, `(height, width)`.
            class_map: From `post_process_semantic_segmentation`, `(height, width)`.
            patch_classes: The same without `target_sizes`, `(rows, columns)`.
            exit_layers: From `post_process_exit_layers`, `(height, width)`, if known.
            background_index: `num_labels`.
            id2label: Name by class index; by default "LABEL_0" and so on, as transformers names classes.
        """
        index = int(localization["labels"].item())
        x_min, y_min, x_max, y_max = localization["boxes"][0].tolist()
        names = {index: f"LABEL_{index}"} if id2label is None else id2label
        return cls(
            label=BACKGROUND_LABEL if index == background_index else names[index],
            score=localization["scores"].item(),
            box=(x_min, y_min, x_max, y_max),
            heatmap=heatmap.cpu().numpy(),
            class_map=class_map.cpu().numpy(),
            mask=(class_map != background_index).cpu().numpy(),
            foreground_ratio=(patch_classes != background_index).float().mean().item(),
            exit_layers=None if exit_layers is None else exit_layers.cpu().numpy(),
            class_index=None if index == background_index else index,
        )

    @property
    def nothing_found(self) -> bool:
        """Whether no patch is foreground and no [CLS] classifier names a class (`classify_image`)."""
        return self.class_index is None

    def to_dict(self) -> dict[str, Any]:
        """Return what `pipeline("patch-explanation")` answers; `box` by the names of its corners."""
        return {
            "label": self.label,
            "score": self.score,
            "heatmap": self.heatmap,
            "class_map": self.class_map,
            "mask": self.mask,
            "box": dict(zip(_BOX_NAMES, self.box, strict=True)),
            "foreground_ratio": self.foreground_ratio,
            "exit_layers": self.exit_layers,
        }


def classify_image(image_logits: Tensor, patch_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the class of one image and its score: the one rule for "nothing found".

    Nothing is found where no patch is foreground and the class scores are all zero, which is the mean over no
    patch. Scores of a [CLS] classifier are not zero there, and name the class.

    Args:
        image_logits: Class scores, `(num_labels,)`.
        patch_logits: `(num_patches, num_labels + 1)`, background last.

    Returns:
        The class, int64, and its softmax probability, float32; the background index `num_labels` and the mean
        p(background) of the patches where nothing was found. Both without dimensions.
    """
    background_index = patch_logits.shape[-1] - 1
    if not image_logits.any() and (class_map(patch_logits) == background_index).all():
        score = 1 - foreground_probability(patch_logits).mean()
        return torch.tensor(background_index), score
    score, label = image_logits.softmax(dim=-1).max(dim=-1)
    return label, score


def locate_object(
    patch_logits: Tensor, grid_size: tuple[int, int], geometry: ImageGeometry
) -> tuple[int, int, int, int]:
    """Return the box around the largest component of foreground patches that show any of the image.

    Args:
        patch_logits: `(num_patches, num_labels + 1)`, background last.
        grid_size: Rows and columns of the patch grid.
        geometry: What the preprocessing did to the image.

    Returns:
        `(x_min, y_min, x_max, y_max)`, half-open, in pixels of the original image; the whole image where there is no
        such patch.
    """
    foreground = to_grid(class_map(patch_logits) != patch_logits.shape[-1] - 1, grid_size)
    mask = foreground.cpu().numpy() & visible_cells(grid_size, geometry)
    if not mask.any():
        return 0, 0, geometry.image_size[1], geometry.image_size[0]
    return box_to_image(component_box(largest_component(mask)), grid_size, geometry)


def localize(
    image_logits: Tensor, patch_logits: Tensor, grid_size: tuple[int, int], geometry: ImageGeometry
) -> dict[str, Tensor]:
    """Return `scores` `(1,)`, `labels` `(1,)` and `boxes` `(1, 4)` of one image, as object detectors do.

    Args:
        image_logits: As for `classify_image`.
        patch_logits: As for `locate_object`, like the others.
        grid_size: Rows and columns of the patch grid.
        geometry: What the preprocessing did to the image.
    """
    label, score = classify_image(image_logits, patch_logits)
    box = locate_object(patch_logits, grid_size, geometry)
    return {
        "scores": score[None],
        "labels": label[None].to(score.device),
        "boxes": torch.tensor([box], device=patch_logits.device),
    }


def read_output(outputs: Any, name: str) -> Any:
    """Return one entry of a model's outputs, a dict or an object, or `None` where there is none."""
    return outputs.get(name) if isinstance(outputs, dict) else getattr(outputs, name, None)


def read_patch_logits(outputs: Any) -> tuple[Tensor, list[tuple[int, int]]]:
    """Return the patch logits and the grid size of each image, from the outputs of any ICE-DeiT class.

    Returns:
        `(batch_size, num_patches, num_labels + 1)`, float32, and rows and columns per image.

    Raises:
        ValueError: If the outputs hold no patch logits.
    """
    logits, patch_logits = read_output(outputs, "logits"), read_output(outputs, "patch_logits")
    if isinstance(logits, Tensor) and logits.ndim == 4:
        grid_size = (logits.shape[2], logits.shape[3])
        # (batch, classes, rows, columns) -> (batch, patches, classes)
        return logits.flatten(2).transpose(1, 2).float(), [grid_size] * len(logits)
    grid_sizes = read_output(outputs, "grid_size")
    if not isinstance(patch_logits, Tensor) or patch_logits.ndim != 3 or grid_sizes is None:
        raise ValueError(
            "`outputs` must hold `patch_logits` (batch_size, num_patches, num_labels + 1) and `grid_size`, or "
            f"`logits` (batch_size, num_labels + 1, rows, columns), got {describe_outputs(outputs)}. Pass what an "
            "ICE-DeiT model returned."
        )
    pairs = torch.as_tensor(grid_sizes).expand(len(patch_logits), 2).tolist()
    return patch_logits.float(), [(rows, columns) for rows, columns in pairs]


def read_class_logits(outputs: Any) -> Tensor:
    """Return the class scores of the images, `(batch_size, num_labels)`, float32.

    Those of `outputs.logits` where they are class scores, else the mean over the foreground patches.
    """
    logits = read_output(outputs, "logits")
    if isinstance(logits, Tensor) and logits.ndim == 2:
        return logits.float()
    return pool_foreground_logits(read_patch_logits(outputs)[0])[:, :-1]


def describe_outputs(outputs: Any) -> str:
    """Return the names and shapes of a model's outputs, for an error."""
    items = outputs if isinstance(outputs, dict) else getattr(outputs, "__dict__", {})
    shapes = [f"{name} {tuple(value.shape)}" for name, value in items.items() if isinstance(value, Tensor)]
    return ", ".join(shapes) or type(outputs).__name__
