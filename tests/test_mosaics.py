# SPDX-License-Identifier: Apache-2.0
"""Mosaics and the grid pointing game: cells and scores by hand, the choice of the images, the command on a folder."""

from __future__ import annotations

import copy
import itertools
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache

import numpy as np
import pytest
import torch
from benchmark_models import SIZES, Pictures, scores_of
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from transformers_ice import IceDeiTConfig, IceDeiTForImageClassification
from transformers_ice.cli import evaluate
from transformers_ice.data.benchmarks.examples import EvaluationSet, Example
from transformers_ice.data.benchmarks.mosaics import (
    MosaicSet,
    cell_masks,
    compose_cells,
    fitting_cell_size,
    plan_mosaics,
)
from transformers_ice.evaluation import (
    BENCHMARKS,
    Checkpoint,
    ExplainedBatch,
    Processes,
    Protocol,
    RowStore,
    left_out,
    markdown_table,
    missing_annotations,
    result_notes,
    run_benchmarks,
)
from transformers_ice.evaluation.metrics import GridPointingGame
from transformers_ice.explainers import EXPLAINERS, Explainer, explain
from transformers_ice.explainers.class_scores import explained_logits
from transformers_ice.ice_deit.image_processing_ice_deit import IceDeiTImageProcessor


COLOURS = [(220, 30, 30), (30, 200, 40), (40, 50, 220), (220, 210, 40), (20, 20, 20)]
NAMES = ["red", "green", "blue", "yellow", "black"]
SIZE = {"height": 32, "width": 32}


