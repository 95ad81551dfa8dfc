# SPDX-License-Identifier: Apache-2.0
"""Pictures as bytes: whole ones of every format that is read, and generated damage."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Iterator
from functools import cache

import numpy as np
from PIL import Image, features


WIDTH, HEIGHT = 24, 16
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", *(["AVIF"] if features.check("avif") else []))
ENDINGS = {name: name.lower() for name in FORMATS}


@cache
def scene(mode: str = "RGB") -> Image.Image:
    """Return a small picture with gradients, so that every part of a file says something."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    pixels = np.stack([columns * 10, rows * 15, columns * rows * 7 % 256], axis=-1).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    """Return a picture as a file of a format."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@cache
def whole(kind: str) -> bytes:
    """Return the scene as a file of a format."""
    return encode(scene(), kind)


def decoded(data: bytes) -> np.ndarray:
    """Return the pixels that Pillow reads from a whole file."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def cuts(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the file cut at generated places: in the header, at eighths, right before the end."""
    for size in sorted({1, 3, 12, 30, *(len(data) * part // 8 for part in range(1, 8)), len(data) - 1}):
        yield f"cut after {size} of {len(data)} bytes", data[:size]


def flips(data: bytes, count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Yield the file with one byte turned over, at generated places, half of them in the first 64 bytes."""
    generator = random.Random(seed)
    for number in range(count):
        place = generator.randrange(min(64, len(data)) if number % 2 else len(data))
        yield f"byte {place} turned over", data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


def holes(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the file with zeros in place of a quarter, as after a power cut."""
    for part in range(4):
        start, end = len(data) * part // 4, len(data) * (part + 1) // 4
        yield f"zeros in quarter {part}", data[:start] + bytes(end - start) + data[end:]


def png_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, kind: int = 0, depth: int = 8, rows: int | None = None, extra: bytes = b"") -> bytes:
    """Return a black PNG whose header says a size; `rows` are really there."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(kind, 1)
    row = b"\0" * (1 + (max(width, 0) * depth * channels + 7) // 8)
    compressor = zlib.compressobj(9)
    body = b"".join(compressor.compress(row) for _ in range(height if rows is None else rows)) + compressor.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    parts = png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def bmp(width: int, height: int, bits: int = 24, offset: int = 54) -> bytes:
    """Return a BMP whose header says a size, with 64 bytes of pixels."""
    return struct.pack(
        "<2sIIIIiiHHIIiiII", b"BM", 118, 0, offset, 40, width, height, 1, bits, 0, 64, 1, 1, 0, 0
    ) + bytes(64)


def gif(width: int, height: int) -> bytes:
    """Return a GIF whose screen and frame say a size, without any pixels."""
    frame = struct.pack("<BHHHHB", 0x2C, 0, 0, width, height, 0) + b"\x02\x02\x44\x01\x00;"
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff" + frame


def jpeg_of_size(width: int, height: int) -> bytes:
    """Return a JPEG whose header says another size than it has."""
    data = whole("JPEG")
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


def tiff(**tags: tuple[int, int]) -> bytes:
    """Return a little TIFF of 4 x 4 grey pixels; `tags` replace entries (type, value) by t<number>."""
    entries = {256: (3, 4), 257: (3, 4), 258: (3, 8), 259: (3, 1), 262: (3, 1), 273: (4, 8), 277: (3, 1)}
    entries |= {278: (3, 4), 279: (4, 16)} | {int(name[1:]): value for name, value in tags.items()}
    directory = b"".join(
        struct.pack("<HHII", tag, kind, 1, value & 0xFFFFFFFF) for tag, (kind, value) in sorted(entries.items())
    )
    pixels = bytes(range(0, 256, 16))
    return b"II*\0" + struct.pack("<I", 24) + pixels + struct.pack("<H", len(entries)) + directory + bytes(4)


NO_PICTURES = {
    "nothing": b"",
    "one zero": b"\0",
    "a megabyte of zeros": bytes(2**20),
    "text": b"this is no picture\n" * 20,
    "web page": b"<!DOCTYPE html><html><body>404</body></html>",
    "svg with a script": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
    "svg that reads a file": b'<!DOCTYPE s [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&x;</svg>',
    "pdf": b"%PDF-1.4\n1 0 obj<<>>endobj\ntrailer<<>>\n%%EOF",
    "zip": b"PK\x05\x06" + bytes(18),
    "gzip": b"\x1f\x8b\x08" + bytes(20),
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n",
    "pickle": b"cos\nsystem\n(S'touch ran'\ntR.",
    "lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
    "json": b'{"image": "a.png"}',
    "portable pixmap": b"P6 2 2 255\n" + bytes(12),
    "pixmap of a huge size": b"P6 999999 999999 255\n" + bytes(12),
    "targa": struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, 2, 2, 24, 0) + bytes(12),
    "icon around a large png": struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, 99, 22)
    + png(12000, 12000, 0, 1),
    "apple icon around a large png": b"icns" + struct.pack(">I", 999) + b"ic07" + struct.pack(">I", 99) + png(9, 9),
    "x bitmap": b"#define i_width 16\n#define i_height 1\nstatic char i_bits[] = {0x00,0x00};\n",
    "x pixmap": b'/* XPM */\nstatic char *x[] = {"1 1 1 1","a c #000000","a"};\n',
    "fits": b"SIMPLE  =                    T".ljust(80) + b"END".ljust(2800),
    "photoshop": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 4, 4, 8, 3) + bytes(60),
    "sgi": b"\x01\xda\0\1\0\2" + struct.pack(">HHH", 2, 2, 1) + bytes(600),
    "jpeg 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40),
    "heic without its reader": b"\0\0\0\x18ftypheic" + bytes(40),
    "only a png signature": b"\x89PNG\r\n\x1a\n",
    "only a jpeg marker": b"\xff\xd8\xff",
    "only a gif header": b"GIF89a",
    "riff that is sound": b"RIFF\x24\0\0\0WAVEfmt " + bytes(28),
    "byte order marks": b"\xef\xbb\xbf\xff\xfe",
}
"""Files that are no picture of a format that is read, whatever their name says."""
