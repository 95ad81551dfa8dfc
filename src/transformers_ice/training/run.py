# SPDX-License-Identifier: Apache-2.0
"""One training run, from its arguments to a complete folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, cast

from transformers import TrainerCallback, TrainerState, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging

from ..console.output_files import replaced, write_text
from ..data.augmentation.arguments import build_augmentation, build_train_collator
from ..data.images.loading import ImageTables, build_data_sets, load_images
from ..data.images.pixels import input_size
from ..ice_deit.configuration_ice_deit import as_pair
from ..ice_deit.modeling_ice_deit import IceDeiTForImageClassification
from .arguments import DataArguments, IceTrainingArguments, ModelArguments, check_training_arguments
from .cached_features import check_cached_features
from .checkpoints import choose_checkpoint, locked_folder
from .classifier_losses import build_distillation, use_soft_label_loss
from .models import build_config, build_image_processor, build_model, check_windows, choose_attention
from .parameter_groups import check_frozen_layers
from .progress import StepCountCallback, describe_gap, describe_kept
from .run_settings import SettingsCallback, check_settings, describe_run
from .stopping import StopCallback, StopRequest, writing_to
from .trainer import IceTrainer, build_trainer


__all__ = ["check_launch", "prepare_training", "run_training"]

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
        callbacks: Callbacks of the `Trainer`, for every step, evaluation and checkpoint.
        card_writer: Writes the model card into `output_dir`, when all numbers are there.

    Returns:
        The numbers of training (`train_*`) and of the final evaluation (`eval_*`) by name.

    Raises:
        ValueError: If arguments, images, classes or checkpoints do not fit together; before any training.
        TrainingStoppedError: If training ended early: by SIGTERM or Ctrl-C, by a loss or a weight that became
            NaN or infinite, or by a file that could not be written.
    """
    check_launch(training_args)
    check_training_arguments(training_args)
    with locked_folder(str(training_args.output_dir), training_args.process_index == 0):
        checkpoint = choose_checkpoint(training_args)
        trainer = prepare_training(model_args, data_args, training_args, callbacks)
        trainer.card_writer = card_writer
        settings = describe_run(trainer.model, training_args, data_args, trainer.train_dataset)
        if checkpoint is not None:
            check_settings(Path(checkpoint), settings)
        trainer.add_callback(SettingsCallback(settings, checkpoint))
        return _train_and_save(trainer, training_args, checkpoint)


def _train_and_save(
    trainer: IceTrainer, training_args: IceTrainingArguments, checkpoint: str | None
) -> dict[str, float]:
    """Train, evaluate, save, write the card and upload; return the numbers."""
    with StopRequest().listening() as request:
        trainer.add_callback(StopCallback(request))
        # read first: the run may remove this checkpoint
        resumed = {} if checkpoint is None else {"train_resumed_at_step": _read_step(checkpoint)}
        metrics = trainer.train(resume_from_checkpoint=checkpoint).metrics | resumed
    best = describe_kept(trainer)
    if best is not None:
        logger.warning(f"{best}.")
    with writing_to(training_args.output_dir):
        trainer.check_weights()  # the update after the last finite loss may have broken them
        trainer.save_model(_internal_call=True)  # without a push: the card has no numbers yet
        _save_numbers(trainer, train=metrics)
        evaluation = trainer.evaluate()  # of the final weights, which may be those of the best checkpoint
        if _set_object_thresholds(trainer):
            trainer.save_model(_internal_call=True)
        _save_numbers(trainer, eval=evaluation, all={**metrics, **evaluation})
        if trainer.card_writer is not None:
            trainer.create_model_card()
    gap = describe_gap(evaluation)
    if gap is not None:
        logger.warning(f"{gap}.")
    if training_args.push_to_hub:
        try:
            trainer.push_to_hub()
        except ConnectionError as error:  # the run itself is complete
            folder, repo_id = training_args.output_dir, trainer.hub_model_id
            logger.warning(f"{error} To upload it: `python scripts/publish_checkpoint.py {folder} {repo_id}`.")
    return {**metrics, **evaluation}


def _set_object_thresholds(trainer: IceTrainer) -> bool:
    """Write the thresholds of the last evaluation into the configuration; return whether there were any.

    They are those of a multi-label run: the score from which each class counts as found.
    """
    thresholds = getattr(trainer.compute_metrics, "thresholds", None)
    if thresholds is None:
        return False
    cast(Any, trainer.model).config.object_thresholds = thresholds.tolist()
    return True


