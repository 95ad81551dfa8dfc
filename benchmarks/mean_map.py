# SPDX-License-Identifier: Apache-2.0
r"""Whether maps follow the images or the place: the mean map of a model, by row and column of patches.

    python benchmarks/mean_map.py --models outputs/ice-deit-imagenette --image_dir photos/val --per_class 20

For each ICE model it prints the mean p(not background) of the rows of patches, from top to bottom, and of the columns,
from left to right; then two standard deviations: over the images, mean of the places, and of the mean map, over the
places. Where the second is much larger than the first, patches go by their place and not by what they show.
IMAGE_DIR has one subfolder per class; the first images of each, in the order of their names, are used.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from run_pruning_study import positive
from torch import Tensor

from transformers_ice import IceDeiTForImageClassification, IceDeiTImageProcessor
from transformers_ice.data.files import list_files


BATCH_SIZE = 32


def choose_images(image_dir: str, per_class: int) -> list[Path]:
    """Return the first images of each subfolder."""
    root, chosen = Path(image_dir), list[Path]()
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        chosen += [folder / name for name in list_files(folder).files[:per_class]]
    if not chosen:
        raise SystemExit(f"{root} must have subfolders of images, got none.")
    return chosen


@torch.no_grad()
def foreground_maps(model: str, files: Sequence[Path]) -> Tensor:
    """Return p(not background) of the patches, `(num_images, rows, columns)`."""
    network = IceDeiTForImageClassification.from_pretrained(model).eval()
    processor, maps = IceDeiTImageProcessor.from_pretrained(model), []
    for start in range(0, len(files), BATCH_SIZE):
        images = [Image.open(file).convert("RGB") for file in files[start : start + BATCH_SIZE]]
        outputs = network(**processor(images, return_tensors="pt"))
        maps.append(1 - outputs.patch_logits.softmax(-1)[..., -1].unflatten(1, outputs.grid_size[0].tolist()))
    return torch.cat(maps)


def describe_maps(maps: Tensor) -> str:
    """Return the four lines on maps `(num_images, rows, columns)`."""
    mean = maps.mean(0)
    rows, columns = (" ".join(f"{value:.2f}" for value in mean.mean(axis).tolist()) for axis in (1, 0))
    return (
        f"rows, top to bottom: {rows}\ncolumns, left to right: {columns}\n"
        f"standard deviation over images: {maps.std(0).mean():.2f}\n"
        f"standard deviation of the mean map, over places: {mean.std():.2f}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Print the lines of every model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, help="folders of ICE checkpoints")
    parser.add_argument("--image_dir", required=True, help="one subfolder of images per class")
    parser.add_argument("--per_class", type=positive, default=20, help="images of each class")
    arguments = parser.parse_args(argv)
    files = choose_images(arguments.image_dir, arguments.per_class)
    for model in arguments.models:
        print(f"{model}, {len(files)} images\n{describe_maps(foreground_maps(model, files))}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
