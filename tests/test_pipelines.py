# SPDX-License-Identifier: Apache-2.0
"""The three pipelines, on pictures of every kind and batches of every size."""

from __future__ import annotations

import io
import logging

import numpy as np
import pytest
import torch
from conftest import randomize
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from transformers import ViTImageProcessorPil, pipeline

from transformers_ice import (
    IceDeiTForImageClassification,
    IceDeiTForSemanticSegmentation,
    IceDeiTImageProcessor,
    PatchExplanationPipeline,
)
from transformers_ice.ice_deit.pipeline_patch_explanation import register_patch_explanation_pipeline


ORIENTATION = 0x0112
SIZES = [(20, 30), (50, 41), (1, 9), (33, 33), (64, 17)]


@pytest.fixture
def processor() -> IceDeiTImageProcessor:
    return IceDeiTImageProcessor(size={"height": 32, "width": 32})


@pytest.fixture
def model(tiny_config) -> IceDeiTForImageClassification:
    model = IceDeiTForImageClassification(tiny_config).eval()
    randomize(model)
    return model


@pytest.fixture
def explain(model, processor) -> PatchExplanationPipeline:
    return pipeline("patch-explanation", model=model, image_processor=processor, device="cpu")


@pytest.fixture
def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in SIZES]


def see_patches(model: IceDeiTForImageClassification, patch_logits: torch.Tensor) -> None:
    """Make the model see given patches, `(16, 4)`, in every image."""
    model.deit.patch_head.register_forward_hook(lambda head, args, output: patch_logits.expand_as(output))


def assert_same(result: dict, expected: dict, atol: float = 0.0) -> None:
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, np.ndarray) and value.dtype == np.float32:
            np.testing.assert_allclose(result[name], value, rtol=0, atol=atol)
        elif isinstance(value, np.ndarray):
            assert np.array_equal(result[name], value)
        else:
            assert (
                result[name] == pytest.approx(value, abs=atol) if isinstance(value, float) else result[name] == value
            )


# What is returned


def test_an_explanation_by_hand(explain, model):
    logits = torch.tensor([0.0, 0.0, 0.0, 2.0]).repeat(16, 1)
    logits[5] = logits[6] = torch.tensor([0.0, 4.0, 0.0, 2.0])  # row 1, columns 1 and 2: "square"
    logits[15] = torch.tensor([0.0, 0.0, 3.0, 2.0])  # the last corner: "star"
    see_patches(model, logits)
    result = explain(Image.new("RGB", (40, 20)))
    assert result["label"] == "square"
    pooled = torch.tensor([0.0, 8.0, 3.0]) / 4
    assert result["score"] == pytest.approx(pooled.softmax(0)[1].item(), abs=1e-6)  # float32
    assert result["box"] == {"xmin": 10, "ymin": 5, "xmax": 30, "ymax": 10}
    assert result["foreground_ratio"] == pytest.approx(3 / 16)
    expected = np.full((20, 40), 3)
    expected[5:10, 10:30], expected[15:, 30:] = 1, 2
    assert np.array_equal(result["class_map"], expected)
    assert np.array_equal(result["mask"], expected != 3)
    foreground = 1 - logits.softmax(-1)[:, 3].reshape(4, 4)
    # the outermost pixels lie outside of all centres of patches
    assert result["heatmap"][0, 0] == pytest.approx(foreground[0, 0].item(), abs=1e-6)
    assert result["heatmap"][19, 39] == pytest.approx(foreground[3, 3].item(), abs=1e-6)


def test_the_types_are_those_that_are_documented(explain, images):
    result = explain(images[0])
    names = ["label", "score", "heatmap", "class_map", "mask", "found", "box", "foreground_ratio", "exit_layers"]
    assert list(result) == names
    assert isinstance(result["label"], str)
    assert isinstance(result["score"], float)
    assert isinstance(result["foreground_ratio"], float)
    assert (result["heatmap"].dtype, result["heatmap"].shape) == (np.float32, (20, 30))
    assert (result["class_map"].dtype, result["class_map"].shape) == (np.int64, (20, 30))
    assert (result["mask"].dtype, result["mask"].shape) == (np.bool_, (20, 30))
    assert (result["exit_layers"].dtype, result["exit_layers"].shape) == (np.int64, (20, 30))
    assert all(isinstance(value, int) for value in result["box"].values())
    assert result["heatmap"].min() >= 0
    assert result["heatmap"].max() <= 1


