# SPDX-License-Identifier: Apache-2.0
"""Photograph sets that are trained on by name: unpacked in a folder, else from the Hub where they have an id there."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple, cast

from datasets import Dataset, Features, Image

from ..benchmarks.coco import read_coco_classes
from ..benchmarks.examples import ImageClasses, LabelledFiles
from ..benchmarks.pascal_voc import read_voc_classes
from ..benchmarks.registry import EVALUATION_SETS
from .labels import Labels


__all__ = ["NAMED_SETS", "NamedSet", "find_hub_name", "load_named_set"]


class NamedSet(NamedTuple):
    """A set of images to train and evaluate on.

    Args:
        splits: The two parts.
        hub_name: Id of the set on the Hub, None if it is read from a folder alone.
        hub_config: Its configuration there.
        content: Content of the folder.
        read: Reader of a part, from folder, split and year; None for a set of `EVALUATION_SETS`, one class an image.
    """

    splits: tuple[str, str]
    hub_name: str | None = None
    hub_config: str | None = None
    content: str = ""
    read: Callable[..., ImageClasses] | None = None


NAMED_SETS = {
    "imagenette": NamedSet(("train", "val"), "frgfm/imagenette", "320px"),
    "imagewoof": NamedSet(("train", "val"), "frgfm/imagewoof", "320px"),
    "oxford-pets": NamedSet(("trainval", "test"), "timm/oxford-iiit-pet"),
    "pascal-voc": NamedSet(
        ("train", "val"),
        content="the folder of `VOCdevkit`, or `VOC2012` itself; another year by `--dataset_config_name`",
        read=read_voc_classes,
    ),
    "coco": NamedSet(
        ("train", "val"),
        content="`annotations/instances_train2017.json`, instances_val2017.json, `train2017/` and `val2017/`; another "
        "year by `--dataset_config_name`",
        read=read_coco_classes,
    ),
}


def find_hub_name(name: str, config_name: str | None = None) -> tuple[str, str | None]:
    """Return id and configuration on the Hub of a set that is named as here, or as on the Hub."""
    known = NAMED_SETS.get(name)
    if known is None or known.hub_name is None:
        return name, config_name
    return known.hub_name, config_name or known.hub_config


def load_named_set(name: str, data_dir: str | os.PathLike, config_name: str | None = None) -> tuple[Dataset, Dataset]:
    """Return the tables of training and evaluation images, with `image` and `label`, of a set in a folder.

    Args:
        name: A key of `NAMED_SETS`.
        data_dir: The folder.
        config_name: Year of a set with several classes an image; the others have one form in a folder.

    Raises:
        ValueError: If files of the set are missing or wrong.
    """
    known = NAMED_SETS[name]
    if known.read is not None:
        year = {} if config_name is None else {"year": config_name}
        train, evaluation = (_tabulate(known.read(data_dir, split, **year)) for split in known.splits)
        return train, evaluation
    train, evaluation = (
        _tabulate(cast(LabelledFiles, EVALUATION_SETS[name].build(data_dir, split=split))) for split in known.splits
    )
    return train, evaluation


def _tabulate(examples: LabelledFiles | ImageClasses) -> Dataset:
    labels = Labels.from_names(examples.class_names or (), is_multi_label=isinstance(examples, ImageClasses))
    features = Features({"image": Image(), "label": labels.feature})
    return Dataset.from_dict({"image": list(map(str, examples.files)), "label": examples.labels}, features=features)
