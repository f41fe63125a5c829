#!/usr/bin/env bash
# Makes the environment that peers are measured in, and prints its Python.
#
#     python benchmarks/accuracy.py --peer "$(benchmarks/peers.sh)"
set -euo pipefail
home=${XDG_CACHE_HOME:-$HOME/.cache}/filterprune-benchmarks/torch-pruning
if [ ! -x "$home/bin/python" ]; then
    python3.11 -m venv "$home"
    "$home/bin/python" -m pip install -q torch==2.13.0 torch-pruning==1.6.1 numpy >&2
fi
echo "$home/bin/python"
