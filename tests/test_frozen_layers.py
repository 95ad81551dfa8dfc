# SPDX-License-Identifier: Apache-2.0
"""`--freeze_layers`: what is frozen stays as it was bit by bit, costs no gradient, and runs work as ever."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_training import PRUNING, SHAPE, losses_of, make_args, make_model, make_trainer
from torch import nn
from transformers import DeiTConfig, DeiTForImageClassification, TrainerCallback, ViTConfig, ViTForImageClassification
from two_processes import PATHS, run_on_two_processes

from transformers_ice.training import parse_arguments, prepare_training, run_training
from transformers_ice.training.objective_presets import OBJECTIVES
from transformers_ice.training.parameter_groups import freeze_layers
from transformers_ice.training.run_length import describe_length
from transformers_ice.training.run_settings import describe_run


LAYERS = SHAPE["num_hidden_layers"]
STEPS = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": None}
GATES = {**PRUNING, "pruning_head": "gate", **OBJECTIVES["balanced"]}
PATCH_HEADS = {**PRUNING, "pruning_head": "patch", **OBJECTIVES["balanced"]}


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


def frozen_names(names, num_frozen: int, num_layers: int = LAYERS) -> set[str]:
    """By the definition: the embeddings, the first layers, and with all of them the norm behind them."""
    parts = ["embeddings", *(f"layers.{index}" for index in range(num_frozen))]
    parts += ["layernorm"] if num_frozen == num_layers else []
    return {name for name in names for part in parts if name.split(".", 1)[1].startswith(f"{part}.")}


class Watch(TrainerCallback):
    """Note, at each step, which weights have a gradient, which modules train, and which weights have a state."""

    def __init__(self):
        self.with_gradient, self.training, self.states = set(), set(), 0

    def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.with_gradient |= {name for name, weight in model.named_parameters() if weight.grad is not None}
        self.training |= {name for name, module in model.named_modules() if module.training}

    def on_step_end(self, args, state, control, optimizer=None, **kwargs):
        self.states = len(optimizer.state_dict()["state"])


@pytest.mark.parametrize("num_frozen", range(LAYERS + 1))
@pytest.mark.parametrize(
    "fields", [{}, OBJECTIVES["balanced"], GATES, PATCH_HEADS], ids=["published", "balanced", "gate", "patch"]
)
def test_frozen_weights_stay_and_all_others_train(tmp_path, fields, num_frozen):
    watch = Watch()
    model = make_model(**{"drop_path_rate": 0.5, "hidden_dropout_prob": 0.1, "cls_loss_weight": 0.5, **fields})
    before = weights_of(model)
    trainer = make_trainer(tmp_path, model, callbacks=[watch], freeze_layers=num_frozen, max_steps=3, weight_decay=0.5)
    trainer.train()
    frozen = frozen_names(before, num_frozen)
    assert len(frozen) > 3
    after = weights_of(model)
    assert {name for name in before if torch.equal(before[name], after[name])} == frozen
    assert watch.with_gradient == before.keys() - frozen
    assert watch.states == len(before) - len(frozen)
    assert {name for name, weight in model.named_parameters() if not weight.requires_grad} == frozen
    # dropout and drop path of the frozen part are off, those of the others on
    assert "deit" in watch.training
    assert "deit.embeddings.dropout" not in watch.training
    for index in range(LAYERS):
        assert (f"deit.layers.{index}.drop_path" in watch.training) == (index >= num_frozen)


def test_nothing_is_frozen_by_default(tmp_path):
    model = make_model()
    trainer = make_trainer(tmp_path, model)
    assert trainer.args.freeze_layers is None
    assert all(weight.requires_grad for weight in model.parameters())


def test_nothing_is_recorded_for_a_backward_pass_below_the_heads():
    model = make_model(**OBJECTIVES["balanced"]).train()
    saved = []
    pixels, labels = torch.rand(2, 3, 16, 16), torch.tensor([0, 1])

    def count_saved() -> int:
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.shape), lambda shape: shape):
            model(pixels, labels=labels)
        return len(saved)

    whole = count_saved()
    for module in freeze_layers(model, LAYERS):
        module.eval()
    assert 0 < count_saved() < whole / 2
    assert not any(shape[-1:] == (4 * SHAPE["hidden_size"],) for shape in saved)


@pytest.mark.parametrize("kind", ["vit", "deit"])
def test_plain_classifiers_freeze_too(tmp_path, kind):
    classes = {"vit": (ViTForImageClassification, ViTConfig), "deit": (DeiTForImageClassification, DeiTConfig)}
    model_class, config_class = classes[kind]
    model = model_class(config_class(**SHAPE))
    before = weights_of(model)
    make_trainer(tmp_path, model, freeze_layers=1, max_steps=2).train()
    frozen = frozen_names(before, 1)
    assert len(frozen) > 3
    same = {name for name, weight in weights_of(model).items() if torch.equal(weight, before[name])}
    assert same - {f"{kind}.embeddings.mask_token"} == frozen - {f"{kind}.embeddings.mask_token"}


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{}, {"ema_decay": 0.9}, {"layer_decay": 0.5}, {"bf16": True}], ids=str)
def test_a_resumed_run_is_the_whole_one(tmp_path, fields):
    options = {"max_steps": 4, "freeze_layers": 1, **fields, **STEPS}
    objective = {**OBJECTIVES["balanced"], "drop_path_rate": 0.3}
    whole = make_trainer(tmp_path / "whole", make_model(**objective), **options)
    whole.train()
    resumed = make_trainer(tmp_path / "resumed", make_model(**objective), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert losses_of(resumed) == losses_of(whole)
    for name, weight in weights_of(whole.model).items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


def test_average_of_frozen_weights_is_exact_and_a_checkpoint_whole(tmp_path):
    model = make_model()
    before = weights_of(model)
    trainer = make_trainer(tmp_path, model, freeze_layers=LAYERS, ema_decay=0.3, max_steps=4, **STEPS)
    trainer.train()
    saved = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    assert saved.keys() == before.keys()
    frozen = frozen_names(before, LAYERS)
    assert all(torch.equal(saved[name], before[name]) for name in frozen)
    assert not torch.equal(saved["deit.patch_head.weight"], before["deit.patch_head.weight"])
    loaded = type(model).from_pretrained(tmp_path / "checkpoint-4")
    assert all(weight.requires_grad for weight in loaded.parameters())


def test_gradient_checkpointing_changes_nothing(tmp_path):
    weights = []
    for on in (False, True):
        model = make_model(**OBJECTIVES["balanced"])
        make_trainer(tmp_path / str(on), model, freeze_layers=1, max_steps=2, gradient_checkpointing=on).train()
        weights.append(weights_of(model))
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], rtol=1e-5, atol=1e-6, msg=name)


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [-1, LAYERS + 1])
def test_a_number_out_of_range_is_refused_with_the_range(tmp_path, number):
    with pytest.raises(ValueError, match=rf"`freeze_layers` must .*(at least 0|\[0, {LAYERS}\]).*got {number}"):
        make_trainer(tmp_path, freeze_layers=number)


def test_other_architectures_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`freeze_layers` needs a ViT, DeiT or ICE model, got Linear"):
        freeze_layers(_with_base(nn.Linear(2, 2)), 1)


def _with_base(module: nn.Module) -> nn.Module:
    module.base_model = None
    return module


def words_of(tmp_path: Path, *words: str) -> list[str]:
    data = ["--dataset_name", "scenes", "--max_train_samples", "32", "--max_eval_samples", "16", "--image_size", "32"]
    run = ["--output_dir", str(tmp_path / "out"), "--max_steps", "2", "--per_device_train_batch_size", "8"]
    return [*data, *run, "--use_cpu", "--ignore_mismatched_sizes", "--num_panel_images", "0", *words]


def test_a_run_freezes_and_says_so_and_refuses_other_numbers_before_it_reads_images(tmp_path, hub_folder, monkeypatch):
    source = ["--model_name_or_path", str(hub_folder("vit", "old"))]
    arguments = parse_arguments(words_of(tmp_path, *source, "--freeze_layers", "2"))
    said = []
    monkeypatch.setattr("transformers_ice.training.parameter_groups.logger.warning", said.append)
    run_training(*arguments)
    assert any("Frozen: the embeddings and 2 of 2 layers." in line for line in said)
    weights, start = load_file(tmp_path / "out" / "model.safetensors"), load_file(source[1] + "/model.safetensors")
    query = "encoder.layer.1.attention.attention.query.weight"
    assert torch.equal(weights["deit.layers.1.attention.q_proj.weight"], start[f"vit.{query}"])

    def fail(*args, **kwargs):
        raise AssertionError("images were read")

    monkeypatch.setattr("transformers_ice.training.run.load_images", fail)
    for words, message in (
        ([*source, "--freeze_layers", "3"], r"`freeze_layers` must lie in \[0, 2\] for 2 layers, got 3"),
        (["--model_type", "ice_deit", "--freeze_layers", "1"], "would freeze random weights"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare_training(*parse_arguments(words_of(tmp_path, *words)))


def test_resuming_with_another_number_is_another_run(tmp_path):
    trainer = make_trainer(tmp_path, freeze_layers=1)
    settings = describe_run(trainer.model, trainer.args, parse_arguments(
        ["--model_type", "vit", "--dataset_name", "scenes", "--output_dir", str(tmp_path), "--use_cpu"])[1],
        trainer.train_dataset,
    )  # fmt: skip
    assert settings["settings"]["freeze_layers"] == 1


def test_time_of_a_run_is_that_of_the_frozen_model(tmp_path, monkeypatch):
    asked = []
    real = freeze_layers
    monkeypatch.setattr(
        "transformers_ice.training.run_length.freeze_layers", lambda *args: asked.append(args[1]) or real(*args)
    )
    config = make_model(**OBJECTIVES["balanced"]).config
    assert "steps of" in describe_length(config, (16, 16), 8, make_args(tmp_path, freeze_layers=2))
    assert asked == [2]


# --- several processes ---------------------------------------------------------------------------------------------

RANK_SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
import torch
from safetensors.torch import save_file
import test_frozen_layers as tests
for name in tests.TWO_PROCESSES:
    weights = tests.train_frozen(Path({folder!r}) / name, name, per_device_train_batch_size=4)
    if torch.distributed.get_rank() == 0:
        save_file(weights, {folder!r} + "/" + name + ".safetensors")
torch.distributed.destroy_process_group()
"""
TWO_PROCESSES = {"probe": (LAYERS, OBJECTIVES["balanced"]), "part": (1, {}), "gate": (LAYERS, GATES)}


def train_frozen(folder: Path, name: str, **fields) -> dict[str, torch.Tensor]:
    num_frozen, objective = TWO_PROCESSES[name]
    model = make_model(**objective)
    options = {"max_steps": 3, "max_grad_norm": 0.0, "optim": "sgd", "learning_rate": 0.1, "report_to": "none"}
    options |= {"freeze_layers": num_frozen, "gradient_checkpointing": name == "part", **fields}
    make_trainer(folder, model, augmented=False, **options).train()
    return weights_of(model)


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    run_on_two_processes(RANK_SCRIPT.format(paths=PATHS, folder=str(tmp_path)), tmp_path)
    for name in TWO_PROCESSES:
        one = train_frozen(tmp_path / "one" / name, name, per_device_train_batch_size=8)
        two = load_file(tmp_path / f"{name}.safetensors")
        start = weights_of(make_model(**TWO_PROCESSES[name][1]))
        assert any(not torch.equal(one[key], start[key]) for key in one)
        for key, weight in one.items():
            torch.testing.assert_close(two[key], weight, rtol=1e-4, atol=1e-6, msg=f"{name}: {key}")
