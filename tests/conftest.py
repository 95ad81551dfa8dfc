# SPDX-License-Identifier: Apache-2.0
"""What all tests share: no network, caches in a folder that disappears, one thread, one seed, tiny models.

The environment is set before any library reads it, and subprocesses inherit it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from pathlib import Path


CACHE_HOME = tempfile.mkdtemp(prefix="transformers-ice-tests-")
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HOME=CACHE_HOME,
    HF_HUB_CACHE=os.path.join(CACHE_HOME, "hub"),
    HF_DATASETS_CACHE=os.path.join(CACHE_HOME, "datasets"),
    # remote code is copied here under the name of its folder, so a stale copy could stand in for the one under test
    HF_MODULES_CACHE=os.path.join(CACHE_HOME, "modules"),
    OMP_NUM_THREADS="1",  # the workers of pytest-xdist share the cores
    MPLBACKEND="Agg",
    TOKENIZERS_PARALLELISM="false",
)

import pytest  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from warm_python import WarmPython  # noqa: E402


# a background job of a shell and `nohup` ignore these; the runs under test take them
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)

HUB_FAMILIES = ("vit", "deit", "deit-with-teacher")
HUB_LAYOUTS = ("old", "new")
_HUB_CLASSES = {"vit": "ViTForImageClassification"}
_HUB_CLASSES["deit"] = "DeiTForImageClassification"
_HUB_CLASSES["deit-with-teacher"] = "DeiTForImageClassificationWithTeacher"
_TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 74,
    "image_size": 32,
    "patch_size": 8,
    "id2label": {0: "disc", 1: "square", 2: "star"},
    "label2id": {"disc": 0, "square": 1, "star": 2},
}
_PREPROCESSING = {
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"height": 32, "width": 32},
    "resample": 3,
    "do_center_crop": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def pytest_configure() -> None:
    torch.set_num_threads(1)


def pytest_unconfigure() -> None:
    shutil.rmtree(CACHE_HOME, ignore_errors=True)


@pytest.fixture(autouse=True)
def seed() -> int:
    """Seed python, numpy and torch before every test, whatever ran before it."""
    transformers.set_seed(0)
    return 0


@pytest.fixture(scope="session")
def warm_python():
    """A `python` that starts at once, for tests of whole programs."""
    python = WarmPython()
    yield python
    python.close()


@pytest.fixture
def tiny_config():
    """A configuration of a few thousand weights: 4x4 patches of an image of 32 pixels, 3 classes."""
    from transformers_ice import IceDeiTConfig

    return IceDeiTConfig(**_TINY)


def randomize(model: torch.nn.Module, seed: int = 0) -> None:
    """Give every parameter its own random values.

    Fresh models hold zeros and ones (biases, norms, tokens), with which a swapped or forgotten weight goes unnoticed.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = 0.2 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise + 1 if "norm" in name and name.endswith("weight") else noise)


def write_hub_folder(folder: Path, family: str, layout: str) -> Path:
    """Write a folder as the Hub holds it, with a tiny random model of the transformers library itself.

    Args:
        folder: Where to write.
        family: One of `HUB_FAMILIES`.
        layout: "old" names the weights as the files on the Hub do, "new" as `state_dict()` does.
    """
    model_class = getattr(transformers, _HUB_CLASSES[family])
    model = model_class(model_class.config_class(**_TINY))
    randomize(model)
    model.save_pretrained(folder, save_original_format=layout == "old")
    processor = "ViTImageProcessor" if family == "vit" else "DeiTImageProcessor"
    preprocessing = {"image_processor_type": processor, **_PREPROCESSING}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing, indent=2))
    return folder


@pytest.fixture(scope="session")
def hub_folder(tmp_path_factory: pytest.TempPathFactory):
    """Return `hub_folder(family, layout) -> Path`, a Hub-like folder that is written once and must not be changed."""
    folders: dict[tuple[str, str], Path] = {}

    def folder_of(family: str, layout: str) -> Path:
        key = (family, layout)
        if key not in folders:
            folders[key] = write_hub_folder(tmp_path_factory.mktemp(f"{family}-{layout}"), family, layout)
        return folders[key]

    return folder_of
