# SPDX-License-Identifier: Apache-2.0
"""Exponential moving average of the weights: what is evaluated and saved, while the weights themselves train on.

Sources: Polyak and Juditsky (1992) for the idea; decay 0.99996 in DeiT, whose average is updated after every step and
starts from the first weights, as timm's `ModelEma`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import Trainer, TrainerCallback
from transformers.utils import logging

from ..output_files import replaced


__all__ = ["RAW_WEIGHTS_FILE", "WeightAverage", "WeightAveragingTrainer"]

RAW_WEIGHTS_FILE = "raw_weights.safetensors"
"""File of a checkpoint with the weights that train on; `model.safetensors` beside it holds their average."""

logger = logging.get_logger(__name__)


class WeightAverage:
    """Keep a moving average of the parameters and buffers of a model.

    `average = decay * average + (1 - decay) * weight` after every step, for floating-point tensors; others are copied.

    Args:
        model: Whose present weights the average starts from.
        decay: In (0, 1). With 0.99996 the average reaches back some 25,000 steps: in a much shorter run it stays near
            the first weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        self._average = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the present weights of the model into the average."""
        weights = model.state_dict()
        averaged = [name for name, tensor in weights.items() if tensor.is_floating_point()]
        self._average([self.tensors[name] for name in averaged], [weights[name] for name in averaged], 0)
        for name in weights.keys() - averaged:
            self.tensors[name].copy_(weights[name])

    def copy_to(self, model: nn.Module) -> None:
        """Make the average the weights of the model."""
        _copy_weights(self.tensors, model)

    @contextmanager
    def in_place_of(self, model: nn.Module) -> Iterator[None]:
        """Let the model have the average as its weights for a while; then its own, exactly."""
        own = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        self.copy_to(model)
        try:
            yield
        finally:
            _copy_weights(own, model)


@torch.no_grad()
def _copy_weights(tensors: dict[str, Tensor], model: nn.Module) -> None:
    """Copy tensors into the model by name, in place: whoever holds its parameters keeps them."""
    for name, tensor in model.state_dict().items():
        tensor.copy_(tensors[name])


class WeightAveragingTrainer(Trainer):
    """A `Trainer` that averages the weights where its arguments have an `ema_decay`.

    During training, evaluation and `model.safetensors` are those of the average, and `RAW_WEIGHTS_FILE` beside it
    holds the weights that train on, so that a resumed run has both exactly. When training ends, the average (or the
    best checkpoint, which holds one) is the model. Every process keeps its own average of the same weights.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.weight_average: WeightAverage | None = None
        self.ema_decay: float | None = getattr(self.args, "ema_decay", None)
        if self.ema_decay is None:
            return
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                f"`ema_decay` needs whole weights in every process, got {self.ema_decay} with FSDP or DeepSpeed. "
                "Leave it out, or train with DDP."
            )
        self.add_callback(_WeightAveragingCallback(self))

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate or predict, with the average during training."""
        if self.weight_average is None:
            return super().evaluation_loop(*args, **kwargs)
        with self.weight_average.in_place_of(self._bare_model):
            return super().evaluation_loop(*args, **kwargs)

    @property
    def _bare_model(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Save the average as the model, and the weights that train on beside it."""
        if self.weight_average is not None:
            # a copy: `save_pretrained` empties the dictionary as it writes
            state_dict = dict(self.weight_average.tensors)
        super()._save(output_dir, state_dict)
        if self.weight_average is not None and self.args.should_save:
            weights = {name: tensor.detach().cpu().clone() for name, tensor in self._bare_model.state_dict().items()}
            with replaced(Path(output_dir or self.args.output_dir or ".") / RAW_WEIGHTS_FILE) as temporary:
                save_file(weights, temporary)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load a checkpoint: the average, where there is one, and the weights that train on."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        raw_weights = Path(resume_from_checkpoint) / RAW_WEIGHTS_FILE
        if self.ema_decay is not None:
            self.weight_average = WeightAverage(self._bare_model, self.ema_decay)
            if not raw_weights.is_file():
                logger.warning(f"{resume_from_checkpoint} holds no averaged weights: the average starts from it.")
        elif raw_weights.is_file():
            logger.warning(
                f"Resuming without `ema_decay`: the average that {resume_from_checkpoint} holds is dropped."
            )
        if raw_weights.is_file():
            _copy_weights(load_file(raw_weights), self._bare_model)

    def _load_best_model(self) -> None:
        """Load the best checkpoint; nothing is averaged any more."""
        super()._load_best_model()
        self.weight_average = None


class _WeightAveragingCallback(TrainerCallback):
    """Start, update and end the average of a trainer."""

    def __init__(self, trainer: WeightAveragingTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start from the present weights, unless a checkpoint has been loaded."""
        if self.trainer.weight_average is None and self.trainer.ema_decay is not None:
            self.trainer.weight_average = WeightAverage(self.trainer._bare_model, self.trainer.ema_decay)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the weights after a step of the optimizer into the average."""
        if self.trainer.weight_average is not None:
            self.trainer.weight_average.update(self.trainer._bare_model)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Make the average the model."""
        if self.trainer.weight_average is not None:
            self.trainer.weight_average.copy_to(self.trainer._bare_model)
            self.trainer.weight_average = None
