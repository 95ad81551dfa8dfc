# SPDX-License-Identifier: Apache-2.0
"""Families of transformers whose checkpoints become ICE-DeiT: one entry each, read by loading and by conversion.

A new family is one entry of `SOURCE_FAMILIES`; what its files are called outside transformers is in the package's
`conversion/key_layouts.py`. The encoder is still DeiT's plain pre-norm encoder: an entry fits it to a checkpoint.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


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

_UNUSED_KEYS = {
    "pooler.dense.{p}": "the pooler stands beside the classifier, which does not read it",
    "embeddings.mask_token": "the mask token serves masked-image training only",
    "decoder.0.{p}": "the decoder redraws pixels in masked-image training only",
}


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
    """

    model_type: str
    key_prefix: str
    prefix_fields: Callable[[Mapping[str, Any]], dict[str, Any]]
    renamings: tuple[tuple[str, str], ...]
    unused_keys: Mapping[str, str]
    default_fields: Mapping[str, Any]

    @property
    def prefix_renamings(self) -> tuple[tuple[str, str], ...]:
        """Renaming of the encoder's prefix, none where it is that of ICE-DeiT."""
        if self.key_prefix == _ENCODER_PREFIX:
            return ()
        return ((rf"^{re.escape(self.key_prefix)}", _ENCODER_PREFIX),)

    def adopt_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of the ICE model that a checkpoint with this `config.json` starts, `model_type` excepted.

        It has no trained patch head, so it classifies by [CLS] as before.
        """
        return {**self.default_fields, **config, **self.prefix_fields(config), "logits_source": "cls"}


def _only_class_token(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"use_distillation_token": False, "use_distillation_head": False}


def _distillation_token(config: Mapping[str, Any]) -> dict[str, Any]:
    with_teacher = "DeiTForImageClassificationWithTeacher" in (config.get("architectures") or [])
    return {"use_distillation_token": True, "use_distillation_head": with_teacher}


# `ViTConfig` and `DeiTConfig` leave their default eps out of no file, but be exact if one did
_DEFAULT_FIELDS = {"layer_norm_eps": 1e-12}

SOURCE_FAMILIES = {
    family.model_type: family
    for family in (
        # Hub DeiT models without a distillation token are of this type
        SourceFamily("vit", "vit.", _only_class_token, _OLD_LAYER_NAMES, _UNUSED_KEYS, _DEFAULT_FIELDS),
        SourceFamily("deit", "deit.", _distillation_token, _OLD_LAYER_NAMES, _UNUSED_KEYS, _DEFAULT_FIELDS),
    )
}
"""Families by `model_type`."""


def key_pattern(template: str) -> re.Pattern[str]:
    """Return a template of names as a regular expression; `{n}` is a layer's number, `{p}` weight or bias."""
    escaped = re.escape(template).replace(r"\{n\}", r"(?P<n>0|[1-9]\d{0,3})")
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
    unnamed = [re.sub(r"\?P<\w>", "?:", key_pattern(template).pattern) for template in templates]
    return [rf"(?:^|\.){pattern}$" for pattern in unnamed]


__all__ = [
    "SOURCE_FAMILIES",
    "SourceFamily",
    "encoder_renamings",
    "key_pattern",
    "prefix_renamings",
    "unused_key_patterns",
]
