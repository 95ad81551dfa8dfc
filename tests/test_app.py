# SPDX-License-Identifier: Apache-2.0
"""The app without a browser: what it answers, what it refuses, and what its server gives away."""

from __future__ import annotations

import ast
import asyncio
import base64
import json
import os
import re
import resource
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, pipeline

import transformers_ice
from transformers_ice import IceDeiTConfig, IceDeiTForImageClassification, IceDeiTImageProcessor


gr = pytest.importorskip("gradio", reason="the app needs the extra `app`")

from transformers_ice import app as app_package  # noqa: E402
from transformers_ice.app import AppArguments, launch_app, parse_app_arguments  # noqa: E402
from transformers_ice.app import limits as limits_module  # noqa: E402
from transformers_ice.app import page as page_module  # noqa: E402
from transformers_ice.app.analysis import explain_image, load_model, prepare_image  # noqa: E402
from transformers_ice.app.examples import draw_examples, read_examples  # noqa: E402
from transformers_ice.app.fragments import answer_html, caption_html, explanation_to_json, figures_html, header_html  # noqa: E402
from transformers_ice.app.limits import Deadline, Limits, RequestError, Worker, read_upload  # noqa: E402
from transformers_ice.app.methods import available_methods, compare_methods, method_title  # noqa: E402
from transformers_ice.app.page import FOREGROUND, Handlers, build_page  # noqa: E402
from transformers_ice.app.pictures import (  # noqa: E402
    VIEWS,
    Picture,
    View,
    draw_class_map,
    draw_cut_out,
    draw_heatmap,
    draw_kept_patches,
    draw_mask,
    draw_method,
)
from transformers_ice.app.pruning import PruningSetting, measure_pruning, missing_heads  # noqa: E402
from transformers_ice.app.server import UploadFolder  # noqa: E402
from transformers_ice.explainers import EXPLAINERS, Explainer  # noqa: E402


ROOT = Path(__file__).resolve().parents[1]
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "initializer_range": 0.3,
    "id2label": {0: "cat", 1: "dog", 2: "<b>hen</b>"},
    "label2id": {"cat": 0, "dog": 1, "<b>hen</b>": 2},
}
PRUNING = {"pruning_strategy": "background", "pruning_layers": [1, 2], "keep_rates": [0.5, 0.5]}


def save_model(folder: Path, **fields) -> Path:
    torch.manual_seed(1)
    IceDeiTForImageClassification(IceDeiTConfig(**SIZES, **fields)).save_pretrained(folder)
    IceDeiTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("ice"))


@pytest.fixture(scope="module")
def loaded(folder):
    return load_model(str(folder))


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    return load_model(str(save_model(tmp_path_factory.mktemp("pruned"), **PRUNING)))


def noise(height=48, width=64, dtype=np.uint8, channels=(3,)):
    top = np.iinfo(dtype).max
    return np.random.default_rng(0).integers(0, top, (height, width, *channels), dtype=dtype, endpoint=True)


@pytest.fixture
def photo(tmp_path):
    Image.fromarray(noise()).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_explanation_is_that_of_the_pipeline(loaded, folder, photo):
    with Image.open(photo) as image:
        explanation = explain_image(loaded, prepare_image(loaded, image))
    expected = pipeline("patch-explanation", model=str(folder))(str(photo))
    assert explanation.shown.label == expected["label"]
    assert explanation.shown.score == pytest.approx(expected["score"], abs=1e-6)  # the same float32 arithmetic
    assert dict(zip(("xmin", "ymin", "xmax", "ymax"), explanation.box, strict=True)) == expected["box"]
    assert explanation.shown.foreground_ratio == pytest.approx(expected["foreground_ratio"])


def test_maps_have_the_size_in_which_the_picture_is_shown(loaded):
    for side, shown in ((48, (480, 640)), (3000, (1280, 1280))):
        width = 64 if side == 48 else side
        image = prepare_image(loaded, Image.fromarray(noise(side, width)))
        explanation = explain_image(loaded, image)
        assert image.shown.shape == (*shown, 3)
        assert explanation.shown.heatmap.shape == explanation.shown.class_map.shape == shown
        assert explanation.shown.mask.shape == shown
        assert image.size == (side, width)


def test_target_changes_the_heat_map_and_nothing_else(loaded):
    image = prepare_image(loaded, Image.fromarray(noise()))
    foreground, dog = explain_image(loaded, image), explain_image(loaded, image, target=1)
    assert not np.allclose(foreground.shown.heatmap, dog.shown.heatmap)
    assert foreground.shown.label == dog.shown.label
    assert foreground.box == dog.box
    np.testing.assert_array_equal(foreground.shown.class_map, dog.shown.class_map)


