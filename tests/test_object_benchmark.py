# SPDX-License-Identifier: Apache-2.0
"""The benchmark of objects: which classes are found, where, and what the scores are, on patterns made by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image as PilImage
from transformers import ViTConfig, ViTForImageClassification
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from transformers_ice import IceDeiTConfig, IceDeiTForImageClassification
from transformers_ice.cli import evaluate as run_evaluation
from transformers_ice.data.benchmarks.examples import EvaluationSet, Example
from transformers_ice.data.scenes import SCENE_CLASSES
from transformers_ice.evaluation import BENCHMARKS, CEILING, Checkpoint, Protocol, RowStore, run_benchmarks
from transformers_ice.evaluation.inputs import ExplainedBatch, InputBatch
from transformers_ice.explainers import EXPLAINERS, Explainer
from transformers_ice.ice_deit.image_processing_ice_deit import IceDeiTImageProcessor


NAMES = ["circle", "square", "cross"]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SIZES |= {"image_size": 8, "patch_size": 4, "id2label": dict(enumerate(NAMES)), "initializer_range": 0.3}
SIZE = {"height": 8, "width": 8}


def class_map(*rows):
    """Return the class map of one digit for each patch of 4 pixels."""
    return np.kron(np.array([[int(cell) for cell in row] for row in rows]), np.ones((4, 4))).astype(np.int16)


class Patterns(EvaluationSet):
    """Plain images with given class maps."""

    def __init__(self, *maps, names=NAMES):
        super().__init__("patterns", {"segmentation", "mask"}, names)
        self.maps = maps

    def __len__(self):
        return len(self.maps)

    def _identity(self):
        return [own.tolist() for own in self.maps]

    def _read(self, index):
        own = self.maps[index]
        # the grey level tells the image to the fixed model
        image = PilImage.fromarray(np.full((*own.shape, 3), 60 * index, dtype=np.uint8))
        return Example(str(index), image, mask=np.minimum(own, 1).astype(np.int8), segmentation=own)


def make_model(problem_type="multi_label_classification", **fields):
    torch.manual_seed(0)
    return ViTForImageClassification(ViTConfig(**{**SIZES, "problem_type": problem_type, **fields})).eval()


def with_logits(model, logits):
    """Let a model give the n-th of the logits to the image of grey level 60 n."""
    rows = torch.tensor(logits)

    def replace(module, inputs, keywords, outputs):
        pixels = inputs[0] if inputs else keywords["pixel_values"]
        index = ((pixels.mean(dim=(1, 2, 3)) * 0.5 + 0.5) * 255 / 60).round().long()
        outputs.logits = rows[index]
        return outputs

    model.register_forward_hook(replace, with_kwargs=True)
    return Checkpoint("model", model, ViTImageProcessorPil(size=SIZE), "")


def fixed_maps(by_class):
    """Return an explainer whose map of a class is the same in every image."""

    def explain(model, pixel_values, target=None):
        target = model(pixel_values).logits.argmax(dim=1) if target is None else target
        return torch.tensor(by_class, dtype=torch.float32)[target]

    return explain


@pytest.fixture
def quarters(monkeypatch):
    """A method whose map of each class is largest in one quarter, and half as large in the next."""
    maps = [[[2, 0], [0, 0]], [[0, 4], [1.6, 0]], [[0, 0], [0.5, 1]]]
    monkeypatch.setitem(EXPLAINERS, "quarters", Explainer(fixed_maps(maps), is_hard=False))
    monkeypatch.setitem(EXPLAINERS, "hard_quarters", Explainer(fixed_maps(maps), is_hard=True))


def observe(checkpoint, dataset, method):
    batch = ExplainedBatch(InputBatch(checkpoint, list(dataset), Protocol(), NAMES), method)
    benchmark = BENCHMARKS["objects"](Protocol(), NAMES)
    return benchmark, benchmark.observe(batch)


def scores_of(checkpoint, dataset, method):
    benchmark = BENCHMARKS["objects"](Protocol(), NAMES)
    batch = ExplainedBatch(InputBatch(checkpoint, list(dataset), Protocol(), NAMES), method)
    return benchmark.scores(benchmark.rows(batch))


LOW, HIGH = -2.0, 2.0  # scores of 0.12 and 0.88


def test_hard_maps_by_hand(quarters):
    dataset = Patterns(class_map("10", "02"), class_map("00", "00"), class_map("02", "00"))
    # found: circle and square; nothing; cross
    checkpoint = with_logits(make_model(), [[HIGH, 1.0, LOW], [LOW, LOW, LOW], [LOW, LOW, HIGH]])
    _, observed = observe(checkpoint, dataset, "hard_quarters")
    maps = observed["regions"][0]
    for own, expected in zip(maps, (class_map("12", "20"), class_map("00", "00"), class_map("00", "33")), strict=True):
        assert all(np.array_equal(one, expected) for one in own)  # no threshold
    scores = scores_of(checkpoint, dataset, "hard_quarters")
    # patches: circle 1 of 1; square 0 of 2 + 1 + 1; cross 0 of 2
    assert scores["class_iou"] == pytest.approx((1 + 0 + 0) / 3)
    assert scores["max_class_iou"] == scores["class_iou"]
    # background patches: 2 + 4 + 3 true, 1 + 4 + 2 predicted, 0 + 4 + 1 both
    assert scores["background_iou"] == pytest.approx(5 / (9 + 7 - 5))
    # circle in its one image; square in neither of its two
    assert scores["class_corloc"] == pytest.approx(1 / 2)
    # circle: first of three; square: in images 0 and 2 with scores 1.0 and LOW, equal to that of image 1
    assert scores["label_map"] == pytest.approx((1 + (0.5 * 1 + 0.5 * 2 / 3)) / 2)
    # circle 1; square 2 * 1 / (1 + 2); cross found and not there
    assert scores["label_f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert scores["false_objects"] == 0.0


def test_soft_maps_are_divided_by_their_maximum_and_compared(quarters):
    dataset = Patterns(class_map("10", "00"))
    checkpoint = with_logits(make_model(), [[HIGH, HIGH, HIGH]])
    _, observed = observe(checkpoint, dataset, "quarters")
    (maps,) = observed["regions"][0]
    scaled = torch.tensor([[[1.0, 0], [0, 0]], [[0, 1], [0.4, 0]], [[0, 0], [0.5, 1]]])
    enlarged = torch.nn.functional.interpolate(scaled[None] * 1.0, size=(8, 8), mode="bilinear")[0]
    enlarged = enlarged / enlarged.amax(dim=(1, 2), keepdim=True)
    for threshold, own in zip(np.arange(1, 20) / 20, maps, strict=True):
        for y in range(8):
            for x in range(8):
                values = enlarged[:, y, x]
                expected = int(values.argmax()) + 1 if values.max() >= threshold else 0
                assert own[y, x] == expected, (threshold, y, x)


def test_only_found_classes_have_a_region_and_the_threshold_of_each_class_counts(quarters):
    dataset = Patterns(class_map("00", "00"))
    logits = [[HIGH, 1.0, LOW]]
    assert observed_classes(with_logits(make_model(), logits), dataset) == {0, 1, 2}
    strict = make_model(object_thresholds=[0.5, 0.9, 0.05])
    assert observed_classes(with_logits(strict, logits), dataset) == {0, 1, 3}
    single = make_model("single_label_classification")
    assert observed_classes(with_logits(single, logits), dataset) == {0, 1}


def observed_classes(checkpoint, dataset):
    _, observed = observe(checkpoint, dataset, "hard_quarters")
    return set(np.unique(observed["regions"][0]).tolist())


def test_something_found_in_an_empty_image_is_a_false_object(quarters):
    empty = class_map("00", "00")
    dataset = Patterns(empty, empty, class_map("10", "00"))
    checkpoint = with_logits(make_model(), [[LOW, LOW, LOW], [HIGH, LOW, LOW], [HIGH, LOW, LOW]])
    assert scores_of(checkpoint, dataset, "hard_quarters")["false_objects"] == 0.5
    whole = Patterns(class_map("10", "00"), class_map("10", "00"), class_map("10", "00"))
    assert "false_objects" not in scores_of(checkpoint, whole, "hard_quarters")  # no image is without an object


def test_map_that_knows_no_class_is_of_the_best_class(quarters, monkeypatch):
    left = Explainer(lambda model, pixels, target=None: torch.tensor([[[1.0, 0], [1, 0]]]), takes_target=False)
    monkeypatch.setitem(EXPLAINERS, "left", left)
    _, observed = observe(with_logits(make_model(), [[1.0, HIGH, LOW]]), Patterns(class_map("20", "20")), "left")
    fixed = observed["regions"][0][0][9]  # at 0.5
    assert set(np.unique(fixed).tolist()) == {0, 2}
    assert (fixed[:, :3] == 2).all()


def test_constant_map_has_no_region(monkeypatch):
    monkeypatch.setitem(EXPLAINERS, "flat", Explainer(lambda model, pixels, target=None: torch.full((1, 2, 2), 0.3)))
    _, observed = observe(with_logits(make_model(), [[HIGH, HIGH, HIGH]]), Patterns(class_map("11", "11")), "flat")
    assert not observed["regions"][0].any()


def test_ceiling_is_the_most_frequent_class_of_every_patch():
    truth = class_map("10", "02")
    truth[0, :3], truth[4:, :4], truth[4:6, 4:] = 3, -1, 3  # 3 of 16 pixels; void; half and half
    scores = scores_of(with_logits(make_model(), [[LOW, LOW, LOW]]), Patterns(truth), CEILING)
    # of 16 pixels of the first patch 13 are circle; square and cross tie, the first one is taken: 8 of 16
    # background: its own patch, void does not count
    assert scores["class_iou"] == pytest.approx((13 / 16 + 8 / 16 + 0) / 3)
    assert scores["background_iou"] == 1.0
    assert {"label_map", "label_f1", "false_objects"} & set(scores) == set()


def test_perfect_patches_have_a_perfect_ceiling_and_controls_have_no_labels(tmp_path):
    dataset = Patterns(class_map("10", "02"), class_map("00", "33"), class_map("00", "00"))
    checkpoint = with_logits(make_model(), [[HIGH, HIGH, LOW], [LOW, LOW, HIGH], [LOW, LOW, LOW]])
    results = run_benchmarks([checkpoint], dataset, ["objects"], [CEILING, "rollout"], RowStore(tmp_path))
    scores = {result.method: {name: cell.value for name, cell in result.scores.items()} for result in results}
    assert (scores[CEILING]["class_iou"], scores[CEILING]["class_corloc"]) == (1.0, 1.0)
    assert (scores["rollout"]["label_map"], scores["rollout"]["label_f1"]) == (1.0, 1.0)
    assert "label_map" not in scores["whole_image"]
    # the whole image is of the best class: circle 4 of 16 and cross 8 of 16 pixels right, square nowhere
    assert scores["whole_image"]["class_iou"] == pytest.approx((1 / 4 + 0 + 1 / 2) / 3)


def test_classes_go_by_name_whatever_their_order(quarters):
    names = ["cross", "circle", "square"]
    model = make_model(id2label=dict(enumerate(names)))
    # the model's own order: cross, circle, square
    checkpoint = with_logits(model, [[LOW, LOW, HIGH]])
    _, observed = observe(checkpoint, Patterns(class_map("02", "00")), "hard_quarters")
    # the third map is that of the model's class square
    assert np.array_equal(observed["regions"][0][0][0], class_map("00", "22"))
    assert observed["label_found_"][0].tolist() == [[0, 1, 0]]


def test_data_without_class_maps_or_other_classes_are_refused(tmp_path):
    checkpoint = Checkpoint("model", make_model(), ViTImageProcessorPil(size=SIZE), "")
    masks = Patterns(class_map("10", "00"))
    masks.provides = frozenset({"mask"})
    with pytest.raises(ValueError, match="'objects' needs segmentation, which 'patterns' does not have"):
        run_benchmarks([checkpoint], masks, ["objects"], ["rollout"], RowStore(tmp_path))
    others = Patterns(class_map("10", "00"), names=["circle", "ring"])
    with pytest.raises(ValueError, match=r"does not know \['ring'\]"):
        run_benchmarks([checkpoint], others, ["objects"], ["rollout"], RowStore(tmp_path))
    with pytest.raises(ValueError, match="needs the names of the classes"):
        BENCHMARKS["objects"](Protocol())


def test_ice_maps_of_a_single_label_model_hold_its_one_class(tmp_path):
    torch.manual_seed(0)
    model = IceDeiTForImageClassification(IceDeiTConfig(**SIZES)).eval()
    checkpoint = Checkpoint("ice", model, IceDeiTImageProcessor(size=SIZE), "")
    dataset = Patterns(class_map("10", "02"), class_map("00", "33"))
    _, observed = observe(checkpoint, dataset, "ice_hard")
    inputs = InputBatch(checkpoint, list(dataset), Protocol(), NAMES)
    with torch.no_grad():
        outputs = model(inputs.pixel_values)
    for own, logits, patches in zip(observed["regions"][0], outputs.logits, outputs.patch_logits, strict=True):
        best = patches.argmax(dim=-1).view(2, 2).numpy()
        label = int(logits.argmax())
        expected = np.kron((best == label) * (label + 1), np.ones((4, 4)))
        assert all(np.array_equal(one, expected) for one in own)


def test_scenes_of_several_objects_are_scored_by_one_command(tmp_path, capsys):
    torch.manual_seed(0)
    sizes = {**SIZES, "image_size": 32, "patch_size": 8, "id2label": dict(enumerate(SCENE_CLASSES))}
    model = ViTForImageClassification(ViTConfig(**sizes, problem_type="multi_label_classification"))
    model.save_pretrained(tmp_path / "vit")
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    arguments = ["--models", tmp_path / "vit", "--benchmark", "all", "--explainers", "grad_cam", "ceiling"]
    arguments += ["--dataset_name", "scenes", "--dataset_config_name", "several", "--limit", 8, "--num_resamples", 3]
    arguments += ["--num_pictures", 0, "--measure_cost", "false", "--output_dir", tmp_path, "--device", "cpu"]
    assert run_evaluation.main(list(map(str, arguments))) == 0
    table = capsys.readouterr().out
    assert "8 images of scenes (several)" in table
    assert "localization is left out: scenes (several) has no boxes, label." in table
    report = json.loads((tmp_path / "results.json").read_text())
    lines = {line["method"]: line["scores"] for line in report["results"]}
    for name in ("class_iou", "max_class_iou", "background_iou", "class_corloc", "label_map", "label_f1"):
        assert 0 <= lines["grad_cam"][name]["value"] <= 1
    assert lines["ceiling"]["class_iou"]["value"] > lines["grad_cam"]["class_iou"]["value"]
    assert "label_map" not in lines["random"]
