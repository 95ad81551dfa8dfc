# SPDX-License-Identifier: Apache-2.0
"""`--cache_features`: frozen layers run once for each distinct input, and the run is that without the cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_frozen_layers import LAYERS, PATCH_HEADS, weights_of, words_of
from test_training import SHAPE, SIZE, losses_of, make_args, make_model, make_processor, make_table
from torch import nn
from transformers import DeiTConfig, DeiTForImageClassification, ViTConfig, ViTForImageClassification, set_seed
from two_processes import PATHS, run_on_two_processes

from transformers_ice.cli.train import print_check
from transformers_ice.training import (
    LabelledImages,
    TrainingAugmentation,
    build_trainer,
    parse_arguments,
    prepare_training,
    run_training,
)
from transformers_ice.training.cached_features import FeatureCache
from transformers_ice.training.objective_presets import OBJECTIVES
from transformers_ice.training.run_length import describe_length


BALANCED = OBJECTIVES["balanced"]
NUM_IMAGES, NUM_EVALUATED = 8, 6
FLIP = TrainingAugmentation((SIZE, SIZE), crop=False)
STEPS = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": None}


def make_run(folder: Path, model: nn.Module, augmentation: TrainingAugmentation | None = None, **fields):
    """Return a trainer of images that come again as they were; 2 steps an epoch, all layers frozen."""
    args = make_args(folder, **{"max_steps": 6, "freeze_layers": LAYERS, "cache_features": True, **fields})
    processor = make_processor()
    images = LabelledImages(make_table(NUM_IMAGES), processor, augmentation)
    evaluated = LabelledImages(make_table(NUM_IMAGES + NUM_EVALUATED), processor)
    evaluated._rows = evaluated._rows.select(range(NUM_IMAGES, NUM_IMAGES + NUM_EVALUATED))  # other ones
    set_seed(args.seed)
    return build_trainer(model, args, images, evaluated, processor)


class Rows:
    """Inputs of the first layer, and how many each layer has computed."""

    def __init__(self, model: nn.Module) -> None:
        self.entered: list[bytes] = []
        self.computed = dict.fromkeys(range(LAYERS), 0)
        layers = model.base_model.layers
        layers[0].register_forward_pre_hook(lambda _, inputs: self.entered.extend(map(self._content, inputs[0])))
        for index, layer in enumerate(layers):
            # a part of the layer: the layer itself is also called where the cache has its output
            layer.attention.register_forward_hook(lambda _, inputs, out, index=index: self._count(index, inputs[0]))

    def _content(self, row: torch.Tensor) -> bytes:
        return str((row.shape, row.tolist())).encode()

    def _count(self, index: int, tokens: torch.Tensor) -> None:
        self.computed[index] += len(tokens)

    @property
    def num_distinct(self) -> int:
        return len(set(self.entered))


def assert_same_run(cached, plain) -> None:
    assert len(losses_of(cached)) == len(losses_of(plain)) > 1
    torch.testing.assert_close(losses_of(cached), losses_of(plain), rtol=1e-6, atol=1e-6)
    weights = weights_of(plain.model)
    assert cached.model.state_dict().keys() == weights.keys()
    for name, weight in weights_of(cached.model).items():
        torch.testing.assert_close(weight, weights[name], rtol=1e-6, atol=1e-6, msg=name)


OBJECTIVE_CASES = {
    "published": ({"drop_path_rate": 0.5, "hidden_dropout_prob": 0.2}, LAYERS),
    "balanced": ({**BALANCED, "drop_path_rate": 0.5, "hidden_dropout_prob": 0.2}, LAYERS),
    "part": (BALANCED, 1),
    "pruned above": ({**PATCH_HEADS, "drop_path_rate": 0.3}, 1),
}


@pytest.mark.parametrize("case", OBJECTIVE_CASES)
@pytest.mark.parametrize("augmentation", [None, FLIP], ids=["none", "flip"])
def test_run_is_that_without_a_cache_and_runs_frozen_layers_once_for_each_input(tmp_path, case, augmentation):
    objective, num_frozen = OBJECTIVE_CASES[case]
    runs, rows = {}, {}
    for cached in (False, True):
        model = make_model(**objective)
        rows[cached] = Rows(model)
        options = {"freeze_layers": num_frozen, "cache_features": cached}
        runs[cached] = make_run(tmp_path / str(cached), model, augmentation, **options)
        runs[cached].train()
    assert_same_run(runs[True], runs[False])
    assert rows[True].entered == rows[False].entered
    total, distinct = len(rows[True].entered), rows[True].num_distinct
    assert total > distinct
    assert set(rows[False].computed.values()) == {total}
    for index, computed in rows[True].computed.items():
        assert computed == (distinct if index < num_frozen else total)
    assert all("forward" not in vars(layer) for layer in runs[True].model.deit.layers)


@pytest.mark.parametrize(
    "fields",
    [
        {"bf16": True},
        *(
            pytest.param(fields, marks=pytest.mark.slow)
            for fields in ({"ema_decay": 0.5}, {"gradient_checkpointing": True}, {"repeated_augmentation": 2})
        ),
    ],
    ids=str,
)
def test_run_is_that_without_a_cache_by_other_recipes_too(tmp_path, fields):
    options = {"freeze_layers": 1, "eval_strategy": "epoch", **fields}
    runs = {}
    for cached in (False, True):
        model = make_model(**BALANCED, drop_path_rate=0.3)
        runs[cached] = make_run(tmp_path / str(cached), model, cache_features=cached, **options)
        runs[cached].train()
    assert_same_run(runs[True], runs[False])
    logs = [[line["eval_loss"] for line in run.state.log_history if "eval_loss" in line] for run in runs.values()]
    torch.testing.assert_close(*logs, rtol=1e-6, atol=1e-6)
    assert len(logs[0]) == 3


@pytest.mark.parametrize("kind", ["vit", "deit"])
def test_plain_classifiers_reuse_features_too(tmp_path, kind):
    classes = {"vit": (ViTForImageClassification, ViTConfig), "deit": (DeiTForImageClassification, DeiTConfig)}
    model_class, config_class = classes[kind]
    runs = {}
    for cached in (False, True):
        set_seed(0)
        model = model_class(config_class(**SHAPE))
        rows = Rows(model)
        runs[cached] = make_run(tmp_path / str(cached), model, cache_features=cached)
        runs[cached].train()
    assert_same_run(runs[True], runs[False])
    assert set(rows.computed.values()) == {NUM_IMAGES}


def test_evaluation_reuses_features_and_nothing_else_does(tmp_path):
    model = make_model(**BALANCED)
    rows = Rows(model)
    trainer = make_run(tmp_path, model)
    first = trainer.evaluate()
    assert set(rows.computed.values()) == {NUM_EVALUATED}
    second = trainer.evaluate()
    assert set(rows.computed.values()) == {NUM_EVALUATED}
    assert first["eval_loss"] == second["eval_loss"]
    # explainers read what the layers compute: a call of the model runs them all
    pixels = torch.rand(2, 3, SIZE, SIZE)
    for _ in range(2):
        states = model(pixels, output_hidden_states=True).hidden_states
        assert len(states) == LAYERS + 1
        assert not states[1].equal(states[LAYERS])
    assert set(rows.computed.values()) == {NUM_EVALUATED + 4}


def test_resumed_run_is_the_whole_one_with_and_without_a_cache(tmp_path):
    whole = make_run(tmp_path / "whole", make_model(**BALANCED), FLIP, **STEPS)
    whole.train()
    for cached in (True, False):
        resumed = make_run(tmp_path / str(cached), make_model(**BALANCED), FLIP, cache_features=cached, **STEPS)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
        assert_same_run(resumed, whole)


def test_training_forgets_features_of_other_weights(tmp_path):
    plain = make_run(tmp_path / "plain", make_model(**BALANCED), cache_features=False, **STEPS)
    plain.train()
    other = make_model(**BALANCED)
    with torch.no_grad():
        for weight in other.deit.layers.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    trainer = make_run(tmp_path / "other", other, **STEPS)
    trainer.evaluate()
    trainer._features.clear = _noted(trainer._features.clear, calls := [])
    trainer.train(resume_from_checkpoint=str(tmp_path / "plain" / "checkpoint-2"))
    assert len(calls) == 1
    assert_same_run(trainer, plain)
    torch.testing.assert_close(trainer.evaluate()["eval_loss"], plain.evaluate()["eval_loss"])


def _noted(function, calls: list):
    return lambda: (calls.append(1), function())[1]


def test_memory_has_a_limit_that_is_told_once(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("transformers_ice.training.cached_features.logger.warning", said.append)
    plain = make_run(tmp_path / "plain", make_model(**BALANCED), cache_features=False)
    plain.train()
    assert not said
    model = make_model(**BALANCED)
    size = (1 + (SIZE // SHAPE["patch_size"]) ** 2) * SHAPE["hidden_size"] * 4  # bytes of an image
    rows = Rows(model)
    trainer = make_run(tmp_path / "cached", model, cache_features_gb=3.5 * size / 2**30)
    trainer.train()
    assert_same_run(trainer, plain)
    assert 2.5 * size < trainer._features.num_bytes <= 3.5 * size
    assert trainer._features.num_bytes == sum(row.nbytes for row in trainer._features._outputs.values())
    assert rows.num_distinct < rows.computed[0] < len(rows.entered)
    assert len(said) == 1
    assert "`--cache_features_gb" in said[0]


# --- the cache itself ----------------------------------------------------------------------------------------------


class Scale(nn.Module):
    """Layer that counts its rows."""

    def __init__(self) -> None:
        super().__init__()
        self.factor, self.num_rows = nn.Parameter(torch.tensor(2.0), requires_grad=False), 0

    def forward(self, hidden_states, attention_mask=None, **kwargs):
        self.num_rows += len(hidden_states)
        return hidden_states * self.factor if attention_mask is None else hidden_states * attention_mask


def make_layers() -> nn.ModuleList:
    return nn.ModuleList([Scale(), Scale(), Scale()])


def run_through(layers: nn.ModuleList, tokens: torch.Tensor, *args, **kwargs) -> torch.Tensor:
    for layer in layers:
        tokens = layer(tokens, *args, **kwargs)
    return tokens


def test_rows_come_back_in_the_order_of_the_batch_each_computed_once():
    layers = make_layers()
    cache, tokens = FeatureCache(layers[:2], 1.0), torch.randn(5, 3, 4)
    with cache.reused():
        for rows in ([0, 1, 0], [2, 1, 0, 2], [4, 3, 1], [1], [3, 3, 0, 4, 2, 1]):
            assert run_through(layers, tokens[rows]).equal(tokens[rows] * 8)
    assert [layer.num_rows for layer in layers] == [5, 5, 17]
    kept = run_through(layers, tokens)
    assert [layer.num_rows for layer in layers] == [10, 10, 22]
    with cache.reused():  # nobody changes what is kept
        run_through(layers, tokens).zero_()
        layers[0](tokens).zero_()
        assert run_through(layers, tokens).equal(kept)


def test_type_shape_and_autocast_are_other_inputs():
    layers = make_layers()
    tokens = torch.zeros(1, 2, 4)
    with FeatureCache(layers, 1.0).reused():
        for variant in (tokens, tokens.view(1, 4, 2), tokens.bfloat16(), tokens.bfloat16().view(1, 4, 2)):
            out = run_through(layers, variant)
            assert (out.dtype, out.shape) == (variant.dtype, variant.shape)
        with torch.autocast("cpu", torch.bfloat16):
            run_through(layers, tokens)
        with torch.autocast("cpu", torch.float16):
            run_through(layers, tokens)
    assert layers[0].num_rows == 6


def test_what_depends_on_more_than_the_tokens_is_computed():
    layers, tokens = make_layers(), torch.randn(2, 3, 4)
    with FeatureCache(layers, 1.0).reused():
        known = run_through(layers, tokens, None, num_items_in_batch=torch.tensor(2), use_cache=False)
        assert run_through(layers, tokens, 4.0).equal(tokens * 64)
        assert run_through(layers, tokens, attention_mask=0.5).equal(tokens * 0.125)
        run_through(layers, tokens, output_hidden_states=True)
        assert run_through(layers, tokens).equal(known)
        assert [layer.num_rows for layer in layers] == [8, 8, 8]
        assert run_through(layers, tokens.clone().requires_grad_()).requires_grad


def test_layers_are_as_they_were_after_an_error():
    layers, calls = make_layers(), []
    own = _noted(lambda: None, calls)
    layers[1].forward = own
    reused = FeatureCache(layers, 1.0).reused()
    reused.__enter__()
    assert all("forward" in vars(layer) for layer in layers)
    assert not reused.__exit__(RuntimeError, RuntimeError(), None)
    assert "forward" not in vars(layers[0]) | vars(layers[2])
    assert layers[1].forward is own


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [None, 0])
def test_nothing_frozen_is_refused(tmp_path, number):
    with pytest.raises(ValueError, match=f"got `--freeze_layers {number}`. Freeze at least 1 layer"):
        make_args(tmp_path, cache_features=True, freeze_layers=number)


@pytest.mark.parametrize("limit", [0, -1, float("inf")])
def test_limit_has_to_be_a_size(tmp_path, limit):
    with pytest.raises(ValueError, match="`cache_features_gb` must be above 0 and finite"):
        make_args(tmp_path, cache_features_gb=limit)


def test_models_and_runs_whose_frozen_layers_cannot_be_skipped_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"got pruning at the layers \[1\].*`pruning_layers` to at least 2"):
        make_run(tmp_path, make_model(**PATCH_HEADS))
    model = make_model()
    model.config.output_hidden_states = True
    with pytest.raises(ValueError, match=r"`config.output_hidden_states` wants, got True"):
        make_run(tmp_path, model)
    with pytest.raises(ValueError, match="nor `torch_compile`"):
        make_run(tmp_path, make_model(), torch_compile=True)


NEW_EACH_TIME = (
    [],
    ["--augmentation", "deit"],
    ["--augmentation", "none", "--rand_augment", "rand-m9-mstd0.5-inc1"],
    *(["--augmentation", "flip", f"--{name}", "0.5"] for name in ("color_jitter", "random_erasing_prob")),
    *(["--augmentation", "none", f"--{name}", "0.5"] for name in ("mixup_alpha", "cutmix_alpha")),
)


@pytest.mark.parametrize("options", NEW_EACH_TIME, ids=str)
def test_an_augmentation_that_repeats_nothing_is_refused_before_images_are_read(
    tmp_path, hub_folder, monkeypatch, options
):
    source = ["--model_name_or_path", str(hub_folder("vit", "old")), "--freeze_layers", "2"]
    arguments = parse_arguments(words_of(tmp_path, *source, "--cache_features", "true", *options))

    def fail(*args, **kwargs):
        raise AssertionError("images were read")

    monkeypatch.setattr("transformers_ice.training.run.load_images", fail)
    named = options[-2:] or ["--augmentation", "crop_flip"]
    with pytest.raises(ValueError, match=f"`{' '.join(named)}`.*Use `--augmentation none` or flip"):
        prepare_training(*arguments)


def test_check_of_the_data_refuses_it_too(tmp_path, hub_folder, capsys):
    source = ["--model_name_or_path", str(hub_folder("vit", "old")), "--freeze_layers", "2"]
    source += ["--cache_features", "true"]
    assert print_check(*parse_arguments(words_of(tmp_path, *source))) == 1
    assert "The model cannot be had: `--cache_features true` needs training images" in capsys.readouterr().err
    assert print_check(*parse_arguments(words_of(tmp_path, *source, "--augmentation", "none"))) == 0
    assert "for the first epoch: later ones take frozen layers from the cache." in capsys.readouterr().out


def test_length_of_a_run_counts_one_epoch_of_the_encoder(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers_ice.training.run_length.time_image", lambda *args: 60.0)
    config, fields = make_model().config, {"freeze_layers": 2, "num_train_epochs": 5}
    assert "10 steps of 4 images, 2 steps an epoch; about 40 min " in describe_length(
        config, (SIZE, SIZE), NUM_IMAGES, make_args(tmp_path, **fields)
    )
    assert "about 8 min " in describe_length(
        config, (SIZE, SIZE), NUM_IMAGES, make_args(tmp_path, cache_features=True, **fields)
    )


@pytest.mark.parametrize("augmentation", [pytest.param("none", marks=pytest.mark.slow), "flip"])
def test_run_from_the_command_line_is_that_without_a_cache(tmp_path, hub_folder, augmentation):
    source = ["--model_name_or_path", str(hub_folder("vit", "old")), "--freeze_layers", "2", "--max_steps", "6"]
    numbers = []
    for cached in ("false", "true"):
        options = [*source, "--augmentation", augmentation, "--cache_features", cached]
        numbers.append(run_training(*parse_arguments(words_of(tmp_path / cached, *options))))
    torch.testing.assert_close(numbers[0]["train_loss"], numbers[1]["train_loss"], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(numbers[0]["eval_loss"], numbers[1]["eval_loss"], rtol=1e-6, atol=1e-6)


# --- several processes ---------------------------------------------------------------------------------------------

RANK_SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
import torch
from safetensors.torch import save_file
import test_cached_features as tests
weights = tests.train_by_sgd(Path({folder!r}) / "two", 4, cache_features=True)
if torch.distributed.get_rank() == 0:
    save_file(weights, {folder!r} + "/two.safetensors")
torch.distributed.destroy_process_group()
"""


def train_by_sgd(folder: Path, batch_size: int, **fields) -> dict[str, torch.Tensor]:
    options = {"max_grad_norm": 0.0, "optim": "sgd", "learning_rate": 0.1, "report_to": "none", "freeze_layers": 1}
    run = make_run(folder, make_model(**BALANCED), per_device_train_batch_size=batch_size, **options, **fields)
    run.train()
    return weights_of(run.model)


@pytest.mark.slow
def test_two_processes_train_as_one_without_a_cache(tmp_path):
    run_on_two_processes(RANK_SCRIPT.format(paths=PATHS, folder=str(tmp_path)), tmp_path)
    one = train_by_sgd(tmp_path / "one", 8, cache_features=False)
    two = load_file(tmp_path / "two.safetensors")
    for key, weight in one.items():
        torch.testing.assert_close(two[key], weight, rtol=1e-4, atol=1e-6, msg=key)
