# SPDX-License-Identifier: Apache-2.0
"""What `IceTrainer` relies on inside transformers: four private methods, and when they and the callbacks are called.

These tests are to fail where transformers moves, renames or extends what is overridden.
"""

from __future__ import annotations

import inspect
import signal
from pathlib import Path

import pytest
import torch
from test_training import make_args, make_model, make_processor, make_trainer
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

from transformers_ice.training import IceTrainer, TrainingStoppedError, build_trainer, run_training
from transformers_ice.training.checkpoints import COMPLETION_MARKER, is_complete
from transformers_ice.training.image_loaders import EpochCallback
from transformers_ice.training.stopping import StopCallback, StopRequest


PARAMETERS = {
    "_get_dataloader": ["dataset", "description", "batch_size", "sampler_fn", "is_training", "dataloader_key"],
    "_save_checkpoint": ["model", "trial"],
    "_save": ["output_dir", "state_dict"],
    "_push_from_checkpoint": ["checkpoint_folder"],
}
EVENTS = ("on_train_begin", "on_epoch_begin", "on_step_end", "on_log", "on_evaluate", "on_save", "on_train_end")
PUBLIC = ("train", "log", "evaluate", "evaluation_loop", "save_model")


def test_four_private_methods_are_overridden_and_no_other():
    private = {name for name in vars(IceTrainer) if name.startswith("_") and not name.startswith("__")}
    assert {name for name in private if hasattr(Trainer, name)} == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_overridden_methods_have_the_signature_that_transformers_calls(name):
    theirs, ours = (inspect.signature(getattr(kind, name)).parameters for kind in (Trainer, IceTrainer))
    assert list(theirs)[1:] == PARAMETERS[name]
    assert list(ours) == list(theirs)
    for parameter in PARAMETERS[name]:
        assert ours[parameter].default == theirs[parameter].default, parameter


class Recorder(TrainerCallback):
    """Events in the order in which they come."""

    def __init__(self, calls: list[str]) -> None:
        for event in EVENTS:
            setattr(self, event, lambda *args, event=event, **kwargs: calls.append(event))


def test_methods_and_callbacks_are_called_where_we_count_on_it(tmp_path, monkeypatch):
    calls: list[str] = []

    def recorded(name, method):
        def call(self, *args, **kwargs):
            calls.append(name)
            return method(self, *args, **kwargs)

        return call

    for name in (*PARAMETERS, *PUBLIC):
        monkeypatch.setattr(IceTrainer, name, recorded(name, getattr(IceTrainer, name)))
    options = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    trainer = make_trainer(tmp_path, callbacks=[Recorder(calls)], **options)
    trainer.args.push_to_hub, trainer.args.hub_strategy, trainer.push_in_progress = True, "end", None
    trainer.train()
    begin = ["train", "_get_dataloader", "on_train_begin", "on_epoch_begin", "on_step_end", "log", "on_log"]
    evaluate = ["evaluate", "_get_dataloader", "evaluation_loop", "log", "on_log", "on_evaluate"]
    save = ["_save_checkpoint", "save_model", "_save", "_push_from_checkpoint", "on_save"]
    assert calls == [*begin, *evaluate, *save, "log", "on_log", "on_train_end"]


def test_a_folder_holds_the_files_that_transformers_would_save(tmp_path):
    """`_save` replaces that of `Trainer`: what a later version adds to it must not be missed."""
    trainer = make_trainer(tmp_path)
    trainer.save_model(str(tmp_path / "ours"))
    Trainer._save(trainer, str(tmp_path / "theirs"))
    ours, theirs = ({path.name for path in (tmp_path / who).iterdir()} for who in ("ours", "theirs"))
    assert "training_args.bin" in ours
    assert ours == theirs


