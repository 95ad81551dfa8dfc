# SPDX-License-Identifier: Apache-2.0
"""Export to ONNX: `transformers-ice export` as a script."""

import sys

from transformers_ice.cli.export import main


if __name__ == "__main__":
    sys.exit(main())
