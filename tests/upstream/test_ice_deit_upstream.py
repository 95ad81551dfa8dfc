# SPDX-License-Identifier: Apache-2.0
"""The model tests of transformers itself on our classes, with and without distillation token: `make test-upstream`.

`fetch.py` puts the tests of the installed release into a cache folder, `ICE_UPSTREAM_TESTS` names it. Every test that
is left out or replaced says why where it stands; tests that skip themselves (flash attention, GPUs, text) say so too.
"""

from __future__ import annotations

import os
import sys
import tempfile
import unittest
from pathlib import Path

import pytest
import torch
from fetch import unpacked_folder
from safetensors.torch import load_file
from transformers.models.auto import modeling_auto

from transformers_ice import (
    IceDeiTConfig,
    IceDeiTForImageClassification,
    IceDeiTForSemanticSegmentation,
    IceDeiTModel,
)


sys.path.insert(0, str(unpacked_folder(Path(os.environ["ICE_UPSTREAM_TESTS"]).resolve())))

from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_modeling_common import ModelTesterMixin


# The tests ask these plain tables which class is of which kind; registering with the Auto classes does not fill them.
modeling_auto.MODEL_MAPPING_NAMES["ice_deit"] = "IceDeiTModel"
modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES["ice_deit"] = "IceDeiTForImageClassification"

NO_LABELS = "IceDeiTForSemanticSegmentation refuses labels: it is trained as IceDeiTForImageClassification"


class IceDeiTTester:
    """What the mixins ask for: a tiny configuration and a batch."""

    batch_size = 3
    is_training = True
    image_size = 32
    patch_size = 8
    num_hidden_layers = 2
    num_attention_heads = 4
    hidden_size = 32
    num_labels = 3

    def __init__(self, use_distillation_token: bool) -> None:
        self.use_distillation_token = use_distillation_token
        num_patches = (self.image_size // self.patch_size) ** 2
        self.seq_length = num_patches + (2 if use_distillation_token else 1)
        self.encoder_seq_length = self.key_length = self.seq_length

    def get_config(self) -> IceDeiTConfig:
        return IceDeiTConfig(
            image_size=self.image_size,
            patch_size=self.patch_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=37,
            num_labels=self.num_labels,
            use_distillation_token=self.use_distillation_token,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[IceDeiTConfig, dict[str, torch.Tensor]]:
        pixel_values = torch.rand(self.batch_size, 3, self.image_size, self.image_size)
        return self.get_config(), {"pixel_values": pixel_values}


class CommonTests(ModelTesterMixin):
    """The mixin with what holds for all our classes."""

    use_distillation_token = False
    test_resize_embeddings = False  # there is no vocabulary
    test_can_init_all_missing_weights_before_2023 = True

    def setUp(self) -> None:
        self.model_tester = IceDeiTTester(self.use_distillation_token)

    @unittest.skip("The input is an image: there are no token embeddings to pass in its place")
    def test_inputs_embeds(self) -> None: ...

    @unittest.skip("The input embeddings are a convolution over pixels, not a table")
    def test_model_get_set_embeddings(self) -> None: ...

    def test_reverse_loading_mapping(self) -> None:
        """Replaced: upstream asserts that files hold the Hub's old key names, from which the Trainer cannot resume."""
        for model_class in self.all_model_classes:
            with self.subTest(model_class.__name__), tempfile.TemporaryDirectory() as folder:
                model = model_class(self.model_tester.get_config())
                model.save_pretrained(folder)
                assert load_file(Path(folder, "model.safetensors")).keys() == model.state_dict().keys()
                reloaded, info = model_class.from_pretrained(folder, output_loading_info=True)
                assert not any(info.values()), info
                torch.testing.assert_close(reloaded.state_dict(), model.state_dict(), rtol=0, atol=0)


class ClassificationTests(CommonTests, unittest.TestCase):
    """Bare model and classifier without distillation token."""

    all_model_classes = (IceDeiTModel, IceDeiTForImageClassification)

    def test_config(self) -> None:
        tester = ConfigTester(self, config_class=IceDeiTConfig, has_text_modality=False, hidden_size=36)
        tester.run_common_tests()

    def test_problem_types(self) -> None:
        """Replaced: upstream trains for regression too; ICE has classes and must refuse other labels."""
        for num_labels in (1, 2):
            config = self.model_tester.get_config()
            config.num_labels = num_labels
            model = IceDeiTForImageClassification(config).train()
            pixel_values = self.model_tester.prepare_config_and_inputs_for_common()[1]["pixel_values"]
            hard = torch.zeros(len(pixel_values), dtype=torch.long)
            for labels in (hard, torch.nn.functional.one_hot(hard, num_labels).float()):
                model(pixel_values, labels=labels).loss.backward()
            with pytest.raises(ValueError, match="`labels` must be integers of shape"):
                model(pixel_values, labels=hard.float())

    def test_can_load_ignoring_mismatched_shapes(self) -> None:
        """Replaced: upstream expects `num_labels` in the classifier alone, but the patch head has it too."""
        old = IceDeiTForImageClassification(self.model_tester.get_config())
        heads = {"deit.patch_head.weight": 43, "classifier.weight": 42, "classifier.bias": 42}
        if self.use_distillation_token:
            heads |= {"distillation_classifier.weight": 42, "distillation_classifier.bias": 42}
        with tempfile.TemporaryDirectory() as folder:
            old.save_pretrained(folder)
            with pytest.raises(ValueError, match="ignore_mismatched_sizes"):
                IceDeiTForImageClassification.from_pretrained(folder, num_labels=42)
            new, info = IceDeiTForImageClassification.from_pretrained(
                folder, num_labels=42, ignore_mismatched_sizes=True, output_loading_info=True
            )
        assert {key for key, *_ in info["mismatched_keys"]} == heads.keys()
        for name, parameter in new.named_parameters():
            if name in heads:
                assert parameter.shape[0] == heads[name]
                assert parameter.isfinite().all()
            else:
                torch.testing.assert_close(parameter, old.get_parameter(name), rtol=0, atol=0)


class ClassificationWithDistillationTokenTests(ClassificationTests):
    """Bare model and classifier with distillation token."""

    use_distillation_token = True


class SegmentationTests(CommonTests, unittest.TestCase):
    """Segmentation model without distillation token."""

    all_model_classes = (IceDeiTForSemanticSegmentation,)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        return super()._prepare_for_class(inputs_dict, model_class, return_labels=False)

    @unittest.skip(NO_LABELS)
    def test_training(self) -> None: ...

    @unittest.skip(NO_LABELS)
    def test_training_gradient_checkpointing(self) -> None: ...

    @unittest.skip(NO_LABELS)
    def test_training_gradient_checkpointing_use_reentrant_false(self) -> None: ...

    @unittest.skip(NO_LABELS)
    def test_training_gradient_checkpointing_use_reentrant_true(self) -> None: ...


class SegmentationWithDistillationTokenTests(SegmentationTests):
    """Segmentation model with distillation token."""

    use_distillation_token = True
