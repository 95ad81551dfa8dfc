# SPDX-License-Identifier: Apache-2.0
"""Publish a checkpoint: the command `transformers-ice publish` as a script, for a clone and `accelerate launch`."""

import sys

from transformers_ice.cli.publish import main


if __name__ == "__main__":
    sys.exit(main())
