# SPDX-License-Identifier: Apache-2.0
"""Train ICE, or a classifier from random weights: `transformers-ice train` as a script, for `accelerate launch`.

accelerate launch scripts/run_train.py recipes/finetune-folder.yaml --train_dir photos/train
"""

import sys

from transformers_ice.cli.train import main


if __name__ == "__main__":
    sys.exit(main())
