# SPDX-License-Identifier: Apache-2.0
"""Benchmark of images with several classes, or none: which classes are found, and where each of them is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..explainers import EXPLAINERS
from ..ice_deit.patch_maps import ImageGeometry, nearest_to_image
from .checkpoints import labels_by_name
from .inputs import ExplainedBatch, InputBatch
from .maps import CEILING, CONTROLS, is_hard, model_grid_size, resize_labels, score_maps, varies
from .metrics import ClassCorLoc, ClassIou, MeanOf, MultiLabelAveragePrecision, MultiLabelF1, RowMetric
from .protocol import Protocol
from .scoring import Benchmark, Observation


__all__ = ["Objects"]

_THRESHOLDS = tuple(twentieth / 20 for twentieth in range(1, 20))  # 0.05 to 0.95; 0.5 is the fixed one
_OF_MODEL = ("label_map", "label_f1", "false_objects")


class Objects(Benchmark):
    """Class maps and labels of images with several classes, or none.

    Classes that the model finds: of a multi-label model those whose score, the sigmoid of the logit, reaches
    `config.object_thresholds` (0.5 without them); of a single-label model the predicted one, of ICE none without
    foreground. Only classes of the data set count, by name.

    Class map, at the size of the model's input: the method explains every class found. Hard maps are the regions of
    their classes (`ice_hard`: the patches whose best class it is), enlarged by the nearest patch. A soft map is
    enlarged bilinearly and divided by its maximum, negative relevance is 0; a pixel is of the class with the largest
    value, and background where this is below a threshold. A map without any relevance, or a constant one, has no
    region. A map that knows no class (attention, controls) is of the best class found. The ceiling is the most
    frequent true class of every patch.

    Scores, all in [0, 1]:

    - `class_iou`, `background_iou` and `class_corloc` at the threshold 0.5, the same for all methods; `max_class_iou`
      and `max_class_corloc` at the best of 0.05, 0.1, ... 0.95 for the whole set, which is an upper bound, as
      MaxBoxAcc is. Hard maps have no threshold: both are equal, which favours soft maps.
    - `label_map` and `label_f1` of the model: mean average precision of the class scores, macro F1 of the classes
      found.
    - `false_objects`: fraction of the images without any object whose class map, at the threshold 0.5, is not empty.

    True labels are the classes in the true class map. Void pixels count nowhere.
    """

    name = "objects"
    needs = frozenset({"segmentation"})

    def __init__(self, protocol: Protocol, class_names: Sequence[str] | None = None) -> None:
        if not class_names:
            raise ValueError("The benchmark 'objects' needs the names of the classes, `class_names`, got none.")
        self.num_labels = len(class_names)
        super().__init__(protocol, class_names)

    def _make_metrics(self) -> dict[str, RowMetric]:
        return {
            "regions": ClassIou(self.num_labels, thresholds=_THRESHOLDS),
            "boxes": ClassCorLoc(self.num_labels, thresholds=_THRESHOLDS),
            "label_": MultiLabelAveragePrecision(self.num_labels),
            "label_found_": MultiLabelF1(self.num_labels),
            "false": MeanOf("false_objects"),
        }

    def observe(self, batch: ExplainedBatch) -> dict[str, Observation]:
        """Return class maps for every threshold with the true ones, scores and classes found with the true labels."""
        examples, size = batch.inputs.examples, batch.inputs.input_size
        segmentations = [np.asarray(example.segmentation) for example in examples]
        truths = [resize_labels(own, size) for own in segmentations]
        labels = np.stack([np.isin(np.arange(self.num_labels) + 1, own) for own in segmentations]).astype(np.uint8)
        # the ceiling and the controls have no predictions of their own: they are left out there
        scores = is_found = np.full(labels.shape, np.nan)
        is_false = [math.nan] * len(examples)
        if batch.method == CEILING:
            maps = _ceiling_maps(batch, truths, self.num_labels)
        else:
            found = _FoundClasses(batch.inputs)
            maps = _class_maps(batch, found)
            if batch.method not in CONTROLS:
                scores, is_found = found.scores.double().numpy(), found.is_found.double().numpy()
                shown = maps[:, _THRESHOLDS.index(0.5)].any(axis=(1, 2))
                is_false = np.where(labels.any(axis=1), math.nan, shown).tolist()
        return {
            "regions": (maps, truths),
            "boxes": (maps, truths),
            "label_": (scores, labels),
            "label_found_": (is_found, labels),
            "false": (is_false, is_false),
        }

    def scores(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Return the scores of all examples whose rows are given; those of the model only where it has some."""
        scores = super().scores(rows)
        if "label_found_f1" in scores:
            scores["label_f1"] = scores.pop("label_found_f1")
        return {name: value for name, value in scores.items() if name not in _OF_MODEL or not math.isnan(value)}