def test_the_pipeline_predicts_as_model_and_processor(explain, model, processor, images):
    for image in images:
        result, size = explain(image), [(image.height, image.width)]
        with torch.no_grad():
            outputs = model(**processor(image, return_tensors="pt"))
        (found,) = processor.post_process_object_localization(outputs, target_sizes=size)
        assert result["label"] == model.config.id2label[outputs.logits.argmax().item()]
        assert result["score"] == pytest.approx(outputs.logits.softmax(-1).max().item(), abs=1e-6)
        assert result["foreground_ratio"] == pytest.approx(outputs.foreground_ratio.item(), abs=1e-6)
        assert list(result["box"].values()) == found["boxes"][0].tolist()
        assert np.array_equal(result["heatmap"], processor.post_process_heatmap(outputs, target_sizes=size)[0].numpy())


def test_nothing_found_is_background(explain, model):
    logits = torch.tensor([0.0, 0.0, 0.0, 2.0]).repeat(16, 1)
    see_patches(model, logits)
    result = explain(Image.new("RGB", (30, 20)))
    assert result["label"] == "background"
    assert result["score"] == pytest.approx(logits[0].softmax(0)[3].item(), abs=1e-6)  # float32
    assert (result["found"], result["box"]) == (False, None)
    assert result["foreground_ratio"] == 0
    assert not result["mask"].any()
    assert (result["class_map"] == 3).all()


def test_with_the_cls_source_the_classifier_names_the_class(explain, model, processor, images):
    model.config.logits_source = "cls"
    with torch.no_grad():
        cls_logits = model(**processor(images[0], return_tensors="pt")).cls_logits
    assert explain(images[0])["label"] == model.config.id2label[cls_logits.argmax().item()]
    see_patches(model, torch.tensor([0.0, 0.0, 0.0, 2.0]).repeat(16, 1))
    result = explain(images[0])
    assert result["label"] == model.config.id2label[cls_logits.argmax().item()]
    assert result["score"] == pytest.approx(cls_logits.softmax(-1).max().item(), abs=1e-6)
    assert result["foreground_ratio"] == 0


def test_a_target_is_a_name_or_an_index(model, processor, images, explain):
    by_name, by_index = explain(images[0], target="star"), explain(images[0], target=2)
    assert_same(by_name, by_index)
    assert not np.array_equal(by_name["heatmap"], explain(images[0])["heatmap"])
    fixed = pipeline("patch-explanation", model=model, image_processor=processor, target="star")
    assert_same(fixed(images[0]), by_name)
    assert_same(fixed(images[0], target=None), explain(images[0]))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("starr", r"`target` must be a class of the model, got 'starr'. Classes like it: \['star'\]"),
        ("zebra", r"Classes like it: \['disc', 'square', 'star'\]"),
        (3, r"`target` must be a class name or an index in \[0, 2\], got 3"),
        (True, "`target` must be a class name or an index"),
        (1.5, "`target` must be a class name or an index"),
    ],
)
def test_an_unknown_target_is_refused(explain, images, target, message):
    with pytest.raises(ValueError, match=message):
        explain(images[0], target=target)


def test_an_unknown_parameter_is_refused(explain, images):
    with pytest.raises(ValueError, match="Unknown parameter 'top_k' of 'patch-explanation'"):
        explain(images[0], top_k=3)


def test_a_processor_that_cannot_explain_is_refused(model):
    with pytest.raises(ValueError, match="must be an IceDeiTImageProcessor, got ViTImageProcessorPil"):
        pipeline("patch-explanation", model=model, image_processor=ViTImageProcessorPil(size=32))


# What is taken


@pytest.mark.parametrize("batch_size", [2, 3, 8])
def test_the_batch_size_does_not_change_the_results(explain, images, batch_size):
    for result, expected in zip(explain(images, batch_size=batch_size), explain(images), strict=True):
        assert_same(result, expected, atol=1e-5)  # float32 sums in another order


def test_one_image_is_a_dict_and_a_list_is_a_list(explain, images):
    assert isinstance(explain(images[0]), dict)
    assert [result["mask"].shape for result in explain(images[:2])] == SIZES[:2]
    assert [result["mask"].shape for result in explain(tuple(images[:2]))] == SIZES[:2]
    assert explain([]) == []


