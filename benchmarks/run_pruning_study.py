# SPDX-License-Identifier: Apache-2.0
r"""Study of pruning: accuracy, masks and tokens of every strategy, on drawn scenes.

    python benchmarks/run_pruning_study.py --output_dir outputs/pruning-study --seeds 0 1 2

Fine-tunes the small classifier of drawn scenes by each of the variants below, the same steps and images for all, and
measures each on 10,000 scenes that none has seen. A stopped run resumes; several processes may
share the work by `--variants` and one OUTPUT_DIR. OUTPUT_DIR/table.md and results.json hold what is there so far, and
OUTPUT_DIR/counts the patches that each image kept, for `scripts/run_benchmark.py` to replay on a larger model.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pruning_scores import (
    PruningRows,
    pruning_rows,
    pruning_table,
    summarize_pruning,
)
from transformers import AutoConfig, AutoImageProcessor

from transformers_ice import IceDeiTForImageClassification
from transformers_ice.console.output_files import replaced, write_json, write_text
from transformers_ice.data.scenes import load_scenes
from transformers_ice.training import parse_arguments as parse_training_arguments
from transformers_ice.training import run_training


ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes/ice-deit-scenes.yaml"
IMAGE_SIZE, PATCH_SIZE = 64, 8
PRUNING_LAYERS = "2 3 5"  # a quarter, half and three quarters of six layers, rounded up, as in EViT
NO_PATCHES = "--classification_loss_weight 0 --background_loss_weight 0"
CLS_ONLY = f"--objective published {NO_PATCHES} --cls_loss_weight 1 --logits_source cls"
HEADS = f"--pruning_strategy background --pruning_layers {PRUNING_LAYERS}"
EVIT = f"{CLS_ONLY} --pruning_strategy attentiveness --fuse_pruned_tokens true --pruning_layers {PRUNING_LAYERS}"
# objectives of the ICE models
OBJECTIVES = {
    "balanced": "--objective balanced",
    "published": "--objective published --background_loss_weight 0.3 --cls_loss_weight 1",
}
# options of each model beyond the recipe
VARIANTS = {
    "deit": CLS_ONLY,
    "ice": "",
    "gate": f"{HEADS} --pruning_head gate --prune_in_training true",
    "gate-unmasked": f"{HEADS} --pruning_head gate --prune_in_training false",
    "patch": f"{HEADS} --pruning_head patch --prune_in_training true",
    "patch-unmasked": f"{HEADS} --pruning_head patch --prune_in_training false",
    "evit-0.7": f"{EVIT} --keep_rates 0.7 0.7 0.7",
    "evit-0.5": f"{EVIT} --keep_rates 0.5 0.5 0.5",
}
# runs of each model: changes of its configuration
AS_TRAINED: dict[str, dict[str, Any]] = {"as trained": {}}
MARGINS = {f"background {margin:+g}": {"background_margin": margin} for margin in (-1.0, 0.0, 1.0, 2.0)}
MORE = {f"background {margin:+g}": {"background_margin": margin} for margin in (3.0, 4.0, 8.0, 12.0)}
TOP_K = {f"top_k {rate:g}": {"pruning_strategy": "top_k", "keep_rates": [rate] * 3} for rate in (0.7, 0.5)}
UNPRUNED = {"unpruned": {"pruning_strategy": None}}
RUNS: dict[str, dict[str, dict[str, Any]]] = {
    "deit": AS_TRAINED,
    "ice": AS_TRAINED,
    "gate": {**MARGINS, **TOP_K, **UNPRUNED},
    "gate-unmasked": {**MARGINS, **MORE, **TOP_K, **UNPRUNED},
    "patch": MARGINS,
    "patch-unmasked": {**MARGINS, **MORE, **TOP_K, **UNPRUNED},
    "evit-0.7": AS_TRAINED,
    "evit-0.5": AS_TRAINED,
}
REFERENCE = "deit, as trained"


def positive(text: str) -> int:
    """Return a number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text}")
    return int(text)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments of the command line by name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", default=str(ROOT / "checkpoints/deit-scenes"), help="the classifier to start from")
    parser.add_argument("--output_dir", type=Path, required=True, help="models, rows and tables")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the training")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), metavar="VARIANT")
    parser.add_argument(
        "--objective", default="balanced", choices=list(OBJECTIVES), help="objective of the ICE models"
    )
    parser.add_argument("--max_steps", type=positive, default=250, help="optimiser steps of 64 images")
    parser.add_argument("--num_train", type=positive, default=12000, help="scenes to train on")
    parser.add_argument("--num_eval", type=positive, default=10000, help="held-out scenes to measure on")
    parser.add_argument("--skip_eval", type=int, default=0, help="held-out scenes before them to skip")
    return parser.parse_args(argv)


