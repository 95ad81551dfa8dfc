# SPDX-License-Identifier: Apache-2.0
"""Reader of the XML annotations of PASCAL VOC, without entities and document types."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from .annotation_files import parse_numbers, require_file


__all__ = ["VocObject", "read_voc_objects"]


@dataclass(frozen=True)
class VocObject:
    """One annotated object.

    Attributes:
        name: Its class.
        box: xyxy in half-open pixels that count from 0.
        difficult: Marked as hard to recognise.
        truncated: Only a part of it is in the image.
    """

    name: str
    box: tuple[float, float, float, float]
    difficult: bool
    truncated: bool


def read_voc_objects(path: Path) -> list[VocObject]:
    """Return the objects of an annotation file.

    Args:
        path: An XML file of `Annotations`.

    Returns:
        The objects in their order. The file's boxes count from 1 and include their last pixel: xmin and ymin lose 1.
        `difficult` and `truncated` are False where they are missing. Boxes of parts (head, hands) are not objects.

    Raises:
        ValueError: If the file is missing, is not well-formed, has a document type (and so perhaps entities), or an
            object lacks its name or box; the message names the path.
    """
    root = _parse_xml(require_file(path, "an annotation of PASCAL VOC"))
    return [_read_object(element, path) for element in root.findall("object")]


def _parse_xml(path: Path) -> Element:
    """Return the root of an XML file; entities, which can grow without bound, need a document type: it is refused."""

    def refuse(*declaration: object) -> None:
        raise ValueError(
            f"{path} declares a document type, which may define entities that grow without bound. Annotations of "
            "PASCAL VOC have none: download the file again from a source you trust."
        )

    builder = TreeBuilder()
    parser = expat.ParserCreate()
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(path.read_bytes(), True)
    except (expat.ExpatError, LookupError) as error:
        raise ValueError(f"{path} is no well-formed XML: {error}. Download it again.") from error
    return builder.close()


def _read_object(element: Element, path: Path) -> VocObject:
    """Return one object, its box half-open and from 0."""
    name, bounds = element.findtext("name", "").strip(), element.find("bndbox")
    if not name or bounds is None:
        raise ValueError(f"{path}: an object has no `name` or no `bndbox`. Download the file again.")
    # some files of 2011 and later give coordinates with a fraction
    corners = [bounds.findtext(corner, "") for corner in ("xmin", "ymin", "xmax", "ymax")]
    x0, y0, x1, y1 = parse_numbers(corners, 4, f"{path}: the `bndbox` of {name!r}")
    if x1 < x0 or y1 < y0:
        raise ValueError(f"{path}: the box of {name!r} ends before it begins: {corners}.")
    difficult, truncated = (_read_flag(element, flag, path) for flag in ("difficult", "truncated"))
    return VocObject(name, (x0 - 1, y0 - 1, x1, y1), difficult, truncated)


def _read_flag(element: Element, flag: str, path: Path) -> bool:
    text = element.findtext(flag, "0").strip() or "0"
    if text not in ("0", "1"):
        raise ValueError(f"{path}: `{flag}` must be 0 or 1, got {text!r}.")
    return text == "1"
