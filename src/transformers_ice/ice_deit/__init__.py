# SPDX-License-Identifier: Apache-2.0
"""The ICE-DeiT model. Every other file of this folder is copied into a saved checkpoint, which then works by itself.

Those files import each other by a single dot, and else only torch, transformers, huggingface_hub, numpy and Pillow.
"""

from .configuration_ice_deit import IceDeiTConfig
from .explanation_ice_deit import PatchExplanation
from .image_processing_ice_deit import IceDeiTImageProcessor
from .modeling_ice_deit import (
    IceDeiTForImageClassification,
    IceDeiTForSemanticSegmentation,
    IceDeiTImageClassifierOutput,
    IceDeiTModel,
    IceDeiTModelOutput,
    IceDeiTPreTrainedModel,
)
from .pipeline_patch_explanation import PatchExplanationPipeline, register_patch_explanation_pipeline


__all__ = [
    "IceDeiTConfig",
    "IceDeiTForImageClassification",
    "IceDeiTForSemanticSegmentation",
    "IceDeiTImageClassifierOutput",
    "IceDeiTImageProcessor",
    "IceDeiTModel",
    "IceDeiTModelOutput",
    "IceDeiTPreTrainedModel",
    "PatchExplanation",
    "PatchExplanationPipeline",
    "register_patch_explanation_pipeline",
]
