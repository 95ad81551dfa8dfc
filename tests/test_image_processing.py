# SPDX-License-Identifier: Apache-2.0
"""Every kind of picture into the model, and predictions back onto the picture."""

from __future__ import annotations

import base64
import http.server
import io
import json
import math
import re
import sys
import threading
import urllib.response
import warnings
from types import SimpleNamespace

import numpy as np
import PIL
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil

import transformers_ice  # noqa: F401 - registers the processor
from transformers_ice.ice_deit import image_conversion
from transformers_ice.ice_deit.image_conversion import convert_to_rgb, load_image, read_rgb
from transformers_ice.ice_deit.image_processing_ice_deit import IceDeiTImageProcessor
from transformers_ice.ice_deit.patch_maps import nearest_to_image


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MEAN_COLOR = (124, 116, 104)  # 255 x mean, rounded
ORIENTATION = 0x0112  # EXIF tag; 6: the camera was held so that the image must be turned clockwise


@pytest.fixture(scope="module")
def processor() -> IceDeiTImageProcessor:
    return IceDeiTImageProcessor(size={"height": 32, "width": 32})


@pytest.fixture(scope="module")
def raw() -> IceDeiTImageProcessor:
    """Only conversion: what comes out are the 8-bit values."""
    return IceDeiTImageProcessor(do_resize=False, do_rescale=False, do_normalize=False)


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return values if channels > 1 else values[..., 0]


def pixels(processor: IceDeiTImageProcessor, image, **kwargs) -> np.ndarray:
    """The processed image as (height, width, channels)."""
    return processor(image, return_tensors="np", **kwargs)["pixel_values"][0].transpose(1, 2, 0)


# Conversion


def test_rgb_gives_the_same_pixels_as_the_processor_of_deit():
    mean, std = list(IMAGENET_MEAN), list(IMAGENET_STD)
    for size, crop in [({"height": 32, "width": 48}, None), ({"shortest_edge": 40}, {"height": 32, "width": 32})]:
        settings = {"size": size, "do_center_crop": crop is not None, "crop_size": crop}
        ours = IceDeiTImageProcessor(**settings)
        theirs = DeiTImageProcessorPil(**settings, image_mean=mean, image_std=std)
        for shape in [(50, 70), (90, 41), (33, 32), (20, 20)]:
            image = Image.fromarray(noise(*shape))
            assert np.array_equal(pixels(ours, image), pixels(theirs, image))


def test_normalisation_is_that_of_imagenet_by_hand(processor):
    result = pixels(processor, Image.new("RGB", (5, 9), (10, 100, 200)))
    assert result.shape == (32, 32, 3)
    expected = (np.array([10, 100, 200]) / 255 - IMAGENET_MEAN) / IMAGENET_STD
    np.testing.assert_allclose(result[7, 3], expected, atol=1e-6)  # float32


def test_grey_becomes_three_equal_channels(raw):
    values = noise(6, 7, 1)
    for image in (Image.fromarray(values), values, values[..., None], torch.from_numpy(values)[None]):
        assert np.array_equal(pixels(raw, image), np.stack([values] * 3, axis=-1))


