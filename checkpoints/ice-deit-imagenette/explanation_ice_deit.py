# SPDX-License-Identifier: Apache-2.0
"""The explanation of one image, and what is read from model outputs to build it.

`IceDeiTImageProcessor.post_process_explanation` builds a `PatchExplanation` with `explain_patches`; the pipeline, the
app and the figures use it. This file travels with a checkpoint as remote code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .adversarial_normalization import pool_foreground_logits
from .patch_maps import (
    ImageGeometry,
    bilinear_to_image,
    box_to_image,
    class_map,
    class_probability,
    component_box,
    foreground_probability,
    largest_component,
    nearest_to_image,
    to_grid,
    visible_cells,
)
from .several_labels import pool_class_logits


__all__ = [
    "BACKGROUND_LABEL",
    "FoundObject",
    "ImagePatches",
    "PatchExplanation",
    "classify_image",
    "describe_outputs",
    "explain_patches",
    "find_objects",
    "read_class_logits",
    "read_object_thresholds",
    "read_output",
    "read_patch_logits",
]

BACKGROUND_LABEL = "background"
_BOX_NAMES = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True, eq=False)  # arrays have no truth value, so `==` could not compare two of them
class FoundObject:
    """A class that a multi-label model found in an image, and where.

    Attributes:
        label: Name of the class.
        class_index: Its index.
        score: Probability that it is in the image, in [0, 1]: the sigmoid of its logit.
        box: `(x_min, y_min, x_max, y_max)`, half-open, in pixels of the maps: around the largest connected component
            of its patches.
        mask: `(height, width)`, bool, the pixels of the patches that name it.
        heatmap: `(height, width)`, float32, in [0, 1], p(class).
    """

    label: str
    class_index: int
    score: float
    box: tuple[int, int, int, int]
    mask: np.ndarray
    heatmap: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """Return an entry of "objects", as `pipeline("patch-explanation")` answers; `box` by its corners' names."""
        box = dict(zip(_BOX_NAMES, self.box, strict=True))
        return {"label": self.label, "score": self.score, "box": box, "mask": self.mask, "heatmap": self.heatmap}


