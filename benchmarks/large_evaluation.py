# SPDX-License-Identifier: Apache-2.0
r"""Evaluation of many images: seconds, memory as it goes on, and a kill on the way.

    python benchmarks/large_evaluation.py --num_images 50000 --kill_at 20000

Scores a tiny random model on scenes of 32 pixels, which are drawn when they are read, so that nothing but the
evaluation itself can grow: the benchmark "segmentation" for ICE and the controls, with `--benchmark classification`
for the model alone. The process is killed (`kill -9`) once `--kill_at` images are done, and a second one resumes.
Printed are its memory at each step of `--step` images, and the scores.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from app_visitors import resident_mb
from PIL import Image

from transformers_ice import IceDeiTConfig, IceDeiTForImageClassification, IceDeiTImageProcessor
from transformers_ice.data.benchmarks.examples import EvaluationSet, Example
from transformers_ice.data.scenes import SCENE_CLASSES, draw_scene
from transformers_ice.evaluation import RowStore, load_checkpoint, run_benchmarks


IMAGE_SIZE, BATCH_SIZE = 32, 50


class DrawnScenes(EvaluationSet):
    """Scenes that are drawn when they are read."""

    def __init__(self, num_images: int) -> None:
        super().__init__("drawn-scenes", ("label", "mask"), SCENE_CLASSES)
        self.num_images = num_images

    def __len__(self) -> int:
        return self.num_images

    def _identity(self) -> Iterable[object]:
        return self.num_images, IMAGE_SIZE

    def _read(self, index: int) -> Example:
        scene = draw_scene(index, "test", IMAGE_SIZE)
        return Example(str(index), Image.fromarray(scene.image), scene.label, scene.mask.astype(np.int8))


def save_model(folder: Path) -> None:
    """Write a tiny random model."""
    torch.manual_seed(0)
    names = dict(enumerate(SCENE_CLASSES))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = IceDeiTConfig(**sizes, image_size=IMAGE_SIZE, patch_size=8, id2label=names)
    IceDeiTForImageClassification(config).save_pretrained(folder)
    IceDeiTImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}).save_pretrained(folder)


def evaluate(folder: Path, num_images: int, benchmark: str) -> None:
    """Score the model of a folder; rows that are there are not computed again. Prints the scores and the seconds."""
    start = time.monotonic()
    checkpoint = load_checkpoint(str(folder / "model"), None, torch.device("cpu"))
    store = RowStore(folder / "rows")
    results = run_benchmarks([checkpoint], DrawnScenes(num_images), [benchmark], ["ice"], store, batch_size=BATCH_SIZE)
    for result in results:
        scores = ", ".join(f"{name} {interval.value:.4f}" for name, interval in result.scores.items())
        print(f"{result.method or 'model'}: {result.num_examples} images, {scores}")
    print(f"{time.monotonic() - start:.0f} s, largest memory {resident_mb(name='VmHWM'):.0f} MB", flush=True)


def count_images(folder: Path) -> int:
    """Return how many images are done: every method has a file of each chunk, and they are written chunk by chunk."""
    return BATCH_SIZE * min((len(list(rows.glob("*.npz"))) for rows in (folder / "rows").glob("*")), default=0)


def watch(folder: Path, arguments: argparse.Namespace, kill_at: int | None) -> int:
    """Run an evaluation in a process of its own and print its memory; kill it where wanted. Return its exit code."""
    process = multiprocessing.get_context("spawn").Process(
        target=evaluate, args=(folder, arguments.num_images, arguments.benchmark)
    )
    reached = count_images(folder)
    process.start()
    while process.is_alive():
        done = count_images(folder)
        if done >= reached + arguments.step and process.is_alive():
            reached = done - done % arguments.step
            print(f"\n{done} images: {resident_mb(process.pid or 0):.0f} MB", flush=True)
        if kill_at is not None and done >= kill_at:
            process.kill()
            process.join()
            print(f"\nkilled at {done} images", flush=True)
        process.join(0.2)
    return process.exitcode or 0


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate, with a kill on the way; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_images", type=int, default=50_000)
    parser.add_argument("--kill_at", type=int, default=None, help="Images after which the first process is killed.")
    parser.add_argument("--step", type=int, default=5000, help="Images after which memory is printed.")
    parser.add_argument("--benchmark", choices=("segmentation", "classification"), default="segmentation")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="large-evaluation-") as home:
        save_model(Path(home) / "model")
        if arguments.kill_at is not None:
            watch(Path(home), arguments, arguments.kill_at)
        return watch(Path(home), arguments, None)


if __name__ == "__main__":
    sys.exit(main())
