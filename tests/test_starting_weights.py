# SPDX-License-Identifier: Apache-2.0
"""A run from a checkpoint: classes by their names, positions for another input size, and nothing else by chance."""

from __future__ import annotations

import pytest
import torch
from transformers import set_seed

from transformers_ice import IceDeiTConfig, IceDeiTForImageClassification, IceDeiTImageProcessor
from transformers_ice.training import ModelArguments, build_config, build_image_processor, build_model
from transformers_ice.training.starting_weights import match_classes


NAMES = ["ant", "bee", "cat"]
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SHAPE |= {"image_size": 32, "patch_size": 8, "id2label": dict(enumerate(NAMES))}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    set_seed(0)
    folder = tmp_path_factory.mktemp("source")
    options = {"pruning_strategy": "top_k", "pruning_layers": [1], "keep_rates": [0.5], "logits_source": "patch"}
    model = IceDeiTForImageClassification(IceDeiTConfig(**SHAPE, **options, pruning_head="patch"))
    model.save_pretrained(folder)
    IceDeiTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def said(monkeypatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr("transformers_ice.training.starting_weights.logger.warning", lines.append)
    return lines


def build(source: str, names=NAMES, overrides: str | None = None, image_size: int | None = None, flag: bool = False):
    args = ModelArguments(source, config_overrides=overrides, ignore_mismatched_sizes=flag)
    return build_model(args, build_config(args, image_size), names).eval()


def predict(model, size: int = 32):
    with torch.no_grad():
        return model(torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(
    ("names", "wanted", "order"),
    [
        ("abc", "abc", [0, 1, 2]),
        ("abc", "cab", [2, 0, 1]),
        ("abc", "abd", None),
        ("abc", "ab", None),
        ("aab", "aab", [0, 1, 2]),
        ("aab", "aba", None),
        (["LABEL_0", "LABEL_1"], "ba", [0, 1]),
        (["LABEL_1", "LABEL_0"], "ba", None),
    ],
)
def test_classes_are_matched_by_name(names, wanted, order):
    assert match_classes(names, wanted) == order


def test_the_same_classes_in_another_order_keep_their_rows(source, said):
    order = [2, 0, 1]
    before, after = predict(build(source)), predict(build(source, [NAMES[index] for index in order]))
    assert "3 of 3 found" in said[-1]
    # the same sums, in another order of the rows
    for name, rows in {"logits": order, "cls_logits": order, "patch_logits": [*order, 3]}.items():
        torch.testing.assert_close(after[name], before[name][..., rows], atol=1e-6, rtol=0)


def test_other_classes_get_new_heads_and_one_line_says_so(source, said):
    same, other = build(source), build(source, ["ant", "bee", "dog"])
    assert ["2 of 3 found" in line and "new" in line for line in said[1:]] == [True]
    for name, weight in other.state_dict().items():
        is_head = any(head in name for head in ("classifier.", "patch_head.", "pruning_heads."))
        is_new = not torch.equal(weight, same.state_dict()[name])
        # a bias of zeros is drawn as zeros again
        assert is_new == is_head or name == "classifier.bias", name


def test_another_number_of_classes_needs_the_flag(source):
    with pytest.raises(ValueError, match=r"3 classes and does not fit the 2 classes.*--ignore_mismatched_sizes"):
        build(source, ["x", "y"])
    assert build(source, ["x", "y"], flag=True).deit.patch_head.weight.shape == (3, 32)


@pytest.mark.parametrize(("overrides", "image_size"), [(None, 48), ("image_size=48", None), ("image_size=48", 48)])
def test_a_larger_input_interpolates_the_positions_of_model_and_processor(source, overrides, image_size):
    args = ModelArguments(source, config_overrides=overrides)
    config = build_config(args, image_size)
    processor = build_image_processor(args, config, image_size)
    model = build(source, overrides=overrides, image_size=image_size)
    assert (config.image_size, dict(processor.size)["height"], model.config.image_size) == (48, 48, 48)
    assert model.deit.embeddings.position_embeddings.shape == (1, 1 + 36, 32)
    assert torch.equal(predict(model, 48).patch_logits, predict(build(source), 48).patch_logits)


@pytest.mark.parametrize("antialias", [False, True])
def test_registers_are_no_part_of_the_positions_that_are_interpolated(tmp_path, antialias):
    fields = {"num_register_tokens": 4, "interpolate_antialias": antialias}
    start = IceDeiTForImageClassification(IceDeiTConfig(**SHAPE, **fields)).eval()
    start.save_pretrained(tmp_path)
    IceDeiTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    model = build(str(tmp_path), ["x", "y"], image_size=48, flag=True)
    embeddings = model.deit.embeddings
    assert embeddings.position_embeddings.shape == (1, 1 + 36, 32)
    assert torch.equal(embeddings.register_tokens, start.deit.embeddings.register_tokens)
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        # the encoder is that of the start; the heads are new
        found, expected = (classifier.deit(images).last_hidden_state for classifier in (model, start))
    assert torch.equal(found, expected)


def test_two_sizes_that_differ_are_refused(source):
    with pytest.raises(ValueError, match=r"`--image_size 64` and `image_size=48`"):
        build_config(ModelArguments(source, config_overrides="image_size=48"), 64)


@pytest.mark.parametrize(
    ("overrides", "tensor"),
    [
        ("intermediate_size=48", r"layers\.0\.mlp\.fc1\.bias \(64,\) for \(48,\)"),
        ("hidden_size=16", r"embeddings\.cls_token \(1, 1, 32\) for \(1, 1, 16\)"),
        ("patch_size=4", r"patch_embeddings\.projection\.weight"),
        ("num_channels=1", r"patch_embeddings\.projection\.weight"),
        ("num_hidden_layers=3", r"lacks deit\.layers\.2\.attention\.k_proj\.bias"),
        ("num_hidden_layers=1,pruning_layers=[0]", r"no place for, deit\.layers\.1\.attention\.k_proj\.bias"),
        ("use_distillation_token=true", r"lacks .*distillation_token"),
        ("num_register_tokens=4", r"lacks .*register_tokens"),
    ],
)
@pytest.mark.parametrize("flag", [False, True])
def test_any_other_weight_that_does_not_fit_is_refused_by_name(source, overrides, tensor, flag):
    with pytest.raises(ValueError, match=rf"are not those of .*{tensor}.*--config_overrides"):
        build(source, overrides=overrides, flag=flag)
