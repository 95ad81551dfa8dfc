# SPDX-License-Identifier: Apache-2.0
"""Data sets with labels, masks and boxes."""

from .benchmarks import EVALUATION_SETS, EvaluationSet, Example, load_evaluation_set
from .scenes import SCENE_CLASSES, SPLIT_SIZES, Scene, SeveralScene, draw_scene, draw_several_scene, load_scenes


__all__ = [
    "EVALUATION_SETS",
    "SCENE_CLASSES",
    "SPLIT_SIZES",
    "EvaluationSet",
    "Example",
    "Scene",
    "SeveralScene",
    "draw_scene",
    "draw_several_scene",
    "load_evaluation_set",
    "load_scenes",
]
