# SPDX-License-Identifier: Apache-2.0
"""Families of transformers whose checkpoints become ICE-DeiT: one entry each, read by loading and by conversion.

A new family is one entry of `SOURCE_FAMILIES`; what its files are called outside transformers is in the package's
`conversion/key_layouts.py`. The encoder is still DeiT's plain pre-norm encoder: an entry fits it to a checkpoint. What
it could not compute is refused by the name of the field.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from .position_interpolation import POSITION_INTERPOLATIONS, PositionInterpolation


_ENCODER_PREFIX = "deit."

# The names of layers in files of transformers before version 5 -> the names since; ViT and DeiT share both.
_OLD_LAYER_NAMES = (
    (r"encoder\.layer\.", "layers."),
    (r"attention\.attention\.query", "attention.q_proj"),
    (r"attention\.attention\.key", "attention.k_proj"),
    (r"attention\.attention\.value", "attention.v_proj"),
    (r"attention\.output\.dense", "attention.o_proj"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"output\.dense", "mlp.fc2"),
)
# DINOv2 writes `encoder.layer.` in both layouts, and has other names for its norms
_DINOV2_NAMES = (*_OLD_LAYER_NAMES, (r"norm1\.", "layernorm_before."), (r"norm2\.", "layernorm_after."))

_MASK_TOKEN = {"embeddings.mask_token": "the mask token serves masked-image training only"}
_UNUSED_KEYS = {
    "pooler.dense.{p}": "the pooler stands beside the classifier, which does not read it",
    "decoder.0.{p}": "the decoder redraws pixels in masked-image training only",
    **_MASK_TOKEN,
}
_MAE_UNUSED_KEYS = {"decoder.{rest}": "the decoder redraws pixels in masked-image training only"}

# Fields that the encoder reads alike in every family and in DeiT, or that change no answer.
_SHARED_FIELDS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range", "layer_norm_eps"),
    *("image_size", "patch_size", "num_channels", "qkv_bias", "drop_path_rate", "num_register_tokens"),
    *("encoder_stride", "pooler_output_size", "pooler_act"),  # of parts that are dropped
)
_MAE_FIELDS = (
    *("decoder_num_attention_heads", "decoder_hidden_size", "decoder_num_hidden_layers", "decoder_intermediate_size"),
    *("mask_ratio", "norm_pix_loss"),
)
_DINOV2_FIELDS = (
    *("mlp_ratio", "layerscale_value", "use_swiglu_ffn", "use_mask_token"),
    *("out_features", "out_indices", "_out_features", "_out_indices", "stage_names"),
    *("apply_layernorm", "reshape_hidden_states"),
)


@dataclass(frozen=True)
class SourceFamily:
    """Family of checkpoints in a layout of transformers, and its way to ICE-DeiT.

    Args:
        model_type: Name of the family in `config.json`.
        key_prefix: Prefix of the encoder's weights in a classifier's file, with its dot.
        prefix_fields: Maps the source's configuration to the ICE fields that name its prefix tokens and their heads.
        renamings: `(pattern, replacement)` from names of the encoder's weights to those of `IceDeiTModel`, in order.
        unused_keys: Weights that ICE-DeiT does not have -> the reason. A template, as in `key_pattern`, without
            `key_prefix`.
        default_fields: Fields whose default in the source's configuration class differs from that of `IceDeiTConfig`.
        interpolation: How the source brings its position embeddings to another image size.
        foreign_fields: Fields of the source's configuration that ICE-DeiT does not have and need not keep.
        refused_values: Field -> what it turns on, which ICE-DeiT lacks.
        has_layer_scale: Whether each branch of a layer ends in a LayerScale, to be folded.
        classifier: What the classifier reads, if ICE-DeiT's linear [CLS] head cannot give its answer.
    """

    model_type: str
    key_prefix: str
    prefix_fields: Callable[[Mapping[str, Any]], dict[str, Any]]
    renamings: tuple[tuple[str, str], ...]
    unused_keys: Mapping[str, str]
    default_fields: Mapping[str, Any]
    interpolation: PositionInterpolation
    foreign_fields: tuple[str, ...] = ()
    refused_values: Mapping[str, str] = field(default_factory=dict)
    has_layer_scale: bool = False
    classifier: str | None = None

    @property
    def prefix_renamings(self) -> tuple[tuple[str, str], ...]:
        """Renaming of the encoder's prefix, none where it is that of ICE-DeiT."""
        if self.key_prefix == _ENCODER_PREFIX:
            return ()
        return ((rf"^{re.escape(self.key_prefix)}", _ENCODER_PREFIX),)

    def adopt_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of the ICE model that a checkpoint with this `config.json` starts, `model_type` excepted.

        It has no trained patch head, so it classifies by [CLS] as before. A field that changes what the model
        computes, and that ICE-DeiT does not have, is a `ValueError`.
        """
        self._refuse_unsupported(config)
        kept = {name: value for name, value in config.items() if name not in self.foreign_fields}
        return {**self.default_fields, **kept, **self.prefix_fields(config), "logits_source": "cls"}

    def _refuse_unsupported(self, config: Mapping[str, Any]) -> None:
        """Refuse what the encoder of DeiT cannot do, by the name of the field."""
        for name, meaning in self.refused_values.items():
            if config.get(name):
                raise ValueError(
                    f"`{name}` of a {self.model_type} model is {config[name]!r}: {meaning}, which the encoder of DeiT "
                    "does not have. Start from a model of the family without it."
                )
        heads, head_dim = config.get("num_attention_heads", 12), config.get("head_dim")
        if head_dim is not None and head_dim * heads != config.get("hidden_size", 768):
            raise ValueError(
                f"`head_dim` times `num_attention_heads` must be `hidden_size` as in DeiT, got {head_dim} and {heads}."
            )
        # what a later version of transformers adds to the family; fields that its class does not declare do nothing
        for name, default in _declared_fields(self.model_type).items():
            known = name in _SHARED_FIELDS or name in self.foreign_fields
            if not known and config.get(name, default) != default:
                raise ValueError(
                    f"`{name}` of a {self.model_type} model is {config[name]!r}, which this version of "
                    f"transformers-ice does not know; {default!r} is what it can load."
                )


def _declared_fields(model_type: str) -> dict[str, Any]:
    """Return the fields that the installed configuration class of a family adds to every model's, with defaults."""
    if model_type not in CONFIG_MAPPING:
        return {}
    common = {item.name for item in fields(PreTrainedConfig)}
    return {item.name: item.default for item in fields(CONFIG_MAPPING[model_type]) if item.name not in common}


