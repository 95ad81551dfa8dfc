# SPDX-License-Identifier: Apache-2.0
r"""Study on photographs: ICE by several objectives and weights, next to other explainers of the same models.

    python benchmarks/run_photograph_study.py labels --start outputs/start/start --train_dir photos/train \
        --validation_dir photos/val --data_dir imagenette2 --boxes_file boxes.csv --output_dir outputs/photographs
    python benchmarks/run_photograph_study.py pets --start vit-s-14 --train_dir pets/train --validation_dir pets/val \
        --data_dir pets/annotated --output_dir outputs/pets

`labels` fine-tunes a small DeiT that saw image labels only, and scores boxes; `pets` and `imagenette` train heads on a
frozen pretrained ViT, and score masks and boxes. docs/results/photographs.md and pets.md say what lies in the folders.
Every model is a folder in OUTPUT_DIR, trained and evaluated by the commands of this package; a stopped run resumes,
and several processes may share the work by `--variants` and `--seeds`. OUTPUT_DIR/table.md holds what there is so far,
as mean and standard deviation over the seeds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pruning_scores import summarize_over_seeds
from run_pruning_study import CLS_ONLY, ROOT, check_settings, positive

from transformers_ice.cli import evaluate
from transformers_ice.console.output_files import write_text
from transformers_ice.console.tables import format_markdown_table
from transformers_ice.training import parse_arguments as parse_training_arguments
from transformers_ice.training import run_training
from transformers_ice.training.objective_presets import OBJECTIVES


WEIGHT = OBJECTIVES["balanced"]["background_loss_weight"]
# a recipe may weigh the label more
PUBLISHED = "--objective published --background_loss_weight 0.3 --cls_loss_weight 1 --classification_loss_weight 1"
# options of each model beyond those of the study
VARIANTS = {
    "balanced": "--objective balanced",
    "balanced, 1/6 of the weight": f"--objective balanced --background_loss_weight {WEIGHT / 6:.6g}",
    "balanced, 6 times the weight": f"--objective balanced --background_loss_weight {WEIGHT * 6:.6g}",
    "balanced, without windows": "--objective balanced --num_local_windows 0",
    "balanced, windows of a quarter of the images": "--objective balanced --local_image_share 0.25",
    "balanced, windows of an eighth of the images": "--objective balanced --local_image_share 0.125",
    "published, 0.3, with [CLS] loss": PUBLISHED,
    "without ICE": CLS_ONLY,
}
METHODS = "ice ice_hard raw_attention rollout generic_attention grad_cam legrad layer_cam"


@dataclass(frozen=True)
class Study:
    """How the models of a study are trained and scored.

    Attributes:
        training: Recipe and options of the training command.
        evaluation: Options of the evaluation command.
        scores: Heading by name of a score; the first is the one that explainers are ranked by.
        methods: Explainers of ICE in the table, each with all `scores`.
        ceiling: Whether true masks give a ceiling of the patch grid.
    """

    training: str
    evaluation: str
    scores: dict[str, str]
    methods: tuple[str, ...] = field(default=("ice", "ice_hard"))
    ceiling: bool = False


BOXES = "--dataset_name imagenette --benchmark localization discovery classification"
BOX_SCORES = {"max_box_acc_v2": "MaxBoxAccV2", "pointing_game": "pointing", "corloc": "CorLoc"}
FROZEN = "frozen-backbone.yaml --image_size 224 --cache_features true --random_erasing_prob 0"
STUDIES = {
    "labels": Study("ice-deit-imagenette.yaml", BOXES, BOX_SCORES),
    # no mirrored images: there are enough, and the cache holds twice as many
    "imagenette": Study(
        f"{FROZEN} --cache_features_gb 12 --augmentation none --num_train_epochs 6", BOXES, BOX_SCORES
    ),
    "pets": Study(
        f"{FROZEN} --augmentation flip --num_train_epochs 160",
        "--dataset_options ignore_value=255 --benchmark segmentation classification",
        {"mean_iou": "mean IoU"},
        ceiling=True,
    ),
}


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments of the command line by name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("--start", required=True, help="folder of the ViT or DeiT to start from")
    parser.add_argument("--train_dir", required=True, help="one subfolder of images per class")
    parser.add_argument("--validation_dir", required=True, help="the same; gives top-1")
    parser.add_argument("--data_dir", required=True, help="what is scored: Imagenette, or images and masks")
    parser.add_argument("--boxes_file", help="`labels` and `imagenette`: CSV of the boxes")
    parser.add_argument("--output_dir", type=Path, required=True, help="models, rows and table")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the training")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--explainers", default=METHODS, help="explainers, or all")
    parser.add_argument("--num_train_epochs", type=positive, help="epochs; default: those of the study")
    parser.add_argument("--bf16", action="store_true", help="train in bfloat16, where the processor has it")
    arguments = parser.parse_args(argv)
    if (arguments.study == "pets") != (arguments.boxes_file is None):
        parser.error("`labels` and `imagenette` need `--boxes_file`, and `pets` has none.")
    return arguments


def model_folder(arguments: argparse.Namespace, variant: str, seed: int) -> Path:
    """Return the folder of a model; its scores are in the folder `scores` there."""
    return arguments.output_dir / f"{variant.replace('/', '-of-').replace(',', '').replace(' ', '-')}-seed{seed}"


def run_variant(arguments: argparse.Namespace, variant: str, seed: int) -> None:
    """Train and score one model, unless its scores exist."""
    study, folder = STUDIES[arguments.study], model_folder(arguments, variant, seed)
    if not (folder / "all_results.json").is_file():
        recipe, *options = study.training.split()
        options += ["--model_name_or_path", arguments.start, "--train_dir", arguments.train_dir]
        options += ["--validation_dir", arguments.validation_dir, "--output_dir", str(folder), "--seed", str(seed)]
        options += ["--bf16", str(arguments.bf16), "--use_cpu", str(not torch.cuda.is_available())]
        options += ["--cpu_precision", "as_given"]
        if arguments.num_train_epochs is not None:
            options += ["--num_train_epochs", str(arguments.num_train_epochs)]
        options += ["--disable_tqdm", "true", "--num_panel_images", "0"]
        options += ["--resume_from_checkpoint", "auto", *VARIANTS[variant].split()]
        run_training(*parse_training_arguments([str(ROOT / "recipes" / recipe), *options]))
    if not (folder / "scores" / "results.json").is_file():
        options = ["--models", f"{variant}={folder}", "--data_dir", arguments.data_dir, *study.evaluation.split()]
        if arguments.boxes_file:
            options += ["--dataset_options", f"boxes_file={arguments.boxes_file}"]
        methods = arguments.explainers.split()
        if variant == "without ICE":  # its patch head is random
            methods = [method for method in methods if not method.startswith("ice")]
        if study.ceiling:
            methods.append("ceiling")
        options += ["--explainers", *methods, "--output_dir", str(folder / "scores"), "--no_measure_cost"]
        evaluate.main(options)


def summarize(study: Study, lines: Sequence[dict[str, Any]], results: dict[str, float]) -> dict[str, Any]:
    """Return the numbers of one model: top-1, and the scores of ICE, of the best other explainer and of controls.

    Args:
        study: The study.
        lines: "results" of the evaluation's results.json.
        results: all_results.json of the training.
    """
    values = {"top_1": results.get("eval_top_1"), "cls_top_1": results.get("eval_cls_top_1")}
    values["foreground"] = results.get("eval_foreground_ratio")
    of_model = next((line["scores"] for line in lines if not line["method"]), {})
    values["scored_top_1"] = of_model.get("top_1", {}).get("value")
    first = next(iter(study.scores))
    scores = {
        line["method"]: {name: score["value"] for name, score in line["scores"].items()}
        for line in lines
        if line["scores"].get(first)
    }
    controls = {line["method"] for line in lines if line.get("is_control")}
    for name in study.scores:
        for method in study.methods:
            values[f"{name}, {method}"] = scores.get(method, {}).get(name)
        for key, group in (("other", scores.keys() - controls - {*study.methods, "ceiling"}), ("control", controls)):
            values[f"{name}, {key}"] = max((scores[method][name] for method in group), default=None)
    if study.ceiling:
        values["ceiling"] = scores["ceiling"][first]
    return values


def report(arguments: argparse.Namespace) -> str:
    """Write and return the table of the models that are scored."""
    study, rows = STUDIES[arguments.study], []
    for variant in VARIANTS:
        runs = []
        for seed in arguments.seeds:
            folder = model_folder(arguments, variant, seed)
            if (folder / "scores" / "results.json").is_file():
                lines = json.loads((folder / "scores" / "results.json").read_text())["results"]
                runs.append(summarize(study, lines, json.loads((folder / "all_results.json").read_text())))
        if runs:
            rows.append({"variant": f"{variant} ({len(runs)})", **{key: _spread(runs, key) for key in runs[0]}})
    headers = {"variant": "objective (seeds)", "top_1": "top-1", "cls_top_1": "[CLS]", "foreground": "foreground"}
    headers["scored_top_1"] = "top-1, scored images"
    for name, title in study.scores.items():
        headers |= {f"{name}, {method}": f"{title}, `{method}`" for method in study.methods}
        headers |= {f"{name}, other": f"{title}, best other", f"{name}, control": f"{title}, best control"}
    if study.ceiling:
        headers["ceiling"] = "ceiling"
    table = format_markdown_table(rows, headers, 3)
    write_text(arguments.output_dir / "table.md", table)
    return table


def _spread(runs: Sequence[dict[str, Any]], key: str) -> Any:
    """Return the mean over the runs, with the standard deviation where there are several."""
    values = [run[key] for run in runs]
    if None in values:
        return None
    return summarize_over_seeds(values)


def main(argv: Sequence[str] | None = None) -> None:
    """Train and score what is missing, then report."""
    arguments = parse_arguments(argv)
    check_settings(arguments)
    for seed in arguments.seeds:
        for variant in arguments.variants:
            run_variant(arguments, variant, seed)
            print(report(arguments), flush=True)


if __name__ == "__main__":
    sys.exit(main())
