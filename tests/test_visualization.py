# SPDX-License-Identifier: Apache-2.0
"""Pictures: which pixels keep, lose or gain colour, and what a panel shows."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from transformers_ice import PatchExplanation
from transformers_ice.visualization import (
    PanelRow,
    class_colors,
    class_map_figure,
    cut_out,
    draw_box,
    explanation_panel,
    heatmap_figure,
    kept_patches,
    method_panel,
    outline_mask,
    outline_segments,
    overlay_class_map,
    overlay_heatmap,
    picture_figure,
    save_figure,
    save_result,
    score_bars,
)
from transformers_ice.visualization.colors import PRUNED_COLOR


GREY = np.full((6, 8, 3), 120, dtype=np.uint8)


def row(index=0, truth=True, height=16, width=16):
    rng = np.random.default_rng(index)
    class_map = np.full((height, width), 4)
    class_map[4:12, 4:12] = index % 4
    mask = class_map != 4
    return PanelRow(
        image=rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
        class_map=class_map,
        heatmap=mask * np.float32(0.9),
        mask=mask,
        truth=mask if truth else None,
        title=f"row {index}",
    )


def test_heat_grows_brighter_with_the_value_on_an_even_picture():
    heatmap = np.linspace(0, 1, 48, dtype=np.float32).reshape(6, 8)
    overlay = overlay_heatmap(GREY, heatmap)
    luma = (overlay @ np.array([0.299, 0.587, 0.114])).ravel()
    assert overlay.shape == (6, 8, 3)
    assert overlay.dtype == np.uint8
    assert np.all(np.diff(luma) > -1)  # never darker, but for the rounding of three channels
    assert luma[-1] - luma[0] > 100


def test_opacity_mixes_picture_and_heat():
    heatmap = np.ones((6, 8), dtype=np.float32)
    assert np.array_equal(overlay_heatmap(GREY, heatmap, opacity=0), GREY)
    opaque = overlay_heatmap(GREY, heatmap, opacity=1)
    assert np.array_equal(opaque, np.broadcast_to(opaque[0, 0], opaque.shape))
    assert opaque[0, 0].tolist() == [252, 255, 164]  # the bright end of matplotlib's inferno


def test_picture_shows_through_the_heat():
    picture = np.zeros((2, 2, 3), np.uint8)
    picture[0] = 255
    overlay = overlay_heatmap(picture, np.zeros((2, 2)))
    assert overlay[0].min() > overlay[1].max()


def test_grey_pictures_are_drawn_like_their_rgb_form():
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    rgb = np.repeat(grey[..., None], 3, axis=2)
    mask = grey > 20
    assert np.array_equal(overlay_heatmap(grey, mask), overlay_heatmap(rgb, mask))
    assert np.array_equal(cut_out(grey, mask), cut_out(rgb, mask))
    assert np.array_equal(draw_box(grey, (1, 1, 5, 5)), draw_box(rgb, (1, 1, 5, 5)))


def test_classes_are_colored_and_the_background_is_dim_and_grey():
    class_map = np.array([[0, 1, 2, 2]])
    overlay = overlay_class_map(GREY[:1, :4], class_map, {0: "#ff0000", 1: "#0000ff"})
    red, blue, *background = overlay[0].astype(int)
    assert red[0] > red[1] + 100
    assert blue[2] > blue[1] + 100
    assert [pixel.tolist() for pixel in background] == [[54, 54, 54]] * 2  # 0.45 of the grey below
    assert np.array_equal(overlay_class_map(GREY[:1, :4], class_map, {})[0, 0], background[0])


def test_cut_out_keeps_the_mask_and_dims_the_rest():
    image = np.random.default_rng(0).integers(60, 256, (6, 8, 3), dtype=np.uint8)
    mask = np.zeros((6, 8), dtype=bool)
    mask[2:4, 3:6] = True
    result = cut_out(image, mask)
    assert np.array_equal(result[mask], image[mask])
    assert result[~mask].max() < 60
    assert np.all(result[~mask].max(axis=1) == result[~mask].min(axis=1))  # grey


def test_box_covers_its_corners_and_nothing_outside():
    image = np.full((40, 60, 3), 90, dtype=np.uint8)
    result = draw_box(image, (10, 5, 30, 25))
    changed = np.argwhere((result != image).any(axis=2))
    assert changed.min(axis=0).tolist() == [5, 10]
    assert changed.max(axis=0).tolist() == [24, 29]  # half-open: the last pixel lies inside
    assert {0, 255} <= set(result[changed[:, 0], changed[:, 1]].ravel().tolist())
    assert np.array_equal(result[10:20, 15:25], image[10:20, 15:25])
    assert np.all(image == 90)


def test_a_class_has_the_same_color_in_every_figure_and_the_background_none():
    names = {0: "disc", 2: "star", 7: "ring"}
    colors = class_colors([np.array([[2, 2, 2, 7]]), np.array([[0, 0, 9, 9]])], names)
    assert list(colors) == [2, 0, 7]  # by area; 9, the background, has no name
    assert len(set(colors.values())) == 3
    assert class_colors([np.array([[7, 7, 2]])], names) == {7: colors[7], 2: colors[2]}


def test_classes_whose_colour_is_taken_get_the_next_one_while_there_are_some():
    names = {index: str(index) for index in range(40)}
    colors = class_colors([np.arange(13) * 3], names)  # 0, 3, ..., 36; there are 13 colours
    assert len(set(colors.values())) == 13
    assert len(class_colors([np.arange(40)], names)) == 40


def test_a_mask_of_ones_is_drawn_bright_and_another_constant_map_dark():
    image = np.zeros((4, 6, 3), np.uint8)
    figure = method_panel([image], {"mask": [np.ones((4, 6))], "constant": [np.full((4, 6), 0.3)]}, [None])
    mask, constant = (axis.images[0].get_array() for axis in figure.axes[1:3])
    assert mask.mean() > 150
    assert constant.mean() < 20
    assert [axis.get_xlabel() for axis in figure.axes[1:3]] == ["", "empty"]
    assert "its own least value" in figure.get_supxlabel()


# Outlines


def test_the_lines_around_a_mask_by_hand():
    mask = np.array([[0, 1, 1], [0, 1, 0]], bool)
    assert outline_segments(mask) == [
        ((1, 0), (3, 0)),
        ((2, 1), (3, 1)),
        ((1, 2), (2, 2)),
        ((1, 0), (1, 2)),
        ((2, 1), (2, 2)),
        ((3, 0), (3, 1)),
    ]
    assert outline_segments(np.zeros((3, 4), bool)) == []
    assert len(outline_segments(np.array([[1, 0], [0, 1]], bool))) == 8  # two squares that touch at a corner


def test_lines_have_the_length_of_the_edges_between_unlike_pixels():
    mask = np.random.default_rng(0).random((13, 9)) > 0.5
    padded = np.pad(mask, 1)
    edges = sum(int((np.diff(padded.astype(int), axis=axis) != 0).sum()) for axis in (0, 1))
    segments = outline_segments(mask)
    assert sum(abs(x1 - x0) + abs(y1 - y0) for (x0, y0), (x1, y1) in segments) == edges
    assert all(x0 == x1 or y0 == y1 for (x0, y0), (x1, y1) in segments)


@pytest.mark.parametrize("thickness", [1, 2, 3])
def test_an_outline_changes_only_the_edge_of_the_mask(thickness):
    image = np.full((30, 40, 3), 90, dtype=np.uint8)
    mask = np.zeros((30, 40), bool)
    mask[5:20, 8:32] = True
    result = outline_mask(image, mask, "#ff8000", thickness)
    core = np.zeros_like(mask)
    core[5 + thickness : 20 - thickness, 8 + thickness : 32 - thickness] = True
    assert np.array_equal(result[core], image[core])
    assert np.all(result[mask & ~core] == [255, 128, 0])
    changed = np.argwhere((result != image).any(axis=2))
    dark = max(1, thickness // 2)
    assert changed.min(axis=0).tolist() == [5 - dark, 8 - dark]
    assert changed.max(axis=0).tolist() == [19 + dark, 31 + dark]
    assert np.all(image == 90)


def test_a_mask_that_reaches_the_edge_of_the_image_is_outlined_there_too():
    result = outline_mask(np.full((12, 12, 3), 90, np.uint8), np.ones((12, 12), bool), "#00ff00", 1)
    assert np.all(result[0] == [0, 255, 0])
    assert np.all(result[:, -1] == [0, 255, 0])
    assert np.all(result[1:-1, 1:-1] == 90)


def test_a_line_around_a_box_lies_on_its_edge_in_a_drawn_figure(tmp_path):
    mask = np.zeros((40, 60), bool)
    mask[10:30, 20:50] = True
    save_figure(picture_figure(np.zeros((40, 60, 3), np.uint8), mask=mask), tmp_path / "a.png", scale=10)
    drawn = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    assert drawn.shape == (400, 600, 3)
    rows, columns = np.nonzero(drawn[..., 2] > 200)
    edges = [rows.min() / 10, (rows.max() + 1) / 10, columns.min() / 10, (columns.max() + 1) / 10]
    np.testing.assert_allclose(edges, [10, 30, 20, 50], atol=0.7)  # half the width of the line


def test_heat_map_as_a_figure_has_label_quantity_and_scale(tmp_path):
    image, result = np.full((48, 40, 3), 90, np.uint8), {"label": "ring $1", "score": 0.5, "box": None}
    result |= {"heatmap": np.zeros((48, 40)), "class_map": np.ones((48, 40), int), "mask": np.zeros((48, 40), bool)}
    for target, quantity in ((None, "p(not background)"), ("disc", "p(disc)")):
        figure = heatmap_figure(image, result, target)
        main, scale = figure.axes
        assert main.get_title() == r"ring \$1, 0.50"
        assert scale.get_xlabel() == quantity
        assert [text.get_text() for text in scale.get_xticklabels()] == ["0", "1"]
        save_result(image, result, {0: "disc"}, tmp_path / "a.svg", target=target)
        assert quantity in (tmp_path / "a.svg").read_text()
    save_result(image, result, {0: "disc"}, tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").size == (40, 48)  # the pixels of the image


def assert_all_is_inside(figure):
    figure.draw_without_rendering()
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert min(drawn.x0, drawn.y0) > -0.02
    assert drawn.x1 < width + 0.02
    assert drawn.y1 < height + 0.02


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (7, 3000)])
def test_figures_of_strips_stay_small(size):
    maps = {"class_map": np.zeros(size, int), "heatmap": np.zeros(size), "mask": np.zeros(size, bool)}
    image, result = np.zeros((*size, 3), np.uint8), {"label": "a", "score": 0.5, "box": None, **maps}
    for figure in (class_map_figure(image, result["class_map"], ["a"]), heatmap_figure(image, result)):
        assert max(figure.get_size_inches()) <= 16.5
        assert_all_is_inside(figure)


@pytest.mark.parametrize("size", [(20, 30), (375, 500), (500, 200)])
def test_text_around_a_heat_map_is_not_cut_off(size):
    result = {"label": "a name of forty letters, of which there are some", "score": 0.5, "box": None}
    result |= {"class_map": np.zeros(size, int), "heatmap": np.zeros(size), "mask": np.zeros(size, bool)}
    assert_all_is_inside(heatmap_figure(np.zeros((*size, 3), np.uint8), result, "an equally long name of a class"))


# Patches that leave


def test_exit_layer_colors():
    image = np.full((1, 3, 3), 200, np.uint8)
    image[..., 0] = 100
    result = kept_patches(image, np.array([[6, 3, 2]]), layer=3)[0].astype(int)
    assert result[0].tolist() == [100, 200, 200]
    assert result[1][2] > result[1][1] + 20  # violet
    assert result[2].max() < 60
    assert np.array_equal(kept_patches(image, np.array([[6, 3, 2]]), layer=1), image)


def test_no_class_has_the_color_of_pruned_patches():
    names = {index: str(index) for index in range(13)}
    assert PRUNED_COLOR.lower() not in {color.lower() for color in class_colors([np.arange(13)], names).values()}


def test_a_panel_shows_the_pruning_layers():
    exits = np.full((16, 16), 6)
    exits[:8], exits[8:10] = 2, 5
    base = row(0)
    kept = PanelRow(base.image, base.class_map, base.heatmap, base.mask, exit_layers=exits, box=(4, 4, 12, 12))
    assert kept.cut_layers == [2, 5]
    figure = explanation_panel([kept, row(1, truth=False)], ["disc", "star", "cross", "ring"])
    titles, _, legend = texts_of(figure)
    assert titles == ["image", "class map", "heat map", "mask", "layer 2", "layer 5"]
    assert legend[-1] == "pruned here"
    assert [axis.get_xlabel() for axis in figure.axes[4:6]] == ["50% kept", "38% kept"]


def test_without_pruned_patches_there_is_no_column_for_them():
    base = row(0)
    stays = PanelRow(base.image, base.class_map, base.heatmap, base.mask, exit_layers=np.full((16, 16), 6))
    assert stays.cut_layers == []
    assert texts_of(explanation_panel([stays], ["disc"]))[0] == ["image", "class map", "heat map", "mask"]


def test_a_row_holds_the_result_of_the_pipeline():
    base = row(2)
    box = {"xmin": 4, "ymin": 5, "xmax": 12, "ymax": 13}
    result = {"label": "ring", "score": 0.876, "box": box, "foreground_ratio": 0.25, "exit_layers": base.class_map + 1}
    result |= {"class_map": base.class_map, "heatmap": base.heatmap, "mask": base.mask}
    made = PanelRow.from_result(base.image, result)
    assert (made.title, made.box) == ("ring\n0.88", [4, 5, 12, 13])
    assert made.exit_layers is result["exit_layers"]
    assert PanelRow.from_result(base.image, result, truth_label="ring").title == "ring\n0.88"
    assert PanelRow.from_result(base.image, result, truth_label="disc").title == "ring\n0.88\n(true: disc)"
    plain = PanelRow.from_result(base.image, result, details=False)
    assert (plain.box, plain.exit_layers, plain.title) == (None, None, made.title)


def test_an_explanation_is_drawn_like_the_answer_of_the_pipeline(tmp_path):
    base = row(2)
    maps = {"class_map": base.class_map, "heatmap": base.heatmap, "mask": base.mask, "exit_layers": None}
    explanation = PatchExplanation(
        label="ring", score=0.876, box=(4, 5, 12, 13), foreground_ratio=0.25, class_index=3, **maps
    )
    files = [tmp_path / name for name in ("explanation.png", "answer.png")]
    for result, file in zip((explanation, explanation.to_dict()), files, strict=True):
        made = PanelRow.from_result(base.image, result)
        assert (made.title, made.box) == ("ring\n0.88", [4, 5, 12, 13])
        save_result(base.image, result, {3: "ring"}, file)
    assert files[0].read_bytes() == files[1].read_bytes()


# Files


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_the_same_figure_is_written_as_the_same_bytes(suffix, tmp_path):
    for name in ("a", "b"):
        save_figure(explanation_panel([row(0)], ["disc"]), tmp_path / f"{name}.{suffix}")
    first, second = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in ("a", "b"))
    assert first == second
    assert first.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix])
    if suffix == "svg":
        assert b">disc</text>" in first  # words stay words


def test_a_larger_scale_gives_more_pixels(tmp_path):
    figure = picture_figure(GREY, box=(1, 1, 5, 5))
    for scale in (1, 8):
        save_figure(figure, tmp_path / "a.png", scale)
        assert Image.open(tmp_path / "a.png").size == (8 * scale, 6 * scale)


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (30, 1), (3, 2)])
def test_tiny_pictures_can_be_drawn(size):
    image = np.full((*size, 3), 90, dtype=np.uint8)
    assert draw_box(image, (0, 0, size[1], size[0])).shape == image.shape
    assert overlay_heatmap(image, np.ones(size)).shape == image.shape
    assert outline_mask(image, np.ones(size, bool)).shape == image.shape


def texts_of(figure):
    axes = [axis for axis in figure.axes if axis.get_visible()]
    titles = [axis.get_title() for axis in axes if axis.get_title()]
    labels = [axis.get_ylabel() for axis in axes if axis.get_ylabel()]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    return titles, labels, legend


def test_panel_names_columns_rows_and_classes():
    titles, labels, legend = texts_of(explanation_panel([row(0), row(1)], ["disc", "star", "cross", "ring"]))
    assert titles == ["image", "class map", "heat map", "mask", "truth"]
    assert labels == ["row 0", "row 1"]
    assert legend == ["disc", "star", "background"]


def test_panel_without_truth_has_four_columns():
    titles, *_ = texts_of(explanation_panel([row(0, truth=False)], {0: "disc"}))
    assert titles == ["image", "class map", "heat map", "mask"]


def test_panel_of_mixed_sizes_and_many_classes_is_written_as_png(tmp_path):
    rows = [row(0), row(1, height=20, width=40, truth=False)]
    rows[0].class_map[:] = np.arange(256).reshape(16, 16) % 15
    figure = explanation_panel(rows, [f"class {index}" for index in range(15)])
    figure.savefig(tmp_path / "panel.png")
    with Image.open(tmp_path / "panel.png") as picture:
        assert min(picture.size) > 300
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 1000
    assert texts_of(figure)[2][-1] == "background"
    assert len(texts_of(figure)[2]) == 16


def test_labels_do_not_run_into_pictures_or_beyond_the_edge():
    figure = explanation_panel([row(index) for index in range(3)], ["a long class name"] * 4)
    FigureCanvasAgg(figure).draw()
    edge = figure.bbox
    pictures = [axis.get_window_extent() for axis in figure.axes if axis.images]
    texts = [figure.legends[0].get_window_extent(), *(axis.yaxis.label.get_window_extent() for axis in figure.axes)]
    for box in texts:
        if box.width:
            assert edge.x0 <= box.x0
            assert box.x1 <= edge.x1
            assert not any(box.overlaps(picture) for picture in pictures)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: overlay_heatmap(GREY, np.ones((8, 6))), r"`heatmap` must have the size \(6, 8\)"),
        (lambda: overlay_heatmap(GREY, np.full((6, 8), 1.5)), r"lie in \[0, 1\], got values from 1.5 to 1.5"),
        (lambda: overlay_heatmap(GREY, np.full((6, 8), np.nan)), "got values from nan to nan"),
        (lambda: overlay_heatmap(GREY, np.ones((6, 8)), opacity=2), "`opacity` must lie"),
        (lambda: overlay_heatmap(GREY / 255, np.ones((6, 8))), "must be uint8.*got float64"),
        (lambda: overlay_class_map(GREY, np.ones((2, 2)), {}), "`class_map` must have the size"),
        (lambda: cut_out(GREY, np.ones((2, 2))), "`mask` must have the size"),
        (lambda: explanation_panel([], []), "at least one image"),
        (lambda: outline_mask(GREY, np.ones((2, 2))), "`mask` must have the size"),
        (lambda: outline_mask(GREY, np.ones((6, 8)), "red"), "`color` must be written like '#00E5FF', got 'red'"),
        (lambda: outline_mask(GREY, np.ones((6, 8)), thickness=0), "at least 1 pixel, got 0"),
        (lambda: outline_segments(np.ones(3)), r"shape \(height, width\), got \(3,\)"),
        (lambda: kept_patches(GREY, np.ones((2, 2)), 3), "`exit_layers` must have the size"),
        (lambda: save_figure(picture_figure(GREY), "a.gif"), "must end in png, svg, pdf, got 'a.gif'"),
        (lambda: save_figure(picture_figure(GREY), "a.png", 0), "`scale` must be positive, got 0"),
    ],
)
def test_unfit_arrays_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_missing_matplotlib_is_reported_with_the_extra_that_has_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for call in (lambda: overlay_heatmap(GREY, np.ones((6, 8))), lambda: explanation_panel([row()], [])):
        with pytest.raises(ImportError, match=r"pip install transformers-ice\[viz\]"):
            call()


@pytest.mark.parametrize("count", [1, 2, 4, 5, 6])
def test_score_bars_shows_a_plot_per_score_and_no_empty_ones(count):
    names = [f"score {index}" for index in range(count)]
    scores = {name: {"ice": (0.5, 0.4, 0.6), "rollout": (0.3, float("nan"), float("nan"))} for name in names}
    figure = score_bars(scores, {name: name.upper() for name in names})
    shown = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title() for axis in shown] == [name.upper() for name in names]
    assert all(len(axis.patches) == 2 for axis in shown)


def test_method_panel_has_a_row_per_method_and_a_truth_where_all_are_known():
    images = [np.zeros((4, 6, 3), dtype=np.uint8)] * 3
    maps = {"one": [np.eye(4, 6)] * 3, "constant": [np.full((4, 6), 0.3)] * 3}
    for truths, rows in (([np.eye(4, 6, dtype=bool)] * 3, 4), ([None] * 3, 3)):
        figure = method_panel(images, maps, truths)
        assert len(figure.axes) == 3 * rows
        assert figure.axes[-3].get_ylabel() == "constant"
    with pytest.raises(ValueError, match="at least one image"):
        method_panel([], maps, [])


@pytest.mark.parametrize("picture", ["heatmap", "mask", "cut_out"])
def test_a_smaller_scale_gives_the_same_overlay_in_fewer_pixels(tmp_path, picture):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    mask = np.zeros((80, 120), bool)
    mask[20:40, 40:100] = True
    box = {"xmin": 40, "ymin": 20, "xmax": 100, "ymax": 40}
    result = {"heatmap": mask.astype(np.float32), "mask": mask, "box": box}
    save_result(image, result, ["a"], tmp_path / "half.png", picture, scale=0.5)
    small = {name: value[::2, ::2] for name, value in result.items() if name != "box"}
    small["box"] = {name: edge // 2 for name, edge in box.items()}
    save_result(image[::2, ::2], small, ["a"], tmp_path / "own.png", picture)
    halved, own = (np.asarray(Image.open(tmp_path / name)) for name in ("half.png", "own.png"))
    np.testing.assert_array_equal(halved, own)