@pytest.mark.parametrize("dtype", ["uint16", ">u2", "int32", "float32"])
def test_16_bits_are_scaled_and_not_clipped(raw, dtype):
    values = np.array([[0, 257, 32896, 65535]], dtype=dtype)
    assert pixels(raw, values)[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I", "F"])
def test_16_bits_in_a_pil_image_are_scaled_and_not_clipped(raw, mode):
    values = np.array([[0, 257, 32896, 65535]])
    image = Image.new(mode, (4, 1))
    for x, value in enumerate(values[0]):
        image.putpixel((x, 0), float(value) if mode == "F" else int(value))
    assert pixels(raw, image)[0, :, 0].tolist() == [0, 1, 128, 255]


def test_a_16_bit_file_survives_the_way_through_a_path(raw, tmp_path):
    values = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    for name in ("deep.png", "deep.tif"):
        Image.fromarray(values).save(tmp_path / name)
        assert np.array_equal(pixels(raw, str(tmp_path / name))[..., 0].ravel(), np.arange(256))


def test_a_dark_16_bit_image_stays_dark(raw):
    assert pixels(raw, np.full((4, 5), 200, dtype=np.uint16)).max() == 1


def test_floats_of_either_range_and_booleans_mean_the_same_picture():
    values = np.array([[0.0, 1.0], [1.0, 0.0]])
    expected = np.array([[0, 255], [255, 0]])
    for image in (values, values.astype(np.float32) * 255, values.astype(bool), torch.tensor(values).bfloat16()):
        assert np.array_equal(np.asarray(convert_to_rgb(image))[..., 2], expected)


def test_rescaled_floats_stay_rescaled_when_told_not_to_rescale():
    image = np.full((8, 9, 3), 0.5, dtype=np.float32)
    told = IceDeiTImageProcessor(size=16, do_rescale=False, do_normalize=False)
    # 0.5 is stored as 128 of 255 on the way
    np.testing.assert_allclose(pixels(told, image), 128 / 255, atol=1e-6)
    np.testing.assert_allclose(pixels(told, image[..., 0]), 128 / 255, atol=1e-6)


def test_transparent_pixels_show_the_mean_colour_and_say_nothing(processor, raw):
    image = Image.new("RGBA", (5, 6), (255, 0, 0, 0))
    image.putpixel((1, 2), (10, 20, 30, 255))
    image.putpixel((2, 2), (224, 216, 4, 128))
    result = pixels(raw, image)
    assert result[0, 0].tolist() == list(MEAN_COLOR)
    assert result[2, 1].tolist() == [10, 20, 30]
    np.testing.assert_allclose(result[2, 2], [174, 166, 54], atol=1)  # half and half, rounded twice
    empty = pixels(processor, Image.new("RGBA", (4, 4), (255, 0, 0, 0)))
    np.testing.assert_allclose(empty, 0, atol=0.5 / 255 / 0.224)  # the mean colour is rounded to 8 bits
    # an array is the same picture
    assert np.array_equal(pixels(raw, np.asarray(image)), result)


def test_transparent_pixels_get_the_mean_color_of_the_processor(raw):
    white = IceDeiTImageProcessor(do_resize=False, do_rescale=False, do_normalize=False, image_mean=[1.0, 1.0, 1.0])
    assert pixels(white, Image.new("LA", (4, 4), (0, 0))).min() == 255
    assert pixels(raw, Image.new("LA", (4, 4), (0, 0)), image_mean=[1.0, 1.0, 1.0]).min() == 255


def test_every_kind_of_transparency_is_seen(raw):
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putpixel((1, 1), 1)
    palette.info["transparency"] = 0
    keyed = Image.new("L", (4, 4), 7)
    keyed.info["transparency"] = 7
    modes = ["RGBa", "LA", *(["PA"] if int(PIL.__version__.split(".")[0]) >= 12 else [])]  # before 12 it loses alpha
    images = [palette, keyed, *(Image.new("RGBA", (4, 4), 0).convert(mode) for mode in modes)]
    images.append(Image.new("LA", (4, 4), 0).convert("La"))
    for image in images:
        assert pixels(raw, image)[3, 3].tolist() == list(MEAN_COLOR), image.mode
    assert pixels(raw, palette)[1, 1].tolist() == [0, 255, 0]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_opaque_modes_give_what_pil_shows(raw, mode):
    image = Image.fromarray(noise(6, 5)).convert(mode)
    assert np.array_equal(pixels(raw, image), np.asarray(image.convert("RGB")))


def test_a_mode_that_pillow_cannot_convert_is_refused(monkeypatch):
    def refuse(self, mode):
        raise ValueError(f"conversion from {self.mode} to {mode} not supported")  # LAB, before Pillow 12

    monkeypatch.setattr(Image.Image, "convert", refuse)
    with pytest.raises(ValueError, match="An image of mode LAB cannot become RGB: conversion from LAB to RGB"):
        convert_to_rgb(Image.new("LAB", (2, 2)))


@pytest.mark.parametrize("height", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("width", [1, 2, 3, 4, 5])
def test_images_of_few_pixels_are_not_turned_over(raw, height, width):
    values = noise(height, width)
    assert np.array_equal(pixels(raw, Image.fromarray(values)), values)
    assert np.array_equal(pixels(raw, Image.fromarray(values[..., 0]))[..., 1], values[..., 0])
    assert np.array_equal(pixels(raw, values[..., 0])[..., 1], values[..., 0])
    assert np.array_equal(pixels(raw, values, input_data_format="channels_last"), values)
    first = values.transpose(2, 0, 1)
    assert np.array_equal(pixels(raw, first, input_data_format="channels_first"), values)
    if height != 3:
        assert np.array_equal(pixels(raw, values), values)
    if width != 3:
        assert np.array_equal(pixels(raw, torch.from_numpy(first.copy())), values)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 5, 3)), "must have one axis of 1, 3 or 4 channels, got shape"),
        (np.zeros((5, 5, 2)), "must have one axis of 1, 3 or 4 channels, got shape"),
        (np.full((5, 5, 3), -1.0), r"Pixels must lie in .* got values from -1.0 to -1.0"),
        (np.full((5, 5), np.nan), "Pixels must lie in"),
        (np.full((5, 5), 70000), "Pixels must lie in"),
        (np.zeros((5, 5, 3), dtype=complex), "Pixels must be numbers, got complex128"),
        (np.zeros((0, 5, 3), dtype=np.uint8), "An image must have pixels, got an array of shape"),
    ],
    ids=lambda value: str(getattr(value, "shape", "")),
)
def test_arrays_that_are_no_pictures_are_refused(processor, array, message):
    with pytest.raises(ValueError, match=message):
        processor(array)


def test_an_image_without_pixels_is_refused(processor):
    with pytest.raises(ValueError, match="An image must have pixels, got 4 x 0"):
        processor(Image.new("RGB", (0, 4)))


def test_without_conversion_the_processor_does_what_that_of_deit_does():
    settings = {"do_convert_rgb": False, "size": {"height": 8, "width": 8}, "do_normalize": False}
    image = Image.fromarray(noise(5, 6, 1))
    assert np.array_equal(
        pixels(IceDeiTImageProcessor(**settings), image),
        pixels(DeiTImageProcessorPil(**settings, do_center_crop=False), image),
    )


def test_one_pixel_wide_images_are_squashed_like_any_other(processor):
    for size in ((1, 1), (1, 300), (300, 1)):
        assert pixels(processor, Image.new("RGB", size)).shape == (32, 32, 3)


# Loading


@pytest.fixture(scope="module")
def truncated(tmp_path_factory) -> str:
    buffer = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(buffer, "JPEG")
    path = tmp_path_factory.mktemp("bad") / "half.jpg"
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    return str(path)


def test_a_truncated_file_is_named(processor, truncated):
    for image in (truncated, Image.open(truncated)):
        with pytest.raises(ValueError, match=r"Cannot read the image '.*half\.jpg': image file is truncated"):
            processor(image)


def test_a_file_that_is_no_image_is_named(tmp_path):
    (tmp_path / "notes.png").write_text("not a picture")
    with pytest.raises(ValueError, match=r"Cannot read the image '.*notes\.png': cannot identify image file"):
        load_image(tmp_path / "notes.png")


