# SPDX-License-Identifier: Apache-2.0
"""The page: its components and the handlers of their events."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.processing_utils import hash_bytes
from gradio.utils import get_upload_folder
from PIL import Image

from ..ice_deit.token_pruning import STRATEGIES
from .analysis import LoadedModel, PreparedImage, explain_image, prepare_image
from .examples import draw_examples
from .fragments import (
    answer_html,
    caption_html,
    download_html,
    explanation_to_json,
    figures_html,
    header_html,
    pruning_html,
    section_html,
    status_html,
)
from .limits import Deadline, Limits, RequestError, Worker, read_upload
from .methods import DEFAULT_METHODS, available_methods, compare_methods
from .pictures import VIEWS, Picture, View, draw_heatmap, draw_kept_patches, draw_method
from .pruning import STRATEGY_NAMES, PruningSetting, measure_pruning, missing_heads


__all__ = ["Handlers", "build_page"]

FOREGROUND = -1  # choice of a target: everything that is not background
_PICTURE_BUTTONS: list[Any] = ["download", "fullscreen"]
# gradio labels its thumbnails "Thumbnail 1 of 8"; their descriptions are better labels
_NAME_EXAMPLES = """() => setTimeout(() => document.querySelectorAll("#examples button").forEach(
    (button) => button.setAttribute("aria-label", "Example: " + button.innerText.trim())), 300)"""
_EMPTY = "Drop a picture, or take an example."


class Handlers:
    """Handlers of events: they return values by the name (`elem_id`) of the component that shows them.

    Each asks its deadline first and between its steps, and answers with the message where the deadline refuses.
    """

    def __init__(self, loaded: LoadedModel, limits: Limits) -> None:
        self.loaded, self.limits = loaded, limits
        self._folder = Path(get_upload_folder())
        self._folder.mkdir(parents=True, exist_ok=True)

    def explain(self, path: str | None, target: int, deadline: Deadline | None = None) -> dict[str, Any]:
        """Return status, prediction, every view with its caption, and the download."""
        if path is None:
            return _no_explanation(status_html(_EMPTY))
        deadline = deadline or Deadline(self.limits.timeout_s)
        try:
            image = self._read(path, deadline)
            explanation = explain_image(self.loaded, image, _as_target(target))
            components = {"answer": answer_html(explanation, self.loaded.class_names)}
            for view in VIEWS:
                deadline.check()
                components |= self._show(view, view.draw(self.loaded, image, explanation))
        except ValueError as error:
            return _no_explanation(status_html(str(error), is_problem=True))
        height, width = image.size
        text = (
            f"Explained {width} x {height} pixels in {deadline.elapsed:.1f} s, of which the one run of the model took "
            f"{explanation.milliseconds:.0f} ms."
        )
        record = explanation_to_json(self.loaded, explanation)
        return {"status": status_html(text), **components, "download": download_html(record)}

    def compare(
        self, path: str | None, target: int, methods: Sequence[str], deadline: Deadline | None = None
    ) -> dict[str, Any]:
        """Return status and figures of the other explainers."""
        deadline = deadline or Deadline(self.limits.timeout_s)
        chosen = list(dict.fromkeys(methods))
        try:
            image = self._read(path, deadline)
            explanation = explain_image(self.loaded, image, _as_target(target))
            maps = compare_methods(self.loaded, image, chosen, _as_target(target), deadline)
            own = draw_heatmap(self.loaded, image, explanation)
            pictures = [Picture(own.pixels, f"ICE · {explanation.milliseconds:.0f} ms")]
            for result in maps:
                deadline.check()
                pictures.append(draw_method(image, result, explanation.shown.mask))
            figures = figures_html(pictures)
        except ValueError as error:
            return {"comparison-status": status_html(str(error), is_problem=True), "comparison": ""}
        text = f"ICE next to {_count(len(maps), 'other')}, on the same picture."
        return {"comparison-status": status_html(text), "comparison": figures}

    def prune(
        self, path: str | None, strategy: str, margin: float, keep_rate: float, deadline: Deadline | None = None
    ) -> dict[str, Any]:
        """Return status, figures of the kept patches, and the numbers."""
        deadline = deadline or Deadline(self.limits.timeout_s)
        try:
            image = self._read(path, deadline)
            result = measure_pruning(self.loaded, image, PruningSetting(strategy, margin, keep_rate), deadline)
            pictures = draw_kept_patches(image, result)
        except ValueError as error:
            return {"pruning-status": status_html(str(error), is_problem=True), "kept": "", "pruning-numbers": ""}
        steps = _count(len(result.pruning_steps), "pruning step")
        text = f"{steps}. Violet patches are pruned there, dim ones before."
        return {
            "pruning-status": status_html(text),
            "kept": figures_html(pictures),
            "pruning-numbers": pruning_html(result),
        }

    def _read(self, path: str | None, deadline: Deadline) -> PreparedImage:
        deadline.check()
        if path is None:
            raise RequestError(_EMPTY)
        return prepare_image(self.loaded, read_upload(path, self.limits))

    def _show(self, view: View, picture: Picture) -> dict[str, Any]:
        """Return a figure and its caption, which screen readers get twice: as text and as alt text."""
        # encoded here, by the worker and within the time of the request; gradio would do it in its event loop
        content = picture.encode()
        file = self._folder / hash_bytes(content) / f"{view.name}.png"
        # no parents: the folder is gone once the app stops, and what is still running must not make it again
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
        image = gr.update(value=str(file), alt_text=picture.caption)
        return {view.name: image, view.caption_name: caption_html(picture, view.shows_scale)}


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _as_target(choice: int | None) -> int | None:
    return None if choice is None or choice == FOREGROUND else int(choice)


def _no_explanation(status: str) -> dict[str, Any]:
    """Return a status, and nothing in the other components."""
    empty = {name: value for view in VIEWS for name, value in ((view.name, None), (view.caption_name, ""))}
    return {"status": status, "answer": answer_html(None), **empty, "download": ""}


class _Events:
    """Events that are answered one after the other, within their time, for visitors who listen."""

    def __init__(self, loaded: LoadedModel, limits: Limits, listeners: Container[str] | None) -> None:
        self.handlers, self.listeners = Handlers(loaded, limits), listeners
        self._worker = Worker()

    def register(
        self, triggers: Sequence[Any], handler: Callable[..., dict[str, Any]], inputs: list[Any], outputs: list[Any]
    ) -> None:
        """Let a handler, which returns the outputs by their `elem_id`, answer some triggers."""
        components = {output.elem_id: output for output in outputs}

        async def update(request: gr.Request, *values: Any) -> dict[Any, Any]:
            deadline = Deadline(self.handlers.limits.timeout_s, partial(self._is_wanted, request))
            work = partial(handler, *values, deadline=deadline)
            try:
                answer = await self._worker.run(work, deadline)
            except RequestError:
                answer = work()  # the deadline refuses it with the same message, where the answer would be
            return {components[name]: value for name, value in answer.items()}

        gr.on(list(triggers), update, inputs, outputs, **_event(handler.__name__))

    def _is_wanted(self, request: gr.Request | None) -> bool:
        return self.listeners is None or request is None or request.session_hash in self.listeners


def build_page(
    loaded: LoadedModel,
    limits: Limits,
    listeners: Container[str] | None = None,
    examples: list[tuple[Image.Image, str]] | None = None,
) -> gr.Blocks:
    """Build the page; nothing is started. Without `listeners` every visitor is taken to wait for the answer.

    Examples are images with a description; by default drawn scenes for a model that knows them, else none.
    """
    events = _Events(loaded, limits, listeners)
    if examples is None:
        examples = draw_examples() if loaded.knows_scenes else []
    title = f"ICE: {Path(loaded.title).name}"
    with gr.Blocks(title=title, analytics_enabled=False) as page:
        gr.HTML(header_html(loaded))
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=300):
                picture, status, gallery, target = _add_inputs(loaded, limits, examples)
            with gr.Column(scale=5, min_width=300):
                results = [status, gr.HTML(answer_html(None), elem_id="answer"), *_add_view(VIEWS[0])]
        with gr.Row(equal_height=False):
            for view in VIEWS[1:]:
                with gr.Column(min_width=260):
                    results += _add_view(view)
        results.append(gr.HTML(elem_id="download"))
        events.register([picture.change, target.change], events.handlers.explain, [picture, target], results)
        _add_comparison(events, picture, target)
        _add_pruning(events, picture)
        # Examples are sent to every visitor again, since old files are removed. The first explanation needs no call:
        # setting the example triggers the same event as any change.
        if examples:
            page.load(lambda: (examples, examples[0][0]), None, [gallery, picture], **_event("load"))
    return page


def _event(name: str) -> dict[str, Any]:
    """Return the common options of all events: private API, limited concurrency."""
    return {
        "api_visibility": "private",
        "api_name": name,
        "trigger_mode": "always_last",  # of several changes during a run, only the last one is computed
        "concurrency_limit": None,  # they wait for the worker, in which the clock of a request runs
        "show_progress": "minimal",
    }


def _add_inputs(
    loaded: LoadedModel, limits: Limits, examples: list[tuple[Image.Image, str]]
) -> tuple[gr.Image, gr.HTML, gr.Gallery, gr.Dropdown]:
    """Add the inputs: image or example, and target class; and the status line."""
    picture = gr.Image(
        label=f"Your picture (up to {limits.max_upload_mb:g} MB)",
        type="filepath",
        image_mode=None,  # keeps bit depth and transparency, which the image processor handles
        sources=["upload", "clipboard"],
        alt_text="The picture that is explained",
        buttons=[],
        height=340,
        elem_id="picture",
        elem_classes="ice-picture",
    )
    _restrict_to_uploads(picture)
    status = gr.HTML(status_html("Loading the first example ..." if examples else "Drop a picture."), elem_id="status")
    gallery = gr.Gallery(
        label="Or an example",
        visible=bool(examples),
        columns=4,
        height="auto",
        object_fit="cover",
        allow_preview=False,
        buttons=[],
        interactive=False,
        format="jpeg",  # smaller than PNG
        elem_id="examples",
    )
    choices = [("Everything that is not background", FOREGROUND)]
    choices += [(name, index) for index, name in loaded.class_names.items()]
    target = gr.Dropdown(
        choices,
        value=FOREGROUND,
        label="Target of the heat map",
        info="Any class, also one that the model did not predict.",
        elem_id="target",
    )

    def choose_example(event: gr.SelectData) -> Image.Image:
        if type(event.index) is not int or not 0 <= event.index < len(examples):
            raise gr.Error(f"There is no example {event.index!r}.", print_exception=False)
        return examples[event.index][0]

    gallery.select(choose_example, None, picture, **_event("example"))
    gallery.change(js=_NAME_EXAMPLES, api_visibility="private", api_name="name_examples")
    return picture, status, gallery, target


def _restrict_to_uploads(picture: gr.Image) -> None:
    """Restrict a component to the path of an upload.

    gradio would open the file itself, and fail with its own message or change its bit depth; and it would download an
    image for anyone who sends a URL in place of an upload. gradio has checked before that the path is an upload.
    """
    # set on the instance: gradio has no option for either
    keep = picture.async_move_resource_to_block_cache

    async def keep_file(path: Any) -> str | None:
        if "://" in str(path):
            raise gr.Error("Pictures are accepted as files, not as addresses.", print_exception=False)
        if path is not None and not os.path.isfile(path):
            raise gr.Error("This upload is not there any more. Send it again.", print_exception=False)
        return await keep(path)

    instance: Any = picture
    instance.preprocess = lambda payload: None if payload is None else payload.path
    instance.async_move_resource_to_block_cache = keep_file


def _add_view(view: View) -> list[Any]:
    """Add a figure with its caption."""
    picture = gr.Image(
        label=view.title,
        alt_text=view.alt_text,
        format="png",
        interactive=False,
        buttons=_PICTURE_BUTTONS,
        elem_id=view.name,
        elem_classes="ice-picture",
    )
    return [picture, gr.HTML(elem_id=view.caption_name)]


def _add_comparison(events: _Events, picture: gr.Image, target: gr.Dropdown) -> None:
    """Add the other explainers."""
    methods = available_methods()
    gr.HTML(
        section_html(
            "Other explainers",
            "The same model, the same picture, other methods. Each map is stretched to its own largest value; "
            "the milliseconds are of one run.",
        )
    )
    chosen = gr.CheckboxGroup(
        [(title, name) for name, title in methods.items()],
        value=[name for name in DEFAULT_METHODS if name in methods],
        label="Methods",
        elem_id="methods",
    )
    button = gr.Button("Compare", variant="primary", elem_id="compare")
    status, figures = gr.HTML(elem_id="comparison-status"), gr.HTML(elem_id="comparison")
    events.register([button.click], events.handlers.compare, [picture, target, chosen], [status, figures])


def _show_control(strategy: str) -> tuple[Any, Any]:
    """Show the slider that a strategy uses, and hide the other."""
    uses_rate = STRATEGIES[strategy].has_fixed_counts
    return gr.update(visible=not uses_rate), gr.update(visible=uses_rate)


def _add_pruning(events: _Events, picture: gr.Image) -> None:
    """Add the pruning control."""
    gr.HTML(
        section_html(
            "Fewer patches",
            "Patches that are background in the last layer need not be computed up to there. Prune them in earlier "
            "layers, and see what the model still predicts, what it computes and how long it takes.",
        )
    )
    loaded = events.handlers.loaded
    usable = [name for name in STRATEGY_NAMES if not missing_heads(loaded, name)]
    strategy = gr.Radio(
        [(title, name) for name, title in STRATEGY_NAMES.items()],
        value=usable[0],
        label="Strategy",
        elem_id="strategy",
    )
    with gr.Row():
        margin = gr.Slider(
            -4,
            12,
            value=float(loaded.model.config.background_margin),
            step=0.5,
            label="Margin",
            info="By how much background has to win, in logits. Larger keeps more patches.",
            min_width=260,
            visible=not STRATEGIES[usable[0]].has_fixed_counts,
            elem_id="margin",
        )
        rate = gr.Slider(
            0.1,
            1.0,
            value=0.7,
            step=0.05,
            label="Keep rate",
            info="Fraction of the patches that is kept at each pruning step.",
            min_width=260,
            visible=STRATEGIES[usable[0]].has_fixed_counts,
            elem_id="keep-rate",
        )
    strategy.change(_show_control, strategy, [margin, rate], **_event("control"))
    button = gr.Button("Prune patches", variant="primary", elem_id="prune")
    status, figures = gr.HTML(elem_id="pruning-status"), gr.HTML(elem_id="kept")
    numbers = gr.HTML(elem_id="pruning-numbers", apply_default_css=False)
    inputs, outputs = [picture, strategy, margin, rate], [status, figures, numbers]
    events.register([button.click], events.handlers.prune, inputs, outputs)
