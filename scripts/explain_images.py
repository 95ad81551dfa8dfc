# SPDX-License-Identifier: Apache-2.0
"""Explain image files: `transformers-ice explain` as a script."""

import sys

from transformers_ice.cli.explain import main


if __name__ == "__main__":
    sys.exit(main())
