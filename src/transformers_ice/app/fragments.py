# SPDX-License-Identifier: Apache-2.0
"""HTML fragments of the page. All text from outside (class names, model names) is escaped here."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ..visualization import object_colors, objects_of
from .analysis import Explanation, LoadedModel
from .pictures import Picture
from .pruning import PruningResult, RunSummary


__all__ = [
    "answer_html",
    "caption_html",
    "download_html",
    "explanation_to_json",
    "figures_html",
    "header_html",
    "pruning_html",
    "section_html",
    "status_html",
]

_FIGURE_SIDE = 480  # many figures at once must load on a phone
_SCALE = '<div class="ice-scale" aria-hidden="true"><span>0</span><i></i><span>1</span></div>'
_EMPTY = '<div class="ice-answer"><p class="how-sure">Drop a picture, or take an example.</p></div>'


def header_html(loaded: LoadedModel) -> str:
    """Return the heading: purpose of the page, and its model."""
    config, count = loaded.model.config, len(loaded.class_names)
    untrained = (
        "<p>Its patch head counts as untrained, since it classifies by [CLS]: the maps say nothing of the picture.</p>"
        if config.logits_source == "cls"
        else ""
    )
    known = f"It knows {'drawn scenes' if loaded.knows_scenes else 'its own classes'} and nothing else."
    return (
        '<header class="ice-header"><h1>I can visualize everything</h1>'
        "<p>An image classifier that shows its reasons: for every patch of your picture it predicts a class, or "
        "background.</p>"
        f'<p class="ice-model">Model <strong>{escape(loaded.title)}</strong> · {count} classes · '
        f"{config.num_hidden_layers} layers · {known}</p>{untrained}</header>"
    )


def section_html(heading: str, text: str) -> str:
    """Return a heading with a sentence below it."""
    return f'<div class="ice-section"><h2>{escape(heading)}</h2><p>{text}</p></div>'


def status_html(text: str, is_problem: bool = False) -> str:
    """Return a line that screen readers read out when it changes."""
    role, style = ("alert", "ice-status problem") if is_problem else ("status", "ice-status")
    return f'<p class="{style}" role="{role}">{escape(text)}</p>'


def answer_html(explanation: Explanation | None, class_names: Mapping[int, str] | None = None) -> str:
    """Return the predicted label and the best scores; of a multi-label model all labels, in their classes' colours."""
    if explanation is None:
        return _EMPTY
    if explanation.shown.objects is not None:
        return _several_html(explanation, class_names or {})
    if not explanation.shown.found and explanation.shown.class_index is None:
        known = ", ".join(explanation.scores)  # all equal: they would look like an answer
        return (
            '<div class="ice-answer"><p class="label">Nothing the model knows</p><p class="how-sure">Every patch is '
            f"background. The model knows {escape(known)} and other classes like these.</p></div>"
        )
    rows = "".join(
        f'<li><span class="name">{escape(name)}</span><span class="bar" aria-hidden="true">'
        f'<i style="width:{100 * score:.1f}%"></i></span><span class="value">{100 * score:.1f} %</span></li>'
        for name, score in explanation.scores.items()
    )
    return (
        f'<div class="ice-answer"><p class="label">{escape(explanation.shown.label)}</p>'
        f'<p class="how-sure">score {100 * explanation.shown.score:.1f} % · '
        f"{_percent(explanation.shown.foreground_ratio)} of the "
        f'patches are not background</p><ol class="ice-scores" aria-label="Best classes">{rows}</ol></div>'
    )


def _several_html(explanation: Explanation, class_names: Mapping[int, str]) -> str:
    """Return the labels that a multi-label model found, and the best scores with the scores from which they count."""
    objects = objects_of(explanation.shown.to_dict()) or []
    colors = object_colors(objects, class_names, [explanation.shown.class_map])
    rows = "".join(
        f'<li><span class="name">{escape(name)} <small>from {100 * (explanation.thresholds or {})[name]:.0f} %</small>'
        f'</span><span class="bar" aria-hidden="true"><i style="width:{100 * score:.1f}%;'
        f'background:{colors.get(name, "var(--neutral-400)")}"></i></span>'
        f'<span class="value">{100 * score:.1f} %</span></li>'
        for name, score in explanation.scores.items()
    )
    label = escape(", ".join(found.label for found in objects)) or "Nothing found"
    text = (
        f"{_percent(explanation.shown.foreground_ratio)} of the patches show what was found"
        if objects
        else "No class reaches its threshold in any patch"
    )
    return (
        f'<div class="ice-answer"><p class="label">{label}</p><p class="how-sure">{text} · a class counts from its '
        f'threshold on</p><ol class="ice-scores" aria-label="Best classes, each with its threshold">{rows}</ol></div>'
    )


