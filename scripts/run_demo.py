# SPDX-License-Identifier: Apache-2.0
"""Train, measure and explain in one command: `transformers-ice demo` as a script."""

import sys

from transformers_ice.cli.demo import main


if __name__ == "__main__":
    sys.exit(main())
