# SPDX-License-Identifier: Apache-2.0
"""Hook of mkdocs: links to files outside docs/, which the repository shows and the site does not hold, become text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any


_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Replace links that lead out of `docs_dir` by their text."""
    root = Path(config["docs_dir"]).resolve()
    folder = (root / page.file.src_uri).parent

    def replace(match: re.Match[str]) -> str:
        if re.match(r"[a-z]+:", match[2]):
            return match[0]
        target = (folder / match[2]).resolve()
        return match[0] if target.is_relative_to(root) and target.is_file() else match[1]

    return _LINK.sub(replace, markdown)
