# SPDX-License-Identifier: Apache-2.0
"""Names that are no plain words, memory of large images, lines against other ways to get them, colours by name."""

from __future__ import annotations

import tracemalloc
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from transformers_ice.visualization import (
    PICTURES,
    class_colors,
    class_map_figure,
    cut_out,
    draw_box,
    explanation_panel,
    kept_patches,
    method_panel,
    outline_mask,
    overlay_class_map,
    overlay_heatmap,
    save_figure,
    save_result,
    score_bars,
    speed_plot,
)
from transformers_ice.visualization.panels import PanelRow


# name -> what is drawn
NAMES = {
    "a$b$": "a$b$",
    "$$": "$$",
    r"$\bad$": r"$\bad$",
    r"\$": r"\$",
    "$": "$",
    "_hidden": "_hidden",
    "_nolegend_": "_nolegend_",
    "<b>&amp;": "<b>&amp;",
    "a\x00b": r"a\x00b",
    "\x1b[31m": r"\x1b[31m",
    "caf\udce9": r"caf\udce9",
    "end\ufffe": r"end\ufffe",
    "two\nlines\t": r"two\nlines\t",
    "{x^2}": "{x^2}",
    "": "",
    " ": " ",
}


def explanation(label="ring", height=48, width=40):
    mask = np.zeros((height, width), bool)
    mask[height // 4 : height // 2, width // 4 : width // 2] = True
    return {
        "label": label,
        "score": 0.5,
        "box": {"xmin": width // 4, "ymin": height // 4, "xmax": width // 2, "ymax": height // 2},
        "heatmap": mask.astype(np.float32),
        "class_map": np.where(mask, 0, 1),
        "mask": mask,
        "foreground_ratio": float(mask.mean()),
        "exit_layers": np.where(mask, 6, 2),
    }


def texts_of_svg(file):
    root = ElementTree.parse(file).getroot()
    return ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("picture", ["class_map", "panel"])
@pytest.mark.parametrize("name", NAMES)
def test_class_names_are_drawn_as_text_and_svg_is_well_formed(name, picture, tmp_path):
    image = np.full((48, 40, 3), 90, np.uint8)
    save_result(image, explanation(name), {0: name}, tmp_path / "a.svg", picture)
    texts = texts_of_svg(tmp_path / "a.svg")
    if NAMES[name].strip():
        assert NAMES[name] in texts


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("name", NAMES)
def test_names_of_models_and_methods_are_drawn_as_text(name, tmp_path):
    image = np.full((8, 8, 3), 90, np.uint8)
    figures = {
        "bars": score_bars({"a": {name: (0.5, 0.4, 0.6)}}, {"a": name}),
        "speed": speed_plot({name: {name: (10.0, 0.5)}}),
        "methods": method_panel([image], {name: [np.ones((8, 8))]}, [None]),
    }
    for kind, figure in figures.items():
        save_figure(figure, tmp_path / "a.svg")
        if NAMES[name].strip() and kind != "methods":
            drawn = " ".join(texts_of_svg(tmp_path / "a.svg"))
            assert all(part in drawn for part in NAMES[name].split(r"\n"))


def test_two_classes_of_one_name_both_are_in_the_legend():
    figure = class_map_figure(
        np.full((2, 3, 3), 9, np.uint8), np.array([[0, 1, 2]] * 2), ["same", "same", "background"]
    )
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["same", "same", "background", "background"]


# Colours


def hue_of(color):
    return 360 * matplotlib.colors.rgb_to_hsv(matplotlib.colors.to_rgb(color))[0]


HUES = {"red": 0, "orange": 40, "yellow": 55, "green": 160, "blue": 205, "purple": 285, "violet": 285, "pink": 340}


@pytest.mark.parametrize("name", HUES)
def test_class_named_after_a_colour_has_that_colour(name):
    for text in (name, f"{name} striped", f"Dark {name.title()}", f"a_{name}_car"):
        (color,) = class_colors([np.zeros((2, 2), int)], {0: text}).values()
        difference = abs(hue_of(color) - HUES[name]) % 360
        assert min(difference, 360 - difference) < 15


def test_classes_of_one_colour_have_shades_of_it_that_do_not_depend_on_the_figure():
    names = {0: "red checked", 1: "red dotted", 2: "reduced", 3: "blue checked"}
    both = class_colors([np.array([1, 1, 0, 2, 3])], names)
    assert len(set(both.values())) == 4
    assert class_colors([np.array([0])], names) == {0: both[0]}
    assert class_colors([np.array([1])], names) == {1: both[1]}
    many = {index: f"red {index}" for index in range(12)}
    assert len(set(class_colors([np.arange(12)], many).values())) == 12


# Lines


@pytest.mark.parametrize("thickness", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("size", [(1, 1), (5, 3), (30, 41), (1, 60)])
def test_outline_is_that_of_rank_filters(size, thickness):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    mask = np.asarray(Image.fromarray(rng.random((4, 4)) > 0.5).resize(size[::-1]))
    dark = max(1, thickness // 2)
    padded = Image.fromarray(np.pad(mask, thickness).astype(np.uint8))
    core, grown = (
        np.asarray(padded.filter(kind(2 * width + 1)))[thickness:-thickness, thickness:-thickness] > 0
        for kind, width in ((ImageFilter.MinFilter, thickness), (ImageFilter.MaxFilter, dark))
    )
    expected = np.where((grown & ~mask)[..., None], np.uint8(0), image)
    expected = np.where((mask & ~core)[..., None], np.array([255, 128, 0], np.uint8), expected)
    assert np.array_equal(outline_mask(image, mask, "#ff8000", thickness), expected)


@pytest.mark.parametrize("box", [(0, 0, 20, 20), (10, 5, 300, 200), (3, 3, 6, 60), (0, 0, 640, 480), (7, 9, 14, 13)])
def test_box_is_that_of_pillow(box):
    image = np.full((480, 640, 3), 90, np.uint8)
    canvas, line = Image.fromarray(image), 3
    draw = ImageDraw.Draw(canvas)
    left, top, right, bottom = box[0], box[1], box[2] - 1, box[3] - 1
    for inset, color in ((0, "black"), (line, "white"), (2 * line, "black")):
        if right - left >= 2 * inset and bottom - top >= 2 * inset:
            corners = (left + inset, top + inset, right - inset, bottom - inset)
            draw.rectangle(corners, outline=color, width=line)
    assert np.array_equal(draw_box(image, box), np.asarray(canvas))


@pytest.mark.parametrize("box", [(-5, -5, 20, 20), (30, 2, 90, 9), (50, 50, 60, 60), (5, 5, 5, 5)])
def test_box_beyond_the_image_is_cut_to_it(box):
    image = np.full((32, 40, 3), 90, np.uint8)
    changed = (draw_box(image, box) != image).any(axis=2)
    columns, rows = np.arange(40)[None], np.arange(32)[:, None]
    inside = (columns >= box[0]) & (columns < box[2]) & (rows >= box[1]) & (rows < box[3])
    assert not changed[~inside].any()


# Memory


def peak_bytes(call):
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("size", [(1600, 2500), (1, 4_000_000)])
def test_drawing_takes_at_most_40_bytes_per_pixel(picture, size, tmp_path):
    image, result = np.full((*size, 3), 90, np.uint8), explanation("ring", *size)
    file = tmp_path / "a.png"
    save_result(image[:1, :9], explanation("ring", 1, 9), {0: "ring"}, file, picture)  # imports and fonts
    assert (
        peak_bytes(lambda: save_result(image, result, {0: "ring"}, file, picture))
        <= 40 * image.shape[0] * image.shape[1]
    )


def test_overlays_take_a_few_bytes_per_pixel_beyond_their_result():
    image, result = np.full((1600, 2500, 3), 90, np.uint8), explanation("ring", 1600, 2500)
    calls = {
        "heatmap": lambda: overlay_heatmap(image, result["heatmap"]),
        "class_map": lambda: overlay_class_map(image, result["class_map"], {0: "#ff0000"}),
        "cut_out": lambda: cut_out(image, result["mask"]),
        "outline": lambda: outline_mask(image, result["mask"]),
        "kept": lambda: kept_patches(image, result["exit_layers"], 2),
    }
    assert {name: peak_bytes(call) / 4e6 <= 12 for name, call in calls.items()} == dict.fromkeys(calls, True)


def test_panel_of_large_images_has_the_cells_and_boxes_of_small_ones():
    image, result = np.full((4100, 5000, 3), 90, np.uint8), explanation("ring", 4100, 5000)
    row = PanelRow.from_result(image, result, truth=result["mask"]).shrunk()
    assert row.image.shape == (1367, 1667, 3)  # every third pixel
    assert row.mask.shape == row.heatmap.shape == row.class_map.shape == row.truth.shape == (1367, 1667)
    columns, rows = np.nonzero(row.mask.any(axis=0))[0], np.nonzero(row.mask.any(axis=1))[0]
    np.testing.assert_allclose(row.box, [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], atol=1)
    assert len(explanation_panel([row], ["ring"]).axes) >= 6
