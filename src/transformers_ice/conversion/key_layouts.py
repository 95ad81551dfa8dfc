# SPDX-License-Identifier: Apache-2.0
"""Layouts of checkpoint files: tables from the names of weights to those of `IceDeiTForImageClassification`.

A layout outside transformers (timm, facebook DeiT, the ICE authors) is one more entry of `KEY_LAYOUTS`. What
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
    ("pos_embed",                                        "deit.embeddings.position_embeddings"),
    ("patch_embed.proj.{p}",                             "deit.embeddings.patch_embeddings.projection.{p}"),
    ("blocks.{n}.norm1.{p}",                             "deit.layers.{n}.layernorm_before.{p}"),
    ("blocks.{n}.attn.qkv.{p}",                          "deit.layers.{n}.attention.qkv_proj.{p}"),
    ("blocks.{n}.attn.proj.{p}",                         "deit.layers.{n}.attention.o_proj.{p}"),
    ("blocks.{n}.norm2.{p}",                             "deit.layers.{n}.layernorm_after.{p}"),
    ("blocks.{n}.mlp.fc1.{p}",                           "deit.layers.{n}.mlp.fc1.{p}"),
    ("blocks.{n}.mlp.fc2.{p}",                           "deit.layers.{n}.mlp.fc2.{p}"),
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

# These change what the model computes, so dropping them would be wrong.
UNSUPPORTED_KEYS = {
    r"pre_logits\.":                  "the classifier sits on an extra layer, which DeiT does not have",
    r"blocks\.\d+\.attn\.[qk]_norm":  "normalised queries and keys, which DeiT does not have",
    r"norm_pre\.":                    "a norm before the layers, which DeiT does not have",
    r"fc_norm\.":                     "the classifier reads the mean of the patches instead of [CLS]",
    r"reg_token":                     "register tokens, which DeiT does not have",
    r"mlp_head\.bias":                "the published patch head has no bias",
}
"""Patterns of names -> what they are, for the error."""
# fmt: on

# of every family of transformers: their layouts share the names of layers, and differ in the encoder's prefix
_UNUSED_IN_TRANSFORMERS = {
    key: reason for family in SOURCE_FAMILIES.values() for key, reason in family.unused_keys.items()
}

KEY_LAYOUTS = {
    # also that of facebook DeiT and of the ICE authors; the fused `qkv` keeps one row, and is split afterwards
    "timm": KeyLayout(_TIMM, {"mask_token": _UNUSED_IN_TRANSFORMERS["embeddings.mask_token"]}),
    "transformers (old)": KeyLayout(_TRANSFORMERS_OLD, _UNUSED_IN_TRANSFORMERS),
    "transformers": KeyLayout(_TRANSFORMERS, _UNUSED_IN_TRANSFORMERS),
}
"""Layouts by their name in a report."""

KEY_TABLES = {name: layout.key_table for name, layout in KEY_LAYOUTS.items()}
"""Published name -> name in `IceDeiTForImageClassification`, per layout."""

DROPPED_KEYS = {key: reason for layout in KEY_LAYOUTS.values() for key, reason in layout.unused_keys.items()}
"""Known tensors that classification does not need -> the reason they are dropped."""
