# SPDX-License-Identifier: Apache-2.0
"""ICE (Adversarial Normalization: I Can Visualize Everything) for transformers.

Importing this package makes the Auto classes and `pipeline(...)` know ICE-DeiT. It needs torch and transformers only.
"""

import importlib
from typing import Any

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
)

from .ice_deit import (
    IceDeiTConfig,
    IceDeiTForImageClassification,
    IceDeiTForSemanticSegmentation,
    IceDeiTImageClassifierOutput,
    IceDeiTImageProcessor,
    IceDeiTModel,
    IceDeiTModelOutput,
    IceDeiTPreTrainedModel,
    PatchExplanation,
    PatchExplanationPipeline,
    register_patch_explanation_pipeline,
)


__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # on first use, and by name: it belongs to a layer above this one
    if name == "optimize_for_inference":
        return importlib.import_module(f"{__name__}.inference").optimize_for_inference
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _register() -> None:
    # `exist_ok`, so that a notebook may reload the package
    AutoConfig.register(IceDeiTConfig.model_type, IceDeiTConfig, exist_ok=True)
    AutoModel.register(IceDeiTConfig, IceDeiTModel, exist_ok=True)
    AutoModelForImageClassification.register(IceDeiTConfig, IceDeiTForImageClassification, exist_ok=True)
    AutoModelForSemanticSegmentation.register(IceDeiTConfig, IceDeiTForSemanticSegmentation, exist_ok=True)
    # the same pixels everywhere: where torchvision is installed, too
    backends: dict[str, type] = {"pil": IceDeiTImageProcessor, "torchvision": IceDeiTImageProcessor}
    AutoImageProcessor.register(IceDeiTConfig, image_processor_classes=backends, exist_ok=True)
    register_patch_explanation_pipeline()


_register()

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
    "__version__",
    "optimize_for_inference",
]
