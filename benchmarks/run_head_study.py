# SPDX-License-Identifier: Apache-2.0
r"""Does the object or the ground name the class? Patch heads on a frozen encoder, from many seeds.

    python benchmarks/run_head_study.py --model outputs/pets/balanced-seed0 --train_dir pets/train \
        --data_dir pets/annotated

The loss of patches that all know the class of their image has two solutions: the object names it and the rest is
background, or the reverse. MODEL is an ICE model whose frozen encoder and classes are taken. Its outputs for the
images of TRAIN_DIR, mirrored and not, are computed once, and each head then trains within a minute, by the objective
of the package and the settings of recipes/frozen-backbone.yaml. DATA_DIR has `images` and `masks` (1 is the object,
255 is ignored). For each variant it prints the mean IoU of the mask for every seed, and how many marked the ground,
with a mean IoU under 0.2; where the masks lie in subfolders by class, also the top-1 accuracy of the patches.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mean_map import choose_images
from PIL import Image
from run_pruning_study import positive
from torch import Tensor

from transformers_ice import IceDeiTConfig, IceDeiTForImageClassification, IceDeiTImageProcessor
from transformers_ice.hardware import has_fast_bfloat16
from transformers_ice.ice_deit.adversarial_normalization import foreground_mask, pool_patches
from transformers_ice.ice_deit.modeling_ice_deit import build_patch_head
from transformers_ice.ice_deit.objective_ice_deit import ObjectiveInputs, compute_losses
from transformers_ice.training.objective_presets import OBJECTIVES


BATCH_SIZE = 32
BALANCED = OBJECTIVES["balanced"]
PUBLISHED = {**OBJECTIVES["published"], "background_loss_weight": 0.3}
NOW: dict[str, Any] = {"starts_at_zero": True}
BEFORE = {"starts_at_zero": False, "min_evidence_lead": 0.0}
# fields of the configuration, and whether the head starts at zero or at random
VARIANTS: dict[str, dict[str, Any]] = {
    "balanced": {**BALANCED, **NOW},
    "balanced, not waiting": {**BALANCED, **NOW, "min_evidence_lead": 0.0},
    "balanced, random head": {**BALANCED, "starts_at_zero": False},
    "balanced, random head, not waiting": {**BALANCED, **BEFORE},
    "balanced, without windows": {**BALANCED, **NOW, "num_local_windows": 0},
    "balanced, without windows, random head, not waiting": {**BALANCED, **BEFORE, "num_local_windows": 0},
    "published, 0.3": {**PUBLISHED, **BEFORE},
}


class FrozenEncoder:
    """Outputs of a frozen encoder, as the objective asks an encoder for them; `head` is the patch head that learns."""

    def __init__(self, model: IceDeiTForImageClassification, pixels: Tensor, num_windows: int) -> None:
        self.embeddings, self.pixels, self.num_windows = model.deit.embeddings, pixels, num_windows
        self.grid_size = self.embeddings.grid_size_of(pixels)
        encoder = copy.deepcopy(model.deit)
        encoder.patch_head = torch.nn.Identity()  # the logits of patches are then what a head reads
        encoder.config.num_local_windows, encoder.config.pruning_strategy = num_windows, None
        with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bfloat16()):
            parts = [self._run(encoder, batch) for batch in pixels.split(16)]
        self.patches, self.states, self.windows = (torch.cat(part).float() for part in zip(*parts, strict=True))
        self.head: torch.nn.Module = torch.nn.Identity()
        self.rows = torch.arange(0)

    @staticmethod
    @torch.no_grad()
    def _run(encoder: Any, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        encoded = encoder.encode(encoder.embeddings(pixels))
        return encoded.patch_logits, encoded.last_hidden_state, encoder.encode_windows(pixels)

    def encode_windows(self, images: Tensor) -> Tensor:
        """Return the patch logits of the windows of the images that `rows` names; of these the first of each few."""
        return self.head(self.windows[self.rows[:: round(len(self.rows) / len(images))]])


def train_head(
    encoder: FrozenEncoder,
    config: IceDeiTConfig,
    labels: Tensor,
    seed: int,
    *,
    steps: int,
    learning_rate: float,
    starts_at_zero: bool,
) -> torch.nn.Module:
    """Train a patch head. The first half of the encoder's images is mirrored in the second; `labels` are of a half."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    head = encoder.head = build_patch_head(config)
    std = 0.0 if starts_at_zero else config.initializer_range
    for weight in head.parameters():
        torch.nn.init.normal_(weight, std=std)
    optimizer = torch.optim.AdamW(head.parameters(), lr=learning_rate, weight_decay=0.05)
    warmup, num_images, order = steps // 10, len(labels), list[int]()
    size = min(BATCH_SIZE, num_images)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            step / warmup if step < warmup else (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2
        ),
    )
    for _ in range(steps):
        if len(order) < size:
            order = torch.randperm(num_images, generator=generator).tolist()
        images = torch.tensor([order.pop() for _ in range(size)])
        encoder.rows = images + num_images * torch.randint(0, 2, (size,), generator=generator)
        logits = head(encoder.patches[encoder.rows])
        targets = 0.9 * F.one_hot(labels[images], config.num_labels).float() + 0.1 / config.num_labels
        inputs = ObjectiveInputs(
            config,
            logits,
            pool_patches(logits, config.background_logit_scale),
            targets,
            is_training=True,
            pixel_values=encoder.pixels[encoder.rows],
            encoder=encoder,  # type: ignore[arg-type]
            last_hidden_state=encoder.states[encoder.rows],
        )
        loss = compute_losses(inputs)["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return head


@torch.no_grad()
def mean_iou(head: torch.nn.Module, encoder: FrozenEncoder, masks: Sequence[np.ndarray]) -> float:
    """Return the mean IoU of the foreground, enlarged bilinearly to the masks, with their object."""
    found = foreground_mask(head(encoder.patches)).unflatten(1, encoder.grid_size).float()
    scores = []
    for row, mask in zip(found, masks, strict=True):
        enlarged = F.interpolate(row[None, None], size=mask.shape, mode="bilinear")[0, 0].numpy() > 0.5
        known, is_object = mask != 255, mask == 1
        union = ((enlarged | is_object) & known).sum()
        scores.append((enlarged & is_object & known).sum() / max(union, 1))
    return float(np.mean(scores))


@torch.no_grad()
def top_1(head: torch.nn.Module, encoder: FrozenEncoder, labels: Sequence[int]) -> float:
    """Return how often the foreground patches of an image name its class."""
    logits = pool_patches(head(encoder.patches), 1.0).foreground_logits[:, :-1]
    return float((logits.argmax(-1) == torch.tensor(labels)).float().mean())


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments of the command line by name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of an ICE model whose encoder was frozen")
    parser.add_argument("--train_dir", required=True, help="one subfolder of images per class")
    parser.add_argument("--data_dir", type=Path, required=True, help="`images` and `masks`, which are scored")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(8)), help="seeds of the heads")
    parser.add_argument("--steps", type=positive, nargs="+", default=[480], help="steps of 32 images of each head")
    parser.add_argument("--learning_rate", type=float, nargs="+", default=[2e-3], help="the highest of the schedule")
    parser.add_argument("--per_class", type=positive, default=sys.maxsize, help="images of each class to train on")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), metavar="VARIANT")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Print a row for each variant."""
    arguments = parse_arguments(argv)
    model = IceDeiTForImageClassification.from_pretrained(arguments.model).eval()
    processor = IceDeiTImageProcessor.from_pretrained(arguments.model)

    def read(files: Sequence[Path]) -> Tensor:
        images = [Image.open(file).convert("RGB") for file in files]
        return torch.cat([processor(image, return_tensors="pt")["pixel_values"] for image in images])

    files = choose_images(arguments.train_dir, arguments.per_class)
    labels = torch.tensor([model.config.label2id[file.parent.name] for file in files])
    pixels = read(files)
    encoder = FrozenEncoder(model, torch.cat((pixels, pixels.flip(-1))), BALANCED["num_local_windows"])
    masks = sorted((arguments.data_dir / "masks").rglob("*.png"))
    pictures = {file.stem: file for file in (arguments.data_dir / "images").rglob("*.*")}
    scored = FrozenEncoder(model, read([pictures[mask.stem] for mask in masks]), encoder.num_windows)
    pixel_masks = [np.asarray(Image.open(mask)) for mask in masks]
    classes = [model.config.label2id.get(mask.parent.name) for mask in masks]
    for name, steps, rate in itertools.product(arguments.variants, arguments.steps, arguments.learning_rate):
        fields = {**VARIANTS[name]}
        starts_at_zero = fields.pop("starts_at_zero")
        # a linear head, whatever that of the model is
        config = IceDeiTConfig(**{**model.config.to_dict(), **fields, "patch_head_hidden_size": None})
        settings = {"steps": steps, "learning_rate": rate, "starts_at_zero": starts_at_zero}
        heads = [train_head(encoder, config, labels, seed, **settings) for seed in arguments.seeds]
        scores = [mean_iou(head, scored, pixel_masks) for head in heads]
        title = f"{name}, {steps} steps, {rate:g}" if len(arguments.steps) + len(arguments.learning_rate) > 2 else name
        line = f"{title}: {_join(scores)}; the ground in {sum(score < 0.2 for score in scores)}"
        if None not in classes:
            line += f"; top-1 {_join([top_1(head, scored, classes) for head in heads])}"
        print(line, flush=True)


def _join(values: Sequence[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)


if __name__ == "__main__":
    sys.exit(main())
