# SPDX-License-Identifier: Apache-2.0
"""Convert a ViT, DeiT or ICE checkpoint into a folder that the Auto classes load.

    transformers-ice convert --checkpoint 0_checkpoint.pth --output_dir checkpoints/ice-deit-small
    transformers-ice convert --checkpoint deit_small_patch16_224-cd65a155.pth --output_dir deit-small

Seconds on a CPU. Reads `.pth` and `.safetensors` of facebook/timm DeiT and of the ICE authors, and transformers
folders of ViT and DeiT models. Nothing is executed from a checkpoint, and every key is accounted for: the report
counts those found and converted, and lists those that were dropped, with the reason, and those that were initialised.
Options may also be in one YAML or JSON file, given as the only argument.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from ..console.command_line import parse_dataclasses
from ..console.exits import command
from ..console.output_files import check_outputs, write_json
from ..conversion import ConversionReport, convert_checkpoint, read_id2label


__all__ = ["ConversionArguments", "convert", "main"]


WRITTEN_FILES = ("config.json", "model.safetensors", "preprocessor_config.json")


@dataclass
class ConversionArguments:
    """Options of the conversion; see `transformers_ice.conversion.convert_checkpoint`."""

    checkpoint: str = field(metadata={"help": "Weight file (.pth, .pt, .bin, .safetensors) or transformers folder."})
    output_dir: str = field(metadata={"help": "Folder to write; must be new or empty."})
    num_attention_heads: int | None = field(
        default=None, metadata={"help": "Heads per layer. Not in the weights; default: hidden size / 64."}
    )
    image_size: list[int] | None = field(
        default=None,
        metadata={"help": "Side, or height and width, in pixels. Needed where the position grid is not square."},
    )
    id2label: str | None = field(
        default=None, metadata={"help": "JSON file with the class names: a list, or an object index -> name."}
    )
    weights_key: str | None = field(
        default=None, metadata={"help": "Entry of a training checkpoint to take, e.g. model_ema. Default: model."}
    )
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Write into a folder that holds files."})
    report: str | None = field(default=None, metadata={"help": "JSON file to write the report to."})


def parse_arguments(argv: Sequence[str]) -> ConversionArguments:
    """Parse the command line, or a YAML or JSON file followed by options; mistakes exit with code 2."""
    return cast(ConversionArguments, parse_dataclasses([ConversionArguments], argv, __doc__)[0])


def check_paths(arguments: ConversionArguments) -> None:
    """Refuse outputs that would overwrite an input.

    Raises:
        ValueError: If the report or a file of the new folder is the checkpoint, a file of it, or the class names.
    """
    names = [] if arguments.id2label is None else [arguments.id2label]
    outputs = [Path(arguments.output_dir, name) for name in WRITTEN_FILES]
    if arguments.report is not None:
        check_outputs([arguments.report], [arguments.checkpoint])
        outputs.append(Path(arguments.report))
    check_outputs(outputs, names)


def print_report(report: ConversionReport) -> None:
    """Print the result for every key, and the sizes that were inferred from the weights."""
    rows = {
        "naming of the source": report.layout,
        "tensors found": report.num_source_keys,
        "tensors converted": f"{report.num_converted_keys} (a fused qkv counts as three)",
        **{f"dropped {key}": reason for key, reason in report.dropped_keys.items()},
        **{f"initialised {key}": "not in the checkpoint: train it" for key in report.initialized_keys},
        **(report.sizes or {}),
        **{f"preprocessing {name}": value for name, value in (report.preprocessing or {}).items()},
        "written to": report.output_dir,
    }
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")


def convert(arguments: ConversionArguments) -> ConversionReport:
    """Convert, print the report and, with `--report`, write it.

    Raises:
        OSError: If something cannot be read or written.
        ValueError: If the checkpoint cannot be converted, or an output would replace an input.
    """
    check_paths(arguments)
    image_size = arguments.image_size
    report = convert_checkpoint(
        arguments.checkpoint,
        arguments.output_dir,
        num_attention_heads=arguments.num_attention_heads,
        image_size=image_size[0] if image_size and len(image_size) == 1 else image_size,
        id2label=read_id2label(arguments.id2label) if arguments.id2label else None,
        weights_key=arguments.weights_key,
        overwrite_output_dir=arguments.overwrite_output_dir,
    )
    print_report(report)
    if arguments.report:
        write_json(arguments.report, report.to_dict(), indent=2)
    return report


@command()
def main(argv: list[str]) -> int:
    """Run the conversion of the command line; return the exit code."""
    convert(parse_arguments(argv))
    return 0


if __name__ == "__main__":
    sys.exit(main())
