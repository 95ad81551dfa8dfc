# SPDX-License-Identifier: Apache-2.0
"""Picture files through the readers: `read_rgb` by path and by bytes, masks, and the uploads of the app."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from hostile import pictures
from hostile.frame import Place, Row
from hostile.pictures import ENDINGS, FORMATS, HEIGHT, WIDTH, bmp, encode, gif, jpeg_of_size, png, scene, tiff, whole


_FEW = 120  # MB: what a refused file may cost


def read_path(place: Place, path: Any) -> Image.Image:
    from transformers_ice.ice_deit.image_conversion import read_rgb

    return read_rgb(path)


def read_bytes(place: Place, path: Any) -> Image.Image:
    return read_path(place, path.read_bytes())


def read_row(place: Place, path: Any) -> Image.Image:
    return read_path(place, {"bytes": path.read_bytes(), "path": "../" + path.name})


def read_upload(place: Place, path: Any) -> Image.Image:
    from transformers_ice.app.limits import Limits, read_upload
    from transformers_ice.ice_deit.image_conversion import convert_to_rgb

    return convert_to_rgb(read_upload(path, Limits()))


DOORS = (read_path, read_bytes, read_row, read_upload)


def is_rgb(width: int = WIDTH, height: int = HEIGHT) -> Callable[[Any], bool]:
    return lambda image: image.mode == "RGB" and image.size == (width, height)


def is_picture(image: Any) -> bool:
    return image.mode == "RGB" and 0 < image.width * image.height < 90e6 and np.asarray(image).shape[2] == 3


def shows(expected: np.ndarray, tolerance: float = 2) -> Callable[[Any], bool]:
    """Return whether a picture has the pixels of another, up to rounding."""

    def check(image: Any) -> bool:
        pixels = np.asarray(image).astype(float)
        return image.mode == "RGB" and pixels.shape == expected.shape and np.abs(pixels - expected).max() <= tolerance

    return check


def put(name: str, data: bytes) -> Callable[[Place], Any]:
    return lambda place: place.put(name, data)


def damaged() -> Iterator[Row]:
    """Yield files of every format that are cut, or have wrong bytes: refused, or whole."""
    number = 0
    for kind in FORMATS:
        data, name = whole(kind), f"x.{ENDINGS[kind]}"
        full = shows(pictures.decoded(data))
        for title, cut in pictures.cuts(data):
            door = DOORS[number % 4]
            says = r"x\." if door is read_path else ""
            yield Row(f"{kind} {title}, {door.__name__}", put(name, cut), door, full, True, says, megabytes=_FEW)
            number += 1
        for title, wrong in [*pictures.flips(data, 10), *pictures.holes(data)]:
            door = DOORS[number % 4]
            yield Row(f"{kind} {title}, {door.__name__}", put(name, wrong), door, is_picture, True)
            number += 1


def mislabelled() -> Iterator[Row]:
    """Yield files with the ending of another format, and files that are no pictures."""
    for number, kind in enumerate(FORMATS):
        other = ENDINGS[FORMATS[(number + 1) % len(FORMATS)]]
        full = shows(pictures.decoded(whole(kind)))
        yield Row(f"{kind} named .{other}", put(f"x.{other}", whole(kind)), DOORS[number % 4], full)
        yield Row(f"{kind} without an ending", put("x", whole(kind)), DOORS[(number + 1) % 4], full)
        rest = whole(kind) + b"<script>" * 99
        yield Row(f"{kind} with a tail", put("x.png", rest), DOORS[(number + 2) % 4], full)
    for number, (title, data) in enumerate(pictures.NO_PICTURES.items()):
        name = f"x.{ENDINGS[FORMATS[number % len(FORMATS)]]}"
        yield Row(f"{title} as {name}, by its path", put(name, data), read_path, says=r"x\.", megabytes=_FEW)
        yield Row(f"{title} as {name}, as an upload", put(name, data), read_upload, megabytes=_FEW)
        yield Row(f"{title}, as bytes", put(name, data), read_bytes, says=f"{len(data)} bytes", megabytes=_FEW)


def lying() -> Iterator[Row]:
    """Yield headers that lie, and little files that stand for much memory."""
    text = png(9, 9, extra=pictures.png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**26), 9)))
    files = {
        "png of 2**31 - 1 pixels a side": _header(2**31 - 1, 2**31 - 1),
        "png of 0 x 0": _header(0, 0),
        "png of 30000 x 30000 without pixels": _header(30000, 30000),
        "png of 9000 x 9000 without pixels": _header(9000, 9000),
        "png with half of its rows": png(400, 400, 2, rows=200),
        "png of colour type 5": _header(9, 9, kind=5),
        "png of depth 3": _header(9, 9, depth=3),
        "png of 11000 x 11000, whole": png(11000, 11000, 0, 1),
        "png of 170,000,000 x 1": png(170_000_000, 1, 0, 1),
        "png of 1 x 80,000": png(1, 80_000, 0, 8),
        "png with a text of 64 MB": text,
        "png with a palette of none": png(9, 9, 3),
        "bmp of 60000 x 60000": bmp(60000, 60000),
        "bmp of -9 x 9": bmp(-9, 9),
        "bmp of 0 x 0": bmp(0, 0),
        "bmp of 7 bits": bmp(4, 4, bits=7),
        "bmp with pixels after its end": bmp(4, 4, offset=2**31),
        "gif of 65535 x 65535": gif(65535, 65535),
        "gif of 0 x 0": gif(0, 0),
        "jpeg of 65000 x 65000": jpeg_of_size(65000, 65000),
        "jpeg of 0 x 9": jpeg_of_size(0, 9),
        "jpeg of 9000 x 9000": jpeg_of_size(9000, 9000),
        "tiff of 2**31 x 4": tiff(t256=(4, 2**31)),
        "tiff of 0 x 4": tiff(t256=(3, 0)),
        "tiff of 60000 x 60000": tiff(t256=(4, 60000), t257=(4, 60000), t278=(4, 60000)),
        "tiff with strips after its end": tiff(t273=(4, 2**31)),
        "tiff of an unknown compression": tiff(t259=(3, 999)),
        "tiff of 3 bits": tiff(t258=(3, 3)),
        "tiff of 200 samples": tiff(t277=(3, 200)),
        "tiff that says JPEG": tiff(t259=(3, 7)),
        "tiff whose directory is itself": tiff()[:-4] + struct.pack("<I", 24),
    }
    for number, (title, data) in enumerate(files.items()):
        name = f"x.{title.split()[0]}"
        # a header may lie about what Pillow does not need; an answer is then a picture of that size
        for door in (read_path, (read_upload, read_bytes, read_row)[number % 3]):
            yield Row(f"{title}, {door.__name__}", put(name, data), door, is_picture, True, megabytes=450)


def _header(width: int, height: int, kind: int = 2, depth: int = 8) -> bytes:
    """Return a PNG of a size, which has ten bytes of pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    body = pictures.png_chunk(b"IDAT", zlib.compress(bytes(10))) + pictures.png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + pictures.png_chunk(b"IHDR", header) + body


