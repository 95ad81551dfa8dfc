# SPDX-License-Identifier: Apache-2.0
"""The shared tiny model, and the line at the end of a run that counts hostile inputs."""

from __future__ import annotations

from collections import Counter

import pytest
from conftest import randomize


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory):
    """Return the folder of a tiny ICE model with its image processor; no test may change it."""
    from transformers_ice import IceDeiTConfig, IceDeiTForImageClassification, IceDeiTImageProcessor

    folder = tmp_path_factory.mktemp("hostile") / "model"
    names = {0: "disc", 1: "square", 2: "star"}
    model = IceDeiTForImageClassification(
        IceDeiTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            image_size=32,
            patch_size=8,
            id2label=names,
            label2id={name: index for index, name in names.items()},
            logits_source="patch",
        )
    ).eval()
    randomize(model)
    model.save_pretrained(folder)
    IceDeiTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def pytest_terminal_summary(terminalreporter) -> None:
    """Print how many hostile inputs there were, and how they ended."""
    counts: Counter[str] = Counter()  # and the seconds of processor time
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", "") == "call":
                counts.update(dict(getattr(report, "user_properties", ())).get("hostile", {}))
    if counts:
        names = ("inputs", "refused", "answered", "tracebacks", "hangs", "changed", "other faults")
        text = ", ".join(f"{counts[name]} {name}" for name in names)
        terminalreporter.write_line(f"hostile: {text}; {counts['seconds']:.1f} s of one core")
