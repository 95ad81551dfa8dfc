# SPDX-License-Identifier: Apache-2.0
"""Model cards: generated from recorded results and training state, checked with `huggingface_hub`'s own classes."""

from .card import build_card
from .facts import ModelFacts, facts_of_architecture, read_facts
from .metadata import check_card, check_card_for_publication, make_metadata
from .pictures import draw_explanations, write_example_image
from .records import (
    ModelRecord,
    ResultEntry,
    TrainingRecord,
    entries_from_evaluation,
    entries_from_training,
    read_record,
    read_records,
    weights_digest,
    write_record,
    write_records,
)
from .run_card import RunCard
from .snippets import first_snippet, for_repository


__all__ = [
    "ModelFacts",
    "ModelRecord",
    "ResultEntry",
    "RunCard",
    "TrainingRecord",
    "build_card",
    "check_card",
    "check_card_for_publication",
    "draw_explanations",
    "entries_from_evaluation",
    "entries_from_training",
    "facts_of_architecture",
    "first_snippet",
    "for_repository",
    "make_metadata",
    "read_facts",
    "read_record",
    "read_records",
    "weights_digest",
    "write_example_image",
    "write_record",
    "write_records",
]
