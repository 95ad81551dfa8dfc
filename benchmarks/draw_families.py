# SPDX-License-Identifier: Apache-2.0
r"""Maps of the explainers on the ViT families of transformers: a small classifier of each, a figure and a table.

    OMP_NUM_THREADS=1 python benchmarks/draw_families.py --output_dir outputs/families --image_dir docs/images

No pretrained weights of the families are needed. Each family's own class of transformers (6 layers, 128 wide, patches
of 8 pixels) gets the patch embedding, the positions and the lower layers of the small classifier of drawn scenes, and
these stay frozen; its upper layers, registers, LayerScale and classifier begin at random and are trained on scenes.
MAE first reconstructs masked scenes, then is fine-tuned as the ViT that reads its weights.

IMAGE_DIR/family_NAME.png shows held-out scenes; OUTPUT_DIR/table.md and results.json hold the scores. A stopped run
resumes with the first family that is not complete. `--num_start_layers 0` begins with random weights alone, which
needs thousands of steps, as recipes/deit-scenes.yaml.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from run_pruning_study import IMAGE_SIZE, PATCH_SIZE, ROOT, check_settings, positive
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    set_seed,
)

from transformers_ice.console.output_files import write_json, write_text
from transformers_ice.console.tables import format_markdown_table
from transformers_ice.data.benchmarks import load_evaluation_set
from transformers_ice.data.scenes import SCENE_CLASSES, draw_scene
from transformers_ice.evaluation import CEILING, CONTROLS, Result, RowStore, load_checkpoint, run_benchmarks
from transformers_ice.explainers import MapExplainer
from transformers_ice.explainers.families import backbone_of
from transformers_ice.training import IceTrainer, prepare_training
from transformers_ice.training import parse_arguments as parse_training_arguments
from transformers_ice.visualization import cut_out, overlay_heatmap, save_figure


METHODS = {
    "raw_attention": "raw attention",
    "rollout": "rollout",
    "grad_cam": "Grad-CAM",
    "generic_attention": "generic attention",
    "legrad": "LeGrad",
    "integrated_gradients": "integrated gradients",
}
SIZES = {"hidden_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4}
NUM_DECODER_LAYERS, DECODER_SIZE = 2, 64  # of MAE, which is dropped after the pretraining


@dataclass(frozen=True)
class DrawnFamily:
    """Family of the figures: its name in text, and its type and configuration in transformers."""

    title: str
    model_type: str
    has_mlp_ratio: bool = False
    reconstructs: bool = False

    @property
    def config_overrides(self) -> str:
        """Fields of its configuration, as `run_train.py` takes them."""
        size = {} if self.has_mlp_ratio else {"intermediate_size": 4 * SIZES["hidden_size"]}
        fields = {**SIZES, **size, "image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE, "layer_norm_eps": 1e-6}
        return ",".join(f"{name}={value}" for name, value in fields.items())


FAMILIES = {
    "deit": DrawnFamily("DeiT, distilled", "deit"),
    "vit": DrawnFamily("ViT: AugReg, DeiT, DINO", "vit"),
    "vit_msn": DrawnFamily("MSN", "vit_msn"),
    "vit_mae": DrawnFamily("MAE, fine-tuned", "vit", reconstructs=True),
    "dinov2": DrawnFamily("DINOv2", "dinov2", has_mlp_ratio=True),
    "dinov2_with_registers": DrawnFamily("DINOv2 with registers", "dinov2_with_registers", has_mlp_ratio=True),
}


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments of the command line by name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", default=str(ROOT / "checkpoints/deit-scenes"), help="gives the lower layers")
    parser.add_argument("--num_start_layers", type=int, default=3, help="layers taken from it; 0: nothing")
    parser.add_argument("--output_dir", type=Path, required=True, help="models and scores")
    parser.add_argument("--image_dir", type=Path, help="folder of the figures; default: OUTPUT_DIR")
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES), metavar="FAMILY")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and images")
    parser.add_argument("--max_steps", type=positive, default=200, help="optimiser steps of 64 images")
    parser.add_argument("--num_train", type=positive, default=12000, help="scenes to train on")
    parser.add_argument("--num_eval", type=positive, default=1000, help="held-out scenes that give top-1")
    parser.add_argument("--num_scored", type=positive, default=50, help="test scenes that give the IoU of the maps")
    parser.add_argument("--scenes", type=int, nargs="+", default=[0, 1], help="test scenes of the figures, by number")
    return parser.parse_args(argv)


# --- training ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def copy_lower_layers(model: PreTrainedModel, start: PreTrainedModel, num_layers: int) -> list[nn.Parameter]:
    """Copy patch embedding, [CLS], positions and the lower layers of a ViT into a model of any family.

    Returns:
        The parameters that were copied. LayerScale, which a ViT does not have, is not among them.
    """
    own, other = backbone_of(model), backbone_of(start)
    projection = own.embeddings.patch_embeddings
    projection.load_state_dict(other.embeddings.patch_embeddings.state_dict())
    own.embeddings.cls_token.copy_(other.embeddings.cls_token)
    positions, given = own.embeddings.position_embeddings, other.embeddings.position_embeddings
    num_patches = given.shape[1] - other.num_prefix_tokens
    # [CLS] first, the patches last; a distillation token between them keeps its own
    positions[:, 0], positions[:, -num_patches:] = given[:, 0], given[:, -num_patches:]
    copied = [own.embeddings.cls_token, positions, *projection.parameters()]
    names = {other.family.norm_before_attention: own.family.norm_before_attention}
    if own.family.norm_before_attention == "norm1":
        names["layernorm_after"] = "norm2"
    for layer, source in zip(own.layers[:num_layers], other.layers, strict=False):
        for name, value in source.named_parameters():
            module, _, rest = name.partition(".")
            parameter = layer.get_parameter(f"{names.get(module, module)}.{rest}")
            parameter.copy_(value)
            copied.append(parameter)
    return copied


def pretrain_by_reconstruction(trainer: IceTrainer, folder: Path, max_steps: int, seed: int) -> None:
    """Train the encoder of a ViT classifier as MAE does, on scenes of which 3/4 of the patches are masked."""
    config: Any = trainer.model.config
    decoder = {
        "decoder_hidden_size": DECODER_SIZE,
        "decoder_num_hidden_layers": NUM_DECODER_LAYERS,
        "decoder_num_attention_heads": SIZES["num_attention_heads"],
        "decoder_intermediate_size": 4 * DECODER_SIZE,
    }
    shared = (*SIZES, "intermediate_size", "image_size", "patch_size", "layer_norm_eps")
    mae = ViTMAEForPreTraining(
        ViTMAEConfig(**{name: getattr(config, name) for name in shared}, **decoder, norm_pix_loss=True)
    )
    mae.vit.load_state_dict(trainer.model.base_model.state_dict())
    for own, other in zip(mae.vit.parameters(), trainer.model.base_model.parameters(), strict=True):
        own.requires_grad_(other.requires_grad)
    settings = TrainingArguments(
        output_dir=str(folder),
        max_steps=max_steps,
        per_device_train_batch_size=64,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        warmup_steps=20,
        weight_decay=0.05,
        save_strategy="no",
        logging_steps=50,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=seed,
        remove_unused_columns=False,
    )

    def collate(rows: list) -> dict[str, torch.Tensor]:
        return {"pixel_values": trainer.data_collator(rows)["pixel_values"]}

    Trainer(model=mae, args=settings, train_dataset=trainer.train_dataset, data_collator=collate).train()
    trainer.model.base_model.load_state_dict(mae.vit.state_dict())


def train_family(arguments: argparse.Namespace, name: str) -> None:
    """Train the classifier of one family, unless it exists."""
    family, folder = FAMILIES[name], model_folder(arguments, name)
    if (folder / "results.json").is_file():
        return
    options = (
        f"--model_type {family.model_type} --config_overrides {family.config_overrides} --output_dir {folder} "
        f"--dataset_name scenes --max_train_samples {arguments.num_train} --max_eval_samples {arguments.num_eval} "
        f"--augmentation none --max_steps {arguments.max_steps} --per_device_train_batch_size 64 --seed "
        f"{arguments.seed} --learning_rate 1e-3 --weight_decay 0.05 --lr_scheduler_type cosine --warmup_steps 20 "
        "--eval_strategy no --save_strategy no --logging_steps 20 --disable_tqdm true --use_cpu true"
    )
    trainer = prepare_training(*parse_training_arguments(options.split()))
    if arguments.num_start_layers > 0:
        start = AutoModelForImageClassification.from_pretrained(arguments.start)
        for parameter in copy_lower_layers(trainer.model, start, arguments.num_start_layers):
            parameter.requires_grad_(False)
    set_seed(arguments.seed)
    begin = time.perf_counter()
    if family.reconstructs:
        pretrain_by_reconstruction(trainer, folder / "pretraining", arguments.max_steps, arguments.seed)
    trainer.train()
    seconds = time.perf_counter() - begin
    trainer.save_model()
    top_1 = trainer.evaluate()["eval_top_1"]
    write_json(folder / "results.json", {"top_1": top_1, "seconds": seconds})  # last: marks the family as complete
    print(f"{name}: top-1 {top_1:.3f} after {seconds:.0f} s", flush=True)


def model_folder(arguments: argparse.Namespace, name: str) -> Path:
    """Return the folder of a family's classifier."""
    return arguments.output_dir / name


