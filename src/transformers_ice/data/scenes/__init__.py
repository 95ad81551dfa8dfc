# SPDX-License-Identifier: Apache-2.0
"""Scenes: drawn images of ten classes whose labels, masks and boxes are known exactly."""

from .dataset import (
    SCENE_CLASSES,
    SPLIT_SIZES,
    Scene,
    SeveralScene,
    draw_scene,
    draw_several_scene,
    load_scenes,
)


__all__ = [
    "SCENE_CLASSES",
    "SPLIT_SIZES",
    "Scene",
    "SeveralScene",
    "draw_scene",
    "draw_several_scene",
    "load_scenes",
]
