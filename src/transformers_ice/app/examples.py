# SPDX-License-Identifier: Apache-2.0
"""Example images, drawn when the app starts: scenes that no model was trained on."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from ..data.scenes import SCENE_CLASSES, draw_scene
from ..ice_deit.image_conversion import IMAGE_ENDINGS, convert_to_rgb
from .limits import Limits, read_upload


__all__ = ["draw_examples", "read_examples"]

_SIDE = 512
_MAX_EXAMPLES = 16  # every visitor loads them
# held-out scenes of different classes, chosen by eye because they read well as thumbnails
_INDICES = (13, 14, 3, 16, 7, 29, 21, 20)


def read_examples(folder: str, limits: Limits) -> list[tuple[Image.Image, str]]:
    """Return the images of a folder, in the order of their names, each with its name."""
    files = [file for file in sorted(Path(folder).glob("*")) if file.suffix.lower() in IMAGE_ENDINGS]
    if not files:
        raise ValueError(f"`examples` must be a folder of images, got {folder}.")
    return [(convert_to_rgb(read_upload(file, limits)), file.stem) for file in files[:_MAX_EXAMPLES]]


def draw_examples() -> list[tuple[Image.Image, str]]:
    """Draw the examples."""
    scenes = [draw_scene(index, split="test", image_size=_SIDE) for index in _INDICES]
    return [(Image.fromarray(scene.image), SCENE_CLASSES[scene.label]) for scene in scenes]
