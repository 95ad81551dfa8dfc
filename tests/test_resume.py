# SPDX-License-Identifier: Apache-2.0
"""No work is lost: what counts as a checkpoint, how a run ends early, and that a resumed run equals a whole one."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import transformers.trainer
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import save_file
from transformers import TrainerCallback

from transformers_ice.training import IceTrainingArguments, TrainingStoppedError, resume_command
from transformers_ice.training.checkpoints import (
    COMPLETION_MARKER,
    choose_checkpoint,
    is_complete,
    last_complete_checkpoint,
    list_checkpoints,
    mark_complete,
    missing_files,
    parse_step,
    remove_checkpoint,
    surplus_checkpoints,
)
from transformers_ice.training.run import check_launch
from transformers_ice.training.stopping import (
    LOST_PROCESS_EXIT_CODE,
    NOT_FINITE_EXIT_CODE,
    NOT_WRITTEN_EXIT_CODE,
    StopRequest,
    lost_process,
    writing_to,
)


ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "run_train.py"
TINY = "hidden_size=32,num_hidden_layers=2,num_attention_heads=2,intermediate_size=32,image_size=32,patch_size=8"
# 7 batches of 8, two to a step: 4 steps an epoch, the last of one batch; a checkpoint after each third step
RUN = ["--model_type", "ice_deit", "--config_overrides", f"{TINY},drop_path_rate=0.2", "--dataset_name", "scenes"]
RUN += ["--max_train_samples", "52", "--max_eval_samples", "8", "--per_device_train_batch_size", "8"]
RUN += ["--gradient_accumulation_steps", "2", "--eval_strategy", "steps", "--save_strategy", "steps"]
RUN += ["--eval_steps", "3", "--save_steps", "3", "--logging_steps", "1", "--use_cpu", "--disable_tqdm", "true"]
RUN += ["--learning_rate", "1e-3", "--seed", "1", "--num_panel_images", "0"]


@pytest.fixture(scope="module")
def run_train():
    from transformers_ice.cli import train

    return train


def sha256_of(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def make_checkpoint(folder: Path, complete: bool = True) -> Path:
    (folder / "part").mkdir(parents=True)
    (folder / "trainer_state.json").write_text("{}")
    (folder / "part" / "weights.bin").write_bytes(bytes(100))
    if complete:
        mark_complete(folder)
    return folder


def make_args(output_dir: Path, **fields) -> IceTrainingArguments:
    return IceTrainingArguments(str(output_dir), use_cpu=True, **fields)


# --- what counts as a checkpoint -----------------------------------------------------------------------------------


def test_a_checkpoint_counts_with_its_marker_and_all_files(tmp_path):
    folder = make_checkpoint(tmp_path / "checkpoint-3", complete=False)
    assert missing_files(folder) == [COMPLETION_MARKER]
    mark_complete(folder)
    assert is_complete(folder)
    sizes = json.loads((folder / COMPLETION_MARKER).read_text())["files"]
    assert sizes == {"trainer_state.json": 2, "part/weights.bin": 100}
    assert {path.name for path in folder.iterdir()} == {"trainer_state.json", "part", COMPLETION_MARKER}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"files": 3}', None])
def test_an_unreadable_marker_is_none(tmp_path, content):
    folder = make_checkpoint(tmp_path / "checkpoint-3")
    marker = folder / COMPLETION_MARKER
    marker.unlink() if content is None else marker.write_text(content)
    assert not is_complete(folder)


def test_lost_and_shortened_files_are_found(tmp_path):
    folder = make_checkpoint(tmp_path / "checkpoint-3")
    (folder / "trainer_state.json").unlink()
    (folder / "part" / "weights.bin").write_bytes(bytes(99))
    assert sorted(missing_files(folder)) == ["part/weights.bin", "trainer_state.json"]


def test_checkpoints_are_listed_by_step(tmp_path):
    folders = [make_checkpoint(tmp_path / f"checkpoint-{step}", step != 100) for step in (100, 20, 3)]
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-7").write_text("a file")
    assert list_checkpoints(tmp_path) == folders[::-1]
    assert last_complete_checkpoint(tmp_path) == folders[1]
    assert last_complete_checkpoint(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    ("limit", "kept", "surplus"),
    [(None, "d", ""), (0, "d", ""), (1, "d", "abc"), (2, "d", "ab"), (2, "da", "bc"), (1, "da", "bc"), (4, "d", "")],
)
def test_oldest_are_surplus_and_the_best_stays(limit, kept, surplus):
    folders = {name: Path(name) for name in "abcd"}
    found = surplus_checkpoints(list(folders.values()), {folders[name] for name in kept}, limit)
    assert "".join(map(str, found)) == surplus


def test_removal_takes_the_marker_first(tmp_path, monkeypatch):
    folder = make_checkpoint(tmp_path / "checkpoint-3")
    monkeypatch.setattr("shutil.rmtree", lambda path: None)  # killed before the first file is removed
    remove_checkpoint(folder)
    assert not is_complete(folder)


def test_auto_names_what_it_does_not_resume(tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr("transformers_ice.training.checkpoints.logger.warning", warnings.append)
    complete = make_checkpoint(tmp_path / "checkpoint-3")
    make_checkpoint(tmp_path / "checkpoint-6", complete=False)
    args = make_args(tmp_path, resume_from_checkpoint="auto")
    assert choose_checkpoint(args) == str(complete)
    assert "Not resuming from checkpoint-6" in warnings[0]
    # one that an earlier version saved is taken by its name
    old = str(tmp_path / "checkpoint-6")
    assert choose_checkpoint(make_args(tmp_path, resume_from_checkpoint=old)) == old
    assert "no completion marker" in warnings[-1]


def test_damaged_checkpoint_is_refused_by_name(tmp_path):
    folder = make_checkpoint(tmp_path / "checkpoint-3")
    (folder / "part" / "weights.bin").unlink()
    with pytest.raises(ValueError, match=r"damaged: part/weights.bin missing.*auto"):
        choose_checkpoint(make_args(tmp_path, resume_from_checkpoint=str(folder)))


def test_data_parallel_is_refused_with_the_command(tmp_path, monkeypatch):
    args = make_args(tmp_path)
    check_launch(args)
    monkeypatch.setattr(IceTrainingArguments, "n_gpu", 4)
    with pytest.raises(ValueError, match=r"DataParallel.*torchrun --nproc_per_node 4 scripts/run_train.py"):
        check_launch(args)


def test_resume_command_keeps_the_arguments():
    words = ["run.yaml", "--output_dir", "my run", "--resume_from_checkpoint", "x", "--resume_from_checkpoint=y"]
    expected = "python s.py run.yaml --output_dir 'my run' --resume_from_checkpoint auto"
    assert resume_command("python s.py", words) == expected


@pytest.mark.parametrize("name", ["cpu_two_processes", "multi_gpu_ddp", "multi_gpu_fsdp"])
def test_launch_configurations_are_read_and_open_with_their_command(name):
    path = ROOT / "configs" / "accelerate" / f"{name}.yaml"
    header = path.read_text().split("\n\n")[0]
    assert f"accelerate launch --config_file configs/accelerate/{name}.yaml" in header
    config = load_config_from_file(str(path))
    assert config.num_processes == 2
    assert config.distributed_type == ("FSDP" if name.endswith("fsdp") else "MULTI_GPU")


# --- a whole run, and runs that end early --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(run_train, tmp_path_factory) -> Path:
    """The folder of a run of 10 steps that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    run_train.main([*RUN, "--max_steps", "10", "--output_dir", str(folder)])
    return folder


