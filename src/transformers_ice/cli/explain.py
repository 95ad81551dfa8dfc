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

About 100 small images a second on two cores, with figures (panels, SVG, PDF) fewer.
"""

from __future__ import annotations

import glob
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO, cast
from urllib.parse import urlsplit

import numpy as np
from PIL import Image
from tqdm.auto import tqdm
from transformers import AutoModelForImageClassification, pipeline

from .. import PatchExplanationPipeline
from ..console.command_line import parse_dataclasses
from ..console.exits import command, print_line
from ..console.output_files import check_outputs, is_own_picture, make_folder, name_errors
from ..console.redaction import redact_text
from ..export import AnnotationFiles, ExplanationPage
from ..ice_deit.image_conversion import IMAGE_ENDINGS
from ..model_names import resolve_ice_model_name
from ..visualization import save_result


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


def load_explainer(model: str) -> PatchExplanationPipeline:
    """Return the patch-explanation pipeline of a folder or Hub id; the installed code runs, never the folder's own."""
    name = resolve_ice_model_name(model)
    # not by `pipeline`, which answers every error with the tracebacks of its attempts
    loaded: Any = AutoModelForImageClassification.from_pretrained(name, trust_remote_code=False)
    task: Any = "patch-explanation"  # transformers types its own tasks only
    return pipeline(
        task, model=loaded, image_processor=name, pipeline_class=PatchExplanationPipeline, trust_remote_code=False
    )


def find_images(paths: Sequence[str], output_dir: Path, left_out: Counter[str] | None = None) -> list[Path | str]:
    """Return the files that paths, folders and globs name, each once; missing paths and addresses are returned too.

    A file may have any name; folders and globs yield files with the extension of an image, without those in the output
    folder: a second run must not explain the figures of the first.
    `left_out` counts the other files of folders by their endings.
    """
    found: dict[str, Path | str] = {}
    others = Counter[str]() if left_out is None else left_out
    for path in paths:
        if _is_address(path):
            found[path] = path
            continue
        for file in [Path(path)] if os.path.isfile(path) else _expand(path, output_dir.resolve(), others):
            found.setdefault(os.path.realpath(file), file)  # the first name of a file that is given twice
    return list(found.values())


def _is_address(path: Path | str) -> bool:
    return isinstance(path, str) and path.startswith(("http://", "https://"))


