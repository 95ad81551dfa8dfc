# SPDX-License-Identifier: Apache-2.0
"""Show an ICE model in the browser: upload an image, see what it is, where, and why.

    transformers-ice app --model checkpoints/ice-deit-scenes --port 7860

prints the address to open once the model is loaded. `--model` takes any folder or Hub id of an ICE checkpoint;
`checkpoints/ice-deit-scenes-pruned` has heads for all pruning strategies. Nothing is sent anywhere: no analytics, no
fonts or scripts of other hosts; images of visitors are removed within 70 minutes. docs/app.md has the details.
"""

from __future__ import annotations

import sys

from ..app import launch_app, parse_app_arguments
from ..console.exits import command


__all__ = ["main"]


@command()
def main(argv: list[str]) -> int:
    """Serve the model of the command line until stopped; return the exit code."""
    arguments = parse_app_arguments(argv, __doc__)
    print(f"Loading {arguments.model} ...", flush=True)
    page = launch_app(arguments, block=False)
    print(f"Open {page.local_url} in your browser; Ctrl-C stops.", flush=True)
    page.block_thread()
    return 0


if __name__ == "__main__":
    sys.exit(main())
