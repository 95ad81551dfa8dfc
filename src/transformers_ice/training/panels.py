# SPDX-License-Identifier: Apache-2.0
"""Panels during training: after every evaluation, one figure of the model's maps for the same few images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState
from transformers.utils import is_matplotlib_available, logging

from ..console.output_files import make_folder
from ..data.images.labels import Labels
from ..data.images.tables import LabelledImages
from ..ice_deit.configuration_ice_deit import IceDeiTConfig
from ..ice_deit.image_conversion import convert_to_rgb
from ..ice_deit.image_processing_ice_deit import IceDeiTImageProcessor
from ..visualization import PanelRow, explanation_panel, save_figure


__all__ = ["PanelCallback", "panel_rows", "spread_indices"]

logger = logging.get_logger(__name__)

# a cell of the panel is about 220 pixels wide; more would be decoded, processed and thrown away
_LONGEST_SIDE = 448


class PanelCallback(TrainerCallback):
    """Writer of a panel after every evaluation, e.g. `output_dir/panels/step-000100.png`, in the main process.

    Draws image, class map, heat map, mask and, where the data have masks, truth. Classifiers without patch logits, and
    models whose weights are sharded over processes, are skipped. Weights and random states are unchanged. The
    images are spread evenly over the evaluation images, the same every time.
    """

    def __init__(self, num_images: int = 8) -> None:
        self.num_images = num_images
        self.trackers: Sequence[TrainerCallback] = ()  # callbacks of the run, some of which may send images
        self._has_warned = False
        self._has_ended = False

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Name the panels by their steps from here on."""
        self._has_ended = False

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Name the panel of the final model, which may be that of an earlier step, `final.png`."""
        self._has_ended = True

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Draw and write the panel."""
        model, images = kwargs["model"], kwargs["eval_dataloader"].dataset
        is_ice = getattr(getattr(model, "config", None), "model_type", None) == IceDeiTConfig.model_type
        # of sharded weights, all processes would have to take part in a forward pass
        is_sharded = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("true", "1")
        can_draw = isinstance(images, LabelledImages) and is_ice and not is_sharded
        if not (can_draw and self.num_images > 0 and state.is_world_process_zero):
            return
        if not is_matplotlib_available():
            if not self._has_warned:
                logger.warning("No panels are drawn: they need matplotlib, `pip install transformers-ice[viz]`.")
            self._has_warned = True
            return
        name = "final.png" if self._has_ended else f"step-{state.global_step:06d}.png"
        file = Path(str(args.output_dir), "panels", name)
        try:
            make_folder(file.parent, inside=str(args.output_dir))
        except ValueError as error:
            logger.warning(f"No panels are drawn: {error}")
            return
        rows = panel_rows(model, images, spread_indices(len(images), self.num_images))
        try:
            save_figure(explanation_panel(rows, model.config.id2label), file)
        except Exception as error:  # whatever a figure fails of, the run is worth more
            logger.warning(f"The panel {file} could not be drawn: {type(error).__name__}: {error}")
            return
        for callback in self.trackers:
            _send_panel(callback, file, state.global_step)


def _send_panel(callback: TrainerCallback, file: Path, step: int) -> None:
    """Send a panel to the tracker of a callback, where that is TensorBoard or Weights & Biases."""
    writer, wandb = getattr(callback, "tb_writer", None), getattr(callback, "_wandb", None)
    if writer is not None:
        writer.add_image("panels", np.asarray(Image.open(file).convert("RGB")), step, dataformats="HWC")
    elif wandb is not None and getattr(wandb, "run", None) is not None:
        wandb.log({"panels": wandb.Image(str(file)), "train/global_step": step})


def spread_indices(length: int, number: int) -> list[int]:
    """Return up to `number` indices, spread evenly over [0, length): data sets are often sorted by class."""
    return [index * length // number for index in range(number)] if number < length else list(range(length))


@torch.no_grad()
def panel_rows(model: PreTrainedModel, images: LabelledImages, indices: Sequence[int]) -> list[PanelRow]:
    """Return a row of `explanation_panel` for each of some images, shrunk to at most 448 pixels.

    Its title is the predicted class and its probability, and the true class where it is another one; where no
    foreground is found, "background" and p(background). The training mode of the model is restored.
    """
    pictures = [_picture(images, index) for index in indices]
    sizes = [picture.size[::-1] for picture in pictures]
    processor: IceDeiTImageProcessor = images.image_processor
    inputs = processor(pictures, return_tensors="pt").to(next(model.parameters()).device)
    training, _ = model.training, model.eval()
    outputs = model(**inputs, return_dict=True)
    model.train(training)
    names: Any = model.config.id2label
    explanations = processor.post_process_explanation(outputs, sizes, id2label=names)
    truths = [_truth(images, index, size) for index, size in zip(indices, sizes, strict=True)]
    labels = [Labels.title(target, names) for target in images.table[list(indices)][images.label_column]]
    rows = zip(map(np.asarray, pictures), explanations, truths, labels, strict=True)
    return [PanelRow.from_result(*row, details=False) for row in rows]


def _picture(images: LabelledImages, index: int) -> Image.Image:
    """Return an image, small enough for a panel."""
    image = images.table[index][images.image_column]
    picture = convert_to_rgb(image, backdrop=images.image_processor.image_mean).copy()  # `thumbnail` changes it
    picture.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    return picture


def _truth(images: LabelledImages, index: int, size: tuple[int, int]) -> np.ndarray | None:
    """Return the true foreground, `(height, width)` of the shrunk image, bool, if there is one."""
    if not images.has_masks:
        return None
    mask = Image.fromarray(images.foreground_mask(index))
    return np.asarray(mask.resize(size[::-1], Image.Resampling.NEAREST))
