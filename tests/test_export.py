# SPDX-License-Identifier: Apache-2.0
"""ONNX files say what the models say, at any batch size, and carry what a deployment has to know."""

from __future__ import annotations

import copy
import errno
import json
import logging
import os
import re
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import transformers
from conftest import randomize
from filelock import FileLock
from PIL import Image

from transformers_ice import IceDeiTConfig, IceDeiTForImageClassification, IceDeiTForSemanticSegmentation
from transformers_ice.cli import export as export_script
from transformers_ice.console import output_files
from transformers_ice.data.benchmarks.table_evaluation import TableEvaluation
from transformers_ice.data.scenes import SCENE_CLASSES, draw_scene, load_scenes
from transformers_ice.export import (
    OUTPUT_NAMES,
    OnnxDifferences,
    OnnxModel,
    compare_with_onnx,
    export_onnx,
    quantize_int8,
    score_exports,
)
from transformers_ice.ice_deit.image_processing_ice_deit import IceDeiTImageProcessor


SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,  # each adds seconds to an export
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
    "id2label": {0: "disc", 1: "square", 2: "star"},
    "label2id": {"disc": 0, "square": 1, "star": 2},
}
CUTS = {"pruning_layers": [1], "keep_rates": [0.6]}
TWO_CUTS = {"num_hidden_layers": 3, "pruning_layers": [1, 2], "keep_rates": [0.7, 0.6]}
STRATEGIES = {
    "unpruned": {},
    "top_k": {"pruning_strategy": "top_k", **CUTS},
    "background": {"pruning_strategy": "background", **CUTS},
    "attentiveness": {"pruning_strategy": "attentiveness", "fuse_pruned_tokens": True, **CUTS},
}
# float32 sums in another order; the logits of these models are of the order of 1
TOLERANCE = 1e-5


def build(seed: int = 0, **fields) -> IceDeiTForImageClassification:
    model = IceDeiTForImageClassification(IceDeiTConfig(**{**SIZES, **fields})).eval()
    randomize(model, seed)
    return model


def processor_of(height: int = 32, width: int = 32) -> IceDeiTImageProcessor:
    return IceDeiTImageProcessor(size={"height": height, "width": width}, image_mean=[0.4, 0.5, 0.6])


