# SPDX-License-Identifier: Apache-2.0
"""Publishing: what is refused and why, what is uploaded, and that it works where this package is not installed."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi, set_client_factory
from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils._http import default_client_factory
from publishing_folders import make_record, write_complete_folder
from safetensors.torch import load_file, save_file

from transformers_ice import IceDeiTImageProcessor
from transformers_ice.hub import (
    build_card,
    check_folder,
    compare_without_package,
    prepare_publication,
    read_facts,
    upload_publication,
)
from transformers_ice.hub.fresh_process import TOLERANCE, _is_same
from transformers_ice.hub.published_files import PUBLISHED_PATTERNS, sort_files
from transformers_ice.hub.upload import hub_errors
from transformers_ice.ice_deit.remote_code import remote_code_files


ROOT = Path(__file__).resolve().parents[1]


class FakeApi:
    """Remembers what it is asked, and what lies in the folder that is uploaded; may fail at the upload."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls: list[tuple[str, dict]] = []
        self.files: dict[str, bytes] = {}
        self.error = error

    def create_repo(self, **options):
        self.calls.append(("create_repo", options))
        return SimpleNamespace(repo_id=options.get("repo_id"))

    def create_branch(self, **options):
        self.calls.append(("create_branch", options))

    def upload_folder(self, *, folder_path, **options):
        self.calls.append(("upload_folder", options))
        if self.error is not None:
            raise self.error
        folder = Path(folder_path)
        self.files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        pr_url = "https://hub/pr/1" if options.get("create_pr") else None
        return SimpleNamespace(commit_url="https://hub/commit/1", pr_url=pr_url)


@pytest.fixture(scope="module")
def complete(tmp_path_factory) -> Path:
    """A complete folder, not to be changed."""
    return write_complete_folder(tmp_path_factory.mktemp("complete") / "tiny")


@pytest.fixture
def folder(complete, tmp_path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(complete, tmp_path / "tiny"))


@pytest.fixture(scope="module")
def publish():
    from transformers_ice.cli import publish

    return publish


