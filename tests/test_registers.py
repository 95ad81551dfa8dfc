# SPDX-License-Identifier: Apache-2.0
"""Register tokens: where they stand, that they have no position, stay in every layer and are in no map."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import randomize
from PIL import Image
from pruning_models import NUM_LAYERS, PREFIXES, STRATEGIES, build, images
from publishing_folders import write_complete_folder
from test_training import make_model, make_trainer
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    pipeline,
)

from transformers_ice import (
    IceDeiTConfig,
    IceDeiTForImageClassification,
    IceDeiTForSemanticSegmentation,
    IceDeiTImageProcessor,
    IceDeiTModel,
)
from transformers_ice.cli import publish
from transformers_ice.explainers import explain
from transformers_ice.explainers.inspection import num_prefix_tokens
from transformers_ice.ice_deit.local_windows import join_windows, split_windows


# float32 on a CPU: sums in other orders
TOLERANCE = {"atol": 1e-5, "rtol": 0}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
DISTILLED = "distillation, registers"


@pytest.fixture(params=PREFIXES)
def prefix(request):
    return PREFIXES[request.param]


@pytest.fixture
def model(prefix) -> IceDeiTForImageClassification:
    """Every pair of windows, no pruning."""
    model = IceDeiTForImageClassification(IceDeiTConfig(**SIZES, **prefix, num_labels=3, num_local_windows=2)).eval()
    randomize(model)
    return model


def number_of(prefix) -> int:
    """The prefix tokens, counted from the fields alone."""
    return 1 + prefix.get("use_distillation_token", False) + prefix.get("num_register_tokens", 0)


# --- the embeddings


def test_without_registers_nothing_is_stored():
    model = IceDeiTModel(IceDeiTConfig(**SIZES))
    assert model.embeddings.register_tokens is None
    assert not any("register" in name for name in model.state_dict())


def test_all_of_the_prefix_is_counted(model, prefix):
    assert model.config.num_prefix_tokens == num_prefix_tokens(model) == number_of(prefix)
    with torch.no_grad():
        outputs = model.deit(images(2, 32, 32))
    assert outputs.last_hidden_state.shape == (2, number_of(prefix) + 16, 32)
    assert outputs.patch_logits.shape == (2, 16, 4)


def test_registers_stand_before_the_patches_and_have_no_position(model, prefix):
    embeddings, pixel_values = model.deit.embeddings, images(2, 32, 32)
    positions, patches = embeddings.position_embeddings[0], embeddings.patch_embeddings(pixel_values)
    expected = [(embeddings.cls_token[0] + positions[:1]).expand(2, -1, -1)]
    num_positions = 1
    if "use_distillation_token" in prefix:
        expected.append((embeddings.distillation_token[0] + positions[1:2]).expand(2, -1, -1))
        num_positions = 2
    if "num_register_tokens" in prefix:
        expected.append(embeddings.register_tokens.expand(2, -1, -1))
    expected.append(patches + positions[num_positions:])
    assert len(positions) == model.config.num_prefix_positions + 16 == num_positions + 16
    torch.testing.assert_close(embeddings(pixel_values), torch.cat(expected, dim=1), rtol=0, atol=0)


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (24, 56)])
def test_the_embeddings_are_those_of_dinov2_with_registers(size):
    source = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SIZES, num_register_tokens=4)).eval()
    randomize(source)
    config = IceDeiTConfig(**SIZES, num_register_tokens=4, interpolate_antialias=True)
    model = IceDeiTModel(config).eval()
    loaded = model.embeddings.load_state_dict(source.embeddings.state_dict(), strict=False)
    assert loaded == ([], ["mask_token"])
    pixel_values = images(2, *size)
    with torch.no_grad():
        found, expected = model.embeddings(pixel_values), source.embeddings(pixel_values)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_the_filter_changes_positions_of_other_sizes_only():
    model = build("top_k")
    plain, filtered = [], []
    for results, model.deit.embeddings.interpolate_antialias in ((plain, False), (filtered, True)):
        results += [model.deit.embeddings.interpolate_position_embeddings(grid) for grid in ((8, 8), (4, 4))]
    assert torch.equal(plain[0], filtered[0])
    assert (plain[1] - filtered[1])[:, 1:].abs().max() > 0.01
    assert torch.equal(plain[1][:, :1], filtered[1][:, :1])


# --- encoder, windows, pruning


@pytest.mark.parametrize("prefix", [PREFIXES["registers"], PREFIXES[DISTILLED]], ids=["registers", DISTILLED])
def test_patches_attend_to_registers_and_no_head_reads_them(model, prefix):
    read = []
    model.deit.patch_head.register_forward_hook(lambda head, arguments, result: read.append(arguments[0].shape[1]))
    with torch.no_grad():
        before = model(images(2, 32, 32)).patch_logits
        model.deit.embeddings.register_tokens += torch.randn(4, 32)  # a constant would be lost in the layer norm
        after = model(images(2, 32, 32)).patch_logits
    assert (before - after).abs().amin(dim=(1, 2)).min() > 1e-4
    assert read == [16, 16]


def test_every_window_has_the_whole_prefix_to_itself(model, prefix):
    pixel_values, number = images(2, 32, 32), number_of(prefix)
    with torch.no_grad():
        tokens = model.deit.embeddings(pixel_values)
        found = model.deit.encode_windows(pixel_values).view(2, 4, 4, 4)
        for image in range(2):
            for row, column in ((0, 0), (0, 2), (2, 0), (2, 2)):
                places = [number + 4 * r + c for r in (row, row + 1) for c in (column, column + 1)]
                states = tokens[image : image + 1, [*range(number), *places]]
                for layer in model.deit.layers:
                    states = layer(states)
                expected = model.deit.patch_head(states[0, number:]).view(2, 2, 4)
                window = found[image, row : row + 2, column : column + 2]
                torch.testing.assert_close(window, expected, **TOLERANCE)
    patches = tokens[:, number:]
    assert torch.equal(join_windows(split_windows(patches, (4, 4), 2), (4, 4), 2), patches)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_prefix_stays_in_every_layer_and_the_counts_are_those_of_patches(strategy, prefix):
    model, number = build(strategy, **prefix), number_of(prefix)
    model.config.pruning_execution = "packed"
    entered = []
    for layer in model.deit.layers:
        layer.register_forward_hook(lambda layer, arguments, result: entered.append(arguments[0].shape))
    with torch.no_grad():
        outputs = model.deit(images())
    exits = outputs.patch_exit_layer
    assert exits.shape == (4, 64)
    assert (outputs.last_hidden_state[:, :number].abs().sum(dim=2) > 0).all()
    assert torch.equal(outputs.last_hidden_state[:, number:].abs().sum(dim=2) > 0, exits == NUM_LAYERS)
    if strategy == "background":  # all images one after the other, each with its prefix
        present = [int((exits > index).sum()) for index in range(NUM_LAYERS)]
        assert [shape[:-1].numel() for shape in entered] == [count + 4 * number for count in present]
    elif strategy == "top_k":  # 64 x 0.7, then 0.6, then 0.5, rounded up
        assert [shape[1] - number for shape in entered] == [64, 45, 27, 27, 14]
    elif strategy == "attentiveness":  # inside the layers 1, 2 and 4
        assert [shape[1] - number for shape in entered] == [64, 64, 45, 27, 27]
    else:  # the fused token counts as one of those that enter: 46 x 0.6 is 27.6
        assert [shape[1] - number for shape in entered] == [64, 64, 46, 29, 29]
    assert all((exits < NUM_LAYERS).any(dim=1))


def test_the_ranking_of_patches_takes_the_share_that_registers_draw():
    """EViT ranks by the softmax over all tokens; the fused token is weighted by it, so registers lower the weights."""
    model = build("fused", num_register_tokens=4, pruning_layers=[0], keep_rates=[0.5])
    layer, tokens = model.deit.layers[0], []
    layer.layernorm_after.register_forward_hook(lambda norm, arguments, result: tokens.append(arguments[0]))
    with torch.no_grad():
        states = model.deit.embeddings(images(1))
        model.deit.encode(states)
        normed = layer.layernorm_before(states)
        attended, _, scores = layer.attention(normed, with_class_scores=True)
    middle = states + attended
    attention = scores.softmax(dim=-1).mean(dim=1)[0]
    order = attention[5:].argsort(descending=True)
    pruned = order[32:]
    fused = (attention[5:][pruned, None] * middle[0, 5:][pruned]).sum(dim=0)
    assert tokens[0].shape == (1, 5 + 32 + 1, 48)
    torch.testing.assert_close(tokens[0][0, :5], middle[0, :5], **TOLERANCE)
    torch.testing.assert_close(tokens[0][0, -1], fused, **TOLERANCE)


# --- maps, pipelines, files


def test_attention_rows_leave_out_what_registers_take():
    model = build("top_k", num_register_tokens=4, pruning_strategy=None)
    model.set_attn_implementation("eager")
    pixel_values = images(2)
    with torch.no_grad():
        last = model(pixel_values, output_attentions=True).attentions[-1].mean(dim=1)[:, 0]
    relevance = explain(model, pixel_values, method="raw_attention")
    torch.testing.assert_close(relevance.flatten(1), last[:, 5:], **TOLERANCE)
    assert (relevance.sum(dim=(1, 2)) < 1 - last[:, 1:5].sum(dim=1)).all()


def test_explanations_cover_the_patches(model):
    processor = IceDeiTImageProcessor(size={"height": 32, "width": 32})
    with torch.no_grad():
        outputs = model(images(2, 32, 32))
    (first, _) = processor.post_process_explanation(outputs, target_sizes=[(40, 60), (32, 32)])
    assert first.class_map.shape == first.mask.shape == (40, 60)
    maps = processor.post_process_semantic_segmentation(outputs, target_sizes=[(4, 4), (4, 4)])
    # at the size of the grid nothing is resized
    assert torch.equal(torch.stack([*maps]).flatten(1), outputs.patch_logits.argmax(-1))


def test_the_three_pipelines_take_registers(model, tmp_path):
    processor = IceDeiTImageProcessor(size={"height": 32, "width": 32})
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    inputs = processor(image, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    segmenter = IceDeiTForSemanticSegmentation(model.config).eval()
    segmenter.load_state_dict(model.state_dict())
    parts = {"image_processor": processor, "device": "cpu"}
    (best, *_) = pipeline("image-classification", model=model, **parts)(image)
    assert best["label"] == model.config.id2label[outputs.logits.argmax(-1).item()]
    found = pipeline("patch-explanation", model=model, **parts)(image)
    classes = outputs.patch_logits.argmax(-1).view(4, 4).repeat_interleave(8, 0).repeat_interleave(8, 1)
    assert np.array_equal(np.asarray(found["class_map"]), classes.numpy())
    labels = segmenter.config.id2label
    segments = {
        entry["label"]: np.asarray(entry["mask"]) > 0
        for entry in pipeline("image-segmentation", model=segmenter, **parts)(image)
    }
    assert segments.keys() == {labels[index] for index in classes.unique().tolist()}
    for index in classes.unique().tolist():
        assert np.array_equal(segments[labels[index]], (classes == index).numpy())


def test_a_saved_model_loads_as_it_was_and_takes_an_empty_attention_mask(model, prefix, tmp_path):
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["num_register_tokens"] == prefix.get("num_register_tokens", 0)
    loaded, info = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    encoder = AutoModel.from_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(images(2, 32, 32))
        assert torch.equal(loaded(images(2, 32, 32)).logits, expected.logits)
        assert torch.equal(encoder(images(2, 32, 32), attention_mask=None).patch_logits, expected.patch_logits)


def test_registers_that_a_file_lacks_are_not_made_up(tmp_path):
    IceDeiTForImageClassification(IceDeiTConfig(**SIZES, num_labels=3)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="register_tokens"):
        AutoModelForImageClassification.from_pretrained(tmp_path, num_register_tokens=4)


@pytest.mark.slow
def test_a_folder_with_registers_can_be_published(tmp_path, capsys):
    """The dry run loads the folder in a process without the package and compares the outputs of both."""
    folder = write_complete_folder(tmp_path / "tiny", **PREFIXES[DISTILLED], interpolate_antialias=True)
    assert publish.main([str(folder), "owner/tiny", "--dry_run"]) in (0, None)
    assert "Nothing was sent" in capsys.readouterr().out


# --- training


@pytest.mark.parametrize("strategy", [None, "background", "attentiveness"])
@pytest.mark.parametrize("prefix", ["registers", DISTILLED])
def test_a_step_trains_registers(tmp_path, prefix, strategy):
    pruning = {"pruning_strategy": strategy, "pruning_layers": [1], "keep_rates": [0.5]} if strategy else {}
    model = make_model(**PREFIXES[prefix], **pruning, num_local_windows=2, cls_loss_weight=1.0)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer = make_trainer(tmp_path, model, max_steps=1, weight_decay=0.0)
    trainer.train()
    registers = "deit.embeddings.register_tokens"
    change = (model.get_parameter(registers) - before[registers]).abs().amin(dim=2)
    assert change.min() > 0, "every register has a gradient"
    assert registers not in trainer.get_decay_parameter_names(model)


def test_a_resumed_run_equals_a_whole_one(tmp_path):
    def run(folder, resume=None):
        fields = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
        trainer = make_trainer(tmp_path / folder, make_model(num_register_tokens=4), **fields)
        trainer.train(resume_from_checkpoint=resume)
        return trainer.model.state_dict()

    whole = run("whole")
    resumed = run("resumed", str(tmp_path / "whole" / "checkpoint-2"))
    assert "deit.embeddings.register_tokens" in whole
    for name, weight in whole.items():
        assert torch.equal(weight, resumed[name]), name
    folders = [tmp_path / "whole" / f"checkpoint-{step}" for step in (2, 4)]
    for first, second in pairwise(folders):
        (one, other) = (AutoModelForImageClassification.from_pretrained(folder) for folder in (first, second))
        assert not torch.equal(one.deit.embeddings.register_tokens, other.deit.embeddings.register_tokens)
