# SPDX-License-Identifier: Apache-2.0
"""LoRA by the library peft: train, save, load, resume, merge, publish and explain an ICE model with adapters."""

from __future__ import annotations

import copy

import pytest
import torch
from explainer_models import METHODS
from publishing_folders import make_record
from test_training import SHAPE, losses_of, make_model, make_processor, make_trainer
from transformers import TrainerCallback

from transformers_ice import IceDeiTConfig, IceDeiTForImageClassification, IceDeiTModel
from transformers_ice.explainers import explain
from transformers_ice.hub import build_card, read_facts
from transformers_ice.training.objective_presets import OBJECTIVES


peft = pytest.importorskip("peft", reason="LoRA needs peft: pip install transformers-ice[adapters]")

PIXELS = torch.linspace(-1, 1, 2 * 3 * 16 * 16).sin().view(2, 3, 16, 16)
PRUNING = {"pruning_strategy": "background", "pruning_layers": [1]}
KINDS = {
    "balanced": OBJECTIVES["balanced"],
    "gate": {**PRUNING, "pruning_head": "gate", **OBJECTIVES["balanced"]},
    "mlp": {"patch_head_hidden_size": 16, "use_distillation_token": True, "use_distillation_head": True},
}


def add_adapters(model: IceDeiTForImageClassification, **options):
    """As docs/training/adapters.md does it."""
    heads = ["classifier", "patch_head", *(f"pruning_heads.{layer}" for layer in model.deit.pruning_heads)]
    return peft.get_peft_model(
        model, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], modules_to_save=heads, **options)
    )


def make_adapted(kind: str = "balanced", **options):
    return add_adapters(make_model(**{"initializer_range": 0.3, "cls_loss_weight": 0.5, **KINDS[kind]}), **options)


def outputs_of(model) -> torch.Tensor:
    with torch.no_grad():
        outputs = model.eval()(pixel_values=PIXELS)
    return torch.cat((outputs.patch_logits.flatten(), outputs.cls_logits.flatten(), outputs.logits.flatten()))


def weights_of(model) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