def change_weights(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change_json(file: Path, change) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def add_pickle(folder: Path) -> None:
    torch.save({"a": torch.ones(1)}, folder / "pytorch_model.bin")


def set_nan(weights: dict) -> None:
    weights["deit.patch_head.weight"][0, 0] = float("nan")


def write_code_in_picture(folder: Path) -> None:
    (folder / "images" / "evil.png").write_bytes(pickle.dumps({"a": 1}))


def write_card_without_results(folder: Path) -> None:
    card = build_card(make_record(folder, results=()), read_facts(folder))
    (folder / "README.md").write_text(card, encoding="utf-8")


BREAKS = {
    "pickle": (add_pickle, r"pytorch_model\.bin: may be a pickle.*Expected model\.safetensors"),
    "pickle in a subfolder": (
        lambda f: (f / "images" / "x.npy").write_bytes(b"1"),
        r"images/x\.npy: may be a pickle",
    ),
    "NaN": (
        lambda f: change_weights(f, set_nan),
        r"model\.safetensors: expected finite numbers, got NaN or infinity in deit\.patch_head\.weight",
    ),
    "missing key": (
        lambda f: change_weights(f, lambda weights: weights.pop("deit.layers.0.mlp.fc1.weight")),
        r"the file lacks deit\.layers\.0\.mlp\.fc1\.weight",
    ),
    "key too many": (
        lambda f: change_weights(f, lambda weights: weights.update(extra=torch.ones(2))),
        r"no place for, extra",
    ),
    "wrong shape": (
        lambda f: change_weights(f, lambda weights: weights.update({"classifier.weight": torch.ones(2, 32)})),
        r"got other shapes in classifier\.weight \(file \(2, 32\), model \(3, 32\)\)",
    ),
    "cut file": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:5000]),
        r"model\.safetensors: expected safetensors, got a file that cannot be read",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"model\.safetensors: expected in .* not there"),
    "no processor": (
        lambda f: (f / "preprocessor_config.json").unlink(),
        r"preprocessor_config\.json: expected in .*image_processor\.save_pretrained",
    ),
    "no configuration": (lambda f: (f / "config.json").unlink(), r"config\.json: expected in"),
    "configuration is no JSON": (lambda f: (f / "config.json").write_text("{"), r"config\.json: expected JSON"),
    "no auto_map": (
        lambda f: change_json(f / "config.json", lambda c: c.pop("auto_map")),
        r"config\.json: expected `auto_map` .* got None",
    ),
    "auto_map names other code": (
        lambda f: change_json(f / "config.json", lambda c: c["auto_map"].update(AutoModel="evil.Model")),
        r"config\.json: expected `auto_map` .*evil\.Model",
    ),
    "no pipeline": (
        lambda f: change_json(f / "config.json", lambda c: c.pop("custom_pipelines")),
        r"config\.json: expected `custom_pipelines`",
    ),
    "missing code": (lambda f: (f / "patch_maps.py").unlink(), r"patch_maps\.py: expected next to the weights"),
    "tampered code": (
        lambda f: (f / "token_layouts.py").write_text((f / "token_layouts.py").read_text() + "\nprint('hello')\n"),
        r"token_layouts\.py: expected the code of the installed package, got other code",
    ),
    "foreign code": (lambda f: (f / "setup.py").write_text("1"), r"setup\.py: code that is no part of this project"),
    "no card": (
        lambda f: (f / "README.md").rename(f / "model_card.json"),
        r"README\.md: expected in .*write_model_card",
    ),
    "no card and no record": (
        lambda f: (f / "README.md").unlink(),
        r"README\.md: expected in .*no model_card\.json .* publish its folder and not a checkpoint",
    ),
    "card without results": (write_card_without_results, r"README\.md: it has no results"),
    "card without metadata": (lambda f: (f / "README.md").write_text("# tiny"), r"README\.md: `license` is missing"),
    "token in the card": (
        lambda f: (f / "README.md").write_text((f / "README.md").read_text() + "\nrun --hub-token hf_FAKE0000\n"),
        r"README\.md: expected no token or password, got what looks like one in line \d+\. Remove it",
    ),
    "password in the configuration": (
        lambda f: change_json(f / "config.json", lambda c: c.update(note="https://me:pw@host/a")),
        r"config\.json: expected no token or password",
    ),
    "signature in the log": (
        lambda f: (f / "training_log.jsonl").write_text('{"a": 1}\n{"file": "https://h/a?X-Amz-Signature=0123"}\n'),
        r"training_log\.jsonl: expected no token or password, got what looks like one in line 2\.",
    ),
    "no picture": (write_code_in_picture, r"images/evil\.png: expected an image"),
    "link out of the folder": (
        lambda f: (f / "LICENSE").symlink_to("/etc/hostname"),
        r"LICENSE: a link that leads out of the folder",
    ),
    "another model": (
        lambda f: change_json(f / "config.json", lambda c: c.update(hidden_size=64)),
        r"in another shape deit",
    ),
}  # fmt: skip


def test_a_complete_folder_has_no_problems(complete):
    assert check_folder(complete) == []


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_folder_is_refused(folder, name, tmp_path):
    break_it, message = BREAKS[name]
    break_it(folder)
    staging = tmp_path / "staging"
    staging.mkdir()
    with pytest.raises(ValueError, match=f"(?s)is not published:.*{message}"):
        prepare_publication(folder, "me/tiny", staging)
    assert list(staging.iterdir()) == []


def test_the_token_in_use_is_refused_whatever_its_form(folder, monkeypatch):
    (folder / "LICENSE").write_text("my-secret-0123")
    assert check_folder(folder) == []
    monkeypatch.setenv("HF_TOKEN", "my-secret-0123")
    (problem,) = check_folder(folder)
    assert problem.startswith("LICENSE: expected no token")
    assert "my-secret" not in problem


def test_all_problems_are_said_at_once(folder):
    add_pickle(folder)
    (folder / "patch_maps.py").unlink()
    write_card_without_results(folder)
    assert len(check_folder(folder)) == 3