def caption_html(picture: Picture | None, shows_scale: bool = False) -> str:
    """Return the caption of a figure, with its legend or its scale."""
    if picture is None:
        return ""
    legend = "".join(
        f'<li><i style="background:{color}"></i>{escape(name)}</li>' for name, color in (picture.legend or {}).items()
    )
    legend = f'<ul class="ice-legend" aria-label="Colours of the classes">{legend}</ul>' if legend else ""
    return f'<p class="ice-caption">{escape(picture.caption)}</p>{legend}{_SCALE if shows_scale else ""}'


def figures_html(pictures: Sequence[Picture]) -> str:
    """Return figures in a row, each with its caption and a link to save it as PNG.

    The files are part of the page, so that none of them is stored on the server.
    """
    figures = []
    for picture in pictures:
        source = f"data:image/png;base64,{base64.b64encode(picture.encode(_FIGURE_SIDE)).decode()}"
        name, *rest = picture.caption.split(" · ")
        figures.append(
            f'<figure><img src="{source}" alt="{escape(picture.caption)}"><figcaption><strong>{escape(name)}</strong>'
            f"{escape(' · '.join(rest))}"
            f'<a href="{source}" download="{_file_name(name)}.png" aria-label="Save {escape(name)} as PNG">Save PNG'
            "</a></figcaption></figure>"
        )
    return f'<div class="ice-figures">{"".join(figures)}</div>' if figures else ""


def _file_name(title: str) -> str:
    return "-".join("".join(letter if letter.isalnum() else " " for letter in title.lower()).split())


def explanation_to_json(loaded: LoadedModel, explanation: Explanation) -> dict[str, Any]:
    """Convert an explanation to values that JSON can represent."""
    box, target = explanation.box, explanation.target
    return {
        "model": loaded.title,
        "label": explanation.shown.label,
        "score": round(explanation.shown.score, 6),
        "scores": {name: round(score, 6) for name, score in explanation.scores.items()},
        "found": explanation.shown.found,
        "box": None if box is None else _corners(box),
        "target": None if target is None else loaded.class_names[target],
        "foreground_ratio": round(explanation.shown.foreground_ratio, 6),
    } | _objects_to_json(explanation)


def _objects_to_json(explanation: Explanation) -> dict[str, Any]:
    """Return what a multi-label model adds: thresholds of the listed scores, and the objects."""
    if explanation.shown.objects is None:
        return {}
    pairs = zip(explanation.shown.objects, explanation.object_boxes, strict=True)
    objects = [{"label": own.label, "score": round(own.score, 6), "box": _corners(box)} for own, box in pairs]
    thresholds = {name: round(score, 6) for name, score in (explanation.thresholds or {}).items()}
    return {"thresholds": thresholds, "objects": objects}


def _corners(box: tuple[int, int, int, int]) -> dict[str, int]:
    return dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))


def download_html(record: Mapping[str, Any] | None) -> str:
    """Return a link that contains the result itself: nothing of it is stored on the server."""
    if record is None:
        return ""
    content = base64.b64encode(json.dumps(record, ensure_ascii=False, indent=2).encode()).decode()
    return (
        f'<a class="ice-download" download="explanation.json" href="data:application/json;base64,{content}">'
        "Download the result (JSON)</a>"
    )


def pruning_html(result: PruningResult | None) -> str:
    """Return the effect of pruning: label, MACs, time, and the tokens of every layer."""
    if result is None:
        return ""
    base, own = result.unpruned, result.pruned
    rows = (
        ("Prediction", *(f"{escape(run.label)}, {100 * run.score:.0f} %" for run in (base, own)), ""),
        ("Million MACs", f"{base.mmacs:.1f}", f"{own.mmacs:.1f}", f"{base.mmacs / own.mmacs:.2f} x less"),
        ("Milliseconds", _time(base), _time(own), _speedup(result.speedup)),
    )
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>' for row in rows
    )
    tokens = "".join(
        f'<li><span>Layer {layer}</span><span class="bar" aria-hidden="true">'
        f'<i style="width:{100 * count / full:.0f}%"></i></span><span class="value">{count} of {full}</span></li>'
        for layer, (count, full) in enumerate(zip(own.tokens_per_layer, base.tokens_per_layer, strict=True))
    )
    return (
        '<table class="ice-table"><thead><tr><th scope="col">One picture</th><th scope="col">unpruned</th>'
        f'<th scope="col">pruned</th><th scope="col">ratio</th></tr></thead><tbody>{body}</tbody></table>'
        f'<p class="ice-caption">Milliseconds: median of {result.num_repeats} runs of each, alternating; quartiles. '
        "A small model, or a busy machine, gains less than the MACs allow.</p>"
        f'<ol class="ice-tokens" aria-label="Tokens that enter each layer">{tokens}</ol>'
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _time(run: RunSummary) -> str:
    spread = run.milliseconds
    return f"{spread.median:.1f} ({spread.low:.1f}–{spread.high:.1f})"


def _speedup(ratio: float) -> str:
    return f"{ratio:.2f} x faster" if ratio >= 1 else f"{1 / ratio:.2f} x slower"
