# SPDX-License-Identifier: Apache-2.0
"""Tests of drawn scenes with no object to three: exact annotation, balance, and objects that only their look tells."""

from __future__ import annotations

import colorsys
from dataclasses import replace

import numpy as np
import pytest
from datasets import ClassLabel, List
from PIL import Image as PilImage

from transformers_ice.data import load_evaluation_set
from transformers_ice.data.benchmarks.table_evaluation import TableEvaluation
from transformers_ice.data.images.arguments import DataArguments
from transformers_ice.data.images.loading import _open_rows
from transformers_ice.data.scenes import SCENE_CLASSES, draw_several_scene, load_scenes
from transformers_ice.data.scenes import composition as scene_composition
from transformers_ice.data.scenes import layers as scene_layers
from transformers_ice.data.scenes.layers import layer_distance


NUM_SCENES = 160


@pytest.fixture(scope="module")
def drawn():
    return [draw_several_scene(index, "train", 64) for index in range(NUM_SCENES)]


@pytest.fixture(scope="module")
def compositions():
    return [scene_composition.compose_several(index, 0, (1.0, 1.0), 0)[0] for index in range(NUM_SCENES)]


def layers_of(composition, role):
    return [layer for layer in composition.layers if layer.role == role]


def test_same_arguments_give_the_same_scene_whatever_was_drawn_before():
    first = draw_several_scene(7, "test", 48, seed=3)
    draw_several_scene(2, "train", 32)
    second = draw_several_scene(7, "test", 48, seed=3)
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.class_mask, second.class_mask)
    assert (first.labels, first.boxes) == (second.labels, second.boxes)


def test_no_scene_shares_its_random_state_with_another_kind_split_or_seed():
    states = set()
    for compose in (scene_composition.compose, scene_composition.compose_several):
        for split in range(3):
            for seed in (0, 1):
                rngs = [compose(index, split, (1.0, 1.0), seed)[1] for index in range(20)]
                states |= {rng.bit_generator.state["state"]["state"] for rng in rngs}
    assert len(states) == 2 * 3 * 2 * 20


def test_another_size_is_the_same_composition():
    for index in range(12):
        small, large = draw_several_scene(index, "train", 48), draw_several_scene(index, "train", 96)
        assert small.labels == large.labels
        halved = large.image.reshape(48, 2, 48, 2, 3).mean(axis=(1, 3))
        assert np.abs(halved - small.image).mean() < 12  # noise and edges; different scenes differ by about 60 levels
        for one, two in zip(small.boxes, large.boxes, strict=True):
            assert np.abs(np.array(two) / 2 - one).max() <= 3  # tips may be thinner than a pixel of the small image


def test_numbers_of_objects_and_classes_are_balanced_in_every_block(drawn):
    counts = np.array([len(scene.labels) for scene in drawn])
    assert (np.sort(counts.reshape(-1, 4), axis=1) == np.arange(4)).all()
    assert len({tuple(row) for row in counts.reshape(-1, 4).tolist()}) > 5  # in changing order
    for start in range(0, NUM_SCENES, 20):
        labels = [label for scene in drawn[start : start + 20] for label in scene.labels]
        assert np.bincount(labels, minlength=len(SCENE_CLASSES)).tolist() == [3] * 10


def test_objects_of_a_scene_are_of_different_classes_in_ascending_order(drawn):
    for scene in drawn:
        assert list(scene.labels) == sorted(set(scene.labels))


def test_class_mask_is_the_visible_part_of_each_object(drawn, compositions):
    centers = (np.arange(64, dtype=np.float32) + 0.5) / 64
    for scene, composition in zip(drawn[:60], compositions[:60], strict=True):
        expected, labels = np.zeros((64, 64), dtype=int), iter(composition.labels)
        for layer in composition.layers:  # back to front
            inside = layer_distance(layer, centers[:, None], centers[None]) <= 0
            expected[inside] = next(labels) + 1 if layer.role == "object" else 0
        assert (expected != scene.class_mask).sum() <= 2  # pixel centres on an outline, to float32 rounding
        assert set(np.unique(scene.class_mask)) == {0, *(label + 1 for label in scene.labels)}


def test_boxes_are_the_tight_half_open_boxes_in_the_order_of_the_labels(drawn):
    for scene in drawn:
        assert len(scene.boxes) == len(scene.labels)
        for label, box in zip(scene.labels, scene.boxes, strict=True):
            rows, columns = np.nonzero(scene.class_mask == label + 1)
            assert box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert all(type(value) is int for value in box)


def test_objects_are_mostly_inside_and_mostly_visible(compositions):
    num_occluded = 0
    for composition in compositions:
        num_occluded += bool(layers_of(composition, "occluder"))
        for place, layer in enumerate(composition.layers):
            if layer.role == "object":
                y, x = scene_composition._sample_points(layer)
                inside = (y > 0) & (y < 1) & (x > 0) & (x < 1)
                assert inside.mean() >= 0.79
                for other in composition.layers[place + 1 :]:
                    inside &= layer_distance(other, y, x) > 0
                assert inside.mean() >= 0.6
    assert abs(num_occluded - NUM_SCENES / 3) < 4 * np.sqrt(NUM_SCENES * 2 / 9)


def test_objects_have_pixels_enough_to_be_named(drawn):
    # 6 % of 64 x 64 pixels are 246, the area of a square of 16 pixels: two periods of the coarsest texture
    assert min((scene.class_mask == label + 1).mean() for scene in drawn for label in scene.labels) > 0.06


def area_of(layer):
    return layer.size**2 * layer.outline.area


