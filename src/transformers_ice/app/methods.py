# SPDX-License-Identifier: Apache-2.0
"""The other explainers, on the same image and the same model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

from ..explainers import EXPLAINERS, explain
from ..ice_deit.patch_maps import bilinear_to_image
from .analysis import LoadedModel, PreparedImage
from .limits import Deadline


__all__ = ["DEFAULT_METHODS", "MethodMap", "available_methods", "compare_methods", "method_title"]

DEFAULT_METHODS = ("raw_attention", "rollout", "grad_cam", "generic_attention")


@dataclass(frozen=True)
class MethodMap:
    """Map of one method for an image."""

    name: str  # its title
    heatmap: np.ndarray | None  # (height, width) of the shown image, stretched to [0, 1]; None where it failed
    milliseconds: float  # one run, the model's own included
    knows_target: bool  # whether the map depends on the class
    problem: str = ""  # why there is no map


def method_title(name: str) -> str:
    """Return the words that stand for a name in `EXPLAINERS`."""
    return EXPLAINERS[name].title or name.replace("_", " ").capitalize()


def available_methods() -> dict[str, str]:
    """Return the methods whose libraries are installed, name in `EXPLAINERS` to title; without ICE itself."""
    return {
        name: method_title(name)
        for name, explainer in EXPLAINERS.items()
        if name != "ice" and (explainer.library is None or find_spec(explainer.library) is not None)
    }


def compare_methods(
    loaded: LoadedModel, image: PreparedImage, methods: Sequence[str], target: int | None, deadline: Deadline
) -> list[MethodMap]:
    """Explain an image by names in `EXPLAINERS`, one after the other; a map has a `problem` where one does not fit."""
    maps = []
    for method in methods:
        deadline.check()
        maps.append(_run(loaded, image, method, target))
    return maps


def _run(loaded: LoadedModel, image: PreparedImage, method: str, target: int | None) -> MethodMap:
    name, knows_target = method_title(method), EXPLAINERS[method].takes_target
    start = time.perf_counter()
    try:
        (relevance,) = explain(loaded.model, image.pixel_values, method, target if knows_target else None)
    except (ImportError, RuntimeError, ValueError) as error:  # the failure of one method must not stop the others
        return MethodMap(name, None, 0.0, knows_target, str(error).split(". ")[0])
    milliseconds = 1e3 * (time.perf_counter() - start)
    geometry = loaded.processor.image_geometry(image.shown_size)
    values = bilinear_to_image(relevance.detach().float().cpu(), geometry).numpy()
    return MethodMap(name, _stretch(values), milliseconds, knows_target)


def _stretch(values: np.ndarray) -> np.ndarray:
    """Stretch a map to [0, 1]: ranges of different methods are not comparable. A constant map becomes 0."""
    values = np.nan_to_num(values)  # (height, width); NaN counts as no relevance
    return (values - values.min()) / max(float(np.ptp(values)), 1e-12)
