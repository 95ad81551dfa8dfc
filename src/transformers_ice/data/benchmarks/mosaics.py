# SPDX-License-Identifier: Apache-2.0
"""Mosaics: square grids of images of different classes, to see whether a map of one class lies on its image.

Cell k of a mosaic with `side` cells along a side is in row `k // side` and column `k % side`.

Source: Boehle, Fritz and Schiele, "Convolutional Dynamic Alignment Networks for Interpretable Classifications", CVPR
2021; the choice of the images as in `moboehle/B-cos` (`interpretability/analyses/localisation.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .examples import EvaluationSet, Example


__all__ = ["Mosaic", "MosaicSet", "cell_masks", "compose_cells", "fitting_cell_size", "plan_mosaics"]


def fitting_cell_size(input_size: tuple[int, int], patch_size: tuple[int, int], side: int) -> tuple[int, int]:
    """Return height and width of a cell of whole patches, such that the mosaic has about the size of an input.

    The nearest number of patches is taken, of two equally near ones the larger, and at least one.

    Args:
        input_size: Height and width of the input, in whole patches.
        patch_size: Height and width of a patch.
        side: Cells along a side.

    Example:
        >>> fitting_cell_size((224, 224), (16, 16), 3)  # 14 patches are no multiple of 3: the mosaic has 15
        (80, 80)
    """
    # rounded half up, in integers: (patches / side + 1/2) downwards
    height, width = (
        max(1, (2 * (pixels // patch) + side) // (2 * side)) * patch
        for pixels, patch in zip(input_size, patch_size, strict=True)
    )
    return height, width


def compose_cells(
    images: Sequence[Image.Image], cell_size: tuple[int, int], resample: int = Image.Resampling.BICUBIC
) -> Image.Image:
    """Lay images out in a square grid, each squashed to the size of a cell.

    Args:
        images: A square number of images in RGB, row by row.
        cell_size: Height and width of a cell.
        resample: Filter of PIL.

    Raises:
        ValueError: If the images do not fill a square.
    """
    side = round(len(images) ** 0.5)
    if not images or side * side != len(images):
        raise ValueError(f"`images` must fill a square, such as 4 or 9 of them, got {len(images)}.")
    height, width = cell_size
    mosaic = Image.new("RGB", (side * width, side * height))
    for index, image in enumerate(images):
        cell = image.resize((width, height), Image.Resampling(resample))  # PIL takes (width, height)
        mosaic.paste(cell, (index % side * width, index // side * height))
    return mosaic


def cell_masks(side: int, cell_size: tuple[int, int]) -> np.ndarray:
    """Return where each cell is, `(side * side, side * height, side * width)`, bool.

    Args:
        side: Cells along a side.
        cell_size: Height and width of a cell, in pixels or patches.
    """
    height, width = cell_size
    cells = np.arange(side * side).reshape(side, side)
    owner = np.kron(cells, np.ones((height, width), dtype=cells.dtype))  # (side * height, side * width)
    return owner == np.arange(side * side)[:, None, None]


def plan_mosaics(
    candidates: Mapping[int, Sequence[int]], num_cells: int, num_mosaics: int, seed: int = 0
) -> list[tuple[int, ...]]:
    """Choose the images of mosaics: of different classes in each, every image once, the first ones of a class first.

    Classes are used equally often as far as their images reach, in random combinations and random places.

    Args:
        candidates: Indices of the images by class, the best first.
        num_cells: Images in a mosaic.
        num_mosaics: Largest number of mosaics; fewer where the images do not reach.
        seed: Seed of combinations and places.

    Returns:
        The index of the image in each cell, per mosaic. There are as many mosaics as can be made.

    Raises:
        ValueError: If fewer classes than cells have an image.
    """
    classes = [name for name in sorted(candidates) if len(candidates[name])]
    if len(classes) < num_cells:
        raise ValueError(
            f"A mosaic of {num_cells} cells needs images of {num_cells} classes, got {len(classes)} with an image. "
            "Use smaller mosaics or more images."
        )
    counts = np.array([len(candidates[name]) for name in classes])
    # m mosaics can be made if, of each class, at most m images fill all cells
    most = min(num_mosaics, int(counts.sum()) // num_cells)
    possible = [m for m in range(1, most + 1) if np.minimum(counts, m).sum() >= m * num_cells]
    number, rng = possible[-1], np.random.default_rng(seed)
    remaining = _even_quotas(counts, number * num_cells, rng)
    used, mosaics = np.zeros(len(classes), dtype=int), []
    for _ in range(number):
        # always the classes with the most images left: so the last mosaics have different classes, too
        chosen = np.lexsort((rng.random(len(classes)), -remaining))[:num_cells]
        chosen = rng.permutation(chosen)  # the place of a class is random
        mosaics.append(tuple(candidates[classes[index]][used[index]] for index in chosen))
        remaining[chosen] -= 1
        used[chosen] += 1
    return mosaics


def _even_quotas(counts: np.ndarray, total: int, rng: np.random.Generator) -> np.ndarray:
    """Return how many images of each class are used: the same number, or all it has; `total` together."""
    level = max(level for level in range(int(counts.max()) + 1) if np.minimum(counts, level).sum() <= total)
    quotas = np.minimum(counts, level)
    more = rng.permutation(np.flatnonzero(counts > level))[: total - quotas.sum()]
    quotas[more] += 1
    return quotas


@dataclass(frozen=True, eq=False)
class Mosaic(Example):
    """A mosaic; `classes` are those of its cells, row by row, as `MosaicSet` was given them."""

    classes: tuple[int, ...] = ()


class MosaicSet(EvaluationSet):
    """Mosaics of the images of another set, composed when they are read.

    Args:
        images: The set.
        mosaics: Index of the image in each cell, per mosaic, as `plan_mosaics` returns them.
        classes: Class of each image that is used, by its index: of the set or of a model, as the caller counts.
        cell_size: Height and width of a cell in pixels.
        resample: Filter of PIL, by which images become cells.

    Example:
        >>> scenes = load_evaluation_set("scenes", limit=8)
        >>> MosaicSet(scenes, [(0, 1, 2, 3)], {index: index for index in range(4)}, (48, 48))[0].image.size
        (96, 96)
    """

    def __init__(
        self,
        images: EvaluationSet,
        mosaics: Sequence[Sequence[int]],
        classes: Mapping[int, int],
        cell_size: tuple[int, int],
        resample: int = Image.Resampling.BICUBIC,
    ) -> None:
        super().__init__(f"mosaics of {images.name}", ())
        self._images, self._cell_size, self._resample = images, cell_size, int(resample)
        self._cells = [tuple((int(index), int(classes[index])) for index in mosaic) for mosaic in mosaics]

    def __len__(self) -> int:
        return len(self._cells)

    def _identity(self) -> Iterable[object]:
        return self._images.fingerprint, self._cells, self._cell_size, self._resample

    def _read(self, index: int) -> Mosaic:
        examples = [self._images[image] for image, _ in self._cells[index]]
        image = compose_cells([example.image for example in examples], self._cell_size, self._resample)
        name = ", ".join(example.image_id for example in examples)
        return Mosaic(name, image, classes=tuple(own for _, own in self._cells[index]))
