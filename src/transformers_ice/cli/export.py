# SPDX-License-Identifier: Apache-2.0
r"""Write an ICE checkpoint as an ONNX file, verify its predictions, and make a smaller one with 8-bit weights.

    transformers-ice export --model checkpoints/ice-deit-scenes --output outputs/onnx/ice-deit-scenes.onnx \
        --int8 --dataset_name scenes --num_images 1000

Half a minute on two cores. It prints the size of each file, its largest differences from PyTorch for batches of
`--batch_sizes`, and with `--dataset_name`, of PyTorch, ONNX Runtime and OpenVINO, images per second by turns at these
sizes, top-1, mean IoU and how often the best class is PyTorch's. docs/deployment.md shows it.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification

from ..console.command_line import check_number, parse_dataclasses
from ..console.exits import command
from ..console.output_files import check_outputs, staged, write_text
from ..console.tables import format_table
from ..data.benchmarks import load_evaluation_set
from ..evaluation.checkpoints import labels_by_name
from ..export import (
    OnnxModel,
    compare_with_onnx,
    export_onnx,
    processed_size,
    quantize_int8,
    score_exports,
    time_exports,
)
from ..hardware import has_fast_bfloat16
from ..inference import is_installed
from ..model_names import resolve_model_name
from .image_files import calibration_pixels


__all__ = ["ExportArguments", "main", "run"]

_SCORES = {"top_1": "top-1", "mean_iou": "mean IoU", "top_1_agreement": "same class as PyTorch"}


@dataclass
class ExportArguments:
    """Options of the export; see `transformers_ice.export`."""

    model: str = field(metadata={"help": "Folder or Hub id of an ICE classifier."})
    output: str = field(metadata={"help": "ONNX file to write."})
    image_size: list[int] | None = field(
        default=None,
        metadata={"help": "Side, or height and width, in pixels. Default: what the image processor makes."},
    )
    int8: bool = field(default=False, metadata={"help": "Also write OUTPUT with 8-bit weights, as NAME.int8.onnx."})
    calibration_dir: str | None = field(
        default=None,
        metadata={"help": "Images like those to come: by up to 128, --int8 rounds activations too, for OpenVINO."},
    )
    tolerance: float = field(
        default=1e-3, metadata={"help": "Refuse the file where an output differs by more from PyTorch's."}
    )
    batch_sizes: list[int] = field(default_factory=lambda: [1, 3, 8], metadata={"help": "Batches to compare at."})
    dataset_name: str | None = field(
        default=None,
        metadata={"help": "Images with labels and masks to score on, e.g. scenes. Default: noise, no score."},
    )
    data_dir: str | None = field(default=None, metadata={"help": "Their folder or file, for sets that are not drawn."})
    num_images: int = field(default=1000, metadata={"help": "Number of images to score on."})
    pruning_strategy: str | None = field(
        default=None, metadata={"help": 'Pruning strategy in place of the model\'s; "attentiveness" needs no heads.'}
    )
    pruning_layers: list[int] | None = field(default=None, metadata={"help": "0-based layers that prune patches."})
    keep_rates: list[float] | None = field(default=None, metadata={"help": "Fraction of the patches kept at each."})
    fuse_pruned_tokens: bool | None = field(default=None, metadata={"help": "Fuse the pruned patches into one token."})
    report: str | None = field(default=None, metadata={"help": "JSON file to write the results to."})

    def __post_init__(self) -> None:
        check_number("num_images", self.num_images, "at least 1", self.num_images >= 1)
        if self.calibration_dir and not self.int8:
            raise ValueError("--calibration_dir needs --int8")
        check_number("tolerance", self.tolerance, "at least 0", self.tolerance >= 0)
        smallest = min(self.batch_sizes, default=0)
        check_number("batch_sizes", smallest, "numbers of at least 1", smallest >= 1)


def load(arguments: ExportArguments) -> tuple[Any, Any]:
    """Return model and image processor with the changes of the command line."""
    names = ("pruning_strategy", "pruning_layers", "keep_rates", "fuse_pruned_tokens")
    changes = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    folder = resolve_model_name(arguments.model)
    model = AutoModelForImageClassification.from_pretrained(folder, dtype=torch.float32, **changes)
    if changes and model.config.pruning_strategy is None:
        raise ValueError(f"--{' and --'.join(changes)} need --pruning_strategy: {folder} prunes nothing.")
    preprocessing = {}
    if arguments.image_size:
        height, width = arguments.image_size if len(arguments.image_size) == 2 else arguments.image_size * 2
        # no crop: the images must have exactly the exported size
        preprocessing = {"size": {"height": height, "width": width}, "do_center_crop": False}
    return model, AutoImageProcessor.from_pretrained(folder, **preprocessing)


def example_images(arguments: ExportArguments, model: Any, image_processor: Any, examples: Any) -> torch.Tensor:
    """Return pixel values for the largest batch: of the data set's first images, or noise."""
    count = max(arguments.batch_sizes)
    if examples is not None:
        images = [examples[index].image for index in range(min(count, len(examples)))]
        return image_processor(images, return_tensors="pt")["pixel_values"]
    shape = (count, model.config.num_channels, *processed_size(image_processor))
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def open_runs(files: Mapping[str, Path], is_calibrated: bool = False) -> dict[str, OnnxModel]:
    """Return what runs the files, by name: each by ONNX Runtime and, but for an int8 one not calibrated, OpenVINO."""
    runs = {name: OnnxModel(file) for name, file in files.items()}
    if is_installed("openvino"):
        runs["ONNX by OpenVINO"] = OnnxModel(files["ONNX"], "openvino")
        fast = "bfloat16" if has_fast_bfloat16() else "float32"
        if fast == "bfloat16":
            runs["ONNX by OpenVINO, bfloat16"] = OnnxModel(files["ONNX"], "openvino", fast)
        if is_calibrated:
            runs["ONNX int8 by OpenVINO"] = OnnxModel(files["ONNX int8"], "openvino", fast)
    return runs