def _read_step(checkpoint: str) -> int:
    """Return the step that a checkpoint was saved after."""
    return TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME)).global_step


def _save_numbers(trainer: IceTrainer, **numbers: Mapping[str, float]) -> None:
    """Write the log and numbers, as `save_state` and `save_metrics` of `Trainer` do, each file whole or not at all."""
    if not trainer.is_world_process_zero():
        return
    folder = Path(str(trainer.args.output_dir))
    with replaced(folder / TRAINER_STATE_NAME) as temporary:
        trainer.state.save_to_json(str(temporary))
    for name, values in numbers.items():
        write_text(folder / f"{name}_results.json", json.dumps(values, indent=4, sort_keys=True) + "\n")


def check_launch(training_args: IceTrainingArguments) -> None:
    """Refuse several devices in one process, which `Trainer` would train with `torch.nn.DataParallel`."""
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
    if data_args.streaming and training_args.repeated_augmentation != 1:
        raise ValueError(
            f"`--repeated_augmentation {training_args.repeated_augmentation}` excludes `--streaming true`: "
            "the repeats of an image go to different processes. Remove one of the two options."
        )
    if training_args.freeze_layers is not None and model_args.model_type is not None:
        raise ValueError(
            f"`--freeze_layers {training_args.freeze_layers}` would freeze random weights with `--model_type "
            f"{model_args.model_type}`. Give a checkpoint, `--model_name_or_path`, or remove the option."
        )
    config = build_config(model_args, data_args.image_size)
    check_frozen_layers(training_args.freeze_layers, config)
    check_cached_features(training_args, config, data_args)
    image_processor = build_image_processor(model_args, config, data_args.image_size)
    size = input_size(image_processor)
    if as_pair(config.image_size) != size:  # model, processor, card and export agree on the size that is trained
        config.image_size = size[0] if size[0] == size[1] else list(size)
    check_windows(config, size)
    # the first process of each machine draws, downloads and checks; the others read its cache
    with training_args.main_process_first(desc="loading images"):
        tables = load_images(data_args, size, training_args.seed, model_args.cache_dir, model_args.token)
    training_args = _follow_labels(tables, model_args, training_args)
    # the same seed gives the same weights, whatever the data before have drawn
    set_seed(training_args.seed)
    model = build_model(model_args, config, tables.class_names, tables.is_multi_label)
    choose_attention(model, training_args.device, training_args.bf16)
    augmentation = build_augmentation(data_args, size, image_processor.image_mean)
    data_sets = build_data_sets(tables, data_args, image_processor, augmentation, training_args.seed)
    train_collator = build_train_collator(data_args, image_processor, len(tables.class_names))
    hub_options = {"cache_dir": model_args.cache_dir, "token": model_args.token}
    distillation = build_distillation(model, training_args, tables.class_names, image_processor, **hub_options)
    makes_soft_labels = train_collator is not None and train_collator.makes_soft_labels
    needs_soft_labels = distillation is not None or makes_soft_labels or model_args.loss_type is not None
    if (needs_soft_labels or tables.is_multi_label) and not isinstance(model, IceDeiTForImageClassification):
        use_soft_label_loss(model, "bce" if tables.is_multi_label else model_args.loss_type or "cross_entropy")
    return build_trainer(
        model,
        training_args,
        *data_sets,
        image_processor,
        train_collator=train_collator,
        distillation=distillation,
        callbacks=[StepCountCallback(), *callbacks],
    )


def _follow_labels(
    tables: ImageTables, model_args: ModelArguments, training_args: IceTrainingArguments
) -> IceTrainingArguments:
    """Return the arguments of a run on images of several classes, whose best model has the highest `map`."""
    if not tables.is_multi_label:
        return training_args
    if model_args.loss_type not in (None, "bce"):
        raise ValueError(
            f"`--loss_type {model_args.loss_type}` takes one class an image, and the data have several, or none: each "
            "class is learnt by binary cross-entropy. Remove the option."
        )
    training_args = copy(training_args)
    if training_args.metric_for_best_model == "top_1":
        training_args.metric_for_best_model = "map"  # there is no top-1 of several classes
    return training_args
