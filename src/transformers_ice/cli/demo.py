# SPDX-License-Identifier: Apache-2.0
"""From a DeiT checkpoint to maps of its predictions, in one command.

    transformers-ice demo --images photo.jpg folder "more/*.png"

Fine-tunes ICE from a small classifier of drawn scenes, compares its masks on held-out scenes with attention
maps of the classifier, and loads the result back through the Auto classes and the three pipelines.

2 min on two cores (Intel Xeon) without the installation. Expected, seed 0: ICE top-1 0.985, mean IoU 0.751; raw
attention 0.491, rollout 0.577, ceiling 0.835.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from datasets import Dataset
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

from ..console.command_line import parse_dataclasses
from ..console.exits import command
from ..console.output_files import check_outputs, make_folder, write_text
from ..data.scenes import load_scenes
from ..evaluation import ComparisonRow, compare_with_baselines, format_table
from ..model_names import sample_folder
from ..training import TrainingStoppedError, run_training
from ..training import parse_arguments as parse_training_arguments
from ..training.objective_presets import OBJECTIVES
from ..visualization import PanelRow, explanation_panel, save_figure
from .explain import explain_files, find_images, load_explainer


__all__ = ["DemoArguments", "main", "train"]


NUM_PICTURES = 8
HEADERS = {
    "method": "held-out scenes",
    "patch_top_1": "top-1 (patch)",
    "cls_top_1": "top-1 ([CLS])",
    "pixel_accuracy": "pixel accuracy",
    "mean_iou": "mean IoU",
    "ceiling_share": "of the ceiling",
}
SETTINGS = tuple(OBJECTIVES["balanced"])


@dataclass
class DemoArguments:
    """Options of `transformers-ice demo`."""

    images: list[str] = field(
        default_factory=list, metadata={"help": "Your own files, folders or globs to explain at the end."}
    )
    output_dir: str = field(default="runs/demo", metadata={"help": "Folder for all outputs."})
    start: str | None = field(
        default=None, metadata={"help": "Classifier to start from; default: the one that comes with the package."}
    )
    recipe: str | None = field(
        default=None, metadata={"help": "YAML file with options of `transformers-ice train`; default: that of scenes."}
    )
    num_train: int = field(default=12000, metadata={"help": "Scenes to train on."})
    num_eval: int = field(default=1000, metadata={"help": "Held-out scenes to measure on."})
    max_steps: int = field(default=250, metadata={"help": "Optimizer steps."})


@contextmanager
def stage(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Announce one stage of the demo; add the seconds that it takes."""
    print(f"\n{name}", flush=True)
    start = time.monotonic()
    yield
    seconds[name] = round(time.monotonic() - start, 1)


def train(arguments: DemoArguments, start: str, recipe: str, model_dir: Path) -> dict[str, float]:
    """Fine-tune by the recipe, shortened to the length of a demo."""
    changes = {
        "model_name_or_path": start,
        "output_dir": model_dir,
        "max_train_samples": arguments.num_train,
        "max_eval_samples": min(arguments.num_eval, 500),
        "max_steps": arguments.max_steps,
        "num_proc": os.cpu_count() or 1,  # to draw the scenes
        "eval_strategy": "no",
        "save_strategy": "no",  # the final model is saved anyway
        "load_best_model_at_end": False,
        "resume_from_checkpoint": "auto",  # a stopped demo has saved a checkpoint
    }
    options = [argument for name, value in changes.items() for argument in (f"--{name}", str(value))]
    return run_training(*parse_training_arguments([recipe, *options]))


def compare(start: str, model_dir: Path, dataset: Dataset) -> list[ComparisonRow]:
    """Load both models by the Auto classes, and measure them on held-out scenes."""
    folders = (str(model_dir), start)
    models = [AutoModelForImageClassification.from_pretrained(folder) for folder in folders]
    processors = [AutoImageProcessor.from_pretrained(folder) for folder in folders]
    return compare_with_baselines(models[0], processors[0], models[1], processors[1], dataset)


def read_settings(arguments: DemoArguments, recipe: str, model_dir: Path) -> dict[str, Any]:
    """Return the settings, versions and machine of the result."""
    config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    options = yaml.safe_load(Path(recipe).read_text(encoding="utf-8"))
    settings = {name: config[name] for name in SETTINGS if name in config}
    settings |= {name: options[name] for name in ("learning_rate", "per_device_train_batch_size") if name in options}
    return {**settings, "max_steps": arguments.max_steps, "num_train": arguments.num_train}


