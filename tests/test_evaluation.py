# SPDX-License-Identifier: Apache-2.0
"""The scoring loop against slow loops over single images and pixels, ceilings by hand, and tables."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PilImage
from sklearn.metrics import accuracy_score, jaccard_score
from transformers import ViTConfig, ViTForImageClassification
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from transformers_ice import IceDeiTConfig, IceDeiTForImageClassification
from transformers_ice.console.tables import format_cell, format_markdown_table
from transformers_ice.data.benchmarks.table_evaluation import TableEvaluation
from transformers_ice.evaluation import (
    CEILING,
    Checkpoint,
    ComparisonRow,
    compare_with_baselines,
    format_table,
    majority_grid,
    observe_classes,
    observe_masks,
    score,
    score_checkpoint,
)
from transformers_ice.evaluation.metrics import MeanOf, TopKAccuracy
from transformers_ice.explainers import explain
from transformers_ice.ice_deit.image_processing_ice_deit import IceDeiTImageProcessor
from transformers_ice.ice_deit.patch_maps import ImageGeometry


SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 7,
    "initializer_range": 0.3,
}
SIZE = {"height": 32, "width": 32}
IDENTITY = ImageGeometry.from_resize((4, 4), (4, 4))


@pytest.fixture(scope="module")
def ice_model():
    torch.manual_seed(0)
    return IceDeiTForImageClassification(IceDeiTConfig(**SIZES)).eval()


@pytest.fixture(scope="module")
def vit_model():
    torch.manual_seed(0)
    return ViTForImageClassification(ViTConfig(**SIZES)).eval()


@pytest.fixture(scope="module")
def dataset():
    """Nine images of three sizes, smaller and larger than the input, with random labels and blocky masks."""
    rng = np.random.default_rng(0)
    rows = {"image": [], "label": [], "mask": []}
    for index in range(9):
        height, width = [(32, 32), (50, 37), (12, 20)][index % 3]
        rows["image"].append(PilImage.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)))
        coarse = PilImage.fromarray((rng.random((5, 5)) < 0.4).astype(np.uint8) * 255)
        rows["mask"].append(coarse.resize((width, height), PilImage.Resampling.NEAREST))
        rows["label"].append(int(rng.integers(7)))
    names = [f"class {index}" for index in range(7)]
    features = Features({"image": Image(), "label": ClassLabel(names=names), "mask": Image()})
    return Dataset.from_dict(rows, features=features)


@pytest.fixture(scope="module")
def ice(ice_model):
    return Checkpoint("ice", ice_model, IceDeiTImageProcessor(size=SIZE), "")


@pytest.fixture(scope="module")
def vit(vit_model):
    return Checkpoint("vit", vit_model, ViTImageProcessorPil(size=SIZE), "")


def pixels_of(checkpoint, row):
    return checkpoint.image_processor(row["image"], return_tensors="pt")["pixel_values"]


def truth_by_loop(mask):
    """Give each pixel of the input the value of the pixel of the mask that its centre lies in."""
    values, truth = np.asarray(mask) > 0, np.zeros((32, 32), dtype=bool)
    height, width = values.shape
    for y, x in np.ndindex(32, 32):
        truth[y, x] = values[int((y + 0.5) * height / 32), int((x + 0.5) * width / 32)]
    return truth


def scores_of_masks(dataset, masks):
    truth = np.concatenate([truth_by_loop(mask).ravel() for mask in dataset["mask"]])
    guess = np.concatenate([mask.ravel() for mask in masks])
    return accuracy_score(truth, guess), jaccard_score(truth, guess, average="macro")


# --- the loop ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 5, 9])
def test_scores_do_not_depend_on_the_batches(batch_size):
    values, seen = np.random.default_rng(0).random((5, 3)), []

    def predict(batch):
        seen.append(batch)
        return {"top_": (values[batch], [0] * len(batch)), "mean": (values[batch, 0], batch)}

    metrics = {"top_": TopKAccuracy(top_k=(1,)), "mean": MeanOf("mean")}
    scores = score(predict, range(5), metrics, batch_size)
    assert scores == {"top_top_1": np.mean(values.argmax(1) == 0), "mean": pytest.approx(values[:, 0].mean())}
    assert [index for batch in seen for index in batch] == list(range(5))
    assert max(map(len, seen)) == min(batch_size, 5)


def test_the_loop_draws_no_random_numbers():
    state = torch.random.get_rng_state()
    score(lambda batch: {"mean": (batch, batch)}, range(3), {"mean": MeanOf("mean")})
    assert torch.equal(state, torch.random.get_rng_state())


def test_no_example_is_an_error_that_says_so():
    with pytest.raises(ValueError, match="nothing to score, expected at least one example"):
        score(lambda batch: {}, [], {})


def test_an_image_without_an_answer_is_never_right():
    logits = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert TopKAccuracy(top_k=(1,)).rows(*observe_classes(logits, [0, 1, 1]))["rank"].tolist() == [2, 0, 1]
    one_class = observe_classes(torch.tensor([[0.0], [0.3]]), [0, 0])
    assert TopKAccuracy(top_k=(1,)).rows(*one_class)["rank"].tolist() == [1, 0]


def test_masks_follow_the_resize_and_the_crop_of_their_image():
    truth = np.zeros((4, 6), dtype=bool)
    truth[:, 3:] = True
    resized = ImageGeometry.from_resize((4, 6), (4, 4))
    cropped = ImageGeometry.from_center_crop((4, 6), (4, 6), (4, 4))
    padded = ImageGeometry.from_center_crop((4, 6), (2, 3), (4, 4))
    grid = torch.tensor([[[False, True], [False, True]]])
    for geometry, columns in ((resized, [0, 0, 1, 1]), (cropped, [0, 0, 1, 1])):
        predictions, truths = observe_masks(grid, [truth], [geometry])
        assert predictions[0].tolist() == [[False, False, True, True]] * 4
        assert truths[0].tolist() == [columns] * 4
    (seen,) = observe_masks(grid, [truth], [padded])[1]
    # transformers pads the larger half before the image; what is padded counts nowhere
    assert seen.tolist() == [[-1] * 4, [-1, 0, 1, 1], [-1, 0, 1, 1], [-1] * 4]
    with pytest.raises(ValueError, match="inputs of one size"):
        observe_masks(torch.cat([grid, grid]), [truth, truth], [resized, ImageGeometry.from_resize((4, 6), (8, 8))])


# --- checkpoints ---------------------------------------------------------------------------------------------------


def test_accuracy_equals_a_loop_over_single_images(ice, vit, dataset):
    for checkpoint, names in ((ice, ("logits", "cls_logits")), (vit, ("logits", "logits"))):
        with torch.no_grad():
            outputs = [checkpoint.model(pixels_of(checkpoint, row)) for row in dataset]
        found = [[int(output[name].argmax()) for output in outputs] for name in names]
        scores = score_checkpoint(checkpoint, TableEvaluation(dataset), [], batch_size=4)
        expected = [accuracy_score(dataset["label"], classes) for classes in found]
        assert [scores["top_1"], scores["cls_top_1"]] == pytest.approx(expected)


def test_ice_mask_scores_equal_a_loop_over_pixels(ice, dataset):
    grids = [explain(ice.model, pixels_of(ice, row), method="ice_hard")[0].numpy() > 0 for row in dataset]
    expected = scores_of_masks(dataset, [np.kron(grid, np.ones((8, 8), bool)) for grid in grids])
    scores = score_checkpoint(ice, TableEvaluation(dataset), ["ice_hard"], batch_size=4)
    # the same integers divided; another order of float64 additions
    assert (scores["ice_hard_pixel_accuracy"], scores["ice_hard_mean_iou"]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("method", ["raw_attention", "rollout"])
def test_soft_maps_are_cut_at_their_mean_after_bilinear_interpolation(vit, dataset, method):
    masks = []
    for row in dataset:
        grid = explain(vit.model, pixels_of(vit, row), method=method)
        # PyTorch's own scale factor instead of the size, and numpy's mean
        fine = torch.nn.functional.interpolate(grid[None], scale_factor=8, mode="bilinear")[0, 0].double().numpy()
        masks.append(fine > fine.mean())
    scores = score_checkpoint(vit, TableEvaluation(dataset), [method], batch_size=4)
    # batches of 4 round differently from single images: at most a few of 9,216 pixels lie at the threshold
    expected = scores_of_masks(dataset, masks)
    assert (scores[f"{method}_pixel_accuracy"], scores[f"{method}_mean_iou"]) == pytest.approx(expected, abs=1e-3)


def test_ceiling_is_right_on_the_larger_side_of_every_patch(ice, dataset):
    blocks = np.stack([truth_by_loop(mask).reshape(4, 8, 4, 8) for mask in dataset["mask"]])
    foreground = blocks.sum(axis=(2, 4))
    right = np.maximum(foreground, 64 - foreground).sum() / blocks.size
    scores = score_checkpoint(ice, TableEvaluation(dataset), ["ice_hard", CEILING], batch_size=4)
    assert scores["ceiling_pixel_accuracy"] == pytest.approx(right, abs=1e-12)
    assert scores["ice_hard_pixel_accuracy"] < scores["ceiling_pixel_accuracy"]


def single_scene(mask, mask_feature=None):
    features = {"image": Image(), "label": Value("int64")} | ({} if mask_feature is None else {"mask": mask_feature})
    rows = {"image": [PilImage.new("RGB", (32, 32))], "label": [0], "mask": [mask]}
    table = Dataset.from_dict(rows, features=Features(features) if mask_feature else None)
    return TableEvaluation(table.cast_column("image", Image()))


def test_true_masks_of_whole_patches_have_a_perfect_ceiling(vit):
    mask = np.kron(np.array([[0, 255], [255, 255]], dtype=np.uint8), np.ones((16, 16), np.uint8))
    scores = score_checkpoint(vit, single_scene(PilImage.fromarray(mask), Image()), [CEILING])
    assert (scores["ceiling_pixel_accuracy"], scores["ceiling_mean_iou"]) == (1.0, 1.0)


def test_majority_by_hand():
    mask = np.array([[1, 1, 0, 0], [1, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, 0]])
    # three of four, one of four, two of four (a tie is background), none
    assert majority_grid(mask, IDENTITY, (2, 2)).tolist() == [[True, False], [False, False]]


def test_ignored_pixels_have_no_say_in_the_majority():
    mask = np.array([[-1, -1, 0, 0], [1, -1, 0, 1], [-1, -1, 1, -1], [-1, -1, 1, 0]])
    assert majority_grid(mask, IDENTITY, (2, 2)).tolist() == [[True, False], [False, True]]


def test_pixels_outside_a_crop_have_no_say_in_the_majority():
    center = ImageGeometry.from_center_crop((4, 4), (4, 4), (2, 2))
    mask = np.zeros((4, 4), dtype=bool)
    mask[1, 1] = mask[0, 0] = True
    assert majority_grid(mask, center, (2, 2)).tolist() == [[True, False], [False, False]]


def test_ignored_pixels_of_array_masks_count_nowhere(ice):
    mask = np.full((32, 32), -1)
    mask[:8, :8] = 1
    assert score_checkpoint(ice, single_scene(mask.tolist()), [CEILING])["ceiling_pixel_accuracy"] == 1.0


def test_constant_map_has_no_foreground(vit, monkeypatch):
    monkeypatch.setattr("transformers_ice.evaluation.inputs.explain", lambda *_, **__: torch.full((1, 4, 4), 0.1))
    mask = PilImage.fromarray(np.zeros((32, 32), dtype=np.uint8))
    assert score_checkpoint(vit, single_scene(mask, Image()), ["rollout"])["rollout_pixel_accuracy"] == 1.0


def test_models_come_back_in_training_mode(ice, dataset):
    ice.model.train()
    trained = score_checkpoint(ice, TableEvaluation(dataset), ["ice_hard", "rollout"])
    assert all(module.training for module in ice.model.modules())
    ice.model.eval()
    assert trained == score_checkpoint(ice, TableEvaluation(dataset), ["ice_hard", "rollout"])


def test_unknown_methods_are_refused(vit, dataset):
    for methods in (["attention"], "rollout"):
        with pytest.raises(ValueError, match=r"some of ceiling, feature_ablation, .* transformer_attribution, got"):
            score_checkpoint(vit, TableEvaluation(dataset), methods)


def test_comparison_has_a_row_per_method_and_shares_of_the_ceiling(ice, vit, dataset):
    models = (ice.model, ice.image_processor, vit.model, vit.image_processor)
    rows = compare_with_baselines(*models, dataset, batch_size=5)
    assert [row.method.split()[0].strip(",") for row in rows] == ["ICE", "raw", "rollout", "ceiling", "control:"]
    own = score_checkpoint(ice, TableEvaluation(dataset), ["ice_hard", CEILING])
    assert rows[0] == ComparisonRow(
        "ICE (hard mask)",
        own["top_1"],
        own["cls_top_1"],
        own["ice_hard_pixel_accuracy"],
        own["ice_hard_mean_iou"],
        own["ice_hard_mean_iou"] / own["ceiling_mean_iou"],
    )
    assert rows[3].ceiling_share == 1.0
    start_top_1 = score_checkpoint(vit, TableEvaluation(dataset), [])["top_1"]
    assert [row.cls_top_1 for row in rows[1:]] == [start_top_1, start_top_1, None, None]
    pixels = (np.arange(32) + 0.5) / 16 - 1
    ellipse = pixels[:, None] ** 2 + pixels[None] ** 2 <= 0.8**2
    assert (rows[4].pixel_accuracy, rows[4].mean_iou) == pytest.approx(scores_of_masks(dataset, [ellipse] * 9))
    with pytest.raises(ValueError, match=r"columns image, label and mask, got \['image', 'label'\].*dataset\.rename"):
        compare_with_baselines(*models, dataset.remove_columns("mask"))


# --- tables --------------------------------------------------------------------------------------------------------


def test_table_is_aligned_and_shows_what_is_undefined():
    rows = [{"name": "a", "value": 0.5, "count": 12}, {"name": "longer", "value": None, "count": 3}]
    assert format_table(rows, {"name": "method", "value": "IoU", "count": "n"}).splitlines() == [
        "method     IoU   n",
        "------  ------  --",
        "a       0.5000  12",
        "longer       -   3",
    ]


def test_one_rule_for_numbers():
    values = (None, "word", 3, 0.5, (0.25, 0.125))
    assert [format_cell(value, 2) for value in values] == ["-", "word", "3", "0.50", "0.25 ± 0.12"]
    rows = [{"name": "a", "value": 0.5, "spread": (1.0, 0.1)}]
    table = format_markdown_table(rows, {"name": "", "value": "IoU", "spread": "points"}, {"spread": 1})
    assert table == "|  | IoU | points |\n| --- | --- | --- |\n| a | 0.5000 | 1.0 ± 0.1 |\n"
