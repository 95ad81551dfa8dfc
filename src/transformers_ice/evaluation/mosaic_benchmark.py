# SPDX-License-Identifier: Apache-2.0
"""The grid pointing game: in a mosaic of images of different classes, does the map of a class lie on its image?"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from PIL import Image

from ..data.benchmarks.examples import EvaluationSet, Example
from ..data.benchmarks.mosaics import Mosaic, MosaicSet, fitting_cell_size, plan_mosaics
from .checkpoints import Checkpoint, input_size
from .inputs import ExplainedBatch, InputBatch
from .maps import get_patch_size
from .metrics import GridPointingGame, MeanOf, RowMetric
from .protocol import Protocol
from .scoring import Benchmark, Observation, Rows, has_answer


__all__ = ["Confidence", "GridPointing"]


class Confidence(Benchmark):
    """Probability of the true class of each image that is classified rightly, 0 for the others; chooses images.

    An image counts as classified rightly if `logits` predict its class and, of an ICE model, those of [CLS] do as
    well, which the class-aware baselines explain.
    """

    name = "confidence"
    needs = frozenset({"label"})
    of_model_only = True

    def _make_metrics(self) -> dict[str, RowMetric]:
        return {"label": MeanOf("label"), "confidence": MeanOf("confidence")}

    def observe(self, batch: ExplainedBatch) -> dict[str, Observation]:
        """Return the true class, as the model counts, and its probability."""
        inputs = batch.inputs
        labels, logits = inputs.labels, inputs.logits
        is_right = (logits.argmax(dim=1) == labels) & has_answer(logits)
        if inputs.checkpoint.is_ice:
            is_right &= inputs.explained_classes == labels
        of_label = inputs.class_scores.gather(1, labels[:, None])[:, 0]  # (batch_size,)
        nothing: list[None] = [None] * len(labels)
        return {
            "label": (labels.tolist(), nothing),
            "confidence": ((of_label * is_right).tolist(), nothing),
        }


class GridPointing(Benchmark):
    """Grid pointing game: how much of the positive relevance for a class lies on its image in a mosaic.

    Mosaics are made for each checkpoint of the images that it classifies rightly, the most certain ones of each class
    first, every image once, and no class twice in a mosaic. Cells hold whole patches, so nothing is interpolated: a
    map counts on the patch grid, one of pixels by its pixels. Every method explains each class of a mosaic in turn;
    `ice` by the probability of the class per patch, `ice_hard` by the patches whose best class it is.

    Source: Boehle, Fritz and Schiele, "Convolutional Dynamic Alignment Networks for Interpretable Classifications",
    CVPR 2021; Boehle, Fritz and Schiele, "B-cos Networks", CVPR 2022, whose code also requires a confidence above 0.5
    and smooths the maps of pixels; here neither is done.
    """

    name = "grid_pointing"
    needs = frozenset({"label"})
    chosen_by = Confidence

    def _make_metrics(self) -> dict[str, RowMetric]:
        return {"mosaics": GridPointingGame()}

    @classmethod
    def num_classes(cls, protocol: Protocol) -> int:
        """Return the number of cells, whose classes differ."""
        return protocol.mosaic_side**2

    def choose_examples(self, checkpoint: Checkpoint, examples: EvaluationSet, rows: Rows) -> MosaicSet:
        """Return the mosaics of a checkpoint; the arguments and errors are those of `Benchmark`."""
        labels, confidences = rows["label/value"], rows["confidence/value"]
        candidates: dict[int, list[int]] = {}
        # stable: of equally certain images the first one
        for index in np.argsort(-confidences, kind="stable")[: (confidences > 0).sum()].tolist():
            candidates.setdefault(int(labels[index]), []).append(index)
        side, protocol = self.protocol.mosaic_side, self.protocol
        if len(candidates) < side * side:
            raise ValueError(
                f"it classifies images of {len(candidates)} classes rightly, and a mosaic needs {side * side}. Use "
                "more images, or a smaller `mosaic_side`."
            )
        mosaics = plan_mosaics(candidates, side * side, protocol.num_mosaics, protocol.seed)
        classes = {index: label for label, own in candidates.items() for index in own}
        resample = checkpoint.image_processor.to_dict().get("resample")
        resample = Image.Resampling.BICUBIC if resample is None else resample
        return MosaicSet(examples, mosaics, classes, self._cell_size(checkpoint), resample)

    def _cell_size(self, checkpoint: Checkpoint) -> tuple[int, int]:
        """Return height and width of a cell in pixels."""
        size = input_size(checkpoint, self.protocol)
        if self.protocol.cell_size == "full":
            return size
        return fitting_cell_size(size, get_patch_size(checkpoint.model), self.protocol.mosaic_side)

    def make_inputs(
        self, checkpoint: Checkpoint, examples: Sequence[Example], class_names: Sequence[str] | None
    ) -> InputBatch:
        """Return the inputs at the size of the mosaics, which need not be that of other inputs."""
        processor = checkpoint.image_processor
        height, width = (self.protocol.mosaic_side * pixels for pixels in self._cell_size(checkpoint))
        settings = copy.deepcopy(processor.to_dict()) | {"size": {"height": height, "width": width}}
        own = type(processor).from_dict(settings | {"do_center_crop": False, "do_resize": True})
        protocol = dataclasses.replace(self.protocol, image_size=None)  # that of the processor
        return InputBatch(dataclasses.replace(checkpoint, image_processor=own), examples, protocol, class_names)

    def observe(self, batch: ExplainedBatch) -> dict[str, Observation]:
        """Return the maps of all classes of each mosaic."""
        mosaics = [cast(Mosaic, example) for example in batch.inputs.examples]
        classes = torch.tensor([mosaic.classes for mosaic in mosaics])  # (batch_size, num_cells)
        maps = torch.stack([batch.relevance(target) for target in classes.T], dim=1)
        # (batch_size, num_cells, rows, columns)
        return {"mosaics": (list(maps.numpy()), [None] * len(mosaics))}
