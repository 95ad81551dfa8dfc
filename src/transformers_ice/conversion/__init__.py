# SPDX-License-Identifier: Apache-2.0
"""Turn ViT, DeiT and ICE checkpoints into a folder that the Auto classes load.

Three namings are read: that of timm, facebook DeiT and the ICE authors (`blocks.0.attn.qkv.weight`), and the two of
transformers (`encoder.layer.0.attention.attention.query.weight`, `layers.0.attention.q_proj.weight`). Sizes come from
the weights, every key is accounted for, and no code of a checkpoint runs.
"""

from .checkpoint import PREPROCESSING_FIELDS, ConversionReport, convert_checkpoint, convert_state_dict, read_id2label
from .files import ALLOWED_GLOBALS, read_checkpoint
from .key_layouts import DROPPED_KEYS, KEY_TABLES
from .keys import revert_state_dict
from .sizes import config_from_state_dict


__all__ = [
    "ALLOWED_GLOBALS",
    "DROPPED_KEYS",
    "KEY_TABLES",
    "PREPROCESSING_FIELDS",
    "ConversionReport",
    "config_from_state_dict",
    "convert_checkpoint",
    "convert_state_dict",
    "read_checkpoint",
    "read_id2label",
    "revert_state_dict",
]
