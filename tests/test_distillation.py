# SPDX-License-Identifier: Apache-2.0
"""Distillation: the loss, the teacher's pixels and classes, and a run with a teacher."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from test_training import SHAPE, SIZE, make_args, make_model, make_processor, make_table, make_trainer
from torch import nn
from transformers import DeiTConfig, DeiTForImageClassification, ViTConfig, ViTForImageClassification, set_seed
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil

from transformers_ice.training import (
    DataArguments,
    IceTrainingArguments,
    ImageCollator,
    LabelledImages,
    ModelArguments,
    run_training,
)
from transformers_ice.training.classifier_losses import Distillation, Teacher, distillation_loss, load_teacher


def make_teacher_model(seed: int = 3, **fields) -> DeiTForImageClassification:
    set_seed(seed)
    model = DeiTForImageClassification(DeiTConfig(**{**SHAPE, **fields}))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def make_teacher_processor(size: int = SIZE, mean: float = 0.5, std: float = 0.5) -> DeiTImageProcessorPil:
    return DeiTImageProcessorPil(
        size={"height": size, "width": size}, do_center_crop=False, image_mean=[mean] * 3, image_std=[std] * 3
    )


# --- the loss ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_soft_loss_equals_its_definition(tau):
    student, teacher = torch.randn(4, 5), torch.randn(4, 5)
    expected = 0.0
    for row, teacher_row in zip(student.double(), teacher.double(), strict=True):
        p, q = (row / tau).softmax(0), (teacher_row / tau).softmax(0)
        expected += sum(float(q[c]) * math.log(float(q[c]) / float(p[c])) for c in range(5)) * tau**2
    assert float(distillation_loss(student, teacher, "soft", tau)) == pytest.approx(expected / 20, rel=1e-5)
    assert float(distillation_loss(teacher, teacher, "soft", tau)) == pytest.approx(0.0, abs=1e-7)


def test_hard_loss_takes_the_best_class_of_the_teacher():
    student, teacher = torch.randn(4, 5), torch.randn(4, 5)
    expected = -sum(
        float(row.double().log_softmax(0)[max(range(5), key=lambda c: float(teacher_row[c]))])
        for row, teacher_row in zip(student, teacher, strict=True)
    )
    assert float(distillation_loss(student, teacher, "hard", 7.0)) == pytest.approx(expected / 4, rel=1e-5)


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_teacher_is_compared_with_the_distillation_head_or_else_with_cls(head, kind):
    student = make_model(use_distillation_token=head, cls_loss_weight=1.0).train()
    teacher = Teacher(make_teacher_model(), make_teacher_processor(), make_processor())
    distillation = Distillation(teacher, student, kind, alpha=0.3, tau=2.0)
    pixels, labels = torch.randn(2, 3, SIZE, SIZE), torch.tensor([0, 2])
    outputs = student(pixels, labels=labels)
    loss, part = distillation(outputs.loss, outputs, pixels)
    if head:
        hidden = student.deit(pixels).last_hidden_state[:, 1]
        logits = student.distillation_classifier(hidden)
    else:
        logits = outputs.cls_logits
    expected = distillation_loss(logits, teacher(pixels), kind, 2.0)
    torch.testing.assert_close(part, expected)
    torch.testing.assert_close(loss, 0.7 * outputs.loss + 0.3 * expected)
    loss.backward()
    classifier = student.distillation_classifier if head else student.classifier
    assert classifier.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in teacher.model.parameters())


def test_evaluation_keeps_no_state_for_the_next_batch():
    student = make_model(use_distillation_token=True).train()
    distillation = Distillation(
        Teacher(make_teacher_model(), make_teacher_processor(), make_processor()), student, "hard"
    )
    student.eval()
    student(torch.randn(5, 3, SIZE, SIZE))
    assert distillation._head_logits is None


def test_one_process_for_several_gpus_is_refused():
    student = make_model(use_distillation_token=True).train()
    teacher = Teacher(make_teacher_model(), make_teacher_processor(), make_processor())
    distillation = Distillation(teacher, student, "hard")
    # as `DataParallel` does: the module runs on a part of the batch
    outputs = student(torch.randn(2, 3, SIZE, SIZE), labels=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"returned logits for 2 of 4 images.*with torchrun"):
        distillation(outputs.loss, outputs, torch.randn(4, 3, SIZE, SIZE))


def test_plain_student_is_compared_by_its_logits():
    student = ViTForImageClassification(ViTConfig(**SHAPE))
    teacher = Teacher(make_teacher_model(), make_teacher_processor(), make_processor())
    pixels = torch.randn(2, 3, SIZE, SIZE)
    outputs = student(pixels)
    _, part = Distillation(teacher, student, "hard")(torch.zeros(()), outputs, pixels)
    torch.testing.assert_close(part, F.cross_entropy(outputs.logits, teacher(pixels).argmax(-1)))


# --- the teacher ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "tolerance"), [(SIZE, 1e-5), (2 * SIZE, 0.06)])
def test_teacher_sees_the_pixels_that_its_own_processor_makes(size, tolerance):
    seen = []

    class Spy(nn.Module):
        def forward(self, pixel_values):
            seen.append(pixel_values)
            return SimpleNamespace(logits=pixel_values.mean((1, 2, 3))[:, None])

    processor = make_teacher_processor(size, mean=0.4, std=0.3)
    teacher = Teacher(Spy(), processor, make_processor())
    rows = LabelledImages(make_table(3), make_processor()).__getitems__([0, 1, 2])
    pixels = ImageCollator.from_image_processor(make_processor())(rows)["pixel_values"]
    teacher(pixels)
    expected = processor(list(make_table(3)["image"]), return_tensors="pt")["pixel_values"]
    # PIL rounds to bytes after it resizes and clips what bicubic overshoots; random pixels overshoot everywhere
    assert seen[0].shape == expected.shape
    assert float((seen[0] - expected).abs().mean()) < tolerance
    assert not teacher.model.training


def test_classes_are_matched_by_name(tmp_path):
    model = make_teacher_model(id2label={0: "c", 1: "a", 2: "b"})
    model.save_pretrained(tmp_path)
    make_teacher_processor().save_pretrained(tmp_path)
    teacher = load_teacher(str(tmp_path), ["a", "b", "c"], make_teacher_processor())
    pixels = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        logits = model.eval()(pixels).logits
    torch.testing.assert_close(teacher(pixels), torch.stack([logits[:, 1], logits[:, 2], logits[:, 0]], dim=1))
    assert load_teacher(str(tmp_path), ["c", "a", "b"], make_teacher_processor()).class_order is None
    with pytest.raises(ValueError, match=r"must know the 2 classes of the data \(a, b, \.\.\.\), got 3 classes"):
        load_teacher(str(tmp_path), ["a", "b"], make_teacher_processor())
    with pytest.raises(ValueError, match="must know the 3 classes"):
        load_teacher(str(tmp_path), ["a", "b", "d"], make_teacher_processor())


def test_teacher_with_generic_names_is_taken_as_it_is(tmp_path):
    make_teacher_model(id2label={0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}).save_pretrained(tmp_path)
    make_teacher_processor().save_pretrained(tmp_path)
    assert load_teacher(str(tmp_path), ["a", "b", "c"], make_teacher_processor()).class_order is None


# --- arguments and runs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"distillation_type": "hard"}, "go together, got None and 'hard'"),
        ({"teacher_model_name_or_path": "x"}, "go together, got 'x' and 'none'"),
        ({"distillation_alpha": 1.5}, r"`distillation_alpha` must be in \[0, 1\], got 1.5"),
        ({"distillation_tau": 0.0}, "`distillation_tau` must be above 0, got 0.0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        IceTrainingArguments(str(tmp_path), use_cpu=True, **fields)


def test_cls_classifiers_decay_where_a_teacher_trains_them(tmp_path):
    model = make_model()
    trainer = make_trainer(tmp_path, model)
    assert "classifier.weight" not in trainer.get_decay_parameter_names(model)
    trainer.distillation = object()
    assert "classifier.weight" in trainer.get_decay_parameter_names(model)


@pytest.mark.parametrize("model_type", ["ice_deit", "vit"])
def test_run_with_a_teacher(tmp_path, model_type):
    data = DataArguments(
        dataset_name="scenes", max_train_samples=16, max_eval_samples=8, augmentation="deit", image_size=32
    )
    shape = "hidden_size=32,num_hidden_layers=2,num_attention_heads=2,intermediate_size=32,image_size=32,patch_size=8"
    model = ModelArguments(model_type=model_type, config_overrides=shape)
    options = {"max_steps": 2, "per_device_train_batch_size": 8}
    run_training(model, data, make_args(tmp_path / "teacher", **options))
    before = load_file(tmp_path / "teacher" / "model.safetensors")
    options |= {"teacher_model_name_or_path": str(tmp_path / "teacher"), "distillation_type": "soft"}
    run_training(model, data, make_args(tmp_path / "student", **options, gradient_accumulation_steps=1))
    history = json.loads((tmp_path / "student" / "trainer_state.json").read_text())["log_history"]
    parts = [line["distillation_loss"] for line in history if "distillation_loss" in line]
    assert len(parts) == 2
    # the student has the teacher's first weights: it differs from it by two steps only
    assert all(0 <= part < 1 for part in parts)
    student = load_file(tmp_path / "student" / "model.safetensors")
    assert student.keys() == before.keys()
    assert any(not torch.equal(weight, before[name]) for name, weight in student.items())
