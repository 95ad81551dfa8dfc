# SPDX-License-Identifier: Apache-2.0
"""A saved folder works where this package is not installed."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import randomize
from PIL import Image
from transformers import AutoModel, AutoModelForSemanticSegmentation, pipeline

from transformers_ice import IceDeiTConfig, IceDeiTForImageClassification, IceDeiTImageProcessor, IceDeiTModel


ALLOWED_PACKAGES = {"torch", "transformers", "huggingface_hub", "numpy", "PIL"} | set(sys.stdlib_module_names)
KINDS = ("from_pipeline", "from_parts")

# Runs without the package: loads everything from each folder and writes down what it gets.
SCRIPT = """
import json, pathlib, sys
sys.modules["transformers_ice"] = None  # importing it now raises ImportError, wherever it may be installed
import numpy as np
import torch
import transformers
from PIL import Image
from transformers import (AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification,
                          AutoModelForSemanticSegmentation, pipeline)

torch.set_num_threads(1)
root = pathlib.Path(sys.argv[1])
trust = {"trust_remote_code": True}
image = str(root / "image.png")
for kind in sys.argv[2:]:
    folder = str(root / kind)
    classes, arrays, words = {}, {}, {}
    processor = AutoImageProcessor.from_pretrained(folder, **trust)
    models = [auto.from_pretrained(folder, **trust).eval()
              for auto in (AutoModel, AutoModelForImageClassification, AutoModelForSemanticSegmentation)]
    inputs = processor(Image.open(image), return_tensors="pt")
    arrays["pixel_values"] = inputs["pixel_values"].numpy()
    for loaded in (AutoConfig.from_pretrained(folder, **trust), processor, *models):
        classes[type(loaded).__name__] = type(loaded).__module__.split(".")[0]
    with torch.no_grad():
        for model in models:
            for name, value in model(**inputs).items():
                arrays[f"{type(model).__name__}.{name}"] = value.numpy()
    explain = pipeline("patch-explanation", model=folder, device="cpu", **trust)
    classes[type(explain).__name__] = type(explain).__module__.split(".")[0]
    words["task"] = pipeline(model=folder, device="cpu", **trust).task
    for name, value in explain([image, image], batch_size=2)[1].items():
        if isinstance(value, np.ndarray):
            arrays[f"explanation.{name}"] = value
        else:
            words[f"explanation.{name}"] = value
    words["classification"] = pipeline("image-classification", model=folder, device="cpu", **trust)(image)
    for entry in pipeline("image-segmentation", model=folder, device="cpu", **trust)(image):
        arrays[f"segmentation.{entry['label']}"] = np.asarray(entry["mask"])
    models[1].save_pretrained(root / f"{kind}_again")
    explain.save_pretrained(root / f"{kind}_again_pipeline")
    np.savez(root / f"{kind}.npz", **arrays)
    (root / f"{kind}.json").write_text(json.dumps({"classes": classes, **words}))
"""


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> SimpleNamespace:
    """Write both folders with the package."""
    root = tmp_path_factory.mktemp("remote")
    config = IceDeiTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        id2label={0: "disc", 1: "square", 2: "star"},
        label2id={"disc": 0, "square": 1, "star": 2},
    )
    model = IceDeiTForImageClassification(config).eval()
    randomize(model)
    processor = IceDeiTImageProcessor(size={"height": 32, "width": 32})
    explain = pipeline("patch-explanation", model=model, image_processor=processor, device="cpu")
    model.save_pretrained(root / "from_parts")
    processor.save_pretrained(root / "from_parts")
    explain.save_pretrained(root / "from_pipeline")
    image = np.random.default_rng(0).integers(0, 65536, (40, 50), dtype=np.uint16)  # 16 bits: read by our own loader
    Image.fromarray(image).save(root / "image.png")
    return SimpleNamespace(root=root, model=model, processor=processor, explain=explain, image=str(root / "image.png"))


@pytest.fixture(scope="module")
def remote(local) -> dict[str, SimpleNamespace]:
    """Load both folders in one process that cannot import the package."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["HF_MODULES_CACHE"] = str(local.root / "modules")
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(local.root), *KINDS],
        cwd=local.root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "not supported" not in run.stderr
    return {
        kind: SimpleNamespace(
            arrays=np.load(local.root / f"{kind}.npz"), words=json.loads((local.root / f"{kind}.json").read_text())
        )
        for kind in KINDS
    }


@pytest.fixture(params=KINDS)
def seen(request, remote) -> SimpleNamespace:
    return remote[request.param]


def names_in(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir() if file.is_file()}


def test_everything_is_loaded_from_the_folder(seen):
    assert seen.words["classes"] == dict.fromkeys(
        [
            "IceDeiTConfig",
            "IceDeiTImageProcessor",
            "IceDeiTModel",
            "IceDeiTForImageClassification",
            "IceDeiTForSemanticSegmentation",
            "PatchExplanationPipeline",
        ],
        "transformers_modules",
    )