def test_every_checkpoint_is_complete_and_old_ones_are_removed(whole):
    folders = list_checkpoints(whole)
    best = Path(json.loads((whole / "trainer_state.json").read_text())["best_model_checkpoint"])
    assert len(folders) == 2
    assert best in folders
    assert whole / "checkpoint-10" in folders
    assert all(map(is_complete, folders))
    args = torch.load(folders[-1] / "training_args.bin", weights_only=False)
    assert args.save_total_limit == 2


class AtStep(TrainerCallback):
    """Do something at the end of a step."""

    def __init__(self, step: int, action) -> None:
        self.step, self.action = step, action

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.action(kwargs["model"])


def run_with(run_train, monkeypatch, callback, words):
    """Run the script with one more callback."""
    import transformers_ice.training.run as run

    build = run.build_trainer
    monkeypatch.setattr(
        run,
        "build_trainer",
        lambda *args, callbacks, **options: build(*args, callbacks=[callback, *callbacks], **options),
    )
    return run_train.main(words)


STOPS = [
    (2, signal.SIGTERM),
    (4, signal.SIGINT),
    *(
        pytest.param(step, number, marks=pytest.mark.slow)
        for step, number in ((6, signal.SIGTERM), (5, signal.SIGHUP), (7, signal.SIGUSR1))
    ),
]


