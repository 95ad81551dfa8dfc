# SPDX-License-Identifier: Apache-2.0
"""Arguments of `scripts/run_train.py`: what to train, on which images, and how.

Three data classes for `HfArgumentParser`. The numbers of the method itself live in `IceDeiTConfig`, and its fields are
options by themselves; an argument that is `None` here keeps the checkpoint's value.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, cast, get_args, get_origin

import torch
from transformers import TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.utils import logging

from ..console.command_line import check_number, parse_dataclasses
from ..data.images.arguments import DataArguments
from ..hardware import has_fast_bfloat16
from ..ice_deit.configuration_ice_deit import ICE_FIELDS
from ..model_names import resolve_model_name


__all__ = [
    "ICE_OPTIONS",
    "NOT_OPTIONS",
    "DataArguments",
    "IceTrainingArguments",
    "ModelArguments",
    "StartArguments",
    "check_training_arguments",
    "parse_arguments",
]

logger = logging.get_logger(__name__)

# what names the model, and what names the images: an option replaces the other kind in a recipe
_ALTERNATIVES = (
    (("model_name_or_path",), ("model_type", "initialization")),
    (
        ("dataset_name", "dataset_config_name", "data_dir"),
        ("train_dir", "validation_dir"),
        ("train_files", "validation_files", "class_names_file", "streaming"),
    ),
)


@dataclass
class StartArguments:
    """Model to train, its initial weights, and its objective; the help of a field describes it."""

    help_group = "model"  # of its options in `--help`

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Folder or Hub id of a ViT, DeiT or ICE checkpoint; it is trained as an ICE model."},
    )
    model_type: str | None = field(
        default=None,
        metadata={"help": "Architecture to train from random weights, e.g. vit or ice_deit."},
    )
    initialization: Literal["default", "mimetic"] = field(
        default="default",
        metadata={"help": "Random weights: the architecture's own, or mimetic (local attention, for few images)."},
    )
    config_overrides: str | None = field(
        default=None,
        metadata={"help": "Configuration fields to change: hidden_size=128,num_hidden_layers=6 (values as in JSON)."},
    )
    image_processor_name: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of an image processor, if not the model's own."}
    )
    cache_dir: str | None = field(default=None, metadata={"help": "Folder that keeps models and data from the Hub."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the model repository."})
    token: str | None = field(
        default=None, repr=False, metadata={"help": "Hub token; by default the one of `hf auth login`."}
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Let code of the image processor's repository run on this machine."}
    )
    ignore_mismatched_sizes: bool = field(
        default=False,
        metadata={"help": "Replace heads whose number of classes differs from the data by fresh ones."},
    )
    objective: Literal["balanced", "published", "kept"] | None = field(
        default=None,
        metadata={
            "help": "Objective of ICE: balanced, published (the paper's), kept (that of the checkpoint); the "
            "options below change parts of it. Default: balanced, or kept if the checkpoint is an ICE model."
        },
    )


NOT_OPTIONS = {
    "object_thresholds": "they are chosen at the end of a multi-label run",
    "use_distillation_token": "it belongs to the weights of a checkpoint",
    "use_distillation_head": "it belongs to the weights of a checkpoint",
    "interpolate_antialias": "it belongs to the weights of a checkpoint",
    "num_register_tokens": "it belongs to the weights of a checkpoint",
    "pruning_execution": "it changes the speed of a trained model, not its training",
}
"""Fields of the configuration that only `--config_overrides` reaches, with the reason."""

_OPTION_NAMES = {"classification_loss_type": "loss_type"}  # a plain classifier has this option, too


def _option_type(field_type: Any) -> Any:
    """Return the one type of an option, whose field may be `float | int`, or `None` too."""
    types = set(get_args(field_type) if isinstance(field_type, UnionType) else (field_type,)) - {NoneType}
    only = float if float in types else types.pop()
    return list[_option_type(*get_args(only))] if get_origin(only) is list else only  # type: ignore[misc]


def _declare_option(name: str) -> tuple[str, Any, Any]:
    """Return the option of a field of the configuration, as `make_dataclass` takes it."""
    option, choices = _OPTION_NAMES.get(name, name), ICE_FIELDS[name].metadata["choices"]
    kind = _option_type(ICE_FIELDS[name].type) if choices is None else cast(Any, Literal)[tuple(choices)]
    metadata = {"help": ICE_FIELDS[name].metadata["help"], "aliases": [] if option == name else [f"--{name}"]}
    return option, kind | None, field(default=None, metadata=metadata)


ICE_OPTIONS = {_OPTION_NAMES.get(name, name): name for name in ICE_FIELDS if name not in NOT_OPTIONS}
"""Field of `IceDeiTConfig` by the option that sets it."""


def _option_group(title: str, pattern: str) -> Any:
    """Return a data class of the options whose fields match a pattern: a group of `--help`."""
    names = [name for name in ICE_OPTIONS.values() if re.fullmatch(pattern, name)]
    group: Any = make_dataclass(f"_{title.capitalize()}Options", [_declare_option(name) for name in names])
    group.__module__, group.help_group = __name__, title  # for `--help`: these options are this package's own
    return group


_PRUNING, _WINDOWS = r"prun\w+|keep_rates|background_margin|fuse_pruned_tokens", r"\w*local_\w+"
_IceOptions: Any = _option_group("ice", rf"(?!{_PRUNING}|{_WINDOWS}).+")
_WindowOptions: Any = _option_group("windows", _WINDOWS)
_PruningOptions: Any = _option_group("pruning", _PRUNING)


@dataclass
class ModelArguments(_PruningOptions, _WindowOptions, _IceOptions, StartArguments):
    """Model to train, and the fields of its configuration to change.

    Args:
        **ice_fields: `ICE_OPTIONS`, the fields of `IceDeiTConfig`: `None` keeps what the checkpoint or the objective
            holds. Their types, choices and help come from there.

    Raises:
        ValueError: If not exactly one of `model_name_or_path` and `model_type` is given, the first names a folder that
            does not exist, or `initialization` is chosen for a checkpoint.
    """

    def __post_init__(self) -> None:
        """Check the values against each other."""
        if (self.model_name_or_path is None) == (self.model_type is None):
            raise ValueError(
                "Give exactly one of `--model_name_or_path` (a checkpoint to start from) and `--model_type` "
                f"(random weights), got {self.model_name_or_path!r} and {self.model_type!r}."
            )
        if self.model_name_or_path is not None:
            self.model_name_or_path = resolve_model_name(self.model_name_or_path)
        if self.initialization != "default" and self.model_type is None:
            raise ValueError(
                f"`--initialization {self.initialization}` draws random weights and needs `--model_type`, got the "
                f"checkpoint {self.model_name_or_path!r}."
            )

    @property
    def hub_options(self) -> dict[str, Any]:
        """Options of `from_pretrained` for the files of the checkpoint."""
        return {"cache_dir": self.cache_dir, "revision": self.model_revision, "token": self.token}


@dataclass(kw_only=True)
class RecipeArguments:
    """Options of the training recipe beyond `TrainingArguments`; the help of a field describes it."""

    ema_decay: float | None = field(
        default=None,
        metadata={"help": "Average the weights with this decay, and evaluate and save the average (DeiT: 0.99996)."},
    )
    freeze_layers: int | None = field(
        default=None,
        metadata={"help": "Keep the embeddings and this many layers as they are; all layers: only the heads train."},
    )
    cache_features: bool = field(
        default=False,
        metadata={
            "help": "Run frozen layers once for each distinct image and keep the outputs; with --augmentation none or "
            "flip."
        },
    )
    cache_features_gb: float = field(
        default=4.0, metadata={"help": "Host memory that each process keeps outputs of frozen layers in, in GiB."}
    )
    layer_decay: float = field(
        default=1.0, metadata={"help": "Factor on the learning rate from a layer to the one below (BEiT: 0.65)."}
    )
    repeated_augmentation: int = field(
        default=1, metadata={"help": "Show each image of an epoch this often, and as many fewer images (DeiT: 3)."}
    )
    teacher_model_name_or_path: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of the teacher, a classifier of the same classes."}
    )
    distillation_type: Literal["none", "soft", "hard"] = field(
        default="none", metadata={"help": "Learn the teacher's distribution (soft) or its best class (hard)."}
    )
    distillation_alpha: float = field(default=0.5, metadata={"help": "Weight of the teacher in the loss."})
    distillation_tau: float = field(default=1.0, metadata={"help": "Temperature of soft distillation."})

    def check_recipe(self) -> None:
        """Check every argument by itself and against the others."""
        if self.ema_decay is not None:
            check_number("ema_decay", self.ema_decay, "in (0, 1)", 0 < self.ema_decay < 1)
        if self.freeze_layers is not None:
            check_number("freeze_layers", self.freeze_layers, "at least 0", self.freeze_layers >= 0)
        if self.cache_features and not self.freeze_layers:
            raise ValueError(
                "`--cache_features true` keeps the outputs of frozen layers, got `--freeze_layers "
                f"{self.freeze_layers}`. Freeze at least 1 layer, or remove `--cache_features`."
            )
        is_size = 0 < self.cache_features_gb < float("inf")
        check_number("cache_features_gb", self.cache_features_gb, "above 0 and finite", is_size)
        check_number("layer_decay", self.layer_decay, "in (0, 1]", 0 < self.layer_decay <= 1)
        check_number(
            "repeated_augmentation", self.repeated_augmentation, "at least 1", self.repeated_augmentation >= 1
        )
        check_number("distillation_alpha", self.distillation_alpha, "in [0, 1]", 0 <= self.distillation_alpha <= 1)
        check_number("distillation_tau", self.distillation_tau, "above 0", 0 < self.distillation_tau < float("inf"))
        if (self.teacher_model_name_or_path is None) != (self.distillation_type == "none"):
            raise ValueError(
                "`--teacher_model_name_or_path` and `--distillation_type soft` (or hard) go together, got "
                f"{self.teacher_model_name_or_path!r} and {self.distillation_type!r}."
            )
        if self.teacher_model_name_or_path is not None:
            resolve_model_name(self.teacher_model_name_or_path)  # raises before any work if there is no such folder


@dataclass
class IceTrainingArguments(RecipeArguments, TrainingArguments):
    """`TrainingArguments` with the defaults of this project.

    Transformers start from weight decay, a warm-up and a cosine: their own defaults (none, none, linear) train a ViT
    badly. `remove_unused_columns` is always off, since the images would be removed with it.
    `resume_from_checkpoint="auto"` means the last complete checkpoint in `output_dir`. A loss that is NaN or
    infinite is not filtered out of the log, as `Trainer` does by default: training ends there, and no step has to wait
    for the accelerator to look at its loss.
    """

    help_group = "run"  # of its options in `--help`

    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate; about 1e-3 from scratch."})
    weight_decay: float = field(
        default=0.05, metadata={"help": "Weight decay; biases, norms, tokens and position embeddings are excluded."}
    )
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Shape of the learning rate after warm-up."})
    warmup_steps: float = field(
        default=0.05, metadata={"help": "Steps of linear warm-up, or a fraction of the run if below 1."}
    )
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Images a device trains on at once."})
    per_device_eval_batch_size: int = field(default=128, metadata={"help": "Images a device evaluates at once."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: no, steps or epoch."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save: no, steps, epoch or best."})
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Checkpoints to keep; older ones are removed, except the best one."}
    )
    logging_steps: float = field(default=50, metadata={"help": "Steps between two lines of the log."})
    metric_for_best_model: str | None = field(
        default="top_1",
        metadata={
            "help": "Evaluation number that picks the best checkpoint: top_1, mean_iou, ...; with several classes an "
            "image map stands for top_1."
        },
    )
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "Checkpoint folder to resume from; auto: the last complete one in output_dir."}
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Do not log NaN and infinite losses; training would then not stop at them."}
    )
    logging_first_step: bool = field(default=True, metadata={"help": "Also log the first step."})
    cpu_precision: Literal["as_given", "auto"] = field(
        default="as_given",
        metadata={
            "help": "auto: where it trains on a CPU that multiplies bfloat16 in hardware, as with --bf16 --use_cpu; "
            "as_given: as --bf16 and --fp16 say."
        },
    )
    num_panel_images: int = field(
        default=8, metadata={"help": "Images drawn after every evaluation, in output_dir/panels; 0: none."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Always off here: images would be removed."})

    def __post_init__(self) -> None:
        """Set what may not vary, then check and complete the values."""
        self.check_recipe()
        self._check_numbers()
        if self.output_dir is not None and Path(self.output_dir).exists() and not Path(self.output_dir).is_dir():
            raise ValueError(f"`output_dir` must be a folder or a new name, got the file {self.output_dir}.")
        self.remove_unused_columns = False
        # pinned memory is of use to an accelerator only, and warns without one
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.cuda.is_available()
        self._choose_cpu_precision()
        super().__post_init__()
        _check_trackers(cast(Sequence[str], self.report_to))

    def _choose_cpu_precision(self) -> None:
        """Under `cpu_precision="auto"` train in bfloat16 on a CPU that is fast at it, and say so."""
        trains_on_cpu = self.use_cpu or not torch.accelerator.is_available()
        if self.cpu_precision != "auto" or self.bf16 or self.fp16 or not trains_on_cpu:
            return
        self.bf16 = has_fast_bfloat16()
        if self.bf16:
            self.use_cpu = True  # or `TrainingArguments` refuses bfloat16 where there is no GPU
            logger.warning("Training in bfloat16 (autocast), which this CPU has: `--cpu_precision auto`.")

    def _check_numbers(self) -> None:
        """Refuse numbers out of their range, which `Trainer` takes as something else or fails at much later."""
        for name in _AT_LEAST_1:
            check_number(name, getattr(self, name), "at least 1", getattr(self, name) >= 1)
        for name in _AT_LEAST_0:
            value = getattr(self, name)
            check_number(name, value, "at least 0 and finite", 0 <= value < float("inf"))
        for name in _ABOVE_0:
            value = getattr(self, name)
            check_number(name, value, "above 0 and finite", 0 < value < float("inf"))
        for name in _IN_0_1:
            check_number(name, getattr(self, name), "in [0, 1)", 0 <= getattr(self, name) < 1)
        check_number(
            "max_steps", self.max_steps, "at least 1, or -1 for none", self.max_steps == -1 or self.max_steps >= 1
        )
        if self.eval_steps is not None:
            check_number("eval_steps", self.eval_steps, "above 0", self.eval_steps > 0)
        if self.save_total_limit is not None:
            check_number("save_total_limit", self.save_total_limit, "at least 0", self.save_total_limit >= 0)


_AT_LEAST_1 = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
_AT_LEAST_0 = (
    *("learning_rate", "weight_decay", "max_grad_norm", "warmup_steps", "dataloader_num_workers"),
    *("num_panel_images", "seed"),
)
_ABOVE_0 = ("num_train_epochs", "adam_epsilon", "logging_steps", "save_steps")
_IN_0_1 = ("adam_beta1", "adam_beta2")


def _check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that are unknown or not installed, before anything is loaded."""
    known, installed = sorted(INTEGRATION_TO_CALLBACK), get_available_reporting_integrations()
    for name in names:
        if name not in known:
            raise ValueError(f"`report_to` must be none, all, or some of {', '.join(known)}, got {name!r}.")
        if name not in installed and name != "flyte":  # transformers does not look for this one
            raise ValueError(
                f"`--report_to {name}` needs a package that is not installed. Install {name}, by "
                "`pip install transformers-ice[tracking]` for tensorboard, or remove the option."
            )


