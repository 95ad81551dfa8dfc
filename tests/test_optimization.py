# SPDX-License-Identifier: Apache-2.0
"""Learning rates by layer, least rates, weight decay beside them, and binary cross-entropy."""

from __future__ import annotations

import math

import pytest
import torch
from test_training import SHAPE, losses_of, make_args, make_model, make_trainer
from torch import nn
from transformers import DeiTConfig, DeiTForImageClassification, ViTConfig, ViTForImageClassification

from transformers_ice import IceDeiTConfig
from transformers_ice.ice_deit.adversarial_normalization import soft_binary_cross_entropy
from transformers_ice.training import IceTrainingArguments, ModelArguments, build_config, parse_arguments
from transformers_ice.training.classifier_losses import use_soft_label_loss
from transformers_ice.training.parameter_groups import decay_layer_rates


LAYERS = 3
PRUNING = {"pruning_strategy": "background", "pruning_layers": [1, 2], "pruning_head": "patch"}


def make_classifier(kind: str) -> nn.Module:
    shape = {**SHAPE, "num_hidden_layers": LAYERS}
    if kind == "ice_deit":
        return make_model(**{**shape, "use_distillation_token": True, "num_register_tokens": 2, **PRUNING})
    if kind == "deit":
        return DeiTForImageClassification(DeiTConfig(**shape))
    return ViTForImageClassification(ViTConfig(**shape))


def beit_scales(decay: float) -> list[float]:
    """As BEiT assigns them: embeddings, then each layer, then the rest."""
    return [decay ** (LAYERS + 1 - index) for index in range(LAYERS + 2)]


def beit_layer(name: str) -> int:
    if "embeddings" in name:
        return 0
    for index in range(LAYERS):
        if f".layers.{index}." in name or f".layer.{index}." in name:
            return index + 1
    return LAYERS + 1


@pytest.mark.parametrize("kind", ["ice_deit", "deit", "vit"])
def test_rates_fall_from_layer_to_layer(tmp_path, kind):
    model = make_classifier(kind)
    trainer = make_trainer(tmp_path, model, layer_decay=0.65, learning_rate=2e-3, weight_decay=0.05)
    optimizer = trainer.create_optimizer()
    decayed = set(trainer.get_decay_parameter_names(model))
    found = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert id(parameter) not in found, "a parameter may be in one group only"
            found[id(parameter)] = (group["lr"], group["weight_decay"])
    scales = beit_scales(0.65)
    for name, parameter in model.named_parameters():
        rate, weight_decay = found.pop(id(parameter))
        assert rate == pytest.approx(2e-3 * scales[beit_layer(name)]), name
        assert weight_decay == (0.05 if name in decayed else 0.0), name
    assert not found
    assert optimizer.param_groups[0]["lr"] == 2e-3
    assert len({group["lr"] for group in optimizer.param_groups}) == LAYERS + 2


def test_one_rate_needs_no_more_groups_than_before(tmp_path):
    assert len(make_trainer(tmp_path).create_optimizer().param_groups) == 2


def test_model_without_layers_is_refused():
    model = nn.Linear(2, 2)
    model.config = ViTConfig(**SHAPE)
    with pytest.raises(ValueError, match="`layer_decay` finds the layers by their names"):
        decay_layer_rates(torch.optim.SGD(model.parameters(), lr=1.0), model, 0.5)


def rates_of(tmp_path, kind: str, steps: int = 12, **kwargs) -> list[list[float]]:
    """Rates of all groups, before each step and after the last one."""
    trainer = make_trainer(
        tmp_path,
        layer_decay=0.5,
        learning_rate=1e-2,
        lr_scheduler_type=kind,
        warmup_steps=3,
        lr_scheduler_kwargs=kwargs,
    )
    trainer.create_optimizer_and_scheduler(steps)
    rates = []
    for _ in range(steps + 1):
        rates.append([group["lr"] for group in trainer.optimizer.param_groups])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    return rates


def test_cosine_ends_at_the_least_rate_and_layers_keep_their_proportions(tmp_path):
    rates = rates_of(tmp_path, "cosine_with_min_lr", min_lr=1e-3)
    first = rates[3]
    assert first[0] == pytest.approx(1e-2)
    for step in range(13):
        share = step / 3 if step < 3 else 0.1 + 0.9 * (1 + math.cos(math.pi * (step - 3) / 9)) / 2
        assert rates[step] == pytest.approx([rate * share for rate in first])
    assert rates[12][0] == pytest.approx(1e-3)


def test_warmup_may_start_above_zero(tmp_path):
    rates = rates_of(tmp_path, "cosine_warmup_with_min_lr", min_lr=1e-3, warmup_lr_rate=0.2)
    assert [row[0] for row in rates[:3]] == pytest.approx([2e-3, 6e-3, 1e-2])
    assert rates[11][0] == pytest.approx(1e-3)


