# SPDX-License-Identifier: Apache-2.0
"""Commands that upload, against a stand-in of the Hub: each of its faults ends in a sentence, and no token leaks."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hub_stub import FAULTS, HubStub, running_hub
from test_trainer_push import ROOT, WORDS
from warm_python import WarmPython

from transformers_ice.training.checkpoints import last_complete_checkpoint, parse_step


TRAIN, PUBLISH = str(ROOT / "scripts" / "run_train.py"), str(ROOT / "scripts" / "publish_checkpoint.py")
TOKEN = "hf_" + "FakeTokenOfNobodyAtAll" + "x" * 12
PUSH = ["--push_to_hub", "true", "--hub_model_id", "owner/m"]
# the script, with a shorter patience
IMPATIENT = "import runpy, sys, transformers_ice.hub.upload as upload; upload.TIMEOUT_S = 2; del sys.argv[0]; "
IMPATIENT += "runpy.run_path(sys.argv[0], run_name='__main__')"
SENTENCES = {
    "401": "not logged in to the Hub",
    "404": "There is no repository 'owner/m'",
    "500": "The Hub could not be reached, or refused: .*500",
    "a page of HTML": "What answered is not the Hub",
    "no answer": "The Hub did not answer within 2 s",
    "half an answer": "The Hub could not be reached, or refused: ",
}
MAX_SECONDS = 240


class Commands:
    """Commands in an environment of their own: address of the Hub, folder of the login, temporary files."""

    def __init__(self, hub: HubStub, folder: Path) -> None:
        self.hub, self.folder = hub, folder
        for name in ("home", "tmp"):
            (folder / name).mkdir()
        self.environment = {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        self.environment |= {"HF_HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp")}
        self.python = WarmPython(environment=self.environment)

    def start(self, log: Path, *words: str, **environment: str) -> subprocess.Popen:
        variables = {**os.environ, **self.environment, **environment}
        with log.open("a") as file:
            command = [str(self.python.python), "-c", IMPATIENT, *words]
            return subprocess.Popen(command, env=variables, stdout=file, stderr=file)

    def run(self, log: Path, *words: str, **environment: str) -> int:
        return self.start(log, *words, **environment).wait(MAX_SECONDS)


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    with running_hub() as hub:
        commands = Commands(hub, tmp_path_factory.mktemp("hub"))
        yield commands
        commands.python.close()


@pytest.fixture(scope="module")
def trained(commands) -> Path:
    """A folder that can be published."""
    folder = commands.folder / "trained"
    assert commands.run(commands.folder / "trained.log", TRAIN, *WORDS, "--output_dir", str(folder)) == 0
    return folder


def error_of(log: str) -> str:
    (error,) = (line for line in log.splitlines() if line.startswith("Error: "))
    return error


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_hub_ends_in_a_sentence_and_the_work_is_saved(commands, trained, tmp_path, fault):
    """The repository is made, and the commit fails; tests/test_publishing.py has faults of the first request."""
    commands.hub.fault, commands.hub.faulty_path = fault, "/commit/"
    folder, begin = tmp_path / "run", time.monotonic()
    words = [*WORDS, *PUSH, "--save_strategy", "steps", "--save_steps", "1", "--output_dir", str(folder)]
    try:
        code = commands.run(tmp_path / "train.log", TRAIN, *words, HF_TOKEN=TOKEN)
        seconds = [time.monotonic() - begin]
        published = commands.run(tmp_path / "publish.log", PUBLISH, str(trained), "owner/m", HF_TOKEN=TOKEN)
        seconds.append(time.monotonic() - begin - seconds[0])
    finally:
        commands.hub.fault = None
    logs = {name: (tmp_path / f"{name}.log").read_text() for name in ("train", "publish")}
    for log in logs.values():
        assert "Traceback" not in log
        assert TOKEN not in log
        assert re.search(SENTENCES[fault], log), log
    assert published == 1
    assert error_of(logs["publish"]).endswith("Nothing is lost: the same command resumes the upload.")
    assert code == 0  # the run is whole, but for its upload
    assert f"publish_checkpoint.py {folder} owner/m" in logs["train"]
    assert (folder / "model.safetensors").is_file()
    assert parse_step(last_complete_checkpoint(folder)) == 2
    sys.stdout.write(f"{fault:<14} train {seconds[0]:5.1f} s, publish {seconds[1]:5.1f} s\n")


# --- a token, given in each way -------------------------------------------------------------------------------------

WAYS = ["--hub_token", "--hub-token", "--hub_token=", "recipe", "HF_TOKEN"]


def give_token(way: str, folder: Path) -> tuple[list[str], list[str], dict[str, str]]:
    """Return the words before and after the others, and the variables, by which a run gets its token."""
    if way == "recipe":
        (folder / "recipe.yaml").write_text(f"hub_token: {TOKEN}\n")
        return [str(folder / "recipe.yaml")], [], {}
    if way == "HF_TOKEN":
        return [], [], {"HF_TOKEN": TOKEN}
    return [], [f"{way}{TOKEN}"] if way.endswith("=") else [way, TOKEN], {}


def count_hits(folder: Path, requests: list) -> tuple[int, dict[str, int]]:
    """Return how many files there are, and how often each kind of what was written or sent holds the token."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "recipe.yaml"]
    parts = {
        "files": [path.read_bytes() for path in files],
        "names": [str(path).encode() for path in files],
        "paths": [request.path.encode() for request in requests],
        "bodies": [request.body for request in requests],
        "uploaded files": [content for request in requests for content in request.files.values()],
        "other headers": [
            f"{name}: {value}".encode()
            for request in requests
            for name, value in request.headers.items()
            if name.lower() != "authorization"
        ],
    }
    # without its prefix: parts of a token would be hits too
    return len(files), {kind: sum(TOKEN[3:].encode() in part for part in items) for kind, items in parts.items()}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_run_leaves_its_token_nowhere(commands, tmp_path, way):
    """Trained with a push, stopped, resumed and published; the token stands in the recipe and authorizes, no more."""
    hub, log, folder = commands.hub, tmp_path / "all.log", tmp_path / "run"
    hub.requests.clear()
    first, last, variables = give_token(way, tmp_path)
    words = [*WORDS, *PUSH, "--save_strategy", "steps", "--save_steps", "4", "--hub_strategy", "all_checkpoints"]
    words = [TRAIN, *first, *words, "--output_dir", str(folder), *last]
    process = commands.start(log, *words, "--max_steps", "4000", **variables)
    end = time.monotonic() + MAX_SECONDS
    while not (last_complete_checkpoint(folder) and any(request.files for request in hub.requests)):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end
        time.sleep(0.05)
    os.kill(int(re.search(r"process (\d+) ", (folder / ".run.lock").read_text())[1]), signal.SIGTERM)
    assert process.wait(MAX_SECONDS) == 143, log.read_text()
    step = parse_step(last_complete_checkpoint(folder))
    resumed = [*words, "--max_steps", str(step + 2), "--resume_from_checkpoint", "auto"]
    assert commands.run(log, *resumed, **variables) == 0, log.read_text()
    assert commands.run(log, PUBLISH, str(folder), "owner/m", HF_TOKEN=TOKEN) == 0, log.read_text()
    num_files, hits = count_hits(tmp_path, hub.requests)
    own_folders, _ = count_hits(commands.folder, [])
    hits["home and temporary files"] = sum(count_hits(commands.folder, [])[1].values())
    authorized = sum(TOKEN in request.headers.get("authorization", "") for request in hub.requests)
    uploaded = sum(len(request.files) for request in hub.requests)
    sys.stdout.write(
        f"{way:<13} {num_files + own_folders} files, {len(log.read_text().splitlines())} lines of log, "
        f"{len(hub.requests)} requests ({authorized} authorized), {uploaded} files uploaded; hits: {hits}\n"
    )
    assert authorized
    assert uploaded
    assert set(hits.values()) == {0}
    shutil.rmtree(folder)
