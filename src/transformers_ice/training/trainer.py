# SPDX-License-Identifier: Apache-2.0
"""The `Trainer` of this project: transformers' own, with the outputs, files and losses of ICE models.

The loss itself lives in the model's `forward`; nothing here changes it.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_callback import ProgressCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput, get_last_checkpoint

from ..console.output_files import make_folder, staged
from ..console.redaction import tokens_hidden
from ..data.augmentation.collator import ImageCollator
from ..data.augmentation.repeated_augmentation import RepeatedAugmentationSampler
from ..data.images.streamed_images import StreamedImages
from ..hub.upload import hub_errors
from ..ice_deit.configuration_ice_deit import as_pair
from ..ice_deit.objective_ice_deit import LOSS_PARTS
from .arguments import check_training_arguments
from .cached_features import build_feature_cache
from .checkpoints import CompletionCallback
from .classifier_losses import Distillation
from .evaluation_metrics import KEPT_OUTPUTS, EvaluationMetrics, summarize_outputs
from .image_loaders import EpochCallback, ResumedStreamCallback, load_stream, shield_workers, unwrap_loader
from .panels import PanelCallback
from .parameter_groups import decay_layer_rates, decaying_parameters, freeze_layers
from .progress import LossParts, SingleBarCallback, ThroughputMeter, no_bars
from .pushing import push_checkpoint, upload_published
from .stopping import FiniteLossCallback, StopCallback, check_weights, lost_process, writing_to
from .weight_averaging import WeightAveragingCallback, bare_model


__all__ = ["IceTrainer", "build_trainer"]

_LOGGED = (*LOSS_PARTS, "foreground_ratio", "distillation_loss")
"""Outputs that are logged besides the loss: their mean since the last log line."""

_LAST_CALLBACKS = (FiniteLossCallback, CompletionCallback, ThroughputMeter, StopCallback)
"""Last callbacks, in this order: values and files of all others belong to a checkpoint and to its time."""


class IceTrainer(Trainer):
    """Trainer of image classifiers, ICE models above all.

    Differences from `Trainer`:

    - Log and evaluation: the parts of the ICE loss and the images per second are logged; evaluation keeps a summary
      instead of all outputs.
    - Recipe: no weight decay for tokens and position embeddings; frozen layers and a cache of their outputs, layer
      decay, repeated augmentation, weight averaging, a collator for training, and distillation.
    - Images: of a stream each process reads its own rows, and a resumed run does not read skipped rows.
    - Checkpoints: they get a marker once the files of all processes and callbacks are on the disk, and only then are
      older ones removed, never the last; training ends where the loss or a weight is not finite, or a file cannot be
      written. A `StopCallback` ends it with a checkpoint after a stop signal.
    - Files: weights have the names of `state_dict()`; complete folders are pushed, without pickles.

    Four private methods of `Trainer` are overridden, each for the reason in its comment;
    tests/test_trainer_overrides.py fails when transformers moves one of them.

    Args:
        model: The classifier.
        args: Arguments of the run.
        *others: Passed to the `Trainer`.
        train_collator: Makes the training batches, if not `data_collator`.
        distillation: Adds the loss against a teacher to that of training batches.
        card_writer: Writes `README.md` into `args.output_dir`, called with the trainer; with None `Trainer` writes it.
        **kwargs: Passed to the `Trainer`.

    Attributes:
        args: A copy of the arguments given. Its `save_total_limit` is None, or `Trainer` would remove checkpoints
            before the new one is complete.
        save_total_limit: Complete checkpoints to keep; also in the arguments that are saved.

    Raises:
        ValueError: See `check_training_arguments`.
    """

    hub_model_id: Any  # the type of `Trainer` is that of its first value, None
    push_in_progress: Any

    def __init__(
        self,
        model: Any = None,
        args: TrainingArguments | None = None,
        *others: Any,
        train_collator: Callable | None = None,
        distillation: Distillation | None = None,
        card_writer: Callable[[IceTrainer], None] | None = None,
        **kwargs: Any,
    ) -> None:
        args = copy(args or TrainingArguments("tmp_trainer"))
        check_training_arguments(args)
        self.save_total_limit, args.save_total_limit = args.save_total_limit, None
        super().__init__(model, args, *others, **kwargs)
        self._frozen = freeze_layers(cast(nn.Module, self.model), getattr(args, "freeze_layers", None))
        self.train_collator, self.distillation, self.card_writer = train_collator, distillation, card_writer
        self._loss_parts = LossParts(_LOGGED)
        self._throughput = ThroughputMeter()
        is_sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled  # no process has all weights
        self._features = build_feature_cache(self.model, args, is_sharded)
        self._averaging = WeightAveragingCallback(getattr(args, "ema_decay", None), is_sharded)
        self._completion = CompletionCallback(self.save_total_limit)
        # first, so that the other callbacks find weights and average of the same step
        self.callback_handler.callbacks.insert(0, self._averaging)
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(SingleBarCallback())
        for callback in (FiniteLossCallback(), self._completion, self._throughput):
            self.add_callback(callback)
        if hasattr(self.train_dataset, "set_epoch"):
            self.add_callback(EpochCallback(self.train_dataset))
        if isinstance(self.train_dataset, StreamedImages):
            self.add_callback(ResumedStreamCallback(self.train_dataset))

    def add_callback(self, callback: type[TrainerCallback] | TrainerCallback) -> None:
        """Add a callback, before those that have to be the last."""
        super().add_callback(callback)
        # all but the last ones keep the order in which they were added
        places = {kind: place for place, kind in enumerate(_LAST_CALLBACKS)}
        self.callback_handler.callbacks.sort(key=lambda callback: places.get(type(callback), -1))
        for panels in self.callback_handler.callbacks:
            if isinstance(panels, PanelCallback):
                panels.trackers = self.callback_handler.callbacks

    # --- training --------------------------------------------------------------------------------------------------

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train, as `Trainer.train`.

        Raises:
            TrainingStoppedError: If training ends early.
        """
        if resume_from_checkpoint is True:
            # also where there is none, which `Trainer` refuses
            resume_from_checkpoint = get_last_checkpoint(self.args.output_dir) or True
        self._averaging.average, self._averaging.checkpoint = None, cast(Any, resume_from_checkpoint or None)
        self._features.clear()  # a checkpoint may hold other weights
        with writing_to(self.args.output_dir):
            try:
                return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
            except (RuntimeError, OSError) as error:
                stopped = lost_process(error, self._save_last_step, self.args.output_dir)
                if stopped is None:
                    raise
                raise stopped from error

    def _save_last_step(self) -> None:
        """Save the last whole step; alone, since other processes are in the middle of a step and would not answer."""
        if self.args.world_size == 1 and self.state.global_step > 0:
            self._save_checkpoint(self.model_wrapped, None)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Return the loss of the model; while training, also record its parts for the log."""
        for module in self._frozen if model.training else ():
            module.eval()  # `Trainer` has just put the whole model into training mode
        if model.training:
            self._throughput.count(len(inputs["pixel_values"]))  # before the forward pass: the first starts the clock
        with self._features.reused():
            loss, outputs = super().compute_loss(
                model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
            )
        if model.training:
            if self.distillation is not None:
                loss, outputs["distillation_loss"] = self.distillation(loss, outputs, inputs["pixel_values"])
            self._loss_parts.add(outputs)
        return (loss, outputs) if return_outputs else loss

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Return the names of the parameters that weight decay applies to; see `decaying_parameters`."""
        cls_is_trained = getattr(model.config, "cls_loss_weight", None) != 0 or self.distillation is not None
        return decaying_parameters(super().get_decay_parameter_names(model), cls_is_trained)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create the optimizer; a `layer_decay` lowers the learning rate of the lower layers."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        decay = getattr(self.args, "layer_decay", 1.0)
        if is_new and decay != 1.0:  # not twice: `Trainer` may call this again
            decay_layer_rates(optimizer, cast(nn.Module, self.model if model is None else model), decay)
        return optimizer

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the loss, the means of its parts over batches and processes, and the images per second."""
        if "loss" in logs:
            rate = self._throughput.read() * self.args.world_size  # the processes share the images evenly
            logs = {**logs, **self._loss_parts.read(), "images_per_second": round(rate, 1)}
        super().log(logs, start_time)

    # --- images ----------------------------------------------------------------------------------------------------

    # Overridden: `Trainer` has one collator for training and evaluation, no sampler that repeats images, no loader
    # that lets each process read its own part of a stream, and no option for how workers start.
    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Callable | None = None,
        is_training: bool = False,
        dataloader_key: str | None = None,
    ) -> DataLoader:
        """Return the `DataLoader` of a data set, whose workers survive a stop signal."""
        collate = self.train_collator if is_training else None
        if isinstance(dataset, StreamedImages):
            device = self.accelerator.device
            loader = load_stream(dataset, collate or self.data_collator, batch_size, self.args, device)
        else:
            if is_training and getattr(self.args, "repeated_augmentation", 1) != 1:
                sampler_fn = self._repeat_images
            loader = super()._get_dataloader(dataset, description, batch_size, sampler_fn, is_training, dataloader_key)
            if collate is not None:
                unwrap_loader(loader).collate_fn = self._get_collator_with_removed_columns(collate, description)
        shield_workers(loader)
        return loader

    def _repeat_images(self, dataset: Any) -> RepeatedAugmentationSampler:
        """Return the order of the training images in which each comes several times."""
        args: Any = self.args
        seed, repeats = args.seed if args.data_seed is None else args.data_seed, args.repeated_augmentation
        return RepeatedAugmentationSampler(dataset, repeats, seed, self._train_batch_size, args.world_size)

    def num_examples(self, dataloader: DataLoader) -> int:
        """Return the number of images, those of all processes together."""
        dataset: Any = dataloader.dataset
        return dataset.num_rows if isinstance(dataset, StreamedImages) else super().num_examples(dataloader)

    # --- evaluation ------------------------------------------------------------------------------------------------

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
        if self.is_in_train:
            self.check_weights()  # metrics and panels of NaN weights would mean nothing
        with self._throughput.paused():  # images per second are those of training
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate or predict, with the average of the weights during training."""
        with self._averaging.in_place_of(cast(nn.Module, self.model)):
            return super().evaluation_loop(*args, **kwargs)

    # --- checkpoints and files -------------------------------------------------------------------------------------

    # Overridden: `Trainer` calls no callback and no public method before the first file of a checkpoint is written.
    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint that does not count before `CompletionCallback` marks it."""
        self._throughput.begin_pause()
        self.check_weights()
        folder = Path(self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        if self._completion.begin(folder, self.args):
            super()._save_checkpoint(model, trial)

    # Overridden: `Trainer` lets ViT and DeiT write an older key layout, which it does not convert back when it resumes
    # or loads the best checkpoint (the encoder would not be loaded), and it knows one set of weights only.
    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Write a model folder: weights by their names in `state_dict()`, image processor, arguments of the run."""
        if not self.args.should_save:
            return
        folder = make_folder(output_dir or self.args.output_dir or ".")  # here: other processes write into it too
        state_dict = self._averaging.averaged_weights() or state_dict
        with staged(folder) as staging, no_bars():
            bare_model(self.model).save_pretrained(staging, state_dict=state_dict, save_original_format=False)
            self._averaging.save_raw_weights(cast(nn.Module, self.model), staging)
            if self.processing_class is not None:
                cast(Any, self.processing_class).save_pretrained(staging)
            args = copy(self.args)  # as they were given, but without tokens
            args.save_total_limit = self.save_total_limit
            with tokens_hidden(args):
                torch.save(args, staging / TRAINING_ARGS_NAME)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, as `Trainer.save_model`, if all its weights are finite."""
        if not _internal_call:
            self.check_weights()
        super().save_model(output_dir, _internal_call)

    def check_weights(self) -> None:
        """End training if a weight is NaN or infinite, in any process."""
        check_weights(cast(nn.Module, self.model), self.state.global_step, self.args)

    # --- the Hub ---------------------------------------------------------------------------------------------------

    # Overridden: `Trainer` pushes pickles, and neither the code of the model nor its card.
    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push the model files of a checkpoint, in the background."""
        push_checkpoint(self, Path(checkpoint_folder))

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:  # `private` came after transformers 5.20
        """Make the repository; as `Trainer.init_hf_repo`, with a `ConnectionError` where the Hub does not answer."""
        with hub_errors(str(self.args.hub_model_id or self.args.output_dir), "Nothing was trained yet."):
            super().init_hf_repo(*args, **kwargs)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Save, write the card and upload; as `Trainer.push_to_hub`."""
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, **({} if private is None else {"private": private}))
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        kwargs.setdefault("model_name", str(self.hub_model_id).split("/")[-1])
        self.create_model_card(**kwargs)
        self._finish_current_push()
        with hub_errors(str(self.hub_model_id), f"{self.args.output_dir} holds everything."):
            return upload_published(self, commit_message, token, revision, run_as_future=not blocking)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the card, by `card_writer` where there is one."""
        if self.card_writer is None:
            super().create_model_card(*args, **kwargs)
        elif self.is_world_process_zero():
            self.card_writer(self)


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
        train_dataset: Training images, e.g. `LabelledImages`; its `set_epoch` is called, if there is one.
        eval_dataset: Evaluation images. Those of a `LabelledImages` with masks are also scored by their masks.
        image_processor: Normalisation and size of the pixels; saved with every checkpoint.
        data_collator: Makes a batch of a list of rows; by default `ImageCollator` with the processor's numbers.
        callbacks: Further callbacks.
        **kwargs: Passed to the `IceTrainer`: `train_collator`, `distillation`, `card_writer` and others.

    Raises:
        ValueError: If `args` are refused, or there is neither a collator nor an image processor.
    """
    check_training_arguments(args)
    if data_collator is None:
        if image_processor is None:
            raise ValueError("`build_trainer` needs an `image_processor` or a `data_collator`, got neither.")
        data_collator = ImageCollator.from_image_processor(image_processor)
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