def unusual() -> Iterator[Row]:
    """Yield whole pictures of rare kinds, which are read rightly."""
    frames = [scene(), *(Image.new("RGB", (WIDTH, HEIGHT), color) for color in ("red", "blue"))]
    first = np.asarray(scene())
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        yield Row(f"{kind} of three frames", put("x", data), read_path, shows(first, 40 if kind == "GIF" else 0))
    many = encode(frames[1], "GIF", save_all=True, append_images=frames[1:] * 300, duration=10)
    yield Row("GIF of 600 frames", put("x.gif", many), read_upload, is_rgb(), seconds=5)
    deep = (np.asarray(scene("L")).astype(np.uint16) * 257, np.asarray(scene("L")).astype(np.float32) / 255)
    grey = np.repeat(np.asarray(scene("L"))[..., None], 3, axis=-1)
    for mode in ("1", "L", "P", "LA", "PA", "RGBA", "RGBX", "CMYK", "LAB", "I", "I;16", "F"):
        kind = "TIFF" if mode not in ("LA", "PA", "P", "1") else "PNG"
        try:
            data = encode(scene().convert(mode) if mode != "I;16" else Image.fromarray(deep[0]), kind)
        except (OSError, ValueError):  # Pillow itself has no such conversion
            continue
        yield Row(f"{kind} of mode {mode}", put("x", data), read_path, is_rgb())
    yield Row("PNG of 16 bits", put("x.png", encode(Image.fromarray(deep[0]), "PNG")), read_path, shows(grey, 1))
    yield Row("TIFF of floats", put("x.tif", encode(Image.fromarray(deep[1]), "TIFF")), read_upload, shows(grey, 1))
    yield Row("JPEG of CMYK", put("x.jpg", encode(scene("CMYK"), "JPEG")), read_bytes, shows(first, 40))
    for title, value in {"NaN": np.nan, "infinity": np.inf, "a negative number": -1.0, "1e30": 1e30}.items():
        broken = deep[1].copy()
        broken[3, 3] = value
        data = encode(Image.fromarray(broken), "TIFF")
        yield Row(f"TIFF of floats with {title}", put("x.tif", data), read_path, says="must lie in")
    for transparency in (0, 255, bytes([0, 128, 255])):
        data = encode(scene("P"), "PNG", transparency=transparency)
        yield Row(f"PNG palette, transparency {transparency!r}", put("x.png", data), read_path, is_rgb())
    yield Row("1 x 1", put("x.png", encode(Image.new("RGB", (1, 1)), "PNG")), read_path, is_rgb(1, 1))
    yield Row("20000 x 3", put("x.png", png(20000, 3, 2)), read_upload, is_rgb(20000, 3))
    yield from _turned()