def test_loaders_keep_the_options_that_transformers_gives_them(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, dataloader_num_workers=1)
    trainer.train_collator = lambda rows: {"training": torch.tensor(len(rows))}
    train, evaluation = trainer.get_train_dataloader(), trainer.get_eval_dataloader()
    for loader in (train, evaluation):
        assert type(loader.base_dataloader) is DataLoader
        assert loader.worker_init_fn.func.__name__ == "start_worker"
    # that of `Trainer` seeds the workers of the training images
    assert train.worker_init_fn.args[0].func.__name__ == "seed_worker"
    assert train.collate_fn([1, 2])["training"] == 2
    assert evaluation.collate_fn is trainer.data_collator


# --- callbacks -----------------------------------------------------------------------------------------------------


class AskingRequest(StopRequest):
    """Stands for a SIGTERM that came before the first step."""

    def agreed_signal(self) -> int:
        return signal.SIGTERM


class LateFile(TrainerCallback):
    """A file in every checkpoint."""

    def on_save(self, args, state, control, **kwargs):
        Path(args.output_dir, f"checkpoint-{state.global_step}", "late.txt").write_text("late")


def test_files_added_by_a_callback_are_part_of_the_checkpoint(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=3)
    trainer.add_callback(StopCallback(AskingRequest()))
    trainer.add_callback(LateFile())
    with pytest.raises(TrainingStoppedError, match=r"after step 1, by SIGTERM\. .* is .*checkpoint-1"):
        trainer.train()
    assert is_complete(tmp_path / "checkpoint-1")
    assert '"late.txt": 4' in (tmp_path / "checkpoint-1" / COMPLETION_MARKER).read_text()


def test_a_stop_does_not_wait_for_an_evaluation_that_vetoes_the_checkpoint(tmp_path):
    """With `save_strategy="best"`: the first evaluation finds the best loss, the one after the signal a worse one."""
    options = {"save_strategy": "best", "eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "loss"}
    trainer = make_trainer(tmp_path, max_steps=4, **options)
    numbers = iter([1.0, 2.0, 3.0, 4.0])
    evaluate, asks = trainer.evaluate, iter([0, 0, signal.SIGTERM])
    trainer.evaluate = lambda *args, **kwargs: {**evaluate(*args, **kwargs), "eval_loss": next(numbers)}
    request = StopRequest()
    request.agreed_signal = lambda: next(asks)
    trainer.add_callback(StopCallback(request))
    with pytest.raises(TrainingStoppedError, match=r"after step 3, by SIGTERM\. .*checkpoint-1\."):
        trainer.train()


def test_the_trainer_has_its_own_copy_of_the_arguments_and_saves_what_was_given(tmp_path):
    args = make_args(tmp_path, save_total_limit=1)
    trainer = build_trainer(make_model(), args, image_processor=make_processor())
    assert (args.save_total_limit, trainer.save_total_limit, trainer.args.save_total_limit) == (1, 1, None)
    trainer.save_model()
    saved = torch.load(tmp_path / "training_args.bin", weights_only=False)
    assert saved.to_dict() == args.to_dict()


def test_images_are_told_the_epoch_once(tmp_path):
    trainer = make_trainer(tmp_path)
    assert [type(each) for each in trainer.callback_handler.callbacks].count(EpochCallback) == 1


# --- arguments that are refused ------------------------------------------------------------------------------------


def test_the_signal_handler_of_transformers_is_refused_and_not_installed(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    args = make_args(tmp_path, enable_jit_checkpoint=True)
    for build in (build_trainer, lambda model, args, **options: IceTrainer(model, args)):
        with pytest.raises(ValueError, match=r"`enable_jit_checkpoint` must be False.*SIGTERM.*Ctrl-C.*all processes"):
            build(make_model(), args, image_processor=make_processor())
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_refuses_it_before_it_loads_anything(tmp_path):
    with pytest.raises(ValueError, match="`enable_jit_checkpoint` must be False"):
        run_training(None, None, make_args(tmp_path, enable_jit_checkpoint=True))
