# SPDX-License-Identifier: Apache-2.0
"""Commands on a disk that is full: a sentence that names the file, what was there is unchanged, no half file."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from test_trainer_push import ROOT, WORDS
from warm_python import WarmPython


FREE = (0, 12, 60)  # kB; a page has four
SIZE = 48 * 1024


class Disk:
    """A file system in memory that one warm python sees, as `folder`; from here the way to it is `seen`."""

    def __init__(self, folder: Path) -> None:
        mount = f'mount -t tmpfs -o size={SIZE}k none {folder} && exec "$@"'
        self.folder = folder
        self.python = WarmPython(launcher=("unshare", "-rm", "sh", "-c", mount, "-"))
        self.seen = Path(f"/proc/{self.python.server.pid}/root{folder}")

    def run(self, *words: object) -> subprocess.CompletedProcess:
        command = [self.python.python, *map(str, words)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/")

    def fill(self, free: int) -> None:
        """Leave some kB."""
        filler = self.seen / "filler"
        with filler.open("wb") as file:
            while (space := os.statvfs(self.seen).f_bavail * 4 - free) > 0:
                file.write(bytes(min(space, 4096) * 1024))
                file.flush()

    def empty(self) -> None:
        (self.seen / "filler").unlink()

    def digests(self) -> dict[str, str]:
        """Return the digests of the files under their final names."""
        files = [path for path in self.seen.rglob("*") if path.is_file() and path.name != "filler"]
        return {
            str(path.relative_to(self.seen)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files
            if not any(part.startswith(".") for part in path.relative_to(self.seen).parts) and path.suffix != ".part"
        }


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("disk")
    if (
        shutil.which("unshare") is None
        or subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "x", folder]).returncode
    ):
        pytest.skip("needs a file system of its own")
    disk = Disk(folder)
    finished = disk.run(ROOT / "scripts/run_train.py", *WORDS, "--output_dir", folder / "model", "--save_steps", "2")
    assert finished.returncode == 0, finished.stderr
    (disk.seen / "names.json").write_text('["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"]')
    rng = np.random.default_rng(0)
    (disk.seen / "photos").mkdir()
    for number in range(4):
        Image.fromarray(rng.integers(0, 255, (96, 96, 3), np.uint8)).save(disk.seen / "photos" / f"{number}.png")
    yield disk
    disk.python.close()


def is_whole(file: Path) -> bool:
    """Return whether a file is complete, by its format."""
    try:
        if file.suffix == ".json":
            json.loads(file.read_text())
        elif file.suffix == ".png":
            Image.open(file).load()
        elif file.suffix == ".npz":
            np.load(file, allow_pickle=False).values()
        elif file.suffix == ".safetensors":
            load_file(file)
        elif file.suffix == ".html":
            assert file.read_text().endswith("</html>\n")
        else:
            assert file.stat().st_size
    except Exception:
        return False
    return True


# name: (script, arguments of the former run, what the run on the full disk has besides, its exit code); MODEL is the
# folder of a trained model, OUT that of the outputs, DISK holds both
EXPLAIN = "DISK/photos --model MODEL --output_dir OUT"
EVALUATE = "--models MODEL --benchmark classification segmentation --limit 4 --measure_cost false --output_dir OUT"
REPORT = "--checkpoint MODEL --output_dir DISK/elsewhere --overwrite_output_dir --report OUT/report.json"
EXPORT = "--model MODEL --output OUT/a.onnx --batch_sizes 1 2 --report OUT/report.json"
RESUME = "--max_steps 4 --resume_from_checkpoint auto"
COMMANDS = {
    "train": ("run_train.py", f"{' '.join(WORDS)} --output_dir OUT", RESUME, 4),
    "explain": ("explain_images.py", f"{EXPLAIN} --html", "--picture panel --scale 2", 1),
    "annotations": ("explain_images.py", EXPLAIN, "--picture panel --scale 2 --annotations coco", 1),
    "evaluate": ("run_evaluation.py", EVALUATE, "--limit 8", 1),
    "convert": ("convert_checkpoint.py", "--checkpoint MODEL --output_dir OUT", "--overwrite_output_dir", 1),
    "report of the converter": ("convert_checkpoint.py", REPORT, "--id2label DISK/names.json", 1),
    "export": ("export_onnx.py", EXPORT, "--int8", 1),
    "card": ("write_model_card.py", "MODEL", "--license cc-by-4.0", 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_ends_in_a_sentence_and_changes_nothing(disk, name):
    script, words, more, code = COMMANDS[name]
    out = disk.folder / name.replace(" ", "_")

    def run(words: str) -> subprocess.CompletedProcess:
        for place, path in {"MODEL": disk.folder / "model", "OUT": out, "DISK": disk.folder}.items():
            words = words.replace(place, str(path))
        return disk.run(ROOT / "scripts" / script, *words.split())

    finished = run(words)
    assert finished.returncode == 0, finished.stderr
    before = disk.digests()
    for free in FREE if name != "card" else FREE[:1]:  # a card has a few kB
        disk.fill(free)
        try:
            finished = run(f"{words} {more}")
        finally:
            disk.empty()
        after = disk.digests()
        last = (finished.stderr.strip() or finished.stdout.strip()).splitlines()[-1]
        # a folder checkpoint-N counts by its marker: incomplete ones are overwritten
        files = {file for file in before.keys() | after.keys() if "/checkpoint-" not in file}
        changed = sorted(file for file in files if before.get(file) != after.get(file))
        half = [file for file in changed if file in after and not is_whole(disk.seen / file)]
        lost = [file for file in changed if file not in after]
        sys.stdout.write(f"{name}, {free} kB: {finished.returncode}, changed {changed[:8]}, half {half}\n  {last}\n")
        assert "Traceback" not in finished.stderr
        assert finished.returncode == code, finished.stderr
        sentences = [
            line for line in finished.stderr.splitlines() if "could not be written" in line or "Error: " in line
        ]
        assert len(sentences) == 1
        assert str(disk.folder) in sentences[0]
        assert "No space left" in sentences[0]
        assert half == [] == lost
        before = after
    assert run(f"{words} {more}").returncode == 0


IN_FULL_FOLDER = "import runpy, sys, tempfile; tempfile.tempdir, *sys.argv = sys.argv[1:]; "
IN_FULL_FOLDER += "runpy.run_path(sys.argv[0], run_name='__main__')"


@pytest.mark.slow
@pytest.mark.parametrize("free", FREE)
def test_publishing_with_a_full_folder_of_temporary_files(disk, free):
    before = disk.digests()
    disk.fill(free)
    words = [ROOT / "scripts/publish_checkpoint.py", disk.folder / "model", "owner/m", "--dry_run"]
    try:
        finished = disk.run("-c", IN_FULL_FOLDER, disk.folder, *words)
    finally:
        disk.empty()
    sys.stdout.write(f"publish, {free} kB: {finished.returncode}\n  {finished.stderr}\n")
    assert finished.returncode == 1
    assert "Traceback" not in finished.stderr
    assert len(finished.stderr.splitlines()) == 1
    assert finished.stderr.startswith("Error: ")
    assert str(disk.folder) in finished.stderr
    assert disk.digests() == before
