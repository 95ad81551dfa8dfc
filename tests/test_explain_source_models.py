# SPDX-License-Identifier: Apache-2.0
"""Commands `explain` and `evaluate` on models of transformers as it ships them, from a folder to files."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from explainer_models import FAMILIES, tiny
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

from transformers_ice import IceDeiTImageProcessor
from transformers_ice.cli import evaluate as evaluate_command
from transformers_ice.cli import explain as explain_command
from transformers_ice.data.benchmarks.examples import Example
from transformers_ice.evaluation import InputBatch, Protocol, load_checkpoint
from transformers_ice.explainers import EXPLAINERS, MapExplainer, explain
from transformers_ice.visualization import overlay_heatmap


NAMES = ["cat", "dog", "hen", "owl", "yak"]
# as DINOv2's, a seventh of its size: the shorter edge becomes 40 pixels, of which the centre 32 x 32 are cut out
PROCESSOR = BitImageProcessorPil(
    size={"shortest_edge": 40},
    crop_size={"height": 32, "width": 32},
    do_center_crop=True,
    do_convert_rgb=True,
    image_mean=[0.485, 0.456, 0.406],
    image_std=[0.229, 0.224, 0.225],
)
HEIGHT, WIDTH = 80, 120
# half of 80 x 120 is 40 x 60, cut from row 4 and column 14 on
CROP = (slice(8, 72), slice(28, 92))


def picture(height=HEIGHT, width=WIDTH, seed=0):
    """Return a noisy background with a bright disc."""
    pixels = np.random.default_rng(seed).integers(0, 100, (height, width, 3), dtype=np.uint8)
    rows, columns = np.mgrid[:height, :width]
    pixels[(rows - 0.5 * height) ** 2 + (columns - 0.6 * width) ** 2 < (height / 5) ** 2] = (250, 220, 40)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of tiny models by family, each with DINOv2's kind of image processor."""
    home = tmp_path_factory.mktemp("models")
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: index for index, name in enumerate(NAMES)}}
    for family in ("vit", "vit_msn", "dinov2", "dinov2_registers", "dinov2_registers_encoder", "ice"):
        own = {} if FAMILIES[family][0].__name__.endswith("Model") else labels
        sizes = {"num_hidden_layers": 2, "image_size": 64 if family.startswith("dinov2") else 32}
        model = tiny(family, **{**sizes, **own})
        model.save_pretrained(home / family)
        PROCESSOR.save_pretrained(home / family)
    IceDeiTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(home / "ice")
    return home


@pytest.fixture
def photo(tmp_path):
    picture().save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def run_explain(capsys, *words):
    code = explain_command.main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, [json.loads(line) for line in captured.out.splitlines()], captured.err


def loaded(folder):
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    return model, AutoImageProcessor.from_pretrained(folder)


def stretched(grid):
    return (grid - grid.min()) / (grid.max() - grid.min())


@pytest.mark.parametrize("family", ["vit", "vit_msn", "dinov2", "dinov2_registers"])
def test_one_command_explains_a_classifier_of_transformers(capsys, folders, photo, tmp_path, family):
    words = (photo, "--model", folders / family, "--output_dir", tmp_path / "out")
    code, (record,), messages = run_explain(capsys, *words)
    assert code == 0, messages
    assert set(record) == {"path", "label", "score", "method", "output"}
    model, processor = loaded(folders / family)
    with torch.no_grad():
        pixels = processor(picture(), return_tensors="pt")["pixel_values"]
        options = {} if family.startswith("dinov2") else {"interpolate_pos_encoding": True}
        probabilities = model(pixels, **options).logits.softmax(dim=1)[0]
    assert (record["label"], record["method"]) == (NAMES[probabilities.argmax()], "legrad")
    assert record["score"] == pytest.approx(probabilities.max().item(), abs=1e-5)
    with Image.open(record["output"]) as figure:
        drawn = np.asarray(figure.convert("RGB")).astype(int)
    assert drawn.shape == (HEIGHT, WIDTH, 3)
    expected = torch.zeros(HEIGHT, WIDTH)
    grid = stretched(explain(model, pixels, "legrad"))
    expected[CROP] = torch.nn.functional.interpolate(grid[None], size=(64, 64), mode="bilinear")[0, 0]
    overlay = overlay_heatmap(np.asarray(picture()), expected.numpy()).astype(int)
    assert np.abs(drawn - overlay).max() <= 2  # colours of 8 bits


