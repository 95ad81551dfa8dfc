# SPDX-License-Identifier: Apache-2.0
r"""Check a model folder, prove that it works without this package, and upload it to the Hugging Face Hub.

    python scripts/publish_checkpoint.py checkpoints/ice-deit-scenes OWNER/ice-deit-scenes --dry_run
    python scripts/publish_checkpoint.py checkpoints/ice-deit-scenes OWNER/ice-deit-scenes --private

Before anything is sent: no pickles; all weights there, in the right shapes and finite; configuration, code and
image processor complete, the code that of this package; a card with valid metadata and results. Then the pipelines of
a copy run in a fresh process without the package, and give what they give with it. `--dry_run` does all of it, lists
what would be sent and never touches the network. docs/publishing.md says more.

The exit code is 1 if the folder is refused or the Hub cannot be reached; an upload that broke off goes on when the
same command is run again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from transformers_ice.hub import Publication, prepare_publication, upload_publication


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the words of the command line by name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="DIR", type=Path, help="a saved model with image processor and card")
    parser.add_argument("repo_id", metavar="REPO_ID", help="repository on the Hub, owner/name; made if missing")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--dry_run", action="store_true", help="check and list, but send nothing")
    parser.add_argument("--revision", help="branch to commit to, made if missing; by default main")
    parser.add_argument("--commit_message", help="first line of the commit")
    parser.add_argument("--create_pr", action="store_true", help="open a pull request on an existing repository")
    arguments = parser.parse_args(argv)
    if arguments.create_pr and arguments.revision:
        parser.error("give either --create_pr or --revision: the Hub opens pull requests on main only")
    return arguments


def print_publication(publication: Publication) -> None:
    """List what is sent, with sizes, and what stays."""
    width = max(map(len, publication.sizes))
    for name, size in publication.sizes.items():
        print(f"  {name:<{width}} {size:>12,} bytes")
    print(f"  {'total':<{width}} {sum(publication.sizes.values()):>12,} bytes")
    if publication.left_out:
        # folders by their name: a checkpoint alone has dozens of files
        names = dict.fromkeys(
            f"{first}/" if rest else first for first, _, rest in (name.partition("/") for name in publication.left_out)
        )
        print(f"Stays here: {', '.join(names)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Publish a folder; return the exit code."""
    arguments = parse_arguments(argv)
    with tempfile.TemporaryDirectory() as staging:
        try:
            publication = prepare_publication(arguments.folder, arguments.repo_id, Path(staging))
            print(f"{arguments.folder} is complete and works without this package. For {arguments.repo_id}:")
            print_publication(publication)
            if arguments.dry_run:
                print("Nothing was sent (--dry_run).")
                return 0
            address = upload_publication(
                publication, arguments.private, arguments.revision, arguments.commit_message, arguments.create_pr
            )
        except (OSError, ValueError) as error:
            print(f"Error: {error}", file=sys.stderr)
            return 1
    print(f"Published: {address}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
