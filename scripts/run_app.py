# SPDX-License-Identifier: Apache-2.0
"""Show a model in the browser: the command `transformers-ice app` as a script, for a clone and `accelerate launch`."""

import sys

from transformers_ice.cli.app import main


if __name__ == "__main__":
    sys.exit(main())
