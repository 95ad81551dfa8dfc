# SPDX-License-Identifier: Apache-2.0
r"""Write model cards from recorded results, or measure a model first.

The cards of all sample checkpoints and templates, from model_cards/results.json (nothing is measured):

    python scripts/write_model_card.py --all

After a checkpoint was trained again: measure it, record the numbers, run its snippet, draw its figure, write its card:

    python scripts/write_model_card.py checkpoints/ice-deit-scenes-pruned --record

A folder that scripts/run_train.py wrote has its own record, model_card.json; `--evaluation` has the options of
scripts/run_evaluation.py to measure it:

    python scripts/write_model_card.py outputs/photos --record --evaluation "--benchmark classification segmentation \
        --data_dir photos/masks"

A folder that scripts/convert_checkpoint.py wrote has a record too; `--datasets imagenet-1k` says what it was trained
on.

`--license cc-by-nc-4.0` names another licence of the weights than Apache-2.0, and is kept in the record.

The card of a checkpoint NAME is written twice, as model_cards/NAME.md and as checkpoints/NAME/README.md, with its
figures next to it; that of another folder as its README.md. `--record` of a sample checkpoint took six minutes on two
cores (AMD EPYC) while other jobs ran.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

from transformers_ice.console.output_files import replaced, write_text
from transformers_ice.console.redaction import redact_arguments
from transformers_ice.hub import (
    ModelRecord,
    build_card,
    check_card,
    read_facts,
    read_record,
    read_records,
    write_record,
    write_records,
)
from transformers_ice.hub.card import facts_of_architecture, first_snippet
from transformers_ice.hub.pictures import draw_explanations, write_example_image
from transformers_ice.hub.records import RECORD_FILE, entries_from_evaluation, weights_digest
from transformers_ice.training.run_card import MARK, describe_hardware


ROOT = Path(__file__).resolve().parents[1]
CARDS = ROOT / "model_cards"
RESULTS = CARDS / "results.json"


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line by name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="the model; without --all")
    parser.add_argument("--all", action="store_true", help="every model of model_cards/results.json")
    parser.add_argument("--record", action="store_true", help="measure the model, run its snippet, draw its figure")
    parser.add_argument("--evaluation", help="options of scripts/run_evaluation.py; by default those of the record")
    parser.add_argument("--license", help="licence of the weights, as a Hub identifier; by default that of the record")
    parser.add_argument("--datasets", nargs="+", help="ids of the training data on the Hub, where they are not known")
    arguments = parser.parse_args(argv)
    if arguments.all == (arguments.folder is not None) or (arguments.all and (arguments.record or arguments.license)):
        parser.error("give one folder, with or without --record and --license, or --all")
    return arguments


def make_card(record: ModelRecord) -> str:
    """Return the card of a model of model_cards/results.json."""
    if record.is_template:
        return build_card(record, facts_of_architecture(record.architecture))
    picture = f"images/{record.name}.png"
    folder = ROOT / record.location
    return build_card(record, read_facts(folder), picture if (folder / picture).is_file() else None)


def write_project_card(record: ModelRecord) -> list[Path]:
    """Write the card of a model of the project to its two places, with its figures; return the files."""
    folders = [CARDS] if record.is_template else [CARDS, ROOT / record.location]
    files = [CARDS / f"{record.name}.md", *(folder / "README.md" for folder in folders[1:])]
    for file in files:
        write_text(file, _checked(make_card(record), file))
    picture = ROOT / record.location / "images" / f"{record.name}.png"
    if picture.is_file():
        with replaced(CARDS / "images" / picture.name, inside=CARDS) as temporary:
            shutil.copyfile(picture, temporary)
    return files


def write_own_card(folder: Path, record: ModelRecord) -> list[Path]:
    """Write the card of a folder that has its own record."""
    picture = f"images/{record.name}.png"
    text = build_card(record, read_facts(folder), picture if (folder / picture).is_file() else None)
    file = folder / "README.md"
    write_text(file, _checked(f"{text}\n{MARK}\n", file))
    return [file]


def _checked(text: str, file: Path) -> str:
    problems = check_card(text)
    if problems:
        raise ValueError(f"{file} would not be valid: {'; '.join(problems)}.")
    return text


def run_command(arguments: Sequence[str], folder: Path) -> str:
    """Run python on this project's code; return its standard output."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *arguments]
    finished = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    if finished.returncode:
        raise ValueError(
            f"`{shlex.join(['python', *arguments])[:300]}` ended with exit code {finished.returncode}, see above."
        )
    return finished.stdout


