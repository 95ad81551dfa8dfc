# SPDX-License-Identifier: Apache-2.0
"""Any picture as upright, 8-bit RGB: reading files of every kind and depth without losing what they show.

This file travels with a checkpoint as remote code.
"""

from __future__ import annotations

import base64
import binascii
import importlib
import os
import string
from collections.abc import Sequence
from http.client import HTTPException, IncompleteRead
from io import BytesIO
from typing import Any
from urllib.parse import quote, urlsplit
from urllib.request import Request, urlopen

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, ChannelDimension


__all__ = [
    "FORMATS",
    "IMAGE_ENDINGS",
    "MAX_SIDE",
    "convert_to_rgb",
    "grey_to_pil",
    "is_unit_float",
    "load_image",
    "open_image",
    "read_rgb",
]

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")
"""Pillow's names of the formats that are decoded; it knows many more, and some of them run other programs.

AVIF where Pillow was built with it, HEIF (the photographs of phones, HEIC) where `pillow-heif` is installed.
"""

# also those of formats that are not decoded: such a file is named as unreadable, not passed over
_ENDINGS = "apng avif bmp gif heic heif ico j2k jfif jp2 jpe jpeg jpg pbm pgm png pnm ppm tga tif tiff webp"
IMAGE_ENDINGS = frozenset(f".{name}" for name in _ENDINGS.split())
"""Lower-case endings, with their dot, of the files that count as images in a folder."""

MAX_PIXELS = 89_478_485  # as far as Pillow reads without a warning; the maps of one image then take some 2 GB
MAX_SIDE = 65_535  # that of JPEG
MAX_DOWNLOAD = 400_000_000  # bytes; as many as `MAX_PIXELS` take uncompressed, with transparency

_ORIENTATION = 0x0112  # EXIF tag; 1 is upright
_CHANNEL_COUNTS = (1, 3, 4)  # grey, RGB, RGBA
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")  # of photographs of phones


def load_image(source: Any, timeout: float | None = 30.0) -> Image.Image:
    """Load an image upright, with the bit depth, the palette and the transparency that it has.

    Args:
        source: Path, URL, `data:` URI or base64 text, encoded bytes, a row `{"path": ..., "bytes": ...}` of a dataset,
            or a PIL image, which is returned itself if it is upright already.
        timeout: Seconds to wait for a web server; `None` waits for ever.

    Raises:
        ValueError: If the source does not exist, is no image, or is truncated; names the source.

    Source: transformers' `load_image` does the same and then converts to RGB, which clips 16 bits and drops alpha.
    """
    name = _name_of(source)
    stream = _open_source(source, name, timeout)
    try:
        image = stream if isinstance(stream, Image.Image) else open_image(stream)
        is_too_large = image.width * image.height > MAX_PIXELS or max(image.size) > MAX_SIDE
        if not is_too_large:
            image.load()
    except Exception as error:  # a damaged file can fail anywhere inside a decoder
        raise ValueError(
            f"Cannot read the image {name}: {error}. Expected a complete file of one of the formats "
            f"{', '.join(FORMATS)} (AVIF as Pillow was built, HEIF with pillow-heif). Replace it or leave it out."
        ) from error
    if is_too_large:
        raise ValueError(
            f"The image {name} has {image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are read, and "
            f"{MAX_SIDE:,} on a side. Make it smaller."
        )
    try:
        is_upright = image.getexif().get(_ORIENTATION, 1) == 1
        return image if is_upright else ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data, but the pixels are whole: shown as every viewer shows them
        return image


def read_rgb(
    source: Any, backdrop: Sequence[float] = IMAGENET_DEFAULT_MEAN, timeout: float | None = 30.0
) -> Image.Image:
    """Read any image, also an array or tensor, as upright 8-bit RGB, by `load_image` and `convert_to_rgb`.

    Both return such an image as it is, so it is converted once on its way to the model.
    """
    image = source if isinstance(source, np.ndarray | Tensor) else load_image(source, timeout)
    return convert_to_rgb(image, backdrop=backdrop)


def _name_of(source: Any) -> str:
    """Return how an error should call an image."""
    if isinstance(source, dict):
        return _name_of(source.get("path") or source.get("bytes"))
    if isinstance(source, Image.Image):
        return repr(getattr(source, "filename", "") or source)
    if isinstance(source, bytes | bytearray):
        return f"of {len(source)} bytes"
    text = repr(os.fspath(source) if isinstance(source, os.PathLike) else source)
    return text if len(text) <= 300 else f"{text[:300]}..."


