# SPDX-License-Identifier: Apache-2.0
"""Tests of the drawn data set: exact annotation, fixed randomness, and no cue that gives a class away alone."""

import builtins
import colorsys
import time
from itertools import pairwise

import numpy as np
import pytest

from transformers_ice.data.scenes import SCENE_CLASSES, SPLIT_SIZES, draw_scene, load_scenes
from transformers_ice.data.scenes import composition as scene_composition
from transformers_ice.data.scenes import dataset as scenes
from transformers_ice.data.scenes import layers as scene_layers


NUM_SCENES = 240


@pytest.fixture(scope="module")
def drawn():
    return [draw_scene(index, "train", 64) for index in range(NUM_SCENES)]


@pytest.fixture(scope="module")
def compositions():
    return [scene_composition.compose(index, 0, (1.0, 1.0), 0)[0] for index in range(NUM_SCENES)]


def layers_of(composition, role):
    return [layer for layer in composition.layers if layer.role == role]


def window_mask(layer, side):
    """Evaluate a layer's outline on the full pixel grid, without the painter's windows."""
    centers = (np.arange(side, dtype=np.float32) + 0.5) / side
    return scene_layers.layer_distance(layer, centers[:, None], centers[None]) <= 0


# Randomness.


def test_same_arguments_give_the_same_scene():
    first, second = draw_scene(5, "test", 48, seed=3), draw_scene(5, "test", 48, seed=3)
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.mask, second.mask)
    assert (first.label, first.box) == (second.label, second.box)


def test_scene_does_not_depend_on_what_was_drawn_before():
    alone = draw_scene(17, "train", 48)
    for index in range(5):
        draw_scene(index, "validation", 32)
    np.testing.assert_array_equal(alone.image, draw_scene(17, "train", 48).image)


def test_splits_and_seeds_and_indices_share_no_random_state():
    states, grounds = set(), set()
    for split in SPLIT_SIZES:
        for seed in (0, 1):
            for index in range(40):
                composition, rng = scene_composition.compose(index, list(SPLIT_SIZES).index(split), (1.0, 1.0), seed)
                states.add(rng.bit_generator.state["state"]["state"])
                grounds.add(composition.ground.grids.tobytes())
    assert len(states) == len(grounds) == len(SPLIT_SIZES) * 2 * 40


def test_no_two_splits_share_a_background():
    """Rendered grounds of different splits are less alike than a ground and itself, whatever the pair."""
    side = 24
    fields = {
        split: np.stack(
            [
                scene_layers.render_ground(
                    scene_composition.compose(index, list(SPLIT_SIZES).index(split), (1.0, 1.0), 0)[0].ground,
                    side,
                    side,
                    slice(None),
                    slice(None),
                ).ravel()
                for index in range(60)
            ]
        )
        for split in SPLIT_SIZES
    }
    for first, second in pairwise([*SPLIT_SIZES, "train"]):
        gaps = np.abs(fields[first][:, None] - fields[second][None]).mean(axis=-1)
        assert gaps.min() > 0.02  # five grey levels on average over all pixels


def test_another_size_is_the_same_composition():
    small = [draw_scene(index, "train", 48) for index in range(24)]
    large = [draw_scene(index, "train", 96) for index in range(24)]
    for one, two in zip(small, large, strict=True):
        halved = two.image.reshape(48, 2, 48, 2, 3).mean(axis=(1, 3))
        # Pixel noise and edges differ; the composition does not: different scenes differ by about 60 levels.
        assert np.abs(halved - one.image).mean() < 12
        # The tip of a star or triangle may be thinner than a pixel of the small image.
        assert np.abs(np.array(two.box) / 2 - one.box).max() <= 3
        assert abs(one.mask.mean() - two.mask.mean()) < 0.02
        assert one.label == two.label


# Annotation.


