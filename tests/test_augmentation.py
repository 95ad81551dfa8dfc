# SPDX-License-Identifier: Apache-2.0
"""`training.rand_augment` and `training.augmentation`: what happens to single images."""

from __future__ import annotations

import random

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PilImage
from PIL import ImageEnhance, ImageOps

from transformers_ice.data.augmentation import build_augmentation
from transformers_ice.data.augmentation.image_augmentation import jitter_colors
from transformers_ice.data.augmentation.rand_augment import (
    DEIT_POLICY,
    OPERATIONS,
    RandAugment,
    apply_operation,
    parse_rand_augment,
)
from transformers_ice.ice_deit.image_processing_ice_deit import IceDeiTImageProcessor
from transformers_ice.training import DataArguments, LabelledImages, TrainingAugmentation


FILL = (10, 20, 30)
CHANGES_NOTHING_AT_ZERO = {"rotate", "solarize", "solarize_add", "shear_x", "shear_y", "translate_x", "translate_y"}
CHANGES_NOTHING_AT_ZERO |= {"color", "contrast", "brightness", "sharpness"}


def make_image(width: int, height: int, seed: int = 0) -> PilImage.Image:
    rng = np.random.default_rng(seed)
    return PilImage.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixels_of(image: PilImage.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


# --- operations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (5, 3), (16, 12)])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_operations_keep_size_and_mode(name, size, sign):
    image = make_image(*size)
    for magnitude in (0.0, 9.0, 10.0):
        result = apply_operation(name, image, magnitude, sign, FILL)
        assert (result.size, result.mode) == (size, "RGB")
    assert np.array_equal(pixels_of(image), pixels_of(make_image(*size))), "the input may not change"
    assert apply_operation(name, PilImage.new("RGB", size, (77, 77, 77)), 10.0, sign, FILL).size == size


@pytest.mark.parametrize("name", OPERATIONS)
def test_full_strength_changes_an_image_and_no_strength_most_do_not(name):
    # a random image has every value: contrast and histogram are as wide as they can be
    image = make_image(32, 24)
    image = image.point([64 + value // 2 for value in range(256)] * 3)
    for sign in (1.0, -1.0):
        assert not np.array_equal(pixels_of(apply_operation(name, image, 10.0, sign, FILL)), pixels_of(image))
        same = np.array_equal(pixels_of(apply_operation(name, image, 0.0, sign, FILL)), pixels_of(image))
        assert same == (name in CHANGES_NOTHING_AT_ZERO)


@pytest.mark.parametrize("magnitude", [0.0, 2.4, 5.0, 9.0, 9.99, 10.0])
def test_point_operations_equal_their_definition(magnitude):
    image = make_image(16, 12)
    kept_bits = 4 - int(magnitude / 10 * 4)
    threshold = 256 - min(256, int(magnitude / 10 * 256))
    added = min(128, int(magnitude / 10 * 110))
    for name, define in {
        "posterize": lambda value: (value >> (8 - kept_bits)) << (8 - kept_bits),
        "solarize": lambda value: value if value < threshold else 255 - value,
        "solarize_add": lambda value: min(255, value + added) if value < 128 else value,
        "invert": lambda value: 255 - value,
    }.items():
        expected = [[[define(value) for value in cell] for cell in row] for row in pixels_of(image).tolist()]
        assert pixels_of(apply_operation(name, image, magnitude)).tolist() == expected, name
    if kept_bits:
        assert np.array_equal(
            pixels_of(apply_operation("posterize", image, magnitude)), pixels_of(ImageOps.posterize(image, kept_bits))
        )


def test_translations_move_by_a_share_of_the_side_and_fill():
    image = make_image(20, 40)
    pixels = pixels_of(image)
    # 0.45 of 20 and of 40 are whole pixels, so that nothing is interpolated
    moved = pixels_of(apply_operation("translate_x", image, 10.0, 1.0, FILL))
    assert np.array_equal(moved[:, :11], pixels[:, 9:])
    assert (moved[:, 11:] == FILL).all()
    moved = pixels_of(apply_operation("translate_y", image, 10.0, -1.0, FILL))
    assert np.array_equal(moved[18:], pixels[:22])
    assert (moved[:18] == FILL).all()


def test_rotation_and_shear_have_their_full_strength_at_ten():
    image = make_image(31, 31)
    rotated = image.rotate(-30, resample=PilImage.Resampling.BICUBIC, fillcolor=FILL)
    assert np.array_equal(pixels_of(apply_operation("rotate", image, 10.0, -1.0, FILL)), pixels_of(rotated))
    # a vertical line, sheared: 0.3 pixels a row
    line = PilImage.new("RGB", (60, 41))
    line.paste((255, 255, 255), (30, 0, 31, 41))
    sheared = pixels_of(apply_operation("shear_x", line, 10.0, 1.0, FILL))[..., 0]
    columns = [int(row[5:55].argmax()) + 5 for row in sheared]
    assert columns[0] - columns[40] == pytest.approx(0.3 * 40, abs=1)


@pytest.mark.parametrize(("name", "enhancer"), [("color", "Color"), ("sharpness", "Sharpness")])
def test_enhancements_end_at_nineteen_tenths_and_at_one_tenth(name, enhancer):
    image = make_image(8, 8)
    for sign, factor in ((1.0, 1.9), (-1.0, 0.1)):
        expected = pixels_of(getattr(ImageEnhance, enhancer)(image).enhance(factor))
        # one float rounding of 1 - 0.9
        assert np.abs(pixels_of(apply_operation(name, image, 10.0, sign)) - expected).max() <= 1


# --- policies ------------------------------------------------------------------------------------------------------


def test_policy_of_deit():
    augment = parse_rand_augment(DEIT_POLICY)
    assert (augment.magnitude, augment.magnitude_std) == (9.0, 0.5)
    assert (augment.num_operations, augment.probability) == (2, 0.5)
    assert augment.fill == (124, 116, 104)
    assert len(OPERATIONS) == 15


def test_other_policies():
    augment = parse_rand_augment("rand-n3-m4.5-p0.25-mstd101-inc1", (0.5, 0.0, 1.0))
    assert augment == RandAugment(4.5, float("inf"), 3, 0.25, (128, 0, 255))
    assert parse_rand_augment("rand-inc1-mstdinf").magnitude_std == float("inf")
    assert parse_rand_augment("rand-m9-inc1").magnitude_std == 0.0


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("augmix-m3", "must be a policy like rand-m9-mstd0.5-inc1, or none, got 'augmix-m3'"),
        ("", "must be a policy"),
        ("rand-m9-mstd0.5", "add -inc1"),
        ("rand-m9-inc0", "add -inc1"),
        ("rand-w0-inc1", "got 'w0'"),
        ("rand-m-inc1", "got 'm'"),
        ("rand-minf-inc1", "got 'minf'"),
        ("rand-m-9-inc1", "got 'm'"),
        ("rand-m11-inc1", "magnitude of `rand_augment` is at most 10, got 11"),
        ("rand-p2-inc1", "probability of `rand_augment` is at most 1, got 2"),
        ("rand-n0-inc1", "whole number of operations from 1 on, got 0"),
        ("rand-n1.5-inc1", "whole number of operations from 1 on, got 1.5"),
    ],
)
def test_unknown_policies_are_refused(policy, message):
    with pytest.raises(ValueError, match=message):
        parse_rand_augment(policy)
    with pytest.raises(ValueError, match=message):
        DataArguments(dataset_name="scenes", rand_augment=policy)


def test_magnitudes_are_normal_and_clipped_or_uniform():
    generator = random.Random(0)
    drawn = np.array([RandAugment(9.0, 0.5).draw_magnitude(generator) for _ in range(4000)])
    # the standard error of the mean is 0.008; clipping at two deviations moves it by about 0.004
    assert drawn.mean() == pytest.approx(9.0, abs=0.05)
    assert drawn.std() == pytest.approx(0.5, abs=0.05)
    assert drawn.max() == 10.0
    uniform = np.array([RandAugment(4.0, float("inf")).draw_magnitude(generator) for _ in range(4000)])
    assert (uniform.mean(), uniform.max()) == (pytest.approx(2.0, abs=0.1), pytest.approx(4.0, abs=0.05))
    assert uniform.min() >= 0


def test_each_of_two_operations_is_applied_with_probability_half(monkeypatch):
    applied = []
    for name in OPERATIONS:
        monkeypatch.setitem(OPERATIONS, name, lambda image, *rest, name=name: applied.append(name) or image)
    image, augment, generator = make_image(4, 4), RandAugment(), random.Random(0)
    for _ in range(3000):
        augment(image, generator)
    # 6000 draws: five standard deviations are 194, and 5 * sqrt(200 * 14 / 15) = 68 for a single operation
    assert abs(len(applied) - 3000) < 194
    counts = [applied.count(name) for name in OPERATIONS]
    assert max(abs(count - 200) for count in counts) < 75
    assert augment(image, generator) is image


def test_jitter_draws_factors_around_one():
    grey = PilImage.new("RGB", (2, 2), (100, 100, 100))
    values = [np.asarray(jitter_colors(grey, 0.4, random.Random(seed)))[0, 0, 0] for seed in range(300)]
    # of an even grey only the brightness changes
    assert 60 <= min(values) < 64
    assert 136 < max(values) <= 140
    assert jitter_colors(grey, 0.0, random.Random(0)).tobytes() == grey.tobytes()


# --- the whole of it -----------------------------------------------------------------------------------------------


def make_deit(**fields) -> TrainingAugmentation:
    arguments = DataArguments(dataset_name="scenes", augmentation="deit", **fields)
    return build_augmentation(arguments, (24, 32), (0.485, 0.456, 0.406))


def test_deit_fills_in_what_is_not_given():
    augmentation = make_deit()
    assert augmentation.scale == (0.08, 1.0)
    assert augmentation.rand_augment == parse_rand_augment(DEIT_POLICY)
    arguments = DataArguments(dataset_name="scenes", augmentation="deit", mixup_alpha=0.0, label_smoothing=0.2)
    assert (arguments.mixup_alpha, arguments.cutmix_alpha, arguments.label_smoothing) == (0.0, 1.0, 0.2)
    assert arguments.random_erasing_prob == 0.25
    assert make_deit(rand_augment="none", random_resized_crop_scale=[0.5, 1.0]).rand_augment is None
    assert make_deit(rand_augment="none").color_jitter == 0.4


def test_other_choices_stay_as_they_were():
    for choice, crop, flip in (("crop_flip", True, 0.5), ("flip", False, 0.5)):
        arguments = DataArguments(dataset_name="scenes", augmentation=choice)
        expected = TrainingAugmentation((8, 8), crop, flip, (0.6, 1.0), (3 / 4, 4 / 3))
        assert build_augmentation(arguments, (8, 8), (0.5,) * 3) == expected
        assert (arguments.mixup_alpha, arguments.random_erasing_prob, arguments.label_smoothing) == (0, 0, 0)
    assert build_augmentation(DataArguments(dataset_name="scenes", augmentation="none"), (8, 8), (0.5,) * 3) is None
    alone = DataArguments(dataset_name="scenes", augmentation="none", rand_augment=DEIT_POLICY)
    augmentation = build_augmentation(alone, (8, 8), (0.5,) * 3)
    assert (augmentation.crop, augmentation.flip_probability) == (False, 0.0)


def test_jitter_is_left_out_beside_a_policy():
    image = make_image(40, 30)
    one, other = make_deit(color_jitter=0.9), make_deit(color_jitter=0.0)
    for seed in range(10):
        assert one(image, random.Random(seed)).tobytes() == other(image, random.Random(seed)).tobytes()
    jittered = make_deit(rand_augment="none", color_jitter=0.9)(image, random.Random(1))
    assert jittered.tobytes() != make_deit(rand_augment="none", color_jitter=0.0)(image, random.Random(1)).tobytes()


@pytest.mark.parametrize("name", ["random_erasing_prob", "mixup_prob", "mixup_switch_prob"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_shares_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=rf"`{name}` must be in \[0, 1\], got"):
        DataArguments(dataset_name="scenes", **{name: value})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mixup_alpha": -1.0}, "`mixup_alpha` must be at least 0, got -1.0"),
        ({"cutmix_alpha": float("inf")}, "`cutmix_alpha` must be at least 0"),
        ({"color_jitter": -0.4}, "`color_jitter` must be at least 0"),
        ({"label_smoothing": 1.0}, r"`label_smoothing` must be in \[0, 1\), got 1.0"),
    ],
)
def test_numbers_out_of_range_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        DataArguments(dataset_name="scenes", **fields)


