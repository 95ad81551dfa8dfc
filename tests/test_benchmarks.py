# SPDX-License-Identifier: Apache-2.0
"""Benchmarks against hand-made maps and slow loops; rows that survive a stop and do not care who computed them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from benchmark_models import Pictures, ice_checkpoint, scores_of, vit_checkpoint
from PIL import Image
from scipy import stats

from transformers_ice.evaluation import (
    BENCHMARKS,
    CEILING,
    CONTROLS,
    ExplainedBatch,
    InputBatch,
    Processes,
    Protocol,
    RowKey,
    RowStore,
    bootstrap,
    markdown_table,
    results_as_json,
    run_benchmarks,
    text_table,
)
from transformers_ice.evaluation.cost import Cost
from transformers_ice.evaluation.model_benchmarks import pixel_ranks
from transformers_ice.evaluation.region_benchmarks import ATTENTION_HEADS, _find_component, _largest_mass
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


@pytest.fixture
def true_maps(monkeypatch):
    """An explainer that knows the truth: as good as the ceiling, and no mask is shown to it."""

    def truth(model, pixel_values, target=None):
        examples = [Pictures()[index] for index in range(10)]
        grids = {example.image.tobytes(): example.mask.reshape(4, 8, 4, 8).mean((1, 3)) for example in examples}
        images = [np.asarray(example.image, dtype=np.float32) for example in examples]
        maps = []
        for pixels in pixel_values:
            values = ((pixels * 0.5 + 0.5) * 255).round().permute(1, 2, 0).numpy()
            nearest = min(range(10), key=lambda index: np.abs(images[index] - values).mean())
            maps.append(torch.from_numpy(grids[examples[nearest].image.tobytes()]).float())
        return torch.stack(maps)

    monkeypatch.setitem(EXPLAINERS, "truth", Explainer(truth, is_hard=True))


def test_a_method_that_knows_the_truth_has_perfect_scores(vit, store, true_maps):
    names = ["segmentation", "jaccard", "localization", "discovery"]
    results = run_benchmarks([vit], Pictures(), names, ["truth", CEILING], store, batch_size=4, num_resamples=0)
    scores = scores_of(results)
    for method in ("truth", CEILING):
        for name in ("pixel_accuracy", "mean_iou", "mean_f1", "mean_average_precision", "jaccard", "corloc"):
            assert scores["vit", method, name] == pytest.approx(1), (method, name)
        for name in ("confident_corloc", "max_box_acc", "max_box_acc_v2", "pointing_game"):
            assert scores["vit", method, name] == pytest.approx(1), (method, name)
        assert scores["vit", method, "empty_masks"] == 0


@pytest.mark.parametrize("odd_sizes", [False, True])
def test_segmentation_equals_a_slow_loop(ice, store, odd_sizes):
    dataset = Pictures(7, odd_sizes=odd_sizes)
    results = run_benchmarks([ice], dataset, ["segmentation"], ["rollout"], store, batch_size=3, num_resamples=0)
    intersections, unions, right, total = np.zeros(2), np.zeros(2), 0, 0
    for example in dataset:
        pixels = ice.image_processor([example.image], return_tensors="pt")["pixel_values"]
        grid = explain(ice.model, pixels, "rollout")
        soft = torch.nn.functional.interpolate(grid[:, None], size=(32, 32), mode="bilinear")[0, 0].numpy()
        guess = soft > soft.mean()
        truth = np.asarray(Image.fromarray(example.mask.astype(np.uint8)).resize((32, 32), Image.Resampling.NEAREST))
        for kind in (0, 1):
            intersections[kind] += ((guess == kind) & (truth == kind)).sum()
            unions[kind] += ((guess == kind) | (truth == kind)).sum()
        right, total = right + (guess == truth).sum(), total + truth.size
    scores = scores_of(results)
    assert scores["ice", "rollout", "mean_iou"] == pytest.approx((intersections / unions).mean())
    assert scores["ice", "rollout", "pixel_accuracy"] == pytest.approx(right / total)


@pytest.mark.slow
def test_processes_and_chunks_give_the_same_numbers(ice, vit, tmp_path):
    # without what waits for the rows of the other process: `test_mosaics.py`
    names = [name for name, kind in BENCHMARKS.items() if kind.chosen_by is None]
    methods = ["ice", "ice_hard", "rollout", "grad_cam", CEILING, ATTENTION_HEADS]
    dataset = Pictures(6, odd_sizes=True)
    arguments = ([ice, vit], dataset, names, methods)
    protocol = Protocol(num_insertion_steps=2)
    alone = run_benchmarks(*arguments, RowStore(tmp_path / "one"), protocol, 4, num_resamples=5)
    shared = RowStore(tmp_path / "two")
    second = run_benchmarks(*arguments, shared, protocol, 4, num_resamples=5, processes=Processes(1, 2))
    assert second == []
    together = run_benchmarks(*arguments, shared, protocol, 4, num_resamples=5, processes=Processes(0, 2))
    assert together == alone
    by_one = run_benchmarks(*arguments, RowStore(tmp_path / "three"), protocol, 1, num_resamples=5)
    for first, other in zip(alone, by_one, strict=True):
        for name, interval in first.scores.items():
            assert other.scores[name].value == pytest.approx(interval.value, abs=1e-4), (first.method, name)


def test_a_stopped_run_goes_on_where_it_was(ice, store, monkeypatch):
    calls = []

    def fails_once(model, pixel_values, target=None):
        calls.append(len(pixel_values))
        if len(calls) == 3:
            raise ValueError("the power went off")
        return pixel_values.mean(dim=1).unfold(1, 8, 8).unfold(2, 8, 8).mean((-1, -2))

    monkeypatch.setitem(EXPLAINERS, "brightness", Explainer(fails_once))
    arguments = ([ice], Pictures(10), ["segmentation"], ["brightness"], store)
    with pytest.raises(ValueError, match="the power went off"):
        run_benchmarks(*arguments, batch_size=2, num_resamples=0)
    # as JSON: there NaN is None, which equals itself
    stopped = results_as_json(run_benchmarks(*arguments, batch_size=2, num_resamples=0))
    assert calls == [2] * 6  # two chunks, the failure, the other three
    assert results_as_json(run_benchmarks(*arguments, batch_size=2, num_resamples=0)) == stopped
    assert len(calls) == 6


def test_other_settings_do_not_take_old_rows(ice, store):
    arguments = ([ice], Pictures(4), ["segmentation"], ["ice"], store)
    first = run_benchmarks(*arguments, num_resamples=0)
    published = run_benchmarks(*arguments, Protocol(paper_compat=True), num_resamples=0)
    assert first != published
    assert len(list(store.directory.iterdir())) == 2 * (1 + len(CONTROLS))


def test_all_foreground_is_background_only_in_the_published_way(ice, store, monkeypatch):
    monkeypatch.setitem(
        EXPLAINERS,
        "everything",
        Explainer(lambda model, pixels, target=None: torch.ones(len(pixels), 4, 4), is_hard=True),
    )
    arguments = ([ice], Pictures(4), ["segmentation"], ["everything"], store)
    share = np.mean([example.mask.mean() for example in Pictures(4)])
    ours = scores_of(run_benchmarks(*arguments, num_resamples=0))["ice", "everything", "pixel_accuracy"]
    theirs = run_benchmarks(*arguments, Protocol(paper_compat=True), num_resamples=0)
    assert ours == pytest.approx(share)
    assert scores_of(theirs)["ice", "everything", "pixel_accuracy"] == pytest.approx(1 - share)


def test_published_preprocessing_is_half_and_bilinear(ice):
    batch = InputBatch(ice, [Pictures()[0]], Protocol(paper_compat=True))
    picture = torch.from_numpy(np.asarray(Pictures()[0].image).copy()).permute(2, 0, 1) / 255
    torch.testing.assert_close(batch.published_pixel_values[0], (picture - 0.5) / 0.5)


def test_image_size_of_the_protocol_is_that_of_the_input(vit):
    batch = InputBatch(vit, [Pictures()[0]], Protocol(image_size=48))
    assert batch.input_size == (48, 48)
    assert ExplainedBatch(batch, "rollout").relevance().shape == (1, 6, 6)
    assert batch.logits.shape == (1, 7)
    assert ExplainedBatch(batch, CEILING).relevance().shape == (1, 6, 6)


def test_maps_of_other_classes_are_computed_again(vit):
    batch = InputBatch(vit, [Pictures()[index] for index in range(4)], Protocol())
    explained = ExplainedBatch(batch, "grad_cam")
    for target in (batch.explained_classes, (batch.explained_classes + torch.tensor([0, 1, 0, 3])) % 7):
        expected = explain(vit.model, batch.pixel_values, "grad_cam", target=target)
        torch.testing.assert_close(explained.relevance(target), expected, atol=1e-6, rtol=1e-4)


def test_largest_mass_by_definition():
    rng = np.random.default_rng(0)
    maps = torch.from_numpy(rng.random((5, 3, 4)) ** 3).float()
    for grid, kept in zip(maps, _largest_mass(maps, 0.9), strict=True):
        values = sorted(grid.flatten().tolist())
        left_out = 0
        while sum(values[: left_out + 1]) <= 0.1 * sum(values) + 1e-9:
            left_out += 1
        assert kept.sum() == 12 - left_out
        assert grid[kept].min() >= (grid[~kept].max() if left_out else 0)
    assert not _largest_mass(torch.zeros(1, 2, 2), 0.9).any()
    assert _largest_mass(torch.tensor([[[-1.0, 2.0]]]), 0.9).tolist() == [[[False, True]]]


def test_the_best_attention_head_is_no_worse_than_any(vit, store):
    results = run_benchmarks(
        [vit], Pictures(6), ["jaccard"], [ATTENTION_HEADS, "raw_attention"], store, num_resamples=0
    )
    scores = scores_of(results)
    assert scores["vit", ATTENTION_HEADS, "jaccard"] >= scores["vit", "raw_attention", "jaccard"]


def test_component_of_a_cell_is_four_connected():
    mask = np.array([[1, 1, 0, 1], [0, 0, 1, 1], [1, 0, 0, 0]], dtype=bool)
    assert _find_component(mask, (0, 1)).astype(int).tolist() == [[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert _find_component(mask, (1, 2)).astype(int).tolist() == [[0, 0, 0, 1], [0, 0, 1, 1], [0, 0, 0, 0]]


def test_discovery_pads_clips_and_has_no_box_for_an_empty_map(ice, monkeypatch):
    """Of 45 x 37 pixels the grid has 6 x 5 patches of 8, the last ones partly padding."""
    grids = []

    def listed(model, pixels, target=None):
        assert pixels.shape[2:] == (48, 40)
        assert (pixels[:, :, 45:] == 0).all()
        assert (pixels[:, :, :, 37:] == 0).all()
        return torch.stack(grids)

    monkeypatch.setitem(EXPLAINERS, "listed", Explainer(listed, is_hard=True))
    example = Pictures(3, odd_sizes=True)[2]
    benchmark = BENCHMARKS["discovery"](Protocol())
    corner = torch.zeros(6, 5)
    corner[4:, 3:] = 1
    corner[0, 0] = 2  # a smaller component with the most relevant patch
    for grid, largest, confident, empty in (
        (corner, (24, 32, 37, 45), (0, 0, 8, 8), 0),
        (torch.zeros(6, 5), (), (), 1),
    ):
        grids[:] = [grid]
        observed = benchmark.observe(ExplainedBatch(InputBatch(ice, [example], Protocol()), "listed"))
        assert observed["largest"][0] == [largest]
        assert observed["confident_"][0] == [confident]
        assert observed["empty"][0] == [empty]


def test_pixel_ranks_order_relevance_and_break_ties_alike():
    maps = torch.tensor([[[0.1, 0.9], [0.5, 0.5]], [[1.0, 1.0], [1.0, 1.0]]])
    ranks = pixel_ranks(maps, seed=0)
    assert ranks[0, 0, 1] == 0
    assert ranks[0, 0, 0] == 3
    assert sorted(ranks[1].flatten().tolist()) == [0, 1, 2, 3]
    assert (ranks[0, 1].argsort() == ranks[1, 1].argsort()).all()
    assert (pixel_ranks(maps[1:], seed=0)[0] == ranks[1]).all()


def test_faithfulness_by_hand(ice, store):
    protocol = Protocol(num_insertion_steps=2)
    dataset = Pictures(3)
    results = run_benchmarks([ice], dataset, ["faithfulness"], ["rollout"], store, protocol, num_resamples=0)
    scores = scores_of(results)
    mean, std = (
        torch.tensor(values)[:, None, None]
        for values in (ice.image_processor.image_mean, ice.image_processor.image_std)
    )
    accuracy, curve = np.zeros(10), np.zeros(3)
    for example in dataset:
        pixels = ice.image_processor([example.image], return_tensors="pt")["pixel_values"]
        soft = torch.nn.functional.interpolate(
            explain(ice.model, pixels, "rollout")[:, None], size=(32, 32), mode="bilinear"
        )
        order = pixel_ranks(soft[:, 0], 0)[0]

        def answer(hidden, pixels=pixels):
            with torch.no_grad():
                raw = pixels[0] * std + mean
                return ice.model(((raw * ~hidden - mean) / std)[None]).logits[0]

        for step in range(10):
            accuracy[step] += int(answer(order < int(1024 * step / 10)).argmax()) == example.label
        best = int(answer(order < 0).argmax())
        for step in range(3):
            curve[step] += float(answer(order < 512 * step).softmax(0)[best])
    expected = 100 * float(np.trapezoid(accuracy / 3, np.arange(10) / 10)) if hasattr(np, "trapezoid") else None
    if expected is not None:
        assert scores["ice", "rollout", "positive_perturbation_auc"] == pytest.approx(expected)
    assert scores["ice", "rollout", "deletion_auc"] == pytest.approx(
        (curve[0] / 2 + curve[1] + curve[2] / 2) / 2 / 3, abs=1e-4
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"benchmarks": ["segmentatoin"]}, "`benchmarks` must be some of classification"),
        ({"methods": ["lime"]}, "`methods` must be some of attention_heads"),
        ({"methods": []}, "`methods` must be some of"),
        ({"checkpoints": []}, "`checkpoints` must have different names"),
        ({"dataset": Pictures(provides=("label",))}, "needs mask, which 'pictures' does not have"),
        ({"dataset": Pictures(0)}, "must hold at least one example"),
        ({"benchmarks": ["discovery"], "methods": [ATTENTION_HEADS]}, "No combination is possible"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_runs(vit, store, change, message):
    arguments = {"checkpoints": [vit], "dataset": Pictures(), "benchmarks": ["segmentation"], "methods": ["rollout"]}
    with pytest.raises(ValueError, match=message):
        run_benchmarks(**{**arguments, **change}, store=store)


def test_ice_methods_run_on_ice_only_and_the_ceiling_once(ice, vit, store):
    results = run_benchmarks(
        [ice, vit], Pictures(4), ["segmentation"], ["ice", "rollout", CEILING], store, num_resamples=0
    )
    assert [(result.checkpoint, result.method) for result in results] == [
        *(("ice", method) for method in ("ice", "rollout", CEILING, *CONTROLS)),
        *(("vit", method) for method in ("rollout", *CONTROLS)),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"perturbation_target": "best"}, "must be 'predicted' or 'true'"),
        ({"attention_mass": 0.0}, r"`attention_mass` must lie in \(0, 1\]"),
        ({"threshold_step": 1.0}, r"`threshold_step` must lie in \(0, 1\)"),
        ({"num_insertion_steps": 0}, "at least 1"),
        ({"image_size": 0}, "must be positive"),
    ],
)
def test_protocol_refuses_what_makes_no_sense(change, message):
    with pytest.raises(ValueError, match=message):
        Protocol(**change)


def test_half_written_rows_do_not_count(store):
    key = RowKey("a", "b", "c", "d")
    store.save(key, 0, {"metric/column": np.arange(3)})
    folder = store.directory / key.folder
    (folder / ".000001.npz.99").write_bytes(b"half")
    assert store.has(key, 0)
    assert not store.has(key, 1)
    assert store.load(key, [0])["metric/column"].tolist() == [0, 1, 2]
    (folder / "000001.npz").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"000001\.npz cannot be read.*Delete the file"):
        store.load(key, [0, 1])


def test_bootstrap_intervals_cover_the_mean_and_are_paired():
    rng = np.random.default_rng(1)
    rows = {"value": rng.normal(size=400)}
    shifted = {"value": rows["value"] + 1}

    def mean(rows):
        return {"mean": float(rows["value"].mean())}

    interval, other = (bootstrap(mean, data, num_resamples=500)["mean"] for data in (rows, shifted))
    expected = stats.bootstrap((rows["value"],), np.mean, n_resamples=500, method="percentile", random_state=0)
    assert interval.low == pytest.approx(expected.confidence_interval.low, abs=0.03)
    assert interval.high == pytest.approx(expected.confidence_interval.high, abs=0.03)
    assert other.low - interval.low == pytest.approx(1)
    assert math.isnan(bootstrap(mean, rows, num_resamples=0)["mean"].low)


def test_report_names_the_best_and_hides_nothing(ice, vit, store):
    names, methods = ["segmentation", "classification"], ["ice", "rollout", CEILING]
    results = run_benchmarks([ice, vit], Pictures(5), names, methods, store)
    costs = {("ice", "ice"): Cost(1.0, 1.01, 0.01, 2.0, 1.0)}
    text, markdown = text_table(results, costs), markdown_table(results, costs)
    assert "(the classifier)" in text
    assert "1.0100 ± 0.0100" in text
    lines = {(line["checkpoint"], line["method"]): line for line in results_as_json(results, costs)}
    competing = [("ice", "ice"), ("ice", "rollout"), ("vit", "rollout")]
    bold = 0
    for name in ("pixel_accuracy", "mean_average_precision", "mean_iou", "mean_f1"):
        differences = [lines[key]["scores"][name]["difference_to_best"] for key in competing]
        assert max(difference["value"] for difference in differences) == 0
        bold += sum(difference["low"] <= 0 <= difference["high"] for difference in differences)
    assert markdown.count("**") == 2 * bold  # ceiling and controls do not compete
    assert "| ice | `ceiling` | 1.000 (1.000 to 1.000)" in markdown
    assert "| vit | `whole_image` (control) |" in markdown
    assert not any("difference_to_best" in score for score in lines["vit", "random"]["scores"].values())
    assert lines["ice", "ice"]["cost"]["forward_passes"] == 1.01
    assert lines["vit", "rollout"]["scores"]["mean_iou"]["num_examples"] == 5
    assert 0 <= lines["vit", ""]["scores"]["top_1"]["value"] <= 1
