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

REMOTE_CODE_FILES = (
    "adversarial_normalization.py",
    "configuration_ice_deit.py",
    "image_conversion.py",
    "image_processing_ice_deit.py",
    "input_checks.py",
    "layers_ice_deit.py",
    "local_windows.py",
    "modeling_ice_deit.py",
    "outputs_ice_deit.py",
    "packed_attention.py",
    "patch_maps.py",
    "patch_smoothing.py",
    "pipeline_patch_explanation.py",
    "pretrained_ice_deit.py",
    "pruned_encoding.py",
    "remote_code.py",
    "token_layouts.py",
    "token_pruning.py",
)
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

    Only then: where this package is installed, a living configuration with these entries would make `pipeline` ask for
    `trust_remote_code` although the classes are at hand.
    """
    config.auto_map = dict(AUTO_MAP)
    config.custom_pipelines = {task: dict(entry) for task, entry in CUSTOM_PIPELINES.items()}
    try:
        yield
    finally:
        del config.auto_map, config.custom_pipelines


def copy_remote_code(folder: Path, source: str | None) -> None:
    """Copy the code that a checkpoint needs where this package is not installed.

    Args:
        folder: Where to copy to; made if missing.
        source: Folder or Hub id that the model came from. When this very file runs as remote code, neighbours it
            does not import lie only there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in REMOTE_CODE_FILES:
        file = Path(__file__).resolve().with_name(name)
        if not file.is_file():
            try:
                file = Path(HF_MODULES_CACHE) / get_cached_module_file(source or "", name)
            except (OSError, ValueError):  # no such folder, or no such name on the Hub
                logger.warning(f"{name} is neither beside this code nor in {source!r}: {folder} will lack it.")
                continue
        if file != folder.resolve() / name:
            shutil.copyfile(file, folder / name)


__all__ = ["AUTO_MAP", "CUSTOM_PIPELINES", "REMOTE_CODE_FILES", "copy_remote_code", "remote_code_entries"]