@pytest.mark.parametrize(("step", "number"), STOPS)
def test_stop_signal_saves_and_the_resumed_run_equals_the_whole(
    run_train, whole, tmp_path, monkeypatch, capsys, step, number
):
    words = [*RUN, "--max_steps", "10", "--output_dir", str(tmp_path)]
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        code = run_with(run_train, patch, AtStep(step, lambda model: os.kill(os.getpid(), number)), words)
    assert code == 128 + number
    assert signal.getsignal(number) == before
    message = capsys.readouterr().err
    assert f"by {number.name}. The last complete checkpoint is {tmp_path}/checkpoint-{step}." in message
    assert f"--output_dir {tmp_path} --resume_from_checkpoint auto" in message
    run_train.main([*words, "--resume_from_checkpoint", "auto"])
    assert sha256_of(tmp_path) == sha256_of(whole)


LOST = {
    "worker": (RuntimeError("DataLoader worker (pid(s) 11591) exited unexpectedly"), "process that loads images"),
    "killed": (
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
        "process that loads images",
    ),
    "rank": (
        RuntimeError("[.../gloo/transport/tcp/pair.cc:553] Connection closed by peer"),
        "Another process of the run",
    ),
    "pipe": (BrokenPipeError(errno.EPIPE, "Broken pipe"), "output of the run can no longer be written"),
    "terminal": (OSError(errno.EIO, "Input/output error"), "output of the run can no longer be written"),
}


# two of them at every change; each costs two runs
@pytest.mark.parametrize(
    "name", [name if name in ("worker", "rank") else pytest.param(name, marks=pytest.mark.slow) for name in LOST]
)
def test_a_run_that_loses_a_helper_is_saved_and_resumed(run_train, whole, tmp_path, monkeypatch, capsys, name):
    error, message = LOST[name]

    def lose(model):
        raise error

    words = [*RUN, "--max_steps", "10", "--output_dir", str(tmp_path)]
    with monkeypatch.context() as patch:
        assert run_with(run_train, patch, AtStep(5, lose), words) == LOST_PROCESS_EXIT_CODE
    said = capsys.readouterr().err
    assert message in said
    assert f"The last complete checkpoint is {tmp_path}/checkpoint-5." in said
    run_train.main([*words, "--resume_from_checkpoint", "auto"])
    assert sha256_of(tmp_path) == sha256_of(whole)


def test_an_error_inside_a_worker_is_no_lost_worker():
    error = RuntimeError("Caught RuntimeError in DataLoader worker process 0.")
    assert lost_process(error, pytest.fail, None) is None
    assert lost_process(OSError(errno.EIO, "bad disk", "photo.jpg"), pytest.fail, None) is None


def test_a_worker_lost_in_the_final_evaluation_is_said(tmp_path):
    with pytest.raises(TrainingStoppedError, match=r"loads images was killed.*no complete"), writing_to(tmp_path):
        raise LOST["worker"][0]


def test_a_hangup_that_is_ignored_remains_so_and_several_do_not_kill():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest().listening() as request:
            os.kill(os.getpid(), signal.SIGHUP)
            assert request.agreed_signal() == 0
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with StopRequest().listening() as request:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGHUP)
            assert request.agreed_signal() == signal.SIGHUP
    finally:
        signal.signal(signal.SIGHUP, before)


