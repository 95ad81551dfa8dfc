# SPDX-License-Identifier: Apache-2.0
"""One training run, from its arguments to a complete folder."""

from __future__ import annotations

from pathlib import Path

from transformers import set_seed
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from .arguments import DataArguments, IceTrainingArguments, ModelArguments
from .augmentation import TrainingAugmentation
from .image_sets import LabelledImages, load_image_tables
from .models import build_config, build_image_processor, build_model, input_size
from .trainer import IceTrainer, build_trainer


__all__ = ["choose_checkpoint", "prepare_training", "run_training"]

logger = logging.get_logger(__name__)


def run_training(
    model_args: ModelArguments, data_args: DataArguments, training_args: IceTrainingArguments
) -> dict[str, float]:
    """Train, evaluate and save.

    `training_args.output_dir` then holds the model (with its code, the image processor and the pipeline, if it is an
    ICE model), the arguments of the run, the log (`trainer_state.json`) and the numbers (`all_results.json`).

    Args:
        model_args: Which model.
        data_args: Which images.
        training_args: How to train.

    Returns:
        The numbers of training (`train_*`) and of the final evaluation (`eval_*`) by name.

    Raises:
        ValueError: If arguments, images, classes or checkpoints do not fit together; before any training.
    """
    checkpoint = choose_checkpoint(training_args)
    trainer = prepare_training(model_args, data_args, training_args)
    result = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.save_state()
    trainer.save_metrics("train", result.metrics)
    evaluation = trainer.evaluate()
    trainer.save_metrics("eval", evaluation)
    return {**result.metrics, **evaluation}


def prepare_training(
    model_args: ModelArguments, data_args: DataArguments, training_args: IceTrainingArguments
) -> IceTrainer:
    """Return the trainer of a run, with model and images: what `run_training` does before it trains."""
    config = build_config(model_args, data_args.image_size)
    image_processor = build_image_processor(model_args, config, data_args.image_size)
    size = input_size(image_processor)
    # the first process of each machine draws, downloads and checks; the others read its cache
    with training_args.main_process_first(desc="loading images"):
        tables = load_image_tables(data_args, size, training_args.seed, model_args.cache_dir, model_args.token)
    # also with other data before it, the same seed gives the same weights
    set_seed(training_args.seed)
    model = build_model(model_args, config, tables.class_names)
    columns = (data_args.image_column_name, data_args.label_column_name, data_args.mask_column_name)
    augmentation = _build_augmentation(data_args, size)
    return build_trainer(
        model,
        training_args,
        LabelledImages(tables.train, image_processor, augmentation, *columns, seed=training_args.seed),
        LabelledImages(tables.evaluation, image_processor, None, *columns),
        image_processor,
    )


def _build_augmentation(data_args: DataArguments, size: tuple[int, int]) -> TrainingAugmentation | None:
    """Return what varies the training images; later recipes are chosen here."""
    if data_args.augmentation == "none":
        return None
    smallest, largest = data_args.random_resized_crop_scale
    narrowest, widest = data_args.random_resized_crop_ratio
    return TrainingAugmentation(
        size, crop=data_args.augmentation == "crop_flip", scale=(smallest, largest), ratio=(narrowest, widest)
    )


def choose_checkpoint(training_args: IceTrainingArguments) -> str | None:
    """Return the checkpoint to resume from, or None for a fresh start.

    Args:
        training_args: With `resume_from_checkpoint` a folder, "auto" (the last complete checkpoint of `output_dir`, if
            there is one) or None.

    Raises:
        ValueError: If the folder is no checkpoint, or a fresh start would mix with checkpoints of another run.
    """
    wanted = training_args.resume_from_checkpoint
    if wanted not in (None, "auto"):
        if not (Path(wanted) / "trainer_state.json").is_file():
            raise ValueError(f"`resume_from_checkpoint` must be a checkpoint folder or auto, got {wanted!r}.")
        return wanted
    checkpoints = _complete_checkpoints(training_args.output_dir)
    if checkpoints and wanted is None:
        raise ValueError(
            f"{training_args.output_dir} holds checkpoints of an earlier run, the last one is {checkpoints[-1].name}. "
            "Pass `--resume_from_checkpoint auto` to go on from it, or another `--output_dir`."
        )
    if not checkpoints:
        return None
    logger.warning(f"Resuming from {checkpoints[-1]}.")
    return str(checkpoints[-1])


def _complete_checkpoints(output_dir: str | None) -> list[Path]:
    """Return the checkpoints of a run, oldest first, without one that was interrupted while it was written."""
    folders = Path(output_dir or ".").glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    complete = [folder for folder in folders if (folder / "trainer_state.json").is_file()]
    return sorted(complete, key=lambda folder: int(folder.name.rsplit("-", 1)[1]))
