# SPDX-License-Identifier: Apache-2.0
r"""Does the mask take the context with the object? Masks of a model against true boxes or masks, class by class.

    python benchmarks/context_by_class.py --model checkpoints/ice-deit-imagenette --dataset_name imagenette \
        --data_dir imagenette2 --boxes_file boxes.csv --worst 3

For the images of each class it prints the shares of the image that the object and the foreground take, how much of the
foreground lies on the object (an even spread would have the share of the object), and how much of the object is
foreground; each the mean over the images. Boxes hold some ground, so that a good mask does not fill them. `--worst`
names the images of each class whose foreground and object overlap least, to be looked at.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from annotated_images import add_image_options, load_images_of
from transformers import pipeline

import transformers_ice  # noqa: F401  # registers the pipeline
from transformers_ice.console.tables import format_markdown_table
from transformers_ice.data.benchmarks.examples import Example


BATCH_SIZE = 32


@dataclass(frozen=True)
class Overlap:
    """Foreground and object of one image as shares: of the image, of the foreground, of the object, of both."""

    image_id: str
    object_share: float
    foreground_share: float
    on_object: float
    covered: float
    iou: float


def object_mask(example: Example) -> np.ndarray:
    """Return 1 on the object, 0 beside it, -1 where that is not known: the mask, or what the boxes enclose."""
    if example.mask is not None:
        return example.mask
    if example.boxes is None:
        raise SystemExit(f"The images need masks or boxes, got none for {example.image_id}.")
    inside = np.zeros((example.image.height, example.image.width), np.int8)
    for left, top, right, bottom in example.boxes.round().astype(int):
        inside[top:bottom, left:right] = 1
    return inside


def compare(image_id: str, foreground: np.ndarray, truth: np.ndarray) -> Overlap:
    """Compare a foreground `(height, width)`, bool, with the result of `object_mask`; unknown pixels are left out."""
    known, is_object = truth >= 0, truth == 1
    found = foreground & known
    both = (found & is_object).sum()
    union = (found | is_object).sum()
    return Overlap(
        image_id,
        object_share=is_object.sum() / max(known.sum(), 1),
        foreground_share=found.sum() / max(known.sum(), 1),
        on_object=both / max(found.sum(), 1),
        covered=both / max(is_object.sum(), 1),
        iou=both / max(union, 1),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table, and the worst images of each class."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="checkpoint folder or Hub id")
    add_image_options(parser)
    parser.add_argument("--worst", type=int, default=0, help="images of each class to name")
    arguments = parser.parse_args(argv)
    examples, indices = load_images_of(arguments)
    explain = pipeline("patch-explanation", model=arguments.model, device="cpu")
    by_class: dict[str, list[Overlap]] = {}
    for start in range(0, len(indices), BATCH_SIZE):
        batch = [examples[index] for index in indices[start : start + BATCH_SIZE]]
        results = explain([example.image for example in batch], batch_size=BATCH_SIZE)
        for example, result in zip(batch, results, strict=True):
            name = "all" if example.label is None else examples.class_names[example.label]
            overlap = compare(example.image_id, result["mask"], object_mask(example))
            by_class.setdefault(name, []).append(overlap)
    rows = []
    for name, overlaps in sorted(by_class.items()):
        columns = ("object_share", "foreground_share", "on_object", "covered", "iou")
        means = {column: float(np.mean([getattr(overlap, column) for overlap in overlaps])) for column in columns}
        rows.append({"class": name, "n": len(overlaps), **means})
    headers = {"class": "class", "n": "images", "object_share": "object", "foreground_share": "foreground"}
    headers |= {"on_object": "foreground on the object", "covered": "object that is foreground", "iou": "IoU"}
    print(format_markdown_table(rows, headers, 2))
    for name, overlaps in sorted(by_class.items()):
        for overlap in sorted(overlaps, key=lambda own: own.iou)[: arguments.worst]:
            print(f"{name}: {overlap.image_id}, IoU {overlap.iou:.2f}, {overlap.on_object:.2f} on the object")


if __name__ == "__main__":
    sys.exit(main())
