# SPDX-License-Identifier: Apache-2.0
"""One training run, from its arguments to a complete folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, TrainerCallback, set_seed
from transformers.utils import logging

from ..data.augmentation.arguments import build_augmentation, build_train_collator
from ..data.augmentation.image_augmentation import TrainingAugmentation
from ..data.images.image_streams import load_images
from ..data.images.pixels import input_size
from ..data.images.streamed_images import StreamedImages
from ..data.images.streams import ShardedRows
from ..data.images.tables import ImageTables, LabelledImages
from ..ice_deit.modeling_ice_deit import IceDeiTForImageClassification
from .arguments import DataArguments, IceTrainingArguments, ModelArguments
from .checkpoints import (
    COMPLETION_MARKER,
    is_complete,
    last_complete_checkpoint,
    list_checkpoints,
    missing_files,
)
from .distillation import Distillation, load_teacher
from .models import build_config, build_image_processor, build_model, check_windows
from .plain_losses import use_soft_label_loss
from .step_count import StepCountCallback
from .stopping import StopRequest, writing_to
from .trainer import IceTrainer, build_trainer


__all__ = [
    "build_augmentation",
    "build_train_collator",
    "build_train_images",
    "check_launch",
    "choose_checkpoint",
    "prepare_training",
    "run_training",
]

logger = logging.get_logger(__name__)


def run_training(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: IceTrainingArguments,
    callbacks: Sequence[TrainerCallback] = (),
    card_writer: Callable[[IceTrainer], None] | None = None,
) -> dict[str, float]:
    """Train, evaluate and save; with `push_to_hub` also upload, once all is saved.

    `training_args.output_dir` then holds the model (with its code, the image processor and the pipeline, if it is an
    ICE model), the arguments of the run, the log (`trainer_state.json`) and the numbers (`all_results.json`).

    Args:
        model_args: Which model.
        data_args: Which images.
        training_args: How to train.
        callbacks: Told of every step, evaluation and checkpoint.
        card_writer: Writes the model card into `output_dir`, when all numbers are there.

    Returns:
        The numbers of training (`train_*`) and of the final evaluation (`eval_*`) by name.

    Raises:
        ValueError: If arguments, images, classes or checkpoints do not fit together; before any training.
        TrainingStoppedError: If training ended early: asked to by SIGTERM or Ctrl-C, by a loss or a weight that became
            NaN or infinite, or by a file that could not be written.
    """
    check_launch(training_args)
    checkpoint = choose_checkpoint(training_args)
    trainer = prepare_training(model_args, data_args, training_args, callbacks)
    trainer.card_writer = card_writer
    with StopRequest().listening() as trainer.stop_request:
        result = trainer.train(resume_from_checkpoint=checkpoint)
    with writing_to(training_args.output_dir):
        with trainer.push_deferred():
            trainer.save_model()
        trainer.save_state()
        trainer.save_metrics("train", result.metrics)
        evaluation = trainer.evaluate()
        trainer.save_metrics("eval", evaluation)
        if card_writer is not None:
            trainer.create_model_card()
    if training_args.push_to_hub:
        trainer.push_to_hub()
    return {**result.metrics, **evaluation}


def check_launch(training_args: IceTrainingArguments) -> None:
    """Refuse several devices in one process, which `Trainer` would train with `torch.nn.DataParallel`.

    Raises:
        ValueError: With the command to use instead.
    """
    if training_args.n_gpu > 1:
        raise ValueError(
            f"One process would train on {training_args.n_gpu} devices with `nn.DataParallel`, which torch itself "
            "advises against. Start a process for each, with the same arguments: "
            f"`torchrun --nproc_per_node {training_args.n_gpu} scripts/run_train.py ...`, or let it see one device: "
            "`CUDA_VISIBLE_DEVICES=0`."
        )


def prepare_training(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: IceTrainingArguments,
    callbacks: Sequence[TrainerCallback] = (),
) -> IceTrainer:
    """Return the trainer of a run, with model and images: what `run_training` does before it trains."""
    config = build_config(model_args, data_args.image_size)
    image_processor = build_image_processor(model_args, config, data_args.image_size)
    size = input_size(image_processor)
    check_windows(config, size)
    # the first process of each machine draws, downloads and checks; the others read its cache
    with training_args.main_process_first(desc="loading images"):
        tables = load_images(data_args, size, training_args.seed, model_args.cache_dir, model_args.token)
    # also with other data before it, the same seed gives the same weights
    set_seed(training_args.seed)
    model = build_model(model_args, config, tables.class_names)
    columns = (data_args.image_column_name, data_args.label_column_name, data_args.mask_column_name)
    augmentation = build_augmentation(data_args, size, image_processor.image_mean)
    train_collator = build_train_collator(data_args, image_processor, len(tables.class_names))
    distillation = _build_distillation(model, model_args, training_args, tables.class_names, image_processor)
    if not isinstance(model, IceDeiTForImageClassification):
        needs_own_loss = distillation is not None or (train_collator is not None and train_collator.makes_soft_labels)
        if needs_own_loss or model_args.loss_type is not None:
            use_soft_label_loss(model, model_args.loss_type or "cross_entropy")
    return build_trainer(
        model,
        training_args,
        build_train_images(tables, data_args, training_args, image_processor, augmentation),
        LabelledImages(tables.evaluation, image_processor, None, *columns),
        image_processor,
        train_collator=train_collator,
        distillation=distillation,
        callbacks=[StepCountCallback(), *callbacks],
    )


def build_train_images(
    tables: ImageTables,
    data_args: DataArguments,
    training_args: IceTrainingArguments,
    image_processor: Any,
    augmentation: TrainingAugmentation | None,
) -> LabelledImages | StreamedImages:
    """Return the training images as the trainer takes them: of a table, or of a stream.

    Raises:
        ValueError: If images of a stream are to be repeated.
    """
    columns = (data_args.image_column_name, data_args.label_column_name)
    if not isinstance(tables.train, ShardedRows):
        seed, mask_column = training_args.seed, data_args.mask_column_name
        return LabelledImages(tables.train, image_processor, augmentation, *columns, mask_column, seed)
    if training_args.repeated_augmentation != 1:
        raise ValueError(
            f"`--repeated_augmentation {training_args.repeated_augmentation}` cannot be had with `--streaming true`: "
            "its repeats of an image go to different processes. Leave one of them out."
        )
    return StreamedImages(
        tables.train,
        tables.class_names,
        image_processor,
        augmentation,
        *columns,
        seed=training_args.seed,
        shuffle_buffer_size=data_args.shuffle_buffer_size,
        names_are_given=data_args.class_names_file is not None,
    )


def _build_distillation(
    model: PreTrainedModel,
    model_args: ModelArguments,
    training_args: IceTrainingArguments,
    class_names: Sequence[str],
    image_processor: Any,
) -> Distillation | None:
    """Return what mixes a teacher's answers into the loss, where there is a teacher."""
    if training_args.teacher_model_name_or_path is None or training_args.distillation_type == "none":
        return None
    teacher = load_teacher(
        training_args.teacher_model_name_or_path,
        class_names,
        image_processor,
        cache_dir=model_args.cache_dir,
        token=model_args.token,
    )
    alpha, tau = training_args.distillation_alpha, training_args.distillation_tau
    return Distillation(teacher, model, training_args.distillation_type, alpha, tau)


