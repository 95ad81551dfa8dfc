# SPDX-License-Identifier: Apache-2.0
"""Training: arguments, images, augmentation, collator, trainer, and one whole run."""

from ..data.augmentation.batch_augmentation import AugmentingCollator, BatchMixing, RandomErasing
from ..data.augmentation.collator import ImageCollator
from ..data.augmentation.image_augmentation import TrainingAugmentation
from ..data.augmentation.rand_augment import RandAugment, parse_rand_augment
from ..data.augmentation.repeated_augmentation import RepeatedAugmentationSampler
from ..data.images.check import DataReport, check_data
from ..data.images.loading import ImageTables, load_image_tables
from ..data.images.streamed_images import StreamedImages
from ..data.images.tables import LabelledImages
from .arguments import DataArguments, IceTrainingArguments, ModelArguments, parse_arguments
from .classifier_losses import Distillation, Teacher, distillation_loss, load_teacher
from .initialization import initialize_mimetically
from .models import build_config, build_image_processor, build_model
from .parameter_groups import decay_layer_rates
from .run import prepare_training, run_training
from .stopping import TrainingStoppedError, resume_command
from .trainer import IceTrainer, build_trainer
from .weight_averaging import WeightAverage


__all__ = [
    "AugmentingCollator",
    "BatchMixing",
    "DataArguments",
    "DataReport",
    "Distillation",
    "IceTrainer",
    "IceTrainingArguments",
    "ImageCollator",
    "ImageTables",
    "LabelledImages",
    "ModelArguments",
    "RandAugment",
    "RandomErasing",
    "RepeatedAugmentationSampler",
    "StreamedImages",
    "Teacher",
    "TrainingAugmentation",
    "TrainingStoppedError",
    "WeightAverage",
    "build_config",
    "build_image_processor",
    "build_model",
    "build_trainer",
    "check_data",
    "decay_layer_rates",
    "distillation_loss",
    "initialize_mimetically",
    "load_image_tables",
    "load_teacher",
    "parse_arguments",
    "parse_rand_augment",
    "prepare_training",
    "resume_command",
    "run_training",
]
