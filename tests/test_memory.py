# SPDX-License-Identifier: Apache-2.0
"""Memory of explaining large photographs: bounded by one image, however many there are in a batch or a run."""

from __future__ import annotations

import os
import resource
import shutil
import traceback

import pytest
from PIL import Image

from transformers_ice.cli.explain import PictureOptions, explain_files, load_explainer
from transformers_ice.export import AnnotationFiles, ExplanationPage
from transformers_ice.visualization import PICTURES


MOST = 40  # bytes per pixel: 21 are the maps, 3 the image, the rest is what drawing, coding and decoding take
MOST_DRAWN = 46  # of a panel and of a PDF, for which matplotlib copies the pixels
LARGE, MEDIUM = (6144, 4096), (4096, 3072)


@pytest.fixture(scope="module")
def explainer(pytestconfig):
    return load_explainer(str(pytestconfig.rootpath / "checkpoints" / "ice-deit-scenes-pruned"))


@pytest.fixture
def explain(explainer, pytestconfig, tmp_path):
    """Return a function that explains files; what libraries keep of a first figure was loaded before."""

    def run(paths: list, options: PictureOptions | None = None, batch_size: int = 8, **writers):
        return explain_files(
            explainer, paths, tmp_path / "out", None, batch_size, options=options or PictureOptions(), **writers
        )

    run([pytestconfig.rootpath / "docs/images/scene.png"])
    return run


@pytest.fixture
def photographs(pytestconfig, tmp_path):
    def write(size: tuple[int, int], number: int) -> list:
        scene = Image.open(pytestconfig.rootpath / "docs/images/scene.png").convert("RGB")
        paths = [tmp_path / f"{size[0]}-{index}.jpg" for index in range(number)]
        scene.resize(size, Image.Resampling.BICUBIC).save(paths[0])
        for path in paths[1:]:
            shutil.copy(paths[0], path)
        return paths

    return write


def peak_of(call) -> int:
    """Return by how many bytes a call raises the peak memory of a process of its own."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            call()
            os.write(write, str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before).encode())
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    assert answer, "the call failed in its process"
    return 1024 * int(answer)


@pytest.mark.slow
def test_memory_of_the_command_is_that_of_one_image(explain, photographs):
    paths = photographs(MEDIUM, 2)
    assert peak_of(lambda: explain(paths)) / (MEDIUM[0] * MEDIUM[1]) <= MOST


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 6])
@pytest.mark.parametrize("picture", PICTURES)
def test_memory_of_every_figure_is_that_of_one_image(explain, photographs, picture, number):
    paths, options = photographs(LARGE, number), PictureOptions(picture)
    explain(photographs((64, 64), 1), options)
    most = MOST_DRAWN if picture == "panel" else MOST
    assert peak_of(lambda: explain(paths, options, 6)) / (LARGE[0] * LARGE[1]) <= most


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "scale"), [("svg", 1.0), ("pdf", 1.0), ("png", 0.5)])
def test_memory_of_drawn_figures_is_that_of_one_image(explain, photographs, suffix, scale):
    paths, options = photographs(LARGE, 2), PictureOptions("mask", suffix, scale)
    most = MOST_DRAWN if suffix == "pdf" else MOST
    assert peak_of(lambda: explain(paths, options)) / (LARGE[0] * LARGE[1]) <= most


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["coco", "labelme", "voc"])
def test_memory_of_annotations_and_the_page_is_that_of_one_image(explainer, explain, photographs, tmp_path, kind):
    paths, out, names = photographs(LARGE, 2), tmp_path / "out", explainer.model.config.id2label
    writers = {"annotations": AnnotationFiles(kind, out, names), "page": ExplanationPage(out, names)}
    assert peak_of(lambda: explain(paths, **writers)) / (LARGE[0] * LARGE[1]) <= MOST


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 6])
def test_memory_of_the_pipeline_is_that_of_one_image(explainer, photographs, batch_size):
    paths = photographs(LARGE, 6)

    def call():
        results = explainer((str(path) for path in paths), batch_size=batch_size)
        for result in results:
            assert result["found"]
            del result  # otherwise its maps are kept while the next ones are made

    assert peak_of(call) / (LARGE[0] * LARGE[1]) <= MOST