def _expand(path: str, output_dir: Path, left_out: Counter[str]) -> Iterator[Path]:
    if not os.path.isdir(path) and not glob.has_magic(path):
        yield Path(path)  # reading it will fail with the reason
        return
    matches = [path] if os.path.isdir(path) else sorted(glob.glob(path, recursive=True))
    for match in map(Path, matches):
        for file in sorted(_files_below(match)) if match.is_dir() else [match]:
            if file.name.startswith(".") or not file.is_file() or output_dir in file.resolve().parents:
                continue
            if file.suffix.lower() in IMAGE_ENDINGS:
                yield file
            elif match.is_dir():
                left_out[file.suffix.lower() or "without an ending"] += 1


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder; links to folders are followed, and each folder is read once."""
    seen: set[tuple[int, int]] = set()
    for directory, folders, files in os.walk(folder, followlinks=True):
        status = os.stat(directory)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        yield from (Path(directory, name) for name in files)


def name_outputs(paths: Sequence[Path | str], output_dir: Path, suffix: str = "png") -> list[Path]:
    """Return one figure name per image: its stem, which names no input and no file that this command did not write.

    Otherwise "-explained" follows the stem, and a number where another image has that name.
    """
    inputs = {_identity(Path(path)) for path in paths if os.path.exists(path)}
    taken: set[str] = set()
    outputs = []
    for path in paths:
        stem = Path(urlsplit(path).path if isinstance(path, str) else path).stem or "image"
        stem = stem if _is_free(output_dir / f"{stem}.{suffix}", inputs) else f"{stem}-explained"
        name, number = stem, 1
        # some file systems do not distinguish A.png from a.png
        while name.lower() in taken or not _is_free(output_dir / f"{name}.{suffix}", inputs):
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.lower())
        outputs.append(output_dir / f"{name}.{suffix}")
    return outputs


def _identity(path: Path) -> tuple[int, int]:
    """Return a key that is the same for all names of a file, links included."""
    status = path.stat()
    return status.st_dev, status.st_ino


def _is_free(output: Path, inputs: Collection[tuple[int, int]]) -> bool:
    """Return whether a figure may have this name: there is no such file, or a figure of an earlier run."""
    return not os.path.lexists(output) or (is_own_picture(output) and _identity(output) not in inputs)


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
    explainer._sanitize_parameters(target=target)  # raises if it is no class of the model
    if not _is_text(output_dir):
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
        for start in range(0, len(jobs), batch_size):
            batch = jobs[start : start + batch_size]
            # reading one batch at a time bounds the memory
            readable = _read_batch(explainer, batch, stop_at_bad_image, explanations.problems)
            for record, image, result in _explain_batch(explainer, readable, target, options, explanations.problems):
                if annotations is not None:
                    annotations.add(Path(record["path"]), Path(record["output"]).stem, result)
                if page is not None:
                    page.add(record["path"] if _is_address(record["path"]) else Path(record["path"]), image, result)
                log.write(json.dumps(record, ensure_ascii=False) + "\n")
                explanations.records.append(record)
                on_record(record)
            progress.update(len(batch))
            if stop_at_bad_image and explanations.problems:
                return explanations
    # without any record the log of an earlier run remains
    if explanations.records:
        for writer in (annotations, page):
            if writer is not None:
                writer.write()
        os.replace(unfinished_name(log_file), log_file)
    return explanations


def unfinished_name(log_file: Path) -> Path:
    """Return the file with the lines of an unfinished run."""
    return log_file.with_name(f"{log_file.name}.part")


@contextmanager
def open_log(log_file: Path) -> Iterator[TextIO]:
    """Open the unfinished log; its lines are kept if the block fails, and an empty one is removed."""
    file = unfinished_name(log_file)
    file.unlink(missing_ok=True)  # a link is not followed
    try:
        # line buffered, so that a killed run keeps all finished lines
        with name_errors(file), open(file, "x", encoding="utf-8", buffering=1) as log:
            yield log
            log.flush()
            os.fsync(log.fileno())
    finally:
        if file.is_file() and not file.stat().st_size:
            file.unlink()


def _read_batch(
    explainer: Any, jobs: Sequence[tuple[Path | str, Path]], stop_at_bad_image: bool, problems: list[str]
) -> list[tuple[Path | str, Path, Image.Image]]:
    """Return path, output and image of the readable files; append the errors of the others to `problems`."""
    pictures: list[tuple[Path | str, Path, Image.Image]] = []
    for path, output in jobs:
        try:
            if not _is_text(path):
                raise ValueError(f"The name of the image must be UTF-8, got {os.fsencode(path)!r}. Rename the file.")
            pictures.append((path, output, explainer.image_processor.read_image(path)))
        except ValueError as error:
            named = not _is_text(path) or str(path) in str(error)
            problems.append(str(error) if named else f"{path}: {error}")
            if stop_at_bad_image:
                break
    return pictures


def _is_text(path: Path | str) -> bool:
    """Return whether a path can be written as UTF-8, as names on disks need not."""
    try:
        return bool(str(path).encode("utf-8"))
    except UnicodeEncodeError:
        return False


def _explain_batch(
    explainer: Any,
    pictures: Sequence[tuple[Path | str, Path, Image.Image]],
    target: str | int | None,
    options: PictureOptions,
    problems: list[str],
) -> Iterator[tuple[dict[str, Any], Image.Image, dict[str, Any]]]:
    """Explain one batch, write its figures and yield record, image and result of each."""
    images = (image for *_, image in pictures)
    # a generator: the maps of an image, which have its size, are made when it is its turn
    results = explainer(images, target=target, batch_size=len(pictures)) if pictures else ()
    names = explainer.model.config.id2label
    shown = {} if target is None else {"target": names[target] if isinstance(target, int) else target}
    for (path, output, image), result in zip(pictures, results, strict=True):
        try:
            save_result(np.asarray(image), result, names, output, options.picture, options.scale, shown.get("target"))
        except (ValueError, RuntimeError, MemoryError) as error:  # one figure that cannot be drawn
            problems.append(f"{path}: the figure could not be drawn: {type(error).__name__}: {error}")
            continue
        record = {
            "path": redact_text(path) if isinstance(path, str) else str(path),
            "label": result["label"],
            **shown,
            "score": round(result["score"], 6),
            "found": result["found"],
            "box": result["box"],
            "foreground_ratio": result["foreground_ratio"],
            "output": str(output),
        }
        yield record, image, result


@dataclass
class ExplainArguments:
    """Options of `transformers-ice explain`."""

    paths: list[str] = field(metadata={"help": "Image files, folders, globs in quotes, or http(s) addresses."})
    model: str = field(metadata={"help": "Folder or Hub id of an ICE model."})
    output_dir: str = field(metadata={"help": "Folder for the figures; made if missing."})
    target: str | None = field(
        default=None, metadata={"help": "Class (name or index) that the heat maps show; default: the foreground."}
    )
    batch_size: int = field(default=8, metadata={"help": "Images at once; changes no result."})
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
        if not 0 < self.scale <= 16:
            raise ValueError(f"--scale must lie in (0, 16], got {self.scale}")


def parse_arguments(argv: Sequence[str]) -> ExplainArguments:
    """Parse the command line; mistakes end the program with exit code 2."""
    return cast(ExplainArguments, parse_dataclasses([ExplainArguments], argv, __doc__, positional=["paths"])[0])


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
    explainer = load_explainer(arguments.model)
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
    num_empty = sum(not record["found"] for record in explanations.records)
    if num_empty:
        known = f"{', '.join(names[:_NAMES_SHOWN])}{', ...' if len(names) > _NAMES_SHOWN else ''}"
        print(f"{num_empty} of {num_explained}: nothing the model knows (it knows: {known})", file=sys.stderr)
    if stop and explanations.problems:
        print(_UNFINISHED, file=sys.stderr)
    return 1 if explanations.problems else 0


if __name__ == "__main__":
    sys.exit(main())
