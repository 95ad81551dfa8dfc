# SPDX-License-Identifier: Apache-2.0
"""Time pruned models: the command `transformers-ice benchmark` as a script, for a clone and `accelerate launch`."""

import sys

from transformers_ice.cli.benchmark import main


if __name__ == "__main__":
    sys.exit(main())
