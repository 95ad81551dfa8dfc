# SPDX-License-Identifier: Apache-2.0
"""Publishing: what must hold before a folder goes to the Hub, the proof in a fresh process, and the upload."""

from .checks import check_folder
from .fresh_process import compare_without_package
from .upload import Publication, prepare_publication, upload_publication


__all__ = [
    "Publication",
    "check_folder",
    "compare_without_package",
    "prepare_publication",
    "upload_publication",
]
