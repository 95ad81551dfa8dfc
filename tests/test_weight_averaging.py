# SPDX-License-Identifier: Apache-2.0
"""`training.weight_averaging`: what is averaged, evaluated, saved and resumed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_training import losses_of, make_args, make_model, make_processor, make_trainer
from torch import nn
from transformers import AutoModelForImageClassification, Trainer, TrainerCallback, set_seed
from two_processes import PATHS, run_on_two_processes

from transformers_ice.training import IceTrainingArguments, build_trainer
from transformers_ice.training.weight_averaging import RAW_WEIGHTS_FILE, WeightAverage


STEPS = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": None}


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


class KeepWeights(TrainerCallback):
    """Remember the weights before training, and after every step."""

    def __init__(self):
        self.weights = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.weights.append(weights_of(model))

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.weights.append(weights_of(model))


def average_of(history: list[dict[str, torch.Tensor]], decay: float) -> dict[str, torch.Tensor]:
    """The definition, in float64."""
    average = {name: tensor.double() for name, tensor in history[0].items()}
    for weights in history[1:]:
        for name, tensor in weights.items():
            average[name] = decay * average[name] + (1 - decay) * tensor.double()
    return average


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        # rounding of float32 at every step
        torch.testing.assert_close(tensor.double(), other[name].double(), rtol=1e-5, atol=1e-7, msg=name)


def test_average_equals_its_definition_for_parameters_and_buffers():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average, history = WeightAverage(model, 0.9), [weights_of(model)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(7):
        model(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
        average.update(model)
        history.append(weights_of(model))
    expected = average_of(history, 0.9)
    counter = average.tensors.pop("1.num_batches_tracked")
    assert (int(counter), counter.dtype) == (7, torch.int64)
    expected.pop("1.num_batches_tracked")
    assert not torch.equal(average.tensors["1.running_mean"], history[-1]["1.running_mean"])
    assert_close(average.tensors, expected)


def test_model_gets_its_own_weights_back_exactly_also_after_an_error():
    model = nn.Linear(3, 2)
    average = WeightAverage(model, 0.5)
    with torch.no_grad():
        model.weight.add_(1.0)
    own, parameter = weights_of(model), model.weight

    def fail() -> None:
        with average.in_place_of(model):
            assert_same(weights_of(model), average.tensors)
            raise KeyError("stopped")

    with pytest.raises(KeyError, match="stopped"):
        fail()
    assert_same(weights_of(model), own)
    assert model.weight is parameter


def test_training_goes_on_as_without_an_average(tmp_path):
    # an evaluation draws from the global generator, with an average or without
    options = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 1}
    plain, averaged = make_trainer(tmp_path, **options), make_trainer(tmp_path, ema_decay=0.5, **options)
    for trainer in (plain, averaged):
        set_seed(0)
        trainer.train()
    assert losses_of(averaged) == losses_of(plain)
    assert not torch.equal(averaged.model.deit.patch_head.weight, plain.model.deit.patch_head.weight)


def test_evaluation_files_and_the_final_model_are_of_the_average(tmp_path):
    keep = KeepWeights()
    options = {"max_steps": 4, "ema_decay": 0.8, "eval_strategy": "steps", "eval_steps": 2, **STEPS}
    trainer = make_trainer(tmp_path, callbacks=[keep], **options)
    trainer.train()
    final = average_of(keep.weights, 0.8)
    assert_close(weights_of(trainer.model), final)
    half = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert_close(half, average_of(keep.weights[:3], 0.8))
    assert_same(load_file(tmp_path / "checkpoint-2" / RAW_WEIGHTS_FILE), keep.weights[2])
    # the evaluation of step 2 is that of the saved average
    logged = {line["step"]: line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line}
    again = make_trainer(
        tmp_path / "again", AutoModelForImageClassification.from_pretrained(tmp_path / "checkpoint-2")
    )
    assert again.evaluate()["eval_loss"] == pytest.approx(logged[2], rel=1e-6)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(logged[4], rel=1e-6)
    trainer.save_model(str(tmp_path / "final"))
    assert_same(load_file(tmp_path / "final" / "model.safetensors"), weights_of(trainer.model))
    assert not (tmp_path / "final" / RAW_WEIGHTS_FILE).exists()


def test_resumed_average_equals_the_uninterrupted_one(tmp_path):
    options = {"max_steps": 6, "ema_decay": 0.9, **STEPS}
    whole = make_trainer(tmp_path / "whole", **options)
    whole.train()
    resumed = make_trainer(tmp_path / "resumed", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert losses_of(resumed) == losses_of(whole)
    assert_same(weights_of(resumed.model), weights_of(whole.model))
    for step in (4, 6):
        for file in ("model.safetensors", RAW_WEIGHTS_FILE):
            one, other = (load_file(tmp_path / run / f"checkpoint-{step}" / file) for run in ("whole", "resumed"))
            assert_same(one, other)


def test_run_that_goes_on_without_an_average_goes_on_from_the_weights_themselves(tmp_path):
    options = {"max_steps": 4, **STEPS}
    plain = make_trainer(tmp_path / "plain", **options)
    plain.train()
    make_trainer(tmp_path / "averaged", ema_decay=0.9, **options).train()
    without = make_trainer(tmp_path / "without", **options)
    without.train(resume_from_checkpoint=str(tmp_path / "averaged" / "checkpoint-2"))
    assert_same(weights_of(without.model), weights_of(plain.model))


def test_average_may_start_late(tmp_path):
    keep, options = KeepWeights(), {"max_steps": 4, **STEPS}
    make_trainer(tmp_path / "plain", **options).train()
    late = make_trainer(tmp_path / "late", ema_decay=0.9, callbacks=[keep], **options)
    late.train(resume_from_checkpoint=str(tmp_path / "plain" / "checkpoint-2"))
    assert_close(weights_of(late.model), average_of(keep.weights, 0.9))


def test_best_checkpoint_is_that_of_the_average(tmp_path):
    trainer = make_trainer(
        tmp_path, max_steps=4, ema_decay=0.5, eval_strategy="steps", eval_steps=2, load_best_model_at_end=True,
        metric_for_best_model="loss", **STEPS,
    )  # fmt: skip
    numbers = iter([1.0, 2.0])
    evaluate = trainer.evaluate
    trainer.evaluate = lambda *args, **kwargs: {**evaluate(*args, **kwargs), "eval_loss": next(numbers)}
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")
    assert_same(weights_of(trainer.model), load_file(tmp_path / "checkpoint-2" / "model.safetensors"))


@pytest.mark.parametrize("decay", [0.0, 1.0, -1.0, float("nan")])
def test_decay_out_of_range_is_refused(tmp_path, decay):
    with pytest.raises(ValueError, match=r"`ema_decay` must be in \(0, 1\), got"):
        IceTrainingArguments(str(tmp_path), use_cpu=True, ema_decay=decay)


def test_sharded_weights_are_refused(tmp_path, monkeypatch):
    # FSDP itself needs several processes
    def set_up(self):
        self.__dict__.update(vars(prepared))
        self.is_fsdp_enabled = True

    prepared = build_trainer(make_model(), make_args(tmp_path, ema_decay=0.9), image_processor=make_processor())
    monkeypatch.setattr(Trainer, "__init__", lambda self, *args, **kwargs: set_up(self))
    with pytest.raises(ValueError, match=r"needs unsharded weights in every process, got 0\.9 with FSDP or DeepSpeed"):
        build_trainer(make_model(), make_args(tmp_path, ema_decay=0.9), image_processor=make_processor())


RANK_SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
import test_weight_averaging
test_weight_averaging.train_two_epochs(Path({folder!r}), per_device_train_batch_size=4)
import torch
assert torch.distributed.get_world_size() == 2
torch.distributed.destroy_process_group()
"""


def train_two_epochs(folder: Path, **fields) -> None:
    # repeats are dealt out so that the same rows make a step, whatever the number of processes
    options = {"max_steps": 2, "ema_decay": 0.5, "repeated_augmentation": 3, "report_to": "none", "optim": "sgd"}
    options |= {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    make_trainer(folder, make_model(), **options, **fields).train()


@pytest.mark.slow
def test_two_processes_average_as_one(tmp_path):
    run_on_two_processes(RANK_SCRIPT.format(paths=PATHS, folder=str(tmp_path / "two")), tmp_path)
    train_two_epochs(tmp_path / "one", per_device_train_batch_size=8)
    for step in (1, 2):
        for file in ("model.safetensors", RAW_WEIGHTS_FILE):
            one, two = (load_file(tmp_path / run / f"checkpoint-{step}" / file) for run in ("one", "two"))
            for name, weight in one.items():
                # rounding of float32 sums in another order
                torch.testing.assert_close(two[name], weight, rtol=1e-4, atol=1e-6, msg=name)
