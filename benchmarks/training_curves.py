# SPDX-License-Identifier: Apache-2.0
r"""How training went: accuracy, foreground and loss over the epochs, of any number of runs.

    python benchmarks/training_curves.py --output outputs/curves.png --runs balanced=outputs/pets/balanced-seed0 \
        balanced=outputs/pets/balanced-seed1 published=outputs/pets-published/seed0

Each run is `NAME=FOLDER`, FOLDER being the output of a training run; runs of one name, such as several seeds, have one
colour. Three plots: the validation accuracy of patches (drawn through) and of [CLS] (dashed), the ratio of foreground
patches of the validation images, and the loss of the training images.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME

from transformers_ice.console.output_files import replaced
from transformers_ice.visualization.colors import PALETTE, matplotlib_module


Curve = list[tuple[float, float]]

# by plot: heading, and the logged numbers that are drawn, by their line style
PLOTS = {
    "top-1 accuracy, validation": {"eval_top_1": "-", "eval_cls_top_1": "--"},
    "foreground ratio, validation": {"eval_foreground_ratio": "-"},
    "loss, training": {"loss": "-"},
}


def read_curves(folder: Path) -> dict[str, Curve]:
    """Return (epoch, value) of each logged number of a run, by its name."""
    file = folder / TRAINER_STATE_NAME
    if not file.is_file():
        raise SystemExit(f"{folder} must be the output of a training run, with {TRAINER_STATE_NAME}; it has none.")
    curves: dict[str, Curve] = {}
    for line in json.loads(file.read_text())["log_history"]:
        for name, value in line.items():
            curves.setdefault(name, []).append((line["epoch"], value))
    return curves


def draw_curves(runs: Sequence[tuple[str, dict[str, Curve]]]) -> Any:
    """Return a matplotlib figure of runs, each with its name and its curves."""
    matplotlib_module()
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    colors = dict(zip(dict.fromkeys(name for name, _ in runs), cycle(PALETTE), strict=False))
    figure = Figure(figsize=(4 * len(PLOTS), 3.6), dpi=130, layout="constrained")
    for axis, (heading, styles) in zip(figure.subplots(1, len(PLOTS)), PLOTS.items(), strict=True):
        for name, curves in runs:
            for key, style in styles.items():
                if key in curves:
                    axis.plot(*zip(*curves[key], strict=True), style, color=colors[name], linewidth=0.9)
        axis.set(title=heading, xlabel="epochs")
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
    handles = [Line2D([], [], color=color) for color in colors.values()]
    figure.legend(handles, colors, loc="outside lower center", ncols=len(colors), frameon=False)
    return figure


def named_run(text: str) -> tuple[str, Path]:
    """Return name and folder of `NAME=FOLDER`."""
    name, separator, folder = text.partition("=")
    if not (name and separator and folder):
        raise argparse.ArgumentTypeError(f"expected NAME=FOLDER, got {text!r}")
    return name, Path(folder)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the curves of the runs into a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=named_run, nargs="+", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--output", type=Path, required=True, help="the picture, a PNG file")
    arguments = parser.parse_args(argv)
    figure = draw_curves([(name, read_curves(folder)) for name, folder in arguments.runs])
    with replaced(arguments.output) as temporary:
        figure.savefig(temporary, format="png")
    print(f"The picture is {arguments.output}.")


if __name__ == "__main__":
    sys.exit(main())