def noise(count: int = 8, height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.randn(count, 3, height, width)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory):
    """Return `exported(strategy) -> (model, file)`; each is written once and must not be changed."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # which the workers share: an export takes longer than all that is asked of its file

    def get(strategy: str) -> tuple[IceDeiTForImageClassification, Path]:
        model, file = build(**STRATEGIES[strategy]), folder / f"{strategy}.onnx"
        with FileLock(f"{file}.lock"):
            if not file.exists():
                transformers.set_seed(0)
                export_onnx(model, file, processor_of())
        return model, file

    return get


@pytest.mark.parametrize(
    "strategy",
    [
        "unpruned",
        "background",
        pytest.param("top_k", marks=pytest.mark.slow),
        "attentiveness",
    ],
)
def test_a_file_predicts_as_its_model_at_any_batch_size(exported, strategy: str):
    model, file = exported(strategy)
    exported_model = OnnxModel(file)
    for batch_size in (1, 3, 8):
        pixel_values = noise(batch_size)
        with torch.no_grad():
            expected = model(pixel_values)
        outputs = exported_model(pixel_values)
        assert tuple(outputs) == OUTPUT_NAMES
        for name in OUTPUT_NAMES:
            assert outputs[name].shape == tuple(expected[name].shape), name
            np.testing.assert_allclose(outputs[name], expected[name].numpy(), atol=TOLERANCE, rtol=0)
        assert outputs["patch_exit_layer"].dtype == np.int64
    if strategy != "unpruned":
        assert len(np.unique(outputs["patch_exit_layer"])) > 1, "some patches should have left"


def test_under_background_each_image_keeps_its_own_number_of_patches(exported):
    _, file = exported("background")
    exit_layers = OnnxModel(file)(noise())["patch_exit_layer"]
    assert len(np.unique((exit_layers == SIZES["num_hidden_layers"]).sum(axis=1))) > 1


def test_the_comparison_finds_a_model_equal_to_its_file_and_unequal_to_another(exported):
    model, file = exported("background")
    same = compare_with_onnx(model, file, noise())
    assert same.is_within(TOLERANCE)
    assert set(same.largest) == set(OUTPUT_NAMES) - {"patch_exit_layer"}
    assert same.top_1_agreement == 1.0
    other = compare_with_onnx(build(seed=1, **STRATEGIES["background"]), file, noise())
    assert not other.is_within(0.1)
    assert not other.exit_layers_agree


def test_nan_is_within_no_tolerance():
    assert not OnnxDifferences({"logits": float("nan")}, True, 1.0).is_within(1.0)
    assert not OnnxDifferences({"logits": 0.0}, False, 1.0).is_within(1.0)
    assert OnnxDifferences({"logits": 0.5}, True, 1.0).is_within(0.5)


def test_the_metadata_hold_classes_and_preprocessing(exported):
    _, file = exported("background")
    metadata = {entry.key: json.loads(entry.value) for entry in onnx.load(file).metadata_props}
    assert metadata == OnnxModel(file).metadata
    assert metadata["id2label"] == {"0": "disc", "1": "square", "2": "star"}
    assert metadata["background_index"] == 3
    assert (metadata["image_size"], metadata["grid_size"]) == ([32, 32], [4, 4])
    assert metadata["image_mean"] == [0.4, 0.5, 0.6]
    assert metadata["image_std"] == list(processor_of().image_std)
    assert metadata["size"] == {"height": 32, "width": 32}
    assert metadata["resample"] == int(processor_of().resample)
    assert metadata["pruning_strategy"] == "background"
    assert metadata["pruning_schedule"] == {"1": 1.0}  # each image keeps its own share
    assert metadata["num_hidden_layers"] == 2


def test_a_file_holds_no_paths_of_the_machine_it_was_made_on(exported):
    _, file = exported("background")
    assert str(Path(__file__).parents[1]).encode() not in file.read_bytes()
    assert b".py" not in file.read_bytes()


def test_a_model_comes_back_as_it_was_and_nothing_is_said(tmp_path: Path, capfd: pytest.CaptureFixture):
    model = build(num_hidden_layers=1).train()
    model.classifier.eval()
    model.name_or_path = str(tmp_path / "my-model")
    before = (
        copy.deepcopy(model.config.to_dict()),
        [module.training for module in model.modules()],
        {name: value.clone() for name, value in model.state_dict().items()},
        (logging.root.handlers[:], logging.root.level, logging.root.manager.disable),
    )
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        file = export_onnx(model, tmp_path / "new" / "folder" / "model.onnx", processor_of())
        quantize_int8(file, tmp_path / "int8.onnx")
    assert "".join(capfd.readouterr()) == ""
    assert model.config.to_dict() == before[0]
    assert [module.training for module in model.modules()] == before[1]
    torch.testing.assert_close(dict(model.state_dict()), before[2], rtol=0, atol=0)
    assert (logging.root.handlers[:], logging.root.level, logging.root.manager.disable) == before[3]
    assert OnnxModel(file).metadata["source"] == "my-model", "a path of this machine is nobody else's business"


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{}, {"num_register_tokens": 4, "interpolate_antialias": True}], ids=str)
def test_a_file_may_take_rectangles_of_another_size_than_the_model(tmp_path: Path, fields: dict):
    model = build(**STRATEGIES["top_k"], **fields)
    file = export_onnx(model, tmp_path / "wide.onnx", processor_of(16, 48), image_size=(16, 48), source="a/model")
    exported_model = OnnxModel(file)
    assert exported_model.image_size == (16, 48)
    assert exported_model.metadata["grid_size"] == [2, 6]
    assert exported_model.metadata["source"] == "a/model"
    # positions are interpolated bicubically, once more a sum in another order
    assert compare_with_onnx(model, file, noise(3, 16, 48), (1, 3)).is_within(TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {**STRATEGIES["background"], **TWO_CUTS},
        {"use_distillation_token": True},
        {"num_register_tokens": 4},
        {"logits_source": "cls", "patch_head_hidden_size": 8},
        {**STRATEGIES["background"], "pruning_head": "patch"},
        {**STRATEGIES["background"], "background_margin": -100.0},
        {**STRATEGIES["background"], "pruning_execution": "masked"},
        {**STRATEGIES["attentiveness"], "pruning_execution": "masked"},
        {**STRATEGIES["background"], "attn_implementation": "eager"},
        {**STRATEGIES["attentiveness"], "attn_implementation": "eager"},
        {**STRATEGIES["top_k"], "use_distillation_token": True, "num_register_tokens": 4},
        {**STRATEGIES["background"], "num_register_tokens": 4},
    ],
    ids=str,
)
def test_every_kind_of_model_can_be_exported(tmp_path: Path, fields: dict):
    model = build(**fields)
    file = export_onnx(model, tmp_path / "model.onnx", processor_of())
    assert compare_with_onnx(model, file, noise()).is_within(TOLERANCE)


@pytest.mark.slow
def test_the_segmentation_class_gives_its_map(tmp_path: Path):
    model = IceDeiTForSemanticSegmentation(IceDeiTConfig(**SIZES)).eval()
    randomize(model)
    exported_model = OnnxModel(export_onnx(model, tmp_path / "map.onnx", processor_of()))
    assert exported_model(noise(2))["logits"].shape == (2, 4, 4, 4)
    assert exported_model.metadata["id2label"]["3"] == "background"
    assert exported_model.metadata["background_index"] == 3


@pytest.mark.parametrize("strategy", ["unpruned", "background"])
def test_an_int8_file_is_smaller_runs_at_any_batch_size_and_keeps_the_metadata(exported, tmp_path: Path, strategy):
    model, file = exported(strategy)
    int8_file = quantize_int8(file, tmp_path / "int8.onnx")
    assert int8_file.stat().st_size < file.stat().st_size
    types = {initializer.data_type for initializer in onnx.load(int8_file).graph.initializer}
    assert onnx.TensorProto.INT8 in types
    assert OnnxModel(int8_file).metadata == OnnxModel(file).metadata
    differences = compare_with_onnx(model, int8_file, noise())
    assert differences.largest["logits"] > TOLERANCE, "8 bits are fewer than 32"
    assert np.isfinite(list(differences.largest.values())).all()
    if strategy == "unpruned":
        # of the order of 1, a few roundings to 1/127; the other logits jump where a patch changes sides
        assert differences.largest["cls_logits"] < 0.2


def test_model_and_files_are_scored_on_the_same_images(exported, tmp_path: Path):
    model, file = exported("unpruned")
    examples = TableEvaluation(load_scenes("test", 30, image_size=48), "scenes")
    label_map = {index: index % 3 for index in range(len(SCENE_CLASSES))}
    rows = score_exports(model, {"ONNX": file}, processor_of(), examples, label_map, batch_size=8)
    assert [row.name for row in rows] == ["PyTorch", "ONNX"]
    assert (rows[0].top_1, rows[0].mean_iou) == (rows[1].top_1, rows[1].mean_iou)
    assert rows[1].top_1_agreement == 1.0
    pixel_values = processor_of()([example.image for example in examples], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        classes = model(pixel_values).logits.argmax(-1)
    hits = [int(label_map[example.label] == found) for example, found in zip(examples, classes, strict=True)]
    assert rows[0].top_1 == pytest.approx(sum(hits) / 30)
    assert 0 < rows[0].mean_iou < 1


def test_a_missing_package_is_named_with_its_extra(exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model, file = exported("unpruned")
    for package in ("onnx", "onnxscript", "onnxruntime", "onnxruntime.quantization"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=r"needs `onnx`: pip install transformers-ice\[export\]"):
        export_onnx(model, tmp_path / "model.onnx", processor_of())
    with pytest.raises(ValueError, match=r"needs `onnxruntime`: pip install transformers-ice\[export\]"):
        OnnxModel(file)
    with pytest.raises(ValueError, match=r"needs `onnxruntime.quantization`: pip install transformers-ice\[export\]"):
        quantize_int8(file, tmp_path / "int8.onnx")


def test_without_a_size_a_file_takes_what_the_image_processor_makes(tmp_path: Path):
    model = build(num_hidden_layers=1)
    file = export_onnx(model, tmp_path / "small.onnx", processor_of(24, 16), source="a/model")
    assert OnnxModel(file).image_size == (24, 16)
    assert OnnxModel(file).metadata["grid_size"] == [3, 2]


def test_what_cannot_be_exported_is_refused_before_anything_is_written(tmp_path: Path):
    file, model = tmp_path / "model.onnx", build()
    with pytest.raises(ValueError, match=r"multiple of the patch size 8 x 8, got \(30, 32\)"):
        export_onnx(model, file, processor_of(), image_size=(30, 32))
    with pytest.raises(ValueError, match=r"must make images of the exported size \(48, 32\), got \(32, 32\)"):
        export_onnx(model, file, processor_of(), image_size=(48, 32))
    with pytest.raises(ValueError, match="must be an IceDeiTForImageClassification, got IceDeiTModel"):
        export_onnx(model.deit, file, processor_of())
    with pytest.raises(ValueError, match=r"must be in float32, got \['torch.bfloat16'\]"):
        export_onnx(build().bfloat16(), file, processor_of())
    assert not file.exists()


def test_images_that_a_file_does_not_take_are_refused(exported):
    model, file = exported("unpruned")
    with pytest.raises(ValueError, match=r"takes `pixel_values` of 32 x 32 pixels, got shape \(2, 3, 40, 32\)"):
        OnnxModel(file)(noise(2, 40, 32))
    with pytest.raises(ValueError, match=r"numbers from 1 to the 4 images given, got \[1, 8\]"):
        compare_with_onnx(model, file, noise(4), (1, 8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint that knows the classes of the scenes."""
    path = tmp_path_factory.mktemp("checkpoint")
    id2label = dict(enumerate(SCENE_CLASSES))
    label2id = {name: index for index, name in id2label.items()}
    build(id2label=id2label, label2id=label2id, num_hidden_layers=1).save_pretrained(path)
    processor_of().save_pretrained(path)
    return path


