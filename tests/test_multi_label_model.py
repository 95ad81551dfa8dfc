# SPDX-License-Identifier: Apache-2.0
"""Models of several classes an image: class scores, loss, checks of the labels, and the objects that are found."""

import math

import pytest
import torch
from torch.nn.functional import one_hot
from transformers import pipeline

from transformers_ice import (
    IceDeiTConfig,
    IceDeiTForImageClassification,
    IceDeiTForSemanticSegmentation,
    IceDeiTImageProcessor,
)
from transformers_ice.ice_deit.adversarial_normalization import candidate_label_loss
from transformers_ice.ice_deit.several_labels import candidate_labels_loss, per_class_loss, pool_class_logits
from transformers_ice.training.objective_presets import OBJECTIVES


NAMES = ("cat", "dog", "bird")


def logits_of(rows):
    """Return patch logits `(1, num_patches, 4)` from probabilities of cat, dog, bird and background."""
    return torch.tensor([rows], dtype=torch.float64).log()


def outputs_of(rows, logits, thresholds=(0.5, 0.5, 0.5)):
    """Return the outputs of a multi-label model for one image of 2 x 2 patches."""
    return {
        "logits": torch.tensor([logits]),
        "patch_logits": logits_of(rows).float(),
        "grid_size": torch.tensor([[2, 2]]),
        "object_thresholds": torch.tensor([thresholds]),
    }


SURE = {name: [0.97 if i == index else 0.01 for i in range(4)] for index, name in enumerate((*NAMES, "none"))}


# --- scores and losses ---------------------------------------------------------------------------------------------


def test_the_candidates_loss_of_one_label_is_that_of_the_single_label_objective():
    patch_logits, labels = torch.randn(4, 9, 4), torch.tensor([0, 2, 1, 2])
    targets = one_hot(labels, 3).float()
    torch.testing.assert_close(
        candidate_labels_loss(patch_logits, targets), candidate_label_loss(patch_logits, targets)
    )


def test_the_candidates_of_a_patch_are_all_labels_and_background():
    rows = [[0.5, 0.2, 0.2, 0.1], [0.1, 0.1, 0.2, 0.6]]
    expected = {  # mean over the two patches
        (1.0, 1.0, 0.0): -(math.log(0.8) + math.log(0.8)) / 2,
        (0.0, 0.0, 0.0): -(math.log(0.1) + math.log(0.6)) / 2,
        (1.0, 0.0, 0.5): -(math.log(0.5 + 0.1 + 0.1) + math.log(0.1 + 0.1 + 0.6)) / 2,
    }
    for targets, loss in expected.items():
        assert candidate_labels_loss(logits_of(rows), torch.tensor([targets])).item() == pytest.approx(loss, abs=1e-6)


def test_a_picture_of_nothing_has_finite_gradients():
    patch_logits = torch.randn(2, 9, 4, requires_grad=True)
    targets = torch.zeros(2, 3)
    (
        candidate_labels_loss(patch_logits, targets) + per_class_loss(pool_class_logits(patch_logits), targets)
    ).backward()
    assert patch_logits.grad.isfinite().all()
    assert (patch_logits.grad[..., -1] < 0).all()  # every patch is pulled to background


def test_the_loss_of_each_class_is_added():
    logits, targets = torch.tensor([[0.0, 2.0], [1.0, -1.0]]), torch.tensor([[1.0, 0.0], [0.5, 0.0]])

    def cross_entropy(logit, target):
        p = 1 / (1 + math.exp(-logit))
        return -target * math.log(p) - (1 - target) * math.log(1 - p)

    rows = [cross_entropy(0, 1) + cross_entropy(2, 0), cross_entropy(1, 0.5) + cross_entropy(-1, 0)]
    assert per_class_loss(logits, targets).item() == pytest.approx(sum(rows) / 2, abs=1e-6)


