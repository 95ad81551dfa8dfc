# SPDX-License-Identifier: Apache-2.0
r"""Study of several objects a picture: a multi-label ICE model, next to the explainers of a multi-label DeiT.

    python benchmarks/run_several_study.py --output_dir outputs/several --bf16

Fine-tunes the small classifier of drawn scenes on scenes with no object to three, from their labels alone, with and
without ICE, for the same steps and images. Then the benchmark `objects` scores them, and the single-label model of the
repository, on other scenes. A stopped run resumes; several processes may share the work by `--variants` and `--seeds`.
OUTPUT_DIR/table.md holds what there is so far, as mean and standard deviation over the seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from run_pruning_study import CLS_ONLY, ROOT, check_settings, positive

from transformers_ice.cli import evaluate
from transformers_ice.console.output_files import write_text
from transformers_ice.console.tables import format_markdown_table
from transformers_ice.training import parse_arguments as parse_training_arguments
from transformers_ice.training import run_training


SINGLE = "single-label ICE"
# options of each trained model beyond the recipe
VARIANTS = {"ICE": "--objective balanced", "DeiT": CLS_ONLY, SINGLE: ""}
METHODS = {
    "ICE": "ice ice_hard grad_cam generic_attention legrad ceiling",
    "DeiT": "grad_cam generic_attention legrad transformer_attribution",
    SINGLE: "ice ice_hard",
}
SCORES = {
    "class_iou": "class IoU",
    "max_class_iou": "the same, best threshold",
    "class_corloc": "CorLoc",
    "label_map": "label mAP",
    "label_f1": "label F1",
    "false_objects": "false objects",
}


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments of the command line by name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", default=str(ROOT / "checkpoints/deit-scenes"), help="the classifier to start from")
    parser.add_argument("--single", default=str(ROOT / "checkpoints/ice-deit-scenes"), help="the single-label model")
    parser.add_argument("--output_dir", type=Path, required=True, help="models, rows and table")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the training")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--max_steps", type=positive, default=900, help="optimiser steps of 64 images")
    parser.add_argument("--num_train", type=positive, default=20000, help="scenes to train on")
    parser.add_argument("--num_eval", type=positive, default=5000, help="scenes to measure on")
    parser.add_argument("--bf16", action="store_true", help="train in bfloat16, where the processor has it")
    return parser.parse_args(argv)


def score_folder(arguments: argparse.Namespace, variant: str, seed: int) -> Path:
    """Return the folder of the scores of a model; a trained model lies above it."""
    return arguments.output_dir / f"{variant.replace(' ', '-')}-seed{seed}" / "scores"


def run_variant(arguments: argparse.Namespace, variant: str, seed: int) -> None:
    """Train and score one model, unless its scores exist."""
    scores = score_folder(arguments, variant, seed)
    model = Path(arguments.single) if variant == SINGLE else scores.parent
    if variant != SINGLE and not (model / "all_results.json").is_file():
        options = ["--model_name_or_path", arguments.start, "--output_dir", str(model), "--seed", str(seed)]
        options += ["--dataset_config_name", "several", "--max_train_samples", str(arguments.num_train)]
        options += ["--max_steps", str(arguments.max_steps), "--warmup_steps", str(arguments.max_steps // 10)]
        options += ["--bf16", str(arguments.bf16), "--use_cpu", str(not torch.cuda.is_available())]
        options += ["--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false"]
        options += ["--disable_tqdm", "true", "--resume_from_checkpoint", "auto", *VARIANTS[variant].split()]
        run_training(*parse_training_arguments([str(ROOT / "recipes" / "ice-deit-scenes.yaml"), *options]))
    if not (scores / "results.json").is_file():
        options = ["--models", f"{variant}={model}", "--dataset_name", "scenes", "--dataset_config_name", "several"]
        options += ["--benchmark", "objects", "--limit", str(arguments.num_eval), "--no_measure_cost"]
        evaluate.main([*options, "--explainers", *METHODS[variant].split(), "--output_dir", str(scores)])


def report(arguments: argparse.Namespace) -> str:
    """Write and return the table of the models that are scored: a row for each model and method."""
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for variant in VARIANTS:
        for seed in arguments.seeds:
            file = score_folder(arguments, variant, seed) / "results.json"
            lines = json.loads(file.read_text())["results"] if file.is_file() else []
            for line in lines:
                values = {name: score["value"] for name, score in line["scores"].items()}
                found.setdefault((variant, line["method"]), []).append(values)
    rows = [
        {"model": f"{model} ({len(runs)})", "method": method, **{name: _spread(runs, name) for name in SCORES}}
        for (model, method), runs in found.items()
    ]
    table = format_markdown_table(rows, {"model": "model (seeds)", "method": "method", **SCORES}, 3)
    write_text(arguments.output_dir / "table.md", table)
    return table


def _spread(runs: Sequence[dict[str, float]], name: str) -> Any:
    """Return the mean over the runs, with the standard deviation where there are several."""
    values = [run[name] for run in runs if name in run]
    if len(values) < len(runs):
        return None
    return (statistics.mean(values), statistics.stdev(values)) if len(values) > 1 else values[0]


def main(argv: Sequence[str] | None = None) -> None:
    """Train and score what is missing, then report."""
    arguments = parse_arguments(argv)
    check_settings(arguments)
    for seed in arguments.seeds:
        for variant in arguments.variants:
            if variant != SINGLE or seed == arguments.seeds[0]:  # it is one model, whatever the seed
                run_variant(arguments, variant, seed)
    print(report(arguments))


if __name__ == "__main__":
    sys.exit(main())