def test_grey_transparent_tiny_and_long_images_come_out_in_the_models_size():
    images = [make_image(1, 1), make_image(1, 50), make_image(90, 3), make_image(13, 17).convert("L")]
    images += [make_image(9, 9).convert("RGBA"), make_image(9, 9).convert("LA"), make_image(8, 8).convert("1")]
    features = Features({"image": Image(), "label": ClassLabel(names=["a"])})
    table = Dataset.from_dict({"image": images, "label": [0] * len(images)}, features=features)
    processor = IceDeiTImageProcessor(size={"height": 24, "width": 32})
    rows = LabelledImages(table, processor, make_deit())
    for epoch in range(5):
        rows.set_epoch(epoch)
        for row in rows.__getitems__(range(len(images))):
            assert row["pixel_values"].shape == (24, 32, 3)


def test_images_of_the_policy_depend_on_their_seed_alone():
    image = make_image(50, 40)
    augmentation = make_deit()
    first = [augmentation(image, random.Random(f"0/1/{row}")).tobytes() for row in range(20)]
    random.seed(5), np.random.seed(5)  # noqa: NPY002 - the global generators must not matter
    assert [augmentation(image, random.Random(f"0/1/{row}")).tobytes() for row in range(20)] == first
    assert len(set(first)) == 20