def test_only_the_look_tells_objects_from_distractors(compositions):
    things = {
        role: [own for item in compositions for own in layers_of(item, role)] for role in ("object", "distractor")
    }
    areas = {role: np.array([area_of(layer) for layer in layers]) for role, layers in things.items()}
    for values in areas.values():
        assert values.min() >= 0.1 - 1e-6
        assert values.max() <= 0.17 + 1e-6
    # uniform on a range of 0.07: a standard deviation of 0.02, of their mean 0.0013, of 240; four of the difference
    assert abs(areas["object"].mean() - areas["distractor"].mean()) < 4 * 0.0013 * np.sqrt(2)
    # whether a scene has three or four things does not depend on how many of them are objects
    totals = {count: set() for count in range(4)}
    for composition in compositions:
        count = len(composition.labels)
        totals[count].add(count + len(layers_of(composition, "distractor")))
    assert all(own == {3, 4} for own in totals.values())


def look_of(layer):
    """Return colour and texture: the nearest hue of the class colours to that of the more saturated of its two."""
    color = max(layer.colors.tolist(), key=lambda channels: max(channels) - min(channels))
    hue = colorsys.rgb_to_hsv(*color)[0]
    names = scene_layers.COLORS
    return min(names, key=lambda name: abs((hue - names[name][0] + 0.5) % 1 - 0.5)), layer.texture


def test_no_distractor_has_the_look_of_a_class_and_every_object_that_of_its_own(compositions):
    for composition in compositions:
        looks = [scene_composition.CLASS_LOOKS[label] for label in composition.labels]
        assert [look_of(layer) for layer in layers_of(composition, "object")] == looks
        for layer in layers_of(composition, "distractor"):
            assert look_of(layer) in scene_composition.OTHER_LOOKS


@pytest.mark.parametrize("size", [(32, 80), (80, 32)])
def test_rectangular_scenes_have_that_size(size):
    for index in range(8):
        scene = draw_several_scene(index, "train", size)
        assert scene.image.shape == (*size, 3)
        assert scene.class_mask.shape == size
        assert scene.class_mask.dtype == np.uint8


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="one of train, validation, test, got 'dev'"):
        draw_several_scene(0, "dev")
    with pytest.raises(ValueError, match="`index` and `seed` must be at least 0"):
        draw_several_scene(-1)
    with pytest.raises(ValueError, match=r"None \(one object an image\) or 'several', got 'many'"):
        load_scenes("train", 4, config_name="many")


# --- the table -----------------------------------------------------------------------------------------------------


def test_table_holds_the_drawn_scenes(tmp_path):
    table = load_scenes("validation", 8, (32, 48), seed=7, cache_dir=tmp_path, config_name="several")
    assert table.column_names == ["image", "label", "mask", "class_mask", "boxes"]
    assert table.features["label"] == List(ClassLabel(names=list(SCENE_CLASSES)))
    for index, row in enumerate(table):
        scene = draw_several_scene(index, "validation", (32, 48), seed=7)
        assert (row["image"].mode, row["mask"].mode, row["class_mask"].mode) == ("RGB", "L", "L")
        np.testing.assert_array_equal(np.asarray(row["image"]), scene.image)
        np.testing.assert_array_equal(np.asarray(row["class_mask"]), scene.class_mask)
        np.testing.assert_array_equal(np.asarray(row["mask"]), (scene.class_mask > 0) * np.uint8(255))
        assert row["label"] == list(scene.labels)
        assert row["boxes"] == [list(box) for box in scene.boxes]
    assert sorted(map(len, table["label"])) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_training_opens_them_by_their_configuration(tmp_path):
    arguments = DataArguments(
        dataset_name="scenes", dataset_config_name="several", max_train_samples=4, max_eval_samples=4
    )
    train, evaluation = _open_rows(arguments, (16, 16), str(tmp_path), None)
    for opened, split in ((train, "train"), (evaluation, "validation")):
        scenes = [draw_several_scene(index, split, 16) for index in range(4)]
        assert opened.rows["label"][:] == [list(scene.labels) for scene in scenes]
    with pytest.raises(ValueError, match="or 'several', got 'none'"):
        _open_rows(replace(arguments, dataset_config_name="none"), (16, 16), str(tmp_path), None)


def test_evaluation_set_has_masks_and_class_maps(tmp_path):
    examples = load_evaluation_set("scenes", limit=8, image_size=32, cache_dir=str(tmp_path), config_name="several")
    assert examples.provides == {"mask", "segmentation"}
    assert examples.class_names == list(SCENE_CLASSES)
    assert examples.name == "scenes (several)"
    for index, example in enumerate(examples):
        scene = draw_several_scene(index, "test", 32)
        np.testing.assert_array_equal(example.segmentation, scene.class_mask)
        np.testing.assert_array_equal(example.mask, scene.class_mask > 0)
        assert example.segmentation.dtype == np.int16
        assert example.label is None


def test_class_maps_of_a_table_may_have_void_pixels_and_no_unknown_class(tmp_path):
    table = load_scenes("test", 2, 16, cache_dir=tmp_path, config_name="several")

    def with_value(value):
        mask = np.zeros((16, 16), dtype=np.uint8)
        mask[0, :2] = 3, value
        return TableEvaluation(table.map(lambda row: {**row, "class_mask": PilImage.fromarray(mask)}))

    assert with_value(255)[0].segmentation[0, :3].tolist() == [3, -1, 0]
    with pytest.raises(ValueError, match=r"In row 0 of 'table': a class map must hold 0 to 10 and 255, got 11"):
        with_value(11)[0]