def _only_class_token(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"use_distillation_token": False, "use_distillation_head": False}


def _distillation_token(config: Mapping[str, Any]) -> dict[str, Any]:
    with_teacher = "DeiTForImageClassificationWithTeacher" in (config.get("architectures") or [])
    return {"use_distillation_token": True, "use_distillation_head": with_teacher}


def _dinov2_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    hidden_size = int(config.get("hidden_size", 768))
    return {**_only_class_token(config), "intermediate_size": int(hidden_size * config.get("mlp_ratio", 4))}


def _dinov2_register_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    registers = config.get("num_register_tokens", 4)
    return {**_dinov2_fields(config), "num_register_tokens": registers, "interpolate_antialias": True}


_BICUBIC = PositionInterpolation(POSITION_INTERPOLATIONS["bicubic"].description, float64=True)
_SWIGLU = {"use_swiglu_ffn": "SwiGLU in place of an MLP"}
_WITH_PATCHES = "[CLS] and the mean of the patches, side by side (2 x hidden_size inputs)"
# The configuration classes leave their defaults out of no file, but be exact if one did
_EPS = {"layer_norm_eps": 1e-12}

SOURCE_FAMILIES = {
    family.model_type: family
    for family in (
        # also hub DeiT models without a distillation token, DINO, AugReg, and MAE with a classifier
        SourceFamily("vit", "vit.", _only_class_token, _OLD_LAYER_NAMES, _UNUSED_KEYS, _EPS, _BICUBIC),
        SourceFamily("deit", "deit.", _distillation_token, _OLD_LAYER_NAMES, _UNUSED_KEYS, _EPS, _BICUBIC),
        SourceFamily(
            "vit_mae", "vit.", _only_class_token, _OLD_LAYER_NAMES, _MAE_UNUSED_KEYS, _EPS, _BICUBIC, _MAE_FIELDS
        ),
        SourceFamily("vit_msn", "vit.", _only_class_token, _OLD_LAYER_NAMES, _MASK_TOKEN, {}, _BICUBIC),
        SourceFamily(
            "dinov2",
            "dinov2.",
            _dinov2_fields,
            _DINOV2_NAMES,
            _MASK_TOKEN,
            {"patch_size": 14},
            POSITION_INTERPOLATIONS["bicubic"],
            _DINOV2_FIELDS,
            _SWIGLU,
            has_layer_scale=True,
            classifier=_WITH_PATCHES,
        ),
        SourceFamily(
            "dinov2_with_registers",
            "dinov2_with_registers.",
            _dinov2_register_fields,
            _DINOV2_NAMES,
            _MASK_TOKEN,
            {},
            POSITION_INTERPOLATIONS["antialias"],
            _DINOV2_FIELDS,
            _SWIGLU,
            has_layer_scale=True,
            classifier=_WITH_PATCHES,
        ),
    )
}
"""Families by `model_type`."""


def key_pattern(template: str) -> re.Pattern[str]:
    """Return a template of names as a regular expression.

    `{n}` is a layer's number, `{p}` weight or bias, `{rest}` any end of a name.
    """
    escaped = re.escape(template).replace(r"\{n\}", r"(?P<n>0|[1-9]\d{0,3})").replace(r"\{rest\}", r"(?P<rest>.+)")
    return re.compile(escaped.replace(r"\{p\}", "(?P<p>weight|bias)"))


def encoder_renamings() -> list[tuple[str, str]]:
    """Return `(pattern, replacement)` from the encoder's names in every family to those of ICE-DeiT, in order."""
    families = SOURCE_FAMILIES.values()
    # families that share names would otherwise be renamed twice
    return list(dict.fromkeys([*prefix_renamings(), *(row for family in families for row in family.renamings)]))


def prefix_renamings() -> list[tuple[str, str]]:
    """Return `(pattern, replacement)` from the prefix of every family's encoder to that of ICE-DeiT."""
    return list(dict.fromkeys(row for family in SOURCE_FAMILIES.values() for row in family.prefix_renamings))


def unused_key_patterns() -> list[str]:
    """Return regular expressions for the weights that no ICE model has, with or without a prefix."""
    templates = dict.fromkeys(key for family in SOURCE_FAMILIES.values() for key in family.unused_keys)
    # transformers joins the patterns to one, in which no group may have the name of another
    unnamed = [re.sub(r"\?P<\w+>", "?:", key_pattern(template).pattern) for template in templates]
    return [rf"(?:^|\.){pattern}$" for pattern in unnamed]


__all__ = [
    "SOURCE_FAMILIES",
    "SourceFamily",
    "encoder_renamings",
    "key_pattern",
    "prefix_renamings",
    "unused_key_patterns",
]
