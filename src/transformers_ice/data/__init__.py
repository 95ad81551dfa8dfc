# SPDX-License-Identifier: Apache-2.0
"""Data sets with labels, masks and boxes."""

from .scenes import SCENE_CLASSES, SPLIT_SIZES, Scene, draw_scene, load_scenes


__all__ = ["SCENE_CLASSES", "SPLIT_SIZES", "Scene", "draw_scene", "load_scenes"]
