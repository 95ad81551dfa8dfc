# SPDX-License-Identifier: Apache-2.0
"""`push_to_hub` of the trainer sends the folder that `scripts/publish_checkpoint.py` would send."""

from __future__ import annotations

import json
import shutil
import signal
from concurrent.futures import Future
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard

from transformers_ice.hub import check_folder
from transformers_ice.hub.published_files import sort_files
from transformers_ice.ice_deit.remote_code import remote_code_files
from transformers_ice.training import IceTrainingArguments
from transformers_ice.training.checkpoints import COMPLETION_MARKER
from transformers_ice.training.pushing import upload_checkpoint, upload_published
from transformers_ice.training.run_card import MARK, RECORD_FILE


ROOT = Path(__file__).parents[1]
SECRET = "my-secret-0123"
TINY = "hidden_size=32,num_hidden_layers=2,num_attention_heads=2,intermediate_size=32,image_size=32,patch_size=8"
WORDS = (
    f"--model_type ice_deit --config_overrides {TINY} --dataset_name scenes --max_train_samples 16 "
    "--max_eval_samples 8 --max_steps 2 --per_device_train_batch_size 8 --logging_steps 1 --use_cpu "
    "--disable_tqdm true --eval_strategy no"
).split()


class FakeHub:
    """Stands in for `HfApi`: keeps what each upload would send, chosen as the Hub's client chooses."""

    uploads: list[SimpleNamespace] = []

    def create_repo(self, name, **options):
        return SimpleNamespace(repo_id=name)

    def upload_folder(self, *, folder_path, allow_patterns=None, ignore_patterns=(), run_as_future=False, **options):
        folder = Path(folder_path)
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
        }
        sent = {
            name: content
            for name, content in files.items()
            if any(fnmatch(name, pattern) for pattern in (allow_patterns or ["*"]))
            and not any(fnmatch(name, pattern) for pattern in ignore_patterns)
        }
        FakeHub.uploads.append(SimpleNamespace(files=sent, options=options, tried=set(files)))
        future: Future = Future()
        future.set_result("commit")
        return future if run_as_future else "commit"


@pytest.fixture(scope="module")
def run_train():
    from transformers_ice.cli import train

    return train