def test_an_empty_folder_and_none_at_all_are_refused(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert [problem.split(":")[0] for problem in check_folder(empty)] == [
        "config.json",
        "preprocessor_config.json",
        "README.md",
        "model.safetensors",
    ]
    (problem,) = check_folder(tmp_path / "absent")
    assert "expected a folder with a saved model, got none" in problem


@pytest.mark.parametrize("repo_id", ["tiny", "a/b/c", "me/ti ny", "me/--x", "", "https://huggingface.co/me/tiny"])
def test_a_malformed_repository_id_is_refused_first(repo_id, tmp_path):
    with pytest.raises(ValueError, match="REPO_ID must be"):
        prepare_publication(tmp_path / "absent", repo_id, tmp_path)


def test_files_of_training_are_not_published(folder):
    for name in ("training_args.bin", "checkpoint-5/optimizer.pt", "checkpoint-5/model.safetensors", "panels/a.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"1")
    (folder / "notes.txt").write_text("private")
    (folder / ".env").write_text("HF_TOKEN=secret")
    contents = sort_files(folder)
    assert contents.refused == {}
    assert {"training_args.bin", "checkpoint-5/optimizer.pt", "notes.txt", ".env"} <= set(contents.left_out)
    assert not any(name.startswith("checkpoint-5") for name in contents.published)
    assert {"README.md", "config.json", "images/tiny.png", *remote_code_files()} <= set(contents.published)


def test_a_plain_classifier_needs_no_code(hub_folder, tmp_path):
    folder = Path(shutil.copytree(hub_folder("vit", "new"), tmp_path / "vit"))
    (folder / "README.md").write_text(build_card(make_record(folder), read_facts(folder)), encoding="utf-8")
    assert check_folder(folder) == []
    shutil.copyfile(ROOT / "src" / "transformers_ice" / "ice_deit" / "patch_maps.py", folder / "patch_maps.py")
    assert check_folder(folder) == ["patch_maps.py: code that a plain classifier does not need. Remove it"]


@pytest.fixture(scope="module")
def publication(complete, tmp_path_factory):
    """The folder, checked and loaded in a process without the package."""
    return prepare_publication(complete, "me/tiny", tmp_path_factory.mktemp("staging"))


def test_the_prepared_folder_loads_its_repository(publication, complete):
    card = (publication.folder / "README.md").read_text(encoding="utf-8")
    assert 'checkpoint = "me/tiny"' in card
    assert set(publication.sizes) == set(sort_files(complete).published)
    assert publication.sizes["model.safetensors"] == (complete / "model.safetensors").stat().st_size


@pytest.mark.slow
def test_a_folder_that_gives_other_outputs_elsewhere_is_noticed(folder, publication):
    # code that works, and is not the package's: the checks before would refuse it
    code = folder / "image_processing_ice_deit.py"
    text = code.read_text()
    assert "def post_process_heatmap" in text
    code.write_text(
        text + "\n_map = IceDeiTImageProcessor.post_process_heatmap\n"
        "IceDeiTImageProcessor.post_process_heatmap = lambda *a, **k: [1 - m for m in _map(*a, **k)]\n"
    )
    (problem,) = compare_without_package(folder)
    assert problem.startswith("patch-explanation/0/heatmap: expected the output with the package")


def test_code_that_needs_the_package_is_noticed(folder):
    code = folder / "modeling_ice_deit.py"
    code.write_text(code.read_text().replace("import torch\n", "import torch\nimport transformers_ice\n", 1))
    (problem,) = compare_without_package(folder)
    assert "expected pipelines that run without transformers_ice" in problem


def test_outputs_are_compared_by_kind():
    assert _is_same(np.array(0.5), np.array(0.5 + TOLERANCE / 2))
    assert not _is_same(np.array(0.5), np.array(0.5 + TOLERANCE * 2))
    assert _is_same(np.array("a"), np.array("a"))
    assert not _is_same(np.array('{"xmin": 1}'), np.array('{"xmin": 2}'))
    assert not _is_same(np.array("disc"), np.array("square"))
    assert not _is_same(np.zeros(2, np.uint8), np.ones(2, np.uint8))
    assert not _is_same(np.zeros(2, np.float32), np.zeros(3, np.float32))
    assert not _is_same(np.zeros(2, np.float32), np.full(2, np.nan, np.float32))


@pytest.fixture
def valid_card(monkeypatch):
    """The Hub's own check of a card, which asks the network."""
    monkeypatch.setattr("huggingface_hub.ModelCard.validate", lambda card, repo_type=None: None)


def test_the_upload_takes_the_prepared_folder(publication, valid_card):
    api = FakeApi()
    address = upload_publication(publication, private=True, revision="v1", commit_message="First", api=api)
    assert address == "https://hub/commit/1"
    where = {"repo_id": "me/tiny", "repo_type": "model"}
    assert api.calls == [
        ("create_repo", {**where, "private": True, "exist_ok": True}),
        ("create_branch", {**where, "branch": "v1", "exist_ok": True}),
        ("upload_folder", {**where, "commit_message": "First", "revision": "v1", "create_pr": False}),
    ]
    assert set(api.files) == set(publication.sizes)


def test_a_pull_request_makes_no_repository(publication, valid_card):
    api = FakeApi()
    assert upload_publication(publication, create_pr=True, api=api) == "https://hub/pr/1"
    assert [name for name, _ in api.calls] == ["upload_folder"]
    with pytest.raises(ValueError, match="either `--create_pr` or `--revision v1`"):
        upload_publication(publication, revision="v1", create_pr=True, api=api)


def http_error(status: int) -> Exception:
    error = OSError(f"{status} Client Error")
    error.response = SimpleNamespace(status_code=status)
    return error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (http_error(401), "not logged in to the Hub. Run `hf auth login`"),
        (LocalTokenNotFoundError("no token"), "not logged in to the Hub. Run `hf auth login`"),
        (http_error(403), "Your token may not write to 'me/tiny'"),
        (http_error(404), "no repository 'me/tiny'"),
        (OfflineModeIsEnabled("offline"), "switched off by HF_HUB_OFFLINE=1"),
        (http_error(500), "could not be reached, or refused: 500"),
        (TimeoutError("timed out"), "could not be reached, or refused: timed out"),
    ],
)
def test_what_the_hub_refuses_is_said_with_the_way_out(publication, valid_card, error, message):
    with pytest.raises(ConnectionError, match=f"{message}.*Nothing is lost"):
        upload_publication(publication, api=FakeApi(error))


