# SPDX-License-Identifier: Apache-2.0
"""Rows beside the methods: controls, ceilings, empty and undefined maps, and the marks and notes of the tables."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from benchmark_models import Pictures, ice_checkpoint, scores_of, vit_checkpoint
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from transformers_ice.data.benchmarks.examples import Example
from transformers_ice.evaluation import (
    BENCHMARKS,
    CEILING,
    CONTROLS,
    Checkpoint,
    ExplainedBatch,
    InputBatch,
    Interval,
    Protocol,
    Result,
    RowKey,
    RowStore,
    check_choices,
    left_out,
    markdown_table,
    missing_annotations,
    result_notes,
    results_as_json,
    run_benchmarks,
    score_checkpoint,
)
from transformers_ice.evaluation.metrics import TopKAccuracy, box_iou
from transformers_ice.explainers import EXPLAINERS, Explainer


class Undefined(ViTImageProcessorPil):
    """Processor that makes NaN of a picture that is black in one corner."""

    def __call__(self, images, *args, **kwargs):
        inputs = super().__call__(images, *args, **kwargs)
        for image, pixels in zip(images, inputs["pixel_values"], strict=True):
            if np.asarray(image)[0, 0].sum() == 0:
                pixels.fill_(float("nan"))
        return inputs


class LargeObjects(Pictures):
    """Pictures of one object of about half the image."""

    def _read(self, index: int) -> Example:
        example = super()._read(index)
        (height, width), rng = example.mask.shape, np.random.default_rng(index)
        left, top = int(rng.integers(width // 4)), int(rng.integers(height // 4))
        right, bottom = width - int(rng.integers(width // 4)), height - int(rng.integers(height // 4))
        mask = np.zeros((height, width), dtype=np.int8)
        mask[top:bottom, left:right] = 1
        return dataclasses.replace(example, mask=mask, boxes=np.array([[left, top, right, bottom]], dtype=np.float64))


class OneBlack(Pictures):
    """Pictures of which one is black in one corner."""

    def _read(self, index: int) -> Example:
        example = super()._read(index)
        if index == 2:
            example.image.putpixel((0, 0), (0, 0, 0))
        return example


@pytest.fixture
def store(tmp_path):
    return RowStore(tmp_path / "rows")


def broken(checkpoint: Checkpoint) -> Checkpoint:
    """Return a copy whose weights of one matrix are NaN."""
    model = copy.deepcopy(checkpoint.model)
    with torch.no_grad():
        next(value for name, value in model.named_parameters() if "layers.0" in name).fill_(float("nan"))
    return Checkpoint("broken", model, checkpoint.image_processor, "broken")


# --- controls ------------------------------------------------------------------------------------------------------


def test_controls_equal_a_few_lines_of_numpy(store):
    pictures = LargeObjects(9, odd_sizes=True)
    names = ["segmentation", "discovery"]
    scores = scores_of(run_benchmarks([vit_checkpoint()], pictures, names, ["rollout"], store, batch_size=4))
    hits = {"whole_image": 0, "center_ellipse": 0}
    for example in pictures:
        width, height = example.image.size
        # a pixel is in the ellipse by its centre, so that the box begins at the first centre after a tenth of the side
        (left, right), (top, bottom) = (
            (math.ceil(0.1 * side - 0.5), math.floor(0.9 * side - 0.5) + 1) for side in (width, height)
        )
        for name, box in (("whole_image", (0, 0, width, height)), ("center_ellipse", (left, top, right, bottom))):
            hits[name] += (box_iou(np.array([box]), example.boxes, inclusive=False) >= 0.5).any()
    assert 0 < hits["whole_image"] < hits["center_ellipse"]
    for name, number in hits.items():
        assert scores["vit", name, "corloc"] == number / 9
        assert scores["vit", name, "empty_masks"] == 0
    plain = LargeObjects(8)
    scores = scores_of(run_benchmarks([vit_checkpoint()], plain, ["segmentation"], ["rollout"], store, batch_size=4))
    centres = (np.arange(32) + 0.5) / 32 * 2 - 1
    ellipse = centres[:, None] ** 2 + centres[None] ** 2 <= 0.64
    for name, mask in (("whole_image", np.ones_like(ellipse)), ("center_ellipse", ellipse)):
        truth = np.stack([example.mask for example in plain]).astype(bool)
        ious = [(truth == kind) & (mask == kind) for kind in (False, True)]
        unions = [(truth == kind) | (mask == kind) for kind in (False, True)]
        expected = np.mean([own.sum() / union.sum() for own, union in zip(ious, unions, strict=True)])
        assert scores["vit", name, "mean_iou"] == pytest.approx(expected)
        assert scores["vit", name, "pixel_accuracy"] == pytest.approx((truth == mask).mean())


def test_whole_image_is_a_box_in_localization_too(store):
    pictures = Pictures(6)
    scores = scores_of(run_benchmarks([vit_checkpoint()], pictures, ["localization"], ["rollout"], store))
    whole = np.array([[0, 0, 31, 31]])
    hits = [(box_iou(whole, example.boxes, inclusive=True) >= 0.3).any() for example in pictures]
    assert scores["vit", "whole_image", "max_box_acc_v2_30"] == pytest.approx(np.mean(hits))
    shares = [example.mask.mean() for example in pictures]
    assert scores["vit", "whole_image", "pointing_game"] == pytest.approx(np.mean(shares))


def test_random_maps_do_not_depend_on_the_batch():
    examples = [Pictures()[index] for index in range(4)]
    whole = ExplainedBatch(InputBatch(vit_checkpoint(), examples, Protocol()), "random").relevance()
    alone = ExplainedBatch(InputBatch(vit_checkpoint(), examples[3:], Protocol()), "random").relevance()
    assert torch.equal(whole[3:], alone)
    assert len({tuple(grid.flatten().tolist()) for grid in whole}) == 4
    odd_name = dataclasses.replace(examples[0], image_id="b\udcff.png")  # bytes of a file name that are no text
    assert ExplainedBatch(InputBatch(vit_checkpoint(), [odd_name], Protocol()), "random").relevance().shape == (
        1,
        4,
        4,
    )
    other = ExplainedBatch(InputBatch(vit_checkpoint(), examples, Protocol(seed=1)), "random").relevance()
    assert not torch.equal(whole, other)


def test_published_quirk_does_not_empty_the_whole_image(store):
    protocol = Protocol(paper_compat=True)
    scores = scores_of(run_benchmarks([vit_checkpoint()], Pictures(3), ["segmentation"], ["rollout"], store, protocol))
    share = np.mean([example.mask.mean() for example in Pictures(3)])
    assert scores["vit", "whole_image", "pixel_accuracy"] == pytest.approx(share)


# --- empty maps ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("paper_compat", "expected"), [(False, 0.0), (True, 1.0)])
def test_empty_map_is_a_miss_under_sat_too(monkeypatch, paper_compat, expected):
    monkeypatch.setitem(EXPLAINERS, "nothing", Explainer(lambda model, x, target=None: torch.zeros(len(x), 4, 4)))
    example = Example("a", Pictures()[0].image, label=1, boxes=np.array([[0.0, 0.0, 32.0, 32.0]]))
    benchmark = BENCHMARKS["localization"](Protocol(localization_rule="sat", paper_compat=paper_compat))
    rows = benchmark.rows(ExplainedBatch(InputBatch(vit_checkpoint(), [example], benchmark.protocol), "nothing"))
    scores = benchmark.scores(rows)
    assert (scores["gt_known_loc"], scores["max_box_acc"], scores["empty_masks"]) == (expected, 0.0, 1.0)


def test_ice_rows_count_images_without_foreground(store, monkeypatch):
    checkpoint = ice_checkpoint()
    monkeypatch.setattr("transformers_ice.evaluation.inputs.class_logits", lambda model, x: torch.zeros(len(x), 7))
    results = run_benchmarks([checkpoint], Pictures(3), ["segmentation"], ["ice", "rollout"], store)
    scores = scores_of(results)
    assert scores["ice", "ice", "no_foreground"] == 1
    assert ("ice", "rollout", "no_foreground") not in scores
    assert any("Warning: ice, `ice` finds no foreground in 100%" in note for note in result_notes(results))
    assert "| no foreground |" in markdown_table(results)


# --- undefined values ----------------------------------------------------------------------------------------------


def test_model_of_nan_weights_has_an_error_row_and_no_score(store):
    names = ["segmentation", "jaccard", "localization", "discovery", "faithfulness", "classification"]
    methods = ["ice", "ice_hard", "rollout", "layer_cam", "smooth_grad", CEILING]
    checkpoints = [ice_checkpoint(), broken(ice_checkpoint())]
    protocol = Protocol(num_insertion_steps=1)
    results = run_benchmarks(checkpoints, Pictures(3), names, methods, store, protocol, num_resamples=5)
    for result in results:
        needs_model = result.method not in (CEILING, *CONTROLS)
        assert (result.error is not None) == (not result.scores)
        if result.checkpoint == "ice":
            assert result.error is None
        elif needs_model:
            assert result.error is not None
            assert "NaN or infinite" in result.error, result
    table = markdown_table(results)
    assert "| broken | `ice` (error) | – |" in table
    assert "Error: broken, `ice_hard` has no scores under discovery: " in table
    errors = {(line["checkpoint"], line["method"]): line["errors"] for line in results_as_json(results)}
    assert set(errors["broken", ""]) == {"classification"}
    with pytest.raises(ValueError, match=r"logits must be finite, got NaN or infinity for 3 images"):
        score_checkpoint(broken(ice_checkpoint()), Pictures(3), ["ice_hard"])


def test_nan_image_is_one_undefined_row_of_every_method(store):
    size = {"height": 32, "width": 32}
    names = ["segmentation", "localization", "discovery", "faithfulness", "classification"]
    methods = ["ice", "ice_hard", "rollout", "saliency", "layer_cam", "token_grad_cam", "smooth_grad", "gradient_shap"]
    checkpoint = dataclasses.replace(ice_checkpoint(), image_processor=Undefined(size=size))
    protocol = Protocol(num_insertion_steps=1)
    pictures = OneBlack(4)
    arguments = (names, methods, store, protocol)
    scores = scores_of(run_benchmarks([checkpoint], pictures, *arguments, batch_size=4, num_resamples=0))
    without = scores_of(run_benchmarks([checkpoint], pictures.select([0, 1, 3]), *arguments, num_resamples=0))
    for method in ("", *methods):
        assert scores["ice", method, "undefined"] == 0.25, method
    for (name, method, score), value in without.items():
        if method in methods and score != "undefined":
            # batches of another size round differently
            assert scores[name, method, score] == pytest.approx(value, abs=1e-3, nan_ok=True), (method, score)


# --- ceilings and what is left out ---------------------------------------------------------------------------------


def test_every_patch_grid_has_its_ceiling_and_the_rest_its_reason(store):
    ice, vit = ice_checkpoint(), vit_checkpoint()
    larger = Checkpoint("larger", vit.model, ViTImageProcessorPil(size={"height": 48, "width": 48}), "l")
    checkpoints, methods = [ice, vit, larger], ["ice", "rollout", CEILING]
    results = run_benchmarks(checkpoints, Pictures(3), ["segmentation"], methods, store, num_resamples=0)
    assert [result.checkpoint for result in results if result.method == CEILING] == ["ice", "larger"]
    assert left_out(checkpoints, Pictures(3), ["segmentation"], methods) == [
        "`ice` is left out for vit (segmentation): it needs an ICE checkpoint with a trained patch head.",
        "`ceiling` is left out for vit (segmentation): that of ice is the same, by the same patch grid.",
        "`ice` is left out for larger (segmentation): it needs an ICE checkpoint with a trained patch head.",
    ]
    boxes = Pictures(3, provides=("label", "boxes"))
    assert left_out([ice], boxes, ["discovery", "localization"], [CEILING]) == [
        "`ceiling` is left out for ice (discovery, localization): it needs true masks, which pictures does not have."
    ]
    assert missing_annotations("discovery", Pictures(1, provides=("mask",))) == ["boxes"]
    assert missing_annotations("jaccard", Pictures(1, provides=("mask",))) == []


@pytest.mark.parametrize(
    ("name", "close"), [("gradcam", "grad_cam"), ("Rollout", "rollout"), ("ice-hard", "ice_hard")]
)
def test_unknown_method_gets_a_suggestion(name, close):
    with pytest.raises(ValueError, match=f"got .'{name}'.. Did you mean '{close}'"):
        check_choices(["segmentation"], [name])


# --- marks and notes -----------------------------------------------------------------------------------------------


def result(method: str, value: float, draws: list[float], score: str = "mean_iou", checkpoint: str = "m") -> Result:
    interval = Interval(value, min(draws), max(draws), np.array(draws))
    return Result(checkpoint, method, "segmentation", 9, {score: interval})


def test_bold_are_the_best_and_what_the_paired_interval_holds():
    results = [
        result("a", 0.60, [0.50, 0.60, 0.70]),
        result("b", 0.58, [0.52, 0.55, 0.72]),  # better in some resamples
        result("c", 0.58, [0.48, 0.58, 0.68]),  # worse in every one, though its own interval overlaps
        result("whole_image", 0.90, [0.9, 0.9, 0.9]),
        result("d", 0.60, [0.50, 0.60, 0.70]),
    ]
    lines = markdown_table(results).splitlines()
    bold = {line.split("`")[1]: "**" in line for line in lines if line.startswith("| m")}
    assert bold == {"a": True, "b": True, "c": False, "whole_image": False, "d": True}
    c = results_as_json(results)[2]["scores"]["mean_iou"]["difference_to_best"]
    assert [c["value"], c["low"], c["high"]] == pytest.approx([-0.02] * 3)


def test_without_resamples_only_equals_of_the_best_are_bold():
    results = [
        Result("m", method, "segmentation", 9, {"mean_iou": Interval(value, math.nan, math.nan)})
        for method, value in (("a", 0.6), ("b", 0.5), ("c", 0.6))
    ]
    assert markdown_table(results).count("**0.600**") == 2


@pytest.mark.parametrize(("score", "sign"), [("mean_iou", 1), ("deletion_auc", -1)])
def test_notes_name_what_does_not_beat_a_control(score, sign):
    results = [
        result("good", sign * 0.9, [sign * value for value in (0.8, 0.9)], score),
        result("same", sign * 0.6, [sign * value for value in (0.4, 0.8)], score),
        result("random", sign * 0.2, [sign * 0.2] * 2, score),
        result("center_ellipse", sign * 0.6, [sign * value for value in (0.5, 0.6)], score),
        result("other", sign * 0.1, [sign * 0.1] * 2, score, checkpoint="alone"),  # without controls of its own
    ]
    (note,) = [note for note in result_notes(results) if "not better" in note]
    assert "the best control, `center_ellipse`" in note
    assert "`same`" in note
    assert "`good`" not in note
    assert "alone" not in note


def test_threshold_of_max_box_acc_stands_in_the_table_without_a_winner():
    results = [result("a", 0.0, [0.0, 0.1], "max_box_acc_threshold"), result("b", 0.4, [0.3], "empty_masks")]
    table = markdown_table(results)
    assert "| at threshold |" in table.splitlines()[0]
    assert "**" not in table


# --- rows and arrays -----------------------------------------------------------------------------------------------


def test_damaged_rows_are_computed_again(store):
    arguments = ([vit_checkpoint()], Pictures(4), ["segmentation"], ["rollout"], store)
    before = results_as_json(run_benchmarks(*arguments, batch_size=2, num_resamples=0))
    for file in store.directory.rglob("000001.npz"):
        file.write_bytes(file.read_bytes()[:50])
    assert not store.has(RowKey("vit", "rollout", "segmentation", "none"), 0)
    assert results_as_json(run_benchmarks(*arguments, batch_size=2, num_resamples=0)) == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn])
@pytest.mark.parametrize("form", ["tensor", "list of tensors", "with gradient"])
def test_metrics_take_every_floating_type(dtype, form):
    values = torch.tensor([[0.5, 2.0, 1.0], [4.0, 0.25, 0.0]])
    scores = values.to(dtype)
    if form == "with gradient":
        scores = values.clone().requires_grad_().to(dtype) if dtype != torch.float8_e4m3fn else scores
    predictions = list(scores) if form == "list of tensors" else scores
    metric = TopKAccuracy(top_k=(1,))
    assert metric.compute(predictions=predictions, references=torch.tensor([1, 1])) == {"top_1": 0.5}
