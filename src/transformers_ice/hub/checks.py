# SPDX-License-Identifier: Apache-2.0
"""Checks of a card and of a folder before it is published; its code is compared with the package's, not run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from huggingface_hub import ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.repocard_data import model_index_to_eval_results
from huggingface_hub.utils import validate_repo_id
from PIL import Image
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification
from transformers.utils import logging

from ..console.json_files import read_json
from ..console.redaction import known_secrets
from ..ice_deit.configuration_ice_deit import IceDeiTConfig
from ..ice_deit.remote_code import AUTO_MAP, CUSTOM_PIPELINES, remote_code_files
from .published_files import find_secret_files, sort_files
from .records import RECORD_FILE


__all__ = ["check_card", "check_card_for_publication", "check_folder"]

_MODEL_CODE = Path(__file__).resolve().parents[1] / "ice_deit"
_PIPELINE_TAGS = ("image-classification", "image-segmentation")
# file -> how it gets there; weights may also be spread over several files
_NEEDED = {
    "config.json": "Save the model with `model.save_pretrained(folder)`",
    "preprocessor_config.json": "Save the image processor with `image_processor.save_pretrained(folder)`",
    "README.md": "Write the card with scripts/write_model_card.py",  # from its record
    "model.safetensors": "Save the model with `model.save_pretrained(folder)`, or convert it with "
    "scripts/convert_checkpoint.py",
}
_NO_RECORD = (
    f"There is no {RECORD_FILE} to write one from either: a run writes both at its end, so publish its folder and not "
    "a checkpoint in it, `transformers-ice convert` too; or write a README.md of your own"
)


def check_card(text: str) -> list[str]:
    """Return the errors of a card's metadata, as sentences; empty if they are valid.

    `huggingface_hub` reads them, its `validate_repo_id` checks ids, its own conversion the results.
    `ModelCard.validate` sends a request to the Hub; `scripts/publish_checkpoint.py` calls it before an upload.
    """
    try:
        data = cast(Any, ModelCard(text).data)
    except Exception as error:  # the YAML reader and the classes of the Hub raise many kinds
        return [f"its metadata cannot be read by huggingface_hub: {error}"]
    needed = ("license", "library_name", "pipeline_tag", "datasets", "metrics")
    problems = [f"`{name}` is missing in its metadata" for name in needed if not data.get(name)]
    if data.get("pipeline_tag") not in (None, *_PIPELINE_TAGS):
        problems.append(f"`pipeline_tag` must be one of {list(_PIPELINE_TAGS)}, got {data.get('pipeline_tag')!r}")
    return [*problems, *_invalid_ids(data), *_invalid_results(data)]


def _invalid_ids(data: Any) -> Iterator[str]:
    for name in ("base_model", "datasets"):
        value = data.get(name)
        for repo_id in [value] if isinstance(value, str) else value or ():
            try:
                validate_repo_id(repo_id)
            except HFValidationError as error:
                yield f"`{name}` must hold ids of the Hub, got {repo_id!r}: {error}"


def _invalid_results(data: Any) -> Iterator[str]:
    results = model_index_to_eval_results(data.to_dict()["model-index"])[1] if data.get("eval_results") else []
    for result in results:
        value = result.metric_value
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) < float("inf"):
            yield f"the result {result.metric_name or result.metric_type!r} must be a finite number, got {value!r}"


def check_card_for_publication(text: str) -> list[str]:
    """Return why a card must not be published: what `check_card` finds, and a card without results."""
    problems = check_card(text)
    if not problems and not ModelCard(text).data.get("eval_results"):
        problems.append(
            "it has no results (`model-index`). Measure the model with scripts/run_evaluation.py and write the card "
            "with scripts/write_model_card.py"
        )
    return problems


def check_folder(folder: Path) -> list[str]:
    """Return the reasons against publishing a folder, one sentence each; empty if there is none.

    Every sentence names the file, what was expected, what was found, and the way out.

    Args:
        folder: A saved model with its image processor and card.
    """
    if not folder.is_dir():
        return [f"{folder}: expected a folder with a saved model, got none. Pass the folder that training wrote"]
    contents = sort_files(folder)
    published = contents.published
    problems = [f"{name}: {reason}" for name, reason in contents.refused.items()]
    problems += [*_check_presence(folder, published), *_check_secrets(folder, published)]
    config = _read_json(folder / "config.json", problems)
    preprocessing = _read_json(folder / "preprocessor_config.json", problems)
    if config is not None:
        if config.get("model_type") == IceDeiTConfig.model_type:
            problems += _check_remote_code(folder, published, config, preprocessing or {})
        else:
            problems += _check_absent_code(published, config)
    problems += _check_values(folder, published)
    if not problems:  # only a complete folder is loaded
        problems += _check_loading(folder)
    if (folder / "README.md").is_file():
        problems += [f"README.md: {problem}" for problem in _check_card_file(folder / "README.md")]
    return [*problems, *_check_images(folder, published)]


def _check_card_file(file: Path) -> list[str]:
    try:
        return check_card_for_publication(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        return [f"expected UTF-8 text, got other bytes ({error}). Write the card again"]


def _check_presence(folder: Path, published: Sequence[str]) -> Iterator[str]:
    has_weights = any(name.endswith(".safetensors") for name in published)
    for name, way in _NEEDED.items():
        if name not in published and not (name == "model.safetensors" and has_weights):
            if name == "README.md" and not (folder / RECORD_FILE).is_file():
                way = _NO_RECORD
            yield f"{name}: expected in {folder}, but it is not there. {way}"


def _check_secrets(folder: Path, published: Sequence[str]) -> Iterator[str]:
    """Yield the files that contain the token in use, or what looks like a token or a password."""
    names = [name for name in published if (folder / name).is_file()]
    for name, line in find_secret_files(folder, names, known_secrets()).items():
        yield (
            f"{name}: expected no token or password, got what looks like one in line {line}. Remove it there; if the "
            "folder was shared before, revoke it at https://huggingface.co/settings/tokens"
        )


def _read_json(file: Path, problems: list[str]) -> dict[str, Any] | None:
    """Return the mapping in a file, or None; errors are appended to `problems`."""
    if not file.is_file():
        return None
    try:
        content = read_json(file)
    except ValueError as error:
        problems.append(f"{file.name}: expected JSON, got text that cannot be read ({error}). Save the model again")
        return None
    if isinstance(content, dict):
        return content
    problems.append(f"{file.name}: expected a mapping, got {type(content).__name__}. Save the model again")
    return None


def _check_absent_code(published: Sequence[str], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield code, and entries that name code, in the folder of a plain classifier of transformers."""
    for name in ("auto_map", "custom_pipelines"):
        if config.get(name):
            yield (
                f"config.json: expected no `{name}` for a {config.get('model_type')!r} model, which needs no code, "
                f"got {config[name]}. Remove the entry"
            )
    for name in sorted(set(published) & set(remote_code_files())):
        yield f"{name}: code that a plain classifier does not need. Remove it"


