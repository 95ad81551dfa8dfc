# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks make of odd images, labels, maps and checkpoints."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from benchmark_models import SIZES, Pictures, ice_checkpoint, scores_of, vit_checkpoint
from explainer_models import load_reference
from PIL import Image
from transformers import ResNetConfig, ResNetForImageClassification
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from transformers_ice import IceDeiTConfig, IceDeiTForImageClassification
from transformers_ice.data.benchmarks.examples import Example
from transformers_ice.evaluation import (
    BENCHMARKS,
    CEILING,
    CONTROLS,
    Checkpoint,
    ExplainedBatch,
    InputBatch,
    Protocol,
    RowKey,
    RowStore,
    load_checkpoint,
    run_benchmarks,
)
from transformers_ice.explainers import EXPLAINERS, Explainer, explain


@pytest.fixture
def ice():
    return ice_checkpoint()


@pytest.fixture
def vit():
    return vit_checkpoint()


@pytest.fixture
def store(tmp_path):
    return RowStore(tmp_path / "rows")


def test_classes_of_one_name_are_one_class(vit):
    names = list(vit.model.config.id2label.values())
    examples = [Pictures()[index] for index in range(6)]
    plain = InputBatch(vit, examples, Protocol(), [f"class {index}" for index in range(7)])
    assert plain.labels.tolist() == [example.label for example in examples]  # no name in common: counted as they are
    turned = InputBatch(vit, examples, Protocol(), names[::-1])
    assert turned.labels.tolist() == [6 - example.label for example in examples]
    with pytest.raises(ValueError, match=r"does not know .'whale'."):
        _ = InputBatch(vit, examples, Protocol(), [*names[1:], "whale"]).labels


def test_a_label_that_the_model_does_not_have_is_refused(vit):
    example = Example("a", Pictures()[0].image, label=7)
    with pytest.raises(ValueError, match=r"must lie in \[0, 6\].*got values from 7 to 7"):
        _ = InputBatch(vit, [example], Protocol()).labels


def test_a_processor_that_crops_shows_the_whole_image_here(vit):
    crops = ViTImageProcessorPil(
        size={"shortest_edge": 40}, do_center_crop=True, crop_size={"height": 32, "width": 32}, do_convert_rgb=True
    )
    cropping = Checkpoint("crops", vit.model, crops, "c")
    example = Pictures(3, odd_sizes=True)[2]
    batches = [InputBatch(checkpoint, [example], Protocol()) for checkpoint in (vit, cropping)]
    assert torch.equal(batches[0].pixel_values, batches[1].pixel_values)


def test_only_the_rule_of_ts_cam_asks_ice_for_the_class(ice):
    batch = InputBatch(ice, [Pictures()[index] for index in range(4)], Protocol())
    maps = {}
    for rule in ("wsolevaluation", "tscam"):
        benchmark = BENCHMARKS["localization"](Protocol(localization_rule=rule))
        maps[rule] = benchmark.observe(ExplainedBatch(batch, "ice"))["swept"][0]
    expected = explain(ice.model, batch.pixel_values, "ice", target=batch.labels)
    largest = [np.unravel_index(grid.argmax(), (4, 4)) for grid in expected.numpy()]
    for grid, (row, column) in zip(maps["tscam"], largest, strict=True):
        assert grid[8 * row : 8 * row + 8, 8 * column : 8 * column + 8].max() > 0.9
    assert any(not np.allclose(*pair) for pair in zip(maps["tscam"], maps["wsolevaluation"], strict=True))


