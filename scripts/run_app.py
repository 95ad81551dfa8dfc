# SPDX-License-Identifier: Apache-2.0
"""Show a model in the browser: `transformers-ice app` as a script."""

import sys

from transformers_ice.cli.app import main


if __name__ == "__main__":
    sys.exit(main())
