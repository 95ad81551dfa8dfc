# SPDX-License-Identifier: Apache-2.0
"""The numbers of the published ICE code, through conversion and `from_pretrained`, as a user meets them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForImageClassification

from transformers_ice.conversion import convert_checkpoint, convert_state_dict, revert_state_dict


REFERENCE = Path(__file__).parent / "reference"
# float32 on a CPU: the authors' code and ours sum in other orders; measured differences stay under 5e-6
TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}
# the smallest of the gradients peak at 2e-4; measured differences stay under 1e-7
GRADIENT_TOLERANCE = {"atol": 1e-6, "rtol": 1e-4}
WITHOUT_LOSS = {"norm.weight", "norm.bias", "head.weight", "head.bias"}


@dataclass
class Recording:
    values: dict[str, Tensor]
    model: torch.nn.Module
    weights: dict[str, Tensor]

    def part(self, prefix: str) -> dict[str, Tensor]:
        return {key[len(prefix) :]: value for key, value in self.values.items() if key.startswith(prefix)}


@pytest.fixture(scope="module", params=["mixed", "few_foreground", "no_background"])
def recording(request, tmp_path_factory) -> Recording:
    """Recorded tensors, and the model that the recorded weights become."""
    with safe_open(REFERENCE / f"ice_reference_{request.param}.safetensors", "pt") as file:
        values = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - a file is no dict
        metadata = file.metadata()
    folder = tmp_path_factory.mktemp(request.param)
    weights = {key.removeprefix("model."): value for key, value in values.items() if key.startswith("model.")}
    torch.save({"model": weights}, folder / "checkpoint.pth")
    convert_checkpoint(
        folder / "checkpoint.pth", folder / "ice", num_attention_heads=int(metadata["num_attention_heads"])
    )
    model = AutoModelForImageClassification.from_pretrained(folder / "ice")
    assert model.config.layer_norm_eps == float(metadata["layer_norm_eps"])
    assert model.config.background_loss_weight == float(metadata["background_weight"])
    assert model.config.background_logit_scale == float(metadata["background_logit_scale"])
    assert model.config.min_foreground_ratio == float(metadata["min_foreground_ratio"])
    return Recording(values, model, weights)


@pytest.fixture(scope="module")
def outputs(recording):
    recording.model.zero_grad()
    outputs = recording.model(recording.values["pixel_values"], labels=recording.values["soft_labels"])
    outputs.loss.backward()
    return outputs


@pytest.mark.parametrize("name", ["cls_logits", "patch_logits", "foreground_logits", "background_logits"])
def test_logits_are_those_of_the_published_code(recording, outputs, name):
    torch.testing.assert_close(outputs[name], recording.values[name], **TOLERANCE)


def test_the_class_scores_are_the_foreground_logits_without_background(recording, outputs):
    torch.testing.assert_close(outputs.logits, recording.values["foreground_logits"][:, :-1], **TOLERANCE)


def test_foreground_ratio_of_the_batch_is_that_of_the_published_code(recording, outputs):
    # a share of at most 64 patches, exact in float32 but for the order of the mean
    torch.testing.assert_close(outputs.foreground_ratio.mean(), recording.values["foreground_ratio"], **TOLERANCE)


@pytest.mark.parametrize(
    ("name", "recorded"),
    [("classification_loss", "classification"), ("background_loss", "background"), ("loss", "total")],
)
def test_losses_of_a_mixup_target_are_those_of_the_published_code(recording, outputs, name, recorded):
    torch.testing.assert_close(outputs[name], recording.values[f"loss.{recorded}"], **TOLERANCE)


def test_every_gradient_is_that_of_the_published_code(recording, outputs):
    gradients = revert_state_dict({name: parameter.grad for name, parameter in recording.model.named_parameters()})
    expected = recording.part("grad.")
    assert gradients.keys() - expected.keys() == WITHOUT_LOSS
    assert expected.keys() <= gradients.keys()
    for name, gradient in expected.items():
        # the keys' biases (middle third of qkv) only hold rounding noise, far below the absolute tolerance
        torch.testing.assert_close(
            gradients[name], gradient, **GRADIENT_TOLERANCE, msg=lambda text, name=name: f"{name}: {text}"
        )
        # the tolerance must be small beside what is compared, or any gradient would pass
        assert gradient.abs().max() > 50 * GRADIENT_TOLERANCE["atol"], name


def test_the_final_norm_and_the_cls_head_get_no_gradient(recording, outputs):
    gradients = revert_state_dict({name: parameter.grad for name, parameter in recording.model.named_parameters()})
    assert all(not gradients[name].any() for name in WITHOUT_LOSS)


@pytest.mark.parametrize("name", ["cls_logits", "patch_logits"])
def test_a_larger_image_gives_the_published_logits(recording, name):
    with torch.no_grad():
        outputs = recording.model(recording.values["big.pixel_values"])
    torch.testing.assert_close(outputs[name], recording.values[f"big.{name}"], **TOLERANCE)


def test_published_weights_survive_the_round_trip_bit_for_bit(recording):
    converted, report = convert_state_dict(recording.weights)
    reverted = revert_state_dict(recording.model.state_dict())
    assert report.num_converted_keys == len(recording.model.state_dict()) == len(converted)
    assert reverted.keys() == recording.weights.keys()
    assert all(torch.equal(reverted[name], weight) for name, weight in recording.weights.items())
