# SPDX-License-Identifier: Apache-2.0
"""Families of transformers that can be explained, and where each keeps what the explainers read.

A family is one entry of `FAMILIES`. The explainers ask `backbone_of` for the parts of a model and know no family.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoModelForImageClassification,
    DeiTPreTrainedModel,
    Dinov2PreTrainedModel,
    Dinov2WithRegistersPreTrainedModel,
    PreTrainedModel,
    ViTMSNPreTrainedModel,
    ViTPreTrainedModel,
)


__all__ = ["FAMILIES", "Backbone", "Family", "backbone_of", "load_classifier"]


@dataclass(frozen=True)
class Family:
    """Names of the parts of a family's models; in all of them tokens start with [CLS] and end with the patches.

    Attributes:
        title: Its name in messages.
        model_class: The class that all its models derive from.
        prefix_tokens: Parameters of the embeddings: the tokens before the patches, `(1, number, hidden_size)` each.
        layers: The `ModuleList` of the layers, below the encoder.
        norm_before_attention: The layer norm through which a layer's tokens enter its attention.
        scales: The modules of a layer that scale what attention and MLP add (LayerScale); none in most families.
        takes_position_flag: Whether `forward` must be told to interpolate positions; others always do.
        classifies_patches: Whether the classifier reads [CLS] and, beside it, the mean of the patches. If not, head i
            reads prefix token i.
    """

    title: str
    model_class: type[PreTrainedModel]
    prefix_tokens: tuple[str, ...] = ("cls_token",)
    layers: str = "layers"
    norm_before_attention: str = "layernorm_before"
    scales: tuple[str, str] | None = None
    takes_position_flag: bool = True
    classifies_patches: bool = False


_DINOV2: dict[str, Any] = {
    "layers": "encoder.layer",
    "norm_before_attention": "norm1",
    "scales": ("layer_scale1", "layer_scale2"),
    "takes_position_flag": False,
    "classifies_patches": True,
}

FAMILIES = (
    # also DINO, MAE, AugReg and supervised weights, and hub DeiT without a distillation token
    Family("ViT", ViTPreTrainedModel),
    # also ICE-DeiT, which derives from it
    Family("DeiT", DeiTPreTrainedModel, ("cls_token", "distillation_token", "register_tokens")),
    Family("ViT-MSN", ViTMSNPreTrainedModel),
    Family("DINOv2", Dinov2PreTrainedModel, **_DINOV2),
    # registers have no position, and neither classifier nor patch grid includes them
    Family("DINOv2 with registers", Dinov2WithRegistersPreTrainedModel, ("cls_token", "register_tokens"), **_DINOV2),
)
"""Families that can be explained, in the order of the message to all others."""


@dataclass(frozen=True)
class Backbone:
    """Parts of a model under one name each, whatever its family calls them."""

    encoder: Any
    family: Family

    @property
    def embeddings(self) -> Any:
        """Maps pixel values to tokens `(batch_size, num_prefix_tokens + num_patches, hidden_size)`."""
        return self.encoder.embeddings

    @property
    def layers(self) -> Any:
        """`ModuleList` of the layers."""
        return self.encoder.get_submodule(self.family.layers)

    @property
    def layernorm(self) -> nn.Module:
        """Layer norm after the last layer."""
        return self.encoder.layernorm

    @property
    def num_prefix_tokens(self) -> int:
        """Number of tokens before the patches: [CLS], a distillation token, registers."""
        tokens = (getattr(self.embeddings, name, None) for name in self.family.prefix_tokens)
        return sum(token.shape[1] for token in tokens if token is not None)

    def norm_before_attention(self, layer: nn.Module) -> nn.Module:
        """Return the layer norm through which a layer's tokens enter its attention."""
        return layer.get_submodule(self.family.norm_before_attention)

    def scale_of_attention(self, layer: nn.Module) -> Any:
        """Return the LayerScale of what attention adds to the tokens, `None` in families without it."""
        return self.family.scales and layer.get_submodule(self.family.scales[0])

    def scale_of_mlp(self, layer: nn.Module) -> Any:
        """Return the LayerScale of what the MLP adds to the tokens, `None` in families without it."""
        return self.family.scales and layer.get_submodule(self.family.scales[1])

    def head_inputs(self, tokens: Tensor, num_heads: int) -> list[Tensor]:
        """Return what each linear head reads of the tokens after the final layer norm, `(batch_size, features)`."""
        if not self.family.classifies_patches:
            return list(tokens[:, :num_heads].unbind(dim=1))
        return [torch.cat((tokens[:, 0], tokens[:, self.num_prefix_tokens :].mean(dim=1)), dim=1)]


def backbone_of(model: PreTrainedModel) -> Backbone:
    """Return the parts of a model, with or without a head.

    Raises:
        ValueError: If it is of another family.
    """
    for family in FAMILIES:
        if isinstance(model, family.model_class):
            return Backbone(model.base_model, family)
    titles = [family.title for family in FAMILIES]
    raise ValueError(
        f"`model` must be an ICE model or one of transformers' families {', '.join(titles[:-1])} or {titles[-1]}, got "
        f"{type(model).__name__}."
    )


def load_classifier(name: str) -> tuple[PreTrainedModel, list[str]]:
    """Load a classifier by the installed code, never by the folder's own; return also the weights that it lacks.

    Raises:
        OSError: If the Hub has no such model, or cannot be reached.
        ValueError: If its weights cannot be read or do not fit its `config.json`, or it is of another family.
    """
    try:
        model, info = AutoModelForImageClassification.from_pretrained(
            name, trust_remote_code=False, output_loading_info=True
        )
    except SafetensorError as error:
        raise ValueError(f"The weights in {name!r} cannot be read: {error}. Is the download complete?") from error
    except RuntimeError as error:  # transformers logs the table of the weights, and says no more
        raise ValueError(
            f"The weights in {name!r} are not those of its config.json: see the table above. Is the folder complete, "
            "and its config.json unchanged?"
        ) from error
    backbone_of(model)  # refuses other families
    return model, sorted(info["missing_keys"])
