# SPDX-License-Identifier: Apache-2.0
r"""What each margin of a model with pruning heads costs and saves, on annotated images of your own.

    python benchmarks/pruning_margins.py --model outputs/pets-pruned --data_dir pets/validation --ignore_value 255 \
        --margins 0 1 2 3 4 6
    python benchmarks/pruning_margins.py --model outputs/pets-pruned --data_dir pets/annotated --ignore_value 255 \
        --margins 2 --counts_dir outputs/counts

DATA_DIR is a folder of images, masks and classes (`AnnotatedFolder`), `--dataset_name` another set with labels and
masks. Each margin is a row: top-1, its difference to the model without pruning in percentage points, mean IoU, the
patches that are kept after each pruning layer, and arithmetic. Choose a margin by images other than those that it is
reported on (`--skip`). COUNTS_DIR gets the fraction of patches that each image kept, for `scripts/run_benchmark.py
--keep_counts` to replay on another model.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from annotated_images import add_image_options, load_images_of
from PIL import Image
from pruning_scores import pruning_rows, pruning_table, summarize_pruning
from torch import Tensor

from transformers_ice import IceDeiTForImageClassification, IceDeiTImageProcessor
from transformers_ice.console.output_files import write_json


UNPRUNED = "unpruned"


def load_annotated(arguments: argparse.Namespace, label2id: dict[str, int]) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Return pixel values, labels of the model, and masks at the size of its input: 1, 0, and -1 for ignored."""
    processor = IceDeiTImageProcessor.from_pretrained(arguments.model)
    examples, indices = load_images_of(arguments, needs=("label", "mask"))
    pixels, labels, masks = [], [], []
    for index in indices:
        example = examples[index]
        pixels.append(processor(example.image, return_tensors="pt")["pixel_values"])
        labels.append(label2id[examples.class_names[example.label]])
        size = pixels[-1].shape[:1:-1]  # (width, height)
        masks.append(np.asarray(Image.fromarray(example.mask).resize(size, Image.Resampling.NEAREST)))
    return torch.cat(pixels), np.asarray(labels), np.stack(masks)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a model trained with pruning heads")
    add_image_options(parser)
    parser.add_argument("--margins", type=float, nargs="+", required=True, help="values of background_margin")
    parser.add_argument("--counts_dir", type=Path, help="folder for the fractions of patches that are kept")
    arguments = parser.parse_args(argv)
    model = IceDeiTForImageClassification.from_pretrained(arguments.model)
    if not model.deit.pruning_heads:
        raise SystemExit(f"{arguments.model} has no pruning heads. Train them: `--pruning_strategy background`.")
    images = load_annotated(arguments, model.config.label2id)
    grid = [side // model.config.patch_size for side in images[0].shape[2:]]
    num_patches = grid[0] * grid[1]
    runs = {}
    for margin in (None, *arguments.margins):
        model.config.pruning_strategy = None if margin is None else "background"
        model.config.background_margin = 0.0 if margin is None else margin
        rows = pruning_rows(model, *images, batch_size=16)
        runs[UNPRUNED if margin is None else f"margin {margin:g}"] = copy.deepcopy(model.config), [rows]
        if margin is not None and arguments.counts_dir is not None:
            shares = (rows.kept / num_patches).round(6).tolist()
            write_json(arguments.counts_dir / f"margin {margin:g}.json", shares, indent=None)
    print(pruning_table(summarize_pruning(runs, UNPRUNED, num_patches)))


if __name__ == "__main__":
    sys.exit(main())
