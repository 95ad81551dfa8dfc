# SPDX-License-Identifier: Apache-2.0
"""Options of annotated images, for the scripts that measure a model on images of your own or on a named set."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from run_pruning_study import positive

from transformers_ice.data.benchmarks import load_evaluation_set


def add_image_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `load_images_of` reads."""
    parser.add_argument("--dataset_name", help="as in run_evaluation.py; default: a folder of images and masks")
    parser.add_argument("--data_dir", help="the images")
    parser.add_argument("--boxes_file", help="CSV of the boxes, of sets that have one")
    parser.add_argument("--ignore_value", type=int, help="unknown pixels in the masks of a folder")
    parser.add_argument("--skip", type=int, default=0, help="images to leave out at the beginning")
    parser.add_argument("--limit", type=positive, help="most images after them, of sets in a random order")


def load_images_of(arguments: argparse.Namespace, needs: Sequence[str] = ()) -> tuple[Any, range]:
    """Return the evaluation set of the options, and the indices of the examples that are wanted.

    Args:
        arguments: The parsed options.
        needs: What each example must have: "label", "mask" or "boxes".
    """
    options = {name: getattr(arguments, name) for name in ("boxes_file", "ignore_value")}
    given = {name: value for name, value in options.items() if value is not None}
    limit = None if arguments.limit is None else arguments.skip + arguments.limit
    examples = load_evaluation_set(arguments.dataset_name, arguments.data_dir, limit=limit, needs=needs, **given)
    return examples, range(arguments.skip, len(examples))
