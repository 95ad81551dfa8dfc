# SPDX-License-Identifier: Apache-2.0
"""The table of loss parts: named in the output, weighted by fields of the configuration, summed once."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from pruning_models import build, images

from transformers_ice import IceDeiTConfig, IceDeiTImageClassifierOutput
from transformers_ice.ice_deit.objective_ice_deit import LOSS_PARTS
from transformers_ice.training.objective_presets import OBJECTIVES


WEIGHTS = {part.weight_field: 0.0 for part in LOSS_PARTS.values()}


def trained_outputs(**fields):
    """Outputs of a model in training mode in which every part applies, and its loss."""
    ratios = {"min_foreground_ratio": 0.0, "max_foreground_ratio": 1.0}  # the background part keeps its weight
    fields = {**OBJECTIVES["balanced"], "candidate_label_loss_weight": 0.5, **ratios, **fields}
    model = build("background", pruning_head="patch", **fields).train()
    return model(images(4), labels=torch.arange(4))


def test_each_part_is_a_field_of_the_output_and_no_prediction():
    fields = {field.name for field in dataclasses.fields(IceDeiTImageClassifierOutput)}
    assert set(LOSS_PARTS) <= fields
    assert set(LOSS_PARTS) == {name for name in fields if name.endswith("_loss")}
    # or the Trainer would gather them as predictions
    assert set(LOSS_PARTS) <= set(IceDeiTConfig.keys_to_ignore_at_inference)


def test_each_weight_is_a_field_of_the_configuration():
    assert set(WEIGHTS) <= set(IceDeiTConfig().to_dict())
    assert len(WEIGHTS) == len(LOSS_PARTS)


def test_the_loss_is_the_weighted_sum_of_its_parts():
    weights = {name: 0.25 * (1 + index) for index, name in enumerate(WEIGHTS)}
    outputs = trained_outputs(**weights)
    total = sum(weights[part.weight_field] * outputs[name] for name, part in LOSS_PARTS.items())
    torch.testing.assert_close(outputs.loss, total)


@pytest.mark.parametrize("name", LOSS_PARTS)
def test_a_part_alone_is_the_loss_and_does_not_depend_on_its_weight(name):
    first, second = (trained_outputs(**{**WEIGHTS, LOSS_PARTS[name].weight_field: weight}) for weight in (1.0, 3.0))
    torch.testing.assert_close(first.loss, first[name])
    torch.testing.assert_close(second.loss, 3 * second[name])
