# SPDX-License-Identifier: Apache-2.0
"""The card that a run of `scripts/run_train.py` writes into its folder."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers.utils import is_matplotlib_available, logging

from ..console.output_files import write_text
from ..console.redaction import known_secrets, redact_arguments, redact_text
from ..data.images.arguments import DataArguments
from ..data.images.named_sets import find_hub_name
from ..hub.card import build_card, for_repository, read_facts
from ..hub.pictures import draw_explanations, write_example_image
from ..hub.records import RECORD_FILE, ModelRecord, TrainingRecord, entries_from_training, write_record
from ..speed import describe_machine
from .arguments import ModelArguments
from .progress import describe_kept
from .trainer import IceTrainer


__all__ = ["MARK", "RECORD_FILE", "RunCard", "describe_hardware"]

MARK = "<!-- Written by transformers-ice; the next run or scripts/write_model_card.py writes it anew. -->"

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class RunCard:
    """Writer of the card of a run, the `card_writer` of an `IceTrainer`; tokens and passwords do not appear in it."""

    arguments: Sequence[str]  # of the command line
    model_args: ModelArguments
    data_args: DataArguments

    def __call__(self, trainer: IceTrainer) -> None:
        """Write card, record and, for drawn scenes, the figures; a `README.md` without `MARK` is not replaced."""
        folder = Path(str(trainer.args.output_dir))
        card = folder / "README.md"
        if card.is_file() and MARK.encode() not in card.read_bytes():
            logger.warning(f"{card} was not written by this project and is not replaced.")
            return
        record = self.make_record(trainer)
        picture = self._draw(folder, record.name)
        text = build_card(record, read_facts(folder), picture) + f"\n{MARK}\n"
        text = redact_text(text, known_secrets(self.model_args, trainer.args))
        if trainer.hub_model_id:
            text = for_repository(text, trainer.hub_model_id)
        write_text(card, text)
        write_record(folder / RECORD_FILE, record)

    def make_record(self, trainer: IceTrainer) -> ModelRecord:
        """Return the record of the run's model, with the numbers of the last evaluation."""
        args, folder = trainer.args, Path(str(trainer.args.output_dir)).as_posix()
        secrets = known_secrets(self.model_args, args)
        dataset, data = self._describe_data(trainer.train_dataset, secrets)
        run: dict[str, Any] = {
            "command": shlex.join(["python", "scripts/run_train.py", *redact_arguments(self.arguments, secrets)]),
            "hardware": describe_hardware(args.world_size),
            "seed": args.seed,
        }
        base_model = _base_model(self.model_args.model_name_or_path)
        settings = {
            "Steps": trainer.state.global_step,
            "Images a step": args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
            "Learning rate": args.learning_rate,
            "Weight decay": args.weight_decay,
        }
        frozen = getattr(args, "freeze_layers", None)
        if frozen is not None:
            settings["Frozen"] = (
                f"the embeddings and {frozen} of {cast(Any, trainer.model).config.num_hidden_layers} layers"
            )
        kept = describe_kept(trainer)
        if kept is not None:
            settings["Weights"] = kept
        if self.model_args.objective is not None:
            settings["Objective"] = self.model_args.objective
        # the log also has training lines; the last evaluation is that of the final model
        evaluations = [line for line in trainer.state.log_history if {"eval_top_1", "eval_map"} & line.keys()]
        num_images = len(cast(Any, trainer.eval_dataset))
        return ModelRecord(
            name=(trainer.hub_model_id or Path(folder).resolve().name).split("/")[-1],
            training=TrainingRecord(data=data, datasets=(dataset,), base_model=base_model, settings=settings, **run),
            location=folder,
            results=entries_from_training(
                evaluations[-1] if evaluations else {},
                dataset=dataset,
                num_images=num_images,
                date=date.today().isoformat(),
                **run,
            ),
            image=f"{folder}/images/scene.png" if self.data_args.dataset_name == "scenes" else "photo.jpg",
            limits=("It knows the classes it was trained on and nothing else.",),
        )

    def _describe_data(self, images: Any, secrets: Sequence[str]) -> tuple[str, str]:
        """Return the name of the training images, as an id of the Hub, and a sentence on them."""
        data_args = self.data_args
        count = f"{len(images):,} training images" if hasattr(images, "__len__") else ""
        if data_args.dataset_name == "scenes":
            return "scenes", f"{count} of the scenes that transformers-ice draws"
        if data_args.dataset_name is not None:
            name = redact_text(find_hub_name(data_args.dataset_name)[0], secrets)
            return name, f"{count or 'images'} of `{name}`"
        if data_args.train_dir is not None:
            is_multi_label = cast(Any, images).labels.is_multi_label
            return "imagefolder", f"{count}, {'a list of classes each' if is_multi_label else 'one folder per class'}"
        return "webdataset", f"{count or 'images'}, from files of many images"

    def _draw(self, folder: Path, name: str) -> str | None:
        """Draw the figures; of drawn scenes only, since a user's own images may be private."""
        if self.data_args.dataset_name != "scenes":
            return None
        write_example_image(folder / "images" / "scene.png", inside=folder)
        if not is_matplotlib_available():
            return None
        draw_explanations(folder, folder / "images" / f"{name}.png")
        return f"images/{name}.png"


def _base_model(source: str | None) -> str | None:
    """Return the id of the model that a run started from; of a folder, its name without an owner."""
    if source is None:
        return None
    name = Path(source).resolve().name if Path(source).is_dir() else source
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def describe_hardware(num_processes: int = 1) -> str:
    """Describe the hardware of this process."""
    if torch.cuda.is_available():
        return f"{num_processes} x {torch.cuda.get_device_name()}"
    threads = torch.get_num_threads() * num_processes
    return f"{threads} thread{'' if threads == 1 else 's'} of {describe_machine(torch.device('cpu'))['processor']}"