def choose_checkpoint(training_args: IceTrainingArguments) -> str | None:
    """Return the checkpoint to resume from, or None for a fresh start.

    Args:
        training_args: With `resume_from_checkpoint` a folder, "auto" (the last complete checkpoint of `output_dir`, if
            there is one) or None. A folder that was saved without a completion marker must be named.

    Raises:
        ValueError: If the folder is no checkpoint or lacks files, or a fresh start would mix with checkpoints of
            another run.
    """
    wanted, output_dir = training_args.resume_from_checkpoint, training_args.output_dir
    if wanted not in (None, "auto"):
        _check_checkpoint(Path(wanted))
        return wanted
    if wanted is None:
        _check_fresh_start(output_dir)
        return None
    incomplete = [folder for folder in list_checkpoints(output_dir) if not is_complete(folder)]
    if incomplete:
        names = ", ".join(folder.name for folder in incomplete)
        logger.warning(
            f"Not resuming from {names} in {output_dir}: incomplete, as after a run that was killed while it saved. "
            "If an earlier version of this package saved it, pass its path to `--resume_from_checkpoint`."
        )
    checkpoint = last_complete_checkpoint(output_dir)
    if checkpoint is None:
        return None
    logger.warning(f"Resuming from {checkpoint}.")
    return str(checkpoint)


def _check_checkpoint(folder: Path) -> None:
    """Raise unless a folder that was named is a checkpoint with all that its marker lists, if it has one."""
    if not (folder / "trainer_state.json").is_file():
        raise ValueError(f"`resume_from_checkpoint` must be a checkpoint folder or auto, got {str(folder)!r}.")
    missing = missing_files(folder)
    if missing == [COMPLETION_MARKER]:
        logger.warning(f"{folder} has no completion marker: nobody knows whether it is complete.")
    elif missing:
        raise ValueError(
            f"The checkpoint {folder} is damaged: {', '.join(missing)} missing, or of another size than when it was "
            "saved. Pass `--resume_from_checkpoint auto` to go on from the last complete one."
        )


def _check_fresh_start(output_dir: str | None) -> None:
    """Raise if `output_dir` holds checkpoints that a fresh run would replace."""
    earlier = [folder for folder in list_checkpoints(output_dir) if (folder / "trainer_state.json").is_file()]
    if earlier:
        raise ValueError(
            f"{output_dir} holds checkpoints of an earlier run, the last one is {earlier[-1].name}. "
            "Pass `--resume_from_checkpoint auto` to go on from it, or another `--output_dir`."
        )
