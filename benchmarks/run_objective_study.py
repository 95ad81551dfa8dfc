# SPDX-License-Identifier: Apache-2.0
r"""Study of objectives: the published one and ours, at several weights, and ablations of ours.

    python benchmarks/run_objective_study.py --output_dir outputs/objective-study --seeds 0 1 2

Fine-tunes the small classifier of drawn scenes by each objective below, the same steps and images for all, and
measures each on held-out scenes that none has seen. A stopped run resumes; several processes may
share the work by `--seeds` or `--variants` and one OUTPUT_DIR, and `--report_only` collects. OUTPUT_DIR/table.md and
results.json hold what all seeds have so far.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from objective_scores import objective_table, summarize_objectives
from pruning_scores import PruningRows, ceiling_rows, control_rows
from run_pruning_study import PATCH_SIZE, ROOT, check_settings, load_images, measure_rows, positive, train_variant

from transformers_ice.console.output_files import replaced, write_text
from transformers_ice.evaluation import CONTROLS
from transformers_ice.training.objective_presets import OBJECTIVES


FACTORS = {"1/6": 1 / 6, "1": 1.0, "6": 6.0}
BEST_PUBLISHED_WEIGHT = 0.3  # of the few that were tried in runs of this length
BALANCED_WEIGHT = OBJECTIVES["balanced"]["background_loss_weight"]


def _weighted(objective: str, weight: float) -> dict[str, str]:
    """Return the rows of an objective at three background weights."""
    return {
        f"{objective}, {factor} x {weight:g}": f"--objective {objective} --background_loss_weight {weight * value:.6g}"
        for factor, value in FACTORS.items()
    }


# options of each model beyond the recipe
VARIANTS = {
    **_weighted("balanced", BALANCED_WEIGHT),
    **_weighted("published", BEST_PUBLISHED_WEIGHT),
    "published, 0.025": "--objective published",
    "published, 0.3, with [CLS] loss": "--objective published --background_loss_weight 0.3 --cls_loss_weight 1",
    "balanced, without windows": "--objective balanced --num_local_windows 0",
    "balanced, windows of a quarter": "--objective balanced --local_image_share 0.25",
    "balanced, windows of an eighth": "--objective balanced --local_image_share 0.125",
    "balanced, without candidate labels": "--objective balanced --candidate_label_loss_weight 0",
    "balanced, hard pooling": "--objective balanced --foreground_pooling hard",
    "balanced, without [CLS] loss": "--objective balanced --cls_loss_weight 0",
    "balanced, grouped by looks": "--objective balanced --local_feature_weight 0",
    "balanced, grouped by features": "--objective balanced --local_appearance_weight 0",
    "balanced, distillation x 1": "--objective balanced --local_distillation_weight 1",
    "balanced, MLP head": "--objective balanced --patch_head_hidden_size 256",
    "balanced, layer decay 0.7": "--objective balanced --layer_decay 0.7",
}
REFERENCE = f"published, 1 x {BEST_PUBLISHED_WEIGHT:g}"


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments of the command line by name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", default=str(ROOT / "checkpoints/deit-scenes"), help="the classifier to start from")
    parser.add_argument("--output_dir", type=Path, required=True, help="models, rows and tables")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the training")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--max_steps", type=positive, default=250, help="optimiser steps of 64 images")
    parser.add_argument("--num_train", type=positive, default=12000, help="scenes to train on")
    parser.add_argument("--num_eval", type=positive, default=10000, help="held-out scenes to measure on")
    parser.add_argument("--skip_eval", type=int, default=0, help="held-out scenes before them to skip")
    parser.add_argument(
        "--report_only", action="store_true", help="train nothing, make the table of the existing rows"
    )
    return parser.parse_args(argv)


def model_folder(arguments: argparse.Namespace, variant: str, seed: int) -> Path:
    """Return the folder of a model and its rows."""
    name = variant.replace("/", "-of-").replace(" ", "_")
    return arguments.output_dir / f"{name}-seed{seed}"


def run_variant(arguments: argparse.Namespace, variant: str, seed: int, images: tuple) -> None:
    """Train and measure one model, unless its rows exist."""
    folder = model_folder(arguments, variant, seed)
    if (folder / "rows.npz").is_file():
        return
    train_variant(arguments, folder, seed, VARIANTS[variant])
    rows = measure_rows(folder, {}, images)
    with replaced(folder / "rows.npz") as temporary:
        np.savez_compressed(temporary, **vars(rows))
    print(f"{variant}, seed {seed}: top-1 {rows.top_1:.4f}, mean IoU {rows.mean_iou:.4f}", flush=True)


def report(arguments: argparse.Namespace, images: tuple) -> str:
    """Write and return the table of the variants that are measured with all seeds."""
    runs, seconds = {}, {}
    for variant in VARIANTS:
        folders = [model_folder(arguments, variant, seed) for seed in arguments.seeds]
        if all((folder / "rows.npz").is_file() for folder in folders):
            runs[variant] = [PruningRows(**np.load(folder / "rows.npz", allow_pickle=False)) for folder in folders]
            results = [json.loads((folder / "all_results.json").read_text()) for folder in folders]
            seconds[variant] = [result["train_runtime"] for result in results]
    if REFERENCE not in runs:
        return f"No table yet: it compares with the rows of {REFERENCE!r}.\n"
    start = float(measure_rows(arguments.start, {}, images).is_cls_correct.mean())
    ceiling = ceiling_rows(images[2], PATCH_SIZE).mean_iou
    lines = summarize_objectives(runs, seconds, start, ceiling, REFERENCE)
    controls = {name: control_rows(images[2], PATCH_SIZE, name).mean_iou for name in CONTROLS}
    settings = {"start_cls_top_1": start, "ceiling": ceiling, "controls": controls, "reference": REFERENCE}
    settings["lines"] = lines
    write_text(arguments.output_dir / "results.json", json.dumps(settings, indent=1))
    known = ", ".join(f"{name} {value:.3f}" for name, value in controls.items())
    table = (
        f"[CLS] of the start: {start:.4f}; mean IoU of the ceiling of the patch grid {ceiling:.3f}, of the controls: "
        f"{known}.\n\n{objective_table(lines)}"
    )
    write_text(arguments.output_dir / "table.md", table)
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """Train and measure what is missing, then report."""
    arguments = parse_arguments(argv)
    check_settings(arguments)
    images = load_images(arguments)
    if not arguments.report_only:
        for seed in arguments.seeds:
            for variant in arguments.variants:
                run_variant(arguments, variant, seed, images)
    print(report(arguments, images))


if __name__ == "__main__":
    sys.exit(main())
