# SPDX-License-Identifier: Apache-2.0
"""The sections of a card, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from ..tables import format_markdown_table
from .facts import ModelFacts
from .records import METRICS, ModelRecord, ResultEntry
from .snippets import first_snippet, second_snippet


__all__ = [
    "citation",
    "energy",
    "how_to_use",
    "intended_use",
    "introduction",
    "licence",
    "results",
    "training",
]

_METHODS = {
    "": "the classifier",
    "ice": "`ice`, the soft map",
    "ice_hard": "`ice_hard`, the mask",
    "ceiling": "no model: the best map on this patch grid",
}
_BIBTEX = """\
@inproceedings{choi2023ice,
  title     = {Adversarial Normalization: I Can Visualize Everything ({ICE})},
  author    = {Choi, Hoyoung and Jin, Seungwan and Han, Kyungsik},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2023},
  pages     = {12115--12124}
}"""


def introduction(record: ModelRecord, facts: ModelFacts, picture: str | None) -> str:
    """Return title, what the model is, its picture and its sizes."""
    if facts.is_ice:
        what = (
            "An image classifier that explains itself: every patch of the image says which class it shows, or that it "
            "is background. It learns from image labels alone, by ICE (*Adversarial Normalization: I Can Visualize "
            "Everything*, CVPR 2023), on the DeiT of 🤗 transformers."
        )
    else:
        what = "A plain vision transformer for image classification, of 🤗 transformers; it needs no further code."
    parts = [f"# {record.name}", what]
    if record.is_template:
        parts.insert(
            1,
            "> **Template.** This model has not been trained yet. The card says what will be measured and how; "
            "nothing in it is a result, and `scripts/publish_checkpoint.py` refuses it.",
        )
    if picture is not None:
        caption = "image, class map, heat map, mask" if facts.is_ice else "drawn scenes and what the model says"
        parts.append(f"![{record.name}: {caption}]({picture})")
    return "\n\n".join([*parts, _size_table(facts)])


def _size_table(facts: ModelFacts) -> str:
    config = facts.config
    height, width = facts.image_size
    rows, columns = facts.grid_size
    lines = [
        ("weights", f"{facts.num_parameters / 1e6:.1f} million, float32, safetensors"),
        (
            "encoder",
            f"{config['num_hidden_layers']} layers, width {config['hidden_size']}, "
            f"{config['num_attention_heads']} heads",
        ),
        ("input", f"{height} x {width} pixels, a grid of {rows} x {columns} patches"),
    ]
    if facts.class_names:
        names = ", ".join(facts.class_names[:10]) + (", ..." if len(facts.class_names) > 10 else "")
        lines.insert(0, ("classes", f"{len(facts.class_names)}: {names}"))
    if config.get("pruning_strategy"):
        layers = ", ".join(map(str, config["pruning_layers"]))
        lines.append(("token pruning", f"`{config['pruning_strategy']}`, before layers {layers} (counted from 0)"))
    return _table(("", ""), lines)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    columns = dict(enumerate(headings))
    return format_markdown_table([dict(enumerate(row)) for row in rows], columns).rstrip()


def intended_use(record: ModelRecord, facts: ModelFacts) -> str:
    """Return what the model is for, and what it is not for."""
    limits = list(record.limits)
    if facts.is_ice:
        limits += [
            "Masks are as coarse as the patch grid; one image, one class: the label names the class with the "
            "strongest foreground.",
            "A map shows which patches the classifier counts as its class. It is no proof that the decision is right, "
            "or fair; nothing here measures either.",
        ]
    else:
        limits.append("It explains nothing by itself: it is the classifier that an ICE model starts from.")
    use = "Research on explanations of vision transformers, and a start for fine-tuning on images of your own."
    return "\n\n".join(["## Intended use and limits", use, "\n".join(f"- {limit}" for limit in limits)])


def how_to_use(record: ModelRecord, facts: ModelFacts) -> str:
    """Return the snippets, or for a template the commands that lead to a model."""
    if record.is_template:
        commands = "\n".join(
            [
                "# train, measure, write the card, publish",
                record.training.command,
                f"python scripts/write_model_card.py {record.location} --record",
                f"python scripts/publish_checkpoint.py {record.location} OWNER/{record.name}",
            ]
        )
        return (
            f"## How to use\n\nNot yet. In a clone of this project, with the data at hand:\n\n```bash\n{commands}\n```"
        )
    parts = ["## How to use", f"```python\n{first_snippet(record, facts)}```"]
    if record.output:
        parts.append(f"```text\n{record.output}\n```")
    if facts.is_ice:
        parts.append(
            "This needs torch, transformers, safetensors, numpy and Pillow. Where the package `transformers_ice` is "
            "installed, `import transformers_ice` takes the place of `trust_remote_code=True`."
        )
        parts.append(f"The model itself:\n\n```python\n{second_snippet(facts)}```")
    return "\n\n".join(parts)


def results(record: ModelRecord) -> str:
    """Return every number with its command, hardware and date."""
    if not record.results:
        parts = ["## Results", "Not measured yet."]
        if record.evaluation:
            command = f"python scripts/run_evaluation.py --models {record.location} {record.evaluation}"
            parts += ["The commands that will measure it:", f"```bash\n{command}\n```"]
        return "\n\n".join(parts)
    parts = ["## Results"]
    for entries in _by_command(record.results):
        first = entries[0]
        parts.append(
            f"{first.num_images:,} images of {first.dataset} ({first.split}), {first.hardware}, {first.date}; one "
            f"training run, seed {first.seed}:"
        )
        parts += [f"```bash\n{first.command}\n```", _result_table(entries)]
    if any(entry.low is not None for entry in record.results):
        parts.append(
            "`value ± half the 95 % interval` over resampled images. The spread between training runs is not known: "
            "there is one run."
        )
    return "\n\n".join(parts)


def _by_command(entries: Sequence[ResultEntry]) -> list[list[ResultEntry]]:
    groups: dict[tuple[str, int], list[ResultEntry]] = {}
    for entry in entries:
        groups.setdefault((entry.command, entry.num_images), []).append(entry)
    return list(groups.values())


def _result_table(entries: Sequence[ResultEntry]) -> str:
    methods = list(dict.fromkeys(entry.method for entry in entries))
    metrics = [name for name in METRICS if any(entry.metric == name for entry in entries)]
    cells = {(entry.metric, entry.method): _value(entry) for entry in entries}
    rows = [[METRICS[name].title, *(cells.get((name, method), "") for method in methods)] for name in metrics]
    return _table(["", *(_METHODS.get(method, f"`{method}`") for method in methods)], rows)


def _value(entry: ResultEntry) -> str:
    if entry.low is None or entry.high is None:
        return f"{entry.value:.3f}"
    return f"{entry.value:.3f} ± {(entry.high - entry.low) / 2:.3f}"


def training(record: ModelRecord, facts: ModelFacts) -> str:
    """Return data and recipe."""
    made = record.training
    start = f"`{made.base_model}`" if made.base_model else "random weights"
    lines = [
        f"- Data: {made.data}",
        f"- Start: {start}",
        *(f"- {name}: {made.settings[name]}" for name in made.settings),
    ]
    if facts.train_epochs is not None and not record.is_template:
        lines.append(f"- Epochs: {facts.train_epochs:g}, seed {made.seed}")
    if made.note:
        lines.append(f"- {made.note}")
    return "\n\n".join(["## Training data and recipe", "\n".join(lines), f"```bash\n{made.command}\n```"])


def energy(record: ModelRecord, facts: ModelFacts) -> str:
    """Return the energy of the training: an estimate from its time, or that it was not measured."""
    made, seconds = record.training, None if record.is_template else facts.train_seconds
    if seconds is None:
        text = "Not measured."
    else:
        text = f"Training took {_duration(seconds)}" + (f" on {made.hardware}." if made.hardware else ".")
        if made.power_watts is None:
            text += " Its energy was not measured."
        else:
            text += (
                f" **Estimate, not a measurement:** at {made.power_watts:g} W ({made.power_basis}) that is "
                f"{seconds * made.power_watts / 3600:.1f} Wh."
            )
    return f"## Energy\n\n{text}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def licence() -> str:
    """Return the licence."""
    return (
        "## Licence\n\nApache-2.0, weights and code. The code is written anew and shares none with the authors' "
        "repository (Hanyang-HCC-Lab/ICE, MIT). Images of your own keep their own terms."
    )


def citation() -> str:
    """Return the paper."""
    return f"## Citation\n\n```bibtex\n{_BIBTEX}\n```"
