# SPDX-License-Identifier: Apache-2.0
"""Registry of the evaluation sets: content, source and options of each, by name.

Only the scenes come with this package. Nothing is downloaded: the terms of every other set are its providers', so each
is downloaded by hand, and `data_dir` is its folder.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..scenes import load_scenes
from .annotated_folder import AnnotatedFolder
from .coco import Coco20k
from .cub import Cub
from .ecssd import Ecssd
from .examples import ANNOTATIONS, EvaluationSet
from .imagenet_boxes import ImageNetBoxes
from .imagenet_segmentation import ImageNetSegmentation
from .imagenette import Imagenette
from .oxford_pets import OxfordPets
from .pascal_voc import VocDetection, VocSegmentation
from .table_evaluation import TableEvaluation


__all__ = ["EVALUATION_SETS", "EvaluationSource", "load_evaluation_set"]

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class EvaluationSource:
    """An entry of `EVALUATION_SETS`.

    Attributes:
        build: Function that makes the set from `data_dir`, `split` and options, as far as it takes them.
        content: Content of `data_dir`, as a noun; empty where there is none.
        source: Origin of the set, and its terms as far as they are known.
    """

    build: Callable[..., EvaluationSet]
    content: str
    source: str

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters of `build`."""
        return tuple(inspect.signature(self.build).parameters)

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the options beyond `data_dir`, `split` and `limit`."""
        return tuple(name for name in self.parameters if name not in ("data_dir", "split", "limit"))


def _build_scenes(
    split: str = "test",
    limit: int | None = None,
    image_size: int | tuple[int, int] = 96,
    seed: int = 0,
    cache_dir: str | None = None,
    num_proc: int | None = None,
    config_name: str | None = None,
) -> EvaluationSet:
    # no more is drawn than is needed, and more than the split has where they are asked for; any such prefix holds all
    # classes equally often
    table = load_scenes(split, limit, image_size, seed, cache_dir, num_proc, config_name)
    return TableEvaluation(table, "scenes" if config_name is None else f"scenes ({config_name})")


def _build_voc(
    data_dir: str | os.PathLike,
    split: str | None = None,
    year: str | int | None = None,
    task: str = "segmentation",
    keep_hard: bool = True,
) -> EvaluationSet:
    if task == "segmentation":
        return VocSegmentation(data_dir, year or "2012", split or "val")
    if task == "detection":
        return VocDetection(data_dir, year or "2007", split or "trainval", keep_hard)
    raise ValueError(f"`task` must be segmentation or detection, got {task!r}.")


def _voc_detection(year: str) -> Callable[..., EvaluationSet]:
    return lambda data_dir, split="trainval", keep_hard=True: VocDetection(data_dir, year, split, keep_hard)


def _voc_segmentation(year: str) -> Callable[..., EvaluationSet]:
    return lambda data_dir, split="val": VocSegmentation(data_dir, year, split)


def _build_imagenet_boxes(
    data_dir: str | os.PathLike,
    localization_file: str | os.PathLike | None = None,
    class_labels_file: str | os.PathLike | None = None,
    image_sizes_file: str | os.PathLike | None = None,
) -> EvaluationSet:
    folder = Path(data_dir).expanduser()
    image_dir = folder / "val" if (folder / "val").is_dir() else folder
    boxes = localization_file or _existing(folder, "localization.txt", "val_folder_new.txt")
    labels = class_labels_file or _existing(folder, "class_labels.txt")
    sizes = image_sizes_file or _existing(folder, "image_sizes.txt")
    examples = ImageNetBoxes(image_dir, boxes or folder / "localization.txt", labels, sizes)
    examples.published_size = None if localization_file else 50000
    return examples


def _build_coco20k(
    data_dir: str | os.PathLike,
    annotation_file: str | os.PathLike | None = None,
    image_list: str | os.PathLike | None = None,
) -> EvaluationSet:
    folder = Path(data_dir).expanduser()
    annotations = annotation_file or folder / "annotations" / "instances_train2014.json"
    return Coco20k(folder, annotations, image_list or folder / "coco_20k_filenames.txt")


def _imagenette(variant: str) -> Callable[..., EvaluationSet]:
    return lambda data_dir, split=None, boxes_file=None: Imagenette(data_dir, variant, split, boxes_file)


def _existing(folder: Path, *names: str) -> Path | None:
    """Return the first of some files in a folder that there is."""
    return next((folder / name for name in names if (folder / name).is_file()), None)


_VOC_CONTENT = "the folder of `VOCdevkit`, or `VOC<year>` itself"
_VOC_SOURCE = (
    "PASCAL VOC devkit (archives voc<year>): JPEGImages, ImageSets, SegmentationClass or Annotations. Photographs of "
    "third parties: see the terms of the challenge."
)

EVALUATION_SETS: dict[str, EvaluationSource] = {
    "scenes": EvaluationSource(
        _build_scenes, "", "Drawn by this package, of the same licence as it; labels, masks and boxes are exact."
    ),
    "imagenet-segmentation": EvaluationSource(
        lambda data_dir: ImageNetSegmentation(data_dir),
        "`gtsegs_ijcv.mat`",
        "Guillaumin et al. 2014: 4,276 images of ImageNet with masks, the file that hila-chefer/"
        "Transformer-Explainability evaluates on. The terms of ImageNet hold for its images.",
    ),
    "voc": EvaluationSource(_build_voc, _VOC_CONTENT, _VOC_SOURCE),
    **{
        f"voc{year}-{task}": EvaluationSource(build(year), _VOC_CONTENT, _VOC_SOURCE)
        for task, build in (("detection", _voc_detection), ("segmentation", _voc_segmentation))
        for year in ("2007", "2012")
    },
    "cub": EvaluationSource(
        lambda data_dir, split="test", segmentations=None: Cub(data_dir, split, segmentations),
        "`CUB_200_2011`",
        "Caltech-UCSD Birds 200 (2011), data.caltech.edu: images and lists in record 65de6-vp158, segmentations (an "
        "archive of their own) in w9d68-gec53. Its terms are given there.",
    ),
    "oxford-pets": EvaluationSource(
        lambda data_dir, split=None, image_list=None: OxfordPets(data_dir, split, image_list),
        "`images/` and `annotations/`",
        "Oxford-IIIT Pet (Parkhi et al. 2012), archives images and annotations of www.robots.ox.ac.uk/~vgg/data/pets: "
        "CC BY-SA 4.0 by its page.",
    ),
    "ecssd": EvaluationSource(
        lambda data_dir: Ecssd(data_dir),
        "`images/` and `ground_truth_mask/`",
        "ECSSD (Shi et al. 2016), archives images and ground_truth_mask of www.cse.cuhk.edu.hk/leojia/projects/"
        "hsaliency. Photographs of third parties: see its authors' page.",
    ),
    **{
        name: EvaluationSource(
            _imagenette(name),
            f"`{name}2-320` with `train/` and `val/`, or the class folders themselves",
            f"fastai/imagenette, archives {name}2, {name}2-320 and {name}2-160. The terms of ImageNet hold for its "
            "images.",
        )
        for name in ("imagenette", "imagewoof")
    },
    "imagenet-boxes": EvaluationSource(
        _build_imagenet_boxes,
        "the validation images of ImageNet (`val/`, or directly), `localization.txt`, and `class_labels.txt` and "
        "`image_sizes.txt` if there are labels and sizes",
        "Images: ImageNet (ILSVRC2012), whose terms have to be accepted. Lists: metadata/ILSVRC/test of "
        "clovaai/wsolevaluation (MIT), or `val_folder_new.txt` of TS-CAM.",
    ),
    "coco20k": EvaluationSource(
        _build_coco20k,
        "`train2014/`, `annotations/instances_train2014.json` and `coco_20k_filenames.txt`",
        "COCO train2014 with its instances, and the list of 19,817 names from valeoai/LOST "
        "(datasets/coco_20k_filenames.txt). Photographs of third parties: see the terms of COCO.",
    ),
    "folder": EvaluationSource(
        lambda data_dir, ignore_value=None: AnnotatedFolder(data_dir, ignore_value),
        "images of your own with masks, boxes or classes",
        "Your own: see `AnnotatedFolder`.",
    ),
}


_INTEGER_OPTIONS = {"ignore_value", "image_size", "num_proc", "seed"}


def load_evaluation_set(
    name: str | None = None,
    data_dir: str | os.PathLike | None = None,
    split: str | None = None,
    limit: int | None = None,
    needs: Iterable[str] = (),
    **options: Any,
) -> EvaluationSet:
    """Return an evaluation set by name.

    Args:
        name: A key of `EVALUATION_SETS`. `None` means "folder" where there is a `data_dir`.
        data_dir: Folder of the unpacked set; the entry describes its content.
        split: Part of the set, for those that have several; `None` takes the one that is evaluated on.
        limit: Largest number of images. They are taken at equal distances, because some sets are sorted by class; of
            the scenes the first ones. For a quick look: such scores are not comparable with others.
        needs: Which of `ANNOTATIONS` are needed. For "voc" boxes choose `task="detection"`.
        **options: Further options of the set, listed in `EVALUATION_SETS[name].options`.

    Returns:
        The set. It logs a warning where it does not have as many images as the published one.

    Raises:
        ImportError: If a library that reads the set is not installed.
        ValueError: If a name, an option or an annotation is unknown or files are missing. It lists the choices.
    """
    name = "folder" if name is None and data_dir is not None else name
    if name not in EVALUATION_SETS:
        raise ValueError(
            f"The evaluation set must be one of {', '.join(EVALUATION_SETS)}, got {name!r}. For images of your own "
            "pass `data_dir` without a name."
        )
    needs = [needs] if isinstance(needs, str) else list(needs)
    unknown = [annotation for annotation in needs if annotation not in ANNOTATIONS]
    if unknown:
        raise ValueError(f"`needs` must be among {', '.join(ANNOTATIONS)}, got {unknown[0]!r}.")
    if limit is not None and limit < 1:
        raise ValueError(f"`limit` must be at least 1, got {limit}.")
    # the segmentation task of VOC has no boxes
    if name == "voc" and "boxes" in needs:
        options.setdefault("task", "detection")
    source = EVALUATION_SETS[name]
    examples = source.build(**_check_arguments(name, source, data_dir, split, limit, options))
    missing = [annotation for annotation in needs if annotation not in examples.provides]
    if missing:
        raise ValueError(
            f"The evaluation set {name!r} does not provide {', '.join(missing)}, only "
            f"{', '.join(sorted(examples.provides))} here. {source.source}"
        )
    if examples.published_size not in (None, len(examples)):
        logger.warning(
            f"{name} has {len(examples)} images here, the published set {examples.published_size}: scores cannot be "
            "compared with published ones."
        )
    # not the first ones: many sets are sorted by class
    return examples if limit is None else examples.spread(limit)


def _check_arguments(
    name: str,
    source: EvaluationSource,
    data_dir: str | os.PathLike | None,
    split: str | None,
    limit: int | None,
    options: dict[str, Any],
) -> dict[str, Any]:
    """Return the arguments of `source.build`, or raise for unknown or missing ones."""
    unknown = [option for option in options if option not in source.options]
    if unknown:
        raise ValueError(
            f"The evaluation set {name!r} has no option {unknown[0]!r}, only {', '.join(source.options) or 'none'}."
        )
    for option in _INTEGER_OPTIONS & options.keys():
        value = options[option]
        is_pair = option == "image_size" and isinstance(value, tuple)
        if value is not None and not is_pair and (not isinstance(value, int) or isinstance(value, bool)):
            raise ValueError(f"`{option}` of {name!r} must be a whole number, got {value!r}.")
    if data_dir is None and source.content:
        raise ValueError(
            f"The evaluation set {name!r} needs `data_dir`: {source.content}. Nothing is downloaded; it comes from: "
            f"{source.source}"
        )
    named: dict[str, Any] = {"data_dir": data_dir, "split": split}
    given = {key: value for key, value in named.items() if value is not None}
    for argument in given:
        if argument not in source.parameters:
            raise ValueError(f"The evaluation set {name!r} takes no `{argument}`, got {given[argument]!r}.")
    if "limit" in source.parameters:
        given["limit"] = limit
    return {**given, **options}