def _turned() -> Iterator[Row]:
    for value in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 200, 65535):
        exif = Image.Exif()
        exif[0x0112] = value
        size = (HEIGHT, WIDTH) if value in (5, 6, 7, 8) else (WIDTH, HEIGHT)
        for kind in ("JPEG", "PNG") if value in (0, 3, 6, 9) else ("JPEG",):
            data = encode(scene(), kind, exif=exif)
            yield Row(f"{kind} of orientation {value}", put("x", data), read_path, is_rgb(*size))
    garbage = {
        "zeros": bytes(64),
        "letters": b"Exif\0\0" + b"a" * 64,
        "loops": b"Exif\0\0II*\0\x08\0\0\0" + b"\xff" * 64,
    }
    for title, exif in {**garbage, "nothing": b"Exif\0\0"}.items():
        for kind in ("JPEG", "WEBP"):
            data = encode(scene(), kind, exif=exif)
            yield Row(f"{kind} with EXIF of {title}", put("x", data), read_path, is_rgb())


def named() -> Iterator[Row]:
    """Yield odd names, links and things that are no files."""
    data = whole("PNG")
    names = [
        "a b.png",
        "a\nb.png",
        "a\x1b[31mb.png",
        "\u202egnp.png",
        "<script>.png",
        "-rf.png",
        "%2e%2e.png",
        "'\".png",
    ]
    names += ["x" * 240 + ".png", "ä.png", "https:.png", "data:,a.png", "*.png", "~.png", "$HOME.png", ".png", "…"]
    for name in names:
        yield Row(f"the name {name[:30]!r}", put(name, data), read_path, is_rgb())
        yield Row(f"no picture of the name {name[:30]!r}", put(name, b"no"), read_path)
    yield Row("a name that is no UTF-8", put("a\udcff.png", data), read_path, is_rgb())
    yield Row("no picture of a name that is no UTF-8", put("a\udcff.png", b"no"), read_path)

    def link(target: str, name: str, place: Place) -> Any:
        place.put("whole.png", data)
        os.symlink(target, place.inputs / name)
        return place.inputs / name

    def fifo(place: Place) -> Any:
        place.inputs.mkdir(exist_ok=True)
        os.mkfifo(place.inputs / "x.png")
        return place.inputs / "x.png"

    def folder(place: Place) -> Any:
        (place.inputs / "x.png").mkdir(parents=True)
        return place.inputs / "x.png"

    for door in (read_path, read_upload):
        title = door.__name__
        yield Row(f"link to a picture, {title}", partial(link, "whole.png", "x.png"), door, is_rgb())
        yield Row(f"link to nothing, {title}", partial(link, "none.png", "x.png"), door)
        yield Row(f"link to itself, {title}", partial(link, "x.png", "x.png"), door)
        yield Row(f"link to /dev/zero, {title}", partial(link, "/dev/zero", "x.png"), door, seconds=3)
        yield Row(f"link to a folder, {title}", partial(link, ".", "x.png"), door)
        yield Row(f"pipe, {title}", fifo, door, seconds=3)
        yield Row(f"folder, {title}", folder, door)
        yield Row(f"no file, {title}", lambda place: place.inputs / "x.png", door)


