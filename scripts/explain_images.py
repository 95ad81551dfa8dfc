# SPDX-License-Identifier: Apache-2.0
"""Explain image files: the command `transformers-ice explain` as a script, for a clone and `accelerate launch`."""

import sys

from transformers_ice.cli.explain import main


if __name__ == "__main__":
    sys.exit(main())
