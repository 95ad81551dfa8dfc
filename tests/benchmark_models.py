# SPDX-License-Identifier: Apache-2.0
"""Tiny checkpoints and an evaluation set, for the tests of the benchmarks."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from transformers_ice import IceDeiTConfig, IceDeiTForImageClassification
from transformers_ice.data.benchmarks.examples import EvaluationSet, Example
from transformers_ice.evaluation import Checkpoint
from transformers_ice.ice_deit.image_processing_ice_deit import IceDeiTImageProcessor


SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 7,
    "initializer_range": 0.3,
}


class Pictures(EvaluationSet):
    """Random pictures of 32 pixels (every third one of another size) whose object is a block of whole patches."""

    def __init__(self, count: int = 10, provides=("label", "mask", "boxes"), odd_sizes: bool = False) -> None:
        super().__init__("pictures", provides, [f"class {index}" for index in range(7)])
        self.count, self.odd_sizes, self.reads = count, odd_sizes, 0

    def __len__(self) -> int:
        return self.count

    def _identity(self):
        yield self.count

    def _read(self, index: int) -> Example:
        self.reads += 1
        rng = np.random.default_rng(index)
        height, width = (45, 37) if self.odd_sizes and index % 3 == 2 else (32, 32)
        picture = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        top, left = 8 * int(rng.integers(3)), 8 * int(rng.integers(2))
        mask = np.zeros((height, width), dtype=np.int8)
        mask[top : top + 8, left : left + 16] = 1
        known = {
            "label": int(rng.integers(7)),
            "mask": mask,
            "boxes": np.array([[left, top, left + 16, top + 8]], dtype=np.float64),
        }
        return Example(str(index), picture, **{key: known[key] for key in known if key in self.provides})


@lru_cache
def ice_checkpoint() -> Checkpoint:
    torch.manual_seed(0)
    model = IceDeiTForImageClassification(IceDeiTConfig(**SIZES)).eval()
    return Checkpoint("ice", model, IceDeiTImageProcessor(size={"height": 32, "width": 32}), "a")


@lru_cache
def vit_checkpoint() -> Checkpoint:
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(**SIZES)).eval()
    return Checkpoint("vit", model, ViTImageProcessorPil(size={"height": 32, "width": 32}), "b")


def scores_of(results) -> dict[tuple[str, str, str], float]:
    """Return every score by (checkpoint, method, name)."""
    return {(r.checkpoint, r.method, n): i.value for r in results for n, i in r.scores.items()}
