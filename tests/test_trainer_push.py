# SPDX-License-Identifier: Apache-2.0
"""`push_to_hub` of the trainer sends the folder that `scripts/publish_checkpoint.py` would send."""

from __future__ import annotations

import importlib.util
import json
import shutil
from concurrent.futures import Future
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard

from transformers_ice.hub import check_folder
from transformers_ice.hub.published_files import sort_files
from transformers_ice.ice_deit.remote_code import remote_code_files
from transformers_ice.training.run_card import MARK, RECORD_FILE


ROOT = Path(__file__).parents[1]
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
        FakeHub.uploads.append(SimpleNamespace(files=sent, options=options))
        future: Future = Future()
        future.set_result("commit")
        return future if run_as_future else "commit"


@pytest.fixture(scope="module")
def pushed(tmp_path_factory) -> SimpleNamespace:
    """A run of the script that pushes at its checkpoint and at its end."""
    spec = importlib.util.spec_from_file_location("run_train", ROOT / "scripts" / "run_train.py")
    run_train = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run_train)
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    FakeHub.uploads = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.trainer.hf_api", FakeHub)
        patch.setattr("transformers_ice.training.pushing.HfApi", FakeHub)
        words = [*WORDS, "--output_dir", str(folder), "--push_to_hub", "true", "--hub_model_id", "me/tiny-ice"]
        run_train.main([*words, "--save_strategy", "steps", "--save_steps", "1", "--hub_token", "hf_secret"])
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
    assert "hf_secret" not in text
    assert "hf_secret" not in (pushed.folder / RECORD_FILE).read_text()
    assert 'checkpoint = "me/tiny-ice"' in text
    assert "python scripts/run_train.py --model_type ice_deit" in text
    assert "images/tiny-ice.png" in pushed.uploads[-1].files


def test_a_card_that_somebody_wrote_stays(pushed, tmp_path):
    from transformers_ice.training.run_card import RunCard

    folder = Path(shutil.copytree(pushed.folder, tmp_path / "own"))
    assert MARK in (folder / "README.md").read_text()
    (folder / "README.md").write_text("# Mine\n")
    RunCard([], None, None)(SimpleNamespace(args=SimpleNamespace(output_dir=str(folder))))
    assert (folder / "README.md").read_text() == "# Mine\n"
