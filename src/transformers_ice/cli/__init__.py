# SPDX-License-Identifier: Apache-2.0
"""The command `transformers-ice`: one subcommand for each task. Each module also runs by `python -m`."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

from .. import __version__


__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "train": "train ICE from a ViT, DeiT or ICE checkpoint, or a classifier from random weights",
    "explain": "explain image files: heat map, class map, mask, box",
    "evaluate": "score explanations against masks, boxes or the model itself",
    "benchmark": "measure images per second of pruned models",
    "convert": "turn a ViT, DeiT or ICE checkpoint of other projects into a folder",
    "export": "export to ONNX",
    "publish": "check a folder and upload it to the Hub",
    "app": "show a model in the browser",
    "demo": "train on drawn scenes, measure, explain, in a few minutes",
}
"""Summary of each subcommand, which is the module `transformers_ice.cli.NAME`."""

# extras that a subcommand needs; train,eval,viz for those that are not listed
_EXTRAS = {"app": "app,viz,eval", "explain": "viz", "export": "export,eval", "benchmark": "train,viz"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand with its arguments, by default those of the process; return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print("usage: transformers-ice COMMAND [--name value ...]\n")
        print(*(f"  {command:<{width}}  {summary}" for command, summary in COMMANDS.items()), sep="\n")
        print("\n`transformers-ice COMMAND --help` shows the options of a command.")
        return 0
    if name == "--version":
        print(f"transformers-ice {__version__}")
        return 0
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        print(f"Error: expected one of {', '.join(COMMANDS)}, got {name!r}.{hint}", file=sys.stderr)
        return 2
    sys.argv[0] = f"transformers-ice {name}"  # program name in messages and in `--help`
    try:
        # imported on use only: `--help` and other commands must not need its extra
        module = importlib.import_module(f".{name}", __name__)
    except KeyboardInterrupt:  # libraries take seconds to import
        print("Stopped.", file=sys.stderr)
        return 130
    except ImportError as error:
        needed = f"pip install 'transformers-ice[{_EXTRAS.get(name, 'train,eval,viz')}]'"
        print(f"Error: {error}. `transformers-ice {name}` needs: {needed}", file=sys.stderr)
        return 1
    return module.main(arguments[1:])