def test_without_a_network_the_upload_ends_with_a_message(publication):
    # conftest switches the Hub off: this goes through huggingface_hub itself
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE"):
        upload_publication(publication)


class StandIn(BaseHTTPRequestHandler):
    """A server in place of the Hub: it hangs, or answers with something else."""

    answer: tuple[int, bytes] | None = None

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.answer is None:
            time.sleep(1.5)
            return
        self.send_response(self.answer[0])
        self.send_header("Content-Length", str(len(self.answer[1])))
        self.end_headers()
        self.wfile.write(self.answer[1])

    def log_message(self, *args):
        """Print nothing."""


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "The Hub did not answer within 0.3 s"),
        ((200, b"<html>Please log in</html>"), "What answered is not the Hub"),
        ((200, b"{}"), "What answered is not the Hub"),
        ((401, b"{}"), "not logged in to the Hub"),
        ((500, b"{}"), "could not be reached, or refused"),
    ],
)
def test_what_is_no_answer_of_the_hub_ends_with_a_sentence(monkeypatch, answer, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("transformers_ice.hub.upload.TIMEOUT_S", 0.3)
    monkeypatch.setattr(StandIn, "answer", answer)
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        api = HfApi(endpoint=f"http://127.0.0.1:{server.server_port}", token="hf_none")
        with (
            pytest.raises(ConnectionError, match=rf"{message}.* Nothing is lost\."),
            hub_errors("a/b", "Nothing is lost."),
        ):
            api.create_repo("a/b", exist_ok=True)
    finally:
        server.shutdown()
        set_client_factory(default_client_factory)


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached_ends_with_a_message(publication):
    script = (
        "import pathlib, sys\n"
        "from transformers_ice.hub import Publication, upload_publication\n"
        "upload_publication(Publication(pathlib.Path(sys.argv[1]), 'me/tiny', {}, ()))\n"
    )
    # nobody listens on port 9
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "hf_none"}
    environment["PYTHONPATH"] = str(ROOT / "src")
    command = [sys.executable, "-c", script, str(publication.folder)]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert "ConnectionError: The Hub could not be reached, or refused" in finished.stderr
    assert "Nothing is lost: the same command resumes the upload." in finished.stderr


