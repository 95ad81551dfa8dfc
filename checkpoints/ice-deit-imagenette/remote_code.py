# SPDX-License-Identifier: Apache-2.0
"""What a saved folder needs to work where this package is not installed: code, and the entries that name it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import PreTrainedConfig
from transformers.dynamic_module_utils import HF_MODULES_CACHE, get_cached_module_file
from transformers.utils import logging


logger = logging.get_logger(__name__)

AUTO_MAP = {
    "AutoConfig": "configuration_ice_deit.IceDeiTConfig",
    "AutoModel": "modeling_ice_deit.IceDeiTModel",
    "AutoModelForImageClassification": "modeling_ice_deit.IceDeiTForImageClassification",
    "AutoModelForSemanticSegmentation": "modeling_ice_deit.IceDeiTForSemanticSegmentation",
    "AutoImageProcessor": "image_processing_ice_deit.IceDeiTImageProcessor",
}
CUSTOM_PIPELINES = {
    "patch-explanation": {
        "impl": "pipeline_patch_explanation.PatchExplanationPipeline",
        "pt": ["AutoModelForImageClassification"],
        "type": "image",
        "default": {},
    }
}


@contextmanager
def remote_code_entries(config: PreTrainedConfig) -> Iterator[None]:
    """Let a configuration name the code of its folder while it is written.

    Only then: where this package is installed, an instantiated configuration with these entries would make `pipeline`
    ask for `trust_remote_code` although the classes are at hand.
    """
    config.auto_map = dict(AUTO_MAP)
    config.custom_pipelines = {task: dict(entry) for task, entry in CUSTOM_PIPELINES.items()}
    try:
        yield
    finally:
        del config.auto_map, config.custom_pipelines


def remote_code_files() -> tuple[str, ...]:
    """Return the names of the files that a checkpoint carries: all modules of this folder."""
    folder = Path(__file__).resolve().parent
    return tuple(sorted(path.name for path in folder.glob("*.py") if path.name != "__init__.py"))


def copy_remote_code(folder: Path, source: str | None) -> None:
    """Copy the code that a checkpoint needs where this package is not installed into a folder, made if missing.

    Where this very file runs as remote code, transformers has brought only the files that were imported; the others
    are fetched from `source`, the folder or Hub id that the model came from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    code = Path(__file__).resolve().parent
    is_remote = code.is_relative_to(Path(HF_MODULES_CACHE).resolve())
    for origin in (code, *(_fetch_entry_points(source) if is_remote else ())):
        for file in origin.glob("*.py"):
            if file.name != "__init__.py" and file != folder.resolve() / file.name:
                shutil.copyfile(file, folder / file.name)


def _fetch_entry_points(source: str | None) -> Iterator[Path]:
    """Yield the folders that hold every entry point of a checkpoint, and the modules that it imports."""
    entries = [*AUTO_MAP.values(), *(str(task["impl"]) for task in CUSTOM_PIPELINES.values())]
    for name in sorted({entry.partition(".")[0] for entry in entries}):
        try:
            yield (Path(HF_MODULES_CACHE) / get_cached_module_file(source or "", f"{name}.py")).parent
        except (OSError, ValueError):  # no such folder, or no such name on the Hub
            logger.warning(f"{name}.py is not in {source!r}: the saved folder lacks it.")


__all__ = ["AUTO_MAP", "CUSTOM_PIPELINES", "copy_remote_code", "remote_code_entries", "remote_code_files"]