def measure(folder: Path, record: ModelRecord, home: Path) -> ModelRecord:
    """Evaluate a model, run its first snippet and return the record with the results.

    Args:
        folder: The model.
        record: Its record.
        home: Folder that `record.location` starts from.
    """
    if not record.evaluation:
        raise ValueError(f'{record.name} has no recorded command. Pass --evaluation "--benchmark classification ...".')
    options = ["--models", f"{record.name}={record.location}", *shlex.split(record.evaluation)]
    with tempfile.TemporaryDirectory() as output_dir:
        quiet = ["--num_pictures", "0", "--measure_cost", "false", "--output_dir", output_dir]
        run_command([str(ROOT / "scripts" / "run_evaluation.py"), *options, *quiet], home)
        report = json.loads(Path(output_dir, "results.json").read_text(encoding="utf-8"))
    results = entries_from_evaluation(
        report,
        record.name,
        seed=record.training.seed,
        command=shlex.join(["python", "scripts/run_evaluation.py", *redact_arguments(options)]),
        hardware=describe_hardware(),
        date=date.today().isoformat(),
    )
    record = replace(record, results=results, weights_sha256=weights_digest(folder), is_template=False, output="")
    if not (home / record.image).is_file():
        return record
    snippet = first_snippet(build_card(record, read_facts(folder)))
    return replace(record, output=run_command(["-c", snippet], home).strip())


def read_own_record(folder: Path) -> ModelRecord:
    """Read the record that a run wrote into its folder, which may have been moved since."""
    record = read_record(folder / RECORD_FILE)
    image = record.image.replace(f"{record.location}/", f"{folder.as_posix()}/")
    return replace(record, location=folder.as_posix(), image=image)


def draw_pictures(folder: Path, record: ModelRecord) -> None:
    """Draw the figures of a model: of drawn scenes, or of the example image of its record."""
    file, image = folder / "images" / f"{record.name}.png", ROOT / record.image
    if "scenes" in record.training.datasets:
        write_example_image(folder / "images" / "scene.png", inside=folder)
        draw_explanations(folder, file)
    elif image.is_file():
        draw_explanations(folder, file, images=[image])


def write_folder(arguments: argparse.Namespace) -> list[Path]:
    """Write the card of one folder; with `--record`, measure it first."""
    folder, records = arguments.folder, read_records(RESULTS)
    locations = {(ROOT / record.location).resolve(): name for name, record in records.items()}
    name = locations.get(folder.resolve())
    if name is None and not (folder / RECORD_FILE).is_file():
        raise ValueError(
            f"{folder} is not in {RESULTS.relative_to(ROOT)} and has no {RECORD_FILE} of its own. Pass a folder that "
            "scripts/run_train.py or scripts/convert_checkpoint.py wrote, or one of "
            f"{sorted(str(path.relative_to(ROOT)) for path in locations)}."
        )
    card = folder / "README.md"
    if name is None and card.is_file() and MARK not in card.read_text(encoding="utf-8"):
        raise ValueError(f"{card} must be a card of this project, got another file. Move it away.")
    record = read_own_record(folder) if name is None else records[name]
    changes = {"evaluation": arguments.evaluation, "license": arguments.license}
    record = replace(record, **{name: value for name, value in changes.items() if value})
    if arguments.datasets:
        record = replace(record, training=replace(record.training, datasets=tuple(arguments.datasets)))
    if not record.training.datasets:  # of a converted checkpoint
        raise ValueError(
            f"The training data of {folder} are not known, and a card must name them. Pass --datasets, with their ids "
            "on the Hub."
        )
    if arguments.record:
        draw_pictures(folder, record)
        before = read_record(folder / RECORD_FILE).results if (folder / RECORD_FILE).is_file() else ()
        record = measure(folder, record, Path.cwd() if name is None else ROOT)
        # the scores that the run measured at its end are kept as well
        kept = tuple(entry for entry in before if "scripts/run_train.py" in entry.command)
        record = replace(record, results=(*record.results, *kept))
    if name is None:
        write_record(folder / RECORD_FILE, record)
        return write_own_card(folder, record)
    write_records(RESULTS, {**records, name: record})
    return write_project_card(record)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the cards; return the exit code."""
    arguments = parse_arguments(argv)
    try:
        if arguments.all:
            records = read_records(RESULTS).values()
            # a model that is not in this repository keeps the card in its own folder
            here = [record for record in records if record.is_template or (ROOT / record.location).is_dir()]
            files = [file for record in here for file in write_project_card(record)]
        else:
            files = write_folder(arguments)
    except (OSError, ValueError, ImportError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    for file in files:
        print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