def test_mask_is_the_visible_part_of_the_object(compositions):
    num_occluded = 0
    for index, composition in enumerate(compositions[:60]):
        expected = window_mask(layers_of(composition, "object")[0], 64)
        for occluder in layers_of(composition, "occluder"):
            num_occluded += 1
            expected &= ~window_mask(occluder, 64)
        mismatch = expected != draw_scene(index, "train", 64).mask
        assert mismatch.sum() <= 1  # a pixel centre on the outline, to float32 rounding
    assert num_occluded > 5


def test_masked_pixels_show_the_two_colors_of_the_object(drawn, compositions):
    """Away from edges every masked pixel lies on the line between the two shaded colours, noise aside."""
    for scene, composition in zip(drawn[:60], compositions[:60], strict=True):
        layer = layers_of(composition, "object")[0]
        # Shading scales a colour by at most a third at the far end of the largest object.
        low, high = layer.colors.min(axis=0) * 0.65 - 0.06, layer.colors.max(axis=0) * 1.35 + 0.06
        shown = scene.image[erode(scene.mask)] / 255
        # The soft edge of an occluding blob is a little wider than the pixel that was eroded.
        assert ((shown >= low) & (shown <= high)).mean() > 0.999


def erode(mask):
    padded = np.pad(mask, 1, constant_values=True)
    neighbours = [padded[1 + dy : 65 + dy, 1 + dx : 65 + dx] for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    return np.logical_and.reduce(neighbours)


def test_box_is_the_tight_half_open_box_of_the_mask(drawn):
    for scene in drawn:
        x0, y0, x1, y1 = scene.box
        rows, columns = np.nonzero(scene.mask)
        assert (x0, y0, x1, y1) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert all(type(value) is int for value in scene.box)


def test_object_covers_an_eighth_to_two_fifths_of_the_image(drawn):
    shares = np.array([scene.mask.mean() for scene in drawn])
    assert shares.min() > 0.09
    assert shares.max() < 0.4
    assert np.mean(shares > 0.12) > 0.97  # below only when both cut by the border and occluded


def test_object_lies_mostly_inside_and_mostly_unoccluded(compositions):
    num_occluded = 0
    for composition in compositions:
        target = layers_of(composition, "object")[0]
        y, x = scene_composition._sample_points(target)
        inside = (y > 0) & (y < 1) & (x > 0) & (x < 1)
        assert inside.mean() >= 0.75
        for occluder in layers_of(composition, "occluder"):
            num_occluded += 1
            covered = scene_layers.layer_distance(occluder, y[inside], x[inside]) <= 0
            assert 0 < covered.mean() <= 0.3
    # A third of 240 is 80; four standard deviations (7.3 each) around it.
    assert 51 <= num_occluded <= 109


def test_every_block_of_ten_holds_every_class_in_changing_order():
    labels = np.array([draw_scene(index, "validation", 16).label for index in range(40)]).reshape(4, 10)
    assert (np.sort(labels, axis=1) == np.arange(10)).all()
    assert len({tuple(row) for row in labels.tolist()}) == 4


def color_name(layer):
    """Name the hue of the more saturated of a layer's two colours by the nearest hue of the class colours."""
    color = max(layer.colors.tolist(), key=lambda channels: max(channels) - min(channels))
    hue = colorsys.rgb_to_hsv(*color)[0]
    return min(scene_layers.COLORS, key=lambda name: abs((hue - scene_layers.COLORS[name][0] + 0.5) % 1 - 0.5))


def test_label_names_the_color_and_texture_of_the_object(compositions):
    for composition in compositions:
        target = layers_of(composition, "object")[0]
        assert SCENE_CLASSES[composition.label] == f"{color_name(target)} {target.texture}"


# No cue alone.


def nearest_centroid_accuracy(features, labels):
    half = len(labels) // 2
    centroids = np.stack([features[:half][labels[:half] == label].mean(axis=0) for label in range(len(SCENE_CLASSES))])
    distances = np.linalg.norm(features[half:, None] - centroids, axis=-1)
    return np.mean(distances.argmin(axis=1) == labels[half:])


def test_color_alone_does_not_tell_the_class(drawn):
    labels = np.array([scene.label for scene in drawn])
    mean_color = np.stack([scene.image.mean(axis=(0, 1)) for scene in drawn])
    object_color = np.stack([scene.image[scene.mask].mean(axis=0) for scene in drawn])
    # Who knows the colour, even of the object alone, still has to guess between two textures: 1/2, with a standard
    # deviation of 0.046 over 120 test images.
    assert nearest_centroid_accuracy(mean_color, labels) < 1 / 2
    assert nearest_centroid_accuracy(object_color, labels) < 1 / 2 + 4 * 0.046


def test_shape_alone_does_not_tell_the_class(compositions):
    shapes = [list(scene_layers.SHAPES).index(layers_of(item, "object")[0].outline.family) for item in compositions]
    one_hot = np.eye(len(scene_layers.SHAPES))[shapes]
    # Chance is 1/10; its standard deviation over 120 test images is 0.027.
    assert nearest_centroid_accuracy(one_hot, np.array([item.label for item in compositions])) < 1 / 10 + 4 * 0.027


def saturation(layer):
    return float((layer.colors.max(axis=1) - layer.colors.min(axis=1)).max())


def look_of(layer):
    return color_name(layer), layer.texture


def test_classes_and_distractors_share_colors_and_textures_but_no_look():
    classes, others = set(scene_composition.CLASS_LOOKS), set(scene_composition.OTHER_LOOKS)
    assert len(classes) >= 10
    assert not classes & others
    assert classes | others == {(color, texture) for color in scene_layers.COLORS for texture in scene_layers.TEXTURES}
    # Each colour makes two classes and one look without a class; each texture is on both sides.
    assert all([color for color, _ in classes].count(name) == 2 for name in scene_layers.COLORS)
    assert {texture for _, texture in others} == set(scene_layers.TEXTURES)


def test_every_image_holds_things_that_look_like_an_object_of_no_class(compositions):
    for composition in compositions:
        distractors = layers_of(composition, "distractor")
        assert 2 <= len(distractors) <= 3
        assert all(layer.outline.family in scene_layers.SHAPES for layer in distractors)
        assert {look_of(layer) for layer in distractors} <= set(scene_composition.OTHER_LOOKS)


def test_plain_shapes_and_grey_blobs_occur_in_half_of_the_scenes(compositions):
    shapes = [layer for composition in compositions for layer in layers_of(composition, "shape")]
    textures = [layer for composition in compositions for layer in layers_of(composition, "texture")]
    # Half of 240 is 120; four standard deviations (7.7 each) around it.
    assert abs(len(shapes) - 120) < 31
    assert abs(len(textures) - 120) < 31
    assert all(layer.outline.family in scene_layers.SHAPES for layer in shapes)
    assert all(layer.texture in ("plain", "blotchy") for layer in shapes)
    assert all(layer.outline.family == "blob" and layer.texture in scene_layers.TEXTURES for layer in textures)
    assert max(map(saturation, textures)) < 0.2 < min(map(saturation, shapes))


@pytest.mark.parametrize(
    ("role", "cue", "chance"),
    [
        ("shape", color_name, 1 / 5),
        ("texture", lambda layer: layer.texture, 1 / 3),
        ("distractor", color_name, 1 / 5),
        # 2, 2 and 1 of the five looks, 3, 3 and 4 of the ten classes
        ("distractor", lambda layer: layer.texture, (2 * 3 + 2 * 3 + 1 * 4) / 50),
    ],
)
def test_distractors_are_independent_of_the_object(compositions, role, cue, chance):
    """A distractor shares a cue of the object as often as chance has it, so it is evidence for nothing."""
    same = [
        cue(layer) == cue(layers_of(composition, "object")[0])
        for composition in compositions
        for layer in layers_of(composition, role)
    ]
    assert abs(np.mean(same) - chance) < 4 * np.sqrt(chance * (1 - chance) / len(same))


def area_of(layer):
    return layer.size**2 * layer.outline.area


def test_distractors_are_smaller_than_the_object(compositions):
    for composition in compositions:
        target = layers_of(composition, "object")[0]
        assert all(
            area_of(layer) < 0.6 * area_of(target)
            for role in ("shape", "texture")
            for layer in layers_of(composition, role)
        )
        assert all(area_of(layer) < 0.9 * area_of(target) for layer in layers_of(composition, "distractor"))


def test_both_object_colors_differ_in_brightness(compositions):
    for composition in compositions:
        target = layers_of(composition, "object")[0]
        dark, light = sorted(target.colors @ np.array([0.299, 0.587, 0.114]))
        assert light - dark >= 0.399  # 0.4 is drawn; the rest is float32 rounding


# Outlines.


@pytest.mark.parametrize("family", ["disc", "star", "cross", "triangle", "blob"])
def test_outline_area_and_reach_are_those_of_its_distance(family):
    rng = np.random.default_rng(0)
    steps = np.linspace(-2, 2, 401)
    y, x = steps[:, None], steps[None]
    for _ in range(5):
        outline = scene_layers.draw_outline(rng, family)
        inside = scene_layers._DISTANCES[family](x, y, outline.parameters) <= 0
        assert np.isclose(inside.sum() * 0.01**2, outline.area, rtol=0.03)  # pixel counting errs at the rim
        assert np.hypot(y, x)[inside].max() <= outline.reach + 1e-6


@pytest.mark.parametrize("family", ["disc", "star", "cross", "triangle"])
def test_blobs_differ_from_the_class_shapes(family):
    """The best overlap of any blob with any upright or turned shape of equal area stays well below one."""
    rng = np.random.default_rng(1)
    steps = np.linspace(-1.6, 1.6, 81)
    y, x = steps[:, None], steps[None]
    for _ in range(20):
        blob, shape = scene_layers.draw_outline(rng, "blob"), scene_layers.draw_outline(rng, family)
        scale = np.sqrt(blob.area / shape.area)
        carved = scene_layers._blob_distance(x, y, blob.parameters) <= 0
        for angle in np.linspace(0, 2 * np.pi, 24, endpoint=False):
            turned_x, turned_y = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
            other = scene_layers._DISTANCES[family](turned_x / scale, turned_y / scale, shape.parameters) <= 0
            assert (carved & other).sum() / (carved | other).sum() < 0.9


@pytest.mark.parametrize(("texture", "share"), [("striped", 0.5), ("checked", 0.5), ("dotted", 0.349)])
def test_texture_share_of_the_second_color_is_that_of_its_definition(compositions, texture, share):
    """Stripes and checks are even; hexagonal dots of radius 0.31 periods fill 2 pi 0.31^2 / sqrt(3)."""
    layer = next(layer for item in compositions for layer in item.layers if layer.texture == texture)
    centers = (np.arange(400, dtype=np.float32) + 0.5) / 100
    weights = scene_layers.texture_weights(layer, centers[:, None], centers[None], 100)
    assert weights.min() >= 0
    assert weights.max() <= 1
    assert np.isclose(weights.mean(), share, atol=0.02)  # about thirty periods, cut at the border


# Sizes, errors, speed.


@pytest.mark.parametrize("size", [(48, 80), (80, 48), (64, 16)])
def test_rectangular_scenes_have_that_size_and_an_object_in_view(size):
    for index in range(12):
        scene = draw_scene(index, "train", size)
        assert scene.image.shape == (*size, 3)
        assert scene.image.dtype == np.uint8
        assert scene.mask.shape == size
        assert scene.mask.dtype == bool
        assert scene.mask.sum() > 0.09 * min(size) ** 2


def test_unknown_split_names_the_valid_ones():
    with pytest.raises(ValueError, match="one of train, validation, test, got 'dev'"):
        draw_scene(0, "dev")
    with pytest.raises(ValueError, match="one of train, validation, test, got 'dev'"):
        load_scenes("dev")


@pytest.mark.parametrize("size", [0, -3, 8, (32, 0), (32, 32, 3), "large"])
def test_unusable_size_is_refused(size):
    with pytest.raises(ValueError, match="`image_size` must be an int or"):
        draw_scene(0, image_size=size)


def test_negative_index_seed_and_count_are_refused():
    with pytest.raises(ValueError, match="`index` and `seed` must be at least 0"):
        draw_scene(-1)
    with pytest.raises(ValueError, match="`index` and `seed` must be at least 0"):
        draw_scene(0, seed=-1)
    with pytest.raises(ValueError, match="`num_images` must be at least 1"):
        load_scenes("train", num_images=0)


def test_drawing_is_fast_enough():
    draw_scene(0)
    start = time.process_time()
    for index in range(60):
        draw_scene(index)
    # About 300 images/s on a free core; the bound only catches a drawing that became several times slower.
    assert 60 / (time.process_time() - start) > 60


# The data set.


def test_dataset_holds_the_drawn_scenes(tmp_path):
    datasets = pytest.importorskip("datasets")
    dataset = load_scenes("validation", num_images=24, image_size=(32, 48), seed=7, cache_dir=tmp_path)
    assert dataset.num_rows == 24
    assert dataset.features["label"].names == list(SCENE_CLASSES)
    assert isinstance(dataset.features["image"], datasets.Image)
    for index, row in enumerate(dataset):
        scene = draw_scene(index, "validation", (32, 48), seed=7)
        assert (row["image"].mode, row["mask"].mode) == ("RGB", "L")
        np.testing.assert_array_equal(np.asarray(row["image"]), scene.image)
        np.testing.assert_array_equal(np.asarray(row["mask"]), scene.mask * np.uint8(255))
        assert (row["label"], tuple(row["box"])) == (scene.label, scene.box)


def test_smaller_dataset_is_a_prefix_of_a_larger_one(tmp_path):
    pytest.importorskip("datasets")
    small = load_scenes("test", num_images=6, image_size=16, cache_dir=tmp_path)
    large = load_scenes("test", num_images=18, image_size=16, cache_dir=tmp_path)
    assert small[:]["box"] == large[:6]["box"]
    assert [image.tobytes() for image in small["image"]] == [image.tobytes() for image in large[:6]["image"]]


def test_two_processes_draw_the_same_rows_in_the_same_order(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    num_images = scenes._SHARD_SIZE + 10
    one = load_scenes("train", num_images, image_size=16, cache_dir=tmp_path / "one")
    two = load_scenes("train", num_images, image_size=16, cache_dir=tmp_path / "two", num_proc=2)
    assert one["label"][:] == two["label"][:]
    assert one["box"][:] == two["box"][:]
    assert one[num_images - 1]["image"].tobytes() == two[num_images - 1]["image"].tobytes()


def test_second_load_comes_from_the_cache_until_the_drawing_changes(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    load_scenes("train", num_images=4, image_size=16, cache_dir=tmp_path)
    calls = []

    def counting_draw(*args, **kwargs):
        calls.append(args)
        return draw_scene(*args, **kwargs)

    monkeypatch.setattr(scenes, "draw_scene", counting_draw)
    load_scenes("train", num_images=4, image_size=16, cache_dir=tmp_path)
    assert calls == []
    for change in ({"seed": 1}, {"image_size": 17}, {"num_images": 5}, {"split": "test"}):
        calls.clear()
        load_scenes(**{"split": "train", "num_images": 4, "image_size": 16, "cache_dir": tmp_path, **change})
        assert len(calls) == change.get("num_images", 4)
    calls.clear()
    monkeypatch.setattr(scenes, "_DRAWING_VERSION", "another")
    load_scenes("train", num_images=4, image_size=16, cache_dir=tmp_path)
    assert len(calls) == 4


def test_missing_datasets_names_the_extra(monkeypatch):
    real_import = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "datasets":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"pip install transformers-ice\[train\]"):
        load_scenes("train")
