# SPDX-License-Identifier: Apache-2.0
r"""Mosaics of photographs with the list of their classes: images of several objects, from labels of single ones.

    python benchmarks/make_mosaics.py --image_dir photos/train --output_dir mosaics/train

Four images drawn at random stand in a square of two by two, of any classes, also twice the same; others stand alone.
OUTPUT_DIR/metadata.jsonl lists the classes of each: `transformers-ice train --train_dir` takes the folder as it is.
IMAGE_DIR has one subfolder of images per class.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from transformers_ice.console.output_files import make_folder, write_text


CELL = 80  # side of a cell in pixels; an image that stands alone has twice that


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments of the command line by name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image_dir", type=Path, required=True, help="one subfolder of images per class")
    parser.add_argument("--output_dir", type=Path, required=True, help="the new images and metadata.jsonl")
    parser.add_argument("--num_mosaics", type=int, default=6000, help="squares of four images")
    parser.add_argument("--num_single", type=int, default=4000, help="images that stand alone")
    parser.add_argument("--seed", type=int, default=0, help="which images, and where")
    return parser.parse_args(argv)


def read(file: Path, side: int) -> Image.Image:
    """Return an image squashed to a square of `side` pixels."""
    with Image.open(file) as image:
        return image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)


def compose(files: Sequence[Path]) -> Image.Image:
    """Return four images in a square, row by row."""
    mosaic = Image.new("RGB", (2 * CELL, 2 * CELL))
    for place, file in enumerate(files):
        mosaic.paste(read(file, CELL), (CELL * (place % 2), CELL * (place // 2)))
    return mosaic


def main(argv: Sequence[str] | None = None) -> None:
    """Write the images, then the list of their classes."""
    arguments = parse_arguments(argv)
    folders = sorted(path for path in arguments.image_dir.iterdir() if path.is_dir())
    files = [(file, folder.name) for folder in folders for file in sorted(folder.iterdir())]
    if len(files) < max(4, arguments.num_single):
        sys.exit(f"Error: {arguments.image_dir} must hold {max(4, arguments.num_single)} images, got {len(files)}.")
    make_folder(arguments.output_dir)
    generator, lines = random.Random(arguments.seed), []
    for number in range(arguments.num_mosaics):
        chosen = generator.sample(files, 4)
        compose([file for file, _ in chosen]).save(arguments.output_dir / f"m{number}.jpg", quality=92)
        lines.append({"file_name": f"m{number}.jpg", "label": sorted({label for _, label in chosen})})
    for number, (file, label) in enumerate(generator.sample(files, arguments.num_single)):
        read(file, 2 * CELL).save(arguments.output_dir / f"s{number}.jpg", quality=92)
        lines.append({"file_name": f"s{number}.jpg", "label": [label]})
    write_text(arguments.output_dir / "metadata.jsonl", "\n".join(map(json.dumps, lines)) + "\n")


if __name__ == "__main__":
    main()