def _check_remote_code(
    folder: Path, published: Sequence[str], config: Mapping[str, Any], preprocessing: Mapping[str, Any]
) -> Iterator[str]:
    """Yield entries for remote code and code files that differ from those of this package."""
    processor = {"AutoImageProcessor": AUTO_MAP["AutoImageProcessor"]}
    for file, name, expected, found in (
        ("config.json", "auto_map", AUTO_MAP, config.get("auto_map")),
        ("config.json", "custom_pipelines", CUSTOM_PIPELINES, config.get("custom_pipelines")),
        ("preprocessor_config.json", "auto_map", processor, preprocessing.get("auto_map")),
    ):
        if found != expected:
            yield (
                f"{file}: expected `{name}` {expected}, got {found}. Save model and image processor again with this "
                "version"
            )
    way = "Load the model and save it again, or copy the code with `copy_remote_code`"
    for name in sorted(remote_code_files()):
        if name not in published:
            yield f"{name}: expected next to the weights, but it is not there. {way}"
        elif (folder / name).read_bytes() != (_MODEL_CODE / name).read_bytes():
            yield f"{name}: expected the code of the installed package, got other code. {way}"


def _check_values(folder: Path, published: Sequence[str]) -> Iterator[str]:
    """Yield weights that are not finite, or cannot be read."""
    for file in (name for name in published if name.endswith(".safetensors")):
        try:
            with safe_open(str(folder / file), "pt") as weights:
                tensors = ((name, weights.get_tensor(name)) for name in weights.keys())  # noqa: SIM118
                bad = _some([name for name, tensor in tensors if not tensor.isfinite().all()])
        except (SafetensorError, OSError) as error:
            yield f"{file}: expected safetensors, got a file that cannot be read ({error}). Save it again"
            continue
        if bad:
            yield f"{file}: expected finite numbers, got NaN or infinity in {bad}. Publish an earlier checkpoint"


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _check_loading(folder: Path) -> Iterator[str]:
    """Yield weights that are missing, unexpected, or of another shape."""
    model_type = AutoConfig.from_pretrained(folder, trust_remote_code=False).model_type
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its report of the keys is repeated below
    try:
        loaded = AutoModelForImageClassification.from_pretrained(
            folder, trust_remote_code=False, output_loading_info=True, ignore_mismatched_sizes=True
        )
        AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        yield f"{folder}: expected a {model_type!r} classifier that loads, got an error: {error}"
        return
    finally:
        logging.set_verbosity(verbosity)
    info = cast(tuple[Any, dict[str, Any]], loaded)[1]
    mismatched = [
        f"{entry[0]} (file {tuple(entry[1])}, model {tuple(entry[2])})" if isinstance(entry, tuple) else str(entry)
        for entry in info["mismatched_keys"]
    ]
    for what, names in (
        ("no weights for", info["missing_keys"]),
        ("weights that the model does not have:", info["unexpected_keys"]),
        ("other shapes in", mismatched),
    ):
        if names:
            yield (
                f"model.safetensors: expected what config.json describes, got {what} {_some(sorted(names))}. Save "
                "model and configuration together, with `model.save_pretrained(folder)`"
            )


def _check_images(folder: Path, published: Sequence[str]) -> Iterator[str]:
    for name in (name for name in published if name.startswith("images/")):
        try:
            with Image.open(folder / name) as image:
                image.verify()
        except (OSError, SyntaxError, ValueError) as error:
            yield f"{name}: expected an image, got a file that cannot be read ({error}). Remove it"
