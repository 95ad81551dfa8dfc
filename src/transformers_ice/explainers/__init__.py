# SPDX-License-Identifier: Apache-2.0
"""Explainers: one relevance value per patch, from ICE's own patch head or from a baseline on any DeiT or ViT.

`explain` runs one by its name; `EXPLAINERS` says of each name what it needs. In the files: ICE itself (`ice`);
attention alone (`attention_based`), weighed by gradients (`gradient_based`) or by relevance (`relevance_based`, with
its rules in `relevance_rules`); what captum and torchcam compute (`library_based`). Each function takes `(model,
pixel_values, target=None, **options)`, `target` being `(batch_size,)`, and returns float32 maps.
"""

from .inspection import evaluation_mode
from .registry import EXPLAINERS, HARD_EXPLAINERS, Explainer, explain


__all__ = ["EXPLAINERS", "HARD_EXPLAINERS", "Explainer", "evaluation_mode", "explain"]
