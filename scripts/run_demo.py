# SPDX-License-Identifier: Apache-2.0
"""Train, measure and explain in one command: the command `transformers-ice demo` as a script, for a clone and `accelerate launch`."""

import sys

from transformers_ice.cli.demo import main


if __name__ == "__main__":
    sys.exit(main())