def test_an_image_without_a_box_is_named(ice, store):
    class OneWithout(Pictures):
        def _read(self, index):
            example = super()._read(index)
            boxes = example.boxes[:0] if index == 2 else example.boxes
            return Example(example.image_id, example.image, example.label, boxes=boxes)

    dataset = OneWithout(4, provides=("label", "boxes"))
    with pytest.raises(ValueError, match="Image '2' must have at least one box"):
        run_benchmarks([ice], dataset, ["discovery"], ["ice"], store)


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize(
    "method", ["rollout", "raw_attention", "grad_cam", "transformer_attribution", "partial_lrp", "full_lrp"]
)
def test_segmentation_benchmark_equals_the_recorded_scores(method, one_by_one):
    model, tensors = load_reference()
    checkpoint = Checkpoint("recorded", model, ViTImageProcessorPil(size={"height": 64, "width": 64}), "r")
    blank = Image.new("RGB", (64, 64))
    examples = [Example(str(index), blank, mask=mask.numpy()) for index, mask in enumerate(tensors["masks"])]
    benchmark = BENCHMARKS["segmentation"](Protocol())
    parts = []
    for indices in [[index] for index in range(4)] if one_by_one else [[0, 1, 2, 3]]:
        batch = InputBatch(checkpoint, [examples[index] for index in indices], Protocol())
        batch.pixel_values = tensors["pixel_values"][indices]  # recorded as the model takes them
        parts.append(benchmark.rows(ExplainedBatch(batch, method)))
    scores = benchmark.scores({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
    *counts, precision = tensors[f"metrics.{method}"].tolist()
    assert [scores["pixel_accuracy"], scores["mean_iou"]] == pytest.approx(counts, abs=1e-4)  # one pixel: 6e-5
    # values that are equal but for rounding change their ranks between processors (1.6e-4 seen)
    assert scores["mean_average_precision"] == pytest.approx(precision, abs=5e-4)


def test_images_are_padded_only_where_that_changes_nothing(ice, monkeypatch):
    """An image of 27 x 30 pixels is padded to 32 x 32, the size of the input, but it is not the input."""
    seen = []

    def spy(model, pixels, target=None):
        seen.append(pixels)
        return pixels.mean(dim=1).unfold(1, 8, 8).unfold(2, 8, 8).mean((-1, -2))

    monkeypatch.setitem(EXPLAINERS, "spy", Explainer(spy))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (27, 30, 3), dtype=np.uint8))
    box = np.array([[0.0, 0.0, 8.0, 8.0]])
    for image, is_padded in ((picture, True), (picture.resize((32, 32)), False)):
        seen.clear()
        batch = InputBatch(ice, [Example("a", image, boxes=box)] * 2, Protocol())
        ExplainedBatch(batch, "spy").padded_relevance()
        assert len(seen) == 1
        assert torch.equal(seen[0], torch.cat(batch.padded_pixel_values) if is_padded else batch.pixel_values)
        assert (seen[0][:, :, 27:] == 0).all() == is_padded


def test_an_image_too_large_to_stay_as_it_is_gets_named(ice):
    batch = InputBatch(ice, [Example("huge", Image.new("L", (4096, 4096)))], Protocol())
    with pytest.raises(ValueError, match="'huge' of 4096 x 4096 pixels must have at most 65536 patches"):
        _ = batch.padded_pixel_values


def test_names_that_are_numbers_are_the_models_classes(vit):
    example = Example("a", Pictures()[0].image, label=1)
    assert InputBatch(vit, [example], Protocol(), ["0", "5"]).labels.tolist() == [5]
    with pytest.raises(ValueError, match="got values from 9 to 9"):
        _ = InputBatch(vit, [example], Protocol(), ["0", "9"]).labels


def test_finding_nothing_is_never_right(ice):
    batch = InputBatch(ice, [Pictures()[0]], Protocol())
    batch.logits = torch.zeros(1, 7)  # what the model says where no patch is foreground
    first = Example("a", Pictures()[0].image, label=0, boxes=Pictures()[0].boxes)
    batch.examples = [first]
    accuracy = BENCHMARKS["classification"](Protocol())
    assert accuracy.scores(accuracy.rows(ExplainedBatch(batch, "")))["top_1"] == 0
    located = BENCHMARKS["localization"](Protocol())
    assert located.observe(ExplainedBatch(batch, "rollout"))["fixed"][0][0]["labels"].tolist() == [-1] * 5
    faithful = BENCHMARKS["faithfulness"](Protocol(num_insertion_steps=1))
    curve = faithful.observe(ExplainedBatch(batch, "rollout"))["positive_"][0]
    assert curve[0, 0] == 0  # the clean image, which has no answer either


