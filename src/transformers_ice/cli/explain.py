# SPDX-License-Identifier: Apache-2.0
r"""Explain image files: one figure per image, by default heat map and box, and one JSON line per image.

    transformers-ice explain photo.jpg folder "more/*.png" --model checkpoints/ice-deit-scenes \
        --output_dir explanations

Folders are searched recursively. A figure is named after its image, photo.png for photo.jpg. An image and any other
file that this command did not write are never replaced: the figure is then named photo-explained.png. A line per
image goes to OUTPUT_DIR/explanations.jsonl.part, which becomes explanations.jsonl at the end of the run.

`--annotations` also writes masks and boxes for labelling tools: coco.json, or a file per image in the folder labelme
or voc; images in which nothing was found get none. `--html` writes index.html, one page of thumbnails that can be
sorted by score, by foreground, and wrong ones first where a folder has the name of a class.

`--picture` chooses the figure (heat map and box, class map with its legend, outline of the mask, cut-out, or a
panel of all) and `--format` the kind of file. Standard output and OUTPUT_DIR/explanations.jsonl get a line per image:
`path`, `label`, `score`, `found`, `box` (half-open pixels of the upright image; null where nothing was found),
`foreground_ratio` and `output`, the figure; with `--target` also `target`, the class of the heat map. The exit code is
1 if there was nothing to explain or a file could not be read.

Of a multi-label model a line also has `objects`, the `label`, `score` and `box` of each class that was found, best
first, maybe none; figures, annotations and page show each in the colour of its class, or say "nothing found".

Other classifiers are explained too (ViT, DeiT, ViT-MSN, DINOv2 with or without registers), by relevance maps:

    transformers-ice explain photo.jpg --model my-dinov2 --method legrad --output_dir explanations

`--method` is any name that `transformers-ice evaluate --explainers` takes. Its map is drawn as a heat map, stretched
from its least to its largest value, without mask or box; a line has `method` in place of `found`, `box` and
`foreground_ratio`.

`--fast` runs the model by the fastest of ONNX Runtime, OpenVINO and torch's compiler that is installed; the first
time it is exported, half a minute for a DeiT-S. `--precision int8` is faster still and rounds the weights; with
`--calibration_dir`, a folder of images like these, activations too: the fastest of all on a processor with VNNI.

About 100 small images a second on two cores, with figures (panels, SVG, PDF) fewer.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from ..console.command_line import parse_dataclasses
from ..console.exits import command, print_line
from ..console.output_files import check_outputs, make_folder, open_log, unfinished_name
from ..console.redaction import redact_text
from ..explainers import MapExplainer
from ..export import AnnotationFiles, ExplanationPage, processed_size
from ..inference import optimize_for_inference
from ..visualization import save_result
from .explainer_loading import load_explainer
from .image_files import calibration_pixels, find_images, is_address, is_text, name_outputs


__all__ = [
    "ExplainArguments",
    "Explanations",
    "PictureOptions",
    "explain_files",
    "find_images",
    "load_explainer",
    "main",
    "name_outputs",
    "unfinished_name",
]


# entries of a line beside class and figure: of ICE's own explanation, of a relevance map
_OWN_ENTRIES = (("found", "box", "foreground_ratio"), ("method",))
_PIXELS_OF_BATCH = 2**22  # images of more are decoded and drawn so long that a larger batch saves nothing


@dataclass(frozen=True)
class PictureOptions:
    """Figure to draw of each image: the arguments of `save_result`, and the ending of the files."""

    picture: str = "heatmap"
    suffix: str = "png"
    scale: float = 1.0


@dataclass
class Explanations:
    """One JSON-ready dict per explained image, and a sentence for every file that could not be explained."""

    records: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def explain_files(
    explainer: Any,
    paths: Sequence[Path | str],
    output_dir: Path,
    target: str | int | None = None,
    batch_size: int = 8,
    stop_at_bad_image: bool = False,
    options: PictureOptions = PictureOptions(),
    annotations: AnnotationFiles | None = None,
    page: ExplanationPage | None = None,
    on_record: Callable[[dict[str, Any]], None] = lambda record: None,
) -> Explanations:
    """Explain image files and write their figures and `explanations.jsonl`; `target` is the class of the heat maps.

    During the run its lines are in `explanations.jsonl.part`; an interrupted run keeps them there, and does not change
    `explanations.jsonl` of an earlier run. A file that cannot be read ends the run, or is skipped. `on_record` gets
    every record when its figure is written.
    """
    # raises if it is no class of the model
    (explainer.class_index if isinstance(explainer, MapExplainer) else explainer._class_index)(target)
    if not is_text(output_dir):
        raise ValueError(f"The name of the output folder must be UTF-8, got {os.fsencode(output_dir)!r}.")
    make_folder(output_dir)
    log_file = output_dir / "explanations.jsonl"
    # before any work: the log must not replace an input
    check_outputs([log_file, unfinished_name(log_file)], paths)
    jobs = list(zip(paths, name_outputs(paths, output_dir, options.suffix), strict=True))
    explanations = Explanations()
    with (
        open_log(log_file) as log,
        tqdm(total=len(jobs), desc="explaining", unit="image") as progress,
    ):

        def take(record: dict[str, Any], pixels: np.ndarray, result: dict[str, Any]) -> None:
            if annotations is not None:
                annotations.add(Path(record["path"]), Path(record["output"]).stem, result)
            if page is not None:
                shown_path = record["path"] if is_address(record["path"]) else Path(record["path"])
                page.add(shown_path, Image.fromarray(pixels), result)
            log.write(json.dumps(record, ensure_ascii=False) + "\n")
            explanations.records.append(record)
            on_record(record)

        remaining = deque(jobs)
        while remaining:
            pictures = _read_batch(explainer, remaining, batch_size, stop_at_bad_image, explanations.problems)
            _explain_batch(explainer, pictures, target, options, explanations.problems, take)
            progress.update(len(jobs) - len(remaining) - progress.n)
            if stop_at_bad_image and explanations.problems:
                return explanations
    # without any record the log of an earlier run remains
    if explanations.records:
        for writer in (annotations, page):
            if writer is not None:
                writer.write()
        os.replace(unfinished_name(log_file), log_file)
    return explanations


def _read_batch(
    explainer: Any,
    jobs: deque[tuple[Path | str, Path]],
    batch_size: int,
    stop_at_bad_image: bool,
    problems: list[str],
) -> deque[tuple[Path | str, Path, np.ndarray]]:
    """Take files from `jobs`; return path, output and pixels of the readable ones, and append the errors of others.

    A batch ends with `batch_size` files, or sooner where its images are large: memory must not grow with their number.
    """
    pictures: deque[tuple[Path | str, Path, np.ndarray]] = deque()
    num_pixels = 0
    for _ in range(min(batch_size, len(jobs))):
        path, output = jobs.popleft()
        try:
            if not is_text(path):
                raise ValueError(f"The name of the image must be UTF-8, got {os.fsencode(path)!r}. Rename the file.")
            pictures.append((path, output, np.asarray(explainer.image_processor.read_image(path))))
            num_pixels += pictures[-1][2][..., 0].size
        except ValueError as error:
            named = not is_text(path) or str(path) in str(error)
            problems.append(str(error) if named else f"{path}: {error}")
            if stop_at_bad_image:
                break
        if num_pixels >= _PIXELS_OF_BATCH:
            break
    return pictures


def _explain_batch(
    explainer: Any,
    pictures: deque[tuple[Path | str, Path, np.ndarray]],
    target: str | int | None,
    options: PictureOptions,
    problems: list[str],
    take: Callable[[dict[str, Any], np.ndarray, dict[str, Any]], None],
) -> None:
    """Explain one batch, write its figures, and give `take` record, pixels and result of each."""
    images = (Image.fromarray(pixels) for *_, pixels in list(pictures))
    # a generator: the maps of an image, which have its size, are made when it is its turn
    results = iter(explainer(images, target=target, batch_size=len(pictures)) if pictures else ())
    names = explainer.model.config.id2label
    shown = {} if target is None else {"target": names[target] if isinstance(target, int) else target}
    while pictures:
        path, output, pixels = pictures.popleft()
        result = next(results)
        try:
            save_result(pixels, result, names, output, options.picture, options.scale, shown.get("target"))
        except (ValueError, RuntimeError, MemoryError) as error:  # one figure that cannot be drawn
            problems.append(f"{path}: the figure could not be drawn: {type(error).__name__}: {error}")
        else:
            record = {
                "path": redact_text(path) if isinstance(path, str) else str(path),
                "label": result["label"],
                **shown,
                "score": None if result["score"] is None else round(result["score"], 6),
                # a relevance map has no objects
                **{name: result[name] for name in _OWN_ENTRIES["method" in result]},
                **_line_of_objects(result),
                "output": str(output),
            }
            take(record, pixels, result)
        del pixels, result  # before the maps of the next image are made


def _line_of_objects(result: dict[str, Any]) -> dict[str, Any]:
    """Return the entry `objects` of a line, of a multi-label model."""
    if "objects" not in result:
        return {}
    objects = [{**found, "score": round(found["score"], 6)} for found in result["objects"]]
    return {"objects": [{name: found[name] for name in ("label", "score", "box")} for found in objects]}


@dataclass
class ExplainArguments:
    """Options of `transformers-ice explain`."""

    paths: list[str] = field(metadata={"help": "Image files, folders, globs in quotes, or http(s) addresses."})
    model: str = field(metadata={"help": "Folder or Hub id of an ICE model, or a ViT, DeiT, ViT-MSN or DINOv2."})
    output_dir: str = field(metadata={"help": "Folder for the figures; made if missing."})
    method: str | None = field(
        default=None,
        metadata={
            "help": "Explainer; default: ice of an ICE model, legrad of another classifier, raw_attention of an "
            "encoder without one."
        },
    )
    target: str | None = field(
        default=None,
        metadata={
            "help": "Class (name or index) that the heat maps show; default: the foreground or predicted class."
        },
    )
    batch_size: int = field(default=8, metadata={"help": "Images at once; changes no result."})
    fast: bool = field(
        default=False, metadata={"help": "Run the model by the fastest runtime that is installed; needs [export]."}
    )
    precision: Literal["auto", "float32", "bfloat16", "int8"] = field(
        default="auto", metadata={"help": "Numbers that --fast computes with."}
    )
    calibration_dir: str | None = field(
        default=None,
        metadata={"help": "Images like those to explain, up to 128 of them, for `--precision int8` by OpenVINO."},
    )
    picture: Literal["heatmap", "class_map", "mask", "cut_out", "panel"] = field(
        default="heatmap", metadata={"help": "Figure to draw of each image."}
    )
    format: Literal["png", "svg", "pdf"] = field(default="png", metadata={"help": "Kind of the figures' files."})
    scale: float = field(default=1.0, metadata={"help": "Resolution of the figures over the image's."})
    annotations: Literal["coco", "labelme", "voc"] | None = field(
        default=None, metadata={"help": "Also write masks and boxes for labelling tools."}
    )
    html: bool = field(default=False, metadata={"help": "Also write index.html, one page of thumbnails to sort."})
    on_bad_image: Literal["skip", "stop"] = field(
        default="skip", metadata={"help": "Whether to continue after a file that cannot be read."}
    )

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"--batch_size must be at least 1, got {self.batch_size}")
        if self.precision != "auto" and not self.fast:
            raise ValueError(f"--precision {self.precision} needs --fast")
        if self.calibration_dir and self.precision != "int8":
            raise ValueError("--calibration_dir needs --fast --precision int8")
        if not 0 < self.scale <= 16:
            raise ValueError(f"--scale must lie in (0, 16], got {self.scale}")


def parse_arguments(argv: Sequence[str]) -> ExplainArguments:
    """Parse the command line; mistakes end the program with exit code 2."""
    return cast(ExplainArguments, parse_dataclasses([ExplainArguments], argv, __doc__, positional=["paths"])[0])


def _check_outputs_of_maps(arguments: ExplainArguments) -> None:
    """Refuse figures and files that need masks and boxes, which a relevance map has not."""
    wanted = {f"--picture {arguments.picture}": arguments.picture != "heatmap", "--html": arguments.html}
    wanted[f"--annotations {arguments.annotations}"] = arguments.annotations is not None
    if any(wanted.values()):
        refused = next(option for option, is_given in wanted.items() if is_given)
        raise ValueError(
            f"{refused} needs the masks of an ICE model explained by its own patch head; a relevance map has none. "
            "Leave it out, or train the model: `transformers-ice train --model_name_or_path ...`."
        )


def _make_fast(explainer: Any, arguments: ExplainArguments) -> None:
    """Let a pipeline run an optimized model, and say which."""
    processor, images = explainer.image_processor, None
    if arguments.calibration_dir:
        images = calibration_pixels(arguments.calibration_dir, processor)
    explainer.model = optimize_for_inference(
        explainer.model,
        precision=arguments.precision,
        image_size=processed_size(processor),
        calibration_images=images,
    )
    chosen = explainer.model.optimization
    print(f"The model runs by {chosen.backend} in {chosen.precision}: {chosen.reason}", file=sys.stderr)


_NAMES_SHOWN = 10  # classes in the line about images in which nothing was found
_UNFINISHED = "Stopped. The lines so far are in explanations.jsonl.part of the output folder."


@command(stopped=_UNFINISHED)
def main(argv: list[str]) -> int:
    """Explain the images of the command line; return the exit code."""
    arguments = parse_arguments(argv)
    output_dir = Path(arguments.output_dir)
    left_out = Counter[str]()
    paths = find_images(arguments.paths, output_dir, left_out)
    if left_out:
        counts = ", ".join(f"{ending} {count}" for ending, count in sorted(left_out.items()))
        print(f"{left_out.total()} files of other types were left out: {counts}", file=sys.stderr)
    if not paths:
        raise ValueError(f"No images found in {', '.join(arguments.paths)}.")
    explainer = load_explainer(arguments.model, arguments.method)
    if isinstance(explainer, MapExplainer):
        if arguments.fast:
            raise ValueError(
                "--fast runs ICE's own explanation, which is the outputs of the model; a relevance map is made inside "
                "its layers. Leave --fast or --method out."
            )
        _check_outputs_of_maps(arguments)
    elif arguments.fast:
        _make_fast(explainer, arguments)
    stop = arguments.on_bad_image == "stop"
    names = [str(explainer.model.config.id2label[index]) for index in range(explainer.model.config.num_labels)]
    target: str | int | None = arguments.target
    if arguments.target is not None and arguments.target not in names and arguments.target.isdecimal():
        target = int(arguments.target)  # a class may have a number as its name
    target_name = names[target] if isinstance(target, int) and target < len(names) else arguments.target
    is_ascii = not (sys.stdout.encoding or "").lower().startswith("utf")
    id2label = explainer.model.config.id2label
    explanations = explain_files(
        explainer,
        paths,
        output_dir,
        target,
        arguments.batch_size,
        stop,
        PictureOptions(arguments.picture, arguments.format, arguments.scale),
        AnnotationFiles(arguments.annotations, output_dir, id2label) if arguments.annotations else None,
        ExplanationPage(output_dir, id2label, target_name) if arguments.html else None,
        on_record=lambda record: print_line(json.dumps(record, ensure_ascii=is_ascii)),
    )
    for problem in explanations.problems:
        print(f"Error: {problem}", file=sys.stderr)
    num_explained = len(explanations.records)
    print(f"{num_explained} of {len(paths)} images explained, figures in {output_dir}", file=sys.stderr)
    num_empty = sum(not record.get("found", True) for record in explanations.records)
    if num_empty:
        known = f"{', '.join(names[:_NAMES_SHOWN])}{', ...' if len(names) > _NAMES_SHOWN else ''}"
        print(f"{num_empty} of {num_explained}: nothing the model knows (it knows: {known})", file=sys.stderr)
    if stop and explanations.problems:
        print(_UNFINISHED, file=sys.stderr)
    return 1 if explanations.problems else 0


if __name__ == "__main__":
    sys.exit(main())
