#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Install torch into an environment: a CPU build where no NVIDIA GPU is at hand, the default build elsewhere.
#
#   scripts/install_torch.sh .venv/bin/python constraints.txt
#
# The version is the one pinned in the constraints file. The default build for Linux brings along some 3 GB of CUDA
# libraries, which a machine without a GPU must not download: there a wheel wins that pip's own configuration points at
# (find-links), otherwise torch comes from TORCH_CPU_INDEX.
set -euo pipefail

python=${1:?"usage: install_torch.sh PYTHON CONSTRAINTS"}
constraints=${2:?"usage: install_torch.sh PYTHON CONSTRAINTS"}
requirement=$(grep '^torch==' "$constraints")
index=${TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}

# -qq: errors only
pip_install() { "$python" -m pip --disable-pip-version-check -qq install --no-compile -c "$constraints" "$@" "$requirement"; }

is_installed() {
    "$python" -c 'import sys, importlib.metadata as m; sys.exit(m.version("torch").split("+")[0] != sys.argv[1])' \
        "${requirement#torch==}" 2>/dev/null
}

has_gpu() { nvidia-smi -L 2>/dev/null | grep -q GPU; }

if is_installed; then
    exit 0
elif has_gpu; then
    pip_install
elif pip_install --no-index --no-deps 2>/dev/null; then
    pip_install  # the wheel is here; now what it depends on
elif ! pip_install --index-url "$index"; then
    echo "No CPU build of $requirement at $index. Set TORCH_CPU_INDEX to an index that has one." >&2
    exit 1
fi
