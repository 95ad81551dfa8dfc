# SPDX-License-Identifier: Apache-2.0
r"""Where to cut foreground from background, image by image, without masks: what other rules than the model's give.

    python benchmarks/foreground_cuts.py --models outputs/pets/balanced-seed0 --data_dir pets/annotated \
        --ignore_value 255
    python benchmarks/foreground_cuts.py --models checkpoints/ice-deit-scenes --dataset_name scenes --limit 2000

A patch is foreground where its best class exceeds background: where its margin, the difference of these logits, is
over 0. Each rule moves that cut to another margin for each image, by all its margins: "midway" between the means of
what the model takes for foreground and for background; "two means", the same repeated with the new groups until they
stay; and Otsu's threshold (1979), the cut of the largest variance between the groups. An image of which all or no
patches are foreground keeps its cut. It prints the mean IoU of each rule (counts over all images) and its foreground.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

import numpy as np
import torch
from annotated_images import add_image_options, load_images_of
from PIL import Image
from pruning_scores import mask_rows
from torch import Tensor

from transformers_ice import IceDeiTForImageClassification, IceDeiTImageProcessor
from transformers_ice.console.tables import format_markdown_table


BATCH_SIZE = 16
MOST_REPEATS = 30


def midway(margins: Tensor, cut: Tensor) -> Tensor:
    """Return the middle of the mean margins on either side of a cut, `(num_images,)`."""
    above = margins > cut[:, None]
    means = [(margins * side).sum(1) / side.sum(1) for side in (above, ~above)]
    return (means[0] + means[1]) / 2


def two_means(margins: Tensor, cut: Tensor) -> Tensor:
    """Return the cut that `midway` leaves where it is, beginning at the one given."""
    for _ in range(MOST_REPEATS):
        cut = midway(margins, cut)
    return cut


def otsu(margins: Tensor, cut: Tensor) -> Tensor:
    """Return the cut with the largest variance between its groups, whatever the one given."""
    ordered = margins.sort(dim=1).values
    below, num = torch.arange(1, margins.shape[1]), margins.shape[1]
    sums = ordered.cumsum(1)[:, :-1]
    variance = (num * sums - below * ordered.sum(1, keepdim=True)) ** 2 / (below * (num - below))
    best = variance.argmax(1, keepdim=True)
    return (ordered.gather(1, best) + ordered.gather(1, best + 1)).squeeze(1) / 2


RULES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "the model's": lambda margins, cut: cut,
    "midway": midway,
    "two means": two_means,
    "Otsu": otsu,
}


def foreground(margins: Tensor, rule: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return which patches of margins `(num_images, num_patches)` are foreground by a rule, bool."""
    cut = margins.new_zeros(len(margins))
    is_mixed = (margins > 0).any(1) & (margins <= 0).any(1)
    cut[is_mixed] = rule(margins[is_mixed], cut[is_mixed])
    return margins > cut[:, None]


@torch.no_grad()
def patch_margins(folder: str, images: Sequence[Image.Image]) -> tuple[Tensor, tuple[int, int]]:
    """Return the margins of the patches, `(num_images, num_patches)`, and their grid."""
    model = IceDeiTForImageClassification.from_pretrained(folder).eval()
    processor, margins = IceDeiTImageProcessor.from_pretrained(folder), []
    for start in range(0, len(images), BATCH_SIZE):
        outputs = model(**processor(list(images[start : start + BATCH_SIZE]), return_tensors="pt"))
        margins.append(outputs.patch_logits[..., :-1].amax(-1) - outputs.patch_logits[..., -1])
        rows, columns = outputs.grid_size[0].tolist()
    return torch.cat(margins).float(), (rows, columns)


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, help="folders of ICE checkpoints")
    add_image_options(parser)
    arguments = parser.parse_args(argv)
    examples, indices = load_images_of(arguments, needs=("mask",))
    chosen = [examples[index] for index in indices]
    for folder in arguments.models:
        margins, grid = patch_margins(folder, [example.image for example in chosen])
        # masks as the model sees the images: a square, or what its grid is
        size = (grid[1] * 32, grid[0] * 32)
        truths = [Image.fromarray(example.mask).resize(size, Image.Resampling.NEAREST) for example in chosen]
        masks = np.stack([np.asarray(truth) for truth in truths])
        lines = []
        for name, rule in RULES.items():
            found = foreground(margins, rule)
            score = mask_rows(found.unflatten(1, grid), masks).mean_iou
            lines.append({"rule": name, "iou": score, "share": found.float().mean().item()})
        headers = {"rule": "cut", "iou": "mean IoU", "share": "foreground"}
        print(f"{folder}, {len(chosen)} images\n\n{format_markdown_table(lines, headers, 4)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
