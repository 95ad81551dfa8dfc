# SPDX-License-Identifier: Apache-2.0
"""Convert a ViT, DeiT, DINO, DINOv2, MAE or ICE checkpoint into a folder that the Auto classes load.

    transformers-ice convert --checkpoint 0_checkpoint.pth --output_dir checkpoints/ice-deit-small
    transformers-ice convert --checkpoint deit_small_patch16_224-cd65a155.pth --output_dir deit-small
    transformers-ice convert --checkpoint dinov2_vits14_pretrain.pth --output_dir start --num_labels 9 --image_size 224

Seconds on a CPU. Reads `.pth` and `.safetensors` of timm, of facebook's DeiT, DINO, DINOv2 and MAE and of the ICE
authors, and transformers folders of ViT, DeiT, MAE, MSN and DINOv2 models, also with registers. Nothing is executed
from a checkpoint, and every key is accounted for: the report counts those found and converted, and lists those that
were dropped, with the reason, those whose numbers were changed, and those that were initialised. At another image size
the position embeddings are interpolated as the source does it.
Options may also be in one YAML or JSON file, given as the only argument.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

from ..console.command_line import parse_dataclasses
from ..console.exits import command
from ..console.output_files import check_outputs, write_json
from ..conversion import ConversionReport, convert_checkpoint, read_id2label
from ..hub import ModelRecord, TrainingRecord, write_record
from ..hub.records import RECORD_FILE


__all__ = ["ConversionArguments", "main"]


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
        metadata={
            "help": "Side, or height and width, in pixels: the positions are interpolated to it, as the source does. "
            "Needed where the position grid is not square."
        },
    )
    id2label: str | None = field(
        default=None, metadata={"help": "JSON file with the class names: a list, or an object index -> name."}
    )
    num_labels: int | None = field(
        default=None,
        metadata={"help": "Classes of a new classifier where the checkpoint has none. Default: as in --id2label."},
    )
    position_interpolation: str | None = field(
        default=None,
        metadata={
            "help": "How the source interpolates positions: bicubic (transformers, DeiT, MAE), antialias (timm, "
            "DINOv2 with registers) or offset (facebook's DINO, DINOv2). Default: by the family or the weights' names."
        },
    )
    weights_key: str | None = field(
        default=None,
        metadata={"help": "Entry of a training checkpoint to take, e.g. model_ema. Default: model, then teacher."},
    )
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Write into a folder that holds files."})
    report: str | None = field(default=None, metadata={"help": "JSON file to write the report to."})


def print_report(report: ConversionReport) -> None:
    """Print the result for every key, and the sizes that were inferred from the weights."""
    rows = {
        "naming of the source": report.layout,
        "tensors found": report.num_source_keys,
        "tensors converted": f"{report.num_converted_keys} (a fused qkv counts as three)",
        **{f"dropped {key}": reason for key, reason in report.dropped_keys.items()},
        **{f"changed {key}": reason for key, reason in report.changed_keys.items()},
        **{f"initialised {key}": "not in the checkpoint: train it" for key in report.initialized_keys},
        **(report.sizes or {}),
        "position embeddings": report.positions,
        **{f"preprocessing {name}": value for name, value in (report.preprocessing or {}).items()},
        "written to": report.output_dir,
    }
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")


def write_card_record(arguments: ConversionArguments, report: ConversionReport) -> None:
    """Write what `scripts/write_model_card.py` starts from; the training of the checkpoint is not known here."""
    source, folder = Path(arguments.checkpoint).name, Path(arguments.output_dir)
    command = shlex.join(["transformers-ice", "convert", "--checkpoint", source, "--output_dir", folder.name])
    new = f" Not trained yet: {', '.join(report.initialized_keys)}." if report.initialized_keys else ""
    training = TrainingRecord(
        command=command, data=f"those of `{source}`, from which the weights were converted.{new}"
    )
    location = folder.as_posix()
    write_record(folder / RECORD_FILE, ModelRecord(folder.resolve().name, training, location=location))


@command()
def main(argv: list[str]) -> int:
    """Convert, print the report and, with `--report`, write it; nothing replaces an input. Return the exit code."""
    (arguments,) = parse_dataclasses([ConversionArguments], argv, __doc__)
    output_dir = Path(arguments.output_dir)
    outputs = [output_dir / name for name in ("config.json", "model.safetensors", "preprocessor_config.json")]
    if arguments.report is not None:
        check_outputs([arguments.report], [arguments.checkpoint])
        outputs.append(Path(arguments.report))
    check_outputs(outputs, [] if arguments.id2label is None else [arguments.id2label])
    image_size = arguments.image_size
    report = convert_checkpoint(
        arguments.checkpoint,
        output_dir,
        num_attention_heads=arguments.num_attention_heads,
        image_size=image_size[0] if image_size and len(image_size) == 1 else image_size,
        id2label=read_id2label(arguments.id2label) if arguments.id2label else None,
        weights_key=arguments.weights_key,
        num_labels=arguments.num_labels,
        position_interpolation=arguments.position_interpolation,
        overwrite_output_dir=arguments.overwrite_output_dir,
    )
    write_card_record(arguments, report)
    print_report(report)
    if arguments.report:
        write_json(arguments.report, report.to_dict(), indent=2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
