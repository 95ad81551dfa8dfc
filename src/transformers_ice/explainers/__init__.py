# SPDX-License-Identifier: Apache-2.0
"""Explainers: one relevance value per patch, from ICE's own patch head or from a baseline on a model of `FAMILIES`.

`explain` runs one by its name, `MapExplainer` runs it on images; `EXPLAINERS` says of each name what it needs, and
`FAMILIES` which models can be explained: ViT (DINO, MAE and AugReg weights too), DeiT, ViT-MSN, DINOv2 with and
without registers, and ICE-DeiT. In the files: ICE itself (`ice`); attention alone (`attention_based`), weighed by
gradients (`gradient_based`) or by relevance (`relevance_based`, with its rules in `relevance_rules`); what captum and
torchcam compute (`library_based`). Each function takes `(model, pixel_values, target=None, **options)`, `target` being
`(batch_size,)`, and returns float32 maps.
"""

from .families import FAMILIES, Family
from .inspection import evaluation_mode
from .map_explainer import MapExplainer
from .registry import EXPLAINERS, HARD_EXPLAINERS, Explainer, explain


__all__ = [
    "EXPLAINERS",
    "FAMILIES",
    "HARD_EXPLAINERS",
    "Explainer",
    "Family",
    "MapExplainer",
    "evaluation_mode",
    "explain",
]