def _open_source(source: Any, name: str, timeout: float | None) -> Any:
    """Return what `PIL.Image.open` takes, or a PIL image."""
    if isinstance(source, dict):
        path = source.get("path")
        if source.get("bytes") is None and not (isinstance(path, str) and os.path.isfile(path)):
            # a stranger's row must not make this machine send requests
            raise ValueError(
                f"Cannot find the image {name}. A row of a data set must hold the bytes of its image, or the path of "
                "an existing file; nothing is downloaded for it."
            )
        source = path if source.get("bytes") is None else source["bytes"]
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, bytes | bytearray):
        return BytesIO(source)
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
    if not isinstance(source, str):
        raise ValueError(f"An image must be a path, URL, bytes or PIL image, got {type(source).__name__}.")
    if source.startswith(("http://", "https://")):
        return BytesIO(_download(source, timeout))
    if os.path.isfile(source):
        return source
    encoded = source.partition(",")[2] if source.startswith("data:") else source
    try:
        return BytesIO(base64.b64decode("".join(encoded.split()), validate=True))  # it may be broken into lines
    except (binascii.Error, ValueError) as error:
        raise ValueError(
            f"Cannot find the image {name}. Expected an existing file, a URL that starts with http:// or https://, or "
            "base64 text; check the spelling and the working directory."
        ) from error


def open_image(stream: str | BytesIO) -> Image.Image:
    """Read the header of an image in one of `FORMATS`; other decoders are not even tried, and nothing is decoded."""
    Image.init()
    try:
        return Image.open(stream, formats=[name for name in FORMATS if name in Image.OPEN])
    except UnidentifiedImageError as error:
        with open(stream, "rb") if isinstance(stream, str) else BytesIO(stream.getvalue()) as file:
            head = file.read(12)
        if head[4:8] != b"ftyp" or head[8:] not in _HEIF_BRANDS:
            # its own text names the file again, or the place of an object in memory
            raise UnidentifiedImageError("cannot identify image file") from error
        try:
            importlib.import_module("pillow_heif").register_heif_opener()
        except ImportError as missing:
            raise ValueError("HEIC images need pillow-heif: pip install pillow-heif") from missing
        return Image.open(stream if isinstance(stream, str) else BytesIO(stream.getvalue()), formats=["HEIF"])


def _download(url: str, timeout: float | None) -> bytes:
    """Return the content at a URL, of at most `MAX_DOWNLOAD` bytes."""
    try:
        parts = urlsplit(url.strip())
        host = parts.netloc.encode("idna").decode("ascii")
        address = quote(parts._replace(netloc=host).geturl(), safe=string.punctuation)  # blanks and umlauts
        # not through huggingface_hub, whose offline mode is about the Hub; some servers refuse Python's own agent name
        request = Request(address, headers={"User-Agent": "Mozilla/5.0 (compatible; transformers-ice)"})
        with urlopen(request, timeout=timeout) as response:
            announced = int(response.headers.get("Content-Length") or 0)
            content = response.read(MAX_DOWNLOAD + 1) if announced <= MAX_DOWNLOAD else b""
        if max(announced, len(content)) > MAX_DOWNLOAD:
            raise ValueError(f"it has more than {MAX_DOWNLOAD:,} bytes")
        if len(content) < announced:  # which `read` with a limit does not notice
            raise IncompleteRead(content, announced - len(content))
        return content
    except (OSError, ValueError, HTTPException) as error:
        raise ValueError(f"Cannot download the image {url!r}: {error}. Check the address, or pass a file.") from error


def convert_to_rgb(
    image: Any,
    input_data_format: str | ChannelDimension | None = None,
    backdrop: Sequence[float] = IMAGENET_DEFAULT_MEAN,
) -> Image.Image:
    """Return any image as 8-bit RGB, keeping its brightness; `image` itself if it is that already.

    Depth: 16-bit greys are scaled by their full range (65535 becomes 255), never clipped or stretched. Wider integers
    and floats are read by their largest value: up to 1 (floats) the range is [0, 1], up to 255 it is 8 bits, up to
    65535 it is 16 bits.

    Transparency: composited over `backdrop`, by default the mean colour of ImageNet, which the normalisation maps to
    zero: what cannot be seen says nothing to the model. Over white or black, white or black cut-outs would vanish;
    with alpha merely dropped, the hidden colours would show.

    Args:
        image: PIL image of any mode, or an array or tensor `(height, width)`, `(height, width, channels)` or
            `(channels, height, width)` with 1 (grey), 3 (RGB) or 4 (RGBA) channels.
        input_data_format: Where an array's channels are, "channels_first" or "channels_last". Otherwise the axis with
            three, or else one or four, entries.
        backdrop: RGB in [0, 1] that shows through transparent pixels.

    Raises:
        ValueError: If the image is empty or damaged, or its mode, shape or values do not make a picture.
    """
    if not isinstance(image, Image.Image):
        image = _array_to_pil(_to_numpy(image), input_data_format)
    if not (image.width and image.height):
        raise ValueError(f"An image must have pixels, got {image.height} x {image.width}.")
    try:
        image.load()
    except Exception as error:  # PIL opens lazily: a truncated file is noticed here
        raise ValueError(f"Cannot read the image {_name_of(image)}: {error}. Replace it or leave it out.") from error
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(_to_uint8(np.asarray(image)))
    if image.mode in ("La", "RGBa"):  # premultiplied alpha: PIL converts to the plain form only
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    try:
        if "transparency" in image.info or image.mode in ("LA", "PA", "RGBA"):
            color = tuple(round(255 * channel) for channel in backdrop)
            image = Image.alpha_composite(Image.new("RGBA", image.size, (*color, 255)), image.convert("RGBA"))
        return image.convert("RGB")
    except ValueError as error:
        raise ValueError(
            f"An image of mode {image.mode} cannot become RGB: {error}. Convert it to a mode that Pillow can convert."
        ) from error