def test_black_is_what_the_processor_makes_of_it(vit):
    plain = ViTImageProcessorPil(size={"height": 32, "width": 32}, do_normalize=False)
    for processor, value in ((vit.image_processor, -1.0), (plain, 0.0)):
        batch = InputBatch(Checkpoint("v", vit.model, processor, "v"), [Pictures()[0]], Protocol())
        assert batch.black.flatten().tolist() == [value] * 3


def test_constant_maps_are_no_relevance(ice, store, monkeypatch):
    for name, number in (("constant", 0.3), ("zero", 0.0)):
        monkeypatch.setitem(
            EXPLAINERS,
            name,
            Explainer(lambda model, pixels, target=None, n=number: torch.full((len(pixels), 4, 4), n)),
        )
    names = ["segmentation", "jaccard", "localization", "discovery", "faithfulness"]
    protocol = Protocol(num_insertion_steps=2)
    arguments = ([ice], Pictures(4), names, ["constant", "zero"], store, protocol)
    scores = scores_of(run_benchmarks(*arguments, num_resamples=0))
    for name in {name for _, method, name in scores if method == "zero"}:
        constant, zero = scores["ice", "constant", name], scores["ice", "zero", name]
        assert constant == pytest.approx(zero, nan_ok=True), name
    assert scores["ice", "constant", "mean_average_precision"] == pytest.approx(0.5)
    assert scores["ice", "constant", "corloc"] == 0  # an empty map is a miss
    assert scores["ice", "constant", "empty_masks"] == 1


def test_input_sizes_are_whole_patches(ice, vit):
    for checkpoint in (ice, vit):
        with pytest.raises(ValueError, match=r"multiple of the patch size \(8, 8\) .* got \(50, 50\)"):
            _ = InputBatch(checkpoint, [Pictures()[0]], Protocol(image_size=50)).pixel_values


def test_the_ceiling_fills_a_grid_finer_than_the_image(ice):
    everything = Example("tiny", Image.new("RGB", (3, 3)), mask=np.ones((3, 3), dtype=np.int8))
    assert ExplainedBatch(InputBatch(ice, [everything], Protocol()), CEILING).relevance().min() == 1


def test_broken_rows_of_every_kind_are_named(store):
    key = RowKey("a", "b", "c", "d")
    store.save(key, 0, {"metric/column": np.arange(300)})
    file = store.directory / key.folder / "000000.npz"
    whole = file.read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 5):
        file.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="cannot be read"):
            store.load(key, [0])


def test_a_checkpoint_without_a_classifier_or_of_another_family_is_refused(tmp_path, vit):
    vit.model.vit.save_pretrained(tmp_path / "headless")
    vit.image_processor.save_pretrained(tmp_path / "headless")
    with pytest.raises(ValueError, match="must hold all weights of a classifier"):
        load_checkpoint(str(tmp_path / "headless"))
    ResNetForImageClassification(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], num_labels=3)
    ).save_pretrained(tmp_path / "resnet")
    with pytest.raises(ValueError, match="must be an ICE model or one of"):
        load_checkpoint(str(tmp_path / "resnet"))
    vit.model.save_pretrained(tmp_path / "cut")
    vit.image_processor.save_pretrained(tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be read"):
        load_checkpoint(str(tmp_path / "cut"))
    vit.model.save_pretrained(tmp_path / "vit")
    vit.image_processor.save_pretrained(tmp_path / "vit")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="'cuda' cannot be used"):
            load_checkpoint(str(tmp_path / "vit"), device="cuda")


def test_ice_maps_of_an_untrained_patch_head_are_left_out(ice, store):
    torch.manual_seed(0)
    model = IceDeiTForImageClassification(IceDeiTConfig(**SIZES, logits_source="cls")).eval()
    converted = Checkpoint("converted", model, ice.image_processor, "c")
    results = run_benchmarks([converted], Pictures(2), ["segmentation"], ["ice", "rollout"], store, num_resamples=0)
    assert [result.method for result in results if result.method not in CONTROLS] == ["rollout"]
