# SPDX-License-Identifier: Apache-2.0
"""One HTML page of explained images: thumbnails that can be sorted, without any other file."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..console.output_files import write_text
from ..visualization import object_colors, objects_of, overlay_heatmap, overlay_objects
from ..visualization.colors import HEAT_COLORS, matplotlib_module
from ..visualization.objects import NOTHING_FOUND
from ..visualization.text import printable


__all__ = ["ExplanationPage"]

_LONGEST_SIDE = 224  # pixels of a thumbnail

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="generator" content="transformers-ice explanation">
<title>Explanations</title>
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 1.5rem; color: #222; background: #fafaf8 }}
header {{ display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; align-items: baseline; margin-bottom: 1rem }}
h1 {{ font-size: 1.3rem; margin: 0 }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 1rem }}
figure {{ margin: 0; padding: .6rem; background: #fff; border: 1px solid #ddd; border-radius: 6px }}
figure.wrong {{ border: 2px solid #b3261e }}
figure div {{ display: flex; gap: .4rem }}
img {{ width: calc(50% - .2rem); object-fit: contain; background: #eee }}
figcaption {{ overflow-wrap: anywhere; margin-top: .4rem }}
small {{ color: #595959; display: block }}
.true {{ color: #b3261e }}
.scale {{ display: inline-block; width: 7rem; height: .8em; background: linear-gradient(to right, {colors}) }}
</style>
</head>
<body>
<header><h1>Explanations</h1><span>{summary}</span>
<label>Sort by <select id="order">
<option value="right,score">wrong first</option>
<option value="score">score, lowest first</option>
<option value="-score">score, highest first</option>
<option value="foreground">foreground, least first</option>
<option value="-foreground">foreground, most first</option>
<option value="place">order of the files</option>
</select></label>
<span>Heat map, p({quantity}): 0 <i class="scale"></i> 1</span></header>
<main>
{cards}
</main>
<script>
document.getElementById("order").addEventListener("change", event => {{
  const keys = event.target.value.split(","), main = document.querySelector("main");
  const value = (card, key) => key[0] === "-" ? -card.dataset[key.slice(1)] : +card.dataset[key];
  const compare = (a, b) => keys.map(key => value(a, key) - value(b, key)).find(difference => difference) || 0;
  main.append(...[...main.children].sort(compare));
}});
</script>
</body>
</html>
"""
_CARD = """<figure{style} data-place="{place}" data-right="{right}" data-score="{score}"
 data-foreground="{foreground}">
<div><img alt="" src="{image}"><img alt="heat map over {path}" src="{overlay}"></div>
<figcaption>{answer}{truth}<small>foreground {ratio}</small><small>{path}</small></figcaption>
</figure>"""


@dataclass(frozen=True)
class _Card:
    is_wrong: bool
    score: float
    html: str


class ExplanationPage:
    """Writer of `OUTPUT_DIR/index.html`; a true class is known where a folder of the image has a class's name.

    Args:
        output_dir: Folder of the page.
        class_names: Name by class index.
        target: Name of the class that the heat maps show; `None`: the foreground.

    Attributes:
        file: The page.

    Raises:
        ValueError: If there is a page of another program in its place.
    """

    def __init__(self, output_dir: Path, class_names: Mapping[int, str], target: str | None = None) -> None:
        self.file = output_dir / "index.html"
        is_own = self.file.is_file() and b"transformers-ice explanation" in self.file.read_bytes()[:2000]
        if self.file.exists() and not is_own:
            raise ValueError(
                f"The page {self.file} must not replace a file that transformers-ice did not write. Choose another "
                "--output_dir, or remove it first."
            )
        self._quantity = "not background" if target is None else target
        self._names = class_names
        self._class_names = set(class_names.values())
        self._num_known = 0
        self._cards: list[_Card] = []

    def add(self, path: Path | str, image: Image.Image, result: Mapping[str, Any]) -> None:
        """Take the explanation of an image, a file or an address: the result of the patch-explanation pipeline.

        Objects of a multi-label model are drawn on the image, each in its colour; it is wrong where none has the true
        class.
        """
        folders = path.absolute().parents if isinstance(path, Path) else ()  # an address has none
        truth = next((folder.name for folder in folders if folder.name in self._class_names), None)
        objects = objects_of(result)
        answers = [(result["label"], result["score"])]
        if objects is not None:
            answers = [(found.label, found.score) for found in objects]
        is_wrong = truth is not None and truth not in [label for label, _ in answers]
        self._num_known += truth is not None
        small = image.convert("RGB")
        small.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
        small = Image.fromarray(np.asarray(small))  # the pixels, without comments of the file
        picture = small
        if objects is not None:
            colors = object_colors(objects, self._names, [result["class_map"]])
            own = [found.resized((small.height, small.width)) for found in objects]
            picture = Image.fromarray(overlay_objects(np.asarray(small), own, colors))
        heat = np.asarray(Image.fromarray(result["heatmap"]).resize(small.size, Image.Resampling.BILINEAR))
        html = _CARD.format(
            style=' class="wrong"' if is_wrong else "",
            place=len(self._cards),
            score=round(float(result["score"]), 6),
            foreground=round(float(result["foreground_ratio"]), 6),
            right=int(not is_wrong),
            image=_data_url(picture),
            overlay=_data_url(Image.fromarray(overlay_heatmap(np.asarray(small), np.clip(heat, 0, 1)))),
            answer=", ".join(f"<b>{_text(label)}</b> {score:.1%}" for label, score in answers)
            or f"<b>{NOTHING_FOUND}</b>",
            truth=f' <span class="true">(true: {_text(truth)})</span>' if is_wrong else "",
            ratio=f"{result['foreground_ratio']:.0%}" if result["box"] is not None else NOTHING_FOUND,
            path=_text(path),
        )
        self._cards.append(_Card(is_wrong, float(result["score"]), html))

    def write(self) -> None:
        """Write the page, the wrong images first, then the uncertain ones."""
        cards = sorted(self._cards, key=lambda card: (not card.is_wrong, card.score))
        summary = f"{len(cards)} images"
        if self._num_known:
            num_wrong = sum(card.is_wrong for card in cards)
            summary += f", {num_wrong} of {self._num_known} with a known class are wrong"
        module = matplotlib_module()
        colors = ", ".join(module.colors.to_hex(color) for color in module.colormaps[HEAT_COLORS](range(0, 256, 51)))
        page = _PAGE.format(
            summary=summary,
            colors=colors,
            quantity=_text(self._quantity),
            cards="\n".join(card.html for card in cards),
        )
        write_text(self.file, page)


def _text(value: object) -> str:
    return escape(printable(value))


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