def _to_numpy(image: Any) -> np.ndarray:
    """Return an array or tensor as a numpy array."""
    if isinstance(image, Tensor):
        try:
            image = image.detach().cpu()
            return (image.float() if image.dtype == torch.bfloat16 else image).numpy()
        # without values, sparse, of a type of torch only
        except (NotImplementedError, RuntimeError, TypeError) as error:
            raise ValueError(
                f"An image must be a dense tensor that holds numbers, got {image.dtype} in layout {image.layout} on "
                f"{image.device}: {error}"
            ) from error
    if isinstance(image, np.ndarray):
        return image
    raise ValueError(f"An image must be a PIL image, array or tensor, got {type(image).__name__}.")


def _array_to_pil(array: np.ndarray, input_data_format: str | ChannelDimension | None) -> Image.Image:
    """Return an array as an 8-bit PIL image of mode L, RGB or RGBA."""
    if array.ndim == 3:
        array = np.moveaxis(array, _channel_axis(array.shape, input_data_format), -1)
        array = array[..., 0] if array.shape[-1] == 1 else array
    elif array.ndim != 2:
        raise ValueError(f"An image array must have 2 or 3 dimensions, got shape {array.shape}.")
    if not array.size:
        raise ValueError(f"An image must have pixels, got an array of shape {array.shape}.")
    return Image.fromarray(np.ascontiguousarray(_to_uint8(array)))


def _channel_axis(shape: tuple[int, ...], input_data_format: str | ChannelDimension | None) -> int:
    """Return which axis of a 3-D array holds the channels."""
    if input_data_format is not None:
        axes = [0 if ChannelDimension(input_data_format) == ChannelDimension.FIRST else 2]
    else:
        axes = [axis for axis in (0, 2) if shape[axis] in _CHANNEL_COUNTS]
        # An RGB picture of 1 or 4 pixels is likelier than a grey or RGBA one of 3.
        axes = [axis for axis in axes if shape[axis] == 3] or axes
    if len(axes) != 1 or shape[axes[0]] not in _CHANNEL_COUNTS:
        raise ValueError(
            f"An image array must have one axis of 1, 3 or 4 channels, got shape {shape}. Where it is ambiguous pass "
            '`input_data_format="channels_last"` or "channels_first", or a PIL image.'
        )
    return axes[0]


def _to_uint8(values: np.ndarray) -> np.ndarray:
    """Bring pixel values of any type to 8 bits, as `convert_to_rgb` says."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype.kind not in "iuf":
        raise ValueError(f"Pixels must be numbers, got {values.dtype}.")
    full_range = 65535.0 if values.dtype.kind == "u" and values.itemsize == 2 else _guess_range(values)
    return np.round(values.astype(np.float64) * (255.0 / full_range)).astype(np.uint8)


def _guess_range(values: np.ndarray) -> float:
    """Return the value that stands for white."""
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 65535):  # so written that NaN is refused too
        raise ValueError(
            f"Pixels must lie in [0, 1] (floats), [0, 255] or [0, 65535], got values from {low} to {high}. Pass the "
            "image before normalisation, or scale it into one of these ranges."
        )
    if values.dtype.kind == "f" and high <= 1:
        return 1.0
    return 255.0 if high <= 255 else 65535.0


def is_unit_float(image: Any) -> bool:
    """Return whether an image (PIL, array or tensor) was rescaled already: floats in [0, 1]."""
    if isinstance(image, Image.Image):
        return image.mode == "F" and is_unit_float(np.asarray(image))
    values = _to_numpy(image)
    return values.dtype.kind == "f" and _guess_range(values) == 1.0


def grey_to_pil(image: Any) -> Image.Image:
    """Return a 2-D array as a PIL image of its depth (mode L, 1, I;16, I or F): no axis can be taken for channels."""
    array = _to_numpy(image)
    if array.dtype.kind == "f":
        return Image.fromarray(array.astype(np.float32))
    kept = array.dtype in (np.uint8, np.uint16, np.bool_)
    return Image.fromarray(np.ascontiguousarray(array if kept else array.astype(np.int32)))
