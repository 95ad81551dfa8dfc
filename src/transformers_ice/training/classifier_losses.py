# SPDX-License-Identifier: Apache-2.0
"""Losses besides the ICE objective: soft labels for plain classifiers, and distillation from a teacher.

A distilled student also learns what a trained classifier predicts for the same pixels.

Source: Touvron et al., "Training data-efficient image transformers & distillation through attention" (DeiT, 2021),
equations 2 and 3, and DeiT's `losses.py` for how the parts are averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel

from ..data.images.pixels import input_size
from ..ice_deit.adversarial_normalization import CLASSIFICATION_LOSSES, soft_targets
from ..model_names import resolve_model_name
from .arguments import RecipeArguments
from .starting_weights import match_classes, read_class_names


__all__ = ["Distillation", "Teacher", "build_distillation", "distillation_loss", "load_teacher", "use_soft_label_loss"]

DistillationType = Literal["soft", "hard"]

_MULTI_LABEL = "multi_label_classification"


def use_soft_label_loss(model: PreTrainedModel, loss_type: str = "cross_entropy") -> None:
    """Let a plain classifier take `labels` of shape (batch_size, num_labels), too; changes it in place, not its files.

    The loss of transformers would flatten them, or change the problem type of the configuration. This one is the mean
    of a batch, so the Trainer has to divide it by the accumulated batches: hence `accepts_loss_kwargs = False`.
    """
    model.loss_function = partial(_soft_label_loss, loss_type=loss_type)
    model.accepts_loss_kwargs = False  # type: ignore[assignment]


def _soft_label_loss(labels: Tensor, logits: Tensor, config: Any, loss_type: str, **kwargs: Any) -> Tensor:
    """Return the loss of a batch, 0-dim, from class indices or soft labels."""
    return CLASSIFICATION_LOSSES[loss_type](logits, soft_targets(labels.to(logits.device), config.num_labels))


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    distillation_type: DistillationType,
    tau: float = 1.0,
    is_multi_label: bool = False,
) -> Tensor:
    """Compute the distillation loss from the teacher's logits (target) to the student's logits.

    Args:
        student_logits: `(batch_size, num_labels)`.
        teacher_logits: `(batch_size, num_labels)`, without gradient.
        distillation_type: "soft" compares the two distributions, "hard" takes the teacher's best class as label.
        tau: Temperature of both distributions ("soft"), > 0.
        is_multi_label: Whether an image has any number of classes, so that each is a question of its own.

    Returns:
        0-dim. Soft: the Kullback-Leibler divergence times tau², averaged over images and classes, as in DeiT's code
        (its equation has no mean over the classes). Hard: the mean cross-entropy. With several classes an image the
        mean binary cross-entropy over images and classes: soft with the teacher's sigmoid(logits / tau), times tau²,
        hard with 1 where its sigmoid is at least 0.5, else 0.
    """
    # in float32: under autocast the logits are in half precision
    student_logits, teacher_logits = student_logits.float(), teacher_logits.float()
    if is_multi_label and distillation_type == "hard":
        return F.binary_cross_entropy_with_logits(student_logits, (teacher_logits >= 0).float())  # sigmoid >= 0.5
    if is_multi_label:
        targets = (teacher_logits / tau).sigmoid()
        return F.binary_cross_entropy_with_logits(student_logits / tau, targets) * tau**2
    if distillation_type == "hard":
        return F.cross_entropy(student_logits, teacher_logits.argmax(dim=-1))
    student, teacher = (F.log_softmax(logits / tau, dim=-1) for logits in (student_logits, teacher_logits))
    # tau² keeps the size of the gradients (Hinton et al., 2015)
    return F.kl_div(student, teacher, reduction="sum", log_target=True) * tau**2 / student_logits.numel()


class Teacher:
    """Trained classifier that predicts from the pixels of a student.

    Args:
        model: The classifier; put into evaluation mode, never trained.
        image_processor: Image processor of the teacher, for its input size and normalisation.
        student_processor: Image processor of the student.
        class_order: For each class of the student, the teacher's index; `None` where they agree.
    """

    def __init__(
        self, model: nn.Module, image_processor: Any, student_processor: Any, class_order: Sequence[int] | None = None
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.size = input_size(image_processor)
        self.class_order = None if class_order is None else torch.tensor(class_order)
        (student_mean, student_std), (mean, std) = map(_statistics, (student_processor, image_processor))
        # from one normalisation to the other: (x * student_std + student_mean - mean) / std
        self.scale, self.shift = student_std / std, (student_mean - mean) / std

    @torch.no_grad()
    def __call__(self, pixel_values: Tensor) -> Tensor:
        """Return the teacher's logits.

        Args:
            pixel_values: `(batch_size, 3, height, width)`, normalised for the student; resized (bicubic, antialiased)
                and normalised again for the teacher where the two differ. Crops are not undone.

        Returns:
            `(batch_size, num_labels)`, in the student's order of the classes.
        """
        self.model.to(pixel_values.device)
        # (batch_size, 3, height, width), on the device and in the type of the images
        pixels = pixel_values * self.scale.to(pixel_values) + self.shift.to(pixel_values)
        if tuple(pixels.shape[2:]) != self.size:
            pixels = F.interpolate(pixels, self.size, mode="bicubic", antialias=True)
        logits = self.model(pixel_values=pixels).logits
        return logits if self.class_order is None else logits[:, self.class_order.to(logits.device)]


def _statistics(image_processor: Any) -> tuple[Tensor, Tensor]:
    """Return mean and deviation that pixels are normalised with, each `(1, 3, 1, 1)`."""
    normalizes = image_processor.do_normalize
    mean, std = (image_processor.image_mean, image_processor.image_std) if normalizes else ((0.0,) * 3, (1.0,) * 3)
    # (3,) -> (1, 3, 1, 1), to broadcast over images and pixels
    return torch.tensor(mean).view(1, -1, 1, 1), torch.tensor(std).view(1, -1, 1, 1)


def load_teacher(
    name_or_path: str,
    class_names: Sequence[str],
    student_processor: Any,
    is_multi_label: bool = False,
    **hub_options: Any,
) -> Teacher:
    """Load a teacher for the classes of the data.

    Args:
        name_or_path: Folder or Hub id of any image classifier of transformers, with its image processor.
        class_names: Names of the student's classes, in the order of the labels.
        student_processor: Image processor of the student.
        is_multi_label: Whether an image has several classes, or none.
        **hub_options: Options of `from_pretrained`.

    Raises:
        ValueError: If there is no such folder, or the teacher was trained on other classes, or on another number of
            them an image.
    """
    name_or_path = resolve_model_name(name_or_path)
    model = AutoModelForImageClassification.from_pretrained(name_or_path, dtype=torch.float32, **hub_options)
    image_processor = AutoImageProcessor.from_pretrained(name_or_path, **hub_options)
    names = read_class_names(model.config)
    order = match_classes(names, class_names)
    if order is None:
        raise ValueError(
            f"The teacher {name_or_path} must know the {len(class_names)} classes of the data "
            f"({', '.join(class_names[:3])}, ...), got {len(names)} classes ({', '.join(names[:3])}, ...). Train it "
            "on these data first, e.g. with scripts/run_train.py."
        )
    if (model.config.problem_type == _MULTI_LABEL) != is_multi_label:
        raise ValueError(
            f"The teacher {name_or_path} must be trained on {'several classes' if is_multi_label else 'one class'} an "
            f"image, as the data have, got `problem_type` {model.config.problem_type!r} in its configuration. Train "
            "it on these data first, e.g. with scripts/run_train.py."
        )
    return Teacher(model, image_processor, student_processor, None if order == sorted(order) else order)


class Distillation:
    """Mix of a student's loss and the distillation loss: `(1 - alpha) * loss + alpha * distillation_loss`.

    The teacher is compared with the distillation head where the student has one (an ICE model with
    `use_distillation_head`), as in DeiT; else with the [CLS] classifier: `cls_logits` of an ICE model, which are then
    trained even where `cls_loss_weight` is 0, or `logits` of a plain one.

    Args:
        teacher: The teacher.
        student: The model that is trained.
        distillation_type: See `distillation_loss`.
        alpha: Weight of the teacher, in [0, 1] (DeiT: 0.5).
        tau: See `distillation_loss` (DeiT: 1).
        is_multi_label: See `distillation_loss`.
    """

    def __init__(
        self,
        teacher: Teacher,
        student: nn.Module,
        distillation_type: DistillationType = "hard",
        alpha: float = 0.5,
        tau: float = 1.0,
        is_multi_label: bool = False,
    ) -> None:
        self.teacher, self.distillation_type, self.alpha, self.tau = teacher, distillation_type, alpha, tau
        self.is_multi_label = is_multi_label
        self._head_logits: Tensor | None = None
        head = getattr(student, "distillation_classifier", None)
        if head is not None:
            # the output of the model holds the mean of both classifiers only
            head.register_forward_hook(self._keep_head_logits)

    def _keep_head_logits(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._head_logits = output if module.training else None

    def __call__(self, loss: Tensor, outputs: Any, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Mix the loss of a training batch.

        Args:
            loss: The student's own loss, 0-dim.
            outputs: The student's outputs.
            pixel_values: Input of the student, `(batch_size, 3, height, width)`.

        Returns:
            The mixed loss and the teacher's part, each 0-dim.

        Raises:
            ValueError: If one process trains on several GPUs.
        """
        student_logits, self._head_logits = self._head_logits, None
        if student_logits is None:
            student_logits = outputs["cls_logits"] if "cls_logits" in outputs else outputs["logits"]
        if len(student_logits) != len(pixel_values):
            raise ValueError(
                f"The distillation head returned logits for {len(student_logits)} of {len(pixel_values)} images: one "
                "process drives several GPUs. Start one for each, with torchrun."
            )
        teacher_logits = self.teacher(pixel_values)
        part = distillation_loss(student_logits, teacher_logits, self.distillation_type, self.tau, self.is_multi_label)
        return (1 - self.alpha) * loss + self.alpha * part, part


def build_distillation(
    student: PreTrainedModel, args: RecipeArguments, class_names: Sequence[str], student_processor: Any, **options: Any
) -> Distillation | None:
    """Return the distillation from a teacher, if the arguments name one; `options` are those of `from_pretrained`."""
    if args.teacher_model_name_or_path is None or args.distillation_type == "none":
        return None
    is_multi_label = student.config.problem_type == _MULTI_LABEL
    teacher = load_teacher(args.teacher_model_name_or_path, class_names, student_processor, is_multi_label, **options)
    alpha, tau = args.distillation_alpha, args.distillation_tau
    return Distillation(teacher, student, args.distillation_type, alpha, tau, is_multi_label)