@pytest.fixture(scope="module")
def pushed(run_train, tmp_path_factory) -> SimpleNamespace:
    """A run of the script that pushes at its checkpoint and at its end."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    FakeHub.uploads = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.trainer.hf_api", FakeHub)
        patch.setattr("transformers_ice.training.pushing.HfApi", FakeHub)
        words = [*WORDS, "--output_dir", str(folder), "--push_to_hub", "true", "--hub_model_id", "me/tiny-ice"]
        run_train.main([*words, "--save_strategy", "steps", "--save_steps", "1", "--hub-token", SECRET])
    return SimpleNamespace(folder=folder, uploads=FakeHub.uploads)


def test_every_push_is_a_complete_folder_without_pickles(pushed, tmp_path):
    assert len(pushed.uploads) == 3, "two checkpoints, and once at the end"
    for number, upload in enumerate(pushed.uploads):
        assert upload.options["repo_id"] == "me/tiny-ice"
        assert {"README.md", "config.json", "preprocessor_config.json", "model.safetensors"} <= upload.files.keys()
        assert set(remote_code_files()) <= upload.files.keys()
        copy = tmp_path / str(number)
        for name, content in upload.files.items():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes(content)
        assert sort_files(copy).left_out == []
        assert sort_files(copy).refused == {}
    assert check_folder(copy) == []  # the last one has results


def test_the_last_push_is_what_the_script_publishes(pushed):
    assert set(pushed.uploads[-1].files) == set(sort_files(pushed.folder).published)
    assert pushed.uploads[-1].options["commit_message"] == "End of training"
    assert (pushed.folder / "training_args.bin").is_file()
    assert "training_args.bin" in sort_files(pushed.folder).left_out


def test_the_card_has_the_numbers_of_the_run_and_no_token(pushed):
    text = pushed.uploads[-1].files["README.md"].decode()
    assert text == (pushed.folder / "README.md").read_text(encoding="utf-8")
    numbers = json.loads((pushed.folder / "all_results.json").read_text())
    results = {result.metric_name: result.metric_value for result in ModelCard(text).data.eval_results}
    assert results["top-1 accuracy"] == pytest.approx(numbers["eval_top_1"], abs=1e-6)
    assert results["mean IoU (ice_hard)"] == pytest.approx(numbers["eval_mean_iou"], abs=1e-6)
    assert SECRET not in text
    assert SECRET not in (pushed.folder / RECORD_FILE).read_text()
    assert 'checkpoint = "me/tiny-ice"' in text
    assert "python scripts/run_train.py --model_type ice_deit" in text
    assert "images/tiny-ice.png" in pushed.uploads[-1].files


def test_a_card_written_by_hand_is_kept(pushed, tmp_path):
    from transformers_ice.training.run_card import RunCard

    folder = Path(shutil.copytree(pushed.folder, tmp_path / "own"))
    assert MARK in (folder / "README.md").read_text()
    (folder / "README.md").write_text("# Mine\n")
    RunCard([], None, None)(SimpleNamespace(args=SimpleNamespace(output_dir=str(folder))))
    assert (folder / "README.md").read_text() == "# Mine\n"


def files_with_secret(folder: Path) -> list[str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [path.name for path in files if SECRET.encode() in path.read_bytes()]


def test_nothing_that_a_run_writes_prints_or_uploads_holds_the_token(
    pushed, run_train, tmp_path, monkeypatch, capfd, caplog
):
    assert files_with_secret(pushed.folder) == []
    monkeypatch.setattr(FakeHub, "uploads", [])
    monkeypatch.setattr("transformers.trainer.hf_api", FakeHub)
    monkeypatch.setattr("transformers_ice.training.pushing.HfApi", FakeHub)
    folder, recipe = tmp_path / "run", tmp_path / "recipe.yaml"
    words = [*WORDS, "--output_dir", str(folder), "--push_to_hub", "--hub_model_id", "me/run"]
    words += ["--save_strategy", "steps", "--save_steps", "1", "--hub_strategy", "checkpoint"]
    with monkeypatch.context() as stopped:
        stopped.setattr("transformers_ice.training.stopping.StopRequest.agreed_signal", lambda self: signal.SIGTERM)
        assert run_train.main([*words, "--hub-token", SECRET]) == 143
    printed = capfd.readouterr()
    assert "--resume_from_checkpoint auto (and your token)" in printed.err
    assert "training_args.bin" in FakeHub.uploads[-1].files
    recipe.write_text(f"hub_token: {SECRET}\n")
    run_train.main([str(recipe), *words, "--resume_from_checkpoint", "auto"])
    text = "".join([*printed, *capfd.readouterr(), caplog.text])
    assert "transformers-ice train" in text
    assert SECRET not in text
    assert [upload.options.get("path_in_repo") for upload in FakeHub.uploads] == [
        None, "last-checkpoint", None, "last-checkpoint", None,
    ]  # fmt: skip
    for upload in FakeHub.uploads:
        assert upload.options["token"] == SECRET
        assert not [name for name, content in upload.files.items() if SECRET.encode() in content]
    assert files_with_secret(folder) == []


def test_a_pushed_checkpoint_is_what_training_resumes_from(pushed, monkeypatch):
    """By definition: everything a checkpoint holds, but for its marker and foreign files."""
    monkeypatch.setattr(FakeHub, "uploads", [])
    monkeypatch.setattr("transformers_ice.training.pushing.HfApi", FakeHub)
    checkpoint = pushed.folder / "checkpoint-2"
    (checkpoint / "notes.txt").write_text("mine")
    args = SimpleNamespace(hub_strategy="all_checkpoints", hub_token=SECRET, hub_revision=None)
    upload_checkpoint(SimpleNamespace(args=args, hub_model_id="me/tiny-ice"), checkpoint, "message")
    (upload,) = FakeHub.uploads
    assert upload.options["path_in_repo"] == "checkpoint-2"
    assert upload.tried - set(upload.files) == {"notes.txt", COMPLETION_MARKER}
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= set(upload.files)
    arguments = torch.load(checkpoint / "training_args.bin", weights_only=False)
    assert arguments.hub_token is None
    assert arguments.max_steps == 2


def test_a_file_with_a_token_is_not_pushed(pushed, tmp_path, monkeypatch):
    monkeypatch.setattr(FakeHub, "uploads", [])
    monkeypatch.setattr("transformers_ice.training.pushing.HfApi", FakeHub)
    folder = Path(shutil.copytree(pushed.folder, tmp_path / "own"))
    (folder / "LICENSE").write_text(f"mine\n{SECRET}\n")
    args = IceTrainingArguments(output_dir=str(folder), hub_token=SECRET, use_cpu=True)
    upload_published(SimpleNamespace(args=args, hub_model_id="me/own"), "message")
    assert set(FakeHub.uploads[0].files) == set(pushed.uploads[-1].files)
