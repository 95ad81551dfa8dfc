# SPDX-License-Identifier: Apache-2.0
r"""Pictures of no known class: how often a model says so, and how well its score tells them from known ones.

    python benchmarks/unknown_pictures.py --model outputs/ice-deit-imagenette --known photos/val \
        --unknown caltech101/BACKGROUND_Google --limit 468

`--known` has one subfolder per class of the model, `--unknown` any images. For both it prints how often no patch is
foreground (the label is then "background"), and quantiles of the pipeline's score; then the probability that a known
picture has the higher score (AUROC; 0.5 is chance), and how many unknown ones lie below the score that 95 % of the
known reach. What counts as "background" here has the score 0.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from run_pruning_study import positive
from transformers import pipeline

import transformers_ice  # noqa: F401  # registers the pipeline
from transformers_ice.console.tables import format_markdown_table
from transformers_ice.data.files import list_files


def separation(known: np.ndarray, unknown: np.ndarray) -> float:
    """Return the probability that a known picture has a higher score than an unknown one; ties count half."""
    above = (known[:, None] > unknown).mean()
    return float(above + (known[:, None] == unknown).mean() / 2)


def score_images(model: str, folder: str, limit: int | None) -> np.ndarray:
    """Return the score of each image of a folder at any depth, 0 where the label is background."""
    names = list_files(Path(folder)).files
    if not names:
        raise SystemExit(f"{folder} holds no images.")
    if limit is not None:  # at equal distances, so that every class has its share
        names = [names[index * len(names) // limit] for index in range(min(limit, len(names)))]
    explain = pipeline("patch-explanation", model=model, device="cpu")
    results = explain((str(Path(folder) / name) for name in names), batch_size=32)
    return np.array([result["score"] if result["found"] else 0.0 for result in results])


def main(argv: Sequence[str] | None = None) -> None:
    """Score both sets and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="checkpoint folder or Hub id")
    parser.add_argument("--known", required=True, help="images of the classes of the model")
    parser.add_argument("--unknown", required=True, help="images of none of them")
    parser.add_argument("--limit", type=positive, help="images of each to use, at equal distances; default: all")
    arguments = parser.parse_args(argv)
    scores = {
        name: score_images(arguments.model, getattr(arguments, name), arguments.limit) for name in ("known", "unknown")
    }
    rows = []
    for name, values in scores.items():
        low, median, high = (float(value) for value in np.quantile(values, (0.05, 0.5, 0.95)))
        background = float((values == 0).mean())
        rows.append({"set": name, "n": len(values), "none": background, "low": low, "median": median, "high": high})
    headers = {"set": "pictures", "n": "number", "none": "background", "low": "score, 5 %", "median": "50 %"}
    print(format_markdown_table(rows, headers | {"high": "95 %"}, 3))
    cut = float(np.quantile(scores["known"], 0.05))
    below = float((scores["unknown"] < cut).mean())
    print(
        f"A known picture has the higher score with probability {separation(scores['known'], scores['unknown']):.3f}."
    )
    print(f"95 % of the known reach {cut:.3f}; {below:.3f} of the unknown lie below it.")


if __name__ == "__main__":
    sys.exit(main())
