# SPDX-License-Identifier: Apache-2.0
"""Pruned models at the edges: any cut, extreme scores, mixed precision, pipelines, a fresh process."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from pruning_models import NUM_LABELS, NUM_LAYERS, STRATEGIES, build, hide_lengths, images
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    pipeline,
)

from transformers_ice import IceDeiTForImageClassification, IceDeiTImageProcessor
from transformers_ice.ice_deit.token_pruning import foreground_policy


# float32 on a CPU: the executions sum in other orders
TOLERANCE = {"atol": 1e-5, "rtol": 0}


def both_executions(model: IceDeiTForImageClassification, pixel_values: torch.Tensor) -> list:
    outputs = []
    for model.config.pruning_execution in ("packed", "masked"):
        with torch.no_grad():
            outputs.append(model(pixel_values))
    return outputs


def assert_same(packed, masked) -> None:
    assert torch.equal(packed.patch_exit_layer, masked.patch_exit_layer)
    for name in ("logits", "cls_logits", "patch_logits"):
        torch.testing.assert_close(packed[name], masked[name], **TOLERANCE)


@pytest.mark.parametrize("keep_rate", [1e-9, 0.5, 1.0])
@pytest.mark.parametrize("layers", [[0], [4], [0, 4], [0, 1, 2, 3, 4]])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_any_cut_at_any_layer_is_the_same_packed_and_masked(strategy, layers, keep_rate):
    model = build(strategy, pruning_layers=layers, keep_rates=[keep_rate] * len(layers))
    assert_same(*both_executions(model, images(3)))


@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_any_masks_are_the_same_packed_and_masked(seed, is_padded, monkeypatch):
    if is_padded:
        hide_lengths(monkeypatch)
    model, generator = build("background"), torch.Generator().manual_seed(seed)
    drawn = {index: torch.rand(4, 64, generator=generator) < torch.rand(4, 1, generator=generator) for index in (1, 2)}
    drawn[4] = torch.ones(4, 64, dtype=torch.bool)

    def choose(index, margin, present):
        keep = present & drawn[index]
        keep[0] = present[0]  # one image keeps all
        keep[1] = torch.arange(64) == seed  # one keeps a single patch, the same each time
        return keep | (present & ~keep.any(dim=1, keepdim=True))

    monkeypatch.setattr(model.deit, "keep_policy", choose)
    packed, masked = both_executions(model, images())
    assert_same(packed, masked)
    assert (packed.patch_exit_layer == NUM_LAYERS).sum(dim=1)[:2].tolist() == [64, 1]


def test_scores_of_infinity_bring_no_patch_back(monkeypatch):
    model = build("background")
    decide = foreground_policy(0.0)

    def choose(index, margin, present):
        # half of the patches leave first, all others have infinite background at the next layer
        extreme = torch.where(torch.arange(64) < 32, 1.0, -1.0) if index == 1 else torch.tensor(torch.inf)
        return decide(index, extreme.expand_as(margin), present)

    monkeypatch.setattr(model.deit, "keep_policy", choose)
    for outputs in both_executions(model, images(2)):
        stayed = outputs.patch_exit_layer == NUM_LAYERS
        assert stayed.sum(dim=1).tolist() == [1, 1]
        assert not stayed[:, :32].any()


@pytest.mark.parametrize("strategy", ["attentiveness", "fused"])
def test_what_left_does_not_drown_the_attention_to_what_stayed(strategy):
    # float64, so that rounding decides nothing
    model = build(strategy, pruning_layers=[1, 2], keep_rates=[0.5, 0.5]).double()
    with torch.no_grad():  # scores so far apart that a softmax over all tokens gives some exactly 0
        for projection in (model.deit.layers[2].attention.q_proj, model.deit.layers[2].attention.k_proj):
            projection.weight.mul_(30)
    packed, masked = both_executions(model, images())
    assert masked.cls_logits.isfinite().all()
    assert_same(packed, masked)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_mixed_precision_gives_the_same_types_in_each_execution(strategy):
    with torch.autocast("cpu", torch.bfloat16):
        packed, masked = both_executions(build(strategy), images(2))
    for name in ("logits", "cls_logits", "patch_logits"):
        assert packed[name].dtype == masked[name].dtype, name
        torch.testing.assert_close(packed[name], masked[name], atol=0.1, rtol=0.05)  # bfloat16: 8 bits


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_half_precision_is_the_same_packed_and_masked(strategy, dtype):
    packed, masked = both_executions(build(strategy).to(dtype), images())
    assert packed.patch_logits.dtype == dtype
    differs = packed.patch_exit_layer != masked.patch_exit_layer
    assert differs.float().mean() < 0.02  # near ties
    torch.testing.assert_close(packed.cls_logits, masked.cls_logits, atol=0.05, rtol=0.05)


def test_another_kind_of_head_on_an_instantiated_model_is_refused_or_ignored():
    for strategy in ("background", "top_k"):
        model = build(strategy)
        expected = model(images(2)).logits
        model.config.pruning_head = "patch"
        try:
            found = model(images(2)).logits
        except ValueError as error:
            assert "pruning_head" in str(error)  # noqa: PT017 - either is right, an error from within is not
        else:
            torch.testing.assert_close(found, expected, **TOLERANCE)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_both_kinds_of_checkpointing_change_no_gradient(strategy, use_reentrant):
    gradients = []
    for is_checkpointed in (False, True):
        model = build(strategy, prune_in_training=True).train()
        if is_checkpointed:
            # the new name, where this transformers has it
            name = "activation_checkpointing_enable"
            enable = getattr(model, name, None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": use_reentrant})
            assert model.is_gradient_checkpointing
        model(images(), labels=torch.arange(4)).loss.backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_states_may_be_asked_for_in_the_configuration(strategy):
    model = build(strategy, attn_implementation="eager")
    expected = model(images(2)).logits
    model.config.output_hidden_states = model.config.output_attentions = True
    outputs = model(images(2))
    assert [tuple(states.shape) for states in outputs.hidden_states] == [(2, 65, 48)] * (NUM_LAYERS + 1)
    assert [tuple(weights.shape) for weights in outputs.attentions] == [(2, 3, 65, 65)] * NUM_LAYERS
    torch.testing.assert_close(outputs.logits, expected, **TOLERANCE)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    def folder_of(strategy: str):
        folder = tmp_path_factory.mktemp(strategy)
        build(strategy).save_pretrained(folder)
        IceDeiTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
        return folder

    return {strategy: folder_of(strategy) for strategy in STRATEGIES}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_all_classes_prune_alike(saved, strategy):
    classes = (AutoModel, AutoModelForImageClassification, AutoModelForSemanticSegmentation)
    models = [auto_class.from_pretrained(saved[strategy]) for auto_class in classes]
    with torch.no_grad():
        base, classifier, segmenter = (model(images(2)) for model in models)
    assert (base.patch_exit_layer < NUM_LAYERS).any()
    for outputs in (classifier, segmenter):
        assert torch.equal(outputs.patch_exit_layer, base.patch_exit_layer)
        assert torch.equal(outputs.patch_logits, base.patch_logits)
    assert torch.equal(segmenter.logits.flatten(2).transpose(1, 2), base.patch_logits)
    assert (base.last_hidden_state[:, 1:][base.patch_exit_layer < NUM_LAYERS] == 0).all()


@pytest.mark.parametrize("task", ["image-classification", "image-segmentation", "patch-explanation"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_pipelines_give_the_same_in_batches(saved, strategy, task):
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (50, 70, 3), dtype=np.uint8)) for _ in range(3)]
    run = pipeline(task, model=str(saved[strategy]), device="cpu")
    for alone, together in zip(run(pictures, batch_size=1), run(pictures, batch_size=2), strict=True):
        if task == "image-segmentation":
            assert [entry["label"] for entry in alone] == [entry["label"] for entry in together]
            assert all(a["mask"] == b["mask"] for a, b in zip(alone, together, strict=True))
            continue
        first, second = (found[0] if task == "image-classification" else found for found in (alone, together))
        assert first["label"] == second["label"]
        assert first["score"] == pytest.approx(second["score"], abs=1e-5)


def test_heads_are_drawn_through_the_auto_class_only_if_asked_for(saved):
    with pytest.raises(ValueError, match=r"no trained pruning heads at the layers 1, 2, 4.*initialize_pruning_heads"):
        AutoModelForImageClassification.from_pretrained(saved["background"], pruning_head="patch")
    model = AutoModelForImageClassification.from_pretrained(
        saved["background"], pruning_head="patch", initialize_pruning_heads=True
    )
    assert model.deit.pruning_heads["2"].weight.shape == (NUM_LABELS + 1, 48)


SCRIPT = """
import sys
sys.modules["transformers_ice"] = None  # importing it now raises ImportError
import torch
from transformers import AutoModel, AutoModelForImageClassification
pixel_values = torch.load("images.pt")
for name in sys.argv[1:]:
    for auto_class in (AutoModel, AutoModelForImageClassification):
        model = auto_class.from_pretrained(name, trust_remote_code=True).eval()
        with torch.no_grad():
            outputs = model(pixel_values)
        torch.save([outputs.patch_logits, outputs.patch_exit_layer], f"{name}.{auto_class.__name__}.pt")
"""


@pytest.mark.slow
def test_remote_code_prunes_as_the_package_does(tmp_path):
    torch.save(images(), tmp_path / "images.pt")
    for strategy in STRATEGIES:
        build(strategy).save_pretrained(tmp_path / strategy)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["HF_MODULES_CACHE"] = str(tmp_path / "modules")
    command = [sys.executable, "-c", SCRIPT, *STRATEGIES]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    for strategy in STRATEGIES:
        with torch.no_grad():
            expected = build(strategy)(images())
        for name in ("AutoModel", "AutoModelForImageClassification"):
            patch_logits, exit_layer = torch.load(tmp_path / f"{strategy}.{name}.pt")
            torch.testing.assert_close(patch_logits, expected.patch_logits, atol=1e-6, rtol=0)
            assert torch.equal(exit_layer, expected.patch_exit_layer)


@pytest.mark.slow
def test_the_packed_form_is_captured_whole_and_takes_other_batches():
    model = build("background")
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True), torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        for number in (3, 5):
            torch.testing.assert_close(compiled(images(number)).logits, model(images(number)).logits, **TOLERANCE)