def test_checkpoint_of_another_kind_is_refused_with_a_way_out(tmp_path):
    ViTForImageClassification(ViTConfig(**SIZES)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="must hold an ICE model"):
        load_model(str(tmp_path))


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(noise(dtype=np.uint16, channels=())),
        Image.fromarray(noise(channels=())),
        Image.fromarray(noise(channels=(4,))),
        Image.fromarray(noise()).convert("P"),
        Image.fromarray(noise(1, 1)),
    ],
    ids=["16 bits", "grey", "RGBA", "palette", "one pixel"],
)
def test_pictures_of_every_kind_are_explained(loaded, image, tmp_path):
    image.save(tmp_path / "picture.png")
    explanation = explain_image(loaded, prepare_image(loaded, read_upload(tmp_path / "picture.png", Limits())))
    assert 0 <= explanation.shown.score <= 1


def test_uploads_that_cannot_be_taken_are_refused_in_plain_words(photo, tmp_path):
    content = photo.read_bytes()
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "torn.png").write_bytes(content[: len(content) // 2])
    Image.new("1", (20000, 20000)).save(tmp_path / "vast.png")
    Image.new("1", (1, 65536)).save(tmp_path / "long.png")
    for name in ("icon.ico", "other.tga"):
        Image.new("RGB", (32, 32)).save(tmp_path / name)
    for name, limits, words in (
        ("text.png", Limits(), "not a picture"),
        ("torn.png", Limits(), "damaged or incomplete"),
        ("photo.png", Limits(max_pixels=48 * 64 - 1), "64 x 48 pixels"),
        ("photo.png", Limits(max_upload_mb=0.001), "at most 0.001 MB"),
        ("vast.png", Limits(), "178 million"),
        ("long.png", Limits(), "65,535 on a side"),
        # formats that the page does not name: an icon holds pictures of other sizes than it says, and decodes them
        ("icon.ico", Limits(), "not a picture"),
        ("other.tga", Limits(), "not a picture"),
    ):
        with pytest.raises(RequestError, match=words):
            read_upload(tmp_path / name, limits)
    assert read_upload(photo, Limits(max_pixels=48 * 64)).size == (64, 48)


def work_until_it_is_over(deadline: Deadline) -> None:
    while True:
        time.sleep(0.02)
        deadline.check()


def test_visitor_waits_no_longer_than_the_limit_and_the_next_one_is_served():
    worker, deadline = Worker(), Deadline(0.2)
    start = time.monotonic()
    with pytest.raises(RequestError, match=r"longer than the 0\.2 seconds"):
        asyncio.run(worker.run(lambda: work_until_it_is_over(deadline), deadline))
    assert time.monotonic() - start < 2
    time.sleep(0.1)
    assert asyncio.run(worker.run(lambda: "served", Deadline(10))) == "served"


def test_the_time_of_a_request_runs_while_it_waits():
    async def wait_for_two(worker: Worker) -> list[Any]:
        first, second = Deadline(5), Deadline(0.3)
        runs = worker.run(lambda: time.sleep(1), first), worker.run(lambda: "late", second)
        start = time.monotonic()
        results = await asyncio.gather(*runs, return_exceptions=True)
        assert time.monotonic() - start < 3
        return results

    none, late = asyncio.run(wait_for_two(Worker()))
    assert none is None
    assert "longer than the 0.3 seconds" in str(late)


def test_work_for_absent_visitors_is_not_done(monkeypatch):
    monkeypatch.setattr(limits_module, "_LISTEN_SECONDS", 0.5)
    done = []

    async def leave_and_come(worker: Worker) -> list[Any]:
        left = [worker.run(lambda: done.append("left"), Deadline(20, lambda: False)) for _ in range(12)]
        return await asyncio.gather(
            *left, worker.run(lambda: done.append("came"), Deadline(20)), return_exceptions=True
        )

    start = time.monotonic()
    *left, came = asyncio.run(leave_and_come(Worker()))
    assert done == ["came"]
    assert came is None
    assert all("Nobody waits" in str(error) for error in left)
    assert time.monotonic() - start < 5
    leaving = iter([True, True, False])  # while the work is done
    deadline = Deadline(20, lambda: next(leaving, False))
    with pytest.raises(RequestError, match="Nobody waits"):
        asyncio.run(Worker().run(lambda: work_until_it_is_over(deadline), deadline))


def test_more_requests_than_may_wait_are_told_so(monkeypatch):
    monkeypatch.setattr(limits_module, "MAX_WAITING", 2)

    async def crowd(worker: Worker) -> list[Any]:
        runs = [worker.run(lambda: time.sleep(0.05), Deadline(10)) for _ in range(6)]
        return await asyncio.gather(*runs, return_exceptions=True)

    results = asyncio.run(crowd(Worker()))
    assert 2 <= results.count(None) < 6
    assert all("The app is busy: 2 requests" in str(result) for result in results if result is not None)


def test_every_explainer_has_a_title_of_its_own():
    titles = {name: method_title(name) for name in EXPLAINERS}
    assert len(set(titles.values())) == len(EXPLAINERS)
    assert titles["raw_attention"] == "Raw attention"  # from its name
    assert titles["token_grad_cam"] == EXPLAINERS["token_grad_cam"].title == "Token Grad-CAM"


def test_registered_explainer_is_offered_by_its_title(loaded, monkeypatch):
    def brightness(model, pixel_values, target=None):
        return pixel_values.mean(dim=1)

    monkeypatch.setitem(EXPLAINERS, "brightness", Explainer(brightness, takes_target=False, title="How bright"))
    assert available_methods()["brightness"] == "How bright"
    image = prepare_image(loaded, Image.fromarray(noise()))
    (result,) = compare_methods(loaded, image, ["brightness"], None, Deadline(60))
    assert (result.name, result.knows_target, result.heatmap.shape) == ("How bright", False, image.shown_size)


def test_map_of_a_method_fits_the_picture(loaded):
    image = prepare_image(loaded, Image.fromarray(noise()))
    chosen = ["rollout", "grad_cam", "full_lrp"]
    assert set(chosen) <= set(available_methods())
    for result in compare_methods(loaded, image, chosen, 1, Deadline(60)):
        assert result.heatmap.shape == image.shown_size
        assert result.heatmap.min() == 0
        assert result.heatmap.max() == pytest.approx(1)
        assert result.milliseconds > 0


def test_method_that_fails_says_so_and_the_others_go_on(loaded, monkeypatch):
    image = prepare_image(loaded, Image.fromarray(noise()))

    def fail(*_, **__):
        raise ValueError("`model` must have one more layer. Add it.")

    monkeypatch.setattr("transformers_ice.app.methods.explain", fail)
    (result,) = compare_methods(loaded, image, ["rollout"], None, Deadline(60))
    assert result.heatmap is None
    assert draw_method(image, result, np.ones(image.shown_size, bool)).caption == (
        "Attention rollout: no map. `model` must have one more layer."
    )
    with pytest.raises(RequestError, match="longer than"):
        compare_methods(loaded, image, ["rollout"], None, Deadline(0))


@pytest.mark.parametrize("strategy", ["background", "top_k", "attentiveness"])
def test_pruned_run_is_shown_next_to_the_unpruned_one(pruned, strategy):
    before = pruned.model.config.to_dict()
    image = prepare_image(pruned, Image.fromarray(noise()))
    result = measure_pruning(pruned, image, PruningSetting(strategy, margin=-1.0, keep_rate=0.5), Deadline(60))
    assert result.unpruned.tokens_per_layer == [17] * 4
    assert result.pruned.mmacs < result.unpruned.mmacs
    assert result.unpruned.milliseconds.median > 0
    assert result.exit_layers.shape == (4, 4)
    pictures = draw_kept_patches(image, result)
    assert len(pictures) == len(result.pruning_steps)
    for layer, picture in zip(result.pruning_steps, pictures, strict=True):
        assert (
            picture.caption
            == f"Pruning at layer {layer} · {(result.exit_layers > layer).sum()} of 16 patches are kept"
        )
    assert pruned.model.config.to_dict() == before, "the model that explains stays as it was"


def test_strategy_without_heads_is_refused_with_a_way_out(loaded, pruned):
    image = prepare_image(loaded, Image.fromarray(noise()))
    for strategy in ("background", "top_k"):
        with pytest.raises(RequestError, match="“Attentiveness” needs no heads"):
            measure_pruning(loaded, image, PruningSetting(strategy), Deadline(60))
        assert not missing_heads(pruned, strategy)
    result = measure_pruning(loaded, image, PruningSetting("attentiveness", keep_rate=0.5), Deadline(60))
    assert result.pruned.tokens_per_layer[-1] < 17


def test_alt_texts_describe_the_images(loaded):
    image = prepare_image(loaded, Image.fromarray(noise()))
    explanation = explain_image(loaded, image, target=1)
    heat = draw_heatmap(loaded, image, explanation)
    share = 100 * explanation.shown.heatmap.mean()
    assert heat.caption.startswith(f"Heat map: probability of “dog”, {share:.0f} % on average over the picture")
    classes = draw_class_map(loaded, image, explanation)
    assert f"background {100 * (explanation.shown.class_map == 3).mean():.0f} %" in classes.caption
    assert len(classes.legend) == len(np.unique(explanation.shown.class_map)) + (3 not in explanation.shown.class_map)
    box = explanation.box
    assert (
        f"from column {box[0]} to {box[2]} and from row {box[1]} to {box[3]}"
        in draw_mask(loaded, image, explanation).caption
    )


def test_names_of_classes_cannot_smuggle_html_into_the_page(loaded):
    image = prepare_image(loaded, Image.fromarray(noise()))
    explanation = explain_image(loaded, image, target=2)
    heat = draw_heatmap(loaded, image, explanation)
    for html in (answer_html(explanation), caption_html(heat), figures_html([Picture(image.shown, "<i>a</i> · b")])):
        assert "<b>" not in html
        assert "<i>a" not in html
        assert "&lt;" in html


def test_figure_is_a_png_that_can_be_saved():
    html = figures_html([Picture(noise(600, 800), "Grad-CAM · 12 ms")])
    assert 'alt="Grad-CAM · 12 ms"' in html
    assert 'download="grad-cam.png"' in html
    data = base64.b64decode(re.search(r'href="data:image/png;base64,([^"]+)"', html)[1])
    assert data.startswith(b"\x89PNG")


def test_record_holds_what_was_found(loaded):
    image = prepare_image(loaded, Image.fromarray(noise()))
    explanation = explain_image(loaded, image)
    record = json.loads(json.dumps(explanation_to_json(loaded, explanation)))
    assert set(record) == {"model", "label", "score", "scores", "found", "box", "target", "foreground_ratio"}
    assert (record["model"], record["found"], record["target"]) == (Path(loaded.name).name, True, None)
    assert record["label"] == explanation.shown.label
    assert set(record["box"]) == {"xmin", "ymin", "xmax", "ymax"}


def test_picture_in_which_nothing_is_found_has_a_sentence_and_no_bars_and_no_box(folder, photo):
    empty = load_model(str(folder))
    empty.model.config.logits_source = "patch"
    head = empty.model.deit.patch_head = torch.nn.Linear(32, 4)
    torch.nn.init.zeros_(head.weight)
    head.bias.data = torch.tensor([0.0, 0.0, 0.0, 9.0])  # background everywhere
    answer = Handlers(empty, Limits()).explain(str(photo), FOREGROUND)
    assert "Nothing the model knows" in answer["answer"]
    assert "ice-scores" not in answer["answer"]
    assert "no foreground" in answer["mask-caption"]
    assert "nothing is kept" in answer["cutout-caption"]
    content = json.loads(base64.b64decode(re.search(r'base64,([^"]+)"', answer["download"])[1]))
    assert (content["found"], content["box"]) == (False, None)


@pytest.mark.parametrize(
    ("class_map", "classes", "mask", "cut"),
    [
        ([[3, 3, 3]], "background 100 %", "no foreground", "nothing is kept"),
        (
            [[0, 0, 0]],
            "“cat” 100 %, background 0 %",
            "covers 100 %",
            "100 % of the picture is kept in colour, as “cat”",
        ),
        ([[0, 1, 2]], "“cat” 34 %, “dog” 33 %, “<b>hen</b>” 33 %, background 0 %", "covers 100 %", "as 3 classes"),
        ([[0] * 5 + [1] * 5 + [3] * 190], "“cat” 3 %, “dog” 2 %, background 95 %", "covers 5 %", "as 2 classes"),
    ],
)
def test_captions_agree_with_the_maps_and_add_up(loaded, class_map, classes, mask, cut):
    shape = np.shape(class_map)
    image = prepare_image(loaded, Image.fromarray(noise()))
    image = replace(image, shown=np.zeros((*shape, 3), np.uint8))
    whole = np.array(class_map)
    box = None if (whole == 3).all() else (0, 0, 1, 1)
    explanation = explain_image(loaded, image)
    shown = replace(explanation.shown, class_map=whole, mask=whole != 3, heatmap=np.zeros(shape, np.float32), box=box)
    explanation = replace(explanation, shown=shown, box=box)
    assert draw_class_map(loaded, image, explanation).caption == f"Class map: {classes} of the picture."
    assert mask in draw_mask(loaded, image, explanation).caption
    assert cut in draw_cut_out(loaded, image, explanation).caption


def test_page_names_an_untrained_patch_head(loaded):
    source = loaded.model.config.logits_source
    for loaded.model.config.logits_source, says in (("cls", True), ("patch", False)):
        assert ("counts as untrained" in header_html(loaded)) == says
    loaded.model.config.logits_source = source


def test_page_shows_no_path_and_no_scenes_of_a_model_of_other_classes(loaded, photo):
    def values(page) -> str:
        return " ".join(str(getattr(block, "value", "")) for block in page.blocks.values())

    assert "scenes" not in values(build_page(loaded, Limits()))
    folder = str(Path(loaded.name).parent)
    assert folder not in values(build_page(loaded, Limits()))
    assert folder not in json.dumps(build_page(loaded, Limits()).get_config_file(), default=str)
    ((image, name),) = read_examples(str(photo.parent), Limits())
    assert (image.size, name) == ((64, 48), "photo")
    names = {function.api_name for function in build_page(loaded, Limits(), examples=[(image, name)]).fns.values()}
    assert "load" in names
    with pytest.raises(ValueError, match="must be a folder of images"):
        read_examples(str(photo), Limits())


def test_examples_are_held_out_scenes_of_different_classes():
    examples = draw_examples()
    assert len({name for _, name in examples}) == len(examples) == 8
    assert all(image.size == (512, 512) for image, _ in examples)


def test_handlers_answer_pictures_errors_and_nothing(loaded, photo, tmp_path):
    handlers = Handlers(loaded, Limits())
    explained = handlers.explain(str(photo), FOREGROUND)
    assert "Explained 64 x 48 pixels" in explained["status"]
    assert "ice-scores" in explained["answer"]
    assert explained["heat"]["alt_text"].split("“")[0] in explained["heat-caption"]
    assert "explanation.json" in explained["download"]
    (tmp_path / "text.png").write_text("no picture")
    refused = handlers.explain(str(tmp_path / "text.png"), FOREGROUND)
    assert 'role="alert"' in refused["status"]
    assert [refused[view.name] for view in VIEWS] == [None] * len(VIEWS)
    assert explained.keys() == refused.keys() == handlers.explain(None, FOREGROUND).keys()
    compared = handlers.compare(str(photo), 1, ["rollout"])
    assert compared["comparison"].count("<figure>") == 2
    assert "next to 1 other," in compared["comparison-status"]
    assert handlers.compare(str(photo), 1, ["rollout"] * 100)["comparison"].count("<figure>") == 2, "each once"
    late = Deadline(0)
    for answer in (handlers.explain(str(photo), 1, late), handlers.compare(str(photo), 1, [], late)):
        assert "longer than the 0 seconds" in next(iter(answer.values()))
    refused = handlers.prune(str(photo), "top_k", 0.0, 0.7)
    assert 'role="alert"' in refused["pruning-status"]
    assert refused["kept"] == refused["pruning-numbers"] == ""
    assert "<table" in handlers.prune(str(photo), "attentiveness", 0.0, 0.5)["pruning-numbers"]
    assert "Drop a picture" in handlers.compare(None, FOREGROUND, ["rollout"])["comparison-status"]


def test_a_new_view_is_one_entry_of_the_table(loaded, photo, monkeypatch):
    def draw_grey(loaded, image, explanation):
        return Picture(np.zeros_like(image.shown), f"Grey: {explanation.shown.label}")

    view = View("grey", "Grey", "Grey: nothing", draw_grey)
    monkeypatch.setattr(page_module, "VIEWS", (VIEWS[0], view, *VIEWS[1:]))
    explained = Handlers(loaded, Limits()).explain(str(photo), FOREGROUND)
    assert explained["grey"]["alt_text"].startswith("Grey: ")
    assert "Grey: " in explained["grey-caption"]
    assert explained["classes"]["alt_text"].startswith("Class map: ")
    assert Handlers(loaded, Limits()).explain(None, FOREGROUND)["grey"] is None
    page = build_page(loaded, Limits())
    (block,) = [block for block in page.blocks.values() if getattr(block, "elem_id", "") == "grey"]
    assert (block.label, block.alt_text) == ("Grey", "Grey: nothing")
    (event,) = [function for function in page.fns.values() if function.api_name == "explain"]
    assert [output.elem_id for output in event.outputs] == list(explained), "each answer has its component"


def test_every_view_says_what_it_shows_and_has_its_own_name(loaded, photo):
    explained = Handlers(loaded, Limits()).explain(str(photo), FOREGROUND)
    assert len({view.name for view in VIEWS}) == len(VIEWS)
    for view in VIEWS:
        assert view.alt_text.startswith(f"{view.title}: ")
        assert explained[view.name]["alt_text"].startswith(f"{view.title}: ")
        assert ("ice-scale" in explained[view.caption_name]) == view.shows_scale


def answer_of_event(page, name, *values):
    """Return what gradio sends for an event, by the name of the component."""
    (event,) = [function for function in page.fns.values() if function.api_name == name]
    result = asyncio.run(page.process_api(event, list(values), explicit_call=True))
    return dict(zip([output.elem_id for output in event.outputs], result["data"], strict=True))


def test_answers_reach_the_components_of_their_names(loaded):
    page = build_page(loaded, Limits())
    answer = answer_of_event(page, "explain", None, FOREGROUND)
    assert "Drop a picture" in answer["status"]
    assert "ice-answer" in answer["answer"]
    assert answer["heat-caption"] == answer["download"] == ""
    answer = answer_of_event(page, "prune", None, "attentiveness", 0.0, 0.5)
    assert "Drop a picture" in answer["pruning-status"]
    assert answer["kept"] == answer["pruning-numbers"] == ""


def test_page_opens_no_doors(loaded):
    page = build_page(loaded, Limits())
    assert not page.analytics_enabled
    assert {function.api_visibility for function in page.fns.values()} == {"private"}
    labels = [
        getattr(block, "label", None)
        for block in page.blocks.values()
        if isinstance(block, gr.components.FormComponent)
    ]
    assert labels
    assert all(labels)


def test_only_page_and_theme_import_gradio_when_they_are_imported():
    for path in sorted(Path(app_package.__file__).parent.glob("*.py")):
        top = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in top if isinstance(node, ast.ImportFrom)}
        assert ("gradio" in names) == (path.stem in ("page", "theme")), path.name


def test_arguments_are_checked(capsys):
    arguments = parse_app_arguments(["--max_upload_mb", "5", "--timeout_s", "3", "--port", "8000"])
    assert arguments.limits == Limits(max_upload_mb=5.0, timeout_s=3.0)
    assert (arguments.model, arguments.host, arguments.port) == ("checkpoints/ice-deit-scenes", None, 8000)
    for words, message in (
        (["--timeout_s", "0"], "timeout_s"),
        (["--port", "99999"], "must lie in [1, 65535], got 99999"),
        (["--port", "-1"], "must lie in [1, 65535], got -1"),
        (["--port", "0"], "must lie in [1, 65535], got 0"),
        (["--max_upload", "5"], "did you mean --max_upload_mb"),
    ):
        with pytest.raises(SystemExit):
            parse_app_arguments(words)
        assert message in capsys.readouterr().err


def test_script_says_what_is_wrong_with_a_model(capsys, tmp_path):
    from transformers_ice.cli import app as run_app

    assert run_app.main(["--model", str(tmp_path)]) == 1
    assert "Error:" in capsys.readouterr().err


@pytest.fixture(scope="module")
def server(folder):
    """The address of a running app."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    page = launch_app(AppArguments(model=str(folder), port=port, max_upload_mb=1), block=False)
    yield f"http://127.0.0.1:{port}"
    page.close()


def status_of(request) -> int:
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


def test_server_gives_away_its_own_files_only(server, folder):
    assert status_of(f"{server}/") == 200
    files = ["/etc/passwd", f"{folder}/config.json", f"{folder}/model.safetensors", __file__, "pyproject.toml"]
    files += ["../../../../etc/passwd", str(ROOT / "checkpoints/ice-deit-scenes/config.json")]
    for file in files:
        assert status_of(f"{server}/gradio_api/file={file}") in (403, 404), file


def test_server_fetches_nothing_for_visitors_from_elsewhere(server):
    for address in ("http://127.0.0.1:1/", "file:///etc/passwd"):
        assert status_of(f"{server}/gradio_api/file={address}") >= 400


def events_of(server) -> dict[str, int]:
    """Return the numbers of the events by name, as the page gets them."""
    with urllib.request.urlopen(f"{server}/config", timeout=20) as response:
        return {event["api_name"]: event["id"] for event in json.load(response)["dependencies"]}


def join(server, number, data, session="s") -> Any:
    """Send an event as the page does; return the reply, and the status where it is refused."""
    body = json.dumps({"fn_index": number, "data": data, "session_hash": session}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{server}/gradio_api/queue/join", body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["detail"]


def answer_of(server, name, *data) -> str:
    """Return what an event answers."""
    session = secrets.token_hex(6)
    assert "event_id" in join(server, events_of(server)[name], data, session)
    with urllib.request.urlopen(f"{server}/gradio_api/queue/data?session_hash={session}", timeout=60) as response:
        return response.read().decode()


def upload(server, content: bytes) -> str:
    """Upload a file as the page does; return its path on the server."""
    form = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + content + b"\r\n--x--\r\n"
    )
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    request = urllib.request.Request(f"{server}/gradio_api/upload", form, headers=headers)
    with urllib.request.urlopen(request, timeout=20) as response:
        return json.load(response)[0]


def test_server_advertises_no_interface_beside_the_page(server):
    with urllib.request.urlopen(f"{server}/gradio_api/info", timeout=20) as response:
        information = json.load(response)
    assert information == {"named_endpoints": {}, "unnamed_endpoints": {}}


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", str(ROOT / "docs/images/scene.png"), "http://example.org/a.png", "https://example.org/a.png"],
)
def test_paths_and_addresses_instead_of_images_are_refused(server, path):
    payload = {"path": path, "meta": {"_type": "gradio.FileData"}}
    answer = answer_of(server, "explain", payload, FOREGROUND)
    assert '"success":false' in answer
    assert "root:" not in answer


def test_a_folder_of_uploads_is_no_upload(server, photo):
    path = upload(server, photo.read_bytes())
    assert os.environ["GRADIO_TEMP_DIR"] in path
    assert os.stat(os.environ["GRADIO_TEMP_DIR"]).st_mode & 0o777 == 0o700
    payload = {"path": path, "meta": {"_type": "gradio.FileData"}}
    assert "Explained 64 x 48 pixels" in answer_of(server, "explain", payload, FOREGROUND)
    for folder in (os.path.dirname(path), os.environ["GRADIO_TEMP_DIR"]):
        answer = answer_of(server, "explain", {**payload, "path": folder}, FOREGROUND)
        assert "This upload is not there any more" in answer


@pytest.mark.parametrize(
    ("event", "data", "problem"),
    [
        ("explain", ["x", -1], "must be an upload, or null"),
        ("explain", [{"path": 1}, -1], "must be an upload, or null"),
        ("explain", [None, True], "must be one of its choices"),
        ("explain", [None, [0]], "must be one of its choices"),
        ("explain", [None, 3], "must be one of its choices"),
        ("explain", [None, 1.0], "must be one of its choices"),
        ("explain", [None], "must be a list of 2 values"),
        ("explain", {}, "must be a list of 2 values"),
        ("compare", [None, -1, None], "must be a list of its choices"),
        ("compare", [None, -1, ["rollout", {}]], "must be a list of its choices"),
        ("prune", [None, "top_k", "0", 0.5], "must be a number from -4 to 12"),
        ("prune", [None, "top_k", 0, 7], "must be a number from 0.1 to 1"),
        ("prune", [None, "top_k", float("nan"), 0.5], "is no JSON"),
        ("prune", [None, 3, 0, 0.5], "must be one of its choices"),
        (99, [], "must be the number of an event"),
        (-1, [], "must be the number of an event"),
        (True, [], "must be the number of an event"),
        ("2", [], "must be the number of an event"),
    ],
)
def test_requests_of_wrong_types_are_refused_with_a_sentence(server, event, data, problem):
    number = events_of(server)[event] if event in ("explain", "compare", "prune") else event
    status, sentence = join(server, number, data)
    assert status == 422
    assert problem in sentence


def test_app_is_used_by_its_own_names_only(server):
    for name, value in (("Host", "evil.example"), ("X-Forwarded-Host", "evil.example"), ("Host", "[")):
        assert status_of(urllib.request.Request(f"{server}/", headers={name: value})) == 421
    assert status_of(urllib.request.Request(f"{server}/", headers={"Host": "localhost:1"})) == 200


def test_server_has_no_interface_for_programs(server):
    for path in ("openapi.json", "gradio_api/openapi.json", "gradio_api/dev/reload", "gradio_api/call/explain"):
        assert status_of(f"{server}/{path}") == 404


def test_broken_off_uploads_and_old_files_are_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    folder = UploadFolder()
    assert os.environ["GRADIO_TEMP_DIR"] == str(folder.path)
    for name, age in (("old/a.png", 4000), ("tmpx", 4000), ("new/a.png", 10)):
        (folder.path / name).parent.mkdir(exist_ok=True)
        (folder.path / name).write_bytes(b"x")
        os.utime(folder.path / name, (time.time() - age,) * 2)
    os.utime(folder.path / "old", (0, 0))
    folder.sweep()
    folder.sweep()  # the folder whose file was removed is old an hour later
    assert sorted(path.name for path in folder.path.rglob("*")) == ["a.png", "new", "old"]
    folder.sweep(max_age=-1)
    folder.sweep(max_age=-1)
    assert list(folder.path.iterdir()) == []
    folder.close()
    assert list(tmp_path.iterdir()) == []
    assert os.environ["GRADIO_TEMP_DIR"] == str(tmp_path)


def test_nothing_is_written_after_the_stop(loaded, photo, tmp_path, monkeypatch):
    """A request that still runs must not make the folder again, nor write a figure elsewhere."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "home"))
    folder = UploadFolder()
    handlers = Handlers(loaded, Limits())
    folder.close()
    with pytest.raises(FileNotFoundError):
        handlers.explain(str(photo), FOREGROUND)
    assert list((tmp_path / "home").iterdir()) == []


def test_an_app_that_fails_at_the_start_leaves_no_folder(folder, tmp_path, monkeypatch):
    def fail(*_):
        raise KeyError("broken")

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr(page_module, "build_page", fail)
    with pytest.raises(KeyError, match="broken"):
        launch_app(AppArguments(model=str(folder)))
    assert list(tmp_path.iterdir()) == []
    assert os.environ["GRADIO_TEMP_DIR"] == str(tmp_path)


START_AND_WAIT = """
import sys, time
from transformers_ice.app.server import UploadFolder
folder = UploadFolder()
(folder.path / "a.png").write_bytes(b"x")
print(folder.path, flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_uploads_do_not_outlive_the_app(tmp_path, monkeypatch):
    """Neither a stop by a signal, nor a kill and the next start, leave any; a running app keeps its own."""
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(tmp_path)}

    def start() -> tuple[subprocess.Popen, Path]:
        process = subprocess.Popen(
            [sys.executable, "-c", START_AND_WAIT], env=environment, stdout=subprocess.PIPE, text=True
        )
        return process, Path(process.stdout.readline().strip())

    (stopped, gone), (killed, left), (running, kept) = start(), start(), start()
    stopped.terminate()
    assert stopped.wait(30) == -signal.SIGTERM
    killed.kill()
    killed.wait(30)
    assert (gone.exists(), left.exists(), kept.exists()) == (False, True, True)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    folder = UploadFolder()
    assert sorted(tmp_path.iterdir()) == sorted([kept, folder.path])
    folder.close()
    running.kill()
    running.wait(30)


def test_answers_to_many_visitors_keep_memory_and_files_bounded(loaded, photo, tmp_path, monkeypatch):
    """What several threads are answered is that of one alone, and files of the answers are those of the uploads."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    monkeypatch.setattr("transformers_ice.app.analysis._SHOWN_SIDES", (64, 128))  # fast
    handlers = Handlers(loaded, Limits())
    expected = handlers.explain(str(photo), FOREGROUND)["download"]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: handlers.explain(str(photo), FOREGROUND), range(8)))  # warm
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        answers = list(pool.map(lambda _: handlers.explain(str(photo), FOREGROUND)["download"], range(32)))
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB
    assert set(answers) == {expected}
    assert grown < 200 * 2**10, "a plateau"
    files = list((tmp_path / "gradio").rglob("*.*"))
    assert len(files) <= len(VIEWS), "equal answers share their files"