@pytest.mark.parametrize("method", [name for name, explainer in EXPLAINERS.items() if explainer.model == "any"])
def test_map_of_every_method_lies_on_the_crop(folders, method):
    pytest.importorskip(EXPLAINERS[method].library or "torch")
    model, processor = loaded(folders / "dinov2_registers")
    (result,) = MapExplainer(model, processor, method)([picture()])
    grid = stretched(explain(model, processor(picture(), return_tensors="pt")["pixel_values"], method))
    expected = torch.zeros(HEIGHT, WIDTH)
    # a patch of the crop has 16 pixels of the photograph, a pixel of it 2
    expected[CROP] = torch.nn.functional.interpolate(grid[None], size=(64, 64), mode="bilinear")[0, 0]
    np.testing.assert_allclose(result["heatmap"], expected, atol=1e-5)
    np.testing.assert_allclose(stretched(torch.tensor(result["relevance"])), grid[0], atol=1e-6)


@pytest.mark.parametrize("size", [(80, 120), (33, 57), (200, 41), (40, 40)])
def test_pixels_are_those_of_the_models_own_processor(folders, size):
    model, processor = loaded(folders / "dinov2")
    own = MapExplainer(model, processor, "rollout").image_processor
    expected, pixels = (p(picture(*size), return_tensors="pt")["pixel_values"] for p in (processor, own))
    assert torch.equal(pixels, expected)


def test_pixels_beyond_the_last_whole_patch_are_in_no_map(folders):
    model, _ = loaded(folders / "dinov2")
    # 45 x 60 pixels: 5 x 7 patches of 8 cover the first 40 x 56 of them
    processor = BitImageProcessorPil(size={"height": 45, "width": 60}, do_center_crop=False, crop_size=None)
    (result,) = MapExplainer(model, processor, "raw_attention")([picture(45, 60)])
    assert result["relevance"].shape == (5, 7)
    assert not result["heatmap"][40:].any()
    assert not result["heatmap"][:, 56:].any()
    assert result["heatmap"][:40, :56].max() > 0.9


def test_batches_and_images_of_several_sizes_have_the_maps_of_each_alone(folders):
    model, processor = loaded(folders / "dinov2_registers")
    pictures = [picture(seed=1), picture(60, 50, seed=2), picture(seed=3)]
    own_sizes = BitImageProcessorPil(size={"shortest_edge": 40}, do_center_crop=False, crop_size=None)
    for preprocessing in (processor, own_sizes):
        explainer = MapExplainer(model, preprocessing, "grad_cam")
        alone = [next(explainer([image], target="owl")) for image in pictures]
        for together, single in zip(explainer(pictures, target=3, batch_size=2), alone, strict=True):
            assert together["label"] == single["label"]
            np.testing.assert_allclose(together["heatmap"], single["heatmap"], atol=1e-4)


@pytest.mark.parametrize("words", [("--format", "svg"), ("--scale", "0.5"), ("--scale", "2"), ("--format", "pdf")])
def test_figures_of_maps_in_every_format_and_scale(capsys, folders, photo, tmp_path, words):
    options = ("--method", "grad_cam", "--target", "owl", "--output_dir", tmp_path / "out", *words)
    code, (record,), messages = run_explain(capsys, photo, "--model", folders / "dinov2", *options)
    assert code == 0, messages
    assert (record["target"], record["method"]) == ("owl", "grad_cam")
    content = (tmp_path / "out" / record["output"].rsplit("/", 1)[-1]).read_bytes()
    assert content.startswith((b"<?xml", b"\x89PNG", b"%PDF"))
    if "svg" in words:
        assert b"grad_cam of owl" in content


def test_encoder_without_a_classifier_is_explained_by_attention(capsys, folders, photo, tmp_path):
    words = (photo, "--model", folders / "dinov2_registers_encoder", "--output_dir", tmp_path / "out")
    code, (record,), messages = run_explain(capsys, *words, "--format", "svg")
    assert code == 0, messages
    assert (record["label"], record["score"], record["method"]) == (None, None, "raw_attention")
    code, _, messages = run_explain(capsys, *words, "--method", "legrad")
    assert code == 1
    assert "holds an encoder without a classifier" in messages