def check_settings(arguments: argparse.Namespace) -> None:
    """Write the common settings of all models and rows of OUTPUT_DIR; refuse a folder with other settings."""
    shared = ("objective", "start", "num_start_layers", "seed", "max_steps", "num_train", "num_eval", "skip_eval")
    shared += ("study", "train_dir", "validation_dir", "data_dir", "boxes_file", "bf16")  # of photographs
    settings = {name: getattr(arguments, name) for name in shared if hasattr(arguments, name)}
    if getattr(arguments, "num_train_epochs", None) is not None:
        settings["num_train_epochs"] = arguments.num_train_epochs
    file = arguments.output_dir / "settings.json"
    if file.is_file() and (found := json.loads(file.read_text())) != settings:
        sys.exit(f"Error: {file} holds {found}, got {settings}. Choose another `--output_dir`, or the same settings.")
    write_json(file, settings)


def train_variant(arguments: argparse.Namespace, folder: Path, seed: int, options: str) -> None:
    """Train one model by the recipe and further options of `run_train.py`, unless it exists."""
    if (folder / "all_results.json").is_file():
        return
    options = (
        f"--model_name_or_path {arguments.start} --output_dir {folder} --seed {seed} "
        f"--max_steps {arguments.max_steps} --max_train_samples {arguments.num_train} --max_eval_samples 64 "
        "--eval_strategy no --save_strategy no --load_best_model_at_end false --disable_tqdm true "
        "--resume_from_checkpoint auto "  # a stopped run has saved one
        f"{options}"
    )
    run_training(*parse_training_arguments([str(RECIPE), *options.split()]))


def load_images(arguments: argparse.Namespace) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Return pixel values, labels and masks of the held-out scenes."""
    processor = AutoImageProcessor.from_pretrained(arguments.start)
    first, last = arguments.skip_eval, arguments.skip_eval + arguments.num_eval
    scenes = load_scenes("test", last, image_size=IMAGE_SIZE).select(range(first, last))
    pixel_values, masks = [], []
    for batch in scenes.iter(500):
        pixel_values.append(processor(batch["image"], return_tensors="pt")["pixel_values"])
        masks.append(np.stack([np.asarray(mask) > 0 for mask in batch["mask"]]))
    return torch.cat(pixel_values), np.asarray(scenes["label"]), np.concatenate(masks)


def measure_rows(folder: str | Path, changes: Mapping[str, Any], images: tuple) -> PruningRows:
    """Measure one model with some fields of its configuration changed."""
    # a plain classifier is also loaded as an ICE model: its patch head is random then, its [CLS] is not
    model = IceDeiTForImageClassification.from_pretrained(folder)
    for field, value in changes.items():
        setattr(model.config, field, value)
    return pruning_rows(model, *images)


def run_variant(arguments: argparse.Namespace, variant: str, seed: int, images: tuple) -> None:
    """Train one model and measure it in all its runs, unless the rows exist."""
    folder = model_folder(arguments, variant, seed)
    train_variant(arguments, folder, seed, f"{OBJECTIVES[arguments.objective]} {VARIANTS[variant]}")
    for run, changes in RUNS[variant].items():
        file = row_file(arguments, variant, run, seed)
        if file.is_file():
            continue
        rows = measure_rows(folder, changes, images)
        with replaced(file) as temporary:
            np.savez_compressed(temporary, **vars(rows))
        print(f"{file.stem}: top-1 {rows.top_1:.4f}, mean IoU {rows.mean_iou:.4f}", flush=True)


def model_folder(arguments: argparse.Namespace, variant: str, seed: int) -> Path:
    """Return the folder of a model."""
    return arguments.output_dir / "models" / f"{variant}-seed{seed}"


def row_file(arguments: argparse.Namespace, variant: str, run: str, seed: int) -> Path:
    """Return the file with the rows of a model in one of its runs."""
    return arguments.output_dir / "rows" / f"{variant}, {run}, seed {seed}.npz"


def report(arguments: argparse.Namespace) -> str:
    """Write and return the table of the runs that are measured with all seeds."""
    num_patches = (IMAGE_SIZE // PATCH_SIZE) ** 2
    found = {}
    for variant, runs in RUNS.items():
        for run, changes in runs.items():
            files = [row_file(arguments, variant, run, seed) for seed in arguments.seeds]
            if not all(file.is_file() for file in files):
                continue
            rows = [PruningRows(**np.load(file, allow_pickle=False)) for file in files]
            config = AutoConfig.from_pretrained(model_folder(arguments, variant, arguments.seeds[0]))
            for field, value in changes.items():
                setattr(config, field, value)
            found[f"{variant}, {run}"] = (config, rows)
            if config.pruning_strategy == "background":
                keep_rates = (rows[0].kept / num_patches).round(6).tolist()
                write_json(arguments.output_dir / "counts" / f"{variant}, {run}.json", keep_rates, indent=None)
    if REFERENCE not in found:
        return f"No table yet: it compares with the rows of {REFERENCE!r}.\n"
    lines = summarize_pruning(found, REFERENCE, num_patches)
    write_text(arguments.output_dir / "results.json", json.dumps(lines, indent=1))
    table = pruning_table(lines)
    write_text(arguments.output_dir / "table.md", table)
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """Train and measure what is missing, then report."""
    arguments = parse_arguments(argv)
    check_settings(arguments)
    images = load_images(arguments)
    for seed in arguments.seeds:
        for variant in arguments.variants:
            run_variant(arguments, variant, seed, images)
    print(report(arguments))


if __name__ == "__main__":
    sys.exit(main())