def test_all_sources_of_an_image_give_the_same_explanation(explain, images, tmp_path):
    path = tmp_path / "image.png"
    images[0].save(path)
    array = np.asarray(images[0])
    expected = explain(images[0])
    for source in (str(path), path, path.read_bytes(), array, torch.from_numpy(array.transpose(2, 0, 1).copy())):
        assert_same(explain(source), expected)
        assert_same(explain([source, images[1]], batch_size=2)[0], expected, atol=1e-5)


def test_datasets_and_generators_are_read_one_by_one(explain, images):
    expected = explain(images)
    columns = {"image": images, "mask": images[::-1], "label": list(range(len(images)))}
    features = Features({"image": ImageFeature(), "mask": ImageFeature(), "label": Value("int64")})
    dataset = Dataset.from_dict(columns, features=features)
    sources = [
        dataset,
        dataset["image"],
        dataset.to_iterable_dataset(),
        dataset.remove_columns("mask").rename_column("image", "photo"),
        dataset.cast_column("image", ImageFeature(decode=False)),
        (image for image in images),
    ]
    for source in sources:
        results = explain(source, batch_size=2)
        assert not isinstance(results, list)
        for result, one in zip(results, expected, strict=True):
            assert_same(result, one, atol=1e-5)


def test_a_dataset_without_an_image_column_is_refused(explain):
    with pytest.raises(ValueError, match=r"A dataset must have a column 'image' .* got \['label'\]"):
        explain(Dataset.from_dict({"label": [1, 2]}))


def _transparent(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


DEEP = np.linspace(0, 65535, 600).astype(np.uint16).reshape(20, 30)
KINDS = {
    "grey": lambda image: image.convert("L"),
    "grey and alpha": lambda image: _transparent(image).convert("LA"),
    "rgba": _transparent,
    "palette": lambda image: image.quantize(16),
    "one bit": lambda image: image.convert("1"),
    "16 bit": lambda image: Image.fromarray(DEEP),
    "32 bit": lambda image: Image.fromarray(DEEP.astype(np.int32)),
    "float": lambda image: Image.fromarray(DEEP.astype(np.float32)),
    "cmyk": lambda image: image.convert("CMYK"),
    "ycbcr": lambda image: image.convert("YCbCr"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_is_explained_as_its_rgb_form(explain, processor, images, kind, tmp_path):
    image = KINDS[kind](images[0])
    result = explain(image)
    assert_same(result, explain(Image.fromarray(processor.convert_to_rgb(image))))
    if kind == "ycbcr":  # Pillow 12 cannot read back the YCbCr TIFF that it writes, and JPEG loses pixels
        return
    path = tmp_path / f"image.{'tif' if kind in ('cmyk', '32 bit', 'float') else 'png'}"
    image.save(path)
    assert_same(explain(str(path)), result)


def test_an_image_is_converted_once_on_its_way_to_the_model(explain, images, monkeypatch):
    conversions = []
    convert = Image.Image.convert

    def count(image, mode=None, *args, **kwargs):
        conversions.append((image.mode, mode))
        return convert(image, mode, *args, **kwargs)

    grey = images[0].convert("L")
    monkeypatch.setattr(Image.Image, "convert", count)
    explain(grey)
    assert conversions == [("L", "RGB")]
    explain(images[0])
    assert len(conversions) == 1, "it is RGB"


def test_16_bits_reach_the_model_with_their_full_range(explain):
    eight = (DEEP.astype(np.uint32) + 128) // 257
    assert_same(explain(Image.fromarray(DEEP)), explain(Image.fromarray(eight.astype(np.uint8))))


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_turned_image_is_explained_upright(explain, images, tmp_path, suffix):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    images[0].save(tmp_path / f"turned.{suffix}", exif=exif)
    upright = Image.fromarray(np.rot90(np.asarray(Image.open(tmp_path / f"turned.{suffix}")), -1))
    for source in (str(tmp_path / f"turned.{suffix}"), Image.open(tmp_path / f"turned.{suffix}")):
        result = explain(source)
        assert result["mask"].shape == (30, 20)
        assert_same(result, explain(upright))


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (2, 3)], ids=str)
def test_images_of_few_pixels_have_maps_and_a_box(explain, size):
    result = explain(Image.new("RGB", size[::-1], (200, 30, 90)))
    box = result["box"]
    assert result["heatmap"].shape == result["class_map"].shape == result["mask"].shape == size
    assert 0 <= box["xmin"] < box["xmax"] <= size[1]
    assert 0 <= box["ymin"] < box["ymax"] <= size[0]


def test_an_unreadable_file_is_named(explain, images, tmp_path):
    buffer = io.BytesIO()
    images[3].save(buffer, "JPEG")
    (tmp_path / "half.jpg").write_bytes(buffer.getvalue()[:500])
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"Cannot read the image '.*half\.jpg'"):
        explain(str(tmp_path / "half.jpg"))
    with pytest.raises(ValueError, match=r"Cannot read the image '.*text\.png': cannot identify image file"):
        explain([images[0], str(tmp_path / "text.png")], batch_size=2)
    with pytest.raises(ValueError, match=r"Cannot find the image '.*missing\.png'"):
        explain(str(tmp_path / "missing.png"))


