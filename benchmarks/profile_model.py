# SPDX-License-Identifier: Apache-2.0
r"""Profile a forward pass: where its time goes, by kind of work, for dense and pruned models.

    python benchmarks/profile_model.py --num_threads 2 --output_dir outputs/profile

DeiT-Ti and DeiT-S of random weights (224 pixels, 1000 classes) and the sample checkpoints, each unpruned and pruned by
every strategy; the images are noise, and "background" keeps patches at rates drawn from a beta distribution. For each
repeat a pass runs alone, and another one under `torch.profiler`; the profile gives the time of the operators, the pass
alone the whole time, and what is left of it is Python, views and launches. Prints a table of the fastest repeats;
OUTPUT_DIR/results.json has its numbers, with those of other models and sizes that earlier runs wrote there, and
OUTPUT_DIR/profile.png draws them. Three minutes on two cores; `docs/results/speed.md` shows what it printed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any, cast

import torch
from torch.profiler import ProfilerActivity, profile

from transformers_ice.console.command_line import parse_dataclasses
from transformers_ice.console.output_files import make_folder, write_text
from transformers_ice.console.tables import format_table
from transformers_ice.ice_deit.configuration_ice_deit import IceDeiTConfig
from transformers_ice.speed import (
    BenchmarkArguments,
    Variant,
    Workload,
    build_variants,
    check_dtypes,
    describe_machine,
    keep_freed_memory,
    load_model,
    load_workload,
    time_call,
)
from transformers_ice.visualization import save_figure
from transformers_ice.visualization.colors import PALETTE


__all__ = ["KINDS", "OVERHEAD", "ProfileArguments", "ProfileRow", "draw_profile", "kind_of", "main", "profile_models"]

# what the operators of torch, without "aten::", are part of; the first that the name contains
KINDS: dict[str, tuple[str, ...]] = {
    "attention": ("scaled_dot_product", "bmm"),
    "linear maps": ("addmm", "mm", "mkldnn_convolution", "mkldnn_linear"),
    "softmax": ("softmax",),
    "GELU": ("gelu",),
    "norms": ("layer_norm",),
    "pruning": ("sort", "gather", "scatter", "index", "nonzero", "cumsum", "masked", "where", "constant_pad"),
    "copies": ("copy", "cat", "clone", "fill", "zero_"),
    "additions": ("add", "sub", "mul", "div", "sum", "mean", "argmax"),
}
OVERHEAD = "Python, launches"
_RANDOM = {"deit-ti": 192, "deit-s": 384}  # widths; heads of 64, an MLP of four times the width
_SAMPLES = ("checkpoints/ice-deit-scenes", "checkpoints/ice-deit-scenes-pruned", "checkpoints/ice-deit-imagenette")


@dataclass
class ProfileArguments:
    """Models, sizes and repeats; `--help` explains each."""

    models: list[str] = field(
        default_factory=lambda: [*_RANDOM, *_SAMPLES], metadata={"help": "deit-ti, deit-s, or folders of ICE models."}
    )
    batch_sizes: list[int] = field(default_factory=lambda: [1, 16, 64], metadata={"help": "Images at once, several."})
    dtype: list[str] = field(default_factory=lambda: ["float32"], metadata={"help": "Number types, several."})
    keep_rate: float = field(default=0.7, metadata={"help": "Rate of the strategies that keep fixed numbers."})
    keep_beta: list[float] = field(
        default_factory=lambda: [0.5, 0.2], metadata={"help": "Mean and deviation of the rates under background."}
    )
    num_repeats: int = field(
        default=4,
        metadata={"help": "Repeats at least; short passes are repeated for a second, up to 10 times as often."},
    )
    num_threads: int | None = field(default=None, metadata={"help": "Threads; default: as torch chooses."})
    seed: int = field(default=0, metadata={"help": "Seed of weights, images and keep rates."})
    output_dir: str = field(default="outputs/profile", metadata={"help": "Folder of results.json and profile.png."})


@dataclass(frozen=True)
class ProfileRow:
    """Milliseconds of a forward pass, the least of the repeats: the whole pass, and its parts by kind of work."""

    model: str
    batch_size: int
    dtype: str
    variant: str
    milliseconds: float
    parts: dict[str, float]

    def percent(self, kind: str) -> float:
        """Return the part of a kind of work in all of them, in percent."""
        return 100 * self.parts[kind] / sum(self.parts.values())


def kind_of(operator: str) -> str | None:
    """Return the kind of work of an operator of a profile; `None` of views, allocations and dispatch."""
    name = operator.removeprefix("aten::")
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), None)


def profile_models(arguments: ProfileArguments) -> Iterator[list[ProfileRow]]:
    """Profile every model; yield the rows of all strategies at each number type and batch size."""
    for name in arguments.models:
        settings = _benchmark_arguments(arguments, name)
        model = load_model(settings)
        workload = load_workload(settings, model)
        for dtype in arguments.dtype:
            variants = build_variants(model.to(getattr(torch, dtype)), [arguments.keep_rate])
            # without the ViT of transformers
            variants = [variant for variant in variants if isinstance(variant.config, IceDeiTConfig)]
            for batch_size in arguments.batch_sizes:
                rows = []
                for variant in variants:
                    times = _time_parts(variant, workload.batch(0, batch_size), arguments.num_repeats)
                    whole = times.pop("")
                    rows.append(ProfileRow(Path(name).name, batch_size, dtype, variant.name, whole, times))
                    print(f"{name}, {batch_size}, {dtype}, {variant.name}: {whole:.1f} ms", flush=True)
                yield rows


def _benchmark_arguments(arguments: ProfileArguments, name: str) -> BenchmarkArguments:
    shared: dict[str, Any] = {
        "keep_beta": arguments.keep_beta,
        "num_images": max(arguments.batch_sizes),
        "seed": arguments.seed,
    }
    if name in _RANDOM:
        width = _RANDOM[name]
        fields = f"hidden_size={width},num_attention_heads={width // 64},intermediate_size={4 * width}"
        return BenchmarkArguments(config_overrides=fields, **shared)
    depth = IceDeiTConfig.from_pretrained(name).num_hidden_layers
    # after each quarter: layers 3, 6 and 9 of 12
    layers = [ceil(depth * quarter / 4) for quarter in (1, 2, 3)]
    return BenchmarkArguments(model_name_or_path=name, config_overrides=f"pruning_layers={layers}", **shared)


@torch.inference_mode()
def _time_parts(variant: Variant, batch: Workload, num_repeats: int) -> dict[str, float]:
    """Return milliseconds by kind of work, the least of the repeats; "" is the whole pass."""
    repeats: list[dict[str, float]] = []
    with batch.decide(variant):
        call = partial(variant.model, batch.pixel_values.to(variant.dtype))
        call()
        start = time.perf_counter()
        while len(repeats) < num_repeats or (len(repeats) < 10 * num_repeats and time.perf_counter() - start < 1):
            repeats.append({"": 1e3 * time_call(call, batch.pixel_values.device), **_profile_once(call)})
    # the fastest: whatever else a machine does only adds time
    parts = {kind: min(repeat[kind] for repeat in repeats) for kind in ("", *KINDS)}
    return {**parts, OVERHEAD: max(0.0, 2 * parts[""] - sum(parts.values()))}


def _profile_once(call: Any) -> dict[str, float]:
    """Return the milliseconds of the operators of a call, by kind of work."""
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiled:
        call()
    parts = dict.fromkeys(KINDS, 0.0)
    for event in profiled.key_averages():
        kind = kind_of(event.key)
        if kind is not None:
            parts[kind] += event.self_cpu_time_total / 1e3  # from microseconds
    return parts


def draw_profile(rows: Sequence[ProfileRow]) -> Any:
    """Return a figure: a plot for each model and batch size, a bar for each strategy, in percent of its own time."""
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(row.model for row in rows))
    sizes = {model: sorted({row.batch_size for row in rows if row.model == model}) for model in models}
    num_columns = max(map(len, sizes.values()))
    figure = Figure(figsize=(4.3 * num_columns, 0.7 + 1.6 * len(models)), dpi=110, layout="constrained")
    axes = figure.subplots(len(models), num_columns, squeeze=False)
    for model, line in zip(models, axes, strict=True):
        for place, axis in enumerate(line):
            if place >= len(sizes[model]):
                axis.set_axis_off()
                continue
            size = sizes[model][place]
            _draw_bars(axis, [row for row in rows if (row.model, row.batch_size) == (model, size)], place == 0)
            axis.set_title(f"{model}, batch {size}", fontsize=8)
    colors = _colors()
    handles = [axes[0][0].barh([0], [0], color=color) for color in colors.values()]
    num_entries = len(colors) if num_columns > 2 else -(-len(colors) // 2)  # in two lines on a narrow figure
    figure.legend(handles, list(colors), loc="outside lower center", ncols=num_entries, fontsize=8, frameon=False)
    return figure


def _colors() -> Mapping[str, str]:
    return dict(zip((*KINDS, OVERHEAD), (*PALETTE, "#882255", "#999999"), strict=True))


def _draw_bars(axis: Any, rows: Sequence[ProfileRow], is_first: bool) -> None:
    for place, row in enumerate(rows):
        start = 0.0
        for kind, color in _colors().items():
            percent = row.percent(kind)
            axis.barh(place, percent, left=start, color=color)
            start += percent
        axis.text(101, place, f"{row.milliseconds:,.1f} ms", va="center", fontsize=7)
    several = len({row.dtype for row in rows}) > 1
    names = [f"{row.variant}, {row.dtype}" if several else row.variant for row in rows]
    axis.set_yticks(range(len(rows)), names if is_first else [""] * len(rows), fontsize=7)
    axis.set(xlim=(0, 118), xticks=(0, 50, 100))
    axis.tick_params(axis="x", labelsize=7)
    axis.invert_yaxis()
    axis.spines[["top", "right"]].set_visible(False)


def _table(rows: Sequence[ProfileRow]) -> str:
    kinds = [*KINDS, OVERHEAD]
    headers = {"model": "model", "batch": "batch", "dtype": "dtype", "variant": "variant", "ms": "ms/image"}
    cells = [
        {
            "model": row.model,
            "batch": row.batch_size,
            "dtype": row.dtype,
            "variant": row.variant,
            "ms": row.milliseconds / row.batch_size,
            **{kind: f"{row.percent(kind):.1f} %" for kind in kinds},
        }
        for row in rows
    ]
    return format_table(cells, {**headers, **{kind: kind for kind in kinds}}, 2)


def main(argv: Sequence[str] | None = None) -> int:
    """Profile the models of the command line; return the exit code."""
    arguments = cast(
        ProfileArguments, parse_dataclasses((ProfileArguments,), sys.argv[1:] if argv is None else argv, __doc__)[0]
    )
    if arguments.num_threads is not None:
        torch.set_num_threads(arguments.num_threads)
    keep_freed_memory()
    try:
        output_dir, device = make_folder(arguments.output_dir), torch.device("cpu")
        check_dtypes(arguments.dtype, device)
        file = output_dir / "results.json"
        before = [ProfileRow(**row) for row in json.loads(file.read_text())["rows"]] if file.is_file() else []
        rows = before
        for found in profile_models(arguments):
            done = {(row.model, row.batch_size, row.dtype) for row in found}
            rows = [*(row for row in rows if (row.model, row.batch_size, row.dtype) not in done), *found]
            content = {
                "settings": asdict(arguments),
                "machine": describe_machine(device),
                "rows": [*map(asdict, rows)],
            }
            # after every batch size, so that a stopped run keeps its results so far
            write_text(file, json.dumps(content, indent=1) + "\n")
        save_figure(draw_profile(rows), output_dir / "profile.png")
    except (OSError, ValueError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    print(f"\n{_table(rows)}\n\nPercent of the pass. Everything is in {output_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
