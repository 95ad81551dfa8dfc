# SPDX-License-Identifier: Apache-2.0
r"""Accuracy, masks and tokens of pruned models: every way to decide, side by side, on drawn scenes.

    python scripts/run_pruning_study.py --output_dir outputs/pruning-study --seeds 0 1 2

Fine-tunes the small classifier of drawn scenes in each of the ways below, the same steps and images for all, and
measures each on 10,000 scenes that none has seen. A run that was stopped goes on where it was; several processes may
share the work by `--seeds` or `--variants` and one OUTPUT_DIR. `--report` writes the tables from what lies there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification

from transformers_ice.data.scenes import load_scenes
from transformers_ice.evaluation.pruning_scores import cell_areas, pruning_rows
from transformers_ice.training import parse_arguments as parse_training_arguments
from transformers_ice.training import run_training


ROOT = Path(__file__).resolve().parents[1]
LAYERS = "2 3 5"  # a quarter, half and three quarters of six layers, rounded up: EViT's places
CLS_ONLY = "--classification_loss_weight 0 --background_loss_weight 0 --cls_loss_weight 1 --logits_source cls"
GATES = f"--pruning_strategy background --pruning_layers {LAYERS}"
# how each model is trained, beyond recipes/ice-deit-scenes.yaml
VARIANTS = {
    "deit": CLS_ONLY,
    "ice": "",
    "gate": f"{GATES} --pruning_head gate",
    "gate-unmasked": f"{GATES} --pruning_head gate --prune_in_training false",
    "patch": f"{GATES} --pruning_head patch",
    "patch-unmasked": f"{GATES} --pruning_head patch --prune_in_training false",
    "evit-0.7": f"{CLS_ONLY} --pruning_strategy attentiveness --fuse_pruned_tokens true --pruning_layers {LAYERS} "
    "--keep_rates 0.7 0.7 0.7",
    "evit-0.5": f"{CLS_ONLY} --pruning_strategy attentiveness --fuse_pruned_tokens true --pruning_layers {LAYERS} "
    "--keep_rates 0.5 0.5 0.5",
}
# how each is then run: the name of a row and what to change in the configuration
MARGINS = {f"background {margin:+g}": {"background_margin": margin} for margin in (-1.0, 0.0, 1.0, 2.0)}
TOP_K = {f"top_k {rate:g}": {"pruning_strategy": "top_k", "keep_rates": [rate] * 3} for rate in (0.7, 0.5)}
RUNS = {variant: MARGINS for variant in VARIANTS}
RUNS |= {variant: {"as trained": {}} for variant in ("deit", "ice", "evit-0.7", "evit-0.5")}
RUNS["gate"] = {**MARGINS, **TOP_K, "unpruned": {"pruning_strategy": None}}


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the words of the command line by name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", default=str(ROOT / "checkpoints/deit-scenes"), help="the classifier to start from")
    parser.add_argument("--output_dir", type=Path, required=True, help="models, rows and tables")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the training")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--max_steps", type=int, default=250, help="optimiser steps of 64 images")
    parser.add_argument("--num_train", type=int, default=12000, help="scenes to train on")
    parser.add_argument("--num_eval", type=int, default=10000, help="held-out scenes to measure on")
    return parser.parse_args(argv)


def train(arguments: argparse.Namespace, variant: str, seed: int) -> Path:
    """Train one model, unless it lies there."""
    folder = arguments.output_dir / "models" / f"{variant}-seed{seed}"
    if (folder / "all_results.json").is_file():
        return folder
    words = [
        *f"--model_name_or_path {arguments.start} --output_dir {folder} --seed {seed}".split(),
        *f"--max_train_samples {arguments.num_train} --max_eval_samples 64 --max_steps {arguments.max_steps}".split(),
        *[
            "--eval_strategy",
            "no",
            "--save_strategy",
            "no",
            "--load_best_model_at_end",
            "false",
            "--check_images",
            "false",
        ],
        *["--disable_tqdm", "true", "--resume_from_checkpoint", "auto"],
        *VARIANTS[variant].split(),
    ]
    run_training(*parse_training_arguments([str(ROOT / "recipes/ice-deit-scenes.yaml"), *words]))
    return folder


def load_images(arguments: argparse.Namespace) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Return pixel values, labels and the object's pixels in every patch of the held-out scenes."""
    processor = AutoImageProcessor.from_pretrained(arguments.start)
    scenes = load_scenes("test", arguments.num_eval, image_size=64)
    pixel_values, areas = [], []
    for batch in scenes.iter(500):
        pixel_values.append(processor(batch["image"], return_tensors="pt")["pixel_values"])
        areas.append(cell_areas(np.stack([np.asarray(mask) > 0 for mask in batch["mask"]]), 8))
    return torch.cat(pixel_values), np.asarray(scenes["label"]), np.concatenate(areas)


def measure(arguments: argparse.Namespace, folder: Path, variant: str, seed: int, images: tuple) -> None:
    """Measure one model in all its runs, unless the rows lie there."""
    for name, changes in RUNS[variant].items():
        file = arguments.output_dir / "rows" / f"{variant}, {name}, seed{seed}.npz"
        if file.is_file():
            continue
        model = AutoModelForImageClassification.from_pretrained(folder)
        for field, value in changes.items():
            setattr(model.config, field, value)
        rows = pruning_rows(model, *images)
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(file, **vars(rows))
        print(
            json.dumps(
                {
                    "row": file.stem,
                    "top_1": rows.top_1,
                    "mean_iou": rows.mean_iou,
                    "kept": rows.kept.mean(axis=0).tolist(),
                }
            ),
            flush=True,
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Train and measure what is missing."""
    arguments = parse_arguments(argv)
    images = load_images(arguments)
    for seed in arguments.seeds:
        for variant in arguments.variants:
            measure(arguments, train(arguments, variant, seed), variant, seed, images)


if __name__ == "__main__":
    sys.exit(main())
