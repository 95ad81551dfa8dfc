# SPDX-License-Identifier: Apache-2.0
"""Patches leave: the published EViT, packed against masked, what is in a batch, training, and refusals."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from pruning_models import PREFIXES, STRATEGIES, build, hide_lengths, images
from safetensors import safe_open
from transformers import AutoModel, AutoModelForImageClassification

from transformers_ice import IceDeiTConfig, IceDeiTForImageClassification
from transformers_ice.conversion import convert_checkpoint
from transformers_ice.explainers import EXPLAINERS, explain
from transformers_ice.ice_deit.token_pruning import STRATEGIES as STRATEGY_REGISTRY
from transformers_ice.ice_deit.token_pruning import BackgroundStrategy, keep_foreground


REFERENCE = Path(__file__).parent / "reference" / "evit_reference.safetensors"
# float32 on a CPU: the executions sum in other orders; measured differences stay under 3e-6
TOLERANCE = {"atol": 1e-5, "rtol": 0}


@pytest.fixture(scope="module")
def evit(tmp_path_factory):
    with safe_open(REFERENCE, "pt") as file:
        values = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - a file is no dict
    folder = tmp_path_factory.mktemp("evit")
    weights = {key.removeprefix("model."): value for key, value in values.items() if key.startswith("model.")}
    torch.save({"model": weights}, folder / "checkpoint.pth")
    convert_checkpoint(folder / "checkpoint.pth", folder / "model", num_attention_heads=3)
    return values, folder / "model"


@pytest.mark.parametrize("execution", ["packed", "masked"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("variant", ["dropped", "fused"])
def test_attentiveness_is_the_published_evit(evit, variant, implementation, execution):
    values, folder = evit
    model = AutoModelForImageClassification.from_pretrained(
        folder,
        pruning_strategy="attentiveness",
        pruning_layers=[1, 3],
        keep_rates=[0.7, 0.7],
        fuse_pruned_tokens=variant == "fused",
        pruning_execution=execution,
        attn_implementation=implementation,
    )
    with torch.no_grad():
        outputs = model(values["pixel_values"])
    torch.testing.assert_close(outputs.cls_logits, values[f"logits.{variant}"], **TOLERANCE)
    for exits, first, second in zip(
        outputs.patch_exit_layer, values[f"kept.{variant}.0"], values[f"kept.{variant}.1"], strict=True
    ):
        # the second list counts the tokens in the order of the first, the fused one behind them
        entered = [*first.tolist(), None]
        stayed = {entered[place] for place in second.tolist()} - {None}
        assert set((exits > 1).nonzero().flatten().tolist()) == set(first.tolist())
        assert set((exits == 4).nonzero().flatten().tolist()) == stayed


@pytest.mark.parametrize("is_padded", [False, True], ids=["image by image", "padded"])
@pytest.mark.parametrize("size", [(64, 64), (40, 72)], ids=["square", "rectangular"])
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("pruning_head", ["gate", "patch"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_packed_is_masked(strategy, pruning_head, prefix, size, is_padded, monkeypatch):
    if is_padded:
        hide_lengths(monkeypatch)
    model = build(strategy, pruning_head=pruning_head, **PREFIXES[prefix])
    found = {}
    for model.config.pruning_execution in ("packed", "masked"):
        with torch.no_grad():
            outputs = model(images(4, *size))
            found[model.config.pruning_execution] = (outputs, model.deit(images(4, *size)).last_hidden_state)
    (packed, packed_states), (masked, masked_states) = found["packed"], found["masked"]
    assert torch.equal(packed.patch_exit_layer, masked.patch_exit_layer)
    assert (packed.patch_exit_layer < 5).any()
    for name in ("logits", "cls_logits", "patch_logits", "foreground_logits", "background_logits"):
        torch.testing.assert_close(packed[name], masked[name], **TOLERANCE)
    torch.testing.assert_close(packed_states, masked_states, **TOLERANCE)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_image_changes_another_ones_result(strategy):
    model, pixel_values = build(strategy), images(4)
    with torch.no_grad():
        together = model(torch.cat((pixel_values, pixel_values[:1])))
        for index, image in enumerate(pixel_values):
            alone = model(image[None])
            torch.testing.assert_close(alone.patch_logits[0], together.patch_logits[index], **TOLERANCE)
            assert torch.equal(alone.patch_exit_layer[0], together.patch_exit_layer[index])
        backwards = model(pixel_values.flip(0))
    torch.testing.assert_close(together.patch_logits[4], together.patch_logits[0], **TOLERANCE)
    torch.testing.assert_close(backwards.logits.flip(0), together.logits[:4], **TOLERANCE)


@pytest.mark.parametrize("seed", range(4))
def test_any_patches_may_be_kept(seed, monkeypatch):
    model, generator = build("background"), torch.Generator().manual_seed(seed)
    drawn = {index: torch.rand(4, 64, generator=generator) < torch.rand(4, 1, generator=generator) for index in (1, 2)}
    drawn[4] = torch.zeros(4, 64, dtype=torch.bool)

    def choose(index, margin, present):
        return keep_foreground(torch.where(drawn[index], -1.0, margin.abs() + 1), present, 0.0)

    monkeypatch.setattr(model.deit, "keep_policy", choose)
    found = {}
    for model.config.pruning_execution in ("packed", "masked"):
        with torch.no_grad():
            found[model.config.pruning_execution] = model(images(4))
    assert (found["packed"].patch_exit_layer == 5).sum(dim=1).tolist() == [1, 1, 1, 1]
    torch.testing.assert_close(found["packed"].patch_logits, found["masked"].patch_logits, **TOLERANCE)


class EvenCells(BackgroundStrategy):
    """Keep the patches of even cells."""

    name = "even"

    def decide(self, tokens, head_output, step):
        is_even = torch.arange(head_output.shape[1]) % 2 == 0
        return tokens.keep(is_even & tokens.present, head_output, step.layer_index)


@pytest.mark.parametrize("execution", ["packed", "masked"])
def test_a_new_strategy_is_a_class_and_an_entry(monkeypatch, execution):
    monkeypatch.setitem(STRATEGY_REGISTRY, "even", EvenCells())
    with torch.no_grad():
        outputs = build("even", pruning_execution=execution)(images(2))
    assert (outputs.patch_exit_layer[:, ::2] == 5).all()
    assert (outputs.patch_exit_layer[:, 1::2] == 1).all()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_patch_head_is_applied_once(strategy):
    model, calls = build(strategy), []
    model.deit.patch_head.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        model(images(2))
    assert len(calls) == 1


def test_dropout_that_is_switched_on_alone_still_drops():
    model = build("top_k", hidden_dropout_prob=0.5)
    with torch.no_grad():
        assert torch.equal(model(images(1)).logits, model(images(1)).logits)
        for layer in model.deit.layers:
            layer.dropout.train()  # Monte Carlo dropout: everything else stays in evaluation mode
        assert not torch.equal(model(images(1)).logits, model(images(1)).logits)


def test_no_pruning_when_all_patches_are_kept():
    model = build("background", background_margin=1e9)
    with torch.no_grad():
        pruned = model(images())
        model.config.pruning_strategy = None
        torch.testing.assert_close(pruned.patch_logits, model(images()).patch_logits, **TOLERANCE)
    assert (pruned.patch_exit_layer == 5).all()


def test_a_pruned_patch_keeps_the_logit_of_its_gate():
    model = build("background", background_margin=-1e9)  # all but one leave at once
    with torch.no_grad():
        outputs = model(images())
    left = outputs.patch_exit_layer == 1
    assert left.sum(dim=1).tolist() == [63] * 4
    assert torch.allclose(outputs.patch_logits[left][:, :-1], torch.tensor(-math.log(7)))
    assert (outputs.patch_logits[left][:, -1].std() > 0).item()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_recorded_states_have_the_shape_of_the_full_grid(strategy):
    model = build(strategy, attn_implementation="eager")
    with torch.no_grad():
        plain, recorded = model(images()), model(images(), output_hidden_states=True, output_attentions=True)
    assert {states.shape for states in recorded.hidden_states} == {(4, 65, 48)}
    assert {weights.shape for weights in recorded.attentions} == {(4, 3, 65, 65)}
    torch.testing.assert_close(plain.logits, recorded.logits, **TOLERANCE)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("pruning_head", ["gate", "patch"])
def test_every_weight_learns(strategy, pruning_head):
    model = build(strategy, pruning_head=pruning_head, drop_path_rate=0.1, prune_in_training=True).train()
    outputs = model(images(), labels=torch.arange(4))
    outputs.loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    assert (outputs.pruning_loss is not None) == (strategy in ("background", "top_k"))
    assert model.eval()(images(), labels=torch.arange(4)).pruning_loss is None


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_checkpointing_changes_no_gradient_of_a_pruned_model(strategy):
    gradients = []
    for is_checkpointed in (False, True):
        model = build(strategy, prune_in_training=True).train()
        if is_checkpointed:
            model.activation_checkpointing_enable() if hasattr(
                model, "activation_checkpointing_enable"
            ) else model.gradient_checkpointing_enable()
        model(images(), labels=torch.arange(4)).loss.backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("strategy", ["background", "top_k"])
def test_packed_gradients_are_masked_gradients(strategy):
    gradients = []
    for execution in ("packed", "masked"):
        model = build(strategy, pruning_execution=execution)
        model(images()).logits.logsumexp(-1).sum().backward()
        parts = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        gradients.append(torch.cat([part.flatten() for part in parts]))
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_new_gates_keep_all_patches_and_train():
    config = build("background").config
    model = IceDeiTForImageClassification(config).train()
    optimizer = torch.optim.Adam(model.deit.pruning_heads.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        outputs = model(images(), labels=torch.arange(4))
        losses.append(outputs.pruning_loss.item())
        optimizer.zero_grad()
        outputs.pruning_loss.backward()
        optimizer.step()
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[-1] < losses[0]


def test_patches_are_pruned_in_training_if_requested():
    model = build("background", prune_in_training=True).train()
    outputs = model(images(), labels=torch.arange(4))
    assert (outputs.patch_exit_layer < 5).any()
    # what a patch said as it left is learnt from the pruning loss alone
    gates = [*model.deit.pruning_heads.parameters()]
    other = outputs.classification_loss + outputs.background_loss + outputs.cls_loss
    assert torch.autograd.grad(other, gates, allow_unused=True, retain_graph=True) == (None,) * len(gates)


def test_heads_only_learn_in_training_by_default():
    model = build("background").train()
    outputs = model(images(), labels=torch.arange(4))
    assert (outputs.patch_exit_layer == 5).all()
    assert outputs.pruning_loss > 0
    assert (model.eval()(images()).patch_exit_layer < 5).any()


def test_half_precision_decides_alike():
    model = build("top_k").to(torch.bfloat16)
    with torch.no_grad():
        outputs = model(images())
    assert outputs.patch_logits.dtype == torch.bfloat16
    assert outputs.patch_logits.isfinite().all()
    assert (outputs.patch_exit_layer == 5).sum(dim=1).tolist() == [14] * 4  # 64 -> 45 -> 27 -> 14


def test_saved_heads_come_back_and_missing_ones_are_refused(tmp_path):
    model = build("background")
    model.save_pretrained(tmp_path / "with")
    for auto_class in (AutoModel, AutoModelForImageClassification):
        with torch.no_grad():
            again = auto_class.from_pretrained(tmp_path / "with")(images())
        assert torch.equal(again.patch_exit_layer, model(images()).patch_exit_layer)
    loaded, info = AutoModelForImageClassification.from_pretrained(
        tmp_path / "with", pruning_strategy=None, output_loading_info=True
    )
    assert not any(info.values())
    loaded.save_pretrained(tmp_path / "without")
    with pytest.raises(ValueError, match=r"no trained pruning heads at the layers 1, 2, 4.*run_train"):
        AutoModelForImageClassification.from_pretrained(tmp_path / "without", pruning_strategy="background")
    fresh = IceDeiTForImageClassification.from_pretrained(
        tmp_path / "without", pruning_strategy="top_k", initialize_pruning_heads=True
    )
    assert sorted(fresh.deit.pruning_heads) == ["1", "2", "4"]


def test_a_layer_without_head_is_refused():
    model = build("background")
    model.config.pruning_layers = [1, 3]
    with pytest.raises(ValueError, match=r"none at \[3\]"):
        model(images())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pruning_strategy": "random"}, "`pruning_strategy` must be one of"),
        ({"pruning_strategy": "top_k", "pruning_layers": [2, 1], "keep_rates": [0.5, 0.5]}, "ascending layers"),
        ({"pruning_strategy": "top_k", "pruning_layers": [1, 9], "keep_rates": [0.5, 0.5]}, r"layers in \[0, 3\]"),
        ({"pruning_strategy": "top_k", "pruning_layers": [1, 2], "keep_rates": [0.5]}, "one number in"),
        ({"pruning_strategy": "top_k", "pruning_layers": [1], "keep_rates": [0.0]}, "one number in"),
        ({"pruning_strategy": "top_k", "pruning_layers": [1], "fuse_pruned_tokens": True}, "needs `pruning_strategy"),
        (
            {"pruning_strategy": "top_k", "pruning_layers": [1], "pruning_execution": "fast"},
            "`pruning_execution` must",
        ),
        ({"pruning_strategy": "top_k", "pruning_layers": [1], "pruning_head": "mlp"}, "`pruning_head` must"),
        ({"keep_rat": [0.5]}, "Did you mean `keep_rates`"),
    ],
)
def test_wrong_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        IceDeiTConfig(num_hidden_layers=4, **fields)


def test_keys_of_old_hub_configurations_are_let_in():
    assert IceDeiTConfig(pruned_heads={}).pruning_strategy is None


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("method", sorted(EXPLAINERS))
def test_every_explainer_explains_a_pruned_model(method, strategy):
    model = build(strategy)
    assert explain(model, images(2), method=method).isfinite().all()
    assert model.config.pruning_execution == "auto"


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_compiles_and_exports(strategy):
    model = build(strategy)
    with torch.no_grad():
        expected = model(images())
        compiled = torch.compile(model, fullgraph=True)(images())
    torch.testing.assert_close(compiled.patch_logits, expected.patch_logits, **TOLERANCE)
    exported = torch.export.export(
        model, (images(),), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},), strict=False
    )
    for number in (1, 3, 7):
        outputs, expected = exported.module()(images(number)), model(images(number))
        torch.testing.assert_close(outputs.patch_logits, expected.patch_logits, **TOLERANCE)
        assert torch.equal(outputs.patch_exit_layer, expected.patch_exit_layer)
