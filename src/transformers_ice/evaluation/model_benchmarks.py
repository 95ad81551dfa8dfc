# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of the model's predictions: its accuracy, and how they change when relevant pixels are hidden."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..explainers.class_scores import class_probabilities
from .inputs import ExplainedBatch, InputBatch
from .maps import explains_classes, score_maps
from .metrics import InsertionDeletionAuc, PerturbationAuc, RowMetric, TopKAccuracy
from .scoring import Benchmark, Observation, has_answer, observe_classes


__all__ = ["Classification", "Faithfulness"]

_FRACTIONS = tuple(tenth / 10 for tenth in range(10))  # 0 (the clean image) to 0.9


class Classification(Benchmark):
    """Accuracy of the classifier, `top_1` and `top_5`; without foreground ICE predicts no class, which is wrong."""

    name = "classification"
    needs = frozenset({"label"})
    of_model_only = True

    def _make_metrics(self) -> dict[str, RowMetric]:
        return {"accuracy": TopKAccuracy(top_k=(1, 5))}

    def observe(self, batch: ExplainedBatch) -> dict[str, Observation]:
        """Return the logits and the true classes."""
        return {"accuracy": observe_classes(batch.inputs.logits, batch.inputs.labels)}


class Faithfulness(Benchmark):
    """Faithfulness: how predictions change when the pixels that the map marks as relevant are hidden.

    - `positive_perturbation_auc` (smaller is better) and `negative_perturbation_auc` (larger is better): the most, or
      the least, relevant 10, 20, ... 90 % of the pixels turn black, and the accuracy against the true label is
      integrated over the fraction of black pixels from 0 to 0.9, in percent.
    - `insertion_auc` (larger is better) and `deletion_auc` (smaller is better): probability of the class that the
      clean image is given, while pixels appear on black, or turn black, in the order of relevance; integrated over
      [0, 1].

    The map is enlarged bilinearly (a hard one by the nearest patch); pixels of equal relevance follow one fixed random
    order, the same for every image and method. Where ICE finds no foreground, its prediction is wrong.

    Source: `hila-chefer/Transformer-Explainability` (`baselines/ViT/pertubation_eval_from_hdf5.py`), the area with the
    clean image as its first point, as its author tells users to compute it; Petsiuk et al., "RISE", BMVC 2018.
    """

    name = "faithfulness"
    needs = frozenset({"label"})

    def _make_metrics(self) -> dict[str, RowMetric]:
        steps = self.protocol.num_insertion_steps
        fractions = tuple(step / steps for step in range(steps + 1))
        return {
            "positive_": PerturbationAuc(fractions=_FRACTIONS),
            "negative_": PerturbationAuc(fractions=_FRACTIONS),
            "insertion": InsertionDeletionAuc(kind="insertion", fractions=fractions),
            "deletion": InsertionDeletionAuc(kind="deletion", fractions=fractions),
        }

    def observe(self, batch: ExplainedBatch) -> dict[str, Observation]:
        """Return the model's predictions along the four sequences from an image to black."""
        inputs, labels = batch.inputs, batch.inputs.labels
        predicted = inputs.logits.argmax(dim=1)
        target = predicted if self.protocol.perturbation_target == "predicted" else labels
        relevance = batch.relevance(target if explains_classes(batch.method) else None)
        ranks = pixel_ranks(score_maps(relevance, batch.method, inputs.input_size), self.protocol.seed)
        number, steps = ranks[0].numel(), self.protocol.num_insertion_steps
        removed = [int(number * fraction) for fraction in _FRACTIONS]  # truncated, as in the published code
        counts = [number * step // steps for step in range(steps + 1)]
        # masks of the hidden pixels at every step; rank 0 is the most relevant pixel
        curves = {
            "positive_": _is_best([ranks < count for count in removed], inputs, labels),
            "negative_": _is_best([ranks >= number - count for count in removed], inputs, labels),
            "insertion": _probability([ranks >= count for count in counts], inputs, predicted),
            "deletion": _probability([ranks < count for count in counts], inputs, predicted),
        }
        return {name: (predictions, [None] * len(labels)) for name, predictions in curves.items()}


def pixel_ranks(maps: Tensor, seed: int) -> Tensor:
    """Return the rank of every pixel, 0 for the most relevant one of its map, `(batch_size, height, width)`, int64.

    Equally relevant pixels are in one random order by `seed`, the same for every map.
    """
    flat = maps.flatten(1)  # (batch_size, height * width)
    # a stable sort after a random permutation: ties are in random order, the same for every map
    shuffled = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(seed))
    order = shuffled[flat[:, shuffled].argsort(dim=1, descending=True, stable=True)]
    positions = torch.arange(flat.shape[1]).expand_as(order)
    # inverse permutation: from pixels by rank to ranks by pixel
    return torch.empty_like(order).scatter(1, order, positions).view(maps.shape)


def _is_best(hidden: Sequence[Tensor], inputs: InputBatch, labels: Tensor) -> np.ndarray:
    """Return whether the true class has the best score with those pixels hidden, `(batch_size, len(hidden))`."""
    predictions = (_perturbed_logits(pixels, inputs) for pixels in hidden)
    hits = [(logits.argmax(dim=1) == labels) & has_answer(logits) for logits in predictions]  # (batch_size,) each
    return torch.stack(hits, dim=1).float().numpy()


def _probability(hidden: Sequence[Tensor], inputs: InputBatch, classes: Tensor) -> np.ndarray:
    """Return the probability of one class per image with those pixels hidden, `(batch_size, len(hidden))`."""
    predictions = (_perturbed_logits(pixels, inputs) for pixels in hidden)
    scores = (class_probabilities(inputs.checkpoint.model, logits) for logits in predictions)
    return torch.cat([values.gather(1, classes[:, None]) for values in scores], dim=1).numpy()


def _perturbed_logits(hidden: Tensor, inputs: InputBatch) -> Tensor:
    """Return the scores of all classes with some pixels black, `(batch_size, num_labels)`."""
    if not hidden.any():
        return inputs.logits
    # (batch_size, height, width) -> (batch_size, 1, height, width), for all channels
    values = torch.where(hidden[:, None].to(inputs.black.device), inputs.black, inputs.pixel_values)
    return inputs.predict(values)
