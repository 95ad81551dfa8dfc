# SPDX-License-Identifier: Apache-2.0
"""Fetch the model tests of the installed transformers release from PyPI, for `make test-upstream`.

    python tests/upstream/fetch.py .cache/upstream

The source distribution of exactly the installed version (about 10 MB) is downloaded by pip, and its `tests/` become
the package `transformers_tests` in `.cache/upstream/<version>`. A second call finds them and does nothing. The source
distribution leaves out some modules that the tests import; what stands in for them is written here.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path


PACKAGE = "transformers_tests"

# A value that is not the default for every common argument of a configuration, to test that each is stored.
COMMON_ARGUMENTS = {
    "return_dict": False,
    "output_hidden_states": True,
    "dtype": "float16",
    "architectures": ["AnyModel"],
    "id2label": {0: "a", 1: "b", 2: "c"},
    "label2id": {"a": 0, "b": 1, "c": 2},
    "problem_type": "regression",
    "chunk_size_feed_forward": 5,
}

# Modules that the source distribution lacks. The first two are parents of test classes for features that need more
# than this machine has (ONNX and the like) or that our classes do not have (text generation).
STAND_INS = {
    "__init__.py": "",
    "exporters/__init__.py": "",
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/__init__.py": "",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/__init__.py": "",
    "utils/test_configuration_utils.py": f"config_common_kwargs = {COMMON_ARGUMENTS}\n",
}


def unpacked_folder(cache: Path) -> Path:
    """Return the folder that holds (or will hold) the package `transformers_tests` of the installed release."""
    return cache / importlib.metadata.version("transformers")


def fetch(cache: Path) -> Path:
    """Download and unpack the tests unless they are there.

    Args:
        cache: Folder for the tests of all releases.

    Returns:
        The folder to put on `sys.path`.
    """
    folder = unpacked_folder(cache)
    if not folder.is_dir():
        with tempfile.TemporaryDirectory() as download:
            unpack(download_sdist(Path(download)), Path(download) / "unpacked")
            folder.parent.mkdir(parents=True, exist_ok=True)
            # last, so that an interrupted run leaves nothing that looks complete
            shutil.move(Path(download) / "unpacked", folder)
    return folder


def download_sdist(folder: Path) -> Path:
    """Let pip download the source distribution of the installed transformers."""
    requirement = f"transformers=={importlib.metadata.version('transformers')}"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-qq", "download"]
    subprocess.run([*pip, "--no-deps", "--no-binary", "transformers", "--dest", folder, requirement], check=True)
    (sdist,) = folder.glob("transformers-*.tar.gz")
    return sdist


def unpack(sdist: Path, folder: Path) -> None:
    """Write the `tests/` of a source distribution and the stand-ins as a package below `folder`."""
    with tarfile.open(sdist) as archive:
        for member in archive:
            parts = Path(member.name).parts  # transformers-<version>, tests, ...
            if member.isfile() and len(parts) > 2 and parts[1] == "tests" and ".." not in parts:
                write(folder.joinpath(PACKAGE, *parts[2:]), archive.extractfile(member).read())
    for name, text in STAND_INS.items():
        if not (folder / PACKAGE / name).exists():
            write(folder / PACKAGE / name, text.encode())


def write(path: Path, content: bytes) -> None:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


if __name__ == "__main__":
    print(f"Model tests of transformers: {fetch(Path(sys.argv[1]))}")