def test_other_sizes_than_the_trained_one_are_explained(model, images):
    larger = IceDeiTImageProcessor(size={"height": 48, "width": 80})
    result = pipeline("patch-explanation", model=model, image_processor=larger)(images[0])
    assert result["mask"].shape == (20, 30)
    assert result["foreground_ratio"] * 60 == pytest.approx(round(result["foreground_ratio"] * 60), abs=1e-5)


def test_a_model_in_half_precision_is_explained(model, processor, images):
    result = pipeline("patch-explanation", model=model.bfloat16(), image_processor=processor)(images[0])
    assert result["heatmap"].dtype == np.float32


def test_the_segmentation_class_is_explained_too(model, processor, images, tiny_config):
    segmenter = IceDeiTForSemanticSegmentation(tiny_config).eval()
    segmenter.load_state_dict(model.state_dict())
    expected = pipeline("patch-explanation", model=model, image_processor=processor)(images[0])
    result = pipeline("patch-explanation", model=segmenter, image_processor=processor)(images[0])
    assert_same(result, expected, atol=1e-6)


def test_registering_again_changes_nothing_and_warns_of_nothing(caplog):
    with caplog.at_level(logging.WARNING):
        register_patch_explanation_pipeline()
    assert not caplog.records


# The pipelines of transformers


@pytest.mark.parametrize("batch_size", [1, 2])
def test_image_classification_gives_the_classes(model, processor, images, batch_size):
    classify = pipeline("image-classification", model=model, image_processor=processor)
    results = classify(images[:3], batch_size=batch_size)
    for image, result in zip(images[:3], results, strict=True):
        with torch.no_grad():
            scores = model(**processor(image, return_tensors="pt")).logits.softmax(-1)[0]
        expected = {model.config.id2label[i]: score.item() for i, score in enumerate(scores)}
        assert {entry["label"]: entry["score"] for entry in result} == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_image_segmentation_gives_a_mask_for_each_class_and_background(
    model, processor, images, tiny_config, batch_size, caplog
):
    segmenter = IceDeiTForSemanticSegmentation(tiny_config).eval()
    segmenter.load_state_dict(model.state_dict())
    with caplog.at_level(logging.ERROR):
        segment = pipeline("image-segmentation", model=segmenter, image_processor=processor)
        results = segment(images[:3], batch_size=batch_size)
    assert "not supported" not in caplog.text
    expected = pipeline("patch-explanation", model=model, image_processor=processor)(images[:3])
    names = [*model.config.id2label.values(), "background"]
    for result, explanation in zip(results, expected, strict=True):
        assert [entry["label"] for entry in result] == [names[i] for i in np.unique(explanation["class_map"])]
        for entry in result:
            mask = np.asarray(entry["mask"]) == 255
            assert np.array_equal(mask, explanation["class_map"] == names.index(entry["label"]))


@pytest.mark.parametrize("top_k", [1, 3, None])
def test_nothing_found_gives_all_classes_one_score(model, processor, explain, top_k):
    see_patches(model, torch.tensor([0.0, 0.0, 0.0, 2.0]).repeat(16, 1))
    classify = pipeline("image-classification", model=model, image_processor=processor)
    scores = [entry["score"] for entry in classify(Image.new("RGB", (30, 20)), top_k=top_k)]
    assert scores == [pytest.approx(1 / 3)] * (top_k or 3)  # the format has no place for "none"


def test_an_untrained_patch_head_is_mentioned(model, processor, monkeypatch):
    said = []
    monkeypatch.setattr("transformers_ice.ice_deit.pipeline_patch_explanation.logger.warning_once", said.append)
    PatchExplanationPipeline(model=model, image_processor=processor)
    assert not said
    monkeypatch.setattr(model.config, "logits_source", "cls")
    PatchExplanationPipeline(model=model, image_processor=processor)
    assert "patch head counts as untrained" in said[0]