def test_the_script_exports_compares_quantizes_and_scores(folder: Path, tmp_path: Path, capsys):
    (tmp_path / "photos").mkdir()
    for index in range(3):
        Image.fromarray(draw_scene(index, image_size=48).image).save(tmp_path / "photos" / f"{index}.png")
    file, report = tmp_path / "model.onnx", tmp_path / "report.json"
    words = f"--model {folder} --output {file} --report {report} --int8 --dataset_name scenes --num_images 20"
    pruning = "--pruning_strategy attentiveness --pruning_layers 0 --keep_rates 0.7 --fuse_pruned_tokens true"
    calibration = ["--calibration_dir", str(tmp_path / "photos")]
    assert export_script.main([*words.split(), *pruning.split(), *calibration]) == 0, capsys.readouterr().err
    printed, results = capsys.readouterr().out, json.loads(report.read_text())
    names = ["PyTorch", "ONNX", "ONNX int8", "ONNX by OpenVINO"]  # bfloat16 where the processor has it
    assert [row["name"] for row in results["scores"]][:4] == names
    assert results["scores"][-1]["name"] == "ONNX int8 by OpenVINO"
    assert list(results["images_per_second"]) == ["1", "3", "8"]
    for rates in results["images_per_second"].values():
        assert all(0 < rate["low"] <= rate["median"] <= rate["high"] for rate in rates.values())
    assert results["files"]["ONNX int8"]["path"] == str(tmp_path / "model.int8.onnx")
    assert results["files"]["ONNX"]["bytes"] == file.stat().st_size
    assert results["differences"]["ONNX"]["exit_layers_agree"]
    assert "same class as PyTorch" in printed
    assert OnnxModel(file).metadata["pruning_schedule"] == {"0": 0.7}