def test_all_three_classes_give_the_outputs_that_they_give_here(seen, local):
    inputs = local.processor(Image.open(local.image), return_tensors="pt")
    assert np.array_equal(seen.arrays["pixel_values"], inputs["pixel_values"].numpy())
    folder = local.root / "from_parts"
    models = [AutoModel.from_pretrained(folder), local.model, AutoModelForSemanticSegmentation.from_pretrained(folder)]
    assert type(models[0]) is IceDeiTModel
    for model in models:
        with torch.no_grad():
            outputs = model.eval()(**inputs)
        for name, value in outputs.items():
            np.testing.assert_allclose(
                seen.arrays[f"{type(model).__name__}.{name}"], value.numpy(), rtol=0, atol=1e-6
            )  # float32, the same operations


def test_the_explanation_is_the_one_given_here(seen, local):
    for name, value in local.explain(local.image).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_allclose(seen.arrays[f"explanation.{name}"], value, rtol=0, atol=1e-6)
        elif isinstance(value, float):
            assert seen.words[f"explanation.{name}"] == pytest.approx(value, abs=1e-6)
        else:
            assert seen.words[f"explanation.{name}"] == value


def test_without_a_task_the_pipeline_explains(seen):
    assert seen.words["task"] == "patch-explanation"


def test_the_pipelines_of_transformers_give_what_they_give_here(seen, local):
    classify = pipeline("image-classification", model=local.model, image_processor=local.processor, device="cpu")
    for entry, expected in zip(seen.words["classification"], classify(local.image), strict=True):
        assert entry["label"] == expected["label"]
        assert entry["score"] == pytest.approx(expected["score"], abs=1e-6)
    model = AutoModelForSemanticSegmentation.from_pretrained(local.root / "from_parts")
    segment = pipeline("image-segmentation", model=model, image_processor=local.processor, device="cpu")
    masks = {f"segmentation.{entry['label']}": np.asarray(entry["mask"]) for entry in segment(local.image)}
    assert masks.keys() == {name for name in seen.arrays.files if name.startswith("segmentation.")}
    for name, mask in masks.items():
        assert np.array_equal(seen.arrays[name], mask)


@pytest.mark.parametrize("kind", KINDS)
def test_the_folder_has_all_entries_and_all_code(local, kind):
    folder = local.root / kind
    config = json.loads((folder / "config.json").read_text())
    assert config["auto_map"] == {
        "AutoConfig": "configuration_ice_deit.IceDeiTConfig",
        "AutoImageProcessor": "image_processing_ice_deit.IceDeiTImageProcessor",
        "AutoModel": "modeling_ice_deit.IceDeiTModel",
        "AutoModelForImageClassification": "modeling_ice_deit.IceDeiTForImageClassification",
        "AutoModelForSemanticSegmentation": "modeling_ice_deit.IceDeiTForSemanticSegmentation",
    }
    entry = config["custom_pipelines"]["patch-explanation"]
    assert entry["impl"] == "pipeline_patch_explanation.PatchExplanationPipeline"
    assert entry["pt"] == ["AutoModelForImageClassification"]
    preprocessing = json.loads((folder / "preprocessor_config.json").read_text())
    assert preprocessing["auto_map"] == {"AutoImageProcessor": "image_processing_ice_deit.IceDeiTImageProcessor"}
    assert names_in(folder) >= {
        "pipeline_patch_explanation.py",
        "image_processing_ice_deit.py",
        "modeling_ice_deit.py",
    }


@pytest.mark.parametrize("ending", ["again", "again_pipeline"])
def test_what_remote_code_saves_is_complete_again(remote, local, ending):
    for kind in KINDS:
        code = {name for name in names_in(local.root / kind) if name.endswith(".py")}
        assert {name for name in names_in(local.root / f"{kind}_{ending}") if name.endswith(".py")} == code
        saved = json.loads((local.root / f"{kind}_{ending}" / "config.json").read_text())
        assert saved["auto_map"] == json.loads((local.root / kind / "config.json").read_text())["auto_map"]


def test_the_code_is_flat_and_needs_nothing_that_transformers_does_not(local, tmp_path):
    local.model.save_pretrained(tmp_path)  # the model alone writes all of it
    code = {name for name in names_in(tmp_path) if name.endswith(".py")}
    assert {"image_conversion.py", "patch_maps.py", "pipeline_patch_explanation.py"} <= code
    for name in code:
        for node in ast.walk(ast.parse((tmp_path / name).read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1
                assert f"{node.module}.py" in code, f"{name} imports {node.module}, which is not in the folder"
            elif isinstance(node, ast.ImportFrom):
                assert node.module.split(".")[0] in ALLOWED_PACKAGES
            elif isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= ALLOWED_PACKAGES
