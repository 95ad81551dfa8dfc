# SPDX-License-Identifier: Apache-2.0
"""Model cards and publishing: a card from recorded results, checks, a test in a fresh process, the upload."""

from .card import build_card, for_repository, read_facts
from .checks import check_card, check_card_for_publication, check_folder
from .fresh_process import compare_without_package
from .records import ModelRecord, ResultEntry, TrainingRecord, read_record, read_records, write_record, write_records
from .upload import Publication, prepare_publication, upload_publication


__all__ = [
    "ModelRecord",
    "Publication",
    "ResultEntry",
    "TrainingRecord",
    "build_card",
    "check_card",
    "check_card_for_publication",
    "check_folder",
    "compare_without_package",
    "for_repository",
    "prepare_publication",
    "read_facts",
    "read_record",
    "read_records",
    "upload_publication",
    "write_record",
    "write_records",
]
