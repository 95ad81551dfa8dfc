# SPDX-License-Identifier: Apache-2.0
"""Fields of a configuration that carry their help and their allowed values, and the checks that follow from both."""

import dataclasses
import difflib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch


T = TypeVar("T")

# Keys of old Hub configurations that only look like an ICE field.
_FOREIGN_FIELDS = ("pruned_heads",)

# What the model needs of the fields that DeiT declares; `image_size` and `patch_size` are checked together.
# The upper ends are far beyond any model, and below what a damaged file would make a machine allocate.
DEIT_INTERVALS = {
    **dict.fromkeys(("hidden_size", "num_attention_heads"), "[1, 65536]"),
    **dict.fromkeys(("intermediate_size", "num_channels"), "[1, 262144]"),
    **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), "[0, 1]"),
    "num_hidden_layers": "[0, 1000]",
    "initializer_range": "(0, inf)",
}
_MOST_PATCHES = 65_536  # attention takes the square of it


def ice_field(default: T, help: str, *, within: str | None = None, choices: Collection[str] | None = None) -> T:
    """Declare a field of a configuration: all that others derive from it.

    The type checker sees the default, as for `dataclasses.field`. `help` is also the text of the field's option in
    `run_train.py --help`; `within` an interval such as "[0, 1)". `choices` that are a registry are read at every
    check, so that it may grow. Longer text stands in the docstring below the field.
    """
    return dataclasses.field(default=default, metadata={"help": help, "within": within, "choices": choices})


def check_fields(config: Any) -> None:
    """Check every field of a configuration that was declared by `ice_field`, each alone."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        check_choice(field.name, value, field.metadata.get("choices"))
        check_interval(field.name, value, field.metadata.get("within"))


def check_choice(name: str, value: Any, choices: Collection[str] | None) -> None:
    """Raise unless `value` is one of the choices, or `None`, which the type of a field allows or refuses."""
    if choices is not None and value is not None and value not in choices:
        raise ValueError(f"`{name}` must be one of {list(choices)}, got {value!r}.")


def check_interval(name: str, value: Any, interval: str | None) -> None:
    """Raise unless `value` lies in an interval such as "[0, 1)", or is `None`.

    NaN lies in none, infinity in those that are closed there.
    """
    if interval is None or value is None:
        return
    low, high = (float(end) for end in interval[1:-1].split(","))
    is_above = value >= low if interval[0] == "[" else value > low
    is_below = value <= high if interval[-1] == "]" else value < high
    if not (is_above and is_below):
        expected = f"at least {interval[1:-6]}" if interval.endswith(", inf)") and interval[0] == "[" else None
        raise ValueError(f"`{name}` must be {expected or f'in {interval}'}, got {value}.")


def _check_dtype(dtype: Any) -> None:
    """Raise unless `dtype` is, or names, a floating-point type of torch that a model can compute in; or is `None`."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    is_float = isinstance(found, torch.dtype) and found.is_floating_point and found.itemsize > 1
    if dtype is not None and not is_float:
        raise ValueError(f"`dtype` must be a type such as float32, bfloat16 or float16, got {dtype!r}.")


def check_inherited_fields(config: Any, torch_dtype: Any = None) -> None:
    """Check the fields of every configuration of transformers, whose own checks let some types pass."""
    _check_dtype(torch_dtype if config.dtype is None else config.dtype)
    architectures, hidden_states = config.architectures, config.output_hidden_states
    if architectures is not None and not _is_list_of(architectures, str):
        raise ValueError(f"`architectures` must be a list of class names, got {str(architectures)[:100]}.")
    if not isinstance(hidden_states, bool | None) and not _is_list_of(hidden_states, int):
        raise ValueError(f"`output_hidden_states` must be true, false or layers, got {str(hidden_states)[:100]}.")
    if not isinstance(config.return_dict, bool):
        raise ValueError(f"`return_dict` must be true or false, got {str(config.return_dict)[:100]}.")
    _check_label_maps(config.id2label, config.label2id)


def _is_list_of(values: Any, kind: type) -> bool:
    return isinstance(values, list | tuple) and all(isinstance(value, kind) for value in values)


