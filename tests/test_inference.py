# SPDX-License-Identifier: Apache-2.0
"""An optimized model answers as the model it was made from, and says plainly what it cannot do."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import pickle
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import randomize
from filelock import FileLock
from PIL import Image
from transformers import pipeline
from warm_python import WarmPython

import transformers_ice
from transformers_ice import IceDeiTConfig, IceDeiTForImageClassification, IceDeiTForSemanticSegmentation, hardware
from transformers_ice.app.analysis import explain_image, load_model, prepare_image
from transformers_ice.cli import explain as explain_script
from transformers_ice.cli import image_files
from transformers_ice.ice_deit.image_processing_ice_deit import IceDeiTImageProcessor
from transformers_ice.inference import (
    OnnxModel,
    choose_optimization,
    onnx_cache,
    onnx_file,
    optimization,
    optimize_for_inference,
    quantize_int8,
    write_onnx,
)
from transformers_ice.inference.sessions import open_session
from transformers_ice.inference.smoothing import linear_maps, smooth_activations


SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 1,  # each adds seconds to an export
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 3,
}
STRATEGIES = {
    "unpruned": {},
    "background": {"num_hidden_layers": 2, "pruning_strategy": "background", "pruning_layers": [1]},
}
TOLERANCE = 1e-5
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def plain_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test sees a processor without bfloat16, whatever it runs on."""
    monkeypatch.setattr(optimization, "has_fast_bfloat16", lambda: False)


def build(model_class: type = IceDeiTForImageClassification, **fields) -> IceDeiTForImageClassification:
    model = model_class(IceDeiTConfig(**{**SIZES, **fields})).eval()
    randomize(model, 0)
    return model