def test_ice_model_is_explained_by_any_method_too(capsys, folders, photo, tmp_path):
    words = (photo, "--model", folders / "ice", "--output_dir", tmp_path / "out")
    assert set(run_explain(capsys, *words)[1][0]) > {"box", "found", "foreground_ratio"}
    assert run_explain(capsys, *words, "--method", "ice")[1] == run_explain(capsys, *words)[1]
    code, (record,), _ = run_explain(capsys, *words, "--method", "rollout")
    assert (code, record["method"]) == (0, "rollout")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--method", "gradcam"), "--method must be one of"),
        (("--method", "ice"), "--method ice reads the patch head of an ICE model"),
        (("--method", "rollout", "--target", "cat"), "`target` must be left out for 'rollout'"),
        (("--target", "cta"), "`target` must be a class of the model, got 'cta'. Classes like it: ['cat']"),
        (("--target", "5"), "an index in [0, 4], got 5"),
        (("--picture", "mask"), "--picture mask needs the masks of an ICE model"),
        (("--html",), "--html needs the masks of an ICE model"),
        (("--annotations", "coco"), "--annotations coco needs the masks of an ICE model"),
    ],
)
def test_what_a_map_cannot_give_is_refused_before_any_work(capsys, folders, photo, tmp_path, words, message):
    out = tmp_path / "out"
    code, records, messages = run_explain(capsys, photo, "--model", folders / "dinov2", "--output_dir", out, *words)
    assert (code, records) == (1, [])
    assert message in messages
    assert not out.exists()


def test_other_families_and_images_below_a_patch_are_refused(folders, tmp_path, capsys, photo):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], num_labels=3)
    ResNetForImageClassification(config).save_pretrained(tmp_path / "resnet")
    PROCESSOR.save_pretrained(tmp_path / "resnet")
    code, _, messages = run_explain(capsys, photo, "--model", tmp_path / "resnet", "--output_dir", tmp_path / "out")
    assert code == 1
    assert "ViT-MSN, DINOv2 or DINOv2 with registers, got ResNetForImageClassification" in messages
    small = BitImageProcessorPil(size={"height": 4, "width": 64}, do_center_crop=False, crop_size=None)
    model, _ = loaded(folders / "dinov2")
    with pytest.raises(ValueError, match=r"at least one patch, got \(4, 64\)"):
        next(MapExplainer(model, small, "rollout")([picture()]))


def test_weights_of_another_configuration_are_refused_in_a_sentence(folders, tmp_path, capsys, photo):
    folder = tmp_path / "changed"
    shutil.copytree(folders / "vit", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 2 * config["intermediate_size"]}))
    code, _, messages = run_explain(capsys, photo, "--model", folder, "--output_dir", tmp_path / "out")
    assert code == 1
    assert "are not those of its config.json" in messages
    with pytest.raises(ValueError, match=r"are not those of its config\.json"):
        load_checkpoint(str(folder))


@pytest.mark.slow
def test_evaluation_scores_every_method_of_a_model_with_registers(folders, tmp_path, capsys):
    pytest.importorskip("captum")
    pytest.importorskip("torchcam")
    for name in ("images", "masks"):
        (tmp_path / "photos" / name).mkdir(parents=True)
    for index in range(2):
        image = picture(seed=index)
        image.save(tmp_path / "photos" / "images" / f"{index}.png")
        disc = np.asarray(image).min(axis=2) == 40
        Image.fromarray(np.where(disc & (np.asarray(image)[..., 0] == 250), 255, 0).astype(np.uint8)).save(
            tmp_path / "photos" / "masks" / f"{index}.png"
        )
    words = ("--models", folders / "dinov2_registers", "--data_dir", tmp_path / "photos", "--explainers", "all")
    options = ("--num_resamples", 2, "--num_pictures", 1, "--check_sanity", "true", "--device", "cpu")
    assert evaluate_command.main([*map(str, words), *map(str, options), "--output_dir", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    scored = {line["method"] for line in report["results"] if not line.get("error")}
    assert {name for name, explainer in EXPLAINERS.items() if explainer.model == "any"} <= scored
    assert set(report["sanity"]["dinov2_registers"]["legrad"]) == {"heads", "layer 1", "layer 0", "embeddings"}


def test_evaluation_takes_the_size_that_the_processor_cuts(folders):
    checkpoint = load_checkpoint(str(folders / "dinov2"))
    assert checkpoint.model.config.image_size == 64
    example = Example("a", picture(), mask=np.zeros((HEIGHT, WIDTH), np.int8))
    assert InputBatch(checkpoint, [example], Protocol()).pixel_values.shape == (1, 3, 32, 32)
    assert InputBatch(checkpoint, [example], Protocol(image_size=48)).pixel_values.shape == (1, 3, 48, 48)
