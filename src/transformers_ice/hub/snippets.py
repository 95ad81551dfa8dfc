# SPDX-License-Identifier: Apache-2.0
"""The python of a card: what a reader copies. Every block runs as it stands where the folder is."""

from __future__ import annotations

import re

from .facts import ModelFacts
from .records import ModelRecord


__all__ = ["first_snippet", "for_repository", "second_snippet"]

_ICE_PIPELINES = """\
from transformers import pipeline

checkpoint = "{location}"
image = "{image}"
options = {{"model": checkpoint, "trust_remote_code": True}}  # the code lies in the repository, beside the weights

explanation = pipeline("patch-explanation", **options)(image)
print(explanation["label"], round(explanation["score"], 2), explanation["box"])  # also: heatmap, mask, class_map
print(pipeline("image-classification", **options)(image)[0]["label"])
print([segment["label"] for segment in pipeline("image-segmentation", **options)(image)])
"""

_ICE_MODEL = """\
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

processor = AutoImageProcessor.from_pretrained(checkpoint, trust_remote_code=True)
model = AutoModelForImageClassification.from_pretrained(checkpoint, trust_remote_code=True)
pixel_values = processor(Image.new("RGB", (640, 480)), return_tensors="pt").pixel_values  # a photo of your own
with torch.no_grad():
    outputs = model(pixel_values)
print(tuple(outputs.logits.shape), tuple(outputs.patch_logits.shape))  # background is the last class of a patch
(mask,) = processor.post_process_foreground(outputs, target_sizes=[(480, 640)])
print(mask.shape, mask.dtype)
"""

_CLASSIFIER = """\
from transformers import pipeline

checkpoint = "{location}"
image = "{image}"
classify = pipeline("image-classification", model=checkpoint)
print([(entry["label"], round(entry["score"], 2)) for entry in classify(image)[:2]])
"""

_LOCATION = re.compile(r'^checkpoint = "([^"\n]+)"$', re.MULTILINE)
_BLOCK = re.compile(r"^```python\n.*?^```$", re.MULTILINE | re.DOTALL)


def first_snippet(record: ModelRecord, facts: ModelFacts) -> str:
    """Return the code that loads the pipelines."""
    code = _ICE_PIPELINES if facts.is_ice else _CLASSIFIER
    return code.format(location=record.location, image=record.image)


def second_snippet(facts: ModelFacts) -> str:
    """Return the code that calls the model; it follows the first. "" for a plain classifier."""
    return _ICE_MODEL if facts.is_ice else ""


def for_repository(card: str, repo_id: str) -> str:
    """Let the snippets of a card load a repository of the Hub instead of a folder.

    Args:
        card: The text, whose snippets may load `checkpoint = "FOLDER"`.
        repo_id: The repository, `owner/name`.
    """
    found = _LOCATION.search(card)
    if found is None:
        return card
    location = found[1]

    def replace(block: re.Match[str]) -> str:
        files = f"https://huggingface.co/{repo_id}/resolve/main"
        text = block[0].replace(f"https://huggingface.co/{location}/resolve/main", files)  # published before
        return text.replace(f'"{location}/', f'"{files}/').replace(f'"{location}"', f'"{repo_id}"')

    return _BLOCK.sub(replace, card)
