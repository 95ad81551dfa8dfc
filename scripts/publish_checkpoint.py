# SPDX-License-Identifier: Apache-2.0
"""Publish a checkpoint: `transformers-ice publish` as a script."""

import sys

from transformers_ice.cli.publish import main


if __name__ == "__main__":
    sys.exit(main())
