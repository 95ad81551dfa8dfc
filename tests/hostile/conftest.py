# SPDX-License-Identifier: Apache-2.0
"""The shared tiny model, and the line at the end of a run that counts hostile inputs."""

from __future__ import annotations

from collections import Counter, defaultdict

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
    tables: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for reports in terminalreporter.stats.values():
        for report in reports:
            found = dict(getattr(report, "user_properties", ())).get("hostile")
            if found and getattr(report, "when", "") == "call":
                tables[report.nodeid.rpartition("[")[2].rstrip("]")] += Counter(found)  # fast and slow rows
    if tables:
        tables["all"] = sum(tables.values(), Counter())
        names = ("inputs", "refused", "answered", "tracebacks", "hangs", "changed", "other faults")
        for table, counts in tables.items():
            text = ", ".join(f"{counts[name]} {name}" for name in names)
            terminalreporter.write_line(f"hostile, {table}: {text}; {counts['seconds']:.1f} s of one core")