def test_a_missing_file_is_named():
    with pytest.raises(ValueError, match=r"Cannot find the image 'no/such file\.jpg'. Expected an existing file"):
        load_image("no/such file.jpg")
    with pytest.raises(ValueError, match="Cannot read the image 'photos12': cannot identify image file"):
        load_image("photos12")  # letters that happen to be base64


def test_what_cannot_be_an_image_is_refused():
    with pytest.raises(ValueError, match="An image must be a path, URL, bytes or PIL image, got int"):
        load_image(3)


def test_all_sources_give_the_same_image(tmp_path):
    values = noise(5, 7)
    path = tmp_path / "a.png"
    Image.fromarray(values).save(path)
    encoded = path.read_bytes()
    text = base64.b64encode(encoded).decode()
    sources = [path, str(path), encoded, bytearray(encoded), text, f"data:image/png;base64,{text}"]
    sources += [{"path": str(path), "bytes": None}, {"path": "elsewhere.png", "bytes": encoded}, Image.open(path)]
    for source in sources:
        assert np.array_equal(np.asarray(load_image(source)), values)


def test_base64_may_be_broken_into_lines():
    encoded = io.BytesIO()
    Image.fromarray(noise(20, 30)).save(encoded, "PNG")
    assert load_image(base64.encodebytes(encoded.getvalue()).decode()).size == (30, 20)


@pytest.mark.parametrize(
    "path", ["http://127.0.0.1:9/a.png", "nowhere.png", "data:image/png;base64,AAAA", "AAAA", None]
)
def test_a_row_of_a_data_set_is_bytes_or_a_file(path, monkeypatch):
    monkeypatch.setattr(image_conversion, "urlopen", lambda *_, **__: pytest.fail("a request was sent"))
    with pytest.raises(ValueError, match="must hold the bytes of its image, or the path of an existing file"):
        load_image({"bytes": None, "path": path})


def test_photographs_of_phones_take_pillow_heif(tmp_path, monkeypatch):
    """A stand-in of pillow-heif: HEIC itself cannot be written here."""
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(16))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for source in (tmp_path / "a.heic", (tmp_path / "a.heic").read_bytes()):
        with pytest.raises(ValueError, match="HEIC images need pillow-heif: pip install pillow-heif"):
            load_image(source)
    opener, original = [], Image.open
    module = SimpleNamespace(register_heif_opener=lambda: opener.append(1))
    monkeypatch.setitem(sys.modules, "pillow_heif", module)
    monkeypatch.setattr(Image, "open", lambda file, **k: Image.new("RGB", (3, 2)) if opener else original(file, **k))
    assert load_image(tmp_path / "a.heic").size == (3, 2)
    assert ".heic" in image_conversion.IMAGE_ENDINGS


