# SPDX-License-Identifier: Apache-2.0
"""A `datasets` table, such as the scenes drawn here or a set of the Hub, as an evaluation set."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image as PilImage

from ...ice_deit.image_conversion import convert_to_rgb, load_image
from ..masks import binary_mask
from .annotation_files import as_boxes
from .examples import EvaluationSet, Example


if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["TableEvaluation"]

_VOID = 255  # of class maps: pixels that do not count


class TableEvaluation(EvaluationSet):
    """Rows of a table; provides whichever of `label`, `mask`, `segmentation` and `boxes` it has columns for.

    Where a label is a list of classes, their names become `class_names`, and neither `label`, of which an image has
    one, nor `boxes`, of which some images have none, is provided.

    Args:
        table: A table with an image column. Its rows are not copied: they remain in memory-mapped files. name: Name of
        the set. image_column: Column of the images. label_column: Column of class indices; the names of a `ClassLabel`
        become `class_names`. mask_column: Column of masks: images, foreground where not 0, or arrays of 1, 0 and -1
        (ignored). class_mask_column: Column of class maps, grey or palette images: 0 background, k the class
        `class_names[k - 1]`,
            255 void. Read where the classes have names.
        boxes_column: Column with a box or a list of boxes, xyxy in half-open pixels. `None` takes "boxes" or "box".
        id_column: Column of names. Otherwise an image is called by its row.
    """

    def __init__(
        self,
        table: Dataset,
        name: str = "table",
        image_column: str = "image",
        label_column: str = "label",
        mask_column: str = "mask",
        class_mask_column: str = "class_mask",
        boxes_column: str | None = None,
        id_column: str = "image_id",
    ) -> None:
        from datasets import Image, List

        from ..images.labels import Labels

        if image_column not in table.column_names or not isinstance(table.features[image_column], Image):
            raise ValueError(
                f"The table must have a column {image_column!r} of images, got {dict(table.features)}. Pass "
                "`image_column`, or cast it with `table.cast_column(name, datasets.Image())`."
            )
        boxes_column = boxes_column or ("boxes" if "boxes" in table.column_names else "box")
        wanted = {"label": label_column, "mask": mask_column, "segmentation": class_mask_column, "boxes": boxes_column}
        for key, column in wanted.items():
            if column not in (key, "class_mask", "box", *table.column_names):
                raise ValueError(f"The table has no column {column!r} of {key}, only {', '.join(table.column_names)}.")
        label = table.features.get(label_column)
        is_list = isinstance(label, List)
        names = getattr(label.feature if is_list else label, "names", None)
        left_out = {*(("label", "boxes") if is_list else ()), *(() if names else ("segmentation",))}
        self._columns = {
            key: column for key, column in wanted.items() if column in table.column_names and key not in left_out
        }
        if not self._columns:
            raise ValueError(
                f"The table must have one of the columns {', '.join(wanted.values())} to evaluate against, got "
                f"{', '.join(table.column_names)}."
            )
        super().__init__(name, self._columns, names)
        self._labels = None if names is None else Labels.from_names(names)
        self._image, self._id = image_column, id_column
        kept = {image_column, *self._columns.values(), *({id_column} & set(table.column_names))}
        columns = sorted(kept)  # always in the same order, on which the table's fingerprint depends
        self.table = table.select_columns(columns)
        for column in columns:
            # as they are in the file: decoding by `datasets` neither names a damaged image nor keeps its bit depth
            if isinstance(table.features[column], Image):
                self.table = self.table.cast_column(column, Image(decode=False))

    def __len__(self) -> int:
        return len(self.table)

    def _identity(self) -> Iterable[object]:
        # the digest by which `datasets` caches what is computed from a table
        return self.table._fingerprint, self._columns

    def _read(self, index: int) -> Example:
        row = self.table[index]
        where = f"row {index} of {self.name!r}"
        cells = {key: row[column] for key, column in self._columns.items()}
        empty = [key for key in cells if cells[key] is None]
        if empty or row[self._image] is None:
            raise ValueError(
                f"The {empty[0] if empty else 'image'} of {where} is missing. Drop the row or fill it in."
            )
        try:
            image = convert_to_rgb(load_image(row[self._image]))
            mask = _read_mask(cells["mask"], where) if "mask" in cells else None
            classes = self._read_classes(cells["segmentation"]) if "segmentation" in cells else None
            label = cells.get("label")
            label = label if self._labels is None or label is None else self._labels.encode(label)
        except ValueError as error:
            raise ValueError(f"In {where}: {error}") from error
        boxes = as_boxes(cells["boxes"], where) if "boxes" in cells else None
        return Example(str(row.get(self._id, index)), image, label, mask, classes, boxes)

    def _read_classes(self, cell: Any) -> np.ndarray:
        """Return a class map as `(height, width)`, int16, void as -1."""
        picture, num_labels = load_image(cell), len(self.class_names or ())
        if picture.mode not in ("L", "P"):
            raise ValueError(f"a class map must be a grey or palette image, got mode {picture.mode}.")
        classes = np.asarray(picture).astype(np.int16)
        if num_labels < _VOID:
            classes[classes == _VOID] = -1
        if classes.max(initial=0) > num_labels:
            raise ValueError(f"a class map must hold 0 to {num_labels} and {_VOID}, got {classes.max()}.")
        return classes


def _read_mask(cell: Any, where: str) -> np.ndarray:
    """Return a mask as `(height, width)`, int8."""
    if isinstance(cell, dict | PilImage.Image):
        return binary_mask(load_image(cell), where)
    mask = np.asarray(cell)
    if mask.ndim != 2 or not np.isin(mask, (-1, 0, 1)).all():
        raise ValueError(f"a mask that is no image must hold 1, 0 and -1 on two axes, got shape {mask.shape}.")
    return mask.astype(np.int8)