def noise(count: int = 3, height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # which the workers share: an export takes seconds
    return folder / "exported"


@pytest.fixture(scope="session")
def optimized(cache_dir: Path):
    """Return `optimized(model, ...)`: as `optimize_for_inference`, every file exported once by all tests."""

    def make(model, **options):
        with FileLock(f"{cache_dir}.lock"):
            return optimize_for_inference(model, cache_dir=cache_dir, **options)

    return make


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_all_outputs_are_those_of_the_model(optimized, backend: str, strategy: str):
    model = build(**STRATEGIES[strategy])
    fast = optimized(model, backend=backend)
    for batch_size in (1, 3):
        with torch.no_grad():
            expected, got = model(noise(batch_size)), fast(noise(batch_size))
        assert list(got) == list(expected)
        for name in expected:
            torch.testing.assert_close(got[name], expected[name], atol=TOLERANCE, rtol=0, msg=name)
    assert (fast.optimization.backend, fast.optimization.precision) == (backend, "float32")
    if strategy == "background":
        assert len(got.patch_exit_layer.unique()) > 1, "some patches should have left"


def test_outputs_of_several_labels_carry_their_thresholds(optimized):
    thresholds = [0.3, 0.5, 0.6]
    model = build(problem_type="multi_label_classification", object_thresholds=thresholds)
    with torch.no_grad():
        expected, got = model(noise(2)), optimized(model)(noise(2))
    assert list(got) == list(expected)
    assert torch.equal(got.object_thresholds, torch.tensor([thresholds] * 2))


def test_a_segmentation_model_returns_its_map(optimized):
    model = build(IceDeiTForSemanticSegmentation)
    with torch.no_grad():
        expected, got = model(noise(2)), optimized(model)(noise(2))
    assert got.logits.shape == (2, 4, 4, 4)
    torch.testing.assert_close(got.logits, expected.logits, atol=TOLERANCE, rtol=0)


def test_weights_of_8_bits_change_logits_a_little(optimized):
    model = build()
    fast = optimized(model, precision="int8")
    with torch.no_grad():
        expected, got = model(noise()), fast(noise())
    difference = (got.patch_logits - expected.patch_logits).abs().max()
    assert 1e-5 < difference < 0.1 * expected.patch_logits.abs().max()
    assert fast.optimization.precision == "int8"


@pytest.mark.skipif(not hardware.has_fast_bfloat16(), reason="this processor has no bfloat16")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_in_bfloat16_outputs_are_close_to_those_of_the_model(optimized, monkeypatch, strategy: str):
    monkeypatch.setattr(optimization, "has_fast_bfloat16", hardware.has_fast_bfloat16)
    model = build(**STRATEGIES[strategy])
    fast = optimized(model)
    assert (fast.optimization.backend, fast.optimization.precision) == ("openvino", "bfloat16")
    with torch.no_grad():
        expected, got = model(noise()).cls_logits, fast(noise()).cls_logits
    assert 1e-5 < (got - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_calibrated_on_images_openvino_multiplies_in_8_bits(optimized, strategy: str):
    model = build(**STRATEGIES[strategy])
    fast = optimized(model, precision="int8", calibration_images=noise(12))
    assert (fast.optimization.backend, fast.optimization.precision) == ("openvino", "int8")
    for batch_size in (1, 3):
        with torch.no_grad():
            expected, got = model(noise(batch_size)), fast(noise(batch_size))
        assert list(got) == list(expected)
        difference = (got.cls_logits - expected.cls_logits).abs().max()
        assert 1e-5 < difference < 0.2 * expected.cls_logits.abs().max()


@pytest.mark.parametrize("pruning_head", ["gate", "patch"])
def test_images_that_decide_are_pruned_twice_in_8_bits(optimized, pruning_head: str):
    """OpenVINO refuses some graphs that change the shape of a product of 8 bits; what is rounded decides otherwise."""
    model = build(num_hidden_layers=3, pruning_strategy="background", pruning_layers=[1, 2], pruning_head=pruning_head)
    fast = optimized(model, precision="int8", calibration_images=noise(12))
    for batch_size in (1, 3):
        got = fast(noise(batch_size))
        assert got.patch_logits.shape == (batch_size, 16, 4)
        assert got.patch_logits.isfinite().all()
        assert set(got.patch_exit_layer.flatten().tolist()) <= {1, 2, 3}


def test_smoothing_evens_out_the_activations_and_changes_no_output(tmp_path: Path, monkeypatch):
    model, images = build(num_hidden_layers=2), noise(6)
    with torch.no_grad():
        model.deit.layers[1].layernorm_before.weight[3] = 100.0  # a channel far larger than the others, as DINOv2's
    file = write_onnx(model, tmp_path / "plain.onnx", (32, 32), output_names=["cls_logits", "patch_logits"])
    graph = onnx.load(file)
    before = len(linear_maps(graph))
    smooth_activations(onnx, onnxruntime, graph, [images.numpy()])
    assert len(linear_maps(graph)) == before == 2 * 6 + 2
    onnx.save(graph, tmp_path / "smooth.onnx")
    plain, smooth = (open_session(tmp_path / name) for name in ("plain.onnx", "smooth.onnx"))
    names = ["cls_logits", "patch_logits"]
    for first, second in zip(plain(images.numpy(), names), smooth(images.numpy(), names), strict=True):
        np.testing.assert_allclose(second, first, atol=1e-4)
    expected, errors = plain(images.numpy(), names)[0], []
    for smooth_or_not in (smooth_activations, lambda *_: None):
        monkeypatch.setattr(onnx_file, "smooth_activations", smooth_or_not)
        rounded = open_session(quantize_int8(file, tmp_path / "rounded.onnx", images))
        errors.append(np.abs(rounded(images.numpy(), names)[0] - expected).mean())
    assert errors[0] < 0.7 * errors[1], "in 8 bits the other channels lose steps to the large one"


def test_the_scales_of_activations_are_those_of_the_calibration_images(tmp_path: Path):
    model, images, found = build(), [noise(4), 3 * noise(4), None], {}
    for calibration_images in images:
        with onnx_cache.exported_file(model, (32, 32), ["logits"], True, tmp_path, calibration_images) as file:
            tensors = onnx.load(file).graph.initializer
            # of weights there is one scale for each output channel
            found[file.name] = [entry.float_data[0] for entry in tensors if entry.name.endswith("_scale")]
    assert len(found) == 3, "files of other images, or none, are others"
    small, large, without = (torch.tensor(scales) for scales in found.values())
    assert len(small) == len(large) > len(without)
    assert (small != large).any()


def test_an_exported_file_is_found_again(optimized, monkeypatch: pytest.MonkeyPatch):
    model = build()
    optimized(model)
    monkeypatch.setattr(onnx_cache, "write_onnx", lambda *_, **__: pytest.fail("it is exported already"))
    optimized(build())
    with torch.no_grad():
        model.classifier.bias += 1
    with pytest.raises(pytest.fail.Exception, match="exported already"):
        optimized(model)
    with pytest.raises(pytest.fail.Exception, match="exported already"):
        optimized(build(layer_norm_eps=1e-3))
    with pytest.raises(pytest.fail.Exception, match="exported already"):
        optimized(build(), image_size=24)


def test_a_damaged_file_of_the_cache_is_exported_again(optimized, cache_dir: Path, tmp_path: Path):
    model = build()
    optimized(model)
    (whole,) = (file for file in cache_dir.glob("*.onnx") if file.name == f"{_fingerprint(model)}.onnx")
    damaged = tmp_path / whole.name
    damaged.write_bytes(whole.read_bytes()[:1000])
    eight_bits = optimize_for_inference(model, precision="int8", cache_dir=tmp_path)
    assert eight_bits(noise(1)).logits.shape == (1, 3)
    fast = optimize_for_inference(model, cache_dir=tmp_path)
    assert fast(noise(1)).logits.shape == (1, 3)
    assert damaged.stat().st_size == whole.stat().st_size


def _fingerprint(model) -> str:
    from transformers_ice.inference.runners import RUN_OUTPUTS

    return onnx_cache._fingerprint(model, (32, 32), RUN_OUTPUTS)


def test_without_a_folder_to_write_to_the_model_is_exported_for_this_process(tmp_path: Path, caplog):
    (tmp_path / "file").write_text("no folder")
    fast = optimize_for_inference(build(), cache_dir=tmp_path / "file")
    assert fast(noise(1)).logits.shape == (1, 3)
    assert "cannot be written" in caplog.text


def test_the_cache_of_the_hub_is_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(onnx_cache.constants, "HF_HOME", str(tmp_path))
    monkeypatch.setattr(onnx_cache, "write_onnx", lambda model, file, *_, **__: file)
    with onnx_cache.exported_file(build(), (32, 32), ["logits"]) as file:
        assert file.parent == tmp_path / "transformers-ice"


def test_the_model_itself_answers_labels_options_and_other_sizes(optimized, caplog):
    model = build()
    fast = optimized(model)
    labels = torch.tensor([0, 2, 1])
    with torch.no_grad():
        torch.testing.assert_close(fast(noise(), labels=labels).loss, model(noise(), labels=labels).loss)
        assert len(fast(noise(), output_hidden_states=True).hidden_states) == 2
        large = noise(2, 48, 40)
        torch.testing.assert_close(fast(large).patch_logits, model(large).patch_logits)
    assert "48 x 40" in caplog.text
    assert isinstance(fast(noise(), return_dict=False), tuple)


def test_the_model_that_is_given_stays_as_it_is(optimized):
    model = build(**STRATEGIES["background"]).train()
    fast = optimized(model)
    assert model.training
    assert "forward" not in vars(model)
    assert not hasattr(model, "optimization")
    fast.config.background_margin = 5.0
    assert model.config.background_margin != 5.0
    assert next(fast.parameters()) is next(model.parameters())


def test_an_optimized_model_refuses_what_it_cannot_do(optimized):
    fast = optimized(build())
    with pytest.raises(ValueError, match="cannot be trained"):
        fast.train()(noise())
    fast.eval()
    with pytest.raises(ValueError, match="cannot be copied"):
        copy.deepcopy(fast)
    with pytest.raises((TypeError, ValueError)):
        pickle.dumps(fast)
    with pytest.raises(ValueError, match="optimized already"):
        optimize_for_inference(fast)
    for wrong in (torch.zeros(0, 3, 32, 32), torch.zeros(1, 1, 32, 32), torch.zeros(1, 3, 30, 32), None):
        with pytest.raises(ValueError, match=r"pixel_values|multiple"):
            fast(wrong)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "tensorrt"}, "`backend` must be one of auto, onnxruntime, openvino, torch, got 'tensorrt'"),
        ({"precision": "fp16"}, "`precision` must be one of"),
        ({"backend": "torch", "precision": "int8"}, "offered by onnxruntime"),
        ({"backend": "openvino", "precision": "int8"}, "`calibration_images` are missing"),
        ({"calibration_images": torch.zeros(2, 3, 32, 32)}, 'are for precision="int8"'),
        (
            {"precision": "int8", "backend": "onnxruntime", "calibration_images": torch.zeros(2, 3, 32, 32)},
            "'int8' and 'onnxruntime'",
        ),
        ({"precision": "int8", "calibration_images": torch.zeros(2, 3, 16, 32)}, r"\(num_images, 3, 32, 32\)"),
        ({"precision": "int8", "calibration_images": torch.zeros(0, 3, 32, 32)}, "at least one image"),
        ({"precision": "int8", "calibration_images": torch.zeros(2, 1, 32, 32)}, r"\(num_images, 3, 32, 32\)"),
        ({"precision": "int8", "calibration_images": torch.full((2, 3, 32, 32), torch.nan)}, "must be finite"),
        ({"num_threads": 0}, "`num_threads` must be at least 1, got 0"),
        ({"image_size": 30}, "multiple of the patch size"),
    ],
)
def test_wrong_options_are_named(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        optimize_for_inference(build(), **options)


def test_models_that_cannot_be_exported_are_refused():
    with pytest.raises(ValueError, match="float32"):
        optimize_for_inference(build().to(torch.bfloat16))
    with pytest.raises(ValueError, match="IceDeiTForImageClassification"):
        optimize_for_inference(build().deit)


@pytest.mark.parametrize(
    ("bfloat16", "installed", "compiler", "asked", "expected"),
    [
        (False, {"onnxruntime", "openvino"}, True, ("auto", "auto"), ("onnxruntime", "float32")),
        (False, {"openvino"}, True, ("auto", "auto"), ("openvino", "float32")),
        (False, set(), True, ("auto", "auto"), ("torch", "float32")),
        (False, set(), False, ("auto", "auto"), ("eager", "float32")),
        (True, {"onnxruntime", "openvino"}, True, ("auto", "auto"), ("openvino", "bfloat16")),
        (True, {"onnxruntime"}, True, ("auto", "auto"), ("torch", "bfloat16")),
        (True, {"onnxruntime", "openvino"}, False, ("auto", "auto"), ("openvino", "bfloat16")),
        (True, {"onnxruntime"}, False, ("auto", "auto"), ("onnxruntime", "float32")),
        (True, {"onnxruntime"}, True, ("auto", "float32"), ("onnxruntime", "float32")),
        (True, {"onnxruntime", "openvino"}, True, ("auto", "float32"), ("openvino", "float32")),
        (True, {"onnxruntime"}, True, ("onnxruntime", "auto"), ("onnxruntime", "float32")),
        (True, {"onnxruntime", "openvino"}, True, ("openvino", "auto"), ("openvino", "bfloat16")),
        (False, {"onnxruntime"}, False, ("auto", "int8"), ("onnxruntime", "int8")),
        (False, set(), True, ("auto", "int8"), "pip install"),
        (False, {"onnxruntime"}, True, ("openvino", "auto"), "needs openvino"),
        (False, {"onnxruntime"}, True, ("torch", "bfloat16"), "no instructions"),
        (False, set(), False, ("torch", "auto"), r"C\+\+ compiler"),
    ],
)
def test_the_choice_follows_the_machine(
    monkeypatch: pytest.MonkeyPatch, bfloat16: bool, installed: set, compiler: bool, asked: tuple, expected
):
    monkeypatch.setattr(optimization, "has_fast_bfloat16", lambda: bfloat16)
    monkeypatch.setattr(optimization, "has_compiler", lambda: compiler)
    there = {*installed, "onnx", "onnxscript"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "found" if name in there else None)
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            choose_optimization(CPU, *asked)
        return
    chosen = choose_optimization(CPU, *asked)
    assert (chosen.backend, chosen.precision) == expected
    assert chosen.reason


def test_the_runtimes_of_a_cpu_refuse_another_device():
    with pytest.raises(ValueError, match=r"model.to\(.cpu.\)"):
        choose_optimization(torch.device("cuda"), "onnxruntime")


def test_where_nothing_is_installed_the_model_runs_as_it_is(monkeypatch: pytest.MonkeyPatch, caplog):
    monkeypatch.setattr(optimization, "_missing", lambda *_: "something")
    model = build()
    fast = optimize_for_inference(model)
    assert torch.equal(fast(noise()).logits, model(noise()).logits)
    assert "pip install" in caplog.text


@pytest.mark.slow
def test_a_compiled_model_answers_alike_at_one_image_and_at_any_batch():
    model = build(**STRATEGIES["background"])
    fast = optimize_for_inference(model, backend="torch", precision="float32")
    for batch_size in (1, 2, 5):
        with torch.no_grad():
            expected, got = model(noise(batch_size)), fast(noise(batch_size))
        for name in expected:
            torch.testing.assert_close(got[name], expected[name], atol=TOLERANCE, rtol=0, msg=name)


def test_bfloat16_is_fast_where_the_processor_has_an_instruction_for_it(monkeypatch: pytest.MonkeyPatch):
    for avx512, amx in ((False, False), (True, False), (False, True)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda value=avx512: value, raising=False)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda value=amx: value, raising=False)
        assert hardware.has_fast_bfloat16() is (avx512 or amx)
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert hardware.has_fast_bfloat16(), "an older torch may have one of the two"


