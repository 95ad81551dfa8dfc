# SPDX-License-Identifier: Apache-2.0
"""Score explanations: the command `transformers-ice evaluate` as a script, for a clone and `accelerate launch`."""

import sys

from transformers_ice.cli.evaluate import main


if __name__ == "__main__":
    sys.exit(main())