def check_training_arguments(args: TrainingArguments) -> None:
    """Refuse arguments of `Trainer` that would not have their documented effect."""
    if args.label_smoothing_factor:
        raise ValueError(
            f"`label_smoothing_factor` must be 0, got {args.label_smoothing_factor}: the Trainer would compute a loss "
            "of its own from `logits`, and the ICE loss would be lost silently. Use `--label_smoothing`, or a "
            "`train_collator` that makes `labels` of shape (batch_size, num_labels), which the models take."
        )
    if args.enable_jit_checkpoint:
        raise ValueError(
            "`enable_jit_checkpoint` must be False, got True: training here already saves a checkpoint and ends on "
            "SIGTERM and on Ctrl-C, in all processes at the same step, and the checkpoint counts once its "
            "files are on the disk. The signal handler of transformers would never be called. Remove the option; "
            "docs/training/resume.md lists what is guaranteed."
        )


def parse_arguments(
    argv: Sequence[str], description: str | None = None
) -> tuple[ModelArguments, DataArguments, IceTrainingArguments]:
    """Parse a command line, or one YAML or JSON file followed by options that override it; see `parse_dataclasses`."""
    groups = parse_dataclasses(
        (ModelArguments, DataArguments, IceTrainingArguments), argv, description, alternatives=_ALTERNATIVES
    )
    return cast(tuple[ModelArguments, DataArguments, IceTrainingArguments], groups)
