# SPDX-License-Identifier: Apache-2.0
"""Speed of training: a step of ICE over one of plain DeiT, augmentation on one core, and the wait for data."""

from __future__ import annotations

import copy
import io
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast

import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from peak_memory import peak_bytes
from PIL import Image
from torch import nn
from transformers import DeiTConfig, DeiTForImageClassification, PreTrainedModel, set_seed

from transformers_ice.console.command_line import parse_dataclasses
from transformers_ice.console.tables import format_table
from transformers_ice.data.augmentation import build_augmentation, build_train_collator
from transformers_ice.data.scenes import draw_scene
from transformers_ice.ice_deit.configuration_ice_deit import IceDeiTConfig
from transformers_ice.ice_deit.image_processing_ice_deit import IceDeiTImageProcessor
from transformers_ice.ice_deit.modeling_ice_deit import IceDeiTForImageClassification
from transformers_ice.speed import interleave, summarize_spread, time_call
from transformers_ice.training import DataArguments, IceTrainer, IceTrainingArguments, ImageCollator, LabelledImages
from transformers_ice.training.objective_presets import OBJECTIVES


__all__ = [
    "TrainingBenchmarkArguments",
    "build_step_models",
    "draw_photographs",
    "measure_augmentation",
    "measure_first_steps",
    "measure_memory",
    "measure_steps",
    "measure_waiting",
    "parse_training_benchmark_arguments",
    "training_table",
]

_CLASSES = [str(index) for index in range(1000)]
_HEAD_SIZE = 64  # in all DeiT
_JPEG_QUALITY = 90


@dataclass
class TrainingBenchmarkArguments:
    """Sizes, repeats and output of the benchmark; `--help` explains each."""

    image_size: int = field(default=224, metadata={"help": "Side of the model's input in pixels."})
    photograph_size: list[int] = field(
        default_factory=lambda: [375, 500], metadata={"help": "Height and width of the JPEG files that are decoded."}
    )
    hidden_size: int = field(default=384, metadata={"help": "Width: 192 is DeiT-Ti, 384 DeiT-S, 768 DeiT-B."})
    num_layers: int = field(default=12, metadata={"help": "Layers of the models."})
    batch_size: int = field(default=16, metadata={"help": "Images of a step."})
    num_images: int = field(default=64, metadata={"help": "Different JPEG files."})
    num_repeats: int = field(default=10, metadata={"help": "Repeats that count."})
    num_warmups: int = field(default=2, metadata={"help": "Repeats before them that do not count."})
    waiting_steps: int = field(default=20, metadata={"help": "Steps whose wait for data counts."})
    waiting_warmups: int = field(
        default=6, metadata={"help": "Steps before them that do not: batches prepared in advance are used up then."}
    )
    dataloader_num_workers: int = field(default=2, metadata={"help": "Processes that prepare the data."})
    num_threads: int | None = field(default=None, metadata={"help": "Threads of a step; default: as torch chooses."})
    bf16: bool = field(default=False, metadata={"help": "Steps under autocast in bfloat16."})
    attn_implementation: str = field(
        default="sdpa", metadata={"help": "Attention of a step: sdpa (fused) or eager (matrix products)."}
    )
    local_image_shares: list[float] = field(
        default_factory=list, metadata={"help": "Balanced steps with windows of these ratios of the images, too."}
    )
    torch_compile: bool = field(
        default=False, metadata={"help": "Time compiled steps too, and how long the first one takes."}
    )
    use_cpu: bool = field(default=False, metadata={"help": "Train on the CPU where there is a GPU too."})
    seed: int = field(default=0, metadata={"help": "Seed of weights, images and the order of the measurements."})
    output_dir: str = field(default="outputs/training-benchmark", metadata={"help": "Folder of results.json."})

    def __post_init__(self) -> None:
        counts = ("image_size", "num_layers", "batch_size", "num_images", "num_repeats", "waiting_steps")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.hidden_size < 1 or self.hidden_size % _HEAD_SIZE:
            raise ValueError(f"`hidden_size` must be a multiple of {_HEAD_SIZE}, got {self.hidden_size}.")
        for name in ("num_warmups", "waiting_warmups", "dataloader_num_workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be at least 0, got {getattr(self, name)}.")
        if self.attn_implementation not in ("sdpa", "eager"):
            raise ValueError(f"`attn_implementation` must be sdpa or eager, got {self.attn_implementation!r}.")
        if len(self.photograph_size) != 2 or min(self.photograph_size) < 16:
            raise ValueError(f"`photograph_size` must be a height and a width from 16 on, got {self.photograph_size}.")


