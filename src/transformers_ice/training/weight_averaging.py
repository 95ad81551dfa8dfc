# SPDX-License-Identifier: Apache-2.0
"""Exponential moving average of the weights, which is evaluated and saved while the raw weights are trained.

Sources: Polyak and Juditsky (1992) for the idea; decay 0.99996 in DeiT, whose average is updated after every step and
starts from the first weights, as timm's `ModelEma`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import TrainerCallback
from transformers.utils import logging

from ..console.output_files import replaced


__all__ = ["RAW_WEIGHTS_FILE", "WeightAverage", "WeightAveragingCallback", "bare_model"]

RAW_WEIGHTS_FILE = "raw_weights.safetensors"
"""File of a checkpoint with the raw weights, which are trained; its `model.safetensors` holds their average."""

logger = logging.get_logger(__name__)


class WeightAverage:
    """Moving average of the parameters and buffers of a model.

    `average = decay * average + (1 - decay) * weight` after every step, for floating-point tensors; others are copied.

    Args:
        model: Model whose current weights the average starts from.
        decay: In (0, 1). With 0.99996 the average reaches back some 25,000 steps: in a much shorter run it remains
            close to the first weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        self._average = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Update the average with the current weights of the model."""
        weights = model.state_dict()
        averaged = [name for name, tensor in weights.items() if tensor.is_floating_point()]
        # 0: the number of averaged models, which an exponential average does not use
        self._average([self.tensors[name] for name in averaged], [weights[name] for name in averaged], 0)
        for name in weights.keys() - averaged:
            self.tensors[name].copy_(weights[name])

    def copy_to(self, model: nn.Module) -> None:
        """Make the average the weights of the model."""
        _copy_weights(self.tensors, model)

    @contextmanager
    def in_place_of(self, model: nn.Module) -> Iterator[None]:
        """Use the average as the model's weights inside the block; restore its own exactly on exit."""
        # copies, not swapped tensors: the optimizer refers to the model's own
        own = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        self.copy_to(model)
        try:
            yield
        finally:
            _copy_weights(own, model)


@torch.no_grad()
def _copy_weights(tensors: dict[str, Tensor], model: nn.Module) -> None:
    """Copy tensors into the model by name, in place, so that references to its parameters remain valid."""
    for name, tensor in model.state_dict().items():
        tensor.copy_(tensors[name])


class WeightAveragingCallback(TrainerCallback):
    """Moving average of the weights during training, which is saved and resumed, and is the final model.

    During training `model.safetensors` of a checkpoint holds the average, and its `RAW_WEIGHTS_FILE` the raw
    weights, so that a resumed run has both exactly. Every process keeps its own average of the same weights; without a
    decay, only runs that had one are resumed. `checkpoint` is the folder that training resumes from.
    """

    def __init__(self, decay: float | None, is_sharded: bool = False) -> None:
        if decay is not None and is_sharded:
            raise ValueError(
                f"`ema_decay` needs unsharded weights in every process, got {decay} with FSDP or DeepSpeed. "
                "Remove it, or train with DDP."
            )
        self.decay = decay
        self.average: WeightAverage | None = None
        self.checkpoint: str | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start from the current weights, in an averaged checkpoint the average; then load its raw weights."""
        if self.average is not None:
            return  # another attempt of this run, with smaller batches
        model = bare_model(kwargs["model"])
        if self.decay is not None:
            self.average = WeightAverage(model, self.decay)
        if self.checkpoint is not None:
            self._load_raw_weights(Path(self.checkpoint) / RAW_WEIGHTS_FILE, model)

    def _load_raw_weights(self, file: Path, model: nn.Module) -> None:
        """Load the raw weights, where a checkpoint has them."""
        if not file.is_file():
            if self.decay is not None:
                logger.warning(f"{self.checkpoint} holds no averaged weights: the average starts from it.")
            return
        if self.decay is None:
            logger.warning(f"Resuming without `ema_decay`: the average that {self.checkpoint} holds is dropped.")
        _copy_weights(load_file(file), model)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Update the average after a step of the optimizer."""
        if self.average is not None:
            self.average.update(bare_model(kwargs["model"]))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Load the average into the model, unless it has the best checkpoint, which holds an average already."""
        is_best = args.load_best_model_at_end and state.best_model_checkpoint is not None
        if self.average is not None and not is_best:
            self.average.copy_to(bare_model(kwargs["model"]))
        self.average = None

    def in_place_of(self, model: nn.Module) -> AbstractContextManager[None]:
        """Use the average as the model's weights inside the block, where there is one."""
        return nullcontext() if self.average is None else self.average.in_place_of(bare_model(model))

    def averaged_weights(self) -> dict[str, Tensor] | None:
        """Return the weights to save as the model during training; None for its own weights."""
        # a copy: `save_pretrained` empties the dictionary as it writes
        return None if self.average is None else dict(self.average.tensors)

    def save_raw_weights(self, model: nn.Module, folder: Path) -> None:
        """Save the raw weights, where the model file holds their average."""
        if self.average is not None:
            # clones: safetensors refuses tensors that share memory
            weights = {name: tensor.detach().cpu().clone() for name, tensor in bare_model(model).state_dict().items()}
            with replaced(folder / RAW_WEIGHTS_FILE) as temporary:
                save_file(weights, temporary)


def bare_model(model: Any) -> Any:
    """Return a model without what DDP, FSDP or `torch.compile` have put around it."""
    return extract_model_from_parallel(model, keep_torch_compile=False)
