# SPDX-License-Identifier: Apache-2.0
"""Settings that make a step of a run what it is: written into every checkpoint, compared when a run resumes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from transformers import TrainerCallback, TrainerState
from transformers.utils import logging

from ..console.json_files import read_json
from ..console.output_files import write_json
from ..data.augmentation.arguments import AugmentationArguments
from ..data.images.arguments import DataArguments
from ..data.images.streamed_images import StreamedImages
from ..data.images.tables import LabelledImages
from .arguments import IceTrainingArguments
from .starting_weights import read_class_names


__all__ = ["SETTINGS_FILE", "SettingsCallback", "check_settings", "describe_images", "describe_run"]

logger = logging.get_logger(__name__)

SETTINGS_FILE = "run_settings.json"
"""Name of the file of a checkpoint with the settings of its run."""

_BATCH_FIELDS = ("per_device_train_batch_size", "gradient_accumulation_steps")
# an optimizer and a scheduler that resume have their own values of the first ones: new values would have no effect
_RUN_FIELDS = (
    *("learning_rate", "weight_decay", "optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "max_grad_norm"),
    *("freeze_layers", "layer_decay"),
    *("repeated_augmentation", "distillation_type", "distillation_alpha", "distillation_tau"),
    *("seed", "data_seed", "bf16", "fp16", "dataloader_drop_last"),
)
# fields of a configuration that change no step of the training
_OTHER_MODEL_FIELDS = {
    *("transformers_version", "dtype", "torch_dtype", "architectures", "auto_map", "custom_pipelines"),
    *("id2label", "label2id", "pruning_execution"),
}


def describe_run(model: Any, args: IceTrainingArguments, data_args: DataArguments, images: Any) -> dict[str, Any]:
    """Return the settings of a run, as plain values.

    Args:
        model: The model to train.
        args: How it is trained.
        data_args: How its images vary.
        images: Training images, a `LabelledImages` or a `StreamedImages`.
    """
    batch = {name: getattr(args, name) for name in _BATCH_FIELDS} | {"processes": args.world_size}
    settings = {name: getattr(args, name) for name in _RUN_FIELDS}
    settings |= {field.name: getattr(data_args, field.name) for field in fields(AugmentationArguments)}
    settings["streaming"] = data_args.streaming
    if data_args.streaming:
        settings |= {"shuffle_buffer_size": data_args.shuffle_buffer_size}
        settings |= {"dataloader_num_workers": args.dataloader_num_workers}
    # the order of these images depends on the parts, not on their product alone
    mixes_batches = bool(data_args.mixup_alpha or data_args.cutmix_alpha)
    parts_matter = data_args.streaming or args.repeated_augmentation != 1 or mixes_batches
    values = {
        "classes": read_class_names(model.config),
        "model": _model_fields(model.config.to_dict()),
        "settings": settings,
        "batch": batch,
        "batch_parts_matter": parts_matter,
        "images": describe_images(images),
    }
    return json.loads(json.dumps(values, default=str))


def _model_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in _OTHER_MODEL_FIELDS and name[0] != "_"}


def describe_images(images: Any) -> dict[str, Any]:
    """Return the number of training images, and a digest of their names, classes and the sizes of their files."""
    digest = hashlib.sha256()
    if isinstance(images, StreamedImages):
        names = [
            f"{Path(str(file)).name} {count}"
            for file, count in zip(images.rows.files, images.rows.counts, strict=True)
        ]
        digest.update("\n".join(names).encode())
        return {"number": images.num_rows, "digest": digest.hexdigest()}
    if isinstance(images, LabelledImages):
        for line in _describe_rows(images):
            digest.update(line.encode(errors="surrogateescape"))
    return {"number": len(images), "digest": digest.hexdigest()}


def _describe_rows(images: LabelledImages) -> Iterator[str]:
    """Yield name, size and class of each image; the folder that holds all of them does not count."""
    # columns of the whole table, and the rows of a selection: no image is read
    table, chosen = images.table.data, images.table._indices
    paths = pc.struct_field(table.column(images.image_column), "path").to_pylist()
    labels = table.column(images.label_column).to_pylist()
    in_files = False
    for row in range(len(labels)) if chosen is None else chosen.column(0).to_pylist():
        path = paths[row] or ""
        is_file = os.path.isfile(path)
        in_files |= is_file
        yield f"{'/'.join(Path(path).parts[-2:])} {os.path.getsize(path) if is_file else ''} {labels[row]}\n"
    if not in_files:  # the images are in the table: its size changes with them
        yield str(table.nbytes)


def check_settings(checkpoint: Path, settings: Mapping[str, Any]) -> None:
    """Refuse to resume with other settings than a checkpoint was saved with; warn of other images.

    A checkpoint of an earlier version has no `SETTINGS_FILE`: then its configuration is compared.

    Raises:
        ValueError: With the name and both values of each setting.
    """
    config = _read_json(checkpoint / "config.json")
    _read_json(checkpoint / "trainer_state.json")
    labels = config.get("id2label") or {}
    classes = [str(labels[index]) for index in sorted(labels, key=int)]
    if classes and classes != settings["classes"]:
        raise ValueError(
            f"{checkpoint} was saved with other classes, {_some(classes)}, than the data have now, "
            f"{_some(settings['classes'])}. Resume with the same data. To train its weights on these, start a new run "
            f"from them: `--model_name_or_path {checkpoint}` and another `--output_dir`."
        )
    file = checkpoint / SETTINGS_FILE
    saved = _read_json(file) if file.is_file() else {}
    faults = _other_values(_model_fields(config), settings["model"])
    faults += _other_values(saved.get("settings", {}), settings["settings"])
    faults += _other_batch(saved.get("batch"), settings["batch"], settings["batch_parts_matter"])
    if faults:
        raise ValueError(
            f"{checkpoint} was saved with other settings: {'; '.join(faults)}. A resumed run goes on as it began: "
            "resume with the values of the checkpoint. To train its weights with others, start a new run from them: "
            f"`--model_name_or_path {checkpoint}` and another `--output_dir`."
        )
    if saved.get("images") not in (None, settings["images"]):
        numbers = [values["images"]["number"] for values in (saved, settings)]
        how = f"{numbers[0]} then, {numbers[1]} now" if numbers[0] != numbers[1] else "other names, sizes or classes"
        logger.warning(
            f"The training images are not those that {checkpoint} was saved with ({how}): the resumed run is not the "
            "uninterrupted one, and in this epoch some images may come twice or not at all."
        )


def _read_json(file: Path) -> dict[str, Any]:
    """Return the mapping in a file of a checkpoint; one without digests may be damaged."""
    try:
        content = read_json(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}. Pass another checkpoint, or auto.") from error
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{file} must hold a mapping, got {str(content)[:20]}. Pass another checkpoint, or auto.")
    return content


def _other_values(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        f"`{name}` {saved[name]!r} in the checkpoint, {now[name]!r} now"
        for name in saved.keys() & now.keys()
        if saved[name] != now[name]
    ]


def _other_batch(saved: Mapping[str, int] | None, now: Mapping[str, int], parts_matter: bool) -> list[str]:
    """Return how the images of a step differ; 4 x 2 images are the same step as 8, unless the parts matter."""
    if saved is None or saved == now:
        return []
    counts = [
        values["per_device_train_batch_size"] * values["gradient_accumulation_steps"] * values["processes"]
        for values in (saved, now)
    ]
    if counts[0] == counts[1] and not parts_matter:
        return []
    differing = _other_values(saved, now)
    return [*differing, f"images a step {counts[0]} in the checkpoint, {counts[1]} now"]


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''} ({len(names)})"


class SettingsCallback(TrainerCallback):
    """Writer of the settings into every checkpoint; warns of a resumed run that ends at another step than planned."""

    def __init__(self, settings: Mapping[str, Any], checkpoint: str | None = None) -> None:
        self.settings, self.checkpoint = settings, checkpoint

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Warn if the length of the run, by which the learning rate falls, is another one."""
        if self.checkpoint is None or not state.is_world_process_zero:
            return
        planned = json.loads(Path(self.checkpoint, "trainer_state.json").read_text(encoding="utf-8")).get("max_steps")
        if planned not in (None, state.max_steps):
            logger.warning(
                f"The run was planned for {planned} steps and has {state.max_steps} now: from here on the "
                "learning rate follows the schedule of that length."
            )

    def on_save(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Write the file, before the checkpoint is marked as complete."""
        folder = Path(str(args.output_dir), f"checkpoint-{state.global_step}")
        if args.should_save and folder.is_dir():
            write_json(folder / SETTINGS_FILE, self.settings)
