# SPDX-License-Identifier: Apache-2.0
"""The `Trainer` of this project: transformers' own, plus what it would lose of an ICE model.

The loss itself lives in the model's `forward`; nothing here changes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments

from ..data.augmentation.collator import ImageCollator
from ..data.augmentation.repeated_augmentation import RepeatedAugmentationSampler
from ..ice_deit.adversarial_normalization import LOSS_PARTS
from ..ice_deit.configuration_ice_deit import as_pair
from .checkpointed_trainer import CheckpointedTrainer
from .distillation import Distillation
from .evaluation_metrics import KEPT_OUTPUTS, EvaluationMetrics, summarize_outputs
from .hub_trainer import HubTrainer
from .layer_decay import decay_layer_rates
from .streaming_trainer import StreamingTrainer
from .throughput import ThroughputMeter
from .weight_averaging import WeightAveragingTrainer


__all__ = ["EpochCallback", "IceTrainer", "build_trainer"]

_LOGGED = (*LOSS_PARTS, "foreground_ratio", "distillation_loss")
"""Outputs that stand in the log beside the loss: their mean since the line before."""

_TOKENS_AND_POSITIONS = {"cls_token", "distillation_token", "mask_token", "position_embeddings"}
_CLS_CLASSIFIERS = {"classifier", "distillation_classifier"}


class EpochCallback(TrainerCallback):
    """Tell the training images which epoch it is.

    `DataLoader`s of accelerate do so themselves, but not in a run of several processes.

    Args:
        dataset: Has `set_epoch`.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Pass the number of the epoch on; within an epoch that is resumed, `state.epoch` is a fraction."""
        self.dataset.set_epoch(int(state.epoch or 0))


class IceTrainer(WeightAveragingTrainer, CheckpointedTrainer, StreamingTrainer, HubTrainer):
    """Train image classifiers, ICE models above all.

    Differences from its parents: the parts of the ICE loss and the images per second are logged; weight decay leaves
    out what it would only harm; evaluation keeps a summary instead of all outputs; files hold the names of
    `state_dict()`; complete folders are pushed, without pickles; and what `RecipeArguments` ask for.

    Args:
        *args: Passed to the `Trainer`.
        train_collator: Makes the training batches, if not `data_collator`.
        distillation: Adds what a teacher says to the loss of training batches.
        card_writer: Writes the model card into `args.output_dir`; called with the trainer.
        **kwargs: Passed to the `Trainer`.
    """

    def __init__(
        self,
        *args: Any,
        train_collator: Callable | None = None,
        distillation: Distillation | None = None,
        card_writer: Callable[[IceTrainer], None] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.train_collator, self.distillation = train_collator, distillation
        self.card_writer = card_writer
        self._part_sums: dict[str, Tensor] = {}
        self._num_batches = 0
        self._throughput = ThroughputMeter()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Return the loss the model computes, and remember its parts for the log while training."""
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if model.training:
            if self.distillation is not None:
                loss, outputs["distillation_loss"] = self.distillation(loss, outputs, inputs["pixel_values"])
            self._num_batches += 1
            self._throughput.count(len(inputs["pixel_values"]))
            for name in _LOGGED:
                part = outputs.get(name) if isinstance(outputs, dict) else None
                if part is not None:
                    self._part_sums[name] = self._part_sums.get(name, 0) + part.detach().float().mean()
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, and put the mean parts of the loss, over batches and processes, beside the loss."""
        if "loss" in logs and self._part_sums:
            means = torch.stack(list(self._part_sums.values())) / self._num_batches
            means = self.accelerator.reduce(means, reduction="mean")
            logs = {**logs, **dict(zip(self._part_sums, means.tolist(), strict=True))}
            self._part_sums, self._num_batches = {}, 0
        if "loss" in logs:
            # the processes share the images evenly
            rate = self._throughput.read() * self.args.world_size
            logs = {**logs, "images_per_second": round(rate, 1)}
        super().log(logs, start_time)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Do what is due after a step; the clock of the images stands still."""
        with self._throughput.paused():
            super()._maybe_log_save_evaluate(*args, **kwargs)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Return the names of the parameters that weight decay applies to.

        Beyond biases and norms, which `Trainer` leaves out: tokens and position embeddings (as in DeiT), and the [CLS]
        classifiers where `cls_loss_weight` is 0, which get no loss and would be shrunk by decay alone.
        """
        left_out = set(_TOKENS_AND_POSITIONS)
        if getattr(model.config, "cls_loss_weight", None) == 0 and self.distillation is None:
            left_out |= _CLS_CLASSIFIERS
        names = super().get_decay_parameter_names(model)
        return [name for name in names if left_out.isdisjoint(name.split("."))]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create the optimizer; with a `layer_decay`, the lower layers learn slower."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        decay = getattr(self.args, "layer_decay", 1.0)
        if is_new and decay != 1.0:
            decay_layer_rates(optimizer, cast(nn.Module, self.model if model is None else model), decay)
        return optimizer

    def get_train_dataloader(self) -> DataLoader:
        """Return the training batches, made by `train_collator` where there is one."""
        if self.train_collator is None:
            return super().get_train_dataloader()
        evaluation_collator, self.data_collator = self.data_collator, self.train_collator
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = evaluation_collator

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        """Return the order of the training images; with `repeated_augmentation`, one that repeats them."""
        num_repeats = getattr(self.args, "repeated_augmentation", 1)
        if num_repeats == 1:
            return super()._get_train_sampler(train_dataset)
        dataset = self.train_dataset if train_dataset is None else train_dataset
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return RepeatedAugmentationSampler(dataset, num_repeats, seed, self._train_batch_size, self.args.world_size)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate on `eval_dataset`, by default the trainer's own; as `Trainer.evaluate`."""
        if isinstance(self.compute_metrics, EvaluationMetrics):
            datasets: Any = self.eval_dataset
            is_name = isinstance(eval_dataset, str)
            self.compute_metrics.dataset = datasets[eval_dataset] if is_name else eval_dataset or datasets
            if ignore_keys is None:
                ignored = getattr(getattr(self.model, "config", None), "keys_to_ignore_at_inference", [])
                ignore_keys = [key for key in ignored if key not in KEPT_OUTPUTS]
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Save a checkpoint whose keys are those of `state_dict()`."""
        with _state_dict_names_on_disk(self.accelerator.unwrap_model(self.model, keep_torch_compile=False)):
            super()._save(output_dir, state_dict)


@contextmanager
def _state_dict_names_on_disk(model: nn.Module) -> Iterator[None]:
    """Let `model.save_pretrained` write the names of `state_dict()`.

    That of ViT and DeiT writes an older key layout by default. `Trainer` does not convert it when it resumes or loads
    the best checkpoint: the encoder would stay as it is, with a warning only.
    """
    save_pretrained: Any = model.save_pretrained
    model.__dict__["save_pretrained"] = partial(save_pretrained, save_original_format=False)
    try:
        yield
    finally:
        del model.__dict__["save_pretrained"]


def build_trainer(
    model: PreTrainedModel,
    args: TrainingArguments,
    train_dataset: Any = None,
    eval_dataset: Any = None,
    image_processor: Any = None,
    data_collator: Callable | None = None,
    callbacks: list[TrainerCallback] | None = None,
    **kwargs: Any,
) -> IceTrainer:
    """Return the trainer of an image classifier, ICE or not.

    Args:
        model: The classifier.
        args: Arguments of the run.
        train_dataset: Training images, e.g. `LabelledImages`; told the epoch if it has `set_epoch`.
        eval_dataset: Evaluation images. Those of a `LabelledImages` with masks are also scored by their masks.
        image_processor: Saved with every checkpoint; says how pixels are normalised.
        data_collator: Makes a batch of a list of rows; by default `ImageCollator` with the numbers of
            `image_processor`.
        callbacks: Further callbacks.
        **kwargs: Passed to the `IceTrainer`: `train_collator`, `distillation`, `card_writer` and others.

    Raises:
        ValueError: If `args` would make the Trainer take the labels away from the model, or there is neither a
            collator nor an image processor.
    """
    if args.label_smoothing_factor:
        raise ValueError(
            f"`label_smoothing_factor` must be 0, got {args.label_smoothing_factor}: the Trainer would compute a loss "
            "of its own from `logits`, and the ICE loss would be lost silently. Use `--label_smoothing`, or a "
            "`train_collator` that makes `labels` of shape (batch_size, num_labels), which the models take."
        )
    if data_collator is None:
        if image_processor is None:
            raise ValueError("`build_trainer` needs an `image_processor` or a `data_collator`, got neither.")
        data_collator = ImageCollator.from_image_processor(image_processor)
    callbacks = list(callbacks or [])
    if hasattr(train_dataset, "set_epoch"):
        callbacks.append(EpochCallback(train_dataset))
    kwargs.setdefault("compute_metrics", EvaluationMetrics(as_pair(getattr(model.config, "patch_size", 1))))
    kwargs.setdefault("preprocess_logits_for_metrics", summarize_outputs)
    return IceTrainer(
        model=model,
        args=args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=image_processor,
        data_collator=data_collator,
        callbacks=callbacks,
        **kwargs,
    )