class WithGradient(TrainerCallback):
    def __init__(self):
        self.names = set()

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.names |= {name for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_adapters_and_all_heads_train_and_nothing_else(tmp_path, kind):
    model, watch = make_adapted(kind), WithGradient()
    before = weights_of(model)
    make_trainer(tmp_path, model, callbacks=[watch], max_steps=3).train()
    after = weights_of(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == watch.names == {name for name, weight in model.named_parameters() if weight.requires_grad}
    heads = [name for name, _ in model.get_base_model().named_parameters() if ".modules_to_save." in name]
    wanted = {name.split(".modules_to_save.")[0].split(".")[-1] for name in heads if "pruning" not in name}
    assert wanted >= {"classifier", "patch_head"}
    assert ("distillation_classifier" in wanted) == (kind == "mlp")
    assert any("pruning_heads" in name for name in heads) == (kind == "gate")
    assert any("lora_B" in name for name in changed)
    assert not any("layers" in name and "lora" not in name for name in changed)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_saved_adapters_load_and_the_merged_model_gives_the_same_logits(tmp_path, kind):
    model = make_adapted(kind)
    base = make_adapted(kind).unload()
    base.save_pretrained(tmp_path / "base")
    trainer = make_trainer(tmp_path / "run", model, max_steps=3)
    trainer.train()
    trainer.save_model(str(tmp_path / "adapters"))
    trained = outputs_of(model)
    assert not torch.allclose(trained, outputs_of(base), atol=1e-3)
    files = {file.name for file in (tmp_path / "adapters").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "preprocessor_config.json"} <= files
    assert "model.safetensors" not in files
    loaded = peft.PeftModel.from_pretrained(
        IceDeiTForImageClassification.from_pretrained(tmp_path / "base"), tmp_path / "adapters"
    )
    torch.testing.assert_close(outputs_of(loaded), trained, rtol=0, atol=0)
    merged = loaded.merge_and_unload()
    assert type(merged) is IceDeiTForImageClassification
    torch.testing.assert_close(outputs_of(merged), trained, rtol=0, atol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    again, info = IceDeiTForImageClassification.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(info.values())
    torch.testing.assert_close(outputs_of(again), trained, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{}, {"ema_decay": 0.9}, {"layer_decay": 0.5}], ids=str)
def test_a_resumed_run_is_the_whole_one(tmp_path, fields):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "save_total_limit": None, **fields}
    whole = make_trainer(tmp_path / "whole", make_adapted(lora_dropout=0.1), **options)
    whole.train()
    resumed = make_trainer(tmp_path / "resumed", make_adapted(lora_dropout=0.1), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert losses_of(resumed) == losses_of(whole)
    for name, weight in weights_of(whole.model).items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


def test_the_best_checkpoint_is_loaded_at_the_end(tmp_path):
    trainer = make_trainer(
        tmp_path, make_adapted(), max_steps=3, save_strategy="steps", save_steps=1, eval_strategy="steps",
        eval_steps=1, load_best_model_at_end=True, metric_for_best_model="loss", save_total_limit=None,
    )  # fmt: skip
    numbers = iter([1.0, 2.0, 3.0])
    evaluate = trainer.evaluate
    trainer.evaluate = lambda *args, **kwargs: {**evaluate(*args, **kwargs), "eval_loss": next(numbers)}
    trainer.train()
    best, last = (
        outputs_of(peft.PeftModel.from_pretrained(make_adapted().unload(), tmp_path / f"checkpoint-{step}"))
        for step in (1, 3)
    )
    torch.testing.assert_close(outputs_of(trainer.model), best, rtol=0, atol=1e-6)
    assert not torch.allclose(last, best, atol=1e-4)


def test_frozen_layers_and_adapters_exclude_each_other(tmp_path):
    with pytest.raises(ValueError, match=r"needs a ViT, DeiT or ICE model, got PeftModel.*frozen already"):
        make_trainer(tmp_path, make_adapted(), freeze_layers=1)


@pytest.mark.parametrize("task", [None, "FEATURE_EXTRACTION"])
@pytest.mark.parametrize("model_class", [IceDeiTModel, IceDeiTForImageClassification])
def test_what_peft_sends_along_is_taken(model_class, task):
    model = model_class(IceDeiTConfig(**SHAPE)).eval()
    expected = model(PIXELS).patch_logits
    torch.testing.assert_close(model(PIXELS, attention_mask=None).patch_logits, expected, rtol=0, atol=0)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], task_type=task)).eval()
    # adapters start as no change
    torch.testing.assert_close(adapted(pixel_values=PIXELS).patch_logits, expected, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_merged_model_passes_the_checks_of_a_publication(tmp_path, capsys):
    from transformers_ice.cli import publish

    trainer = make_trainer(tmp_path / "run", make_adapted(), max_steps=1)
    trainer.train()
    trainer.save_model(str(tmp_path / "adapters"))
    assert publish.main([str(tmp_path / "adapters"), "owner/adapters", "--dry_run"]) == 1, "not the whole model"
    folder = tmp_path / "merged"
    trainer.model.merge_and_unload().save_pretrained(folder)
    make_processor().save_pretrained(folder)
    card = build_card(make_record(folder), read_facts(folder))
    (folder / "README.md").write_text(card, encoding="utf-8")
    assert publish.main([str(folder), "owner/merged", "--dry_run"]) == 0
    assert "model.safetensors" in capsys.readouterr().out


# --- explainers ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapted():
    torch.manual_seed(0)
    model = make_adapted(init_lora_weights=False)  # random adapters, far from no change
    return model.eval()


@pytest.mark.parametrize("method", METHODS)
def test_explanations_are_those_of_the_merged_model(adapted, method):
    merged = copy.deepcopy(adapted).merge_and_unload()
    before, flags = weights_of(adapted), [weight.requires_grad for weight in adapted.parameters()]
    # some methods draw random numbers
    torch.manual_seed(0)
    with torch.inference_mode():
        mine = explain(adapted, PIXELS, method)
    torch.manual_seed(0)
    expected = explain(merged, PIXELS, method)
    torch.testing.assert_close(mine, expected, rtol=0, atol=0)
    base = explain(copy.deepcopy(adapted).unload(), PIXELS, method)
    assert method == "ice_hard" or not torch.allclose(mine, base, rtol=1e-2), "the adapters have a part in it"
    assert weights_of(adapted).keys() == before.keys()
    assert all(torch.equal(weight, before[name]) for name, weight in weights_of(adapted).items())
    assert [weight.requires_grad for weight in adapted.parameters()] == flags
    assert type(adapted).__name__ == "PeftModel"