def test_the_script_takes_calibration_images_for_8_bits_only(folder: Path, tmp_path: Path, capsys):
    words = f"--model {folder} --output {tmp_path / 'model.onnx'} --calibration_dir {tmp_path}"
    with pytest.raises(SystemExit):
        export_script.main(words.split())
    assert "--calibration_dir needs --int8" in capsys.readouterr().err


@pytest.mark.parametrize("former", [pytest.param(None, marks=pytest.mark.slow), b"an earlier file"])
def test_the_script_keeps_no_file_that_says_something_else(folder: Path, tmp_path: Path, capsys, former):
    file = tmp_path / "model.onnx"
    if former is not None:
        file.write_bytes(former)
    assert export_script.main(f"--model {folder} --output {file} --tolerance 1e-12 --image_size 16 24".split()) == 1
    found = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert found == ({} if former is None else {"model.onnx": former})
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "differs by more than 1e-12 and was not kept" in printed.err


@pytest.mark.parametrize(
    ("output", "options"),
    [
        ("model.safetensors", ""),
        ("../{name}/./model.safetensors", ""),
        ("config.json", ""),
        ("../link.onnx", ""),
        ("../x.onnx", "--report {folder}/config.json"),
        ("../x.onnx", "--report {folder}/../x.onnx"),
        ("../x.onnx", "--int8 --report {folder}/../x.int8.onnx"),
    ],
)
def test_the_script_replaces_no_file_of_the_model(folder: Path, tmp_path: Path, output: str, options: str, capsys):
    own = tmp_path / "model"
    shutil.copytree(folder, own)
    (tmp_path / "link.onnx").symlink_to(own / "model.safetensors")
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    words = f"--model {own} --output {own}/{output.format(name='model')} {options.format(folder=own)}"
    assert export_script.main(words.split()) == 1
    assert re.search(r"Error: (The output .* must not replace a|Two outputs)", capsys.readouterr().err)
    assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()} == before


@pytest.mark.slow
def test_a_full_disk_keeps_the_earlier_file(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    file = tmp_path / "model.onnx"
    file.write_bytes(b"an earlier file")
    monkeypatch.setattr(output_files, "synchronize", refuse)
    assert export_script.main(f"--model {folder} --output {file}".split()) == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"model.onnx": b"an earlier file"}


def test_the_script_ends_cleanly_where_nothing_can_be_exported(folder: Path, tmp_path: Path, capsys):
    words = f"--model {folder} --output {tmp_path / 'model.onnx'} --pruning_strategy background --pruning_layers 1 2"
    assert export_script.main(words.split()) == 1
    assert re.search(r"Error: .*pruning", capsys.readouterr().err)
