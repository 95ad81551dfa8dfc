# SPDX-License-Identifier: Apache-2.0
"""Arguments of `scripts/run_train.py`: what to train, on which images, and how.

Three data classes for `HfArgumentParser`. The numbers of the method itself live in `IceDeiTConfig`; an argument that
is `None` here keeps what the checkpoint says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from transformers import TrainingArguments

from ..command_line import parse_dataclasses
from ..data.images.arguments import DataArguments
from ..model_names import resolve_model_name
from .recipe_arguments import RecipeArguments


__all__ = ["DataArguments", "IceTrainingArguments", "ModelArguments", "parse_arguments"]


@dataclass
class ModelArguments:
    """Which model to train, and the fields of its configuration to change.

    Args:
        model_name_or_path: Folder or Hub id to start from; it is trained as an ICE model. Excludes `model_type`.
        model_type: Architecture to train from random weights.
        initialization: How random weights are drawn: as the architecture does, or with local attention (few images).
        config_overrides: Configuration fields as `name=value,name=value`.
        image_processor_name: Image processor to use instead of the model's own.
        cache_dir: Where downloads are kept.
        model_revision: Branch, tag or commit of the Hub repository.
        token: Hub token for private repositories.
        trust_remote_code: Whether code of the image processor's repository may run; models need none.
        ignore_mismatched_sizes: Whether a head of another number of classes is replaced by a fresh one.
        objective: Name of a set of the fields below that are not given: "balanced", "published", or "kept", those of
            the checkpoint. By default balanced, and kept where the checkpoint is an ICE model.
        background_loss_weight: See `IceDeiTConfig`, like the fields below.
        background_logit_scale: See `IceDeiTConfig`.
        min_foreground_ratio: See `IceDeiTConfig`, in [0, 1].
        max_foreground_ratio: See `IceDeiTConfig`, in [0, 1].
        cls_loss_weight: See `IceDeiTConfig`.
        classification_loss_weight: See `IceDeiTConfig`.
        foreground_pooling: See `IceDeiTConfig`.
        candidate_label_loss_weight: See `IceDeiTConfig`.
        num_local_windows: See `IceDeiTConfig`.
        local_loss_weight: See `IceDeiTConfig`.
        local_distillation_weight: See `IceDeiTConfig`.
        local_image_share: See `IceDeiTConfig`, in (0, 1].
        local_appearance_weight: See `IceDeiTConfig`.
        local_smoothing_steps: See `IceDeiTConfig`, >= 1.
        logits_source: See `IceDeiTConfig`; ICE training writes "patch" unless told otherwise.
        loss_type: `classification_loss_type` of `IceDeiTConfig`, and the loss of a plain classifier.
        drop_path_rate: See `IceDeiTConfig`, in [0, 1).
        patch_head_hidden_size: See `IceDeiTConfig`, like the fields below.
        pruning_strategy: Which patches leave on the way; pruning heads that the checkpoint lacks are drawn anew.
        pruning_layers: 0-based layers before which they leave.
        keep_rates: One for each pruning layer, in (0, 1].
        background_margin: By how much background must win for a patch to leave.
        fuse_pruned_tokens: Whether leaving patches go on as one token ("attentiveness").
        pruning_head: Kind of the heads that decide.
        pruning_loss_weight: Weight of their loss.
        prune_in_training: Whether patches leave in training too.

    Raises:
        ValueError: If not exactly one of `model_name_or_path` and `model_type` is given, the first names a folder that
            does not exist, or `initialization` is chosen for a checkpoint.
    """

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
            "help": "What ICE is trained by: balanced, published (the paper's), kept (as the checkpoint says); the "
            "options below change parts of it. Default: balanced, and kept for a checkpoint that is ICE already."
        },
    )
    background_loss_weight: float | None = field(
        default=None, metadata={"help": "Weight of the loss that pulls every patch to background; larger masks less."}
    )
    background_logit_scale: float | None = field(
        default=None, metadata={"help": "Factor on the mean patch logits inside the background loss."}
    )
    min_foreground_ratio: float | None = field(
        default=None,
        metadata={"help": "The background loss is off while fewer than this share of the patches is foreground."},
    )
    max_foreground_ratio: float | None = field(
        default=None,
        metadata={"help": "From this share of foreground patches on the background loss gains weight; 1: never."},
    )
    cls_loss_weight: float | None = field(
        default=None, metadata={"help": "Weight of the [CLS] classifier's own cross-entropy; 0 leaves it untrained."}
    )
    classification_loss_weight: float | None = field(
        default=None, metadata={"help": "Weight of the cross-entropy of the foreground patches; 0 trains [CLS] alone."}
    )
    foreground_pooling: Literal["hard", "soft"] | None = field(
        default=None,
        metadata={"help": "What the loss pools: hard (foreground patches), soft (all, by 1 - p(background))."},
    )
    candidate_label_loss_weight: float | None = field(
        default=None,
        metadata={"help": "Weight of the loss that lets a patch be only the image's class or background."},
    )
    num_local_windows: int | None = field(
        default=None,
        metadata={"help": "Also train on windows, so many along each side of the patch grid; 0: do not."},
    )
    local_loss_weight: float | None = field(default=None, metadata={"help": "Weight of what is learnt from them."})
    local_distillation_weight: float | None = field(
        default=None, metadata={"help": "Weight, in it, of saying elsewhere what is said in windows."}
    )
    local_image_share: float | None = field(
        default=None, metadata={"help": "Share of the images that are run in windows, too."}
    )
    local_appearance_weight: float | None = field(
        default=None,
        metadata={"help": "How much less neighbours of other looks count when that is averaged; 0: no less."},
    )
    local_smoothing_steps: int | None = field(
        default=None, metadata={"help": "How often what is said in windows is averaged with the neighbours."}
    )
    logits_source: Literal["patch", "cls"] | None = field(
        default=None, metadata={"help": "Which logits the trained model answers with; ICE training writes patch."}
    )
    loss_type: Literal["cross_entropy", "bce"] | None = field(
        default=None,
        metadata={"help": "How logits are compared with labels: cross_entropy, or bce (each class alone)."},
    )
    drop_path_rate: float | None = field(
        default=None, metadata={"help": "Stochastic depth: the drop rate of the last layer, growing linearly to it."}
    )
    patch_head_hidden_size: int | None = field(
        default=None, metadata={"help": "Makes the patch head an MLP with this many hidden units."}
    )
    pruning_strategy: Literal["background", "top_k", "attentiveness"] | None = field(
        default=None,
        metadata={"help": "Let patches leave: background (ICE), top_k (fixed numbers), attentiveness (EViT)."},
    )
    pruning_layers: list[int] | None = field(
        default=None, metadata={"help": "0-based layers before which patches leave, e.g. 3 6 9."}
    )
    keep_rates: list[float] | None = field(
        default=None, metadata={"help": "Share of the patches that each pruning layer keeps, e.g. 0.7 0.7 0.7."}
    )
    background_margin: float | None = field(
        default=None, metadata={"help": "A patch leaves when background wins by more than this; larger keeps more."}
    )
    fuse_pruned_tokens: bool | None = field(
        default=None, metadata={"help": "Let leaving patches go on as one token (attentiveness only)."}
    )
    pruning_head: Literal["gate", "patch"] | None = field(
        default=None, metadata={"help": "What decides: gate (one logit a patch) or patch (a whole patch head)."}
    )
    pruning_loss_weight: float | None = field(
        default=None, metadata={"help": "Weight of the loss that teaches the pruning heads."}
    )
    prune_in_training: bool | None = field(
        default=None, metadata={"help": "Let patches leave in training too; by default the heads only learn."}
    )

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


@dataclass
class IceTrainingArguments(RecipeArguments, TrainingArguments):
    """`TrainingArguments` with the defaults of this project.

    Transformers start from weight decay, a warm-up and a cosine: their own defaults (none, none, linear) train a ViT
    badly. `remove_unused_columns` is always off, since the images would be removed with it.
    `resume_from_checkpoint="auto"` stands for the last complete checkpoint in `output_dir`. A loss that is NaN or
    infinite is not filtered out of the log, as `Trainer` does by default: training ends there, and no step has to wait
    for the accelerator to look at its loss.
    """

    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate; about 1e-3 from scratch."})
    weight_decay: float = field(
        default=0.05, metadata={"help": "Weight decay; biases, norms, tokens and position embeddings are left out."}
    )
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Shape of the learning rate after warm-up."})
    warmup_steps: float = field(
        default=0.05, metadata={"help": "Steps of linear warm-up, or their share of the run if below 1."}
    )
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Images a device trains on at once."})
    per_device_eval_batch_size: int = field(default=128, metadata={"help": "Images a device evaluates at once."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: no, steps or epoch."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save: no, steps, epoch or best."})
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Checkpoints to keep; older ones are removed, the best one stays."}
    )
    logging_steps: float = field(default=50, metadata={"help": "Steps between two lines of the log."})
    metric_for_best_model: str | None = field(
        default="top_1", metadata={"help": "Evaluation number that picks the best checkpoint: top_1, mean_iou, ..."}
    )
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "Checkpoint folder to go on from; auto: the last complete one in output_dir."}
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Leave NaN and infinite losses out of the log; training would not end there."}
    )
    num_panel_images: int = field(
        default=8, metadata={"help": "Images drawn after every evaluation, in output_dir/panels; 0: none."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Always off here: images would be removed."})

    def __post_init__(self) -> None:
        """Fix what may not vary, then check and complete the values."""
        self.check_recipe()
        self.remove_unused_columns = False
        # pinned memory is of use to an accelerator only, and warns without one
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.cuda.is_available()
        super().__post_init__()


def parse_arguments(
    argv: Sequence[str], description: str | None = None
) -> tuple[ModelArguments, DataArguments, IceTrainingArguments]:
    """Parse a command line, or one YAML or JSON file followed by options that override it.

    Args:
        argv: The words after the script's name; see `parse_dataclasses`, which says how mistakes end the program.
        description: Text above the list of options in `--help`.

    Returns:
        The three groups of arguments.
    """
    groups = parse_dataclasses((ModelArguments, DataArguments, IceTrainingArguments), argv, description)
    return cast(tuple[ModelArguments, DataArguments, IceTrainingArguments], groups)