def masks() -> Iterator[Row]:
    """Yield mask images with odd values."""
    from transformers_ice.data.masks import binary_mask
    from transformers_ice.ice_deit.image_conversion import load_image

    def read(ignore: int | None, place: Place, path: Any) -> np.ndarray:
        return binary_mask(load_image(path), str(path), ignore)

    def has(*values: int) -> Callable[[Any], bool]:
        return lambda mask: mask.dtype == np.int8 and set(np.unique(mask)) == set(values)

    def grey(*values: float, kind: Any = np.uint8) -> bytes:
        array = np.resize(np.asarray(values, dtype=kind), (8, 8))
        return encode(Image.fromarray(array), "TIFF" if kind == np.float32 else "PNG")

    alpha = Image.new("RGBA", (8, 8), (9, 9, 9, 255))
    alpha.putpixel((0, 0), (9, 9, 9, 0))
    files: dict[str, tuple[bytes, int | None, Callable[[Any], bool] | None]] = {
        "zeros": (grey(0), None, has(0)),
        "0 and 1": (grey(0, 1), None, has(0, 1)),
        "0, 1 and 255": (grey(0, 1, 255), None, None),
        "0, 1 and 255, 255 ignored": (grey(0, 1, 255), 255, has(0, 1, -1)),
        "0 and 255, 0 ignored": (grey(0, 255), 0, has(-1, 1)),
        "16 bits": (grey(0, 40000, kind=np.uint16), None, has(0, 1)),
        "floats": (grey(0, 0.5, kind=np.float32), None, has(0, 1)),
        "floats with NaN": (grey(0, np.nan, kind=np.float32), None, None),
        "floats with infinity": (grey(0, np.inf, kind=np.float32), None, None),
        "varying alpha": (encode(alpha, "PNG"), None, None),
        "colours": (encode(scene(), "PNG"), None, has(1)),
        "colours, one ignored": (encode(scene(), "PNG"), 255, None),
        "palette": (encode(scene("P"), "PNG"), 255, None),
        "cut off": (grey(0, 1)[:50], None, None),
        "no picture": (b"0 0 0 1 1 1", None, None),
    }
    for title, (data, ignore, answer) in files.items():
        if title != "palette":
            yield Row(f"mask of {title}", put("m.png", data), partial(read, ignore), answer, says=r"m\.png")


def rows() -> list[Row]:
    """Return all rows."""
    return [*damaged(), *mislabelled(), *lying(), *unusual(), *named(), *masks()]
