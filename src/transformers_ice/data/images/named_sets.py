# SPDX-License-Identifier: Apache-2.0
"""Photograph sets that are trained on by name: unpacked in a folder, else from the Hub."""

from __future__ import annotations

import os
from typing import NamedTuple, cast

from datasets import ClassLabel, Dataset, Features, Image

from ..benchmarks.examples import LabelledFiles
from ..benchmarks.registry import EVALUATION_SETS


__all__ = ["NAMED_SETS", "NamedSet", "find_hub_name", "load_named_set"]


class NamedSet(NamedTuple):
    """Splits to train and evaluate on of a set in `EVALUATION_SETS`, and the id and configuration of it on the Hub."""

    splits: tuple[str, str]
    hub_name: str
    hub_config: str | None = None


NAMED_SETS = {
    "imagenette": NamedSet(("train", "val"), "frgfm/imagenette", "320px"),
    "imagewoof": NamedSet(("train", "val"), "frgfm/imagewoof", "320px"),
    "oxford-pets": NamedSet(("trainval", "test"), "timm/oxford-iiit-pet"),
}


def find_hub_name(name: str, config_name: str | None = None) -> tuple[str, str | None]:
    """Return id and configuration on the Hub of a set that is named as here, or as on the Hub."""
    known = NAMED_SETS.get(name)
    return (name, config_name) if known is None else (known.hub_name, config_name or known.hub_config)


def load_named_set(name: str, data_dir: str | os.PathLike) -> tuple[Dataset, Dataset]:
    """Return the tables of training and evaluation images, with `image` and `label`, of a set in a folder.

    Raises:
        ValueError: If files of the set are missing or wrong.
    """
    train, evaluation = (
        _tabulate(cast(LabelledFiles, EVALUATION_SETS[name].build(data_dir, split=split)))
        for split in NAMED_SETS[name].splits
    )
    return train, evaluation


def _tabulate(examples: LabelledFiles) -> Dataset:
    features = Features({"image": Image(), "label": ClassLabel(names=examples.class_names)})
    return Dataset.from_dict({"image": list(map(str, examples.files)), "label": examples.labels}, features=features)