class _FoundClasses:
    """Scores of the data set's classes, and which of them the model finds, in the order of the data set."""

    def __init__(self, inputs: InputBatch) -> None:
        names = inputs.class_names or ()
        own = labels_by_name(inputs.checkpoint.model, names)
        # index of the model by class of the data set
        self.indices = torch.tensor([index if own is None else own[index] for index in range(len(names))])
        num_labels = inputs.class_scores.shape[1]
        if int(self.indices.max()) >= num_labels:
            raise ValueError(
                f"The data set has {len(names)} classes, the model {num_labels}. Was it trained on these classes?"
            )
        self.scores = inputs.class_scores[:, self.indices]  # (batch_size, num_classes)
        self.is_found = inputs.found_classes[:, self.indices]

    @cached_property
    def ranked(self) -> list[list[int]]:
        """The classes found in each image, best score first."""
        orders = self.scores.argsort(dim=1, descending=True, stable=True).tolist()
        return [[label for label in order if own[label]] for order, own in zip(orders, self.is_found, strict=True)]


def _class_maps(batch: ExplainedBatch, found: _FoundClasses) -> np.ndarray:
    """Return the class map of every image and threshold, `(batch_size, num_thresholds, height, width)`, int64."""
    inputs, method = batch.inputs, batch.method
    size, ranked = inputs.input_size, found.ranked
    knows_class = method in EXPLAINERS and EXPLAINERS[method].takes_target
    depth = max(map(len, ranked)) if knows_class else min(1, max(map(len, ranked)))
    best = torch.zeros(len(ranked), *size)  # largest relevance of each pixel so far
    labels = torch.zeros(len(ranked), *size, dtype=torch.int64)
    for rank in range(depth):
        has_class = torch.tensor([len(own) > rank for own in ranked])
        target = inputs.explained_classes.clone() if knows_class else None
        chosen = torch.tensor([own[rank] if len(own) > rank else 0 for own in ranked])
        if target is not None:
            target[has_class] = found.indices[chosen[has_class]]
        maps = _scaled_maps(batch.relevance(target), method, size) * has_class[:, None, None]
        # a tie is of the better class
        is_larger = maps > best
        best, labels = torch.where(is_larger, maps, best), torch.where(is_larger, chosen[:, None, None] + 1, labels)
    thresholds = torch.tensor(_THRESHOLDS)[:, None, None]
    # (batch_size, 1, height, width) against (num_thresholds, 1, 1)
    return (labels[:, None] * (best[:, None] >= thresholds)).numpy()


def _scaled_maps(relevance: Tensor, method: str, size: tuple[int, int]) -> Tensor:
    """Return maps at the size of the input, `(batch_size, height, width)`, in [0, 1]; a hard map is 0 or 1."""
    if is_hard(method):
        return (score_maps(relevance, method, size) > 0).float()
    maps = score_maps(relevance, method, size).clamp(min=0) * varies(relevance)
    largest = maps.amax(dim=(1, 2), keepdim=True)
    return maps / torch.where(largest > 0, largest, 1.0)


def _ceiling_maps(batch: ExplainedBatch, truths: Sequence[np.ndarray], num_labels: int) -> np.ndarray:
    """Return the most frequent true class of every patch as class maps, alike at every threshold."""
    size = batch.inputs.input_size
    rows, columns = model_grid_size(batch.inputs.checkpoint.model, size)
    patch_index = torch.arange(rows * columns).view(rows, columns)
    owner = nearest_to_image(patch_index, ImageGeometry.from_resize(size, size), fill=0).numpy()  # (height, width)
    maps = []
    for truth in truths:
        counts = truth >= 0  # void has no part
        pairs = owner[counts] * (num_labels + 1) + truth[counts]
        votes = np.bincount(pairs, minlength=rows * columns * (num_labels + 1)).reshape(-1, num_labels + 1)
        maps.append(votes.argmax(axis=1)[owner])  # of equal classes the first, background before the others
    # (batch_size, height, width) -> (batch_size, num_thresholds, height, width)
    return np.repeat(np.stack(maps)[:, None], len(_THRESHOLDS), axis=1)
