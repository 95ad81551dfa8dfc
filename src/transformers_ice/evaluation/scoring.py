# SPDX-License-Identifier: Apache-2.0
"""The scoring loop: batches of examples to a predictor, a row of numbers per example, scores of all rows.

A predictor is a function from a batch of examples to observations: by the name of a metric, predictions and
references. It may run a checkpoint with an explainer, an exported file or a pruned model, or look up what the Trainer
has gathered; `observe_classes` and `observe_masks` make its observations, so top-1 and mean IoU mean the same for all.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..data.benchmarks.examples import EvaluationSet, Example
from ..explainers import EXPLAINERS
from ..ice_deit.patch_maps import ImageGeometry
from .checkpoints import Checkpoint, has_answer
from .inputs import ExplainedBatch, InputBatch, UndefinedExamplesError
from .maps import resize_labels
from .metrics import MeanOf, RowMetric
from .protocol import Protocol


__all__ = [
    "Benchmark",
    "Observation",
    "Predictor",
    "Rows",
    "collect_rows",
    "has_answer",
    "iterate_chunks",
    "make_rows",
    "observe_classes",
    "observe_masks",
    "score",
    "score_rows",
    "split_chunks",
]

Rows = dict[str, np.ndarray]
Observation = tuple[Sequence[Any] | np.ndarray, Sequence[Any] | np.ndarray]  # predictions and references of a metric
Predictor = Callable[[list[Any]], Mapping[str, Observation]]
UNDEFINED = "undefined/value"  # column that is 1 for an example without finite maps


class Benchmark(ABC):
    """Benchmark that turns explained examples into rows, and rows into scores.

    Rows are all that is kept of an example. They are small, depend on nothing but the example, and can be stored,
    merged from several processes and resampled; a score is a function of all rows.

    Every benchmark also scores `no_foreground`, the fraction of images in which ICE finds no class (of the classifier
    and ICE's own methods), and `undefined`, the fraction of images with NaN or infinite inputs, predictions or maps.
    Those have no part in any other score.

    Args:
        protocol: How explanations are scored.
        class_names: Names of the classes of the data set, for a benchmark whose rows have an entry per class.

    Attributes:
        name: Its name on the command line.
        needs: What an example must hold: "label", "mask", "segmentation" or "boxes".
        of_model_only: Whether it scores the classifier and no explanation.
        chosen_by: Benchmark of the model whose rows decide, by `choose_examples`, about the examples; `None` takes
            those of the data set.
        metrics: Metrics by name; a name that ends with an underscore is the prefix of the metric's scores.
    """

    name: str
    needs: frozenset[str]
    of_model_only = False
    chosen_by: type[Benchmark] | None = None

    def __init__(self, protocol: Protocol, class_names: Sequence[str] | None = None) -> None:
        self.protocol, self.class_names = protocol, class_names
        self.metrics: dict[str, RowMetric] = self._make_metrics() | {"foreground": MeanOf("no_foreground")}

    @abstractmethod
    def _make_metrics(self) -> dict[str, RowMetric]:
        """Return the metrics by name."""

    @abstractmethod
    def observe(self, batch: ExplainedBatch) -> dict[str, Observation]:
        """Return predictions and references of every metric, under its name."""

    @classmethod
    def num_classes(cls, protocol: Protocol) -> int:
        """Return how many classes the labels of a data set must have at least."""
        return 1

    def choose_examples(self, checkpoint: Checkpoint, examples: EvaluationSet, rows: Rows) -> EvaluationSet:
        """Return the examples for a checkpoint, from a data set and its rows of `chosen_by`.

        Raises:
            ValueError: If there are none; a sentence for the table.
        """
        return examples

    def make_inputs(
        self, checkpoint: Checkpoint, examples: Sequence[Example], class_names: Sequence[str] | None
    ) -> InputBatch:
        """Return the inputs for a batch of the examples, which all benchmarks of the same examples share."""
        return InputBatch(checkpoint, examples, self.protocol, class_names)

    def rows(self, batch: ExplainedBatch) -> Rows:
        """Return the rows of a batch: arrays whose first axis runs over the examples, by "metric/column"."""
        examples = batch.inputs.examples
        try:
            rows = make_rows(self.observe(batch) | {"foreground": _observe_foreground(batch)}, self.metrics)
            return rows | {UNDEFINED: np.zeros(len(examples))}
        except UndefinedExamplesError as error:
            kept = [index for index, example in enumerate(examples) if example not in error.examples]
        # the others are explained without the undefined ones, which may make a method fail for the whole batch
        none: dict[str, Observation] = dict.fromkeys(self.metrics, ([], []))
        rows = self.rows(batch.select(kept)) if kept else make_rows(none, self.metrics)
        undefined = np.ones(len(examples))
        undefined[kept] = rows.pop(UNDEFINED, 1.0)
        filled = {name: np.zeros((len(examples), *part.shape[1:]), part.dtype) for name, part in rows.items()}
        for name, part in rows.items():
            filled[name][kept] = part
        return filled | {UNDEFINED: undefined}

    def scores(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Return the scores of all examples whose rows are given; `undefined` alone where there is no other."""
        defined = rows[UNDEFINED] == 0
        scores = {"undefined": float(1 - defined.mean())}
        if not defined.any():
            return scores
        own = {name: part[defined] for name, part in rows.items() if name != UNDEFINED}
        scores |= score_rows(own, self.metrics)
        return {name: value for name, value in scores.items() if name != "no_foreground" or not math.isnan(value)}


def score(
    predict: Predictor,
    examples: Any,
    metrics: Mapping[str, RowMetric],
    batch_size: int = 64,
    description: str | None = None,
) -> dict[str, float]:
    """Return the scores of a predictor by name, as the metrics define them.

    Args:
        predict: From a batch of examples to the observations of every metric, under its name.
        examples: A sequence, such as an `EvaluationSet`, or the indices of examples that the predictor looks up.
        metrics: Metrics by name; a name that ends with an underscore is the prefix of the metric's scores.
        batch_size: Examples that are predicted at once.
        description: Text of the progress bar; `None` shows no bar.

    Raises:
        ValueError: If there is no example.

    Example:
        >>> predict = lambda batch: {"top": ([[example % 2, 0] for example in batch], [1] * len(batch))}
        >>> score(predict, range(4), {"top": TopKAccuracy(top_k=(1,))})
        {'top_1': 0.5}
    """
    return score_rows(collect_rows(predict, examples, metrics, batch_size, description), metrics)


def collect_rows(
    predict: Predictor,
    examples: Any,
    metrics: Mapping[str, RowMetric],
    batch_size: int = 64,
    description: str | None = None,
) -> Rows:
    """Return the rows of all examples; arguments and errors are those of `score`."""
    chunks = split_chunks(len(examples), batch_size)
    if not chunks:
        raise ValueError("There is nothing to score, expected at least one example.")
    batches = iterate_chunks(examples, chunks, description=description)
    parts = [make_rows(predict(batch), metrics) for batch in batches]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def split_chunks(num_examples: int, batch_size: int) -> list[range]:
    """Return the indices of every chunk of one batch, in their order."""
    return [range(start, min(start + batch_size, num_examples)) for start in range(0, num_examples, batch_size)]


def iterate_chunks(
    examples: Any, chunks: Sequence[range], num_workers: int = 0, description: str | None = None
) -> Iterator[list[Any]]:
    """Read chunks of a sequence in their order; without a description there is no progress bar."""
    # its own generator: an evaluation during training must not change the state of the global one
    loader = DataLoader(
        examples,
        batch_sampler=[list(chunk) for chunk in chunks],
        num_workers=num_workers,
        collate_fn=list,
        generator=torch.Generator(),
    )
    yield from tqdm(loader, total=len(chunks), desc=description, unit="batch", disable=description is None)


def make_rows(observations: Mapping[str, Observation], metrics: Mapping[str, RowMetric]) -> Rows:
    """Return the rows of a batch: arrays whose first axis runs over the examples, by "metric/column"."""
    return {
        f"{name}/{column}": np.asarray(values)
        for name, (predictions, references) in observations.items()
        for column, values in metrics[name].rows(list(predictions), list(references)).items()
    }


def score_rows(rows: Mapping[str, np.ndarray], metrics: Mapping[str, RowMetric]) -> dict[str, float]:
    """Return the scores of all examples whose rows are given."""
    scores: dict[str, float] = {}
    for name, metric in metrics.items():
        own = {key.rpartition("/")[2]: values for key, values in rows.items() if key.rpartition("/")[0] == name}
        prefix = name if name.endswith("_") else ""
        scores |= {prefix + key: value for key, value in metric.score(own).items()}
    return scores


def _observe_foreground(batch: ExplainedBatch) -> Observation:
    """Return whether ICE finds nothing, per image; NaN for other models and methods."""
    is_own = not batch.method or (batch.method in EXPLAINERS and EXPLAINERS[batch.method].model == "ice")
    if not (is_own and batch.inputs.checkpoint.is_ice):
        return [math.nan] * len(batch.inputs.examples), [None] * len(batch.inputs.examples)
    return (~batch.inputs.found_classes.any(dim=1)).float().tolist(), [None] * len(batch.inputs.examples)


def observe_classes(logits: Tensor, labels: Any) -> Observation:
    """Return scores of the classes and true classes for `TopKAccuracy`; an image without a prediction is never right.

    Args:
        logits: `(batch_size, num_labels)`.
        labels: `(batch_size,)` true classes.
    """
    logits = logits.detach().float().cpu()
    # a NaN score never ranks the true class higher
    return logits.masked_fill(~has_answer(logits)[:, None], float("nan")).numpy(), np.asarray(labels)


def observe_masks(masks: Tensor, truths: Sequence[Any], geometries: Sequence[ImageGeometry]) -> Observation:
    """Return predicted and true masks for `ForegroundSegmentation`, both at the resolution of the model's input.

    This is the resolution of every mean IoU and pixel accuracy here, so each image weighs the same. The true mask
    is resized and cropped like its image, by the nearest pixel; removed pixels and padding are not counted.

    Args:
        masks: `(batch_size, rows, columns)`, bool, on the patch grid or finer; enlarged by the nearest patch.
        truths: Per image `(height, width)`: 1 foreground, 0 background, -1 ignored, or bool.
        geometries: Resizing and cropping of each image in the preprocessing, all to one size.

    Source: ImageNet-Segmentation protocol of `hila-chefer/Transformer-Explainability`.
    """
    sizes = {geometry.crop_size for geometry in geometries}
    if len(sizes) > 1:
        raise ValueError(f"`geometries` must lead to inputs of one size, got {sorted(sizes)}.")
    size = sizes.pop()
    # (batch_size, rows, columns) -> (batch_size, height, width)
    enlarged = torch.nn.functional.interpolate(masks[:, None].float().cpu(), size=size, mode="nearest-exact")[:, 0]
    pairs = zip(truths, geometries, strict=True)
    return list((enlarged > 0.5).numpy()), [_truth_at_input(np.asarray(truth), geometry) for truth, geometry in pairs]


def _truth_at_input(truth: np.ndarray, geometry: ImageGeometry) -> np.ndarray:
    """Return a true mask as the preprocessing resizes and crops its image; padding is -1, ignored."""
    resized = resize_labels(truth.astype(np.int8), geometry.resized_size)
    (top, left), (height, width) = geometry.crop_offset, geometry.crop_size
    if (top, left) == (0, 0) and resized.shape == (height, width):
        return resized
    # the crop may reach beyond the image on any side, which the preprocessing pads
    seen = np.full((height, width), -1, dtype=np.int8)
    inside = resized[max(top, 0) : top + height, max(left, 0) : left + width]
    above, before = max(-top, 0), max(-left, 0)
    seen[above : above + inside.shape[0], before : before + inside.shape[1]] = inside
    return seen
