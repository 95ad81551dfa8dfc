# SPDX-License-Identifier: Apache-2.0
"""`pipeline("patch-explanation")`: what an ICE model sees in a picture, and where.

This file travels with a checkpoint as remote code.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from operator import index
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import AutoModelForImageClassification, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils import logging


__all__ = ["PatchExplanationPipeline", "register_patch_explanation_pipeline"]

TASK = "patch-explanation"
logger = logging.get_logger(__name__)


class PatchExplanationPipeline(Pipeline):
    """Explain the class of images by the patches that carry it.

    Takes one image or a list: paths, URLs, `data:` URIs, encoded bytes, PIL images, arrays or tensors; also a
    `datasets.Dataset` (its column "image", or its only image column) or a generator, whose results are yielded one by
    one: the maps of a large photograph take 21 bytes per pixel. Images are loaded upright and with their bit depth and
    transparency, so the maps belong to the upright image.

    Parameters, for the constructor or a call:
        target: Class (name or index) whose probability the heat map shows; `None`: that of the foreground.
        timeout: Seconds to wait for a web server, 30 by default.
        batch_size: Images that go through the model at once, of any sizes. Does not change the results.

    Returns per image a dict:
        label: `str`, the class that `outputs.logits` names. "background" where no patch is foreground, unless the
            [CLS] classifier names the class (`config.logits_source = "cls"`).
        score: `float` in [0, 1], the class's softmax probability; with "background" the mean p(background) of the
            patches.
        heatmap: `(height, width)`, float32, in [0, 1], 1 - p(background) or p(target), bilinear.
        class_map: `(height, width)`, int64, the class of each pixel's patch; `num_labels` is background.
        mask: `(height, width)`, bool, `class_map != num_labels`.
        found: `bool`, whether any patch is foreground.
        box: `{"xmin", "ymin", "xmax", "ymax"}`, half-open pixels, around the largest connected group of foreground
            patches; `None` where nothing was found.
        foreground_ratio: `float` in [0, 1], fraction of foreground patches.
        exit_layers: `(height, width)`, int64, the layer before which each pixel's patch was pruned; the number of
            layers where it was kept.

    A multi-label model (`config.problem_type`) adds `objects`: a list of dicts with `label`, `score`, `box`, `mask`
    and `heatmap` of every class whose score reaches `config.object_thresholds` and that a patch names, best score
    first, maybe none. Its `label` and `score` are those of the best object, the score being the sigmoid of its logit;
    with none they are "background" and 1 - the largest score. The other maps leave out classes that were not found.

    Example:
        >>> explain = pipeline("patch-explanation", model="checkpoints/ice-deit-scenes", trust_remote_code=True)
        >>> result = explain("photo.jpg")
        >>> result["label"], result["box"], result["mask"].mean()
    """

    image_processor: Any
    model: Any
    _load_processor: Any = False
    _load_image_processor: Any = True
    _load_feature_extractor: Any = False
    _load_tokenizer: Any = False
    # What registration notes on the class and `save_pretrained` reads: remote code is saved again without registering.
    _registered_impl: dict[str, dict[str, Any]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not hasattr(self.image_processor, "post_process_explanation"):
            raise ValueError(
                f"`image_processor` must be an IceDeiTImageProcessor, got {type(self.image_processor).__name__}. Load "
                "it with `IceDeiTImageProcessor.from_pretrained(folder)`; it reads the settings of other processors."
            )
        if self.model.config.logits_source == "cls":
            logger.warning_once(
                f"{self.model.config.name_or_path or 'The model'} classifies by [CLS] (`logits_source`), so its patch "
                "head counts as untrained: maps, mask and box then show nothing of the picture. Train it first "
                '(`transformers-ice train`). If the patch head is trained, set `model.config.logits_source = "patch"`.'
            )

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Explain one image (a dict), a list of images (a list), or a dataset or generator (an iterator).

        Args:
            inputs: As the class says.
            *args: Ignored, as in every pipeline.
            **kwargs: `target`, `timeout`, `batch_size`, `num_workers`.

        Raises:
            ValueError: If an image cannot be read (names it), a dataset has no image column, or `target` is no class.
        """
        if isinstance(inputs, list) and not inputs:
            return []
        return super().__call__(_as_inputs(inputs), *args, **kwargs)

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        """Sort the parameters by the step that takes them."""
        unknown = sorted(kwargs.keys() - {"target", "timeout"})
        if unknown:
            raise ValueError(f"Unknown parameter {unknown[0]!r} of {TASK!r}. Use target, timeout or batch_size.")
        preprocess = {"timeout": kwargs["timeout"]} if "timeout" in kwargs else {}
        postprocess = {"target": self._class_index(kwargs["target"])} if "target" in kwargs else {}
        return preprocess, {}, postprocess

    def _class_index(self, target: str | int | None) -> int | None:
        """Return the index of a class given by name or index."""
        num_labels = self.model.config.num_labels
        names: dict[str, int] = {}
        for i in range(num_labels):  # of two classes with one name, the first
            names.setdefault(self.model.config.id2label[i], i)
        if target is None or (isinstance(target, str) and target in names):
            return None if target is None else names[target]
        if isinstance(target, str):
            close = difflib.get_close_matches(target, names, n=3) or list(names)[:10]
            raise ValueError(f"`target` must be a class of the model, got {target!r}. Classes like it: {close}.")
        if isinstance(target, bool) or not hasattr(target, "__index__") or not 0 <= index(target) < num_labels:
            raise ValueError(f"`target` must be a class name or an index in [0, {num_labels - 1}], got {target!r}.")
        return index(target)

    def preprocess(  # type: ignore[override]  # no pipeline of transformers fits the parent
        self, input_: Any, timeout: float | None = 30.0
    ) -> dict[str, Any]:
        """Load one image and prepare it for the model."""
        rgb = self.image_processor.read_image(input_, timeout)
        inputs = self.image_processor(rgb, return_tensors="pt").to(self.dtype)
        return {**inputs, "target_sizes": torch.tensor([[rgb.height, rgb.width]])}

    def _forward(self, input_tensors: dict[str, Any], **_: Any) -> Any:
        """Run the model; the sizes of the original images travel along."""
        target_sizes = input_tensors["target_sizes"]
        outputs = self.model(pixel_values=input_tensors["pixel_values"], return_dict=True)
        # `logits` first: the batch is taken apart by the length of the first entry
        names = ("logits", "patch_logits", "grid_size", "patch_exit_layer", "object_thresholds")
        kept = {name: outputs.get(name) for name in names}
        return {**{name: value for name, value in kept.items() if value is not None}, "target_sizes": target_sizes}

    def postprocess(  # type: ignore[override]  # as above
        self, model_outputs: Any, target: int | None = None
    ) -> dict[str, Any]:
        """Turn the outputs for one image into its explanation."""
        (explanation,) = self.image_processor.post_process_explanation(
            model_outputs, model_outputs["target_sizes"], target, self.model.config.id2label
        )
        return explanation.to_dict()