def parse_training_benchmark_arguments(
    argv: Sequence[str], description: str | None = None
) -> TrainingBenchmarkArguments:
    """Parse a command line, or one YAML or JSON file followed by options that override it.

    Args:
        argv: The arguments after the script's name; see `parse_dataclasses` for how mistakes end the program.
        description: Text above the list of options in `--help`.
    """
    return cast(TrainingBenchmarkArguments, parse_dataclasses((TrainingBenchmarkArguments,), argv, description)[0])


# --- a step --------------------------------------------------------------------------------------------------------


def build_step_models(arguments: TrainingBenchmarkArguments, device: torch.device) -> dict[str, PreTrainedModel]:
    """Return random models of one size by name: DeiT of transformers, and ICE with as many tokens.

    DeiT of transformers always has a distillation token; ICE gets one too here (without a head), and is also
    timed without it, as published and by the balanced objective. With `torch_compile` there are DeiT and the last one
    once more, compiled.
    """
    shape: dict[str, Any] = {
        "hidden_size": arguments.hidden_size,
        "intermediate_size": 4 * arguments.hidden_size,
        "num_attention_heads": arguments.hidden_size // _HEAD_SIZE,
        "num_hidden_layers": arguments.num_layers,
        "image_size": arguments.image_size,
        "id2label": dict(enumerate(_CLASSES)),
    }
    set_seed(arguments.seed)
    models: dict[str, PreTrainedModel] = {
        "DeiT": DeiTForImageClassification(DeiTConfig(**shape)),
        "ICE": IceDeiTForImageClassification(
            IceDeiTConfig(**shape, use_distillation_token=True, use_distillation_head=False)
        ),
        "ICE, one token": IceDeiTForImageClassification(IceDeiTConfig(**shape)),
        "ICE, one token, balanced": IceDeiTForImageClassification(IceDeiTConfig(**shape, **OBJECTIVES["balanced"])),
    }
    for share in arguments.local_image_shares:
        fields = {**shape, **OBJECTIVES["balanced"], "local_image_share": share}
        models[f"ICE, balanced, windows of {share:g}"] = IceDeiTForImageClassification(IceDeiTConfig(**fields))
    for model in models.values():
        model.set_attn_implementation(arguments.attn_implementation)
        cast(nn.Module, model).to(device).train()
    if arguments.torch_compile:
        for name in ("DeiT", "ICE, one token, balanced"):
            models[f"{name}, compiled"] = cast(Any, torch.compile(copy.deepcopy(models[name])))
    return models


def _gradient_step(
    model: nn.Module, arguments: TrainingBenchmarkArguments, device: torch.device
) -> Callable[[], None]:
    """Return a function that adds the gradients of one batch of noise, the same for every model."""
    generator = torch.Generator().manual_seed(arguments.seed)
    shape = (arguments.batch_size, 3, arguments.image_size, arguments.image_size)
    pixels = torch.randn(shape, generator=generator).to(device)
    labels = torch.randint(len(_CLASSES), shape[:1], generator=generator).to(device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=arguments.bf16):
            loss = model(pixel_values=pixels, labels=labels).loss
        loss.backward()

    return step


def measure_first_steps(
    models: Mapping[str, nn.Module], arguments: TrainingBenchmarkArguments, device: torch.device
) -> dict[str, list[float]]:
    """Return the seconds of a first forward and backward pass by model: those of compiling, where it is compiled."""
    seconds = {
        name: [time_call(_gradient_step(model, arguments, device), device)]
        for name, model in models.items()
        if name.endswith("compiled")
    }
    for model in models.values():
        model.zero_grad()
    return seconds