@dataclass(frozen=True, eq=False)  # as above
class PatchExplanation:
    """Explanation of one image by its patches: the class, where it is, and how sure the model is.

    All maps have one size `(height, width)`: that of the image, or the patch grid where no size was given. Of a
    multi-label model they show the classes that were found, see `objects`; patches of others count as background.

    Attributes:
        label: Name of the predicted class, the best of several; "background" where nothing was found.
        score: Softmax probability of the class among the classes, in [0, 1]; where nothing was found, the mean
            p(background) of the patches. Of a multi-label model the sigmoid of its logit, or 1 - the largest of these.
        box: `(x_min, y_min, x_max, y_max)`, half-open, in pixels of the maps: around the largest connected component
            of foreground patches; `None` where there is none.
        heatmap: `(height, width)`, float32, in [0, 1]: 1 - p(background), or p(target).
        class_map: `(height, width)`, int64, class of each pixel's patch; `num_labels` is background.
        mask: `(height, width)`, bool, True = foreground.
        foreground_ratio: Ratio of foreground patches, in [0, 1].
        exit_layers: `(height, width)`, int64: the layer before which each pixel's patch was pruned, the number of
            layers where it was kept. `None` if the outputs do not hold it, as those of an exported file may not.
        class_index: Index of the predicted class; `None` with the label "background".
        objects: What was found, best score first: every class whose score reaches its threshold and that at least one
            patch names. `None` of a single-label model.
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
    objects: tuple[FoundObject, ...] | None = None

    @property
    def found(self) -> bool:
        """Whether any patch is foreground. The label may be a class all the same: that of a [CLS] classifier."""
        return self.box is not None

    def to_dict(self) -> dict[str, Any]:
        """Return what `pipeline("patch-explanation")` answers; `box` by the names of its corners."""
        entries = {
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
        return entries if self.objects is None else entries | {"objects": [found.to_dict() for found in self.objects]}


@dataclass(frozen=True)
class ImagePatches:
    """Patches of one image: logits `(num_patches, num_labels + 1)`, their grid, and the way back to the image.

    `classes` are those that count, int64; patches of others are background. `None` is all of them.
    """

    logits: Tensor
    grid_size: tuple[int, int]
    geometry: ImageGeometry
    classes: Tensor | None = None

    @property
    def background_index(self) -> int:
        """Index of background among the classes of a patch."""
        return self.logits.shape[-1] - 1

    @cached_property
    def patch_classes(self) -> Tensor:
        """The class of each patch, `(num_patches,)`, int64."""
        best = class_map(self.logits)
        if self.classes is None:
            return best
        return best.masked_fill(~torch.isin(best, self.classes.to(best.device)), self.background_index)

    def class_map(self) -> Tensor:
        """Return the class of each pixel, that of the patch its centre lies in, `(height, width)`, int64."""
        return nearest_to_image(to_grid(self.patch_classes, self.grid_size), self.geometry, fill=self.background_index)

    def mask(self) -> Tensor:
        """Return which pixels are foreground, those of `class_map` that are no background, `(height, width)`, bool."""
        foreground = self.patch_classes != self.background_index
        return nearest_to_image(to_grid(foreground, self.grid_size), self.geometry, fill=False)

    def exit_layers(self, layers: Tensor) -> Tensor:
        """Return the layer of each pixel, of `layers` `(num_patches,)`; 0 outside a crop, `(height, width)`, int64."""
        return nearest_to_image(to_grid(layers, self.grid_size), self.geometry, fill=0)

    def heatmap(self, target: int | None = None) -> Tensor:
        """Return p(target) of each pixel, by default 1 - p(background), bilinear, `(height, width)`, float32."""
        values = foreground_probability(self.logits) if target is None else class_probability(self.logits, target)
        return bilinear_to_image(to_grid(values, self.grid_size), self.geometry)

    def box(self) -> tuple[int, int, int, int] | None:
        """Return the box around the largest component of foreground patches that show any of the image.

        `(x_min, y_min, x_max, y_max)`, half-open, in pixels of the original image; `None` where there is no such
        patch.
        """
        foreground = to_grid(self.patch_classes != self.background_index, self.grid_size)
        mask = foreground.cpu().numpy() & visible_cells(self.grid_size, self.geometry)
        if not mask.any():
            return None
        return box_to_image(component_box(largest_component(mask)), self.grid_size, self.geometry)


@torch.no_grad()  # numbers and arrays carry no gradients
def explain_patches(
    patches: ImagePatches,
    image_logits: Tensor,
    thresholds: Tensor | None,
    name_of: Callable[[int], str],
    target: int | None = None,
    exit_layers: np.ndarray | None = None,
) -> PatchExplanation:
    """Return the explanation of one image.

    Args:
        patches: All its patches.
        image_logits: Its class logits, `(num_labels,)`.
        thresholds: Score from which each class counts as found, `(num_labels,)`, of a multi-label model; else `None`.
        name_of: Returns the name of a class.
        target: Class of the heat map, or `None`.
        exit_layers: As in `PatchExplanation`.
    """
    if thresholds is None:
        label, label_score = classify_image(image_logits, patches.logits)
        index, score = int(label.item()), label_score.item()
    else:
        found = find_objects(image_logits, patches, thresholds)
        patches = replace(patches, classes=torch.tensor(list(found), dtype=torch.long))
        index = next(iter(found), patches.background_index)
        score = found[index][0] if found else 1 - image_logits.sigmoid().max().item()
    class_of_pixel, box, heatmap = patches.class_map(), patches.box(), patches.heatmap(target)
    has_class = index != patches.background_index
    objects: tuple[FoundObject, ...] | None = None
    if thresholds is not None:
        objects = tuple(
            FoundObject(
                label=name_of(own),
                class_index=own,
                score=own_score,
                box=own_box,
                mask=(class_of_pixel == own).cpu().numpy(),
                heatmap=patches.heatmap(own).cpu().numpy(),
            )
            for own, (own_score, own_box) in found.items()
        )
    return PatchExplanation(
        label=name_of(index) if has_class else BACKGROUND_LABEL,
        score=score,
        box=box,
        heatmap=heatmap.cpu().numpy(),
        class_map=class_of_pixel.cpu().numpy(),
        mask=patches.mask().cpu().numpy(),
        foreground_ratio=(patches.patch_classes != patches.background_index).float().mean().item(),
        exit_layers=exit_layers,
        class_index=index if has_class else None,
        objects=objects,
    )


def find_objects(
    image_logits: Tensor, patches: ImagePatches, thresholds: Tensor
) -> dict[int, tuple[float, tuple[int, int, int, int]]]:
    """Return score and box of each class that a multi-label model finds in an image, by class, best score first.

    A class is found where the sigmoid of its logit reaches its threshold and it is the best class of a patch that
    shows any of the image: what is found has a place.
    """
    scores, found = image_logits.sigmoid(), {}
    candidates = torch.nonzero(scores >= thresholds.to(scores)).flatten()
    best_first = candidates[scores[candidates].argsort(descending=True, stable=True)]
    for label, score in zip(best_first.tolist(), scores[best_first].tolist(), strict=True):
        box = replace(patches, classes=torch.tensor([label])).box()
        if box is not None:
            found[label] = score, box
    return found


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

    Otherwise the mean over the foreground patches, of a multi-label model `pool_class_logits`.
    """
    logits = read_output(outputs, "logits")
    if isinstance(logits, Tensor) and logits.ndim == 2:
        _refuse_nan(logits, "logits")
        return logits.float()
    patch_logits = read_patch_logits(outputs)[0]
    if read_output(outputs, "object_thresholds") is not None:
        return pool_class_logits(patch_logits)
    pooled = pool_foreground_logits(patch_logits)[:, :-1]
    _refuse_nan(pooled, "patch_logits")  # the mean over patches of a class that one of them rules out
    return pooled


def read_object_thresholds(outputs: Any, batch_size: int) -> list[Tensor | None]:
    """Return for each image the score from which each class counts as found; of a single-label model `None`."""
    thresholds = read_output(outputs, "object_thresholds")
    return [None] * batch_size if thresholds is None else list(torch.as_tensor(thresholds))


def _refuse_nan(logits: Tensor, name: str) -> None:
    """Refuse logits whose softmax is NaN: a class and a box would be read off them all the same."""
    # the largest is finite where the log-sum-exp is, and takes a tenth of its time
    broken = ~logits.amax(dim=-1).isfinite().reshape(len(logits), -1).all(dim=1)
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