def test_the_script_refuses_with_exit_code_1_and_no_traceback(folder, publish, capsys):
    add_pickle(folder)
    assert publish.main([str(folder), "me/tiny", "--dry_run"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("Error: ")
    assert "pytorch_model.bin" in error
    assert "Traceback" not in error


def test_a_dry_run_lists_everything_and_sends_nothing(complete, publish, capsys, monkeypatch):
    monkeypatch.setattr(publish, "upload_publication", lambda *a, **k: pytest.fail("it was sent"))
    assert publish.main([str(complete), "me/tiny", "--dry_run"]) == 0
    printed = capsys.readouterr().out
    for name in sort_files(complete).published:
        assert name in printed
    assert "Nothing was sent" in printed


def test_the_script_says_where_the_upload_went(complete, publish, capsys, monkeypatch):
    monkeypatch.setattr(
        publish, "prepare_publication", lambda *a: SimpleNamespace(sizes={"a": 1}, left_out=("b", "c/d", "c/e"))
    )
    seen = []
    monkeypatch.setattr(publish, "upload_publication", lambda *a: seen.append(a) or "https://hub/commit/1")
    assert publish.main([str(complete), "me/tiny", "--private", "--commit_message", "Hello"]) == 0
    assert seen[0][1:] == (True, None, "Hello", False)
    printed = capsys.readouterr().out
    assert "Published: https://hub/commit/1" in printed
    assert "Not uploaded: b, c/\n" in printed
    with pytest.raises(SystemExit, match="2"):
        publish.main([str(complete), "me/tiny", "--create_pr", "--revision", "v1"])


def test_the_allowed_files_cover_the_code_that_travels():
    assert set(remote_code_files()) <= set(PUBLISHED_PATTERNS)


def test_the_processor_of_the_tests_is_the_one_that_is_published(complete):
    assert IceDeiTImageProcessor.from_pretrained(complete).size == {"height": 32, "width": 32}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ice-deit-imagenette", "ice-deit-scenes", "ice-deit-scenes-pruned"])
def test_a_published_folder_works_in_a_clean_environment(clean_python, name, tmp_path):
    folder = ROOT / "checkpoints" / name
    publication = prepare_publication(folder, f"me/{name}", tmp_path)
    assert compare_without_package(publication.folder, clean_python) == []


@pytest.fixture(scope="module")
def clean_python(tmp_path_factory) -> str:
    """The interpreter of a new environment with torch, transformers, safetensors, numpy, Pillow and what they need."""
    python = tmp_path_factory.mktemp("clean") / "venv" / "bin" / "python"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    subprocess.run([sys.executable, "-m", "venv", str(python.parents[1])], check=True, env=environment)
    constraints = str(ROOT / "constraints.txt")
    subprocess.run(["bash", str(ROOT / "scripts/install_torch.sh"), str(python), constraints], check=True)
    words = ["-m", "pip", "--disable-pip-version-check", "-qq", "install", "--no-compile", "-c", constraints]
    needed = ["transformers", "safetensors", "numpy", "Pillow"]
    subprocess.run([str(python), *words, *needed], check=True, env=environment)
    listed = subprocess.run([str(python), "-m", "pip", "list"], check=True, capture_output=True, text=True).stdout
    assert not {"transformers-ice", "torchvision", "accelerate", "datasets"} & set(listed.split())
    return str(python)
