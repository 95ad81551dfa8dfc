# SPDX-License-Identifier: Apache-2.0
"""A card from a record and the facts of a folder: text in, text out."""

from __future__ import annotations

from ..redaction import redact_text
from . import sections
from .facts import ModelFacts
from .metadata import make_metadata
from .records import ModelRecord


__all__ = ["build_card"]


def build_card(record: ModelRecord, facts: ModelFacts, picture: str | None = None) -> str:
    """Return the card of a model, as the Hub reads it.

    Args:
        record: How it was made, and its numbers.
        facts: What its folder says.
        picture: Path of its picture, relative to the card.
    """
    parts = [
        f"---\n{make_metadata(record, facts).to_yaml()}\n---",
        sections.introduction(record, facts, picture),
        sections.intended_use(record, facts),
        sections.how_to_use(record, facts),
        sections.results(record),
        sections.training(record, facts),
        sections.energy(record, facts),
        sections.licence(),
        sections.citation(),
    ]
    return redact_text("\n\n".join(parts) + "\n")  # a record may be older than its redaction
