# SPDX-License-Identifier: Apache-2.0
"""Names of timm that the published code of EViT and ToMe imports, as far as a forward pass needs them.

The vision transformer has timm's names of modules, which ToMe relies on, and is written from the architecture; its
attention and its blocks are what ToMe replaces, so that they need no forward pass here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from ..ice_deit.configuration_ice_deit import as_pair


__all__ = ["EVIT_IMPORTS", "Attention", "Block", "VisionTransformer", "tome_imports"]


def _unused(*_: Any, **__: Any) -> Any:
    raise NotImplementedError("This function of timm is not needed to run a model, and is not here.")


def _as_it_is(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function: no model is registered."""
    return function


_MEANS = ("IMAGENET_DEFAULT_MEAN", "IMAGENET_DEFAULT_STD", "IMAGENET_INCEPTION_MEAN", "IMAGENET_INCEPTION_STD")
_PACKAGES: dict[str, dict[str, Any]] = {"timm": {"__path__": []}, "timm.models": {"__path__": []}}

EVIT_IMPORTS: dict[str, dict[str, Any]] = {
    **_PACKAGES,
    # constants of preprocessing, which a forward pass does not use
    "timm.data": dict.fromkeys(_MEANS, (0.5, 0.5, 0.5)),
    "timm.models.helpers": dict.fromkeys(("build_model_with_cfg", "named_apply", "adapt_input_conv"), _unused),
    # both initialize weights that are overwritten afterwards
    "timm.models.layers": {
        "trunc_normal_": nn.init.trunc_normal_,
        "lecun_normal_": nn.init.normal_,
        "to_2tuple": as_pair,
    },
    "timm.models.registry": {"register_model": _as_it_is},
    "torchprofile": {"profile_macs": _unused},
}
"""What EViT's `evit.py` and `helpers.py` import: by module, its names."""


def tome_imports() -> dict[str, dict[str, Any]]:
    """Return what ToMe's `tome/patch/timm.py` imports: by module, its names."""
    names = {"Attention": Attention, "Block": Block, "VisionTransformer": VisionTransformer}
    return {**_PACKAGES, "timm.models.vision_transformer": names}


class Attention(nn.Module):
    """Parts of the attention of a layer."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.scale = (width // config.num_attention_heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width, bias=config.qkv_bias)
        self.proj = nn.Linear(width, width)
        self.attn_drop, self.proj_drop = nn.Identity(), nn.Identity()


class _Mlp(nn.Module):
    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(hidden_states)))


class Block(nn.Module):
    """Parts of a layer."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = _Mlp(config)
        self.drop_path = nn.Identity()


class VisionTransformer(nn.Module):
    """Vision transformer with [CLS] and a linear classifier, of the sizes of an ICE configuration."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        width, patch_size, image_size = config.hidden_size, as_pair(config.patch_size), as_pair(config.image_size)
        num_patches = (image_size[0] // patch_size[0]) * (image_size[1] // patch_size[1])
        projection = nn.Conv2d(config.num_channels, width, kernel_size=patch_size, stride=patch_size)
        self.patch_embed = nn.ModuleDict({"proj": projection})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + num_patches, width))
        self.blocks = nn.Sequential(*(Block(config) for _ in range(config.num_hidden_layers)))
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.head = nn.Linear(width, int(config.num_labels or 0))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return class logits `(batch_size, num_labels)`."""
        patches = self.patch_embed["proj"](pixel_values).flatten(2).transpose(1, 2)  # -> (batch, patches, width)
        tokens = torch.cat((self.cls_token.expand(len(patches), -1, -1), patches), dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(tokens))[:, 0])