def test_least_rate_comes_from_the_command_line_and_resumes(tmp_path):
    words = ["--model_type", "ice_deit", "--dataset_name", "scenes", "--output_dir", str(tmp_path), "--use_cpu"]
    words += ["--lr_scheduler_type", "cosine_with_min_lr", "--lr_scheduler_kwargs", '{"min_lr": 1e-5}']
    _, _, args = parse_arguments([*words, "--layer_decay", "0.75"])
    assert (args.lr_scheduler_kwargs, args.layer_decay) == ({"min_lr": 1e-5}, 0.75)
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "layer_decay": 0.5}
    options |= {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-3}}
    whole = make_trainer(tmp_path / "whole", **options)
    whole.train()
    resumed = make_trainer(tmp_path / "resumed", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert losses_of(resumed) == losses_of(whole)
    logged = [line["learning_rate"] for line in whole.state.log_history if "learning_rate" in line]
    assert logged[0] == pytest.approx(1e-2)


def test_lower_layers_move_less(tmp_path):
    model = make_classifier("vit")
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    make_trainer(tmp_path, model, layer_decay=0.1, max_steps=1, weight_decay=0.0).train()
    moved = [0.0] * (LAYERS + 2)
    for name, weight in model.named_parameters():
        moved[beit_layer(name)] = max(moved[beit_layer(name)], float((weight.detach() - before[name]).abs().max()))
    # the first step of AdamW moves every weight by its rate
    assert moved == pytest.approx([1e-2 * scale for scale in beit_scales(0.1)], rel=0.02)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layer_decay": 0.0}, r"`layer_decay` must be in \(0, 1\], got 0.0"),
        ({"layer_decay": 1.5}, r"`layer_decay` must be in \(0, 1\], got 1.5"),
        ({"repeated_augmentation": 0}, "`repeated_augmentation` must be at least 1, got 0"),
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        IceTrainingArguments(str(tmp_path), use_cpu=True, **fields)


def test_gradients_are_clipped_where_it_is_asked_for(tmp_path):
    norms = []
    for limit in (0.0, 1e-3):
        trainer = make_trainer(tmp_path, max_steps=1, max_grad_norm=limit, optim="sgd", learning_rate=1.0)
        before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
        trainer.train()
        moved = [(weight - before[name]).square().sum() for name, weight in trainer.model.named_parameters()]
        norms.append(sum(moved).item() ** 0.5)
    assert norms[0] > 1e-2
    # SGD at rate 1 moves the weights by the clipped gradient; weight decay adds little
    assert norms[1] < 0.5 * norms[0]


# --- binary cross-entropy ------------------------------------------------------------------------------------------


def test_binary_cross_entropy_equals_its_definition():
    logits, targets = torch.randn(4, 5), torch.rand(4, 5)
    expected = 0.0
    for row, target_row in zip(logits.double().tolist(), targets.double().tolist(), strict=True):
        for logit, target in zip(row, target_row, strict=True):
            share = 1 / (1 + math.exp(-logit))
            expected -= target * math.log(share) + (1 - target) * math.log(1 - share)
    assert float(soft_binary_cross_entropy(logits, targets)) == pytest.approx(expected / 20, rel=1e-6)


def test_ice_model_takes_it_for_foreground_and_cls_logits():
    model = make_model(classification_loss_type="bce", cls_loss_weight=0.5).eval()
    published = make_model(cls_loss_weight=0.5).eval()
    pixels, labels = torch.randn(2, 3, 16, 16), torch.tensor([2, 0])
    outputs, others = model(pixels, labels=labels), published(pixels, labels=labels)
    targets = torch.tensor([[0.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    bce = nn.functional.binary_cross_entropy_with_logits
    assert outputs.classification_loss.item() == pytest.approx(bce(outputs.foreground_logits, targets).item())
    assert outputs.cls_loss.item() == pytest.approx(bce(outputs.cls_logits, targets[:, :3]).item())
    assert torch.equal(outputs.background_loss, others.background_loss)
    assert not torch.equal(outputs.classification_loss, others.classification_loss)
    outputs.loss.backward()


def test_field_is_checked_and_its_default_is_the_published_loss():
    assert IceDeiTConfig().classification_loss_type == "cross_entropy"
    with pytest.raises(ValueError, match=r"`classification_loss_type` must be one of \['cross_entropy', 'bce'\]"):
        IceDeiTConfig(classification_loss_type="mse")
    config = build_config(ModelArguments(model_type="ice_deit", loss_type="bce"))
    assert config.classification_loss_type == "bce"
    # the configuration of a plain classifier has no such field
    assert not hasattr(build_config(ModelArguments(model_type="vit", loss_type="bce")), "classification_loss_type")


def test_plain_classifier_takes_it_for_hard_and_soft_labels():
    model = ViTForImageClassification(ViTConfig(**SHAPE)).eval()
    use_soft_label_loss(model, "bce")
    pixels, labels = torch.randn(2, 3, 16, 16), torch.tensor([2, 0])
    outputs = model(pixels, labels=labels)
    targets = nn.functional.one_hot(labels, 3).float()
    expected = nn.functional.binary_cross_entropy_with_logits(outputs.logits, targets)
    assert outputs.loss.item() == pytest.approx(expected.item())
    assert torch.equal(model(pixels, labels=targets).loss, outputs.loss)
    assert "loss_function" not in model.config.to_dict()


def test_binary_cross_entropy_is_trained(tmp_path):
    trainer = make_trainer(tmp_path, make_model(classification_loss_type="bce"), max_steps=2)
    trainer.train()
    assert all(math.isfinite(loss) for loss in losses_of(trainer))
    assert make_args(tmp_path).label_smoothing_factor == 0
