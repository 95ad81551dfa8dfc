# SPDX-License-Identifier: Apache-2.0
"""Layouts of checkpoint files: tables from the names of weights to those of `IceDeiTForImageClassification`.

A layout outside transformers (timm, facebook, the ICE authors) is one more entry of `KEY_LAYOUTS`. What
`from_pretrained` reads by itself is in `ice_deit/source_families.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..ice_deit.source_families import SOURCE_FAMILIES


__all__ = ["DROPPED_KEYS", "KEY_LAYOUTS", "KEY_TABLES", "UNSUPPORTED_KEYS", "KeyLayout"]


@dataclass(frozen=True)
class KeyLayout:
    """Naming of the weights in a file, which has the layout whose table knows most of its names.

    Args:
        key_table: `(name in the file, name in IceDeiTForImageClassification)`. `{n}` is the layer, `{p}` weight or
            bias; the prefix of the source's encoder is removed before.
        unused_keys: Names in the file that classification does not need -> the reason.
    """

    key_table: tuple[tuple[str, str], ...]
    unused_keys: Mapping[str, str]


# fmt: off
_TRANSFORMERS_SHARED = (
    ("embeddings.cls_token",                             "deit.embeddings.cls_token"),
    ("embeddings.distillation_token",                    "deit.embeddings.distillation_token"),
    ("embeddings.register_tokens",                       "deit.embeddings.register_tokens"),
    ("embeddings.position_embeddings",                   "deit.embeddings.position_embeddings"),
    ("embeddings.patch_embeddings.projection.{p}",       "deit.embeddings.patch_embeddings.projection.{p}"),
    ("layernorm.{p}",                                    "deit.layernorm.{p}"),
    ("classifier.{p}",                                   "classifier.{p}"),
    ("cls_classifier.{p}",                               "classifier.{p}"),
    ("distillation_classifier.{p}",                      "distillation_classifier.{p}"),
    ("patch_head.weight",                                "deit.patch_head.weight"),
    ("patch_head.fc1.{p}",                               "deit.patch_head.fc1.{p}"),
    ("patch_head.fc2.weight",                            "deit.patch_head.fc2.weight"),
)

_TIMM = (
    ("cls_token",                                        "deit.embeddings.cls_token"),
    ("dist_token",                                       "deit.embeddings.distillation_token"),
    # facebook's name first: its positions are laid out as those of ICE-DeiT, so the way back is to its name
    ("register_tokens",                                  "deit.embeddings.register_tokens"),
    ("reg_token",                                        "deit.embeddings.register_tokens"),
    ("pos_embed",                                        "deit.embeddings.position_embeddings"),
    ("patch_embed.proj.{p}",                             "deit.embeddings.patch_embeddings.projection.{p}"),
    ("blocks.{n}.norm1.{p}",                             "deit.layers.{n}.layernorm_before.{p}"),
    ("blocks.{n}.attn.qkv.{p}",                          "deit.layers.{n}.attention.qkv_proj.{p}"),
    ("blocks.{n}.attn.proj.{p}",                         "deit.layers.{n}.attention.o_proj.{p}"),
    ("blocks.{n}.ls1.gamma",                             "deit.layers.{n}.layer_scale1.lambda1"),
    ("blocks.{n}.gamma_1",                               "deit.layers.{n}.layer_scale1.lambda1"),
    ("blocks.{n}.norm2.{p}",                             "deit.layers.{n}.layernorm_after.{p}"),
    ("blocks.{n}.mlp.fc1.{p}",                           "deit.layers.{n}.mlp.fc1.{p}"),
    ("blocks.{n}.mlp.fc2.{p}",                           "deit.layers.{n}.mlp.fc2.{p}"),
    ("blocks.{n}.ls2.gamma",                             "deit.layers.{n}.layer_scale2.lambda1"),
    ("blocks.{n}.gamma_2",                               "deit.layers.{n}.layer_scale2.lambda1"),
    ("norm.{p}",                                         "deit.layernorm.{p}"),
    ("head.{p}",                                         "classifier.{p}"),
    ("head_dist.{p}",                                    "distillation_classifier.{p}"),
    ("mlp_head.weight",                                  "deit.patch_head.weight"),
)

_TRANSFORMERS_OLD = (
    ("encoder.layer.{n}.layernorm_before.{p}",           "deit.layers.{n}.layernorm_before.{p}"),
    ("encoder.layer.{n}.attention.attention.query.{p}",  "deit.layers.{n}.attention.q_proj.{p}"),
    ("encoder.layer.{n}.attention.attention.key.{p}",    "deit.layers.{n}.attention.k_proj.{p}"),
    ("encoder.layer.{n}.attention.attention.value.{p}",  "deit.layers.{n}.attention.v_proj.{p}"),
    ("encoder.layer.{n}.attention.output.dense.{p}",     "deit.layers.{n}.attention.o_proj.{p}"),
    ("encoder.layer.{n}.layernorm_after.{p}",            "deit.layers.{n}.layernorm_after.{p}"),
    ("encoder.layer.{n}.intermediate.dense.{p}",         "deit.layers.{n}.mlp.fc1.{p}"),
    ("encoder.layer.{n}.output.dense.{p}",               "deit.layers.{n}.mlp.fc2.{p}"),
    *_TRANSFORMERS_SHARED,
)

_TRANSFORMERS = (
    ("layers.{n}.layernorm_before.{p}",                  "deit.layers.{n}.layernorm_before.{p}"),
    ("layers.{n}.attention.q_proj.{p}",                  "deit.layers.{n}.attention.q_proj.{p}"),
    ("layers.{n}.attention.k_proj.{p}",                  "deit.layers.{n}.attention.k_proj.{p}"),
    ("layers.{n}.attention.v_proj.{p}",                  "deit.layers.{n}.attention.v_proj.{p}"),
    ("layers.{n}.attention.o_proj.{p}",                  "deit.layers.{n}.attention.o_proj.{p}"),
    ("layers.{n}.layernorm_after.{p}",                   "deit.layers.{n}.layernorm_after.{p}"),
    ("layers.{n}.mlp.fc1.{p}",                           "deit.layers.{n}.mlp.fc1.{p}"),
    ("layers.{n}.mlp.fc2.{p}",                           "deit.layers.{n}.mlp.fc2.{p}"),
    *_TRANSFORMERS_SHARED,
)

_DINOV2_SHARED = (
    ("encoder.layer.{n}.norm1.{p}",                      "deit.layers.{n}.layernorm_before.{p}"),
    ("encoder.layer.{n}.layer_scale1.lambda1",           "deit.layers.{n}.layer_scale1.lambda1"),
    ("encoder.layer.{n}.norm2.{p}",                      "deit.layers.{n}.layernorm_after.{p}"),
    ("encoder.layer.{n}.mlp.fc1.{p}",                    "deit.layers.{n}.mlp.fc1.{p}"),
    ("encoder.layer.{n}.mlp.fc2.{p}",                    "deit.layers.{n}.mlp.fc2.{p}"),
    ("encoder.layer.{n}.layer_scale2.lambda1",           "deit.layers.{n}.layer_scale2.lambda1"),
    *_TRANSFORMERS_SHARED,
)

_DINOV2_OLD = (
    ("encoder.layer.{n}.attention.attention.query.{p}",  "deit.layers.{n}.attention.q_proj.{p}"),
    ("encoder.layer.{n}.attention.attention.key.{p}",    "deit.layers.{n}.attention.k_proj.{p}"),
    ("encoder.layer.{n}.attention.attention.value.{p}",  "deit.layers.{n}.attention.v_proj.{p}"),
    ("encoder.layer.{n}.attention.output.dense.{p}",     "deit.layers.{n}.attention.o_proj.{p}"),
    *_DINOV2_SHARED,
)

_DINOV2 = (
    ("encoder.layer.{n}.attention.q_proj.{p}",           "deit.layers.{n}.attention.q_proj.{p}"),
    ("encoder.layer.{n}.attention.k_proj.{p}",           "deit.layers.{n}.attention.k_proj.{p}"),
    ("encoder.layer.{n}.attention.v_proj.{p}",           "deit.layers.{n}.attention.v_proj.{p}"),
    ("encoder.layer.{n}.attention.o_proj.{p}",           "deit.layers.{n}.attention.o_proj.{p}"),
    *_DINOV2_SHARED,
)

# These change what the model computes, so dropping them would be wrong.
UNSUPPORTED_KEYS = {
    r"pre_logits\.":                  "the classifier sits on an extra layer, which DeiT does not have",
    r"blocks\.\d+\.attn\.[qk]_norm":  "normalised queries and keys, which DeiT does not have",
    r"norm_pre\.":                    "a norm before the layers, which DeiT does not have",
    r"fc_norm\.":                     "the classifier reads the mean of the patches instead of [CLS]",
    r"attn_pool\.":                   "the classifier reads the patches by attention instead of [CLS]",
    r"mlp\.(w12|w3|fc1_[gx]|weights_in|weights_out|gate_proj|up_proj|down_proj)\.":
                                      "SwiGLU in place of an MLP, which DeiT does not have",
    r"(attn|mlp)\.norm\.":            "a norm inside attention or MLP, which DeiT does not have",
    r"attn\.([qv]_bias|relative_position)": "another attention, as of BEiT and EVA, which DeiT does not have",
    r"rope":                          "rotary positions, which DeiT does not have",
    r"mlp_head\.bias":                "the published patch head has no bias",
}
"""Patterns of names -> what they are, for the error."""
# fmt: on

# of every family of transformers: their layouts share the names of layers, and differ in the encoder's prefix
_UNUSED_IN_TRANSFORMERS = {
    key: reason for family in SOURCE_FAMILIES.values() for key, reason in family.unused_keys.items()
}
_PROJECTION = "the projection head serves self-distillation only"
_DECODER = _UNUSED_IN_TRANSFORMERS["decoder.{rest}"]
_UNUSED_IN_TIMM = {
    "mask_token": _UNUSED_IN_TRANSFORMERS["embeddings.mask_token"],
    # of DINO and DINOv2 in training
    **dict.fromkeys(
        ("head.mlp.{rest}", "head.last_layer.{rest}", "dino_head.{rest}", "ibot_head.{rest}"), _PROJECTION
    ),
    # of MAE
    **dict.fromkeys(("decoder_pos_embed", "decoder_blocks.{rest}", "decoder_embed.{p}"), _DECODER),
    **dict.fromkeys(("decoder_norm.{p}", "decoder_pred.{p}"), _DECODER),
}

KEY_LAYOUTS = {
    # also that of facebook's DeiT, DINO, DINOv2 and MAE and of the ICE authors; the fused `qkv` is split afterwards
    "timm": KeyLayout(_TIMM, _UNUSED_IN_TIMM),
    "transformers (old)": KeyLayout(_TRANSFORMERS_OLD, _UNUSED_IN_TRANSFORMERS),
    "transformers": KeyLayout(_TRANSFORMERS, _UNUSED_IN_TRANSFORMERS),
    "transformers, DINOv2 (old)": KeyLayout(_DINOV2_OLD, _UNUSED_IN_TRANSFORMERS),
    "transformers, DINOv2": KeyLayout(_DINOV2, _UNUSED_IN_TRANSFORMERS),
}
"""Layouts by their name in a report."""

KEY_TABLES = {name: layout.key_table for name, layout in KEY_LAYOUTS.items()}
"""Published name -> name in `IceDeiTForImageClassification`, per layout."""

DROPPED_KEYS = {key: reason for layout in KEY_LAYOUTS.values() for key, reason in layout.unused_keys.items()}
"""Known tensors that classification does not need -> the reason they are dropped."""