def measure_steps(
    models: Mapping[str, nn.Module], arguments: TrainingBenchmarkArguments, device: torch.device
) -> dict[str, list[float]]:
    """Return the seconds of whole training steps by model: forward, backward, AdamW.

    Args:
        models: Classifiers of `_CLASSES` classes that return a loss, by name; they alternate in every repeat.
        arguments: Size and repeats.
        device: Where the models are.
    """

    def measure(model: nn.Module) -> Callable[[int], float]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)  # as the Trainer's
        add_gradients = _gradient_step(model, arguments, device)

        def step() -> None:
            add_gradients()
            optimizer.step()
            optimizer.zero_grad()

        return lambda _: time_call(step, device)

    measures = {name: measure(model) for name, model in models.items()}
    return interleave(measures, arguments.num_repeats, arguments.num_warmups, arguments.seed)


def measure_memory(
    models: Mapping[str, nn.Module], arguments: TrainingBenchmarkArguments, device: torch.device
) -> dict[str, list[float]]:
    """Return the memory of forward and backward at its peak by model, in MiB an image.

    It is what tensors take beyond the weights, their gradients and the optimizer's state: mostly what the forward
    pass keeps for the backward pass.
    """
    return {
        name: [peak_bytes(_gradient_step(model, arguments, device), device) / 2**20 / arguments.batch_size]
        for name, model in models.items()
        if not name.endswith("compiled")
    }


# --- augmentation --------------------------------------------------------------------------------------------------


def draw_photographs(num_images: int, size: tuple[int, int], seed: int = 0) -> Dataset:
    """Return drawn scenes as JPEG files in memory, undecoded, with classes.

    Args:
        num_images: How many.
        size: Height and width in pixels.
        seed: Seed of the drawing.
    """
    cells = []
    for index in range(num_images):
        buffer = io.BytesIO()
        image = Image.fromarray(draw_scene(index, image_size=size, seed=seed).image)
        image.save(buffer, format="JPEG", quality=_JPEG_QUALITY)
        cells.append({"bytes": buffer.getvalue(), "path": None})  # the storage format of `datasets.Image`
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=_CLASSES)})
    labels = [index % len(_CLASSES) for index in range(num_images)]
    return Dataset.from_dict({"image": cells, "label": labels}, features=features)


def _training_images(table: Dataset, choice: str, arguments: TrainingBenchmarkArguments) -> LabelledImages:
    """Return the images under one `--augmentation`."""
    size = (arguments.image_size, arguments.image_size)
    processor = IceDeiTImageProcessor(size={"height": size[0], "width": size[1]})
    augmentation = build_augmentation(_data_arguments(choice), size, processor.image_mean)
    return LabelledImages(table, processor, augmentation, seed=arguments.seed)


def _data_arguments(choice: str) -> DataArguments:
    return DataArguments(dataset_name="scenes", augmentation=cast(Any, choice))


def measure_augmentation(table: Dataset, arguments: TrainingBenchmarkArguments) -> dict[str, list[float]]:
    """Return images a second on one core by `--augmentation`, from JPEG bytes to a normalised batch.

    Args:
        table: From `draw_photographs`; the decoding is part of the time.
        arguments: Sizes and repeats; in every repeat each choice makes one batch, all of the same images.
    """

    def measure(choice: str) -> Callable[[int], float]:
        images = _training_images(table, choice, arguments)
        plain = ImageCollator.from_image_processor(images.image_processor)
        collator = build_train_collator(_data_arguments(choice), images.image_processor, len(_CLASSES)) or plain

        def images_per_second(repeat: int) -> float:
            images.set_epoch(repeat)
            first = repeat * arguments.batch_size  # other images in every repeat, the same for all choices
            rows = [(first + offset) % len(images) for offset in range(arguments.batch_size)]
            seconds = time_call(lambda: collator(images.__getitems__(rows)), torch.device("cpu"))
            return arguments.batch_size / seconds

        return images_per_second

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker of a `DataLoader`
    try:
        measures = {choice: measure(choice) for choice in ("none", "crop_flip", "deit")}
        return interleave(measures, arguments.num_repeats, arguments.num_warmups, arguments.seed)
    finally:
        torch.set_num_threads(threads)


# --- waiting -------------------------------------------------------------------------------------------------------


