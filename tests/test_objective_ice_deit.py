# SPDX-License-Identifier: Apache-2.0
"""The table of loss parts: named in the output, weighted by fields of the configuration, summed once."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from pruning_models import NUM_LABELS, build, images
from two_processes import PATHS, run_on_two_processes

from transformers_ice import IceDeiTConfig, IceDeiTForImageClassification, IceDeiTImageClassifierOutput
from transformers_ice.ice_deit.adversarial_normalization import foreground_mask, pool_patches
from transformers_ice.ice_deit.objective_ice_deit import LOSS_PARTS, ObjectiveInputs, ice_losses
from transformers_ice.training.objective_presets import OBJECTIVES


WEIGHTS = {part.weight_field: 0.0 for part in LOSS_PARTS.values()}
LOSS_PARTS_OF = {part.weight_field: name for name, part in LOSS_PARTS.items()}


def trained_outputs(**fields):
    """Outputs of a model in training mode in which every part applies, and its loss."""
    # the parts keep their weights
    ratios = {"min_foreground_ratio": 0.0, "max_foreground_ratio": 1.0, "min_evidence_lead": 0.0}
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


@pytest.mark.parametrize("weight", ["background_loss_weight", "candidate_label_loss_weight"])
def test_nothing_pulls_patches_to_background_before_the_foreground_leads(weight):
    untrained = trained_outputs(**{**WEIGHTS, weight: 1.0}, min_evidence_lead=0.5)
    assert untrained[LOSS_PARTS_OF[weight]] > 0
    assert untrained.loss == 0


def test_nor_do_windows():
    by_weight = [
        trained_outputs(
            **{**WEIGHTS, "local_loss_weight": 1.0}, local_distillation_weight=weight, min_evidence_lead=gate
        )
        for weight, gate in ((3.0, 0.5), (0.0, 0.5), (3.0, 0.0))
    ]
    torch.testing.assert_close(by_weight[0].loss, by_weight[1].loss)
    assert by_weight[0].loss < by_weight[2].loss


def test_with_several_classes_an_image_nothing_waits():
    labels = torch.eye(4, NUM_LABELS)
    losses = []
    for gate in (0.0, 1.0):
        fields = {**OBJECTIVES["balanced"], "min_evidence_lead": gate, "problem_type": "multi_label_classification"}
        losses.append(build(None, **fields).train()(images(4), labels=labels).loss)
    torch.testing.assert_close(losses[0], losses[1])


RANK_SCRIPT = """
import sys

sys.path[:0] = {paths!r}
import torch
import torch.distributed as dist

from test_objective_ice_deit import gate_of

dist.init_process_group("gloo")
rank = dist.get_rank()
torch.save(gate_of([slice(0, 1), slice(1, 4)][rank]), {folder!r} + f"/gate{{rank}}.pt")
dist.destroy_process_group()
"""


def gate_of(rows: slice) -> torch.Tensor:
    """What the adversary counts for some of four images, whose foreground names the label more or less surely."""
    logits = torch.zeros(4, 2, 3)
    logits[:, 0, 0], logits[:, 1, 2] = torch.tensor([2.0, 2.0, 1.0, 0.5]), 4.0
    targets = torch.tensor([[1.0, 0.0]]).expand(4, 2)
    config = IceDeiTConfig(num_labels=2, min_evidence_lead=0.8)
    pooled = pool_patches(logits[rows], 1.0)
    return ObjectiveInputs(config, logits[rows], pooled, targets[rows], is_training=True).gate


def test_two_processes_wait_for_the_lead_of_all_images(tmp_path):
    run_on_two_processes(RANK_SCRIPT.format(paths=PATHS, folder=str(tmp_path)), tmp_path)
    gates = [torch.load(tmp_path / f"gate{rank}.pt") for rank in range(2)]
    alone, together = gate_of(slice(0, 1)), gate_of(slice(0, 4))
    assert 0 < together < alone
    torch.testing.assert_close(gates, [together, together])


def patches_of(labels: torch.Tensor, is_object: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Patches that all know the class of their image, the object's best, and whether they are object or ground."""
    patches = torch.randn(len(labels), len(is_object), 6, generator=generator) / 2
    patches[..., 3] += 3 * is_object
    patches[..., 4] += 3 * ~is_object
    patches[..., 5] += 3
    patches[torch.arange(len(labels)), :, labels] += torch.where(is_object, 2.0, 1.0)
    return patches


@pytest.mark.parametrize("seed", range(4))
def test_the_object_and_not_the_ground_names_the_class(seed: int):
    # from a random head, chance decides which of the two becomes background
    sizes = {"hidden_size": 6, "num_attention_heads": 1, "num_labels": 3, "initializer_range": 0.3}
    config = IceDeiTConfig(**sizes, **OBJECTIVES["balanced"])
    generator, is_object = torch.Generator().manual_seed(seed), torch.arange(16) < 6
    torch.manual_seed(seed)
    head = IceDeiTForImageClassification(config).deit.patch_head
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.02)
    for _ in range(200):
        labels = torch.randint(0, 3, (32,), generator=generator)
        logits = head(patches_of(labels, is_object, generator))
        targets = torch.nn.functional.one_hot(labels, 3).float()
        pooled = pool_patches(logits, config.background_logit_scale)
        # not the position loss: here the object is at the same place in all images
        loss = ice_losses(ObjectiveInputs(config, logits, pooled, targets))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = foreground_mask(head(patches_of(torch.arange(3), is_object, generator))).float().mean(dim=0)
    assert found[is_object].mean() > 0.9
    assert found[~is_object].mean() < 0.1
