# SPDX-License-Identifier: Apache-2.0
"""Load what explains images: the patch-explanation pipeline of an ICE model, or a relevance map of any other."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, AutoImageProcessor, pipeline

from .. import IceDeiTConfig, PatchExplanationPipeline
from ..explainers import EXPLAINERS, MapExplainer
from ..explainers.families import load_classifier
from ..model_names import resolve_model_name


__all__ = ["load_explainer"]


def load_explainer(model: str, method: str | None = None) -> Any:
    """Return what explains images by a folder or Hub id; the installed code runs, never the folder's own.

    Args:
        model: Folder or Hub id of an ICE model, or of a model of `FAMILIES`.
        method: A name in `EXPLAINERS`. `None`: ICE's own patch head, "legrad" for another classifier, "raw_attention"
            for an encoder without a trained classifier.

    Returns:
        A `PatchExplanationPipeline` for ICE's own patch head (`None` or "ice" with an ICE model), which also finds
        masks and boxes; otherwise a `MapExplainer`.

    Raises:
        OSError: If the Hub has no such model, or cannot be reached.
        ValueError: If there is no such folder, its model is of another family or lacks weights, or `method` is unknown
            or does not fit it.
    """
    if method is not None and method not in EXPLAINERS:
        raise ValueError(f"--method must be one of {', '.join(sorted(EXPLAINERS))}, got {method!r}.")
    name = resolve_model_name(model)
    # the configuration alone: a few kilobytes, and no remote code
    is_ice = AutoConfig.from_pretrained(name, trust_remote_code=False).model_type == IceDeiTConfig.model_type
    if method is not None and EXPLAINERS[method].model == "ice" and not is_ice:
        raise ValueError(
            f"--method {method} reads the patch head of an ICE model, which {name} has not. Leave the option out for "
            f"the method that fits, or train it: `transformers-ice train --model_name_or_path {name}`."
        )
    # not by `pipeline`, which answers every error with the tracebacks of its attempts
    loaded, missing = load_classifier(name)
    if is_ice and method in (None, "ice"):
        task: Any = "patch-explanation"  # transformers types its own tasks only
        return pipeline(
            task, model=loaded, image_processor=name, pipeline_class=PatchExplanationPipeline, trust_remote_code=False
        )
    usable, method = _trained_part(name, loaded, missing, method)
    return MapExplainer(usable.eval(), AutoImageProcessor.from_pretrained(name, trust_remote_code=False), method)


def _trained_part(name: str, model: Any, missing: Any, method: str | None) -> tuple[Any, str]:
    """Return the model, or its encoder alone where the head would be random, and the method."""
    if not missing:
        return model, method or "legrad"
    of_encoder = sorted(key for key in missing if key.startswith(f"{model.base_model_prefix}."))
    if of_encoder:
        raise ValueError(f"{name} must hold all weights of its encoder, got none for {of_encoder[:3]}.")
    method = method or "raw_attention"
    if EXPLAINERS[method].takes_target:
        raise ValueError(
            f"--method {method} explains a class, and {name} holds an encoder without a classifier. Fine-tune it "
            "first, or use raw_attention or rollout."
        )
    return model.base_model, method
