# SPDX-License-Identifier: Apache-2.0
"""What the class-aware baselines explain: one logit per image, that of the [CLS] classifier, and its gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .families import backbone_of
from .inspection import evaluation_mode, forward_options, frozen_parameters, num_prefix_tokens


__all__ = [
    "at_least_float32",
    "class_probabilities",
    "classification_heads",
    "classify_tokens",
    "explained_logits",
    "gradient_pass",
    "run_classifier",
    "target_or_predicted",
    "target_scores",
]


@contextmanager
def gradient_pass(model: PreTrainedModel, pixel_values: Tensor) -> Iterator[Tensor]:
    """Let autograd follow the images through the model inside the block, whatever mode the caller is in.

    In the block the model is in evaluation mode and its parameters are constants. Yields a copy of the images that
    requires gradients, in float32 at least.
    """
    num_prefix_tokens(model)  # refuses other families
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise ValueError(
            "`model` must not be made or loaded under `torch.inference_mode()` for a method that uses gradients. "
            "Load it outside; the mode around `explain` itself does no harm."
        )
    with torch.inference_mode(False), torch.enable_grad(), evaluation_mode(model), frozen_parameters(model):
        # clone: a tensor made under inference mode cannot take part in a graph
        yield pixel_values.detach().clone().to(at_least_float32(pixel_values.dtype)).requires_grad_()


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """Return float64 for float64 and float32 for all others."""
    return dtype if dtype == torch.float64 else torch.float32


def run_classifier(
    model: PreTrainedModel, pixel_values: Tensor, output_attentions: bool = False
) -> tuple[Tensor, Any]:
    """Return the explained logits `(batch_size, num_labels)`, those of the prefix tokens, and all outputs.

    Only eager attention returns attention weights.
    """
    options = forward_options(model, pixel_values)
    if output_attentions:
        options["output_attentions"] = True
    outputs = model(pixel_values, **options)
    # `logits` of an ICE model may come from its patches; `cls_logits` of HF DeiT with a teacher is one head of two
    name = "cls_logits" if hasattr(model.base_model, "patch_head") else "logits"
    if name not in outputs:
        raise ValueError(
            f"This method explains a class and needs a model with a classification head, got {type(model).__name__}. "
            "Load it with `AutoModelForImageClassification`, or use method='rollout'."
        )
    return outputs[name], outputs


def explained_logits(model: PreTrainedModel, pixel_values: Tensor) -> Tensor:
    """Return the logits of the prefix tokens, `(batch_size, num_labels)`."""
    return run_classifier(model, pixel_values)[0]


def class_probabilities(model: PreTrainedModel, logits: Tensor) -> Tensor:
    """Return the probability of each class from logits `(batch_size, num_labels)`, float32.

    They sum to 1, except those of a multi-label model: each of its classes is in the image or not.
    """
    if model.config.problem_type == "multi_label_classification":
        return logits.float().sigmoid()
    return logits.float().softmax(dim=1)


def target_or_predicted(logits: Tensor, target: Tensor | None) -> Tensor:
    """Return the class to explain of each image, `(batch_size,)`, int64: the target, or that of the best logit."""
    if target is None:
        # the class itself is a constant: no gradient flows through its choice
        return logits.detach().argmax(dim=1)
    if target.max() >= logits.shape[1]:
        raise ValueError(
            f"`target` must lie in [0, {logits.shape[1] - 1}] for {logits.shape[1]} logits, got {target.tolist()}."
        )
    return target.clone()  # as for the pixels: autograd keeps no tensor of the inference mode


def target_scores(logits: Tensor, target: Tensor) -> Tensor:
    """Return the logit of each image's target, `(batch_size,)`."""
    return logits.gather(1, target[:, None]).squeeze(1)  # (batch_size, num_labels) -> (batch_size,)


def classification_heads(model: PreTrainedModel) -> list[nn.Linear]:
    """Return the linear classifiers, one, or two that are averaged, in the order of `Backbone.head_inputs`."""
    heads: list[Any] = [getattr(model, "classifier", None) or getattr(model, "cls_classifier", None)]
    if hasattr(model, "distillation_classifier"):
        heads.append(model.distillation_classifier)
    if not all(isinstance(head, nn.Linear) for head in heads):
        raise ValueError(
            f"This method needs linear classifiers on the tokens, got {type(model).__name__} with "
            f"{', '.join(type(head).__name__ for head in heads)}. Use method='grad_cam', which takes any head."
        )
    return heads


def classify_tokens(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Return the logits of the heads for normalized tokens `(batch_size, num_tokens, hidden_size)`."""
    heads = classification_heads(model)
    inputs = backbone_of(model).head_inputs(tokens, len(heads))
    logits = [head(features) for head, features in zip(heads, inputs, strict=True)]
    # (1 or 2, batch_size, num_labels) -> (batch_size, num_labels)
    return torch.stack(logits).mean(dim=0)
