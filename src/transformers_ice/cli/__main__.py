# SPDX-License-Identifier: Apache-2.0
"""`python -m transformers_ice.cli` is `transformers-ice`."""

import sys

from . import main


__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(main())
