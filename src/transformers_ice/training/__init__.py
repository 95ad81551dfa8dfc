# SPDX-License-Identifier: Apache-2.0
"""Training: arguments, images, augmentation, collator, trainer, and one whole run."""

from .arguments import DataArguments, IceTrainingArguments, ModelArguments, parse_arguments
from .augmentation import TrainingAugmentation
from .collator import ImageCollator
from .image_sets import ImageTables, LabelledImages, load_image_tables
from .initialization import initialize_mimetically
from .models import build_config, build_image_processor, build_model
from .run import prepare_training, run_training
from .stopping import TrainingStoppedError, resume_command
from .trainer import IceTrainer, build_trainer


__all__ = [
    "DataArguments",
    "IceTrainer",
    "IceTrainingArguments",
    "ImageCollator",
    "ImageTables",
    "LabelledImages",
    "ModelArguments",
    "TrainingAugmentation",
    "TrainingStoppedError",
    "build_config",
    "build_image_processor",
    "build_model",
    "build_trainer",
    "initialize_mimetically",
    "load_image_tables",
    "parse_arguments",
    "prepare_training",
    "resume_command",
    "run_training",
]