class Colours(EvaluationSet):
    """Pictures of one colour, with noise; every class in turn, or labels of one's own."""

    def __init__(self, count: int = 20, labels=None, names=NAMES, provides=("label",)) -> None:
        super().__init__("colours", provides, names)
        self.labels = [index % 5 for index in range(count)] if labels is None else list(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def _identity(self):
        yield self.labels

    def _read(self, index: int) -> Example:
        noise = np.random.default_rng(index).integers(-15, 16, (32, 32, 3))
        pixels = (np.array(COLOURS[index % 5]) + noise).clip(0, 255).astype(np.uint8)
        return Example(f"picture {index}", Image.fromarray(pixels), self.labels[index])


def trained(model, processor, name: str) -> Checkpoint:
    """Return a checkpoint that knows the colours, after a few steps on them."""
    pictures = list(Colours())
    pixels = processor([example.image for example in pictures], return_tensors="pt")["pixel_values"]
    labels = torch.tensor([example.label for example in pictures])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(60):
        model.train()
        model(pixels, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return Checkpoint(name, model.eval(), processor, name)


def settings_of_model() -> dict:
    labels = dict(enumerate(NAMES))
    sizes = {key: value for key, value in SIZES.items() if key not in ("num_labels", "initializer_range")}
    return {**sizes, "id2label": labels, "label2id": {name: index for index, name in labels.items()}}


@lru_cache
def ice_checkpoint() -> Checkpoint:
    torch.manual_seed(0)
    model = IceDeiTForImageClassification(IceDeiTConfig(**settings_of_model(), cls_loss_weight=1.0))
    return trained(model, IceDeiTImageProcessor(size=SIZE), "ice")


@lru_cache
def vit_checkpoint() -> Checkpoint:
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(**settings_of_model()))
    return trained(model, ViTImageProcessorPil(size=SIZE), "vit")


def by_colour(model, pixel_values, target=None):
    """Call the patches of the target's colour relevant; the model's pixels are of mean and deviation 0.5."""
    target = explained_logits(model, pixel_values).argmax(dim=1) if target is None else target
    patches = torch.nn.functional.avg_pool2d((pixel_values * 0.5 + 0.5) * 255, 8)  # (batch_size, 3, rows, columns)
    colours = torch.tensor(COLOURS, dtype=torch.float32)  # (num_labels, 3)
    nearest = (patches[:, None] - colours[None, :, :, None, None]).abs().sum(dim=2).argmin(dim=1)
    # negative elsewhere, which counts as nothing
    return torch.where(nearest == target[:, None, None], 2.0, -3.0)


def never(model, pixel_values, target=None):
    """Find nothing relevant."""
    return torch.full((len(pixel_values), *(size // 8 for size in pixel_values.shape[2:])), -1.0)


@pytest.fixture
def store(tmp_path):
    return RowStore(tmp_path / "rows")


# --- cells ---------------------------------------------------------------------------------------------------------


def test_cells_lie_row_by_row_and_are_squashed():
    images = [Image.new("RGB", (5 + index, 7), (index, 0, 0)) for index in range(4)]
    mosaic = np.asarray(compose_cells(images, (2, 3)))
    assert mosaic.shape == (4, 6, 3)
    assert mosaic[..., 0].tolist() == [[0, 0, 0, 1, 1, 1]] * 2 + [[2, 2, 2, 3, 3, 3]] * 2
    masks = cell_masks(2, (2, 3))
    assert masks.shape == (4, 4, 6)
    for index in range(4):
        assert (masks[index] == (mosaic[..., 0] == index)).all()
    with pytest.raises(ValueError, match="must fill a square, such as 4 or 9 of them, got 3"):
        compose_cells(images[:3], (2, 3))


@pytest.mark.parametrize(
    ("input_size", "patch_size", "side", "expected"),
    [
        ((224, 224), (16, 16), 2, (112, 112)),
        ((224, 224), (16, 16), 3, (80, 80)),  # 14 / 3 patches are nearest to 5: a mosaic of 240 pixels
        ((208, 224), (16, 16), 3, (64, 80)),  # 13 / 3 to 4
        ((40, 24), (8, 4), 2, (24, 12)),  # 2.5 patches become 3
        ((16, 16), (16, 16), 3, (16, 16)),  # one patch at least
    ],
)
def test_a_cell_has_the_nearest_number_of_whole_patches(input_size, patch_size, side, expected):
    assert fitting_cell_size(input_size, patch_size, side) == expected


def test_mosaic_set_composes_its_images_and_names_their_classes():
    images = Colours(6)
    mosaics = MosaicSet(images, [(3, 0, 1, 2), (4, 5, 1, 3)], {index: 10 + index for index in range(6)}, (16, 16))
    assert len(mosaics) == 2
    second = mosaics[1]
    assert second.classes == (14, 15, 11, 13)
    assert second.image_id == "picture 4, picture 5, picture 1, picture 3"
    cell = images[1].image.resize((16, 16), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(second.image)[16:, :16], np.asarray(cell))
    other = MosaicSet(images, [(3, 0, 1, 2), (4, 5, 1, 2)], {index: 10 + index for index in range(6)}, (16, 16))
    assert mosaics.fingerprint != other.fingerprint


# --- the choice of the images --------------------------------------------------------------------------------------


def test_mosaics_hold_different_classes_and_every_image_once():
    sizes = [9, 4, 7, 1, 6, 3]
    candidates = {name: [100 * name + index for index in range(size)] for name, size in enumerate(sizes)}
    mosaics = plan_mosaics(candidates, 4, 500, seed=3)
    assert all(len({image // 100 for image in mosaic}) == 4 for mosaic in mosaics)
    used = [image for mosaic in mosaics for image in mosaic]
    assert len(set(used)) == len(used)
    for name in candidates:  # the first ones of each class, in their order
        own = [image for image in used if image // 100 == name]
        assert own == candidates[name][: len(own)]
    assert plan_mosaics(candidates, 4, 500, seed=3) == mosaics
    assert plan_mosaics(candidates, 4, 500, seed=4) != mosaics


def test_as_many_mosaics_as_the_images_allow():
    """Against a search: take three of the classes that have images left, in every possible way."""

    @cache
    def most(left: tuple[int, ...]) -> int:
        ways = itertools.combinations([index for index, number in enumerate(left) if number], 3)
        after = {tuple(sorted(number - (index in way) for index, number in enumerate(left))) for way in ways}
        return max((1 + most(rest) for rest in after), default=0)

    for sizes in itertools.combinations_with_replacement(range(1, 6), 5):
        candidates = {name: list(range(10 * name, 10 * name + size)) for name, size in enumerate(sizes)}
        assert len(plan_mosaics(candidates, 3, 100)) == most(sizes), sizes


def test_classes_are_used_equally_often_and_anywhere():
    candidates = {name: list(range(100 * name, 100 * name + (2 if name == 0 else 50))) for name in range(9)}
    mosaics = plan_mosaics(candidates, 4, 20)
    assert len(mosaics) == 20
    counts = np.bincount([image // 100 for mosaic in mosaics for image in mosaic])
    assert counts[0] == 2  # all it has; the other 78 over eight classes
    assert sorted(counts[1:]) == [9, 9, 10, 10, 10, 10, 10, 10]
    assert {index for mosaic in mosaics for index, image in enumerate(mosaic) if image // 100 == 5} == {0, 1, 2, 3}


def test_too_few_classes_are_refused():
    with pytest.raises(ValueError, match="4 cells needs images of 4 classes, got 3 with an image"):
        plan_mosaics({0: [1], 1: [2], 2: [3], 3: []}, 4, 10)


def test_the_most_certain_of_the_rightly_classified_images_are_chosen():
    labels = np.array([0, 1, 2, 3, 0, 1, 2, 3, 0])
    confidences = np.array([0.6, 0.9, 0.8, 0.7, 0.9, 0.0, 0.8, 0.9, 0.95])  # 0: image 5 is classified wrongly
    benchmark = BENCHMARKS["grid_pointing"](Protocol(num_mosaics=2))
    rows = {"label/value": labels, "confidence/value": confidences}
    mosaics = benchmark.choose_examples(vit_checkpoint(), Colours(9), rows)
    assert len(mosaics) == 1  # class 1 has one image only
    ids = set(mosaics[0].image_id.split(", "))
    assert ids == {f"picture {index}" for index in (8, 1, 2, 7)}  # of equally certain images the first
    assert mosaics[0].image.size == (32, 32)


def test_images_that_either_classifier_of_ice_gets_wrong_are_not_chosen():
    ice, kind = ice_checkpoint(), BENCHMARKS["grid_pointing"].chosen_by
    examples = [Colours()[index] for index in range(5)]
    batch = ExplainedBatch(kind(Protocol()).make_inputs(ice, examples, NAMES), "")
    logits = ice.model(batch.inputs.pixel_values).logits.detach()
    rows = kind(Protocol()).rows(batch)
    torch.testing.assert_close(
        torch.from_numpy(rows["confidence/value"]).float(), logits.softmax(dim=1).diagonal(), atol=1e-5, rtol=1e-5
    )
    changed = ExplainedBatch(kind(Protocol()).make_inputs(ice, examples, NAMES), "")
    changed.inputs.explained_classes = torch.tensor([0, 1, 2, 4, 4])
    assert (kind(Protocol()).rows(changed)["confidence/value"] > 0).tolist() == [True, True, True, False, True]


def test_confidence_of_a_multi_label_model_is_that_of_each_class_alone():
    vit, kind = copy.deepcopy(vit_checkpoint()), BENCHMARKS["grid_pointing"].chosen_by
    vit.model.config.problem_type = "multi_label_classification"
    inputs = kind(Protocol()).make_inputs(vit, [Colours()[index] for index in range(5)], NAMES)
    rows = kind(Protocol()).rows(ExplainedBatch(inputs, ""))
    assert rows["confidence/value"].tolist() == inputs.logits.sigmoid().diagonal().tolist()


# --- the score -----------------------------------------------------------------------------------------------------


def test_score_by_hand():
    """Four maps on 4 x 4 patches, cells of 2 x 2."""
    maps = np.zeros((4, 4, 4))
    maps[0, :2, :2] = [[1, 2], [0, -5]]  # 3 of 4: the fourth lies in the last cell, -5 counts as 0
    maps[0, 3, 3] = 1
    maps[1] = -1  # nothing positive
    maps[2, 2:, :2] = 0.5  # all of it
    maps[3] = 7  # constant: a quarter
    rows = GridPointingGame().rows([maps])
    assert rows["fraction"].tolist() == [(3 / 4 + 0 + 1 + 1 / 4) / 4]
    assert rows["empty"].tolist() == [1 / 4]
    assert GridPointingGame().compute(predictions=[maps, np.ones((4, 4, 4))]) == {
        "grid_pointing": (0.5 + 0.25) / 2,
        "empty_masks": 0.125,
    }


def test_score_equals_a_loop_over_cells():
    maps = np.random.default_rng(0).normal(size=(9, 6, 9))
    fractions = []
    for index, own in enumerate(maps):
        top, left = index // 3 * 2, index % 3 * 3
        inside = sum(max(own[top + y, left + x], 0) for y in range(2) for x in range(3))
        fractions.append(inside / sum(max(value, 0) for value in own.ravel()))
    assert GridPointingGame().compute(predictions=[maps])["grid_pointing"] == pytest.approx(np.mean(fractions))


def test_one_map_for_all_classes_scores_one_over_the_number_of_cells():
    same = np.repeat(np.random.default_rng(0).random((1, 6, 6)), 9, axis=0)
    for maps in (same, np.ones((9, 6, 6))):
        assert GridPointingGame().compute(predictions=[maps])["grid_pointing"] == pytest.approx(1 / 9, abs=1e-15)


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (np.ones((3, 4, 4)), r"a square number of cells of one size, got \(3, 4, 4\)"),
        (np.ones((4, 4, 5)), r"got \(4, 4, 5\)"),
        (np.ones((4, 4)), r"got \(4, 4\)"),
        (np.full((4, 2, 2), np.nan), "must be finite"),
    ],
)
def test_maps_that_do_not_fit_a_mosaic_are_refused(maps, message):
    with pytest.raises(ValueError, match=message):
        GridPointingGame().rows([maps])


# --- the benchmark -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cell_size", "pixels"), [("fit", 32), ("full", 64)])
def test_a_method_that_knows_the_truth_scores_one(store, monkeypatch, cell_size, pixels):
    seen = set()

    def noted(model, pixel_values, target=None):
        seen.add(tuple(pixel_values.shape[2:]))
        return by_colour(model, pixel_values, target)

    monkeypatch.setitem(EXPLAINERS, "truth", Explainer(noted))
    monkeypatch.setitem(EXPLAINERS, "never", Explainer(never))
    protocol = Protocol(cell_size=cell_size)
    results = run_benchmarks(
        [vit_checkpoint()], Colours(), ["grid_pointing"], ["truth", "never"], store, protocol, num_resamples=5
    )
    scores = scores_of(results)
    assert scores["vit", "truth", "grid_pointing"] == 1
    assert scores["vit", "never", "grid_pointing"] == 0
    assert scores["vit", "never", "empty_masks"] == 1
    assert scores["vit", "whole_image", "grid_pointing"] == 0.25
    assert {result.num_examples for result in results} == {5}  # 20 images in mosaics of 4
    assert seen == {(pixels, pixels)}
    assert [result.method for result in results] == ["truth", "never", "whole_image"]
    assert "grid pointing, vit: 5 mosaics of images that this checkpoint classifies" in " ".join(result_notes(results))
    assert "| vit | `truth` | **1.000 (1.000 to 1.000)**" in markdown_table(results)


def test_three_cells_along_a_side():
    nine = np.arange(45) % 9
    benchmark = BENCHMARKS["grid_pointing"](Protocol(mosaic_side=3))
    rows = {"label/value": nine, "confidence/value": np.linspace(0.5, 1, 45)}
    examples = benchmark.choose_examples(vit_checkpoint(), Colours(45, [0] * 45), rows)
    assert len(examples) == 5
    batch = benchmark.make_inputs(vit_checkpoint(), list(examples), None)
    assert batch.input_size == (24, 24)  # 4 patches / 3 are nearest to 1
    scores = benchmark.scores(benchmark.rows(ExplainedBatch(batch, "whole_image")))
    assert scores["grid_pointing"] == pytest.approx(1 / 9, abs=1e-15)


@pytest.mark.parametrize("method", ["ice", "ice_hard", "grad_cam", "full_lrp"])
def test_scores_equal_a_slow_loop(store, method):
    """One mosaic and one class at a time, from the definition."""
    ice, protocol = ice_checkpoint(), Protocol(num_mosaics=2)
    results = run_benchmarks([ice], Colours(), ["grid_pointing"], [method], store, protocol, num_resamples=0)
    benchmark, kind = BENCHMARKS["grid_pointing"](protocol), BENCHMARKS["grid_pointing"].chosen_by
    inputs = kind(protocol).make_inputs(ice, list(Colours()), NAMES)
    rows = kind(protocol).rows(ExplainedBatch(inputs, ""))
    fractions = []
    for mosaic in benchmark.choose_examples(ice, Colours(), rows):
        pixels = ice.image_processor([mosaic.image], return_tensors="pt")["pixel_values"]
        for index, label in enumerate(mosaic.classes):
            own = explain(ice.model, pixels, method, target=label)[0].double().clamp(min=0)
            half = own.shape[0] // 2
            top, left = index // 2 * half, index % 2 * half
            inside, total = own[top : top + half, left : left + half].sum(), own.sum()
            fractions.append(float(inside / total) if total else 0.0)
    # batches of other sizes round differently
    assert scores_of(results)["ice", method, "grid_pointing"] == pytest.approx(np.mean(fractions), abs=1e-4)


def test_rows_are_kept_and_shared_between_processes(tmp_path, monkeypatch):
    calls = []

    def noted(model, pixel_values, target=None):
        calls.append(len(pixel_values))
        return by_colour(model, pixel_values, target)

    monkeypatch.setitem(EXPLAINERS, "noted", Explainer(noted))
    arguments = ([ice_checkpoint(), vit_checkpoint()], Colours(), ["grid_pointing"], ["noted", "ice"])
    one, two = RowStore(tmp_path / "one"), RowStore(tmp_path / "two")
    alone = run_benchmarks(*arguments, one, batch_size=2, num_resamples=3)
    number = len(calls)
    assert run_benchmarks(*arguments, one, batch_size=2, num_resamples=3) == alone
    assert len(calls) == number  # nothing was computed again
    folders = {folder.name for folder in one.directory.iterdir()}
    run_benchmarks(*arguments, one, Protocol(num_mosaics=1), batch_size=2, num_resamples=3)
    new = {folder.name for folder in one.directory.iterdir()} - folders
    assert new
    assert not any("confidence" in name for name in new)  # the images are classified once for all kinds of mosaics
    # each process classifies its part of the images, and waits for the other before it makes mosaics of them
    barrier = threading.Barrier(2, timeout=120)
    with ThreadPoolExecutor(2) as pool:
        parts = [Processes(index, 2, barrier.wait) for index in range(2)]
        runs = [
            pool.submit(run_benchmarks, *arguments, two, batch_size=2, num_resamples=3, processes=part)
            for part in parts
        ]
        together, nothing = (run.result() for run in runs)
    assert nothing == []
    assert together == alone


def test_what_knows_no_class_is_left_out():
    methods = ["ice", "raw_attention", "center_ellipse", "ceiling", "legrad"]
    assert left_out([ice_checkpoint()], Colours(), ["grid_pointing"], methods) == [
        "`raw_attention` is left out for ice (grid_pointing): it knows no class, so that its score is that of "
        "whole_image, by definition.",
        "`center_ellipse` is left out for ice (grid_pointing): it knows no class, so that its score is that of "
        "whole_image, by definition.",
        "`ceiling` is left out for ice (grid_pointing): its score is 1, by definition.",
    ]


def test_data_without_labels_or_with_too_few_classes_are_refused(store):
    vit = vit_checkpoint()
    with pytest.raises(ValueError, match="'grid_pointing' needs label, which 'pictures' does not have"):
        run_benchmarks([vit], Pictures(3, provides=("mask",)), ["grid_pointing"], ["legrad"], store)
    with pytest.raises(ValueError, match="needs labels of at least 9 classes, which 'colours' does not have"):
        run_benchmarks([vit], Colours(), ["grid_pointing"], ["legrad"], store, Protocol(mosaic_side=3))
    assert missing_annotations("grid_pointing", Colours(), Protocol(mosaic_side=3)) == ["labels of at least 9 classes"]
    assert missing_annotations("grid_pointing", Colours()) == []
    with pytest.raises(ValueError, match="and grid_pointing a method that knows classes"):
        run_benchmarks([vit], Colours(), ["grid_pointing"], ["rollout"], store)


def test_a_model_that_is_right_on_too_few_classes_has_an_error_and_keeps_the_others(store):
    wrong = Colours(labels=[1, 2, 3, 4, 0] * 4)
    names = ["grid_pointing", "classification"]
    results = run_benchmarks([vit_checkpoint()], wrong, names, ["legrad"], store, num_resamples=0)
    errors = {result.method: result.error for result in results}
    assert errors[""] is None
    assert "it classifies images of 0 classes rightly, and a mosaic needs 4" in errors["legrad"]
    assert "Error: vit, `legrad` has no scores under grid_pointing: it classifies" in markdown_table(results)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"mosaic_side": 1}, "`mosaic_side` must be at least 2"),
        ({"num_mosaics": 0}, "`num_mosaics` must be at least 1"),
        ({"cell_size": "half"}, "`cell_size` must be 'fit' or 'full'"),
    ],
)
def test_settings_out_of_range_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        Protocol(**setting)


def test_mosaic_settings_leave_the_rows_of_other_benchmarks_alone(store):
    arguments = ([vit_checkpoint()], Colours(5), ["classification"], ["legrad"], store)
    run_benchmarks(*arguments, num_resamples=0)
    before = list(store.directory.iterdir())
    run_benchmarks(*arguments, Protocol(mosaic_side=3, num_mosaics=7, cell_size="full"), num_resamples=0)
    assert list(store.directory.iterdir()) == before


def test_the_command_on_a_folder_of_classes(tmp_path, capsys):
    for example in Colours():
        folder = tmp_path / "photos" / "images" / NAMES[example.label]
        folder.mkdir(parents=True, exist_ok=True)
        example.image.save(folder / f"{example.image_id}.png")
    ice = ice_checkpoint()
    ice.model.save_pretrained(tmp_path / "ice")
    ice.image_processor.save_pretrained(tmp_path / "ice")
    words = ("--models", tmp_path / "ice", "--data_dir", tmp_path / "photos", "--benchmark", "grid_pointing")
    options = ("--num_mosaics", 3, "--num_resamples", 5, "--num_pictures", 0, "--measure_cost", "false")
    explainers = ("--explainers", "ice", "grad_cam", "rollout", "--device", "cpu", "--output_dir", tmp_path / "out")
    assert evaluate.main([str(word) for word in (*words, *options, *explainers)]) == 0
    output = capsys.readouterr().out
    assert "`rollout` is left out for ice (grid_pointing): it knows no class" in output
    assert "grid pointing, ice: 3 mosaics" in output
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    lines = {line["method"]: line["scores"] for line in report["results"]}
    assert set(lines) == {"ice", "grad_cam", "whole_image"}
    assert lines["whole_image"]["grid_pointing"]["value"] == 0.25
    assert lines["ice"]["grid_pointing"]["value"] > 0.25
    assert lines["ice"]["grid_pointing"]["num_examples"] == 3
    assert report["protocol"]["num_mosaics"] == 3
