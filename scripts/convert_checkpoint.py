# SPDX-License-Identifier: Apache-2.0
"""Convert a checkpoint: `transformers-ice convert` as a script."""

import sys

from transformers_ice.cli.convert import main


if __name__ == "__main__":
    sys.exit(main())
