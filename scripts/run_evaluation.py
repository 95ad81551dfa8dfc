# SPDX-License-Identifier: Apache-2.0
"""Score explanations: `transformers-ice evaluate` as a script."""

import sys

from transformers_ice.cli.evaluate import main


if __name__ == "__main__":
    sys.exit(main())