def test_a_url_is_downloaded_with_its_depth(tmp_path):
    values = np.array([[0, 65535], [257, 514]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    Image.fromarray(values).save(tmp_path / "deep grün.png")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert np.array_equal(np.asarray(load_image(f"{address}/deep.png")), values)
        assert np.array_equal(np.asarray(load_image(f"{address}/deep grün.png")), values)
        with pytest.raises(ValueError, match=r"Cannot download the image 'http://.*missing\.png'"):
            load_image(f"{address}/missing.png")
        server.shutdown()


def png_bytes() -> bytes:
    stream = io.BytesIO()
    Image.new("L", (2, 2)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("announced", "num_sent", "limit", "message"),
    [
        (10**12, 0, 10**6, "more than 1,000,000 bytes"),
        (None, 3000, 2000, "more than 2,000 bytes"),
        (2000, 1000, 10**6, "1000 bytes read, 1000 more expected"),
        (None, 2000, 2000, None),
        (2000, 2000, 2000, None),
    ],
)
def test_a_download_is_bounded_and_complete(monkeypatch, announced, num_sent, limit, message):
    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            if announced is not None:
                self.send_header("Content-Length", str(announced))
            self.end_headers()
            self.wfile.write(png_bytes().ljust(num_sent, b"\0")[:num_sent])

        def log_message(self, *args):
            pass

    monkeypatch.setattr(image_conversion, "MAX_DOWNLOAD", limit)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/a.png"
        if message is None:
            assert load_image(address).size == (2, 2)
        else:
            with pytest.raises(ValueError, match=rf"Cannot download the image '{address}': .*{message}.*Check the"):
                load_image(address)
        server.shutdown()


@pytest.mark.parametrize("mode", ["RGB", "L", "I;16"])
def test_images_are_loaded_upright(tmp_path, raw, mode):
    image = Image.fromarray(np.arange(6, dtype=np.uint16).reshape(2, 3) * 257).convert("I;16")
    image = image if mode == "I;16" else Image.fromarray(noise(2, 3)).convert(mode)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    upright = np.rot90(np.asarray(image), -1)
    assert np.array_equal(np.asarray(load_image(str(tmp_path / "turned.png"))), upright)
    by_path = pixels(raw, str(tmp_path / "turned.png"))
    assert by_path.shape == (3, 2, 3)


def test_an_upright_rgb_image_is_taken_as_it_is(raw):
    """It was converted when it was read; another conversion would copy its pixels once more."""
    values = noise(5, 7)
    image = Image.fromarray(values)
    assert load_image(image) is image
    assert convert_to_rgb(image) is image
    assert read_rgb(image) is image
    assert raw.read_image(image) is image
    raw.convert_to_rgb(image)[:] = 0
    pixels(raw, image)[:] = 0
    assert np.array_equal(np.asarray(image), values), "what the processor returns is its own"


def test_what_is_not_upright_rgb_is_converted_when_it_is_read(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(noise(2, 3)).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as turned:
        assert np.array_equal(np.asarray(read_rgb(turned)), np.rot90(noise(2, 3), -1))
    masked = Image.fromarray(noise(2, 3))
    masked.info["transparency"] = masked.getpixel((0, 0))  # a PNG may name one colour that is transparent
    read = read_rgb(masked, backdrop=(1.0, 0.0, 0.0))
    assert (read.getpixel((0, 0)), read.getpixel((1, 0))) == ((255, 0, 0), masked.getpixel((1, 0)))
    deep = np.full((2, 3), 65535, dtype=np.uint16)
    for source in (deep, torch.full((2, 3), 1.0), Image.fromarray(deep), Image.fromarray(deep).convert("CMYK")):
        assert read_rgb(source).mode == "RGB"
    assert np.asarray(read_rgb(deep)).min() == 255


def test_damaged_exif_data_does_not_hide_the_image(tmp_path):
    values = noise(4, 6)
    Image.fromarray(values).save(tmp_path / "odd.png", exif=b"Exif\x00\x00garbage")
    assert np.array_equal(np.asarray(load_image(tmp_path / "odd.png")), values)


# Saving and loading


def test_saving_and_loading_changes_nothing(tmp_path):
    processor = IceDeiTImageProcessor(
        size={"shortest_edge": 40}, do_center_crop=True, crop_size=32, image_mean=[0.5] * 3
    )
    processor.save_pretrained(tmp_path)
    again = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(again) is IceDeiTImageProcessor
    assert again.to_dict() == {**processor.to_dict(), "auto_map": again.auto_map}
    image = Image.fromarray(noise(50, 70))
    assert np.array_equal(pixels(again, image), pixels(processor, image))


def test_the_saved_file_is_complete_and_names_its_code(tmp_path):
    IceDeiTImageProcessor().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved == {
        "auto_map": {"AutoImageProcessor": "image_processing_ice_deit.IceDeiTImageProcessor"},
        "do_center_crop": False,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(IMAGENET_MEAN),
        "image_processor_type": "IceDeiTImageProcessor",
        "image_std": list(IMAGENET_STD),
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": 224, "width": 224},
        "video_processor_type": "IceDeiTVideoProcessor",  # no such class: see `to_dict`
    }
    code = {"image_processing_ice_deit.py", "image_conversion.py", "patch_maps.py", "adversarial_normalization.py"}
    assert code <= {file.name for file in tmp_path.iterdir()}


@pytest.mark.parametrize("backend", [None, "pil", "torchvision"])
def test_every_backend_is_the_one_backend(tmp_path, backend):
    IceDeiTImageProcessor().save_pretrained(tmp_path)
    assert type(AutoImageProcessor.from_pretrained(tmp_path, backend=backend)) is IceDeiTImageProcessor


@pytest.mark.parametrize(
    ("saved", "expected"),
    [
        (
            {"feature_extractor_type": "DeiTFeatureExtractor", "size": 256, "do_center_crop": True, "crop_size": 224},
            {
                "size": {"height": 256, "width": 256},
                "crop_size": {"height": 224, "width": 224},
                "do_center_crop": True,
            },
        ),
        (
            {"image_processor_type": "ViTImageProcessor", "size": {"height": 384, "width": 384}, "resample": 2},
            {"size": {"height": 384, "width": 384}, "resample": 2, "do_center_crop": False},
        ),
        ({"do_convert_rgb": None, "image_mean": [0.5] * 3}, {"do_convert_rgb": True, "image_mean": (0.5,) * 3}),
    ],
    ids=["deit", "vit", "no conversion"],
)
def test_settings_of_hub_processors_are_read(tmp_path, saved, expected):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(saved))
    loaded = IceDeiTImageProcessor.from_pretrained(tmp_path).to_dict()
    assert {name: loaded[name] for name in expected} == expected
    assert loaded["image_processor_type"] == "IceDeiTImageProcessor"


def test_padding_is_refused_because_it_has_no_way_back(processor):
    with pytest.raises(ValueError, match="`do_pad` must be False, got True"):
        processor(Image.new("RGB", (4, 4)), do_pad=True, pad_size={"height": 64, "width": 64})


# Back to the image


PATCH_LOGITS = torch.tensor(  # 4x4 patches, classes 0 and 1, background last; by eye: class map below
    [[[3.0, 0.0, 1.0] if c == "0" else [0.0, 2.0, 1.0] if c == "1" else [0.0, 0.0, 4.0] for c in "..0..110.11....0"]]
)
CLASS_MAP = [[2, 2, 0, 2], [2, 1, 1, 0], [2, 1, 1, 2], [2, 2, 2, 0]]


def classification(patch_logits: torch.Tensor = PATCH_LOGITS, **kwargs) -> SimpleNamespace:
    rows = columns = int(patch_logits.shape[1] ** 0.5)
    grid_size = torch.tensor([[rows, columns]] * len(patch_logits))
    logits = torch.tensor([[0.5, 1.5]] * len(patch_logits))
    return SimpleNamespace(**{"logits": logits, "patch_logits": patch_logits, "grid_size": grid_size, **kwargs})


def segmentation(patch_logits: torch.Tensor = PATCH_LOGITS) -> dict[str, torch.Tensor]:
    rows = int(patch_logits.shape[1] ** 0.5)
    return {"logits": patch_logits.transpose(1, 2).unflatten(2, (rows, rows))}


@pytest.fixture(params=[classification, segmentation], ids=["classification", "segmentation"])
def outputs(request):
    return request.param()


def test_the_class_map_by_hand(processor, outputs):
    (small,) = processor.post_process_semantic_segmentation(outputs)
    assert small.tolist() == CLASS_MAP
    (large,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[(8, 12)])
    assert large.dtype == torch.long
    assert torch.equal(large, small.repeat_interleave(2, 0).repeat_interleave(3, 1))


def test_the_foreground_is_the_segmentation_without_background_at_any_size(processor):
    for size in [(1, 1), (3, 200), (7, 5), (64, 48)]:
        logits = torch.randn(3, 16, 4)
        outputs = classification(logits)
        masks = processor.post_process_foreground(outputs, target_sizes=[size] * 3)
        maps = processor.post_process_semantic_segmentation(outputs, target_sizes=[size] * 3)
        for mask, labels in zip(masks, maps, strict=True):
            assert mask.dtype == torch.bool
            assert mask.shape == size
            assert torch.equal(mask, labels != 3)


def test_the_heat_map_is_a_probability_and_not_stretched(processor, outputs):
    (small,) = processor.post_process_heatmap(outputs)
    expected = 1 - PATCH_LOGITS.softmax(-1)[..., -1].reshape(4, 4)
    torch.testing.assert_close(small, expected, rtol=0, atol=1e-6)  # float32
    (large,) = processor.post_process_heatmap(outputs, target_sizes=[(4, 8)])
    assert large.dtype == torch.float32
    torch.testing.assert_close(large[:, 0], expected[:, 0], rtol=0, atol=1e-6)
    torch.testing.assert_close(large[:, 1], 0.75 * expected[:, 0] + 0.25 * expected[:, 1], rtol=0, atol=1e-6)


def test_the_heat_map_of_a_class_is_its_probability_for_each_image(processor):
    logits = torch.randn(3, 16, 4)
    probabilities = logits.softmax(-1).reshape(3, 4, 4, 4)
    one = processor.post_process_heatmap(classification(logits), target=2)
    each = processor.post_process_heatmap(classification(logits), target=[0, 2, 1])
    as_tensor = processor.post_process_heatmap(classification(logits), target=torch.tensor([0, 2, 1]))
    for i, label in enumerate([0, 2, 1]):
        torch.testing.assert_close(one[i], probabilities[i, ..., 2], rtol=0, atol=1e-6)  # float32
        torch.testing.assert_close(each[i], probabilities[i, ..., label], rtol=0, atol=1e-6)
        assert torch.equal(each[i], as_tensor[i])


def test_the_box_by_hand(processor):
    (found,) = processor.post_process_object_localization(classification(), target_sizes=[(8, 12)])
    # the largest group is the 2x2 block with the patches that touch it: rows 0 to 2, columns 1 to 3
    assert found["boxes"].tolist() == [[3, 0, 12, 6]]
    assert found["labels"].tolist() == [1]
    torch.testing.assert_close(found["scores"], torch.tensor([0.5, 1.5]).softmax(0)[1:], rtol=0, atol=1e-6)
    (in_patches,) = processor.post_process_object_localization(classification())
    assert in_patches["boxes"].tolist() == [[1, 0, 4, 3]]


def test_segmentation_outputs_are_classified_by_their_foreground_patches(processor):
    (found,) = processor.post_process_object_localization(segmentation())
    # three patches [3, 0] and four [0, 2], divided by 7 + 1
    pooled = torch.tensor([9.0, 8.0]) / 8
    assert found["labels"].tolist() == [0]
    torch.testing.assert_close(found["scores"], pooled.softmax(0)[:1], rtol=0, atol=1e-6)  # float32
    assert found["boxes"].tolist() == [[1, 0, 4, 3]]


def test_nothing_found_is_background_with_the_whole_image(processor):
    logits = torch.tensor([0.0, 0.0, 2.0]).expand(1, 16, 3)
    for outputs in (classification(logits, logits=torch.zeros(1, 2)), segmentation(logits)):
        (found,) = processor.post_process_object_localization(outputs, target_sizes=[(30, 20)])
        assert found["boxes"].tolist() == [[0, 0, 20, 30]]
        assert found["labels"].tolist() == [2]
        torch.testing.assert_close(found["scores"], logits[0, :1].softmax(-1)[:, 2], rtol=0, atol=1e-6)
        assert not processor.post_process_foreground(outputs, target_sizes=[(30, 20)])[0].any()


def test_the_classifier_still_names_the_class_where_no_patch_is_foreground(processor):
    outputs = classification(torch.tensor([0.0, 0.0, 2.0]).expand(1, 16, 3))  # logits of the [CLS] token
    (found,) = processor.post_process_object_localization(outputs, target_sizes=[(30, 20)])
    assert found["labels"].tolist() == [1]
    assert found["boxes"].tolist() == [[0, 0, 20, 30]]


def test_an_explanation_holds_what_the_other_methods_return(processor):
    exits = torch.arange(48).reshape(3, 16) % 4
    outputs = classification(torch.randn(3, 16, 3), patch_exit_layer=exits)
    sizes, targets = [(8, 12), (5, 3), (40, 7)], [0, 1, 1]
    explanations = processor.post_process_explanation(outputs, sizes, targets, {0: "cat", 1: "dog"})
    expected = zip(
        explanations,
        processor.post_process_semantic_segmentation(outputs, sizes),
        processor.post_process_heatmap(outputs, sizes, targets),
        processor.post_process_foreground(outputs, sizes),
        processor.post_process_exit_layers(outputs, sizes),
        processor.post_process_object_localization(outputs, sizes),
        processor.post_process_foreground(outputs),
        strict=True,
    )
    for explanation, labels, heatmap, mask, exit_layers, found, patches in expected:
        assert np.array_equal(explanation.class_map, labels)
        assert np.array_equal(explanation.heatmap, heatmap)
        assert np.array_equal(explanation.mask, mask)
        assert np.array_equal(explanation.exit_layers, exit_layers)
        assert list(explanation.box) == found["boxes"][0].tolist()
        assert (explanation.label, explanation.class_index) == ("dog", 1)
        assert explanation.score == found["scores"].item()
        assert explanation.foreground_ratio == patches.float().mean().item()
        assert explanation.found
        answer = explanation.to_dict()
        assert answer["found"]
        assert list(answer["box"]) == ["xmin", "ymin", "xmax", "ymax"]
        assert tuple(answer["box"].values()) == explanation.box
        assert "class_index" not in answer


def test_an_explanation_by_hand(processor, outputs):
    (explanation,) = processor.post_process_explanation(outputs)
    assert explanation.class_map.tolist() == CLASS_MAP
    assert (explanation.box, explanation.foreground_ratio) == ((1, 0, 4, 3), 7 / 16)
    assert explanation.label == f"LABEL_{explanation.class_index}"
    assert explanation.exit_layers is None, "these outputs do not hold it"


def test_an_explanation_says_that_nothing_was_found(processor):
    logits = torch.tensor([0.0, 0.0, 2.0]).expand(1, 16, 3)
    for outputs in (classification(logits, logits=torch.zeros(1, 2)), segmentation(logits)):
        (explanation,) = processor.post_process_explanation(outputs, [(30, 20)], id2label={0: "cat", 1: "background"})
        assert not explanation.found
        assert (explanation.label, explanation.class_index, explanation.box) == ("background", None, None)
        assert (explanation.to_dict()["found"], explanation.to_dict()["box"]) == (False, None)
        assert explanation.score == pytest.approx(logits[0, 0].softmax(-1)[2].item(), abs=1e-6)  # float32
    # the [CLS] classifier names a class, here one of an unlucky name
    (named,) = processor.post_process_explanation(classification(logits), id2label={0: "cat", 1: "background"})
    assert (named.label, named.class_index, named.foreground_ratio) == ("background", 1, 0)
    assert (named.found, named.box) == (False, None)


def test_images_of_one_batch_may_have_different_sizes(processor):
    outputs = classification(PATCH_LOGITS.expand(3, -1, -1))
    sizes = [(8, 8), (5, 300), (1, 2)]
    for given in (sizes, torch.tensor(sizes), np.array(sizes)):
        maps = processor.post_process_semantic_segmentation(outputs, target_sizes=given)
        assert [tuple(one.shape) for one in maps] == sizes


def test_outputs_in_half_precision_are_taken(processor):
    outputs = classification(PATCH_LOGITS.bfloat16(), logits=torch.tensor([[0.5, 1.5]]).bfloat16())
    assert processor.post_process_heatmap(outputs)[0].dtype == torch.float32
    assert processor.post_process_object_localization(outputs)[0]["scores"].dtype == torch.float32


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"target_sizes": []}, r"`target_sizes` must hold one \(height, width\) for each of the 1 images, got \[\]"),
        ({"target_sizes": [(4, 4), (4, 4)]}, "for each of the 1 images"),
        ({"target_sizes": (4, 4)}, "for each of the 1 images"),
        ({"target_sizes": [(4, 4, 3)]}, "for each of the 1 images"),
        ({"target_sizes": [(0, 4)]}, "`target_sizes` must be positive"),
        ({"target": 2}, r"`target` must be a class index in \[0, 1\], got 2"),
        ({"target": "cat"}, "`target` must be None, a class index or one per image, got 'cat'"),
        ({"target": [0, 1]}, "`target` must be one class index or one for each of the 1 images, got 2"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(processor, kwargs, message):
    with pytest.raises(ValueError, match=message):
        processor.post_process_heatmap(classification(), **kwargs)


@pytest.mark.parametrize(
    "outputs",
    [
        SimpleNamespace(logits=torch.zeros(1, 5)),
        {"logits": torch.zeros(1, 5)},
        SimpleNamespace(patch_logits=torch.zeros(1, 4, 3)),
        SimpleNamespace(patch_logits=torch.zeros(4, 3), grid_size=torch.tensor([[2, 2]])),
        None,
    ],
    ids=str,
)
def test_outputs_without_patch_logits_are_refused(processor, outputs):
    with pytest.raises(
        ValueError, match=r"`outputs` must hold `patch_logits` .* Pass what an ICE-DeiT model returned"
    ):
        processor.post_process_semantic_segmentation(outputs)


def test_a_grid_size_of_other_patches_is_refused(processor):
    with pytest.raises(ValueError, match="`grid_size` must have as many cells as there are patches, got 3 x 5 for 16"):
        processor.post_process_foreground(classification(grid_size=torch.tensor([[3, 5]])))


# Alignment, through the real preprocessing


SETTINGS = {
    "squash": {"size": {"height": 64, "width": 64}},
    "rectangle": {"size": {"height": 48, "width": 96}},
    "crop": {"size": {"shortest_edge": 80}, "do_center_crop": True, "crop_size": {"height": 64, "width": 64}},
    "squash and crop": {"size": {"height": 80, "width": 80}, "do_center_crop": True, "crop_size": 64},
    "wide crop": {"size": {"shortest_edge": 80}, "do_center_crop": True, "crop_size": {"height": 48, "width": 80}},
    "padding crop": {
        "size": {"height": 48, "width": 64},
        "do_center_crop": True,
        "crop_size": {"height": 64, "width": 64},
    },
    "crop only": {"do_resize": False, "do_center_crop": True, "crop_size": {"height": 192, "width": 192}},
}


@pytest.mark.parametrize("image_size", [(300, 300), (240, 400), (501, 263)], ids=str)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_checkerboard_seen_through_the_preprocessing_is_aligned(settings, image_size):
    processor = IceDeiTImageProcessor(**settings, do_rescale=False, do_normalize=False, resample=2)
    height, width = pixels(processor, Image.new("L", image_size[::-1])).shape[:2]
    rows, columns = height // 16, width // 16  # patches of 16 pixels
    board = (torch.arange(rows)[:, None] + torch.arange(columns)) % 2
    geometry = processor.image_geometry(image_size)
    # paint what the way back says that each patch covers, then look at it through the way there
    painted = nearest_to_image(board * 255, geometry, fill=0).numpy().astype(np.uint8)
    seen = pixels(processor, Image.fromarray(painted))[..., 0].reshape(rows, 16, columns, 16) / 255
    # without the two outermost pixels of each side, where the filter mixes neighbours
    mean = seen[:, 2:-2, :, 2:-2].mean(axis=(1, 3))
    edge = int(geometry.crop_offset[0] < 0)  # half of the first and of the last row is padding then
    # a shift by three pixels of the input would soil a row of 1/12 of every square
    assert np.abs(mean - board.numpy())[edge : rows - edge].max() < 1 / 24


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_every_input_pixel_comes_from_where_the_geometry_says(settings):
    processor = IceDeiTImageProcessor(**settings, do_rescale=False, do_normalize=False, resample=2)
    image_size = (250, 240)
    geometry = processor.image_geometry(image_size)
    ramp = np.zeros((*image_size, 3), dtype=np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(250)[:, None], np.arange(240)[None]
    ramp[..., 2] = 255
    seen = pixels(processor, Image.fromarray(ramp)).astype(float)
    # along the middle lines, where neither border of the image bends the ramp
    for axis, line in ((0, seen[:, seen.shape[1] // 2]), (1, seen[seen.shape[0] // 2])):
        kept = line[:, 2] == 255  # the rest is padding
        position = np.arange(len(line)) + 0.5 + geometry.crop_offset[axis]
        source = position * image_size[axis] / geometry.resized_size[axis] - 0.5
        error = np.abs(line[:, axis] - source)[kept]
        assert kept.sum() >= 48
        assert error[4:-4].max() <= 1  # 8-bit rounding and, in each of resize and crop, half a pixel at most


def test_outside_a_crop_there_is_background():
    processor = IceDeiTImageProcessor(size={"shortest_edge": 64}, do_center_crop=True, crop_size=64)
    full = torch.tensor([5.0, 0.0, 0.0]).expand(1, 16, 3)
    for outputs in (classification(full), segmentation(full)):
        (labels,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[(100, 200)])
        assert labels[:, 50:150].unique().tolist() == [0]
        assert labels[:, :50].unique().tolist() == labels[:, 150:].unique().tolist() == [2]
        (heat,) = processor.post_process_heatmap(outputs, target_sizes=[(100, 200)])
        assert heat[:, :50].max() == heat[:, 150:].max() == 0
        assert heat[:, 50:150].min() > 0.9
        (found,) = processor.post_process_object_localization(outputs, target_sizes=[(100, 200)])
        assert found["boxes"].tolist() == [[50, 0, 150, 100]]


def test_foreground_in_the_padding_of_a_crop_is_not_the_object():
    processor = IceDeiTImageProcessor(do_resize=False, do_center_crop=True, crop_size={"height": 64, "width": 64})
    logits = torch.tensor([0.0, 0.0, 4.0]).repeat(1, 16, 1)
    logits[0, :4, 0] = 9.0  # the first row of patches, which shows padding only
    logits[0, 9, 1] = 9.0
    (found,) = processor.post_process_object_localization(classification(logits), target_sizes=[(32, 64)])
    assert found["boxes"].tolist() == [[16, 16, 32, 32]]


@pytest.mark.parametrize(
    "size",
    [{"shortest_edge": 20}, {"shortest_edge": 20, "longest_edge": 30}, {"max_height": 20, "max_width": 30}],
    ids=str,
)
@pytest.mark.parametrize("image_size", [(50, 70), (71, 50), (33, 33), (1, 90), (17, 400)], ids=str)
def test_the_geometry_has_the_size_that_images_really_get(size, image_size):
    settings = {"size": size, "do_rescale": False, "do_normalize": False}
    processor, image = IceDeiTImageProcessor(**settings), Image.new("RGB", image_size[::-1])
    expected = processor.image_geometry(image_size).resized_size
    assert pixels(processor, image).shape[:2] == expected
    if image_size[0] > 1:  # where theirs comes to a width of 0, ours has 1
        assert pixels(DeiTImageProcessorPil(**settings, do_center_crop=False), image).shape[:2] == expected


def test_a_size_without_a_way_back_is_refused():
    processor = IceDeiTImageProcessor(size={"longest_edge": 30})
    with pytest.raises(ValueError, match="`size` must hold `height` and `width`, `max_height` and `max_width`, or"):
        processor(Image.new("RGB", (40, 40)))


@pytest.mark.parametrize(
    "settings",
    [
        {"image_std": [0, 0, 0]},
        {"image_std": [float("nan")] * 3},
        {"image_std": [1, 2]},
        {"image_std": -1},
        {"image_mean": [1]},
        {"image_mean": "x"},
        {"rescale_factor": 0},
        {"rescale_factor": None},
        {"rescale_factor": "x"},
        {"resample": 99},
        {"resample": "x"},
        {"size": -1},
        {"size": {"height": 10**6, "width": 10**6}},
        {"size": {"height": "8", "width": 8}},
        {"size": {"shortest_edge": 10**6}},
        {"crop_size": {"height": 0, "width": 8}},
    ],
    ids=str,
)
def test_settings_that_no_image_can_be_prepared_with_are_refused(settings, tmp_path):
    (name,) = settings
    with pytest.raises(ValueError, match=name):
        IceDeiTImageProcessor(**settings)
    IceDeiTImageProcessor().save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    with pytest.raises(ValueError, match=f"{re.escape(str(tmp_path))}.*{name}"):
        AutoImageProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        {"image_mean": 0.5, "image_std": 0.5},
        {"do_rescale": False, "rescale_factor": None},
        {"size": 64},
        {"crop_size": 8},
    ],
    ids=str,
)
def test_settings_of_other_forms_are_taken(settings):
    assert IceDeiTImageProcessor(**settings)(Image.new("RGB", (9, 7)))["pixel_values"][0].shape[0] == 3


def _encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 8), (200, 30, 90)).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO"])
def test_the_named_formats_are_read(kind):
    assert load_image(_encoded(kind)).size == (16, 8)


@pytest.mark.parametrize("kind", ["EPS", "ICO", "ICNS", "PPM", "TGA", "PCX", "DDS", "SGI", "JPEG2000"])
def test_other_decoders_of_pillow_are_not_even_tried(kind, monkeypatch):
    Image.init()
    monkeypatch.setitem(Image.OPEN, kind, (lambda *arguments: pytest.fail("opened"), None))
    with pytest.raises(ValueError, match="Expected a complete file of one of the formats JPEG, PNG"):
        load_image(_encoded(kind))


@pytest.mark.parametrize("size", [(12_000, 12_000), (70_000, 10)])
def test_the_number_of_pixels_is_limited_before_anything_is_decoded(size, monkeypatch):
    buffer = io.BytesIO()
    Image.new("1", size).save(buffer, "PNG")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    with pytest.raises(ValueError, match=rf"of \d+ bytes has {size[0]} x {size[1]} pixels; at most 89,478,485"):
        load_image(buffer.getvalue())


def test_base64_may_have_line_breaks():
    text = base64.encodebytes(_encoded("PNG")).decode()
    assert text.count("\n") > 0
    assert load_image(text).size == load_image(f"data:image/png;base64,{text}").size == (16, 8)


@pytest.mark.parametrize("path", ["http://127.0.0.1:1/a.png", "missing.png", None, 3])
def test_a_row_of_a_data_set_names_files_only(path, monkeypatch):
    monkeypatch.setattr("transformers_ice.ice_deit.image_conversion.urlopen", lambda *a, **k: pytest.fail("asked"))
    with pytest.raises(ValueError, match="row of a data set must hold the bytes of its image, or the path of"):
        load_image({"bytes": None, "path": path})


@pytest.mark.parametrize(
    ("address", "asked"),
    [
        ("http://host/a b.png", "http://host/a%20b.png"),
        ("http://host/a%20b.png?x=1&y=2 ", "http://host/a%20b.png?x=1&y=2"),
        ("http://müller.example/ä.png", "http://xn--mller-kva.example/%C3%A4.png"),
    ],
)
def test_addresses_may_have_spaces_and_letters_of_any_language(address, asked, monkeypatch):
    def answer(request, timeout):
        assert request.full_url == asked
        return urllib.response.addinfourl(io.BytesIO(_encoded("PNG")), {}, address)

    monkeypatch.setattr("transformers_ice.ice_deit.image_conversion.urlopen", answer)
    assert load_image(address).size == (16, 8)


POST_PROCESSES = [name for name in dir(IceDeiTImageProcessor) if name.startswith("post_process_")]


@pytest.mark.parametrize("name", POST_PROCESSES)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_patch_logits_that_are_not_finite_are_refused(processor, name, value):
    for make in (classification, segmentation):
        logits = PATCH_LOGITS.expand(2, -1, -1).clone()
        logits[1, 5, 0] = value
        exits = {"patch_exit_layer": torch.zeros(2, 16, dtype=torch.long)} if make is classification else {}
        with pytest.raises(ValueError, match=r"patch_logits` must be finite, got NaN or infinity for image 1 of 2"):
            getattr(processor, name)(make(logits, **exits))


def test_normalized_pixels_are_those_of_transformers():
    image = np.random.default_rng(0).random((3, 5, 7), dtype=np.float32)
    ours, theirs = IceDeiTImageProcessor(), DeiTImageProcessorPil()
    for mean, std in (([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]), (0.5, 0.25)):
        expected = theirs.normalize(image, mean, std)
        assert np.array_equal(ours.normalize(image, mean, std), expected)
        assert np.array_equal(
            ours.normalize(image.astype(np.float64), mean, std), theirs.normalize(image.astype(np.float64), mean, std)
        )


@pytest.mark.parametrize("settings", [{}, {"do_center_crop": True, "size": {"shortest_edge": 40}}, {"resample": 2}])
def test_an_image_and_its_array_become_the_same_pixel_values(settings):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (61, 47, 3), dtype=np.uint8))
    processor = IceDeiTImageProcessor(**{"size": {"height": 32, "width": 48}, "crop_size": 32, **settings})
    of_image, of_array = (
        processor(source, return_tensors="np")["pixel_values"] for source in (image, np.array(image))
    )
    assert np.array_equal(of_image, of_array)
    resized = image.resize((48, 32), resample=processor.resample)
    if not settings.get("do_center_crop"):
        by_hand = (np.asarray(resized) / 255 - processor.image_mean) / processor.image_std
        np.testing.assert_allclose(of_image[0], by_hand.transpose(2, 0, 1), atol=1e-6)


def test_outputs_that_record_gradients_are_explained_too():
    logits = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    outputs = {"logits": logits.mean(dim=1)[:, :2], "patch_logits": logits, "grid_size": torch.tensor([[2, 2]])}
    processor = IceDeiTImageProcessor(size={"height": 16, "width": 16})
    (explanation,) = processor.post_process_explanation(outputs, [(20, 30)])
    (heatmap,) = processor.post_process_heatmap(outputs, [(20, 30)])
    assert np.array_equal(explanation.heatmap, heatmap.detach().numpy())
