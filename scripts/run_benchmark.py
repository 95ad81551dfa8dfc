# SPDX-License-Identifier: Apache-2.0
"""Time pruned models: `transformers-ice benchmark` as a script."""

import sys

from transformers_ice.cli.benchmark import main


if __name__ == "__main__":
    sys.exit(main())
