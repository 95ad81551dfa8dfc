# SPDX-License-Identifier: Apache-2.0
"""`transformers_ice.training`: what a run does to gradients, weights, logs, files and numbers."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PilImage
from safetensors.torch import load_file
from transformers import EvalPrediction, TrainerCallback, TrainerState, ViTConfig, ViTForImageClassification, set_seed
from two_processes import PATHS, run_on_two_processes

from transformers_ice import IceDeiTConfig, IceDeiTForImageClassification
from transformers_ice.data.augmentation.image_augmentation import random_crop_box
from transformers_ice.ice_deit.image_processing_ice_deit import IceDeiTImageProcessor
from transformers_ice.ice_deit.objective_ice_deit import LOSS_PARTS
from transformers_ice.training import (
    IceTrainingArguments,
    ImageCollator,
    LabelledImages,
    TrainingAugmentation,
    build_trainer,
)
from transformers_ice.training import arguments as training_arguments
from transformers_ice.training.evaluation_metrics import KEPT_OUTPUTS, EvaluationMetrics, summarize_outputs
from transformers_ice.training.image_loaders import EpochCallback
from transformers_ice.training.models import choose_attention
from transformers_ice.training.objective_presets import OBJECTIVES


SIZE = 16
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SHAPE |= {"image_size": SIZE, "patch_size": 8, "id2label": {0: "a", 1: "b", 2: "c"}}


def make_table(num_images: int = 8, size: int = SIZE, masks: bool = True) -> Dataset:
    rng = np.random.default_rng(0)
    columns = {
        "image": [
            PilImage.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)) for _ in range(num_images)
        ],
        "label": [index % 3 for index in range(num_images)],
    }
    features = {"image": Image(), "label": ClassLabel(names=["a", "b", "c"])}
    if masks:
        columns["mask"] = [
            PilImage.fromarray((rng.random((size, size)) < 0.4).astype(np.uint8) * 255) for _ in range(num_images)
        ]
        features["mask"] = Image()
    return Dataset.from_dict(columns, features=Features(features))


def make_model(**fields) -> IceDeiTForImageClassification:
    """Return a model that every part of its objective acts on from the first step, with random patch logits."""
    set_seed(0)
    fields = {**SHAPE, "min_foreground_ratio": 0.0, **fields, "min_evidence_lead": 0.0}
    model = IceDeiTForImageClassification(IceDeiTConfig(**fields))
    for module in model.deit.patch_head.modules():
        if getattr(module, "starts_at_zero", False):
            torch.nn.init.trunc_normal_(module.weight, std=model.config.initializer_range)
    return model


def make_processor() -> IceDeiTImageProcessor:
    return IceDeiTImageProcessor(size={"height": SIZE, "width": SIZE})


def make_args(output_dir: Path, **fields) -> IceTrainingArguments:
    defaults = {"eval_strategy": "no", "save_strategy": "no", "logging_steps": 1, "learning_rate": 1e-2}
    defaults |= {"per_device_train_batch_size": 4, "use_cpu": True, "disable_tqdm": True, "warmup_steps": 0}
    return IceTrainingArguments(str(output_dir), **{**defaults, **fields})


def make_trainer(output_dir: Path, model=None, augmented: bool = True, callbacks=None, **fields):
    processor = make_processor()
    augmentation = TrainingAugmentation((SIZE, SIZE), scale=(0.3, 1.0)) if augmented else None
    train = LabelledImages(make_table(), processor, augmentation)
    evaluation = LabelledImages(make_table(6), processor)
    model = make_model(drop_path_rate=0.3) if model is None else model
    args = make_args(output_dir, **fields)
    set_seed(args.seed)
    return build_trainer(model, args, train, evaluation, processor, callbacks=callbacks)


def losses_of(trainer) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


class KeepGradients(TrainerCallback):
    """Remember the gradients of the first step."""

    def __init__(self):
        self.gradients = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients = self.gradients or {n: p.grad.clone() for n, p in model.named_parameters()}


def test_first_images_per_second_count_the_forward_pass(tmp_path):
    trainer, seconds = make_trainer(tmp_path, max_steps=2), [0.0]
    trainer._throughput._clock = lambda: seconds[0]

    def take_two_seconds(*_):
        seconds[0] += 2

    trainer.model.deit.patch_head.register_forward_hook(take_two_seconds)
    trainer.train()
    assert [line["images_per_second"] for line in trainer.state.log_history if "loss" in line] == [2, 2]


# --- a whole run ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["ice_deit", "vit"])
@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_resumed_run_equals_uninterrupted_run(tmp_path, model_type, num_workers):
    def new_model():
        set_seed(0)
        return (
            make_model(drop_path_rate=0.3)
            if model_type == "ice_deit"
            else ViTForImageClassification(ViTConfig(**SHAPE))
        )

    # two steps an epoch: the checkpoint after three lies inside the second epoch
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "dataloader_num_workers": num_workers}
    whole = make_trainer(tmp_path / "whole", new_model(), **options)
    whole.train()
    resumed = make_trainer(tmp_path / "resumed", new_model(), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert len(losses_of(whole)) == 6
    assert losses_of(resumed) == losses_of(whole)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


@pytest.mark.parametrize("model_type", ["ice_deit", "vit"])
def test_load_best_model_at_end_restores_every_tensor(tmp_path, model_type):
    model = make_model() if model_type == "ice_deit" else ViTForImageClassification(ViTConfig(**SHAPE))
    trainer = make_trainer(
        tmp_path, model, max_steps=3, save_strategy="steps", save_steps=1, eval_strategy="steps", eval_steps=1,
        load_best_model_at_end=True, metric_for_best_model="loss", learning_rate=1e-1, save_total_limit=None,
    )  # fmt: skip
    # a loss that only grows: the first checkpoint is the best one, and training went on after it
    numbers = iter([1.0, 2.0, 3.0])
    evaluate = trainer.evaluate
    trainer.evaluate = lambda *args, **kwargs: {**evaluate(*args, **kwargs), "eval_loss": next(numbers)}
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-1")
    best, last = (load_file(tmp_path / f"checkpoint-{step}" / "model.safetensors") for step in (1, 3))
    assert best.keys() == trainer.model.state_dict().keys()
    moved = 0
    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(weight, best[name]), name
        moved += not torch.equal(weight, last[name])
    # all but the [CLS] classifier (no loss) moved away from the best checkpoint before it was restored
    assert moved >= len(best) - 4


@pytest.mark.parametrize("model_type", ["ice_deit", "vit"])
def test_saved_keys_are_the_state_dict(tmp_path, model_type):
    model = make_model() if model_type == "ice_deit" else ViTForImageClassification(ViTConfig(**SHAPE))
    trainer = make_trainer(tmp_path, model)
    trainer.save_model()
    weights = load_file(tmp_path / "model.safetensors")
    assert weights.keys() == model.state_dict().keys()
    assert all(weight.dtype == torch.float32 for weight in weights.values())
    again = type(model).from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in model.state_dict().items())


PRUNING = {"pruning_strategy": "background", "pruning_layers": [1], "prune_in_training": True}
# the parts that a configuration without them does not have
OPTIONAL_PARTS = {"pruning_loss": PRUNING}
OPTIONAL_PARTS |= dict.fromkeys(("candidate_label_loss", "position_loss", "local_loss"), OBJECTIVES["balanced"])
LOGGED = (*LOSS_PARTS, "foreground_ratio")


@pytest.mark.parametrize("fields", [{}, PRUNING, OBJECTIVES["balanced"]], ids=["published", "pruned", "balanced"])
def test_log_holds_the_mean_parts_of_the_loss(tmp_path, fields):
    seen = []

    class Spy(IceDeiTForImageClassification):
        def forward(self, *args, **kwargs):
            outputs = super().forward(*args, **kwargs)
            seen.append({name: outputs[name].detach().mean().item() for name in LOGGED if name in outputs})
            return outputs

    model = Spy(make_model(**fields).config)
    options = {"logging_first_step": False, "gradient_accumulation_steps": 2}
    trainer = make_trainer(tmp_path, model, max_steps=4, logging_steps=2, **options)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert len(lines) == 2
    names = [name for name in LOGGED if OPTIONAL_PARTS.get(name, fields) == fields]
    for index, line in enumerate(lines):
        for name in names:
            batches = [batch[name] for batch in seen[4 * index : 4 * index + 4]]
            assert line[name] == pytest.approx(np.mean(batches), rel=1e-5), name
    config = model.config
    # the weight of the background loss would depend on each batch
    for line in lines if config.max_foreground_ratio == 1 else []:
        total = line["classification_loss"] + config.background_loss_weight * line["background_loss"]
        total += line.get("pruning_loss", 0)
        # float32 sums of a few terms
        assert line["loss"] == pytest.approx(total, rel=1e-4)


def test_plain_classifier_logs_no_parts(tmp_path):
    trainer = make_trainer(tmp_path, ViTForImageClassification(ViTConfig(**SHAPE)), max_steps=1)
    trainer.train()
    assert next(iter(LOSS_PARTS)) not in trainer.state.log_history[0]
    assert "loss" in trainer.state.log_history[0]


def test_label_smoothing_is_refused(tmp_path):
    args = make_args(tmp_path, label_smoothing_factor=0.1)
    with pytest.raises(ValueError, match=r"label_smoothing_factor.* must be 0, got 0.1.*ICE loss would be lost"):
        build_trainer(make_model(), args, image_processor=make_processor())


def test_trainer_without_collator_and_processor_is_refused(tmp_path):
    with pytest.raises(ValueError, match="needs an `image_processor` or a `data_collator`"):
        build_trainer(make_model(), make_args(tmp_path))


# --- gradients -----------------------------------------------------------------------------------------------------


_NOTHING = {"classification_loss_weight": 0.0, "background_loss_weight": 0.0}
# every term of the loss by itself, and together
OBJECTIVES_AND_TERMS = {
    "published": {"background_loss_weight": 0.5, "cls_loss_weight": 0.5},
    "classification": {"background_loss_weight": 0.0},
    "background": {**_NOTHING, "background_loss_weight": 0.5},
    "cls": {**_NOTHING, "cls_loss_weight": 0.5},
    "candidate_label": {**_NOTHING, "candidate_label_loss_weight": 0.5},
    "local": {**_NOTHING, "num_local_windows": 2, "candidate_label_loss_weight": 0.5},
    "balanced": OBJECTIVES["balanced"],
    "gate": {**PRUNING, "pruning_head": "gate", "background_loss_weight": 0.5},
    "patch": {**PRUNING, "pruning_head": "patch", "background_loss_weight": 0.5},
}


def gradients_of(output_dir: Path, objective: str = "published", **fields) -> dict[str, torch.Tensor]:
    keep = KeepGradients()
    model = make_model(**OBJECTIVES_AND_TERMS[objective])
    # no clipping: it would hide a factor
    fields = {"max_steps": 1, "max_grad_norm": 0.0, "report_to": "none", **fields}
    make_trainer(output_dir, model, augmented=False, callbacks=[keep], **fields).train()
    return {name.removeprefix("module."): gradient for name, gradient in keep.gradients.items()}


def assert_same_gradients(ones: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> None:
    assert ones.keys() == others.keys()
    difference = sum((ones[name] - others[name]).double().square().sum() for name in ones).sqrt()
    length = sum(gradient.double().square().sum() for gradient in ones.values()).sqrt()
    assert length > 1e-3
    # rounding of float32 sums in another order
    assert difference <= 1e-5 * length


# without what depends on the share of foreground in the whole batch, which accumulation cannot know
@pytest.mark.parametrize("objective", ["published", "classification", "cls", "candidate_label", "local", "patch"])
def test_accumulated_gradients_equal_those_of_one_batch(tmp_path, objective):
    whole = gradients_of(tmp_path, objective, per_device_train_batch_size=8)
    parts = gradients_of(tmp_path, objective, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    assert_same_gradients(whole, parts)


RANK_SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
import torch
import test_training
gradients = {{
    name: test_training.gradients_of(Path({folder!r}) / name, name, per_device_train_batch_size=4)
    for name in test_training.OBJECTIVES_AND_TERMS
}}
if torch.distributed.get_rank() == 0:
    torch.save(gradients, {file!r})
assert torch.distributed.get_world_size() == 2
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_give_the_gradients_of_one(tmp_path):
    file = tmp_path / "gradients.pt"
    code = RANK_SCRIPT.format(paths=PATHS, folder=str(tmp_path / "two"), file=str(file))
    run_on_two_processes(code, tmp_path)
    two = torch.load(file, weights_only=True)
    for name in OBJECTIVES_AND_TERMS:
        one = gradients_of(tmp_path / "one" / name, name, per_device_train_batch_size=8)
        assert_same_gradients(one, two[name])


@pytest.mark.parametrize("cls_loss_weight", [0.0, 0.5])
def test_weight_decay_leaves_out_norms_biases_tokens_positions_and_idle_classifiers(tmp_path, cls_loss_weight):
    model = make_model(use_distillation_token=True, cls_loss_weight=cls_loss_weight)
    decayed = set(make_trainer(tmp_path, model).get_decay_parameter_names(model))
    idle = {"classifier.weight", "distillation_classifier.weight"}
    assert idle <= model.state_dict().keys()
    assert idle.isdisjoint(decayed) == (cls_loss_weight == 0.0)
    expected = {name for name, weight in model.named_parameters() if weight.ndim in (2, 4)} - idle
    assert decayed - idle == expected
    assert "deit.patch_head.weight" in decayed
    assert not {name for name in decayed if "token" in name or "position" in name or "norm" in name}


def test_idle_classifier_stays_as_it_was(tmp_path):
    model = make_model(cls_loss_weight=0.0)
    before = model.classifier.weight.detach().clone()
    make_trainer(tmp_path, model, max_steps=3, weight_decay=0.5).train()
    assert torch.equal(model.classifier.weight, before)


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_bf16_trains_weights_of_full_precision_to_nearly_the_same_loss(tmp_path, objective):
    losses, gradients = {}, {}
    # small steps: the windows hold eight patches, and one that changes sides moves the loss by more than the rounding
    options = {"max_steps": 3, "learning_rate": 1e-3}
    for bf16 in (False, True):
        first = KeepGradients()
        model = make_model(**OBJECTIVES[objective])
        trainer = make_trainer(tmp_path / str(bf16), model, callbacks=[first], bf16=bf16, **options)
        trainer.train()
        losses[bf16] = losses_of(trainer)
        gradients[bf16] = torch.cat([gradient.flatten() for gradient in first.gradients.values()])
        assert {weight.dtype for weight in trainer.model.parameters()} == {torch.float32}
    assert losses[True] != losses[False]
    # bfloat16 keeps eight bits
    assert losses[True] == pytest.approx(losses[False], rel=0.02)
    assert (gradients[True] - gradients[False]).norm() < 0.02 * gradients[False].norm()


@pytest.mark.parametrize(
    ("fields", "has_it", "expected"),
    [
        ({"cpu_precision": "auto"}, True, True),
        ({"cpu_precision": "auto"}, False, False),
        ({}, True, False),
    ],
    ids=str,
)
def test_auto_precision_is_bfloat16_on_a_cpu_that_is_fast_at_it(monkeypatch, tmp_path, fields, has_it, expected):
    monkeypatch.setattr(training_arguments, "has_fast_bfloat16", lambda: has_it)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    args = IceTrainingArguments(str(tmp_path), **fields)
    assert (args.bf16, args.fp16) == (expected, False)


def test_auto_precision_leaves_an_accelerator_and_given_precisions_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(training_arguments, "has_fast_bfloat16", lambda: True)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    args = IceTrainingArguments.__new__(IceTrainingArguments)
    args.cpu_precision, args.bf16, args.fp16, args.use_cpu = "auto", False, False, False
    args._choose_cpu_precision()
    assert not args.bf16
    args.use_cpu, args.fp16 = True, True
    args._choose_cpu_precision()
    assert not args.bf16
    args.fp16 = False
    args._choose_cpu_precision()
    assert args.bf16


# --- images --------------------------------------------------------------------------------------------------------


def test_crops_stay_inside_and_keep_their_ranges():
    generator = random.Random(0)
    for _ in range(500):
        left, top, right, bottom = random_crop_box(60, 40, (0.3, 0.8), (0.75, 4 / 3), generator)
        assert 0 <= left < right <= 60
        assert 0 <= top < bottom <= 40
        # half a pixel of rounding on each side
        assert 0.27 < (right - left) * (bottom - top) / 2400 < 0.84
        assert 0.7 < (right - left) / (bottom - top) < 1.42


def test_crop_of_a_sliver_is_its_largest_centred_part():
    # no crop of 0.9 of a 100 x 1 image has a ratio up to 4/3: what is left is one pixel in the middle
    assert random_crop_box(100, 1, (0.9, 1.0), (0.75, 4 / 3), random.Random(0)) == (49, 0, 50, 1)
    assert random_crop_box(1, 100, (0.9, 1.0), (0.75, 4 / 3), random.Random(0)) == (0, 49, 1, 50)


def test_augmentation_flips_about_half_of_the_images():
    image = PilImage.fromarray(np.tile(np.arange(8, dtype=np.uint8), (8, 1)))
    augment = TrainingAugmentation((8, 8), crop=False)
    flipped = [np.asarray(augment(image, random.Random(seed)))[0, 0] == 7 for seed in range(200)]
    # 200 coins: five standard deviations
    assert 65 < sum(flipped) < 135


def test_images_depend_on_epoch_and_row_and_nothing_else():
    images = LabelledImages(make_table(), make_processor(), TrainingAugmentation((SIZE, SIZE), scale=(0.2, 0.5)))
    first = images[3]["pixel_values"]
    torch.rand(7), random.random(), np.random.rand()  # noqa: NPY002 - the global generators must not matter
    assert torch.equal(images.__getitems__([1, 3])[1]["pixel_values"], first)
    images.set_epoch(1)
    assert not torch.equal(images[3]["pixel_values"], first)
    images.set_epoch(0)
    assert torch.equal(images[3]["pixel_values"], first)


def test_images_are_told_the_epoch_also_where_accelerate_does_not(tmp_path):
    trainer = make_trainer(tmp_path)
    callback = next(item for item in trainer.callback_handler.callbacks if isinstance(item, EpochCallback))
    before = trainer.train_dataset[0]["pixel_values"]
    callback.on_epoch_begin(trainer.args, TrainerState(epoch=1.5), None)
    after = trainer.train_dataset[0]["pixel_values"]
    trainer.train_dataset.set_epoch(1)
    assert torch.equal(trainer.train_dataset[0]["pixel_values"], after)
    assert not torch.equal(before, after)


def test_evaluation_pixels_are_those_of_the_image_processor():
    processor = make_processor()
    for size in (SIZE, 23):
        table = make_table(3, size)
        batch = ImageCollator.from_image_processor(processor)(LabelledImages(table, processor).__getitems__([0, 1, 2]))
        expected = processor(list(table["image"]), return_tensors="pt")["pixel_values"]
        # one multiplication and addition instead of three steps, in float32
        torch.testing.assert_close(batch["pixel_values"], expected, rtol=1e-5, atol=1e-6)
        assert batch["labels"].tolist() == [0, 1, 2]
        assert batch["labels"].dtype == torch.int64


def test_evaluation_crops_as_the_image_processor_does():
    options = {"size": {"shortest_edge": 20}, "do_center_crop": True, "crop_size": {"height": 16, "width": 16}}
    processor = IceDeiTImageProcessor(**options)
    table = make_table(2, 40)
    pixels = LabelledImages(table, processor)[1]["pixel_values"]
    expected = processor(table[1]["image"], do_rescale=False, do_normalize=False)["pixel_values"][0]
    np.testing.assert_array_equal(pixels.permute(2, 0, 1), expected)


def test_unreadable_row_is_named():
    table = Dataset.from_dict({"image": [{"bytes": b"no image", "path": "broken.png"}], "label": [0]})
    images = LabelledImages(table.cast_column("image", Image()), make_processor())
    with pytest.raises(ValueError, match=r"Row 0 of the data: .*broken\.png"):
        images[0]


# --- evaluation ----------------------------------------------------------------------------------------------------


def test_evaluation_numbers_equal_those_of_the_definition(tmp_path):
    model = make_model(background_loss_weight=0.0)
    trainer = make_trainer(tmp_path, model, per_device_eval_batch_size=4)
    numbers = trainer.evaluate()
    table = make_table(6)
    pixels = make_processor()(list(table["image"]), return_tensors="pt")
    with torch.no_grad():
        outputs = model.eval()(**pixels)
    labels = torch.tensor(table["label"])
    foreground = outputs.patch_logits.argmax(-1) != 3
    assert 0 < foreground.float().mean() < 1
    masks = np.stack([np.asarray(mask) for mask in table["mask"]]) > 0
    predicted = foreground.view(6, 2, 2).repeat_interleave(8, 1).repeat_interleave(8, 2).numpy()
    ious = [
        (predicted & masks).sum() / (predicted | masks).sum(),
        (~predicted & ~masks).sum() / (~predicted | ~masks).sum(),
    ]
    assert numbers["eval_top_1"] == pytest.approx((outputs.logits.argmax(-1) == labels).float().mean().item())
    assert numbers["eval_cls_top_1"] == pytest.approx((outputs.cls_logits.argmax(-1) == labels).float().mean().item())
    assert numbers["eval_foreground_ratio"] == pytest.approx(foreground.float().mean().item())
    assert numbers["eval_pixel_accuracy"] == pytest.approx((predicted == masks).mean())
    assert numbers["eval_mean_iou"] == pytest.approx(np.mean(ious))
    # three classes: the five best are all of them, which says nothing
    assert "eval_top_5" not in numbers


def test_other_data_are_scored_by_their_own_masks(tmp_path):
    trainer = make_trainer(tmp_path)
    processor = make_processor()
    assert "eval_mean_iou" not in trainer.evaluate(LabelledImages(make_table(4, masks=False), processor))
    other = trainer.evaluate(LabelledImages(make_table(4, size=40), processor), metric_key_prefix="other")
    assert 0 < other["other_pixel_accuracy"] < 1
    assert "eval_mean_iou" in trainer.evaluate()


def test_kept_outputs_stand_in_the_order_of_the_model():
    keys = list(make_model()(torch.zeros(1, 3, SIZE, SIZE)).keys())
    assert [key for key in keys if key in KEPT_OUTPUTS] == list(KEPT_OUTPUTS)


def test_summaries_by_hand():
    logits = torch.tensor([[0.1, 0.9, 0.3, 0.2, 0.5, 0.0]])
    patch_logits = torch.zeros(1, 4, 7)
    patch_logits[0, :3, 6], patch_logits[0, 3, 2] = 1.0, 1.0
    top, cls_class, foreground = summarize_outputs((logits, -logits, patch_logits))
    assert top.tolist() == [[1, 4, 2, 3, 0]]
    assert cls_class.tolist() == [[5]]
    assert foreground.tolist() == [[0, 0, 0, 1]]
    assert summarize_outputs(logits)[0].tolist() == top.tolist()
    # nothing found: equal logits are no answer, and class 0 is not right by accident
    assert summarize_outputs(torch.zeros(1, 6))[0].tolist() == [[-1] * 5]


def test_top_5_is_reported_from_five_classes_on():
    class Prediction:
        predictions = np.array([[0, 1, 2, 3, 4], [5, 4, 3, 2, 1]])
        label_ids = np.array([0, 1])

    assert EvaluationMetrics((8, 8))(Prediction) == {"top_1": 0.5, "top_5": 1.0}


def test_model_that_finds_no_foreground_is_right_in_no_image():
    """Whatever class the ranking of equal logits would name first."""
    parts = summarize_outputs((torch.zeros(7, 7), torch.zeros(7, 7), torch.tensor([0.0] * 7 + [1.0]).expand(7, 4, 8)))
    metrics = EvaluationMetrics((8, 8))(EvalPrediction(tuple(part.numpy() for part in parts), np.arange(7)))
    assert metrics == {"top_1": 0.0, "top_5": 0.0, "cls_top_1": 0.0, "foreground_ratio": 0.0}


@pytest.mark.parametrize(
    ("grid", "bf16", "expected"), [(10, False, "eager"), (14, False, "sdpa"), (16, True, "eager"), (20, True, "sdpa")]
)
def test_attention_on_a_processor_is_matrix_products_for_few_patches(grid, bf16, expected):
    model = make_model(image_size=8 * grid)
    assert model.config._attn_implementation == "sdpa"
    choose_attention(model, torch.device("cuda"), bf16)
    assert model.config._attn_implementation == "sdpa"
    choose_attention(model, torch.device("cpu"), bf16)
    assert model.config._attn_implementation == expected
    assert "eager" not in model.config.to_json_string()