def draw_panel(explainer: Any, dataset: Dataset, file: Path) -> None:
    """Draw the explanations of the first held-out scenes, without selection."""
    names = dataset.features["label"].names
    rows = []
    for scene in dataset.select(range(min(NUM_PICTURES, len(dataset)))):
        pixels, truth = np.asarray(scene["image"]), np.asarray(scene["mask"]) > 0
        rows.append(PanelRow.from_result(pixels, explainer(scene["image"]), truth, names[scene["label"]]))
    save_figure(explanation_panel(rows, names), file)


def show_pipelines(model_dir: Path, scene: dict[str, Any]) -> Any:
    """Load the result through all three pipelines; print their predictions, return the explainer."""
    # the folder also contains its own code, for use without this package; here the installed code must run
    folder, image = str(model_dir), scene["image"]
    best = pipeline("image-classification", model=folder, trust_remote_code=False)(image)[0]
    print(f"  image-classification  {best['label']}, score {best['score']:.3f}")
    segments = pipeline("image-segmentation", model=folder, trust_remote_code=False)(image)
    print(f"  image-segmentation    {', '.join(segment['label'] for segment in segments)}")
    explainer = load_explainer(folder)
    result = explainer(image)
    box = tuple(result["box"].values()) if result["found"] else None
    where = f"box {box}, foreground {result['foreground_ratio']:.0%}"
    print(f"  patch-explanation     {result['label']}, score {result['score']:.3f}, {where}")
    return explainer


def explain_own_images(explainer: Any, paths: Sequence[str], output_dir: Path) -> list[str]:
    """Explain the user's files; print a line per image and return the errors."""
    files = find_images(paths, output_dir)
    if not files:
        return [f"no images found in {', '.join(paths)}"]
    explanations = explain_files(explainer, files, output_dir)
    for record in explanations.records:
        ratio = f"foreground {record['foreground_ratio']:.0%}"
        print(f"  {record['path']}: {record['label']}, score {record['score']:.2f}, {ratio} -> {record['output']}")
    return explanations.problems


@command(stopped="Stopped. The same command resumes the training.")
def main(argv: list[str]) -> int:
    """Run the demo; return the exit code."""
    (arguments,) = parse_dataclasses([DemoArguments], argv, __doc__)
    output_dir = make_folder(arguments.output_dir)
    model_dir, panel, report = (output_dir / name for name in ("model", "explanations.png", "results.json"))
    start = arguments.start or str(sample_folder("checkpoints", "deit-scenes"))
    recipe = arguments.recipe or str(sample_folder("recipes", "ice-deit-scenes.yaml"))
    if Path(start).resolve() == model_dir.resolve():
        raise ValueError(f"`--start` must not be OUTPUT_DIR/model, got {model_dir} for both. Choose another folder.")
    check_outputs([panel, report], [start, recipe, *find_images(arguments.images, output_dir)])

    seconds: dict[str, float] = {}
    try:
        with stage("1/4 Fine-tune ICE on drawn scenes", seconds):
            train(arguments, start, recipe, model_dir)
    except TrainingStoppedError as error:
        print(f"{error}\nThe same command resumes the training.", file=sys.stderr, flush=True)
        return error.exit_code
    settings = read_settings(arguments, recipe, model_dir)
    print(", ".join(f"{name} {value}" for name, value in settings.items()))
    size = json.loads((model_dir / "preprocessor_config.json").read_text(encoding="utf-8"))["size"]
    image_size = (size["height"], size["width"])
    dataset = load_scenes("test", arguments.num_eval, image_size=image_size, num_proc=os.cpu_count())
    with stage(f"2/4 Measure on {len(dataset)} held-out scenes", seconds):
        rows = compare(start, model_dir, dataset)
    print("\n" + format_table([asdict(row) for row in rows], HEADERS))
    with stage("3/4 Load the result back", seconds):
        explainer = show_pipelines(model_dir, dataset[0])
    with stage("4/4 Draw explanations", seconds):
        draw_panel(explainer, dataset, panel)
        problems = explain_own_images(explainer, arguments.images, output_dir / "images") if arguments.images else []

    results = {"settings": settings, "rows": [asdict(row) for row in rows], "seconds": seconds}
    write_text(report, json.dumps(results, indent=2) + "\n")
    for problem in problems:
        print(f"Error: {problem}", file=sys.stderr)
    where = f", your images in {output_dir / 'images'}" if arguments.images else ""
    print(f"\nmodel in {model_dir}, panel {panel}, {report}{where}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
