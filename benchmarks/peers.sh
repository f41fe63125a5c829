#!/usr/bin/env bash
# Makes the environment that a peer is measured in, and prints its Python.
#
#     python benchmarks/accuracy.py --peer "$(benchmarks/peers.sh)"
#     python benchmarks/training.py --toolkit "$(benchmarks/peers.sh tensorflow-toolkit)"
set -euo pipefail
name=${1:-torch-pruning}
case $name in
    torch-pruning) packages=(torch==2.13.0 torch-pruning==1.6.1 numpy) ;;
    tensorflow-toolkit)
        packages=(tensorflow-model-optimization==0.8.1 tensorflow==2.21.0 tf_keras==2.21.0) ;;
    *) echo "there is no peer called $name" >&2; exit 2 ;;
esac
home=${XDG_CACHE_HOME:-$HOME/.cache}/filterprune-benchmarks/$name
if [ ! -f "$home/complete" ]; then
    python3.11 -m venv --clear "$home"
    "$home/bin/python" -m pip install -q "${packages[@]}" >&2
    touch "$home/complete"
fi
echo "$home/bin/python"
