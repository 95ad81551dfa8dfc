# SPDX-License-Identifier: Apache-2.0
"""Post-processing of any logits, grids and image sizes: sizes, types, ranges, boxes, and what is refused."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy import ndimage

from transformers_ice.ice_deit.image_processing_ice_deit import IceDeiTImageProcessor


SIDES = st.integers(1, 40)
PROCESSORS = st.one_of(
    st.builds(lambda h, w: {"size": {"height": h, "width": w}}, SIDES, SIDES),
    st.builds(
        lambda short, h, w: {
            "size": {"shortest_edge": short},
            "do_center_crop": True,
            "crop_size": {"height": h, "width": w},
        },
        SIDES,
        SIDES,
        SIDES,
    ),
    st.builds(
        lambda h, w: {"do_resize": False, "do_center_crop": True, "crop_size": {"height": h, "width": w}}, SIDES, SIDES
    ),
)
FINITE = st.one_of(st.floats(-4, 4, width=32), st.sampled_from([0.0, 1.0, 1e30, -1e30, 1e-40]))
BROKEN = st.one_of(FINITE, st.sampled_from([math.nan, math.inf, -math.inf]))


ONE_PATCH = (
    {"patch_logits": torch.zeros(1, 1, 2), "grid_size": torch.tensor([[1, 1]])},
    IceDeiTImageProcessor(size={"height": 8, "width": 8}),
    None,
    (1, 1),
    1,
)


@st.composite
def cases(draw, elements=FINITE):
    """Outputs of a model, its processor and the sizes of the images, or `None`."""
    batch_size, num_labels = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    grid = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    shape = (batch_size, grid[0] * grid[1], num_labels + 1)
    logits = torch.from_numpy(draw(npst.arrays(np.float32, shape, elements=elements)))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    outputs = {"patch_logits": logits.to(dtype), "grid_size": torch.tensor(grid).expand(batch_size, 2)}
    kind = draw(st.sampled_from(["plain", "with logits", "segmentation", "exits"]))
    if kind == "with logits":
        outputs["logits"] = outputs["patch_logits"].mean(dim=1)[:, :-1]
    if kind == "segmentation":
        outputs = {"logits": outputs["patch_logits"].transpose(1, 2).unflatten(2, grid)}
    if kind == "exits":
        outputs["patch_exit_layer"] = torch.randint(0, 5, shape[:2], generator=torch.Generator().manual_seed(0))
    sizes = draw(st.one_of(st.none(), st.lists(st.tuples(SIDES, SIDES), min_size=batch_size, max_size=batch_size)))
    return outputs, IceDeiTImageProcessor(**draw(PROCESSORS)), sizes, grid, num_labels


@given(cases(), st.data())
def test_maps_have_the_size_of_the_image_and_their_ranges(case, data):
    outputs, processor, sizes, grid, num_labels = case
    if sizes is not None and data.draw(st.booleans()):
        sizes = torch.tensor(sizes)
    target = data.draw(st.one_of(st.none(), st.integers(0, num_labels - 1)))
    batch_size = len(next(iter(outputs.values())))
    expected = [grid] * batch_size if sizes is None else [tuple(map(int, size)) for size in sizes]
    segmentation = processor.post_process_semantic_segmentation(outputs, sizes)
    masks = processor.post_process_foreground(outputs, sizes)
    heatmaps = processor.post_process_heatmap(outputs, sizes, target)
    boxes = processor.post_process_object_localization(outputs, sizes)
    explanations = processor.post_process_explanation(outputs, sizes, target)
    assert len(segmentation) == len(masks) == len(heatmaps) == len(boxes) == len(explanations) == batch_size
    for index, size in enumerate(expected):
        classes, mask, heat, found = segmentation[index], masks[index], heatmaps[index], boxes[index]
        assert (classes.shape, classes.dtype) == (size, torch.int64)
        assert 0 <= classes.min() <= classes.max() <= num_labels
        assert (mask.shape, mask.dtype) == (size, torch.bool)
        assert torch.equal(mask, classes != num_labels)
        assert (heat.shape, heat.dtype) == (size, torch.float32)
        assert heat.min() >= 0
        assert heat.max() <= 1
        (left, top, right, bottom), score = found["boxes"][0].tolist(), found["scores"].item()
        assert 0 <= left < right <= size[1]
        assert 0 <= top < bottom <= size[0]
        assert 0 <= score <= 1
        assert 0 <= found["labels"].item() <= num_labels
        check_explanation(explanations[index], size, classes, mask, heat, (left, top, right, bottom), score)
        if mask.any() and all(side >= cells for side, cells in zip(size, grid, strict=True)) and sizes is None:
            assert (left, top, right, bottom) == largest_component_box(mask.numpy())


def check_explanation(explanation, size, classes, mask, heat, box, score):
    np.testing.assert_array_equal(explanation.class_map, classes)
    np.testing.assert_array_equal(explanation.mask, mask)
    np.testing.assert_array_equal(explanation.heatmap, heat)
    assert explanation.score == score
    assert 0 <= explanation.foreground_ratio <= 1
    assert explanation.box == (box if explanation.found else None)
    assert explanation.exit_layers is None or explanation.exit_layers.shape == size
    if not explanation.found:
        assert box == (0, 0, size[1], size[0])


def largest_component_box(mask):
    labels, number = ndimage.label(mask)
    sizes = ndimage.sum_labels(mask, labels, range(1, number + 1))
    rows, columns = ndimage.find_objects(labels)[int(np.argmax(sizes))]
    return columns.start, rows.start, columns.stop, rows.stop


@given(cases(BROKEN))
@example(({**ONE_PATCH[0], "patch_logits": torch.tensor([[[-math.inf, 0.0]]])}, *ONE_PATCH[1:]))
def test_logits_that_are_not_finite_give_no_answer(case):
    outputs, processor, sizes, *_ = case
    name = "patch_logits" if "patch_logits" in outputs else "logits"
    logits = outputs[name].float()
    classes = 1 if logits.ndim == 4 else 2
    # minus infinity alone is a class that is ruled out
    is_broken = not logits.logsumexp(dim=classes).isfinite().all()
    calls = [
        processor.post_process_semantic_segmentation,
        processor.post_process_foreground,
        processor.post_process_heatmap,
        processor.post_process_object_localization,
        processor.post_process_explanation,
    ]
    for call in calls:
        if is_broken:
            with pytest.raises(ValueError, match=r"patch_logits` must be finite, got NaN or infinity for image"):
                call(outputs, sizes)
            continue
        try:
            results = call(outputs, sizes)
        except ValueError as error:  # of the image's scores, which are means
            assert re.search("`outputs.(patch_)?logits` must be finite", str(error))
            continue
        if call == processor.post_process_object_localization:
            assert all(0 <= result["scores"].item() <= 1 for result in results)
        if call == processor.post_process_heatmap:
            assert all(((heat >= 0) & (heat <= 1)).all() for heat in results)


WRONG_SIDES = st.one_of(st.integers(-3, 0), st.none(), st.text(max_size=1), st.floats(max_value=100))
WRONG_SIZES = st.one_of(
    st.integers(),
    st.text(max_size=2),
    st.lists(WRONG_SIDES, max_size=3),
    st.lists(st.lists(WRONG_SIDES, max_size=3), max_size=4),
)
WRONG_TARGETS = st.one_of(st.integers(), st.floats(), st.text(max_size=2), st.lists(st.integers(-2, 9), max_size=4))


@given(cases(), WRONG_SIZES)
@example(ONE_PATCH, 1)
@example(ONE_PATCH, [[4, None]])
@example(ONE_PATCH, [[4, math.inf]])
def test_wrong_sizes_are_refused_by_name(case, sizes):
    outputs, processor, *_ = case
    try:
        results = processor.post_process_heatmap(outputs, sizes)
    except ValueError as error:
        assert "target_sizes" in str(error)
    else:
        assert len(results) == len(sizes)


@given(cases(), WRONG_TARGETS)
def test_wrong_targets_are_refused_by_name(case, target):
    outputs, processor, sizes, _, num_labels = case
    try:
        processor.post_process_heatmap(outputs, sizes, target)
    except ValueError as error:
        assert "`target`" in str(error)
    else:
        assert all(0 <= index < num_labels for index in np.atleast_1d(target))