def test_port_that_is_taken_is_refused_with_its_option(server, folder, capsys):
    from transformers_ice.cli import app as run_app

    port = server.rpartition(":")[2]
    assert run_app.main(["--model", str(folder), "--port", port]) == 1
    assert f"port {port}: the port is taken" in capsys.readouterr().err


def test_no_address_is_fetched_for_a_visitor(loaded, monkeypatch):
    page = build_page(loaded, Limits())
    (picture,) = [block for block in page.blocks.values() if getattr(block, "elem_id", "") == "picture"]
    monkeypatch.setattr(socket.socket, "connect", None)  # calling it would be a TypeError
    with pytest.raises(gr.Error, match="not as addresses"):
        asyncio.run(picture.async_move_resource_to_block_cache("http://example.org/a.png"))


def test_server_refuses_large_uploads(server):
    for size, expected in ((2**20 + 2**16, 413), (1000, 200)):
        form = (
            b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
            + bytes(size)
            + b"\r\n--x--\r\n"
        )
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        assert status_of(urllib.request.Request(f"{server}/gradio_api/upload", form, headers=headers)) == expected


def test_file_of_the_document_for_a_space_starts_the_app(monkeypatch):
    document = (ROOT / "docs/app.md").read_text()
    started = []
    monkeypatch.setattr(app_package, "launch_app", started.append)
    exec(re.search(r"^```py\n(.*?)^```", document, re.MULTILINE | re.DOTALL)[1])
    assert [type(arguments) for arguments in started] == [AppArguments]
    wheel = re.search(r"transformers_ice-(\S+)-py3", document)[1]
    assert wheel == transformers_ice.__version__


def test_style_sheet_travels_with_the_package():
    declared = (ROOT / "pyproject.toml").read_text()
    assert '"app/style.css"' in declared
