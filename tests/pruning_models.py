# SPDX-License-Identifier: Apache-2.0
"""Small models whose patches leave, and images for them: what the tests of pruning share."""

from __future__ import annotations

import torch

from transformers_ice import IceDeiTConfig, IceDeiTForImageClassification
from transformers_ice.ice_deit.packed_attention import Packing


STRATEGIES = ("background", "top_k", "attentiveness", "fused")
PREFIXES = {
    "[CLS]": {},
    "distillation": {"use_distillation_token": True},
    "registers": {"num_register_tokens": 4},
    "distillation, registers": {"use_distillation_token": True, "num_register_tokens": 4},
}
"""Fields by what stands before the patches; in this order: [CLS], distillation token, registers."""
NUM_LAYERS, NUM_LABELS = 5, 7


def build(strategy: str, **fields) -> IceDeiTForImageClassification:
    """Return a model with weights far from zero: gates that differ, attention that is no mean."""
    sizes = {"hidden_size": 48, "num_hidden_layers": NUM_LAYERS, "num_attention_heads": 3, "intermediate_size": 96}
    sizes |= {"image_size": 64, "patch_size": 8, "num_labels": NUM_LABELS}
    cuts = {"pruning_layers": [1, 2, 4], "keep_rates": [0.7, 0.6, 0.5]}
    cuts |= {"pruning_strategy": "attentiveness" if strategy == "fused" else strategy}
    cuts |= {"fuse_pruned_tokens": strategy == "fused"}
    torch.manual_seed(0)
    model = IceDeiTForImageClassification(IceDeiTConfig(**{**sizes, **cuts, **fields})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def images(number: int = 4, height: int = 64, width: int = 64) -> torch.Tensor:
    """Return the same random images each time."""
    return torch.randn(number, 3, height, width, generator=torch.Generator().manual_seed(1))


def hide_lengths(monkeypatch) -> None:
    """Let packings not know their lengths, as in a captured graph: attention is then padded and masked."""
    monkeypatch.setattr(Packing, "of", Packing.captured)
