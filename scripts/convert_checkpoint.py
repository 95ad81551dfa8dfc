# SPDX-License-Identifier: Apache-2.0
"""Turn a ViT, DeiT or ICE checkpoint into a folder that the Auto classes load.

    python scripts/convert_checkpoint.py --checkpoint 0_checkpoint.pth --output_dir checkpoints/ice-deit-small
    python scripts/convert_checkpoint.py --checkpoint deit_small_patch16_224-cd65a155.pth --output_dir deit-small

Seconds on a CPU. Reads `.pth` and `.safetensors` of facebook/timm DeiT and of the ICE authors, and transformers
folders of ViT and DeiT models. Nothing is executed from a checkpoint, and every key is accounted for: the report says
how many were found and converted, which were dropped and why, and which had to be initialised. Options may also stand
in one YAML or JSON file, given as the only argument.
"""

from __future__ import annotations

import sys
from argparse import RawDescriptionHelpFormatter
from dataclasses import dataclass, field
from pathlib import Path

from transformers import HfArgumentParser

from transformers_ice.conversion import ConversionReport, convert_checkpoint, read_id2label
from transformers_ice.output_files import check_outputs, write_json


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


def parse_arguments(argv: list[str]) -> ConversionArguments:
    """Parse the command line, or the one YAML or JSON file that it names; mistakes exit with code 2."""
    parser = HfArgumentParser(
        ConversionArguments, description=__doc__, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False
    )
    try:
        if len(argv) == 1 and argv[0].endswith((".yaml", ".yml")):
            return parser.parse_yaml_file(argv[0])[0]
        if len(argv) == 1 and argv[0].endswith(".json"):
            return parser.parse_json_file(argv[0])[0]
        return parser.parse_args_into_dataclasses(argv, look_for_args_file=False)[0]
    except (OSError, TypeError, ValueError) as error:
        parser.error(str(error))


def check_paths(arguments: ConversionArguments) -> None:
    """Refuse to write over what is read.

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
    """Print what became of every key, and what was read off the weights."""
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


def main(argv: list[str] | None = None) -> ConversionReport:
    """Convert, print the report and, if asked, write it."""
    arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
    image_size = arguments.image_size
    try:
        check_paths(arguments)
        report = convert_checkpoint(
            arguments.checkpoint,
            arguments.output_dir,
            num_attention_heads=arguments.num_attention_heads,
            image_size=image_size[0] if image_size and len(image_size) == 1 else image_size,
            id2label=read_id2label(arguments.id2label) if arguments.id2label else None,
            weights_key=arguments.weights_key,
            overwrite_output_dir=arguments.overwrite_output_dir,
        )
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print_report(report)
    if arguments.report:
        try:
            write_json(arguments.report, report.to_dict(), indent=2)
        except OSError as error:
            sys.exit(f"error: {error}")
    return report


if __name__ == "__main__":
    main()
