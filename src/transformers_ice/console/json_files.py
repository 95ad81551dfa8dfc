# SPDX-License-Identifier: Apache-2.0
"""JSON files that a user or a download may have damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


__all__ = ["read_json"]


def read_json(path: str | Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        OSError: If there is no such file.
        ValueError: If it is no UTF-8 text, no JSON, or nested too deeply to be read.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (RecursionError, ValueError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else f"it cannot be parsed: {error}"
        raise ValueError(
            f"{str(path)!r} must be a JSON file, but {reason}. Restore it, or download it again."
        ) from error
