# SPDX-License-Identifier: Apache-2.0
"""Benchmarks against slow loops over single images and pixels, and ceilings by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PilImage
from sklearn.metrics import accuracy_score, jaccard_score
from transformers import ViTConfig, ViTForImageClassification
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from transformers_ice import IceDeiTConfig, IceDeiTForImageClassification
from transformers_ice.evaluation import (
    CEILING,
    ComparisonRow,
    compare_with_baselines,
    evaluate_classification,
    evaluate_segmentation,
    format_table,
    majority_grid,
)
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


def pixels_of(processor, row):
    return processor(row["image"], return_tensors="pt")["pixel_values"]


def scores_of_masks(dataset, masks):
    truth = np.concatenate([(np.asarray(mask) > 0).ravel() for mask in dataset["mask"]])
    guess = np.concatenate([mask.ravel() for mask in masks])
    return {
        "pixel_accuracy": accuracy_score(truth, guess),
        "mean_iou": jaccard_score(truth, guess, average="macro"),
    }


def to_image_by_loop(grid, height, width):
    """Give each pixel the value of the cell that its centre lies in."""
    rows, columns = grid.shape
    mask = np.zeros((height, width), dtype=bool)
    for y in range(height):
        for x in range(width):
            mask[y, x] = grid[int((y + 0.5) * rows / height), int((x + 0.5) * columns / width)]
    return mask


def test_classification_equals_a_loop_over_single_images(ice_model, dataset):
    processor = IceDeiTImageProcessor(size=SIZE)
    ranked = {"top": [], "cls_top": []}
    for row in dataset:
        with torch.no_grad():
            outputs = ice_model(pixels_of(processor, row))
        ranked["top"].append(outputs.logits[0].argsort(descending=True).tolist())
        ranked["cls_top"].append(outputs.cls_logits[0].argsort(descending=True).tolist())
    expected = {
        f"{name}_{k}": float(np.mean([label in order[:k] for label, order in zip(dataset["label"], orders)]))  # noqa: B905
        for name, orders in ranked.items()
        for k in (1, 5)
    }
    assert dict(evaluate_classification(ice_model, processor, dataset, batch_size=4)) == expected
    assert expected["top_1"] < expected["top_5"]  # so that the two cannot be confused


def test_plain_classifiers_have_one_set_of_logits(vit_model, dataset):
    scores = dict(evaluate_classification(vit_model, ViTImageProcessorPil(size=SIZE), dataset))
    assert list(scores) == ["top_1", "top_5"]


def test_ice_mask_scores_equal_a_loop_over_pixels(ice_model, dataset):
    processor = IceDeiTImageProcessor(size=SIZE)
    masks = []
    for row in dataset:
        grid = explain(ice_model, pixels_of(processor, row), method="ice_hard")[0].numpy()
        masks.append(to_image_by_loop(grid, row["image"].height, row["image"].width))
    expected = scores_of_masks(dataset, masks)
    scores = dict(evaluate_segmentation(ice_model, processor, dataset, ["ice_hard"], batch_size=4))
    # the same integers divided; another order of float64 additions
    assert scores["ice_hard/pixel_accuracy"] == pytest.approx(expected["pixel_accuracy"], abs=1e-12)
    assert scores["ice_hard/mean_iou"] == pytest.approx(expected["mean_iou"], abs=1e-12)


@pytest.mark.parametrize("method", ["raw_attention", "rollout"])
def test_soft_maps_are_cut_at_their_mean_after_bilinear_interpolation(vit_model, dataset, method):
    processor = ViTImageProcessorPil(size=SIZE)
    masks = []
    for row in dataset:
        grid = explain(vit_model, pixels_of(processor, row), method=method)
        # PyTorch's own scale factor instead of the size, and numpy's mean
        fine = torch.nn.functional.interpolate(grid[None], scale_factor=8, mode="bilinear")[0, 0].double().numpy()
        masks.append(to_image_by_loop(fine > fine.mean(), row["image"].height, row["image"].width))
    expected = scores_of_masks(dataset, masks)
    scores = dict(evaluate_segmentation(vit_model, processor, dataset, [method], batch_size=4))
    # batches of 4 round differently from single images: at most a few of 10,000 pixels lie at the threshold
    assert scores[f"{method}/pixel_accuracy"] == pytest.approx(expected["pixel_accuracy"], abs=1e-3)
    assert scores[f"{method}/mean_iou"] == pytest.approx(expected["mean_iou"], abs=1e-3)


def test_ceiling_is_right_on_the_larger_side_of_every_patch(ice_model, dataset):
    right, total = 0, 0
    for row in dataset:
        counts = np.zeros((4, 4, 2), dtype=int)
        mask = np.asarray(row["mask"]) > 0
        for (y, x), is_foreground in np.ndenumerate(mask):
            counts[int((y + 0.5) * 4 / mask.shape[0]), int((x + 0.5) * 4 / mask.shape[1]), int(is_foreground)] += 1
        right, total = right + counts.max(axis=-1).sum(), total + mask.size
    processor = IceDeiTImageProcessor(size=SIZE)
    scores = dict(evaluate_segmentation(ice_model, processor, dataset, ["ice_hard", CEILING], batch_size=4))
    assert scores["ceiling/pixel_accuracy"] == pytest.approx(right / total, abs=1e-12)
    assert scores["ice_hard/pixel_accuracy"] < scores["ceiling/pixel_accuracy"]


def test_true_masks_of_whole_patches_have_a_perfect_ceiling(vit_model):
    mask = np.kron(np.array([[0, 255], [255, 255]], dtype=np.uint8), np.ones((16, 16), np.uint8))
    rows = {"image": [PilImage.new("RGB", (32, 32))], "mask": [PilImage.fromarray(mask)]}
    table = Dataset.from_dict(rows, features=Features({"image": Image(), "mask": Image()}))
    scores = dict(evaluate_segmentation(vit_model, ViTImageProcessorPil(size=SIZE), table, [CEILING]))
    assert scores == {"ceiling/pixel_accuracy": 1.0, "ceiling/mean_iou": 1.0}


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


def test_ignored_pixels_of_array_masks_count_nowhere(ice_model):
    rows = {"image": [PilImage.new("RGB", (32, 32))], "mask": [np.full((32, 32), -1)]}
    rows["mask"][0][:8, :8] = 1
    table = Dataset.from_dict({"image": rows["image"], "mask": [mask.tolist() for mask in rows["mask"]]})
    scores = dict(evaluate_segmentation(ice_model, IceDeiTImageProcessor(size=SIZE), table, [CEILING]))
    assert scores["ceiling/pixel_accuracy"] == 1.0


def test_constant_map_has_no_foreground(vit_model, monkeypatch):
    monkeypatch.setattr("transformers_ice.evaluation.comparison.explain", lambda *_, **__: torch.full((1, 4, 4), 0.1))
    mask = np.zeros((32, 32), dtype=np.uint8)
    rows = {"image": [PilImage.new("RGB", (32, 32))], "mask": [PilImage.fromarray(mask)]}
    table = Dataset.from_dict(rows, features=Features({"image": Image(), "mask": Image()}))
    scores = dict(evaluate_segmentation(vit_model, ViTImageProcessorPil(size=SIZE), table, ["rollout"]))
    assert scores["rollout/pixel_accuracy"] == 1.0


def test_models_come_back_in_training_mode(ice_model, dataset):
    ice_model.train()
    processor = IceDeiTImageProcessor(size=SIZE)
    trained = dict(evaluate_classification(ice_model, processor, dataset))
    dict(evaluate_segmentation(ice_model, processor, dataset, ["ice_hard", "rollout"]))
    assert all(module.training for module in ice_model.modules())
    ice_model.eval()
    assert trained == dict(evaluate_classification(ice_model, processor, dataset))


def test_comparison_has_a_row_per_method_and_shares_of_the_ceiling(ice_model, vit_model, dataset):
    ice_processor, vit_processor = IceDeiTImageProcessor(size=SIZE), ViTImageProcessorPil(size=SIZE)
    rows = compare_with_baselines(ice_model, ice_processor, vit_model, vit_processor, dataset, batch_size=5)
    assert [row.method.split()[0].strip(",") for row in rows] == ["ICE", "raw", "rollout", "ceiling"]
    accuracy = dict(evaluate_classification(ice_model, ice_processor, dataset))
    masks = dict(evaluate_segmentation(ice_model, ice_processor, dataset, ["ice_hard", CEILING]))
    share = masks["ice_hard/mean_iou"] / masks["ceiling/mean_iou"]
    assert rows[0] == ComparisonRow(
        "ICE (hard mask)",
        accuracy["top_1"],
        accuracy["cls_top_1"],
        masks["ice_hard/pixel_accuracy"],
        masks["ice_hard/mean_iou"],
        share,
    )
    assert rows[3].ceiling_share == 1.0
    start_top_1 = dict(evaluate_classification(vit_model, vit_processor, dataset))["top_1"]
    assert [row.cls_top_1 for row in rows[1:]] == [start_top_1, start_top_1, None]


def test_table_is_aligned_and_shows_what_is_undefined():
    rows = [{"name": "a", "value": 0.5, "count": 12}, {"name": "longer", "value": None, "count": 3}]
    assert format_table(rows, {"name": "method", "value": "IoU", "count": "n"}).splitlines() == [
        "method     IoU   n",
        "------  ------  --",
        "a       0.5000  12",
        "longer       -   3",
    ]


def test_unknown_methods_and_missing_columns_are_refused(ice_model, dataset):
    processor = IceDeiTImageProcessor(size=SIZE)
    with pytest.raises(ValueError, match=r"list of ceiling, feature_ablation, .* transformer_attribution, got"):
        next(evaluate_segmentation(ice_model, processor, dataset, ["attention"]))
    with pytest.raises(ValueError, match="got 'rollout'"):
        next(evaluate_segmentation(ice_model, processor, dataset, "rollout"))
    with pytest.raises(ValueError, match=r"must have the columns \['image', 'mask'\]"):
        next(evaluate_segmentation(ice_model, processor, dataset.remove_columns("mask")))
    with pytest.raises(ValueError, match=r"dataset\.rename_column"):
        next(evaluate_classification(ice_model, processor, dataset.remove_columns("label")))


def test_crop_without_a_way_back_is_refused(vit_model, dataset):
    processor = ViTImageProcessorPil(size=SIZE, do_center_crop=True, crop_size=SIZE)
    with pytest.raises(ValueError, match="must not crop, got ViTImageProcessorPil"):
        next(evaluate_segmentation(vit_model, processor, dataset, ["rollout"]))
