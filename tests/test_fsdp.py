# SPDX-License-Identifier: Apache-2.0
"""Weights spread over processes (FSDP 2): the same training, whole files, exact resume. Two processes on the CPU.

accelerate takes FSDP for a thing of accelerators, and quietly runs DDP where there is none. The launcher below says
that two processes on the CPU are two GPUs, and so runs what accelerate, transformers and torch do there, with gloo.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from transformers_ice import IceDeiTConfig, IceDeiTForImageClassification


ROOT = Path(__file__).parents[1]
LAUNCHER = """
import sys
from accelerate.state import DistributedType, PartialState

begin = PartialState.__init__

def begin_as_accelerator(self, *args, **kwargs):
    begin(self, *args, **kwargs)
    if self.distributed_type == DistributedType.MULTI_CPU:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU

PartialState.__init__ = begin_as_accelerator
sys.path.insert(0, {scripts!r})
from run_train import main

main()
from accelerate.state import AcceleratorState
print("ran as", AcceleratorState().distributed_type.value)
"""
RUN = ["--model_type", "ice_deit", "--dataset_name", "scenes", "--max_train_samples", "96", "--max_eval_samples", "16"]
RUN += ["--config_overrides", "hidden_size=32,num_hidden_layers=2,num_attention_heads=2,image_size=32,patch_size=8"]
RUN += ["--objective", "balanced", "--per_device_train_batch_size", "4", "--max_steps", "8", "--learning_rate", "1e-3"]
RUN += ["--eval_strategy", "steps", "--save_strategy", "steps", "--eval_steps", "4", "--save_steps", "4", "--use_cpu"]
RUN += ["--num_panel_images", "0", "--disable_tqdm", "true", "--seed", "1"]


def fsdp_variables() -> dict[str, str]:
    """Return what `accelerate launch` makes of the configuration file in this repository."""
    config = yaml.safe_load((ROOT / "configs" / "accelerate" / "multi_gpu_fsdp.yaml").read_text())
    return {"ACCELERATE_USE_FSDP": "true"} | {
        name.upper(): str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in config["fsdp_config"].items()
    }


def launch(folder: Path, output_dir: Path, *words: str, fsdp: bool = True) -> str:
    launcher = folder / "launcher.py"
    launcher.write_text(LAUNCHER.format(scripts=str(ROOT / "scripts")))
    program = str(launcher) if fsdp else str(ROOT / "scripts" / "run_train.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", program]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **(fsdp_variables() if fsdp else {})}
    command += [*RUN, "--output_dir", str(output_dir), *words]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=variables)
    assert result.returncode == 0, result.stderr[-3000:]
    assert ("ran as FSDP" in result.stdout) == fsdp
    return result.stderr


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fsdp")
    launch(folder, folder / "fsdp")
    launch(folder, folder / "ddp", fsdp=False)
    return folder


def test_layers_are_named_and_embeddings_are_not():
    # torch can not shard the patch embeddings, which accelerate picks out, inside embeddings that are sharded already
    model = IceDeiTForImageClassification(IceDeiTConfig(num_hidden_layers=1, hidden_size=12, num_attention_heads=2))
    assert model._no_split_modules == {type(model.deit.layers[0]).__name__}


@pytest.mark.slow
def test_trains_as_whole_copies_do(runs):
    spread, copies = weights_of(runs / "fsdp"), weights_of(runs / "ddp")
    assert spread.keys() == copies.keys()
    # a bias of the keys has no gradient but rounding, which AdamW makes steps of
    names = [name for name in copies if not name.endswith("k_proj.bias")]
    assert len(copies) - len(names) == 2
    for name in names:
        torch.testing.assert_close(spread[name], copies[name], rtol=1e-4, atol=1e-6, msg=name)
    started = weights_of(runs / "fsdp" / "checkpoint-4")
    assert any(not torch.equal(started[name], spread[name]) for name in names)


@pytest.mark.slow
def test_a_resumed_run_is_the_whole_one(runs):
    shutil.copytree(runs / "fsdp" / "checkpoint-4", runs / "resumed" / "checkpoint-4")
    messages = launch(runs, runs / "resumed", "--resume_from_checkpoint", "auto")
    assert f"Resuming from {runs / 'resumed' / 'checkpoint-4'}" in messages
    resumed, whole = weights_of(runs / "resumed"), weights_of(runs / "fsdp")
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


@pytest.mark.slow
def test_the_best_checkpoint_is_loaded_and_bf16_runs(runs):
    # the batches grow more foreground, so the first of the two evaluations has the least
    best = ["--metric_for_best_model", "foreground_ratio", "--greater_is_better", "false", "--save_total_limit", "2"]
    launch(runs, runs / "best", *best, "--load_best_model_at_end", "true", "--bf16", "true")
    state = json.loads((runs / "best" / "checkpoint-8" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"].endswith("checkpoint-4")
    final = weights_of(runs / "best")
    for step, is_equal in ((4, True), (8, False)):
        weights = weights_of(runs / "best" / f"checkpoint-{step}")
        assert all(torch.equal(final[name], weights[name]) for name in final) == is_equal
    assert {tensor.dtype for tensor in final.values()} == {torch.float32}


@pytest.mark.slow
def test_what_is_saved_is_a_whole_model(runs):
    model = IceDeiTForImageClassification.from_pretrained(runs / "fsdp").eval()
    logits = model(torch.zeros(1, 3, 32, 32)).patch_logits
    assert logits.shape == (1, 16, 11)
    assert logits.isfinite().all()