# --- figures and scores --------------------------------------------------------------------------------------------


def score_maps_of(arguments: argparse.Namespace, names: Sequence[str]) -> list[Result]:
    """Return the scores of the maps of all families on the first test scenes; those on disk are not made again."""
    scenes = load_evaluation_set("scenes", limit=arguments.num_scored, image_size=IMAGE_SIZE)
    checkpoints = [load_checkpoint(str(model_folder(arguments, name)), name) for name in names]
    store = RowStore(arguments.output_dir / "rows")
    methods = [*METHODS, CEILING]
    return run_benchmarks(checkpoints, scenes, ["segmentation"], methods, store, batch_size=10, num_resamples=0)


def draw_family(arguments: argparse.Namespace, name: str, mean_iou: dict[str, float]) -> Any:
    """Return a figure of one family: a row per scene; image, true mask, and the map of each method."""
    from matplotlib.figure import Figure

    checkpoint = load_checkpoint(str(model_folder(arguments, name)), name)
    scenes = [draw_scene(index, "test", IMAGE_SIZE) for index in arguments.scenes]
    images = [Image.fromarray(scene.image) for scene in scenes]
    results = {
        method: list(MapExplainer(checkpoint.model, checkpoint.image_processor, method)(images)) for method in METHODS
    }
    columns: dict[str, list[np.ndarray]] = {
        "image": [scene.image for scene in scenes],
        "true mask": [cut_out(scene.image, scene.mask) for scene in scenes],
    }
    for method, title in METHODS.items():
        pairs = zip(scenes, results[method], strict=True)
        heading = f"{title}\nmean IoU {mean_iou[method]:.2f}"
        columns[heading] = [overlay_heatmap(scene.image, result["heatmap"], opacity=0.8) for scene, result in pairs]
    figure = Figure(figsize=(1.25 * len(columns) + 1.1, 1.25 * len(scenes) + 0.45), dpi=90)
    figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    axes = figure.subplots(len(scenes), len(columns), squeeze=False)
    for (heading, pictures), line in zip(columns.items(), axes.T, strict=True):
        line[0].set_title(heading, fontsize=8)
        for axis, picture in zip(line, pictures, strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
    for line, found in zip(axes[:, 2:].T, results.values(), strict=True):
        for axis, result in zip(line, found, strict=True):
            if not result["heatmap"].any():
                axis.text(0.5, 0.5, "empty", transform=axis.transAxes, color="white", fontsize=8, ha="center")
    for axis, scene, result in zip(axes[:, 0], scenes, next(iter(results.values())), strict=True):
        title = f"{result['label']}\n{result['score']:.2f}"
        if result["label"] != SCENE_CLASSES[scene.label]:
            title += f"\n(true:\n{SCENE_CLASSES[scene.label]})"
        axis.set_ylabel(title, fontsize=9, rotation=0, ha="right", va="center", labelpad=6)
    return figure


def write_png(figure: Any, file: Path) -> None:
    """Write a figure as PNG of 144 colours: a third of the bytes, and the maps have few colours."""
    save_figure(figure, file)
    with Image.open(file) as picture:
        # without dithering: dots would look like texture
        palette = picture.convert("RGB").quantize(144, kmeans=2, dither=Image.Dither.NONE)
    palette.save(file, optimize=True)


def family_line(arguments: argparse.Namespace, name: str, mean_iou: dict[str, float]) -> dict[str, Any]:
    """Return the line of a family in the table: class, tokens before the patches, top-1, IoU by method."""
    model = load_checkpoint(str(model_folder(arguments, name)), name).model
    results = json.loads((model_folder(arguments, name) / "results.json").read_text())
    tokens = backbone_of(model).num_prefix_tokens
    return {"title": FAMILIES[name].title, "class": type(model).__name__, "tokens": tokens, **results, **mean_iou}


def report(arguments: argparse.Namespace) -> str:
    """Write the figures and scores of the families that are trained; return the table."""
    names = [name for name in FAMILIES if (model_folder(arguments, name) / "results.json").is_file()]
    scored = score_maps_of(arguments, names)
    lines = []
    for name in names:
        mean_iou = {
            result.method: result.scores["mean_iou"].value
            for result in scored
            if result.checkpoint == name and result.error is None
        }
        figure = draw_family(arguments, name, mean_iou)
        write_png(figure, (arguments.image_dir or arguments.output_dir) / f"family_{name}.png")
        lines.append(family_line(arguments, name, mean_iou))
    write_json(arguments.output_dir / "results.json", lines)
    headers = {"title": "family", "class": "class", "tokens": "tokens before the patches", "top_1": "top-1"}
    digits = {"top_1": 3, "seconds": 0, **dict.fromkeys(METHODS, 2)}
    table = format_markdown_table(lines, {**headers, **METHODS, "seconds": "seconds"}, digits)
    # the same for all families: maps that know no model
    known = ", ".join(f"{name.replace('_', ' ')} {lines[0][name]:.2f}" for name in (*CONTROLS, CEILING))
    text = f"{table}\nMean IoU of the controls and of the ceiling of the patch grid: {known}.\n"
    write_text(arguments.output_dir / "table.md", text)
    return text


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is missing, then draw."""
    arguments = parse_arguments(argv)
    check_settings(arguments)
    for name in arguments.families:
        train_family(arguments, name)
    print(report(arguments))


if __name__ == "__main__":
    sys.exit(main())