def test_loss_that_is_not_finite_ends_the_run(run_train, tmp_path, monkeypatch, capsys):
    def poison(model):
        next(model.parameters()).data.fill_(float("nan"))

    words = [*RUN, "--max_steps", "10", "--output_dir", str(tmp_path)]
    code = run_with(run_train, monkeypatch, AtStep(4, poison), words)
    assert code == NOT_FINITE_EXIT_CODE
    message = capsys.readouterr().err
    assert "stopped at step 5: the loss is nan. " in message
    assert f"{tmp_path}/checkpoint-3" in message
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["checkpoint-3"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_checkpoint_holds_weights_that_are_not_finite(run_train, tmp_path, monkeypatch, capsys, value):
    """At the very step that saves, the loss still looks well."""

    def poison(model):
        list(model.parameters())[-1].data[0] = value

    words = [*RUN, "--max_steps", "3", "--output_dir", str(tmp_path), "--eval_strategy", "no"]
    code = run_with(run_train, monkeypatch, AtStep(3, poison), words)
    assert code == NOT_FINITE_EXIT_CODE
    assert "weights of the model are NaN or infinite" in capsys.readouterr().err
    assert not list_checkpoints(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


def test_full_disk_ends_the_run_and_leaves_the_checkpoint_before(run_train, whole, tmp_path, monkeypatch, capsys):
    words = [*RUN, "--max_steps", "10", "--output_dir", str(tmp_path), "--save_total_limit", "1"]
    save = torch.save

    def save_on_a_full_disk(value, path):
        if "checkpoint-6" in str(path) and str(path).endswith("optimizer.pt"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        save(value, path)

    with monkeypatch.context() as patch:
        patch.setattr(transformers.trainer.torch, "save", save_on_a_full_disk)
        code = run_train.main(words)
    assert code == NOT_WRITTEN_EXIT_CODE
    message = capsys.readouterr().err
    assert "could not be written" in message
    assert f"The last complete checkpoint is {tmp_path}/checkpoint-3." in message
    assert [is_complete(folder) for folder in list_checkpoints(tmp_path)] == [True, False]
    run_train.main([*words, "--resume_from_checkpoint", "auto"])
    assert sha256_of(tmp_path) == sha256_of(whole)
    # the best one and, also after the end of training, the last one
    best = Path(json.loads((tmp_path / "trainer_state.json").read_text())["best_model_checkpoint"])
    assert {folder for folder in list_checkpoints(tmp_path) if is_complete(folder)} == {
        best,
        tmp_path / "checkpoint-10",
    }


def write_text(path: Path) -> None:
    path.write_text("x" * 100_000)


def write_with_torch(path: Path) -> None:
    torch.save({"x": torch.zeros(100_000)}, path)


def write_with_safetensors(path: Path) -> None:
    save_file({"x": torch.zeros(100_000)}, path)


@pytest.mark.parametrize("write", [write_text, write_with_torch, write_with_safetensors])
def test_every_writer_of_a_checkpoint_is_understood(tmp_path, write):
    """The kernel refuses to write more than 10 kB to a file; each library says so in its own way."""
    with limited_files(10_000), pytest.raises(TrainingStoppedError, match=r"could not be written.*no complete"):
        write_in(tmp_path, write)


@contextmanager
def limited_files(num_bytes: int):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def write_in(folder: Path, write) -> None:
    with writing_to(folder):
        write(folder / "file")


def test_other_errors_pass_as_they_are(tmp_path):
    for error in (RuntimeError("shapes differ"), OSError(errno.ENOENT, "no such file")):
        with pytest.raises(type(error), match=r"shapes differ|no such file"), writing_to(tmp_path):
            raise error


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a process to kill")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_first_signal_asks_and_the_second_kills():
    child = os.fork()
    if child == 0:
        with StopRequest().listening() as request:
            os.kill(os.getpid(), signal.SIGINT)
            number = request.agreed_signal()
            if number == signal.SIGINT:
                os.kill(os.getpid(), signal.SIGTERM)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGTERM


def test_another_thread_listens_to_nothing():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def listen():
        with StopRequest().listening() as request:
            seen.append((request.agreed_signal(), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert seen == [(0, before)]


# --- killed at any moment ------------------------------------------------------------------------------------------

NUM_KILLS = 20


def start(folder: Path, *words: str, launcher: tuple[str, ...] = (sys.executable,)) -> subprocess.Popen:
    """Start the script in a process group of its own; what it prints goes to a file beside its folder."""
    command = [*launcher, str(SCRIPT), *RUN, "--max_steps", "500", "--eval_steps", "10", "--save_steps", "10"]
    command += ["--dataloader_num_workers", "2", "--save_total_limit", "1", "--output_dir", str(folder), *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    with log_of(folder).open("a") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)


def log_of(folder: Path) -> Path:
    return folder.parent / f"{folder.name}.log"


def wait_for_a_new_checkpoint(process: subprocess.Popen, folder: Path, seconds: float = 300) -> None:
    """Return as soon as a new checkpoint folder appears, the process ends, or the time is over."""
    known, end = set(list_checkpoints(folder)), time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end and not set(list_checkpoints(folder)) - known:
        time.sleep(0.001)


def last_complete_step(folder: Path) -> int:
    checkpoint = last_complete_checkpoint(folder)
    return parse_step(checkpoint) if checkpoint else 0


@pytest.mark.slow
def test_run_killed_twenty_times_equals_the_whole_run(tmp_path):
    begin = time.monotonic()
    assert start(tmp_path / "whole").wait() == 0
    seconds = time.monotonic() - begin
    draws, folder, steps, num_incomplete = random.Random(0), tmp_path / "killed", [0], 0
    for kill in range(NUM_KILLS):
        process = start(folder, "--resume_from_checkpoint", "auto")
        if kill % 2:  # while it saves
            wait_for_a_new_checkpoint(process, folder)
            time.sleep(draws.uniform(0, 0.05))
        else:  # at any moment, those of importing included, but before it is through
            wait_for_a_new_checkpoint(process, folder, draws.uniform(0, seconds / 2))
            time.sleep(draws.uniform(0, 0.3))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        num_incomplete += not all(map(is_complete, list_checkpoints(folder)))
        steps.append(last_complete_step(folder))
    assert start(folder, "--resume_from_checkpoint", "auto").wait() == 0
    report = (
        f"{NUM_KILLS} kills, after {num_incomplete} of them an incomplete checkpoint; complete after each: {steps}; "
    )
    sys.stdout.write(report + f"whole run {seconds:.0f} s, all {time.monotonic() - begin:.0f} s\n")
    assert steps == sorted(steps)
    assert sha256_of(folder) == sha256_of(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signal_to_all_processes_of_a_run_stops_it_in_order(tmp_path, number):
    """As Ctrl-C in a terminal, and schedulers do: the workers that load images get the signal too."""
    folder = tmp_path / "run"
    process = start(folder)
    wait_for_a_new_checkpoint(process, folder)
    os.killpg(process.pid, number)
    assert process.wait() == 128 + number, log_of(folder).read_text()
    assert f", by {number.name}." in log_of(folder).read_text()
    assert last_complete_step(folder) > 10


TWO_PROCESSES = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def processes_of(launcher: subprocess.Popen) -> list[int]:
    """Return the processes that a launcher started."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    return [int(child) for child in children if b"run_train" in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes of a launcher in /proc")
def test_two_processes_agree_to_stop_and_go_on_as_if_they_had_not(tmp_path):
    words = ("--max_steps", "40")
    assert start(tmp_path / "whole", *words, launcher=TWO_PROCESSES).wait() == 0
    folder = tmp_path / "stopped"
    launcher = start(folder, *words, launcher=TWO_PROCESSES)
    wait_for_a_new_checkpoint(launcher, folder)
    os.kill(processes_of(launcher)[1], signal.SIGTERM)  # one of them is told, and not the one that saves
    assert launcher.wait() != 0
    assert ", by SIGTERM." in log_of(folder).read_text()
    assert 10 <= last_complete_step(folder) < 40  # 10 ends an epoch, which is still a moment to stop at
    checkpoint = last_complete_checkpoint(folder)
    listed = json.loads((checkpoint / COMPLETION_MARKER).read_text())["files"]
    assert {"rng_state_0.pth", "rng_state_1.pth", "model.safetensors", "optimizer.pt"} <= listed.keys()
    assert start(folder, *words, "--resume_from_checkpoint", "auto", launcher=TWO_PROCESSES).wait() == 0
    assert sha256_of(folder) == sha256_of(tmp_path / "whole")


@pytest.mark.slow
def test_disk_that_is_really_full_ends_the_run(tmp_path):
    """The folder of the run lies on a file system of 900 kB, which only the run itself sees."""
    mount = f"mount -t tmpfs -o size=900k none {tmp_path}/disk"
    (tmp_path / "disk").mkdir()
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "sh", "-c", mount]).returncode:
        pytest.skip("needs a file system of its own")
    listing = f"ls {tmp_path}/disk/run/*/{COMPLETION_MARKER}"
    launcher = ("unshare", "-rm", "sh", "-c", f'{mount} && {sys.executable} "$@"; code=$?; {listing}; exit $code', "-")
    process = start(tmp_path / "disk" / "run", "--save_total_limit", "9", launcher=launcher)
    assert process.wait() == NOT_WRITTEN_EXIT_CODE
    text = (tmp_path / "disk" / "run.log").read_text()
    assert "Traceback" not in text
    assert "could not be written" in text
    named = re.search(r"The last complete checkpoint is (\S+)\.\n", text)[1]
    assert f"{named}/{COMPLETION_MARKER}\n" in text
