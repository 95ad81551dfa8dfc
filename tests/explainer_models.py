# SPDX-License-Identifier: Apache-2.0
"""Tiny models of every family for the tests of the explainers, and the model of the recorded reference values."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTModel,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    Dinov2WithRegistersModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
    ViTMSNConfig,
    ViTMSNForImageClassification,
)

from transformers_ice import IceDeiTConfig, IceDeiTForImageClassification, IceDeiTForSemanticSegmentation, IceDeiTModel
from transformers_ice.explainers import EXPLAINERS


REFERENCE = Path(__file__).parent / "reference" / "explainers_reference.safetensors"
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 5,
    "initializer_range": 0.3,  # far from uniform attention, so that maps differ
}
FAMILIES = {
    "vit": (ViTForImageClassification, ViTConfig, 1),
    "vit_encoder": (ViTModel, ViTConfig, 1),
    "deit": (DeiTForImageClassification, DeiTConfig, 2),
    "deit_teacher": (DeiTForImageClassificationWithTeacher, DeiTConfig, 2),
    "deit_encoder": (DeiTModel, DeiTConfig, 2),
    "vit_msn": (ViTMSNForImageClassification, ViTMSNConfig, 1),
    "dinov2": (Dinov2ForImageClassification, Dinov2Config, 1),
    "dinov2_encoder": (Dinov2Model, Dinov2Config, 1),
    "dinov2_registers": (Dinov2WithRegistersForImageClassification, Dinov2WithRegistersConfig, 5),
    "dinov2_no_registers": (
        Dinov2WithRegistersForImageClassification,
        partial(Dinov2WithRegistersConfig, num_register_tokens=0),
        1,
    ),
    "dinov2_registers_encoder": (Dinov2WithRegistersModel, Dinov2WithRegistersConfig, 5),
    "ice": (IceDeiTForImageClassification, IceDeiTConfig, 1),
    "ice_distilled": (IceDeiTForImageClassification, partial(IceDeiTConfig, use_distillation_token=True), 2),
    "ice_registers": (
        IceDeiTForImageClassification,
        partial(IceDeiTConfig, use_distillation_token=True, num_register_tokens=3),
        5,
    ),
    "ice_segmentation": (IceDeiTForSemanticSegmentation, IceDeiTConfig, 1),
    "ice_encoder": (IceDeiTModel, IceDeiTConfig, 1),
}
SOURCE_FAMILIES = ["vit_msn", "dinov2", "dinov2_registers"]  # beside ViT and DeiT
ICE_FAMILIES = [name for name in FAMILIES if name.startswith("ice")]
CLASSIFIERS = [name for name in FAMILIES if not name.endswith("encoder")]
# what can run here: captum and torchcam are extras
METHODS = [name for name, explainer in EXPLAINERS.items() if explainer.library is None or find_spec(explainer.library)]
BASELINES = [name for name in METHODS if EXPLAINERS[name].model == "any"]
CLASS_AWARE_BASELINES = [name for name in BASELINES if EXPLAINERS[name].takes_target]


def pairs(*families):
    """Return `(family, method)` for every method that each of the families can be explained by."""
    return [(family, method) for family in families for method in (METHODS if family in ICE_FAMILIES else BASELINES)]


def tiny(family, **changes):
    model_class, config_class, _ = FAMILIES[family]
    torch.manual_seed(0)
    model = model_class(config_class(**{**SIZES, **changes})).eval()
    embeddings = model.base_model.embeddings
    for name in ("cls_token", "distillation_token", "register_tokens", "position_embeddings"):
        if getattr(embeddings, name, None) is not None:  # HF DeiT starts them at 0, where nothing tells patches apart
            torch.nn.init.normal_(getattr(embeddings, name), std=SIZES["initializer_range"])
    for name, scale in model.named_parameters():
        if name.endswith("lambda1"):  # LayerScale: 1 would hide one that is forgotten
            torch.nn.init.normal_(scale)
    return model


def layers_of(model):
    """Return the layers of a model of any family, spelled out."""
    encoder = model.base_model
    return encoder.layers if hasattr(encoder, "layers") else encoder.encoder.layer


def pixels(batch_size=2, height=32, width=32):
    return torch.randn(batch_size, 3, height, width, generator=torch.Generator().manual_seed(1))


def explained(model, pixel_values):
    """Return the logits that a class-aware explainer explains, without the help of the package."""
    outputs = model(pixel_values)
    return outputs.cls_logits if model.config.model_type == "ice_deit" else outputs.logits


def vit_weights(reference):
    """Rename timm's keys to those of an HF ViT classifier and split the joint query-key-value matrix."""
    names = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "blocks.": "layers.",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.proj": "attention.o_proj",
    }
    weights = {}
    for key in reference.keys():  # noqa: SIM118 - an open file, not a mapping
        if not key.startswith("model."):
            continue
        name = key.removeprefix("model.")
        if name.startswith("head."):
            weights[name.replace("head.", "classifier.")] = reference.get_tensor(key)
            continue
        name = name.replace("norm.", "layernorm.") if name.startswith("norm.") else name
        for old, new in names.items():
            name = name.replace(old, new)
        if "attn.qkv" in name:
            for part, tensor in zip("qkv", reference.get_tensor(key).chunk(3), strict=True):
                weights["vit." + name.replace("attn.qkv", f"attention.{part}_proj")] = tensor
        else:
            weights["vit." + name] = reference.get_tensor(key)
    return weights


def load_reference():
    """Return the model whose explanations were recorded, and all recorded tensors by name."""
    with safe_open(REFERENCE, "pt") as file:
        metadata = file.metadata()
        sizes = {key: int(metadata[key]) for key in ("hidden_size", "num_attention_heads", "num_hidden_layers")}
        config = ViTConfig(
            **sizes,
            intermediate_size=4 * sizes["hidden_size"],
            image_size=64,
            patch_size=16,
            layer_norm_eps=1e-6,
            num_labels=int(metadata["num_classes"]),
        )
        model = ViTForImageClassification(config).eval()
        model.load_state_dict(vit_weights(file), strict=True)
        tensors = {key: file.get_tensor(key) for key in file.keys() if not key.startswith("model.")}  # noqa: SIM118
    return model, tensors