def _check_label_maps(id2label: Any, label2id: Any) -> None:
    """Raise unless the names of the classes are mappings, as `config.json` has them, or `None`."""
    for name, labels, kinds in (
        ("id2label", id2label, "indices to names"),
        ("label2id", label2id, "names to indices"),
    ):
        entries = labels.items() if isinstance(labels, Mapping) else () if labels is None else [(None, None)]
        for key, value in entries:
            is_index = str(key if name == "id2label" else value).isdecimal()
            if not is_index or not isinstance(value, str | int):
                raise ValueError(f"`{name}` must map {kinds}, got {str(labels)[:100]}.")


def check_class_names(id2label: Mapping[int, Any]) -> None:
    """Raise unless the classes are numbered from 0 without a gap, and names tell them apart."""
    if not id2label:
        raise ValueError("ICE needs at least one image class: set `num_labels` or `id2label`, got none.")
    indices = sorted(id2label)
    if indices != list(range(len(indices))):
        raise ValueError(
            f"`id2label` must name the classes 0 to {len(indices) - 1}, without a gap, got the keys "
            f"{indices[:10]}{'...' if len(indices) > 10 else ''}. Number the classes from 0, as the labels are."
        )
    counts = Counter(map(str, id2label.values()))
    # ImageNet has two cranes; where more than one name in a hundred is doubled, they are no names
    if len(id2label) - len(counts) > len(id2label) // 100:
        doubled = [name for name, count in counts.items() if count > 1]
        raise ValueError(f"`id2label` must give each class a name of its own, got {doubled[:10]} more than once.")


def check_thresholds(thresholds: Sequence[float] | None, num_labels: int) -> None:
    """Raise unless there is one threshold in [0, 1] for each class, or `None`."""
    if thresholds is not None and not (len(thresholds) == num_labels and all(0 <= value <= 1 for value in thresholds)):
        raise ValueError(
            f"`object_thresholds` must be one number in [0, 1] for each of the {num_labels} classes, or None for 0.5 "
            f"each, got {str(list(thresholds))[:100]}. With other classes pass `object_thresholds=None`."
        )


def refuse_near_misses(names: Iterable[str], known: Collection[str]) -> None:
    """Raise a `ValueError` if a keyword looks like a misspelling of a known field."""
    for name in names:
        if name in known or name in _FOREIGN_FIELDS:
            continue
        # 0.75 catches dropped words and letters ("background_weight") and no key of the ViT and DeiT configurations
        close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.75)
        if close:
            raise ValueError(f"Unknown configuration field `{name}`. Did you mean `{close[0]}`?")


def as_pair(size: int | Sequence[int], name: str = "size") -> tuple[int, int]:
    """Return a size, one number or the two, as (height, width); an error calls it `name`."""
    if isinstance(size, int):
        return size, size
    if len(size) != 2:
        raise ValueError(f"`{name}` must be one number or [height, width], got {size}.")
    return size[0], size[1]


def check_grid(image_size: int | Sequence[int], patch_size: int | Sequence[int]) -> tuple[int, int]:
    """Return the rows and columns of patches; raise unless they fill an image and are not too many."""
    image, patch = as_pair(image_size, "image_size"), as_pair(patch_size, "patch_size")
    for image_side, patch_side in zip(image, patch, strict=True):
        if patch_side < 1 or image_side < patch_side or image_side % patch_side:
            raise ValueError(
                f"`image_size` must be a positive multiple of `patch_size`, got {image_size} and {patch_size}."
            )
    rows, columns = image[0] // patch[0], image[1] // patch[1]
    if rows * columns > _MOST_PATCHES:
        raise ValueError(
            f"`image_size` {image_size} and `patch_size` {patch_size} make {rows * columns:,} patches; at most "
            f"{_MOST_PATCHES:,} can attend to each other."
        )
    return rows, columns


__all__ = [
    "DEIT_INTERVALS",
    "as_pair",
    "check_choice",
    "check_class_names",
    "check_fields",
    "check_grid",
    "check_inherited_fields",
    "check_interval",
    "check_thresholds",
    "ice_field",
    "refuse_near_misses",
]