@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_the_loss_trains_every_parameter(tiny_config, objective):
    torch.manual_seed(0)
    fields = {**tiny_config.to_dict(), **OBJECTIVES[objective], "problem_type": "multi_label_classification"}
    model = IceDeiTForImageClassification(IceDeiTConfig(**fields)).train()
    targets = torch.zeros(2, model.config.num_labels)
    targets[0, :2] = 1
    outputs = model(torch.randn(2, 3, 32, 32), labels=targets)
    outputs.loss.backward()
    assert outputs.loss.isfinite()
    assert outputs.logits.shape == outputs.object_thresholds.shape == targets.shape
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_a_tiny_model_learns_which_patches_show_which_class_and_that_there_are_none(tiny_config):
    torch.manual_seed(0)
    fields = {**tiny_config.to_dict(), **OBJECTIVES["balanced"], "problem_type": "multi_label_classification"}
    fields |= {"id2label": {0: "red", 1: "green"}, "label2id": {"red": 0, "green": 1}, "local_appearance_weight": 0.0}
    model = IceDeiTForImageClassification(IceDeiTConfig(**fields))
    patches = torch.tensor([[-1.0, -1, -1], [2, -1, -1], [-1, 2, -1]])  # grey, red, green

    def draw(count):
        cells = torch.zeros(count, 8, 8, dtype=torch.long)
        for i in range(count):
            for color in (1, 2):
                if torch.rand(()) < 0.5:
                    top, left = torch.randint(0, 6, (2,)).tolist()
                    cells[i, top : top + 3, left : left + 3] = color
        targets = torch.stack([(cells == color).flatten(1).any(dim=1).float() for color in (1, 2)], dim=1)
        side = 32 // 8
        return patches[cells].permute(0, 3, 1, 2).repeat_interleave(side, 2).repeat_interleave(side, 3), targets, cells

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(150):
        pixels, targets, _ = draw(32)
        optimizer.zero_grad()
        model(pixels, labels=targets).loss.backward()
        optimizer.step()
    model.eval()
    pixels, targets, cells = draw(64)
    with torch.no_grad():
        outputs = model(pixels)
    assert ((outputs.logits.sigmoid() > 0.5).float() == targets).float().mean() > 0.9
    side = outputs.grid_size[0, 0].item()
    truth = cells[:, :: 8 // side, :: 8 // side].flatten(1)
    predicted = (outputs.patch_logits.argmax(dim=-1) + 1) % 3  # red 1, green 2, background 0
    assert (predicted == truth).float().mean() > 0.7


# --- labels that are refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([1]), r"floating point of shape \(1, 3\).*got torch.int64 of shape \(1,\).*one_hot"),
        (torch.ones(1, 4), r"floating point of shape \(1, 3\)"),
        (torch.ones(1, 3, dtype=torch.long), "got torch.int64"),
        (torch.tensor([[0.0, -0.1, 1.0]]), r"in \[0, 1\], got values from -0.1 to 1"),
        (torch.tensor([[0.0, 2.0, 1.0]]), r"in \[0, 1\], got values from 0 to 2"),
        (torch.tensor([[0.0, math.nan, 1.0]]), r"in \[0, 1\], got values from nan"),
    ],
)
def test_labels_that_are_no_rows_of_ones_and_zeros_are_refused(tiny_config, labels, message):
    config = IceDeiTConfig(**{**tiny_config.to_dict(), "id2label": dict(enumerate(NAMES))})
    config.problem_type = "multi_label_classification"
    model = IceDeiTForImageClassification(config)
    with pytest.raises(ValueError, match=message):
        model(torch.randn(1, 3, 32, 32), labels=labels)


def test_thresholds_belong_to_their_classes():
    config = IceDeiTConfig(num_labels=3, object_thresholds=[0.1, 0.2, 0.3])
    assert IceDeiTConfig(**config.to_dict()).object_thresholds == [0.1, 0.2, 0.3]
    config.num_labels = 2
    assert config.object_thresholds is None


# --- what is found -------------------------------------------------------------------------------------------------


def explain(outputs, **options):
    processor = IceDeiTImageProcessor(size={"height": 32, "width": 32})
    (explanation,) = processor.post_process_explanation(outputs, [(4, 4)], id2label=dict(enumerate(NAMES)), **options)
    return explanation


def test_objects_are_the_classes_that_reach_their_thresholds_and_that_a_patch_names():
    rows = [SURE["cat"], SURE["dog"], SURE["dog"], SURE["none"]]
    explanation = explain(outputs_of(rows, [1.0, 2.0, 3.0], (0.7, 0.5, 0.5)))  # bird: no patch
    assert [(found.label, found.class_index, found.box) for found in explanation.objects] == [
        ("dog", 1, (2, 0, 4, 2)),
        ("cat", 0, (0, 0, 2, 2)),
    ]
    assert [found.score for found in explanation.objects] == pytest.approx([0.880797, 0.731059], abs=1e-6)
    assert (explanation.label, explanation.score) == ("dog", explanation.objects[0].score)
    dog, cat = explanation.objects
    assert dog.mask.sum() == 8
    assert cat.mask[:2, :2].all()
    assert cat.mask.sum() == 4
    assert dog.heatmap[0, 3] == pytest.approx(0.97)
    assert cat.heatmap[3, 3] == pytest.approx(0.01)
    assert explanation.mask.sum() == 12
    assert explanation.foreground_ratio == 0.75
    # a higher threshold leaves the dog out, and its patches become background
    explanation = explain(outputs_of(rows, [1.0, 2.0, 3.0], (0.7, 0.9, 0.5)))
    assert [found.label for found in explanation.objects] == ["cat"]
    assert set(explanation.class_map.flatten().tolist()) == {0, 3}
    assert explanation.box == (0, 0, 2, 2)