def test_a_compiler_is_found_by_its_name_or_by_cxx(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert not hardware.has_compiler()
    (tmp_path / "my-compiler").write_text("")
    (tmp_path / "my-compiler").chmod(0o755)
    monkeypatch.setenv("CXX", "my-compiler")
    assert hardware.has_compiler()


def test_a_file_runs_by_either_runtime(optimized, cache_dir: Path):
    model = build()
    optimized(model)
    file = cache_dir / f"{_fingerprint(model)}.onnx"
    by_each = [OnnxModel(file, runtime)(noise()) for runtime in ("onnxruntime", "openvino")]
    for name, value in by_each[0].items():
        torch.testing.assert_close(torch.from_numpy(by_each[1][name]), torch.from_numpy(value), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="`runtime` must be one of"):
        OnnxModel(file, "tensorrt")
    broken = cache_dir / "broken.onnx"
    broken.write_text("no model")
    for runtime in ("onnxruntime", "openvino"):
        with pytest.raises(ValueError, match="no ONNX file that can be run"):
            OnnxModel(broken, runtime)


# a signal after two models by OpenVINO are freed, the one opened first before the other
HANDLE_A_SIGNAL = """
import signal, sys
import numpy as np
from transformers_ice.inference.sessions import open_session

handled = []
signal.signal(signal.SIGUSR1, lambda *_: handled.append(True))
first, second = (open_session(sys.argv[1], "openvino") for _ in range(2))
second(np.zeros((1, 3, 32, 32), np.float32), ["logits"])
del first
del second
signal.raise_signal(signal.SIGUSR1)
print("handled", handled)
"""


def test_signals_are_handled_after_models_are_freed(optimized, cache_dir: Path, warm_python: WarmPython):
    model = build()
    optimized(model)
    words = [warm_python.python, "-c", HANDLE_A_SIGNAL, cache_dir / f"{_fingerprint(model)}.onnx"]
    result = subprocess.run(words, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "handled [True]\n"), result.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    build().save_pretrained(folder)
    IceDeiTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = (noise(1, 60, 90)[0].permute(1, 2, 0).sigmoid() * 255).byte().numpy()
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_pipelines_take_an_optimized_model(optimized, folder: Path, photo: Path):
    model = IceDeiTForImageClassification.from_pretrained(folder)
    fast = optimized(model)
    for task, chosen in (
        ("image-classification", None),
        ("patch-explanation", transformers_ice.PatchExplanationPipeline),
    ):
        slow_answer, fast_answer = (
            pipeline(task, model=one, image_processor=str(folder), pipeline_class=chosen)(str(photo))
            for one in (model, fast)
        )
        if task == "image-classification":
            assert [row["label"] for row in fast_answer] == [row["label"] for row in slow_answer]
        else:
            assert (fast_answer["mask"] == slow_answer["mask"]).all()
            assert fast_answer["box"] == slow_answer["box"]


def explain(photo: Path, folder: Path, output_dir: Path, *options: str) -> tuple[int, list[dict]]:
    code = explain_script.main([str(photo), "--model", str(folder), "--output_dir", str(output_dir), *options])
    lines = output_dir / "explanations.jsonl"
    return code, [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []


def test_explain_says_by_what_a_fast_model_runs(
    optimized, cache_dir: Path, folder: Path, photo: Path, tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.setattr(explain_script, "optimize_for_inference", optimized)
    slow_code, slow = explain(photo, folder, tmp_path / "slow")
    fast_code, fast = explain(photo, folder, tmp_path / "fast", "--fast")
    assert (slow_code, fast_code) == (0, 0)
    assert "The model runs by onnxruntime in float32" in capsys.readouterr().err
    changes = {"score", "output"}
    assert [{k: v for k, v in line.items() if k not in changes} for line in fast] == [
        {k: v for k, v in line.items() if k not in changes} for line in slow
    ]


def test_explain_refuses_a_precision_without_fast_and_a_fast_relevance_map(
    folder: Path, photo: Path, tmp_path: Path, capsys
):
    with pytest.raises(SystemExit) as stop:
        explain(photo, folder, tmp_path / "out", "--precision", "int8")
    assert stop.value.code == 2
    assert explain(photo, folder, tmp_path / "out", "--fast", "--method", "rollout")[0] == 1
    assert "--fast runs ICE's own explanation" in capsys.readouterr().err


def test_explain_fixes_the_scales_of_8_bits_on_images_of_a_folder(
    optimized, folder: Path, photo: Path, tmp_path: Path, monkeypatch, capsys
):
    given = []

    def record(model, **options):
        given.append(options["calibration_images"])
        return optimized(model, **options)

    monkeypatch.setattr(explain_script, "optimize_for_inference", record)
    (tmp_path / "like/those").mkdir(parents=True)
    for number in range(5):
        Image.new("RGB", (50, 40), (50 * number, 100, 0)).save(tmp_path / f"like/those/{number}.png")
    words = ("--fast", "--precision", "int8", "--calibration_dir", str(tmp_path / "like"))
    code, lines = explain(photo, folder, tmp_path / "out", *words)
    assert (code, len(lines)) == (0, 1)
    assert "The model runs by openvino in int8" in capsys.readouterr().err
    assert given[0].shape == (5, 3, 32, 32)
    monkeypatch.setattr(image_files, "_CALIBRATION_IMAGES", 2)
    explain(photo, folder, tmp_path / "out", *words)
    assert torch.equal(given[1], given[0][[0, 2]]), "evenly from all of the folder"
    for wrong, message in ((photo, "must be a folder of images"), (tmp_path / "out/empty", "No images found in")):
        (tmp_path / "out/empty").mkdir(exist_ok=True)
        assert explain(photo, folder, tmp_path / "out", *words[:-1], str(wrong))[0] == 1
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        explain(photo, folder, tmp_path / "out", "--fast", *words[3:])
    assert "--calibration_dir needs --fast --precision int8" in capsys.readouterr().err


def test_the_app_explains_by_the_optimized_model(optimized, folder: Path, photo: Path, monkeypatch):
    from transformers_ice.app import analysis

    monkeypatch.setattr(analysis, "optimize_for_inference", optimized)
    loaded, plain = load_model(str(folder), is_fast=True), load_model(str(folder))
    assert plain.answering is plain.model
    assert loaded.answering.optimization.backend == "onnxruntime"
    image = Image.open(photo)
    first, second = (explain_image(one, prepare_image(one, image)) for one in (loaded, plain))
    assert first.box == second.box
    assert first.scores == pytest.approx(second.scores, abs=1e-5)