class _StopwatchTrainer(IceTrainer):
    """Trainer that records when training requests each batch, and when it arrives."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.requested: list[float] = []
        self.arrived: list[float] = []

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> Any:
        """Return the batches of the next step, as the `Trainer`."""
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # otherwise the wait would include the device's work, and vice versa
        self.requested.append(time.perf_counter())
        samples = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.arrived.append(time.perf_counter())
        return samples


def measure_waiting(
    table: Dataset, arguments: TrainingBenchmarkArguments, model: PreTrainedModel
) -> dict[str, list[float]]:
    """Train with the `deit` augmentation, and measure the time of each step and of its wait for data.

    Args:
        table: From `draw_photographs`; taken as often as the steps need.
        arguments: Sizes, steps and workers.
        model: The model; it is trained.

    Returns:
        "seconds" of each step that counts, from one request of a batch to the next, and its "waiting_share", the
        fraction until the batch arrives, in [0, 1].
    """
    num_steps = arguments.waiting_warmups + arguments.waiting_steps + 1
    repeats = -(-num_steps * arguments.batch_size // len(table))  # rounded up
    # one long epoch: at the end of an epoch the workers would start again
    images = _training_images(table.select(list(range(len(table))) * repeats), "deit", arguments)
    processor = images.image_processor
    with tempfile.TemporaryDirectory() as folder:
        args = IceTrainingArguments(
            folder,
            max_steps=num_steps,
            per_device_train_batch_size=arguments.batch_size,
            dataloader_num_workers=arguments.dataloader_num_workers,
            use_cpu=arguments.use_cpu,
            eval_strategy="no",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            seed=arguments.seed,
        )
        trainer = _StopwatchTrainer(
            model,
            args,
            train_dataset=images,
            data_collator=ImageCollator.from_image_processor(processor),
            train_collator=build_train_collator(_data_arguments("deit"), processor, len(_CLASSES)),
        )
        trainer.train()
    requested, arrived = trainer.requested[arguments.waiting_warmups :], trainer.arrived[arguments.waiting_warmups :]
    # the last step has no request after it, so there is one wait more than steps
    seconds = [after - before for before, after in pairwise(requested)]
    waits = [end - start for start, end in zip(requested, arrived, strict=True)][: len(seconds)]
    return {"seconds": seconds, "waiting_share": [wait / step for wait, step in zip(waits, seconds, strict=True)]}


# --- the table -----------------------------------------------------------------------------------------------------


def training_table(
    steps: Mapping[str, Sequence[float]],
    augmentation: Mapping[str, Sequence[float]],
    waiting: Mapping[str, Sequence[float]],
    memory: Mapping[str, Sequence[float]],
    first_steps: Mapping[str, Sequence[float]] | None = None,
) -> str:
    """Format the measurements as plain text: the median of each, and its quartiles.

    Args:
        steps: From `measure_steps`; the others are compared with "DeiT", repeat by repeat.
        augmentation: From `measure_augmentation`.
        waiting: From `measure_waiting`.
        memory: From `measure_memory`.
        first_steps: From `measure_first_steps`.
    """
    rows = [(f"step, {name} (ms)", [1000 * value for value in values]) for name, values in steps.items()]
    for name, values in steps.items():
        if name != "DeiT":
            ratios = [value / base for value, base in zip(values, steps["DeiT"], strict=True)]
            rows.append((f"step, {name} / DeiT", ratios))
    rows += [(f"--augmentation {name} (images/s, one core)", list(values)) for name, values in augmentation.items()]
    rows.append(("step of the Trainer (ms)", [1000 * value for value in waiting["seconds"]]))
    rows.append(("of which waiting for data (%)", [100 * value for value in waiting["waiting_share"]]))
    rows += [(f"memory of a step, {name} (MiB an image)", list(values)) for name, values in memory.items()]
    rows += [(f"first step, {name} (s)", list(values)) for name, values in (first_steps or {}).items()]
    lines = []
    for name, values in rows:
        spread = summarize_spread(values)
        lines.append([name, spread.median, f"{spread.low:.3f} - {spread.high:.3f}"])
    headers = dict(enumerate(("", "median", "quartiles")))
    return format_table([dict(enumerate(line)) for line in lines], headers, digits=3)