class _Items(Dataset):
    """The entries of any sequence (or of one column of it), read one at a time."""

    def __init__(self, items: Any, column: str | None = None) -> None:
        self.items, self.column = items, column

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, position: int) -> Any:
        item = self.items[position]
        return item if self.column is None else item[self.column]


def _as_inputs(inputs: Any) -> Any:
    """Return inputs as one of the kinds that `Pipeline` tells apart: one image, list, torch dataset, generator."""
    if isinstance(inputs, tuple):
        return list(inputs)
    if hasattr(inputs, "features") and hasattr(inputs, "column_names"):  # of `datasets`, which need not be installed
        column = _image_column(inputs)
        return _Items(inputs, column) if hasattr(inputs, "__len__") else _column(inputs, column)
    if isinstance(inputs, Sequence) and not isinstance(inputs, list | str | bytes | bytearray):
        return _Items(inputs)  # a column of a dataset
    return inputs


def _column(rows: Iterable[dict[str, Any]], column: str) -> Iterator[Any]:
    """Yield one column of a streamed dataset."""
    for row in rows:
        yield row[column]


def _image_column(dataset: Any) -> str:
    """Return the column that holds the images to explain."""
    features = dataset.features or dict.fromkeys(dataset.column_names or ["image"])
    columns = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    if "image" in features or len(columns) != 1:
        columns = ["image"]
    if columns[0] not in features:
        raise ValueError(
            f"A dataset must have a column 'image' or a single image column, got {list(features)}. Pass the column "
            "itself: `dataset['name']`."
        )
    return columns[0]


def register_patch_explanation_pipeline() -> None:
    """Make `pipeline("patch-explanation")` known to transformers. Calling it again changes nothing."""
    known = PIPELINE_REGISTRY.supported_tasks.get(TASK)
    if known is None or known["impl"] is not PatchExplanationPipeline:
        PIPELINE_REGISTRY.supported_tasks.pop(TASK, None)  # a reloaded package replaces the class without a warning
        PIPELINE_REGISTRY.register_pipeline(
            TASK, pipeline_class=PatchExplanationPipeline, pt_model=AutoModelForImageClassification, type="image"
        )


PatchExplanationPipeline._registered_impl = {
    TASK: {"impl": PatchExplanationPipeline, "pt": (AutoModelForImageClassification,), "type": "image"}
}