def run(arguments: ExportArguments) -> dict[str, Any]:
    """Export, compare and score; return the report. A file that predicts something else than the model is not kept."""
    output = Path(arguments.output)
    int8_output = output.with_suffix(".int8.onnx")
    # NAME.data: file of large weights
    outputs = [output, output.with_name(f"{output.name}.data")]
    outputs += [int8_output, int8_output.with_name(f"{int8_output.name}.data")] if arguments.int8 else []
    outputs += [Path(arguments.report)] if arguments.report else []
    check_outputs(outputs, [resolve_model_name(arguments.model)])
    examples = None
    if arguments.dataset_name or arguments.data_dir:
        examples = load_evaluation_set(
            arguments.dataset_name, arguments.data_dir, limit=arguments.num_images, needs=("label", "mask")
        )
    model, image_processor = load(arguments)
    size = arguments.image_size
    image_size = size[0] if size and len(size) == 1 else size
    pixel_values = example_images(arguments, model, image_processor, examples)
    calibration_images = None  # read before the export, which takes much longer
    if arguments.calibration_dir:
        calibration_images = calibration_pixels(arguments.calibration_dir, image_processor)
    # the file gets its name only if it predicts the same as the model
    with staged(output.parent) as staging:
        files = {"ONNX": export_onnx(model, staging / output.name, image_processor, image_size, arguments.model)}
        differences = compare_with_onnx(model, files["ONNX"], pixel_values, arguments.batch_sizes)
        if not differences.is_within(arguments.tolerance):
            raise ValueError(f"the file differs by more than {arguments.tolerance:g} and was not kept: {differences}")
        compared = {"ONNX": differences}
        if arguments.int8:
            int8_file = staging / int8_output.name
            files["ONNX int8"] = quantize_int8(files["ONNX"], int8_file, calibration_images)
            compared["ONNX int8"] = compare_with_onnx(model, files["ONNX int8"], pixel_values, arguments.batch_sizes)
        runs = open_runs(files, calibration_images is not None)
        scores, speed = [], {}
        if examples is not None:
            label_map = labels_by_name(model, examples.class_names)
            scores = score_exports(model, runs, image_processor, examples, label_map)
            sizes = sorted(set(arguments.batch_sizes))
            speed = {size: time_exports(model, runs, pixel_values[:size]) for size in sizes}
    written = {name: output.with_name(file.name) for name, file in files.items()}
    return {
        "files": {name: {"path": str(file), "bytes": file.stat().st_size} for name, file in written.items()},
        "differences": {name: dataclasses.asdict(value) for name, value in compared.items()},
        "scores": [dataclasses.asdict(row) for row in scores],
        "images_per_second": {
            str(size): {name: dataclasses.asdict(rate) for name, rate in rates.items()}
            for size, rates in speed.items()
        },
    }


def print_results(results: Mapping[str, Any]) -> None:
    """Print sizes, differences and scores as tables."""
    for name, file in results["files"].items():
        differences = results["differences"][name]
        print(f"{name}: {file['path']}, {file['bytes'] / 1e6:.2f} MB")
        largest = ", ".join(f"{output} {value:.1e}" for output, value in differences["largest"].items())
        print(f"  differences from PyTorch: {largest}")
        layers = "the same" if differences["exit_layers_agree"] else "not the same for all"
        print(
            f"  exit layers of the patches: {layers}; same best class: {differences['top_1_agreement']:.1%} of images"
        )
    if results["scores"]:
        speed = results["images_per_second"]
        headers = {"name": "", **{size: f"images/s at {size}" for size in speed}, **_SCORES}
        rows = [
            {**row, **{size: rates[row["name"]]["median"] for size, rates in speed.items()}}
            for row in results["scores"]
        ]
        print(f"\n{format_table(rows, headers, dict.fromkeys(speed, 1))}")


@command()
def main(argv: list[str]) -> int:
    """Export, print and, with `--report`, write the report; return the exit code."""
    (arguments,) = parse_dataclasses([ExportArguments], argv, __doc__)
    results = run(arguments)
    print_results(results)
    if arguments.report:
        write_text(arguments.report, json.dumps(results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
