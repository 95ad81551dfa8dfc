# SPDX-License-Identifier: Apache-2.0
"""Numbers of an evaluation of several labels an image, and the thresholds that a run writes into the configuration."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import EvalPrediction, ViTConfig, ViTForImageClassification

from transformers_ice.evaluation.metrics import average_precisions, calibrate_thresholds
from transformers_ice.training.evaluation_metrics import EvaluationMetrics, summarize_outputs
from transformers_ice.training.run import _set_object_thresholds


def test_summaries_of_several_labels_keep_the_logits():
    logits, labels = torch.tensor([[0.5, -1.0], [2.0, 0.0]], dtype=torch.bfloat16), torch.zeros(2, 2)
    patch_logits = torch.zeros(2, 4, 3)
    patch_logits[0, :3, 2], patch_logits[0, 3, 0], patch_logits[1, :, 1] = 1.0, 1.0, 1.0
    kept, cls_kept, foreground = summarize_outputs((logits, -logits, patch_logits), labels)
    assert kept.tolist() == [[0.5, -1.0], [2.0, 0.0]]
    assert cls_kept.tolist() == [[-0.5, 1.0], [-2.0, 0.0]]
    assert foreground.tolist() == [[0, 0, 0, 1], [1, 1, 1, 1]]
    (alone,) = summarize_outputs(logits, labels)
    assert alone.dtype == torch.float32
    # labels of one class an image: the best classes, as without labels
    assert summarize_outputs(logits, torch.tensor([0, 1]))[0].tolist() == summarize_outputs(logits)[0].tolist()


def test_numbers_of_several_labels_by_hand():
    logits = np.array([[2.0, -1.0, -3.0], [1.0, 0.0, -3.0], [-1.0, 2.0, -3.0], [-2.0, -2.0, -3.0]], dtype=np.float32)
    labels = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]], dtype=np.float32)
    foreground = np.array([[1, 0], [1, 1], [1, 0], [0, 0]], dtype=np.uint8)
    numbers = EvaluationMetrics((8, 8))(EvalPrediction((logits, -logits, foreground), labels))
    assert list(numbers) == ["map", "f1", "cls_map", "foreground_ratio"]
    # class 0: positives at ranks 1 and 3; class 1: at ranks 1 and 2; no image has class 2
    assert numbers["map"] == pytest.approx(((1 + 2 / 3) / 2 + 1) / 2)
    # class 0: 1 of 2 found and 1 of 2 there; class 1: a logit of 0 is a score of 0.5, which is found
    assert numbers["f1"] == pytest.approx((0.5 + 1) / 2)
    assert numbers["cls_map"] == pytest.approx(np.nanmean(average_precisions(-logits, labels)))
    assert numbers["foreground_ratio"] == 0.5
    plain = EvaluationMetrics((8, 8))(EvalPrediction(logits, labels))
    assert plain == {"map": numbers["map"], "f1": numbers["f1"]}


def evaluated(logits, labels):
    metrics = EvaluationMetrics((8, 8))
    metrics(EvalPrediction(logits, labels))
    return metrics


class Trainer:
    """What `_set_object_thresholds` reads of a trainer."""

    def __init__(self, metrics):
        self.compute_metrics = metrics
        self.model = ViTForImageClassification(
            ViTConfig(
                hidden_size=8,
                num_hidden_layers=1,
                num_attention_heads=1,
                intermediate_size=8,
                image_size=8,
                patch_size=8,
                num_labels=2,
            )
        )


def test_thresholds_of_the_last_evaluation_are_written_into_the_configuration(tmp_path):
    rng = np.random.default_rng(0)
    labels = (rng.random((40, 2)) < 0.4).astype(np.float32)
    logits = (rng.normal(size=(40, 2)) - 2 + 2 * labels).astype(np.float32)
    trainer = Trainer(evaluated(logits, labels))
    assert _set_object_thresholds(trainer)
    expected = calibrate_thresholds(1 / (1 + np.exp(-logits.astype(np.float64))), labels)
    assert trainer.model.config.object_thresholds == pytest.approx(expected.tolist(), abs=1e-12)
    assert (expected < 0.5).all()  # the logits are too low by 1
    trainer.model.save_pretrained(tmp_path)
    loaded = ViTForImageClassification.from_pretrained(tmp_path)
    assert loaded.config.object_thresholds == trainer.model.config.object_thresholds


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (np.array([[0, 1], [1, 0]]), np.array([0, 1])),  # the best classes of one label an image
        (np.array([[np.nan, 1.0]], dtype=np.float32), np.array([[0.0, 1.0]])),
    ],
)
def test_runs_of_one_label_or_of_undefined_logits_have_no_thresholds(logits, labels):
    trainer = Trainer(evaluated(logits, labels))
    assert not _set_object_thresholds(trainer)
    assert not hasattr(trainer.model.config, "object_thresholds")
