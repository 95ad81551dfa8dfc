# SPDX-License-Identifier: Apache-2.0
"""Speed tools: MACs against a count by hand, prescribed decisions, interleaved timing, the script from end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pruning_models import PREFIXES, hide_lengths
from transformers import ViTConfig, ViTForImageClassification

from transformers_ice import IceDeiTConfig, IceDeiTForImageClassification
from transformers_ice.cli import benchmark as run_benchmark
from transformers_ice.ice_deit.image_processing_ice_deit import IceDeiTImageProcessor
from transformers_ice.speed import (
    BACKGROUND,
    REFERENCE,
    TimingPlan,
    Workload,
    build_variants,
    check_dtypes,
    count_macs,
    count_variant_tokens,
    counts_from_shares,
    draw_keep_shares,
    ideal_macs,
    interleave,
    keep_freed_memory,
    measure_speed,
    optimize_variants,
    peak_flops,
    peak_measure,
    prescribed_counts,
    read_accuracies,
    read_keep_shares,
    share_as_vit,
    share_weights,
    speed_table,
    summarize_spread,
    write_results,
)
from transformers_ice.speed.keep_counts import smallest_margins
from transformers_ice.speed.peak import _square_matrices
from transformers_ice.visualization import speed_plot


SIZES = {
    "hidden_size": 48,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "image_size": 32,
    "patch_size": 4,
    "num_labels": 3,
}
LAYERS = [1, 3]


def build_model(**fields):
    torch.manual_seed(0)
    config = IceDeiTConfig(**{**SIZES, "pruning_strategy": "background", "pruning_layers": LAYERS, **fields})
    return IceDeiTForImageClassification(config).eval()


def build_workload(model, num_images=4):
    pixel_values = torch.randn(num_images, 3, *[model.config.image_size] * 2)
    shares = draw_keep_shares(0.5, 0.2, num_images, len(LAYERS))
    return Workload(pixel_values, {BACKGROUND: torch.from_numpy(counts_from_shares(shares, 64))})


@pytest.fixture
def model():
    return build_model()


def counted_and_ideal(variant, workload):
    """Return the MACs of all images, as torch counts them and by hand."""
    with torch.inference_mode(), workload.decide(variant):
        counted = count_macs(partial(variant.model, workload.pixel_values))
    return counted, ideal_macs(variant.model.config, **vars(count_variant_tokens(variant, workload))).sum()


def test_an_unpruned_vit_small_has_the_published_macs():
    config = ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536, num_labels=1000)
    assert ideal_macs(config, np.full(12, 197)) / 1e9 == pytest.approx(4.5989, abs=5e-5)
    vit = ViTForImageClassification(config).eval()
    with torch.inference_mode():
        counted = count_macs(lambda: vit(torch.zeros(1, 3, 224, 224)))
    assert counted == ideal_macs(config, np.full(12, 197))


def test_macs_of_a_model_with_one_layer_are_those_of_a_pencil_and_paper():
    config = IceDeiTConfig(**{**SIZES, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 4})
    # 64 patches of 48 values; 65 tokens; 2 x (4 x 65 x 16 + 2 x 65 x 65 x 4 + 2 x 65 x 4 x 96); 3 classes
    expected = 64 * 4 * 48 + 2 * (4160 + 33800 + 49920) + 4 * 3
    assert ideal_macs(config, np.array([65, 65])) == expected
    # the patch head has 4 outputs a patch, a gate 1; five tokens are ranked by attention
    everything = ideal_macs(config, np.array([65, 65]), None, 10, 64, 5)
    assert everything == expected + 10 * 4 + 64 * 4 * 4 + 5 * 4


@pytest.mark.parametrize("fields", [{}, {"patch_head_hidden_size": 8}, {"pruning_head": "patch"}])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_counted_macs_are_the_ideal_ones_for_every_variant(fields, prefix):
    model = build_model(**PREFIXES[prefix], **fields)
    workload = build_workload(model)
    variants = build_variants(model, [0.7, 0.5])
    for variant in variants:
        counted, ideal = counted_and_ideal(variant, workload)
        assert counted == pytest.approx(ideal, rel=1e-3), variant.name
    # the ViT of transformers has no other prefix token than [CLS]
    assert len(variants) == (7 if prefix == "[CLS]" else 6)


def test_padded_attention_computes_more_than_the_ideal_counts(model, monkeypatch):
    hide_lengths(monkeypatch)
    variant = build_variants(model, [])[-1]
    counted, ideal = counted_and_ideal(variant, build_workload(model))
    assert counted > 1.05 * ideal


def test_attentiveness_counts_patches_up_to_their_exit_layer(model):
    variant = next(variant for variant in build_variants(model, [0.5]) if "attentiveness" in variant.name)
    counts = count_variant_tokens(variant, build_workload(model, num_images=1))
    # 64 -> 32 and a fused token -> 17 and a fused token; [CLS] is the first of all
    assert counts.tokens_per_layer.tolist() == [[65, 65, 34, 34, 19]]
    assert counts.mlp_tokens.tolist() == [[65, 34, 34, 19, 19]]
    assert counts.patch_head_patches.tolist() == [32 + 16 + 18]
    assert counts.class_attention_tokens.tolist() == [65 + 34]


def test_registers_are_tokens_of_every_layer_and_no_patches():
    model = build_model(num_register_tokens=4)
    variant = next(variant for variant in build_variants(model, [0.5]) if "attentiveness" in variant.name)
    counts = count_variant_tokens(variant, build_workload(model, num_images=1))
    # as with [CLS] alone, and 4 more
    assert counts.tokens_per_layer.tolist() == [[69, 69, 38, 38, 23]]
    assert counts.mlp_tokens.tolist() == [[69, 38, 38, 23, 23]]
    assert counts.patch_head_patches.tolist() == [32 + 16 + 18]
    assert counts.class_attention_tokens.tolist() == [69 + 38]


def test_top_k_counts_patches_until_the_layer_before(model):
    variant = next(variant for variant in build_variants(model, [0.5]) if "top_k" in variant.name)
    counts = count_variant_tokens(variant, build_workload(model, num_images=2))
    assert counts.tokens_per_layer.tolist() == [[65, 33, 33, 17, 17]] * 2
    assert counts.pruning_head_patches.tolist() == [64 + 32] * 2
    assert counts.patch_head_patches.tolist() == [16] * 2


def test_background_counts_what_the_model_itself_decides(model):
    for head in model.deit.pruning_heads.values():
        torch.nn.init.normal_(head.score.weight)
    variant = build_variants(model, [])[-1]
    pixel_values = torch.randn(40, 3, 32, 32)
    with torch.inference_mode():
        exits = model(pixel_values).patch_exit_layer
    counts = count_variant_tokens(variant, Workload(pixel_values))
    present = [(exits > index).sum(dim=1) for index in range(5)]
    assert counts.tokens_per_layer.tolist() == (torch.stack(present, dim=1) + 1).tolist()
    assert 1 < counts.tokens_per_layer[:, -1].mean() < 60


@pytest.mark.parametrize("execution", ["packed", "masked"])
def test_prescribed_counts_are_kept(model, execution):
    model.config.pruning_execution = execution
    counts = torch.tensor([[64, 64], [40, 7], [1, 1]])
    with torch.inference_mode(), prescribed_counts(model, counts, LAYERS):
        exits = model(torch.randn(3, 3, 32, 32)).patch_exit_layer
    assert (exits > 1).sum(dim=1).tolist() == [64, 40, 1]
    assert (exits > 3).sum(dim=1).tolist() == [64, 7, 1]


def test_prescribed_counts_keep_the_patches_least_like_background():
    margin = torch.tensor([[3.0, 1.0, -1.0, 2.0, -5.0]])
    present = torch.tensor([[True, True, True, True, False]])
    kept = smallest_margins(torch.tensor([[2, 2]]), LAYERS)(3, margin, present)
    assert kept.tolist() == [[False, True, True, False, False]]


@torch.inference_mode()
def test_keep_policy_is_restored_after_the_block_and_after_an_exception(model):
    pixel_values = torch.randn(2, 3, 32, 32)
    before, attributes = model(pixel_values), dict(vars(model.deit))
    with prescribed_counts(model, torch.tensor([[5, 5], [6, 6]]), LAYERS):
        model(pixel_values)
    with pytest.raises(RuntimeError, match="stop"), prescribed_counts(model, torch.tensor([[5, 5]]), LAYERS):
        raise RuntimeError("stop")
    assert dict(vars(model.deit)) == attributes
    assert torch.equal(before.patch_exit_layer, model(pixel_values).patch_exit_layer)


def test_drawn_shares_have_the_mean_and_deviation_asked_for():
    shares = draw_keep_shares(0.4, 0.15, 20000, 3, seed=1)
    assert shares.shape == (20000, 3)
    assert (shares == shares[:, :1]).all()
    assert shares[:, 0].mean() == pytest.approx(0.4, abs=0.01)
    assert shares[:, 0].std() == pytest.approx(0.15, abs=0.01)
    assert np.array_equal(shares, draw_keep_shares(0.4, 0.15, 20000, 3, seed=1))


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 0.1), (1.0, 0.1), (0.5, 0.0), (0.5, 0.5)])
def test_impossible_distributions_are_refused(mean, deviation):
    with pytest.raises(ValueError, match="`keep_beta` must be a mean in"):
        draw_keep_shares(mean, deviation, 3, 1)


def test_counts_of_a_small_grid_are_replayed_on_a_large_one(tmp_path):
    file = tmp_path / "counts.json"
    file.write_text(json.dumps([[32 / 64, 8 / 64], [1.0, 0.0]]))
    assert counts_from_shares(read_keep_shares(file, 2), 196).tolist() == [[98, 24], [196, 1]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[0.5, 0.5, 0.5]]", "3 pruning layers, and the model prunes at 2"),
        ("[0.5, 0.5]", "got the shape"),
        ("[[0.5], [0.5, 0.2]]", "must hold a JSON list"),
        ("{", "must hold a JSON list"),
        ("[[32, 16]]", "must be in"),
        ("[[0.2, 0.5]]", "must not grow"),
        ("[[NaN, 0.5]]", "must be in"),
    ],
)
def test_shares_that_cannot_be_replayed_are_refused(tmp_path, text, message):
    (tmp_path / "counts.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_keep_shares(tmp_path / "counts.json", 2)


def test_twins_share_every_weight_and_no_configuration(model):
    for twin in (share_weights(model, pruning_strategy=None), share_as_vit(model)):
        own = {parameter.data_ptr() for parameter in model.parameters()}
        assert {parameter.data_ptr() for parameter in twin.parameters()} <= own
        assert not any(parameter.is_meta for parameter in twin.parameters())
        assert not twin.training
    assert model.config.pruning_strategy == "background"


@torch.inference_mode()
def test_class_token_logits_equal_those_of_the_vit_of_transformers(model):
    pixel_values = torch.randn(2, 3, 32, 32)
    unpruned = share_weights(model, pruning_strategy=None)
    torch.testing.assert_close(share_as_vit(model)(pixel_values).logits, unpruned(pixel_values).cls_logits)


def test_every_repeat_takes_every_measurement_once_in_a_shuffled_order():
    calls = []

    def measure(name, repeat):
        calls.append((repeat, name))
        return float(repeat)

    values = interleave({name: partial(measure, name) for name in "abcd"}, num_repeats=6, num_warmups=2)
    assert values == {name: [0.0, 1.0, 2.0, 3.0, 4.0, 5.0] for name in "abcd"}
    orders = ["".join(name for _, name in calls[start : start + 4]) for start in range(0, 32, 4)]
    assert all(sorted(order) == list("abcd") for order in orders)
    assert len(set(orders)) > 2


def test_a_spread_is_median_and_quartiles():
    spread = summarize_spread([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (spread.low, spread.median, spread.high) == (2.0, 3.0, 4.0)
    assert summarize_spread([7.0]).high == 7.0


class FakeFast(torch.nn.Module):
    """An "optimized" model: the same one, which names what it would be."""

    def __init__(self, model, backend, precision):
        super().__init__()
        self.model, self.dtype = model, torch.float32
        precision = "float32" if precision == "auto" else precision
        self.optimization = SimpleNamespace(backend=backend, precision=precision, reason="for a test")

    def forward(self, pixel_values):
        return self.model(pixel_values)


def optimize_nothing(model, backend="auto", precision="auto", num_threads=None, calibration_images=None):
    # scales fixed on images are OpenVINO's alone
    assert (calibration_images is not None) == ((backend, precision) == ("openvino", "int8"))
    return FakeFast(model, backend, precision)


@pytest.fixture(autouse=True)
def small_peak(monkeypatch):
    monkeypatch.setattr("transformers_ice.speed.peak._SIDES", {"cpu": 64})


def test_measured_rows_survive_a_file_and_leave_the_model_alone(model, tmp_path):
    state, config = {name: tensor.clone() for name, tensor in model.state_dict().items()}, model.config.to_dict()
    variants = build_variants(model, [0.5])
    # all but background: its numbers are prescribed, which only PyTorch's own model follows
    variants += optimize_variants(variants[:-1], ["a", "b:int8"], optimize_nothing)
    rows = measure_speed(
        variants, build_workload(model), 3, TimingPlan(num_repeats=2, num_warmups=1, images_per_repeat=6)
    )
    by_name = {row.variant: row for row in rows}
    assert by_name[REFERENCE].speedup.median == by_name[REFERENCE].ideal_speedup == 1.0
    assert max(by_name[name].gmacs for name in ("top_k 0.5", BACKGROUND)) < by_name[REFERENCE].gmacs
    assert by_name["top_k 0.5, b int8"].gmacs == by_name["top_k 0.5"].gmacs
    assert "ViT (transformers), a" not in by_name
    assert all(len(row.seconds) == 2 and row.seconds[0] > 0 for row in rows)
    assert all((row.counted_gmacs is None) == row.variant.endswith((", a", ", b int8")) for row in rows)
    write_results(tmp_path / "results.json", rows, settings={"seed": 0})
    written = json.loads((tmp_path / "results.json").read_text())
    assert written == {"settings": {"seed": 0}, "rows": [asdict(row) for row in rows]}
    assert all(row.variant in speed_table(rows) for row in rows)
    assert model.config.to_dict() == config
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_fraction_of_the_peak_is_that_of_the_product_of_the_same_repeat(model, monkeypatch):
    # one product of 64 x 64 matrices a millisecond, and every image a second
    monkeypatch.setattr("transformers_ice.speed.peak.time_call", lambda call, device: 1e-3)
    monkeypatch.setattr("transformers_ice.speed.speed.time_call", lambda call, device: 1.0)
    variants = build_variants(model, [])
    variants += optimize_variants(variants[1:2], ["b:int8"], optimize_nothing)
    *rows, quantized = measure_speed(variants, build_workload(model), 1, TimingPlan(3, 0, images_per_repeat=1))
    for row in rows:
        assert row.peak_gflops.median == pytest.approx(2 * 64**3 / 1e-3 / 1e9)
        assert row.of_peak == pytest.approx(2 * row.gmacs / row.peak_gflops.median)
    assert quantized.precision == "int8"
    assert quantized.peak_gflops is quantized.of_peak is None


def test_an_emulated_number_type_is_refused_and_a_fast_one_is_not(monkeypatch):
    device = torch.device("cpu")
    seconds = {torch.float32: 1e-3, torch.bfloat16: 60e-3, torch.float16: 2e-3}
    monkeypatch.setattr("transformers_ice.speed.peak._probe_seconds", lambda dtype, device: seconds[dtype])
    check_dtypes(["float32", "float16"], device)
    with pytest.raises(ValueError, match="only emulates bfloat16: a matrix product takes 60 times as long"):
        check_dtypes(["float32", "bfloat16"], device)


def test_peak_products_compute_what_they_are_timed_for():
    first, second = _square_matrices(64, torch.float32, torch.device("cpu"))
    assert first.shape == second.shape == (64, 64)
    assert peak_measure(torch.float32, torch.device("cpu"))(0) > 0
    assert peak_flops(0.5, torch.device("cpu")) == 2 * 64**3 / 0.5


def test_batches_go_round_the_images():
    workload = Workload(torch.arange(5.0), {"a": torch.arange(5)})
    batch = workload.batch(start=8, batch_size=4)
    assert batch.pixel_values.tolist() == [3, 4, 0, 1]
    assert batch.keep_counts["a"].tolist() == [3, 4, 0, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [({"b": 0.5}, "some of the variants a"), ({"a": 79.8}, "must be in"), ([0.5], "some of"), ({}, "some of")],
)
def test_accuracies_that_fit_no_variant_are_refused(tmp_path, content, message):
    (tmp_path / "accuracies.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_accuracies(tmp_path / "accuracies.json", ["a"])


def test_a_speed_plot_has_a_point_for_each_model():
    figure = speed_plot({"batch size 1": {"a": (10.0, 0.7), "b": (20.0, 0.6)}, "batch size 8": {"a": (12.0, 0.7)}})
    assert [len(axis.collections) for axis in figure.axes] == [2, 1]
    with pytest.raises(ValueError, match="at least one model"):
        speed_plot({"batch size 1": {}})


TINY = ",".join(f"{name}={value}" for name, value in {**SIZES, "pruning_layers": LAYERS}.items())
QUICK = ("--num_images", 3, "--num_repeats", 1, "--num_warmups", 0, "--images_per_repeat", 2, "--device", "cpu")


def benchmark(*words):
    return run_benchmark.main([*map(str, (*QUICK, *words))])


@pytest.fixture
def emulated_allowed(monkeypatch):
    """Let the models of the tests run in any number type on any processor: they are tiny."""
    monkeypatch.setattr(run_benchmark, "check_dtypes", lambda names, device: None)


@pytest.mark.usefixtures("emulated_allowed")
def test_the_script_prints_a_table_and_writes_numbers_and_a_picture(tmp_path, capsys):
    (tmp_path / "accuracies.json").write_text(json.dumps({REFERENCE: 0.8, BACKGROUND: 0.79}))
    words = ("--config_overrides", TINY, "--keep_beta", 0.5, 0.2, "--batch_sizes", 1, 3, "--output_dir", tmp_path)
    assert benchmark(*words, "--accuracies", tmp_path / "accuracies.json", "--dtype", "bfloat16") == 0
    printed = capsys.readouterr().out
    for word in ("Batch size 3", "ViT (transformers)", "attentiveness 0.5", "threads: ", "dtype: bfloat16"):
        assert word in printed
    report = json.loads((tmp_path / "results.json").read_text())
    assert report["settings"]["keep_beta"] == [0.5, 0.2]
    assert report["config"]["hidden_size"] == 48
    assert report["machine"]["torch"] == torch.__version__
    assert len(report["rows"]) == 14
    with Image.open(tmp_path / "speed.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 5


def test_the_script_runs_a_checkpoint_on_scenes_and_on_a_folder(model, tmp_path, capsys):
    torch.nn.init.ones_(model.deit.pruning_heads["1"].score.bias)
    torch.nn.init.zeros_(model.deit.pruning_heads["1"].score.weight)  # every patch is background
    model.save_pretrained(tmp_path / "model")
    IceDeiTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "model")
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    for name, size in (("a.png", (40, 30)), ("deep/b.jpg", (20, 20))):
        Image.new("RGB", size, "red").save(tmp_path / "photos" / name)
    words = ("--model_name_or_path", tmp_path / "model", "--output_dir", tmp_path / "out", "--batch_sizes", 2)
    for source, count in (("--dataset_name scenes", 3), (f"--data_dir {tmp_path / 'photos'}", 2)):
        assert benchmark(*words, *source.split(" ", 1)) == 0
        report = json.loads((tmp_path / "out/results.json").read_text())
        assert report["settings"]["num_images"] == count
        assert report["rows"][-1]["variant"] == BACKGROUND
        assert report["rows"][-1]["tokens_per_layer"] == [65, 2, 2, 2, 2]


@pytest.mark.usefixtures("emulated_allowed")
def test_number_types_and_optimized_models_take_turns_in_one_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run_benchmark, "optimize_for_inference", optimize_nothing)
    words = ("--config_overrides", TINY, "--keep_beta", 0.5, 0.2, "--batch_sizes", 2, "--output_dir", tmp_path)
    assert benchmark(*words, "--dtype", "float32", "bfloat16", "--optimized", "auto", "openvino:int8") == 0
    rows = {row["variant"]: row for row in json.loads((tmp_path / "results.json").read_text())["rows"]}
    plain = [
        "ViT (transformers)",
        REFERENCE,
        "top_k 0.7",
        "top_k 0.5",
        "attentiveness 0.7",
        "attentiveness 0.5",
        BACKGROUND,
    ]
    optimized = [f"{name}, {choice}" for name in plain[1:-1] for choice in ("auto", "openvino int8")]
    assert list(rows) == [*plain, *(f"{name}, bfloat16" for name in plain), *optimized]
    assert {rows[name]["precision"] for name in plain} == {"float32"}
    assert rows["background, bfloat16"]["precision"] == "bfloat16"
    assert rows["background, bfloat16"]["tokens_per_layer"] == rows["background"]["tokens_per_layer"]
    printed = capsys.readouterr().out
    assert "top_k 0.5, openvino int8: openvino, int8: for a test" in printed
    assert "Not optimized: background" in printed


def test_several_files_of_numbers_are_timed_side_by_side(tmp_path):
    for name, share in (("many", 0.75), ("few", 0.25)):
        (tmp_path / f"{name}.json").write_text(json.dumps([[share] * len(LAYERS)]))
    files = [tmp_path / "many.json", tmp_path / "few.json"]
    words = ("--config_overrides", TINY, "--batch_sizes", 2, "--output_dir", tmp_path / "out")
    assert benchmark(*words, "--keep_counts", *files) == 0
    rows = {row["variant"]: row for row in json.loads((tmp_path / "out/results.json").read_text())["rows"]}
    assert BACKGROUND not in rows
    assert rows["many"]["gmacs"] > rows["few"]["gmacs"]
    assert rows["few"]["tokens_per_layer"][-1] < rows["many"]["tokens_per_layer"][-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "cannot recognize background"),
        (("--keep_beta", 0.5, 0.9), "`keep_beta` must be a mean"),
        (("--keep_counts", "/nowhere.json"), "/nowhere.json must hold"),
        (("--keep_beta", 0.5, 0.2, "--keep_rates", 1.5), "`keep_rates` must be one number in"),
        (("--keep_beta", 0.5, 0.2, "--data_dir", "/nowhere"), "holds none"),
        (("--keep_beta", 0.5, 0.2, "--device", "tpu"), "--device must be"),
        (("--keep_beta", 0.5, 0.2, "--config_overrides", "hidden=3"), "no configuration field hidden"),
        (("--keep_beta", 0.5, 0.2, "--accuracies", "/nowhere.json"), "/nowhere.json must hold"),
        (("--model_name_or_path", "/nowhere"), "/nowhere"),
    ],
)
def test_mistakes_end_cleanly_and_say_what_is_possible(tmp_path, capsys, words, message):
    assert benchmark("--config_overrides", TINY, "--output_dir", tmp_path, *words) == 1
    error = capsys.readouterr().err
    assert error.startswith("Error: ")
    assert message in error


def test_strategies_whose_heads_a_model_lacks_are_left_out_and_named(tmp_path, capsys):
    build_model(pruning_strategy=None).save_pretrained(tmp_path / "model")
    IceDeiTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "model")
    words = ("--model_name_or_path", tmp_path / "model", "--output_dir", tmp_path, "--batch_sizes", 1)
    assert benchmark(*words, "--dataset_name", "scenes") == 0
    assert "Left out: background, top_k: the model has no trained pruning heads" in capsys.readouterr().out
    names = [row["variant"] for row in json.loads((tmp_path / "results.json").read_text())["rows"]]
    assert names == ["ViT (transformers)", REFERENCE, "attentiveness 0.7", "attentiveness 0.5"]
    assert benchmark(*words, "--keep_beta", 0.5, 0.1) == 0
    printed = capsys.readouterr().out
    assert "Left out" not in printed
    assert "top_k 0.5" in printed


@pytest.mark.parametrize(
    "words",
    [
        ("--num_repeats", "0"),
        ("--num_warmups", "-1"),
        ("--batch_sizes", "0"),
        ("--keep_beta", "0.5"),
        ("--keep_rates", "0.5", "0.5"),
        ("--keep_counts", "a/x.json", "b/x.json"),
        ("--dataset_name", "scenes", "--data_dir", "x"),
        ("--keep_rate", "0.5"),
        ("--dtype", "float64"),
        ("--dtype", "float32", "float32"),
        ("--optimized", "auto", "auto"),
        ("--optimized", "auto", "--dtype", "bfloat16"),
        ("--external", "dynamicvit=x"),
        ("--external", "evit"),
        ("--external", "evit=a", "evit=b"),
    ],
)
def test_wrong_options_end_with_usage(capsys, words):
    with pytest.raises(SystemExit) as stop:
        run_benchmark.main(list(words))
    assert stop.value.code == 2
    assert "usage" in capsys.readouterr().err


@pytest.mark.slow
def test_freed_memory_is_kept_where_the_c_library_lets_it():
    # in a process of its own: it cannot be undone
    code = """
import resource, sys, torch
from transformers_ice.speed import keep_freed_memory

is_kept = keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(64 * 2**20, dtype=torch.uint8)  # made, filled and freed
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(is_kept, *(faults() for _ in range(8)))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    if out[0] == "False":
        pytest.skip("the allocator is not that of the GNU C library")
    # 64 MiB are 16,384 pages; the heap grows once or twice, then the same memory serves
    assert sum(int(count) for count in out[1:]) < 4 * 16384


def test_elsewhere_freed_memory_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False
