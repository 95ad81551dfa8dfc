# SPDX-License-Identifier: Apache-2.0
r"""Check a model folder, verify that it works without this package, and upload it to the Hugging Face Hub.

    transformers-ice publish checkpoints/ice-deit-scenes OWNER/ice-deit-scenes --dry_run
    transformers-ice publish checkpoints/ice-deit-scenes OWNER/ice-deit-scenes --private

Before anything is sent: no pickles; all weights there, in the right shapes and finite; configuration, code and
image processor complete, the code that of this package; a card with valid metadata and results. Then the pipelines of
a copy run in a fresh process without the package, and must give the same outputs. `--dry_run` does all of it, lists
what would be sent and never touches the network. docs/publishing.md has the details.

The exit code is 1 if the folder is refused or the Hub cannot be reached; an interrupted upload resumes when the
same command is run again.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from ..console.command_line import parse_dataclasses
from ..console.exits import command
from ..hub import Publication, prepare_publication, upload_publication


__all__ = ["PublishArguments", "main", "print_publication"]


@dataclass
class PublishArguments:
    """Options of `transformers-ice publish`."""

    folder: str = field(metadata={"help": "A saved model with image processor and card."})
    repo_id: str = field(metadata={"help": "Repository on the Hub, owner/name; made if missing."})
    private: bool = field(default=False, metadata={"help": "Make a new repository private."})
    dry_run: bool = field(default=False, metadata={"help": "Check and list, but send nothing."})
    revision: str | None = field(
        default=None, metadata={"help": "Branch to commit to, made if missing; by default main."}
    )
    commit_message: str | None = field(default=None, metadata={"help": "First line of the commit."})
    create_pr: bool = field(default=False, metadata={"help": "Open a pull request on an existing repository."})

    def __post_init__(self) -> None:
        if self.create_pr and self.revision:
            raise ValueError("give either --create_pr or --revision: the Hub opens pull requests on main only")


def print_publication(publication: Publication) -> None:
    """List the files that are sent, with sizes, and those that are kept local."""
    width = max(map(len, publication.sizes))
    for name, size in publication.sizes.items():
        print(f"  {name:<{width}} {size:>12,} bytes")
    print(f"  {'total':<{width}} {sum(publication.sizes.values()):>12,} bytes")
    if publication.left_out:
        # folders by their name: a single checkpoint has dozens of files
        names = dict.fromkeys(
            f"{first}/" if rest else first for first, _, rest in (name.partition("/") for name in publication.left_out)
        )
        print(f"Not uploaded: {', '.join(names)}")


@command()
def main(argv: list[str]) -> int:
    """Publish a folder; return the exit code."""
    (arguments,) = parse_dataclasses([PublishArguments], argv, __doc__, positional=["folder", "repo_id"])
    with tempfile.TemporaryDirectory() as staging:
        publication = prepare_publication(Path(arguments.folder), arguments.repo_id, Path(staging))
        print(f"{arguments.folder} is complete and works without this package. For {arguments.repo_id}:")
        print_publication(publication)
        if arguments.dry_run:
            print("Nothing was sent (--dry_run).")
            return 0
        address = upload_publication(
            publication, arguments.private, arguments.revision, arguments.commit_message, arguments.create_pr
        )
    print(f"Published: {address}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
