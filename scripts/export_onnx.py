# SPDX-License-Identifier: Apache-2.0
"""Export to ONNX: the command `transformers-ice export` as a script, for a clone and `accelerate launch`."""

import sys

from transformers_ice.cli.export import main


if __name__ == "__main__":
    sys.exit(main())
