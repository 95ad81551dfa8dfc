# SPDX-License-Identifier: Apache-2.0
"""Example images, drawn when the app starts: scenes that no model was trained on."""

from __future__ import annotations

from PIL import Image

from ..data.scenes import SCENE_CLASSES, draw_scene


__all__ = ["draw_examples"]

_SIDE = 512
# held-out scenes of different classes, chosen by eye because they read well as thumbnails
_INDICES = (13, 14, 3, 16, 7, 29, 21, 20)


def draw_examples() -> list[tuple[Image.Image, str]]:
    """Draw the examples."""
    scenes = [draw_scene(index, split="test", image_size=_SIDE) for index in _INDICES]
    return [(Image.fromarray(scene.image), SCENE_CLASSES[scene.label]) for scene in scenes]