def test_nothing_found_is_background_with_the_score_of_no_class():
    explanation = explain(outputs_of([SURE["cat"], *[SURE["none"]] * 3], [-1.0, -2.0, -3.0]))
    assert (explanation.label, explanation.class_index, explanation.box) == ("background", None, None)
    assert explanation.objects == ()
    assert explanation.score == pytest.approx(1 - 1 / (1 + math.e), abs=1e-6)
    assert not explanation.mask.any()
    assert not explanation.found


def test_one_box_for_each_object():
    processor = IceDeiTImageProcessor(size={"height": 32, "width": 32})
    outputs = outputs_of([SURE["cat"], SURE["dog"], SURE["none"], SURE["none"]], [1.0, 2.0, -3.0])
    (found,) = processor.post_process_object_localization(outputs, [(4, 4)])
    assert found["labels"].tolist() == [1, 0]
    assert found["boxes"].tolist() == [[2, 0, 4, 2], [0, 0, 2, 2]]
    (found,) = processor.post_process_object_localization(outputs_of([SURE["none"]] * 4, [-1.0, -1, -1]), [(4, 4)])
    assert found["boxes"].shape == (0, 4)
    assert found["labels"].shape == found["scores"].shape == (0,)


@pytest.fixture
def multi_label_folder(tiny_config, tmp_path):
    torch.manual_seed(0)
    config = IceDeiTConfig(**{**tiny_config.to_dict(), "id2label": dict(enumerate(NAMES)), "label2id": None})
    config.problem_type, config.object_thresholds = "multi_label_classification", [0.0, 0.0, 1.0]
    model = IceDeiTForImageClassification(config)
    with torch.no_grad():
        model.deit.patch_head.weight.mul_(50)
    model.save_pretrained(tmp_path)
    IceDeiTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    return tmp_path


def test_pipelines_answer_several_classes(multi_label_folder):
    from PIL import Image

    image = Image.effect_noise((48, 40), 90).convert("RGB")
    result = pipeline("patch-explanation", model=str(multi_label_folder))(image)
    assert result["objects"]
    assert {found["label"] for found in result["objects"]} <= {"cat", "dog"}
    for found in result["objects"]:
        assert sorted(found) == ["box", "heatmap", "label", "mask", "score"]
        assert found["mask"].shape == found["heatmap"].shape == (40, 48)
        assert found["mask"][found["box"]["ymin"], found["box"]["xmin"] : found["box"]["xmax"]].any()
    batch = pipeline("patch-explanation", model=str(multi_label_folder), batch_size=2)([image, image])
    assert [found["score"] for found in batch[1]["objects"]] == pytest.approx([o["score"] for o in result["objects"]])
    scores = pipeline("image-classification", model=str(multi_label_folder))(image)
    model = IceDeiTForImageClassification.from_pretrained(multi_label_folder).eval()
    inputs = IceDeiTImageProcessor.from_pretrained(multi_label_folder)(image, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits.sigmoid()[0]
    assert {entry["label"]: entry["score"] for entry in scores} == pytest.approx(
        dict(zip(NAMES, expected.tolist(), strict=True)), abs=1e-5
    )
    segments = pipeline("image-segmentation", model=str(multi_label_folder))(image)
    assert {segment["label"] for segment in segments} <= {*NAMES, "background"}


def test_the_segmentation_class_finds_the_same_objects(multi_label_folder):
    pixel_values = torch.randn(2, 3, 32, 32)
    processor = IceDeiTImageProcessor.from_pretrained(multi_label_folder)
    found = []
    for model_class in (IceDeiTForImageClassification, IceDeiTForSemanticSegmentation):
        model = model_class.from_pretrained(multi_label_folder).eval()
        with torch.no_grad():
            explanations = processor.post_process_explanation(model(pixel_values))
        found.append([[(own.class_index, own.box) for own in each.objects] for each in explanations])
    assert found[0] == found[1]
